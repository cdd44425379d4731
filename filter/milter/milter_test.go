package milter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// A recorder records events. A recorder answers requests with the answers that the test has set for
// the phase.
type recorder struct {
	mu      sync.Mutex
	lines   []string
	answers map[smtp.Phase][]smtp.Answer // each answer is used once, in this order
}

func (r *recorder) Site(name string) { r.add("site %s", name) }

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorder) Event(e *smtp.Event) {
	switch e.Kind {
	case smtp.EventConnect:
		r.add("connect %v > %v local %v %q %v", e.Src, e.Dst, e.Local, e.RDNS, e.FCrDNS)
	case smtp.EventLine:
		r.add("line %d %q", e.Verb, e.Text)
	case smtp.EventReply:
		r.add("reply %d", e.Code)
	case smtp.EventDisconnect:
		r.add("disconnect %v", e.Ending)
	default:
		r.add("%d %v name %q addr %q text %q code %d reply %q cause %d", e.Kind, e.Result, e.Name, e.Addr, e.Text, e.Code, e.Reply, e.Cause)
	}
}

func (r *recorder) Ask(e *smtp.Event) (a smtp.Answer) {
	refused := ""
	if e.Refused {
		refused = " refused true"
	}
	r.add("ask %v name %q addr %q%s", e.Phase, e.Name, e.Addr, refused)
	if list := r.answers[e.Phase]; len(list) > 0 {
		a, r.answers[e.Phase] = list[0], list[1:]
	}
	return a
}

// A client is a mail server that connects to the milter.
type client struct {
	t *testing.T
	*wire
	conn net.Conn
}

func serve(t *testing.T, sink Sink) *client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "milter.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := &Server{Sink: sink, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := &client{t, newWire(conn), conn}
	c.negotiate()
	return c
}

// negotiate negotiates the protocol.
func (c *client) negotiate() {
	c.t.Helper()
	if err := c.write(cmdNegotiate, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 6), 0x1ff), 0x1fffff)); err != nil {
		c.t.Fatal(err)
	}
	p, err := c.read()
	if err != nil || p.command != cmdNegotiate {
		c.t.Fatal(p, err)
	}
	if steps := binary.BigEndian.Uint32(p.data[8:]); steps != noBody|noHeaders|noEOH|rejectedToo || steps&noReplies != 0 {
		c.t.Fatalf("steps %x", steps)
	}
}

// command sends macros and a command, and returns the reply. NUL bytes separate the parts of the
// command.
func (c *client) command(command byte, macros []string, data ...string) string {
	c.t.Helper()
	if macros != nil {
		if err := c.write(cmdMacros, []byte{command}, []byte(strings.Join(macros, "\x00")+"\x00")); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.write(command, []byte(strings.Join(data, "\x00"))); err != nil {
		c.t.Fatal(err)
	}
	if command == cmdAbort || command == cmdQuitReuse || command == cmdQuit {
		return ""
	}
	p, err := c.read()
	if err != nil {
		c.t.Fatal(err)
	}
	return string(p.command) + strings.TrimSuffix(string(p.data), "\x00")
}

var connectMacros = []string{"j", "mx.example.org", "{daemon_addr}", "192.0.2.25", "{daemon_port}", "25", "{client_ptr}", "mail.example.net", "{client_resolve}", "OK"}

func (c *client) connect() string {
	return c.command(cmdConnect, connectMacros, "mail.example.net", "4\x04\x00192.0.2.1", "")
}

func TestConversation(t *testing.T) {
	r := &recorder{answers: map[smtp.Phase][]smtp.Answer{
		smtp.PhaseHelo:   {{Wait: time.Second}, {}}, // the request is repeated
		smtp.PhaseRcptTo: {{}, {}, {Decision: smtp.Reject, Text: "450 4.7.1 Later 100%\n"}},
	}}
	c := serve(t, r)
	for _, step := range []struct {
		want string
		got  string
	}{
		{"c", c.connect()},
		{"c", c.command(cmdHelo, nil, "mail.example.net", "")},
		{"c", c.command(cmdHelo, []string{"{tls_version}", "TLSv1.3", "{cipher}", "AES", "{cipher_bits}", "256"}, "mail.example.net", "")},
		{"c", c.command(cmdMail, []string{"i", "4ABC", "{auth_authen}", "erin"}, "<a@example.net>", "SIZE=5", "")},
		{"c", c.command(cmdRcpt, []string{"{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1", "{rcpt_addr}", "User unknown"}, "<nobody@example.org>", "")},
		{"c", c.command(cmdRcpt, []string{"{rcpt_mailer}", "local"}, "<joe@example.org>", "")},
		{"y450 4.7.1 Later 100??", c.command(cmdRcpt, nil, "<jane@example.org>", "")},
		{"c", c.command(cmdData, nil)},
		{"c", c.command(cmdEOM, nil)},
		{"c", c.command(cmdUnknown, nil, "GET / HTTP/1.1", "")},
		{"c", c.command(cmdUnknown, nil, "dXNlcg==", "")},
		{"c", c.command(cmdMail, nil, "<>", "")},
		{"", c.command(cmdAbort, nil)},
		{"", c.command(cmdQuit, nil)},
	} {
		if step.got != step.want {
			t.Errorf("%q, want %q", step.got, step.want)
		}
	}
	if _, err := c.read(); !errors.Is(err, io.EOF) {
		t.Fatal(err) // the milter has closed the connection and reported the end of the session
	}
	want := `site mx.example.org
connect 192.0.2.1:1024 > 192.0.2.25:25 local false "mail.example.net" pass
ask connect name "" addr ""
line 2 ""
ask helo name "mail.example.net" addr ""
ask helo name "mail.example.net" addr ""
reply 250
4 ok name "mail.example.net" addr "" text "" code 0 reply "" cause 0
5  name "" addr "" text "TLSv1.3:AES:256" code 0 reply "" cause 0
line 2 ""
ask helo name "mail.example.net" addr ""
reply 250
4 ok name "mail.example.net" addr "" text "" code 0 reply "" cause 0
6 pass name "erin" addr "" text "" code 0 reply "" cause 0
line 3 ""
ask mail-from name "" addr "a@example.net"
reply 250
7 ok name "" addr "a@example.net" text "" code 0 reply "" cause 0
line 4 ""
ask rcpt-to name "" addr "nobody@example.org" refused true
reply 550
8 permfail name "" addr "nobody@example.org" text "" code 550 reply "User unknown" cause 9
line 4 ""
ask rcpt-to name "" addr "joe@example.org"
reply 250
8 ok name "" addr "joe@example.org" text "" code 0 reply "" cause 0
line 4 ""
ask rcpt-to name "" addr "jane@example.org"
14  name "rcpt-to" addr "" text "450 4.7.1 Later 100??" code 0 reply "" cause 1
reply 450
8 tempfail name "" addr "jane@example.org" text "" code 450 reply "450 4.7.1 Later 100??" cause 1
line 5 ""
ask data name "" addr ""
reply 250
9 ok name "" addr "" text "" code 0 reply "" cause 0
ask commit name "" addr ""
10  name "" addr "" text "" code 0 reply "" cause 0
line 0 "GET"
reply 500
12  name "" addr "" text "GET" code 500 reply "" cause 5
line 0 "********"
reply 500
12  name "" addr "" text "********" code 500 reply "" cause 5
line 3 ""
ask mail-from name "" addr ""
reply 250
7 ok name "" addr "" text "" code 0 reply "" cause 0
11  name "" addr "" text "" code 0 reply "" cause 0
disconnect closed`
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := strings.Join(r.lines, "\n"); got != want {
		t.Errorf("events:\n%s", got)
	}
}

// TestRefusedRecipient checks that the cause of a rejection is the server's if the server itself has
// rejected the recipient, even if a rule disconnects the client.
func TestRefusedRecipient(t *testing.T) {
	r := &recorder{answers: map[smtp.Phase][]smtp.Answer{smtp.PhaseRcptTo: {{}, {Decision: smtp.Disconnect, Text: "421 4.7.0 Bye"}}}}
	c := serve(t, r)
	c.connect()
	unknown := []string{"{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1", "{rcpt_addr}", "User unknown"}
	for _, want := range []string{"c", "y421 4.7.0 Bye"} {
		if got := c.command(cmdRcpt, unknown, "<nobody@example.org>", ""); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := c.command(cmdRcpt, []string{"{rcpt_mailer}", "local"}, "<joe@example.org>", ""); got != "y421 4.7.0 Bye" {
		t.Error(got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Join(r.lines, "\n")
	if n := strings.Count(all, fmt.Sprintf("code 550 reply \"User unknown\" cause %d", smtp.CauseUser)); n != 2 {
		t.Errorf("%d of 2 recipients are unknown:\n%s", n, all)
	}
	if strings.Count(all, "refused true") != 2 {
		t.Errorf("requests:\n%s", all)
	}
}

// TestDisconnect checks that all further commands of a client that must be disconnected are
// rejected. Mail servers keep the connection open after a permanent reply, so commands after such a
// reply must also be rejected.
func TestDisconnect(t *testing.T) {
	r := &recorder{answers: map[smtp.Phase][]smtp.Answer{smtp.PhaseConnect: {{Decision: smtp.Disconnect, Text: "554 5.7.1 No scanning"}, {Decision: smtp.Disconnect, Text: "450 4.7.1 Later"}}}}
	c := serve(t, r)
	for range 2 {
		if got := c.connect(); got != "y554 5.7.1 No scanning" && got != "y421 4.7.1 Later" {
			t.Fatal(got)
		}
		for _, one := range []byte{cmdHelo, cmdMail, cmdRcpt, cmdData, cmdEOM} {
			if got := c.command(one, nil, "<x@example.net>", ""); got[0] != replyCode {
				t.Errorf("%c: %q", one, got)
			}
		}
		if got := c.command(cmdUnknown, nil, "X", ""); got != string(replyReject) {
			t.Error(got)
		}
		c.command(cmdQuitReuse, nil) // the next session on the same connection is not affected
	}
	if got := c.connect(); got != "c" {
		t.Error(got)
	}
}

func TestPanic(t *testing.T) {
	c := serve(t, panicking{})
	if got := c.connect(); got != "c" {
		t.Error(got)
	}
}

type panicking struct{}

func (panicking) Site(string)                 {}
func (panicking) Event(*smtp.Event)           {}
func (panicking) Ask(*smtp.Event) smtp.Answer { panic("test") }

// FuzzConn sends arbitrary bytes after a negotiation.
func FuzzConn(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 'C'})
	f.Add([]byte("\x00\x00\x00\x13Cx\x004\x04\x00192.0.2.1\x00\x00\x00\x00\x03Dx\x00\x00\x00\x00\x01H"))
	f.Add([]byte("\xff\xff\xff\xffO"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Server{Sink: &recorder{}, Log: slog.New(slog.DiscardHandler)}
		hello := "\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"
		_ = s.conn(t.Context(), struct {
			io.Reader
			io.Writer
		}{io.MultiReader(strings.NewReader(hello), strings.NewReader(string(b))), io.Discard})
	})
}

// TestRefusals checks that a rejection counts as a rejected recipient only if the mailbox is
// missing or relaying is denied.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status, text string
		want         smtp.Cause
	}{
		{"5.1.1", "Recipient address rejected: User unknown in local recipient table", smtp.CauseUser},
		{"5.1.1", "", smtp.CauseUser},                                    // Sendmail
		{"5.1.1", "5.1.1 Did you mean gmail.example?", smtp.CauseFilter}, // a transport that the administrator has blocked
		{"5.1.1", "Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 550 5.1.1 <joe@example.org>: no such user (in reply to RCPT TO command)", smtp.CauseUser},
		{"5.1.1", "Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 550-5.1.10 RESOLVER.ADR.RecipientNotFound", smtp.CauseUser},
		{"5.1.1", "Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 550 <joe@example.org>: Recipient address rejected: User unknown in virtual mailbox table (in reply to RCPT TO command)", smtp.CauseUser},
		{"5.1.1", "Recipient address rejected: undeliverable address: unknown user: \"joe\"", smtp.CauseUser},
		{"5.1.1", "Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] said: 554 5.7.1 Service unavailable; client blocked (in reply to RCPT TO command)", smtp.CauseFilter},
		{"5.1.1", "Recipient address rejected: undeliverable address: host store.example.org[192.0.2.7] refused to talk to me: 554 5.7.1 said: 550 5.1.1 x", smtp.CauseFilter},
		{"5.1.1", "Recipient address rejected: undeliverable address: Host or domain name not found", smtp.CauseFilter},
		{"5.1.10", "Recipient address rejected: Domain x.example does not accept mail (nullMX)", smtp.CauseFilter},
		{"5.7.1", "Relay access denied", smtp.CauseRelay},
		{"4.7.1", "Relay access denied", smtp.CauseRelay},
		{"4.7.1", "Client host rejected: cannot find your hostname", smtp.CauseFilter},
		{"5.1.3", "Bad recipient address syntax", smtp.CauseSyntax},
		{"5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using bl.example.org", smtp.CauseFilter},
		{"5.7.1", "Recipient address rejected: SPF fail", smtp.CauseFilter},
		{"5.1.8", "Sender address rejected: Domain not found", smtp.CauseFilter},
		{"4.2.0", "Recipient address rejected: Greylisted", smtp.CauseFilter},
		{"", "", smtp.CauseFilter},
	} {
		s := newSession()
		s.macros = macros{"rcpt_mailer": "error", "rcpt_host": c.status, "rcpt_addr": c.text}
		e := s.recipient([]byte("joe@example.org"), 0)
		if e.Cause != c.want || (e.Result == smtp.ResultTempfail) != strings.HasPrefix(c.status, "4") {
			t.Errorf("%s %s: cause %d, %v", c.status, c.text, e.Cause, e.Result)
		}
	}
}

// TestReplyDigit checks a text that begins with a digit. Postfix takes the digit for an enhanced status
// code, and then ignores the milter for the rest of the session.
func TestReplyDigit(t *testing.T) {
	for text, want := range map[string]string{
		"554 3 strikes":      "554 5.0.0 3 strikes",
		"450 10 tries":       "421 4.0.0 10 tries",
		"550 5 strikes":      "550 5.0.0 5 strikes",
		"554 5.7.1 No":       "554 5.7.1 No",
		"421 4.7.0 Too many": "421 4.7.0 Too many",
		"550 No":             "550 No",
	} {
		if got := replyOf(smtp.Answer{Decision: smtp.Disconnect, Text: text}); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// TestErrorTransport checks a recipient with the transport "error" that Postfix has accepted. The
// recipient must not count as rejected.
func TestErrorTransport(t *testing.T) {
	for _, c := range []struct {
		host, text string
		want       smtp.Result
	}{
		{"5.1.1 mailbox closed", "joe@example.org", smtp.ResultOK},
		{"5.1.1", "joe@example.org", smtp.ResultOK},
		{"", "joe", smtp.ResultPermfail}, // Sendmail 8.18
		{"5.7.1", "Contact postmaster@example.org first", smtp.ResultPermfail},
	} {
		s := newSession()
		s.macros = macros{"rcpt_mailer": "error", "rcpt_host": c.host, "rcpt_addr": c.text}
		if e := s.recipient([]byte("joe@example.org"), 0); e.Result != c.want {
			t.Errorf("%s %s: %v", c.host, c.text, e.Result)
		}
	}
}

// TestTexts checks how addresses are read from arguments. TestTexts also checks that passwords in
// unknown commands are masked.
func TestTexts(t *testing.T) {
	for arg, want := range map[string]string{
		"<a@example.net>": "a@example.net", "<>": "", `<"a>b"@example.net>`: `<"a>b"@example.net>`, "a@example.net": "a@example.net",
		"<a@example.net\x00SIZE=1>": "a@example.net",
		"<(+)a@example.net>":        "(+)a@example.net", "(+)<a@example.net>": "(+)<a@example.net>",
	} {
		if string(mailbox([]byte(arg))) != want {
			t.Errorf("%q: %q, want %q", arg, mailbox([]byte(arg)), want)
		}
	}
	for line, masked := range map[string]bool{
		"XYZZY": false, "TURN": false, "FOO bar": false, "SSH-2.0-Go": false, "GET / HTTP/1.1": false,
		"dXNlcg==": true, "am9l": true, "c2VjcmV0": true, "Authorization: Basic am9l": true, "PASS secret": true, "a1 LOGIN joe secret": true,
		`{"password":"x"}`: true, "AUTH PLAIN am9l": true,
	} {
		if got := string(newSession().unknown([]byte(line), 0).Text); strings.Contains(got, smtp.Masked) != masked || masked && strings.Contains(got, "secret") {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// TestRequested checks that different recipients stay different, even if their arguments begin alike
// or contain credentials.
func TestRequested(t *testing.T) {
	s := newSession()
	for _, form := range []string{"<(" + strings.Repeat("+", 300) + ")g%d@example.net>", "<" + strings.Repeat("a", 300) + "g%d@example.net>", "<(x AUTH=y)g%d@example.net>", "<a@example.net> AUTH=<g%d@example.net>"} {
		seen := make(map[string]bool)
		for i := range 3 {
			addr := s.requested(fmt.Appendf(nil, form+"\x00", i), int64(i))
			if len(addr) > maxPath || bytes.Contains(addr, []byte("AUTH")) {
				t.Errorf("%s: %q", form, addr)
			}
			seen[string(addr)] = true
		}
		if want := 3; len(seen) != want && (len(seen) != 1 || !seen["a@example.net"]) {
			t.Errorf("%s: %d different recipients", form, len(seen))
		}
	}
}

// TestSecrets checks that two kinds of lines are not reported: the lines of a rejected login, and
// message text after a rejected DATA.
func TestSecrets(t *testing.T) {
	r := new(recorder)
	c := serve(t, r)
	c.connect()
	c.command(cmdHelo, nil, "client.example.net", "")
	for _, line := range []string{
		"joe", "hunter2!", "USER joe", "joe@example.org", "tulip#77", "PASS hunter2", "hunter2!", "TULIP", "QUJD", "c2VjcmV0 ",
		"the PIN of my card is 4711", "Subject: contract with ACME", "GET /4711 HTTP/1.1",
	} {
		c.command(cmdUnknown, nil, line, "")
	}
	c.command(cmdMail, nil, "<a@example.net>", "")
	for _, line := range []string{"Dear hunter2", "GET /4711 HTTP/1.1"} {
		c.command(cmdUnknown, nil, line, "")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	got := strings.Join(r.lines, "\n")
	for _, secret := range []string{"joe", "hunter2", "tulip", "TULIP", "QUJD", "c2V", "PIN", "4711", "ACME", "Dear"} {
		if strings.Contains(got, secret) {
			t.Errorf("%s is reported:\n%s", secret, got)
		}
	}
	if n := strings.Count(got, "line 0"); n != 13 {
		t.Errorf("%d unknown commands are reported", n) // commands in the transaction must not be reported
	}
}

// TestNames checks that Site is called with the name of a session's server before the events of the
// session.
func TestNames(t *testing.T) {
	r := new(recorder)
	s := &Server{Sink: r, Log: slog.New(slog.DiscardHandler)}
	var sessions []*conversation
	for _, name := range []string{"mx.example.org", "out.example.org"} {
		c := &conversation{server: s, wire: newWire(discard{}), session: newSession()}
		c.session.macros = macros{"j": name, "other": ""}
		sessions = append(sessions, c)
		if err := c.command(t.Context(), packet{cmdConnect, []byte("[203.0.113.1]\x004\x04\x00203.0.113.1\x00")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := sessions[0].command(t.Context(), packet{cmdHelo, []byte("out.example.org\x00")}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range r.lines {
		if name, ok := strings.CutPrefix(line, "site "); ok {
			names = append(names, name)
		}
	}
	if want := []string{"mx.example.org", "out.example.org", "mx.example.org"}; !slices.Equal(names, want) {
		t.Errorf("the names are %v, want %v", names, want)
	}
}

// discard is a connection without input.
type discard struct{}

func (discard) Read([]byte) (int, error)    { return 0, io.EOF }
func (discard) Write(b []byte) (int, error) { return len(b), nil }

// TestMacros checks that only the macros that the filter needs are kept.
func TestMacros(t *testing.T) {
	m := make(macros)
	for i := range 1000 {
		m.parse(fmt.Appendf(nil, "{x%d}\x00%s\x00j\x00mx.example.org\x00", i, strings.Repeat("x", 1000)))
	}
	if len(m) != 1 || m["j"] != "mx.example.org" {
		t.Errorf("%d macros are kept", len(m))
	}
}

// TestEnds checks sessions that are open when a server stops. If the mail server stops, the ending
// of a session is unknown. If this package's server stops, the session has not ended. In both
// cases, the rules for the end of the session must not impose a ban.
func TestEnds(t *testing.T) {
	for _, stop := range []bool{false, true} {
		r := new(recorder)
		ctx, cancel := context.WithCancel(t.Context())
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- (&Server{Sink: r, Log: slog.New(slog.DiscardHandler)}).conn(ctx, near) }()
		c := &client{t, newWire(far), far}
		c.negotiate()
		c.connect()
		if stop {
			cancel()
		}
		far.Close()
		<-done
		cancel()
		if got := r.lines[len(r.lines)-1]; stop != (got != "disconnect unknown") || strings.HasPrefix(got, "disconnect") == stop {
			t.Errorf("stop %v: %s", stop, got)
		}
	}
}
