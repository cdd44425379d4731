package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// topScreens lists the keys to press in each step and a pattern for the resulting screen.
// The golden files are in testdata/top.
var topScreens = []struct {
	golden        string
	width, height int
	keys          []string
	shows         string
}{
	{"start", 80, 24, nil, "live, since 11:00"},
	{"help", 80, 24, []string{"?"}, "keys of"},
	{"evidence", 80, 24, []string{"q", "s"}, "by evidence"},
	{"filter", 80, 24, []string{"/", "s", "h", "o", "d"}, "filter: shod"},
	{"", 80, 24, []string{"Escape"}, "7, by evidence"}, // on its own, because Escape before another key means Alt
	{"refused", 80, 24, []string{"s", "s", "s", "s", "j", "j", "j", "j", "b", "y"}, "scanwatch ban --force"},
	{"question", 80, 24, []string{"k", "b"}, "y/n"},
	{"banned", 80, 24, []string{"y"}, "192.0.2.3 [^\n]*banned.*is banned until"},
	{"revoked", 80, 24, []string{"4", "u", "y"}, "Networks   1\n.*is revoked"},
	{"bans", 80, 24, []string{"x"}, "[?] help"},
	{"rejections", 80, 24, []string{"2"}, "DETAILS"},
	{"why", 80, 24, []string{"1", "g", "Enter"}, "State:"},
	{"large", 140, 40, []string{"q"}, "ORGANISATION"},
	{"hostile", 140, 40, []string{"G", "k", "k"}, "latest events of 203.0.113.77"},
	{"networks", 140, 40, []string{"5"}, "HOSTS"},
	{"events", 140, 40, []string{"3"}, "DETAILS"},
	{"flat", 80, 8, []string{"1"}, "STANDING"},
	{"narrow", 40, 12, nil, `71.6.135.131 +- +10`},
}

// mkTop fills a state directory with an hour's sessions.
func mkTop(dir string) error {
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	id := uint64(0x100)
	add := func(minutes int, src, rdns string, proven bool, c store.Counts, steps ...store.Step) {
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 10*time.Millisecond)
		}
		id++
		end := now.Add(-time.Duration(minutes) * time.Minute)
		r := &store.Record{Start: end.Add(-time.Second), End: end, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort("198.51.100.25:25"),
			RDNS: []byte(rdns), FCrDNS: smtp.FCrDNSFail, Ending: smtp.EndingQuit, Counts: c}
		if proven {
			r.FCrDNS = smtp.FCrDNSPass
		}
		w.Add(end, id, store.AppendRecord(nil, r, b))
	}
	finding := func(evidence, org, confidence string) store.Step {
		return store.Step{Kind: store.KindFinding, Text: []byte(evidence), Org: []byte(org), By: []byte("behaviour"), Confidence: []byte(confidence)}
	}
	rejected := store.Step{Kind: store.KindVerdict, Text: []byte("scanners"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Enforced: true}
	observed := store.Step{Kind: store.KindVerdict, Text: []byte("harvesters"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject}
	for i := range 40 {
		add(59-i, "203.0.113.5:2525", "mail.example.com", true, store.Counts{Mails: 1, RcptOK: 1})
		if i%4 == 0 {
			add(59-i, "71.6.135.131:4711", "census1.shodan.io", true, store.Counts{}, finding("scanner", "Shodan", "high"), rejected)
		}
		if i > 30 {
			for range i {
				add(59-i, fmt.Sprintf("192.0.2.%d:25", 1+i%3), fmt.Sprintf("dyn-%d.pool.example.net", i%3), false, store.Counts{RcptPermfail: 2},
					finding("harvest", "", "medium"), finding("helo-word", "", "low"), observed)
			}
		}
	}
	add(3, "[2001:db8:1:2::7]:4711", "", false, store.Counts{}, finding("rdns-missing", "", "high"))
	return w.Close()
}

// A tmux is a tmux session whose terminal size the test sets and whose screen it reads.
type tmux struct {
	t         *testing.T
	path, dir string
}

func (m *tmux) run(args ...string) string {
	m.t.Helper()
	cmd := exec.Command(m.path, append([]string{"-S", filepath.Join(m.dir, "tmux"), "-f", "/dev/null"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=", "PS1=> ", "NO_COLOR=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// await reads the screen until wanted returns true. The time limit matters only if the test fails.
func (m *tmux) await(what string, wanted func(string) bool) (got string) {
	m.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		got = strings.ReplaceAll(m.run("capture-pane", "-p"), " -s "+filepath.Join(m.dir, "state"), "") // differs in each run
		if wanted(got) {
			return got
		}
	}
	m.t.Fatalf("%s: the screen is\n%s", what, got)
	return ""
}

// shows waits until the screen matches a pattern.
func (m *tmux) shows(text string) {
	m.t.Helper()
	m.await(text, regexp.MustCompile("(?s)"+text).MatchString)
}

// golden waits until the screen matches a pattern, and compares it with a golden file.
// The -update flag rewrites the file.
func (m *tmux) golden(name, text string) {
	m.t.Helper()
	file := filepath.Join("testdata", "top", name+".golden")
	if *update {
		var last string
		last = m.await(name, func(got string) (same bool) {
			same = got == last && regexp.MustCompile("(?s)"+text).MatchString(got)
			last = got
			return same
		})
		if err := os.WriteFile(file, []byte(last), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	m.await(name, func(got string) bool { return got == string(want) })
}

// enter types a line into the shell.
func (m *tmux) enter(line string) {
	m.t.Helper()
	m.run("send-keys", "-l", line)
	m.run("send-keys", "Enter")
}

func (m *tmux) coloured() bool {
	m.t.Helper()
	return regexp.MustCompile(`\x1b\[(\d+;)*3[0-7][;m]`).MatchString(m.run("capture-pane", "-e", "-p"))
}

// newTmux starts a shell in tmux. dir holds TestMain's programs.
func newTmux(t *testing.T, dir string) *tmux {
	t.Helper()
	path, err := exec.LookPath("tmux")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: top is not tried on a terminal: %v; install tmux", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scanwatch", "filter"} { // TestMain chooses the program by file name
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	m := &tmux{t, path, dir}
	m.run("new-session", "-d", "-x", "80", "-y", "24", "sh")
	t.Cleanup(func() { m.run("kill-server") })
	return m
}

// startFilter starts a filter for the tests and returns a function that stops it.
func startFilter(t *testing.T, dir, state string) (stop func()) {
	t.Helper()
	filter := exec.Command(filepath.Join(dir, "filter"), state)
	if err := filter.Start(); err != nil {
		t.Fatal(err)
	}
	for { // until the filter is listening; the time limit of go test ends the loop
		if c, err := control.Dial(state); err == nil {
			c.Close()
			break
		}
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = filter.Process.Signal(os.Interrupt)
			_ = filter.Wait()
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestTopInTmux checks the golden screens in a real terminal. The screen must follow changes of the
// terminal's size, and the terminal must be restored at the end. If the filter restarts, top must
// reconnect.
func TestTopInTmux(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw") // a path short enough for the sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := newTmux(t, dir)
	state := filepath.Join(dir, "state")
	if err := mkTop(state); err != nil {
		t.Fatal(err)
	}
	stop := startFilter(t, dir, state)
	command := func(after string) string {
		return fmt.Sprintf("%s -s %s top; echo status $?; %s", filepath.Join(dir, "scanwatch"), state, after)
	}
	m.enter(command("stty -a | tr -s ' ;' '\\n' | grep -x -e echo -e icanon"))
	for _, s := range topScreens {
		m.run("resize-window", "-x", fmt.Sprint(s.width), "-y", fmt.Sprint(s.height))
		for _, key := range s.keys {
			m.run("send-keys", key)
		}
		if m.shows(s.shows); s.golden != "" {
			m.golden(s.golden, s.shows)
		}
		if s.golden == "start" && !m.coloured() {
			t.Error("without colours")
		}
	}
	m.run("resize-window", "-x", "80", "-y", "24")
	m.run("send-keys", "q")
	m.await("the end", func(got string) bool {
		return strings.Contains(got, "status 0\nicanon\necho\n") && !strings.Contains(got, "SOURCE")
	})
	m.enter("clear; NO_COLOR=1 " + command(""))
	m.shows("live, since")
	m.shows("example.com")
	if m.coloured() {
		t.Error("with colours, although there is NO_COLOR")
	}
	m.run("send-keys", "C-z")
	m.await("the shell", func(got string) bool { return strings.Contains(got, "Stopped") && !strings.Contains(got, "SOURCE") })
	m.enter("fg; echo status $?")
	m.shows("live, since")
	stop()
	m.shows("not connected, only records")
	m.shows("connecting again every 2s")
	m.shows("example.com")
	startFilter(t, dir, state)
	m.shows("live, since")
	m.run("send-keys", "C-c")
	m.shows("status 0")
}
