package serverlog

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// A recorder writes each event as a line.
type recorder struct {
	b     strings.Builder
	ids   map[uint64]int
	open  map[uint64]bool
	kinds [smtp.NumKinds]int
}

func (r *recorder) Site(name string) { fmt.Fprintf(&r.b, "site %s\n", name) }

var kindNames = [smtp.NumKinds]string{
	smtp.EventConnect: "connect", smtp.EventLine: "line", smtp.EventReply: "reply", smtp.EventHelo: "helo", smtp.EventTLS: "tls", smtp.EventAuth: "auth",
	smtp.EventMail: "mail", smtp.EventRcpt: "rcpt", smtp.EventData: "data", smtp.EventCommit: "commit", smtp.EventRollback: "rollback", smtp.EventCommand: "command",
	smtp.EventInput: "input", smtp.EventFilter: "filter", smtp.EventTimeout: "timeout", smtp.EventQuit: "quit", smtp.EventDisconnect: "disconnect",
}

var causeNames = map[smtp.Cause]string{
	smtp.CauseFilter: "filter", smtp.CauseSyntax: "syntax", smtp.CauseOrder: "order", smtp.CauseUnsupported: "unsupported", smtp.CauseUnknown: "unknown",
	smtp.CausePipelining: "pipelining", smtp.CauseRecipient: "recipient", smtp.CauseRelay: "relay", smtp.CauseUser: "user",
}

func (r *recorder) Event(e *smtp.Event) {
	r.kinds[e.Kind]++
	if e.Kind == smtp.EventConnect {
		r.ids[e.Session] = len(r.ids) + 1
		r.open[e.Session] = true
		fmt.Fprintf(&r.b, "== %s src=%s", time.UnixMicro(e.Time).UTC().Format("2006-01-02 15:04:05.000"), e.Src)
		if e.Dst.IsValid() {
			fmt.Fprintf(&r.b, " dst=%s", e.Dst)
		}
		fmt.Fprintf(&r.b, " rdns=%s fcrdns=%s\n", text.Escape(e.RDNS), e.FCrDNS)
		return
	}
	if !r.open[e.Session] {
		panic("event of a session that is not open")
	}
	if e.Kind == smtp.EventLine || e.Kind == smtp.EventReply {
		return
	}
	fmt.Fprintf(&r.b, "   %s", kindNames[e.Kind])
	for _, f := range [...][]byte{e.Name, e.Word, e.Addr, e.Text} {
		if len(f) > 0 {
			fmt.Fprintf(&r.b, " %s", text.Quote(f))
		}
	}
	if e.Kind == smtp.EventMail || e.Kind == smtp.EventRcpt {
		fmt.Fprintf(&r.b, " <%s>", text.Escape(e.Addr))
	}
	if e.Result != smtp.ResultNone {
		fmt.Fprintf(&r.b, " %s", e.Result)
	}
	if e.Code != 0 {
		fmt.Fprintf(&r.b, " %d", e.Code)
	}
	if c := causeNames[e.Cause]; c != "" {
		fmt.Fprintf(&r.b, " cause=%s", c)
	}
	if len(e.Reply) > 0 {
		fmt.Fprintf(&r.b, " %s", text.Quote(e.Reply))
	}
	if e.Size > 0 {
		fmt.Fprintf(&r.b, " size=%d", e.Size)
	}
	if e.Kind == smtp.EventDisconnect {
		fmt.Fprintf(&r.b, " %s", e.Ending)
		delete(r.open, e.Session)
	}
	r.b.WriteByte('\n')
}

func newRecorder() *recorder { return &recorder{ids: map[uint64]int{}, open: map[uint64]bool{}} }

var newest = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

// read reads a log, and returns the reader and the recorded events.
func read(kind *Kind, log []byte) (*Reader, *recorder) {
	rec := newRecorder()
	r := New(kind, rec, Options{Zone: time.UTC, Date: newest})
	stamps := maillog.NewSyslog(time.UTC, newest)
	for line := range bytes.Lines(log) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		l, ok := maillog.Line{Raw: line}, false
		if kind.Syslog {
			l, ok = stamps.Parse(line)
		}
		r.Line(&l, ok)
	}
	r.Flush()
	return r, rec
}

func sample(t testing.TB, kind *Kind) []byte {
	t.Helper()
	log, err := os.ReadFile("testdata/" + kind.Name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// TestSamples checks the events for a log of each kind. The events must not contain secrets.
func TestSamples(t *testing.T) {
	for _, kind := range Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			r, rec := read(kind, sample(t, kind))
			c := r.Counts()
			got := fmt.Sprintf("%slines %d used %d unknown %d sessions %d\n%s", rec.b.String(), c.Lines, c.Used, c.Unknown, c.Sessions, strings.Join(c.Samples, "\n"))
			name := "testdata/" + kind.Name + ".golden"
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s:\n%s", name, got)
			}
			for _, secret := range []string{"secret-123", "c2VjcmV0", "AG9mZmlj", "dXNlcm5hbWU"} {
				if strings.Contains(got, secret) {
					t.Errorf("%s is in the events", secret)
				}
			}
			if len(rec.open) > 0 {
				t.Errorf("%d sessions are open", len(rec.open))
			}
			if rec.kinds[smtp.EventGreeting] > 0 {
				t.Error("a greeting makes the pace of commands evidence, which a log does not show")
			}
		})
	}
}

// TestIdentifiers checks that sessions get the same ids when a log is read again.
func TestIdentifiers(t *testing.T) {
	for _, kind := range Kinds {
		_, a := read(kind, sample(t, kind))
		_, b := read(kind, sample(t, kind))
		if len(a.ids) == 0 {
			t.Errorf("%s: no sessions", kind.Name)
		}
		for id := range a.ids {
			if b.ids[id] != a.ids[id] {
				t.Errorf("%s: session %x differs", kind.Name, id)
			}
		}
	}
}

// TestBounds checks that the sizes of sessions and of the table are limited.
func TestBounds(t *testing.T) {
	var log bytes.Buffer
	for i := range maxOpen + 10 {
		fmt.Fprintf(&log, "Nov 29 07:40:00 mx postfix/smtpd[%d]: connect from unknown[203.0.113.1]\n", i+1)
	}
	r, rec := read(ByName("postfix"), log.Bytes())
	if c := r.Counts(); c.Lost != 10 || c.Sessions != maxOpen+10 || len(rec.ids) != maxOpen+10 {
		t.Errorf("%+v", c)
	}
	log.Reset()
	log.WriteString("Nov 29 07:40:00 mx postfix/smtpd[1]: connect from unknown[203.0.113.1]\n")
	for i := range 10_000 {
		fmt.Fprintf(&log, "Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <x%d@example.org>: Recipient address rejected: User unknown; from=<a@b.example> to=<x%d@example.org> proto=ESMTP helo=<x>\n", i, i)
	}
	_, rec = read(ByName("postfix"), log.Bytes())
	if n := rec.kinds[smtp.EventRcpt]; n < maxAlike/2 || n > maxAlike {
		t.Errorf("%d recipients", n)
	}
}

// TestInjection checks that a client cannot accuse another client with text that it chooses.
func TestInjection(t *testing.T) {
	for _, line := range []string{
		`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <"[192.0.2.9]; from=<v@w.example> to=<"@example.org>: Recipient address rejected: User unknown; from=<a@b.example> to=<"[192.0.2.9]; from=<v@w.example> to=<"@example.org> proto=ESMTP helo=<x>`,
		`Nov 29 07:40:00 mx postfix/smtpd[1]: warning: unknown[203.0.113.1]: SASL LOGIN authentication failed: x, sasl_username=a from unknown[192.0.2.9]`,
		`Nov 29 07:40:00 mx postfix/smtpd[1]: warning: non-SMTP command from unknown[203.0.113.1]: connect from unknown[192.0.2.9]`,
		`Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: AUTH failure (LOGIN): x, user=a, relay=[192.0.2.9], relay=[203.0.113.1]`,
		`2026-11-29 07:50:03 H=([192.0.2.9]) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <gone@example.org>: Unrouteable address`,
		`2026-11-29 07:50:03 SMTP syntax error in "MAIL FROM:<a> x" H=(x) [203.0.113.1]:40002 malformed address: x" H=(x) [192.0.2.9]:1 may not follow <a>`,
		`Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: ruleset=check_rcpt, arg1=<", relay=[192.0.2.9], reject=550 x"@y.example>, relay=[203.0.113.1], reject=550 5.7.1 <", relay=[192.0.2.9], reject=550 x"@y.example>... Relaying denied`,
		`Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: <"x [192.0.2.9] did not issue MAIL/EXPN/VRFY/ETRN"@y.example>... User unknown`,
		`2026-11-29 07:50:03 SMTP syntax error in "FOO H=[192.0.2.9]:1 x" H=(x) [203.0.113.1]:40002 unrecognized command`,
		`2026-11-29 07:50:03 login authenticator failed for (x) [203.0.113.1]:4: 535 Incorrect authentication data (set_id=a H=[192.0.2.9]:1)`,
		`2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<" H=[192.0.2.9]:1 "@b.example> rejected RCPT <" from [192.0.2.9]:2"@example.org>: Unrouteable address`,
		`2026-11-29 07:50:04 1vPAAA-000000001-0001 <= " H=[192.0.2.9]:1 "@shop.example H=(x) [203.0.113.1]:40002 P=esmtp S=1204`,
		`2026-11-29 07:50:04 1vPAAA-000000001-0001 <= a\"."b H=[192.0.2.9]:1 c"@shop.example H=(x) [203.0.113.1]:40002 P=esmtp S=1204`,
	} {
		for _, kind := range Kinds {
			_, rec := read(kind, []byte(line+"\n"))
			if strings.Contains(rec.b.String(), "src=192.0.2.9") {
				t.Errorf("%s: %s: the client chose the address:\n%s", kind.Name, line, rec.b.String())
			}
		}
	}
}

// TestChosenText checks sessions in which the client has chosen text that looks like a part of a
// log line.
func TestChosenText(t *testing.T) {
	for _, c := range []struct {
		name, kind, log string
		want, never     string
	}{
		{"a local message with a client's fields", "exim",
			`2026-11-29 07:50:04 1vPAAA-000000001-0001 <= a@b.example U=list P=local S=300 id="a H=mail.big.example (mail.big.example) [203.0.113.66] "@b.example`, "", "203.0.113.66"},
		{"a rejection in the sender", "exim",
			`2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<"a> rejected RCPT <x@example.org>: relay not permitted"@x.example> temporarily rejected RCPT <v@example.org>: greylisted`,
			`rcpt "v@example.org" <v@example.org> tempfail 451`, "cause=relay"},
		{"a rejection in the recipient", "exim",
			`2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <"x>: relay not permitted"@example.org>: Unrouteable address`,
			"cause=recipient", "cause=relay"},
		{"a client in the command", "exim",
			`2026-11-29 07:50:03 SMTP syntax error in "GET /" H= HTTP/1.1" H=(x) [203.0.113.1]:40002 unrecognized command`,
			"cause=unknown", ""},
		{"a denial in the recipient", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <"Relay access denied"@example.org>: Recipient address rejected: User unknown in local recipient table; from=<a@b.example> to=<"Relay access denied"@example.org> proto=ESMTP helo=<x>`,
			"cause=user", "cause=relay"},
		{"a denial after the end of the recipient", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <"a>: Relay access denied; x"@example.org>: Recipient address rejected: User unknown in local recipient table; from=<a@b.example> to=<"a>: Relay access denied; x"@example.org> proto=ESMTP helo=<x>`,
			"cause=user", "cause=relay"},
		{"a denial in a recipient without quotes", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <a>: Relay access denied; "x@example.org>: Recipient address rejected: User unknown in local recipient table; from=<a@b.example> to=<"a>: Relay access denied; \"x"@example.org> proto=ESMTP helo=<x>`,
			"cause=user", "cause=relay"},
		{"another server's reply about the sender", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 450 4.1.7 <s@b.example>: Sender address rejected: unverified address: host mx.b.example[198.51.100.77] said: 554 5.7.1 <s@b.example>: Relay access denied (in reply to RCPT TO command); from=<s@b.example> to=<real@example.org> proto=ESMTP helo=<x>`,
			"cause=filter", "cause=relay"},
		{"another server's reply about the recipient", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <gone@example.org>: Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 550 5.1.1 <gone@example.org>: no such user (in reply to RCPT TO command); from=<a@b.example> to=<gone@example.org> proto=ESMTP helo=<x>`,
			"cause=user", "cause=filter"},
		{"another server's reply about its client", "postfix",
			`Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <gone@example.org>: Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 554 5.7.1 Service unavailable; client blocked (in reply to RCPT TO command); from=<a@b.example> to=<gone@example.org> proto=ESMTP helo=<x>`,
			"cause=filter", "cause=user"},
		{"fields in a quoted recipient", "sendmail",
			`Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: ruleset=check_rcpt, arg1=<"a, relay=[192.0.2.9], reject=550 \">, relay="@far.example>, relay=[203.0.113.1], reject=550 5.7.1 <"a, relay=[192.0.2.9], reject=550 \">, relay="@far.example>... Relaying denied` + "\n" +
				`Nov 29 07:40:02 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[203.0.113.1]`,
			"cause=relay", "src=192.0.2.9"},
		{"fields after a quoted recipient", "sendmail",
			`Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: ruleset=check_rcpt, arg1=<"a"@far.example>, relay=[192.0.2.9], reject=550 5.7.1 x>, relay=[203.0.113.1], reject=550 5.7.1 <"a"@far.example>, relay=[192.0.2.9], reject=550 5.7.1 x>... Relaying denied`,
			"", "src=192.0.2.9"},
		{"a user in front of the client", "sendmail",
			"Nov 29 07:40:00 mx sm-mta[1]: NOQUEUE: connect from root@[203.0.113.1]\nNov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: root@[203.0.113.1] did not issue MAIL/EXPN/VRFY/ETRN during connection to MTA",
			"src=203.0.113.1:0 rdns= fcrdns=unknown", ""},
		{"a client's name with other characters", "sendmail",
			"Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: <g@example.org>... User unknown\nNov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=a/b~!#.example [203.0.113.1]\n" +
				"Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: a/b~!#.example [203.0.113.1] did not issue MAIL/EXPN/VRFY/ETRN during connection to MTA",
			"cause=user", ""},
		{"a user of another system", "sendmail",
			"Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: <g@example.org>... User unknown\nNov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=IDENT:x@mail.b.example [203.0.113.1] (may be forged)",
			"cause=user", ""},
		{"a user in front of the client's name", "sendmail",
			"Nov 29 07:40:00 mx sm-mta[1]: NOQUEUE: connect from a@b@mail.b.example [203.0.113.1]", "rdns=mail.b.example fcrdns=pass", ""},
		{"a login on the line of the greeting", "icewarp",
			"203.0.113.48   [0968] 10:14:01 Connected, local IP=192.0.2.25:25\n203.0.113.48   [0968] 10:14:02 <<< EHLO x AUTH PLAIN AHVzZXIAU0VDUkVUMQ==\n203.0.113.48   [0968] 10:14:02 >>> 250 hi",
			`helo "x"`, "AHVz"},
		{"a reply that repeats a secret", "icewarp",
			"203.0.113.48   [0968] 10:14:01 Connected, local IP=192.0.2.25:25\n203.0.113.48   [0968] 10:14:02 <<< AUTH LOGIN\n203.0.113.48   [0968] 10:14:02 >>> 504 5.5.4 no\n" +
				"203.0.113.48   [0968] 10:14:02 <<< hunter2hunter2\n203.0.113.48   [0968] 10:14:02 >>> 500 5.5.1 Command unrecognized: \"hunter2hunter2\"", "5.5.1", "hunter2"},
		{"a login before the greeting", "postfix",
			`Nov 29 07:50:08 mx postfix/smtpd[9]: connect from unknown[203.0.113.1]` + "\n" +
				`Nov 29 07:50:08 mx postfix/smtpd[9]: improper command pipelining after CONNECT from unknown[203.0.113.1]: EHLO x\r\nAUTH LOGIN\r\nb2Zm\r\naHVu\r\n`, "EHLO x", "aHVu"},
		{"a login after HELO", "postfix",
			`Nov 29 07:50:08 mx postfix/smtpd[9]: connect from unknown[203.0.113.1]` + "\n" +
				`Nov 29 07:50:08 mx postfix/smtpd[9]: improper command pipelining after HELO from unknown[203.0.113.1]: hunter2\r\n`, "after HELO", "hunter2"},
		{"a line of a login that is not SMTP", "postfix",
			`Nov 29 07:50:08 mx postfix/smtpd[9]: connect from unknown[203.0.113.1]` + "\n" +
				`Nov 29 07:50:08 mx postfix/smtpd[9]: warning: non-SMTP command from unknown[203.0.113.1]: aHVudGVyMg==`, "cause=unknown", "aHVu"},
		{"a line of TLS", "postfix",
			`Nov 29 07:50:08 mx postfix/smtpd[9]: connect from unknown[203.0.113.1]` + "\n" +
				`Nov 29 07:50:08 mx postfix/smtpd[9]: warning: non-SMTP command from unknown[203.0.113.1]: \026\003\001\002`, `026`, ""},
		{"a binary line", "postfix",
			`Nov 29 07:50:08 mx postfix/smtpd[9]: connect from unknown[203.0.113.1]` + "\n" +
				`Nov 29 07:50:08 mx postfix/smtpd[9]: warning: non-SMTP command from unknown[203.0.113.1]: ???/*?`, `"???/*?"`, ""},
		{"a login before the greeting", "postfix",
			`Nov 29 07:50:08 mx postfix/postscreen[9]: CONNECT from [203.0.113.1]:4000 to [192.0.2.25]:25` + "\n" +
				`Nov 29 07:50:08 mx postfix/postscreen[9]: PREGREET 60 after 0.1 from [203.0.113.1]:4000: EHLO x\r\nAUTH LOGIN\r\nb2Zm\r\naHVu\r\n`, "EHLO x", "aHVu"},
		{"a login before the greeting", "exim",
			`2026-11-29 07:50:08 SMTP protocol synchronization error (input sent without waiting for greeting): rejected connection from H=[203.0.113.1]:4000 input="EHLO x\r\nAUTH LOGIN\r\nb2Zm\r\naHVu\r\n"`,
			"EHLO x", "aHVu"},
		{"a log that starts in a login", "icewarp",
			"203.0.113.48   [0968] 10:14:01 >>> 334 UGFzc3dvcmQ6\n203.0.113.48   [0968] 10:14:02 <<< aHVudGVyMg==\n203.0.113.48   [0968] 10:14:02 >>> 535 5.7.8 no", "src=203.0.113.48", "aHVu"},
		{"a log that starts with a password", "icewarp",
			"203.0.113.48   [0968] 10:14:02 <<< hunter2\n203.0.113.48   [0968] 10:14:02 >>> 535 5.7.8 no: hunter2", "src=203.0.113.48", "hunter2"},
		{"a reply that repeats a secret", "kumomta",
			`{"type":"Rejection","sender":"","response":{"code":500,"content":"5.5.1 unknown: hunter2-x","command":"hunter2-x"},"peer_address":{"name":"x","addr":"203.0.113.1"},"timestamp":1795600100,"session_id":"b"}`,
			"cause=unknown", "hunter2"},
		{"a message-id with a connection", "domino",
			"11/28/2026 01:37:36 AM  SMTP Server: Message 00AB (MessageID: <Connection from [198.51.100.9] rejected x>) received from 203.0.113.1", "", "198.51.100.9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, rec := read(ByName(c.kind), []byte(c.log+"\n"))
			if got := rec.b.String(); !strings.Contains(got, c.want) || c.never != "" && strings.Contains(got, c.never) {
				t.Errorf("want %q, never %q:\n%s", c.want, c.never, got)
			}
		})
	}
}

// TestOtherClient checks that one client is not accused of another client's behaviour when a
// process id or queue identifier is reused.
func TestOtherClient(t *testing.T) {
	var sendmail strings.Builder
	sendmail.WriteString("Nov 29 10:00:00 mx sm-mta[777]: AAA000001: from=<a@good.example>, size=18, class=0, nrcpts=1, msgid=<1@good.example>, proto=ESMTP, daemon=MTA, relay=mail.good.example [198.51.100.50]\n")
	for i := range 6 {
		fmt.Fprintf(&sendmail, "Nov 29 10:00:20 mx sm-mta[777]: AAA000002: <guess%d@example.org>... User unknown\n", i)
	}
	sendmail.WriteString("Nov 29 10:00:21 mx sm-mta[777]: AAA000002: AUTH failure (LOGIN): authentication failure, user=a, relay=[203.0.113.66]\n" +
		"Nov 29 10:00:22 mx sm-mta[777]: AAA000002: from=<x@evil.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[203.0.113.66]\n")
	postfix := `Nov 29 10:00:00 mx1 postfix/smtpd[5]: connect from good.example[198.51.100.50]
Nov 29 10:00:00 mx2 postfix/smtpd[5]: connect from unknown[203.0.113.66]
Nov 29 10:00:01 mx1 postfix/smtpd[5]: 4C8B31A2: client=good.example[198.51.100.50]
Nov 29 10:00:01 mx2 postfix/smtpd[5]: 4C8B31A2: client=unknown[203.0.113.66]
Nov 29 10:00:02 mx2 postfix/qmgr[7]: 4C8B31A2: from=<evil@x.example>, size=254, nrcpt=1 (queue active)
Nov 29 10:00:02 mx2 postfix/local[7]: 4C8B31A2: to=<v@example.org>, relay=local, delay=1, status=sent
`
	for kind, log := range map[string]string{"sendmail": sendmail.String(), "postfix": postfix} {
		_, rec := read(ByName(kind), []byte(log))
		_, good, _ := strings.Cut(rec.b.String(), "src=198.51.100.50:0")
		good, _, _ = strings.Cut(good, "== ")
		if good == "" || strings.Contains(good, "guess") || strings.Contains(good, "auth") || strings.Contains(good, "evil") {
			t.Errorf("%s:\n%s", kind, rec.b.String())
		}
		if kind == "sendmail" && strings.Count(rec.b.String(), "cause=user") != 6 {
			t.Errorf("%s: rejected recipients are lost:\n%s", kind, rec.b.String())
		}
	}
}

// TestWrongTime checks the effects of a line with a wrong time, and of a clock that was set back. The sessions of the
// following lines must not be split.
func TestWrongTime(t *testing.T) {
	harvest := func(b *strings.Builder, zone string) {
		for i := range 6 {
			fmt.Fprintf(b, "%s:%02d H=(x) [203.0.113.1] F=<a@b.example> rejected RCPT <x%d@example.org>: Unrouteable address\n", zone, i*9, i)
		}
	}
	for name, first := range map[string]string{
		"two hours ahead":       "2026-11-29 12:00:00 H=(y) [198.51.100.7] F=<a@b.example> rejected RCPT <x@example.org>: Unrouteable address\n",
		"a year ahead":          "2027-11-29 12:00:00 H=(y) [198.51.100.7] F=<a@b.example> rejected RCPT <x@example.org>: Unrouteable address\n",
		"the end of summertime": "2026-11-29 10:59:59 H=(y) [198.51.100.7] F=<a@b.example> rejected RCPT <x@example.org>: Unrouteable address\n",
		"the day after":         "2026-11-30 10:59:59 H=(y) [198.51.100.7] F=<a@b.example> rejected RCPT <x@example.org>: Unrouteable address\n",
	} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			log.WriteString(first)
			harvest(&log, "2026-11-29 10:00")
			r, rec := read(ByName("exim"), []byte(log.String()))
			if got := r.Counts().Sessions; got != 2 {
				t.Errorf("%d sessions, want 2:\n%s", got, rec.b.String())
			}
		})
	}
}

// TestEqualRecords checks that equal records of KumoMTA are counted separately. Records may be
// equal because their times are in whole seconds.
func TestEqualRecords(t *testing.T) {
	log := strings.Repeat(`{"type":"Rejection","sender":"","response":{"code":535,"content":"5.7.8 auth failed","command":"AUTH LOGIN"},"peer_address":{"name":"x","addr":"203.0.113.1"},"timestamp":1795600100,"session_id":"b"}`+"\n", 30)
	if _, rec := read(ByName("kumomta"), []byte(log)); rec.kinds[smtp.EventAuth] != 30 {
		t.Errorf("%d failed logins:\n%s", rec.kinds[smtp.EventAuth], rec.b.String())
	}
}

// TestLateReplies checks that a session is partial if several commands precede their replies in the
// transcript.
func TestLateReplies(t *testing.T) {
	_, rec := read(ByName("icewarp"), []byte(`203.0.113.48   [0968] 10:14:01 Connected, local IP=192.0.2.25:25
203.0.113.48   [0968] 10:14:02 <<< EHLO x.example
203.0.113.48   [0968] 10:14:02 <<< MAIL FROM:<a@b.example>
203.0.113.48   [0968] 10:14:02 >>> 250 hi
203.0.113.48   [0968] 10:14:02 >>> 250 ok
203.0.113.48   [0968] 10:14:24 Disconnected
`))
	if got := rec.b.String(); !strings.Contains(got, "disconnect partial") {
		t.Error(got)
	}
}

// TestSize checks that the total size of long sessions that are still open is limited.
func TestSize(t *testing.T) {
	var log strings.Builder
	name := strings.Repeat("x", 60)
	const limit, size = 1 << 20, 64 << 10 // limit for all sessions, and size of one session
	for i := range limit / (size / 2) {
		for j := range 2 * size / len(name) {
			fmt.Fprintf(&log, "2026-11-29 10:00:00 H=(x) [10.%d.%d.1] F=<a@b.example> rejected RCPT <%s%d@example.org>: Unrouteable address\n", i>>8, i&255, name, j)
		}
	}
	r := New(ByName("exim"), newRecorder(), Options{Zone: time.UTC, Date: newest})
	r.table.maxHeld = limit
	for line := range strings.Lines(log.String()) {
		r.Line(&maillog.Line{Raw: []byte(strings.TrimSuffix(line, "\n"))}, false)
		if r.table.held > limit+2*size {
			t.Fatalf("%d bytes", r.table.held)
		}
	}
	if r.Counts().Lost == 0 {
		t.Error("no session was played early")
	}
	if r.Flush(); r.table.held != 0 {
		t.Errorf("%d bytes after the end", r.table.held)
	}
}

// TestKinds checks that the description of each kind is complete.
func TestKinds(t *testing.T) {
	for i, k := range Kinds {
		if k.Name == "" || k.Short == "" || len(k.Unknown) == 0 || k.make == nil || k.idle == 0 {
			t.Errorf("kind %d: %+v", i, k)
		}
		if ByName(k.Name) != k {
			t.Errorf("ByName(%q)", k.Name)
		}
	}
	if ByName("qmail") != nil {
		t.Error("an unknown kind was found")
	}
}

// FuzzLines checks that no line causes a panic, and that the end of every session is reported.
func FuzzLines(f *testing.F) {
	for i, kind := range Kinds {
		for line := range bytes.Lines(sample(f, kind)) {
			f.Add(uint8(i), line)
		}
		f.Add(uint8(i), sample(f, kind))
	}
	f.Fuzz(func(t *testing.T, i uint8, log []byte) {
		kind := Kinds[int(i)%len(Kinds)]
		r, rec := read(kind, log)
		if len(rec.open) > 0 {
			t.Errorf("%d sessions are open", len(rec.open))
		}
		if c := r.Counts(); c.Lines < c.Used+c.Unknown || len(r.table.rows) > 0 {
			t.Errorf("%+v, %d rows", c, len(r.table.rows))
		}
	})
}

type discard struct{}

func (discard) Site(string)       {}
func (discard) Event(*smtp.Event) {}

// BenchmarkLines measures how fast each kind of log is read.
func BenchmarkLines(b *testing.B) {
	for _, kind := range Kinds {
		b.Run(kind.Name, func(b *testing.B) {
			lines := slices.Collect(bytes.Lines(sample(b, kind)))
			for i := range lines {
				lines[i] = bytes.TrimSuffix(lines[i], []byte("\n"))
			}
			r := New(kind, discard{}, Options{Zone: time.UTC, Date: newest})
			stamps := maillog.NewSyslog(time.UTC, newest)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for _, raw := range lines {
					l, ok := maillog.Line{Raw: raw}, false
					if kind.Syslog {
						l, ok = stamps.Parse(raw)
					}
					r.Line(&l, ok)
				}
				n += len(lines)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}

// TestSameSecond checks that sessions with the same client, process and second have different ids.
// The ids must differ even if another session that started before them ends between them.
func TestSameSecond(t *testing.T) {
	log := `Nov 29 07:42:59 mx postfix/smtpd[303]: connect from unknown[203.0.113.23]
Nov 29 07:43:00 mx postfix/smtpd[302]: connect from news.example.net[203.0.113.22]
Nov 29 07:43:00 mx postfix/smtpd[302]: disconnect from news.example.net[203.0.113.22] ehlo=1 quit=1 commands=2
Nov 29 07:43:00 mx postfix/smtpd[303]: disconnect from unknown[203.0.113.23] ehlo=1 quit=1 commands=2
Nov 29 07:43:00 mx postfix/smtpd[302]: connect from news.example.net[203.0.113.22]
Nov 29 07:43:00 mx postfix/smtpd[302]: disconnect from news.example.net[203.0.113.22] ehlo=1 quit=1 commands=2
`
	if _, rec := read(ByName("postfix"), []byte(log)); len(rec.ids) != 3 {
		t.Errorf("%d identifiers of 3 sessions:\n%s", len(rec.ids), rec.b.String())
	}
}

// TestLateMessage checks that lines about a message have no effect after its session has been
// reported.
func TestLateMessage(t *testing.T) {
	log := `Nov 29 07:43:00 mx postfix/smtpd[302]: connect from news.example.net[203.0.113.22]
Nov 29 07:43:01 mx postfix/smtpd[302]: AA11BB22CC33: client=news.example.net[203.0.113.22]
Nov 29 07:43:02 mx postfix/smtpd[302]: disconnect from news.example.net[203.0.113.22] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5
Nov 29 09:43:02 mx postfix/smtpd[303]: connect from unknown[203.0.113.23]
Nov 29 09:43:02 mx postfix/qmgr[1]: AA11BB22CC33: from=<news@example.net>, size=900, nrcpt=1 (queue active)
Nov 29 09:43:02 mx postfix/qmgr[1]: AA11BB22CC33: removed
Nov 29 09:43:03 mx postfix/smtpd[303]: disconnect from unknown[203.0.113.23] ehlo=1 quit=1 commands=2
`
	r, rec := read(ByName("postfix"), []byte(log))
	if c := r.Counts(); c.Sessions != 2 || strings.Contains(rec.b.String(), "news@") || rec.kinds[smtp.EventDisconnect] != 2 {
		t.Errorf("%+v\n%s", c, rec.b.String())
	}
}

// TestUnnamedRecipients checks that accepted recipients are counted even if the log names them late or
// never. A commit is reported only if the message is known to have been accepted.
func TestUnnamedRecipients(t *testing.T) {
	const (
		sendmailConnect = "Nov 29 07:43:00 mx sendmail[302]: NOQUEUE: connect from news.example.net [203.0.113.22]\n"
		sendmailFrom    = "Nov 29 07:43:01 mx sendmail[302]: 6AT7h0aA000302: from=<news@example.net>, size=89, class=0, nrcpts=17, %sproto=ESMTP, daemon=MTA, relay=news.example.net [203.0.113.22]\n"
		connect         = "Nov 29 07:43:00 mx postfix/smtpd[302]: connect from news.example.net[203.0.113.22]\n"
		client          = "Nov 29 07:43:01 mx postfix/smtpd[302]: AA11BB22CC33: client=news.example.net[203.0.113.22]\n"
		qmgr            = "Nov 29 07:43:02 mx postfix/qmgr[1]: AA11BB22CC33: from=<news@example.net>, size=900, nrcpt=%d (queue active)\n"
		disconnect      = "Nov 29 07:43:02 mx postfix/smtpd[302]: disconnect from news.example.net[203.0.113.22] ehlo=1 mail=1 rcpt=%d %s=1 quit=1 commands=50\n"
		later           = "Nov 29 07:53:00 mx %s: connect from unknown [203.0.113.99]\n"
		received        = "2026-11-29 07:43:01 1vPAAA-000000001-0001 <= news@example.net H=news.example.net [203.0.113.22] P=esmtp S=1204 id=x@example.net\n"
	)
	many := ""
	for i := range 60 {
		many += fmt.Sprintf("2026-11-29 07:43:0%d 1vPAAA-000000001-0001 => m%d <m%d@example.org> R=localuser T=maildir_home\n", 2+i/30, i, i)
	}
	for _, c := range []struct {
		kind, name, log           string
		recipients, data, commits int
	}{
		{"sendmail", "queued only", sendmailConnect + fmt.Sprintf(sendmailFrom, "msgid=<1@example.net>, ") + fmt.Sprintf(later, "sendmail[303]"), 17, 1, 0},
		{"sendmail", "end of the log", sendmailConnect + fmt.Sprintf(sendmailFrom, "msgid=<1@example.net>, "), 17, 1, 0},
		{"sendmail", "no message", sendmailConnect + fmt.Sprintf(sendmailFrom, ""), 17, 0, 0},
		{"postfix", "late delivery", connect + client + fmt.Sprintf(qmgr, 200) + fmt.Sprintf(disconnect, 200, "data") + fmt.Sprintf(later, "postfix/smtpd[303]"), 200, 1, 1},
		{"postfix", "proxy filter", connect + fmt.Sprintf(disconnect, 40, "data"), 40, 1, 1},
		{"postfix", "proxy filter and BDAT", connect + fmt.Sprintf(disconnect, 40, "bdat"), 40, 1, 1},
		{"postfix", "RSET", connect + client + fmt.Sprintf(disconnect, 4, "rset") + fmt.Sprintf(later, "postfix/smtpd[303]"), 4, 0, 0},
		{"postfix", "second message on hold", connect + client + fmt.Sprintf(qmgr, 1) +
			"Nov 29 07:43:02 mx postfix/local[3]: AA11BB22CC33: to=<m1@example.org>, relay=local, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (delivered to mailbox)\n" +
			"Nov 29 07:43:02 mx postfix/qmgr[1]: AA11BB22CC33: removed\n" + strings.ReplaceAll(client, "AA11", "BB22") +
			strings.Replace(fmt.Sprintf(disconnect, 40, "data"), "data=1", "data=2", 1) + fmt.Sprintf(later, "postfix/smtpd[303]"), 40, 2, 1},
		{"postfix", "rejected text", connect + client +
			"Nov 29 07:43:02 mx postfix/cleanup[4]: AA11BB22CC33: milter-reject: END-OF-MESSAGE from news.example.net[203.0.113.22]: 451 4.7.1 Greylisted; from=<news@example.net> to=<m0@example.org> proto=ESMTP helo=<news.example.net>\n" +
			strings.Replace(fmt.Sprintf(disconnect, 40, "data"), "data=1", "data=0/1", 1) + fmt.Sprintf(later, "postfix/smtpd[303]"), 40, 1, 0},
		{"exim", "names in deliveries", received + many + "2026-11-29 07:43:04 1vPAAA-000000001-0001 Completed\n", 60, 1, 1},
		{"exim", "no deliveries", received, 1, 1, 1},
	} {
		_, rec := read(ByName(c.kind), []byte(c.log))
		got := rec.b.String()
		if n := strings.Count(got, "\n   rcpt "); n != c.recipients || strings.Count(got, " data ok") != c.data || rec.kinds[smtp.EventCommit] != c.commits {
			t.Errorf("%s, %s: %d recipients, want %d:\n%.2000s", c.kind, c.name, n, c.recipients, got)
		}
	}
}

// TestLogins checks that a login is counted even if the log does not contain the user. With Prompt,
// a login must be counted before the messages of the session are delivered.
func TestLogins(t *testing.T) {
	log := `Nov 29 07:40:00 mx postfix/smtpd[1]: connect from unknown[203.0.113.1]:1025
Nov 29 07:40:01 mx postfix/smtpd[1]: warning: unknown[203.0.113.1]:1025: SASL PLAIN authentication failed: UGFzc3dvcmQ6, sasl_username=joe
Nov 29 07:40:02 mx postfix/smtpd[1]: 4B1C2D3E4F: client=unknown[203.0.113.1]:1025
Nov 29 07:40:02 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1]:1025 ehlo=1 auth=1/2 mail=1 rcpt=1 quit=1 commands=5/6
`
	for _, prompt := range []bool{false, true} {
		rec := newRecorder()
		r := New(ByName("postfix"), rec, Options{Zone: time.UTC, Date: newest, Prompt: prompt})
		stamps := maillog.NewSyslog(time.UTC, newest)
		for line := range strings.Lines(log) {
			l, ok := stamps.Parse([]byte(strings.TrimSuffix(line, "\n")))
			r.Line(&l, ok)
		}
		if ended := rec.kinds[smtp.EventDisconnect] == 1; ended != prompt {
			t.Errorf("prompt %t: ended %t", prompt, ended)
		}
		r.Flush()
		if got := rec.b.String(); !strings.Contains(got, "auth \"joe\" fail\n") || !strings.Contains(got, "auth pass\n") || rec.kinds[smtp.EventAuth] != 2 {
			t.Error(got)
		}
	}
}

// TestRepeated checks lines that rsyslogd has combined.
func TestRepeated(t *testing.T) {
	const line = "Nov 29 07:40:01 mx postfix/smtpd[1]: %s\n"
	const guess = "warning: unknown[203.0.113.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6"
	const last = "Nov 29 07:40:02 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1] ehlo=1 auth=0/8 commands=1/9\n"
	connect := fmt.Sprintf(line, "connect from unknown[203.0.113.1]") + fmt.Sprintf(line, guess)
	for text, want := range map[string]int{
		"message repeated 7 times: [ " + guess + "]":                       8,
		"message repeated 99999999999999999999999 times: [ " + guess + "]": 1,
		"message repeated 0 times: [ " + guess + "]":                       1,
		"message repeated 2000000 times: [ " + guess + "]":                 maxAlike,
	} {
		_, rec := read(ByName("postfix"), []byte(connect+fmt.Sprintf(line, text)+last))
		if got := strings.Count(rec.b.String(), "fail\n"); got != want {
			t.Errorf("%s: %d failed logins, want %d:\n%.1000s", text, got, want, rec.b.String())
		}
	}
	const mta = "Nov 29 07:40:01 mx sm-mta[1]: "
	const failure = "6AT7DYqF020891: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): x, user=a, relay=[203.0.113.1]"
	_, rec := read(ByName("sendmail"), []byte(mta+failure+"\n"+mta+"message repeated 7 times: [ "+failure+"]\n"))
	if got := strings.Count(rec.b.String(), "fail\n"); got != 8 {
		t.Errorf("%d failed logins in Sendmail's log:\n%.1000s", got, rec.b.String())
	}
}

// TestOrder checks that the sessions of an address are reported in the order in which they ended, even
// if a message of an earlier one waits for its delivery.
func TestOrder(t *testing.T) {
	const log = `Nov 29 07:40:00 mx postfix/smtpd[1]: connect from l.example[203.0.113.1]
Nov 29 07:40:00 mx postfix/smtpd[1]: AA11BB22CC33: client=l.example[203.0.113.1]
Nov 29 07:40:00 mx postfix/smtpd[1]: disconnect from l.example[203.0.113.1] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5
Nov 29 07:40:01 mx postfix/smtpd[2]: connect from l.example[203.0.113.1]
Nov 29 07:40:01 mx postfix/smtpd[2]: NOQUEUE: reject: RCPT from l.example[203.0.113.1]: 550 5.1.1 <g@example.org>: Recipient address rejected: User unknown; from=<l@l.example> to=<g@example.org> proto=ESMTP helo=<l.example>
Nov 29 07:40:01 mx postfix/smtpd[2]: disconnect from l.example[203.0.113.1] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4
`
	const delivery = `Nov 29 07:40:06 mx postfix/qmgr[3]: AA11BB22CC33: from=<l@l.example>, size=9, nrcpt=1 (queue active)
Nov 29 07:40:06 mx postfix/smtp[4]: AA11BB22CC33: to=<m@example.org>, relay=127.0.0.1[127.0.0.1]:10024, delay=6, delays=0/0/0/6, dsn=2.0.0, status=sent (ok)
Nov 29 07:40:06 mx postfix/qmgr[3]: AA11BB22CC33: removed
`
	for _, end := range []string{delivery, "Nov 29 07:41:00 mx postfix/smtpd[5]: connect from x.example[203.0.113.2]\n", ""} {
		_, rec := read(ByName("postfix"), []byte(log+end))
		first, last := strings.Index(rec.b.String(), " commit"), strings.Index(rec.b.String(), "permfail")
		if first < 0 || last < first {
			t.Errorf("after %q:\n%s", end, rec.b.String())
		}
	}
}

// TestUnknownUsers checks the texts with which Sendmail rejects missing users.
func TestUnknownUsers(t *testing.T) {
	for _, text := range []string{"User unknown", "No such user here"} {
		log := "Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: <g@example.org>... " + text + "\n" +
			"Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=b.example [203.0.113.1]\n"
		_, rec := read(ByName("sendmail"), []byte(log))
		if got := rec.b.String(); !strings.Contains(got, "<g@example.org> permfail 550 cause=user") {
			t.Errorf("%s:\n%s", text, got)
		}
	}
}

// TestIgnoredPregreet checks a client that speaks before postscreen's greeting, and that postscreen
// nevertheless passes to smtpd. There is one session, also if smtpd does not log ports.
func TestIgnoredPregreet(t *testing.T) {
	const screen = "Nov 29 07:40:00 mx postfix/postscreen[9]: CONNECT from [203.0.113.1]:4000 to [192.0.2.1]:25\n" +
		"Nov 29 07:40:00 mx postfix/postscreen[9]: PREGREET 14 after 0.1 from [203.0.113.1]:4000: EHLO x.example\\r\\n\n"
	const pass = "Nov 29 07:40:05 mx postfix/postscreen[9]: CONNECT from [203.0.113.1]:5000 to [192.0.2.1]:25\n" +
		"Nov 29 07:40:05 mx postfix/postscreen[9]: PASS OLD [203.0.113.1]:5000\n"
	for port, sessions := range map[string]int{":4000": 1, "": 1, ":4001": 2, " ": 2} {
		other := ""
		if port == " " { // another client at the address has passed
			port, other = "", pass
		}
		log := screen + other + "Nov 29 07:40:06 mx postfix/smtpd[1]: connect from unknown[203.0.113.1]" + port + "\n" +
			"Nov 29 07:40:07 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1]" + port + " ehlo=1 quit=1 commands=2\n"
		_, rec := read(ByName("postfix"), []byte(log))
		if got := rec.b.String(); rec.kinds[smtp.EventConnect] != sessions || rec.kinds[smtp.EventInput] != 1 {
			t.Errorf("port %q: %d sessions, want %d\n%s", port, rec.kinds[smtp.EventConnect], sessions, got)
		}
	}
}

// TestBounces checks that rejected bounces in a row are separate transactions, unless the log
// proves that they are one.
func TestBounces(t *testing.T) {
	reject := "Nov 29 07:40:01 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]: 550 5.1.1 <x%[1]d@example.org>: Recipient address rejected: User unknown in local recipient table; from=<> to=<x%[1]d@example.org> proto=ESMTP helo=<x>\n"
	const disconnect = "Nov 29 07:40:02 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1] ehlo=1 mail=%d rcpt=0/4 quit=1 commands=%d/%d\n"
	for _, c := range []struct {
		name, kind, line, last string
		mails                  int
	}{
		{"postfix with four transactions", "postfix", reject, fmt.Sprintf(disconnect, 4, 6, 10), 4},
		{"postfix with one transaction", "postfix", reject, fmt.Sprintf(disconnect, 1, 3, 7), 1},
		{"postfix without counters", "postfix", reject, "Nov 29 07:40:02 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1]\n", 4},
		{"exim", "exim", "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<> rejected RCPT <x%d@example.org>: Unrouteable address\n", "", 4},
		{"exim with a sender", "exim", "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <x%d@example.org>: Unrouteable address\n", "", 1},
		{"kumomta", "kumomta", `{"type":"Rejection","sender":"","response":{"code":550,"content":"5.1.1 no such user","command":"RCPT TO:<f%d@example.org>"},"peer_address":{"name":"x","addr":"203.0.113.1"},"timestamp":1795600100,"session_id":"b"}` + "\n", "", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log strings.Builder
			for i := range 4 {
				fmt.Fprintf(&log, c.line, i)
			}
			_, rec := read(ByName(c.kind), []byte(log.String()+c.last))
			if rec.kinds[smtp.EventMail] != c.mails || rec.kinds[smtp.EventRcpt] != 4 {
				t.Errorf("%d transactions, want %d:\n%s", rec.kinds[smtp.EventMail], c.mails, rec.b.String())
			}
		})
	}
}

// TestFiller checks that harmless commands cannot use up the limit for steps that are evidence.
func TestFiller(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		name, kind, start string
		fillers           []string
		guess, want       string
		guesses           int
	}{
		{"rejected senders", "exim", "", []string{"2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<" + long + "%[1]d@b.example> rejected RCPT <" + long + "%[1]d@example.org>: Sender verify failed\n"},
			"2026-11-29 07:50:04 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <guess%d@example.org>: Unrouteable address\n", "cause=recipient", 200},
		{"one recipient", "exim", "", []string{"2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <x@example.org>: Unrouteable address\n"},
			"2026-11-29 07:50:04 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <guess%d@example.org>: Unrouteable address\n", "<guess", 100},
		{"senders", "icewarp", "203.0.113.1   [0968] 10:14:01 Connected, local IP=192.0.2.25:25\n", []string{
			"203.0.113.1   [0968] 10:14:02 <<< MAIL FROM:<" + long + "%d@b.example>\n", "203.0.113.1   [0968] 10:14:02 >>> 250 2.1.0 ok\n",
			"203.0.113.1   [0968] 10:14:02 <<< RSET\n", "203.0.113.1   [0968] 10:14:02 >>> 250 2.0.0 ok\n"},
			"203.0.113.1   [0968] 10:14:02 <<< RCPT TO:<guess%d@example.org>\n203.0.113.1   [0968] 10:14:02 >>> 550 5.1.1 User unknown\n", "cause=user", 200},
		{"NOOP", "icewarp", "203.0.113.1   [0968] 10:14:01 Connected, local IP=192.0.2.25:25\n", []string{"203.0.113.1   [0968] 10:14:02 <<< NOOP\n", "203.0.113.1   [0968] 10:14:02 >>> 250 2.0.0 ok\n"},
			"203.0.113.1   [0968] 10:14:02 <<< AUTH PLAIN AGEAYg==\n203.0.113.1   [0968] 10:14:02 >>> 535 5.7.8 failed\n", "auth ", 100},
		{"DATA", "kumomta", "", []string{`{"type":"Rejection","sender":"","response":{"code":503,"content":"bad sequence %d","command":"DATA"},"peer_address":{"name":"x","addr":"203.0.113.1"},"timestamp":1795600100,"session_id":"b"}` + "\n"},
			`{"type":"Rejection","sender":"a@b.example","response":{"code":550,"content":"5.1.1 no such user","command":"RCPT TO:<f%d@example.org>"},"peer_address":{"name":"x","addr":"203.0.113.1"},"timestamp":1795600100,"session_id":"b"}` + "\n", "cause=recipient", 200},
		{"bad senders", "sendmail", "Nov 29 07:40:00 mx sm-mta[1]: NOQUEUE: connect from [203.0.113.1]\n", []string{"Nov 29 07:40:00 mx sm-mta[1]: 6AT7DYqF020891: ruleset=check_mail, arg1=<a%[1]d@b.invalid>, relay=[203.0.113.1], reject=553 5.1.8 <a%[1]d@b.invalid>... Domain of sender address a%[1]d@b.invalid does not exist\n"},
			"Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: <guess%d@example.org>... User unknown\n", "cause=user", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log strings.Builder
			log.WriteString(c.start)
			for i := range 2000 {
				for _, line := range c.fillers {
					if strings.Contains(line, "%") {
						line = fmt.Sprintf(line, i)
					}
					log.WriteString(line)
				}
			}
			for i := range c.guesses {
				line := c.guess
				if strings.Contains(line, "%") {
					line = fmt.Sprintf(line, i)
				}
				log.WriteString(line)
			}
			if c.kind == "sendmail" {
				log.WriteString("Nov 29 07:40:02 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[203.0.113.1]\n")
			}
			r, rec := read(ByName(c.kind), []byte(log.String()))
			if got := strings.Count(rec.b.String(), c.want); got != c.guesses {
				t.Errorf("%d guesses, want %d", got, c.guesses)
			}
			if r.Counts().Sessions != 1 {
				t.Errorf("%d sessions", r.Counts().Sessions)
			}
		})
	}
}

// TestReasons checks that a rejection is evidence only if its reason is the recipient.
func TestReasons(t *testing.T) {
	for reason, cause := range map[string]string{
		"rejected because 185.1.1.20 is in a black list at zen.spamhaus.org": "filter",
		"Sender domain does not exist":                                       "filter",
		"HELO name m3.example does not exist in DNS":                         "filter",
		"SPF: not permitted; unknown user agent":                             "filter",
		"5.1.8 envelope sender's mailbox unavailable":                        "filter",
		"185.1.1.20 is not welcome here":                                     "filter",
		"could not verify: response to \"RCPT TO:<a@b.example>\" from mx.b.example [192.0.2.9] was: 550 5.1.1 User unknown":   "filter",
		"could not verify: response to \"RCPT TO:<a@b.example>\" from mx.b.example [192.0.2.9] was: 554 Relay access denied":  "filter",
		"response to \"RCPT TO:<blocked.sender@example.org>\" from store.example.org [192.0.2.9] was: 550 5.1.1 User unknown": "recipient",
		"<blocked.sender@example.org>: no such user":        "recipient",
		"5.1.1 User unknown":                                "user",
		"Unrouteable address":                               "recipient",
		"relay not permitted":                               "relay",
		"<blocked.sender@example.org>: Relay access denied": "relay",
	} {
		for kind, log := range map[string]string{
			"exim":    "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <blocked.sender@example.org>: " + reason + "\n",
			"icewarp": "203.0.113.1   [0968] 10:14:01 <<< RCPT TO:<blocked.sender@example.org>\n203.0.113.1   [0968] 10:14:01 >>> 550 " + reason + "\n",
		} {
			_, rec := read(ByName(kind), []byte(log))
			if got := rec.b.String(); !strings.Contains(got, "permfail 550 cause="+cause+" ") {
				t.Errorf("%s: %s: want cause %s:\n%s", kind, reason, cause, got)
			}
		}
	}
}

// TestCutLines checks that a client cannot hide its recipients with a long sender or greeting.
// Postfix cuts lines after 2,000 bytes.
func TestCutLines(t *testing.T) {
	long := strings.Repeat("a", 1900)
	for _, c := range []struct{ name, sender, helo string }{
		{"sender", long + "@b.example", "x"},
		{"quoted sender", `"> to=<z@example.org> proto=ESMTP helo=<x> ` + long + `"@b.example`, "x"},
		{"quoted sender with a field at the cut", `"` + long[:1747] + `> to=<z> ` + long + `"@b.example`, "x"},
		{"greeting", "a@b.example", "h proto=x to=<y> " + long},
		{"short", "a@b.example", "x"},
	} {
		for cause, reply := range map[string]string{
			"user":   "550 5.1.1 <guess%d@example.org>: Recipient address rejected: User unknown in local recipient table",
			"relay":  "454 4.7.1 <guess%d@example.org>: Relay access denied",
			"filter": "554 5.7.1 <a@b.example>: Sender address rejected: Access denied %d",
		} {
			t.Run(c.name+" "+cause, func(t *testing.T) {
				var log strings.Builder
				for i := range 8 {
					line := fmt.Sprintf("NOQUEUE: reject: RCPT from unknown[203.0.113.1]:1025: "+reply+"; from=<%s> to=<guess%d@example.org> proto=ESMTP helo=<%s>", i, c.sender, i, c.helo)
					fmt.Fprintf(&log, "Nov 29 07:40:00 mx postfix/smtpd[1]: %s\n", clip([]byte(line), 2000))
				}
				_, rec := read(ByName("postfix"), []byte(log.String()))
				got := rec.b.String()
				if n := strings.Count(got, "cause="+cause); n < 8 || cause != "filter" && (rec.kinds[smtp.EventMail] != 1 || rec.kinds[smtp.EventFilter] > 0 || strings.Count(got, `rcpt "guess`) != 8) {
					t.Errorf("%d with cause %s:\n%s", n, cause, got)
				}
			})
		}
	}
}

// TestLongRecipients checks that a client cannot hide its recipients by making them long.
func TestLongRecipients(t *testing.T) {
	for _, line := range []string{
		"550 5.1.1 <%[1]s>: Recipient address rejected: User unknown in local recipient table; from=<a@b.example> to=<%[1]s> proto=ESMTP helo=<x>",
		"454 4.7.1 <%[1]s>: Relay access denied; from=<a@b.example> to=<%[1]s> proto=ESMTP helo=<x>",
	} {
		log := ""
		for i := range 8 {
			log += fmt.Sprintf("Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[203.0.113.1]:1025: "+line+"\n", fmt.Sprintf("%s%d@example.org", strings.Repeat("g", maxPath), i))
		}
		log += "Nov 29 07:40:01 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1]:1025 ehlo=1 mail=1 rcpt=0/8 commands=2/10\n"
		_, rec := read(ByName("postfix"), []byte(log))
		rcpts := make(map[string]bool)
		for line := range strings.Lines(rec.b.String()) {
			if strings.HasPrefix(line, "   rcpt ") {
				rcpts[strings.Fields(line)[1]] = true
			}
		}
		if len(rcpts) != 8 {
			t.Errorf("%d recipients:\n%s", len(rcpts), rec.b.String())
		}
	}
}

// TestPostfixFields checks that a client cannot hide its recipients with text that looks like the
// fields of a rejection. Postfix quotes the addresses in the fields, but not in the reply.
func TestPostfixFields(t *testing.T) {
	const tail = "; from=<> to=<%s> proto=ESMTP helo=<"
	parts := []string{"; from=<>", " to=<x", " to=<x>", " to=<x@example.org>", " to=<g0@example.org>", " proto=ESMTP", " helo=<", ">", ">: ", "<", "; ", "x", `\"`, `\\`, "Recipient address rejected: User unknown",
		fmt.Sprintf(tail, "z"), "z>: " + fmt.Sprintf(tail, "z"), "z>: Recipient address rejected: User unknown" + fmt.Sprintf(tail, "z"), "g0@example.org>: Relay access denied"}
	random := rand.New(rand.NewPCG(1, 2))
	text := func(most int) (b string) {
		for range random.IntN(most) {
			b += parts[random.IntN(len(parts))]
		}
		return b
	}
	for range 3000 {
		sender, before, after, helo := `"`+text(5)+`"@b.example`, text(5), text(4), strings.ReplaceAll(text(6), `\`, "")
		var log strings.Builder
		for i := range 8 {
			recipient := fmt.Sprintf(`"%sg%d%s"@example.org`, before, i, after)
			line := fmt.Sprintf("NOQUEUE: reject: RCPT from unknown[203.0.113.1]:1025: 550 5.1.1 <%s>: Recipient address rejected: User unknown in local recipient table; from=<%s> to=<%s> proto=ESMTP helo=<x%s>", unquoted([]byte(recipient)), sender, recipient, helo)
			if len(line) > 2000 {
				t.Fatal(line)
			}
			fmt.Fprintf(&log, "Nov 29 07:40:00 mx postfix/smtpd[1]: %s\n", line)
		}
		_, rec := read(ByName("postfix"), []byte(log.String()))
		got := rec.b.String()
		rcpts := make(map[string]bool)
		for line := range strings.Lines(got) {
			if strings.Contains(line, "permfail 550 cause=user") {
				rcpts[line] = true
			}
		}
		if len(rcpts) != 8 || rec.kinds[smtp.EventMail] != 1 || !strings.Contains(got, "src=203.0.113.1:1025") {
			t.Fatalf("%d recipients:\n%s%s", len(rcpts), log.String(), got)
		}
	}
}

// TestNames checks that Postfix's rejection of a mailbox in VRFY counts like that of a recipient.
// Other rejections of VRFY are not evidence.
func TestNames(t *testing.T) {
	for reply, want := range map[string]string{
		"550 5.1.1 <g@example.org>: Recipient address rejected: User unknown in local recipient table": `rcpt "g@example.org" <g@example.org> permfail 550 cause=user`,
		"454 4.7.1 <g@far.example>: Relay access denied":                                               `command "VRFY`,
		"502 5.5.1 VRFY command is disabled":                                                           `command "VRFY`,
		"554 5.7.1 <unknown[203.0.113.1]>: Client host rejected: Access denied":                        `command "VRFY`,
	} {
		_, rec := read(ByName("postfix"), []byte("Nov 29 07:40:00 mx postfix/smtpd[1]: NOQUEUE: reject: VRFY from unknown[203.0.113.1]: "+reply+"; to=<g@example.org> proto=ESMTP helo=<x>\n"+
			"Nov 29 07:40:02 mx postfix/smtpd[1]: disconnect from unknown[203.0.113.1] ehlo=1 vrfy=0/1 quit=1 commands=2/3\n"))
		if got := rec.b.String(); !strings.Contains(got, want) || rec.kinds[smtp.EventRcpt]+rec.kinds[smtp.EventCommand] != 1 || rec.kinds[smtp.EventMail]+rec.kinds[smtp.EventFilter] > 0 {
			t.Errorf("%s: want %s:\n%s", reply, want, got)
		}
	}
}

// TestEximAddresses checks senders and recipients of all forms that Exim accepts. Exim logs the sender
// without its comments, and the first 100 bytes of the recipient as the client has sent it.
func TestEximAddresses(t *testing.T) {
	words := []string{"a", `\"`, `\\`, `\ `, `\>`, `\(`, `\:`, `""`, `" "`, `" H=x [192.0.2.9]:1 "`, `"\""`, `"\\"`, `"\\\" H=[192.0.2.9]:2 "`,
		`"> A=plain:joe rejected RCPT <z>: relay not permitted"`, `"("`, `">: "`, `\303\251`}
	comments := []string{"", "", `(")`, `(\))`, `(())`, `(>: relay not=permitted)`, `(\")`, `(: sender \303\251)`, "(" + strings.Repeat("x", 70) + ")", "(" + strings.Repeat("x: ", 33) + ")"}
	escape := regexp.MustCompile(`\\[0-7]{3}|.`)
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of []string) string { return of[random.IntN(len(of))] }
	for i := range 5000 {
		local := pick(words)
		for range random.IntN(4) {
			local += "." + pick(words)
		}
		addr := local + "@b.example"
		missing := fmt.Sprintf("%s%d@example.org", local, i)
		if strings.HasSuffix(local, `"`) {
			missing = fmt.Sprintf("%s.%d@example.org", local, i)
		}
		argument := "<" + pick(comments) + missing + pick(comments) + ">"
		switch random.IntN(4) {
		case 0:
			argument = missing + pick(append(comments, `(": c`))
		case 1:
			argument = pick(words) + pick(comments) + "=" + argument
		}
		want := fmt.Sprintf("<%s> permfail 550 cause=recipient", text.Escape([]byte(missing)))
		if raw := escape.FindAllString(argument, -1); len(raw) >= eximArgument {
			argument = strings.Join(raw[:eximArgument], "")
			want = "permfail 550 cause=recipient \"Unrouteable address\""
		} else if len(argument) >= eximArgument {
			want = "permfail 550 cause=recipient \"Unrouteable address\""
		}
		log := "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<" + addr + "> rejected RCPT " + argument + ": Unrouteable address\n" +
			"2026-11-29 07:50:04 1vPAAA-000000001-0001 <= " + addr + " H=(x) [203.0.113.1]:40002 P=esmtp S=1204\n"
		_, rec := read(ByName("exim"), []byte(log))
		got := rec.b.String()
		if strings.Count(got, "== ") != 1 || !strings.Contains(got, "src=203.0.113.1:40002") || strings.Contains(got, "auth") || rec.kinds[smtp.EventCommit] != 1 ||
			strings.Count(got, fmt.Sprintf("<%s> ok", text.Escape([]byte(addr)))) != 2 ||
			!strings.Contains(got, want) {
			t.Fatalf("%s%s", log, got)
		}
	}
}

// TestEximCutRecipients checks that a client cannot hide its recipients in arguments that Exim cuts.
func TestEximCutRecipients(t *testing.T) {
	for _, before := range []string{"(" + strings.Repeat("a", 98) + ")", "(" + strings.Repeat("a", 83) + ")", "(" + strings.Repeat("a", 200), `"` + strings.Repeat("p", 100) + `" `, strings.Repeat("p", 100) + " ",
		"<@" + strings.Repeat("r", 120) + ":", "(" + strings.Repeat("x: ", 40) + ")", strings.Repeat("+", 100)} {
		var log strings.Builder
		for i := range 8 {
			fmt.Fprintf(&log, "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT %s: Unrouteable address\n", clip(fmt.Appendf(nil, "%s<g%d@example.org>", before, i), eximArgument))
		}
		_, rec := read(ByName("exim"), []byte(log.String()))
		got := rec.b.String()
		rcpts := make(map[string]bool)
		for line := range strings.Lines(got) {
			if strings.Contains(line, "cause=recipient") {
				rcpts[string(mailbox.AppendBase(nil, []byte(strings.Fields(line)[1]), '+'))] = true
			}
		}
		if len(rcpts) != 8 || rec.kinds[smtp.EventMail] != 1 {
			t.Errorf("%s: %d recipients:\n%s", before, len(rcpts), got)
		}
	}
}

// TestSendmailArguments checks arguments of MAIL and RCPT that look like parts of other lines.
// Sendmail writes an argument with an error as the client has sent it.
func TestSendmailArguments(t *testing.T) {
	parts := []string{"from=", "to=", "ruleset=", "check_rcpt", "milter=x", "AUTH=server", "STARTTLS=server", "connect", "Milter:", "(", ")", "<", ">", `"`, ", size=0", ", class=0, nrcpts=1", ", msgid=x", ", proto=ESMTP, daemon=MTA",
		", relay=x [192.0.2.9]", "x [192.0.2.9]", "[192.0.2.9]", ", arg1=<y>", ", reject=550 5.7.1 x", ", action=helo", ", stat=Sent", ", authid=joe", "... User unknown", "g@example.org", ": VRFY x", " did not issue MAIL/EXPN/VRFY/ETRN", "@", "="}
	reasons := []string{"User unknown", "Unbalanced '<'", `Unbalanced '"'`, "Unbalanced '('", "Invalid route address", "List:; syntax illegal for recipient addresses", "Hostname required",
		"Relaying denied. IP name possibly forged [203.0.113.1]", "Colon illegal in host name part", "User address required"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		argument := ""
		for range 1 + random.IntN(12) {
			argument += parts[random.IntN(len(parts))]
		}
		// A space outside quotes, comments and angle brackets ends the argument.
		if first := strings.IndexAny(argument, ` ("<`); first >= 0 && argument[first] == ' ' {
			argument = argument[:first]
		}
		reason := reasons[random.IntN(len(reasons))]
		line := fmt.Sprintf("%s... %s", argument, reason)
		ruleset := fmt.Sprintf("ruleset=check_rcpt, arg1=%[1]s, relay=[203.0.113.1], reject=550 5.7.1 %[1]s... Relaying denied", argument)
		var log strings.Builder
		log.WriteString("Nov 29 07:40:00 mx sm-mta[1]: NOQUEUE: connect from [203.0.113.1]\n")
		for _, text := range []string{line, ruleset, "from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[203.0.113.1]"} {
			fmt.Fprintf(&log, "Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: %s\n", text)
		}
		_, rec := read(ByName("sendmail"), []byte(log.String()))
		got := rec.b.String()
		unknown := strings.Count(got, "cause=user")
		if strings.Contains(got, "src=192.0.2.9") || strings.Count(got, "src=203.0.113.1:0") != 1 || (unknown == 1) != (reason == "User unknown") ||
			strings.Count(got, "cause=relay") != 1 || rec.kinds[smtp.EventMail] != 1 || rec.kinds[smtp.EventRcpt] != unknown+1 ||
			rec.kinds[smtp.EventFilter]+rec.kinds[smtp.EventAuth]+rec.kinds[smtp.EventCommit]+rec.kinds[smtp.EventHelo]+rec.kinds[smtp.EventTLS] > 0 {
			t.Fatalf("%s%s", log.String(), got)
		}
	}
}

// TestSendmailUnknown checks arguments of all forms that Sendmail accepts. Sendmail removes the middle
// of a long argument.
func TestSendmailUnknown(t *testing.T) {
	for _, form := range []string{"<g%d@example.org>", "g%d@example.org", "(c)<g%d@example.org>", "<g%d@example.org>(c)", "<g%d@example.org>x", "<g%d@example.org>,<h@example.org>", `"phrase" <g%d@example.org>`,
		"(" + strings.Repeat("a", 120) + ")<g%d@example.org>(" + strings.Repeat("b", 120) + ")"} {
		var log strings.Builder
		for i := range 8 {
			argument := fmt.Sprintf(form, i)
			if n := len(argument); n > shortened {
				argument = argument[:100] + "..." + argument[n-100:]
			}
			fmt.Fprintf(&log, "Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: %s... User unknown\n", argument)
		}
		log.WriteString("Nov 29 07:40:01 mx sm-mta[1]: 6AT7DYqF020891: --- 550 5.1.1 <g0@example.org>... User unknown\n" +
			"Nov 29 07:40:02 mx sm-mta[1]: 6AT7DYqF020891: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[203.0.113.1]\n")
		_, rec := read(ByName("sendmail"), []byte(log.String()))
		got := rec.b.String()
		rcpts := make(map[string]bool)
		for line := range strings.Lines(got) {
			if strings.Contains(line, "cause=user") {
				rcpts[line] = true
			}
		}
		if len(rcpts) != 8 {
			t.Errorf("%s: %d recipients:\n%s", form, len(rcpts), got)
		}
	}
}

// TestEximGreetings checks greetings and senders that look like parts of an Exim log line.
func TestEximGreetings(t *testing.T) {
	const (
		connect = "2026-11-29 07:50:00 SMTP connection from [203.0.113.1]:40002 (TCP/IP connection count = 1)\n"
		victim  = "2026-11-29 07:50:00 SMTP connection from [192.0.2.9]:25 (TCP/IP connection count = 2)\n"
		reject  = "2026-11-29 07:50:03 H=(%s) [203.0.113.1]:40002 F=<%s> rejected RCPT <gone@example.org>: Unrouteable address\n"
		unknown = `rcpt "gone@example.org" <gone@example.org> permfail 550 cause=recipient`
	)
	for _, c := range []struct{ name, log, want, never string }{
		{"an address", connect + fmt.Sprintf(reject, "a) [192.0.2.9]:25 (b", "a@b.example"), unknown, "src=192.0.2.9"},
		{"a rejection", connect + fmt.Sprintf(reject, "a) [192.0.2.9]:25 F=<x@y.example> rejected RCPT <z@example.org>: Unrouteable address (b", "a@b.example"), unknown, `rcpt "z@`},
		{"an address, and the connection is not logged", fmt.Sprintf(reject, "a) [192.0.2.9]:25 (b", "a@b.example"), "", "src=192.0.2.9"},
		{"an address with an open connection", connect + victim + fmt.Sprintf(reject, "a) [192.0.2.9]:25 (b", "a@b.example"), "", "gone@"},
		{"a false connection", "2026-11-29 07:50:00 SMTP connection from (a) [192.0.2.9]:25 (TCP/IP connection count = 1) (b) [203.0.113.1]:40002 closed by QUIT\n" +
			fmt.Sprintf(reject, "a) [192.0.2.9]:25 (b", "a@b.example"), "", "src=192.0.2.9"},
		{"an address in the sender", connect + fmt.Sprintf(reject, "x", `") [192.0.2.9]:25 F=<"@b.example`), unknown, "src=192.0.2.9"},
		{"a rejection without an address", fmt.Sprintf(reject, "y F=<> rejected RCPT <postmaster@example.org>: z", "a@b.example"), unknown, "mail <>"},
		{"a quote", fmt.Sprintf(reject, `y"`, "a@b.example"), unknown, ""},
		{"a login", `2026-11-29 07:50:04 1vPAAA-000000001-0001 <= a@b.example H=(x A=plain:admin) [203.0.113.1]:40002 P=esmtp S=1204` + "\n", "commit", "auth"},
		{"a user", "2026-11-29 07:50:03 H=(x) [203.0.113.1]:40002 F=<a@b.example> A=plain:bob rejected RCPT <gone@example.org>: Unrouteable address\n", "auth \"bob\" pass\n   mail \"a@b.example\" <a@b.example> ok\n   " + unknown, ""},
		{"a user in a certificate", `2026-11-29 07:50:04 1vPAAA-000000001-0001 <= a@b.example H=(x) [203.0.113.1]:40002 P=esmtps X=TLS1.3:x:256 DN="CN=a A=plain:admin" S=1204` + "\n", "commit", "auth"},
		{"a failed login", `2026-11-29 07:50:04 plain authenticator failed for (x: 535 (set_id=admin)) [203.0.113.1]:40002: 535 Incorrect authentication data (set_id=a (set_id=bob))` + "\n", `auth "a (set_id=bob)" fail`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, rec := read(ByName("exim"), []byte(c.log))
			if got := rec.b.String(); !strings.Contains(got, c.want) || c.never != "" && strings.Contains(got, c.never) {
				t.Errorf("want %q, never %q:\n%s", c.want, c.never, got)
			}
		})
	}
}

// TestRefusedAuth checks when a rejected AUTH is evidence. The log must show no reason for the
// rejection, and the listener must not be one for users.
func TestRefusedAuth(t *testing.T) {
	for _, c := range []struct {
		name, program, line string
		unsupported         int
	}{
		{"without a reason", "postfix/smtpd", "", 1},
		{"listener for users", "postfix/submission/smtpd", "", 0},
		{"rate limit", "postfix/smtpd", "warning: AUTH command rate limit exceeded: 11 from office.example[198.51.100.20]:2501 for service smtp", 0},
		{"aborted", "postfix/smtpd", "warning: office.example[198.51.100.20]:2501: SASL LOGIN authentication aborted", 0},
		{"wrong password", "postfix/smtpd", "warning: office.example[198.51.100.20]:2501: SASL LOGIN authentication failed: x, sasl_username=a", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log strings.Builder
			for _, line := range []string{"connect from office.example[198.51.100.20]:2501", c.line, "disconnect from office.example[198.51.100.20]:2501 ehlo=1 auth=0/1 quit=1 commands=2/3"} {
				if line != "" {
					fmt.Fprintf(&log, "Nov 29 07:40:00 mx %s[1]: %s\n", c.program, line)
				}
			}
			_, rec := read(ByName("postfix"), []byte(log.String()))
			if got := strings.Count(rec.b.String(), "cause=unsupported"); got != c.unsupported || rec.kinds[smtp.EventCommand]+rec.kinds[smtp.EventAuth] != 1 {
				t.Errorf("%d unsupported, want %d:\n%s", got, c.unsupported, rec.b.String())
			}
		})
	}
}

// TestLogTimezone checks lines of Exim with the option log_timezone.
func TestLogTimezone(t *testing.T) {
	log := "2026-11-29 09:50:03 +0200 [16930] H=(x) [203.0.113.1]:40002 F=<a@b.example> rejected RCPT <gone@example.org>: Unrouteable address\n"
	if _, rec := read(ByName("exim"), []byte(log)); !strings.Contains(rec.b.String(), "== 2026-11-29 07:50:03.000 src=203.0.113.1:40002") || rec.kinds[smtp.EventRcpt] != 1 {
		t.Error(rec.b.String())
	}
}

// TestManyMessages checks that the number of waiting messages is limited. The limit must hold even
// if the sessions remain open or a queue identifier is reused.
func TestManyMessages(t *testing.T) {
	r := New(ByName("postfix"), discard{}, Options{Zone: time.UTC, Date: newest})
	stamps := maillog.NewSyslog(time.UTC, newest)
	line := func(format string, args ...any) {
		l, ok := stamps.Parse(fmt.Appendf(nil, "Nov 29 07:40:00 mx postfix/"+format, args...))
		r.Line(&l, ok)
	}
	m := &r.parser.(*postfix).messages
	for i := range 3 * maxMessages {
		line("smtpd[%d]: A%06X: client=unknown[203.0.113.1]", i/(2*maxAlike), i)
	}
	if n := len(m.rows); n != maxMessages || len(m.order) > 2*maxMessages+1 {
		t.Errorf("%d messages, %d in order", n, len(m.order))
	}
	for range 3 * maxMessages {
		line("smtpd[1]: B000001: client=unknown[203.0.113.1]")
		line("qmgr[1]: B000001: removed")
	}
	if n := len(m.order); n > 2*maxMessages+1 {
		t.Errorf("%d in order", n)
	}
	for i := range 3 * maxAlike {
		line("smtpd[2]: C%06X: client=unknown[203.0.113.2]", i)
	}
	for _, s := range r.table.rows {
		if len(s.pending) > maxAlike {
			t.Errorf("%d messages of a session", len(s.pending))
		}
	}
}

// TestEndpoint checks the parsing of addresses with ports. An ambiguous address must be unknown.
func TestEndpoint(t *testing.T) {
	for text, want := range map[string]string{
		"[203.0.113.48:63750] to [192.0.2.25:25]": "203.0.113.48:63750",
		"[203.0.113.48]":                                 "203.0.113.48:0",
		"203.0.113.48:63750":                             "203.0.113.48:63750",
		"2001:db8:5::30:4000":                            "[2001:db8:5::30:4000]:0",
		"[2001:db8::1]:25":                               "[2001:db8::1]:25",
		"[2001:db8:5::30:4000] to [2001:db8::25:25]":     "invalid AddrPort",
		"[2001:db8:5::31:40001] to [2001:db8::25:25]":    "[2001:db8:5::31]:40001",
		"[2001:db8:0:1:2:3:4:5:4000] to [192.0.2.25:25]": "[2001:db8:0:1:2:3:4:5]:4000",
		"[2001:db8:0:1:2:3:4:4000] to [192.0.2.25:25]":   "[2001:db8:0:1:2:3:4:4000]:0",
		"[2001:db8::a:b] to [192.0.2.25:25]":             "[2001:db8::a:b]:0",
		"[2001:db8::25] to [192.0.2.25:25]":              "[2001:db8::25]:0",
		"[2001:db8:::25] to [192.0.2.25:25]":             "[2001:db8::]:25",
		"[":                                              "invalid AddrPort",
		"":                                               "invalid AddrPort",
	} {
		if got := address(endpoint([]byte(text))).String(); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// TestByteOrderMark checks that a byte order mark does not hide the first session.
func TestByteOrderMark(t *testing.T) {
	for _, kind := range []string{"icewarp", "mdaemon", "kumomta", "postal"} {
		log, err := os.ReadFile("testdata/" + kind + ".log")
		if err != nil {
			t.Fatal(err)
		}
		_, want := read(ByName(kind), log)
		if _, got := read(ByName(kind), append([]byte("\ufeff"), log...)); got.b.String() != want.b.String() {
			t.Errorf("%s:\n%s", kind, got.b.String())
		}
	}
}

// TestComments checks that comments do not make different recipients look equal.
func TestComments(t *testing.T) {
	for name, form := range map[string]string{
		"in brackets": "<(+)g%d@example.org>", "before brackets": "(a b)<g%d@example.org>", "a bracket in a comment": "<(>)g%d@example.org>",
		"long": "<(" + strings.Repeat("+", 300) + ")g%d@example.org>", "words": "<(sender black)g%d@example.org>",
		"two brackets": "<><g%d@example.org>", "a group": "<a+:g%d@example.org;>", "a route": "<@x+y:g%d@example.org>", "a quote": `<"a+>g%d"@example.org>`,
	} {
		t.Run(name, func(t *testing.T) {
			log := "203.0.113.48   [0968] 10:14:01 Connected, local IP=192.0.2.25:25\n"
			for i := range 3 {
				arg := fmt.Sprintf(form, i)
				log += "203.0.113.48   [0968] 10:14:02 <<< RCPT TO:" + arg + "\n203.0.113.48   [0968] 10:14:02 >>> 550 " + arg + "... User unknown\n"
			}
			_, rec := read(ByName("icewarp"), []byte(log))
			seen := make(map[string]bool)
			for _, m := range regexp.MustCompile(`rcpt (".*") <.*> permfail 550 cause=user`).FindAllStringSubmatch(rec.b.String(), -1) {
				if addr, err := strconv.Unquote(m[1]); err == nil {
					seen[string(mailbox.AppendBase(nil, []byte(addr), '+'))] = true
				}
			}
			if len(seen) != 3 {
				t.Errorf("%d mailboxes in:\n%s", len(seen), rec.b.String())
			}
		})
	}
}

// TestUnescaped checks that the escapes in Sendmail's log are decoded, so that a backslash does not
// change the meaning of an argument.
func TestUnescaped(t *testing.T) {
	for line, want := range map[string]string{
		`<(\\(+)g1@example.org>`: `<(\(+)g1@example.org>`, `a\\\\b`: `a\\b`, `a\\012b`: `a\012b`, `a\011b`: "a\tb", `a\\\011`: "a\\\t", `a\`: `a\`, "plain": "plain",
	} {
		if got := string(unescaped([]byte(line))); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	var log strings.Builder
	for i := range 3 {
		fmt.Fprintf(&log, "<21>Nov 29 07:13:33 sendmail[20875]: 6AT7DW5p020875: <(\\\\(+)g%d@example.org>... User unknown\n", i)
	}
	log.WriteString("<22>Nov 29 07:13:34 sendmail[20875]: 6AT7DW5p020875: from=<a@example.net>, size=0, class=0, nrcpts=0, bodytype=8BITMIME, proto=ESMTP, daemon=MTA, relay=[203.0.113.48]\n")
	_, rec := read(ByName("sendmail"), []byte(log.String()))
	for i := range 3 {
		if want := fmt.Sprintf(`(\(+)g%d@example.org`, i); !strings.Contains(rec.b.String(), strconv.Quote(want)) {
			t.Errorf("no %s in:\n%s", want, rec.b.String())
		}
	}
}

// TestParts checks that the two parts of a session that was open when scanwatch restarted have
// different ids, even if they begin in the same second, and that each id is the same whenever the
// part is read.
func TestParts(t *testing.T) {
	lines := []string{"Dec  1 10:14:02 mx postfix/smtpd[77]: connect from unknown[203.0.113.48]\n"}
	for i := range 6 {
		lines = append(lines, fmt.Sprintf("Dec  1 10:14:02 mx postfix/smtpd[77]: NOQUEUE: reject: RCPT from unknown[203.0.113.48]: 550 5.1.1 <g%[1]d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<a@example.net> to=<g%[1]d@example.org> proto=ESMTP helo=<x.example>\n", i))
	}
	ids := make(map[uint64]int)
	for range 2 {
		for _, part := range [][]string{lines[:4], lines[4:]} {
			_, rec := read(ByName("postfix"), []byte(strings.Join(part, "")))
			for id := range rec.ids {
				ids[id]++
			}
		}
	}
	if len(ids) != 2 {
		t.Errorf("ids %v, want 2 ids that occur twice", ids)
	}
}
