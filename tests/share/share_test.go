//go:build linux

package share

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// companionUser is the companions' user ID. The user needs no name.
const companionUser = 54321

// A server is a Valkey or Redis server that stores no data on disk.
type server struct {
	t    *testing.T
	args []string // the command
	more []string // further arguments of redis-cli
	port int
	cmd  *exec.Cmd
}

// servers lists the commands that start a server, each with a separate directory.
var servers = map[string]func(*testing.T) []string{
	"redis": func(t *testing.T) []string {
		return []string{require.Program(t, "redis-server"), "--dir", t.TempDir()}
	},
	"valkey": func(t *testing.T) []string {
		root := smtpd.RootDir("trixie")
		if _, err := os.Stat(filepath.Join(root, "usr/bin/valkey-server")); err != nil {
			require.Missing(t, "%v", err)
		}
		dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "valkey")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return []string{"chroot", root, "valkey-server", "--dir", filepath.Join("/tmp", filepath.Base(dir))}
	},
}

func newServer(t *testing.T, kind string, more ...string) *server {
	t.Helper()
	s := &server{t: t, port: freePort(t)}
	s.args = append(servers[kind](t), "--bind", "127.0.0.1", "--port", fmt.Sprint(s.port), "--save", "", "--appendonly", "no")
	s.args = append(s.args, more...)
	s.start()
	t.Cleanup(s.stop)
	return s
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	filterproc.Eventually(s.t, "the server listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (s *server) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// A host is a filter with a companion.
type host struct {
	t               *testing.T
	name            string
	state, run, etc string
	filter          *filterproc.Program
	companion       *exec.Cmd
	log             func() string
	session         int // number of sessions
}

// A fleet is a group of hosts that share their state.
type fleet struct {
	t      *testing.T
	dir    string
	server *server
	to     string // server in the configuration, with its options
	key    string
	print  string // the key's fingerprint
}

func newFleet(t *testing.T, s *server) *fleet {
	t.Helper()
	require.Full(t)
	if os.Geteuid() != 0 {
		require.Missing(t, "the test needs root")
	}
	f := &fleet{t: t, dir: t.TempDir()}
	if s != nil {
		f.server, f.to = s, fmt.Sprintf("\"valkey://127.0.0.1:%d\"", s.port)
	}
	for _, dir := range []string{filepath.Dir(f.dir), f.dir, filepath.Dir(smtpd.Bin("scanwatch"))} {
		if err := os.Chmod(dir, 0o755); err != nil { // the companions need access
			t.Fatal(err)
		}
	}
	f.key = f.newKey("fleet.key")
	out, err := exec.Command(smtpd.Bin("scanwatch"), "key", "--show", f.key).Output()
	if err != nil {
		t.Fatal(err)
	}
	if f.print, _, _ = strings.Cut(string(out), " "); s != nil {
		f.claimed(time.Unix(1, 0))
	}
	return f
}

func (f *fleet) newKey(name string) string {
	f.t.Helper()
	key := filepath.Join(f.dir, name)
	if out, err := exec.Command(smtpd.Bin("scanwatch"), "key", key).CombinedOutput(); err != nil {
		f.t.Fatalf("%v: %s", err, out)
	}
	return key
}

// claimed sets the fleet's key in the server, as if a host had set it at the given time. The
// members of a new fleet wait for each other after that time.
func (f *fleet) claimed(at time.Time) {
	f.t.Helper()
	if out := f.server.cli("set", "{scanwatch}:key", fmt.Sprint(f.print, " ", at.Unix())); out != "OK\n" {
		f.t.Fatal(out)
	}
}

// alone starts a host without a companion.
func (f *fleet) alone(name string) *host {
	f.t.Helper()
	h := &host{t: f.t, name: name, state: filepath.Join(f.dir, name), etc: filepath.Join(f.dir, name+".conf")}
	h.configure(fmt.Sprintf("mode enforce\nfleet %q key %q\n", name, f.key))
	h.startFilter()
	return h
}

// host starts a host. The lines in more are added to the configuration.
func (f *fleet) host(name, more string) *host {
	f.t.Helper()
	h := &host{t: f.t, name: name, state: filepath.Join(f.dir, name), run: filepath.Join(f.dir, name+".run"), etc: filepath.Join(f.dir, name+".conf")}
	if err := os.Mkdir(h.run, 0o755); err != nil {
		f.t.Fatal(err)
	}
	h.configure(fmt.Sprintf("mode enforce\nrundir %q\nfleet %q key %q\ncompanion share user %d to %s\n%s", h.run, name, f.key, companionUser, f.to, more))
	h.startFilter()
	h.startCompanion()
	return h
}

func (h *host) configure(text string) {
	h.t.Helper()
	if err := os.WriteFile(h.etc, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) startFilter() {
	h.t.Helper()
	h.filter = filterproc.Start(h.t, "-s", h.state, "-f", h.etc)
	filterproc.Eventually(h.t, "the filter answers", cli.Flushes(h.state))
}

func (h *host) startCompanion() {
	h.t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), "share", "-f", h.etc)
	h.log = filterproc.LogFile(h.t, cmd)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.companion = cmd
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("log of %s:\n%s\n%s", h.name, h.log(), h.scanwatch("status"))
		}
	})
}

func (h *host) scanwatch(args ...string) string {
	h.t.Helper()
	return cli.Run(h.t, h.state, append(args, "-f", h.etc)...)
}

// play plays a session and returns the answers to its requests.
func (h *host) play(g filterproc.Guest) (answers []string) {
	h.t.Helper()
	h.session++
	g.ID = h.session
	w := bufio.NewWriter(h.filter.Server)
	_, requests := g.Stream(w, time.Now().UnixMicro(), h.filter.Asked)
	if err := w.Flush(); err != nil {
		h.t.Fatal(err)
	}
	for range requests {
		fields := strings.SplitN(strings.TrimSpace(h.filter.Line()), "|", 4)
		answers = append(answers, fields[len(fields)-1])
	}
	return answers
}

// come plays a session from src, and returns the answer to its connection.
func (h *host) come(src string) string {
	h.t.Helper()
	return h.play(filterproc.Guest{Src: src, Port: 25, Helo: "mx.example.net"})[0]
}

func (h *host) turnsAway(src string) func() bool {
	return func() bool { return strings.Contains(h.come(src), "Banned until") }
}

func (h *host) lets(src string) func() bool {
	return func() bool { return h.come(src) == "proceed" }
}

func (h *host) problem(text string) func() bool {
	return func() bool { return strings.Contains(h.scanwatch("status"), text) }
}

func TestBans(t *testing.T) {
	for kind := range servers {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, newServer(t, kind))
			a, b, c := f.host("mx1", ""), f.host("mx2", ""), f.host("mx3", "")
			a.scanwatch("ban", "--force", "--for", "1h", "--reason", "too many", "198.51.100.7")
			a.scanwatch("ban", "--force", "--for", "1h", "--reason", "too many", "198.51.100.7")
			for _, h := range []*host{a, b, c} {
				filterproc.Eventually(t, h.name+" rejects the client", h.turnsAway("198.51.100.7"))
			}
			c.scanwatch("unban", "198.51.100.7")
			for _, h := range []*host{a, b, c} {
				filterproc.Eventually(t, h.name+" lets the client in", h.lets("198.51.100.7"))
			}
			f.server.stop()
			b.scanwatch("ban", "--force", "--for", "1h", "--reason", "while the server is away", "198.51.100.8")
			b.filter.End(0)
			b.startFilter()
			f.server.start()
			f.claimed(time.Unix(1, 0))
			for _, h := range []*host{a, b, c} {
				filterproc.Eventually(t, h.name+" rejects the client", h.turnsAway("198.51.100.8"))
			}
			d := f.host("mx4", "") // a new host
			filterproc.Eventually(t, "the newcomer rejects the client", d.turnsAway("198.51.100.8"))
			a.scanwatch("share", "drop", "mx2")
			filterproc.Eventually(t, "mx1 lets the client in", a.lets("198.51.100.8"))
			if !c.turnsAway("198.51.100.8")() {
				t.Fatal("mx3 has also dropped the rows of mx2")
			}
		})
	}
}

// TestFacts exchanges files between hosts without a server.
func TestFacts(t *testing.T) {
	f := newFleet(t, nil)
	a, b := f.alone("mx1"), f.alone("mx2")
	a.scanwatch("ban", "--force", "--for", "1h", "198.51.100.7")
	file := filepath.Join(f.dir, "mx1.facts")
	if out := a.scanwatch("facts", "export", "-o", file); out != "1 row written to "+file+"\n" {
		t.Fatal(out)
	}
	b.scanwatch("facts", "import", file)
	if !b.turnsAway("198.51.100.7")() {
		t.Fatal("mx2 lets the client in")
	}
	b.scanwatch("unban", "198.51.100.7")
	back := filepath.Join(f.dir, "mx2.facts")
	b.scanwatch("facts", "export", "-o", back)
	a.scanwatch("facts", "import", back)
	b.scanwatch("facts", "import", file) // the old file must not restore the ban
	for _, h := range []*host{a, b} {
		if !h.lets("198.51.100.7")() {
			t.Fatal(h.name, "rejects the client")
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, damaged := range map[string][]byte{
		"changed": bytes.Replace(text, []byte("mx1"), []byte("mx3"), 1), "cut": text[:len(text)-10], "another file": []byte("x\n"), "empty": nil, "more": append(slices.Clone(text), text...),
	} {
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(smtpd.Bin("scanwatch"), "facts", "import", file, "-f", b.etc, "-s", b.state).CombinedOutput(); err == nil || !strings.Contains(string(out), file+": ") {
			t.Errorf("%s: %v %s", what, err, out)
		}
	}
}

func TestWrongKey(t *testing.T) {
	f := newFleet(t, newServer(t, "redis"))
	a := f.host("mx1", "")
	filterproc.Eventually(t, "mx1 shares", a.problem("companion share: running, 0 entries, last success"))
	f.key = f.newKey("other.key")
	b := f.host("mx2", "")
	filterproc.Eventually(t, "mx2 names the problem", b.problem("the other hosts use a different fleet key"))
}
