//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// TestSandbox checks all file accesses of a running filter in its sandbox. The filter must create
// its state directory, and read files that have been replaced. The filter must log a file outside
// the sandbox.
func TestSandbox(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"etc", "lists", "late"} {
		if err := os.Mkdir(in(name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	// Replace the file by renaming a new file, as editors do.
	replace := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(in(name+".new"), []byte(text), 0o600), os.Rename(in(name+".new"), in(name))); err != nil {
			t.Fatal(err)
		}
	}
	conf := "mode enforce\ntable <names> file \"%s\"\n" +
		"rule bad phase helo match helo <names> disconnect \"554 5.7.1 bad\"\n"
	replace("etc/scanwatch.conf", fmt.Sprintf(conf, in("lists/names")))
	replace("lists/names", "one.example.net\n")
	replace("late/names", "three.example.net\n")

	state := in("state")
	p := filterproc.Start(t, "-v", "-f", in("etc/scanwatch.conf"), "-s", state)
	scanwatch := func(args ...string) error {
		return exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", state}, args...)...).Run()
	}
	id := 0
	bad := func(name string) bool {
		id++
		return strings.HasPrefix(p.Ask(id, name), "disconnect|554 5.7.1 bad [")
	}
	if !bad("one.example.net") || bad("two.example.net") {
		t.Error("the table of the start does not work")
	}
	cli.Run(t, state, "flush") // the control socket exists, and sessions are on disk
	var status struct{ Sandbox string }
	if err := json.Unmarshal([]byte(cli.Run(t, state, "status", "--json")), &status); err != nil || !strings.Contains(status.Sandbox, "files=") {
		t.Errorf("status has sandbox %q, %v", status.Sandbox, err)
	}
	replace("lists/names", "two.example.net\n")
	replace("etc/scanwatch.conf", "# new\n"+fmt.Sprintf(conf, in("lists/names")))
	if err := scanwatch("reload"); err != nil {
		t.Errorf("reload: %v", err)
	}
	if bad("one.example.net") || !bad("two.example.net") {
		t.Error("the table that was replaced was not read")
	}
	cli.Run(t, state, "ban", "--for", "1h", "--reason", "test", "198.51.100.7")
	if bans := cli.Run(t, state, "bans", "--all"); !strings.Contains(bans, "198.51.100.7") {
		t.Errorf("bans: %s", bans)
	}
	// This table is outside the sandbox.
	replace("etc/scanwatch.conf", fmt.Sprintf(conf, in("late/names")))
	files := filterproc.HasLandlock(t)
	if err := scanwatch("reload"); (err != nil) != files {
		t.Errorf("reload of a table outside of the sandbox: %v", err)
	}
	if files && bad("three.example.net") {
		t.Error("a table outside of the sandbox was read")
	}
	bad("four.example.net")
	cli.Run(t, state, "flush")
	log := p.End(0)
	for _, want := range []string{"msg=sandbox by=", in("late/names"), "restart smtpd"} {
		if filterproc.HasLandlock(t) && !strings.Contains(log, want) {
			t.Errorf("log without %q: %s", want, log)
		}
	}
	if n := strings.Count(log, "permission denied"); filterproc.HasLandlock(t) && n != 1 {
		t.Errorf("%d times permission denied, want once, for the new table: %s", n, log)
	}
	if n := len(cli.Dump(t, state)); n != id {
		t.Errorf("%d records of %d sessions", n, id)
	}
}

// TestNoSandbox checks that a filter with the flag -S can read files that are outside the sandbox.
func TestNoSandbox(t *testing.T) {
	dir, late := t.TempDir(), t.TempDir()
	conf, state := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "state")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(late, "names"), "late.example.net\n")
	rule := "mode enforce\ntable <names> %s\nrule bad phase helo match helo <names> disconnect \"554 5.7.1 bad\"\n"
	write(conf, fmt.Sprintf(rule, "{ early.example.net }"))
	p := filterproc.Start(t, "-S", "-f", conf, "-s", state)
	p.Ask(1, "x.example.net")
	filterproc.Eventually(t, "the control socket", cli.Listens(state))
	cli.Run(t, state, "flush")
	write(conf, fmt.Sprintf(rule, `file "`+filepath.Join(late, "names")+`"`))
	cli.Run(t, state, "reload")
	if got := p.Ask(2, "late.example.net"); !strings.HasPrefix(got, "disconnect|") {
		t.Errorf("answer %q", got)
	}
	if log := p.End(0); strings.Contains(log, "sandbox") {
		t.Errorf("log %q", log)
	}
}

// TestStateDirectoryOfOthers checks a state directory that other users can change. The filter must
// log the problem once and use the directory, but must not follow symbolic links.
func TestStateDirectoryOfOthers(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	precious := filepath.Join(elsewhere, "precious")
	err := errors.Join(os.Chmod(dir, 0o777), os.WriteFile(precious, []byte("precious"), 0o600),
		os.Symlink(elsewhere, in("sessions")), os.Symlink(precious, in("state.db")), os.Symlink(precious, in("control.sock")))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	p := filterproc.Start(t, "-s", dir)
	if got := p.Ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	log := p.End(0)
	if n := strings.Count(log, "state directory unsafe"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}
	want := []string{dir + " is world-writable; run chmod o-w", in("sessions") + ": is a symbolic link", in("state.db") + ": is a symbolic link"}
	if os.Geteuid() == 0 {
		want = append(want, dir+" belongs to uid 12345, neither to root nor to the filter's uid 0")
	}
	for _, text := range want {
		if !strings.Contains(log, text) {
			t.Errorf("log without %q: %s", text, log)
		}
	}
	if all, err := os.ReadDir(elsewhere); err != nil || len(all) != 1 {
		t.Errorf("elsewhere is now %v, %v", all, err)
	}
	if b, err := os.ReadFile(precious); string(b) != "precious" {
		t.Errorf("the target of the links is now %q, %v", b, err)
	}
}

// TestStateDirectoryMadeLater checks that records are kept until the state
// directory exists.
func TestStateDirectoryMadeLater(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-s", state)
	p.Ask(1, "x.example.net")
	if err := errors.Join(os.Remove(state), os.Mkdir(state, 0o750)); err != nil {
		t.Fatal(err)
	}
	p.End(0)
	if n := len(cli.Dump(t, state)); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}
