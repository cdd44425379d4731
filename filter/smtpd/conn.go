package smtpd

import (
	"net/netip"
	"slices"

	"scanwatch/internal/smtp"
)

// A conn is the state of one session in a FrontEnd.
type conn struct {
	id         uint64
	greeted    bool // smtpd has sent its first reply
	quit       bool
	timedOut   bool
	hungUp     bool // smtpd closes the connection, for itself or for a filter
	sawAuth    bool // the client has sent AUTH, so any later unknown line may be a password
	inExchange bool // smtpd expects the next line of an AUTH exchange
	noData     bool // DATA was rejected, so message text may follow
	cmd        command
}

// ending returns the way in which the session ended.
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

// A command is the latest line of the client, until its outcome is known.
type command struct {
	at        int64
	line      []byte // redacted form of the line
	reply     []byte
	code      uint32
	verb      smtp.Verb
	waiting   bool // smtpd has not yet replied
	open      bool // no report has contained the outcome
	filtered  bool // a filter, and not smtpd, determined the outcome
	rewritten bool // a filter changed the command
	unknown   bool // smtpd does not know the command
	secret    bool // the line is a part of a login
}

func (c *command) reset() { *c = command{line: c.line[:0], reply: c.reply[:0]} }

// causes contains the meanings of smtpd's reply codes by verb. If a code is not listed,
// the first digit determines the cause.
var causes = [...]struct {
	verbs []smtp.Verb
	code  uint32
	cause smtp.Cause
}{
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 553, smtp.CauseSyntax}, // invalid syntax of an address
	{[]smtp.Verb{smtp.VerbMail, smtp.VerbRcpt}, 503, smtp.CauseOrder},
	{[]smtp.Verb{smtp.VerbHelo, smtp.VerbEhlo}, 501, smtp.CauseSyntax},
	{[]smtp.Verb{smtp.VerbAuth}, 503, smtp.CauseUnsupported},
	{[]smtp.Verb{smtp.VerbAuth}, 504, smtp.CauseUnsupported},
}

// cause returns the reason why smtpd rejected the command. A permanent failure of RCPT
// with an unlisted code means that smtpd accepts no mail for the recipient.
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

// Maximum lengths of recorded texts in bytes.
const (
	maxName    = 255 // RFC 5321 section 4.5.3.1.2
	maxPath    = 256 // RFC 5321 section 4.5.3.1.3
	maxExample = 200 // example of a command or reply
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// parseAddrPort parses `a.b.c.d:port` or `[v6]:port`. The result for any other text is
// zero.
func parseAddrPort(b []byte) netip.AddrPort {
	a, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// parseReply splits a reply line. The code of a line that is not a reply is 0.
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
