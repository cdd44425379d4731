//go:build linux

package count

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// begin is the stream's first day.
var begin = time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)

// A world generates smtpd's lines for many sessions.
type world struct {
	rng    *rand.Rand
	hosts  [][]*host // by kind
	visits []visit   // in the order of their starts
	asked  map[string]bool
	token  uint64
	ids    uint64
	open   scripts
	live   map[netip.Prefix]int // open sessions
	bans   bans
	facts  map[uint64]facts // for sessions that have started
}

// A visit is a session that has not started.
type visit struct {
	at   int64
	host *host
}

// A size holds a world's settings.
type size struct {
	sessions int
	until    time.Time
	quiet    []time.Time // no session starts in the two minutes before these times
	kinds    []string    // empty: all
	hosts    int         // factor for the number of hosts; 0 means 1
	floods   int         // sessions outside floods per flood; with 0, half of all sessions are in floods
}

// newWorld plans sessions that start at begin.
func newWorld(o size) *world {
	w := &world{rng: rand.New(rand.NewPCG(uint64(o.sessions), 1)), live: map[netip.Prefix]int{}, bans: bans{}, facts: map[uint64]facts{}, ids: 0x1000}
	var single, bursts []int
	next := 0 // number of the next IPv4 network
	for k := range kinds {
		w.hosts = append(w.hosts, w.population(k, o.sessions*max(o.hosts, 1), &next))
		if len(o.kinds) > 0 && !slices.Contains(o.kinds, kinds[k].name) {
			continue
		}
		for range kinds[k].weight {
			single = append(single, k)
		}
		if kinds[k].burst {
			bursts = append(bursts, k)
		}
	}
	length := o.until.Sub(begin).Microseconds()
	pick := func(list []int) *host {
		all := w.hosts[list[w.rng.IntN(len(list))]]
		return all[w.rng.IntN(len(all))]
	}
	for n := 0; n < o.sessions; n++ {
		if n > 0 && w.rng.IntN(cmp.Or(o.floods, 90)) > 0 { // half of the sessions are in floods
			w.visits = append(w.visits, visit{begin.UnixMicro() + w.rng.Int64N(length), pick(single)})
			continue
		}
		h, hour := pick(bursts), w.rng.Int64N(length/3600e6)*3600e6
		within := int64(3_500e6)
		if kinds[h.kind].name == "crowd" {
			within = 5e6
		}
		flood := 25 + w.rng.IntN(90)
		if n == 0 { // the first flood comes from a banned client, and fills an aggregate
			h, flood = w.hosts[slices.IndexFunc(kinds, func(k kind) bool { return k.name == "tool" })][0], 1200
		} else if w.rng.IntN(12) == 0 {
			flood *= 8
		}
		for range flood {
			w.visits = append(w.visits, visit{begin.UnixMicro() + hour + w.rng.Int64N(within), h})
			n++
		}
	}
	for i := range w.visits {
		for _, q := range o.quiet {
			if at := w.visits[i].at; at >= q.Add(-2*time.Minute).UnixMicro() && at < q.UnixMicro() {
				w.visits[i].at += (2 * time.Minute).Microseconds()
			}
		}
	}
	for _, q := range o.quiet { // sessions that are open at that time
		for _, h := range w.hosts[len(kinds)-1] {
			w.visits = append(w.visits, visit{q.Add(-time.Minute).UnixMicro(), h})
		}
	}
	slices.SortStableFunc(w.visits, func(a, b visit) int { return cmp.Compare(a.at, b.at) })
	return w
}

// population returns the hosts of a kind.
func (w *world) population(k, sessions int, next *int) (all []*host) {
	one := &kinds[k]
	for n := range max(4, one.hosts*sessions/1000) {
		h := &host{kind: k, number: n, rdns: "<unknown>", fcrdns: "fail"}
		switch {
		case one.local:
		case one.six && n%2 == 1, one.spread && n >= 200: // there are not enough IPv4 networks
			h.addr = netip.MustParseAddr(fmt.Sprintf("3fff:%x:%x:%x::", k<<4, n>>8, n&255<<8)) // RFC 9637
			if one.spread {
				h.addr = netip.MustParseAddr(fmt.Sprintf("3fff:%x:%x:1::", k<<4|n>>16, n&0xffff))
			}
		default:
			*next++
			if one.spread {
				*next = (*next + 255) &^ 255
			}
			if *next >= 1<<22 {
				panic("more hosts than RFC 6598 has addresses")
			}
			h.addr = netip.AddrFrom4([4]byte{100, byte(64 + *next>>16), byte(*next >> 8), byte(*next)})
		}
		if one.rdns != "" {
			h.rdns = fmt.Sprintf(one.rdns, n)
			if one.implied == "" {
				h.fcrdns = "pass"
			}
		}
		all = append(all, h)
	}
	return all
}

// source returns an address's source: the IPv4 address, or the /64 of the IPv6 address.
func source(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// start returns a visit's script.
func (w *world) start(v visit) *script {
	h := v.host
	one := &kinds[h.kind]
	h.visits++
	w.ids++
	s := &script{id: w.ids, at: v.at, asked: w.asked, token: &w.token}
	if one.local {
		s.connect("mx.example.org", "pass", "unix:/var/run/smtpd.sock", "unix:/var/run/smtpd.sock")
		s.ask("connect", "mx.example.org|local", false)
		s.greeting()
		one.play(s, h)
		return s
	}
	s.src = h.addr
	if s.src.Is6() { // use any address in the /64
		b := s.src.As16()
		b[15], b[14] = byte(w.rng.IntN(256)), byte(w.rng.IntN(4))
		s.src = netip.AddrFrom16(b)
	}
	port := 25
	if one.user {
		port = 587
	}
	src := netip.AddrPortFrom(s.src, uint16(1024+s.id%60000))
	s.connect(h.rdns, h.fcrdns, src.String(), fmt.Sprintf("192.0.2.25:%d", port))
	w.live[source(s.src)]++
	if w.live[source(s.src)] > 50 {
		s.found("flood")
	}
	switch {
	case h.rdns == "<unknown>":
		s.implied = append(s.implied, "rdns-missing")
	case one.implied != "":
		s.implied = append(s.implied, one.implied)
	}
	rule := w.bans.connects(source(s.src), v.at)
	s.ask("connect", h.rdns+"|"+s.src.String(), rule != "")
	if rule != "" {
		if one.name == "listed" {
			s.found("scanner")
		}
		s.turnedAway(rule, "421 4.7.1 Banned")
		return s
	}
	s.greeting()
	one.play(s, h)
	return s
}

// offence bans a script's source, at the same line as the filter does. The filter bans a client
// when it greets like an attack tool, or at the end of a session in which it spoke HTTP.
func (w *world) offence(s *script, l *line) {
	rule := ""
	switch kind := kindOf(s); {
	case kind == "botnet-helo" && l.ask && l.text[:5] == "ehlo|":
		rule = "tool"
	case kind == "talks-http" && len(s.lines) == 0:
		rule = "http"
	default:
		return
	}
	s.ban = w.bans.offends(source(s.src), rule, s.id, l.at)
	s.until = s.ban.until
}

// kindOf returns the evidence of a session that causes a ban.
func kindOf(s *script) string {
	for _, e := range s.evidence {
		if e == "botnet-helo" || e == "talks-http" {
			return e
		}
	}
	return ""
}

// next returns the next line, or false at the end. If a session must start before that line, next
// first starts the session.
func (w *world) next() (l line, ok bool) {
	for len(w.visits) > 0 && (len(w.open) == 0 || w.visits[0].at < w.open[0].lines[0].at) {
		heap.Push(&w.open, w.start(w.visits[0]))
		w.visits = w.visits[1:]
	}
	if len(w.open) == 0 {
		return l, false
	}
	s := w.open[0]
	l = s.lines[0]
	s.lines = s.lines[1:]
	w.offence(s, &l)
	if len(s.lines) > 0 {
		heap.Fix(&w.open, 0)
		return l, true
	}
	heap.Pop(&w.open)
	if s.src.IsValid() {
		w.live[source(s.src)]--
	}
	w.facts[s.id] = s.facts
	return l, true
}

// scripts is a heap of open sessions, ordered by the time of their next line.
type scripts []*script

func (h scripts) Len() int { return len(h) }
func (h scripts) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[i].lines[0].at, h[j].lines[0].at), cmp.Compare(h[i].id, h[j].id)) < 0
}
func (h scripts) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *scripts) Push(x any)   { *h = append(*h, x.(*script)) }
func (h *scripts) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
