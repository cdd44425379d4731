package journal

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"scanwatch/filter/memory"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// These shares of the disk budget may be used per day (UTC). A value of 8 means 1/8 of the budget.
// filter-scanwatch(8) describes the order in which the shares are used.
const (
	mailShare  = 2  // records of sessions with accepted mail or a ban
	firstShare = 8  // records of the first sessions of each source in each hour
	sumShare   = 16 // aggregates
	idShare    = 32 // session ids in aggregates; after that, aggregates contain no ids
	earlyShare = 64 // aggregates that Flush writes before the end of their hour
)

const (
	firstSessions = 20       // number of sessions per source and hour that get their own record
	maxSources    = 50_000   // number of sources whose sessions are counted; all sessions of other sources get their own record
	maxSums       = 5_000    // number of sources with separate aggregates
	fullHeld      = 8 << 20  // memory of all aggregates in bytes; if it is exceeded, no further source gets its own aggregate
	maxHeld       = 12 << 20 // memory of all aggregates in bytes; if it is exceeded, the oldest aggregate is written early
	maxIDs        = 500      // number of ids in a source's aggregate
	maxCommonIDs  = 4_096    // number of ids in the common aggregate
	maxTallies    = 256      // number of tallies in an aggregate
	maxSumText    = 128      // length of each text in a tally, in bytes
	writesPerTick = 16       // aggregates written during one event; an answer must not wait until 5,000 are written

	hourTime = int64(time.Hour / time.Microsecond)

	// recordCost is the size of a record on disk in bytes, not including its value.
	recordCost = store.KeySize + 24

	// These are upper bounds in bytes. The bounds do not include texts and tallies.
	sumMemory = 512
	sumDisk   = 210
	idCost    = 16 // per id, in memory and on disk
)

// Sums limits the disk space for records of floods. Some sessions get their own record. All others
// are added to the aggregate for their source and hour. Flush and Unwritten are safe for concurrent
// use. Fields before mu are used only by the journal's goroutine.
type Sums struct {
	budget int64 // if 0, every session gets its own record
	record func(end time.Time, id uint64, value []byte)

	hour  int64            // current hour, in hours since 1970
	due   int64            // time at which tick must write aggregates again
	first map[uint64]uint8 // number of sessions with separate records in this hour, by source
	// These fields count the bytes of today's records: sessions with mail or a ban, first sessions
	// of sources, and sessions that are not charged to the budget.
	mails, firsts, free int64

	unwritten atomic.Int64 // number of sessions in aggregates that are still in memory

	mu     sync.Mutex
	open   map[uint64]*sum // aggregates of the current hour, by source
	queue  []*sum          // all aggregates in memory, oldest first
	ended  int             // number of aggregates at the start of queue whose hour has ended
	common sum             // aggregate for all sources that have no separate one
	used   int64           // bytes of aggregates written today
	ids    int64           // bytes of ids in today's written and open aggregates
	cost   cost            // cost of the queued aggregates
	seed   maphash.Seed
	step   store.Step // scratch
	steps  []byte     // scratch
	value  []byte     // scratch
	domain [maxSumText]byte
}

// A sum is the aggregate of one source's sessions in one hour. The common aggregate combines the
// sessions of several sources.
type sum struct {
	source  uint64
	record  store.Record
	tallies []tally
	ids     []uint64
	sources *sketch.Sketch // set only in the common aggregate
	last    time.Time      // start of the latest session
	cost    cost
}

// A cost is an upper bound on the size of aggregates in memory and on disk, in bytes.
type cost struct{ memory, disk int64 }

func (c *cost) add(memory, disk int) { c.memory, c.disk = c.memory+int64(memory), c.disk+int64(disk) }

// A tally counts identical steps in the sessions of an aggregate.
type tally struct {
	// id is a hash of the fields that distinguish the tally from others. group is a hash of the
	// same fields without the organisation (for evidence) or the text of the rule (for a verdict).
	// If several tallies have the same group, each session is counted in only one of them.
	id, group          uint64
	step               []byte // an encoded step as an example
	times, count, most uint32
	last, now          uint32 // number of the latest session with such a step, and how many such steps it has
	first              int64  // when the first session ended, in microseconds since 1970
	kind               store.Kind
	rank               uint8 // rank of the confidence in the example
}

// tallied contains the maximum number of tallies of each kind in an aggregate. When the limit is
// reached, rest changes all further steps so that they share one tally. Kinds without rest need no
// limit, because their text comes from the policy.
var tallied = [store.KindReference]struct {
	is   bool
	most int
	rest func(*store.Step)
}{
	store.KindHelo:    {true, 8, func(s *store.Step) { s.Text = nil }},
	store.KindAuth:    {true, 8, func(s *store.Step) { s.Text = nil }},
	store.KindRcpt:    {true, 16, func(s *store.Step) { s.Text = []byte("*") }},
	store.KindFinding: {true, 16, func(s *store.Step) { s.Org = nil }},
	store.KindVerdict: {is: true},
	store.KindBan:     {is: true},
}

// begin prepares p before the first session.
func (p *Sums) begin(budget int64, record func(time.Time, uint64, []byte)) {
	p.budget, p.record = budget, record
	p.first, p.open, p.seed = make(map[uint64]uint8), make(map[uint64]*sum), maphash.MakeSeed()
}

// payer returns the counter to which the bytes of the session's own record are charged. payer
// returns nil if the session must be added to an aggregate instead.
func (p *Sums) payer(r *store.Record, c *Close) *int64 {
	if p.budget == 0 || !r.Src.IsValid() || r.Counts.AuthPass > 0 {
		return &p.free
	}
	p.roll(r.End.UnixMicro())
	if (r.Counts.Mails > 0 || c.Banned) && p.mails <= p.budget/mailShare {
		return &p.mails
	}
	if p.firsts > p.budget/firstShare {
		return nil
	}
	k := memory.Number(r.Src.Addr())
	n, counted := p.first[k]
	switch {
	case n >= firstSessions:
		return nil
	case counted || len(p.first) < maxSources:
		p.first[k] = n + 1
	}
	return &p.firsts
}

// roll starts a new hour or day if at is not in the current one.
func (p *Sums) roll(at int64) {
	hour := at / hourTime
	if hour == p.hour {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if hour/24 != p.hour/24 {
		p.mails, p.firsts, p.used, p.ids = 0, 0, 0, 0
	}
	p.hour, p.due = hour, 0
	clear(p.first)
	p.endAll()
}

// tick writes some of the aggregates whose hour has ended.
func (p *Sums) tick(now int64) {
	if p.budget == 0 || now < p.due && now >= p.hour*hourTime {
		return
	}
	p.roll(now)
	if p.writeSome() == 0 {
		p.due = (p.hour + 1) * hourTime
	}
}

// writeSome writes some of the aggregates whose hour has ended, and returns the number of those
// that remain.
func (p *Sums) writeSome() (rest int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range min(p.ended, writesPerTick) {
		p.writeFirst()
	}
	return p.ended
}

// Flush writes the aggregates whose hour has ended. If the share earlyShare has not been used up,
// Flush also writes the aggregates of the current hour.
func (p *Sums) Flush() { p.flush(false) }

// FlushAll writes all aggregates.
func (p *Sums) FlushAll() { p.flush(true) }

// Unwritten returns the number of sessions in aggregates that are still in memory.
func (p *Sums) Unwritten() int64 { return p.unwritten.Load() }

func (p *Sums) flush(all bool) {
	p.end(all)
	for p.writeSome() > 0 {
	}
}

// end treats the aggregates of the current hour as ended if all is set, or if the share earlyShare
// has not been used up.
func (p *Sums) end(all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if all || p.used <= p.budget/earlyShare {
		p.endAll()
	}
}

func (p *Sums) endAll() {
	clear(p.open)
	p.ended = len(p.queue)
	p.write(&p.common)
}

// writeFirst writes the oldest aggregate and removes it.
func (p *Sums) writeFirst() {
	m := p.queue[0]
	p.queue[0] = nil
	if p.queue = p.queue[1:]; len(p.queue) == 0 {
		p.queue = nil // frees the memory of the queue
	}
	p.ended = max(p.ended-1, 0)
	if p.open[m.source] == m {
		delete(p.open, m.source)
	}
	p.write(m)
}

// write writes m and empties it. If m is already empty, nothing is written.
func (p *Sums) write(m *sum) {
	if m.record.Sessions == 0 {
		return
	}
	p.steps = p.steps[:0]
	for i := range m.tallies {
		t := &m.tallies[i]
		if t.times == 0 {
			continue // the sessions are already counted by another tally of the group
		}
		if c := store.NewCursor(t.step); c.Next(&p.step) {
			p.step.Times = t.times
			switch t.kind {
			case store.KindRcpt, store.KindAuth:
				p.step.Count, p.step.Most = t.count, t.most
			case store.KindFinding, store.KindBan:
				p.step.First = uint64(t.first - m.record.Start.UnixMicro())
			}
			p.steps = store.AppendStep(p.steps, &p.step, 0)
		}
	}
	for _, id := range m.ids {
		p.steps = store.AppendStep(p.steps, &store.Step{Kind: store.KindReference, Session: id}, 0)
	}
	r := &m.record
	r.LastStart = uint64(m.last.Sub(r.Start).Microseconds())
	if m.sources != nil {
		r.Sketch = m.sources[:]
	}
	p.value = store.AppendRecord(p.value[:0], r, p.steps)
	p.record(r.End, r.ID, p.value)
	p.used += int64(len(p.value)) + recordCost
	p.unwritten.Add(-int64(r.Sessions))
	p.cost.add(-int(m.cost.memory), -int(m.cost.disk))
	*m = sum{source: m.source}
}

// add adds a session to its source's aggregate, or to the common aggregate.
func (p *Sums) add(r *store.Record, steps []byte, c *Close) {
	p.mu.Lock()
	defer p.mu.Unlock()
	within := func(share int64) bool { return p.used+p.cost.disk <= p.budget/share }
	room := within(sumShare) && p.cost.memory <= fullHeld
	k := memory.Number(r.Src.Addr())
	m := p.open[k]
	if m == nil && room && len(p.open) < maxSums {
		m = &sum{source: k}
		p.open[k] = m
		p.queue = append(p.queue, m)
	} else if m == nil {
		m = &p.common
		if m.sources == nil {
			m.sources = new(sketch.Sketch)
		}
		m.sources.Add(k)
	}
	before := m.cost
	m.count(r, c)
	p.tally(m, steps, r.End.UnixMicro(), room)
	if (c.Refused || c.Banned) && p.ids+idCost <= p.budget/idShare {
		p.ids += idCost
		m.ids = append(m.ids, r.ID)
		m.cost.add(idCost, idCost)
	}
	p.cost.add(int(m.cost.memory-before.memory), int(m.cost.disk-before.disk))
	p.unwritten.Add(1)
	limit := maxIDs
	if m == &p.common {
		limit = maxCommonIDs
	}
	if len(m.ids) >= limit || len(m.tallies) >= maxTallies {
		p.write(m)
	}
	for p.cost.memory > maxHeld && len(p.queue) > 0 {
		p.writeFirst()
	}
}

// count adds the counters of a session to m.
func (m *sum) count(r *store.Record, c *Close) {
	to := &m.record
	switch src := netip.AddrPortFrom(r.Src.Addr(), 0); {
	case to.Sessions == 0:
		to.Start = r.Start
		m.cost.add(sumMemory, sumDisk)
		if m.sources == nil {
			to.Src = src
		} else {
			m.cost.add(sketch.Size, sketch.Size)
		}
	case m.sources == nil && src != to.Src:
		to.Src = netip.AddrPortFrom(memory.Source(src.Addr()).Addr(), 0)
	}
	if r.Start.Before(to.Start) {
		to.Start = r.Start
	}
	if !r.End.Before(to.End) {
		to.End, to.ID = r.End, r.ID
		if m.sources == nil {
			to.Dst, to.FCrDNS, to.Ending = r.Dst, r.FCrDNS, r.Ending
			if name := clip(r.RDNS, 255); !bytes.Equal(to.RDNS, name) {
				m.cost.add(len(name)-len(to.RDNS), len(name)-len(to.RDNS))
				to.RDNS = bytes.Clone(name)
			}
		}
	}
	to.Sessions++
	to.Omitted += r.Omitted
	if c.Found {
		to.Found++
	}
	if c.Refused {
		to.Rejected++
	}
	if r.Start.After(m.last) {
		m.last = r.Start
	}
	to.Counts.Add(&r.Counts)
}

// tally counts the steps of a session. end is the session's end in microseconds since 1970.
func (p *Sums) tally(m *sum, steps []byte, end int64, room bool) {
	byFilter := false // whether a filter rejected the recipient of the next step
	s := &p.step
	for c := store.NewCursor(steps); c.Next(s); {
		switch s.Kind {
		case store.KindFilter:
			byFilter = s.Phase == smtp.PhaseRcptTo && s.Decision >= smtp.Reject
		case store.KindHelo:
			if len(s.Text) == 0 {
				continue // a tally with an empty name counts all further names
			}
			s.Result = smtp.ResultNone // one tally counts a name, regardless of the result
		case store.KindRcpt:
			rejected := byFilter
			if byFilter = false; rejected || s.Result != smtp.ResultOK && s.Result != smtp.ResultPermfail {
				continue
			}
			s.Text = p.domainOf(s.Text)
		}
		if int(s.Kind) < len(tallied) && tallied[s.Kind].is {
			s.Text, s.Org = clip(s.Text, maxSumText), clip(s.Org, maxSumText)
			p.tallyStep(m, s, end, room)
		}
	}
}

// domainOf returns the domain of a mailbox in lower case and with the preceding @, or nil.
func (p *Sums) domainOf(addr []byte) []byte {
	at := bytes.LastIndexByte(addr, '@')
	if at < 0 || at == len(addr)-1 {
		return nil
	}
	n := copy(p.domain[:], addr[at:])
	for i, c := range p.domain[:n] {
		if 'A' <= c && c <= 'Z' {
			p.domain[i] += 'a' - 'A'
		}
	}
	return p.domain[:n]
}

// tallyStep counts a step of a session. end is the session's end.
func (p *Sums) tallyStep(m *sum, s *store.Step, end int64, room bool) {
	group, id := p.identify(s)
	t, other, n := m.find(s.Kind, group, id)
	if kind := &tallied[s.Kind]; t == nil && kind.rest != nil && (n >= kind.most || !room) {
		kind.rest(s)
		group, id = p.identify(s)
		t, other, _ = m.find(s.Kind, group, id)
	}
	rank := uint8(0)
	if s.Kind == store.KindFinding {
		rank = rankOf(s.Confidence)
	}
	first := t == nil || t.last != m.record.Sessions // whether this is the tally's first step in the session
	if first && other != nil {
		other.times--
		other.last = 0
	}
	if t == nil {
		room := cap(m.tallies)
		m.tallies = append(m.tallies, tally{id: id, group: group, kind: s.Kind})
		m.cost.add((cap(m.tallies)-room)*int(unsafe.Sizeof(tally{})), 24) // the numbers of a tally take at most 24 bytes on disk
		t = &m.tallies[len(m.tallies)-1]
	}
	if t.step == nil || t.rank == lowRank && rank > lowRank {
		t.first = end
	}
	if t.step == nil || rank > t.rank {
		m.cost.add(-cap(t.step), -len(t.step))
		t.step, t.rank = p.example(s), rank
		m.cost.add(cap(t.step), len(t.step))
	}
	if first {
		t.last, t.now = m.record.Sessions, 0
		t.times++
	}
	t.count++
	t.now++
	t.most = max(t.most, t.now)
}

// identify returns the group and id of the tally that counts the step s.
func (p *Sums) identify(s *store.Step) (group, id uint64) {
	const prime = 0x9e3779b97f4a7c15
	flags := uint64(s.Kind)<<16 | uint64(s.Result)<<8
	if s.Enforced {
		flags |= 1
	}
	if s.Banned {
		flags |= 2
	}
	group = maphash.Bytes(p.seed, s.Text) ^ flags*prime
	if s.Exempt != "" {
		group = group*prime ^ maphash.String(p.seed, s.Exempt)
	}
	id = group ^ uint64(s.Rule)*prime
	if len(s.Org) > 0 {
		id = id*prime ^ maphash.Bytes(p.seed, s.Org)
	}
	return group, id
}

// find returns the tally with the given id as t, and the number of tallies of its kind as n. other
// is a tally of the same group that already counts the session, or nil.
func (m *sum) find(kind store.Kind, group, id uint64) (t, other *tally, n int) {
	for i := range m.tallies {
		h := &m.tallies[i]
		if h.kind != kind {
			continue
		}
		n++
		switch {
		case h.id == id:
			t = h
		case h.group == group && h.last == m.record.Sessions:
			other = h
		}
	}
	return t, other, n
}

// example returns the encoded fields of s that a tally stores as its example.
func (p *Sums) example(s *store.Step) []byte {
	e := store.Step{
		Kind: s.Kind, Text: s.Text, Org: s.Org, By: clip(s.By, maxSumText), Match: clip(s.Match, maxSumText), Confidence: clip(s.Confidence, maxSumText),
		Result: s.Result, Phase: s.Phase, Decision: s.Decision, Enforced: s.Enforced, Banned: s.Banned, Session: s.Session, Rule: s.Rule,
		Exempt: s.Exempt, Prefix: s.Prefix, Until: s.Until,
	}
	p.value = store.AppendStep(p.value[:0], &e, 0)
	return bytes.Clone(p.value)
}

const lowRank = 1

// rankOf returns the rank of a confidence level.
func rankOf(confidence []byte) uint8 {
	switch string(confidence) {
	case "high":
		return 3
	case "medium":
		return 2
	case "low":
		return lowRank
	}
	return 0
}
