package filter_test

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/simulate"
	"scanwatch/tests/total"
)

// budgetedDay plays sessions with the given budget, and returns the records, the state and the
// outcomes of the sessions.
func budgetedDay(t *testing.T, budget int64, sessions iter.Seq[simulate.Session]) (records []store.Record, mem *memory.Memory, outcomes []simulate.Outcome) {
	t.Helper()
	text, err := rules.ReadyPolicy("standard")
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, string(text)).InMode(rules.Enforce)
	mem = memory.New()
	table := simulate.NewFilter(filter.Options{
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
		Budget: budget,
	})
	table.Use(&filter.Settings{Policy: p})
	outcomes, err = simulate.Play(table, smtpd.Requests(filter.Phases(p)), sessions)
	if err != nil {
		t.Fatal(err)
	}
	table.Stop()
	return records, mem, outcomes
}

// hammer returns the sessions of a bot that connects every few seconds.
func hammer(src string, begin time.Time, n int, every time.Duration) iter.Seq[simulate.Session] {
	return func(yield func(simulate.Session) bool) {
		for i := range n {
			s := simulate.Session{
				Label: "hammer", Start: begin.Add(time.Duration(i) * every), Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort("192.0.2.25:25"), FCrDNS: "error",
				Steps: []simulate.Step{{Kind: simulate.Ehlo, Gap: time.Millisecond, Text: "ylmf-pc"}, {Kind: simulate.Quit, Gap: time.Millisecond}},
			}
			if !yield(s) {
				return
			}
		}
	}
}

// few changes the sources of sessions so that there are only n different sources.
func few(n int, sessions iter.Seq[simulate.Session]) iter.Seq[simulate.Session] {
	return func(yield func(simulate.Session) bool) {
		i := 0
		for s := range sessions {
			addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i % n)})
			if i%n < n/3 {
				addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 5: byte(i % n), 15: byte(i % 7)})
			}
			s.Src = netip.AddrPortFrom(addr, s.Src.Port())
			i++
			if !yield(s) {
				return
			}
		}
	}
}

// TestFloodsAgree plays a day of floods twice. Without a budget, each session gets its own record.
// With a budget, there are aggregates. All numbers must be the same for each source and hour. The
// id of each rejected session must be in a record or an aggregate.
func TestFloodsAgree(t *testing.T) {
	begin := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	floods := func() iter.Seq[simulate.Session] {
		attack := func(seed uint64, every time.Duration, each int) simulate.Attack {
			return simulate.Attack{Seed: seed, Start: begin, Every: every, Sessions: 6000, Each: each}
		}
		all := simulate.Merge(simulate.Day(1, 1000), hammer("198.51.100.7:2525", begin, 3000, 5*time.Second))
		return simulate.Merge(all, simulate.Merge(few(40, simulate.Harvest(attack(2, 200*time.Millisecond, 4))), few(30, simulate.Guess(attack(3, 300*time.Millisecond, 3)))))
	}
	all, _, outcomes := budgetedDay(t, 0, floods())
	some, mem, _ := budgetedDay(t, 1<<30, floods())
	rejected := map[uint64]bool{}
	for _, r := range all {
		_ = r.Steps(func(s *store.Step) bool {
			if s.Kind == store.KindVerdict && s.Enforced && s.Decision >= smtp.Reject || s.Kind == store.KindBan && (s.Enforced || s.Exempt != "") {
				rejected[r.ID] = true
			}
			return true
		})
	}
	count := func(records []store.Record) (n map[string]int, sums, summed int) {
		n = map[string]int{}
		for i := range records {
			r := &records[i]
			if r.Sessions > 0 {
				sums, summed = sums+1, summed+int(r.Sessions)
			}
			if err := total.Add(n, r, func(id uint64) bool { return rejected[id] }); err != nil {
				t.Error(err)
			}
		}
		return n, sums, summed
	}
	want, _, _ := count(all)
	got, sums, summed := count(some)
	t.Logf("%d sessions, %d in %d aggregates, %d rejected, %d numbers", len(all), summed, sums, len(rejected), len(want))
	if summed < 3000 || len(rejected) < 3000 {
		t.Errorf("%d sessions in %d aggregates, %d rejected", summed, sums, len(rejected))
	}
	wrong := 0
	for k := range maps.Keys(want) {
		// An aggregate contains only the first few greetings and users. The aggregate counts all
		// others together.
		if got[k] != want[k] && !strings.Contains(k, " helo ") && !strings.Contains(k, " auth ") {
			if wrong++; wrong < 10 {
				t.Errorf("%s: %d, want %d", k, got[k], want[k])
			}
		}
	}
	for k, n := range got {
		if _, ok := want[k]; !ok && !strings.Contains(k, " helo ") && !strings.Contains(k, " auth ") {
			t.Errorf("%s: %d, want none", k, n)
		}
	}

	// The counters of the day must equal the generator's counters.
	day := map[memory.DayCounter]int{}
	for _, d := range mem.Days.List() {
		for f := memory.DaySessions; f <= memory.DayAuthFail; f++ {
			day[f] += int(d.Of(f))
		}
	}
	seen := map[memory.DayCounter]int{memory.DaySessions: len(outcomes), memory.DaySummed: summed, memory.DayWhole: len(outcomes) - summed}
	for _, o := range outcomes {
		seen[memory.DayMails] += o.Mails
		seen[memory.DayRcptOK] += o.RcptOK
		if len(o.Refused) > 0 {
			seen[memory.DayRefused]++
		}
	}
	for f, n := range seen {
		if day[f] != n {
			t.Errorf("%v: %d counted, want %d", f, day[f], n)
		}
	}
}

// TestFloodInSums checks that the report about a day does not change if a flood is aggregated.
func TestFloodInSums(t *testing.T) {
	begin := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	const n = 3000 // number of sessions in a little more than 4 hours
	mixed := func() iter.Seq[simulate.Session] {
		return simulate.Merge(simulate.Day(1, 2000), hammer("198.51.100.7:2525", begin, n, 5*time.Second))
	}
	all, _, _ := budgetedDay(t, 0, mixed())
	some, mem, outcomes := budgetedDay(t, 1<<30, mixed())

	whole := map[uint64]store.Record{}
	for _, r := range all {
		whole[r.ID] = r
	}
	sums, kept := 0, 0
	for _, r := range some {
		if r.Sessions > 0 {
			sums++
			if r.Src != netip.MustParseAddrPort("198.51.100.7:0") || !r.End.Truncate(time.Hour).Equal(r.Start.Add(time.Second).Truncate(time.Hour)) || r.Counts.Mails > 0 {
				t.Errorf("an aggregate of %v from %v to %v, %d mails", r.Src, r.Start, r.End, r.Counts.Mails)
			}
			continue
		}
		kept++
		was, ok := whole[r.ID]
		if !ok || was.Counts != r.Counts {
			t.Errorf("session %016x differs from its record without a budget", r.ID)
		}
	}
	// The generator finishes each session before it starts the next one. The time may therefore go
	// back to the previous hour, which starts a new aggregate.
	if sums < 5 || sums > 15 || kept < len(all)-n+5*20 || kept > len(all)-n+5*20+20 {
		t.Errorf("%d aggregates and %d whole of %d", sums, kept, len(all))
	}

	// The two sets of records must lead to the same report.
	a, b := report.NewCollector(memory.Number), report.NewCollector(memory.Number)
	for i := range all {
		_ = a.Add(&all[i])
	}
	for i := range some {
		_ = b.Add(&some[i])
	}
	x, y := a.Summary(begin, begin, 20, nil), b.Summary(begin, begin, 20, nil)
	if x.Remote != y.Remote || x.Authenticated != y.Authenticated || x.Local != y.Local {
		t.Errorf("totals are\n%+v, with aggregates\n%+v", x.Remote, y.Remote)
	}
	if !slices.Equal(x.Evidence, y.Evidence) || !slices.Equal(x.Rules, y.Rules) {
		t.Errorf("lists are\n%+v\n%+v, with aggregates\n%+v\n%+v", x.Evidence, x.Rules, y.Evidence, y.Rules)
	}
	if !slices.Equal(x.Sources, y.Sources) {
		t.Errorf("sources are\n%+v, with aggregates\n%+v", x.Sources, y.Sources)
	}

	found := 0
	for _, d := range mem.Days.List() {
		found += int(d.Of(memory.DayFound))
	}
	if found != x.Remote.Found || len(outcomes) != len(all) {
		t.Errorf("%d found counted, the report has %d; %d sessions of %d", found, x.Remote.Found, len(all), len(outcomes))
	}
}

// TestFloodFromEverywhere checks a flood in which each session has a new source. The flood must use
// only its share of the budget for a day, and all sessions and messages must be counted.
func TestFloodFromEverywhere(t *testing.T) {
	const n, budget = 60_000, 4 << 20
	begin := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	strangers := func(yield func(simulate.Session) bool) {
		for i := range n {
			src := fmt.Sprintf("%d.%d.%d.%d:1", 11+i%50, i>>16&255, i>>8&255, i&255)
			for s := range hammer(src, begin.Add(time.Duration(i)*time.Second), 1, 0) {
				if !yield(s) {
					return
				}
			}
		}
	}
	records, mem, outcomes := budgetedDay(t, budget, simulate.Merge(simulate.Day(2, 2000), strangers))
	size, mails, recorded, summed, bySource := 0, 0, 0, 0, 0
	var sources sketch.Sketch
	for _, r := range records {
		recorded += r.Many()
		mails += int(r.Counts.Mails)
		if r.Counts.Mails == 0 && r.Counts.AuthPass == 0 && r.End.Before(begin.AddDate(0, 0, 1)) {
			size += r.Size() - 384 + store.KeySize
		}
		switch {
		case r.Sketch != nil:
			sources.Merge(r.Sketch)
			summed += r.Many()
		case r.Sessions > 0:
			summed += r.Many()
			bySource += r.Many()
		}
	}
	came := 0
	for _, o := range outcomes {
		came += o.Mails
	}
	counted := map[memory.DayCounter]uint64{}
	for _, d := range mem.Days.List() {
		for _, f := range []memory.DayCounter{memory.DayMails, memory.DaySessions, memory.DayWhole, memory.DaySummed} {
			counted[f] += d.Of(f)
		}
	}
	if mails != came || counted[memory.DayMails] != uint64(came) {
		t.Errorf("%d messages recorded and %d counted of %d", mails, counted[memory.DayMails], came)
	}
	// A rule bans the sources because of their greeting. The sessions therefore also use the share
	// for sessions with a ban.
	if size > budget/2+budget/8+budget/16+24*10_000 {
		t.Errorf("sessions without mail or login use %d bytes of a budget of %d", size, budget)
	}
	if recorded != len(outcomes) || counted[memory.DaySessions] != uint64(recorded) || counted[memory.DaySummed] != uint64(summed) {
		t.Errorf("%d recorded, %d in aggregates, of %d; counted %v", recorded, summed, len(outcomes), counted)
	}
	if got, want := sources.Count(), summed-bySource; got < want*9/10 || got > want*11/10 || want < n/2 {
		t.Errorf("an estimate of %d sources in the common aggregates, want %d", got, want)
	}
}

// TestFloodOfMail checks that long sessions with a message cannot displace older records, and that
// all messages are counted. The client knows one valid mailbox.
func TestFloodOfMail(t *testing.T) {
	const n, budget = 2000, 4 << 20
	begin := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	spammer := func(yield func(simulate.Session) bool) {
		for i := range n {
			s := simulate.Session{
				Label: "spammer", Start: begin.Add(time.Duration(i) * 20 * time.Second), Src: netip.MustParseAddrPort("198.51.100.7:2525"), Dst: netip.MustParseAddrPort("192.0.2.25:25"), FCrDNS: "error",
				Steps: []simulate.Step{{Kind: simulate.Ehlo, Gap: time.Millisecond, Text: "mail.example.net"}},
			}
			for j := range 100 {
				s.Steps = append(s.Steps, simulate.Step{Kind: simulate.Mail, Gap: time.Millisecond, Text: fmt.Sprintf("bounce-%d-%d@example.net", i, j)}, simulate.Step{Kind: simulate.Rset, Gap: time.Millisecond})
			}
			s.Steps = append(s.Steps, simulate.Step{Kind: simulate.Mail, Gap: time.Millisecond, Text: "a@example.net"},
				simulate.Step{Kind: simulate.Rcpt, Gap: time.Millisecond, Text: simulate.Mailbox(1)}, simulate.Step{Kind: simulate.Data, Gap: time.Millisecond, Size: 1000}, simulate.Step{Kind: simulate.Quit, Gap: time.Millisecond})
			if !yield(s) {
				return
			}
		}
	}
	records, mem, outcomes := budgetedDay(t, budget, spammer)
	size, mails, came := 0, 0, 0
	for _, r := range records {
		mails += int(r.Counts.Mails)
		size += r.Size() - 384 + store.KeySize
	}
	for _, o := range outcomes {
		came += o.Mails
	}
	if size > budget*3/4 {
		t.Errorf("records use %d bytes of a budget of %d", size, budget)
	}
	counted := uint64(0)
	for _, d := range mem.Days.List() {
		counted += d.Of(memory.DayMails)
	}
	if came < n/2 || mails != came || counted != uint64(came) {
		t.Errorf("%d messages recorded and %d counted of %d", mails, counted, came)
	}
}

// TestCrashOfSums checks that only the aggregates of the current hour are lost in a crash. The
// number of missing sessions must be known from the counters of the day.
func TestCrashOfSums(t *testing.T) {
	begin := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	text, err := rules.ReadyPolicy("standard")
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, string(text)).InMode(rules.Observe)
	c := report.NewCollector(memory.Number)
	mem := memory.New()
	table := simulate.NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), value)
			if err != nil {
				t.Error(err)
			}
			_ = c.Add(&r)
		},
		Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists }, Memory: mem, Budget: 1 << 30,
	})
	table.Use(&filter.Settings{Policy: p})
	outcomes, err := simulate.Play(table, smtpd.Requests(filter.Phases(p)), hammer("198.51.100.7:1", begin, 90, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	// There are 60 sessions in the first hour and 30 in the second. In each hour, 20 of them get
	// their own record.
	missing := func() int {
		var days []report.DayCount
		for _, d := range mem.Days.List() {
			days = append(days, report.DayCount{Day: d.Day, Sessions: int(d.Of(memory.DaySessions))})
		}
		return c.Compare(days, time.Time{}, 0).Sessions
	}
	if n := missing(); len(outcomes) != 90 || n != 10 || table.Sums.Unwritten() != 10 {
		t.Errorf("a crash loses %d sessions, %d are unwritten", n, table.Sums.Unwritten())
	}
	if table.Sums.Flush(); missing() != 0 || table.Sums.Unwritten() != 0 {
		t.Errorf("%d sessions are missing after a flush, %d unwritten", missing(), table.Sums.Unwritten())
	}
}

// TestSumsOfADay checks that all sessions in an aggregate are from the same day, so that the
// records of a day can be compared with its counters.
func TestSumsOfADay(t *testing.T) {
	begin := time.Date(2026, 11, 2, 23, 30, 0, 0, time.UTC)
	records, mem, _ := budgetedDay(t, 1<<30, hammer("198.51.100.7:1", begin, 600, 5*time.Second))
	c := report.NewCollector(memory.Number)
	for i := range records {
		if r := &records[i]; r.Start.Truncate(24*time.Hour) != r.End.Truncate(24*time.Hour) {
			t.Errorf("an aggregate from %v to %v", r.Start, r.End)
		}
		_ = c.Add(&records[i])
	}
	var days []report.DayCount
	for _, d := range mem.Days.List() {
		days = append(days, report.DayCount{Day: d.Day, Sessions: int(d.Of(memory.DaySessions))})
	}
	if n := c.Compare(days, time.Time{}, 0); len(days) != 2 || n != (report.NotKept{}) {
		t.Errorf("%d days, not kept: %+v", len(days), n)
	}
}
