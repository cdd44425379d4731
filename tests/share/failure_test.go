//go:build linux

package share

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

// cli sends a command to the server.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(require.Program(s.t, "redis-cli"), slices.Concat([]string{"-p", fmt.Sprint(s.port)}, s.more, args)...)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.HasPrefix(string(out), "ERR") {
		s.t.Fatalf("redis-cli %v: %v: %s", args, err, out)
	}
	return string(out)
}

func (h *host) ban(addr string) {
	h.t.Helper()
	h.scanwatch("ban", "--force", "--for", "1h", addr)
}

func TestServerFails(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a, b := f.host("mx1", ""), f.host("mx2", "")
	everywhere := func(addr string) {
		t.Helper()
		for _, h := range []*host{a, b} {
			filterproc.Eventually(t, h.name+" turns "+addr+" away", h.turnsAway(addr))
		}
	}
	a.ban("198.51.100.1")
	everywhere("198.51.100.1")

	s.signal(syscall.SIGSTOP)
	a.ban("198.51.100.2")
	if !a.turnsAway("198.51.100.2")() || !b.lets("198.51.100.2")() {
		t.Fatal("a stopped server disturbs the filters")
	}
	filterproc.Eventually(t, "mx1 names the problem", a.problem("companion share: server:"))
	s.signal(syscall.SIGCONT)
	everywhere("198.51.100.2")

	s.cli("config", "set", "maxmemory", "1")
	a.ban("198.51.100.3")
	filterproc.Eventually(t, "mx1 names the problem", a.problem("OOM"))
	s.cli("config", "set", "maxmemory", "0")
	everywhere("198.51.100.3")

	s.cli("flushall")
	f.claimed(time.Unix(1, 0))
	c := f.host("mx3", "") // the companion reads the rows that other hosts have written again
	for i := range 3 {
		addr := fmt.Sprintf("198.51.100.%d", i+1)
		filterproc.Eventually(t, "mx3 turns "+addr+" away", c.turnsAway(addr))
	}

	s.cli("xadd", "{scanwatch}:log:mx1", "*", "rows", "garbage")
	s.cli("sadd", "{scanwatch}:hosts", "mx9", "\x1b[31m")
	s.cli("hset", "{scanwatch}:rows:mx9", "x", strings.Repeat("garbage ", 100))
	s.cli("set", "{scanwatch}:alive:mx2", "1")
	filterproc.Eventually(t, "mx2 names the garbage of mx9", func() bool {
		return strings.Contains(b.scanwatch("status", "--json"), "authenticated with a different fleet key")
	})
	a.ban("198.51.100.4")
	everywhere("198.51.100.4")
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// certificate creates a certificate for 127.0.0.1. It returns the names of the files with the
// certificate and the key.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "valkey.example.org"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", private)
}

// TestConnections connects in every way that the configuration allows.
func TestConnections(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	socket := filepath.Join(dir, "valkey.sock")
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, to string // PORT is replaced by the server's port
		args     []string
		more     []string // arguments of redis-cli
		prepare  func(*server) (port int)
	}{
		{"socket", fmt.Sprintf("%q", socket), []string{"--unixsocket", socket, "--unixsocketperm", "777"}, nil, nil},
		{"tls", fmt.Sprintf(`"valkeys://127.0.0.1:PORT" ca %q`, cert), []string{"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no"}, []string{"--tls", "--cacert", cert}, nil},
		{"login", fmt.Sprintf(`"redis://127.0.0.1:PORT/1" login "mx1" password %q`, password), []string{"--user", "mx1", "on", ">secret", "~*", "+@all", "--user", "default", "off"}, []string{"--user", "mx1", "--pass", "secret", "--no-auth-warning", "-n", "1"}, nil},
		{"password", fmt.Sprintf(`{ "valkey://127.0.0.1:PORT" } password %q`, password), []string{"--requirepass", "secret"}, []string{"-a", "secret", "--no-auth-warning"}, nil},
		{"cluster", `"valkey://127.0.0.1:PORT"`, []string{"--cluster-enabled", "yes", "--cluster-config-file", filepath.Join(dir, "nodes.conf")}, nil, func(s *server) int {
			s.cli("cluster", "addslotsrange", "0", "16383")
			filterproc.Eventually(s.t, "the cluster is ready", func() bool { return strings.Contains(s.cli("cluster", "info"), "cluster_state:ok") })
			return s.port
		}},
		{"sentinel", `"valkey://127.0.0.1:PORT" sentinel "mymaster"`, nil, nil, (*server).sentinel},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, "redis")
			s.more = c.more
			if c.args != nil {
				s.stop()
				if s.args = append(s.args, c.args...); c.name == "tls" {
					s.args = append(s.args, "--port", "0", "--tls-port", fmt.Sprint(s.port))
				}
				s.start()
			}
			port := s.port
			if c.prepare != nil {
				port = c.prepare(s)
			}
			f := newFleet(t, s)
			f.to = strings.ReplaceAll(c.to, "PORT", fmt.Sprint(port))
			a, b := f.host("mx1", ""), f.host("mx2", "")
			a.ban("198.51.100.1")
			filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
		})
	}
}

// sentinel starts a sentinel for s and returns its port.
func (s *server) sentinel() int {
	s.t.Helper()
	conf := filepath.Join(s.t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor mymaster 127.0.0.1 %d 1\n", s.port), 0o600); err != nil {
		s.t.Fatal(err)
	}
	watcher := &server{t: s.t, port: freePort(s.t)}
	watcher.args = []string{require.Program(s.t, "redis-server"), conf, "--sentinel", "--bind", "127.0.0.1", "--port", fmt.Sprint(watcher.port)}
	watcher.start()
	s.t.Cleanup(watcher.stop)
	return watcher.port
}

// pair returns a fleet with two hosts. The second host enforces a ban of 198.51.100.1 by the first.
func pair(t *testing.T) (f *fleet, a, b *host) {
	f = newFleet(t, newServer(t, "redis"))
	a, b = f.host("mx1", ""), f.host("mx2", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
	return f, a, b
}

// TestSabotage corrupts a host's keys in the server. The test also checks that a host with a
// different fleet key waits when the server has lost its keys.
func TestSabotage(t *testing.T) {
	t.Parallel()
	f, a, b := pair(t)
	s := f.server
	s.cli("sadd", "{scanwatch}:hosts", "mx8", "mx9")
	s.cli("set", "{scanwatch}:log:mx9", "x")
	s.cli("set", "{scanwatch}:rows:mx8", "x")
	filterproc.Eventually(t, "mx1 names the host", a.problem("host mx8: "))
	a.ban("198.51.100.2")
	filterproc.Eventually(t, "mx2 rejects the second client", b.turnsAway("198.51.100.2"))

	f.key = f.newKey("other.key")
	wrong := f.host("mx3", "")
	filterproc.Eventually(t, "mx3 names the problem", wrong.problem("the other hosts use a different fleet key"))
	for _, h := range []*host{a, b} {
		_ = h.companion.Process.Kill()
		_ = h.companion.Wait()
	}
	s.cli("flushall")
	filterproc.Eventually(t, "mx3 waits", wrong.problem("waiting until one of them is back"))
	a.startCompanion()
	b.startCompanion()
	a.ban("198.51.100.3")
	filterproc.Eventually(t, "mx2 rejects the third client", b.turnsAway("198.51.100.3"))
}

// TestLargeReplies checks that data of a host that is too large for one reply concerns only this
// host, and that status names it.
func TestLargeReplies(t *testing.T) {
	t.Parallel()
	f, a, b := pair(t)
	s := f.server
	mega := "local mega = string.rep('x', 1048576) "
	for i, test := range []struct{ script, problem string }{
		{"redis.call('sadd', '{scanwatch}:hosts', 'mx8') for i = 1, 40 do redis.call('hset', '{scanwatch}:rows:mx8', i, mega) end", "host mx8: the server's reply is too large"},
		{"redis.call('sadd', '{scanwatch}:hosts', 'mx9') redis.call('set', '{scanwatch}:alive:mx9', string.rep(mega, 40))", ""},
		{"redis.call('xadd', '{scanwatch}:log:mx1', '*', 'rows', string.rep(mega, 40))", ""},
		{"for i = 1, 40 do redis.call('sadd', '{scanwatch}:hosts', mega .. i) end", ""},
		{"redis.call('sadd', '{scanwatch}:hosts', string.rep(mega, 40))", "names that are too long"},
	} {
		s.cli("eval", mega+test.script, "0")
		if test.problem != "" {
			filterproc.Eventually(t, "mx2 reports "+test.problem, b.reports(test.problem))
		}
		addr := fmt.Sprint("198.51.100.", 2+i)
		a.ban(addr)
		filterproc.Eventually(t, "mx2 rejects "+addr, b.turnsAway(addr))
	}
}

// TestForgedGaps repeats old messages, so that other messages seem to be missing. The companion must
// name the host, and must not read all of its rows each time.
func TestForgedGaps(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a, b := f.host("mx1", ""), f.host("mx2", "")
	for i := range 3 {
		addr := fmt.Sprint("198.51.100.", 1+i)
		a.ban(addr)
		filterproc.Eventually(t, "mx2 rejects "+addr, b.turnsAway(addr))
	}
	reads := func() (n int) {
		for line := range strings.Lines(s.cli("info", "commandstats")) {
			_, _ = fmt.Sscanf(line, "cmdstat_hscan:calls=%d,", &n)
		}
		return n
	}
	before := reads()
	named := b.reports("host mx1: its rows must be read again and again")
	filterproc.Eventually(t, "mx2 names the host", func() bool {
		for _, i := range []int{1, 3} {
			s.cli("eval", "local m = redis.call('xrange', KEYS[1], '-', '+')[tonumber(ARGV[1])] redis.call('xadd', KEYS[1], '*', m[2][1], m[2][2])", "1", "{scanwatch}:log:mx1", fmt.Sprint(i))
		}
		return named()
	})
	if n := reads() - before; n > 15 { // at most nine within the time limit, and a few for new names
		t.Errorf("the rows were read %d times", n)
	}
	a.ban("198.51.100.4")
	filterproc.Eventually(t, "mx2 rejects the last client", b.turnsAway("198.51.100.4"))
}

// TestGap stops a companion until the server has dropped the messages that it needs. Before the
// gap, the companion has read either a message or only the rows of the other host.
func TestGap(t *testing.T) {
	t.Parallel()
	for _, message := range []bool{true, false} {
		t.Run(fmt.Sprint("message ", message), func(t *testing.T) {
			t.Parallel()
			testGap(t, message)
		})
	}
}

func testGap(t *testing.T, message bool) {
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a := f.host("mx1", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx1 has sent its ban", func() bool { return s.cli("xlen", "{scanwatch}:log:mx1") == "1\n" })
	b := f.host("mx2", "")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
	if message {
		a.ban("198.51.100.4")
		filterproc.Eventually(t, "mx2 rejects the fourth client", b.turnsAway("198.51.100.4"))
	}
	if err := b.companion.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	log := "{scanwatch}:log:mx1"
	length := s.cli("xlen", log)
	a.ban("198.51.100.2")
	filterproc.Eventually(t, "mx1 has sent its ban", func() bool { return s.cli("xlen", log) != length })
	s.cli("xtrim", log, "maxlen", "0")
	if err := b.companion.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	a.ban("198.51.100.3") // message after the gap
	for _, addr := range []string{"198.51.100.2", "198.51.100.3"} {
		filterproc.Eventually(t, "mx2 rejects "+addr, b.turnsAway(addr))
	}
}

// reports returns a function that reports whether h's status contains text. In JSON, text must need
// no escapes.
func (h *host) reports(text string) func() bool {
	return func() bool { return strings.Contains(h.scanwatch("status", "--json"), text) }
}

// TestLoss checks a server that loses its rows without being noticed, before a new row is written.
func TestLoss(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a := f.host("mx1", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx1 has sent its ban", func() bool { return s.cli("hlen", "{scanwatch}:rows:mx1") == "1\n" })
	s.cli("flushall")
	a.ban("198.51.100.2")
	filterproc.Eventually(t, "mx1 has sent both bans", func() bool { return s.cli("hlen", "{scanwatch}:rows:mx1") == "2\n" })
}

// TestFull starts a host while the server is full.
func TestFull(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a := f.host("mx1", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx1 has sent its ban", func() bool { return s.cli("hlen", "{scanwatch}:rows:mx1") == "1\n" })
	s.cli("config", "set", "maxmemory", "1")
	b := f.host("mx2", "")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
	filterproc.Eventually(t, "mx2 names the problem", b.reports("announce this host: OOM"))
	a.ban("198.51.100.2")
	s.cli("config", "set", "maxmemory", "0")
	b.ban("198.51.100.3")
	filterproc.Eventually(t, "mx2 rejects the second client", b.turnsAway("198.51.100.2"))
	filterproc.Eventually(t, "mx1 rejects the third client", a.turnsAway("198.51.100.3"))
	filterproc.Eventually(t, "mx2 has no problem", func() bool { return !strings.Contains(b.scanwatch("status"), "PROBLEM") })
}

// TestRemedies checks that the status contains the remedy if a host cannot connect.
func TestRemedies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(password, companionUser, -1); err != nil {
		t.Skip("SKIP: the test needs root")
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plain := newServer(t, "redis")
	encrypted := newServer(t, "redis", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	tls := freePort(t)
	encrypted.cli("config", "set", "tls-port", fmt.Sprint(tls))
	locked := newServer(t, "redis", "--requirepass", "secret")
	limited := newServer(t, "redis", "--user", "mx1", "on", ">wrong", "~*", "+@read", "+hello", "+client")
	f := newFleet(t, plain)
	start := func(name, to string, args ...any) *host {
		f.to = fmt.Sprintf(to, args...)
		return f.host(name, "")
	}
	for h, want := range map[*host]string{
		start("mx1", "\"valkey://127.0.0.1:%d\"", tls):                                              "use valkeys://",
		start("mx2", "\"valkeys://127.0.0.1:%d\" ca %q", plain.port, cert):                          "if the port has no TLS",
		start("mx3", "\"valkeys://127.0.0.1:%d\"", tls):                                             "authority's certificate with ca",
		start("mx7", "\"valkey://127.0.0.1:%d\"", freePort(t)):                                      "connection refused; start the server, or correct the address",
		start("mx8", "%q", filepath.Join(dir, "no.sock")):                                           "no such file or directory; start the server, or correct the socket",
		start("mx4", "\"valkey://127.0.0.1:%d\"", locked.port):                                      "add login and password",
		start("mx5", "\"valkey://127.0.0.1:%d\" login \"mx1\" password %q", limited.port, password): "permissions in SEVERAL SERVERS",
	} {
		filterproc.Eventually(t, h.name+" reports: "+want, h.reports(want))
	}
	h := start("mx6", "\"valkey://127.0.0.1:%d\" password %q", locked.port, password)
	filterproc.Eventually(t, "mx6 names the remedy", h.reports("compare login and password"))
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	filterproc.Eventually(t, "mx6 uses the new password", func() bool { return !strings.Contains(h.scanwatch("status"), "PROBLEM") })
}

// user creates a user of the server with the permissions in the manual, and lets the hosts that are
// created next log in as that user.
func (f *fleet) user(name, permissions string) {
	if out := f.server.cli(append([]string{"acl", "setuser", name, "on", ">secret", "resetkeys", "-@all"}, strings.Fields(permissions)...)...); out != "OK\n" {
		f.t.Fatal(out)
	}
	password := filepath.Join(f.dir, name+".password")
	if err := os.WriteFile(password, []byte("secret"), 0o400); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chown(password, companionUser, -1); err != nil {
		f.t.Fatal(err)
	}
	f.to = fmt.Sprintf("\"valkey://127.0.0.1:%d\" login %q password %q", f.server.port, name, password)
}

// TestUnannouncedRows checks that rows which a companion stored but did not announce before it was
// killed arrive at the other hosts after its restart.
func TestUnannouncedRows(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	b := f.host("mx2", "")
	f.user("mx1", "+@all ~*")
	a := f.host("mx1", "")
	a.ban("198.51.100.1")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
	f.user("mx1", "+@all -xadd ~*")
	a.scanwatch("unban", "198.51.100.1")
	a.ban("198.51.100.2")
	filterproc.Eventually(t, "mx1 has stored its ban", func() bool { return f.server.cli("hlen", "{scanwatch}:rows:mx1") == "2\n" })
	a.killCompanion()
	f.user("mx1", "+@all ~*")
	a.startCompanion()
	filterproc.Eventually(t, "mx2 lets the first client in", b.lets("198.51.100.1"))
	filterproc.Eventually(t, "mx2 rejects the second client", b.turnsAway("198.51.100.2"))
}

// TestManyNames checks that false names in the set of hosts do not delay known hosts, even after a
// restart of the companion, and that the status names the set.
func TestManyNames(t *testing.T) {
	t.Parallel()
	f, a, b := pair(t)
	f.server.cli("eval", "for i = 1, 100000 do redis.call('sadd', KEYS[1], 'n' .. i, '!' .. i) end", "1", "{scanwatch}:hosts")
	f.server.cli("eval", "for i = 1, 25 do redis.call('sadd', KEYS[1], string.rep('x', 1000000) .. i) end", "1", "{scanwatch}:hosts")
	for _, h := range []*host{a, b} {
		filterproc.Eventually(t, h.name+" names the set", h.reports("the server's set {scanwatch}:hosts has too many names"))
	}
	b.killCompanion()
	b.startCompanion()
	a.ban("198.51.100.50")
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.50"))
	f.server.cli("del", "{scanwatch}:hosts")
	for _, h := range []*host{a, b} {
		filterproc.Eventually(t, h.name+" has no problem", func() bool { return !strings.Contains(h.scanwatch("status"), "PROBLEM") })
	}
}

// TestUnreadableRows checks that a new host does not enforce the bans by other hosts while the rows of
// one host cannot be read, because these may contain the standing of a banned client.
func TestUnreadableRows(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	a.knows("198.51.100.7")
	filterproc.Eventually(t, "mx2 has the standing", func() bool { return strings.Contains(b.scanwatch("status"), "host      mx1: 2 rows,") })
	b.ban("198.51.100.7")
	b.ban("198.51.100.8")
	rows := "{scanwatch}:rows:mx1"
	f.server.cli("del", rows)
	f.server.cli("set", rows, "x")
	c := f.host("mx3", "")
	filterproc.Eventually(t, "mx3 has the bans", func() bool { return strings.Contains(c.scanwatch("status"), "host      mx2: 2 rows") })
	filterproc.Eventually(t, "mx3 names the host", c.reports("until its rows can be read, or the fleet statement ignores it"))
	for _, addr := range []string{"198.51.100.7", "198.51.100.8"} {
		if !c.lets(addr)() {
			t.Errorf("mx3 rejects %s", addr)
		}
	}
	f.server.cli("del", rows) // mx1 only sends its rows again some seconds later
	filterproc.Eventually(t, "mx3 rejects the unknown client", func() bool {
		if !c.lets("198.51.100.7")() {
			t.Fatal("mx3 rejects the known client")
		}
		return c.turnsAway("198.51.100.8")()
	})
	if !c.lets("198.51.100.7")() {
		t.Error("mx3 rejects the known client")
	}
	filterproc.Eventually(t, "mx3 has no problem", func() bool { return !strings.Contains(c.scanwatch("status"), "PROBLEM") })
}
