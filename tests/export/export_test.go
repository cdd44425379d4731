//go:build linux

// Package export runs the programs that read the output of `scanwatch export` and the files in
// contrib. Firewalls run in network namespaces, and daemons listen only on loopback.
package export

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/store/export"
	"scanwatch/tests/internal/require"
)

// TestMain appends the directories of unpacked programs to PATH.
func TestMain(m *testing.M) {
	root := os.Getenv("SCANWATCH_ROOTS")
	if root == "" {
		root = "/var/cache/scanwatch-tests"
	}
	root = filepath.Join(root, "consumers")
	path := os.Getenv("PATH") + ":/usr/sbin:/sbin"
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/usr/libexec/sendmail", "/usr/libexec/sshguard"} {
		path += ":" + root + dir
	}
	_ = os.Setenv("PATH", path)
	_ = os.Setenv("CONSUMERS", root)
	os.Exit(m.Run())
}

// need skips the test unless it runs as root and the programs exist.
func need(t *testing.T, programs ...string) {
	t.Helper()
	missing := slices.DeleteFunc(programs, func(p string) bool {
		_, err := exec.LookPath(p)
		return err == nil
	})
	if len(missing) == 0 && os.Getuid() == 0 {
		t.Parallel()
		return
	}
	require.Missing(t, "the test needs root and the programs %v; see tests/consumers.sh", missing)
}

// openDir returns a directory that daemons' users can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs a shell script in a directory with the given files, and returns its output.
func run(t *testing.T, script string, files map[string]string) string {
	t.Helper()
	dir := openDir(t)
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, script, out)
	}
	return string(out)
}

// inNet runs a script in a network namespace.
func inNet(t *testing.T, script string, files map[string]string) string {
	t.Helper()
	return run(t, "exec unshare -n sh -eu <<'SCRIPT'\nip link set lo up\n"+script+"\nSCRIPT\n", files)
}

// unpacked sets the library path for unpacked programs.
const unpacked = `export LD_LIBRARY_PATH=$CONSUMERS/usr/lib/postfix:$CONSUMERS/usr/lib/x86_64-linux-gnu:$CONSUMERS/lib/x86_64-linux-gnu
`

var now = time.Now().UTC().Truncate(time.Second)

// hostile is the value of every text field in an entry.
const hostile = "x\r\n\x1b[31m\u202e'\"`$(touch pwned);#}{\\%s<>&|*=cmd() -- */ 192.0.2.250 ]] \x00é"

func entry(prefix string, lasts time.Duration) export.Entry {
	p := netip.MustParsePrefix(prefix)
	return export.Entry{Prefix: p, Kind: export.Ban, Host: p.Addr().Next(), First: now.Add(-48 * time.Hour), Last: now.Add(-time.Hour), Sessions: 3,
		Evidence: []string{"auth-spray", hostile}, Organisation: hostile, Confidence: "high", Reason: hostile, Expires: now.Add(lasts)}
}

// lists returns the lists of two consecutive exports.
func lists() (first, next *export.List) {
	first = &export.List{Made: now, Entries: []export.Entry{entry("192.0.2.1/32", time.Hour), entry("192.0.2.2/32", 300*24*time.Hour),
		entry("198.51.96.0/22", 24*time.Hour), entry("198.51.97.9/32", 48*time.Hour), entry("2001:db8::/64", time.Hour), entry("2001:db8:2::/47", 72*time.Hour)}}
	next = &export.List{Made: now, Entries: []export.Entry{first.Entries[0], entry("192.0.2.3/32", time.Hour), first.Entries[2], entry("2001:db8::/64", 2*time.Hour)}}
	first.Sort()
	next.Sort()
	return first, next
}

// Addresses that the lists must contain, or must not contain.
var (
	inFirst = []string{"192.0.2.1", "192.0.2.2", "198.51.97.9", "198.51.99.255", "2001:db8::77", "2001:db8:3:ffff::1"}
	inNext  = []string{"192.0.2.1", "192.0.2.3", "198.51.97.9", "198.51.99.255", "2001:db8::77"}
	inNone  = []string{"192.0.2.4", "198.51.100.1", "198.51.95.255", "192.0.2.250", "2001:db8:0:1::1", "2001:db8:1::1", "2001:db8:4::1"}
)

func name(t *testing.T, f string) *export.Format {
	t.Helper()
	format := export.FormatByName(f)
	if format == nil {
		t.Fatalf("no format %s", f)
	}
	return format
}

// text returns a list in the given format.
func text(t *testing.T, f string, l *export.List) string {
	t.Helper()
	var b strings.Builder
	if _, err := name(t, f).Write(&b, l); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x00\x1b\r") || strings.Contains(b.String(), "\u202e") {
		t.Errorf("%s lets control characters through", f)
	}
	return b.String()
}

// files returns the files with the first list, and with the changes from the first list to the
// next.
func files(t *testing.T, f string) map[string]string {
	t.Helper()
	first, next := lists()
	var start, diff strings.Builder
	state, _, err := name(t, f).WriteChanges(&start, first, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := name(t, f).WriteChanges(&diff, next, state); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"whole": text(t, f, first), "start": start.String(), "diff": diff.String()}
}

// check checks that listed returns the correct result for each address.
func check(t *testing.T, in []string, listed func(addr string) bool) {
	t.Helper()
	for _, a := range slices.Concat(inFirst, inNext, inNone) {
		if got, want := listed(a), slices.Contains(in, a); got != want {
			t.Errorf("%s is listed: %v, want %v", a, got, want)
		}
	}
}

func TestNFT(t *testing.T) {
	need(t, "nft", "unshare", "ip", "jq")
	const show = "nft -j list set inet scanwatch ban4; echo; nft -j list set inet scanwatch ban6; echo\n"
	out := inNet(t, `nft add table inet other; nft add chain inet other keep
nft -c -f whole; nft -f whole; nft -f whole; nft -f start
`+show+`nft -f diff; nft -f diff; nft delete element inet scanwatch ban4 '{ 192.0.2.3 }'
echo 'add element inet scanwatch ban4 { 192.0.2.3 timeout 1h }' | nft -f -
`+show+"nft list chain inet other keep >&2", files(t, "nft"))
	var sets []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "{") {
			sets = append(sets, line)
		}
	}
	if len(sets) != 4 {
		t.Fatalf("%d sets:\n%s", len(sets), out)
	}
	check(t, inFirst, nftSet(t, sets[0]+sets[1]))
	check(t, inNext, nftSet(t, sets[2]+sets[3]))
	if !strings.Contains(sets[0], `"timeout": 3600`) {
		t.Errorf("no timeout of an hour in %s", sets[0])
	}
}

// nftSet parses the output of nft -j list set.
func nftSet(t *testing.T, text string) func(string) bool {
	t.Helper()
	var prefixes []netip.Prefix
	for line := range strings.Lines(text) {
		var doc struct {
			Nftables []struct {
				Set struct {
					Elem []struct{ Elem struct{ Val json.RawMessage } }
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		for _, n := range doc.Nftables {
			for _, e := range n.Set.Elem {
				var of struct {
					Prefix struct {
						Addr string
						Len  int
					}
				}
				var one string
				if json.Unmarshal(e.Elem.Val, &one) == nil {
					prefixes = append(prefixes, netip.MustParsePrefix(one+map[bool]string{true: "/128", false: "/32"}[strings.Contains(one, ":")]))
				} else if err := json.Unmarshal(e.Elem.Val, &of); err != nil {
					t.Fatal(err)
				} else {
					prefixes = append(prefixes, netip.PrefixFrom(netip.MustParseAddr(of.Prefix.Addr), of.Prefix.Len))
				}
			}
		}
	}
	return within(prefixes)
}

func within(prefixes []netip.Prefix) func(string) bool {
	return func(a string) bool {
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
	}
}

// asks returns a script that runs a command for each address, and prints "yes ADDRESS"
// if the command succeeds.
func asks(command4, command6 string) string {
	var b strings.Builder
	for _, a := range slices.Concat(inFirst, inNext, inNone) {
		command := command4
		if strings.Contains(a, ":") {
			command = command6
		}
		fmt.Fprintf(&b, "if "+command+"; then echo 'yes %s'; fi\n", a, a)
	}
	return b.String() + "echo end\n"
}

// answers parses the output of asks' scripts.
func answers(out string) []func(string) bool {
	var list []func(string) bool
	for round := range strings.SplitSeq(out, "end\n") {
		list = append(list, func(a string) bool { return strings.Contains(round, "yes "+a+"\n") })
	}
	return list
}

func TestIPSet(t *testing.T) {
	need(t, "ipset", "unshare", "ip")
	ask := asks("ipset -q test scanwatch4 %s", "ipset -q test scanwatch6 %s")
	out := inNet(t, "ipset restore < whole\nipset restore < whole\nipset restore < start\n"+ask+"ipset restore < diff\nipset restore < diff\n"+ask+"ipset list", files(t, "ipset"))
	rounds := answers(out)
	check(t, inFirst, rounds[0])
	check(t, inNext, rounds[1])
	if !strings.Contains(out, "timeout 359") && !strings.Contains(out, "timeout 3600") {
		t.Errorf("no timeout of an hour in\n%s", out)
	}
}

func TestIPTables(t *testing.T) {
	need(t, "iptables-restore", "ip6tables-restore", "iptables-save", "unshare", "ip")
	for _, v := range []struct{ format, prefix string }{{"iptables", ""}, {"ip6tables", "6"}} {
		t.Run(v.format, func(t *testing.T) {
			restore, save := v.format+"-restore --noflush", v.format+" -S scanwatch; echo end\n"
			out := inNet(t, restore+" --test whole\n"+v.format+" -A INPUT -j ACCEPT\n"+restore+" whole\n"+restore+" whole\n"+restore+" start\n"+save+restore+" --test diff\n"+restore+" diff\n"+save+v.format+" -S INPUT", files(t, v.format))
			rounds := strings.Split(out, "end\n")
			for i, in := range [][]string{inFirst, inNext} {
				var prefixes []netip.Prefix
				for line := range strings.Lines(rounds[i]) {
					if f := strings.Fields(line); len(f) > 3 && f[2] == "-s" {
						prefixes = append(prefixes, netip.MustParsePrefix(f[3]))
					}
				}
				ours := slices.DeleteFunc(slices.Clone(in), func(a string) bool { return strings.Contains(a, ":") != (v.prefix != "") })
				check(t, ours, within(prefixes))
			}
			if !strings.Contains(rounds[2], "-A INPUT -j ACCEPT") {
				t.Errorf("other rules were removed: %s", rounds[2])
			}
		})
	}
}

func TestIPRoute(t *testing.T) {
	need(t, "unshare", "ip")
	ask := asks("! ip route get %s >/dev/null 2>&1", "! ip -6 route get %s >/dev/null 2>&1")
	out := inNet(t, "ip route add default dev lo; ip -6 route add default dev lo\nsh whole\nsh whole\nsh start\n"+ask+"sh diff\nsh diff\n"+ask, files(t, "ip-route"))
	rounds := answers(out)
	check(t, inFirst, rounds[0])
	check(t, inNext, rounds[1])
}

func TestPostfix(t *testing.T) {
	need(t, "postmap")
	first, _ := lists()
	ask := asks("postmap -c . -q %s cidr:table >>replies", "postmap -c . -q %s cidr:table >>replies")
	out := run(t, unpacked+ask+"sort -u replies", map[string]string{"table": text(t, "postfix", first), "main.cf": "mail_owner = daemon\nsetgid_group = mail\n"})
	check(t, inFirst, answers(out)[0])
	if !strings.Contains(out, "\n421 4.7.1 Banned until "+now.Add(time.Hour).Format("2006-01-02 15:04")+" UTC\n") || !strings.Contains(out, "\n554 5.7.1 Banned") {
		t.Errorf("replies:\n%s", out)
	}
}

func TestSendmail(t *testing.T) {
	need(t, "m4", "makemap", "sendmail", "unshare")
	first, _ := lists()
	ask := slices.Concat(inFirst, inNext, inNone)
	var queries strings.Builder
	for _, a := range ask {
		if addr := netip.MustParseAddr(a); addr.Is6() {
			b := addr.As16()
			a = "IPv6"
			for i := 0; i < 16; i += 2 {
				a += fmt.Sprintf(":%x", int(b[i])<<8|int(b[i+1]))
			}
		}
		fmt.Fprintf(&queries, "Translate,Basic_check_relay mx.example.net $| %s\n", a)
	}
	out := run(t, unpacked+`mc=$PWD; sed -i "s,ACCESS,$PWD/access," a.mc
(cd $CONSUMERS/usr/share/sendmail/cf && m4 m4/cf.m4 $mc/a.mc) >a.cf
makemap -C a.cf hash access.db <table
unshare -n --uts sh -c 'hostname mx.example.org; exec $CONSUMERS/usr/libexec/sendmail/sendmail -bt -C a.cf' <queries | grep 'Basic_check_rela *returns'`, map[string]string{
		"table": text(t, "sendmail", first), "queries": queries.String(),
		"a.mc": "OSTYPE(linux)dnl\ndefine(`confDONT_BLAME_SENDMAIL',`MapInUnsafeDirPath')dnl\nFEATURE(access_db, `hash -T<TMPF> -o ACCESS')dnl\nMAILER(local)dnl\nMAILER(smtp)dnl\n" +
			"LOCAL_RULESETS\nSTranslate\nR$* $$| $*\t$: $1 $| $2\n"})
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(ask) {
		t.Fatalf("%d answers to %d questions:\n%s", len(lines), len(ask), out)
	}
	check(t, inFirst, func(a string) bool { return strings.Contains(lines[slices.Index(ask, a)], `error $@ `) })
	if !strings.Contains(out, `$# error $@ 4 . 7 . 1 $: "421 Banned until `) {
		t.Errorf("no temporary answer in\n%s", out)
	}
}

func TestJSONAndCSV(t *testing.T) {
	need(t, "jq", "python3")
	first, _ := lists()
	out := run(t, `jq -r '.prefix' json; jq -e 'select(.expires < "`+now.Format(time.RFC3339)+`")' json || echo end
python3 - <<'END'
import csv
for row in csv.DictReader(open("csv", newline="")):
    assert row["reason"][0] not in "=+-@", row
    print(row["prefix"])
END`, map[string]string{"json": text(t, "json", first), "csv": text(t, "csv", first)})
	one, two, _ := strings.Cut(out, "end\n")
	if one != two || strings.Count(one, "\n") != len(first.Entries) {
		t.Errorf("JSON:\n%s\nCSV:\n%s", one, two)
	}
}

func TestKumoMTA(t *testing.T) {
	need(t, "python3")
	first, _ := lists()
	out := run(t, `python3 - <<'END'
import tomllib
for prefix, reply in tomllib.load(open("table", "rb")).items():
    assert reply[:4] in ("421 ", "554 "), reply
    print(prefix)
END`, map[string]string{"table": text(t, "kumomta", first)})
	var prefixes []netip.Prefix
	for p := range strings.FieldsSeq(out) {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	check(t, inFirst, within(prefixes))
}

func TestBIND(t *testing.T) {
	need(t, "named-compilezone", "named-checkzone")
	first, _ := lists()
	out := run(t, "named-checkzone -q bl.example.org zone; named-compilezone -q -o - bl.example.org zone", map[string]string{"zone": text(t, "bind", first)})
	names := map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 4 && f[3] == "A" {
			names[strings.TrimSuffix(f[0], ".bl.example.org.")] = true
		}
	}
	check(t, inFirst, func(a string) bool { return wildcard(names, reversed(a)) })
	if !names["2.0.0.127"] {
		t.Error("the entry to test with is missing")
	}
}

// reversed returns an address's name in a DNS list.
func reversed(a string) string {
	addr := netip.MustParseAddr(a)
	var labels []string
	for _, b := range addr.AsSlice() {
		if addr.Is4() {
			labels = append(labels, fmt.Sprint(b))
		} else {
			labels = append(labels, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
		}
	}
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

// wildcard looks up a name according to RFC 4592: a wildcard matches only directly below the
// closest existing ancestor of the name.
func wildcard(names map[string]bool, name string) bool {
	if names[name] {
		return true
	}
	for rest := name; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return names["*"]
		}
		for n := range names {
			if n == parent || strings.HasSuffix(n, "."+parent) {
				return names["*."+parent]
			}
		}
		rest = parent
	}
}

// resolver returns a resolver that queries a name server on loopback.
func resolver(addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", addr)
	}}
}

func TestRBLDNSD(t *testing.T) {
	need(t, "rbldnsd")
	dir := openDir(t)
	first, _ := lists()
	zone := filepath.Join(dir, "zone")
	if err := os.WriteFile(zone, []byte(text(t, "rbldnsd", first)), 0o644); err != nil {
		t.Fatal(err)
	}
	// Listening on port 0 finds a free port.
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := c.LocalAddr().String()
	c.Close()
	cmd := exec.Command("rbldnsd", "-n", "-b", strings.Replace(addr, ":", "/", 1), "-u", "daemon", "bl.example.org:combined:"+zone)
	var log strings.Builder
	cmd.Stderr, cmd.Stdout = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := resolver(addr)
	listed := func(a string) bool {
		found, err := r.LookupHost(t.Context(), reversed(a)+".bl.example.org.")
		return err == nil && len(found) == 1 && found[0] == "127.0.0.2"
	}
	for deadline := time.Now().Add(20 * time.Second); !listed("127.0.0.2"); {
		if time.Now().After(deadline) {
			t.Fatalf("rbldnsd does not answer:\n%s", log.String())
		}
	}
	check(t, inFirst, listed)
	texts, err := r.LookupTXT(t.Context(), reversed("192.0.2.1")+".bl.example.org.")
	if want := "Banned until " + now.Add(time.Hour).Format(time.RFC3339); err != nil || len(texts) != 1 || !strings.HasPrefix(texts[0], want) {
		t.Errorf("TXT %q, %v; want %q", texts, err, want)
	}
}

// fail2banConf returns fail2ban's configuration with the given jail.
func fail2banConf(t *testing.T, jail string) map[string]string {
	t.Helper()
	files := map[string]string{
		"conf/fail2ban.conf":      "[DEFAULT]\nloglevel = INFO\nlogtarget = log\nsocket = sock\nsyslogsocket = auto\nallowipv6 = auto\npidfile = pid\ndbfile = db\ndbpurgeage = 1d\ndbmaxmatches = 10\n[Definition]\n",
		"conf/jail.conf":          "[DEFAULT]\nbackend = polling\nmaxretry = 1\nfindtime = 10d\nbantime = 10d\nusedns = no\nport = 0:65535\nprotocol = tcp\nchain = INPUT\naction = file\n" + jail,
		"conf/action.d/file.conf": "[Definition]\nactionstart =\nactionstop =\nactioncheck =\nactionban = echo ban <ip> >> bans\nactionunban = echo unban <ip> >> bans\n",
	}
	for name, from := range map[string]string{"common.conf": "/etc/fail2ban/filter.d/common.conf", "scanwatch.conf": "../../contrib/fail2ban/filter.d/scanwatch.conf",
		"scanwatch-export.conf": "../../contrib/fail2ban/filter.d/scanwatch-export.conf"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files["conf/filter.d/"+name] = string(b)
	}
	return files
}

// TestFail2banServer checks that a running fail2ban server bans the hosts in the first list and in
// the changes.
func TestFail2banServer(t *testing.T) {
	need(t, "fail2ban-server", "fail2ban-client", "fail2ban-regex")
	first, _ := lists()
	all := fail2banConf(t, "[scanwatch-export]\nenabled = true\nfilter = scanwatch-export\nlogpath = list\n")
	all["list"] = text(t, "fail2ban", first)
	all["diff"] = files(t, "fail2ban")["diff"]
	out := run(t, `for f in conf/*.conf conf/action.d/file.conf; do
	sed -i "s,\(logtarget\|socket\|pidfile\|dbfile\) = ,&$PWD/,; s,logpath = ,&$PWD/,; s,>> ,&$PWD/," $f
done
sed -i "s,fail2ban-client,fail2ban-client -c conf," diff
fail2ban-regex -c conf --out ip list scanwatch-export | sort -u; echo end
fail2ban-server -c conf start >/dev/null
trap 'fail2ban-client -c conf stop >/dev/null' EXIT
while [ "$(fail2ban-client -c conf get scanwatch-export banip | wc -w)" -lt 6 ]; do :; done
fail2ban-client -c conf get scanwatch-export banip | sort -u; echo end
sh diff >/dev/null
fail2ban-client -c conf get scanwatch-export banip | sort -u; echo end
cat log >&2 || :`, all)
	rounds := strings.Split(out, "end\n")
	for i, in := range [][]string{inFirst, inFirst, inNext} {
		var prefixes []netip.Prefix
		for one := range strings.FieldsSeq(rounds[i]) {
			if !strings.Contains(one, "/") {
				one += map[bool]string{true: "/128", false: "/32"}[strings.Contains(one, ":")]
			}
			p, err := netip.ParsePrefix(one)
			if err != nil {
				t.Fatalf("round %d: %q\n%s", i, one, out)
			}
			prefixes = append(prefixes, p)
		}
		check(t, in, within(prefixes))
	}
}

// TestFail2banModes checks which hosts each mode of fail2ban finds in the logs of real servers.
func TestFail2banModes(t *testing.T) {
	need(t, "fail2ban-regex")
	for form, log := range mailLogs(t) {
		all := fail2banConf(t, "")
		all["log"] = log
		for mode, want := range map[string]string{
			"banned":   "2001:db8::/64 203.0.113.1 203.0.113.8",
			"rejected": "2001:db8::/64 203.0.113.1 203.0.113.10 203.0.113.8",
			"evidence": "2001:db8::/64 203.0.113.1 203.0.113.10 203.0.113.8 203.0.113.9",
		} {
			out := run(t, "fail2ban-regex -c conf --out ip log 'scanwatch[mode="+mode+"]' | LC_ALL=C sort -u", all)
			if got := strings.Join(strings.Fields(out), " "); got != want {
				t.Errorf("%s, mode %s: %s, want %s", form, mode, got, want)
			}
		}
	}
}

// repetitions contains log lines of half an hour. The lines report repeated sessions of rejected
// hosts, and sessions of hosts that no rule has rejected.
const repetitions = `Nov 21 10:31:02 mx smtpd[4711]: scanwatch: sessions rule=bh src=203.0.113.10 more=5 within=10m
Nov 21 10:31:02 mx smtpd[4711]: scanwatch: sessions kind=observed rule=bh src=203.0.113.11 more=5 within=10m
Nov 21 10:31:02 mx smtpd[4711]: scanwatch: sessions kind=withheld rule=bh src=203.0.113.12 more=5 within=10m
Nov 21 10:31:02 mx smtpd[4711]: scanwatch: sessions evidence=no-mail src=203.0.113.13 more=5 within=10m
Nov 21 10:31:02 mx smtpd[4711]: scanwatch: sessions tag=t src=203.0.113.14 more=5 within=10m
`

// logTime matches the time at the start of a log line.
var logTime = regexp.MustCompile(`(?m)^[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d `)

// mailLogs returns the logs of real servers, and repetitions. The lines of the filter appear in four
// forms: logged by smtpd, and logged by the filter, the milter or scanwatch follow itself.
func mailLogs(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/maillog-*.txt")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v: logs %v", err, files)
	}
	var all strings.Builder
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	for range 3 {
		all.WriteString(repetitions)
	}
	logs := map[string]string{"smtpd": all.String()}
	for _, program := range []string{"filter-scanwatch", "milter-scanwatch", "scanwatch"} {
		logs[program] = strings.ReplaceAll(all.String(), "smtpd[4711]: scanwatch: ", program+"[4712]: ")
	}
	return logs
}

// TestFail2banJail checks that fail2ban accepts the jails in contrib.
func TestFail2banJail(t *testing.T) {
	need(t, "fail2ban-client")
	all := fail2banConf(t, "")
	b, err := os.ReadFile("../../contrib/fail2ban/jail.d/scanwatch.conf")
	if err != nil {
		t.Fatal(err)
	}
	all["conf/jail.d/scanwatch.conf"] = strings.ReplaceAll(string(b), "enabled  = false", "enabled  = true")
	all["log"] = ""
	out := run(t, `sed -i "s,^logpath .*,logpath = $PWD/log," conf/jail.d/scanwatch.conf; fail2ban-client -c conf -t 2>&1; fail2ban-client -c conf -d`, all)
	for _, want := range []string{"OK: configuration test is successful", "'add', 'scanwatch', 'auto'", "'add', 'scanwatch-export', 'auto'"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSSHGuard(t *testing.T) {
	need(t, "sshg-parser", "sshg-blocker")
	script, err := filepath.Abs("../../contrib/sshguard/scanwatch-parser")
	if err != nil {
		t.Fatal(err)
	}
	for form, log := range mailLogs(t) {
		log += "Nov 21 10:31:02 mx sshd[4711]: Invalid user smtpd[1]: scanwatch: banned src=192.0.2.3 rule=x from 192.0.2.2 port 22\n"
		out := run(t, fmt.Sprintf(`sh %s sshg-parser <log | sshg-blocker -a 30 -p 120 -s 1800 -n 32 -N 64 | grep ^block | sort -u`, script), map[string]string{"log": log})
		if want := "block 2001:db8::/64 6 64\nblock 203.0.113.1 4 32\nblock 203.0.113.10 4 32\nblock 203.0.113.8 4 32\n"; strings.ReplaceAll(out, "2001:db8::8 6 64", "2001:db8::/64 6 64") != want {
			t.Errorf("%s: sshguard prints %q, want %q", form, out, want)
		}
	}
}

// crowdsecConf returns a crowdsec configuration that needs no network.
func crowdsecConf(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{
		"config.yaml": `common: {daemonize: false, log_media: stdout, log_level: info, working_dir: .}
config_paths: {config_dir: DIR, data_dir: DIR/data, simulation_path: DIR/simulation.yaml, hub_dir: DIR/hub, index_path: DIR/hub/.index.json, notification_dir: DIR/notify, plugin_dir: DIR/plugins}
crowdsec_service: {acquisition_path: DIR/acquis.yaml, parser_routines: 1}
cscli: {output: human}
db_config: {log_level: info, type: sqlite, db_path: DIR/data/crowdsec.db, flush: {max_items: 5000, max_age: 7d}}
api:
  client: {insecure_skip_verify: false, credentials_path: DIR/local.yaml}
  server: {log_level: info, listen_uri: "127.0.0.1:8080", profiles_path: DIR/profiles.yaml}
prometheus: {enabled: false}
`,
		"simulation.yaml": "simulation: off\n", "acquis.yaml": "", "hub/.index.json": `{"parsers":{},"scenarios":{},"collections":{},"postoverflows":{}}`, "data/none": "", "notify/none": "",
		"profiles.yaml": "name: default\nfilters:\n - Alert.Remediation == true\ndecisions:\n - type: ban\n   duration: 4h\non_success: break\n",
		"local.yaml":    "url: http://127.0.0.1:8080\n",
	}
	for name, from := range map[string]string{"parsers/s01-parse/scanwatch-logs.yaml": "../../contrib/crowdsec/parsers/s01-parse/scanwatch-logs.yaml",
		"scenarios/scanwatch.yaml": "../../contrib/crowdsec/scenarios/scanwatch.yaml"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	return files
}

// crowdsecStart is a script that starts crowdsec's API in a network namespace. cs runs cscli.
const crowdsecStart = `sed -i "s,DIR,$PWD,g" config.yaml
cp -r $CONSUMERS/etc/crowdsec/patterns .; mkdir parsers/s00-raw parsers/s02-enrich postoverflows
cp $CONSUMERS/usr/share/crowdsec/hub/parsers/s00-raw/crowdsecurity/syslog-logs.yaml parsers/s00-raw/
cp $CONSUMERS/usr/share/crowdsec/hub/parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml parsers/s02-enrich/
cs() { cscli -c config.yaml "$@"; }
cs machines add test --password test --force -f $PWD/local.yaml >/dev/null 2>&1
crowdsec -c config.yaml -no-cs -no-capi >lapi.log 2>&1 & api=$!
trap 'kill $api' EXIT
until cs decisions list >/dev/null 2>&1; do :; done
`

// decisions parses the output of cscli decisions list -o raw.
func decisions(out string) func(string) bool {
	var prefixes []netip.Prefix
	for line := range strings.Lines(out) {
		if strings.Contains(line, ",-") {
			continue // the process has just ended
		}
		for cell := range strings.SplitSeq(line, ",") {
			_, value, ok := strings.Cut(strings.TrimSpace(cell), ":")
			if !ok || !strings.HasPrefix(cell, "Ip:") && !strings.HasPrefix(cell, "Range:") {
				continue
			}
			if !strings.Contains(value, "/") {
				value += map[bool]string{true: "/128", false: "/32"}[strings.Contains(value, ":")]
			}
			if p, err := netip.ParsePrefix(value); err == nil {
				prefixes = append(prefixes, p)
			}
		}
	}
	return within(prefixes)
}

func TestCrowdSecImport(t *testing.T) {
	need(t, "crowdsec", "cscli", "unshare")
	all := crowdsecConf(t)
	for name, text := range files(t, "crowdsec") {
		all[name+".json"] = text
	}
	out := inNet(t, crowdsecStart+`cs decisions import -i whole.json >import.log 2>&1
cs decisions list -a -o raw; echo end
sed 's/^cscli/cscli -c config.yaml/' diff.json | sh >diff.log 2>&1
cs decisions list -a -o raw; echo end; cat diff.log import.log; test ! -e pwned`, all)
	rounds := strings.Split(out, "end\n")
	check(t, inFirst, decisions(rounds[0]))
	check(t, inNext, decisions(rounds[1]))
	if t.Failed() {
		t.Log(out)
	}
}

// TestCrowdSecReadsTheLog checks that crowdsec bans the hosts that the filter has banned.
func TestCrowdSecReadsTheLog(t *testing.T) {
	need(t, "crowdsec", "cscli", "unshare")
	for form, log := range mailLogs(t) {
		all := crowdsecConf(t)
		// Set the times in the lines to the present, because a decision starts at the time in the
		// log.
		all["mail.log"] = logTime.ReplaceAllString(log, time.Now().UTC().Format("Jan _2 15:04:05 "))
		out := inNet(t, crowdsecStart+`crowdsec -c config.yaml -no-api -dsn file://$PWD/mail.log -type syslog >agent.log 2>&1 || { tail -20 agent.log; false; }
cs decisions list -a -o raw; tail -3 agent.log`, all)
		listed := decisions(out)
		for a, want := range map[string]bool{"203.0.113.8": true, "2001:db8::8": true, "203.0.113.1": true, "203.0.113.9": false, "203.0.113.10": true, "203.0.113.11": false, "203.0.113.12": false, "198.51.100.99": false} {
			if got := listed(a); got != want {
				t.Errorf("%s: %s is banned: %v, want %v\n%s", form, a, got, want, out)
			}
		}
	}
}

func TestRspamd(t *testing.T) {
	need(t, "rspamd", "rspamc", "unshare")
	first, _ := lists()
	var ask strings.Builder
	for _, a := range slices.Concat(inFirst, inNext, inNone) {
		fmt.Fprintf(&ask, "if printf 'Subject: x\\n\\nhello\\n' | rspamc -h 127.0.0.1:11333 -i %s symbols | grep -q 'SCANWATCH (8'; then echo 'yes %s'; fi\n", a, a)
	}
	out := inNet(t, `sed -i "s,HERE,$PWD,g" rspamd.conf
`+strings.ReplaceAll(unpacked, "postfix", "rspamd")+`chown -R daemon .
share=$CONSUMERS/usr/share/rspamd
rspamd -f -u daemon -g daemon -c rspamd.conf --var=LUALIBDIR=$share/lualib --var=SHAREDIR=$share --var=RULESDIR=$share/rules --var=PLUGINSDIR=$share/plugins \
    --var=DBDIR=$PWD --var=RUNDIR=$PWD --var=LOGDIR=$PWD --var=CONFDIR=$PWD --var=LOCAL_CONFDIR=$PWD >log 2>&1 & p=$!
trap 'kill $p' EXIT
until printf 'Subject: x\n\nhello\n' | rspamc -h 127.0.0.1:11333 symbols 2>&1 | grep -q ^Action; do kill -0 $p || { cat log; exit 1; }; done
`+ask.String(), map[string]string{"table": text(t, "rspamd", first), "tld": "org\n",
		// Disable rspamd's own rules.
		"only.lua": "rspamd_parse_redis_server = require(\"lua_redis\").rspamd_parse_redis_server\n",
		"rspamd.conf": `lua = "HERE/only.lua"
options { pidfile = "HERE/pid"; filters = ""; dns { nameserver = ["127.0.0.1"]; } tempdir = "HERE"; url_tld = "HERE/tld"; control_socket = "HERE/control mode=0600"; hs_cache_dir = "HERE"; }
logging { type = "console"; level = "info"; }
worker "normal" { bind_socket = "127.0.0.1:11333"; count = 1; }
modules { path = "$PLUGINSDIR/multimap.lua"; }
multimap { SCANWATCH { type = "ip"; map = "HERE/table"; score = 8.0; } }
actions { reject = 15; }
`})
	check(t, inFirst, answers(out)[0])
	if t.Failed() {
		t.Log(out)
	}
}
