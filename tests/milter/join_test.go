//go:build linux

package milter

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// withLogins is the configuration of a Postfix on which users can log in.
func (s *site) withLogins() string {
	s.t.Helper()
	s.authenticate(s.path("auth"))
	return s.recipe("Postfix") + fmt.Sprintf("smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = %s\n", s.path("auth")) +
		"smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination\n"
}

const withPorts = "smtpd_client_port_logging = yes\n"

// feed starts scanwatch follow --milter. stop ends it with a signal and returns its log.
func (s *site) feed() (stop func(syscall.Signal) (log string)) {
	s.t.Helper()
	// Create the log, because Postfix creates it only when it writes the first line.
	if f, err := os.OpenFile(s.path("maillog"), os.O_CREATE, 0o644); err != nil {
		s.t.Fatal(err)
	} else if err := f.Close(); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(smtpd.Bin("scanwatch"), "-s", s.path("state"), "follow", "--milter", "postfix", s.path("maillog"))
	log := filterproc.LogFile(s.t, cmd)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Log(log())
		}
	})
	return func(sig syscall.Signal) string {
		_ = cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil && sig != syscall.SIGKILL {
			s.t.Errorf("scanwatch follow ended with %v", err)
		}
		return log()
	}
}

// fed waits until the milter knows that a process reads the log.
func (s *site) fed() {
	s.t.Helper()
	filterproc.Eventually(s.t, "the reader of the log", func() bool { return strings.Contains(s.status(), `"kind":"postfix"`) })
}

func (s *site) status() string {
	out, _ := exec.Command(smtpd.Bin("scanwatch"), "-s", s.path("state"), "status", "--json").Output()
	return strings.ReplaceAll(string(out), `": `, `":`)
}

// login returns the command that logs in as a user.
func login(user, password string) string {
	return "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password))
}

// guess returns a session with failed logins.
func guess(src string, n int) *scenario {
	s := &scenario{src: src, lines: []string{"EHLO mail.other.example"}}
	for i := range n {
		s.lines = append(s.lines, login("joe", fmt.Sprint("wrong", i)))
	}
	s.lines = append(s.lines, "QUIT")
	return s
}

// numbered returns a session with eight numbered commands.
func numbered(command func(int) string) (lines []string) {
	lines = []string{"EHLO mail.other.example"}
	for i := range 8 {
		lines = append(lines, command(i))
	}
	return append(lines, "QUIT")
}

// bruteForce tries 50 passwords, and checks that the client is then banned.
func bruteForce(t *testing.T, s *site, src string) {
	t.Helper()
	for range 5 {
		for i, r := range guess(src, 10).play(t) {
			if i >= 2 && i < 12 && !strings.HasPrefix(r, "535 ") && !strings.HasPrefix(r, "421 ") && r != closed {
				t.Errorf("%q", r)
			}
		}
	}
	filterproc.Eventually(t, "the ban of "+src, func() bool {
		return slices.ContainsFunc(cli.Banned(t, s.path("state")), func(p netip.Prefix) bool { return strings.HasPrefix(p.String(), src+"/") })
	})
	if r := guess(src, 1).play(t); !strings.HasPrefix(r[0], "421 ") {
		t.Errorf("after the ban: %q", r)
	}
}

// TestJoin checks that failed logins, pipelining and the ends of sessions in Postfix's log are
// added to the milter's sessions. The reader of the log may start before or after the milter.
func TestJoin(t *testing.T) { playJoin(t, "") }

// playJoin plays the sessions of TestJoin. suite is the Debian version of Postfix, or "" for the
// test's own version.
func playJoin(t *testing.T, suite string) {
	t.Helper()
	const (
		attacker, user, silent, dropped = "203.0.113.50", "203.0.113.51", "203.0.113.52", "203.0.113.53"
		quit, relay, http, probe        = "203.0.113.54", "203.0.113.55", "203.0.113.56", "203.0.113.57"
		spray, names                    = "203.0.113.58", "203.0.113.59"
	)
	for _, preset := range []string{"standard", "tight"} {
		t.Run(preset, func(t *testing.T) {
			s := newSiteIn(t, suite)
			var stop func(syscall.Signal) string
			if preset == "tight" { // the reader starts first
				if err := os.Mkdir(s.path("state"), 0o750); err != nil {
					t.Fatal(err)
				}
				stop = s.feed()
			}
			s.startMilter(conf(t, preset, "enforce"))
			s.startPostfix(s.withLogins() + withPorts)
			if preset == "standard" {
				stop = s.feed()
			}
			s.fed()
			bruteForce(t, s, attacker)
			for _, one := range []*scenario{
				{src: user, lines: append(guess("", 9).lines[:10], login("joe", "right"), "QUIT")},
				{src: silent},
				{src: dropped, lines: []string{"EHLO mail.other.example", mailLine, rcptLine}},
				{src: quit, lines: []string{"EHLO mail.other.example", "QUIT"}},
				{src: relay, lines: []string{"EHLO mail.other.example", mailLine, "RCPT TO:<x@victim.example>", "QUIT"}},
				{src: http, lines: []string{"GET /x HTTP/1.1"}},
				{src: spray, lines: numbered(func(i int) string { return login(fmt.Sprint("user", i), "Summer2026") })},
				{src: names, lines: numbered(func(i int) string { return fmt.Sprintf("VRFY guess%d@example.org", i) })},
				{src: probe, lines: []string{"EHLO mail.other.example", ">EHLO mail.other.example\r\nQUIT\r\n", ""}},
			} {
				one.play(t)
			}
			s.idle()
			stop(syscall.SIGTERM)
			s.stopMilter()
			all := s.records()
			for src, want := range map[string]string{
				user: "quit", silent: "dropped no-mail/high", dropped: "dropped abandoned/high", quit: "quit no-mail/high", relay: "quit relay-probe/high",
				http: "rejected talks-http/high", probe: "pipelining/high", spray: "quit auth-spray/high", names: "quit harvest/high",
			} {
				r := all[src]
				got := r.Ending
				for _, f := range r.Findings {
					got += " " + f.Evidence + "/" + f.Confidence
				}
				for word := range strings.FieldsSeq(want) {
					if !slices.Contains(strings.Fields(got), word) {
						t.Errorf("%s: %s, want %s", src, got, want)
					}
				}
			}
			if n := all[user].Counts["auth_fail"]; n != 9 {
				t.Errorf("%d failed logins of the user: %+v", n, all[user])
			}
		})
	}
}

// TestJoinWithoutPorts checks that a log without client ports is reported once. Brute force must
// still be detected.
func TestJoinWithoutPorts(t *testing.T) {
	s := newSite(t)
	s.startMilter(conf(t, "standard", "enforce"))
	s.startPostfix(s.withLogins())
	stop := s.feed()
	s.fed()
	bruteForce(t, s, "203.0.113.50")
	filterproc.Eventually(t, "the problem in the status", func() bool { return strings.Contains(s.status(), `"problem":"no client ports; `) })
	if n := strings.Count(stop(syscall.SIGTERM), "log has no client ports"); n != 1 {
		t.Errorf("the problem was logged %d times", n)
	}
}

// TestJoinRestart checks that no failed login is lost or counted twice. The milter is killed and
// started again after a while, and the reader of the log is killed.
func TestJoinRestart(t *testing.T) {
	s := newSite(t)
	s.startMilter("mode observe\n")
	s.startPostfix(s.withLogins() + withPorts)
	stop := s.feed()
	s.fed()
	want := 0
	play := func(n int) {
		t.Helper()
		want += n
		if r := guess(fmt.Sprintf("203.0.113.%d", want), n).play(t); len(r) != n+3 {
			t.Errorf("%q", r)
		}
	}
	failed := func() (n int) {
		for _, r := range cli.Dump(t, s.path("state")) {
			n += r.Counts["auth_fail"]
		}
		return n
	}
	seen := func() {
		t.Helper()
		filterproc.Eventually(t, fmt.Sprintf("%d failed logins", want), func() bool { return failed() == want })
	}
	play(3)
	seen()
	cli.Run(t, s.path("state"), "flush")
	if err := s.milter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.milter.Wait()
	play(2) // Postfix continues without the milter
	s.startMilter("mode observe\n")
	play(4)
	seen()
	stop(syscall.SIGKILL)
	play(5)
	stop = s.feed()
	s.fed()
	play(1)
	seen()
	stop(syscall.SIGTERM)
	s.stopMilter()
	if n := failed(); n != want {
		t.Errorf("%d failed logins, want %d", n, want)
	}
}

// TestJoinObserve checks that in observe mode, brute force is reported but not rejected. A client
// with a successful login must not be banned.
func TestJoinObserve(t *testing.T) {
	const attacker, user = "203.0.113.50", "203.0.113.51"
	s := newSite(t)
	s.startMilter(conf(t, "standard", "observe"))
	s.startPostfix(s.withLogins() + withPorts)
	stop := s.feed()
	s.fed()
	for range 5 {
		guess(attacker, 10).play(t)
		(&scenario{src: user, lines: append(guess("", 8).lines[:9], login("joe", "right"), "QUIT")}).play(t)
	}
	filterproc.Eventually(t, "the observed ban", func() bool {
		guess(attacker, 10).play(t) // on a busy machine, log lines may arrive too late to be joined
		return strings.Contains(cli.Run(t, s.path("state"), "bans", "--all"), attacker)
	})
	if r := guess(attacker, 1).play(t); !strings.HasPrefix(r[0], "220 ") {
		t.Errorf("%q", r)
	}
	s.idle()
	stop(syscall.SIGTERM)
	if bans := cli.Run(t, s.path("state"), "bans", "--all"); strings.Contains(bans, user) {
		t.Error(bans)
	}
}
