package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/hostiletext"
)

// viewColumns lists the widths at which each view is rendered.
var viewColumns = []int{80, 140}

// views contains the commands that print each view as text.
var views = []struct{ name, args string }{
	{"report", "report --limit 5"},
	{"report-users", "report users"},
	{"report-returns", "report returns"},
	{"report-scanners", "report scanners"},
	{"why", "why 2001:db8:7::25"},
	{"why-network", "why 2001:db8:7::/64"},
	{"why-hostile", "why 203.0.113.66"},
	{"why-user", "why --as user erin"},
	{"why-letter", "why --letter 2001:db8:7::1"},
	{"bans", "bans --all"},
	{"stats", "stats"},
	{"fsck", "fsck"},
	{"top", "top --once"},
	{"show", "show 0000000000000003"},
	{"show-hostile", "show 0000000000000009"},
	{"lists", "lists"},
	{"check", "check"},
	{"policy", "policy"},
	{"policy-privacy", "policy --privacy"},
}

// hostileNames combines control characters, right-to-left text, wide characters and a
// long name.
const hostileNames = "\x1b[31m\r\nред\u202egnp.漢字漢字漢字漢字漢字漢字漢字漢字.מייל.example"

// mkViews fills a state directory with a host of each kind.
func mkViews(dir string) error {
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	id := uint64(0)
	add := func(ago time.Duration, src, rdns string, c store.Counts, steps ...store.Step) {
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 10*time.Millisecond)
		}
		id++
		end := now.Add(-ago)
		r := &store.Record{Start: end.Add(-time.Second), End: end, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 4711),
			Dst: netip.MustParseAddrPort("198.51.100.25:25"), RDNS: []byte(rdns), Ending: smtp.EndingQuit, Counts: c}
		if rdns != "" && rdns != hostileNames {
			r.FCrDNS = smtp.FCrDNSPass
		}
		w.Add(end, id, store.AppendRecord(nil, r, b))
	}
	step := func(kind store.Kind, text string, r smtp.Result) store.Step {
		return store.Step{Kind: kind, Text: []byte(text), Result: r}
	}
	finding := func(evidence, org, proof string) store.Step {
		return store.Step{Kind: store.KindFinding, Text: []byte(evidence), Org: []byte(org), By: []byte("helo"), Arg: []byte(proof), Confidence: []byte("high")}
	}
	mail := []store.Step{step(store.KindHelo, "mail.example.org", smtp.ResultOK), step(store.KindMail, "alice@example.org", smtp.ResultOK), step(store.KindRcpt, "bob@example.com", smtp.ResultOK)}
	rejected := store.Step{Kind: store.KindVerdict, Text: []byte("botnet"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true}
	ban := store.Step{Kind: store.KindBan, Text: []byte("botnet"), Prefix: netip.MustParsePrefix("2001:db8:7::/64"), Until: now.Add(22 * time.Hour), Enforced: true}
	add(90*time.Minute, "2001:db8:7::25", "mail.example.org", store.Counts{Mails: 1, RcptOK: 1}, mail...)
	add(55*time.Minute, "71.6.135.131", "census1.shodan.io", store.Counts{}, finding("scanner", "Shodan", ""))
	add(50*time.Minute, "2001:db8:7::1", "", store.Counts{}, step(store.KindHelo, "ylmf-pc", smtp.ResultOK), finding("botnet-helo", "PushDo", "ylmf-pc"), rejected, ban)
	add(45*time.Minute, "2001:db8:7::25", "mail.example.org", store.Counts{Mails: 1, RcptOK: 1}, mail...)
	add(40*time.Minute, "192.0.2.9", "dsl-9.example.net", store.Counts{AuthPass: 1}, step(store.KindAuth, "erin", smtp.ResultPass))
	for range 3 {
		add(30*time.Minute, "192.0.2.200", "", store.Counts{AuthFail: 1}, step(store.KindAuth, "erin", smtp.ResultFail), finding("auth-failure", "", "erin"))
	}
	add(20*time.Minute, "203.0.113.66", hostileNames, store.Counts{RcptPermfail: 1}, step(store.KindHelo, hostileNames, smtp.ResultOK),
		step(store.KindMail, hostileNames+"@example.net", smtp.ResultOK), step(store.KindRcpt, strings.Repeat("漢", 60)+"@example.com", smtp.ResultPermfail),
		finding("helo-invalid", hostileNames, strings.Repeat("x", 200)), rejected)
	m := memory.New()
	at := func(ago time.Duration) int64 { return now.Add(-ago).UnixMicro() }
	client := func(addr, rdns string) *memory.Client {
		return &memory.Client{Addr: netip.MustParseAddr(addr), Domain: memory.RegisteredDomain([]byte(rdns)), Helo: []byte(rdns)}
	}
	for day := range 12 {
		m.Peers.Delivered(client("2001:db8:7::25", "mail.example.org"), memory.Delivery{Messages: 1, Senders: []string{"example.org"}}, at(time.Duration(12-day)*24*time.Hour))
	}
	m.Bans.Add(client("2001:db8:7::1", ""), memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "botnet", Session: 3}, at(50*time.Minute))
	m.Bans.Add(client("192.0.2.200", ""), memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "guess", Session: 8}, at(30*time.Minute))
	m.Bans.Add(client("203.0.113.66", ""), memory.BanRequest{Ladder: []time.Duration{0, time.Hour}, Rule: "botnet", Session: 9}, at(20*time.Minute))
	m.Bans.Add(client("71.6.135.131", ""), memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "scanner", Session: 2, Observe: true}, at(55*time.Minute))
	m.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/25"), time.Hour, hostileNames, at(10*time.Minute))
	err := foreignBans(m, client("192.0.2.201", ""), at(5*time.Minute))
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite})
	return errors.Join(err, w.Close(), state.Flush(context.Background()), state.Close())
}

// foreignBans adds another host's bans: one by the rule c, a manual one, and a revoked one.
func foreignBans(m *memory.Memory, c *memory.Client, at int64) error {
	other := memory.New()
	other.Announce()
	other.Bans.Add(c, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "guess", Session: 0xbad}, at)
	for _, p := range []netip.Prefix{netip.MustParsePrefix("198.51.100.128/26"), netip.MustParsePrefix("198.51.100.192/26")} {
		other.Bans.AddPrefix(p, time.Hour, "too many", at)
	}
	other.Bans.Revoke(netip.MustParsePrefix("198.51.100.192/26"), false, at)
	var rows []memory.Foreign
	for _, e := range other.Outgoing(100, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx1"})
	}
	_, err := m.Incoming(rows, 0, at)
	m.Bans.HaveStanding()
	if ban, ok := m.Bans.Enforced(netip.PrefixFrom(c.Addr, c.Addr.BitLen()), at); ok {
		m.Bans.Rejected(&ban, at) // exports then omit the ban
	}
	return err
}

// TestForeignBans checks that bans imposed by other hosts can be found by rule name, and that
// exports and JSON name the host that imposed them.
func TestForeignBans(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	if err := errors.Join(mkViews(dir), os.WriteFile(conf, []byte("mode enforce\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"bans --rule guess", "guess on mx1"},
		{"bans --json --rule guess", `"rule":"guess","times":0,"attempts":0,"origin":"mx1"`},
		{"export json --bans", `guess on mx1`},
		{"export json --bans -v", "omitted 1: bans by other hosts for which this filter has rejected no client in the last day"},
		{"why 192.0.2.201", "Cause: rule guess on mx1"},
	} {
		var stdout, stderr bytes.Buffer
		if program(&stderr).main(append([]string{"-s", dir, "-f", conf}, strings.Fields(c.args)...), &stdout); !strings.Contains(stdout.String()+stderr.String(), c.want) {
			t.Errorf("%s: no %q in\n%s%s", c.args, c.want, &stdout, &stderr)
		}
	}
}

// TestViews checks each view at each width. No line may be wider than the terminal, hostile names
// must be harmless, and the text must match a golden file. A view that does not depend on the width
// has a single golden file.
func TestViews(t *testing.T) {
	golden, err := filepath.Abs(filepath.Join("testdata", "views"))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())        // keeps paths in the output short and constant
	mark := []byte("smtpd 1\n") // file of a filter that has stopped
	if err := errors.Join(mkViews("state"), os.WriteFile("state/front-end", mark, 0o640), os.WriteFile("scanwatch.conf", []byte(viewsConf), 0o644)); err != nil {
		t.Fatal(err)
	}
	all := slices.Clone(views)
	for _, section := range report.TextSections() {
		all = append(all, struct{ name, args string }{"report-only-" + section, "report --limit 5 --only " + section})
	}
	for _, v := range all {
		t.Run(v.name, func(t *testing.T) {
			outs := map[int]string{}
			for _, columns := range viewColumns {
				t.Setenv("COLUMNS", strconv.Itoa(columns))
				var stdout, stderr bytes.Buffer
				if status := program(&stderr).main(append([]string{"-s", "state", "-f", "scanwatch.conf"}, strings.Fields(v.args)...), &stdout); status != exitOK {
					t.Fatalf("%d columns: status %d: %s", columns, status, &stderr)
				}
				out := stdout.String()
				if err := hostiletext.Terminal([]byte(out)); err != nil {
					t.Errorf("%d columns: %v", columns, err)
				}
				for line := range strings.Lines(out) {
					if n := text.Width(strings.TrimSuffix(line, "\n")); n > columns && strings.Contains(strings.TrimSpace(line), " ") { // long words are not broken, so that they can be copied
						t.Errorf("%d columns: a line of %d: %s", columns, n, line)
					}
				}
				outs[columns] = out
			}
			if strings.HasPrefix(v.name, "report-only-") {
				return // the report's golden files include this section
			}
			for _, columns := range viewColumns {
				name := filepath.Join(golden, v.name+"-"+strconv.Itoa(columns)+".golden")
				if outs[viewColumns[0]] == outs[viewColumns[1]] {
					name = filepath.Join(golden, v.name+".golden")
				}
				viewGolden(t, name, outs[columns])
			}
		})
	}
}

// viewGolden compares a view with a golden file.
func viewGolden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || got != string(want) {
		t.Errorf("%s: %v; go test -update rewrites it\n%s", name, err, got)
	}
}

const viewsConf = `mode enforce
own-name "mx.example.com"
table <friends> { 198.51.100.7 }
table <known-senders> builtin
pass from <friends>
pass match rdns <known-senders> fcrdns
rule scanner phase connect match evidence scanner disconnect ban { 1d, 7d }
rule botnet phase helo match evidence botnet-helo disconnect "554 5.7.1 This greeting is that of an attack tool" ban { 1d, 7d }
rule guess phase end match count auth-failure > 19 in 1h by src ban { 1h, 4h }
`
