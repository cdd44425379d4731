// Package dnslist stores DNS lists' answers about clients' addresses. The filter itself
// does not use the network. A separate process, the companion "lookup", fetches the
// filter's questions over the control socket and returns the answers. The table has a
// fixed size, so that clients cannot make it grow.
package dnslist

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// Limits of the table.
const (
	sets     = 2048 // a hash of an address selects a set
	ways     = 8    // rows of a set
	maxQueue = 1024 // questions that wait for the companion
	maxBatch = 64   // questions sent to the companion at a time
	maxCodes = 3    // codes that are stored for an answer

	// maxOfSource is the maximum number of addresses in a /64 with valid or pending
	// answers. Beyond this number, a new address can only replace a listed one.
	maxOfSource = 4

	// MinTTL and MaxTTL limit how long an answer is used.
	MinTTL = time.Minute
	MaxTTL = time.Hour
	// answerTime is the time within which the companion must answer a question.
	// After that, the question may be asked again.
	answerTime = 10 * time.Second
	// gather is the time that Questions spends collecting questions, unless
	// requests are waiting for the answers. Collecting questions reduces the number
	// of context switches.
	gather = 20 * time.Millisecond
	// absence is the time after which the companion is considered stopped if it does
	// not fetch questions.
	absence = 5 * time.Second
)

// A State is a question's state.
type State uint8

// The states. A list whose answer is Unknown has no effect.
const (
	Unknown State = iota
	Pending       // the companion has not answered yet
	Absent        // not listed
	Listed
)

// A Fact is the state of a list's question about an address.
type Fact struct {
	List  *rules.Lookup
	State State
	codes [maxCodes][3]byte // the last three bytes of each code
	n     uint8
}

// Event returns the answer as an event with the session and time of at.
func (f *Fact) Event(at *smtp.Event) smtp.Event {
	ev := smtp.Event{Kind: smtp.EventListed, Time: at.Time, Session: at.Session, Name: []byte(f.List.Name), Word: []byte(f.List.Zone), Result: smtp.ResultOK}
	if f.State != Listed {
		return ev
	}
	ev.Result = smtp.ResultFail
	if f.List.Allow {
		ev.Result = smtp.ResultPass
	}
	for i, c := range f.codes[:f.n] {
		if i > 0 {
			ev.Text = append(ev.Text, ',')
		}
		ev.Text = netip.AddrFrom4([4]byte{127, c[0], c[1], c[2]}).AppendTo(ev.Text)
	}
	return ev
}

// A cell holds one list's answer in a row.
type cell struct {
	state State
	sent  bool // the companion has received the question
	n     uint8
	codes [maxCodes][3]byte
	until uint32 // seconds after the start of the table
}

// A row contains the answers about an address.
type row struct {
	addr  netip.Addr
	cells [rules.MaxLookups]cell
}

// until returns the time at which the row's last answer or question expires, or 0 if
// all have expired. n is the number of lists.
func (r *row) until(n int, now time.Duration) (last uint32) {
	for _, c := range r.cells[:n] {
		if now < seconds(c.until) {
			last = max(last, c.until)
		}
	}
	return last
}

// listed reports whether a block list contains the address.
func (r *row) listed(lists []*rules.Lookup, now time.Duration) bool {
	for i, l := range lists {
		if c := &r.cells[i]; c.state == Listed && !l.Allow && now < seconds(c.until) {
			return true
		}
	}
	return false
}

// sourceOf returns the source of an address: the IPv4 address itself, or the first
// address of the /64. A source can have only maxOfSource rows, because one client can
// use all addresses of a /64.
func sourceOf(a netip.Addr) netip.Addr {
	if !a.Is6() { // the error of Prefix would cost allocations
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}

// Causes lists the possible causes of an unknown answer.
var Causes = []string{"timeout", "failure", "code", "rate", "disabled", lost}

// lost is the cause if a question's row was evicted or the companion did not answer in
// time.
const lost = "lost"

// ListStatus counts a list's questions and answers since the filter started. Each
// question is eventually answered or lost; until then, it is pending.
type ListStatus struct {
	Name    string            `json:"name"`
	Zone    string            `json:"zone"`
	Asked   uint64            `json:"asked"`
	Listed  uint64            `json:"listed"`
	Absent  uint64            `json:"not_listed"`
	Unknown map[string]uint64 `json:"unknown,omitempty"` // by cause
	// Dropped is the number of questions that were not asked, because the queue or the
	// table had no room.
	Dropped uint64 `json:"dropped,omitempty"`
	// Withdrawn is the number of listings that were removed because the list failed a
	// test.
	Withdrawn uint64 `json:"withdrawn,omitempty"`
}

// A Table stores answers. Its methods may be called by any goroutine.
type Table struct {
	// Wake is called after each answer. It must not block.
	Wake func()
	// Withdraw is called with the addresses whose listings a list has withdrawn.
	Withdraw func(list *rules.Lookup, listed []netip.Addr)
	// Now returns the time since the table was created. Tests replace it.
	Now func() time.Duration

	withdrawals atomic.Uint32

	mu     sync.Mutex
	lists  []*rules.Lookup
	ids    []string // of lists
	status []ListStatus
	// withdrawn holds, for each list, the value of withdrawals after the list last
	// withdrew its listings.
	withdrawn [rules.MaxLookups]uint32
	rows      []row // nil until there are lists
	seed      maphash.Seed
	queue     []netip.Addr
	changed   bool          // the lists have changed since the latest answer of Questions
	asked     chan struct{} // has a value while the queue is not empty or changed is set
	readers   int           // companions that wait for questions
	read      time.Duration // time of the latest request for questions; 0 for none
}

// New returns an empty Table.
func New() *Table {
	start := time.Now()
	return &Table{Wake: func() {}, Withdraw: func(*rules.Lookup, []netip.Addr) {}, Now: func() time.Duration { return time.Since(start) }, seed: maphash.MakeSeed(), asked: make(chan struct{}, 1)}
}

// Use sets the lists of a new policy. If the lists have changed, all answers are
// dropped. Waiting requests are decided again.
func (t *Table) Use(lists []*rules.Lookup) {
	defer t.Wake()
	t.mu.Lock()
	defer t.mu.Unlock()
	lists = lists[:min(len(lists), rules.MaxLookups)]
	if slices.EqualFunc(t.lists, lists, func(a, b *rules.Lookup) bool { return a.String() == b.String() }) {
		t.lists = lists
		return
	}
	t.lists, t.ids, t.status, t.rows, t.queue = lists, nil, nil, nil, nil
	t.withdrawn = [rules.MaxLookups]uint32{}
	for _, l := range lists {
		t.ids = append(t.ids, l.ID())
		t.status = append(t.status, ListStatus{Name: l.Name, Zone: l.Zone, Unknown: map[string]uint64{}})
	}
	if len(lists) > 0 {
		t.rows = make([]row, sets*ways)
	}
	t.changed = true // the companion compares the lists
	t.ready()
}

// ready wakes Questions.
func (t *Table) ready() {
	select {
	case t.asked <- struct{}{}:
	default:
	}
}

// IDs returns the IDs of the lists; see rules.Lookup.ID.
func (t *Table) IDs() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ids)
}

// Status returns the status of all lists.
func (t *Table) Status() (all []ListStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.Now()
	for i := range t.rows {
		for list := range t.lists {
			if c := &t.rows[i].cells[list]; now >= seconds(c.until) {
				t.lose(list, c)
			}
		}
	}
	for _, s := range t.status {
		unknown := map[string]uint64{}
		for cause, n := range s.Unknown {
			unknown[cause] = n
		}
		s.Unknown = unknown
		all = append(all, s)
	}
	return all
}

// Public reports whether a belongs to a host on the Internet. DNS lists have entries
// only for public addresses.
func Public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}

// notPublic contains the networks that are not public, in addition to networks that package
// netip recognizes. Tests use the documentation networks as the Internet.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("fec0::/10"),
}

// Answers appends the state of each list's answer about a to facts, without asking any
// list.
func (t *Table) Answers(a netip.Addr, facts []Fact) []Fact {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lists) == 0 {
		return facts
	}
	facts, _ = t.answers(t.find(a), t.Now(), facts)
	return facts
}

// answers appends the state of each list's answer in a row, which may be nil. complete
// reports whether each list has a valid answer or a pending question.
func (t *Table) answers(r *row, now time.Duration, facts []Fact) (all []Fact, complete bool) {
	complete = true
	for i, l := range t.lists {
		f := Fact{List: l}
		if r != nil && now < seconds(r.cells[i].until) {
			c := &r.cells[i]
			f.State, f.codes, f.n = c.state, c.codes, c.n
		} else {
			complete = false
		}
		facts = append(facts, f)
	}
	return facts, complete
}

// Ask appends the state of each list's answer about a to facts. If the companion is
// running, Ask asks the lists that have no valid answer. again must be set for a
// session's later requests, so that a dropped question is counted only once.
func (t *Table) Ask(a netip.Addr, again bool, facts []Fact) []Fact {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lists) == 0 {
		return facts
	}
	now := t.Now()
	r := t.find(a)
	facts, complete := t.answers(r, now, facts)
	if complete || !t.present(now) {
		return facts
	}
	if r == nil && len(t.queue) < maxQueue {
		r = t.replace(a, now)
	}
	if r == nil || len(t.queue) >= maxQueue {
		for i := range t.status {
			if !again && facts[len(facts)-len(t.lists)+i].State == Unknown {
				t.status[i].Dropped++
			}
		}
		return facts
	}
	for i := range t.lists {
		c := &r.cells[i]
		if now < seconds(c.until) {
			continue
		}
		t.lose(i, c)
		*c = cell{state: Pending, until: until(now, answerTime)}
		t.status[i].Asked++
		facts[len(facts)-len(t.lists)+i].State = Pending
	}
	t.queue = append(t.queue, a)
	t.ready()
	return facts
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// until returns the time at which ttl has passed, rounded up to whole seconds.
func until(now, ttl time.Duration) uint32 { return uint32((now + ttl + time.Second - 1) / time.Second) }

// present reports whether the companion is running.
func (t *Table) present(now time.Duration) bool {
	return t.readers > 0 || t.read > 0 && now-t.read < absence
}

// set returns the set of rows that may contain a's row. All addresses of a source have
// the same set.
func (t *Table) set(a netip.Addr) []row {
	i := maphash.Comparable(t.seed, sourceOf(a)) % sets
	return t.rows[i*ways : (i+1)*ways]
}

// find returns a's row, or nil.
func (t *Table) find(a netip.Addr) *row {
	set := t.set(a)
	for i := range set {
		if set[i].addr == a {
			return &set[i]
		}
	}
	return nil
}

// replace returns a new row for a, which replaces the row whose answers expire first.
// If a's source already has maxOfSource rows, the new row replaces one with a listed
// address, because the list may cover the whole source. If no address of the source is
// listed, replace returns nil.
func (t *Table) replace(a netip.Addr, now time.Duration) *row {
	set, source := t.set(a), sourceOf(a)
	var oldest, listed *row
	same := 0
	for i := range set {
		r := &set[i]
		last := r.until(len(t.lists), now)
		if last > 0 && sourceOf(r.addr) == source {
			same++
			if r.listed(t.lists, now) && (listed == nil || last < listed.until(len(t.lists), now)) {
				listed = r
			}
		}
		if oldest == nil || last < oldest.until(len(t.lists), now) {
			oldest = r
		}
	}
	if same >= maxOfSource {
		oldest = listed
	}
	if oldest != nil {
		for i := range t.lists {
			t.lose(i, &oldest.cells[i])
		}
		*oldest = row{addr: a}
	}
	return oldest
}

// lose counts a cell's pending question as lost.
func (t *Table) lose(list int, c *cell) {
	if c.state == Pending {
		t.status[list].Unknown[lost]++
		*c = cell{}
	}
}

// A Question asks lists about an address.
type Question struct {
	Addr  netip.Addr `json:"src"`
	Lists []string   `json:"lists"` // see rules.Lookup.ID
}

// Questions returns the next questions. It waits for the first question until ctx is
// done, the given time has passed, or the lists change.
func (t *Table) Questions(ctx context.Context, wait time.Duration) []Question {
	t.mu.Lock()
	t.readers++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.readers--
		t.read = max(t.Now(), 1)
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if all, done := t.next(); done {
			return all
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			return nil
		case <-t.asked:
			if t.urgent() {
				continue
			}
		}
		timer.Reset(gather)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			all, _ := t.next()
			return all
		}
	}
}

// urgent reports whether any list has a hold, in which case requests wait for its
// answer.
func (t *Table) urgent() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.lists, func(l *rules.Lookup) bool { return l.Hold > 0 })
}

// next removes questions from the queue. done reports whether there are any questions
// or the lists have changed.
func (t *Table) next() (all []Question, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.Now()
	for len(t.queue) > 0 && len(all) < maxBatch {
		a := t.queue[0]
		t.queue = t.queue[1:]
		r := t.find(a)
		if r == nil {
			continue // evicted
		}
		q := Question{Addr: a}
		for i, id := range t.ids {
			if c := &r.cells[i]; c.state == Pending && !c.sent && now < seconds(c.until) {
				c.sent = true
				q.Lists = append(q.Lists, id)
			}
		}
		if q.Lists != nil {
			all = append(all, q)
		}
	}
	if len(t.queue) == 0 {
		t.queue = nil // the slice has moved in its array
	}
	done = len(all) > 0 || t.changed
	if t.changed = false; len(t.queue) == 0 {
		select {
		case <-t.asked:
		default:
		}
	}
	return all, done
}

// An Answer is a list's answer about an address.
type Answer struct {
	Addr  netip.Addr    // not valid if the list withdraws all its listings
	List  string        // ID of the list
	Codes []netip.Addr  // empty if the address is not listed
	TTL   time.Duration // for which the answer is valid
	Cause string        // one of Causes if the answer is unknown
}

// Answer stores an answer. It returns ErrNotAsked if the question was not sent to the
// companion, or has expired.
func (t *Table) Answer(a Answer) error {
	if err := a.check(); err != nil {
		return err
	}
	if !a.Addr.IsValid() {
		list, listed := t.drop(a.List)
		if list == nil {
			return ErrNotAsked
		}
		if listed != nil {
			t.Withdraw(list, listed)
		}
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.ids, a.List)
	if i < 0 {
		return ErrNotAsked
	}
	now := t.Now()
	r := t.find(a.Addr)
	if r == nil {
		return ErrNotAsked
	}
	c := &r.cells[i]
	if c.state != Pending || !c.sent || now >= seconds(c.until) {
		return ErrNotAsked
	}
	*c = cell{until: until(now, MinTTL)}
	known := until(now, min(max(a.TTL, MinTTL), MaxTTL))
	s := &t.status[i]
	switch listed, valid := t.lists[i].Judge(a.Codes); {
	case a.Cause != "":
		s.Unknown[a.Cause]++
	case !valid:
		s.Unknown["code"]++
	case listed:
		c.state, c.until = Listed, known
		s.Listed++
		for _, code := range a.Codes[:min(len(a.Codes), maxCodes)] {
			b := code.As4()
			copy(c.codes[c.n][:], b[1:])
			c.n++
		}
	default:
		c.state, c.until = Absent, known
		s.Absent++
	}
	t.Wake()
	return nil
}

// drop removes the listings of the list with the given ID, even if they have expired.
// drop returns the addresses and the list, or nil if the list does not exist.
func (t *Table) drop(id string) (list *rules.Lookup, listed []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := slices.Index(t.ids, id)
	if n < 0 {
		return nil, nil
	}
	for i := range t.rows {
		if c := &t.rows[i].cells[n]; c.state == Listed {
			*c = cell{}
			t.status[n].Withdrawn++
			listed = append(listed, t.rows[i].addr)
		}
	}
	if listed != nil {
		t.withdrawn[n] = t.withdrawals.Add(1)
	}
	return t.lists[n], listed
}

// Withdrawals returns a counter that increases each time a list withdraws its listings.
func (t *Table) Withdrawals() uint32 { return t.withdrawals.Load() }

// WithdrawnSince reports whether the named list has withdrawn its listings since
// Withdrawals returned n.
func (t *Table) WithdrawnSince(name string, n uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.lists, func(l *rules.Lookup) bool { return l.Name == name })
	return i >= 0 && t.withdrawn[i] > n
}

// ErrNotAsked is returned for an answer to a question that is not pending.
var ErrNotAsked = fmt.Errorf("the filter has not asked this question")

func (a *Answer) check() error {
	if a.Cause != "" && !slices.Contains(Causes, a.Cause) {
		return fmt.Errorf("cause %.20q: must be one of %s", a.Cause, strings.Join(Causes, ", "))
	}
	if !a.Addr.IsValid() && a.Cause != "disabled" {
		return fmt.Errorf("no address")
	}
	for _, code := range a.Codes {
		if !rules.IsCode(code) {
			return fmt.Errorf("%s is not a code", code)
		}
	}
	return nil
}
