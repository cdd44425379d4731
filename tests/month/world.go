// Package month simulates a month of a mail server: it plays many kinds of legitimate senders,
// users and attackers through the filter's pipeline, on a simulated clock. The package counts the
// messages and logins that the filter delayed or rejected, and the results of each attacker.
//
// The actors react to each reply. Mail servers retry as the standards require, and attackers
// continue. The same seed produces the same plan under every policy.
package month

import (
	"bytes"
	"cmp"
	"container/heap"
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// Days is the length of the month.
const Days = 30

// Start is the first midnight of the month. A program can change Start before it calls
// New.
var Start = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// day returns the time that is the given offset after the start of day d.
func day(d int, offset time.Duration) time.Time { return Start.AddDate(0, 0, d).Add(offset) }

// end returns the end of the month. After this time, actors only retry messages.
func end() time.Time { return day(Days, 0) }

// A World is the simulation of a month.
type World struct {
	*simulate.Live
	seed      uint64
	filter    *simulate.Filter
	memory    *memory.Memory
	agenda    agenda
	order     uint64 // order of actors with the same time
	mailboxes map[string]bool
	list      []string // mailboxes, for random choices
	nets      int      // number of assigned /24s
	owners    map[netip.Addr]*Kind

	Kinds   []*Kind
	Attacks []*Attack
	Records Records

	// Sink, if not nil, receives the records as the filter writes them.
	Sink func(at time.Time, id uint64, value []byte)
}

// Records holds the totals of the filter's own records. The actors count independently of these.
type Records struct{ Sessions, Mails, RcptOK, AuthFail, AuthPass int }

// New returns a month with a preset. If the name of the preset ends with " observe", the mode is
// observe. Otherwise, it is enforce.
func New(preset string, seed uint64) (*World, error) {
	preset, observe := strings.CutSuffix(preset, " observe")
	text, err := simulate.PresetText(preset)
	if err != nil {
		return nil, err
	}
	policy, err := simulate.Compile(text)
	if err != nil {
		return nil, err
	}
	if preset != "open" && !observe {
		policy = policy.InMode(rules.Enforce)
	}
	w := &World{seed: seed, memory: memory.New(), mailboxes: make(map[string]bool), owners: make(map[netip.Addr]*Kind)}
	w.filter = simulate.NewFilter(filter.Options{
		Record:   w.record,
		Log:      func([]byte) {},
		Lists:    simulate.Lists,
		Memory:   w.memory,
		OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	w.filter.Use(&filter.Settings{Policy: policy})
	w.Live = simulate.NewLive(w.filter, smtpd.Requests(filter.Phases(policy)), Start)
	w.Exists = func(local string) bool { return w.mailboxes[local] }
	for i := range 60 {
		w.mailbox(simulate.Mailbox(i))
	}
	for _, k := range kinds {
		k := k
		w.Kinds = append(w.Kinds, &k)
		k.plan(w, w.Kinds[len(w.Kinds)-1])
	}
	for i, a := range attacks {
		w.plan(i, a)
	}
	return w, nil
}

func (w *World) record(at time.Time, id uint64, value []byte) {
	r, err := store.Decode(store.AppendKey(nil, at, id), bytes.Clone(value))
	if err != nil {
		panic(err)
	}
	if w.Sink != nil {
		w.Sink(at, id, value)
	}
	w.Records.Sessions += max(1, int(r.Sessions))
	w.Records.Mails += int(r.Counts.Mails)
	w.Records.RcptOK += int(r.Counts.RcptOK)
	w.Records.AuthFail += int(r.Counts.AuthFail)
	w.Records.AuthPass += int(r.Counts.AuthPass)
}

// mailbox creates a mailbox in the server's domain.
func (w *World) mailbox(address string) {
	local := address[:len(address)-len(simulate.Domain)-1]
	w.mailboxes[local] = true
	w.list = append(w.list, address)
}

// Memory returns the filter's state.
func (w *World) Memory() *memory.Memory { return w.memory }

// Play plays the month, and then the remaining retries.
func (w *World) Play() error { return w.PlayUntil(end().AddDate(1, 0, 0)) }

// PlayUntil plays until the given time, and closes the world.
func (w *World) PlayUntil(at time.Time) error {
	for len(w.agenda) > 0 && w.agenda[0].at.Before(at) {
		a := heap.Pop(&w.agenda).(*Actor)
		w.WaitUntil(a.at)
		if at, more := a.next(); more {
			a.at = at
			w.push(a)
		}
	}
	w.filter.Stop()
	w.countBans()
	return w.Close()
}

// net returns the addresses of an unused /24. It takes the /24 from the lower half of the range for
// benchmarks, because attackers use the upper half.
func (w *World) net() func(host int) netip.Addr {
	n := w.nets
	if w.nets++; n > 255 {
		panic("month: no networks left")
	}
	return func(host int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(n), byte(host)}) }
}

// An Actor is a goroutine in the simulated world. Only one Actor runs at a time.
type Actor struct {
	*World
	*rand.Rand
	at    time.Time
	order uint64
	next  func() (time.Time, bool)
	yield func(time.Time) bool
}

// Go starts an actor at the given time. The name seeds its random numbers.
func (w *World) Go(name string, at time.Time, f func(a *Actor)) {
	h := fnv.New64a()
	h.Write([]byte(name))
	a := &Actor{World: w, Rand: rand.New(rand.NewPCG(w.seed, h.Sum64())), at: at}
	a.next, _ = iter.Pull(func(yield func(time.Time) bool) {
		a.yield = yield
		f(a)
	})
	w.push(a)
}

func (w *World) push(a *Actor) {
	w.order++
	a.order = w.order
	heap.Push(&w.agenda, a)
}

// Until waits for a time.
func (a *Actor) Until(at time.Time) {
	if at.After(a.Now()) {
		a.yield(at)
	}
}

// Wait waits for a duration.
func (a *Actor) Wait(d time.Duration) { a.Until(a.Now().Add(d)) }

// each calls f on every n-th day, starting with the day first. The call is at a random time within
// the working day.
func (a *Actor) each(first, n int, f func(d int)) {
	for d := first; d < Days; d += n {
		a.Until(day(d, 7*time.Hour+time.Duration(a.Int64N(int64(11*time.Hour)))))
		f(d)
	}
}

// someone returns a random mailbox.
func (a *Actor) someone() string { return a.list[a.IntN(60)] }

// some returns n distinct mailboxes.
func (a *Actor) some(n int) (to []string) {
	for _, i := range a.Perm(60)[:n] {
		to = append(to, a.list[i])
	}
	return to
}

type agenda []*Actor

func (h agenda) Len() int { return len(h) }
func (h agenda) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), cmp.Compare(h[i].order, h[j].order)) < 0
}
func (h agenda) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *agenda) Push(x any)   { *h = append(*h, x.(*Actor)) }
func (h *agenda) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
