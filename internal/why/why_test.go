package why

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/internal/finding"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is the time in all tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

const (
	botnetRule = `rule botnet phase helo match evidence botnet-helo disconnect "554 5.7.1 This greeting is that of a spam bot" ban 1d`
	probeRule  = `rule probe observe phase rcpt-to match evidence relay-probe reject`
	goneRule   = `rule gone phase helo match helo "odd" reject`
	slowRule   = `rule slow phase rcpt-to match count unknown-recipient > 20 in 1d by prefix disconnect "421 4.7.0 Too many"`
	whyConf    = "mode enforce\ntable <friends> { 198.51.100.0/24 }\ntable <known-senders> builtin\npass from <friends>\npass match rdns <known-senders> fcrdns\n" +
		botnetRule + " score 10\n" + probeRule + "\n"
	// hostileText is a hostile greeting.
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

func raw(s string) []byte { return []byte(s) }

// whyStore returns a state directory with sessions for each kind of answer.
func whyStore(t *testing.T) (dir string) {
	dir = t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	w.Rules([]string{botnetRule, probeRule, goneRule, slowRule})
	botnet, probe, gone := store.RuleRef(botnetRule), store.RuleRef(probeRule), store.RuleRef(goneRule)
	hello := func(name string) store.Step {
		return store.Step{Kind: store.KindHelo, Arg: raw("EHLO"), Text: raw(name), Result: smtp.ResultOK}
	}
	filtered := func(phase smtp.Phase, d smtp.Decision, reply string) store.Step {
		return store.Step{Kind: store.KindFilter, Phase: phase, Decision: d, Reply: raw(reply)}
	}
	bot := store.Step{Kind: store.KindFinding, Text: raw("botnet-helo"), Org: raw("PushDo / Cutwail"), By: raw("helo"), Arg: raw("ylmf-pc"), Match: raw("ylmf-pc"), Confidence: raw("high")}
	refuse := store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true, Rule: botnet}
	until := now.Add(23 * time.Hour)
	ban := store.Step{Kind: store.KindBan, Text: raw("botnet"), Prefix: netip.MustParsePrefix("203.0.113.77/32"), Until: until, Enforced: true, Rule: botnet}
	banned := func(session uint64) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Banned: true, Session: session, Enforced: true}
	}
	away := filtered(smtp.PhaseConnect, smtp.Disconnect, "421 4.7.1 Banned [00000000000000b1]")

	// An older version recorded the decision without the rule's text.
	old := refuse
	old.Rule = 0
	whyAdd(w, 50*24*time.Hour, 0xa0, "203.0.113.77", store.Record{Ending: smtp.EndingRejected}, hello("ylmf-pc"), bot, old)
	// The session id was already used in an earlier run of smtpd.
	whyAdd(w, 40*24*time.Hour, 0xb1, "203.0.113.99", store.Record{Ending: smtp.EndingQuit}, hello("other.example.net"))
	whyAdd(w, 2*time.Hour, 0xa1, "203.0.113.5", store.Record{RDNS: raw("mail.example.com"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingQuit, Counts: store.Counts{Commands: 5, Mails: 1, RcptOK: 1}},
		hello("mail.example.com"), store.Step{Kind: store.KindMail, Text: raw("alice@example.com"), Result: smtp.ResultOK, Code: 250, Reply: raw("2.0.0 Ok")},
		store.Step{Kind: store.KindRcpt, Text: raw("bob@example.org"), Result: smtp.ResultOK, Code: 250}, store.Step{Kind: store.KindCommit, Size: 1234})
	whyAdd(w, time.Hour, 0xb1, "203.0.113.77", store.Record{Ending: smtp.EndingRejected, Counts: store.Counts{Commands: 1}},
		hello("ylmf-pc"), bot, refuse, filtered(smtp.PhaseHelo, smtp.Disconnect, "554 5.7.1 This greeting is that of a spam bot [00000000000000b1]"), ban)
	whyAdd(w, 50*time.Minute, 0xb2, "203.0.113.77", store.Record{Ending: smtp.EndingRejected}, banned(0xb1), away)
	whyAdd(w, 40*time.Minute, 0xb3, "203.0.113.77", store.Record{Ending: smtp.EndingRejected}, banned(0xff), away)
	whyAdd(w, 30*time.Minute, 0xb4, "2001:db8:1::4", store.Record{Ending: smtp.EndingRejected}, banned(0))
	whyAdd(w, 20*time.Minute, 0xc1, "203.0.113.88", store.Record{RDNS: raw("x" + hostileText + ".example.net"), FCrDNS: smtp.FCrDNSFail, Ending: smtp.EndingDropped, Omitted: 7, Counts: store.Counts{Commands: 9, RcptPermfail: 3, AuthFail: 2}},
		hello(hostileText), store.Step{Kind: store.KindMail, Text: raw(hostileText + "@example.net"), Result: smtp.ResultOK},
		store.Step{Kind: store.KindRcpt, Text: raw("victim@example.net"), Result: smtp.ResultPermfail, Code: 550, Reply: raw("Invalid recipient")},
		store.Step{Kind: store.KindFinding, Text: raw("relay-probe"), By: raw("rcpt"), Arg: raw("victim@example.net"), Confidence: raw("high")},
		store.Step{Kind: store.KindVerdict, Text: raw("probe"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Rule: probe},
		filtered(smtp.PhaseRcptTo, smtp.Reject, "550 5.7.1 says another"), store.Step{Kind: store.KindRcpt, Text: raw("other@example.net"), Result: smtp.ResultPermfail, Code: 550},
		store.Step{Kind: store.KindVerdict, Text: raw("probe"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Rule: probe},
		store.Step{Kind: store.KindVerdict, Text: raw("gone"), Phase: smtp.PhaseData, Decision: smtp.Reject, Enforced: true, Rule: gone},
		store.Step{Kind: store.KindBan, Text: raw("probe"), Prefix: netip.MustParsePrefix("203.0.113.88/32"), Exempt: "mail", Rule: probe})
	whyAdd(w, 15*time.Minute, 0xd1, "203.0.113.200", store.Record{RDNS: raw("slow.example.net"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingRejected, Counts: store.Counts{AuthPass: 1}},
		hello("slow.example.net"), store.Step{Kind: store.KindVerdict, Text: raw("slow"), Phase: smtp.PhaseRcptTo, Decision: smtp.Disconnect, Enforced: true, Rule: store.RuleRef(slowRule)},
		filtered(smtp.PhaseRcptTo, smtp.Disconnect, "421 4.7.0 Too many [00000000000000d1]"))
	for i := range 30 {
		whyAdd(w, 10*time.Minute-time.Duration(i)*time.Second, uint64(0x100+i), "192.0.2.9", store.Record{Ending: smtp.EndingQuit}, hello("many.example.com"))
	}
	err := w.Close()
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("203.0.113.77")}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "botnet", Session: 0xb1}, now.Add(-time.Hour).UnixMicro())
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("203.0.113.44")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "botnet", Session: 0xdd, Observe: true}, now.Add(-2*time.Hour).UnixMicro())
	m.Bans.AddPrefix(netip.MustParsePrefix("2001:db8:1::/48"), 91*time.Minute, "sent \x1b[31m", now.Add(-31*time.Minute).UnixMicro())
	if err := errors.Join(err, state.Flush(context.Background()), state.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// options returns the options of Find for a state directory and a configuration. If
// conf is empty, there is no configuration.
func options(t testing.TB, dir, conf string) Options {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: dir, Reader: &store.Reader{Dir: dir}, Lists: lists, File: "scanwatch.conf", Now: now, Zone: time.UTC}
	o.Rows = func(tables []string, visit func(store.Entry) error) error {
		err := store.ReadState(dir, tables, nil, visit)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	o.Days = func() (days []memory.Day, err error) {
		err = o.Rows([]string{"days"}, func(en store.Entry) error {
			if d, ok := memory.ReadDay(en.Key, en.Value); ok {
				days = append(days, d)
			}
			return nil
		})
		return days, err
	}
	if conf != "" {
		tree, err := rules.Parse("scanwatch.conf", func(string) ([]byte, error) { return []byte(conf), nil })
		if err != nil {
			t.Fatal(err)
		}
		o.Policy, _, err = rules.Compile(tree, rules.Options{Load: func(rules.Source) (rules.Table, error) { return emptyTable{}, nil }})
		if err != nil {
			t.Fatal(err)
		}
		o.Facts = func(r *store.Record) *rules.Facts {
			return &rules.Facts{Now: r.Start, Src: r.Src.Addr(), RDNS: r.RDNS, FCrDNS: r.FCrDNS, Recorded: true}
		}
	}
	return o
}

// ask returns the answer, both as a value and as text.
func ask(t testing.TB, arg, kind string, o Options) (*Answer, string) {
	t.Helper()
	q, err := Parse(arg, kind)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Find(q, o)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	a.Text(&out, time.UTC)
	return a, out.String()
}

// TestFind checks answers from today's records and from sealed days. Only some blocks of a sealed
// day are read.
func TestFind(t *testing.T) {
	dir, sealed := whyStore(t), whyStore(t)
	if n, err := store.SealDays(sealed, "test", now.AddDate(0, 0, 2)); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	for _, c := range []struct {
		name, conf, kind, arg string
		since                 time.Duration
	}{
		{"session", whyConf, "", "[00000000000000B2]", 0},
		{"session-twice", whyConf, "", "00000000000000b1", 0},
		{"address", whyConf, "", "203.0.113.77:4711", 0},
		{"json", whyConf, "", "203.0.113.77", 0},
		{"manual", whyConf, "", "2001:db8:1::99/64", 0},
		{"banned-unseen", whyConf, "", "2001:db8:1:7::1", 0},
		{"recipient", whyConf, "", "<BOB@example.org>", 0},
		{"domain", whyConf, "recipient", "@example.net", 0},
		{"hostile-helo", whyConf, "helo", hostileText, 0},
		{"hostile-copied", whyConf, "", `x` + text.Escape(hostileText) + `.example.net`, 0},
		{"name", "", "", "example.com", 3 * time.Hour},
		{"session-gone", whyConf, "", "00000000000000dd", 0},
		{"counted", whyConf, "", "slow.example.net", 0},
		{"many", whyConf, "", "192.0.2.0/24", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, dir, c.conf)
			if c.since > 0 {
				o.Since = now.Add(-c.since)
			}
			a, out := ask(t, c.arg, c.kind, o)
			if a.Empty() || o.Reader.Unread > 0 {
				t.Errorf("empty %v, %d files unread", a.Empty(), o.Reader.Unread)
			}
			if c.name == "json" {
				var b strings.Builder
				if err := a.JSON(&b); err != nil {
					t.Fatal(err)
				}
				out = b.String()
			}
			if c.name != "json" {
				o.Dir, o.Reader = sealed, &store.Reader{Dir: sealed}
				if _, again := ask(t, c.arg, c.kind, o); again != out {
					t.Errorf("from sealed days:\n%s\nwant:\n%s", again, out)
				}
			}
			path := filepath.Join("testdata", c.name+".golden")
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
				if n := utf8.RuneCountInString(line); c.name != "json" && n > 80 && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%d columns: %s", n, line)
				}
				if text.Escape(line) != strings.ReplaceAll(line, `\`, `\\`) {
					t.Errorf("not printable: %q", line)
				}
			}
		})
	}
	o := options(t, dir, whyConf)
	o.All = true
	if a, _ := ask(t, "192.0.2.9", "", o); len(a.Sessions) != 30 {
		t.Errorf("all: %d sessions, want 30", len(a.Sessions))
	}
}

// TestRejectedFirst checks that a rejected session is printed even if there are many newer accepted
// sessions, and that similar sessions are printed once.
func TestRejectedFirst(t *testing.T) {
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	w.Rules([]string{botnetRule})
	refuse := store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true, Rule: store.RuleRef(botnetRule)}
	whyAdd(w, time.Hour, 1, "192.0.2.9", store.Record{Ending: smtp.EndingRejected}, refuse)
	for i := range 40 {
		whyAdd(w, time.Minute, uint64(2+i), "192.0.2.9", store.Record{Ending: smtp.EndingQuit, Counts: store.Counts{Mails: 1, RcptOK: 1}})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, out := ask(t, "192.0.2.9", "", options(t, dir, whyConf))
	if a.Matched != 41 || a.Rejected != 1 || len(a.Sessions) != maxSessions || a.Sessions[0].Session != sessionID(1) {
		t.Errorf("%d sessions, %d of them rejected, first %s of %d", a.Matched, a.Rejected, a.Sessions[0].Session, len(a.Sessions))
	}
	if n := strings.Count(out, "\nSession "); n != 2 || !strings.Contains(out, "similar  18 sessions since ") || !strings.HasPrefix(out, "State: not banned; 1 of 41 sessions rejected\n") {
		t.Errorf("%d sessions are printed:\n%s", n, out)
	}
}

// TestBanCause checks the head of an answer about a ban by a rule in the phase end, which rejects no
// command. The head must name the evidence, even if many newer sessions follow, and must not name an
// older rejection.
func TestBanCause(t *testing.T) {
	const guess = "rule guess phase end match evidence auth-failure ban 1h"
	const evidence = " for auth-failure alice, 2026-11-02 11:29 +0000\n"
	for _, c := range []struct {
		name           string
		observe        bool
		ago            time.Duration // since the ban
		before, after  int           // sessions before the ban, the first of them rejected, and after the ban
		state, undo, c string
	}{
		{name: "observed", observe: true, ago: 30 * time.Minute, state: "not banned, but would be until 2026-11-02 12:30 +0000 if its rule enforced it; no rule", undo: "scanwatch unban 192.0.2.80", c: "rule guess (observed only)" + evidence},
		{name: "enforced", ago: 30 * time.Minute, state: "192.0.2.80 is banned until 2026-11-02 12:30 +0000; no rule", undo: "scanwatch unban 192.0.2.80", c: "rule guess" + evidence},
		{name: "old session", ago: 30 * time.Minute, after: 30, state: "192.0.2.80 is banned until 2026-11-02 12:30 +0000; none of 31 sessions", undo: "scanwatch unban 192.0.2.80", c: "rule guess" + evidence},
		{name: "after a rejection", ago: 30 * time.Minute, before: 1, state: "192.0.2.80 is banned until 2026-11-02 12:30 +0000; 1 of 2 sessions", undo: "scanwatch unban 192.0.2.80", c: "rule guess" + evidence},
		{name: "ended", ago: 90 * time.Minute, state: "not banned; the last ban ended on 2026-11-02 11:30 +0000; no rule", undo: "nothing to undo", c: "rule guess for auth-failure alice, 2026-11-02 10:29 +0000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
			w.Rules([]string{guess, botnetRule})
			for i := range c.before {
				whyAdd(w, 3*time.Hour, uint64(1+i), "192.0.2.80", store.Record{Ending: smtp.EndingRejected}, store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true, Rule: store.RuleRef(botnetRule)})
			}
			whyAdd(w, c.ago, 0xe0, "192.0.2.80", store.Record{Ending: smtp.EndingDropped, Counts: store.Counts{AuthFail: 1}},
				store.Step{Kind: store.KindFinding, Text: raw("auth-failure"), By: raw("auth"), Arg: raw("alice"), Confidence: raw("low")},
				store.Step{Kind: store.KindBan, Text: raw("guess"), Prefix: netip.MustParsePrefix("192.0.2.80/32"), Until: now.Add(time.Hour - c.ago), Enforced: !c.observe, Rule: store.RuleRef(guess)})
			for i := range c.after {
				whyAdd(w, time.Minute, uint64(0x100+i), "192.0.2.80", store.Record{Ending: smtp.EndingQuit})
			}
			m := memory.New()
			m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.80")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "guess", Session: 0xe0, Observe: c.observe}, now.Add(-c.ago).UnixMicro())
			state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite})
			if err := errors.Join(w.Close(), state.Flush(context.Background()), state.Close()); err != nil {
				t.Fatal(err)
			}
			a, out := ask(t, "192.0.2.80", "", options(t, dir, "mode enforce\n"+guess+"\n"))
			if !strings.HasPrefix(a.State, c.state) || a.Cause+"\n" != c.c || a.Undo != c.undo || strings.Count(out, "\nSession 00000000000000e0, ") != 1 {
				t.Errorf("state %q\ncause %q\nundo %q\n%s", a.State, a.Cause, a.Undo, out)
			}
		})
	}
}

// TestObservedBan checks that the answer does not name the mode as the reason why a ban is only observed
// if the filter enforces.
func TestObservedBan(t *testing.T) {
	for _, c := range []struct{ mode, origin, want string }{
		{"observe", "", "in enforce mode"},
		{"enforce", "", "if its rule enforced it"},
		{"enforce", "mx2", "without observe in the statement fleet"},
		{"observe", "mx2", "without observe in the statement fleet"},
	} {
		p := netip.MustParsePrefix("192.0.2.80/32")
		ban := NewBan(&memory.Ban{Prefix: p, Since: now, Until: now.Add(time.Hour), Rule: "guess", Observe: true, Origin: c.origin}, now)
		a := Answer{Mode: c.mode, Matched: 2, Observed: 2, Hosts: []*Host{{Prefix: p, Bans: []Ban{ban}}}}
		a.summarize(time.UTC)
		if want := "not banned, but would be until 2026-11-02 13:00 +0000 " + c.want + "; none of 2 sessions was rejected by a rule, 2 would have been if enforced"; a.State != want {
			t.Errorf("%s %s: %q", c.mode, c.origin, a.State)
		}
	}
}

// TestLetter checks that a reply to a complaint names no rule and no other client.
func TestLetter(t *testing.T) {
	dir := whyStore(t)
	for _, c := range []struct {
		name, arg string
		conf      string
		want      []string
	}{
		{"text not recorded", "00000000000000a0", whyConf, []string{"The rule at that time was not recorded. According to the current rule, the reason is: this host uses the greeting of a known botnet"}},
		{"text unknown", "00000000000000a0", "", []string{"The rule was not recorded. The session's record shows that this host uses the greeting of a known botnet"}},
		{"ban", "00000000000000b2", whyConf, []string{"the host 203.0.113.77 connected", "    421 4.7.1 Banned [00000000000000b1]\n",
			"this host uses the greeting of a known botnet", "is banned until 2026-11-03 11:00 +0000", "The reference is 00000000000000b1."}},
		{"greeting", "00000000000000b1", whyConf, []string{"which greeted as \"ylmf-pc\", connected", "    554 5.7.1 This greeting"}},
		{"manual", "2001:db8:1::4", whyConf, []string{"The postmaster has banned the address."}},
		{"hostile", "00000000000000c1", whyConf, []string{"The server rejected it.", "not currently banned"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _ := ask(t, c.arg, "", options(t, dir, c.conf))
			var b strings.Builder
			if err := a.Letter(&b, time.UTC); err != nil {
				t.Fatal(err)
			}
			out := strings.ReplaceAll(b.String(), "\n", " ")
			for _, want := range c.want {
				if !strings.Contains(b.String(), want) && !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, &b)
				}
			}
			for _, never := range []string{"rule botnet", "rule gone", "victim@", "other@", "\x1b"} {
				if strings.Contains(b.String(), never) {
					t.Errorf("%q in\n%s", never, &b)
				}
			}
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(line); n > letterColumns+1 && !strings.HasPrefix(line, "    ") {
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
	a, _ := ask(t, "192.0.2.9", "", options(t, dir, whyConf))
	erased := Answer{Sessions: []*Session{{Session: "a1", Erased: true, Rules: []Rule{{Rule: "harvest", Decision: "reject", Enforced: true}}}}}
	if err := erased.Letter(new(strings.Builder), time.UTC); err == nil || !strings.Contains(err.Error(), "erased by scanwatch forget") {
		t.Errorf("erased: %v", err)
	}
	if err := a.Letter(new(strings.Builder), time.UTC); err == nil || !strings.Contains(err.Error(), "no rule rejected") {
		t.Errorf("no rejection: %v", err)
	}
}

// TestMilterLetter checks that the letter quotes no reply that the client did not receive: a mail server
// replaces a milter's reply to a connection, and prefers its own rejection of a recipient.
func TestMilterLetter(t *testing.T) {
	for _, c := range []struct{ frontEnd, phase, decision, want string }{
		{"milter", "connect", "reject", "with the code 421."},
		{"milter", "rcpt-to", "disconnect", "The server answered, or would have answered the next command:\n\n    421 4.7.1 No\n"},
		{"milter", "rcpt-to", "reject", "The server answered:\n\n    421 4.7.1 No\n"},
		{"", "connect", "disconnect", "The server answered:\n\n    421 4.7.1 No\n"},
	} {
		a := Answer{Sessions: []*Session{{Session: "00000000000000e1", Src: "203.0.113.7", FrontEnd: c.frontEnd,
			Rules: []Rule{{Rule: "r", Decision: c.decision, Enforced: true, Phases: c.phase, Reply: "421 4.7.1 No"}}}}}
		var b strings.Builder
		if err := a.Letter(&b, time.UTC); err != nil || !strings.Contains(b.String(), c.want) || strings.Count(b.String(), "4.7.1") != strings.Count(c.want, "4.7.1") {
			t.Errorf("%+v: %v\n%s", c, err, &b)
		}
	}
}

// TestListed checks that the cause and the letter name the rule's DNS list, but
// not an account key in its zone.
func TestListed(t *testing.T) {
	listing := func(match, code string) finding.Finding {
		return finding.Finding{Evidence: "listed", By: "dns", Match: match, Proof: code, Confidence: "medium"}
	}
	s := &Session{Session: "00000000000000e1", Src: "203.0.113.7", Evidence: []finding.Finding{listing("other other.example.org", "127.0.0.9"), listing("bl {key}.bl.example.net", "127.0.0.4")},
		Rules: []Rule{{Rule: "r", Decision: "reject", Enforced: true, Phases: "connect", Text: "rule r phase connect match listed bl reject"}}}
	a := Answer{Sessions: []*Session{s}}
	if a.summarize(time.UTC); !strings.Contains(a.Cause, " for listed in bl (bl.example.net) as 127.0.0.4,") {
		t.Errorf("cause: %s", a.Cause)
	}
	var b strings.Builder
	if err := a.Letter(&b, time.UTC); err != nil || !strings.Contains(strings.ReplaceAll(b.String(), "\n", " "), "The list bl.example.net contains the address. Please fix the cause") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// listsConf is a policy with a block list and an allowlist.
const listsConf = "companion lookup user a\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\nlookup wl allowlist \"wl.example.org\" codes 127.0.0.2%s\n" +
	"rule r phase connect match %s disconnect\n"

// askLists returns the answer about one session with the given steps.
func askLists(t *testing.T, conf string, steps ...store.Step) (*Answer, string) {
	t.Helper()
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Program: "test"})
	whyAdd(w, time.Minute, 0xe1, "203.0.113.7", store.Record{RDNS: raw("mx.example.net"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingQuit}, steps...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return ask(t, "203.0.113.7", "", options(t, dir, conf))
}

func answerOf(list string, result smtp.Result) store.Step {
	s := store.Step{Kind: store.KindListed, Text: raw(list), Match: raw(list + ".example.org"), Result: result}
	if result != smtp.ResultOK {
		s.Arg = raw("127.0.0.2")
	}
	return s
}

// TestAllowlist checks that the answer names the pass statement that exempts a client because of
// a DNS list, and how to remove the exemption.
func TestAllowlist(t *testing.T) {
	conf := fmt.Sprintf(listsConf, "", "listed bl")
	greeting := store.Step{Kind: store.KindHelo, Text: raw("mx.example.net")}
	for pass, exempts := range map[string]bool{
		"pass match listed wl":                                    true,
		"pass match listed { bl, wl } src 203.0.113.0/24":         true,
		"pass match listed wl fcrdns pass rdns \"*.example.net\"": true,
		"pass match listed wl helo \"mx.example.net\"":            true,
		"pass match !listed bl fcrdns pass":                       true,
		"pass match listed wl fcrdns fail":                        false,
		"pass match listed wl helo \"other.example.net\"":         false,
	} {
		a, out := askLists(t, conf+pass+"\n", answerOf("bl", smtp.ResultOK), answerOf("wl", smtp.ResultPass), greeting)
		cause, undo := "no rule matched", "nothing to undo"
		if exempts {
			statement := passText.FindString(options(t, t.TempDir(), conf+pass+"\n").Policy.String())
			cause, undo = exempted+statement, "remove "+statement+", in scanwatch.conf, line 5: rules then apply to the client"
		}
		if a.Cause != cause || a.Undo != undo || strings.Contains(out, "\n    remove pass match") != exempts {
			t.Errorf("%s: cause %q, undo %q\n%s", pass, a.Cause, a.Undo, out)
		}
	}
}

var passText = regexp.MustCompile(`(?m)^pass match .*$`)

// TestUnanswered checks the explanation and the remedy for a temporary rejection. The rejection is
// temporary because a list in a pass statement had not answered.
func TestUnanswered(t *testing.T) {
	bl, wl := answerOf("bl", smtp.ResultFail), answerOf("wl", smtp.ResultOK)
	found := store.Step{Kind: store.KindFinding, Text: raw("listed"), By: raw("dns"), Match: raw("bl bl.example.org"), Arg: raw("127.0.0.2"), Confidence: raw("medium")}
	verdict := store.Step{Kind: store.KindVerdict, Text: raw("r"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Enforced: true}
	const late = "; wl not answered in time, so the rejection is temporary, "
	for name, c := range map[string]struct {
		hold, rule, pass, cause, remedy string
		steps                           []store.Step
	}{
		"no answer":         {"", "listed bl", "listed wl", "listed in bl (bl.example.org) as 127.0.0.2" + late, "    lookup wl ... hold 400ms\n        (in scanwatch.conf, line 3: add hold,", []store.Step{bl, found, verdict, wl}},
		"no answer, waited": {" hold 400ms", "listed bl", "listed wl", late, "    scanwatch status\n", []store.Step{bl, found, verdict}},
		"more conditions":   {"", "evidence listed", "listed wl fcrdns pass", late, "    lookup wl ... hold 400ms\n", []store.Step{bl, found, verdict}},
		"another client":    {"", "listed bl", "listed wl fcrdns fail", " as 127.0.0.2, ", "    ask the operator of bl.example.org to remove 203.0.113.7\n", []store.Step{bl, found, verdict}},
		"answered":          {"", "listed bl", "listed wl", " as 127.0.0.2, ", "    ask the operator of bl.example.org to remove 203.0.113.7\n", []store.Step{bl, found, wl, verdict}},
		"another rule":      {"", "fcrdns pass", "listed wl", "rule r at connect, ", "", []store.Step{bl, found, verdict}},
		"not listed":        {"", "!listed wl", "listed bl", " for not listed in wl (wl.example.org), ", "", []store.Step{wl, verdict}},
	} {
		a, out := askLists(t, fmt.Sprintf(listsConf, c.hold, c.rule)+"pass match "+c.pass+"\n", c.steps...)
		if !strings.Contains(a.Cause, c.cause) || !strings.Contains(out, c.remedy) || strings.Contains(out, "not answered in time") != strings.Contains(c.cause, late) {
			t.Errorf("%s: cause %q\n%s", name, a.Cause, out)
		}
	}
}

// TestScoredListing checks that the answer names the DNS list that added to a rule's score.
func TestScoredListing(t *testing.T) {
	a, _ := askLists(t, fmt.Sprintf(listsConf, "", "score > 3")+"score evidence listed 5\npass match listed wl\n", answerOf("bl", smtp.ResultFail),
		store.Step{Kind: store.KindVerdict, Text: raw("r"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Enforced: true})
	if !strings.Contains(a.Cause, " with listed in bl (bl.example.org) as 127.0.0.2; wl not answered in time") {
		t.Errorf("cause %q", a.Cause)
	}
}

// TestUser checks that a user's sessions are found even if the recorded name is a hash. A name is
// hashed if it may be a password.
func TestUser(t *testing.T) {
	dir := t.TempDir()
	key, err := privacy.SaveKey(dir, privacy.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i, name := range []string{"erin", string(privacy.New(key).Word(nil, []byte("monkey123"))), "erin@example.org", "other"} {
		whyAdd(w, time.Hour, uint64(1+i), "192.0.2.9", store.Record{Ending: smtp.EndingQuit, Counts: store.Counts{AuthFail: 1}},
			store.Step{Kind: store.KindAuth, Text: raw(name), Result: smtp.ResultFail})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for arg, id := range map[string]uint64{"Erin": 1, "monkey123": 2, "erin@example.org": 3} {
		a, out := ask(t, arg, "user", options(t, dir, whyConf))
		if len(a.Sessions) != 1 || a.Sessions[0].Session != sessionID(id) || !strings.Contains(out, ": fail\n") {
			t.Errorf("%s: %s", arg, out)
		}
	}
}

// TestUserIsNotTheAttacker checks that the answer describes the user's hosts, not the banned hosts
// that brute-forced the password.
func TestUserIsNotTheAttacker(t *testing.T) {
	dir := whyStore(t)
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	login := func(ago time.Duration, id uint64, src, user string, result smtp.Result) {
		whyAdd(w, ago, id, src, store.Record{Ending: smtp.EndingQuit}, store.Step{Kind: store.KindAuth, Text: raw(user), Result: result})
	}
	const banned = "203.0.113.77"
	login(3*time.Hour, 0xa1, "192.0.2.9", "erin", smtp.ResultPass)
	login(2*time.Hour, 0xa2, banned, "erin", smtp.ResultFail)
	login(time.Hour, 0xa3, "192.0.2.9", "erin", smtp.ResultFail)
	login(time.Hour, 0xa4, banned, "frank", smtp.ResultPass)
	login(time.Hour, 0xa5, "192.0.2.77", "grace", smtp.ResultFail)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]Answer{
		"erin": {State: "1 login from 1 host, the last on 2026-11-02 09:00 +0000 from 192.0.2.9; 1 other host only failed; 1 of these hosts is banned now", Cause: "the server rejected a password from such a host, the last on 2026-11-02 11:00 +0000",
			Undo: "scanwatch unban ADDRESS, if the user is at one of the banned hosts below"},
		"frank": {State: banned + ", from which the user logged in, is banned until ", Undo: "scanwatch unban " + banned},
		"grace": {State: "no logins by this user in the records, 1 failed attempt from 1 host", Cause: "the server rejected each password", Undo: "nothing to undo"},
	} {
		a, out := ask(t, user, "user", options(t, dir, whyConf))
		if !strings.HasPrefix(a.State, want.State) || want.Cause != "" && a.Cause != want.Cause || a.Undo != want.Undo {
			t.Errorf("%s:\n%s", user, out)
		}
	}
}

// TestUserWithoutKind checks that a name found only in logins is treated as a user. If the name
// also occurs elsewhere, a note mentions --as user.
func TestUserWithoutKind(t *testing.T) {
	dir := whyStore(t)
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	fail := func(user string) store.Step {
		return store.Step{Kind: store.KindAuth, Text: raw(user), Result: smtp.ResultFail}
	}
	whyAdd(w, time.Hour, 0xa1, "192.0.2.9", store.Record{}, fail("erin"))
	whyAdd(w, time.Hour, 0xa2, "192.0.2.9", store.Record{}, store.Step{Kind: store.KindHelo, Text: raw("office")}, fail("frank"))
	whyAdd(w, time.Hour, 0xa3, "192.0.2.8", store.Record{}, fail("office"), fail("office"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, out := ask(t, "Erin", "", options(t, dir, whyConf))
	if a.Logins == nil || a.Logins.Failed != 1 || !slices.Equal(a.Kinds, []string{"user"}) || !strings.HasPrefix(a.State, "no logins by this user") {
		t.Errorf("%s", out)
	}
	a, out = ask(t, "office", "", options(t, dir, whyConf))
	if a.Logins != nil || len(a.Kinds) != 2 || !slices.Contains(a.Notes, "this is also a user with 2 failed logins; add --as user for an answer about the logins") {
		t.Errorf("%s", out)
	}
}

// TestUserLimits checks that the answer names the consequences of failed logins, the
// banned hosts, and the commands that undo the bans.
func TestUserLimits(t *testing.T) {
	dir := whyStore(t)
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i, src := range []string{"203.0.113.77", "192.0.2.9", "2001:db8:1::9"} {
		whyAdd(w, time.Minute, uint64(0xa1+i), src, store.Record{Ending: smtp.EndingQuit}, store.Step{Kind: store.KindAuth, Text: raw("erin"), Result: smtp.ResultFail})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	conf := whyConf + "rule guess phase end match count auth-failure > 19 in 1h by src ban { 10m, 1h }\n"
	a, out := ask(t, "erin", "user", options(t, dir, conf))
	words := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		"2 of these hosts are banned now",
		"203.0.113.77: 1 failed login, the last on 2026-11-02 11:59 +0000; banned until 2026-11-03 11:00 +0000 by rule botnet: scanwatch unban 203.0.113.77",
		"192.0.2.9: 1 failed login, the last on 2026-11-02 11:59 +0000; not banned",
		"2001:db8:1::/64: 1 failed login, the last on 2026-11-02 11:59 +0000; banned until 2026-11-02 13:00 +0000 by the operator: sent \\x1b[31m: scanwatch unban 2001:db8:1::/48",
		"- A host that fails to log in more than 19 times (within 1 hour, from one address): it is banned for 10 minutes, then for 1 hour after it has disconnected. (rule guess)",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if len(a.Logins.Tried) != 3 || len(a.Logins.Limits) != 1 {
		t.Errorf("%+v", a.Logins)
	}
}

// TestNamedHost checks answers about an IPv6 mail server and bots in the same /64. Answers about
// the server must not describe the bots, and vice versa.
func TestNamedHost(t *testing.T) {
	const server, bot, network = "2001:db8:3::25", "2001:db8:3::666", "2001:db8:3::/64"
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i := range 3 {
		whyAdd(w, time.Duration(i)*time.Hour, uint64(i+1), server, store.Record{RDNS: raw("mail.example.org"), FCrDNS: smtp.FCrDNSPass, Counts: store.Counts{Mails: 1}})
	}
	whyAdd(w, time.Hour, 0xb1, bot, store.Record{}, store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true})
	err := w.Close()
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite})
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(bot)}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "botnet", Session: 0xb1}, now.Add(-time.Hour).UnixMicro())
	if err := errors.Join(err, state.Flush(t.Context()), state.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arg, state string
		sessions   int
		apart      int // sessions of the other hosts
		hosts      []string
		says       string
	}{
		{server, "not banned; none of 3 sessions was rejected by a rule; other hosts in " + network + " are banned", 3, 1, nil, "details scanwatch why " + network},
		{bot, network + " is banned until 2026-11-03 11:00 +0000; the session was rejected", 1, 3, []string{server}, "details scanwatch why " + server},
		{"2001:db8:3::777", network + " is banned until", 1, 3, []string{server}, "scanwatch unban " + network},
		{network, network + " is banned until 2026-11-03 11:00 +0000; 1 of 4 sessions rejected", 4, 0, nil, "Host " + server},
		{"mail.example.org", "not banned; none of 3 sessions", 3, 0, nil, "Host " + server},
	} {
		a, out := ask(t, c.arg, "", options(t, dir, ""))
		switch {
		case !strings.HasPrefix(a.State, c.state), a.Matched != c.sessions, !strings.Contains(strings.Join(strings.Fields(out), " "), c.says):
			t.Errorf("%s: no %q in\n%s", c.arg, c.says, out)
		case c.apart == 0 && a.Apart != nil, c.apart > 0 && (a.Apart == nil || a.Apart.Sessions != c.apart || !slices.Equal(a.Apart.Hosts, c.hosts)):
			t.Errorf("%s: apart %+v", c.arg, a.Apart)
		}
	}
}

// TestMode checks that the answer gives the filter's mode and does not claim a
// rejection in observe mode.
func TestMode(t *testing.T) {
	o := options(t, whyStore(t), whyConf)
	o.Mode, o.ModeText = "observe", "observe, by the operator"
	a, out := ask(t, "203.0.113.77", "", o)
	if !strings.Contains(a.State, "but not rejected in observe mode") || !strings.Contains(out, "\nMode:  observe, by the operator\n") || a.Mode != "observe" {
		t.Errorf("%+v\n%s", a.State, out)
	}
	if a, _ = ask(t, "203.0.113.44", "", options(t, whyStore(t), whyConf)); strings.Contains(a.State, "would be") {
		t.Errorf("an expired ban: %s", a.State)
	}
}

// TestFriends checks that the remedy names the table used in the configuration.
func TestFriends(t *testing.T) {
	for _, c := range []struct{ conf, do, where string }{
		{"", "table <friends> { 203.0.113.77 }", "in scanwatch.conf: add the address permanently"},
		{botnetRule, "table <friends> { 203.0.113.77 }", "in scanwatch.conf: add the address permanently"},
		{whyConf, "add 203.0.113.77 to the table <friends>", "file scanwatch.conf, line 2, then run"},
		{"table <friends> file \"friends\"\npass from <friends>\n", "add 203.0.113.77 to the table <friends>", "file friends, then run scanwatch reload"},
		{"table <friends> file \"/etc/friends\"\npass from <friends>\n", "add 203.0.113.77 to the table <friends>", "file /etc/friends, then run scanwatch reload"},
	} {
		a, out := ask(t, "203.0.113.77", "", options(t, whyStore(t), c.conf))
		if r := a.Hosts[0].Remedies; len(r) < 2 || r[1].Do != c.do || !strings.HasPrefix(r[1].Text, c.where) {
			t.Errorf("%s: %+v\n%s", c.conf, r, out)
		}
	}
}

// TestUserOfManyHosts checks that a user's hosts are found among a large number of other hosts.
// Beyond maxLoginHosts, the number of hosts is a lower bound. A note must report the number of
// logins in aggregates.
func TestUserOfManyHosts(t *testing.T) {
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	login := func(ago time.Duration, id uint64, src string, r store.Record, result smtp.Result, user string, times uint32) {
		whyAdd(w, ago, id, src, r, store.Step{Kind: store.KindAuth, Text: raw(user), Result: result, Count: times, Times: times})
	}
	for i := range maxLoginHosts + 50 {
		login(time.Hour, uint64(1+i), fmt.Sprintf("203.0.%d.%d", i>>8, i&0xff), store.Record{}, smtp.ResultFail, "erin", 0)
	}
	login(30*time.Minute, 20_000, "198.51.100.7", store.Record{}, smtp.ResultPass, "erin", 0)
	login(20*time.Minute, 20_001, "198.51.100.7", store.Record{}, smtp.ResultFail, "erin", 0)
	login(10*time.Minute, 20_002, "203.0.0.1", store.Record{Sessions: 40}, smtp.ResultFail, "", 33)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, out := ask(t, "erin", "user", options(t, dir, whyConf))
	l := a.Logins
	if l == nil || l.Passed != 1 || l.Failed != maxLoginHosts+51 || l.Hosts != 1 || l.Others != maxLoginHosts || !l.AtLeast || l.From != "198.51.100.7" {
		t.Fatalf("%+v\n%s", l, out)
	}
	for _, want := range []string{"1 login from 1 host, the last on 2026-11-02 11:30 +0000 from 198.51.100.7; at least 10000 other hosts only failed",
		"Cause: the server rejected a password from such a host, the last on 2026-11-02 11:40 +0000",
		"aggregates contain 33 login attempts without the user's name; some may be this user's"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestNotFound(t *testing.T) {
	dir := whyStore(t)
	for _, c := range []struct {
		arg, kind string
		since     time.Duration
		want      string
	}{
		{"00000000000000ee", "", 0, `no session or ban matches session "00000000000000ee" in 39 sessions since 2026-09-13 12:00; the session may be open`},
		{"nobody", "", 0, `no session or ban matches helo or user "nobody" in 39 sessions since 2026-09-13 12:00; the session may be open, or its record may have expired; try another kind with --as`},
		{"bob@example.org", "", time.Hour, "no session or ban matches sender or recipient"},
	} {
		o := options(t, dir, whyConf)
		if c.since > 0 {
			o.Since = now.Add(-c.since)
		}
		a, _ := ask(t, c.arg, c.kind, o)
		if !a.Empty() || !strings.Contains(a.NotFound(&o).Error(), c.want) {
			t.Errorf("%s: empty %v, %v", c.arg, a.Empty(), a.NotFound(&o))
		}
	}
	o := options(t, t.TempDir(), "")
	if a, _ := ask(t, "x", "", o); !a.Empty() || !strings.Contains(a.NotFound(&o).Error(), "contains no sessions") {
		t.Errorf("empty directory: %v", a.NotFound(&o))
	}
}

func TestParse(t *testing.T) {
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
		{"[2001:db8::1]", []string{"address"}},
		{"554 5.7.1 Turned away [5a1f9c2e00c0ffee]", []string{"session"}},
		{"Nov 30 10:00:00 mx smtpd[17]: 5a1f9c2e00c0ffee smtp connected", []string{"session"}},
		{"5a1f9c", []string{"session", "helo", "user"}},
		{"5a1f9c2e00c0ffee.example.org", []string{"rdns", "helo", "user"}},
		{"[IPv6:2001:db8::1]", []string{"helo", "user"}},
		{"[192.0.2.1]", []string{"helo", "user"}},
		{"mail.example.org", []string{"rdns", "helo", "user"}},
		{"ylmf-pc", []string{"helo", "user"}},
		{"<a@example.org>", []string{"sender", "recipient", "user"}},
		{"@example.org", []string{"sender", "recipient"}},
		{"<>", []string{"sender"}},
	} {
		if q, err := Parse(c.arg, ""); err != nil || !slices.Equal(q.kinds, c.want) {
			t.Errorf("%s: %+v %v, want %v", c.arg, q, err, c.want)
		}
	}
	for _, c := range []struct{ arg, kind, want string }{
		{"mail.example.com", "address", `why --as address: invalid address "mail.example.com"`},
		{"x", "thing", "must be one of session, address, sender, recipient, rdns, helo, user"},
	} {
		if _, err := Parse(c.arg, c.kind); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s as %s: %v, want %s", c.arg, c.kind, err, c.want)
		}
	}
}

// TestHost checks that a name matches itself and the names below it.
func TestHost(t *testing.T) {
	q, _ := Parse("example.org", "")
	for name, want := range map[string]bool{"example.org": true, "a.EXAMPLE.org": true, "anexample.org": false, "org": false, "": false} {
		if q.host([]byte(name)) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// FuzzParse checks that every argument has a kind and can be compared with every record.
func FuzzParse(f *testing.F) {
	for _, arg := range []string{"", "<>", "[", "@", "a@b", `\x`, "192.0.2.1", "5a1f9c2e00c0ffee", hostileText, "::%eth0", "1.2.3.4:5"} {
		f.Add(arg, "a@b")
	}
	f.Fuzz(func(t *testing.T, arg, other string) {
		q, err := Parse(arg, "")
		if err != nil || len(q.kinds) == 0 {
			t.Fatalf("%q: %+v %v", arg, q, err)
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
		_ = q.match(&d)
	})
}

func BenchmarkFind(b *testing.B) {
	dir := b.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }})
	const sessions = 20_000
	for i := range sessions {
		whyAdd(w, time.Hour-time.Duration(i)*time.Microsecond, uint64(i+1), fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255), store.Record{Counts: store.Counts{RcptPermfail: 1}},
			store.Step{Kind: store.KindHelo, Text: raw("x.example.net")}, store.Step{Kind: store.KindMail, Text: raw("a@example.net")},
			store.Step{Kind: store.KindRcpt, Text: fmt.Appendf(nil, "user%d@example.org", i), Result: smtp.ResultPermfail})
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if a, out := ask(b, "user77@example.org", "", options(b, dir, "")); a.Empty() {
			b.Fatal(out)
		}
	}
	b.ReportMetric(float64(b.N*sessions)/b.Elapsed().Seconds(), "records/s")
}

// TestReputation checks that standing in state.db exempts a host without recorded sessions.
func TestReputation(t *testing.T) {
	const day = 24 * time.Hour
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	finding := store.Step{Kind: store.KindFinding, Text: raw("harvest"), By: raw("rcpt"), Confidence: raw("high")}
	addresses := []string{"203.0.113.9", "198.51.100.10", "198.51.100.66", "192.0.2.99"}
	for i, a := range addresses {
		r := store.Record{FCrDNS: smtp.FCrDNSPass}
		if i == 1 {
			r.RDNS = raw("out.partner.example.com")
		}
		whyAdd(w, 2*day, uint64(i+1), a, r, finding)
	}
	err := w.Close()
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	who := func(a, rdns string) *memory.Client {
		return &memory.Client{Addr: netip.MustParseAddr(a), Domain: memory.RegisteredDomain(raw(rdns)), Helo: raw(rdns)}
	}
	m.Peers.Delivered(who("203.0.113.9", ""), memory.Delivery{Messages: 1}, now.Add(-200*day).UnixMicro())
	m.Peers.Delivered(who("198.51.100.250", "mx.partner.example.com"), memory.Delivery{Messages: 1}, now.Add(-20*day).UnixMicro())
	m.Logins.Succeeded(&memory.Client{Addr: netip.MustParseAddr("198.51.100.66"), User: raw("alice")}, now.Add(-10*day).UnixMicro())
	for _, a := range addresses {
		m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.BanRequest{Ladder: []time.Duration{60 * day}, Rule: "guess"}, now.Add(-2*day).UnixMicro())
	}
	if err := errors.Join(err, state.Flush(t.Context()), state.Close()); err != nil {
		t.Fatal(err)
	}
	const pass = "pass from 192.0.2.96/28\n"
	for _, c := range []struct{ address, conf, want string }{
		{"203.0.113.9", "", "[x] known (1 accepted message on 1 day from the host, 2026-04-16 to 2026-04-16): no bans except for failed logins or by rules with even trusted, and doubled thresholds"},
		{"198.51.100.10", "", "known (1 accepted message on 1 day from the domain,"},
		{"198.51.100.66", "", "a user logged in from the host in the last 30 days, in a session whose record has expired: no bans, except for auth-spray of other users"},
		{"192.0.2.99", "", "(no login is known)"},
		{"192.0.2.99", pass, "[x] a pass statement matches: pass from 192.0.2.96/28"},
	} {
		_, out := ask(t, c.address, "", options(t, dir, c.conf))
		if !strings.Contains(strings.Join(strings.Fields(out), " "), c.want) {
			t.Errorf("%s: no %q in\n%s", c.address, c.want, out)
		}
	}
}

// TestSum checks that the sessions in an aggregate are found by ids, greetings and
// recipients, and that the answer shows the aggregate's messages and decisions.
func TestSum(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	banned := func(session uint64, times uint32) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: raw("ylmf"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Enforced: true, Banned: true, Session: session, Times: times}
	}
	reference := func(id uint64) store.Step { return store.Step{Kind: store.KindReference, Session: id} }
	whyAdd(w, time.Hour, 0x5, "203.0.113.9", store.Record{Sessions: 400, Found: 400, Rejected: 399, Counts: store.Counts{Mails: 11_280, RcptOK: 11_280}},
		store.Step{Kind: store.KindHelo, Text: raw("bulk.example.net"), Times: 300}, store.Step{Kind: store.KindHelo, Times: 100},
		store.Step{Kind: store.KindRcpt, Text: raw("@example.org"), Result: smtp.ResultOK, Times: 390, Count: 11_280, Most: 50},
		store.Step{Kind: store.KindVerdict, Text: raw("ylmf"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true, Times: 399},
		banned(0x3, 10), banned(0x4, 20), reference(0x3), reference(0x77))
	whyAdd(w, 30*time.Minute, 0x6, "203.0.113.9", store.Record{}, banned(0x77, 0))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arg  string
		want []string
	}{
		{"203.0.113.9", []string{"11280 messages accepted for 11280 recipients", "399 times", "the aggregate of 400 sessions until", "recorded 401 sessions, 11280 messages accepted", "31 sessions rejected by a ban"}},
		{"[0000000000000077]", []string{"session 0000000000000077 was rejected; its details are not recorded"}},
		{"0000000000000006", []string{"banned in session 0000000000000077, see below", "Session 0000000000000005"}},
		{"bulk.example.net", []string{"the aggregate of 400 sessions"}},
		{"@example.org", []string{"RCPT TO:<@example.org>: ok for 11280 recipients"}},
		{"bob@example.org", nil},
		{"00000000000000ee", []string{}},
	} {
		a, out := ask(t, c.arg, "", options(t, dir, ""))
		out = strings.Join(strings.Fields(out), " ")
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c.arg, want, out)
			}
		}
		if c.arg == "00000000000000ee" && !slices.Contains(a.Notes, "or it is one of 397 rejected sessions in aggregates, whose ids are not recorded; search for the client's address") {
			t.Errorf("notes %q", a.Notes)
		}
		if c.want == nil && (!a.Empty() || !slices.ContainsFunc(a.Notes, func(n string) bool { return strings.HasPrefix(n, "400 sessions are in aggregates, ") })) {
			t.Errorf("%s: %+v", c.arg, a)
		}
		if strings.Contains(out, "without mail") {
			t.Errorf("%s: mail is denied in\n%s", c.arg, out)
		}
	}
}

// emptyTable is a table without entries.
type emptyTable struct{}

func (emptyTable) MatchAddr(netip.Addr) bool { return false }
func (emptyTable) MatchName([]byte) bool     { return false }
func (emptyTable) MatchASN(uint32) bool      { return false }

// TestSumsCount checks that each session in an aggregate is counted.
func TestSumsCount(t *testing.T) {
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	would := store.Step{Kind: store.KindVerdict, Text: raw("probe"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Times: 7}
	whyAdd(w, time.Hour, 1, "192.0.2.9", store.Record{Sessions: 30, Rejected: 12}, would)
	whyAdd(w, time.Minute, 2, "192.0.2.9", store.Record{Ending: smtp.EndingQuit})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, out := ask(t, "192.0.2.9", "", options(t, dir, whyConf))
	if a.Matched != 31 || a.Rejected != 12 || a.Observed != 7 || !strings.HasPrefix(out, "State: not banned; 12 of 31 sessions rejected, 7 would have been") {
		t.Errorf("%d sessions, %d rejected, %d observed:\n%s", a.Matched, a.Rejected, a.Observed, out)
	}
}

// TestSumWithoutIDs checks the answer about a session whose id is missing from an
// aggregate. The answer must not claim that the record has expired.
func TestSumWithoutIDs(t *testing.T) {
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	whyAdd(w, time.Hour, 1, "192.0.2.9", store.Record{Sessions: 30, Rejected: 1}, store.Step{Kind: store.KindReference, Session: 3})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, _ := ask(t, "00000000000000ee", "", options(t, dir, ""))
	if want := "or it is one of 29 sessions in aggregates, which contain the ids of rejected sessions only; search for the client's address"; !a.Empty() || !slices.Contains(a.Notes, want) {
		t.Errorf("notes %q", a.Notes)
	}
}

// TestOwnHostsFirst checks that banned attackers do not hide the user's own host.
func TestOwnHostsFirst(t *testing.T) {
	own := &LoginHost{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Passed: true, Failed: 1}
	l := &Logins{hosts: map[netip.Prefix]*LoginHost{own.Prefix: own}}
	for i := range 2 * maxHosts {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32)
		l.hosts[p] = &LoginHost{Prefix: p, Failed: 9, Last: text.At(time.Unix(int64(i), 0)), Ban: &Ban{}}
	}
	if l.list(); l.Tried[0] != own || len(l.Tried) != maxHosts || l.More != maxHosts+1 {
		t.Errorf("the first of %d hosts is %v, %d more", len(l.Tried), l.Tried[0].Prefix, l.More)
	}
}
