package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// withCompanions returns a program whose configuration has companions.
func withCompanions(t *testing.T, text string) *Engine {
	t.Helper()
	name := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(name, lists, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return &Engine{memory: memory.New(), policies: policies{active: c}, set: c.Policy.Settings, Log: slog.New(slog.DiscardHandler)}
}

// TestUnsafeRunDir checks that the filter rejects a directory in which other users can create the
// socket, and that the status names the companions that cannot connect.
func TestUnsafeRunDir(t *testing.T) {
	parent := t.TempDir()
	for name, c := range map[string]struct {
		mode fs.FileMode
		uid  int
		want string
	}{
		"good":   {0o755, os.Geteuid(), ""},
		"group":  {0o775, os.Geteuid(), "other users can write"},
		"sticky": {0o777 | fs.ModeSticky, os.Geteuid(), "other users can write"},
		"owner":  {0o755, 4001, "belongs to user 4001; set rundir to a separate directory if another front end uses it, else run chown"},
		"closed": {0o750, os.Geteuid(), "the users of companions cannot enter"},
		"absent": {0, 0, "no such file"},
	} {
		dir := filepath.Join(parent, name)
		if c.mode != 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, c.mode); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Chown(dir, c.uid, -1); err != nil {
					t.Fatal(err)
				}
			} else if c.uid != os.Geteuid() {
				continue // only root can change the owner
			}
		} else {
			dir = filepath.Join(dir, "below")
		}
		p := withCompanions(t, "rundir \""+dir+"\"\ncompanion sync user 4001 to ipset \"scanwatch\"\n")
		p.prepareCompanions()
		list := p.companions.Status()
		if len(list) != 1 || c.want == "" && list[0].Problem != "" || !strings.Contains(list[0].Problem, c.want) {
			t.Errorf("%s: %+v", name, list)
		}
		if (p.runDir != "") != (c.want == "") {
			t.Errorf("%s: the directory %q is used", name, p.runDir)
		}
	}
}

// TestRunDirOfOther checks that the remedy is not to take the directory from another front end.
func TestRunDirOfOther(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: root is needed to give a directory to another user")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 4001, -1), os.WriteFile(control.SocketPath(dir), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	const want = " belongs to user 4001 and to another front end; set rundir to a separate directory and restart smtpd"
	if got := control.RunDirProblem(dir, "", 998); got != dir+want {
		t.Errorf("%q", got)
	}
}

// TestRunDirIsNoStateDir checks that the filter does not create the companions' socket in the state
// directory. If the filter creates a directory for the socket, companions must be able to enter
// that directory, regardless of the umask.
func TestRunDirIsNoStateDir(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	state, dir := t.TempDir(), filepath.Join(t.TempDir(), "run")
	if err := os.Chmod(state, 0o755); err != nil {
		t.Fatal(err)
	}
	for runDir, want := range map[string]string{state + "/": "is the state directory", dir: ""} {
		p := withCompanions(t, "rundir \""+runDir+"\"\ncompanion sync user 4001 to ipset \"scanwatch\"\n")
		p.dir = state
		p.prepareCompanions()
		if got := p.companions.Status()[0].Problem; want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: problem %q, want %q", runDir, got, want)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("created directory: %v, %v", info, err)
	}
}

// TestSparing checks that companions never receive a ban that an export would omit.
func TestSparing(t *testing.T) {
	p := withCompanions(t, `own-address 203.0.113.9
table <friends> { 203.0.113.1, friend.example.org }
table <partners> { 203.0.113.64/26 }
pass match src <partners>
`)
	now := p.eventTime()
	mail := func(a string) {
		p.memory.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.Delivery{Messages: 1, Senders: []string{"example.org"}}, now)
	}
	login := func(a string) {
		p.memory.Logins.Succeeded(&memory.Client{Addr: netip.MustParseAddr(a), User: []byte("user")}, now)
	}
	mail("192.0.2.1")
	mail("2001:db8:1::25")
	login("192.0.2.2")
	login("2001:db8:2::7")
	for prefix, want := range map[string]bool{
		"192.0.2.1/32": true, "192.0.2.0/24": true, "192.0.2.2/32": true, "192.0.2.3/32": false, "192.0.2.128/25": false,
		"2001:db8:1::25/128": true, "2001:db8:1::26/128": false, "2001:db8:1::/64": true, "2001:db8:1::/48": true, "2001:db8:9::/64": false,
		"2001:db8:2::/64": true, "2001:db8:2::9/128": true,
		"203.0.113.1/32": true, "203.0.113.2/32": false, "203.0.113.70/32": true, "203.0.113.0/24": true, "203.0.113.9/32": true,
		"0.0.0.0/0": true, "::/0": true, "10.1.1.1/32": true, "127.0.0.2/32": true, "fe80::1/128": true,
	} {
		q := netip.MustParsePrefix(prefix)
		if got := p.sparing([]netip.Prefix{q})(q); got != want {
			t.Errorf("%s: spared %t, want %t", q, got, want)
		}
	}
}

// elsewhere adds a ban by the host mx3 to p, and mail that the host mx2 accepted earlier.
func elsewhere(t *testing.T, p *Engine, prefix string, mail ...string) {
	t.Helper()
	now := p.eventTime()
	for host, change := range map[string]func(*memory.Memory){
		"mx2": func(m *memory.Memory) {
			for _, a := range mail {
				m.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.Delivery{Messages: 1, Senders: []string{"example.org"}}, now-2*24*int64(time.Hour/time.Microsecond))
			}
		},
		"mx3": func(m *memory.Memory) {
			if prefix != "" {
				m.Bans.AddPrefix(netip.MustParsePrefix(prefix), time.Hour, "r", now)
			}
		},
	} {
		other := memory.New()
		other.Announce()
		change(other)
		var rows []memory.Foreign
		for _, e := range other.Outgoing(100, 0) {
			rows = append(rows, memory.Foreign{Entry: e, Origin: host})
		}
		if _, err := p.memory.Incoming(rows, 0, now); err != nil {
			t.Fatal(err)
		}
	}
	p.memory.Bans.HaveStanding()
}

// TestExemptLater checks what happens to another host's ban that is already in firewalls when the
// banned hosts become exempt by address. The ban must then be removed from firewalls. Bans on
// networks and on IPv6 /64s must not be added in the first place.
func TestExemptLater(t *testing.T) {
	for _, c := range []struct {
		name, ban, config string
		mail              []string
		withheld          bool
	}{
		{"not exempt", "198.51.100.7/32", "", nil, false},
		{"known elsewhere", "198.51.100.7/32", "", []string{"198.51.100.7"}, true},
		{"another client known elsewhere", "198.51.100.7/32", "", []string{"198.51.100.8"}, false},
		{"a host in the /64 known elsewhere", "2001:db8:1::/64", "", []string{"2001:db8:1::25"}, true},
		{"a /64", "2001:db8:1::/64", "", nil, true},
		{"a gateway", "198.51.100.7/32", "gateway 198.51.100.7\n", nil, true},
		{"an own address", "198.51.100.7/32", "own-address 198.51.100.7\n", nil, true},
		{"a network", "198.51.100.0/24", "", nil, true},
	} {
		p := withCompanions(t, c.config)
		q := netip.MustParsePrefix(c.ban)
		elsewhere(t, p, c.ban)
		ban, ok := p.memory.Bans.Enforced(q, p.eventTime())
		if !ok || !ban.Firewall.IsZero() {
			t.Fatalf("%s: before a rejection: %+v", c.name, ban)
		}
		p.memory.Bans.Rejected(&ban, p.eventTime())
		elsewhere(t, p, "", c.mail...)
		_, before, _ := p.memory.Bans.Changed(0)
		withhold(p)
		if ban, ok = p.memory.Bans.Enforced(q, p.eventTime()); !ok || ban.Firewall.IsZero() != c.withheld {
			t.Errorf("%s: %+v", c.name, ban)
		}
		changed, _, _ := p.memory.Bans.Changed(before)
		if sent := len(changed) > 0; sent != (c.withheld && q.IsSingleIP()) {
			t.Errorf("%s: firewalls are updated: %t", c.name, sent)
		}
	}
}

// TestSparedHost checks that a host is not reported even if it is exempt only because of a name or
// of a DNS list's answer.
func TestSparedHost(t *testing.T) {
	p := withCompanions(t, `companion lookup user 12345
lookup wl allowlist "wl.example.org" codes 127.0.0.2
table <friends> { 203.0.113.1 }
pass match helo "monitor.example.net"
pass match rdns "*.partner.example" fcrdns pass
pass match rdns "*.list.example" fcrdns pass !listed wl
`)
	p.lookups = dnslist.New()
	now := p.eventTime()
	p.memory.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr("192.0.2.1"), Domain: "friendly.example"},
		memory.Delivery{Messages: 1, Senders: []string{"friendly.example"}}, now-2*24*int64(time.Hour/time.Microsecond))
	for h, want := range map[control.Names]bool{
		{}:                              false,
		{RDNS: "mx2.friendly.example"}:  true,
		{RDNS: "mx.unfriendly.example"}: false,
		{Helo: "monitor.example.net"}:   true,
		{Helo: "mx.partner.example"}:    false,
		{RDNS: "mx.partner.example"}:    true,
		{RDNS: "mx.list.example"}:       false, // the list wl has not answered
	} {
		h.Addr = netip.MustParseAddr("192.0.2.77")
		if got := p.sparedHost(h); got != want {
			t.Errorf("%+v: spared %t, want %t", h, got, want)
		}
	}
	client := netip.MustParseAddr("192.0.2.77")
	wl := p.policies.policy().Lookups
	p.lookups.Use(wl)
	p.lookups.Questions(t.Context(), 0) // as a running companion does
	p.lookups.Ask(client, false, nil)
	p.lookups.Questions(t.Context(), time.Minute)
	if err := p.lookups.Answer(dnslist.Answer{Addr: client, List: wl[0].ID()}); err != nil {
		t.Fatal(err)
	}
	if !p.sparedHost(control.Names{Addr: client, RDNS: "mx.list.example"}) {
		t.Error("the answer of the list has no effect")
	}
	if !p.sparedHost(control.Names{Addr: netip.MustParseAddr("::ffff:203.0.113.1")}) {
		t.Error("a friend is reported")
	}
}

// TestWithdraw checks which bans end when a list withdraws its listings.
func TestWithdraw(t *testing.T) {
	p := withCompanions(t, `companion lookup user 12345
lookup bl dnsbl "bl.example.org" codes 127.0.0.2
lookup other dnsbl "other.example.org" codes 127.0.0.2
rule bl phase mail-from match listed bl reject ban 1d
rule other phase mail-from match listed other reject ban 1d
`)
	now := p.eventTime()
	hour := int64(time.Hour / time.Microsecond)
	for i, tt := range []struct {
		rule   string
		listed bool
		at     int64
		ends   bool
	}{
		{"bl", true, now, true},
		{"renamed", true, now, true},
		{"other", true, now, false},
		{"bl", false, now, false},
		{"bl", true, now - 2*hour, false},
	} {
		for _, c := range []*memory.Client{{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, {Addr: netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%d::1", i))},
			{Addr: netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%d::1", i)), Domain: "example.net"}} {
			ban := p.memory.Bans.Add(c, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: tt.rule, Session: 1, Listed: tt.listed}, tt.at)
			p.withdraw(p.policies.policy().Lookups[0], []netip.Addr{c.Addr})
			if _, active := p.memory.Bans.Enforced(ban.Prefix, now+1e6); active == tt.ends {
				t.Errorf("%s, rule %s, listed %v, %d h ago: active %v", ban.Prefix, tt.rule, tt.listed, (now-tt.at)/hour, active)
			}
		}
	}
	if n := p.memory.Bans.Count(now + 1e6).Active; n != 9 {
		t.Errorf("%d bans", n)
	}
}

// TestInvalidConfiguration checks that the filter uses the configured state directory even if other
// statements contain errors.
func TestInvalidConfiguration(t *testing.T) {
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "scanwatch.conf")
	for text, want := range map[string]string{
		"store \"/tmp/scanwatch\" keep 30d\nrule x\n": "/tmp/scanwatch",
		"mode x\nstore \"state\"\n":                   filepath.Join(filepath.Dir(name), "state"),
		"store nonsense\n":                            store.DefaultDir(),
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		p := &policies{file: name, log: slog.New(slog.DiscardHandler), lists: func() *lookup.Lists { return lists }}
		if set := p.start(); set.Store != want || set.Mode != rules.Observe {
			t.Errorf("%q: %+v", text, set)
		}
	}
}

// TestServerToRestart checks that the status of a front end other than smtpd never names smtpd.
func TestServerToRestart(t *testing.T) {
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	absent, invalid := filepath.Join(dir, "absent.conf"), filepath.Join(dir, "invalid.conf")
	if err := os.WriteFile(invalid, []byte("mode x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"absent": absent, "invalid": invalid, "created": ""} {
		p := &policies{file: file, log: slog.New(slog.DiscardHandler), lists: func() *lookup.Lists { return lists }, server: "scanwatch follow", find: func(string) string { return invalid }}
		p.start()
		problems := []string{p.status().Problem}
		if file == "" {
			p.appeared()
			problems = []string{p.status().Problem, p.reload(false).Error()}
		}
		for _, problem := range problems {
			if !strings.Contains(problem, "restart scanwatch follow") || strings.Contains(problem, "smtpd") {
				t.Errorf("%s: %q", name, problem)
			}
		}
	}
}
