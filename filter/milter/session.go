package milter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A session translates the mail server's commands for an SMTP session into events. doc.go lists the
// facts that the mail server does not report.
type session struct {
	id     uint64
	open   bool
	src    netip.AddrPort
	start  int64  // start of the connection in microseconds since 1970
	macros macros // macros of all commands so far
	tls    bool
	user   string // user of the latest login
	mail   bool   // a transaction is open
	spoke  bool   // the client has sent a command
	sent   bool   // the client has sent MAIL
	server string // name of the mail server
	// greeted reports whether the client has sent HELO or EHLO, even if it was rejected.
	greeted  bool
	redactor smtpd.UnknownRedactor
	// repeated reports whether the command is handled again after a wait. waited reports whether
	// the command must not wait any longer.
	repeated, waited bool
	ev               smtp.Event
}

// Maximum lengths of text in bytes.
const (
	maxName    = 255 // RFC 5321 section 4.5.3.1.2
	maxPath    = 256 // RFC 5321 section 4.5.3.1.3
	maxExample = 200
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// begin prepares an event.
func (s *session) begin(kind smtp.Kind, at int64) *smtp.Event {
	s.ev = smtp.Event{Kind: kind, Time: at, Session: s.id}
	return &s.ev
}

// connect parses the command for a new connection. The data of the command is the client's name,
// address family, port and address.
func (s *session) connect(data []byte, at int64) *smtp.Event {
	s.open = true
	e := s.begin(smtp.EventConnect, at)
	name, rest, ok := cut(data)
	if !ok || len(rest) == 0 {
		return e
	}
	switch family, rest := rest[0], rest[1:]; family {
	case 'L':
		e.Local = true
	case '4', '6':
		if len(rest) < 2 {
			break
		}
		port := uint16(rest[0])<<8 | uint16(rest[1])
		text, _, _ := cut(rest[2:])
		e.Src = addrPort(string(text), port)
	}
	s.src, s.start = e.Src, at
	e.RDNS, e.FCrDNS = s.reverse(name)
	port, _ := strconv.ParseUint(s.macros["daemon_port"], 10, 16)
	e.Dst = addrPort(firstOf(s.macros["daemon_addr"], s.macros["if_addr"]), uint16(port))
	return e
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// addrPort parses an address. The address may have the prefix "IPv6:" (RFC 5321 section 4.1.3).
func addrPort(text string, port uint16) netip.AddrPort {
	a, err := netip.ParseAddr(strings.Trim(strings.TrimPrefix(text, "IPv6:"), "[]"))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap().WithZone(""), port)
}

// resolve maps values of the macro client_resolve to FCrDNS results.
var resolve = map[string]smtp.FCrDNS{
	"OK": smtp.FCrDNSPass, "FORGED": smtp.FCrDNSFail, "FAIL": smtp.FCrDNSFail, "TEMP": smtp.FCrDNSError,
}

// reverse returns the client's reverse DNS name and the FCrDNS result. If the name is unproven, the
// command contains an address in brackets or the word "unknown" in its place.
func (s *session) reverse(name []byte) ([]byte, smtp.FCrDNS) {
	result, known := resolve[s.macros["client_resolve"]]
	ptr := s.macros["client_ptr"]
	unproven := len(name) == 0 || name[0] == '[' || string(name) == "unknown"
	switch {
	case !known && unproven:
		return nil, smtp.FCrDNSUnknown
	case !known:
		return clip(name, maxName), smtp.FCrDNSUnknown
	case result == smtp.FCrDNSPass && !unproven:
		return clip(name, maxName), result
	case ptr != "" && ptr != "unknown" && ptr[0] != '[':
		return clip([]byte(ptr), maxName), result
	}
	return nil, result
}

// refusedConnection returns the event for a rejection that the server sends instead of its
// greeting.
func (s *session) refusedConnection(text string, at int64) *smtp.Event {
	e := s.begin(smtp.EventGreeting, at)
	e.Code, _ = codeOf(text)
	return e
}

// line returns the event for a command from the client. The milter protocol does not transmit the
// text of the command.
func (s *session) line(verb smtp.Verb, at int64) *smtp.Event {
	s.spoke, s.sent = true, s.sent || verb == smtp.VerbMail
	e := s.begin(smtp.EventLine, at)
	e.Verb = verb
	return e
}

// request returns an event that asks for a decision.
func (s *session) request(phase smtp.Phase, at int64, name, addr []byte) *smtp.Event {
	e := s.begin(smtp.EventRequest, at)
	e.Phase, e.Name, e.Addr = phase, name, addr
	return e
}

// helo returns the event for an accepted greeting. helo always reports EHLO, although the client
// may have sent HELO.
func (s *session) helo(name []byte, at int64) *smtp.Event {
	s.greeted = true
	e := s.begin(smtp.EventHelo, at)
	e.Verb, e.Word, e.Name, e.Result = smtp.VerbEhlo, []byte("EHLO"), name, smtp.ResultOK
	return e
}

// secure returns an event if TLS has been started, or nil.
func (s *session) secure(at int64) *smtp.Event {
	version := s.macros["tls_version"]
	if version == "" || s.tls {
		return nil
	}
	s.tls = true
	e := s.begin(smtp.EventTLS, at)
	e.Text = clip([]byte(version+":"+s.macros["cipher"]+":"+s.macros["cipher_bits"]), maxExample)
	return e
}

// login returns an event if a user has logged in since the last call, or nil.
func (s *session) login(at int64) *smtp.Event {
	user := s.macros["auth_authen"]
	if user == "" || user == s.user {
		return nil
	}
	s.user = user
	e := s.begin(smtp.EventAuth, at)
	e.Result, e.Name = smtp.ResultPass, clip([]byte(user), maxName)
	return e
}

// mailbox returns the address in the first argument of MAIL.
func mailbox(data []byte) []byte {
	addr, _, _ := cut(data)
	return smtpd.Address(addr, maxPath)
}

// requested returns the address in the first argument of RCPT. Different recipients have different
// addresses.
func (s *session) requested(data []byte, at int64) []byte {
	arg, _, _ := cut(data)
	addr := smtpd.Recipient(arg, maxPath)
	if addr == nil && len(arg) > 0 {
		addr = smtpd.Name(fmt.Appendf(nil, "%d %d", s.id, at))
	}
	return addr
}

// sender returns the event for an accepted MAIL. The server may still reject the command later.
func (s *session) sender(addr []byte, at int64) *smtp.Event {
	s.mail = true
	e := s.begin(smtp.EventMail, at)
	e.Verb, e.Addr, e.Result = smtp.VerbMail, addr, smtp.ResultOK
	return e
}

// refused reports whether the server itself has rejected the recipient. For a rejected recipient,
// the macro rcpt_mailer is "error", rcpt_host contains the enhanced status code (RFC 3463), and
// rcpt_addr contains the reply's text. If rcpt_addr contains an address, Postfix has accepted the
// recipient, but its transport is "error".
func (s *session) refused() bool {
	text := s.macros["rcpt_addr"]
	return s.macros["rcpt_mailer"] == "error" && (!strings.Contains(text, "@") || strings.Contains(text, " "))
}

func (s *session) recipient(addr []byte, at int64) *smtp.Event {
	e := s.begin(smtp.EventRcpt, at)
	e.Verb, e.Addr, e.Result = smtp.VerbRcpt, addr, smtp.ResultOK
	if !s.refused() {
		return e
	}
	status, text := s.macros["rcpt_host"], s.macros["rcpt_addr"]
	e.Result, e.Code = smtp.ResultPermfail, 550
	if strings.HasPrefix(status, "4") {
		e.Result, e.Code = smtp.ResultTempfail, 450
	}
	if is := refusals[status]; is.text == nil || is.text(text) {
		e.Cause = is.cause
	}
	switch {
	case e.Cause == smtp.CauseNone:
		e.Cause = smtp.CauseFilter
	case e.Cause == smtp.CauseRecipient && (!strings.Contains(reason(text), " ") || smtpd.UserUnknown([]byte(text)) || smtpd.Undeliverable([]byte(text))):
		e.Cause = smtp.CauseUser
	}
	e.Reply = clip([]byte(text), maxExample)
	return e
}

// refusals maps enhanced status codes (RFC 3463) of rejections to their causes, for replies whose
// text matches. Only rejections in refusals are about the recipient. Other rejections may be about
// the client, for example because of a block list, and must not be evidence of a harvest.
//
// By default, Postfix checks the client, the greeting and the sender only at RCPT
// (smtpd_delay_reject). If a transport is blocked, Postfix replies with 5.1.1 and the
// administrator's text.
var refusals = map[string]struct {
	cause smtp.Cause
	text  func(string) bool // nil if any text matches
}{
	"5.1.1": {smtp.CauseRecipient, func(text string) bool {
		reason := reason(text)
		return strings.Contains(reason, "User unknown") || !strings.Contains(reason, " ") || // Sendmail omits the text
			smtpd.Undeliverable([]byte(text))
	}},
	"5.7.1": {smtp.CauseRelay, relayDenied},
	"4.7.1": {smtp.CauseRelay, relayDenied}, // default of Postfix's defer_unauth_destination
	"5.1.3": {cause: smtp.CauseSyntax},
}

func relayDenied(text string) bool { return strings.Contains(reason(text), "Relay access denied") }

func reason(text string) string { return string(smtpd.Reason([]byte(text))) }

func (s *session) data(at int64) *smtp.Event {
	e := s.begin(smtp.EventData, at)
	e.Verb, e.Result = smtp.VerbData, smtp.ResultOK
	return e
}

// unknown returns the event for a command that the server does not know or does not offer. In a
// transaction, unknown returns nil, because the line may be message text: the server does not
// report that it has rejected DATA, and the client may have sent the message without waiting for
// the reply.
func (s *session) unknown(data []byte, at int64) *smtp.Event {
	line, _, _ := cut(data)
	text, verb := s.redactor.Line(line, !s.greeted)
	if s.mail {
		return nil
	}
	e := s.begin(smtp.EventCommand, at)
	e.Verb, e.Code, e.Cause, e.Text = verb, 500, smtp.CauseUnknown, text
	if verb != smtp.VerbUnknown {
		e.Code, e.Cause = 502, smtp.CauseUnsupported
	}
	return e
}
