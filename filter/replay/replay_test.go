package replay_test

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
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
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p.InMode(mode)
}

// fold is how a test gets records: of a table that record collects from.
func options(t testing.TB, lists *lookup.Lists, to *[]*store.Record) session.Options {
	return session.Options{
		Lists: func() *lookup.Lists { return lists },
		Log:   func([]byte) {},
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
	table := session.NewTable(options(t, lists, &records))
	table.Use(&session.Settings{Policy: p})
	if _, err := sim.Play(table, session.Phases(p), sessions); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	slices.SortStableFunc(records, func(a, b *store.Record) int { return a.End.Compare(b.End) })
	return records
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
