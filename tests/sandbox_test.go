//go:build linux

package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"scanwatch/tests/smtpd"
)

// landlocked tells whether this kernel can keep files from a process. Where it
// cannot, what shows that is left out, and told.
func landlocked(t *testing.T) bool {
	t.Helper()
	version, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || version < 1 {
		t.Log("SKIP: THIS KERNEL HAS NO LANDLOCK: THAT FILES ARE OUT OF REACH IS NOT TESTED")
		return false
	}
	return true
}

// TestSandbox: all that the filter does while it runs works in its sandbox, in
// a state directory that it makes itself, with files that somebody replaces; and
// a file that is named too late is explained.
func TestSandbox(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"etc", "lists", "run", "late"} {
		if err := os.Mkdir(in(name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	// As an editor, or a download, does it: a new file takes the old one's name.
	replace := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(in(name+".new"), []byte(text), 0o600), os.Rename(in(name+".new"), in(name))); err != nil {
			t.Fatal(err)
		}
	}
	conf := "mode enforce\nevents \"%s\"\ntable <names> file \"%s\"\n" +
		"rule bad phase helo match helo <names> disconnect \"554 5.7.1 bad\"\n"
	replace("etc/scanwatch.conf", fmt.Sprintf(conf, in("run/events"), in("lists/names")))
	replace("lists/names", "one.example.net\n")
	replace("late/names", "three.example.net\n")

	state := in("state")
	p := begin(t, "-v", "-f", in("etc/scanwatch.conf"), "-s", state)
	scanwatch := func(args ...string) error {
		return exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", state}, args...)...).Run()
	}
	id := 0
	bad := func(name string) bool {
		id++
		return strings.HasPrefix(p.ask(id, name), "disconnect|554 5.7.1 bad [")
	}
	if !bad("one.example.net") || bad("two.example.net") {
		t.Error("the table of the start does not work")
	}
	command(t, state, "flush") // the control socket is there, and sessions are on disk
	var status struct{ Sandbox string }
	if err := json.Unmarshal([]byte(command(t, state, "status", "--json")), &status); err != nil || !strings.Contains(status.Sandbox, "files=") {
		t.Errorf("status tells of the sandbox %q, %v", status.Sandbox, err)
	}
	replace("lists/names", "two.example.net\n")
	replace("etc/scanwatch.conf", "# new\n"+fmt.Sprintf(conf, in("run/events"), in("lists/names")))
	if err := scanwatch("reload"); err != nil {
		t.Errorf("reload: %v", err)
	}
	if bad("one.example.net") || !bad("two.example.net") {
		t.Error("the table that was replaced was not read")
	}
	command(t, state, "ban", "--for", "1h", "--reason", "test", "198.51.100.7")
	if bans := command(t, state, "bans", "--all"); !strings.Contains(bans, "198.51.100.7") {
		t.Errorf("bans: %s", bans)
	}
	// The file of events is moved away, as log rotation does.
	if err := os.Rename(in("run/events"), in("run/events.0")); err != nil {
		t.Fatal(err)
	}
	// A table elsewhere.
	replace("etc/scanwatch.conf", fmt.Sprintf(conf, in("run/events"), in("late/names")))
	if err := scanwatch("reload"); err != nil {
		t.Errorf("reload: %v", err)
	}
	if files := landlocked(t); files && bad("three.example.net") {
		t.Error("a table outside of the sandbox was read")
	}
	bad("four.example.net")
	command(t, state, "flush")
	log := p.end(0)
	for _, want := range []string{"msg=sandbox by=", in("late/names"), "restart smtpd"} {
		if landlocked(t) && !strings.Contains(log, want) {
			t.Errorf("log without %q: %s", want, log)
		}
	}
	if n := strings.Count(log, "permission denied"); landlocked(t) && n != 1 {
		t.Errorf("%d times permission denied, want once, for the new table: %s", n, log)
	}
	if n := len(dump(t, state)); n != id {
		t.Errorf("%d records of %d sessions", n, id)
	}
	for _, name := range []string{"run/events", "run/events.0"} {
		if b, err := os.ReadFile(in(name)); err != nil || !strings.Contains(string(b), `"event":`) {
			t.Errorf("events in %s: %q, %v", name, b, err)
		}
	}
}

// TestNoSandbox: with -S the filter reads what it is told to.
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
	p := begin(t, "-S", "-f", conf, "-s", state)
	p.ask(1, "x.example.net")
	command(t, state, "flush")
	write(conf, fmt.Sprintf(rule, `file "`+filepath.Join(late, "names")+`"`))
	command(t, state, "reload")
	if got := p.ask(2, "late.example.net"); !strings.HasPrefix(got, "disconnect|") {
		t.Errorf("answer %q", got)
	}
	if log := p.end(0); strings.Contains(log, "sandbox") {
		t.Errorf("log %q", log)
	}
}

// TestStateDirectoryOfOthers: what others could change is told in one line, and
// used as before; and what is no file of ours is left alone.
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
	p := begin(t, "-s", dir)
	if got := p.ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	log := p.end(0)
	if n := strings.Count(log, "not safe from others"); n != 1 {
		t.Errorf("told %d times: %s", n, log)
	}
	want := []string{dir + " can be written by everybody: chmod o-w", in("sessions") + ": is a symbolic link", in("state.db") + ": is a symbolic link"}
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

// TestStateDirectoryMadeLater: what was recorded meanwhile is not lost.
func TestStateDirectoryMadeLater(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := begin(t, "-s", state)
	p.ask(1, "x.example.net")
	if err := errors.Join(os.Remove(state), os.Mkdir(state, 0o750)); err != nil {
		t.Fatal(err)
	}
	p.end(0)
	if n := len(dump(t, state)); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}
