package session_test

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/sim"
)

// sampledDay plays sessions under a budget and returns the records, what is remembered,
// and what the policy refused in how many sessions.
func sampledDay(t *testing.T, budget int64, sessions iter.Seq[sim.Session]) (records []store.Record, mem *memory.Memory, outcomes []sim.Outcome) {
	t.Helper()
	text, err := rules.ReadyPolicy("standard")
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, string(text)).InMode(rules.Enforce)
	mem = memory.New()
	table := session.NewTable(session.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Error(err)
			}
			records = append(records, r)
		},
		Log:    func([]byte) {},
		Lists:  func() *lookup.Lists { return lists },
		Memory: mem,
	})
	table.Sample(budget)
	table.Use(&session.Settings{Policy: p})
	outcomes, err = sim.Play(table, session.Phases(p), sessions)
	if err != nil {
		t.Fatal(err)
	}
	table.Stop()
	return records, mem, outcomes
}

// hammer is a bot that comes every few seconds.
func hammer(src string, begin time.Time, n int, every time.Duration) iter.Seq[sim.Session] {
	return func(yield func(sim.Session) bool) {
		for i := range n {
			s := sim.Session{
				Label: "hammer", Start: begin.Add(time.Duration(i) * every), Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort("192.0.2.25:25"), FCrDNS: "error",
				Steps: []sim.Step{{Kind: sim.Ehlo, Gap: time.Millisecond, Text: "ylmf-pc"}, {Kind: sim.Quit, Gap: time.Millisecond}},
			}
			if !yield(s) {
				return
			}
		}
	}
}

// TestFloodInSums: a source that comes too often is recorded in sums, no number
// is lost, and mail stays whole.
func TestFloodInSums(t *testing.T) {
	begin := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	const n = 3000 // in a little over 4 hours
	flood := hammer("198.51.100.7:2525", begin, n, 5*time.Second)
	mixed := func() iter.Seq[sim.Session] { return sim.Merge(sim.Day(1, 2000), flood) }
	all, _, _ := sampledDay(t, 0, mixed())
	some, mem, outcomes := sampledDay(t, 1<<30, mixed())

	// The same, but for the sums.
	whole := map[uint64]store.Record{}
	for _, r := range all {
		whole[r.ID] = r
	}
	sums, kept := 0, 0
	for _, r := range some {
		if r.Sessions > 0 {
			sums++
			if r.Src != netip.MustParseAddrPort("198.51.100.7:0") || r.End.Sub(r.Start) > time.Hour || r.Counts.Mails > 0 {
				t.Errorf("a sum of %v from %v to %v, %d mails", r.Src, r.Start, r.End, r.Counts.Mails)
			}
			continue
		}
		kept++
		was, ok := whole[r.ID]
		if !ok || was.Counts != r.Counts {
			t.Errorf("session %016x was not recorded as it is without sampling", r.ID)
		}
	}
	if sums < 4 || sums > 6 || kept > len(all)-n+6*100 {
		t.Errorf("%d sums and %d whole of %d", sums, kept, len(all))
	}

	// The report does not tell the difference.
	a, b := report.NewCollector(), report.NewCollector()
	for i := range all {
		_ = a.Add(&all[i])
	}
	for i := range some {
		_ = b.Add(&some[i])
	}
	x, y := a.Summary(begin, begin, 20, nil), b.Summary(begin, begin, 20, nil)
	if x.Remote != y.Remote || x.Authenticated != y.Authenticated || x.Local != y.Local {
		t.Errorf("totals are\n%+v, with sums\n%+v", x.Remote, y.Remote)
	}
	if !slices.Equal(x.Evidence, y.Evidence) || !slices.Equal(x.Rules, y.Rules) {
		t.Errorf("lists are\n%+v\n%+v, with sums\n%+v\n%+v", x.Evidence, x.Rules, y.Evidence, y.Rules)
	}
	if !slices.Equal(x.Sources, y.Sources) {
		t.Errorf("sources are\n%+v, with sums\n%+v", x.Sources, y.Sources)
	}

	// And the day has counted everything, as an independent count.
	day := map[memory.Figure]uint64{}
	var first time.Time
	for _, d := range mem.Days() {
		if !d.Day.After(first) {
			t.Errorf("day %v after %v", d.Day, first)
		}
		first = d.Day
		for f := memory.DaySessions; f <= memory.DayAuthFail; f++ {
			day[f] += d.Of(f)
		}
	}
	want := map[memory.Figure]uint64{memory.DaySessions: uint64(len(outcomes)), memory.DayWhole: uint64(kept), memory.DaySummed: uint64(len(outcomes) - kept)}
	for _, o := range outcomes {
		want[memory.DayMails] += uint64(o.Mails)
		want[memory.DayRcptOK] += uint64(o.RcptOK)
		if len(o.Refused) > 0 {
			want[memory.DayRefused]++
		}
	}
	for f, n := range want {
		if day[f] != n {
			t.Errorf("%v: %d counted, want %d", f, day[f], n)
		}
	}
	if day[memory.DayFound] != uint64(x.Remote.Found) {
		t.Errorf("%d found counted, the report has %d", day[memory.DayFound], x.Remote.Found)
	}
}

// TestFloodFromEverywhere: ever new sources take only their part of the budget
// on a day, and every message is recorded still.
func TestFloodFromEverywhere(t *testing.T) {
	const n, budget = 60_000, 4 << 20
	begin := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	strangers := func(yield func(sim.Session) bool) {
		for i := range n {
			src := fmt.Sprintf("%d.%d.%d.%d:1", 11+i%50, i>>16&255, i>>8&255, i&255)
			for s := range hammer(src, begin.Add(time.Duration(i)*time.Second), 1, 0) {
				if !yield(s) {
					return
				}
			}
		}
	}
	records, mem, outcomes := sampledDay(t, budget, sim.Merge(sim.Day(2, 2000), strangers))
	size, mails, lost := 0, 0, uint64(0)
	for _, r := range records {
		mails += int(r.Counts.Mails)
		if r.Counts.Mails == 0 && r.Counts.AuthPass == 0 && r.End.Before(begin.AddDate(0, 0, 1)) {
			size += r.Size() - 256 + store.KeySize
		}
	}
	came, counted := 0, uint64(0)
	for _, o := range outcomes {
		came += o.Mails
	}
	for _, d := range mem.Days() {
		lost += d.Lost()
		counted += d.Of(memory.DayMails)
	}
	if mails != came || counted != uint64(came) {
		t.Errorf("%d messages recorded and %d counted of %d", mails, counted, came)
	}
	if size > budget*5/8 {
		t.Errorf("what came without mail or login takes %d bytes of a budget of %d", size, budget)
	}
	if lost == 0 || int(lost)+len(records) != len(outcomes) {
		t.Errorf("%d recorded and %d only counted, of %d", len(records), lost, len(outcomes))
	}
}

// TestFloodOfMail: who knows one mailbox of ours cannot push the history from the disk
// with sessions that bring a message and much else; and no message goes uncounted.
func TestFloodOfMail(t *testing.T) {
	const n, budget = 2000, 4 << 20
	begin := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	spammer := func(yield func(sim.Session) bool) {
		for i := range n {
			s := sim.Session{
				Label: "spammer", Start: begin.Add(time.Duration(i) * 20 * time.Second), Src: netip.MustParseAddrPort("198.51.100.7:2525"), Dst: netip.MustParseAddrPort("192.0.2.25:25"), FCrDNS: "error",
				Steps: []sim.Step{{Kind: sim.Ehlo, Gap: time.Millisecond, Text: "mail.example.net"}},
			}
			for j := range 100 {
				s.Steps = append(s.Steps, sim.Step{Kind: sim.Mail, Gap: time.Millisecond, Text: fmt.Sprintf("bounce-%d-%d@example.net", i, j)}, sim.Step{Kind: sim.Rset, Gap: time.Millisecond})
			}
			s.Steps = append(s.Steps, sim.Step{Kind: sim.Mail, Gap: time.Millisecond, Text: "a@example.net"},
				sim.Step{Kind: sim.Rcpt, Gap: time.Millisecond, Text: sim.Mailbox(1)}, sim.Step{Kind: sim.Data, Gap: time.Millisecond, Size: 1000}, sim.Step{Kind: sim.Quit, Gap: time.Millisecond})
			if !yield(s) {
				return
			}
		}
	}
	records, mem, outcomes := sampledDay(t, budget, spammer)
	size, mails, came := 0, 0, 0
	for _, r := range records {
		mails += int(r.Counts.Mails)
		size += r.Size() - 256 + store.KeySize
	}
	for _, o := range outcomes {
		came += o.Mails
	}
	if size > budget*3/4 {
		t.Errorf("it takes %d bytes of a budget of %d", size, budget)
	}
	counted := uint64(0)
	for _, d := range mem.Days() {
		counted += d.Of(memory.DayMails)
	}
	if came < n/2 || mails != came || counted != uint64(came) {
		t.Errorf("%d messages recorded and %d counted of %d", mails, counted, came)
	}
}

// TestFollowedFull: when a new source takes the place of one that has a sum, its own
// session is recorded, and the sum once.
func TestFollowedFull(t *testing.T) {
	const budget, most = 1 << 40, 50_000
	begin := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	many := func(yield func(sim.Session) bool) {
		for i := range most {
			for s := range hammer(fmt.Sprintf("11.0.%d.%d:1", i>>8&255, i&255), begin.Add(10*time.Minute+time.Duration(i)*time.Millisecond), 1, 0) {
				if !yield(s) {
					return
				}
			}
		}
	}
	// 101 of the first source are one by one but for the last, which is in a sum.
	records, mem, outcomes := sampledDay(t, budget, sim.Merge(hammer("198.51.100.7:1", begin, 101, time.Second), many))
	seen, sessions, sums := map[uint64]bool{}, 0, 0
	for _, r := range records {
		if seen[r.ID] {
			t.Errorf("session %016x is recorded twice", r.ID)
		}
		seen[r.ID] = true
		sessions += r.Many()
		if r.Sessions > 0 {
			sums++
		}
	}
	if sums != 1 || sessions != len(outcomes) {
		t.Errorf("%d sums, %d sessions recorded of %d", sums, sessions, len(outcomes))
	}
	for _, d := range mem.Days() {
		if d.Lost() != 0 {
			t.Errorf("%d lost", d.Lost())
		}
	}
}

// TestSumsOfADay: a sum is about one day, so that what is kept of a day can be
// compared with what was counted on it.
func TestSumsOfADay(t *testing.T) {
	begin := time.Date(2026, 11, 2, 23, 30, 0, 0, time.UTC)
	records, mem, _ := sampledDay(t, 1<<30, hammer("198.51.100.7:1", begin, 600, 5*time.Second))
	c := report.NewCollector()
	for i := range records {
		if r := &records[i]; r.Start.Truncate(24*time.Hour) != r.End.Truncate(24*time.Hour) {
			t.Errorf("a sum from %v to %v", r.Start, r.End)
		}
		_ = c.Add(&records[i])
	}
	var days []report.DayCount
	for _, d := range mem.Days() {
		days = append(days, report.DayCount{Day: d.Day, Sessions: int(d.Of(memory.DaySessions))})
	}
	if n := c.Compare(days, time.Time{}); len(days) != 2 || n != (report.NotKept{}) {
		t.Errorf("%d days, not kept: %+v", len(days), n)
	}
}
