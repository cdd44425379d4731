package smtpd

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"

	"scanwatch/internal/smtp"
)

// A conn is the state of an smtpd session in a FrontEnd.
type conn struct {
	id         uint64
	greeted    bool // smtpd has sent its first reply
	quit       bool
	timedOut   bool
	hungUp     bool // smtpd is closing the connection because of its decision or a filter's
	sawAuth    bool // the client has sent AUTH; later unknown lines may contain passwords
	inExchange bool // smtpd expects the next line of an AUTH exchange
	noData     bool // DATA was rejected; the following lines may be message text
	cmd        command
}

// ending returns how the session has ended.
func (c *conn) ending() smtp.Ending {
	switch {
	case c.quit:
		return smtp.EndingQuit
	case c.timedOut:
		return smtp.EndingTimeout
	case c.hungUp:
		return smtp.EndingRejected
	}
	return smtp.EndingDropped
}

// A command is the latest line from the client until its outcome is known.
type command struct {
	at        int64
	line      []byte // line in redacted form
	reply     []byte
	code      uint32
	verb      smtp.Verb
	waiting   bool // smtpd has not replied yet
	open      bool // the outcome has not been reported yet
	filtered  bool // a filter, not smtpd, determined the outcome
	rewritten bool // a filter changed the command
	unknown   bool // smtpd does not know the command
	secret    bool // the line is part of a login
}

func (c *command) reset() { *c = command{line: c.line[:0], reply: c.reply[:0]} }

// causes maps reply codes of smtpd to causes, by verb. For a code that is not listed, the first
// digit determines the cause.
var causes = [...]struct {
	verbs []smtp.Verb
	code  uint32
	cause smtp.Cause
}{
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 553, smtp.CauseSyntax}, // invalid address syntax
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 503, smtp.CauseOrder},
	{[]smtp.Verb{smtp.VerbHelo, smtp.VerbEhlo}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbAuth}, 503, smtp.CauseUnsupported},
	{[]smtp.Verb{smtp.VerbAuth}, 504, smtp.CauseUnsupported},
}

// cause returns why smtpd rejected the command. A permanent rejection of RCPT with a code that is
// not listed means that smtpd does not accept mail for the recipient.
func (c *command) cause() smtp.Cause {
	switch {
	case c.filtered:
		return smtp.CauseFilter
	case c.unknown:
		return smtp.CauseUnknown
	case c.code < 400:
		return smtp.CauseNone
	}
	if c.verb == smtp.VerbRcpt && relayDenied(c.reply) {
		return smtp.CauseRelay
	}
	for _, row := range causes {
		if row.code == c.code && slices.Contains(row.verbs, c.verb) {
			return row.cause
		}
	}
	if c.verb == smtp.VerbRcpt && c.code >= 500 {
		if UserUnknown(c.reply) {
			return smtp.CauseUser
		}
		return smtp.CauseRecipient
	}
	return smtp.CauseNone
}

// relayDenied reports whether the reply of another mail server means that it does not relay mail to
// the recipient. smtpd has only one reply for all recipients that it does not accept, so this
// function is not used for smtpd.
func relayDenied(reply []byte) bool {
	reason := Reason(reply)
	for _, words := range denials {
		if bytes.Contains(reason, words) {
			return true
		}
	}
	return false
}

// UserUnknown reports whether the reply of another mail server means that a local recipient does not
// exist. Postfix and Sendmail send these replies only for their own domains.
func UserUnknown(reply []byte) bool {
	reason := bytes.TrimPrefix(Reason(reply), []byte("5.1.1 "))
	return bytes.HasPrefix(reason, []byte("Recipient address rejected: User unknown")) || bytes.HasPrefix(reason, []byte("User unknown"))
}

// said matches a next server's rejection, and its enhanced status code for a missing mailbox (RFC 3463
// section 3.2; Exchange uses 5.1.10).
var said = regexp.MustCompile(`^host \S+ said: 5\d\d[ -](5\.1\.10? )?`)

// Undeliverable reports whether the text of a reply from Postfix means that a recipient does not exist
// because a probe to it has failed (ADDRESS_VERIFICATION_README). A probe may also fail because the next
// server rejects all mail.
func Undeliverable(text []byte) bool {
	why, ok := bytes.CutPrefix(text, []byte("Recipient address rejected: undeliverable address: "))
	if !ok {
		return false
	}
	if bytes.HasPrefix(why, []byte("unknown user: ")) {
		return true
	}
	at := said.FindSubmatchIndex(why)
	return at != nil && (at[2] >= 0 || UserUnknown(why[at[1]:]))
}

// Reason returns the part of a reply's text after the recipient. Replies of Postfix begin with
// "<RECIPIENT>: ", and replies of Sendmail with "<RECIPIENT>... ". The recipient is removed because
// the client has chosen it.
func Reason(reply []byte) []byte {
	for i := bytes.LastIndexByte(reply, '>'); i >= 0; i = bytes.LastIndexByte(reply[:i], '>') {
		for _, end := range [...]string{">: ", ">... "} {
			if rest, ok := bytes.CutPrefix(reply[i:], []byte(end)); ok {
				return rest
			}
		}
	}
	return reply
}

// denials lists the texts with which Postfix, Sendmail, Exim, KumoMTA, IceWarp and others refuse to
// relay.
var denials = [...][]byte{
	[]byte("Relay access denied"), []byte("Relaying denied"), []byte("relay not permitted"),
	[]byte("relaying not permitted"), []byte("We do not relay"),
}

// These are the maximum lengths of recorded texts in bytes.
const (
	maxName    = 255 // RFC 5321 section 4.5.3.1.2
	maxPath    = 256 // RFC 5321 section 4.5.3.1.3
	maxExample = 200 // example of a command or reply
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// parseAddrPort parses `a.b.c.d:port` or `[v6]:port`. For any other text, parseAddrPort returns the
// zero AddrPort.
func parseAddrPort(b []byte) netip.AddrPort {
	a, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// parseReply splits a line of a reply. code is 0 if the line is not a reply.
func parseReply(line []byte) (code uint32, text []byte, last bool) {
	n, ok := parseDigits(line[:min(len(line), 3)], 3)
	switch {
	case !ok || len(line) < 3:
		return 0, line, true
	case len(line) == 3:
		return uint32(n), nil, true
	}
	return uint32(n), line[4:], line[3] != '-'
}
