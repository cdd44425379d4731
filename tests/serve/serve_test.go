//go:build linux

// Package serve tests the filter with the companion that answers DNS queries. The clients are dig,
// a real Postfix and a real Sendmail. rbldnsd must return the same answers.
package serve

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}

// companionUser is the companion's user ID. The user has no account.
const companionUser = 4002

// A service is a running companion.
type service struct {
	t    *testing.T
	dir  string // of all files
	cmd  *exec.Cmd
	log  func() string
	conf string
}

func (s *service) path(name string) string { return filepath.Join(s.dir, name) }

// start starts the companion as its user, with the privileges of its unit.
func start(t *testing.T, conf string) *service {
	t.Helper()
	return startWith(t, conf, &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: companionUser, Gid: companionUser},
		AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
	})
}

func startWith(t *testing.T, conf string, attr *syscall.SysProcAttr) *service {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "the test needs root, to run a service as another user")
	}
	s := &service{t: t, dir: t.TempDir()}
	s.conf = s.path("scanwatch.conf")
	// Other users need access to the files and programs.
	for _, dir := range []string{filepath.Dir(s.dir), s.dir, filepath.Dir(smtpd.Bin("scanwatch"))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"run": 0o755, "state": 0o750} {
		if err := os.Mkdir(s.path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	s.write("scanwatch.conf", fmt.Sprintf("mode enforce\nstore %q\nrundir %q\ncompanion serve user %d %s", s.path("state"), s.path("run"), companionUser, conf))
	s.write("list", "192.0.2.0/25\n")
	s.cmd = exec.Command(smtpd.Bin("scanwatch"), "serve", "dns", "-f", s.conf)
	s.cmd.SysProcAttr = attr
	s.log = filterproc.LogFile(t, s.cmd)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Log(s.log())
		}
	})
	return s
}

func (s *service) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name+".new"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.path(name+".new"), s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

// filter starts the filter.
func (s *service) filter() *filterproc.Program {
	s.t.Helper()
	return filterproc.Start(s.t, "-f", s.conf)
}

// scanwatch runs a command on the filter.
func (s *service) scanwatch(args ...string) string {
	s.t.Helper()
	return cli.Run(s.t, s.path("state"), append([]string{"-f", s.conf}, args...)...)
}

// reversed returns an IPv4 address's name in a zone.
func reversed(addr, zone string) string {
	b := netip.MustParseAddr(addr).As4()
	return fmt.Sprintf("%d.%d.%d.%d.%s", b[3], b[2], b[1], b[0], zone)
}

// dig runs dig and returns its output in one line.
func dig(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("dig", append([]string{"@127.0.0.1", "+norecurse", "+tries=1", "+time=10"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

const zones = `listen { 127.0.0.1, ::1, 192.0.2.25 }
zone "bl.example.org" bans
zone "quick.example.org" bans ttl 30s
zone "scanners.example.org" builtin scanners
zone "file.example.org" file "list"
`

// waitFor waits until dig prints an answer.
func waitFor(t *testing.T, want string, args ...string) {
	t.Helper()
	filterproc.Eventually(t, fmt.Sprintf("dig %v: %q", args, want), func() bool { return dig(t, append(args, "+short")...) == want })
}

// TestServe checks the answers to dig while the filter and the service start, change and stop.
func TestServe(t *testing.T) {
	require.Program(t, "dig")
	s := start(t, zones)
	const host = "203.0.113.9"
	name := reversed(host, "bl.example.org")

	// The bans are unknown until a filter has run.
	filterproc.Eventually(t, "SERVFAIL", func() bool { return strings.Contains(dig(t, name), "status: SERVFAIL") })
	waitFor(t, "127.0.0.5", reversed("192.0.2.1", "file.example.org"))
	s.confined()

	f := s.filter()
	filterproc.Eventually(t, "NXDOMAIN", func() bool { return strings.Contains(dig(t, name), "status: NXDOMAIN") })
	s.scanwatch("ban", "--for", "1h", "--reason", "too many \"logins\"", host)
	waitFor(t, "127.0.0.2", name)
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{name, "TXT"}, []string{"status: NOERROR", `300 IN TXT "Banned: too many \"logins\""`, "flags: qr aa;"}},
		{[]string{name, "+tcp"}, []string{"status: NOERROR", "300 IN A 127.0.0.2"}},
		{[]string{reversed(host, "quick.example.org")}, []string{"30 IN A 127.0.0.2"}},
		{[]string{name, "AAAA"}, []string{"status: NOERROR", "bl.example.org. 60 IN SOA ns.bl.example.org. hostmaster.bl.example.org."}},
		{[]string{strings.ToUpper(name)}, []string{strings.ToUpper(name) + ". 300 IN A 127.0.0.2"}},
		{[]string{name, "+bufsize=4096", "+dnssec"}, []string{"udp: 1232", "flags: do;"}},
		{[]string{name, "+edns=1", "+noednsnegotiation"}, []string{"status: BADVERS"}},
		{[]string{name, "+opcode=notify"}, []string{"status: NOTIMP"}},
		{[]string{name, "ANY"}, []string{"ANSWER: 1,", "300 IN A 127.0.0.2"}},
		{[]string{"bl.example.org", "AXFR"}, []string{"Transfer failed"}},
		{[]string{"version.bind", "CH", "TXT"}, []string{"status: REFUSED"}},
		{[]string{"example.net"}, []string{"status: REFUSED"}},
		{[]string{"bl.example.org", "NS"}, []string{"300 IN NS ns.bl.example.org."}},
		{[]string{"ns.bl.example.org"}, []string{"ANSWER: 1,", "IN A 192.0.2.25"}},
		{[]string{"2.0.0.127.scanners.example.org"}, []string{"127.0.0.3"}},
		{[]string{"1.0.0.127.scanners.example.org"}, []string{"status: NXDOMAIN"}},
		{[]string{name, "@192.0.2.25"}, []string{"300 IN A 127.0.0.2"}},
		{[]string{name, "@::1"}, []string{"300 IN A 127.0.0.2"}},
		{[]string{name, "@192.0.2.25", "-b", "198.51.100.1"}, []string{"status: REFUSED"}},
	} {
		got := dig(t, c.args...)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("dig %v: %s; want %q", c.args, got, want)
			}
		}
	}
	if got := dig(t, name, "@192.0.2.25", "-b", "198.51.100.1", "+tcp"); !strings.Contains(got, "communications error") {
		t.Errorf("TCP from a client that is not allowed: %s", got)
	}
	filterproc.Eventually(t, "the service in the status", func() bool {
		var status struct{ Companions []struct{ Entries int } }
		cli.Decode(t, s.scanwatch("status", "--json"), &status)
		return len(status.Companions) == 1 && status.Companions[0].Entries > 500
	})

	// After SIGHUP, the companion immediately reads a file that has changed.
	s.write("list", "198.51.100.0/24\n")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "127.0.0.5", reversed("198.51.100.1", "file.example.org"))

	s.scanwatch("unban", host)
	waitFor(t, "", name)
	s.scanwatch("ban", "--for", "1h", host)
	waitFor(t, "127.0.0.2", name)

	// The bans remain in effect after the filter has stopped. A new filter must send its bans
	// again.
	f.End(0)
	if got := dig(t, name, "+short"); got != "127.0.0.2" {
		t.Errorf("after the end of the filter: %s", got)
	}
	s.filter()
	filterproc.Eventually(t, "the socket", cli.Listens(s.path("state")))
	s.scanwatch("unban", host)
	waitFor(t, "", name)

	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	for line := range strings.Lines(s.log()) {
		if strings.Contains(line, "level=ERROR") {
			t.Error(line)
		}
	}
}

// TestFoundHosts checks that the export in the manual publishes the hosts that the filter has
// detected. If there are no hosts, its format must empty the zone.
func TestFoundHosts(t *testing.T) {
	require.Program(t, "dig")
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\*/10 \* \* \* \* scanwatch (export .*) -o /etc/scanwatch/found\.txt$`).FindStringSubmatch(string(page))
	if m == nil {
		t.Fatal("the manual has no export for a zone")
	}
	s := start(t, "listen 127.0.0.1\nzone \"found.example.org\" file \"found\"\n")
	f := s.filter()
	filterproc.Eventually(t, "the socket", cli.Listens(s.path("state")))
	export := func(more ...string) {
		t.Helper()
		s.scanwatch(slices.Concat(strings.Fields(m[1]), more, []string{"-o", s.path("found")})...)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	const host = "71.6.135.131"
	name := reversed(host, "found.example.org")
	filterproc.Eventually(t, "SERVFAIL", func() bool { return strings.Contains(dig(t, name), "status: SERVFAIL") })
	export()
	filterproc.Eventually(t, "NXDOMAIN", func() bool { return strings.Contains(dig(t, name), "status: NXDOMAIN") })
	lines, answer := new(filterproc.Visits).Next(time.Now())
	f.Send(regexp.MustCompile(`<unknown>\|fail\|[0-9.]+`).ReplaceAllString(lines, "census1.shodan.io|pass|"+host))
	if got := f.Line(); got != answer {
		t.Fatalf("%q, want %q", got, answer)
	}
	s.scanwatch("flush")
	export()
	waitFor(t, "127.0.0.5", name)
	export("--src", "192.0.2.1")
	waitFor(t, "", name)
}

// confined checks the service's user and restrictions.
func (s *service) confined() {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t4002\t4002\t4002\t4002\n", "Gid:\t4002\t4002\t4002\t4002\n", "Seccomp:\t2\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), want) {
			s.t.Errorf("no %q in\n%s", want, status)
		}
	}
}

// TestRoot checks that a service started by root gives up root's rights.
func TestRoot(t *testing.T) {
	require.Program(t, "dig")
	s := startWith(t, zones, nil)
	waitFor(t, "127.0.0.5", reversed("192.0.2.1", "file.example.org"))
	s.confined()
	for _, field := range []string{"CapPrm", "CapEff"} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		if err != nil || !strings.Contains(string(status), field+":\t0000000000000000\n") {
			t.Errorf("%s: %v\n%s", field, err, status)
		}
	}
}

// TestRBLDNSD checks that a zone from a file contains the same addresses that rbldnsd
// serves.
func TestRBLDNSD(t *testing.T) {
	require.Program(t, "rbldnsd")
	s := start(t, zones)
	list := s.scanwatchOffline("lists", "scanners", "--kind", "cidr", "--format", "plain")
	s.write("list", list)
	s.write("list4", strings.Join(only4(list), "\n"))
	cmd := exec.Command("rbldnsd", "-n", "-b", "127.0.0.1/5353", "-u", "daemon", "file.example.org:ip4trie:"+s.path("list4"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ownList, theirs := resolver("127.0.0.1:53"), resolver("127.0.0.1:5353")
	filterproc.Eventually(t, "the service", func() bool { return listed(t, ownList, netip.MustParseAddr("127.0.0.2")) })
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	first := netip.MustParsePrefix(only4(list)[0]).Addr()
	filterproc.Eventually(t, "both lists", func() bool { return listed(t, ownList, first) && listed(t, theirs, first) })
	hits := 0
	for i, line := range only4(list) {
		if i%20 != 0 {
			continue
		}
		p := netip.MustParsePrefix(line)
		last := lastOf(p)
		for _, a := range []netip.Addr{p.Addr().Prev(), p.Addr(), last, last.Next()} {
			got, want := listed(t, ownList, a), listed(t, theirs, a)
			if got != want {
				t.Errorf("%s: %v, in rbldnsd %v", a, got, want)
			}
			if want {
				hits++
			}
		}
	}
	if hits < 200 {
		t.Errorf("only %d addresses were listed", hits)
	}
}

func (s *service) scanwatchOffline(args ...string) string {
	s.t.Helper()
	out, err := exec.Command(smtpd.Bin("scanwatch"), args...).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

func only4(list string) (prefixes []string) {
	for line := range strings.FieldsSeq(list) {
		if !strings.Contains(line, ":") {
			prefixes = append(prefixes, line)
		}
	}
	return prefixes
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func resolver(addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", addr)
	}}
}

func listed(t *testing.T, r *net.Resolver, a netip.Addr) bool {
	t.Helper()
	addrs, err := r.LookupNetIP(t.Context(), "ip4", reversed(a.String(), "file.example.org."))
	return err == nil && len(addrs) == 1
}

// recipe returns a mail server's configuration from the manual.
func recipe(t *testing.T, server string) string {
	t.Helper()
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, item, _ := strings.Cut(string(page), "\n.It "+server+"\n")
	_, text, _ := strings.Cut(item, ".Bd -literal\n")
	text, _, ok := strings.Cut(text, ".Ed\n")
	if !ok {
		t.Fatalf("the manual has no configuration of %s", server)
	}
	return text
}

// mainCF is a Postfix configuration without the block list, with the test's directories. A Postfix
// process caches the answers of block lists until it exits.
const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
daemon_directory = %[2]s/usr/lib/postfix/sbin
command_directory = %[2]s/usr/sbin
mail_owner = daemon
setgid_group = mail
default_privs = nobody
inet_interfaces = 192.0.2.25
inet_protocols = ipv4
myhostname = mx.example.org
mydestination = example.org
alias_maps =
alias_database =
local_recipient_maps =
mynetworks = 127.0.0.0/8
maillog_file = %[1]s/maillog
maillog_file_prefixes = /
import_environment = MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME LD_LIBRARY_PATH LANG=C
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
max_use = 1
`

const masterCF = `192.0.2.25:25 inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
anvil unix - - n - 1 anvil
rewrite unix - - n - - trivial-rewrite
cleanup unix n - n - 0 cleanup
proxymap unix - - n - - proxymap
`

// consumers returns the directory of unpacked programs. If a program is missing,
// consumers skips the test.
func consumers(t *testing.T, program string) string {
	t.Helper()
	root := os.Getenv("SCANWATCH_ROOTS")
	if root == "" {
		root = "/var/cache/scanwatch-tests"
	}
	root = filepath.Join(root, "consumers")
	if _, err := os.Stat(root + program); err != nil {
		require.Missing(t, "no %s in %s; see tests/consumers.sh", program, root)
	}
	return root
}

// withLibraries returns the environment for an unpacked program.
func withLibraries(root string) []string {
	return append(os.Environ(), "LD_LIBRARY_PATH="+root+"/usr/lib/postfix:"+root+"/usr/lib/x86_64-linux-gnu:"+root+"/lib/x86_64-linux-gnu")
}

// resolve configures the companion as this host's resolver in the test's namespace.
func (s *service) resolve() {
	s.t.Helper()
	s.write("resolv.conf", "nameserver 127.0.0.1\n")
	if err := syscall.Mount(s.path("resolv.conf"), "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = syscall.Unmount("/etc/resolv.conf", syscall.MNT_DETACH) })
}

// startPostfix starts a real Postfix that queries the companion.
func startPostfix(s *service) {
	s.t.Helper()
	root := consumers(s.t, "/usr/lib/postfix/sbin/master")
	s.resolve()
	for _, dir := range []string{"postfix", "data", "queue", "queue/pid", "queue/private", "queue/public", "queue/incoming", "queue/active", "queue/maildrop"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if dir != "postfix" && dir != "queue" && dir != "queue/pid" {
			if err := os.Chown(s.path(dir), 1, 1); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	s.write("postfix/main.cf", fmt.Sprintf(mainCF, s.dir, root)+recipe(s.t, "Postfix"))
	s.write("postfix/master.cf", masterCF)
	cmd := exec.Command(root+"/usr/lib/postfix/sbin/master", "-c", s.path("postfix"), "-d")
	cmd.Env = withLibraries(root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := filterproc.LogFile(s.t, cmd)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
		if s.t.Failed() {
			maillog, _ := os.ReadFile(s.path("maillog"))
			s.t.Logf("%s\n%s", log(), maillog)
		}
	})
	filterproc.Eventually(s.t, "Postfix", func() bool {
		c, err := net.Dial("tcp", "192.0.2.25:25")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// deliver connects as a client and returns Postfix's reply to a recipient.
func deliver(t *testing.T, from string) string {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", "192.0.2.25:25")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	client := smtpText{t, c}
	client.reply()
	for _, line := range []string{"HELO client.example.net", "MAIL FROM:<a@example.net>"} {
		if got := client.send(line); got[0] != '2' {
			t.Fatalf("%s: %s", line, got)
		}
	}
	reply := client.send("RCPT TO:<b@example.org>")
	client.send("QUIT")
	return reply
}

// smtpText is a connection with one-line replies.
type smtpText struct {
	t *testing.T
	net.Conn
}

func (c smtpText) send(line string) string {
	c.t.Helper()
	if _, err := c.Write([]byte(line + "\r\n")); err != nil {
		c.t.Fatal(err)
	}
	return c.reply()
}

func (c smtpText) reply() string {
	c.t.Helper()
	var line []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(line), "\r\n"); line = append(line, b...) {
		if _, err := c.Read(b); err != nil {
			c.t.Fatalf("%v after %q", err, line)
		}
	}
	return strings.TrimSpace(string(line))
}

// TestPostfix checks that a real Postfix rejects a banned host and shows the reason. After the ban
// has been revoked, Postfix must accept the host.
func TestPostfix(t *testing.T) {
	require.Full(t)
	s := start(t, zones)
	s.filter()
	waitFor(t, "127.0.0.2", reversed("127.0.0.2", "bl.example.org"))
	startPostfix(s)
	const host = "203.0.113.9"
	const good = "250 2.1.5 Ok"
	if got := deliver(t, host); got != good {
		t.Fatalf("before the ban: %s", got)
	}
	s.scanwatch("ban", "--for", "1h", "--reason", "scanning", host)
	waitFor(t, "127.0.0.2", reversed(host, "bl.example.org"))
	want := "554 5.7.1 Service unavailable; Client host [" + host + "] blocked using bl.example.org; Banned: scanning"
	if got := deliver(t, host); got != want {
		t.Errorf("during the ban: %s, want %s", got, want)
	}
	if got := deliver(t, "203.0.113.10"); got != good {
		t.Errorf("another host: %s", got)
	}
	s.scanwatch("unban", host)
	waitFor(t, "", reversed(host, "bl.example.org"))
	if got := deliver(t, host); got != good {
		t.Errorf("after the ban: %s", got)
	}
}

// TestSendmail checks that Sendmail rejects a banned host if it is configured with the line in the
// manual.
func TestSendmail(t *testing.T) {
	require.Full(t)
	require.Program(t, "m4")
	root := consumers(t, "/usr/libexec/sendmail/sendmail")
	feature := recipe(t, "Sendmail")
	s := start(t, zones)
	s.filter()
	waitFor(t, "127.0.0.2", reversed("127.0.0.2", "bl.example.org"))
	s.resolve()
	const host = "203.0.113.9"
	s.scanwatch("ban", "--for", "1h", host)
	waitFor(t, "127.0.0.2", reversed(host, "bl.example.org"))
	s.write("a.mc", "OSTYPE(linux)dnl\n"+feature+"MAILER(local)dnl\nMAILER(smtp)dnl\n")
	m4 := exec.Command("m4", "m4/cf.m4", s.path("a.mc"))
	m4.Dir = root + "/usr/share/sendmail/cf"
	cf, err := m4.Output()
	if err != nil {
		t.Fatal(err)
	}
	s.write("a.cf", string(cf))
	for addr, rejected := range map[string]bool{host: true, "203.0.113.10": false} {
		cmd := exec.Command(root+"/usr/libexec/sendmail/sendmail", "-bt", "-C", s.path("a.cf"))
		cmd.Env = withLibraries(root)
		cmd.Stdin = strings.NewReader(".D{client_addr}" + addr + "\nBasic_check_relay client.example.net\n")
		out, err := cmd.CombinedOutput()
		if got := strings.Contains(string(out), "Listed in bl.example.org"); err != nil || got != rejected {
			t.Errorf("%s: rejected %v, %v\n%s", addr, got, err, out)
		}
	}
}
