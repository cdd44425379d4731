//go:build linux

package smtpd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Main(m, "scanwatch/tests/internal/smtpd/recorder", "scanwatch/tests/teefilter")
}

// eachVersion runs a test on each version in Matrix.
func eachVersion(t *testing.T, test func(*testing.T, Version)) {
	for _, v := range Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			Require(t, v)
			test(t, v)
		})
	}
}

func mustStart(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// recorder returns a filter that writes its input to a file in the state directory.
func recorder(file string, phases ...string) Filter {
	return Filter{
		Path: Bin("recorder"),
		Args: []string{"-out", StateDir + "/" + file, "-phases", strings.Join(phases, ",")},
	}
}

func readState(t *testing.T, s *Server, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.State(), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// waitDisconnects waits until the filter has seen n disconnects.
func waitDisconnects(t *testing.T, s *Server, file string, n int) {
	t.Helper()
	err := s.Eventually(fmt.Sprintf("%d sessions have ended", n), func() bool {
		return strings.Count(readState(t, s, file), "|link-disconnect|") >= n
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, readState(t, s, file))
	}
}

// playable returns the scenarios that v can play.
func playable(v Version) []Scenario {
	return slices.DeleteFunc(slices.Clone(Scenarios), func(sc Scenario) bool { return sc.NeedsTLS && !v.TLS })
}

func playAll(t *testing.T, s *Server) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, sc := range playable(s.Version) {
		dialogues, err := s.Play(sc)
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range dialogues {
			said[fmt.Sprintf("%s/%d", sc.Name, i+1)] = d.Masked()
		}
	}
	return said
}

// TestScenarios checks that every scenario produces the same dialogue with and without a filter.
// The filter must receive every complete session, with the names in the table.
func TestScenarios(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		bare := mustStart(t, Options{Version: v, Hosts: Hosts()})
		want := playAll(t, bare)
		if err := bare.Stop(); err != nil {
			t.Fatal(err)
		}

		s := mustStart(t, Options{Version: v, Dir: t.TempDir(), Hosts: Hosts(),
			Filters: []Filter{recorder("events", "connect", "ehlo", "rcpt-to")}})
		got := playAll(t, s)
		if v.TLS {
			checkSecrets(t, want)
		}
		for name, dialogue := range want {
			if got[name] != dialogue {
				t.Errorf("%s: with the filter:\n%swithout:\n%s", name, got[name], dialogue)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d dialogues with the filter, %d without", len(got), len(want))
		}
		waitDisconnects(t, s, "events", 1+len(got)) // 1 for the session of Start
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		seen := readState(t, s, "events")
		if n := strings.Count(seen, "|link-connect|"); n != 1+len(got) {
			t.Errorf("%d sessions, want %d", n, 1+len(got))
		}
		for _, sc := range Scenarios {
			host := sc.Host
			if host.Name == "" || sc.NeedsTLS && !v.TLS {
				continue
			}
			fcrdns, addr := "fail", host.Addr
			if host.Confirmed {
				fcrdns = "pass"
			}
			if strings.Contains(addr, ":") {
				addr = "[" + addr + "]"
			}
			if want := fmt.Sprintf("|%s|%s|%s:", host.Name, fcrdns, addr); !strings.Contains(seen, want) {
				t.Errorf("no link-connect with %q", want)
			}
		}
		for _, want := range []string{
			"|<unknown>|fail|203.0.113.66:",
			"|" + Addr4 + ":12525\n",
			"|[" + Addr6 + "]:12525\n",
		} {
			if !strings.Contains(seen, want) {
				t.Errorf("no link-connect with %q", want)
			}
		}
		// All recipients are aliases for a single user.
		messages := 0
		for _, dialogue := range got {
			messages += strings.Count(dialogue, "Message accepted for delivery")
		}
		if messages == 0 {
			t.Error("no message was accepted")
		}
		if n := strings.Count(seen, "|tx-commit|"); n != messages {
			t.Errorf("%d transactions committed, %d messages accepted", n, messages)
		}
	})
}

// checkSecrets checks that the scenarios really send each password in a form that Secrets returns.
// Otherwise, a search for passwords would prove nothing.
func checkSecrets(t *testing.T, dialogues map[string]string) {
	t.Helper()
	var all strings.Builder
	for _, dialogue := range dialogues {
		all.WriteString(dialogue)
	}
	for forms := range slices.Chunk(Secrets(), 3) {
		if !slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(all.String(), form) }) {
			t.Errorf("no scenario sends %s", forms)
		}
	}
}

func TestMailIsDelivered(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		s := mustStart(t, Options{Version: v, Hosts: Hosts()})
		if _, err := s.Play(Scenarios[0]); err != nil {
			t.Fatal(err)
		}
		err := s.Eventually("a message is in the maildir", func() bool {
			entries, err := os.ReadDir(filepath.Join(s.Mail(), "new"))
			return err == nil && len(entries) > 0
		})
		if err != nil {
			t.Errorf("%v\n%s", err, s.Log())
		}
	})
}

func TestReadyMakesNoSession(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		dir := t.TempDir()
		s := mustStart(t, Options{Version: v, Dir: dir, Filters: []Filter{recorder("events")},
			Ready: func() bool {
				data, err := os.ReadFile(filepath.Join(dir, "state/events"))
				return err == nil && strings.HasSuffix(string(data), "config|ready\n")
			}})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if seen := readState(t, s, "events"); strings.Contains(seen, "link-connect") {
			t.Errorf("the filter saw a session:\n%s", seen)
		}
	})
}

func TestSendmailReachesFilterOnSocket(t *testing.T) {
	for _, socket := range []bool{false, true} {
		t.Run(fmt.Sprintf("socket=%v", socket), func(t *testing.T) {
			eachVersion(t, func(t *testing.T, v Version) {
				s := mustStart(t, Options{Version: v, Dir: t.TempDir(), Socket: socket,
					Filters: []Filter{recorder("events")}})
				err := s.Sendmail(strings.NewReader("Subject: local\n\nHello.\n"), "alice@example.org")
				if err != nil {
					t.Fatalf("%v\n%s", err, s.Log())
				}
				sessions := 1
				if socket {
					sessions = 2
				}
				waitDisconnects(t, s, "events", sessions)
				if got := strings.Contains(readState(t, s, "events"), "|unix:/"); got != socket {
					t.Errorf("filter saw the local session: %v, want %v", got, socket)
				}
			})
		})
	}
}

func TestWildcardAndChain(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		first, last := recorder("first", "mail-from"), recorder("last", "mail-from")
		first.Name, last.Name = "first", "last"
		between := Filter{Name: "builtin", Builtin: `phase mail-from match mail-from regex "^spam@" reject "550 No"`}
		s := mustStart(t, Options{Version: v, Dir: t.TempDir(), Wildcard: true, Filters: []Filter{first, between, last}})
		c, err := s.Dial("198.51.100.10", PortMX)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := script(reads(220), says(250, "EHLO a.example"), says(550, "MAIL FROM:<spam@a.example>"), quits)(c); err != nil {
			t.Fatal(err)
		}
		waitDisconnects(t, s, "first", 2)
		waitDisconnects(t, s, "last", 2)
		seen := readState(t, s, "first")
		if !strings.Contains(seen, "|0.0.0.0:12525\n") {
			t.Errorf("no session on the wildcard address:\n%s", seen)
		}
		if !strings.Contains(seen, "|smtp-in|mail-from|") {
			t.Errorf("the first filter was not asked:\n%s", seen)
		}
		if last := readState(t, s, "last"); strings.Contains(last, "|smtp-in|mail-from|") {
			t.Errorf("the last filter was asked about what had been refused:\n%s", last)
		}
	})
}

func TestShimAsksInEveryPhase(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		asked := []string{"connect", "helo", "ehlo", "mail-from", "rcpt-to", "data", "commit", "rset", "noop", "quit"}
		s := mustStart(t, Options{Version: v, Dir: t.TempDir(), Hosts: Hosts(), Filters: []Filter{
			Through(Bin("teefilter"), recorder("events", "connect"), StateDir, append(asked, "starttls")...),
		}})
		ends := 1
		for _, sc := range playable(v) {
			dialogues, err := s.Play(sc)
			if err != nil {
				t.Fatal(err)
			}
			ends += len(dialogues)
		}
		c, err := s.Dial("", PortMX)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := script(reads(220), says(250, "HELO a.example"), says(250, "NOOP"), says(250, "RSET"), quits)(c); err != nil {
			t.Fatal(err)
		}
		waitDisconnects(t, s, "events", ends+1)
		if pids, err := s.FilterPIDs(); err != nil || len(pids) != 1 {
			t.Errorf("FilterPIDs: %v, %v, want one", pids, err)
		} else if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pids[0])); filepath.Base(exe) != "recorder" {
			t.Errorf("FilterPIDs: runs %s, want the recorder", exe)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		seen := readState(t, s, "events")
		if v.TLS {
			asked = append(asked, "starttls")
		}
		for _, phase := range asked {
			if !strings.Contains(seen, "|smtp-in|"+phase+"|") {
				t.Errorf("never asked in phase %s", phase)
			}
		}
		if in := readState(t, s, "stream.in"); in != seen {
			t.Errorf("the tee has %d bytes of input, the filter got %d", len(in), len(seen))
		}
		out := readState(t, s, "stream.out")
		if requests, answers := strings.Count(seen, "\nfilter|"), strings.Count(out, "\nfilter-result|"); requests != answers {
			t.Errorf("%d requests, %d answers in the tee", requests, answers)
		}
		if n := strings.Count(out, "register|filter|smtp-in|connect\n"); n != 1 {
			t.Errorf("connect registered %d times, want once", n)
		}
	})
}

func TestKillFilter(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		dir := t.TempDir()
		o := Options{Version: v, Dir: dir, Filters: []Filter{recorder("events")}}
		s := mustStart(t, o)
		if !s.Alive() {
			t.Fatal("not alive after Start")
		}
		waitDisconnects(t, s, "events", 1) // the session of Start: lines that the filter has not read are lost when it is killed
		if err := s.KillFilter(); err != nil {
			t.Fatalf("%v\n%s", err, s.Log())
		}
		if s.Alive() {
			t.Error("alive after its filter was killed")
		}
		if left, err := s.processes(); err != nil || len(left) > 0 {
			t.Errorf("remaining processes: %v, %v", left, err)
		}
		if !strings.Contains(s.Log(), "lost processor") {
			t.Errorf("log:\n%s", s.Log())
		}
		again := mustStart(t, o)
		if !strings.Contains(readState(t, again, "events"), "link-disconnect") {
			t.Error("the state of the first server was lost")
		}
	})
}

func TestStopTellsThatSmtpdHadEnded(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		s, err := Start(Options{Version: v, Filters: []Filter{recorder("events")}})
		if err != nil {
			t.Fatal(err)
		}
		pids, err := s.FilterPIDs()
		if err != nil || len(pids) != 1 {
			t.Fatalf("FilterPIDs: %v, %v", pids, err)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-s.Ended()
		if err := s.Stop(); !errors.Is(err, ErrEnded) {
			t.Errorf("Stop: %v, want ErrEnded", err)
		}
		if err := s.Stop(); err != nil {
			t.Errorf("second Stop: %v", err)
		}
	})
}

func TestFilterLog(t *testing.T) {
	s := &Server{Dir: t.TempDir()}
	log := "info: OpenSMTPD\nscanwatch: one\n0123 smtp failed-command command=\"scanwatch: x\"\nscanwatch: two\nother: three\n"
	if err := os.WriteFile(filepath.Join(s.Dir, "smtpd.log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := s.FilterLog("scanwatch"), "one\ntwo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRelay(t *testing.T) {
	eachVersion(t, func(t *testing.T, v Version) {
		sink, err := net.Listen("tcp", "127.0.0.1:2600")
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		s := mustStart(t, Options{Version: v, Relay: "smtp://127.0.0.1:2600"})
		if err := s.Sendmail(strings.NewReader("Subject: out\n\nHello.\n"), "x@"+RelayDomain); err != nil {
			t.Fatal(err)
		}
		if err := sink.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		conn, err := sink.Accept()
		if err != nil {
			t.Fatalf("smtpd did not come: %v\n%s", err, s.Log())
		}
		conn.Close()
	})
}

func TestStartFails(t *testing.T) {
	v := Versions[0]
	Require(t, v)
	for _, test := range []struct {
		name string
		o    Options
		want string
	}{
		{"no program", Options{Filters: []Filter{{Path: "/nonexistent"}}}, "program of filter nonexistent"},
		{"filter ends immediately", Options{Filters: []Filter{{Path: Bin("recorder"), Args: []string{"-out", "/nonexistent/x"}}}}, "lost processor"},
		{"argument with quote", Options{Filters: []Filter{{Path: Bin("recorder"), Args: []string{`"`}}}}, "quoting"},
		{"bad configuration", Options{Filters: []Filter{{Name: "x", Builtin: "nonsense"}}}, "syntax error"},
		{"bad address", Options{Hosts: []Host{{Addr: "x", Name: "a.example"}}}, "host a.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.o.Version = v
			s, err := Start(test.o)
			if err == nil {
				s.Stop()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want something with %q", err, test.want)
			}
		})
	}
	// Failed starts must not affect the next start.
	mustStart(t, Options{Version: v})
}

func TestCheckNamesRemedy(t *testing.T) {
	Require(t, Versions[0])
	t.Setenv("SCANWATCH_ROOTS", t.TempDir())
	err := Check(Versions[0])
	if err == nil || !strings.Contains(err.Error(), "run tests/roots.sh bookworm") {
		t.Errorf("got %v", err)
	}
}
