//go:build linux

package milter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// A rival is one of several front ends that compete for a state directory.
type rival struct {
	*exec.Cmd
	program string
	log     func() string
	ended   chan struct{}
}

// rivals starts eight front ends at the same moment in the same state directory.
func rivals(t *testing.T, dir string) (all []*rival) {
	t.Helper()
	state, log := filepath.Join(dir, "state"), filepath.Join(dir, "mail.log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(state, 0o750); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		r := &rival{program: "milter-scanwatch", ended: make(chan struct{})}
		r.Cmd = exec.Command(smtpd.Bin(r.program), "-v", "-s", state, "-l", fmt.Sprintf("unix:%s/%d.sock", dir, i))
		if i%2 == 1 {
			r.program = "scanwatch follow postfix"
			r.Cmd = exec.Command(smtpd.Bin("scanwatch"), "-s", state, "follow", "--verbose", "postfix", log)
		}
		r.log = filterproc.LogFile(t, r.Cmd)
		all = append(all, r)
	}
	for _, r := range all {
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Process.Kill() })
		go func() {
			_ = r.Wait()
			close(r.ended)
		}()
	}
	return all
}

// TestOneFrontEnd starts several front ends at the same moment. Exactly one of them must continue
// to run, even if the previous front end was killed. The others must name it in their errors.
func TestOneFrontEnd(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		all := rivals(t, dir)
		var winner *rival
		filterproc.Eventually(t, "one front end", func() bool {
			var running []*rival
			for _, r := range all {
				select {
				case <-r.ended:
				default:
					running = append(running, r)
				}
			}
			if len(running) == 0 {
				t.Fatal("all front ends have ended")
			}
			winner = running[0]
			return len(running) == 1 && strings.Contains(winner.log(), "msg=started")
		})
		want := fmt.Sprintf(`program="?%s"? pid=%d `, winner.program, winner.Process.Pid)
		for _, r := range all {
			text := r.log()
			if r == winner {
				continue
			}
			if r.ProcessState.ExitCode() != 1 || !regexp.MustCompile(want).MatchString(text) || strings.Contains(text, "msg=started") {
				t.Errorf("exit status %d, want %s: %s", r.ProcessState.ExitCode(), want, text)
			}
		}
		filterproc.Eventually(t, "the control socket", cli.Listens(filepath.Join(dir, "state")))
		if err := winner.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-winner.ended
	}
}

// TestErrorTransport checks that a recipient with Postfix's transport error counts as rejected only
// if Postfix rejects it. The log must show the same.
func TestErrorTransport(t *testing.T) {
	for _, tt := range []struct {
		reject, code string
		counts       string
	}{
		{"no", "250", `"rcpt_ok":2,"rcpt_permfail":0`},
		{"yes", "550", `"rcpt_ok":0,"rcpt_permfail":2`},
	} {
		t.Run("smtpd_reject_unlisted_recipient="+tt.reject, func(t *testing.T) {
			s := newSite(t)
			s.startMilter("mode observe\n")
			s.startPostfix(s.recipe("Postfix") + "smtpd_client_port_logging = yes\nsmtpd_reject_unlisted_recipient = " + tt.reject + "\n" +
				"transport_maps = inline:{ {closed@example.org=error:5.1.1 mailbox closed}, {bare@example.org=error:5.1.1} }\n")
			session := scenario{src: "198.51.100.1", lines: []string{"EHLO mail.partner.example", mailLine, "RCPT TO:<closed@example.org>", "RCPT TO:<bare@example.org>", "QUIT"}}
			replies := session.play(t)
			for _, reply := range replies[3:5] {
				if !strings.HasPrefix(reply, tt.code) {
					t.Errorf("%q, want %s", replies, tt.code)
				}
			}
			s.stopMilter()
			if dump := cli.Run(t, s.path("state"), "dump", "--since", "2020-01-01"); !strings.Contains(dump, tt.counts) {
				t.Errorf("milter: want %s: %s", tt.counts, dump)
			}
			filterproc.Eventually(t, "the log", func() bool {
				log, _ := os.ReadFile(s.path("maillog"))
				return strings.Contains(string(log), "disconnect from ")
			})
			log := filepath.Join(s.dir, "imported")
			if err := os.Mkdir(log, 0o755); err != nil {
				t.Fatal(err)
			}
			cli.Run(t, log, "import", "postfix", s.path("maillog"))
			if dump := cli.Run(t, log, "dump", "--since", "2020-01-01"); !strings.Contains(dump, tt.counts) {
				t.Errorf("log: want %s: %s", tt.counts, dump)
			}
		})
	}
}
