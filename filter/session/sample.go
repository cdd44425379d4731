package session

import (
	"bytes"
	"net/netip"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// samplings says how many sessions of one source are recorded one by one within
// an hour, by the part of the budget that sessions of that sort have taken on
// this day (UTC). The rest of them is added up. When much has been taken, only
// one in so many sessions of a new source, picked by its id, makes us follow the
// source; the others only count for their day. So who comes often is followed
// soon.
var samplings = []struct {
	upTo  int64 // in 1/64 of the budget
	whole uint32
	oneIn uint64
}{
	{4, 100, 1},
	{8, 20, 1},
	{16, 3, 1},
	{32, 3, 16},
	{1 << 20, 3, 256},
}

const (
	sampleWindow = time.Hour
	maxSampled   = 50_000 // sources that are followed
	maxSums      = 5_000  // of these, sources with a sum
	maxSumSteps  = 12     // different findings and verdicts in a sum
	maxSumText   = 64     // bytes of each of their texts

	// recordCost is what a record takes on disk besides its value.
	recordCost = store.KeySize + 24
)

// A sampler keeps floods from pushing the history from the disk. Local sessions,
// and those that logged in, are recorded always; those that brought mail, and one that
// a rule banned the source in, as long as such records have not taken half the budget:
// a single mailbox that exists lets a stranger bring mail, and much else in the same
// session.
type sampler struct {
	budget  int64 // 0: everything is recorded
	sources map[uint64]*sampled
	order   []hour // in the order in which they end
	first   int    // in order
	sums    int
	day     int64 // since 1970
	bytes   int64 // taken on this day ...
	mails   int64 // ... and by sessions that brought mail
	value   store.Record
	key     []byte // scratch
	steps   []byte // scratch
	record  []byte // scratch
}

// hour is how long a source is followed, or what is left of the day (UTC): what is
// counted is counted by the day. That it has ended is asked with every event, and
// must not cost a look at the map.
type hour struct {
	source uint64
	until  int64
}

// sampled is a source within its hour.
type sampled struct {
	n   uint32
	sum *sum
}

// A sum is what stands for several sessions.
type sum struct {
	record store.Record
	steps  []store.Step
}

// take decides what is recorded of a session, whose record is in t.record.
func (t *Table) take(s *Session, r *store.Record) (whole, summed bool) {
	p := &t.sampler
	if p.budget == 0 || !s.Src.IsValid() || r.Counts.AuthPass > 0 || r.Ending == store.EndingStopped {
		return true, false
	}
	at := r.End.UnixMicro()
	if day := r.End.Unix() / (24 * 3600); day != p.day {
		p.day, p.bytes, p.mails = day, 0, 0
	}
	if r.Counts.Mails > 0 && p.mails <= p.budget/2 {
		p.mails += int64(len(t.record)) + recordCost
		return true, false
	}
	how := &samplings[0]
	for i := 1; p.bytes*64 > p.budget*how.upTo && i < len(samplings); i++ {
		how = &samplings[i]
	}
	k := memory.Number(s.Src.Addr())
	q := p.sources[k]
	if q == nil {
		if how.oneIn > 1 && (s.banned == nil || p.bytes > p.budget/2) && s.ID*0x9e3779b97f4a7c15>>40%how.oneIn != 0 {
			return false, false
		}
		q = t.follow(k, at)
	}
	if q.n++; q.n <= how.whole || s.banned != nil && p.bytes <= p.budget/2 {
		p.bytes += int64(len(t.record)) + recordCost
		return true, false
	}
	if q.sum == nil {
		if p.sums >= maxSums {
			return false, false
		}
		p.sums++
		q.sum = &sum{record: store.Record{Start: r.Start, Src: netip.AddrPortFrom(r.Src.Addr(), 0)}}
	}
	q.sum.add(p, t.record, r, s.found())
	return false, true
}

// follow makes place for a source.
func (t *Table) follow(k uint64, at int64) *sampled {
	p := &t.sampler
	if p.sources == nil {
		p.sources = make(map[uint64]*sampled)
	}
	if len(p.sources) >= maxSampled {
		t.unfollow()
	}
	const day = int64(24 * time.Hour / time.Microsecond)
	q := new(sampled)
	p.sources[k] = q
	p.order = append(p.order, hour{k, min(at+sampleWindow.Microseconds(), at-at%day+day)})
	return q
}

// unfollow records the sum of the source that was followed first, and forgets
// it.
func (t *Table) unfollow() {
	p := &t.sampler
	k := p.order[p.first].source
	q := p.sources[k]
	delete(p.sources, k)
	if p.first++; p.first == len(p.order) || p.first > maxSampled {
		p.order = append(p.order[:0], p.order[p.first:]...)
		p.first = 0
	}
	if q.sum == nil {
		return
	}
	p.sums--
	p.steps = p.steps[:0]
	for i := range q.sum.steps {
		p.steps = store.AppendStep(p.steps, &q.sum.steps[i], 0)
	}
	r := &q.sum.record
	p.record = store.AppendRecord(p.record[:0], r, p.steps) // t.record may be that of a session that is to be recorded
	p.bytes += int64(len(p.record)) + recordCost
	t.options.Record(r.End, r.ID, p.record)
}

// sumUp records the sums of the hours that are over by now, or all.
func (t *Table) sumUp(now int64, all bool) {
	p := &t.sampler
	for p.first < len(p.order) {
		until := p.order[p.first].until
		if !all && until > now && until <= now+2*sampleWindow.Microseconds() { // or the clock was set back by more than jitter
			return
		}
		t.unfollow()
	}
}

// add adds the session of a record.
func (m *sum) add(p *sampler, value []byte, r *store.Record, found bool) {
	to := &m.record
	to.ID, to.Dst, to.FCrDNS, to.Ending = r.ID, r.Dst, r.FCrDNS, r.Ending
	if r.Start.Before(to.Start) {
		to.Start = r.Start
	}
	if r.End.After(to.End) {
		to.End = r.End
	}
	if !bytes.Equal(to.RDNS, r.RDNS) {
		to.RDNS = bytes.Clone(cut(r.RDNS, maxName))
	}
	to.Sessions++
	if found {
		to.Found++
	}
	to.Counts.Add(&r.Counts)
	p.key = store.AppendKey(p.key[:0], r.End, r.ID)
	var err error
	if p.value, err = store.Decode(p.key, value); err != nil {
		return // a bug; the numbers are there
	}
	seen := 0 // bits of the steps that this session has counted for
	_ = p.value.Steps(func(s *store.Step) bool {
		if s.Kind != store.KindFinding && s.Kind != store.KindVerdict {
			return true
		}
		i := m.find(s)
		if i >= 0 && seen&(1<<i) == 0 {
			seen |= 1 << i
			m.steps[i].Times++
		}
		return true
	})
}

// find returns the place of what is like s, made if there is room, or -1.
func (m *sum) find(s *store.Step) int {
	for i := range m.steps {
		h := &m.steps[i]
		if h.Kind == s.Kind && h.Result == s.Result && bytes.Equal(h.Text, cut(s.Text, maxSumText)) && bytes.Equal(h.Org, cut(s.Org, maxSumText)) {
			return i
		}
	}
	if len(m.steps) == maxSumSteps {
		return -1
	}
	text := func(b []byte) []byte { return bytes.Clone(cut(b, maxSumText)) }
	m.steps = append(m.steps, store.Step{
		Kind: s.Kind, Result: s.Result, Text: text(s.Text), Arg: text(s.Arg), Reply: text(s.Reply), Org: text(s.Org),
		By: text(s.By), Match: text(s.Match), Confidence: text(s.Confidence), Rule: s.Rule,
	})
	return len(m.steps) - 1
}
