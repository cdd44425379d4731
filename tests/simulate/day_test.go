package simulate_test

import (
	"cmp"
	"flag"
	"fmt"
	"iter"
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

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

var (
	update = flag.Bool("update", false, "rewrite the golden files")
	seed   = flag.Uint64("seed", 1, "play another day than the golden one")
)

var lists = simulate.Lists

// enforced returns a preset policy in enforce mode.
func enforced(t testing.TB, name string) *rules.Policy {
	t.Helper()
	text, err := simulate.PresetText(name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := simulate.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return p.InMode(rules.Enforce)
}

// table returns a Filter with the given policy and memory, either of which may be nil.
func table(policy *rules.Policy, m *memory.Memory, log func([]byte)) *simulate.Filter {
	t := simulate.NewFilter(filter.Options{
		Record:   func(time.Time, uint64, []byte) {},
		Log:      log,
		Lists:    lists,
		Memory:   m,
		OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	if policy != nil {
		t.Use(&filter.Settings{Policy: policy})
	}
	return t
}

// A tally counts the outcomes of sessions with the same label.
type tally struct {
	sessions, mails, junked, turned, rcpts, disconnected int
	texts                                                map[string]int // rejections by text
}

// varying matches the parts of a reply that are different in each session.
var varying = regexp.MustCompile(` \[[0-9a-f]{16}\]|\d{4}-\d\d-\d\d \d\d:\d\d UTC `)

func tallies(outcomes []simulate.Outcome) map[string]*tally {
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

// day returns the same busy day for all tests.
var day = sync.OnceValue(func() []simulate.Session { return slices.Collect(simulate.Day(*seed, daySize)) })

// learned returns a memory that observed the sessions of a day a week ago.
func learned(t *testing.T, name string, sessions iter.Seq[simulate.Session]) *memory.Memory {
	m := memory.New()
	m.UseKey([16]byte{1}) // the estimates of Recipients.Balance depend on the key
	policy := enforced(t, name).InMode(rules.Observe)
	h := table(policy, m, func([]byte) {})
	earlier := func(yield func(simulate.Session) bool) {
		for s := range sessions {
			if s.Start = s.Start.AddDate(0, 0, -7); !yield(s) {
				return
			}
		}
	}
	if _, err := simulate.Play(h, smtpd.Requests(filter.Phases(policy)), earlier); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDay checks the presets in enforce mode, on a busy day of legitimate clients. The memory is
// empty, or it has observed one day, because presets start in observe mode. After a day in observe
// mode, the standard preset must not reject any client. The outcomes must match
// testdata/day.golden. With -seed, the test plays another day and logs the outcomes.
func TestDay(t *testing.T) {
	free, err := simulate.Play(idle{}, nil, slices.Values(day()))
	if err != nil {
		t.Fatal(err)
	}
	offered := tallies(free)
	var b strings.Builder
	fmt.Fprintf(&b, "A busy day of legitimate clients: %d sessions.\n", len(free))
	for _, tt := range []struct {
		name, state string
		memory      *memory.Memory
		all         bool // every client must be accepted
	}{
		{"standard", "after a day of observation", learned(t, "standard", slices.Values(day())), true},
		{"tight", "after a day of observation", learned(t, "tight", slices.Values(day())), false},
		{"standard", "from an empty memory", nil, false},
		{"tight", "from an empty memory", nil, false},
	} {
		policy := enforced(t, tt.name)
		var log []string
		h := table(policy, tt.memory, func(line []byte) { log = append(log, string(line)) })
		out, err := simulate.Play(h, smtpd.Requests(filter.Phases(policy)), slices.Values(day()))
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != len(free) || h.Open() != 0 {
			t.Errorf("%s: %d outcomes of %d sessions, %d still open", tt.name, len(out), len(free), h.Open())
		}
		got := tallies(out)
		fmt.Fprintf(&b, "\n%s, %s\n", tt.name, tt.state)
		write(&b, offered, got)
		if !tt.all {
			continue
		}
		for label, y := range got {
			for _, text := range slices.Sorted(maps.Keys(y.texts)) {
				if !strings.HasPrefix(text, "rcpt-to: 450 ") { // 450 is for recipients that do not exist, see below
					t.Errorf("%s rejected %d times %s, at %s", tt.name, y.texts[text], label, text)
				}
			}
			if y.mails != offered[label].mails || y.rcpts != offered[label].rcpts {
				t.Errorf("%s: %d of %d messages of %s accepted, for %d of %d recipients", tt.name, y.mails, offered[label].mails, label, y.rcpts, offered[label].rcpts)
			}
		}
		if t.Failed() {
			for _, line := range log {
				if strings.HasPrefix(line, "session decision=") || strings.HasPrefix(line, "banned") {
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

// write prints the table for one policy.
func write(b *strings.Builder, offered, got map[string]*tally) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "label\tsessions\tturned away\tmessages\tdelivered\tas junk\trecipients\taccepted\t")
	var texts []string
	total := [7]int{}
	for _, label := range simulate.Labels() {
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

// TestDayHasEveryKind checks that the day has clients of every kind, with the right
// recipients.
func TestDayHasEveryKind(t *testing.T) {
	seen := make(map[string]int)
	for _, s := range day() {
		seen[s.Label]++
		if d := s.Start.Sub(simulate.Midnight); d < 0 || d > 25*time.Hour { // a retry may start later
			t.Errorf("%s begins at %v", s.Label, s.Start)
		}
		for _, st := range s.Steps {
			if st.Kind != simulate.Rcpt || s.Label == "submission" || s.Label == "nat-office" {
				continue
			}
			local, domain, _ := strings.Cut(st.Text, "@")
			local, _, _ = strings.Cut(local, "+")
			if domain != simulate.Domain || (st.Fate == simulate.Unknown) == simulate.Exists(local) {
				t.Fatalf("%s: %s has fate %d", s.Label, st.Text, st.Fate)
			}
		}
	}
	for _, label := range simulate.Labels() {
		if seen[label] == 0 {
			t.Errorf("no session has the label %s", label)
		}
		delete(seen, label)
	}
	if len(seen) > 0 || len(day()) < daySize*9/10 || len(day()) > daySize*11/10 {
		t.Errorf("%d sessions; unknown labels: %v", len(day()), seen)
	}
}

// BenchmarkDay measures the time to play the day with the preset standard.
func BenchmarkDay(b *testing.B) {
	policy := enforced(b, "standard")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := simulate.Play(table(policy, nil, func([]byte) {}), smtpd.Requests(filter.Phases(policy)), slices.Values(day())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(day())), "sessions/op")
}
