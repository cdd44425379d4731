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

func (h *host) killCompanion() {
	_ = h.companion.Process.Kill()
	_ = h.companion.Wait()
}

// TestNewKeyOnlyInCompanion checks that the status names the problem if only the companion uses the
// new key, and the filter still uses the previous key.
func TestNewKeyOnlyInCompanion(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	a := f.host("mx1", "")
	filterproc.Eventually(t, "mx1 shares", a.problem("companion share: running, 0 entries, last success"))
	text, err := os.ReadFile(f.newKey("new.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	f.server.cli("flushall")
	a.killCompanion()
	a.startCompanion()
	filterproc.Eventually(t, "mx1 names the problem", func() bool {
		out := strings.Join(strings.Fields(a.scanwatch("status")), " ")
		return strings.Contains(out, "PROBLEM companion share: connect to the filter: ask the filter for fleet: the filter was started with a different fleet key")
	})
}

// TestOtherSettings checks that the status and the log name a companion with other settings than the
// filter's: one that still observes other hosts' bans, and one with the name of another host.
func TestOtherSettings(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	text, err := os.ReadFile(a.etc)
	if err != nil {
		t.Fatal(err)
	}
	observe := strings.Replace(string(text), "\ncompanion", " observe\ncompanion", 1)
	shares := func() bool { return !strings.Contains(a.scanwatch("status"), "PROBLEM") }
	restart := func(config string) {
		a.killCompanion()
		a.restart(config)
		a.startCompanion()
		filterproc.Eventually(t, "mx1 shares", a.problem("companion share: running, "))
	}
	restart(observe)
	b.ban("198.51.100.1")
	filterproc.Eventually(t, "mx1 observes the ban", func() bool { return strings.Contains(a.scanwatch("bans", "--all"), "198.51.100.1") })
	filterproc.Eventually(t, "mx1 has no problem", shares)

	const different = "the filter and this service were started with different fleet statements; restart smtpd, then this service"
	a.restart(string(text))
	filterproc.Eventually(t, "mx1 names the different settings", a.reports(different))
	filterproc.Eventually(t, "the service logs them", func() bool { return strings.Contains(a.log(), different) })
	a.killCompanion()
	a.startCompanion()
	filterproc.Eventually(t, "mx1 rejects the client", a.turnsAway("198.51.100.1"))
	filterproc.Eventually(t, "mx1 has no problem", shares)

	a.killCompanion()
	a.configure(strings.Replace(string(text), `fleet "mx1"`, `fleet "mx3"`, 1))
	a.startCompanion()
	filterproc.Eventually(t, "mx1 names the other name", a.reports("the filter is the host mx1, and this service is mx3"))
}

// TestWrongKeyWasFirst checks a server whose key was set by a host with a wrong key. After that
// host has been removed, the hosts with the right key must be able to set the server's key.
func TestWrongKeyWasFirst(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a, b := f.host("mx1", ""), f.host("mx2", "")
	filterproc.Eventually(t, "mx1 hears mx2", a.problem("host      mx2: 0 rows, last heard"))
	s.stop()
	s.start()
	s.cli("set", "{scanwatch}:key", "deadbeef-deadbeef")
	for _, h := range []*host{a, b} {
		filterproc.Eventually(t, h.name+" names the key", h.reports("the other hosts use a different fleet key: "))
	}
	s.stop()
	s.start()
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
}

// TestSameName checks that a host restores its bans after another host has used its name.
func TestSameName(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))

	other := &host{t: t, name: "mx1", state: filepath.Join(f.dir, "mx1b"), run: filepath.Join(f.dir, "mx1b.run"), etc: filepath.Join(f.dir, "mx1b.conf")}
	if err := os.Mkdir(other.run, 0o755); err != nil {
		t.Fatal(err)
	}
	other.configure(fmt.Sprintf("mode enforce\nrundir %q\nfleet \"mx1\" key %q\ncompanion share user %d to %s\n", other.run, f.key, companionUser, f.to))
	other.startFilter()
	other.startCompanion()
	other.ban("198.51.100.3")
	filterproc.Eventually(t, "mx2 rejects the client of the other mx1", b.turnsAway("198.51.100.3"))
	filterproc.Eventually(t, "mx1 names the problem", a.reports("another host has the same name, or companion share runs twice on this host"))
	filterproc.Eventually(t, "both services log the problem", func() bool {
		const problem = `msg="not everything shared" companion=share err="host mx1: another host has the same name`
		return strings.Contains(a.log(), problem) && strings.Contains(other.log(), problem)
	})
	other.scanwatch("unban", "198.51.100.1")
	filterproc.Eventually(t, "mx2 lets the client in", b.lets("198.51.100.1"))
	other.killCompanion()
	other.filter.End(0)
	filterproc.Eventually(t, "mx2 lets the client of the other mx1 in", b.lets("198.51.100.3"))
	filterproc.Eventually(t, "mx1 has no problem", func() bool { return !strings.Contains(a.scanwatch("status"), "PROBLEM") })
	if !b.lets("198.51.100.1")() {
		t.Error("the unban by the other mx1 is no longer in effect")
	}

	second := exec.Command(smtpd.Bin("scanwatch"), "share", "-f", a.etc)
	filterproc.LogFile(t, second)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Process.Kill(); _ = second.Wait() })
	filterproc.Eventually(t, "mx1 names the second service", a.reports("another host has the same name, or companion share runs twice on this host"))
}
