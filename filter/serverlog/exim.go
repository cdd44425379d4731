package serverlog

import (
	"bytes"
	"strconv"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// An exim parses mainlog of Exim. A session is identified by the process number, if it is
// logged, otherwise by the address and the port of the client.
type exim struct {
	*table
	zone *time.Location
	key  []byte // reused
	pid  []byte // of the latest line; empty if it is not logged
}

func newExim(t *table) parser { return &exim{table: t, zone: t.zone} }

// An eximForm is a form of line, recognised by a part that precedes or follows the client.
type eximForm struct {
	part string
	read func(x *exim, at int64, s *session, line []byte)
}

// eximForms lists the lines about a client. The first one that fits is used.
var eximForms = []eximForm{
	{" authenticator failed for ", (*exim).loginFailed},
	{" rejected RCPT ", (*exim).rcpt},
	{" <= ", (*exim).received},
	{"SMTP protocol synchronization error", (*exim).early},
	{"SMTP protocol error in \"", (*exim).protocolError},
	{"SMTP syntax error in \"", (*exim).syntaxError},
	{"no MAIL in SMTP connection from ", (*exim).noMail},
	{" closed by QUIT", (*exim).closed},
	{"unexpected disconnection while reading SMTP command from ", (*exim).lost},
	{"SMTP command timeout on ", (*exim).timeout},
	{" dropped: too many ", (*exim).dropped},
	{"SMTP connection from ", (*exim).connection},
	{" rejected connection ", eximPolicy(smtp.PhaseConnect)},
	{"refused connection from ", eximPolicy(smtp.PhaseConnect)},
	{" rejected EHLO or HELO ", eximPolicy(smtp.PhaseHelo)},
	{" rejected MAIL ", eximPolicy(smtp.PhaseMailFrom)},
	{" rejected after DATA", eximPolicy(smtp.PhaseCommit)},
	{" rejected during MIME ACL", eximPolicy(smtp.PhaseCommit)},
}

func (x *exim) line(l *maillog.Line) verdict {
	at, rest, ok := maillog.CutTime(l.Raw, x.zone)
	if !ok {
		return unknown
	}
	x.tick(at)
	x.pid = nil
	if len(rest) > 2 && rest[0] == '[' {
		if i := bytes.Index(rest, []byte("] ")); i > 0 && len(bytes.Trim(rest[1:i], "0123456789")) == 0 {
			x.pid, rest = rest[1:i], rest[i+2:]
		}
	}
	for i := range eximForms {
		f := &eximForms[i]
		if j := bytes.Index(rest, []byte(f.part)); j >= 0 {
			c, ok := eximHost(rest, j)
			if !ok {
				return used
			}
			f.read(x, at, x.session(at, c), rest)
			return used
		}
	}
	return used // deliveries, queue runs
}

// An eximClient is a client as Exim writes it: NAME (GREETING) [ADDRESS]:PORT. The name is
// there if it resolves to the address, and the greeting if it differs from the name.
type eximClient struct {
	client
	helo []byte
}

// eximHost finds the client: after H= or from, or at the start.
func eximHost(line []byte, part int) (c eximClient, ok bool) {
	s := line
	for _, mark := range [...]string{" H=", "H=", " from ", " for "} {
		if i := bytes.Index(line, []byte(mark)); i >= 0 && (mark != "H=" || i == 0) {
			s = line[i+len(mark):]
			break
		}
	}
	s = bytes.TrimPrefix(s, []byte("H="))
	i := bytes.IndexByte(s, '[')
	if i < 0 {
		return c, false
	}
	head := bytes.TrimSpace(s[:i])
	if j := bytes.IndexByte(head, '('); j >= 0 {
		c.helo = bytes.TrimSuffix(head[j+1:], []byte(")"))
		head = bytes.TrimSpace(head[:j])
	}
	if bytes.IndexByte(head, ' ') < 0 {
		c.name = head
	}
	one, _, ok := cutClient(append([]byte("x"), s[i:]...))
	c.addr = one.addr
	return c, ok && c.addr.IsValid()
}

// session returns the session of a client.
func (x *exim) session(at int64, c eximClient) *session {
	x.key = append(x.key[:0], x.pid...)
	if len(x.pid) == 0 {
		x.key = c.addr.AppendTo(x.key)
	}
	s := x.get(x.key, at)
	if s != nil && s.src.Addr() != c.addr.Addr() {
		x.end(s, at, smtp.EndingPartial)
		s = nil
	}
	if s == nil {
		s = x.open(x.key, at, nil, c.addr)
		s.partial = true
	}
	if len(c.name) > 0 && len(s.rdns) == 0 {
		s.rdns, s.fcrdns = append(s.rdns[:0], clip(c.name, maxName)...), smtp.FCrDNSPass
	}
	s.greet(at, c.helo, smtp.VerbEhlo)
	return s
}

// value returns the text after a mark up to a space.
func value(line []byte, mark string) []byte {
	i := bytes.Index(line, []byte(mark))
	if i < 0 {
		return nil
	}
	v, _, _ := bytes.Cut(line[i+len(mark):], []byte(" "))
	return v
}

func (x *exim) loginFailed(at int64, s *session, line []byte) {
	if !bytes.Contains(line, []byte(": 535 ")) {
		s.command(at, smtp.VerbAuth, []byte("AUTH"), 454, nil, smtp.CauseNone)
		return
	}
	var user []byte
	if i := bytes.LastIndex(line, []byte(" (set_id=")); i >= 0 {
		user = bytes.TrimSuffix(line[i+len(" (set_id="):], []byte(")"))
	}
	s.login(at, user, smtp.ResultFail)
}

// rcpt handles "H=... F=<SENDER> [temporarily ]rejected RCPT <RECIPIENT>: REASON".
func (x *exim) rcpt(at int64, s *session, line []byte) {
	head, tail, _ := bytes.Cut(line, []byte(" rejected RCPT "))
	i := bytes.Index(tail, []byte(">: "))
	if i < 0 {
		i = len(tail) - 1
	}
	addr, reason := bare(tail[:max(i+1, 0)]), tail[min(i+1, len(tail)):]
	code := uint32(550)
	if bytes.HasSuffix(head, []byte(" temporarily")) {
		code = 451
	}
	if user := value(head, " A="); user != nil {
		_, name, _ := bytes.Cut(user, []byte(":"))
		s.login(at, name, smtp.ResultPass)
	}
	sender := value(head, " F=")
	if sender == nil {
		return
	}
	if sender = bare(sender); !s.open || !bytes.Equal(s.sender, clip(sender, maxPath)) {
		s.mail(at, sender, rejected)
	}
	s.rcptRefused(at, addr, code, bytes.TrimPrefix(reason, []byte(": ")), rejected)
}

// received handles "ID <= SENDER H=... P=esmtp S=1234 ... for RECIPIENTS". The recipients need
// the log selector received_recipients.
func (x *exim) received(at int64, s *session, line []byte) {
	_, rest, _ := bytes.Cut(line, []byte(" <= "))
	sender, rest, _ := bytes.Cut(rest, []byte(" "))
	if string(sender) == "<>" {
		sender = nil
	}
	if user := value(rest, " A="); user != nil && s.user == "" {
		_, name, _ := bytes.Cut(user, []byte(":"))
		s.user = string(name)
		s.login(at, name, smtp.ResultPass)
	}
	s.mail(at, sender, accepted)
	if i := bytes.LastIndex(rest, []byte(" for ")); i >= 0 {
		n := 0
		for addr := range bytes.SplitSeq(rest[i+len(" for "):], []byte(" ")) {
			if n++; n <= maxRecipients {
				s.rcpt(at, addr, 0, nil, smtp.CauseNone, accepted)
			}
		}
	} else {
		s.rcpt(at, nil, 0, nil, smtp.CauseNone, accepted)
	}
	size, _ := strconv.ParseUint(string(value(rest, " S=")), 10, 64)
	s.message(at, size, accepted)
}

// early handles a client that did not wait for the server's greeting or a reply.
func (x *exim) early(at int64, s *session, line []byte) {
	reply := []byte("improper command pipelining")
	if bytes.Contains(line, []byte("without waiting for greeting")) {
		reply = append(reply, " before the greeting"...)
	} else if len(s.steps) == 0 {
		s.did(at, smtp.VerbOther)
	}
	if i := bytes.Index(line, []byte(` input="`)); i >= 0 {
		reply = append(append(reply, ": "...), smtpd.Redact(bytes.TrimSuffix(line[i+len(` input="`):], []byte(`"`)))...)
	}
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: at, b: s.keep(reply, maxExample)})
}

// quoted returns the command in quotes after a mark, and the text after the client.
func quoted(line []byte, mark string) (command, rest []byte) {
	_, rest, _ = bytes.Cut(line, []byte(mark))
	i := bytes.Index(rest, []byte(`" `))
	if i < 0 {
		return nil, nil
	}
	return rest[:i], rest[i+2:]
}

func (x *exim) protocolError(at int64, s *session, line []byte) {
	command, rest := quoted(line, `SMTP protocol error in "`)
	cause := smtp.CauseNone
	verb := smtpd.VerbOf(command)
	if verb == smtp.VerbAuth && bytes.Contains(rest, []byte("when not advertised")) {
		cause = smtp.CauseUnsupported
	}
	s.command(at, verb, smtpd.Redact(command), 503, nil, cause)
}

func (x *exim) syntaxError(at int64, s *session, line []byte) {
	command, rest := quoted(line, `SMTP syntax error in "`)
	if verb := smtpd.VerbOf(command); verb != smtp.VerbUnknown || !bytes.Contains(rest, []byte("unrecognized command")) {
		s.command(at, verb, smtpd.Redact(command), 501, nil, smtp.CauseSyntax)
		return
	}
	s.command(at, smtp.VerbUnknown, smtpd.RedactUnknown(command), 500, nil, smtp.CauseUnknown)
}

// noMail handles "no MAIL in SMTP connection from CLIENT D=10s C=EHLO,STARTTLS,QUIT", which
// lists all commands.
func (x *exim) noMail(at int64, s *session, line []byte) {
	how := smtp.EndingClosed
	for name := range bytes.SplitSeq(value(line, " C="), []byte(",")) {
		if verb := smtpd.VerbOf(name); s.count[verb] == 0 && len(name) > 0 {
			s.did(at, verb)
			if verb == smtp.VerbQuit {
				how = smtp.EndingQuit
			}
		}
	}
	s.partial = false
	x.end(s, at, how)
}

func (x *exim) closed(at int64, s *session, _ []byte) { x.end(s, at, smtp.EndingQuit) }

func (x *exim) lost(at int64, s *session, _ []byte) { x.end(s, at, smtp.EndingDropped) }

func (x *exim) timeout(at int64, s *session, _ []byte) { x.end(s, at, smtp.EndingTimeout) }

func (x *exim) dropped(at int64, s *session, _ []byte) { x.end(s, at, smtp.EndingRejected) }

// connection handles the start of a session, and "lost".
func (x *exim) connection(at int64, s *session, line []byte) {
	switch {
	case bytes.Contains(line, []byte(" lost")):
		x.end(s, at, smtp.EndingDropped)
	case bytes.Contains(line, []byte("TCP/IP connection count")) && len(s.steps) == 0:
		s.partial = false
	}
}

// eximPolicy returns a function for a rejection that does not depend on the recipient.
func eximPolicy(phase smtp.Phase) func(*exim, int64, *session, []byte) {
	return func(_ *exim, at int64, s *session, line []byte) {
		reason := line[bytes.LastIndex(line, []byte(": "))+1:]
		s.policy(at, phase, codeAnd(550, bytes.TrimSpace(reason)))
	}
}
