package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// asUser calls f as another user. Only the calling thread changes its user.
func asUser(t *testing.T, uid int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set := func(uid int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Fatal(errno)
		}
	}
	set(uid)
	defer set(0)
	f()
}

// User IDs of companions in the tests.
const (
	syncUser, serveUser, stranger, forwardUser, lookUser = 4001, 4002, 4003, 4004, 4005
)

// lookups holds the DNS lists' answers in the tests.
var lookups = dnslist.New()

// serveCompanions starts a server for companions that offers all of the filter's
// commands.
func serveCompanions(t *testing.T, m *memory.Memory, enforced func() bool, spared func([]netip.Prefix) func(netip.Prefix) bool) (runDir, stateDir string, c *Companions) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, to connect as other users")
	}
	runDir, err := os.MkdirTemp("", "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runDir) })
	stateDir = t.TempDir()
	if err := errors.Join(os.Chmod(runDir, 0o755), os.Chmod(stateDir, 0o750)); err != nil {
		t.Fatal(err)
	}
	w := store.Open(stateDir, store.Options{Now: func() time.Time { return noon }})
	state := store.OpenState(stateDir, store.StateOptions{Buckets: memory.Buckets(), Changes: m.Changes, Rewrite: m.Rewrite})
	c = NewCompanions([]*rules.Companion{
		{Role: rules.RoleSync, User: "4001", Target: "nftables", Argument: "inet filter scanwatch"},
		{Role: rules.RoleServe, User: "4002"},
		{Role: rules.RoleForward, User: "4004", Target: rules.ForwardStdout},
		{Role: rules.RoleLookup, User: "4005"},
		{Role: rules.RoleSync, User: "no-such-user", Target: "pf", Argument: "scanwatch"},
		{Role: rules.RoleSync, User: "0", Target: "ipset", Argument: "scanwatch"},
	})
	commands := append(StoreCommands(w), StatusCommand(func() Status { return Status{Companions: c.Status()} }))
	commands = append(commands, MemoryCommands(m, state, noon.UnixMicro, enforced, func(memory.Ban) {})...)
	commands = append(commands, BansCommand(m.Bans, state, noon.UnixMicro, spared, enforced), c.NoteCommand(), WatchCommand(new(events.Fan)), SparedCommand(func(n Names) bool {
		q := netip.PrefixFrom(n.Addr, n.Addr.BitLen())
		return spared([]netip.Prefix{q})(q)
	}, enforced))
	commands = append(commands, LookupCommands(lookups)...)
	l, err := listen(runDir, companionsMode)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); (&Server{Commands: commands, Companions: c}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-done
		state.Close()
		w.Close()
	})
	return runDir, stateDir, c
}

// TestGone checks that a companion is no longer counted as a client if it disconnects
// while waiting for changes.
func TestGone(t *testing.T) {
	m := memory.New()
	m.Load(func(func(store.Entry) bool) {}, noon.UnixMicro())
	dir, _, _ := serveCompanions(t, m, yes, sparesNone)
	for i := range 5 * maxOfCompanion {
		var c *Client
		var err error
		asUser(t, syncUser, func() {
			for deadline := time.Now().Add(MaxWait / 4); ; {
				if c, err = DialCompanion(dir); err == nil || time.Now().After(deadline) {
					return
				}
				time.Sleep(time.Millisecond) // the server notices the disconnect a moment later
			}
		})
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		list, _, err := c.Bans(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c.conn, "bans %d 20\n", list.Generation); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// TestRoles checks that each user may use only the commands of its role. A user without a
// role must receive the reason for the rejection.
func TestRoles(t *testing.T) {
	m := memory.New()
	dir, state, companions := serveCompanions(t, m, yes, sparesNone)
	others := [][]string{{"status"}, {"flush"}, {"segments"}, {"snapshot", "x"}, {"state"}, {"days"},
		{"ban", "192.0.2.1", "60", "x"}, {"unban", "192.0.2.1", Exact}, {"learn", "1;example.org"}}
	bans, events := [][]string{{"bans", "0", "0"}}, [][]string{{"spared", "192.0.2.1", "=", "="}, {"watch", "-", "-"}} // watch ends the connection
	questions := [][]string{{"questions", "0"}, {"facts", "192.0.2.1;bl;-;60"}}
	dial := func(uid int) (c *Client, err error) {
		asUser(t, uid, func() { c, err = DialCompanion(dir) })
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
	for uid, may := range map[int]struct{ own, not [][]string }{
		syncUser: {nil, slices.Concat(events, questions)}, serveUser: {nil, slices.Concat(events, questions)},
		forwardUser: {events, slices.Concat(bans, questions)}, lookUser: {questions, slices.Concat(bans, events)},
	} {
		c, err := dial(uid)
		if err != nil {
			t.Fatal(err)
		}
		if may.own == nil {
			if list, _, err := c.Bans(0, 0); err != nil || !list.Full || !list.Enforced {
				t.Errorf("user %d: bans: %+v, %v", uid, list, err)
			}
		}
		for _, words := range slices.Concat(others, may.not) {
			if err := c.ask(nil, words...); err == nil || !strings.Contains(err.Error(), "may not use "+words[0]) {
				t.Errorf("user %d: %s: %v", uid, words[0], err)
			}
		}
		for _, name := range []string{state, state + "/state.db", state + "/sessions", SocketPath(state)} {
			asUser(t, uid, func() {
				if f, err := os.Open(name); err == nil {
					f.Close()
					t.Errorf("user %d can open %s", uid, name)
				} else if !errors.Is(err, fs.ErrPermission) {
					t.Errorf("user %d: %v", uid, err)
				}
			})
		}
		for _, words := range may.own {
			if err := c.ask(nil, words...); err != nil {
				t.Errorf("user %d: %s: %v", uid, words[0], err)
			}
		}
		// A companion that leaks connections must not prevent other companions from
		// connecting.
		if _, err := dial(uid); err != nil {
			t.Errorf("second connection of user %d: %v", uid, err)
		}
		if _, err := dial(uid); err == nil {
			t.Errorf("user %d has more than %d connections", uid, maxOfCompanion)
		}
	}
	if _, err := dial(stranger); err == nil || !strings.Contains(err.Error(), "user 4003 has no role") {
		t.Errorf("a user without a role: %v", err)
	}
	root, err := dial(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Status(); err != nil {
		t.Errorf("root: %v", err)
	}
	if list := companions.Problems(); len(list) != 2 || !strings.Contains(list[0], "no-such-user") || !strings.Contains(list[1], "may use all commands") {
		t.Errorf("problems %q", list)
	}
}

// TestSharedUser checks that several companions can run as the same user. One user's
// companions must not prevent another user's companion from connecting.
func TestSharedUser(t *testing.T) {
	var list []*rules.Companion
	for _, target := range []string{"a", "b", "c", "d", "e"} {
		list = append(list, &rules.Companion{Role: rules.RoleSync, User: "4001", Target: "ipset", Argument: target})
	}
	list = append(list, &rules.Companion{Role: rules.RoleServe, User: "4002"})
	dir := serveCompanionsOf(t, list)
	connect := func(uid, n int) (clients int) {
		for range n {
			asUser(t, uid, func() {
				if c, err := DialCompanion(dir); err == nil {
					t.Cleanup(func() { c.Close() })
					clients++
				}
			})
		}
		return clients
	}
	if n := connect(4001, 11); n != 10 {
		t.Errorf("the user of five companions has %d connections", n)
	}
	if n := connect(4002, 3); n != 2 {
		t.Errorf("the user of one companion has %d connections", n)
	}
}

// serveCompanionsOf starts a server for companions that offers no commands.
func serveCompanionsOf(t *testing.T, list []*rules.Companion) (runDir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, to connect as other users")
	}
	runDir, err := os.MkdirTemp("", "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runDir) })
	l, err := listen(runDir, companionsMode)
	if err := errors.Join(err, os.Chmod(runDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); (&Server{Companions: NewCompanions(list)}).Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return runDir
}

// TestNote checks that a companion can announce only itself.
func TestNote(t *testing.T) {
	dir, _, companions := serveCompanions(t, memory.New(), yes, sparesNone)
	var c *Client
	asUser(t, syncUser, func() {
		var err error
		if c, err = DialCompanion(dir); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	for _, name := range []string{"serve", "sync ipset scanwatch", "nothing"} {
		if err := c.Note(name, 1, 0, nil); err == nil || !strings.Contains(err.Error(), "no companion") {
			t.Errorf("as %s: %v", name, err)
		}
	}
	const name = "sync nftables inet filter scanwatch"
	if err := c.Note(name, 7, 0, ErrNoResult); err != nil {
		t.Fatal(err)
	}
	if s := companions.Status()[0]; s.Error != "" || !s.Done.IsZero() || !s.Running(time.Now()) {
		t.Errorf("without a result: %+v", s)
	}
	if err := c.Note(name, 7, 3, nil); err != nil {
		t.Fatal(err)
	}
	s := companions.Status()[0]
	if s.Name != name || s.Entries != 7 || s.Lost != 3 || s.Error != "" || s.Done.IsZero() || !s.Running(time.Now()) || s.Running(time.Now().Add(silent)) {
		t.Errorf("after a success: %+v", s)
	}
	if err := c.Note(name, 7, 0, errors.New("no such set\x1b[2J"+strings.Repeat("x", 400))); err != nil {
		t.Fatal(err)
	}
	if s := companions.Status()[0]; !strings.HasPrefix(s.Error, "no such set?[2J") || len(s.Error) > maxNote {
		t.Errorf("after an error: %+v", s)
	}
	if s := companions.Status()[1]; !s.Seen.IsZero() || s.Running(time.Now()) {
		t.Errorf("a companion that does not run: %+v", s)
	}
}

// TestBanList checks the answers to "bans": all bans, changes, bans that firewalls must not
// enforce, and the empty list in observe mode.
func TestBanList(t *testing.T) {
	m := memory.New()
	enforced := true
	spared := netip.MustParsePrefix("198.51.100.1/32")
	dir, _, _ := serveCompanions(t, m, func() bool { return enforced }, func([]netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return p == spared }
	})
	c, err := DialCompanion(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	now := noon.UnixMicro()
	net := netip.MustParsePrefix("203.0.113.0/24")
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "greedy", Session: 0xabc}, now)
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.2")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "watched", Observe: true}, now)
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.3")}, memory.BanRequest{Ladder: []time.Duration{0}, Rule: "an offence only"}, now)
	m.Bans.AddPrefix(spared, time.Hour, "manual", now)
	ask := func(generation uint64, full bool, want ...BanEntry) uint64 {
		t.Helper()
		list, got, err := c.Bans(generation, 0)
		if err != nil || list.Full != full || list.Enforced != enforced || len(got) != len(want) {
			t.Fatalf("%+v, %+v, %v; want full %t, %+v", list, got, err, full, want)
		}
		for _, w := range want {
			found := false
			for _, g := range got {
				found = found || g == w
			}
			if !found {
				t.Errorf("%+v is missing in %+v", w, got)
			}
		}
		return list.Generation
	}
	host := BanEntry{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Seconds: 3600, Rule: "greedy", Session: "0000000000000abc"}
	manual := BanEntry{Prefix: spared, Seconds: 3600, Rule: "manual", Spared: true}
	at := ask(0, true, host, manual)
	at = ask(at, false)
	m.Bans.AddPrefix(net, 2*time.Hour, "manual", now)
	m.Bans.Revoke(host.Prefix, false, now)
	at = ask(at, false, BanEntry{Prefix: net, Seconds: 7200, Rule: "manual"}, BanEntry{Prefix: host.Prefix})
	enforced = false
	m.Bans.Restart()
	at = ask(at, true)
	enforced = true
	m.Bans.Restart()
	at = ask(at, true, manual, BanEntry{Prefix: net, Seconds: 7200, Rule: "manual"})
	// A companion that has missed changes receives all bans.
	for i := range 10000 {
		m.Bans.Add(&memory.Client{Addr: netip.AddrFrom4([4]byte{100, 1, byte(i >> 8), byte(i)})}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "greedy"}, now)
	}
	if list, got, err := c.Bans(at, 0); err != nil || !list.Full || len(got) != 10002 {
		t.Errorf("after 10,000 bans: %+v, %d entries, %v", list, len(got), err)
	}
	if _, _, err := c.Bans(1, MaxWait+time.Second); err == nil {
		t.Error("a wait above the limit is accepted")
	}
}

// TestBansWait checks that a waiting bans command returns at the next change.
func TestBansWait(t *testing.T) {
	m := memory.New()
	dir, _, _ := serveCompanions(t, m, yes, sparesNone)
	c, err := DialCompanion(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, _, err := c.Bans(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		entries []BanEntry
		err     error
	}
	got := make(chan result)
	go func() {
		_, entries, err := c.Bans(list.Generation, MaxWait)
		got <- result{entries, err}
	}()
	p := netip.MustParsePrefix("192.0.2.1/32")
	m.Bans.AddPrefix(p, time.Hour, "x", noon.UnixMicro())
	if r := <-got; r.err != nil || len(r.entries) != 1 || r.entries[0].Prefix != p {
		t.Errorf("%+v", r)
	}
}

// TestFacts checks that the lookup companion can answer only the questions that it has received.
// The filter must ignore other answers.
func TestFacts(t *testing.T) {
	lookups = dnslist.New()
	bl := &rules.Lookup{Name: "bl", Zone: "bl.example.org", Codes: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
	lookups.Use([]*rules.Lookup{bl})
	dir, _, _ := serveCompanions(t, memory.New(), yes, sparesNone)
	var c *Client
	asUser(t, lookUser, func() {
		var err error
		if c, err = DialCompanion(dir); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	state := func(a netip.Addr) dnslist.State { return lookups.Ask(a, false, nil)[0].State }
	code := []netip.Addr{netip.MustParseAddr("127.0.0.2")}
	host, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::7")
	fact := dnslist.Answer{Addr: host, List: bl.ID(), Codes: code, TTL: time.Minute}
	if sum, err := SendFacts(c, []dnslist.Answer{fact}); err != nil || sum != (Facts{Refused: 1}) || state(host) != dnslist.Unknown {
		t.Errorf("without a question: %+v, %v", sum, err)
	}
	if all, lists, err := Questions(c, 0); err != nil || len(all) != 0 || !slices.Equal(lists, []string{bl.ID()}) {
		t.Errorf("questions %v, %v, %v", all, lists, err)
	}
	if s := state(host); s != dnslist.Pending {
		t.Errorf("state %v", s)
	}
	if all, _, err := Questions(c, MaxWait); err != nil || len(all) != 1 || all[0].Addr != host || !slices.Equal(all[0].Lists, []string{bl.ID()}) {
		t.Errorf("questions %v, %v", all, err)
	}
	facts := []dnslist.Answer{{Addr: other, List: bl.ID(), Codes: code}, {Addr: host, List: "other", Codes: code}, fact, fact}
	if sum, err := SendFacts(c, facts); err != nil || sum != (Facts{Accepted: 1, Refused: 3}) {
		t.Errorf("%+v, %v", sum, err)
	}
	if state(host) != dnslist.Listed || state(other) == dnslist.Listed {
		t.Errorf("%v, %v", state(host), state(other))
	}
	if sum, err := SendFacts(c, []dnslist.Answer{{List: bl.ID(), Cause: "disabled"}}); err != nil || sum != (Facts{Accepted: 1}) || state(host) != dnslist.Pending {
		t.Errorf("withdrawn listings: %+v, %v, state %v", sum, err, state(host))
	}
	if all, _, err := Questions(c, MaxWait); err != nil || len(all) == 0 {
		t.Errorf("questions %v, %v", all, err)
	}
	var many []dnslist.Answer
	for i := range 500 { // more than fit into one line
		a := netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})
		lookups.Ask(a, false, nil)
		many = append(many, dnslist.Answer{Addr: a, List: bl.ID(), Cause: "timeout"})
	}
	asked := 1 // questions in this test so far
	for asked <= len(many) {
		all, _, err := Questions(c, MaxWait)
		if err != nil || len(all) == 0 {
			t.Fatal(all, err)
		}
		asked += len(all)
	}
	if sum, err := SendFacts(c, many); err != nil || sum.Accepted != len(many) {
		t.Errorf("%+v, %v", sum, err)
	}
	for _, words := range [][]string{{"questions", "x"}, {"questions", "21"}, {"facts", "x"}, {"facts", "192.0.2.1;bl;-"}, {"facts", "x;bl;-;1"},
		{"facts", "192.0.2.1;bl;x;1"}, {"facts", "192.0.2.1;bl;-;-1"}, {"facts", "192.0.2.1;bl;127.0.0.1;1"}, {"facts", "192.0.2.1;bl;?;1"}, {"facts", "192.0.2.1;bl;?other;1"}} {
		if err := c.ask(nil, words...); err == nil || strings.Contains(err.Error(), "may not use") {
			t.Errorf("%v: %v", words, err)
		}
	}
}

// TestUnknownFilterUser checks that a directory of any owner is accepted if the filter's user is
// unknown. The user is unknown until the filter has run.
func TestUnknownFilterUser(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 4001, 4001); err != nil {
			t.Fatal(err)
		}
	}
	if problem := RunDirProblem(dir, filepath.Join(dir, "missing"), -1); problem != "" {
		t.Error(problem)
	}
}
