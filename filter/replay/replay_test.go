package replay_test

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/replay"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/sim"
)

func builtin(t testing.TB) *lookup.Lists {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return lists
}

// policy returns a ready policy, with lines put in front.
func policy(t testing.TB, name, lines string, mode rules.Mode) *rules.Policy {
	t.Helper()
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := rules.Parse(name, func(string) ([]byte, error) { return append([]byte(lines), text...), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(tree, rules.Options{Load: func(rules.Source) (rules.Table, error) { return nobody{}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return p.InMode(mode)
}

// nobody is an empty table.
type nobody struct{}

func (nobody) MatchAddr(netip.Addr) bool { return false }
func (nobody) MatchName([]byte) bool     { return false }
func (nobody) MatchASN(uint32) bool      { return false }

// options are those of a table whose records are appended to to.
func options(t testing.TB, lists *lookup.Lists, to *[]*store.Record) session.Options {
	// Two things of which memory keeps the same short hash are one to it; with the
	// same key they are the same ones.
	m := memory.New()
	m.Load(slices.Values([]store.Entry{{Bucket: "secret", Key: []byte("hash"), Value: []byte("0123456789abcdef")}}), sim.Midnight.UnixMicro())
	return session.Options{
		Memory: m,
		Lists:  func() *lookup.Lists { return lists },
		Log:    func([]byte) {},
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Error(err)
			}
			*to = append(*to, &r)
		},
	}
}

// again plays records to a policy, and returns what is recorded of that.
func again(t testing.TB, lists *lookup.Lists, p *rules.Policy, records []*store.Record) (back []*store.Record, outcomes []replay.Outcome) {
	player := replay.New(replay.Options{
		Settings: &session.Settings{Policy: p},
		Table:    options(t, lists, &back),
		Done: func(o *replay.Outcome) {
			c := *o
			c.Lost = slices.Clone(o.Lost)
			c.Record = nil
			outcomes = append(outcomes, c)
		},
	})
	for _, r := range records {
		player.Add(r)
	}
	player.Close()
	return back, outcomes
}

// known is what a record must have in common with the one it was played from.
func known(t testing.TB, r *store.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "src=%v rdns=%q local=%v ending=%v counts=%+v\n", r.Src, r.RDNS, r.Local, r.Ending, r.Counts)
	err := r.Steps(func(s *store.Step) bool {
		fmt.Fprintf(&b, "\t%d %q %q %v %d", s.Kind, s.Arg, s.Text, s.Result, s.Code)
		for _, f := range [][]byte{s.Reply, s.Org, s.By, s.Match, s.Confidence} {
			fmt.Fprintf(&b, " %q", f)
		}
		b.WriteByte('\n')
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return b.String()
}

func byStart(records []*store.Record) map[string]*store.Record {
	m := make(map[string]*store.Record)
	for _, r := range records {
		m[fmt.Sprintf("%016x %v", r.ID, r.Start)] = r
	}
	return m
}

// same compares records and those that were made from them again.
func same(t *testing.T, records, back []*store.Record, tell int) (differ int) {
	t.Helper()
	if len(back) != len(records) {
		t.Errorf("%d sessions became %d", len(records), len(back))
	}
	recorded := byStart(records)
	for id, b := range byStart(back) {
		r := recorded[id]
		if r == nil {
			t.Errorf("session %s came from nowhere", id)
			continue
		}
		if got, want := known(t, b), known(t, r); got != want {
			differ++
			if differ <= tell {
				t.Logf("session %s: played again:\n%srecorded:\n%s", id, got, want)
			}
		}
	}
	return differ
}

// lossy are streams that do not come back whole, and why.
var lossy = map[string]string{
	"auth-submission":         "the lines of an AUTH exchange have no steps, so that another reply is the first of its kind",
	"reject-451-each-phase":   "whether another filter, which refused, was asked before us",
	"reject-550-each-phase":   "the same",
	"rewrite":                 "a NOOP that another filter had changed has no step of its own",
	"ehlo-inside-transaction": "whether EHLO or the end of the transaction came first",
}

// TestStreams: a record of each stream, played again, becomes the same record:
// with what was found, counted and decided.
func TestStreams(t *testing.T) {
	lists := builtin(t)
	names, err := filepath.Glob("../../tests/streams/*/*.in")
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	seen := make(map[string]bool)
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, ready := range []string{"open", "standard", "tight"} {
			t.Run(strings.TrimPrefix(name, "../../tests/streams/")+"/"+ready, func(t *testing.T) {
				p := policy(t, ready, "table <local-domains> { \"example.org\" }\n", rules.Observe)
				var records []*store.Record
				table := session.NewTable(options(t, lists, &records))
				table.Use(&session.Settings{Policy: p})
				h := registered{table, session.Phases(p)}
				if err := filter.Serve(bytes.NewReader(in), new(bytes.Buffer), h, filter.Options{}); err != nil {
					t.Fatal(err)
				}
				table.Stop()
				back, _ := again(t, lists, p, records)
				n := same(t, records, back, 3)
				stream := strings.TrimSuffix(filepath.Base(name), ".in")
				if n > 0 && lossy[stream] != "" {
					seen[stream] = true
					t.Logf("%d of %d sessions differ: %s", n, len(records), lossy[stream])
				} else if n > 0 {
					t.Errorf("%d of %d sessions differ", n, len(records))
				}
			})
		}
	}
	for stream := range lossy {
		if !seen[stream] {
			t.Errorf("%s comes back whole: it need not be excused", stream)
		}
	}
}

// registered is a table that is asked only in the phases it wants.
type registered struct {
	*session.Table
	phases []filter.ID
}

func (r registered) Decide(ev *filter.Event) filter.Reply {
	if !slices.Contains(r.phases, ev.ID) {
		return filter.Reply{}
	}
	return r.Table.Decide(ev)
}

// day is a day of honest clients and of some others.
func day(n int) iter.Seq[sim.Session] {
	return sim.Merge(sim.Day(1, n), sim.Merge(
		sim.Harvest(sim.Attack{Start: sim.Midnight.Add(time.Hour), Every: 3 * time.Minute, Sessions: 200, Each: 9}),
		sim.Guess(sim.Attack{Start: sim.Midnight.Add(2 * time.Hour), Every: time.Minute, Sessions: 200, Each: 12}),
	))
}

// live lets the sessions of a day come to a policy, and returns the records in
// the order of the store.
func live(t testing.TB, lists *lookup.Lists, p *rules.Policy, sessions iter.Seq[sim.Session]) (records []*store.Record) {
	t.Helper()
	return liveWith(t, options(t, lists, &records), p, sessions, &records)
}

// liveWith is live with other options, which append to all.
func liveWith(t testing.TB, o session.Options, p *rules.Policy, sessions iter.Seq[sim.Session], all *[]*store.Record) []*store.Record {
	t.Helper()
	table := session.NewTable(o)
	table.Use(&session.Settings{Policy: p})
	if _, err := sim.Play(table, session.Phases(p), sessions); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	slices.SortStableFunc(*all, func(a, b *store.Record) int { return a.End.Compare(b.End) })
	return *all
}

// TestSame: the policy that was running decides again as it did, in every
// session of a busy day; so no mail is lost and nobody is spared.
func TestSame(t *testing.T) {
	lists := builtin(t)
	for _, ready := range []string{"standard", "tight"} {
		for _, mode := range []rules.Mode{rules.Observe, rules.Enforce} {
			t.Run(fmt.Sprint(ready, " ", mode), func(t *testing.T) {
				p := policy(t, ready, "table <local-domains> { \"example.org\" }\n", mode)
				records := live(t, lists, p, day(3000))
				back, outcomes := again(t, lists, p, records)
				if n := same(t, records, back, 3); n > 0 {
					t.Errorf("%d of %d sessions differ", n, len(records))
				}
				refused := 0
				for _, o := range outcomes {
					if o.Ended {
						refused++
					}
					if len(o.Lost) > 0 || o.Spared || o.Ended != (o.Refusal.Rule != "") {
						t.Errorf("session %d: %+v", o.Seq, o)
					}
				}
				if mode == rules.Enforce && refused == 0 {
					t.Error("nobody was refused: the day tests nothing")
				}
			})
		}
	}
}

// TestLost: what a policy loses of a day that was recorded without it is what it
// loses of the day itself, where the clients go on as they like.
func TestLost(t *testing.T) {
	lists := builtin(t)
	tight := policy(t, "tight", "table <local-domains> { \"example.org\" }\n", rules.Enforce)
	play := func(p *rules.Policy) ([]*store.Record, []sim.Outcome) {
		var records []*store.Record
		table := session.NewTable(options(t, lists, &records))
		table.Use(&session.Settings{Policy: p})
		outcomes, err := sim.Play(table, session.Phases(p), day(3000))
		if err != nil {
			t.Fatal(err)
		}
		slices.SortStableFunc(records, func(a, b *store.Record) int { return a.End.Compare(b.End) })
		return records, outcomes
	}
	records, free := play(tight.InMode(rules.Observe))
	_, held := play(tight)
	_, outcomes := again(t, lists, tight, records)
	lost := make(map[uint64]int) // whole messages, by session
	stopped := make(map[uint64]bool)
	for _, o := range outcomes {
		id := records[o.Seq].ID
		for _, m := range o.Lost {
			if !m.Some {
				lost[id]++
			}
		}
		stopped[id] = o.Refusal.Rule != ""
	}
	total, differ := 0, 0
	for i := range free {
		want := free[i].Mails - held[i].Mails
		total += want
		if lost[free[i].Session] != want || stopped[free[i].Session] != (len(held[i].Refused) > 0) {
			if differ++; differ <= 5 {
				t.Logf("%s session %016x: %d lost, refused %v; want %d, %v", free[i].Label, free[i].Session, lost[free[i].Session], stopped[free[i].Session], want, held[i].Refused)
			}
		}
	}
	t.Logf("%d messages lost; %d of %d sessions differ", total, differ, len(free))
	// Delays change what comes first, and clients leave early when they are
	// refused: a few may differ.
	if total == 0 || differ*200 > len(free) {
		t.Errorf("%d of %d sessions came out otherwise than they would", differ, len(free))
	}
}

// TestJunk: messages that would have been marked are counted, whether the
// session was marked or they.
func TestJunk(t *testing.T) {
	lists := builtin(t)
	free := policy(t, "open", "", rules.Enforce)
	records := live(t, lists, free, sim.Day(1, 2000))
	mails := 0
	for _, r := range records {
		if r.Dst.Port() == 25 {
			mails += int(r.Counts.Mails)
		}
	}
	for _, phase := range []string{"helo", "mail-from", "rcpt-to", "data"} {
		p := policy(t, "open", "listener mx port 25\nrule all on mx phase "+phase+" match !src 192.0.2.200 junk\n", rules.Enforce)
		_, outcomes := again(t, lists, p, records)
		junked := 0
		for _, o := range outcomes {
			junked += o.Junked
			if len(o.Lost) > 0 {
				t.Fatalf("%s: lost %+v", phase, o)
			}
		}
		// The friends of a policy and mail for the postmaster are not marked.
		if junked > mails || junked < mails*95/100 {
			t.Errorf("%s: %d messages of %d would be marked", phase, junked, mails)
		}
	}
}

// TestLate: a session that lasted longer than the window comes in late, and is
// played all the same.
func TestLate(t *testing.T) {
	lists := builtin(t)
	p := policy(t, "open", "", rules.Enforce)
	start := sim.Midnight
	record := func(id uint64, start time.Time, length time.Duration) *store.Record {
		return &store.Record{ID: id, Start: start, End: start.Add(length), Src: netip.MustParseAddrPort("192.0.2.1:1"), Ending: store.EndingDropped}
	}
	var order []uint64
	player := replay.New(replay.Options{Settings: &session.Settings{Policy: p}, Table: options(t, lists, new([]*store.Record)),
		Done: func(o *replay.Outcome) { order = append(order, o.Record.ID) }})
	player.Add(record(1, start.Add(time.Minute), time.Second))
	player.Add(record(2, start.Add(2*time.Minute), time.Second))
	player.Add(record(3, start, 9*time.Minute)) // began first
	player.Add(record(4, start.Add(20*time.Minute), time.Second))
	if player.Late() != 0 || len(order) != 1 {
		t.Errorf("late %d, played %v", player.Late(), order)
	}
	player.Add(record(5, start.Add(30*time.Second), time.Hour))
	player.Close()
	if want := []uint64{1, 2, 3, 4, 5}; player.Late() != 1 || !slices.Equal(order, want) {
		t.Errorf("late %d, played %v, want %v", player.Late(), order, want)
	}
}

// FuzzPlay: whatever stands in a record, it is played to its end once, and
// refuses nobody by itself.
func FuzzPlay(f *testing.F) {
	lists := builtin(f)
	tight := policy(f, "tight", "", rules.Enforce)
	for _, kind := range []store.Kind{store.KindGreeting, store.KindHelo, store.KindMail, store.KindRcpt, store.KindData, store.KindCommit,
		store.KindInput, store.KindFilter, store.KindVerdict, store.KindCommand, store.KindQuit} {
		step := store.Step{Kind: kind, Text: []byte("reject"), Arg: []byte("rcpt-to"), Result: store.ResultOK, Code: 421}
		r := &store.Record{Start: sim.Midnight, End: sim.Midnight.Add(time.Second), Src: netip.MustParseAddrPort("192.0.2.1:1"), Ending: store.EndingDropped}
		f.Add(store.AppendRecord(nil, r, store.AppendStep(store.AppendStep(nil, &step, 0), &step, time.Millisecond)))
	}
	for _, r := range live(f, lists, tight, sim.Harvest(sim.Attack{Start: sim.Midnight, Every: time.Minute, Sessions: 3, Each: 9})) {
		var steps []byte
		var last time.Duration
		if err := r.Steps(func(s *store.Step) bool {
			steps = store.AppendStep(steps, s, s.At-last)
			last = s.At
			return true
		}); err != nil {
			f.Fatal(err)
		}
		f.Add(store.AppendRecord(nil, r, steps))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := store.Decode(store.AppendKey(nil, sim.Midnight, 1), value)
		if err != nil {
			return
		}
		back, outcomes := again(t, lists, tight, []*store.Record{&r, &r})
		if len(outcomes) != 2 || len(back) != 2 {
			t.Errorf("%d outcomes and %d records of 2 sessions", len(outcomes), len(back))
		}
	})
}

// leanLossy are streams that come back with other findings, and why.
var leanLossy = map[string]string{
	"auth-submission":         "users are cut in records, so that they differ in another place",
	"ehlo-inside-transaction": "that a client changes its name is not looked for with lean detail",
	"multi-message":           "the same",
	"odd-addresses":           "whether smtpd refused an address without asking us",
	"relay-probe":             "the same",
}

// TestLeanStreams: what was recorded with lean detail gives the same findings and
// decisions when it is played again.
func TestLeanStreams(t *testing.T) {
	lists := builtin(t)
	names, err := filepath.Glob("../../tests/streams/7.9/*.in")
	if err != nil || len(names) < 40 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	told := make(map[string]bool)
	for _, id := range session.LeanReports {
		told[id.String()] = true
	}
	found := 0
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var lean []byte
		for line := range bytes.Lines(in) {
			if f := bytes.SplitN(line, []byte{'|'}, 6); len(f) < 6 || string(f[0]) != "report" || told[string(f[4])] {
				lean = append(lean, line...)
			}
		}
		p := policy(t, "tight", "table <local-domains> { \"example.org\" }\n", rules.Observe)
		var records []*store.Record
		table := session.NewTable(options(t, lists, &records))
		table.Lean()
		table.Use(&session.Settings{Policy: p})
		if err := filter.Serve(bytes.NewReader(lean), new(bytes.Buffer), registered{table, session.Phases(p)}, filter.Options{}); err != nil {
			t.Fatal(err)
		}
		table.Stop()
		back, _ := again(t, lists, p, records)
		played := byStart(back)
		for id, r := range byStart(records) {
			b := played[id]
			if b == nil {
				t.Errorf("%s: session %s was not played", name, id)
				continue
			}
			got, want := judged(t, b), judged(t, r)
			found += len(want)
			switch why := leanLossy[strings.TrimSuffix(filepath.Base(name), ".in")]; {
			case slices.Equal(got, want):
			case why != "":
				t.Logf("%s differs: %s", name, why)
			default:
				t.Errorf("%s, session %s: played again:\n%s\nrecorded:\n%s", name, id, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d findings and decisions", found)
	}
}

// judged are the findings and decisions of a record.
func judged(t *testing.T, r *store.Record) (list []string) {
	err := r.Steps(func(s *store.Step) bool {
		if s.Kind == store.KindFinding || s.Kind == store.KindVerdict {
			list = append(list, fmt.Sprintf("%d %q %q %v %q %q", s.Kind, s.Text, s.Arg, s.Result, s.Reply, s.Confidence))
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return list
}

// TestLostOmitted: messages whose steps were not kept are lost like the others of their
// session.
func TestLostOmitted(t *testing.T) {
	const mails, kept = 10, 3
	var steps []byte
	step := func(s store.Step) { steps = store.AppendStep(steps, &s, time.Millisecond) }
	text := func(s string) []byte { return []byte(s) }
	step(store.Step{Kind: store.KindGreeting})
	step(store.Step{Kind: store.KindHelo, Text: text("mail.example.net"), Arg: text("EHLO"), Result: store.ResultOK})
	for i := range kept {
		step(store.Step{Kind: store.KindMail, Text: text("joe@example.net"), Result: store.ResultOK, MsgID: uint32(i + 1)})
		step(store.Step{Kind: store.KindRcpt, Text: text(fmt.Sprintf("user%d@example.org", i)), Result: store.ResultOK})
		step(store.Step{Kind: store.KindRcpt, Text: text("second@example.org"), Result: store.ResultOK})
		step(store.Step{Kind: store.KindData, Result: store.ResultOK})
		step(store.Step{Kind: store.KindCommit, Size: 1000})
	}
	value := store.AppendRecord(nil, &store.Record{Start: sim.Midnight, End: sim.Midnight.Add(time.Minute), Src: netip.MustParseAddrPort("203.0.113.9:25"),
		Dst: netip.MustParseAddrPort("192.0.2.25:25"), Ending: store.EndingQuit, Counts: store.Counts{Commands: 42, Mails: mails, RcptOK: 20}, Omitted: 28}, steps)
	r, err := store.Decode(store.AppendKey(nil, sim.Midnight.Add(time.Minute), 1), value)
	if err != nil {
		t.Fatal(err)
	}
	lists := builtin(t)
	for _, c := range []struct {
		rule        string
		whole, some int
	}{
		{"phase connect match src 203.0.113.9 disconnect", mails, 0},
		{"phase helo match src 203.0.113.9 reject", mails, 0},
		{"phase helo match src 203.0.113.9 disconnect", mails, 0},
		{"phase mail-from match src 203.0.113.9 reject", mails, 0},
		{"phase mail-from match src 203.0.113.9 disconnect", mails, 0},
		{"phase rcpt-to match src 203.0.113.9 reject", mails, 0},
		{"phase data match src 203.0.113.9 reject", mails, 0},
		{"phase commit match src 203.0.113.9 reject", mails, 0},
		{"phase rcpt-to match rcpt-to \"user1@example.org\" reject", 0, 1},
		{"phase rcpt-to match rcpt-to \"second@example.org\" disconnect", mails, 0},
		{"phase rcpt-to match rcpt-to \"user0@example.org\" reject\nrule b phase rcpt-to match rcpt-to \"user2@example.org\" disconnect", mails - 2, 1},
		{"phase mail-from match src 192.0.2.9 reject", 0, 0},
	} {
		_, outcomes := again(t, lists, policy(t, "open", "rule a "+c.rule+"\n", rules.Enforce), []*store.Record{&r})
		whole, some := 0, 0
		for _, m := range outcomes[0].Lost {
			if m.Some {
				some++
			} else {
				whole++
			}
			if m.Rule == "" {
				t.Errorf("%s: %+v", c.rule, m)
			}
		}
		if whole != c.whole || some != c.some {
			t.Errorf("%s: %d messages lost and %d in part, want %d and %d", c.rule, whole, some, c.whole, c.some)
		}
	}
}
