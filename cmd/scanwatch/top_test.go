package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/store"
	"scanwatch/tests/nasty"
)

// topStatus is what the filter of these tests says of itself.
func topStatus() *control.Status {
	return &control.Status{Live: control.Live{Sessions: 12, Held: 3}, Config: control.Config{Mode: "enforce", Rules: 7},
		Store: store.Status{Added: 4711, Damaged: 1}}
}

// recordedStream is the stream of testdata/top, as a filter has sent it.
func recordedStream(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/top/events.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// recordedView has seen all of the recorded stream.
func recordedView(t *testing.T) *topView {
	t.Helper()
	v := newTopView(time.UTC, "")
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

// drawn is what v draws, as tmux captures it.
func drawn(v *topView, width, height int) string {
	var b strings.Builder
	for _, row := range v.screen(width, height, now, true) {
		b.WriteString(strings.TrimRight(row.text, " ") + "\n")
	}
	return b.String()
}

// topScreens are what is done in front of the recorded stream, one after the
// other, and the golden file of what is seen then.
var topScreens = []struct {
	golden        string
	width, height int
	keys          string
}{
	{"start", 80, 24, ""},
	{"found", 80, 24, "s"},
	{"evidence", 80, 24, "e"},
	{"help", 80, 24, "?"},
	{"paused", 80, 24, "xp"},
	{"narrow", 60, 24, "peeeee"},
	{"large", 132, 40, ""},
	{"flat", 80, 8, ""},
}

// TestTopScreens: the golden screens, and no line is wider than the terminal.
func TestTopScreens(t *testing.T) {
	v := recordedView(t)
	screen := tcell.NewSimulationScreen("UTF-8")
	if err := screen.Init(); err != nil {
		t.Fatal(err)
	}
	defer screen.Fini()
	for _, s := range topScreens {
		for _, key := range s.keys {
			if !topKey(screen, v, tcell.NewEventKey(tcell.KeyRune, key, 0), now) {
				t.Fatalf("%c has ended it", key)
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
		name := filepath.Join("testdata", "top", s.golden+".golden")
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
		{80, 1, 10, 2}, // the clock went back
		{1000, 0, 10, 0}, {1 << 30, 1, 11, 1},
	} {
		at := time.Unix(1e9+int64(step.at), 0)
		r.add(at, step.add)
		if r.total != step.total || r.minute(at) != step.minute {
			t.Errorf("after %d s: %d, %d/min, want %d, %d/min", step.at, r.total, r.minute(at), step.total, step.minute)
		}
	}
}

func TestTopName(t *testing.T) {
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
		if got := topName(&events.Event{Src: test.src, Prefix: test.prefix}); got != test.want {
			t.Errorf("%v, %q: %q, want %q", test.src, test.prefix, got, test.want)
		}
	}
}

// TestTopIsBounded: what strangers do does not make it grow without end, and
// what it gives up it tells.
func TestTopIsBounded(t *testing.T) {
	v := newTopView(time.UTC, "")
	send := func(i int) {
		v.event(now, &events.Event{Event: "finding", Time: now.Add(time.Duration(i) * time.Second), Evidence: fmt.Sprintf("kind-%d", i%100),
			Src: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}, 0)
	}
	const many = topSources + 1000
	for i := range many {
		send(i)
	}
	if len(v.sources) != topSources || v.forgot != 1000 || v.sources["198.18.0.0"] != nil {
		t.Errorf("%d sources, %d forgotten", len(v.sources), v.forgot)
	}
	if len(v.events) != topEvents || len(v.kinds) != topKinds {
		t.Errorf("%d events, %d kinds", len(v.events), len(v.kinds))
	}
	v.pause(now)
	for i := range topHeld + 10 {
		send(i)
	}
	if len(v.held) != topHeld || v.missed != 10 || v.findings.total != many {
		t.Errorf("%d events held, %d missed, %d counted", len(v.held), v.missed, v.findings.total)
	}
	v.pause(now)
	if len(v.held) != 0 || v.findings.total != many+topHeld {
		t.Errorf("%d events held, %d counted after the pause", len(v.held), v.findings.total)
	}
	v.status = topStatus()
	for range 20 {
		v.status.Config.Notes = append(v.status.Config.Notes, "note")
	}
	if n := len(v.problems()); n != 5 {
		t.Errorf("%d problems are shown", n)
	}
}

// TestTopNasty: nothing of a stranger does anything to the terminal, on any
// screen however small.
func TestTopNasty(t *testing.T) {
	v := newTopView(time.UTC, "")
	for _, e := range nastyEvents() {
		v.event(now, &e, 0)
	}
	for _, text := range nasty.Texts() {
		s := topStatus()
		s.Config.Mode, s.Config.Problem, s.Store.Error = text.Text, text.Text, text.Text
		v.setStatus(now, s, nil)
		v.setStatus(now, nil, errors.New(text.Text))
		for _, size := range [][2]int{{80, 24}, {132, 300}, {1, 1}, {0, 0}, {30, 3}} {
			if err := nasty.Terminal([]byte(drawn(v, size[0], size[1]))); err != nil {
				t.Errorf("%s, %d columns: %v", text.Name, size[0], err)
			}
		}
	}
}

// BenchmarkTop: an event with all tables full, and a screen of them.
func BenchmarkTop(b *testing.B) {
	v := newTopView(time.UTC, "")
	v.setStatus(now, topStatus(), nil)
	i := 0
	send := func() {
		i++
		v.event(now, &events.Event{Event: "finding", Time: now.Add(time.Duration(i)), Evidence: "harvest", Confidence: "high",
			Src: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), Proof: "12 recipients unknown"}, 0)
	}
	for range topSources {
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

// fini tells whether the terminal was given back.
type fini struct {
	tcell.SimulationScreen
	done bool
}

func (f *fini) Fini() {
	f.done = true
	f.SimulationScreen.Fini()
}

// TestTopGivesBack: however it ends, the terminal is as before.
func TestTopGivesBack(t *testing.T) {
	gone := errors.New("the filter has ended")
	for _, test := range []struct {
		name string
		do   func(s tcell.SimulationScreen, news chan<- topNews, stop func())
		now  func() time.Time
		want any
	}{
		{"quit", func(s tcell.SimulationScreen, _ chan<- topNews, _ func()) { s.InjectKey(tcell.KeyRune, 'q', 0) }, nil, nil},
		{"interrupt", func(s tcell.SimulationScreen, _ chan<- topNews, _ func()) { s.InjectKey(tcell.KeyCtrlC, 0, 0) }, nil, nil},
		{"signal", func(_ tcell.SimulationScreen, _ chan<- topNews, stop func()) { stop() }, nil, nil},
		{"end of the filter", func(_ tcell.SimulationScreen, news chan<- topNews, _ func()) { news <- topNews{ended: gone} }, nil, gone},
		{"panic", func(s tcell.SimulationScreen, _ chan<- topNews, _ func()) { s.InjectKey(tcell.KeyRune, 's', 0) },
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
			news := make(chan topNews, 1)
			test.do(screen, news, stop)
			got := func() (got any) {
				defer func() {
					if p := recover(); p != nil {
						got = p
					}
				}()
				if err := topScreen(ctx, screen, newTopView(time.UTC, ""), news, test.now); err != nil {
					return err
				}
				return nil
			}()
			if got != test.want || !screen.done {
				t.Errorf("got %v, want %v; given back: %v", got, test.want, screen.done)
			}
		})
	}
}

// TestTopInTmux: a real terminal shows the golden screens, follows its size, and
// is given back.
func TestTopInTmux(t *testing.T) {
	tmux, err := exec.LookPath("tmux")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: top is not tried on a terminal: %v; install tmux", err)
	}
	dir, err := os.MkdirTemp("", "sw") // a short name for the sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	stream := recordedStream(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		(&control.Server{Verbs: []control.Verb{
			control.StatusVerb(func() control.Status { return *topStatus() }),
			{Name: "watch", Args: 2, Run: func(ctx context.Context, a *control.Answer, _ []string) error {
				if err := a.JSON(struct{}{}); err != nil {
					return err
				}
				_, err := a.Write(stream)
				<-ctx.Done()
				return err
			}},
		}}).Run(ctx, dir, time.Second)
	}()
	defer func() { stop(); <-served }()
	for { // until it listens; go test's own limit ends this
		if c, err := control.Dial(dir); err == nil {
			c.Close()
			break
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test program does what the name of the file says; see TestMain.
	if err := os.Symlink(self, filepath.Join(dir, "scanwatch")); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(tmux, append([]string{"-S", filepath.Join(dir, "tmux"), "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=", "PS1=> ", "NO_COLOR=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// await asks until the screen is as wanted. The limit is only for what is
	// broken.
	await := func(what string, wanted func(string) bool) {
		t.Helper()
		var got string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
			if got = run("capture-pane", "-p"); wanted(got) {
				return
			}
		}
		t.Fatalf("%s never came; there is\n%s", what, got)
	}
	shows := func(name string) {
		t.Helper()
		want, err := os.ReadFile(filepath.Join("testdata", "top", name+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		await(name, func(got string) bool { return got == string(want) })
	}
	coloured := func() bool {
		return regexp.MustCompile(`\x1b\[(\d+;)*3[0-7][;m]`).MatchString(run("capture-pane", "-e", "-p"))
	}
	command := func(after string) string {
		return fmt.Sprintf("%s -s %s top; echo status $?; %s", filepath.Join(dir, "scanwatch"), dir, after)
	}
	run("new-session", "-d", "-x", "80", "-y", "24", "sh")
	defer run("kill-server")
	run("send-keys", "-l", command("stty -a | tr -s ' ;' '\\n' | grep -x -e echo -e icanon"))
	run("send-keys", "Enter")
	for _, s := range topScreens {
		run("resize-window", "-x", fmt.Sprint(s.width), "-y", fmt.Sprint(s.height))
		for _, key := range s.keys {
			run("send-keys", "-l", string(key))
		}
		shows(s.golden)
		if s.golden == "start" && !coloured() {
			t.Error("without colours")
		}
	}
	run("resize-window", "-x", "80", "-y", "24")
	run("send-keys", "q")
	await("the end", func(got string) bool {
		return strings.Contains(got, "status 0\nicanon\necho\n") && !strings.Contains(got, "SOURCE")
	})
	// The filter ends.
	run("send-keys", "-l", "clear; NO_COLOR=1 "+command(""))
	run("send-keys", "Enter")
	shows("start")
	if coloured() {
		t.Error("with colours, although there is NO_COLOR")
	}
	run("send-keys", "C-z")
	await("the shell", func(got string) bool { return strings.Contains(got, "Stopped") && !strings.Contains(got, "SOURCE") })
	run("send-keys", "-l", "fg; echo status $?")
	run("send-keys", "Enter")
	shows("start")
	stop()
	await("the end of the filter", func(got string) bool {
		return strings.Contains(got, "scanwatch: the filter has ended") && strings.Contains(got, "status 1\n")
	})
}
