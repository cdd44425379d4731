//go:build linux

// Package lookup tests the companion that asks DNS lists. The tests run the companion and the
// filter with a real block list, and with servers that misbehave.
package lookup

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}

// companionUser is the companion's user ID. The user has no account.
const companionUser = 4004

// A bench is a filter with its companion.
type bench struct {
	*testing.T
	dir     string // of all files
	filter  *filterproc.Program
	cmd     *exec.Cmd // companion
	log     func() string
	session int
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// newBench starts the filter. A resolver on the given port serves the lists.
func newBench(t *testing.T, port int, conf string) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "the test needs root, to run a service as another user")
	}
	b := &bench{T: t, dir: t.TempDir()}
	// Other users need access to the files and programs.
	for _, dir := range []string{filepath.Dir(b.dir), b.dir, filepath.Dir(smtpd.Bin("scanwatch"))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"run": 0o755, "state": 0o750} {
		if err := os.Mkdir(b.path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	conf = fmt.Sprintf("mode enforce\nstore %q\nrundir %q\ncompanion lookup user %d resolver 127.0.0.1 port %d\n%s", b.path("state"), b.path("run"), companionUser, port, conf)
	if err := os.WriteFile(b.path("scanwatch.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	b.filter = filterproc.Start(t, "-f", b.path("scanwatch.conf"))
	return b
}

// start starts the companion and waits until it is using n lists.
func (b *bench) start(n int) {
	b.Helper()
	b.launch()
	filterproc.Eventually(b.T, "the lists in use", func() bool {
		s := b.status()
		return len(s.Companions) == 1 && s.Companions[0].Entries == n && s.Companions[0].Error == ""
	})
}

// launch starts the companion.
func (b *bench) launch() {
	b.Helper()
	b.cmd = exec.Command(smtpd.Bin("scanwatch"), "lookup", "-f", b.path("scanwatch.conf"))
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: companionUser, Gid: companionUser}}
	b.log = filterproc.LogFile(b.T, b.cmd)
	if err := b.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	cmd, log := b.cmd, b.log
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b.Failed() {
			b.Log(log())
		}
	})
}

type status struct {
	Companions []struct {
		Entries int
		Error   string
	}
	Lookups []struct {
		Asked, Listed, Withdrawn uint64
		Absent                   uint64 `json:"not_listed"`
		Unknown                  map[string]uint64
	}
}

func (b *bench) status() (s status) {
	b.Helper()
	out, err := exec.Command(smtpd.Bin("scanwatch"), "-f", b.path("scanwatch.conf"), "status", "--json").Output()
	if len(out) == 0 { // the filter has no socket yet
		b.Log(err)
		return s
	}
	cli.Decode(b.T, string(out), &s)
	return s
}

// answers returns the number of answers from the first list.
func (b *bench) answers() (n uint64) {
	l := b.status().Lookups[0]
	n = l.Listed + l.Absent
	for _, unknown := range l.Unknown {
		n += unknown
	}
	return n
}

func (b *bench) send(format string, args ...any) {
	b.Helper()
	at := time.Now().UnixMicro()
	b.filter.Send(strings.ReplaceAll(fmt.Sprintf(format, args...), "|AT|", fmt.Sprintf("|0.7|%d.%06d|smtp-in|", at/1e6, at%1e6)))
}

// connect opens a session from src and returns its id.
func (b *bench) connect(src string) string {
	b.Helper()
	b.session++
	id := fmt.Sprintf("%016x", b.session)
	b.send("report|AT|link-connect|%s|mail.example.net|pass|%s:4000|192.0.2.25:25\n", id, src)
	b.ask("connect", id, "mail.example.net|"+src)
	b.send("report|AT|protocol-server|%s|220 mx.example.org ESMTP OpenSMTPD\nreport|AT|protocol-client|%[1]s|EHLO mail.example.net\nreport|AT|link-identify|%[1]s|EHLO|mail.example.net\n"+
		"report|AT|protocol-server|%[1]s|250 mx.example.org\nreport|AT|protocol-client|%[1]s|MAIL FROM:<a@example.net>\n", id)
	return id
}

// ask returns the answer to a request, if the filter has registered the request's phase.
func (b *bench) ask(phase, id, args string) string {
	b.Helper()
	if !b.filter.Asked[phase] {
		return ""
	}
	b.send("filter|AT|%s|%s|00000000000000ff|%s\n", phase, id, args)
	answer := strings.TrimSuffix(strings.TrimPrefix(b.filter.Line(), "filter-result|"+id+"|00000000000000ff|"), "\n")
	return regexp.MustCompile(` \[[0-9a-f]{16}\]$`).ReplaceAllString(answer, "")
}

func (b *bench) mail(id string) string {
	b.Helper()
	return b.ask("mail-from", id, "a@example.net")
}

func (b *bench) end(id string) { b.send("report|AT|link-disconnect|%s\n", id) }

// come plays a session that sends MAIL after the first list has answered. It returns the answer to
// MAIL.
func (b *bench) come(src string) string {
	b.Helper()
	before := b.answers()
	id := b.connect(src)
	filterproc.Eventually(b.T, "the answer about "+src, func() bool { return b.answers() > before })
	defer b.end(id)
	return b.mail(id)
}

// rbldnsdPort is the block list's port.
const rbldnsdPort = 5353

// rbldnsd starts a block list that contains 192.0.2.7, 203.0.113.0/27, 198.51.100.128/25 and
// 2001:db8::7, and returns its port.
func rbldnsd(t *testing.T) int {
	t.Helper()
	daemon(t, rbldnsdArgs(t)...)
	return rbldnsdPort
}

// rbldnsdArgs returns the command that serves the block list bl.example.org, and the
// allowlist white.example.org, which contains 203.0.113.9.
func rbldnsdArgs(t *testing.T) []string {
	t.Helper()
	require.Program(t, "rbldnsd")
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const head = "$SOA 300 ns.example.org hostmaster.example.org 0 600 300 86400 300\n:127.0.0.4:Listed\n"
	args := []string{"rbldnsd", "-n", "-b", fmt.Sprintf("127.0.0.1/%d", rbldnsdPort), "-u", "daemon"}
	for _, zone := range []struct{ name, kind, entries string }{
		{"bl.example.org", "ip4set", "192.0.2.7\n203.0.113.0/27\n198.51.100.128/25\n127.0.0.2\n"},
		{"bl.example.org", "ip6trie", "2001:db8::7\n"},
		{"white.example.org", "ip4set", "203.0.113.9\n127.0.0.2\n"},
	} {
		file := filepath.Join(dir, zone.name+"."+zone.kind)
		if err := os.WriteFile(file, []byte(head+zone.entries), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, zone.name+":"+zone.kind+":"+file)
	}
	return args
}

// daemon starts a program that runs until the test ends.
func daemon(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	log := filterproc.LogFile(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(cmd)
		if t.Failed() {
			t.Log(log())
		}
	})
	return cmd
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

const list = `lookup bl dnsbl "bl.example.org" codes 127.0.0.4 rate 100
rule bl phase mail-from match listed bl reject "550 5.7.1 Listed"
`

// TestLookup checks the answers of a real block list while the companion starts, stops and
// restarts.
func TestLookup(t *testing.T) {
	b := newBench(t, rbldnsd(t), list)
	if got := b.mail(b.connect("192.0.2.7")); got != "proceed" {
		t.Errorf("without the companion: %s", got)
	}
	b.start(1)
	b.confined()
	const refused = "reject|550 5.7.1 Listed"
	for _, tt := range []struct{ src, want string }{{"192.0.2.8", "proceed"}, {"192.0.2.7", refused}, {"[2001:db8::7]", refused}, {"[2001:db8::8]", "proceed"}} {
		if got := b.come(tt.src); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.src, got, tt.want)
		}
	}
	// A second session of a host must cause no further question.
	asked := b.status().Lookups[0].Asked
	if got := b.mail(b.connect("192.0.2.7")); got != refused || b.status().Lookups[0].Asked != asked {
		t.Errorf("the second session: %s", got)
	}
	b.end(fmt.Sprintf("%016x", b.session))
	cli.Run(t, b.path("state"), "flush")
	for _, tt := range []struct{ args, want string }{
		{"why 192.0.2.7", "bl bl.example.org"},
		{"why 192.0.2.7", "127.0.0.4"},
		{"show 0000000000000003", "-- listed in bl (bl.example.org): 127.0.0.4"},
		{"status", "lookup bl (bl.example.org)"},
	} {
		if got := strings.Join(strings.Fields(cli.Run(t, b.path("state"), strings.Fields(tt.args)...)), " "); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s", tt.args, got)
		}
	}

	// Without the companion, clients do not wait, and no other clients are rejected.
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = b.cmd.Wait()
	if got := b.mail(b.connect("192.0.2.9")); got != "proceed" {
		t.Errorf("after the end of the companion: %s", got)
	}
	b.start(1)
	before := b.answers()
	filterproc.Eventually(t, "an answer about 192.0.2.10", func() bool {
		id := b.connect("192.0.2.10")
		defer b.end(id)
		return b.mail(id) == "proceed" && b.answers() > before
	})
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if log := b.log(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
		t.Error(log)
	}
}

// confined checks the user and the restrictions of the companion.
func (b *bench) confined() {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, want := range []string{"Uid:\t4004\t4004\t4004\t4004\n", "Seccomp:\t2\n", "NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(text), want) {
			b.Errorf("no %q in\n%s", want, text)
		}
	}
}

// reload replaces text in the filter's configuration, and reloads it.
func (b *bench) reload(old, text string) {
	b.Helper()
	conf, err := os.ReadFile(b.path("scanwatch.conf"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(b.path("scanwatch.conf"), []byte(strings.Replace(string(conf), old, text, 1)), 0o644); err != nil {
		b.Fatal(err)
	}
	cli.Run(b.T, b.path("state"), "reload")
}

// TestReload checks that listings of a list no longer count after a reload has removed the list.
// Until the configuration is restored, the status must ask for a restart of the companion.
func TestReload(t *testing.T) {
	b := newBench(t, rbldnsd(t), list)
	b.start(1)
	b.reload("bl.example.org", "other.example.org")
	filterproc.Eventually(t, "the problem in the status", func() bool {
		return b.status().Companions[0].Error == "the filter's configuration has changed: bl; restart the service of companion lookup"
	})
	if got := b.come("192.0.2.7"); got != "proceed" || b.status().Lookups[0].Unknown["disabled"] == 0 {
		t.Errorf("%s, %+v", got, b.status())
	}
	b.reload("other.example.org", "bl.example.org")
	filterproc.Eventually(t, "the end of the problem", func() bool { return b.status().Companions[0].Error == "" })
	if got := b.come("192.0.2.7"); got != "reject|550 5.7.1 Listed" {
		t.Error(got)
	}
}

// TestWildcard checks a list that suddenly contains every host. No host may be rejected, and the
// filter must drop the listings that it has received.
func TestWildcard(t *testing.T) {
	for _, kind := range []string{"", "[2001:db8::"} {
		l := newLiar(t)
		b := newBench(t, l.port(), list)
		b.start(1)
		host := func(i int) string {
			if kind == "" {
				return fmt.Sprintf("192.0.2.%d", valid+i)
			}
			return fmt.Sprintf("[2001:db8:0:%x::1]", i)
		}
		l.listed.Store(true)
		if got := b.come(host(0)); got != "reject|550 5.7.1 Listed" {
			t.Errorf("a listed host: %s", got)
		}
		since := time.Now()
		filterproc.Eventually(t, "the end of the check before the listing", func() bool { return time.Since(since) > time.Second })
		l.wildcard.Store(true)
		for i := range 30 {
			if got := b.come(host(i + 1)); got != "proceed" {
				t.Errorf("host %d: %s", i, got)
			}
		}
		filterproc.Eventually(t, "the end of the listing", func() bool { return b.status().Lookups[0].Withdrawn == 1 })
		if got := b.mail(b.connect(host(0))); got != "proceed" {
			t.Errorf("the first host again: %s", got)
		}
		if log := b.log(); strings.Count(log, "list disabled") != 1 || !strings.Contains(log, "127.0.0.1 is listed as 127.0.0.4, so every host may be") {
			t.Error(log)
		}
		l.wildcard.Store(false)
		filterproc.Eventually(t, "the list in use again", func() bool {
			return strings.HasPrefix(b.status().Companions[0].Error, "bl: listings unknown until ")
		})
		if got := b.come(host(40)); got != "proceed" { // the resolver may have cached the answer
			t.Errorf("a listed host, later: %s", got)
		}
	}
}

// TestNetwork checks that many clients in one network do not use up a list's rate.
func TestNetwork(t *testing.T) {
	b := newBench(t, rbldnsd(t), strings.Replace(list, "rate 100", "rate 4", 1))
	b.start(1)
	for i := range 10_000 {
		b.session++
		b.send("report|AT|link-connect|%016x|mail.example.net|pass|[2001:db8:7:%x::1]:4000|192.0.2.25:25\nreport|AT|link-disconnect|%[1]016x\n", b.session, i)
	}
	filterproc.Eventually(t, "the answers about the network", func() bool { return b.status().Lookups[0].Unknown["rate"] > 100 })
	filterproc.Eventually(t, "the answer about another client", func() bool {
		b.end(b.connect("192.0.2.7")) // the first questions are not limited
		return b.status().Lookups[0].Listed == 1
	})
	if l := b.status().Lookups[0]; l.Absent == 0 || l.Absent >= 10 {
		t.Errorf("%+v", l)
	}
}

// TestHold checks that a rule with a hold delays a request until the list has answered.
func TestHold(t *testing.T) {
	b := newBench(t, rbldnsd(t), strings.Replace(list, "rate 100", "rate 100 hold 400ms", 1))
	b.start(1)
	for i := range 20 {
		if got := b.mail(b.connect(fmt.Sprintf("198.51.100.%d", i+1))); got != "proceed" {
			t.Errorf("%s", got)
		}
	}
	firstRejected(t, func(host string) string { return b.mail(b.connect(host)) }, "reject|550 5.7.1 Listed")
}

// firstRejected checks that a listed host is rejected in its first session. On a busy machine, an
// answer may arrive after the hold. The test therefore passes if one of several hosts is rejected.
func firstRejected(t *testing.T, visit func(host string) string, want string) {
	t.Helper()
	var got []string
	for i := range 20 {
		reply := visit(fmt.Sprintf("203.0.113.%d", i+1))
		if strings.HasPrefix(reply, want) {
			return
		}
		got = append(got, reply)
	}
	t.Errorf("replies to listed hosts: %q", got)
}

// clients matches the query names of the tests' clients.
var clients = regexp.MustCompile(`\.(100\.51\.198|113\.0\.203|2\.0\.192|8\.b\.d\.0\.1\.0\.0\.2)\.bl\.example\.org\.$`)

// A liar is a DNS server that passes a list's test, but misbehaves for other hosts. The last octet
// of a host's address determines how it misbehaves.
type liar struct {
	udp      *net.UDPConn
	tcp      *net.TCPListener
	wildcard atomic.Bool // every name has an address
	listed   atomic.Bool // every name has an address, except unused names that a test queries
}

func (l *liar) port() int { return l.udp.LocalAddr().(*net.UDPAddr).Port }

// valid is the lowest last octet of the hosts for which the server returns a valid response without
// a listing.
const valid = 100

// behaviours lists the responses, by the last octet of the host.
var behaviours = []func(q dnsmessage.Message) []dnsmessage.Message{
	func(dnsmessage.Message) []dnsmessage.Message { return nil }, // no response
	with(func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeServerFailure, nil }),
	with(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeRefused }),
	with(address(127, 255, 255, 254)),
	with(address(127, 255, 255, 255)),
	with(address(198, 51, 100, 80)), // a resolver that returns an address for missing names
	with(address(127, 0, 0, 5)),
	with(func(m *dnsmessage.Message) { m.Truncated, m.Answers = true, nil }), // over TCP, the response arrives slowly
	with(func(m *dnsmessage.Message) { m.ID++ }),
	with(func(m *dnsmessage.Message) { m.Response = false }),
	with(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("x.example.org.") }),
	with(func(m *dnsmessage.Message) { m.Answers[0].Header.Name = dnsmessage.MustNewName("x.example.org.") }),
	with(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }),
	with(func(m *dnsmessage.Message) { m.Answers = append(m.Answers, resource(m, 127, 255, 255, 254)) }),
}

func resource(m *dnsmessage.Message, a ...byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 300}, Body: &dnsmessage.AResource{A: [4]byte(a)}}
}

func address(a ...byte) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{resource(m, a...)} }
}

// with returns a behaviour that changes a response with a listing of the host.
func with(change func(m *dnsmessage.Message)) func(q dnsmessage.Message) []dnsmessage.Message {
	return func(q dnsmessage.Message) []dnsmessage.Message {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true}, Questions: append([]dnsmessage.Question(nil), q.Questions...)}
		address(127, 0, 0, 4)(&m)
		change(&m)
		return []dnsmessage.Message{m}
	}
}

func (l *liar) responses(q dnsmessage.Message) []dnsmessage.Message {
	switch name := q.Questions[0].Name.String(); {
	case l.wildcard.Load():
		return with(func(*dnsmessage.Message) {})(q)
	case strings.HasPrefix(name, "2.0.0.127."):
		return with(func(*dnsmessage.Message) {})(q)
	case strings.Count(name, ".") == 4 || strings.HasSuffix(name, ".127.bl.example.org.") || strings.HasSuffix(name, ".f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example.org."):
		return with(func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeNameError, nil })(q)
	case !clients.MatchString(name): // random public addresses of a list's test
		return with(func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeNameError, nil })(q)
	case l.listed.Load():
		return with(func(*dnsmessage.Message) {})(q)
	default:
		n := 0
		_, _ = fmt.Sscanf(name, "%d.", &n)
		if n >= valid {
			return with(func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeNameError, nil })(q)
		}
		return behaviours[n%len(behaviours)](q)
	}
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	l := new(liar)
	var err error
	if l.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	if l.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.port()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.udp.Close(); l.tcp.Close() })
	go func() {
		for { // send part of the length, and keep the client waiting
			conn, err := l.tcp.AcceptTCP()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{0})
			t.Cleanup(func() { conn.Close() })
		}
	}()
	go func() {
		packet := make([]byte, 4096)
		for {
			n, client, err := l.udp.ReadFromUDPAddrPort(packet)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(packet[:n]) != nil {
				continue
			}
			for _, m := range l.responses(q) {
				if b, err := m.Pack(); err == nil {
					_, _ = l.udp.WriteToUDPAddrPort(b, client)
				}
			}
		}
	}()
	return l
}

// TestMisbehavingList checks that no client is rejected because of a list's errors, with and
// without a hold. The list never returns a valid listing.
func TestMisbehavingList(t *testing.T) {
	for _, hold := range []string{"", " hold 400ms"} {
		b := newBench(t, newLiar(t).port(), strings.Replace(list, "rate 100", "rate 100"+hold, 1))
		b.start(1)
		for i := range behaviours {
			before := b.answers()
			id := b.connect(fmt.Sprintf("198.51.100.%d", i))
			if got := b.mail(id); got != "proceed" {
				t.Errorf("behaviour %d: %s", i, got)
			}
			filterproc.Eventually(t, "the answer", func() bool { return b.answers() > before })
			if got := b.mail(id); got != "proceed" {
				t.Errorf("behaviour %d, after the answer: %s", i, got)
			}
			b.end(id)
			// Without a valid answer, the list would be paused after several consecutive errors.
			if got := b.come(fmt.Sprintf("198.51.100.%d", valid+i)); got != "proceed" {
				t.Errorf("a host that is not listed: %s", got)
			}
		}
		l := b.status().Lookups[0]
		// On a busy machine, further answers may arrive too late and count as timeouts.
		if l.Listed != 0 || l.Absent == 0 || l.Unknown["timeout"] < 5 || l.Unknown["failure"] == 0 || l.Unknown["code"] == 0 || l.Unknown["disabled"] != 0 {
			t.Errorf("%+v", l)
		}
	}
}
