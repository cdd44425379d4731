package live

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/store"
	"scanwatch/tests/hostiletext"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is the time of these tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// topStatus returns the status of the filter of these tests.
func topStatus() *control.Status {
	return &control.Status{Live: control.Live{Sessions: 12, Delayed: 3}, Config: control.Config{Mode: "enforce", Rules: 7},
		Store: store.Status{Added: 4711, Quarantined: 1}}
}

// recordedStream returns a stream of events that a filter has sent.
func recordedStream(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// recordedView returns a view with all of the recorded stream.
func recordedView(t *testing.T) *View {
	t.Helper()
	v := NewView(time.UTC, "")
	v.setStatus(now, topStatus(), nil)
	for line := range bytes.Lines(recordedStream(t)) {
		e, missing, err := events.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		v.event(now, &e, missing)
	}
	return v
}

// drawn returns the screen of v as tmux captures it.
func drawn(v *View, width, height int) string {
	var b strings.Builder
	for _, row := range v.screen(width, height, now, true) {
		b.WriteString(strings.TrimRight(row.text, " ") + "\n")
	}
	return b.String()
}

// topScreens contains keys that are pressed one after the other, with the golden file
// of the resulting screen.
var topScreens = []struct {
	golden        string
	width, height int
	keys          string
}{
	{"start", 80, 24, ""},
	{"findings", 80, 24, "s"},
	{"evidence", 80, 24, "e"},
	{"help", 80, 24, "?"},
	{"paused", 80, 24, "xp"},
	{"narrow", 60, 24, "peeeee"},
	{"large", 132, 40, ""},
	{"flat", 80, 8, ""},
}

// TestTopScreens checks the golden screens, and that no line is wider than the
// terminal.
func TestTopScreens(t *testing.T) {
	v := recordedView(t)
	screen := tcell.NewSimulationScreen("UTF-8")
	if err := screen.Init(); err != nil {
		t.Fatal(err)
	}
	defer screen.Fini()
	for _, s := range topScreens {
		for _, key := range s.keys {
			if !handleKey(screen, v, tcell.NewEventKey(tcell.KeyRune, key, 0), now) {
				t.Fatalf("%c ended the view", key)
			}
		}
		got := drawn(v, s.width, s.height)
		if n := strings.Count(got, "\n"); n != s.height {
			t.Errorf("%s: %d lines, want %d", s.golden, n, s.height)
		}
		for line := range strings.Lines(got) {
			if n := len([]rune(line)) - 1; n > s.width {
				t.Errorf("%s: %d columns: %s", s.golden, n, line)
			}
		}
		name := filepath.Join("testdata", s.golden+".golden")
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%swant\n%s", name, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	var r rate
	for _, step := range []struct {
		at            int // seconds
		add           uint64
		total, minute uint64
	}{
		{0, 2, 2, 2}, {0, 1, 3, 3}, {30, 5, 8, 8}, {59, 0, 8, 8}, {60, 0, 8, 5}, {89, 1, 9, 6}, {90, 0, 9, 1},
		{80, 1, 10, 2}, // the clock steps back
		{1000, 0, 10, 0}, {1 << 30, 1, 11, 1},
	} {
		at := time.Unix(1e9+int64(step.at), 0)
		r.add(at, step.add)
		if r.total != step.total || r.minute(at) != step.minute {
			t.Errorf("after %d s: %d, %d/min, want %d, %d/min", step.at, r.total, r.minute(at), step.total, step.minute)
		}
	}
}

func TestSourceName(t *testing.T) {
	for _, test := range []struct {
		src    netip.Addr
		prefix string
		want   string
	}{
		{netip.MustParseAddr("192.0.2.1"), "", "192.0.2.1"},
		{netip.MustParseAddr("::ffff:192.0.2.1"), "", "192.0.2.1"},
		{netip.MustParseAddr("2001:db8::1"), "2001:db8::/48", "2001:db8::/64"},
		{netip.Addr{}, "2001:db8::1/128", "2001:db8::/64"},
		{netip.Addr{}, "192.0.2.1/32", "192.0.2.1"},
		{netip.Addr{}, "192.0.2.1/24", "192.0.2.0/24"},
		{netip.Addr{}, "no prefix", "no prefix"},
		{netip.Addr{}, "", "local"},
	} {
		if got := sourceName(&events.Event{Src: test.src, Prefix: test.prefix}); got != test.want {
			t.Errorf("%v, %q: %q, want %q", test.src, test.prefix, got, test.want)
		}
	}
}

// TestTopIsBounded checks that a view is bounded for any number of clients, and that it
// counts evictions.
func TestTopIsBounded(t *testing.T) {
	v := NewView(time.UTC, "")
	send := func(i int) {
		v.event(now, &events.Event{Event: "finding", Time: now.Add(time.Duration(i) * time.Second), Evidence: fmt.Sprintf("kind-%d", i%100),
			Src: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}, 0)
	}
	const many = maxSources + 1000
	for i := range many {
		send(i)
	}
	if len(v.sources) != maxSources || v.evicted != 1000 || v.sources["198.18.0.0"] != nil {
		t.Errorf("%d sources, %d evicted", len(v.sources), v.evicted)
	}
	if len(v.events) != maxEvents || len(v.kinds) != maxKinds {
		t.Errorf("%d events, %d kinds", len(v.events), len(v.kinds))
	}
	v.pause(now)
	for i := range maxPaused + 10 {
		send(i)
	}
	if len(v.pending) != maxPaused || v.missed != 10 || v.findings.total != many {
		t.Errorf("%d events held, %d missed, %d counted", len(v.pending), v.missed, v.findings.total)
	}
	v.pause(now)
	if len(v.pending) != 0 || v.findings.total != many+maxPaused {
		t.Errorf("%d events held, %d counted after the pause", len(v.pending), v.findings.total)
	}
	v.status = topStatus()
	for range 20 {
		v.status.Config.Notes = append(v.status.Config.Notes, "note")
	}
	if n := len(v.problems()); n != 5 {
		t.Errorf("%d problems are shown", n)
	}
}

// TestTopNasty checks that no text from the network controls the terminal, on
// screens of any size.
func TestTopNasty(t *testing.T) {
	v := NewView(time.UTC, "")
	for _, e := range hostiletext.Events(now) {
		v.event(now, &e, 0)
	}
	for _, text := range hostiletext.Texts() {
		s := topStatus()
		s.Config.Mode, s.Config.Problem, s.Store.Error = text.Text, text.Text, text.Text
		v.setStatus(now, s, nil)
		v.setStatus(now, nil, errors.New(text.Text))
		for _, size := range [][2]int{{80, 24}, {132, 300}, {1, 1}, {0, 0}, {30, 3}} {
			if err := hostiletext.Terminal([]byte(drawn(v, size[0], size[1]))); err != nil {
				t.Errorf("%s, %d columns: %v", text.Name, size[0], err)
			}
		}
	}
}

// BenchmarkTop measures an event and a screen with full tables.
func BenchmarkTop(b *testing.B) {
	v := NewView(time.UTC, "")
	v.setStatus(now, topStatus(), nil)
	i := 0
	send := func() {
		i++
		v.event(now, &events.Event{Event: "finding", Time: now.Add(time.Duration(i)), Evidence: "harvest", Confidence: "high",
			Src: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), Proof: "12 recipients unknown"}, 0)
	}
	for range maxSources {
		send()
	}
	b.Run("event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			send()
		}
	})
	b.Run("screen", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v.screen(132, 40, now, true)
		}
	})
}

// A fini notes whether the terminal was restored.
type fini struct {
	tcell.SimulationScreen
	done bool
}

func (f *fini) Fini() {
	f.done = true
	f.SimulationScreen.Fini()
}

// TestTopGivesBack checks that the terminal is restored after any end.
func TestTopGivesBack(t *testing.T) {
	gone := errors.New("the filter has ended")
	for _, test := range []struct {
		name string
		do   func(s tcell.SimulationScreen, news chan<- Update, stop func())
		now  func() time.Time
		want any
	}{
		{"quit", func(s tcell.SimulationScreen, _ chan<- Update, _ func()) { s.InjectKey(tcell.KeyRune, 'q', 0) }, nil, nil},
		{"interrupt", func(s tcell.SimulationScreen, _ chan<- Update, _ func()) { s.InjectKey(tcell.KeyCtrlC, 0, 0) }, nil, nil},
		{"signal", func(_ tcell.SimulationScreen, _ chan<- Update, stop func()) { stop() }, nil, nil},
		{"end of the filter", func(_ tcell.SimulationScreen, news chan<- Update, _ func()) { news <- Update{ended: gone} }, nil, gone},
		{"panic", func(s tcell.SimulationScreen, _ chan<- Update, _ func()) { s.InjectKey(tcell.KeyRune, 's', 0) },
			func() time.Time { panic("oops") }, "oops"},
	} {
		t.Run(test.name, func(t *testing.T) {
			screen := &fini{SimulationScreen: tcell.NewSimulationScreen("UTF-8")}
			if err := screen.Init(); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			if test.now == nil {
				test.now = func() time.Time { return now }
			}
			news := make(chan Update, 1)
			test.do(screen, news, stop)
			got := func() (got any) {
				defer func() {
					if p := recover(); p != nil {
						got = p
					}
				}()
				if err := runScreen(ctx, screen, NewView(time.UTC, ""), news, test.now); err != nil {
					return err
				}
				return nil
			}()
			if got != test.want || !screen.done {
				t.Errorf("got %v, want %v; restored: %v", got, test.want, screen.done)
			}
		})
	}
}
