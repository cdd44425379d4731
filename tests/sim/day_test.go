package sim_test

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/tests/sim"
)

var (
	update = flag.Bool("update", false, "rewrite the golden files")
	seed   = flag.Uint64("seed", 1, "play another day than the golden one")
)

var lists = sync.OnceValue(func() *lookup.Lists {
	l, err := lookup.Builtin()
	if err != nil {
		panic(err)
	}
	return l
})

// allowed is the shipped list <allow> as a rules.Table.
type allowed struct {
	names    lookup.Names[struct{}]
	patterns *lookup.Patterns[struct{}]
}

func (t *allowed) MatchAddr(netip.Addr) bool { return false } // it has only names
func (t *allowed) MatchASN(uint32) bool      { return false }

func (t *allowed) MatchName(name []byte) bool {
	if _, ok := t.names.LookupBytes(name); ok || t.patterns == nil {
		return ok
	}
	_, ok := t.patterns.Match(name)
	return ok
}

func loadAllowed(s rules.Source) (rules.Table, error) {
	if !s.Builtin || s.Table != lookup.Allow {
		return nil, fmt.Errorf("the ready policies have no table <%s>", s.Table)
	}
	t := new(allowed)
	var patterns []lookup.Pattern[struct{}]
	for _, row := range lists().Rows() {
		if row.List != lookup.Allow || row.Confidence == "low" {
			continue
		}
		if row.Kind != "rdns" && row.Kind != "helo" {
			return nil, fmt.Errorf("line %d of the list is not of a name", row.Line)
		}
		if expr, ok := strings.CutPrefix(row.Value, "/"); ok {
			patterns = append(patterns, lookup.Pattern[struct{}]{Expr: strings.TrimSuffix(expr, "/")})
		} else if err := t.names.Add(row.Value, struct{}{}); err != nil {
			return nil, err
		}
	}
	var err error
	if len(patterns) > 0 {
		t.patterns, err = lookup.NewPatterns(patterns)
	}
	return t, err
}

// enforced returns a ready policy that means it.
func enforced(t testing.TB, name string) *rules.Policy {
	t.Helper()
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := rules.Parse(name+".conf", func(string) ([]byte, error) { return text, nil })
	if err != nil {
		t.Fatal(err)
	}
	p, warnings, err := rules.Compile(tree, rules.Options{Load: loadAllowed})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	return p.InMode(rules.Enforce)
}

// table returns a Table that follows policy, which may be nil.
func table(policy *rules.Policy, log func([]byte)) *session.Table {
	t := session.NewTable(session.Options{
		Record:   func(time.Time, uint64, []byte) {},
		Log:      log,
		Lists:    lists,
		OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	if policy != nil {
		t.Use(&session.Settings{Policy: policy})
	}
	return t
}

// tally is what became of the sessions of one label.
type tally struct {
	sessions, mails, junked, turned, rcpts, disconnected int
	texts                                                map[string]int // refusals
}

// varying are the parts of a reply that differ from session to session.
var varying = regexp.MustCompile(` \[[0-9a-f]{16}\]|\d{4}-\d\d-\d\d \d\d:\d\d UTC `)

func tallies(outcomes []sim.Outcome) map[string]*tally {
	all := make(map[string]*tally)
	for _, o := range outcomes {
		y := all[o.Label]
		if y == nil {
			y = &tally{texts: make(map[string]int)}
			all[o.Label] = y
		}
		y.sessions++
		y.mails += o.Mails
		y.rcpts += o.RcptOK
		if o.Junked {
			y.junked++
		}
		if len(o.Refused) > 0 {
			y.turned++
		}
		if o.Disconnected {
			y.disconnected++
		}
		for _, r := range o.Refused {
			y.texts[r.Phase.String()+": "+varying.ReplaceAllString(r.Text, "")]++
		}
	}
	return all
}

const daySize = 20_000

// day is the busy one, which is the same for all tests.
var day = sync.OnceValue(func() []sim.Session { return slices.Collect(sim.Day(*seed, daySize)) })

// TestDay plays a busy day of honest clients against the ready policies, from
// an empty memory, and compares what became of them with testdata/day.golden.
// The policy that is recommended must not refuse anything of it. With -seed,
// another day is played, and shown with -v.
func TestDay(t *testing.T) {
	free, err := sim.Play(idle{}, nil, slices.Values(day()))
	if err != nil {
		t.Fatal(err)
	}
	offered := tallies(free)
	var b strings.Builder
	fmt.Fprintf(&b, "A busy day of honest clients: %d sessions from an empty memory.\n", len(free))
	for _, name := range []string{"standard", "tight"} {
		policy := enforced(t, name)
		var log []string
		h := table(policy, func(line []byte) { log = append(log, string(line)) })
		out, err := sim.Play(h, session.Phases(policy), slices.Values(day()))
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != len(free) || h.Open() != 0 {
			t.Errorf("%s: %d outcomes of %d sessions, %d still open", name, len(out), len(free), h.Open())
		}
		got := tallies(out)
		fmt.Fprintf(&b, "\n%s\n", name)
		write(&b, offered, got)
		if name != "standard" {
			continue
		}
		for label, y := range got {
			for _, text := range slices.Sorted(maps.Keys(y.texts)) {
				t.Errorf("standard refused %d times %s, at %s", y.texts[text], label, text)
			}
			if y.mails != offered[label].mails {
				t.Errorf("standard: %d of %d messages of %s came in", y.mails, offered[label].mails, label)
			}
		}
		if t.Failed() {
			for _, line := range log {
				if strings.HasPrefix(line, "verdict") || strings.HasPrefix(line, "banned") {
					t.Log(line)
				}
			}
		}
	}
	if *seed == 1 {
		golden(t, "testdata/day.golden", b.String())
	} else {
		t.Log(b.String())
	}
}

// write writes the table of one policy.
func write(b *strings.Builder, offered, got map[string]*tally) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "label\tsessions\tturned away\tmessages\tdelivered\tas junk\trecipients\taccepted\t")
	var texts []string
	total := [7]int{}
	for _, label := range sim.Labels() {
		o, y := offered[label], got[label]
		row := [...]int{y.sessions, y.turned, o.mails, y.mails, y.junked, o.rcpts, y.rcpts}
		fmt.Fprintf(w, "%s\t", label)
		for i, n := range row {
			total[i] += n
			fmt.Fprintf(w, "%d\t", n)
		}
		fmt.Fprintln(w)
		keys := slices.SortedFunc(maps.Keys(y.texts), func(a, b string) int {
			return cmp.Or(y.texts[b]-y.texts[a], cmp.Compare(a, b))
		})
		for _, text := range keys {
			texts = append(texts, fmt.Sprintf("  %6d  %-16s %s\n", y.texts[text], label, text))
		}
	}
	fmt.Fprintf(w, "all\t")
	for _, n := range total {
		fmt.Fprintf(w, "%d\t", n)
	}
	fmt.Fprintln(w)
	w.Flush()
	if len(texts) == 0 {
		b.WriteString("nothing was refused\n")
		return
	}
	b.WriteString("refusals:\n" + strings.Join(texts, ""))
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != got {
		t.Errorf("differs from %s (%v); run with -update and look\ngot:\n%s", file, err, got)
	}
}

// TestDayHasEverybody: nobody is missing from the day, and each is what the
// label says.
func TestDayHasEverybody(t *testing.T) {
	seen := make(map[string]int)
	for _, s := range day() {
		seen[s.Label]++
		if d := s.Start.Sub(sim.Midnight); d < 0 || d > 25*time.Hour { // a retry may be late
			t.Errorf("%s begins at %v", s.Label, s.Start)
		}
		for _, st := range s.Steps {
			if st.Kind != sim.Rcpt || s.Label == "submission" || s.Label == "nat-office" {
				continue
			}
			local, domain, _ := strings.Cut(st.Text, "@")
			local, _, _ = strings.Cut(local, "+")
			if domain != sim.Domain || (st.Fate == sim.Unknown) == sim.Exists(local) {
				t.Fatalf("%s: %s has fate %d", s.Label, st.Text, st.Fate)
			}
		}
	}
	for _, label := range sim.Labels() {
		if seen[label] == 0 {
			t.Errorf("nobody is %s", label)
		}
		delete(seen, label)
	}
	if len(seen) > 0 || len(day()) < daySize*9/10 || len(day()) > daySize*11/10 {
		t.Errorf("%d sessions; labels that nobody knows: %v", len(day()), seen)
	}
}

// BenchmarkDay plays the day against the Table and a ready policy.
func BenchmarkDay(b *testing.B) {
	policy := enforced(b, "standard")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sim.Play(table(policy, func([]byte) {}), session.Phases(policy), slices.Values(day())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(day())), "sessions/op")
}
