package filter_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/tests/simulate"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
)

func policy(t testing.TB, text string) *rules.Policy {
	t.Helper()
	c, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(c, rules.Options{Load: func(s rules.Source) (rules.Table, error) {
		if s.Builtin {
			return nothing{}, nil
		}
		return nil, nil // the file is missing
	}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// nothing is an empty table. The table replaces a shipped list.
type nothing struct{}

func (nothing) MatchAddr(netip.Addr) bool { return false }
func (nothing) MatchName([]byte) bool     { return false }
func (nothing) MatchASN(uint32) bool      { return false }

// script plays a session. script returns the answers to the requests without the session id. Each
// line is a short form of an event or a request:
//
//	connect NAME FCRDNS     report and request
//	ehlo NAME, mail ADDRESS, rcpt ADDRESS, data     request
//	refused ADDRESS         protocol lines and report of a refused recipient
//	auth RESULT USER        report
func script(t testing.TB, p *rules.Policy, lines ...string) (answers []string, records []*store.Record, log []string) {
	t.Helper()
	const id = "00000000000000aa"
	var in strings.Builder
	at := 0
	report := func(format string, args ...any) {
		at++
		fmt.Fprintf(&in, "report|0.7|1795219327.%06d|smtp-in|%s\n", at, fmt.Sprintf(format, args...))
	}
	ask := func(phase, rest string) {
		at++
		fmt.Fprintf(&in, "filter|0.7|1795219327.%06d|smtp-in|%s|%s|00000000000000ff|%s\n", at, phase, id, rest)
	}
	for _, line := range lines {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "connect":
			name, fcrdns, _ := strings.Cut(rest, " ")
			report("link-connect|%s|%s|%s|192.0.2.1:4000|192.0.2.25:25", id, name, fcrdns)
			ask("connect", name+"|192.0.2.1")
			report("protocol-server|%s|220 mx.example.org ESMTP OpenSMTPD", id)
		case "ehlo":
			report("protocol-client|%s|EHLO %s", id, rest)
			ask("ehlo", rest)
		case "mail":
			report("protocol-client|%s|MAIL FROM:<%s>", id, rest)
			ask("mail-from", rest)
			report("protocol-server|%s|250 2.0.0 Ok", id)
			report("tx-mail|%s|31f211ba|ok|%s", id, rest)
		case "rcpt", "refused":
			report("protocol-client|%s|RCPT TO:<%s>", id, rest)
			ask("rcpt-to", rest)
			if word == "refused" {
				report("protocol-server|%s|550 Invalid recipient: <%s>", id, rest)
				report("tx-rcpt|%s|31f211ba|permfail|%s", id, rest)
			} else {
				report("protocol-server|%s|250 ok", id)
				report("tx-rcpt|%s|31f211ba|ok|%s", id, rest)
			}
		case "data":
			ask("data", "")
		case "auth":
			result, user, _ := strings.Cut(rest, " ")
			report("link-auth|%s|%s|%s", id, result, user)
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	table := simulate.NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Error(err)
			}
			records = append(records, &r)
		},
		Log:   func(line []byte) { log = append(log, string(line)) },
		Lists: func() *lookup.Lists { return lists },
	})
	table.Use(&filter.Settings{Policy: p})
	var out bytes.Buffer
	if err := smtpd.Serve(strings.NewReader(in.String()), &out, table, smtpd.Options{Log: func(s string) { t.Error(s) }}); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	for _, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
		answers = append(answers, strings.TrimPrefix(line, "filter-result|"+id+"|00000000000000ff|"))
	}
	return answers, records, log
}

func TestDecisions(t *testing.T) {
	const ref = " [00000000000000aa]"
	for _, c := range []struct {
		name   string
		policy string
		lines  []string
		want   []string
	}{
		{"observe changes nothing", `mode observe
rule bad phase helo match helo "ylmf-pc" disconnect "554 5.7.1 no"`,
			[]string{"connect x pass", "ehlo ylmf-pc"}, []string{"proceed", "proceed"}},
		{"disconnect with the session as reference", `mode enforce
rule bad phase helo match helo "ylmf-pc" disconnect "554 5.7.1 no"`,
			[]string{"connect x pass", "ehlo ylmf-pc"}, []string{"proceed", "disconnect|554 5.7.1 no" + ref}},
		{"another greeting does not cancel a decision", `mode enforce
rule bad phase helo match helo "ylmf-pc" reject "550 5.7.1 no"`,
			[]string{"connect x pass", "ehlo ylmf-pc", "ehlo mail.example.net", "mail a@example.net"},
			[]string{"proceed", "reject|550 5.7.1 no" + ref, "reject|550 5.7.1 no" + ref, "reject|550 5.7.1 no" + ref}},
		{"a decision about a recipient is not sticky", `mode enforce
rule not-bob phase rcpt-to match rcpt-to "bob@example.org" reject "550 5.7.1 no"`,
			[]string{"connect x pass", "ehlo y.example.net", "mail a@example.net", "rcpt bob@example.org", "rcpt alice@example.org"},
			[]string{"proceed", "proceed", "proceed", "reject|550 5.7.1 no" + ref, "proceed"}},
		{"a login cancels earlier decisions", `mode enforce
rule bad phase helo match helo "ylmf-pc" reject "550 5.7.1 no"`,
			[]string{"connect x pass", "ehlo ylmf-pc", "auth pass bob", "mail a@example.net"},
			[]string{"proceed", "reject|550 5.7.1 no" + ref, "proceed"}},
		{"pass wins wherever it stands", `mode enforce
rule bad phase helo match helo "ylmf-pc" reject "550 5.7.1 no"
pass from 192.0.2.0/24`,
			[]string{"connect x pass", "ehlo ylmf-pc"}, []string{"proceed", "proceed"}},
		{"evidence of a proven name", `mode enforce
rule scanner phase connect match evidence scanner disconnect "554 5.7.1 no"`,
			[]string{"connect scan-01.shadowserver.org pass"}, []string{"disconnect|554 5.7.1 no" + ref}},
		{"an unproven name is not evidence", `mode enforce
rule scanner phase connect match evidence scanner disconnect "554 5.7.1 no"`,
			[]string{"connect scan-01.shadowserver.org fail"}, []string{"proceed"}},
		{"but it scores half", `mode enforce
score evidence scanner 60
rule odd phase connect match score > 29 disconnect "554 5.7.1 no"`,
			[]string{"connect scan-01.shadowserver.org fail"}, []string{"disconnect|554 5.7.1 no" + ref}},
		{"a name cut at 64 bytes proves nothing", `mode enforce
score evidence scanner 60
score evidence fcrdns-fail 60
rule odd phase connect match score > 29 disconnect "554 5.7.1 no"`,
			[]string{"connect " + strings.Repeat("a", 64-len(".shadowserver.org")) + ".shadowserver.org fail"}, []string{"proceed"}},
		{"a name of 64 bytes that passes FCrDNS is complete", `mode enforce
rule scanner phase connect match evidence scanner disconnect "554 5.7.1 no"`,
			[]string{"connect " + strings.Repeat("a", 64-len(".shadowserver.org")) + ".shadowserver.org pass"}, []string{"disconnect|554 5.7.1 no" + ref}},
		{"an unproven name exempts no client", `mode enforce
pass match rdns ".google.com" fcrdns
rule all phase connect match src 192.0.2.0/24 disconnect "554 5.7.1 no"`,
			[]string{"connect mail.google.com fail"}, []string{"disconnect|554 5.7.1 no" + ref}},
		{"refused recipients are counted", `mode enforce
rule harvest phase rcpt-to match count unknown-recipient > 2 disconnect "421 4.7.0 enough"`,
			[]string{"connect x pass", "ehlo y.example.net", "mail a@example.net", "rcpt alice@example.org",
				"refused a@example.org", "refused b@example.org", "refused c@example.org", "rcpt d@example.org"},
			[]string{"proceed", "proceed", "proceed", "proceed", "proceed", "proceed", "proceed", "disconnect|421 4.7.0 enough" + ref}},
		{"a mailing list with former members is not a harvest", `mode enforce
rule harvest phase rcpt-to match evidence harvest disconnect "421 4.7.0 enough"`,
			append(append([]string{"connect x pass", "ehlo y.example.net", "mail a@example.net"},
				"rcpt a1@example.org", "rcpt a2@example.org", "rcpt a3@example.org", "rcpt a4@example.org", "rcpt a5@example.org", "rcpt a6@example.org", "rcpt a7@example.org", "rcpt a8@example.org"), slices.Repeat([]string{"refused gone@example.org"}, 8)...),
			slices.Repeat([]string{"proceed"}, 3+16)},
		{"a harvest is one", `mode enforce
rule harvest phase rcpt-to match evidence harvest disconnect "421 4.7.0 enough"`,
			append([]string{"connect x pass", "ehlo y.example.net", "mail a@example.net", "rcpt alice@example.org"}, append(distinct(10), "rcpt bob@example.org")...),
			append(slices.Repeat([]string{"proceed"}, 4+10), "disconnect|421 4.7.0 enough"+ref)},
		{"one missing mailbox, asked for again and again, is none", `mode enforce
rule harvest phase rcpt-to match evidence harvest disconnect "421 4.7.0 enough"`,
			append([]string{"connect x pass", "ehlo y.example.net", "mail a@example.net"}, slices.Repeat([]string{"refused gone@example.org", "refused Gone+x@example.org"}, 8)...),
			slices.Repeat([]string{"proceed"}, 3+16)},
		{"mail to a recipient that passes is not rejected later, and a decision does not go back to an earlier phase", `mode enforce
pass match rcpt-to "postmaster@"
rule bad phase rcpt-to match helo "ylmf-pc" reject "550 5.7.1 no"
rule late phase data match helo "ylmf-pc" reject "550 5.7.1 no"`,
			[]string{"connect x pass", "ehlo ylmf-pc", "mail a@example.net", "refused bob@example.org", "rcpt postmaster@example.org", "data",
				"mail b@example.net", "refused bob@example.org", "data"},
			[]string{"proceed", "proceed", "proceed", "reject|550 5.7.1 no" + ref, "proceed", "proceed",
				"proceed", "reject|550 5.7.1 no" + ref, "reject|550 5.7.1 no" + ref}},
		{"a client that may be a friend is rejected with a temporary code", `mode enforce
table <friends> file "/nonexistent"
pass from <friends>
rule all phase { connect, helo } match src 192.0.2.0/24 disconnect "554 5.7.1 no"`,
			[]string{"connect x pass", "ehlo y.example.net"}, slices.Repeat([]string{"disconnect|421 4.7.1 no" + ref}, 2)},
		{"so is one whose name may be on a list", `mode enforce
table <known> file "/nonexistent"
pass match rdns <known> fcrdns
rule all phase { connect, helo } match src 192.0.2.0/24 disconnect "554 5.7.1 no"`,
			[]string{"connect x pass"}, []string{"disconnect|421 4.7.1 no" + ref}},
		{"a client that cannot be on the list is rejected permanently", `mode enforce
table <known> file "/nonexistent"
pass match rdns <known> fcrdns
rule all phase { connect, helo } match src 192.0.2.0/24 disconnect "554 5.7.1 no"`,
			[]string{"connect x fail"}, []string{"disconnect|554 5.7.1 no" + ref}},
		{"conditions on tables that are not loaded are unknown", `mode enforce
table <drop> file "/nonexistent"
rule drop phase connect match src <drop> disconnect "554 5.7.1 no"
rule notdrop phase connect match !src <drop> disconnect "554 5.7.1 no"`,
			[]string{"connect x pass"}, []string{"proceed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers, _, log := script(t, policy(t, c.policy+"\n"), c.lines...)
			if !slices.Equal(answers, c.want) {
				t.Errorf("got  %q\nwant %q\nlog %q", answers, c.want, log)
			}
		})
	}
}

// TestOwnRefusalsAreNotCounted checks that recipients rejected by a rule do not add to the count
// that the rule uses.
func TestOwnRefusalsAreNotCounted(t *testing.T) {
	in := strings.Join([]string{
		event(1, "link-connect|00000000000000aa|x.example.net|pass|192.0.2.1:1|192.0.2.25:25"),
		event(2, "protocol-server|00000000000000aa|220 mx.example.org ESMTP OpenSMTPD"),
		event(3, "protocol-client|00000000000000aa|RCPT TO:<a@example.org>"),
		event(4, "filter-response|00000000000000aa|rcpt-to|reject|550 no"),
		event(5, "protocol-server|00000000000000aa|550 no"),
		event(6, "tx-rcpt|00000000000000aa|31f211ba|permfail|a@example.org"),
		event(7, "link-disconnect|00000000000000aa"),
	}, "")
	records, log := play(t, []byte(in))
	if len(log) != 0 || records[0].Counts.RcptPermfail != 1 {
		t.Errorf("log %q, counts %+v", log, records[0].Counts)
	}
}

// TestTags checks that a tag is recorded and logged once, both in observe mode and in enforce mode.
func TestTags(t *testing.T) {
	p := policy(t, "mode observe\nrule odd phase helo match helo \"ylmf-pc\" tag odd-one\n")
	answers, records, log := script(t, p, "connect x.example.net pass", "ehlo ylmf-pc", "ehlo ylmf-pc")
	if !slices.Equal(answers, []string{"proceed", "proceed", "proceed"}) {
		t.Errorf("answers %q", answers)
	}
	if n := strings.Count(render(t, records), `tag "helo" "odd-one"`); n != 1 {
		t.Errorf("%d tags in %s", n, render(t, records))
	}
	if n := strings.Count(strings.Join(log, "\n"), " tag=odd-one "); n != 1 {
		t.Errorf("%d lines in %q", n, log)
	}
}

// TestRewrittenAuth checks that an argument of AUTH is masked like a password after another filter
// has rewritten it.
func TestRewrittenAuth(t *testing.T) {
	records, log := play(t, []byte(strings.Join([]string{
		event(1, "link-connect|00000000000000aa|x.example.net|pass|192.0.2.1:1|192.0.2.25:25"),
		event(2, "filter-response|00000000000000aa|auth|rewrite|PLAIN AGFsaWNlAHNlY3JldA=="),
		event(3, "link-disconnect|00000000000000aa"),
	}, "")))
	if text := render(t, records) + strings.Join(log, "\n"); strings.Contains(text, "AGFs") || !strings.Contains(text, `"auth" "rewrite"`) {
		t.Errorf("recorded %s", text)
	}
}

// TestVerdictIsRecordedAndLogged checks that both enforced and observed verdicts are recorded and
// logged.
func TestVerdictIsRecordedAndLogged(t *testing.T) {
	for _, c := range []struct{ mode, word string }{{"observe", "would=disconnect"}, {"enforce", "decision=disconnect"}} {
		p := policy(t, "mode "+c.mode+"\nrule bots phase helo match evidence botnet-helo disconnect \"554 5.7.1 no\"\n")
		_, records, log := script(t, p, "connect x.example.net pass", "ehlo ylmf-pc")
		if !slices.ContainsFunc(log, func(l string) bool {
			return strings.HasPrefix(l, "session "+c.word+" src=192.0.2.1 rule=bots phase=helo evidence=botnet-helo:high ")
		}) {
			t.Errorf("%s: log %q", c.mode, log)
		}
		found := false
		if err := records[0].Steps(func(s *store.Step) bool {
			if s.Kind == store.KindVerdict {
				found = string(s.Text) == "bots" && s.Decision == smtp.Disconnect && s.Enforced == (c.mode == "enforce")
			}
			return true
		}); err != nil {
			t.Error(err)
		}
		if !found {
			t.Errorf("%s: no verdict in the record", c.mode)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	text, err := rules.ReadyPolicy("tight")
	if err != nil {
		b.Fatal(err)
	}
	p := policy(b, strings.Replace(string(text), "mode observe", "mode enforce", 1))
	var in strings.Builder
	in.WriteString(event(1, "link-connect|00000000000000aa|mail.example.net|pass|192.0.2.1:1|192.0.2.25:25"))
	for i := range 8 {
		fmt.Fprintf(&in, "filter|0.7|1795219327.%06d|smtp-in|rcpt-to|00000000000000aa|00000000000000ff|alice@example.org\n", i)
	}
	table := newBench(func(time.Time, uint64, []byte) {})
	table.Use(&filter.Settings{Policy: p})
	b.ReportAllocs()
	if err := smtpd.Serve(&endless{in: []byte(in.String()), n: b.N}, discard{}, table, smtpd.Options{}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(8*b.N), "ns/request")
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// distinct returns lines in which n different recipients are rejected.
func distinct(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("refused gone%d@example.org", i))
	}
	return lines
}
