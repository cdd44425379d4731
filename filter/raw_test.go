package filter_test

import (
	"bytes"
	"fmt"
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

// raw plays lines of smtpd in a short form: "R event|..." is a report, and "F phase|..." is a
// request. "USE n" switches to the policy with index n.
func raw(t testing.TB, ps []*rules.Policy, lines ...string) (answers []string, recs []*store.Record, log []string, bytesOf []byte) {
	const id = "00000000000000aa"
	table := simulate.NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			bytesOf = append(bytesOf, value...)
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Error(err)
			}
			recs = append(recs, &r)
		},
		Log:   func(line []byte) { log = append(log, string(line)) },
		Lists: func() *lookup.Lists { return lists },
	})
	if len(ps) > 0 {
		table.Use(&filter.Settings{Policy: ps[0]})
	}
	var out bytes.Buffer
	at := 0
	for _, l := range lines {
		if n := strings.TrimPrefix(l, "USE "); n != l {
			table.Use(&filter.Settings{Policy: ps[int(n[0]-'0')]})
			continue
		}
		at++
		kind, rest := l[:1], l[2:]
		ev, args, _ := strings.Cut(rest, "|")
		s := ""
		if kind == "R" {
			s = fmt.Sprintf("report|0.7|1795219327.%06d|smtp-in|%s|%s", at, ev, id)
			if strings.Contains(rest, "|") {
				s += "|" + args
			}
		} else {
			s = fmt.Sprintf("filter|0.7|1795219327.%06d|smtp-in|%s|%s|00000000000000ff|%s", at, ev, id, args)
		}
		if err := smtpd.Serve(strings.NewReader(s+"\n"), &out, table, smtpd.Options{Log: func(s string) { t.Log("LOG", s) }}); err != nil {
			t.Fatal(err)
		}
	}
	table.Stop()
	for _, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
		answers = append(answers, strings.TrimPrefix(line, "filter-result|"+id+"|00000000000000ff|"))
	}
	return answers, recs, log, bytesOf
}

var conn = []string{"R link-connect|mx.client.example|pass|192.0.2.1:4000|192.0.2.25:25", "R protocol-server|220 mx.example.org ESMTP OpenSMTPD"}

func with(more ...string) []string { return append(append([]string{}, conn...), more...) }

// TestMistypedAuth checks that a mistyped AUTH is recognised as AUTH.
func TestMistypedAuth(t *testing.T) {
	for _, l := range []string{"ATUH PLAIN AHVzZXIAcGFzcw==", "AUHT LOGIN dXNlcg==", "PLAIN AHVzZXIAcGFzcw==", "AUTG\bH PLAIN AHVzZXIAcGFzcw==", "XAUTH PLAIN AHVzZXIAcGFzcw=="} {
		_, _, log, kept := raw(t, nil, with("R protocol-client|EHLO mx.client.example", "R link-identify|EHLO|mx.client.example", "R protocol-server|250 hi", "R protocol-client|"+l, "R protocol-server|500 5.5.1 Invalid command: Command unrecognized", "R link-disconnect")...)
		if bytes.Contains(kept, []byte("AHVzZXIAcGFzcw")) || strings.Contains(strings.Join(log, ""), "AHVzZXIAcGFzcw") {
			t.Errorf("LEAK %q", l)
		}
	}
}

// TestPasswordAfterMistypedAuth checks that the lines after a mistyped AUTH are masked.
func TestPasswordAfterMistypedAuth(t *testing.T) {
	for _, l := range []string{"AUHT LOGIN", "a1 AUTHENTICATE PLAIN", "USER bob", "a1 LOGIN {3}", "XAUTH LOGIN"} {
		_, _, log, kept := raw(t, nil, with("R protocol-client|"+l, "R protocol-server|500 5.5.1 Invalid command: Command unrecognized", "R protocol-client|AHVzZXIAcGFzcw==", "R protocol-server|500 5.5.1 Invalid command: Command unrecognized", "R link-disconnect")...)
		if bytes.Contains(kept, []byte("AHVzZXIAcGFzcw")) || strings.Contains(strings.Join(log, ""), "AHVzZXIAcGFzcw") {
			t.Errorf("LEAK %q", l)
		}
	}
}

// TestFilterThatEchoesAuth checks that a password is masked if another filter repeats it in a
// reply.
func TestFilterThatEchoesAuth(t *testing.T) {
	_, _, _, kept := raw(t, nil, with("R protocol-client|AUTH PLAIN ********", "R filter-response|auth|reject|550 no login with PLAIN AHVzZXIAcGFzcw== here", "R protocol-server|550 no login with PLAIN AHVzZXIAcGFzcw== here", "R link-disconnect")...)
	if bytes.Contains(kept, []byte("AHVzZXIAcGFzcw")) {
		t.Error("LEAK")
	}
}

// TestRefusedPostmaster checks that a pass statement for a recipient that is rejected does not
// exempt the message.
func TestRefusedPostmaster(t *testing.T) {
	p := policy(t, "mode enforce\npass match rcpt-to \"postmaster@\"\nrule x phase data match src 192.0.2.1 reject \"550 5.7.1 no\"\n")
	a, _, _, _ := raw(t, []*rules.Policy{p}, with(
		"R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|RCPT TO:<postmaster@nowhere.example>", "F rcpt-to|postmaster@nowhere.example", "R protocol-server|550 Invalid recipient", "R tx-rcpt|31f211ba|permfail|postmaster@nowhere.example",
		"R protocol-client|RCPT TO:<v@example.org>", "F rcpt-to|v@example.org", "R protocol-server|250 ok", "R tx-rcpt|31f211ba|ok|v@example.org",
		"R protocol-client|DATA", "F data|")...)
	if a[len(a)-1] == "proceed" {
		t.Error("data rule bypassed by a refused postmaster")
	}
}

// TestReloadEndsDecisions checks that a decision no longer applies after its policy has been
// replaced.
func TestReloadEndsDecisions(t *testing.T) {
	p0 := policy(t, "mode enforce\nrule x phase helo match src 192.0.2.1 reject \"550 5.7.1 no\"\n")
	p1 := policy(t, "mode observe\nrule x phase helo match src 192.0.2.1 reject \"550 5.7.1 no\"\n")
	a, _, _, _ := raw(t, []*rules.Policy{p0, p1}, with("R protocol-client|EHLO a.example", "F ehlo|a.example", "R filter-response|ehlo|reject|550 5.7.1 no", "R protocol-server|550 5.7.1 no", "USE 1",
		"R protocol-client|EHLO a.example", "F ehlo|a.example", "R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example")...)
	if a[len(a)-1] != "proceed" || a[len(a)-2] != "proceed" {
		t.Error("mode observe still refuses")
	}
	p2 := policy(t, "mode enforce\n")
	a, _, _, _ = raw(t, []*rules.Policy{p0, p2}, with("R protocol-client|EHLO a.example", "F ehlo|a.example", "R protocol-server|550 5.7.1 no", "USE 1",
		"R protocol-client|EHLO a.example", "F ehlo|a.example")...)
	if a[len(a)-1] != "proceed" {
		t.Error("rule removed, still refuses")
	}
}

// TestReloadEndsTags checks that a tag of a new policy is logged even if the previous policy had
// set a tag.
func TestReloadEndsTags(t *testing.T) {
	p0 := policy(t, "mode enforce\nrule x phase helo match src 192.0.2.1 tag first\n")
	p1 := policy(t, "mode enforce\nrule y phase mail-from match src 192.0.2.1 tag second\n")
	_, _, log, _ := raw(t, []*rules.Policy{p0, p1}, with("R protocol-client|EHLO a.example", "F ehlo|a.example", "USE 1", "F mail-from|a@b.example")...)
	if !strings.Contains(strings.Join(log, "\n"), "second") {
		t.Error("second tag lost after reload")
	}
}

// TestRewrittenGreeting checks that a greeting is not evidence if another filter has rewritten it.
func TestRewrittenGreeting(t *testing.T) {
	p := policy(t, "mode enforce\nrule x phase helo match evidence scanner reject \"550 5.7.1 no\"\n")
	_, _, log, _ := raw(t, []*rules.Policy{p}, with("R protocol-client|EHLO mx.client.example", "F ehlo|mx.client.example", "R filter-response|ehlo|rewrite|other.example", "R link-identify|EHLO|other.example", "R protocol-server|250 ok", "R link-disconnect")...)
	if strings.Contains(strings.Join(log, "\n"), "helo-changed") {
		t.Error("helo-changed by another filter's rewrite")
	}
}

// TestRefusalsOfFilters checks that rejections by other filters are not evidence.
func TestRefusalsOfFilters(t *testing.T) {
	_, _, log, _ := raw(t, nil, with("R protocol-client|EHLO mx.client.example", "R filter-response|ehlo|reject|501 5.7.1 Fix your DNS", "R protocol-server|501 5.7.1 Fix your DNS",
		"R protocol-client|MAIL FROM:<a@b.example>", "R filter-response|mail-from|reject|553 5.7.1 not you", "R protocol-server|553 5.7.1 not you",
		"R protocol-client|AUTH LOGIN", "R filter-response|auth|reject|503 5.5.1 no logins", "R protocol-server|503 5.5.1 no logins",
		"R protocol-client|NOOP", "R filter-response|noop|reject|500 5.5.1 x", "R protocol-server|500 5.5.1 x",
		"R link-disconnect")...)
	for _, e := range []string{"helo-invalid", "syntax-error", "auth-unsupported"} {
		if strings.Contains(strings.Join(log, "\n"), e) {
			t.Error(e, "from a filter's refusal")
		}
	}
}

// TestEvidenceAfterManyFailures checks that commands are evidence even if there are no steps for
// them in the record.
func TestEvidenceAfterManyFailures(t *testing.T) {
	l := with()
	for range 21 {
		l = append(l, "R protocol-client|VRFY x", "R protocol-server|500 5.5.1 Invalid command: Command unrecognized")
	}
	l = append(l, "R protocol-client|AUTH LOGIN", "R protocol-server|503 5.5.1 Invalid command: Command not supported", "R protocol-client|SSH-2.0-Go", "R protocol-server|500 5.5.1 Invalid command: Command unrecognized", "R protocol-client|QUIT", "R protocol-server|221 bye", "R link-disconnect")
	_, _, log, _ := raw(t, nil, l...)
	if len(log) == 0 {
		t.Error("no evidence after 20 failed commands")
	}
}

// TestForeignDomain checks that recipients in a domain for which no mail was accepted count as
// relay probes. The first few may count as missing instead, because the domain may be a new local
// one.
func TestForeignDomain(t *testing.T) {
	p := policy(t, "mode enforce\nrule relay phase rcpt-to match count relay-probe > 3 disconnect \"421 4.7.0 No relaying here\"\n")
	l := with("R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|RCPT TO:<u@one.example>", "F rcpt-to|u@one.example", "R protocol-server|250 ok", "R tx-rcpt|31f211ba|ok|u@one.example")
	for i := range 4 {
		a := fmt.Sprintf("gone%d@two.example", i)
		l = append(l, "R protocol-client|RCPT TO:<"+a+">", "F rcpt-to|"+a, "R protocol-server|550 Invalid recipient: <"+a+">", "R tx-rcpt|31f211ba|permfail|"+a)
	}
	l = append(l, "R protocol-client|RCPT TO:<good@two.example>", "F rcpt-to|good@two.example")
	a, _, _, _ := raw(t, []*rules.Policy{p}, l...)
	if n := len(a); !strings.HasPrefix(a[n-1], "disconnect|421 4.7.0 No relaying here") || a[n-2] != "proceed" {
		t.Errorf("%q", a)
	}
}

// TestProvenGreeting checks that a proven greeting is not reported as forged.
func TestProvenGreeting(t *testing.T) {
	p := policy(t, "mode enforce\nrule f phase rcpt-to match evidence helo-forged reject \"550 5.7.1 no\"\n")
	a, _, _, _ := raw(t, []*rules.Policy{p}, "R link-connect|mail.customer.example|pass|198.51.100.9:4000|192.0.2.25:25", "R protocol-server|220 mx.example.org ESMTP",
		"R protocol-client|EHLO mail.customer.example", "F ehlo|mail.customer.example", "R link-identify|EHLO|mail.customer.example", "R protocol-server|250 ok",
		"R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|RCPT TO:<root@mail.customer.example>", "F rcpt-to|root@mail.customer.example", "R protocol-server|250 ok", "R tx-rcpt|31f211ba|ok|root@mail.customer.example",
		"R protocol-client|RSET", "R protocol-server|250 ok", "R tx-rollback|31f211ba",
		"R protocol-client|EHLO mail.customer.example", "F ehlo|mail.customer.example", "R link-identify|EHLO|mail.customer.example", "R protocol-server|250 ok",
		"R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|RCPT TO:<u@example.org>", "F rcpt-to|u@example.org")
	if a[len(a)-1] != "proceed" {
		t.Error("a greeting that FCrDNS proves is reported as forged")
	}
}

// TestOwnNameProven checks that a local host behind address translation may greet with this
// server's name.
func TestOwnNameProven(t *testing.T) {
	p := policy(t, "mode enforce\nrule f phase rcpt-to match evidence { helo-own-name, helo-own-address } reject \"550 5.7.1 no\"\n")
	a, _, _, _ := raw(t, []*rules.Policy{p}, "R link-connect|mx.example.org|pass|198.51.100.9:4000|10.0.0.5:25", "R protocol-server|220 mx.example.org ESMTP",
		"R protocol-client|EHLO mx.example.org", "F ehlo|mx.example.org", "R link-identify|EHLO|mx.example.org", "R protocol-server|250 ok",
		"R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|RCPT TO:<u@example.org>", "F rcpt-to|u@example.org")
	if a[len(a)-1] != "proceed" {
		t.Error("local host behind NAT (rdns = own name, fcrdns pass) is evidence")
	}
}

// TestCancelledAuth checks that an AUTH that the client has cancelled is not evidence of an
// unsupported login.
func TestCancelledAuth(t *testing.T) {
	p := policy(t, "mode enforce\nrule f phase mail-from match count auth-unsupported > 1 reject \"550 5.7.1 no\"\n")
	l := with()
	for range 2 {
		l = append(l, "R protocol-client|AUTH PLAIN", "R protocol-server|334 ", "R protocol-client|********", "R protocol-server|501 5.5.2 Syntax error")
	}
	l = append(l, "R protocol-client|MAIL FROM:<a@b.example>", "F mail-from|a@b.example")
	a, _, _, _ := raw(t, []*rules.Policy{p}, l...)
	if a[len(a)-1] != "proceed" {
		t.Error("cancelled AUTH counted as auth-unsupported")
	}
}

// TestAuthUser checks rules about a certain user who has logged in.
func TestAuthUser(t *testing.T) {
	p := policy(t, "mode enforce\nrule u phase mail-from match auth \"bob\" reject \"550 5.7.1 no\"\n")
	a, _, _, _ := raw(t, []*rules.Policy{p}, with("R protocol-client|AUTH PLAIN ********", "R link-auth|pass|bob", "R protocol-server|235 ok", "R protocol-client|MAIL FROM:<a@b>", "F mail-from|a@b.example")...)
	if a[len(a)-1] == "proceed" {
		t.Error("match auth \"bob\" never matches")
	}
}

// TestHTTPForm checks that an HTML form that is sent to the wrong port is masked, because it may
// contain a password.
func TestHTTPForm(t *testing.T) {
	_, _, log, kept := raw(t, nil, with("R protocol-client|POST /login HTTP/1.1", "R protocol-server|500 5.5.1 x", "R protocol-client|username=admin&password=hunter2", "R protocol-server|500 5.5.1 x", "R protocol-client|PASSWORD hunter2", "R protocol-server|500 5.5.1 x", "R link-disconnect")...)
	if bytes.Contains(kept, []byte("hunter2")) || strings.Contains(strings.Join(log, ""), "hunter2") {
		t.Error("LEAK")
	}
}

// TestAuthAnywhere checks AUTH in a transaction, after STARTTLS, in unusual spellings, and in
// replies.
func TestAuthAnywhere(t *testing.T) {
	// AUTH in a transaction, RCPT, a second AUTH, STARTTLS, and AUTH LOGIN with an
	// initial response.
	_, _, log, kept := raw(t, nil, with("R protocol-client|MAIL FROM:<a@b.example>", "R protocol-server|250 ok", "R tx-mail|31f211ba|ok|a@b.example",
		"R protocol-client|AUTH LOGIN c2VjcmV0", "R protocol-server|503 5.5.1 Invalid command: Already in \"AUTH LOGIN c2VjcmV0\"", "R protocol-client|c2VjcmV0", "R protocol-server|500 5.5.1 Invalid command: Command unrecognized",
		"R protocol-client|RCPT TO:<x@y.example>", "R protocol-server|250 ok", "R tx-rcpt|31f211ba|ok|x@y.example",
		"R protocol-client|STARTTLS", "R protocol-server|220 go", "R link-tls|TLSv1.3:x:256", "R protocol-client|auth\tlogin\tc2VjcmV0", "R protocol-server|334 ", "R protocol-client|c2VjcmV0", "R protocol-server|334 UGFz", "R protocol-client|c2VjcmV0", "R protocol-server|235 ok",
		"R protocol-client|\x00\xffAUTH PLAIN c2VjcmV0", "R protocol-server|500 x", "R protocol-client|NOOP c2VjcmV0", "R protocol-server|500 5.5.2 x", "R protocol-client|VRFY c2VjcmV0", "R protocol-server|500 5.5.2 x", "R protocol-client|c2VjcmV0 c2VjcmV0", "R protocol-server|500 5.5.2 x", "R link-disconnect")...)
	if bytes.Contains(kept, []byte("c2VjcmV0")) || strings.Contains(strings.Join(log, ""), "c2VjcmV0") {
		t.Error("LEAK")
	}
}

// TestDisconnectedByFilter checks that the ending of a session is "rejected" if another filter has
// disconnected the client.
func TestDisconnectedByFilter(t *testing.T) {
	_, recs, _, _ := raw(t, nil, with("R protocol-client|MAIL FROM:<a@b.example>", "R filter-response|mail-from|disconnect|550 5.7.1 bye", "R protocol-server|550 5.7.1 bye", "R link-disconnect")...)
	if recs[0].Ending != smtp.EndingRejected {
		t.Error(recs[0].Ending)
	}
}
