// Package dnslist stores the answers of DNS lists about clients' addresses. The filter itself does
// not use the network. Instead, the companion "lookup", a separate process, fetches questions from
// the filter over the control socket and returns the answers. The table has a fixed size, so
// clients cannot make it grow.
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
	sets     = 2048 // number of sets; the hash of an address selects its set
	ways     = 8    // rows of a set
	maxQueue = 1024 // questions that wait for the companion
	maxBatch = 64   // questions sent to the companion at a time
	maxCodes = 3    // codes that are stored for an answer

	// maxOfSource is the maximum number of rows for the addresses of a /64. If a /64 has that many
	// rows, a new address can only replace an address that is on a list.
	maxOfSource = 4

	// MinTTL and MaxTTL are the minimum and maximum time for which an answer is used.
	MinTTL = time.Minute
	MaxTTL = time.Hour
	// answerTime is the time in which the companion must answer a question. After this time, the
	// question may be asked again.
	answerTime = 10 * time.Second
	// gather is the time that Questions waits for further questions after the first one. gather
	// reduces the number of context switches. If requests wait for the answers, Questions does not
	// wait.
	gather = 20 * time.Millisecond
	// absence is the time without a request for questions after which the companion is considered
	// stopped.
	absence = 5 * time.Second
)

// A State is the state of a question.
type State uint8

// The states of a question. If the answer is Unknown, the list has no effect.
const (
	Unknown State = iota
	Pending       // the companion has not answered yet
	Absent        // not listed
	Listed
)

// A Fact is the state of the question whether an address is on a list.
type Fact struct {
	List  *rules.Lookup
	State State
	codes [maxCodes][3]byte // the last three bytes of each return code
	n     uint8
}

// Event returns the answer as an event. The event has the session and time of at.
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
	until uint32 // end of the answer's validity, in seconds since the table was created
}

// A row contains the answers of all lists about an address.
type row struct {
	addr  netip.Addr
	cells [rules.MaxLookups]cell
}

// until returns the time at which the last of the row's answers or questions expires. until returns
// 0 if all have expired. n is the number of lists.
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

// sourceOf returns the source of an address. The source is the IPv4 address itself, or the first
// address of the IPv6 /64. A source can have at most maxOfSource rows, because one client may use
// all addresses of a /64.
func sourceOf(a netip.Addr) netip.Addr {
	if !a.Is6() { // for IPv4, Prefix would allocate an error
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}

// Causes lists the reasons why an answer can be unknown.
var Causes = []string{"timeout", "failure", "code", "rate", "disabled", lost}

// lost is the cause if the question's row was replaced or the companion did not answer in time.
const lost = "lost"

// ListStatus counts the questions to a list, and the list's answers, since the filter started. Each
// question is pending until it is answered or lost.
type ListStatus struct {
	Name    string            `json:"name"`
	Zone    string            `json:"zone"`
	Asked   uint64            `json:"asked"`
	Listed  uint64            `json:"listed"`
	Absent  uint64            `json:"not_listed"`
	Unknown map[string]uint64 `json:"unknown,omitempty"` // number of unknown answers by cause
	// Dropped is the number of questions that were not asked because the queue or the table was
	// full.
	Dropped uint64 `json:"dropped,omitempty"`
	// Withdrawn is the number of listings that were removed because the list failed a test.
	Withdrawn uint64 `json:"withdrawn,omitempty"`
}

// A Table stores the answers. The methods of a Table are safe for concurrent use.
type Table struct {
	// Wake is called after each answer. Wake must not block.
	Wake func()
	// Withdraw is called with the addresses whose listings a list has withdrawn.
	Withdraw func(list *rules.Lookup, listed []netip.Addr)
	// Now returns the time since the table was created. Tests replace it.
	Now func() time.Duration

	withdrawals atomic.Uint32

	mu     sync.Mutex
	lists  []*rules.Lookup
	ids    []string // IDs of the lists
	status []ListStatus
	// withdrawn holds a value for each list: the counter withdrawals at the time when the list last
	// withdrew its listings.
	withdrawn [rules.MaxLookups]uint32
	rows      []row // nil until there are lists
	seed      maphash.Seed
	queue     []netip.Addr
	changed   bool          // the lists have changed since Questions last returned
	asked     chan struct{} // receives a value when the queue is no longer empty or changed is set
	readers   int           // number of companions that wait for questions
	read      time.Duration // time at which a companion last requested questions; 0 for never
}

// New returns an empty Table.
func New() *Table {
	start := time.Now()
	return &Table{Wake: func() {}, Withdraw: func(*rules.Lookup, []netip.Addr) {}, Now: func() time.Duration { return time.Since(start) }, seed: maphash.MakeSeed(), asked: make(chan struct{}, 1)}
}

// Use sets the lists of a new policy. If the lists differ from the previous ones, all answers are
// dropped, and requests that wait for answers are decided again.
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
	t.changed = true // wakes the companion, which compares the lists
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

// Public reports whether a belongs to a host on the internet. DNS lists contain only public
// addresses.
func Public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}

// notPublic contains networks that are not public and that package netip does not recognize.
// Documentation networks are omitted, because tests use them as the internet.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("fec0::/10"),
}

// Answers appends the state of each list's answer about a to facts. Answers does not ask any list.
func (t *Table) Answers(a netip.Addr, facts []Fact) []Fact {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lists) == 0 {
		return facts
	}
	facts, _ = t.answers(t.find(a), t.Now(), facts)
	return facts
}

// answers appends the state of each list's answer in the row r, which may be nil. complete reports
// whether each list has either a valid answer or a pending question.
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

// Ask appends the state of each list's answer about a to facts. If the companion is running, Ask
// also asks the lists that have no valid answer. again must be set unless this is the session's
// first request, so that a dropped question is counted only once.
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

// until returns the time now+ttl, rounded up to whole seconds.
func until(now, ttl time.Duration) uint32 { return uint32((now + ttl + time.Second - 1) / time.Second) }

// present reports whether the companion is running.
func (t *Table) present(now time.Duration) bool {
	return t.readers > 0 || t.read > 0 && now-t.read < absence
}

// set returns the set of rows in which the row of a must be. All addresses of a source share a set.
func (t *Table) set(a netip.Addr) []row {
	i := maphash.Comparable(t.seed, sourceOf(a)) % sets
	return t.rows[i*ways : (i+1)*ways]
}

// find returns the row of a, or nil.
func (t *Table) find(a netip.Addr) *row {
	set := t.set(a)
	for i := range set {
		if set[i].addr == a {
			return &set[i]
		}
	}
	return nil
}

// replace returns an empty row for a. replace replaces the row whose answers expire first. If the
// source of a already has maxOfSource rows, the new row must replace a row of this source with a
// listed address, because the list may contain the whole source. If the source has no listed
// address, replace returns nil.
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

// lose counts a pending question of the cell as lost.
func (t *Table) lose(list int, c *cell) {
	if c.state == Pending {
		t.status[list].Unknown[lost]++
		*c = cell{}
	}
}

// A Question asks DNS lists about an address.
type Question struct {
	Addr  netip.Addr `json:"src"`
	Lists []string   `json:"lists"` // IDs of the lists; see rules.Lookup.ID
}

// Questions returns the next questions. If there are no questions, Questions waits until there is
// one, the lists change, the given time has passed, or ctx is done.
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

// urgent reports whether requests wait for the answers of any list.
func (t *Table) urgent() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.lists, func(l *rules.Lookup) bool { return l.Hold > 0 })
}

// next removes questions from the queue and returns them. done reports whether there were questions
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
			continue // the row has been replaced
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
		t.queue = nil // frees the array of the slice
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

// An Answer is the answer of a list about an address.
type Answer struct {
	Addr  netip.Addr    // invalid if the list withdraws all its listings
	List  string        // ID of the list
	Codes []netip.Addr  // empty if the address is not listed
	TTL   time.Duration // time for which the answer is valid
	Cause string        // one of Causes if the answer is unknown, else empty
}

// Answer stores an answer. Answer returns ErrNotAsked if the companion has not received the
// question, or if the question has expired.
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

// drop removes all listings of the list with the given ID, including expired ones, and returns the
// list and the addresses that were listed. list is nil if there is no list with this ID.
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

// Withdrawals returns a counter that increases each time any list withdraws its listings.
func (t *Table) Withdrawals() uint32 { return t.withdrawals.Load() }

// WithdrawnSince reports whether the named list has withdrawn its listings since Withdrawals
// returned n.
func (t *Table) WithdrawnSince(name string, n uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.lists, func(l *rules.Lookup) bool { return l.Name == name })
	return i >= 0 && t.withdrawn[i] > n
}

// ErrNotAsked is returned for an answer if its question is not pending.
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
