//go:build linux

package process

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// TestForward checks that the companion forward receives the events of a real filter as its
// own user, is in the status, and counts a restart of the filter as a gap.
func TestForward(t *testing.T) {
	if os.Geteuid() != 0 {
		require.Missing(t, "the test needs root, to run a service as another user")
	}
	const user = 4005
	dir := t.TempDir()
	state, run, conf := filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "scanwatch.conf")
	for _, d := range []string{filepath.Dir(dir), dir, filepath.Dir(smtpd.Bin("scanwatch"))} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{run: 0o755, state: 0o750} {
		if err := os.Mkdir(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("mode enforce\nstore %q\nrundir %q\ncompanion forward user %d to stdout every 1s\n", state, run, user)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f := filterproc.Start(t, "-f", conf)
	service := exec.Command(smtpd.Bin("scanwatch"), "forward", "-f", conf)
	service.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	log := filterproc.LogFile(t, service)
	out, err := service.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait()
		if t.Failed() {
			t.Log(log())
		}
	})
	lines := bufio.NewScanner(out)
	next := func() (events []string, gaps int) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("the service has ended")
		}
		var batch struct {
			Events []struct{ Event, Prefix string }
			Gaps   int
		}
		if err := json.Unmarshal(lines.Bytes(), &batch); err != nil {
			t.Fatal(err)
		}
		for _, e := range batch.Events {
			events = append(events, e.Event+" "+e.Prefix)
		}
		return events, batch.Gaps
	}
	command := func(args ...string) string { return cli.Run(t, state, append([]string{"-f", conf}, args...)...) }
	running := func() bool {
		var status struct{ Companions []struct{ Name, Done, Error string } }
		cli.Decode(t, command("status", "--json"), &status)
		c := status.Companions
		return len(c) == 1 && c[0].Name == "forward stdout" && c[0].Done != "" && c[0].Error == ""
	}
	filterproc.Eventually(t, "the service in the status", running)
	// The service may not watch yet: ban until a batch has the ban.
	done := make(chan struct{})
	go func() {
		defer close(done)
		for found := false; !found; {
			events, _ := next()
			for _, e := range events {
				found = found || e == "ban 203.0.113.9/32"
			}
		}
	}()
	filterproc.Eventually(t, "a batch with the ban", func() bool {
		command("ban", "--for", "1h", "203.0.113.9")
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	if n := filterproc.AnonymousMemory(t, service.Process.Pid); n > 32<<20 {
		t.Errorf("the service uses %d MB", n>>20)
	}
	f.End(0)
	filterproc.Start(t, "-f", conf)
	filterproc.Eventually(t, "the socket", cli.Listens(state))
	filterproc.Eventually(t, "a batch with the gap", func() bool { _, gaps := next(); return gaps == 1 })
	filterproc.Eventually(t, "the service in the status again", running)
}
