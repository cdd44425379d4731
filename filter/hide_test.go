package filter_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/privacy"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// unhidden returns all output for a session with a greeting and the given lines, which are in the
// format of raw. The session is played twice. The first one gets its own record, and the second is
// added to an aggregate.
func unhidden(t *testing.T, h *privacy.Hasher, lines []string, p *rules.Policy) string {
	t.Helper()
	var kept bytes.Buffer
	table := simulate.NewFilter(filter.Options{
		Record: func(_ time.Time, _ uint64, value []byte) { fmt.Fprintf(&kept, "record %q\n", value) },
		Log:    func(line []byte) { fmt.Fprintf(&kept, "log %s\n", line) },
		Watch:  func(e *events.Event) { fmt.Fprintf(&kept, "event %+v rdns %s helo %s\n", *e, e.RDNS, e.Helo) },
		Lists:  func() *lookup.Lists { return lists },
		Hasher: func() *privacy.Hasher { return h },
		Budget: 1, // one record already exceeds this budget
	})
	table.Use(&filter.Settings{Policy: p})
	lines = append([]string{"R link-connect|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25", "R protocol-server|220 mx.example.org ESMTP OpenSMTPD",
		"R protocol-client|EHLO mail.example.net", "R link-identify|EHLO|mail.example.net", "R protocol-server|250 hello"}, append(lines, "R link-disconnect")...)
	for i, l := range append(lines, lines...) {
		kind, token := "report", ""
		if l[0] == 'F' {
			kind, token = "filter", "|00000000000000ff"
		}
		word, args, more := strings.Cut(l[2:], "|")
		if more {
			args = "|" + args
		}
		in := fmt.Sprintf("%s|0.7|1795219327.%06d|smtp-in|%s|00000000000000aa%s%s\n", kind, i, word, token, args)
		if err := smtpd.Serve(strings.NewReader(in), new(bytes.Buffer), table, smtpd.Options{Log: func(s string) { t.Error(s) }}); err != nil {
			t.Fatal(err)
		}
	}
	if n := table.Sums.Unwritten(); n != 1 && !strings.Contains(strings.Join(lines, " "), "link-auth|pass") {
		t.Errorf("%d sessions are in an aggregate", n)
	}
	table.Stop()
	return kept.String()
}

// TestNobodyInClear checks that records, logs and events for watchers contain no mailbox that is
// not hashed. The mailbox may be in text from a client, smtpd or another filter.
func TestNobodyInClear(t *testing.T) {
	hasher := privacy.New(bytes.Repeat([]byte{7}, 32))
	p := policy(t, "privacy hashed\nmode observe\ntable <local-domains> { \"example.org\" }\nrule all phase rcpt-to match helo \"mail.example.net\" reject ban 1d\nrule badhelo phase helo match !helo \"mail.example.net\" reject\n")
	john := regexp.MustCompile(`(?i)john|smith`)
	for _, lines := range [][]string{
		// Greetings.
		{"R protocol-client|EHLO john.smith@example.net", "R protocol-server|501 5.5.1 Invalid command: EHLO requires domain name"},
		{"R protocol-client|HELO <john.smith@example.net>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|EHLO john.smith@example.net", "R link-identify|EHLO|john.smith@example.net", "R protocol-server|250 hello", "F rcpt-to|x@example.org",
			"R protocol-client|EHLO smith@example.net", "R link-identify|EHLO|smith@example.net", "R protocol-server|250 hello", "F rcpt-to|x@example.org"},
		// Commands that smtpd rejects.
		{"R protocol-client|RCPT TO:<john.smith@example.org>", "R protocol-server|503 5.5.1 Invalid command: <john.smith@example.org>"},
		{"R protocol-client|RCPT TO <john.smith@example.org> X:y", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO <@relay.example:john.smith@example.org>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO <john.smith>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|rcpt to john.smith", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT john.smith", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT  TO\tJohn Smith : x", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO:John Smith <j@example.org>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO:<\"john\\\" smith\"@example.org>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO:<\"john>smith\"@example.org>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|RCPT TO:<\"x@john.smith\"@example.org>", "R protocol-server|501 5.5.1 no"},
		{"R protocol-client|MAIL FROM:<x@example.net> AUTH=<john.smith@example.net> ENVID=john.smith@x", "R protocol-server|503 5.5.1 no"},
		{"R protocol-client|RCPT TO:<x@example.org> ORCPT=rfc822;john.smith@example.org", "R protocol-server|503 5.5.1 no"},
		{"R protocol-client|MAIL FROM:<SRS0=HHH=TT=example.com=john.smith@example.net>", "R protocol-server|503 5.5.1 no"},
		{"R protocol-client|MAIL FROM:<bounce+john.smith=example.com@example.net>", "R protocol-server|503 no <bounce+john.smith=example.com@example.net>"},
		{"R protocol-client|VRFY john.smith", "R protocol-server|502 5.5.1 no"},
		{"R protocol-client|vrfy <john.smith>", "R protocol-server|550 5.1.1 john.smith@example.org?"},
		{"R protocol-client|EXPN\tjohn smith", "R protocol-server|502 5.5.1 no"},
		{"R protocol-client|SEND FROM:<john.smith>", "R protocol-server|502 5.5.1 no"},
		{"R protocol-client|To: j@example.org, \"a\\\"john\"@example.org (x) john.smith(y)@example.org", "R protocol-server|500 5.5.1 Invalid command: john.smith@example.org"},
		// Replies to rewritten commands, and texts from other filters.
		{"R protocol-client|DATA", "R filter-response|data|reject|550 not for john.smith@example.org", "R protocol-server|550 not for john.smith@example.org", "R tx-data|31f211ba|permfail"},
		{"R protocol-client|DATA", "R protocol-server|554 not for <john.smith@example.org>", "R tx-data|31f211ba|permfail"},
		{"R protocol-server|500 5.5.1 what, john.smith@example.org"},
		{"R protocol-client|RCPT TO:<x@example.org>", "R filter-response|rcpt-to|rewrite|john.smith@example.org", "R protocol-server|250 Ok", "R tx-rcpt|31f211ba|ok|john.smith@example.org"},
		// Message text sent after a rejected DATA.
		{"R protocol-client|DATA", "R protocol-server|503 5.5.1 no", "R protocol-client|Subject: John Smith", "R protocol-server|500 5.5.1 Invalid command: Command unrecognized",
			"R protocol-client|john, this is for you", "R protocol-server|500 5.5.1 no", "R protocol-client|HELP John", "R protocol-server|214 no", "R protocol-client|Yours, Smith", "R protocol-server|500 5.5.1 no"},
		{"R protocol-client|BDAT 1000 LAST", "R protocol-server|502 5.5.1 no", "R protocol-client|From: John Smith", "R protocol-server|500 5.5.1 no"},
		// Users.
		{"R link-auth|fail|john.smith@example.org"}, {"R link-auth|fail|John Smith@example.org", "R link-auth|error|john@example.org"},
		// Envelopes.
		{"R protocol-client|MAIL FROM:<john.smith@example.net>", "R protocol-server|250 Ok", "R tx-mail|31f211ba|ok|john.smith@example.net",
			"F rcpt-to|john.smith@example.org", "R protocol-client|RCPT TO:<john.smith@example.org>", "R protocol-server|250 Ok", "R tx-rcpt|31f211ba|ok|john.smith@example.org",
			"F rcpt-to|john.smith@elsewhere.example", "R protocol-client|RCPT TO:<john.smith@elsewhere.example>", "R protocol-server|550 Invalid recipient: <john.smith@elsewhere.example>", "R tx-rcpt|31f211ba|permfail|john.smith@elsewhere.example",
			"R protocol-client|RCPT TO:<\"x@john.smith\"@elsewhere.example>", "R protocol-server|550 Invalid recipient: <\"x@john.smith\"@elsewhere.example>", "R tx-rcpt|31f211ba|permfail|\"x@john.smith\"@elsewhere.example",
			"R protocol-client|RCPT TO:<\"a\\\"john\"@elsewhere.example>", "R protocol-server|550 <\"a\\\"john\"@elsewhere.example>", "R tx-rcpt|31f211ba|permfail|\"a\\\"john\"@elsewhere.example",
		},
	} {
		if got := unhidden(t, hasher, lines, p); john.MatchString(got) {
			t.Errorf("%q\nis kept as\n%s", lines, got)
		}
	}
	// The proof of a finding about a recipient must be hashed as a whole, in any form.
	for _, addr := range []string{"john", "john.smith", "smith:john@elsewhere.example", "john, smith@elsewhere.example", "elsewhere.example!john", "@elsewhere.example:john",
		"john smith", `john;"smith"@elsewhere.example`, `"john"smith@elsewhere.example`, "<john@elsewhere.example", "john <smith@elsewhere.example>"} {
		lines := []string{"R protocol-client|MAIL FROM:<x@example.net>", "R protocol-server|250 Ok", "R tx-mail|31f211ba|ok|x@example.net"}
		for i := range 12 {
			other := strings.Replace(addr, "john", fmt.Sprintf("john%d", i), 1)
			lines = append(lines, "F rcpt-to|"+other, "R protocol-client|RCPT TO:<"+other+">", "R protocol-server|550 Invalid recipient", "R tx-rcpt|31f211ba|permfail|"+other)
		}
		got := unhidden(t, hasher, lines, p)
		if john.MatchString(got) {
			t.Errorf("%q\nis kept as\n%s", addr, got)
		}
		if !strings.Contains(got, "By:rcpt") {
			t.Errorf("%q: no finding about a recipient", addr)
		}
	}
	// A short word must be hashed if it is a recipient without a domain.
	lines := []string{"R protocol-client|MAIL FROM:<>", "R protocol-server|250 Ok", "R tx-mail|31f211ba|ok|",
		"R protocol-client|RCPT TO:<bo>", "R protocol-server|451 <bo>: try again, about a robot", "R tx-rcpt|31f211ba|tempfail|bo"}
	if got := unhidden(t, hasher, lines, p); strings.Contains(got, "<bo>") || !strings.Contains(got, "about a robot") {
		t.Errorf("%q\nis kept as\n%s", lines, got)
	}
}
