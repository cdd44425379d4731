//go:build linux

package sync

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// companionUser is the companion's user ID. The user needs no name.
const companionUser = 54321

// operator is an operator's ruleset. The manual adds a chain to it.
const operator = `
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		udp sport 1-65535 accept
	}
`

// ruleset returns the manual's ruleset, changed to apply to all packets. It also contains the
// operator's rules and a table of another program.
func ruleset(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), ".Bd -literal -offset indent\ntable inet filter {")
	block, _, ok := strings.Cut(block, ".Ed")
	all := strings.ReplaceAll(block, "tcp dport { 25, 465, 587 } ", "")
	if !ok || all == block {
		t.Fatal("the manual has no ruleset")
	}
	return "flush ruleset\ntable inet filter {" + operator + "}\ntable inet filter {" + all + "table inet other { set keep { type ipv4_addr; elements = { 45.100.0.1 }; }; }\n"
}

// A firewall describes a target of the companion.
type firewall struct {
	statement string               // target in the configuration
	load      func(*site)          // creates the sets, without entries
	sets      func(*site) []string // returns the sets' contents, in the notation of bans
	disjoint  bool                 // the sets contain no nested networks
}

var firewalls = map[string]firewall{
	"nftables": {`nftables "inet filter scanwatch"`, (*site).loadNFT, (*site).nftSets, true},
	"ipset":    {`ipset "scanwatch"`, (*site).loadIPSet, (*site).ipSets, false},
}

// A site is a host with a filter, a companion and a firewall.
type site struct {
	firewall
	t                    *testing.T
	dir, state, run, etc string
	filter               *filterproc.Program
	companion            *exec.Cmd
	log                  func() string
}

func newSite(t *testing.T, target string) *site {
	t.Helper()
	require.Full(t)
	if os.Geteuid() != 0 || os.Getenv("SCANWATCH_OUTSIDE") == "" {
		require.Missing(t, "the test needs root and a network namespace")
	}
	for _, p := range []string{"nft", "ipset", "ip"} {
		require.Program(t, p)
	}
	s := &site{t: t, firewall: firewalls[target], dir: t.TempDir()}
	s.state, s.run, s.etc = filepath.Join(s.dir, "state"), filepath.Join(s.dir, "run"), filepath.Join(s.dir, "scanwatch.conf")
	for _, dir := range []string{filepath.Dir(s.dir), s.dir, filepath.Dir(smtpd.Bin("scanwatch"))} {
		s.check(os.Chmod(dir, 0o755)) // the companion needs access
	}
	s.check(os.Mkdir(s.run, 0o755))
	s.configure("mode enforce")
	s.load(s)
	return s
}

func (s *site) configure(more string) {
	s.t.Helper()
	s.check(os.WriteFile(s.etc, fmt.Appendf(nil, "%s\nrundir %q\ncompanion sync user %d to %s\n", more, s.run, companionUser, s.statement), 0o644))
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// loadNFT loads the manual's nftables ruleset.
func (s *site) loadNFT() {
	s.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset(s.t))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// loadIPSet creates the ipset sets as described in the manual.
func (s *site) loadIPSet() {
	s.t.Helper()
	page, err := os.ReadFile("../../man/scanwatch.8")
	s.check(err)
	script := "ipset destroy\n"
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "ipset create scanwatch") {
			script += line
		}
	}
	if out, err := exec.Command("sh", "-euc", script).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// startFilter starts the filter and waits until it answers commands.
func (s *site) startFilter() {
	s.t.Helper()
	s.filter = filterproc.Start(s.t, "-s", s.state, "-f", s.etc)
	filterproc.Eventually(s.t, "the filter answers", cli.Flushes(s.state))
}

// asCompanion runs a command as the companion's user.
func asCompanion(cmd *exec.Cmd, caps ...uintptr) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: companionUser, Gid: companionUser}, AmbientCaps: caps}
	return cmd
}

func (s *site) startCompanion(args ...string) {
	s.t.Helper()
	cmd := asCompanion(exec.Command(smtpd.Bin("scanwatch"), append([]string{"sync", "-f", s.etc}, args...)...), unix.CAP_NET_ADMIN)
	s.log = filterproc.LogFile(s.t, cmd)
	s.check(cmd.Start())
	s.companion = cmd
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// kill kills a process and waits until it has exited.
func (s *site) kill(cmd *exec.Cmd) {
	s.t.Helper()
	s.check(cmd.Process.Kill())
	_ = cmd.Wait()
}

// scanwatch runs an operator's command.
func (s *site) scanwatch(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", s.state, "-f", s.etc}, args...)...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("scanwatch %v: %v: %s%s", args, err, out, problem.String())
	}
	return string(out)
}

// setNames lists the sets of both firewalls.
var setNames = []string{"scanwatch4", "scanwatch4net", "scanwatch6", "scanwatch6net"}

// ipSets returns the contents of the ipset sets.
func (s *site) ipSets() []string {
	s.t.Helper()
	var found []string
	for _, set := range setNames {
		out, err := exec.Command("ipset", "save", set).CombinedOutput()
		if err != nil {
			return []string{"no set " + set}
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "add" {
				found = append(found, notation(f[2]))
			}
		}
	}
	slices.Sort(found)
	return found
}

// notation returns an address or network in the form in which bans are written.
func notation(p string) string {
	switch {
	case strings.Contains(p, "/"):
		return p
	case strings.Contains(p, ":"):
		return p + "/128"
	}
	return p + "/32"
}

// nftSets returns the contents of the nftables sets.
func (s *site) nftSets() []string {
	s.t.Helper()
	var found []string
	for _, set := range setNames {
		out, err := exec.Command("nft", "list", "set", "inet", "filter", set).CombinedOutput()
		if err != nil {
			return []string{"no set " + set}
		}
		_, list, _ := strings.Cut(string(out), "elements = {")
		list, _, _ = strings.Cut(list, "}")
		for element := range strings.SplitSeq(list, ",") {
			if f := strings.Fields(element); len(f) > 0 {
				found = append(found, notation(f[0]))
			}
		}
	}
	slices.Sort(found)
	return found
}

// bans returns the filter's active bans that the sets must contain.
func (s *site) bans() []string {
	s.t.Helper()
	active := []string{}
	for line := range strings.Lines(s.scanwatch("bans", "--json")) {
		var b struct{ Prefix string }
		s.check(json.Unmarshal([]byte(line), &b))
		active = append(active, b.Prefix)
	}
	slices.Sort(active)
	return active
}

// has waits until the sets have the given content.
func (s *site) has(want func() []string) {
	s.t.Helper()
	var got, wanted []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("sets %v\nwant %v\n%s", got, wanted, s.log())
		}
	}()
	filterproc.Eventually(s.t, "the firewall is in step with the bans", func() bool {
		got, wanted = s.sets(s), want()
		return slices.Equal(got, wanted)
	})
}

// inStep waits until the sets contain exactly the active bans.
func (s *site) inStep() {
	s.t.Helper()
	s.has(func() []string {
		if s.disjoint {
			return maximal(s.bans())
		}
		return s.bans()
	})
}

// accepts reports whether a packet from a host is accepted. To prove that the packet was dropped,
// accepts waits for a later packet from a host that is not banned.
func (s *site) accepts(from string) bool {
	s.t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 25)})
	s.check(err)
	defer server.Close()
	for _, host := range []string{from, "45.254.0.1"} {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(host)}, server.LocalAddr().(*net.UDPAddr))
		s.check(err)
		_, err = c.Write([]byte(host))
		s.check(err)
		c.Close()
	}
	buf := make([]byte, 100)
	s.check(server.SetReadDeadline(time.Now().Add(time.Minute)))
	n, err := server.Read(buf)
	s.check(err)
	return string(buf[:n]) == from
}

// TestSync checks that packets are dropped after `scanwatch ban`, and accepted again after unban.
// The test also checks observe mode, the status, and the end of the companion.
func TestSync(t *testing.T) {
	s := newSite(t, "nftables")
	s.startFilter()
	s.scanwatch("ban", "45.1.1.1")
	s.scanwatch("ban", "2a0e:1:2:3::/64")
	if out := s.scanwatch("sync", "--dry-run"); !strings.Contains(out, "add 45.1.1.1 for ") || !strings.HasSuffix(out, "0 entries in the target, 0 to remove, 2 to add or change\n") {
		t.Errorf("dry run:\n%s", out)
	}
	if !s.accepts("45.1.1.1") {
		t.Error("a dry run changes the firewall")
	}
	s.startCompanion("nftables")
	s.inStep()
	if s.accepts("45.1.1.1") || !s.accepts("45.1.1.2") {
		t.Error("a packet is dropped or accepted against the bans")
	}
	// A companion never blocks private addresses in a firewall.
	s.scanwatch("ban", "--force", "10.1.1.1")
	s.scanwatch("ban", "45.1.1.2")
	s.scanwatch("ban", "45.20.0.0/16")
	s.scanwatch("unban", "45.1.1.1")
	want := []string{"2a0e:1:2:3::/64", "45.1.1.2/32", "45.20.0.0/16"}
	s.has(func() []string { return want })
	if !s.accepts("45.1.1.1") || s.accepts("45.20.3.4") {
		t.Error("a packet is dropped or accepted against the bans")
	}
	filterproc.Eventually(t, "the status has the companion", func() bool {
		return strings.Contains(s.scanwatch("status"), "sync nftables inet filter scanwatch") && !strings.Contains(s.scanwatch("status"), "starting")
	})

	s.scanwatch("mode", "observe")
	s.has(func() []string { return nil })
	s.scanwatch("mode", "policy")
	s.has(func() []string { return want })

	// The entries remain when the companion ends. The next companion continues with them.
	s.check(s.companion.Process.Signal(syscall.SIGTERM))
	if err := s.companion.Wait(); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, s.log())
	}
	if got := s.sets(s); !slices.Equal(got, want) {
		t.Errorf("after SIGTERM: %v", got)
	}
	s.scanwatch("unban", "45.1.1.2")
	s.startCompanion()
	want = []string{"2a0e:1:2:3::/64", "45.20.0.0/16"}
	s.has(func() []string { return want })
	if out, err := exec.Command("nft", "list", "table", "inet", "other").Output(); err != nil || !strings.Contains(string(out), "45.100.0.1") {
		t.Errorf("another table: %s, %v", out, err)
	}
	s.check(exec.Command("nft", "delete", "table", "inet", "filter").Run())
	filterproc.Eventually(t, "the status has the error", func() bool {
		return strings.Contains(s.scanwatch("status", "--json"), "table inet filter does not exist")
	})
	s.load(s)
	s.has(func() []string { return want })
}

// chaos bans, unbans, kills and reloads at random. After each round, it checks that the firewall
// contains exactly the active bans.
func chaos(t *testing.T, target string, rounds int) {
	s := newSite(t, target)
	random := rand.New(rand.NewPCG(1, 2))
	s.startFilter()
	s.startCompanion()
	host := func() string { return fmt.Sprintf("45.1.%d.%d", random.IntN(4), random.IntN(64)) }
	counts := map[string]int{}
	for range rounds {
		for range 1 + random.IntN(6) {
			switch h := host(); random.IntN(5) {
			case 0, 1, 2:
				s.scanwatch("ban", h)
			case 3:
				_ = exec.Command(smtpd.Bin("scanwatch"), "-s", s.state, "-f", s.etc, "unban", h).Run() // the host may not be banned
			case 4:
				s.scanwatch("ban", fmt.Sprintf("45.%d.0.0/%d", 2+random.IntN(3), 13+random.IntN(4)))
			}
		}
		what := []string{"companion", "filter", "reload", "all", "nothing"}[random.IntN(5)]
		counts[what]++
		if what == "companion" || what == "all" {
			s.kill(s.companion)
			s.startCompanion()
		}
		if what == "reload" || what == "all" {
			s.load(s)
		}
		if what == "filter" || what == "all" {
			s.kill(s.filter.Cmd)
			s.startFilter()
		}
		if random.IntN(3) == 0 {
			s.inStep()
		}
	}
	s.inStep()
	t.Logf("%s, %d rounds: %v; %d bans at the end", target, rounds, counts, len(s.bans()))
}

// maximal omits networks that are inside other networks.
func maximal(all []string) []string {
	var nets []*net.IPNet
	for _, p := range all {
		if _, n, err := net.ParseCIDR(p); err == nil && !strings.HasSuffix(p, "/32") {
			nets = append(nets, n)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p string) bool {
		a, n, err := net.ParseCIDR(p)
		if err != nil || strings.HasSuffix(p, "/32") {
			return false
		}
		bits, _ := n.Mask.Size()
		return slices.ContainsFunc(nets, func(wide *net.IPNet) bool {
			wider, _ := wide.Mask.Size()
			return wider < bits && wide.Contains(a)
		})
	})
}

// TestRulesOfOperator checks that the manual's ruleset does not change the operator's rules.
func TestRulesOfOperator(t *testing.T) {
	s := newSite(t, "nftables")
	out, err := exec.Command("nft", "list", "chain", "inet", "filter", "input").Output()
	s.check(err)
	if want := "table inet filter {" + operator + "}\n"; string(out) != strings.Replace(want, "{\n\n", "{\n", 1) {
		t.Errorf("the chain of the operator is now\n%s", out)
	}
}

// TestKills checks the firewall after the companion or the filter was killed, and after the
// firewall was reloaded. The firewall must then contain exactly the active bans.
func TestKills(t *testing.T) {
	for target := range firewalls {
		t.Run(target, func(t *testing.T) { chaos(t, target, 8) })
	}
}

// envTrespass lists the directories for trespass, separated by colons.
const envTrespass = "SCANWATCH_TRESPASS"

// trespass runs as the companion's user. It prints each command and each file that this user may
// use.
func trespass(dirs string) {
	run, state, _ := strings.Cut(dirs, ":")
	for _, command := range []string{"bans 0 0", "note x 0 -", "status", "flush", "segments", "snapshot x", "days", "reload careful", "reload forced", "state",
		"ban 45.1.1.1 60 x", "unban 45.1.1.1 exact", "learn x", "log verbose", "mode observe 0", "mode policy 0", "watch - -"} {
		c, err := net.Dial("unix", filepath.Join(run, "control.sock"))
		if err != nil {
			fmt.Println("dial:", err)
			return
		}
		in := bufio.NewReader(c)
		_, _ = in.ReadString('\n')
		fmt.Fprintln(c, command)
		answer, err := in.ReadString('\n')
		if err == nil && !strings.Contains(answer, `"error"`) {
			fmt.Println("command", strings.Fields(command)[0])
		}
		c.Close()
	}
	if c, err := net.Dial("unix", filepath.Join(state, "control.sock")); err == nil {
		fmt.Println("socket of the operators")
		c.Close()
	}
	_ = filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != state {
			fmt.Println("name", path)
		}
		return nil
	})
	for _, name := range strings.Split(os.Getenv("SCANWATCH_FILES"), ":") {
		if f, err := os.Open(name); err == nil {
			fmt.Println("file", name)
			f.Close()
		}
	}
	if err := os.WriteFile(filepath.Join(run, "x"), nil, 0o644); err == nil {
		fmt.Println("file in the run directory")
	}
	if err := os.Remove(filepath.Join(run, "control.sock")); err == nil {
		fmt.Println("removal of the socket")
	}
}

// TestTrespass checks that the companion's user may use only the commands of its role, and no file
// in the state directory.
func TestTrespass(t *testing.T) {
	s := newSite(t, "nftables")
	s.startFilter()
	s.scanwatch("ban", "45.1.1.1")
	var files []string
	s.check(filepath.WalkDir(s.state, func(path string, _ fs.DirEntry, err error) error {
		files = append(files, path)
		return err
	}))
	var v filterproc.Visits
	s.filter.Visit(&v, 1)
	filterproc.Eventually(t, "the filter listens", func() bool {
		_, err := os.Stat(filepath.Join(s.run, "control.sock"))
		return err == nil
	})
	cmd := asCompanion(exec.Command("/proc/self/exe"))
	cmd.Env = append(os.Environ(), envTrespass+"="+s.run+":"+s.state, "SCANWATCH_FILES="+strings.Join(files, ":"))
	out, err := cmd.CombinedOutput()
	if want := "command bans\n"; err != nil || string(out) != want {
		t.Errorf("%v: the companion may use:\n%swant:\n%s", err, out, want)
	}
	// The filter rejects a user without a role before the first command.
	cmd = asCompanion(exec.Command("/proc/self/exe"))
	cmd.SysProcAttr.Credential.Uid++
	cmd.Env = append(os.Environ(), envTrespass+"="+s.run+":"+s.state, "SCANWATCH_FILES="+strings.Join(files, ":"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: another user may use:\n%s", err, out)
	}
}
