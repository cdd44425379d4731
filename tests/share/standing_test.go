//go:build linux

package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// knows imports a log of earlier mail, so that the clients are known to h.
func (h *host) knows(addrs ...string) {
	h.t.Helper()
	log := filepath.Join(h.t.TempDir(), "maillog")
	var text strings.Builder
	for day := range 3 {
		for i, addr := range addrs {
			at := time.Now().AddDate(0, 0, day-4).Add(time.Duration(i) * 100 * time.Millisecond).UTC().Format("2006-01-02T15:04:05Z")
			id, message := fmt.Sprintf("f%07x%08x", day+1, i), fmt.Sprintf("%08x", day<<24|i)
			for _, event := range []string{
				fmt.Sprintf("connected address=%s host=mail.sender%d.example", addr, i),
				"message msgid=" + message + " size=100 nrcpt=1 proto=ESMTP",
				fmt.Sprintf("envelope evpid=%s00000001 from=<joe@sender%d.example> to=<bob@example.org>", message, i),
				"disconnected reason=quit",
			} {
				fmt.Fprintf(&text, "%s mx smtpd[1]: %s smtp %s\n", at, id, event)
			}
		}
	}
	if err := os.WriteFile(log, []byte(text.String()), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.scanwatch("import", "smtpd-log", log)
}

// bannedOn3 starts three hosts. It returns mx1, and two clients that mx3 has banned: one that mx2
// knows, and an unknown one. mx1 accepts the known client, and has written the bans to disk.
func bannedOn3(t *testing.T, f *fleet, more string) (mx1 *host, known, unknown string) {
	t.Helper()
	known, unknown = "198.51.100.7", "198.51.100.8"
	a, b, c := f.host("mx1", more), f.host("mx2", ""), f.host("mx3", "")
	b.knows(known)
	filterproc.Eventually(t, "mx1 has the standing", func() bool { return strings.Contains(a.scanwatch("status"), "host      mx2: 2 rows,") })
	c.ban(known)
	c.ban(unknown)
	filterproc.Eventually(t, "mx1 has both bans", func() bool { return strings.Contains(a.scanwatch("status"), "host      mx3: 2 rows") })
	filterproc.Eventually(t, "mx1 rejects the unknown client", a.turnsAway(unknown))
	if !a.lets(known)() {
		t.Fatal("mx1 rejects the known client")
	}
	a.scanwatch("flush")
	return a, known, unknown
}

// rejectsOnly waits until h rejects the unknown client. It checks that h accepts the known client
// during the whole time.
func (h *host) rejectsOnly(unknown, known string) {
	h.t.Helper()
	filterproc.Eventually(h.t, h.name+" rejects the unknown client", func() bool {
		if answer := h.come(known); answer != "proceed" {
			h.t.Fatalf("%s rejects the client that is known on another host: %s", h.name, answer)
		}
		return h.turnsAway(unknown)()
	})
	if answer := h.come(known); answer != "proceed" {
		h.t.Fatalf("%s rejects the client that is known on another host: %s", h.name, answer)
	}
}

// TestRestartedFilter checks bans by other hosts after a restart of the filter. The bans must be
// enforced, but not against a client that is known on another host. This must be true even if the
// companion, the server and that host are not running, or if the server has lost its rows.
func TestRestartedFilter(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a, known, unknown := bannedOn3(t, f, "")
	a.filter.End(0)
	a.startFilter()
	a.rejectsOnly(unknown, known)

	s.stop() // the companion still has all rows
	a.filter.End(0)
	a.startFilter()
	a.rejectsOnly(unknown, known)

	a.killCompanion()
	a.filter.End(0)
	a.startFilter()
	a.rejectsOnly(unknown, known)
	if out := strings.Join(strings.Fields(a.scanwatch("why", known)), " "); !strings.Contains(out, ", but exempt") || !strings.Contains(out, "[x] known (on mx2: ") {
		t.Error(out)
	}
	a.startCompanion()
	filterproc.Eventually(t, "the companion names the server", a.problem("companion share: server:"))
	a.rejectsOnly(unknown, known)

	s.start() // the server has no rows until mx2 and mx3 send theirs, at any time
	a.rejectsOnly(unknown, known)
	filterproc.Eventually(t, "mx1 hears mx3", a.problem("host      mx3: 2 rows"))
	a.rejectsOnly(unknown, known)
}

// TestNewMember checks a new member of a fleet whose server has just lost its rows. The new member
// must not enforce bans until the other hosts have had time to send their standing.
func TestNewMember(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	c := f.host("mx3", "")
	c.ban("198.51.100.8")
	f.claimed(time.Now())
	a := f.host("mx1", "")
	filterproc.Eventually(t, "mx1 has the ban", func() bool { return strings.Contains(a.scanwatch("bans"), "198.51.100.8") })
	if !a.lets("198.51.100.8")() || !a.problem("1 of other hosts not enforced: waiting for the standing of other hosts")() {
		t.Error(a.scanwatch("status"))
	}
	if out := a.scanwatch("why", "198.51.100.8"); !strings.Contains(strings.Join(strings.Fields(out), " "), "but not enforced: waiting for the standing of other hosts") {
		t.Error(out)
	}
	f.claimed(time.Unix(1, 0))
	a.killCompanion()
	a.startCompanion()
	filterproc.Eventually(t, "mx1 rejects the client", a.turnsAway("198.51.100.8"))
}

// TestFilesAfterRestart checks that bans and standing from files remain in effect after a restart.
// The test does not import the files again. The test also imports a file from a friend.
func TestFilesAfterRestart(t *testing.T) {
	f := newFleet(t, nil)
	a, b, c, friend := f.alone("mx1"), f.alone("mx2"), f.alone("mx3"), f.alone("pal")
	known, unknown := "198.51.100.7", "198.51.100.8"
	b.knows(known)
	c.ban(known)
	c.ban(unknown)
	friend.ban("192.0.2.1")
	check := func(what string) {
		t.Helper()
		if !a.lets(known)() || !a.turnsAway(unknown)() {
			t.Error(what, a.scanwatch("status"))
		}
	}
	a.scanwatch("facts", "import", b.export(f), c.export(f))
	check("after an import")
	a.scanwatch("flush")
	a.filter.End(0)
	a.startFilter()
	check("after a restart")
	key := f.newKey("friends.key")
	a.scanwatch("facts", "import", "--key", key, friend.export(f, "--bans", "--key", key))
	check("after an import of a friend's file")
}

// TestFirewallOfForeignBans checks when a firewall and an export contain another host's ban: only
// after the filter has enforced the ban, and never for an exempt client.
func TestFirewallOfForeignBans(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	dir := filepath.Join(f.dir, "out")
	const user = 54322
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bans")
	a, known, unknown := bannedOn3(t, f, fmt.Sprintf("gateway 198.51.100.9\ncompanion sync user %d to file %q format plain\n", user, file))
	sync := exec.Command(smtpd.Bin("scanwatch"), "sync", "-f", a.etc)
	filterproc.LogFile(t, sync)
	if err := sync.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sync.Process.Kill(); _ = sync.Wait() })
	blocked := func(want string) func() bool {
		return func() bool {
			text, _ := os.ReadFile(file)
			return strings.Join(strings.Fields(string(text)), " ") == want
		}
	}
	filterproc.Eventually(t, "the firewall has the unknown client", blocked(unknown))
	exported := func() string { return strings.Join(strings.Fields(a.scanwatch("export", "plain")), " ") }
	if got := exported(); got != unknown {
		t.Errorf("exported: %s", got)
	}

	b := f.host("mx4", "")
	b.ban("198.51.100.9")    // a gateway
	b.ban("198.51.101.0/24") // a network
	b.ban("198.51.100.10")   // has not connected yet
	filterproc.Eventually(t, "mx1 has all bans", func() bool { return strings.Contains(a.scanwatch("status"), "host      mx4: 3 rows") })
	filterproc.Eventually(t, "mx1 rejects a client in the network", a.turnsAway("198.51.101.1"))
	for _, addr := range []string{"198.51.100.9", known} {
		if !a.lets(addr)() {
			t.Errorf("%s is rejected", addr)
		}
	}
	if a.scanwatch("flush"); exported() != unknown || !blocked(unknown)() {
		t.Errorf("exported: %s", exported())
	}
	if !a.turnsAway("198.51.100.10")() {
		t.Error("the ban of the address has no effect")
	}
	filterproc.Eventually(t, "the firewall has both clients", blocked(unknown+" 198.51.100.10"))

	b.knows("198.51.100.10")
	filterproc.Eventually(t, "the firewall has only the unknown client", blocked(unknown))
	if a.scanwatch("flush"); exported() != unknown {
		t.Errorf("exported: %s", exported())
	}
}

// TestOwnBans checks a host's own bans while another host has longer bans. The longer bans do not
// apply to clients that are known on a third host, but the host's own bans must still apply: by a
// rule, by the operator, in exports, and after a restart without the server. Once an exempt client
// has connected from an address, a firewall must not contain another host's ban on that address.
func TestOwnBans(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	const known, unnamed = "198.51.100.7", "203.0.113.9"
	a, b, c := f.host("mx1", `table <named> { .passed.example }
pass match rdns <named> fcrdns pass
rule guess phase end match count auth-unsupported > 2 in 1d by src ban 1h
`), f.host("mx2", ""), f.host("mx3", "")
	b.knows(known)
	filterproc.Eventually(t, "mx1 has the standing", func() bool { return strings.Contains(a.scanwatch("status"), "host      mx2: 2 rows,") })
	for _, p := range []string{known, "198.51.100.0/24", unnamed} {
		c.scanwatch("ban", "--force", "--for", "96h", p)
	}
	filterproc.Eventually(t, "mx1 rejects a banned client", a.turnsAway(unnamed))
	if !a.lets(known)() {
		t.Fatal("mx1 rejects a client that is known on mx2")
	}
	exported := func() string {
		a.scanwatch("flush")
		return strings.Join(strings.Fields(a.scanwatch("export", "plain")), " ")
	}
	if got := exported(); got != unnamed {
		t.Errorf("exported: %s", got)
	}
	named := filterproc.Guest{Src: unnamed, Port: 25, Helo: "mx.passed.example", Mail: true}
	if answer := a.play(named)[0]; answer != "proceed" {
		t.Error(answer)
	}
	if got := exported(); got != "" {
		t.Errorf("exported after an exempt client has connected: %s", got)
	}
	for range 3 {
		a.play(filterproc.Guest{Src: known, Port: 25, Helo: "mx.example.net", Auth: true})
	}
	check := func(when string) {
		t.Helper()
		if !a.turnsAway(known)() {
			t.Errorf("%s: the ban of mx1 has no effect: %s", when, a.scanwatch("bans"))
		}
		if got := exported(); got != known {
			t.Errorf("%s: exported: %s", when, got)
		}
	}
	check("a ban by a rule")
	if out := a.scanwatch("why", known); !strings.Contains(out, "by rule guess in session") || !strings.Contains(out, "manual on mx3") {
		t.Error(out)
	}
	f.server.stop()
	a.killCompanion()
	a.filter.End(0)
	a.startFilter()
	check("after a restart, without the server")
	a.ban(known)
	check("a manual ban")
}
