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

// Shares of the budget for one day (UTC), as divisors. Sums.payer applies the first
// three in this order, as described in the manual.
const (
	mailShare  = 2  // whole sessions with accepted mail or a ban
	firstShare = 8  // the first whole sessions of each source and hour
	sumShare   = 16 // sums
	idShare    = 32 // ids in sums; further sums have none
	earlyShare = 64 // sums; after that, Flush does not write the sums of this hour
)

const (
	firstSessions = 20       // whole sessions of a source in an hour
	maxSources    = 50_000   // sources with this count; all sessions of other sources are first sessions
	maxSums       = 5_000    // sources with a sum
	fullHeld      = 8 << 20  // bytes of memory of all sums; above this, no source gets a new sum ...
	maxHeld       = 12 << 20 // ... and above this, the oldest sum is written early, because ids have no other limit
	maxIDs        = 500      // ids in the sum of a source ...
	maxCommonIDs  = 4_096    // ... and in the common sum, where the sketch needs more memory than the ids
	maxTallies    = 256      // tallies in a sum
	maxSumText    = 128      // length of each of their texts in bytes
	writesPerTick = 16       // ended sums that an event writes; an answer must not wait for 5,000

	hourTime = int64(time.Hour / time.Microsecond)

	// recordCost is the size of a record on disk in bytes, excluding its value.
	recordCost = store.KeySize + 24

	// Upper bounds in bytes, excluding texts and tallies.
	sumMemory = 512
	sumDisk   = 210
	idCost    = 16 // of memory and disk
)

// Sums records floods in bounded space. It decides which sessions have a whole record,
// and adds the others to the sum of their source and hour. Any goroutine may call Flush
// and Unwritten. The fields before mu belong to the journal's goroutine.
type Sums struct {
	budget int64 // 0 records every session whole
	record func(end time.Time, id uint64, value []byte)

	hour  int64            // current hour since 1970
	due   int64            // time of the next work of tick
	first map[uint64]uint8 // first sessions by source in this hour
	// Bytes used on this day by whole records with mail or a ban, by first sessions,
	// and by records without a limit.
	mails, firsts, free int64

	unwritten atomic.Int64 // sessions in all sums

	mu     sync.Mutex
	open   map[uint64]*sum // by source
	queue  []*sum          // in the order of their creation
	ended  int             // number of sums at the start of queue that are no longer open
	common sum             // of sources without a sum
	used   int64           // bytes of the sums written on this day
	ids    int64           // bytes of the ids in sums of this day
	cost   cost            // of the other sums
	seed   maphash.Seed
	step   store.Step // scratch
	steps  []byte     // scratch
	value  []byte     // scratch
	domain [maxSumText]byte
}

// A sum combines sessions of one source and hour. The common sum combines sessions of
// several sources.
type sum struct {
	source  uint64
	record  store.Record
	tallies []tally
	ids     []uint64
	sources *sketch.Sketch // nil except in the common sum
	last    time.Time      // start of the session that started last
	cost    cost
}

// A cost has upper bounds of memory and of the records in bytes.
type cost struct{ memory, disk int64 }

func (c *cost) add(memory, disk int) { c.memory, c.disk = c.memory+int64(memory), c.disk+int64(disk) }

// A tally counts equal steps in a sum.
type tally struct {
	// Hashes of the fields that identify the tally, and of the fields that count once
	// per session: evidence without the organisation, and a rule without its text.
	id, group          uint64
	step               []byte // an example, encoded
	times, count, most uint32
	last, now          uint32 // the last session, and its number of steps
	first              int64  // end of the first session, in microseconds since 1970
	kind               store.Kind
	rank               uint8 // of the confidence of the example
}

// tallied contains the limit of each kind of tally in a sum. At the limit, rest changes
// a step so that all further steps have one tally. Kinds without rest have no limit,
// because their texts are from the policy.
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

// begin prepares p for the first session.
func (p *Sums) begin(budget int64, record func(time.Time, uint64, []byte)) {
	p.budget, p.record = budget, record
	p.first, p.open, p.seed = make(map[uint64]uint8), make(map[uint64]*sum), maphash.MakeSeed()
}

// payer returns the counter of the bytes of a whole record, or nil if the session must
// be added to a sum.
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

// roll ends the hour or the day if at is in an earlier or a later one.
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

// tick writes some sums of ended hours.
func (p *Sums) tick(now int64) {
	if p.budget == 0 || now < p.due && now >= p.hour*hourTime {
		return
	}
	p.roll(now)
	if p.writeSome() == 0 {
		p.due = (p.hour + 1) * hourTime
	}
}

// writeSome writes some of the sums of ended hours and returns the number of remaining
// sums.
func (p *Sums) writeSome() (rest int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range min(p.ended, writesPerTick) {
		p.writeFirst()
	}
	return p.ended
}

// Flush writes the sums of ended hours. It also writes the sums of this hour, unless
// sums have already used much of their share of the budget.
func (p *Sums) Flush() { p.flush(false) }

// Unwritten returns the number of sessions in sums that are not yet written.
func (p *Sums) Unwritten() int64 { return p.unwritten.Load() }

func (p *Sums) flush(all bool) {
	p.end(all)
	for p.writeSome() > 0 {
	}
}

// end ends the sums of this hour early, if all is set or the share permits it.
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

// writeFirst writes the oldest sum and removes it.
func (p *Sums) writeFirst() {
	m := p.queue[0]
	p.queue[0] = nil
	if p.queue = p.queue[1:]; len(p.queue) == 0 {
		p.queue = nil // otherwise the queue would keep its memory
	}
	p.ended = max(p.ended-1, 0)
	if p.open[m.source] == m {
		delete(p.open, m.source)
	}
	p.write(m)
}

// write writes m, unless it is empty, and empties it.
func (p *Sums) write(m *sum) {
	if m.record.Sessions == 0 {
		return
	}
	p.steps = p.steps[:0]
	for i := range m.tallies {
		t := &m.tallies[i]
		if t.times == 0 {
			continue // its sessions count in another tally of the group
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

// add adds a session to the sum of its source, or to the common sum.
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

// count adds the numbers of a session.
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

// tally adds the steps of a session with an end in microseconds since 1970.
func (p *Sums) tally(m *sum, steps []byte, end int64, room bool) {
	byFilter := false // a filter has rejected the next recipient
	s := &p.step
	for c := store.NewCursor(steps); c.Next(s); {
		switch s.Kind {
		case store.KindFilter:
			byFilter = s.Phase == smtp.PhaseRcptTo && s.Decision >= smtp.Reject
		case store.KindHelo:
			if len(s.Text) == 0 {
				continue // in a tally, no name means further ones
			}
			s.Result = smtp.ResultNone // a name has one tally
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

// domainOf returns the @ and the domain of a mailbox in lower case, or nothing.
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

// tallyStep counts a step of a session with an end.
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
	first := t == nil || t.last != m.record.Sessions // in this session
	if first && other != nil {
		other.times--
		other.last = 0
	}
	if t == nil {
		room := cap(m.tallies)
		m.tallies = append(m.tallies, tally{id: id, group: group, kind: s.Kind})
		m.cost.add((cap(m.tallies)-room)*int(unsafe.Sizeof(tally{})), 24) // the numbers of a tally are at most 24 bytes
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

// identify returns the hashes of a step for its tally.
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

// find returns the tally with this id, the tally of its group in which the session
// already counts, and the number of tallies of the kind.
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

// example returns the encoded fields of s that a tally keeps.
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

// rankOf returns the rank of a confidence.
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
