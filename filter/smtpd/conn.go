package smtpd

import (
	"net/netip"
	"slices"

	"scanwatch/internal/smtp"
)

// A conn is the state of one session in a FrontEnd.
type conn struct {
	id         uint64
	greeted    bool // smtpd sent its first reply
	quit       bool
	timedOut   bool
	hungUp     bool // smtpd or a filter is closing the connection
	sawAuth    bool // the client has sent AUTH: any later unknown line may be a password
	inExchange bool // smtpd expects the next line of an AUTH exchange
	noData     bool // DATA was rejected, and message text may follow
	cmd        command
}

// ending returns how the session ended.
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

// A command is the last line of the client until its outcome is known.
type command struct {
	at        int64
	line      []byte // redacted
	reply     []byte
	code      uint32
	verb      smtp.Verb
	waiting   bool // for smtpd's reply
	open      bool // no report has given the outcome
	filtered  bool // a filter decided it, not smtpd
	rewritten bool // a filter changed it
	unknown   bool // smtpd does not know the command
	secret    bool // it is part of a login
}

func (c *command) reset() { *c = command{line: c.line[:0], reply: c.reply[:0]} }

// causes holds the meanings of smtpd's reply codes by verb. The first digit gives
// the cause of a code that is not listed.
var causes = [...]struct {
	verbs []smtp.Verb
	code  uint32
	cause smtp.Cause
}{
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 553, smtp.CauseSyntax}, // sender or recipient address syntax
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 503, smtp.CauseOrder},
	{[]smtp.Verb{smtp.VerbHelo, smtp.VerbEhlo}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbAuth}, 503, smtp.CauseUnsupported},
	{[]smtp.Verb{smtp.VerbAuth}, 504, smtp.CauseUnsupported},
}

// cause returns the reason for which smtpd rejected the command. Any other permanent
// failure of RCPT means that smtpd accepts no mail for the recipient.
func (c *command) cause() smtp.Cause {
	switch {
	case c.filtered:
		return smtp.CauseFilter
	case c.unknown:
		return smtp.CauseUnknown
	case c.code < 400:
		return smtp.CauseNone
	}
	for _, row := range causes {
		if row.code == c.code && slices.Contains(row.verbs, c.verb) {
			return row.cause
		}
	}
	if c.verb == smtp.VerbRcpt && c.code >= 500 {
		return smtp.CauseRecipient
	}
	return smtp.CauseNone
}

// The maximum length in bytes of recorded text.
const (
	maxName    = 255 // RFC 5321 section 4.5.3.1.2
	maxPath    = 256 // section 4.5.3.1.3
	maxExample = 200 // an example of a command or reply
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// parseAddrPort parses `a.b.c.d:port` or `[v6]:port`. Other text returns the zero
// value.
func parseAddrPort(b []byte) netip.AddrPort {
	a, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// parseReply splits a reply line. The code is 0 for a line that is not a reply.
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
