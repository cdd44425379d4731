//go:build linux

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// TestSignals checks SIGTERM and SIGHUP. After SIGTERM, the filter must record all sessions and
// end, as it does at the end of its input. SIGHUP must not end the filter.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	p := filterproc.Start(t, "-s", dir)
	if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := p.Ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	p.Send("report|0.7|1795219328.000001|smtp-in|link-connect|0000000000000002|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25\n")
	if got := p.Ask(3, "x.example.net"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.Stderr.String())
	}
	endings := map[string]int{}
	for _, r := range cli.Dump(t, dir) {
		endings[r.Ending]++
	}
	if endings["stopped"] != 1 || endings["dropped"] != 2 {
		t.Errorf("sessions ended: %v", endings)
	}
}

// TestStateDirectoryTrouble checks that the filter works without a usable state directory, and logs
// the error.
func TestStateDirectoryTrouble(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/nonexistent/scanwatch", file} {
		p := filterproc.Start(t, "-s", dir)
		if got := p.Ask(1, "ylmf-pc"); got != "proceed\n" {
			t.Errorf("%s: answer %q", dir, got)
		}
		log := p.End(0)
		if !strings.Contains(log, dir) || !strings.Contains(log, "evidence=botnet-helo:high") {
			t.Errorf("%s: log %q", dir, log)
		}
	}
}

// TestSecondFilter checks that a second filter in the same state directory causes no damage, and
// that the conflict is logged.
func TestSecondFilter(t *testing.T) {
	dir := t.TempDir()
	first := filterproc.Start(t, "-s", dir)
	first.Ask(1, "one.example.net")
	filterproc.Eventually(t, "the control socket", cli.Listens(dir))
	cli.Run(t, dir, "flush")
	second := filterproc.Start(t, "-s", dir)
	second.Ask(2, "two.example.net")
	if log := second.End(0); !strings.Contains(log, "another") {
		t.Errorf("the second one logged %q", log)
	}
	first.Ask(3, "three.example.net")
	first.End(0)
	if n := len(cli.Dump(t, dir)); n != 2 {
		t.Errorf("%d records, want the 2 of the first filter", n)
	}
}

// TestReload checks that SIGHUP and scanwatch reload replace the policy of a running filter. An
// invalid policy must change nothing, and must be logged.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func() error {
		return exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").Run()
	}
	const first, second = `disconnect|554 5.7.1 first [`, `disconnect|554 5.7.1 second [`
	rule := "mode enforce\nrule bad phase helo match helo \"ylmf-pc\" disconnect \"554 5.7.1 %s\"\n"
	write(fmt.Sprintf(rule, "first"))
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	if got := p.Ask(1, "ylmf-pc"); !strings.HasPrefix(got, first) {
		t.Errorf("answer %q", got)
	}
	cli.Run(t, dir, "flush") // waits until the socket exists
	write("mode enforce\nrule bad phase helo macth helo \"x\" disconnect\n")
	if err := reload(); err == nil {
		t.Error("a broken configuration was taken")
	}
	if got := p.Ask(2, "ylmf-pc"); !strings.HasPrefix(got, first) {
		t.Errorf("after a broken reload: answer %q", got)
	}
	write(fmt.Sprintf(rule, "second"))
	if err := reload(); err != nil {
		t.Error(err)
	}
	if got := p.Ask(3, "ylmf-pc"); !strings.HasPrefix(got, second) {
		t.Errorf("after the reload: answer %q", got)
	}
	write(fmt.Sprintf(rule, "third"))
	if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	// Ask until the filter answers with the new policy. On failure, the time limit of go test ends
	// the loop.
	for i := 4; !strings.HasPrefix(p.Ask(i, "ylmf-pc"), `disconnect|554 5.7.1 third [`); i++ {
	}
	if log := p.End(0); !strings.Contains(log, "scanwatch.conf:2:21: `macth`") || !strings.Contains(log, "scanwatch check") {
		t.Errorf("log %q", log)
	}
}

// TestRemovedWord checks the configuration of an earlier version that contains a removed word. The
// filter must only observe, and the log must name the replacement.
func TestRemovedWord(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode enforce\nprivacy strict\nrule bad phase helo match helo \"ylmf-pc\" disconnect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	if got := p.Ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	log := p.End(0)
	for _, want := range []string{"scanwatch.conf:2:9: expected a privacy level", "hint=\"privacy strict is now: privacy hashed\"", "observing only"} {
		if !strings.Contains(log, want) {
			t.Errorf("log %q, want %q", log, want)
		}
	}
}

// TestBrokenConfiguration checks that an invalid configuration does not end the filter, because
// smtpd would then exit.
func TestBrokenConfiguration(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode enfroce\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	if got := p.Ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	if log := p.End(0); !strings.Contains(log, "observing only") || !strings.Contains(log, "scanwatch.conf:1:6") {
		t.Errorf("log %q", log)
	}
	out, err := exec.Command(smtpd.Bin("filter-scanwatch"), "-n", "-f", conf).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "enforce") {
		t.Errorf("-n: %v, %s", err, out)
	}
}
