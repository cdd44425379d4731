//go:build linux

package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// try runs scanwatch on a host, and returns its output and its error.
func (h *host) try(args ...string) (string, error) {
	out, err := exec.Command(smtpd.Bin("scanwatch"), append(args, "-f", h.etc, "-s", h.state)...).CombinedOutput()
	return string(out), err
}

// export exports h's bans and returns the file name.
func (h *host) export(f *fleet, args ...string) string {
	h.t.Helper()
	file := filepath.Join(f.dir, h.name+".facts")
	h.scanwatch(append([]string{"facts", "export", "-o", file}, args...)...)
	return file
}

// restart restarts the filter with a different configuration.
func (h *host) restart(config string) {
	h.t.Helper()
	h.filter.End(0)
	h.configure(config)
	h.startFilter()
}

// TestIgnoreFiles checks that a file of an ignored host is not used at all. Earlier bans by that
// host must end, even after a restart of the filter.
func TestIgnoreFiles(t *testing.T) {
	f := newFleet(t, nil)
	a, b, c := f.alone("mx1"), f.alone("mx2"), f.alone("mx3")
	b.ban("198.51.100.7")
	c.ban("198.51.100.8")
	two, three := b.export(f), c.export(f)
	a.scanwatch("facts", "import", two, three)
	if !a.turnsAway("198.51.100.7")() || !a.turnsAway("198.51.100.8")() {
		t.Fatal("mx1 has not received the bans")
	}
	a.restart(fmt.Sprintf("mode enforce\nfleet \"mx1\" key %q ignore \"mx2\"\n", f.key))
	own := a.export(f)
	out, err := a.try("facts", "import", own, two, three)
	if err != nil || !strings.Contains(out, two+" omitted: the statement fleet ignores mx2") || !strings.Contains(out, own+" omitted: mx1 is this host") {
		t.Error(err, out)
	}
	if !a.lets("198.51.100.7")() || !a.turnsAway("198.51.100.8")() {
		t.Error("the ban of the ignored host is in effect, or that of another one is not")
	}
}

// TestIgnore checks that a host's bans end when the host is ignored.
func TestIgnore(t *testing.T) {
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	b.ban("198.51.100.7")
	filterproc.Eventually(t, "mx1 rejects the client", a.turnsAway("198.51.100.7"))
	_ = a.companion.Process.Kill()
	_ = a.companion.Wait()
	a.restart(fmt.Sprintf("mode enforce\nrundir %q\nfleet \"mx1\" key %q ignore \"mx2\"\ncompanion share user %d to %s\n", a.run, f.key, companionUser, f.to))
	if !strings.Contains(a.scanwatch("bans"), "198.51.100.7") {
		t.Fatal("the ban is not in state.db")
	}
	a.startCompanion()
	filterproc.Eventually(t, "mx1 has no ban", func() bool { return !strings.Contains(a.scanwatch("bans"), "198.51.100.7") })
	if !a.lets("198.51.100.7")() {
		t.Error("mx1 rejects the client")
	}
}

// TestDropFiles checks that a host's rows can be dropped without a companion.
func TestDropFiles(t *testing.T) {
	f := newFleet(t, nil)
	a, b := f.alone("mx1"), f.alone("mx2")
	b.ban("198.51.100.7")
	a.scanwatch("facts", "import", b.export(f))
	if out, err := a.try("share", "drop", "mx3"); err == nil || !strings.Contains(out, "known: mx2") {
		t.Error(err, out)
	}
	if out := a.scanwatch("share", "drop", "mx2"); out != "1 row of mx2 dropped\n" || !a.lets("198.51.100.7")() {
		t.Error(out)
	}
	if out, err := a.try("share", "drop", "mx2"); err == nil || !strings.Contains(out, "no other host is known") {
		t.Error(err, out)
	}
}

// TestFriend checks an unban from a host with a different key. The unban must end that host's bans,
// but not the bans of this host and its fleet, even if the host uses the name of a host in the
// fleet.
func TestFriend(t *testing.T) {
	f := newFleet(t, nil)
	a, b := f.alone("mx1"), f.alone("mx2")
	key := f.newKey("friends.key")
	friend := f.alone("mx9")
	a.ban("198.51.100.1")
	b.ban("198.51.100.2")
	a.scanwatch("facts", "import", b.export(f))
	for i := range 3 {
		friend.scanwatch("ban", "--force", "--for", "2h", fmt.Sprintf("198.51.100.%d", i+1))
	}
	args := []string{"--bans", "--host", "mx2", "--key", key}
	a.scanwatch("facts", "import", "--key", key, friend.export(f, args...))
	if !a.turnsAway("198.51.100.3")() {
		t.Error("mx1 has not received the ban of the friend")
	}
	for i := range 3 {
		friend.scanwatch("unban", fmt.Sprintf("198.51.100.%d", i+1))
	}
	if out := a.scanwatch("facts", "import", "--key", key, friend.export(f, args...)); !strings.Contains(out, "friend.mx2: ") {
		t.Error(out)
	}
	if !a.turnsAway("198.51.100.1")() || !a.turnsAway("198.51.100.2")() || !a.lets("198.51.100.3")() {
		t.Error(a.scanwatch("bans", "--all"))
	}
}

// TestReload checks that scanwatch reload reports a changed fleet statement, and that scanwatch
// status shows the options in effect.
func TestReload(t *testing.T) {
	f := newFleet(t, nil)
	a := f.alone("mx1")
	config := fmt.Sprintf("mode enforce\nfleet \"mx1\" key %q observe ignore { \"mx8\", \"mx9\" }\n", f.key)
	a.configure(config)
	if out, err := a.try("reload"); err == nil || !strings.Contains(out, "fleet changed; restart smtpd, then the service of companion share") {
		t.Error(err, out)
	}
	a.restart(config)
	if out := a.scanwatch("status"); !strings.Contains(out, ", bans by other hosts are only observed, ignoring mx8, mx9\n") {
		t.Error(out)
	}
}

// TestFileStatus checks that the status and the report name hosts whose files were imported.
func TestFileStatus(t *testing.T) {
	f := newFleet(t, nil)
	a, b, c := f.alone("mx1"), f.alone("mx2"), f.alone("mx3")
	b.ban("198.51.100.7")
	c.ban("198.51.100.0/17")
	for _, h := range []*host{b, c} {
		file := h.export(f)
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info, err)
		}
		a.scanwatch("facts", "import", file)
	}
	out := a.scanwatch("status")
	for _, want := range []string{"host      mx2: 1 row, latest change ", " from a file written ", "host      mx3: 0 rows"} {
		if !strings.Contains(out, want) {
			t.Errorf("the status does not contain %q:\n%s", want, out)
		}
	}
	if out := a.scanwatch("report"); !strings.Contains(out, "host mx3: bans of networks larger than /24") {
		t.Error(out)
	}
	c.scanwatch("unban", "198.51.100.7") // unban another host's ban
	a.scanwatch("facts", "import", c.export(f))
	if !a.lets("198.51.100.7")() {
		t.Error(a.scanwatch("bans", "--all"))
	}
	if log := a.filter.End(0); !strings.Contains(log, `msg="unbanned by other hosts" bans=1 prefixes=198.51.100.7/32 hosts=mx3`) {
		t.Error(log)
	}
}
