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

// A rival is a front end that wants the state directory of others.
type rival struct {
	*exec.Cmd
	program string
	log     func() string
	ended   chan struct{}
}

// rivals starts eight front ends at the same moment in one state directory.
func rivals(t *testing.T, dir string) (all []*rival) {
	t.Helper()
	state, log := filepath.Join(dir, "state"), filepath.Join(dir, "mail.log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
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

// TestOneFrontEnd checks that exactly one of several front ends runs that start at the same
// moment, even if the previous one was killed, and that the others name it.
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
