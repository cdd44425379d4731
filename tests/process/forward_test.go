//go:build linux

package process

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// TestForward checks that the forward companion receives the events of a real filter, running as
// its own user. The companion must appear in the status, and count a restart of the filter as a
// gap.
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
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	service.Stdout = out
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
	// batches returns the events and the gaps in all batches.
	batches := func() (events []string, gaps int) {
		t.Helper()
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var batch struct {
				Events []struct{ Event, Prefix string }
				Gaps   int
			}
			if !strings.HasSuffix(line, "\n") {
				break // a batch that is still being written
			}
			if err := json.Unmarshal([]byte(line), &batch); err != nil {
				t.Fatal(err)
			}
			for _, e := range batch.Events {
				events = append(events, e.Event+" "+e.Prefix)
			}
			gaps += batch.Gaps
		}
		return events, gaps
	}
	command := func(args ...string) string { return cli.Run(t, state, append([]string{"-f", conf}, args...)...) }
	running := func() bool {
		var status struct {
			Companions []struct{ Name, Done, Error string }
		}
		cli.Decode(t, command("status", "--json"), &status)
		c := status.Companions
		return len(c) == 1 && c[0].Name == "forward stdout" && c[0].Done != "" && c[0].Error == ""
	}
	filterproc.Eventually(t, "the service in the status", running)
	filterproc.Eventually(t, "a batch with the ban", func() bool {
		command("ban", "--for", "1h", "203.0.113.9") // ban again, because the service may have started to watch after the first ban
		events, _ := batches()
		return slices.Contains(events, "ban 203.0.113.9/32")
	})
	if n := filterproc.AnonymousMemory(t, service.Process.Pid); n > 32<<20 {
		t.Errorf("the service uses %d MB", n>>20)
	}
	_, before := batches() // the service's start is a gap
	f.End(0)
	filterproc.Start(t, "-f", conf)
	filterproc.Eventually(t, "the socket", cli.Listens(state))
	filterproc.Eventually(t, "a batch with the gap", func() bool { _, gaps := batches(); return gaps > before })
	filterproc.Eventually(t, "the service in the status again", running)
}
