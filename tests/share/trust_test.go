//go:build linux

package share

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// run runs scanwatch on a host and returns its output and whether it succeeded.
func (h *host) try(args ...string) (string, error) {
	out, err := exec.Command(smtpd.Bin("scanwatch"), append(args, "-f", h.etc, "-s", h.state)...).CombinedOutput()
	return string(out), err
}

// export exports the bans of h and returns the name of the file.
func (h *host) export(f *fleet, args ...string) string {
	h.t.Helper()
	file := filepath.Join(f.dir, h.name+".facts")
	h.scanwatch(append([]string{"facts", "export", "-o", file}, args...)...)
	return file
}

// restart restarts the filter with another configuration.
func (h *host) restart(config string) {
	h.t.Helper()
	h.filter.End(0)
	h.configure(config)
	h.startFilter()
}

// TestIgnoreFiles checks that nothing from the file of an ignored host is used, and that
// its earlier bans end, also after a restart of the filter.
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

// TestIgnore checks that a ban of a host ends when the host is ignored.
func TestIgnore(t *testing.T) {
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	b.ban("198.51.100.7")
	filterproc.Eventually(t, "mx1 rejects the client", a.turnsAway("198.51.100.7"))
	_ = a.companion.Process.Kill()
	_ = a.companion.Wait()
	a.restart(fmt.Sprintf("mode enforce\nrundir %q\nfleet \"mx1\" key %q ignore \"mx2\"\ncompanion share user %d to %s\n", a.run, f.key, companionUser, f.to))
	if !a.turnsAway("198.51.100.7")() {
		t.Fatal("the ban is not in state.db")
	}
	a.startCompanion()
	filterproc.Eventually(t, "mx1 lets the client in", a.lets("198.51.100.7"))
}

// TestDropFiles drops the rows of a host without a companion.
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

// TestFriend checks that the unban of a host with another key ends its own bans, but not
// those of this host and its fleet, even if the host uses the name of one of them.
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
