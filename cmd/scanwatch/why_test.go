package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

const (
	botnetRule = `rule botnet phase helo match evidence botnet-helo disconnect "554 5.7.1 This greeting is that of a spam bot" ban 1d`
	probeRule  = `rule probe observe phase rcpt-to match evidence relay-probe reject`
	goneRule   = `rule gone phase helo match helo "odd" reject`
	slowRule   = `rule slow phase rcpt-to match count unknown-recipient > 20 in 1d by prefix disconnect "421 4.7.0 Too many"`
	whyConf    = "mode enforce\ntable <friends> { 198.51.100.0/24 }\ntable <allow> builtin\npass from <friends>\npass match rdns <allow> fcrdns\n" +
		botnetRule + " score 10\n" + probeRule + "\n"
	// hostileText is what a client may send.
	hostileText = "evil\x1b]0;owned\x07\r\n\xff\u202egnp.exe\u200b\\|"
)

// whyAdd adds a session that ended the given time ago.
func whyAdd(w *store.Writer, ago time.Duration, id uint64, src string, r store.Record, steps ...store.Step) {
	var b []byte
	for i := range steps {
		b = store.AppendStep(b, &steps[i], 10*time.Millisecond)
	}
	r.End = now.Add(-ago)
	r.Start, r.Src = r.End.Add(-time.Second), netip.AddrPortFrom(netip.MustParseAddr(src), 4711)
	w.Add(r.End, id, store.AppendRecord(nil, &r, b))
}

func text(s string) []byte { return []byte(s) }

// whyStore makes a state directory with everything that can be asked for, and
// its configuration in the working directory, where its name is always as long.
func whyStore(t *testing.T) (dir, conf string) {
	dir, conf = t.TempDir(), "scanwatch.conf"
	t.Chdir(t.TempDir())
	if err := os.WriteFile(conf, []byte(whyConf), 0o640); err != nil {
		t.Fatal(err)
	}
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	w.Rules([]string{botnetRule, probeRule, goneRule, slowRule})
	botnet, probe, gone := store.RuleRef(botnetRule), store.RuleRef(probeRule), store.RuleRef(goneRule)
	hello := func(name string) store.Step {
		return store.Step{Kind: store.KindHelo, Arg: text("EHLO"), Text: text(name), Result: store.ResultOK}
	}
	filtered := func(phase, decision, reply string) store.Step {
		return store.Step{Kind: store.KindFilter, Arg: text(phase), Text: text(decision), Reply: text(reply)}
	}
	bot := store.Step{Kind: store.KindFinding, Text: text("botnet-helo"), Org: text("PushDo / Cutwail"), By: text("helo"), Arg: text("ylmf-pc"), Match: text("ylmf-pc"), Confidence: text("high")}
	refuse := store.Step{Kind: store.KindVerdict, Text: text("botnet"), Arg: text("helo"), Reply: text("disconnect"), Result: store.ResultOK, Rule: botnet}
	until := now.Add(23 * time.Hour)
	ban := store.Step{Kind: store.KindBan, Text: text("botnet"), Arg: text("203.0.113.77/32"), Reply: until.AppendFormat(nil, time.RFC3339), Result: store.ResultOK, Rule: botnet}
	banned := func(by string) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: text("botnet"), Arg: text("connect"), Reply: text("disconnect"), By: text("ban"), Match: text(by), Result: store.ResultOK}
	}
	away := filtered("connected", "disconnect", "421 4.7.1 Turned away [00000000000000b1]")

	// Written by an older version: without the text of the rule.
	old := refuse
	old.Rule = 0
	whyAdd(w, 50*24*time.Hour, 0xa0, "203.0.113.77", store.Record{Ending: store.EndingRejected}, hello("ylmf-pc"), bot, old)
	// Another run of smtpd had the same number.
	whyAdd(w, 40*24*time.Hour, 0xb1, "203.0.113.99", store.Record{Ending: store.EndingQuit}, hello("other.example.net"))
	whyAdd(w, 2*time.Hour, 0xa1, "203.0.113.5", store.Record{RDNS: text("mail.example.com"), FCrDNS: store.FCrDNSPass, Ending: store.EndingQuit, Counts: store.Counts{Commands: 5, Mails: 1, RcptOK: 1}},
		hello("mail.example.com"), store.Step{Kind: store.KindMail, Text: text("alice@example.com"), Result: store.ResultOK, Code: 250, Reply: text("2.0.0 Ok")},
		store.Step{Kind: store.KindRcpt, Text: text("bob@example.org"), Result: store.ResultOK, Code: 250}, store.Step{Kind: store.KindCommit, Size: 1234})
	whyAdd(w, time.Hour, 0xb1, "203.0.113.77", store.Record{Ending: store.EndingRejected, Counts: store.Counts{Commands: 1}},
		hello("ylmf-pc"), bot, refuse, filtered("ehlo", "disconnect", "554 5.7.1 This greeting is that of a spam bot [00000000000000b1]"), ban)
	whyAdd(w, 50*time.Minute, 0xb2, "203.0.113.77", store.Record{Ending: store.EndingRejected}, banned("00000000000000b1"), away)
	whyAdd(w, 40*time.Minute, 0xb3, "203.0.113.77", store.Record{Ending: store.EndingRejected}, banned("00000000000000ff"), away)
	whyAdd(w, 30*time.Minute, 0xb4, "2001:db8:1::4", store.Record{Ending: store.EndingRejected}, banned(""))
	whyAdd(w, 20*time.Minute, 0xc1, "203.0.113.88", store.Record{RDNS: text("x" + hostileText + ".example.net"), FCrDNS: store.FCrDNSFail, Ending: store.EndingDropped, Omitted: 7, Counts: store.Counts{Commands: 9, RcptPermfail: 3, AuthFail: 2}},
		hello(hostileText), store.Step{Kind: store.KindMail, Text: text(hostileText + "@example.net"), Result: store.ResultOK},
		store.Step{Kind: store.KindRcpt, Text: text("victim@example.net"), Result: store.ResultPermfail, Code: 550, Reply: text("Invalid recipient")},
		store.Step{Kind: store.KindFinding, Text: text("relay-probe"), By: text("rcpt"), Arg: text("victim@example.net"), Confidence: text("high")},
		store.Step{Kind: store.KindVerdict, Text: text("probe"), Arg: text("rcpt-to"), Reply: text("reject"), Rule: probe},
		filtered("rcpt-to", "reject", "550 5.7.1 says another"), store.Step{Kind: store.KindRcpt, Text: text("other@example.net"), Result: store.ResultPermfail, Code: 550},
		store.Step{Kind: store.KindVerdict, Text: text("probe"), Arg: text("rcpt-to"), Reply: text("reject"), Rule: probe},
		store.Step{Kind: store.KindVerdict, Text: text("gone"), Arg: text("data"), Reply: text("reject"), Result: store.ResultOK, Rule: gone},
		store.Step{Kind: store.KindBan, Text: text("probe"), Arg: text("203.0.113.88/32"), Match: text("mail"), Rule: probe})
	whyAdd(w, 15*time.Minute, 0xd1, "203.0.113.200", store.Record{RDNS: text("slow.example.net"), FCrDNS: store.FCrDNSPass, Ending: store.EndingRejected, Counts: store.Counts{AuthPass: 1}},
		hello("slow.example.net"), store.Step{Kind: store.KindVerdict, Text: text("slow"), Arg: text("rcpt-to"), Reply: text("disconnect"), Result: store.ResultOK, Rule: store.RuleRef(slowRule)},
		filtered("rcpt-to", "disconnect", "421 4.7.0 Too many [00000000000000d1]"))
	for i := range 30 {
		whyAdd(w, 10*time.Minute-time.Duration(i)*time.Second, uint64(0x100+i), "192.0.2.9", store.Record{Ending: store.EndingQuit}, hello("many.example.com"))
	}
	err := w.Close()
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	m.Ban(netip.MustParseAddr("203.0.113.77"), memory.Sentence{For: 24 * time.Hour, Rule: "botnet", Session: 0xb1}, now.Add(-time.Hour).UnixMicro())
	m.Ban(netip.MustParseAddr("203.0.113.44"), memory.Sentence{For: time.Hour, Rule: "botnet", Session: 0xdd, Observe: true}, now.Add(-2*time.Hour).UnixMicro())
	m.BanPrefix(netip.MustParsePrefix("2001:db8:1::/48"), time.Hour, "sent \x1b[31m", now.UnixMicro())
	if err := errors.Join(err, state.Flush(context.Background()), state.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, conf
}

// runWhy runs the program and returns what it prints.
func runWhy(t testing.TB, conf string, args ...string) (out, complaint string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	e := program(&stderr)
	e.find = func(string) string { return conf }
	status = e.main(args, &stdout)
	return stdout.String(), stderr.String(), status
}

func TestWhy(t *testing.T) {
	goldens, err := filepath.Abs("testdata/why")
	if err != nil {
		t.Fatal(err)
	}
	dir, conf := whyStore(t)
	for _, c := range []struct {
		name, conf string
		args       []string
	}{
		{"session", conf, []string{"[00000000000000B2]"}},
		{"session-twice", conf, []string{"00000000000000b1"}},
		{"address", conf, []string{"203.0.113.77:4711"}},
		{"json", conf, []string{"203.0.113.77", "--json"}},
		{"by-hand", conf, []string{"2001:db8:1::99/64"}},
		{"banned-unseen", conf, []string{"2001:db8:1:7::1"}},
		{"recipient", conf, []string{"<BOB@example.org>"}},
		{"domain", conf, []string{"--as", "recipient", "@example.net"}},
		{"hostile-helo", conf, []string{"--as", "helo", hostileText}},
		{"hostile-copied", conf, []string{`x` + printable([]byte(hostileText)) + `.example.net`}},
		{"name", "", []string{"example.com", "--since", "3h"}},
		{"session-gone", conf, []string{"00000000000000dd"}},
		{"counted", conf, []string{"slow.example.net"}},
		{"many", conf, []string{"192.0.2.0/24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, complaint, status := runWhy(t, c.conf, append([]string{"-s", dir, "why"}, c.args...)...)
			if status != exitOK || complaint != "" {
				t.Errorf("status %d: %s", status, complaint)
			}
			path := filepath.Join(goldens, c.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if out != string(want) {
				t.Errorf("differs from %s:\n%s", path, out)
			}
			for line := range strings.Lines(out) {
				line = strings.TrimSuffix(line, "\n")
				if n := utf8.RuneCountInString(line); c.name != "json" && n > columns && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%d columns: %s", n, line)
				}
				if printable([]byte(line)) != strings.ReplaceAll(line, `\`, `\\`) {
					t.Errorf("not printable: %q", line)
				}
			}
		})
	}
	if out, _, _ := runWhy(t, conf, "-s", dir, "why", "--all", "192.0.2.9"); strings.Count(out, "\nSession ") != 30 {
		t.Errorf("--all:\n%s", out)
	}
}

func TestWhyUnknown(t *testing.T) {
	dir, conf := whyStore(t)
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"00000000000000ee"}, exitFailure, `nothing is known of session "00000000000000ee" in 39 sessions since 2026-09-13 12:00; it may be going on still`},
		{[]string{"nobody"}, exitFailure, `nothing is known of helo "nobody" in 39 sessions since 2026-09-13 12:00; it may be going on still, or have been removed for its age or the budget; --as says`},
		{[]string{"bob@example.org", "--since", "1h"}, exitFailure, "nothing is known of sender or recipient"},
		{[]string{"--as", "address", "mail.example.com"}, exitUsage, `why --as address: "mail.example.com" is none`},
		{[]string{"--as", "thing", "x"}, exitUsage, "must be one of session, address, sender, recipient, rdns, helo"},
		{[]string{}, exitUsage, "usage: scanwatch why"},
		{[]string{"x", "--since", "never"}, exitUsage, "neither a time span"},
	} {
		out, complaint, status := runWhy(t, conf, append([]string{"-s", dir, "why"}, c.args...)...)
		if status != c.status || out != "" || !strings.Contains(complaint, c.want) {
			t.Errorf("%v: status %d, %q, %q", c.args, status, out, complaint)
		}
	}
	if _, complaint, status := runWhy(t, conf, "-s", t.TempDir(), "why", "x"); status != exitFailure || !strings.Contains(complaint, "no session is recorded in") {
		t.Errorf("empty: %d %s", status, complaint)
	}
	// A broken configuration is said to be one, and the answer is there.
	broken := filepath.Join(t.TempDir(), "broken.conf")
	if err := os.WriteFile(broken, []byte("rule\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if out, _, status := runWhy(t, broken, "-s", dir, "why", "203.0.113.77"); status != exitOK || !strings.Contains(out, "broken.conf is broken") {
		t.Errorf("%d\n%s", status, out)
	}
}

func TestAsk(t *testing.T) {
	for _, c := range []struct {
		arg  string
		want []string
	}{
		{"5a1f9c2e00c0ffee", []string{"session"}},
		{"[5A1F9C2E00C0FFEE]", []string{"session"}},
		{"192.0.2.1", []string{"address"}},
		{"::ffff:192.0.2.1", []string{"address"}},
		{"192.0.2.77/24", []string{"address"}},
		{"[2001:db8::1]:25", []string{"address"}},
		{"[192.0.2.1]", []string{"helo"}},
		{"mail.example.org", []string{"rdns", "helo"}},
		{"ylmf-pc", []string{"helo"}},
		{"<a@example.org>", []string{"sender", "recipient"}},
		{"@example.org", []string{"sender", "recipient"}},
		{"<>", []string{"sender"}},
	} {
		if _, got, err := ask(c.arg, ""); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", c.arg, got, err, c.want)
		}
	}
	q, _, _ := ask("example.org", "")
	for name, want := range map[string]bool{"example.org": true, "a.EXAMPLE.org": true, "anexample.org": false, "org": false, "": false} {
		if q.host([]byte(name)) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// FuzzAsk: any ARG is something, and comparing it with anything goes well.
func FuzzAsk(f *testing.F) {
	for _, arg := range []string{"", "<>", "[", "@", "a@b", `\x`, "192.0.2.1", "5a1f9c2e00c0ffee", hostileText, "::%eth0", "1.2.3.4:5"} {
		f.Add(arg, "a@b")
	}
	f.Fuzz(func(t *testing.T, arg, other string) {
		q, kinds, err := ask(arg, "")
		if err != nil || len(kinds) == 0 {
			t.Fatalf("%q: %v %v", arg, kinds, err)
		}
		var b []byte
		for _, kind := range []store.Kind{store.KindHelo, store.KindMail, store.KindRcpt} {
			b = store.AppendStep(b, &store.Step{Kind: kind, Text: []byte(other)}, 0)
		}
		r := store.Record{RDNS: []byte(other)}
		d, err := store.Decode(store.AppendKey(nil, now, 1), store.AppendRecord(nil, &r, b))
		if err != nil {
			t.Fatal(err)
		}
		_ = q.match(kinds, &d)
	})
}

func BenchmarkWhy(b *testing.B) {
	dir := b.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }})
	const sessions = 20_000
	for i := range sessions {
		whyAdd(w, time.Hour-time.Duration(i)*time.Microsecond, uint64(i+1), fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255), store.Record{Counts: store.Counts{RcptPermfail: 1}},
			store.Step{Kind: store.KindHelo, Text: text("x.example.net")}, store.Step{Kind: store.KindMail, Text: text("a@example.net")},
			store.Step{Kind: store.KindRcpt, Text: fmt.Appendf(nil, "user%d@example.org", i), Result: store.ResultPermfail})
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, complaint, status := runWhy(b, "", "-s", dir, "why", "user77@example.org"); status != exitOK {
			b.Fatal(complaint)
		}
	}
	b.ReportMetric(float64(b.N*sessions)/b.Elapsed().Seconds(), "records/s")
}

// TestWhyRemembers: what is remembered of a host excuses him also when no session of his
// good mail is kept any more.
func TestWhyRemembers(t *testing.T) {
	const day = 24 * time.Hour
	dir := mkState(t, func(m *memory.Memory) {
		who := func(a, rdns string) *memory.Who { return &memory.Who{Addr: netip.MustParseAddr(a), RDNS: text(rdns)} }
		m.Delivered(who("203.0.113.9", ""), 1, now.Add(-200*day).UnixMicro())
		m.Delivered(who("198.51.100.250", "mx.partner.example.com"), 1, now.Add(-20*day).UnixMicro())
		m.LoggedIn(&memory.Who{Addr: netip.MustParseAddr("198.51.100.66"), User: text("alice")}, now.Add(-10*day).UnixMicro())
		for _, a := range []string{"203.0.113.9", "198.51.100.10", "198.51.100.66", "192.0.2.99"} {
			m.Ban(netip.MustParseAddr(a), memory.Sentence{For: 60 * day, Rule: "guess"}, now.Add(-2*day).UnixMicro())
		}
	})
	addVisits(t, dir, visitOf{src: "203.0.113.9", ago: 2 * day, evidence: "harvest"}, visitOf{src: "198.51.100.10", rdns: "out.partner.example.com", ago: 2 * day, evidence: "harvest"},
		visitOf{src: "198.51.100.66", ago: 2 * day, evidence: "harvest"}, visitOf{src: "192.0.2.99", ago: 2 * day, evidence: "harvest"})
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("pass from 192.0.2.96/28\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, complaint, _ := runWhy(t, conf, "-s", dir, "why", "192.0.2.99"); !strings.Contains(out, "[x] it may pass: pass from 192.0.2.96/28") {
		t.Errorf("why 192.0.2.99, who may pass:\n%s%s", out, complaint)
	}
	for address, want := range map[string]string{
		"203.0.113.9":   "accepted before from its address, as is remembered, though not in a session that is kept: rules that say !seen-good leave it alone",
		"198.51.100.10": "accepted before from its domain, as is remembered, though not in a session that is kept: rules that say !seen-good leave it alone, and bans",
		"198.51.100.66": "somebody logged in from it in the last 30 days, as is remembered: no bans",
		"192.0.2.99":    "(none is kept)",
	} {
		out, complaint, _ := runWhy(t, "", "-s", dir, "why", address)
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("why %s: no %q in\n%s%s", address, want, out, complaint)
		}
	}
}

// TestWhySum: a rule that turned away each session of a sum did so as often.
func TestWhySum(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	whyAdd(w, time.Hour, 0x5, "203.0.113.9", store.Record{Sessions: 400, Found: 400},
		store.Step{Kind: store.KindVerdict, Text: text("ylmf"), Arg: text("helo"), Reply: text("disconnect"), Result: store.ResultOK, Times: 399})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out, complaint, _ := runWhy(t, "", "-s", dir, "why", "203.0.113.9")
	if !strings.Contains(out, "399 times") {
		t.Errorf("%s%s", out, complaint)
	}
}
