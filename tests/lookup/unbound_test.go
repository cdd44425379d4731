//go:build linux

package lookup

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

// unboundArgs returns the command that runs a validating resolver on a port. The resolver asks
// rbldnsd about bl.example.org and white.example.org, which are not signed. The list
// dnssec.example.org is signed and contains 192.0.2.7. Its signature for 192.0.2.8 is wrong.
func unboundArgs(t *testing.T, port int) []string {
	t.Helper()
	require.Program(t, "unbound")
	require.Program(t, "dnssec-signzone")
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	key := run("dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", "example.org")
	anchor, err := os.ReadFile(filepath.Join(dir, key+".key"))
	if err != nil {
		t.Fatal(err)
	}
	write("zone", "$TTL 300\n"+string(anchor)+`$ORIGIN example.org.
@ SOA ns hostmaster 1 600 300 86400 300
@ NS ns
ns A 127.0.0.1
bl NS ns
white NS ns
2.0.0.127.dnssec A 127.0.0.4
7.2.0.192.dnssec A 127.0.0.4
8.2.0.192.dnssec A 127.0.0.9
`+ancestors)
	run("dnssec-signzone", "-q", "-z", "-o", "example.org", "-f", "signed", "zone", key)
	signed, err := os.ReadFile(filepath.Join(dir, "signed"))
	if err != nil {
		t.Fatal(err)
	}
	zone := write("signed", strings.Replace(string(signed), "127.0.0.9", "127.0.0.4", 1))
	conf := fmt.Sprintf(`server:
	interface: 127.0.0.1
	port: %d
	access-control: 127.0.0.0/8 allow
	do-daemonize: no
	do-ip6: no
	use-syslog: no
	chroot: ""
	username: ""
	pidfile: ""
	directory: %q
	module-config: "validator iterator"
	trust-anchor-file: %q
	do-not-query-localhost: no
	infra-host-ttl: 1
	infra-keep-probing: yes
auth-zone:
	name: "example.org"
	zonefile: %q
	for-upstream: yes
	for-downstream: no
	fallback-enabled: no
remote-control:
	control-enable: no
`, port, dir, filepath.Join(dir, key+".key"), zone)
	for _, name := range []string{"bl", "white"} {
		conf += fmt.Sprintf("stub-zone:\n\tname: %q\n\tstub-addr: 127.0.0.1@%d\n", name+".example.org", rbldnsdPort)
	}
	return []string{"unbound", "-d", "-c", write("unbound.conf", conf)}
}

// ancestors are records for the names above the names in the list. Without these records, unbound
// cannot prove from its copy of the zone that other names do not exist.
const ancestors = `dnssec TXT x
127.dnssec TXT x
0.127.dnssec TXT x
0.0.127.dnssec TXT x
192.dnssec TXT x
0.192.dnssec TXT x
2.0.192.dnssec TXT x
`

// freePort returns an unused port.
func freePort(t *testing.T) int {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).Port
}

// TestUnbound checks the answers of lists through a resolver that caches and validates. The test
// covers failures of the list and of the resolver, and the time after them.
func TestUnbound(t *testing.T) {
	port := freePort(t)
	lists, resolver := rbldnsdArgs(t), unboundArgs(t, port)
	server, unbound := daemon(t, lists...), daemon(t, resolver...)
	b := newBench(t, port, list+`lookup white allowlist "white.example.org" codes 127.0.0.4 rate 100
lookup signed dnsbl "dnssec.example.org" codes 127.0.0.4 rate 100
pass match listed white
rule signed phase mail-from match listed signed reject "550 5.7.1 Signed"
`)
	b.start(3)
	answers := func() (n uint64) {
		for _, l := range b.status().Lookups {
			n += l.Listed + l.Absent
			for _, unknown := range l.Unknown {
				n += unknown
			}
		}
		return n
	}
	come := func(src string) string {
		t.Helper()
		before := answers()
		id := b.connect(src)
		filterproc.Eventually(t, "the answers about "+src, func() bool { return answers() >= before+3 })
		defer b.end(id)
		return b.mail(id)
	}
	const refused = "reject|550 5.7.1 Listed"
	for _, tt := range []struct{ src, want string }{
		{"203.0.113.1", refused},
		{"203.0.113.9", "proceed"}, // contained in both lists
		{"192.0.2.9", "proceed"},   // NXDOMAIN
		{"[2001:db8::7]", refused},
		{"[2001:db8::8]", "proceed"},
		{"192.0.2.8", "proceed"}, // SERVFAIL, because the signature is wrong
		{"192.0.2.7", refused},
	} {
		if got := come(tt.src); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.src, got, tt.want)
		}
	}
	if l := b.status().Lookups[2]; l.Listed != 1 || l.Absent != 5 || l.Unknown["failure"]+l.Unknown["timeout"] != 1 {
		t.Errorf("the signed list: %+v", l)
	}
	stop(server) // the resolver answers SERVFAIL, or does not answer
	for i := range 3 {
		if got := come(fmt.Sprintf("203.0.113.%d", 20+i)); got != "proceed" {
			t.Errorf("without the list: %s", got)
		}
	}
	if l := b.status().Lookups[0]; l.Unknown["failure"]+l.Unknown["timeout"]+l.Unknown["disabled"] < 3 {
		t.Errorf("without the list: %+v", l)
	}
	if got := b.mail(b.connect("203.0.113.1")); got != refused {
		t.Errorf("an earlier answer: %s", got)
	}
	daemon(t, lists...)
	next := 128
	recovered := func(what string) {
		t.Helper()
		filterproc.Eventually(t, what, func() bool {
			next++
			return come(fmt.Sprintf("198.51.100.%d", next)) == refused
		})
	}
	recovered("a listing after the list is back")

	stop(unbound)
	for i := range 7 { // the list is paused, and its test finds the reason
		if got := come(fmt.Sprintf("203.0.113.%d", 23+i)); got != "proceed" {
			t.Errorf("without the resolver: %s", got)
		}
	}
	filterproc.Eventually(t, "the reason in the status", func() bool {
		return strings.Contains(b.status().Companions[0].Error, "bl: test: resolver ")
	})
	daemon(t, resolver...)
	filterproc.Eventually(t, "the end of the pause", func() bool { return b.status().Companions[0].Error == "" })
	recovered("a listing after the resolver is back")
}

// TestZoneWildcard checks that no host is rejected because of a wildcard in a zone, before and
// after a restart of the companion. According to RFC 4592, the wildcard does not apply to the names
// of loopback addresses.
func TestZoneWildcard(t *testing.T) {
	require.Program(t, "unbound")
	dir, port := t.TempDir(), freePort(t)
	conf := filepath.Join(dir, "unbound.conf")
	start := func(records string) *exec.Cmd {
		t.Helper()
		zone := filepath.Join(dir, "zone")
		text := fmt.Sprintf(`server:
	interface: 127.0.0.1
	port: %d
	do-daemonize: no
	do-ip6: no
	use-syslog: no
	chroot: ""
	username: ""
	pidfile: ""
	directory: %q
	module-config: "iterator"
auth-zone:
	name: "bl.example.org"
	zonefile: %q
	for-upstream: no
	for-downstream: yes
	fallback-enabled: no
remote-control:
	control-enable: no
`, port, dir, zone)
		records = "$TTL 300\n$ORIGIN bl.example.org.\n@ SOA ns hostmaster 1 600 300 86400 300\n@ NS ns\nns A 127.0.0.1\n2.0.0.127 A 127.0.0.4\n" +
			"0.0.127 TXT x\n0.127 TXT x\n127 TXT x\n0 TXT x\n" + records // in unbound, names above a record do not exist without their own record
		for name, text := range map[string]string{zone: records, conf: text} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return daemon(t, "unbound", "-d", "-c", conf)
	}
	server := start("7.2.0.192 A 127.0.0.4\n")
	b := newBench(t, port, list)
	b.start(1)
	if got := b.come("192.0.2.7"); got != "reject|550 5.7.1 Listed" {
		t.Errorf("a listed host: %s", got)
	}
	stop(server)
	since := time.Now()
	start("* A 127.0.0.4\n")
	filterproc.Eventually(t, "the end of the check before the listing", func() bool { return time.Since(since) > time.Second })
	for i := range 5 {
		if got := b.come(fmt.Sprintf("198.51.100.%d", i)); got != "proceed" {
			t.Errorf("host %d: %s", i, got)
		}
	}
	const problem = "bl: test: a random name is listed as 127.0.0.4, so every host may be"
	filterproc.Eventually(t, "the problem in the status", func() bool { return b.status().Companions[0].Error == problem })
	stop(b.cmd)
	b.launch()
	filterproc.Eventually(t, "the test of the list", func() bool { return strings.Contains(b.log(), "list disabled") })
	if got := b.come("198.51.100.99"); got != "proceed" {
		t.Errorf("after a restart: %s", got)
	}
}
