package serverlog

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// An exim parses the mainlog of Exim. A session is identified by the client's address and, if the
// log contains it, the client's port.
type exim struct {
	*table
	messages messages
	zone     *time.Location
	key      []byte // reused
	closing  []closing
}

// A closing is a session whose connection was closed. If the client has not sent MAIL, a line with
// its commands follows.
type closing struct {
	session *session
	serial  uint64
	at      int64
}

func newExim(t *table) parser { return &exim{table: t, messages: newMessages(t), zone: t.zone} }

// An eximForm describes a form of line by the text at its start. If the client comes later in the
// line, the field client contains the text before the client. Clients choose parts of a line, so
// the position of the client must be certain.
type eximForm struct {
	start, client string
	read          func(x *exim, at int64, s *session, rest []byte) // rest is the text after the client
	// command is called instead of read if a command comes before the client.
	command func(x *exim, at int64, s *session, command, rest []byte)
}

// eximForms lists the forms of lines about a client. The first form that matches a line is used.
var eximForms = []eximForm{
	{start: "H=", read: (*exim).acl},
	{start: "no MAIL in SMTP connection from ", read: (*exim).noMail},
	{start: "SMTP connection from ", read: (*exim).connection},
	{start: "SMTP protocol error in \"", client: "\" H=", command: (*exim).protocolError},
	{start: "SMTP syntax error in \"", client: "\" H=", command: (*exim).syntaxError},
	{start: "SMTP protocol synchronization error (input sent without waiting for greeting): rejected connection from H=", read: (*exim).early},
	{start: "unexpected disconnection while reading SMTP command from ", read: closed(smtp.EndingDropped)},
	{start: "SMTP command timeout on connection from ", read: closed(smtp.EndingTimeout)},
	{start: "SMTP command timeout on TLS connection from ", read: closed(smtp.EndingTimeout)},
	{start: "SMTP call from ", read: (*exim).dropped},
	{start: "refused connection from ", read: eximPolicy(smtp.PhaseConnect)},
}

// aclForms lists the forms of rejections in lines that begin with a client.
var aclForms = []eximForm{
	{start: " rejected RCPT ", read: (*exim).rcpt},
	{start: " rejected connection ", read: eximPolicy(smtp.PhaseConnect)},
	{start: " rejected EHLO or HELO ", read: eximPolicy(smtp.PhaseHelo)},
	{start: " rejected MAIL ", read: eximPolicy(smtp.PhaseMailFrom)},
	{start: " rejected after DATA", read: eximPolicy(smtp.PhaseCommit)},
	{start: " rejected during MIME ACL", read: eximPolicy(smtp.PhaseCommit)},
}

// acl handles a rejection. acl uses the first " rejected " that is not in quotes, because addresses
// in quotes may contain any text that a client chooses.
func (x *exim) acl(at int64, s *session, line []byte) {
	rest := line
	for !bytes.HasPrefix(rest, []byte(" rejected ")) {
		if len(rest) == 0 {
			return
		}
		rest = rest[1:]
		rest = rest[outside(rest, ' '):]
	}
	for i := range aclForms {
		if f := &aclForms[i]; bytes.HasPrefix(rest, []byte(f.start)) {
			f.read(x, at, s, line)
			return
		}
	}
}

func (x *exim) line(l *maillog.Line) verdict {
	at, rest, ok := maillog.CutTime(l.Raw, x.zone)
	switch {
	case ok:
	case bytes.HasPrefix(l.Raw, []byte(" ")): // the line continues a message from Exim
		return used
	default:
		return unknown
	}
	at = x.tick(at)
	x.expire(x.now)
	if len(rest) > 2 && rest[0] == '[' { // skip the process id
		if i := bytes.Index(rest, []byte("] ")); i > 0 && len(bytes.Trim(rest[1:i], "0123456789")) == 0 {
			rest = rest[i+2:]
		}
	}
	x.about(at, rest)
	return used // other lines are about deliveries and queue runs, for example
}

// about handles a line that may be about a client.
func (x *exim) about(at int64, line []byte) {
	for i := range eximForms {
		f := &eximForms[i]
		rest, ok := bytes.CutPrefix(line, []byte(f.start))
		if !ok {
			continue
		}
		if f.client != "" {
			x.afterCommand(at, f, rest)
			return
		}
		if c, rest, ok := x.host(rest); ok {
			f.read(x, at, x.session(at, c), rest)
		}
		return
	}
	id, rest, _ := bytes.Cut(line, []byte(" "))
	if client, ok := bytes.CutPrefix(rest, []byte("authenticator failed for ")); ok {
		if c, rest, ok := x.host(client); ok {
			x.loginFailed(at, x.session(at, c), rest)
		}
	} else if message, ok := bytes.CutPrefix(rest, []byte("<= ")); ok {
		sender, rest := cutSender(message)
		if after, ok := bytes.CutPrefix(rest, []byte(" R=")); ok { // skip the reference of a bounce
			_, after, _ = bytes.Cut(after, []byte(" "))
			rest = append([]byte(" "), after...)
		}
		// A message from the host itself has no field H=, but its other fields may contain " H=".
		client, ok := bytes.CutPrefix(rest, []byte(" H="))
		if !ok {
			return
		}
		if c, rest, ok := x.host(client); ok {
			x.received(at, x.session(at, c), id, sender, rest)
		}
	} else if one := x.messages.get(nil, id); one != nil {
		x.delivery(one, rest)
	}
}

// deliveries are the words in lines about a recipient of a message: first and further deliveries,
// immediate delivery, failure and delay.
var deliveries = []string{"=> ", "-> ", ">> ", "** ", "== "}

// delivery handles "WORD RECIPIENT R=...", "WORD NAME <RECIPIENT> R=..." and "Completed".
func (x *exim) delivery(one *message, rest []byte) {
	if string(rest) == "Completed" {
		x.messages.done(one.key, true)
		return
	}
	for _, word := range deliveries {
		list, ok := bytes.CutPrefix(rest, []byte(word))
		if !ok {
			continue
		}
		addr, list := cutSender(list)
		if orig, ok := bytes.CutPrefix(list, []byte(" <")); ok {
			addr = orig[:outside(orig, '>')]
		}
		switch {
		case slices.ContainsFunc(one.rcpts, func(r []byte) bool { return bytes.EqualFold(r, addr) }):
		case len(one.rcpts) < maxRecipients:
			one.rcpts = append(one.rcpts, bytes.Clone(clip(addr, maxPath)))
		default:
			one.more = min(one.more+1, maxAlike)
		}
		one.nrcpt = max(one.nrcpt, len(one.rcpts))
		return
	}
}

// afterCommand handles a line that contains a command in quotes before the client. The command may
// contain text that looks like a client, and the reason for the rejection may repeat this text. A
// line that appears to contain clients with different addresses is ignored.
func (x *exim) afterCommand(at int64, f *eximForm, line []byte) {
	var found eximClient
	place := -1
	for i := 0; ; i++ {
		next := bytes.Index(line[i:], []byte(f.client))
		if next < 0 {
			break
		}
		i += next
		after := line[i+len(f.client):]
		c, _, ok := x.host(after)
		if ok && place >= 0 && c.addr != found.addr || !ok && bytes.HasPrefix(after, []byte("(")) {
			return
		}
		if ok && place < 0 {
			found, place = c, i
		}
	}
	if place >= 0 {
		f.command(x, at, x.session(at, found), octal(line[:place]), line[place+2:])
	}
}

// cutSender removes a sender from the start of s. The sender may be in quotes.
func cutSender(s []byte) (sender, rest []byte) {
	i := outside(s, ' ')
	return s[:i], s[i:]
}

// outside returns the index of the first byte c that is neither in a quoted string nor in a quoted
// pair (RFC 5321 section 4.1.2). If there is none, outside returns the length of s.
func outside(s []byte, c byte) int {
	for i := 0; i < len(s); i += element(s[i:]) {
		if s[i] == c {
			return i
		}
	}
	return len(s)
}

// element returns the length of the quoted string, quoted pair or other byte at the start of s. Exim
// accepts quoted pairs outside quoted strings as well, so a quotation mark after a backslash never
// starts a quoted string.
func element(s []byte) int {
	switch {
	case s[0] == '\\':
		return min(2, len(s))
	case s[0] != '"':
		return 1
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(s)
}

// An eximClient is a client in the form that Exim writes: NAME (GREETING) [ADDRESS]:PORT. NAME is
// only present if it resolves to ADDRESS. GREETING is only present if it differs from NAME.
type eximClient struct {
	client
	helo []byte
}

// host parses the client at the start of s, and returns the rest of the line.
func (x *exim) host(s []byte) (c eximClient, rest []byte, ok bool) {
	s = bytes.TrimPrefix(s, []byte("H="))
	if len(s) > 0 && s[0] != '(' && s[0] != '[' {
		if c.name, s, ok = bytes.Cut(s, []byte(" ")); !ok {
			return c, nil, false
		}
	}
	if len(s) > 0 && s[0] == '(' {
		i := x.greetingEnd(s)
		if i < 0 {
			return c, nil, false
		}
		c.helo, s = s[1:i], s[i+2:]
	}
	c.addr, rest = eximAddress(s)
	return c, rest, c.addr.IsValid()
}

// eximAddress parses an address in brackets and its port, and returns the rest of s.
func eximAddress(s []byte) (addr netip.AddrPort, rest []byte) {
	if len(s) == 0 || s[0] != '[' {
		return addr, nil
	}
	c, rest, _ := cutClient(append([]byte("x"), s...))
	return c.addr, rest
}

// greetingEnd returns the index of the parenthesis at the end of the greeting at the start of s. If
// the end is uncertain, greetingEnd returns -1. If Exim is configured to accept any greeting, the
// greeting may contain text that looks like an address, and so may later parts of the line. If
// several parts of the line look like addresses, the client's address is the one with an open
// connection.
func (x *exim) greetingEnd(s []byte) int {
	first, open := -1, -1
	var client, opened netip.AddrPort
	certain := true
	for i := 0; ; i++ {
		next := bytes.Index(s[i:], []byte(") ["))
		if next < 0 {
			break
		}
		i += next
		addr, _ := eximAddress(s[i+2:])
		if !addr.IsValid() {
			continue
		}
		if first < 0 {
			first, client = i, addr
		}
		certain = certain && addr == client
		if one := x.rows[string(addr.AppendTo(x.key[:0]))]; one != nil && one.connected && addr.Port() != 0 {
			if open >= 0 && addr != opened {
				return -1
			}
			if open < 0 {
				open, opened = i, addr
			}
		}
	}
	if certain {
		return first
	}
	return open
}

// session returns the session of a client.
func (x *exim) session(at int64, c eximClient) *session {
	x.key = c.addr.AppendTo(x.key[:0])
	s := x.get(x.key, at)
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

// after returns the text after a mark that is not in quotes, or nil. Text in quotes is skipped
// because it may contain names from the client's certificate.
func after(line []byte, mark string) []byte {
	for len(line) > 0 {
		if text, ok := bytes.CutPrefix(line, []byte(mark)); ok {
			return text
		}
		line = line[1:]
		line = line[outside(line, ' '):]
	}
	return nil
}

// value returns the text between a mark and the next space.
func value(line []byte, mark string) []byte {
	v, _, _ := bytes.Cut(after(line, mark), []byte(" "))
	return v
}

func (x *exim) loginFailed(at int64, s *session, rest []byte) {
	reason, user, _ := bytes.Cut(rest, []byte(" (set_id=")) // the user extends to the end of the line
	if !bytes.Contains(reason, []byte(": 535 ")) {
		s.command(at, smtp.VerbAuth, []byte("AUTH"), 454, nil, smtp.CauseNone)
		return
	}
	s.login(at, bytes.TrimSuffix(user, []byte(")")), smtp.ResultFail)
}

// rcpt handles "... F=<SENDER> [A=METHOD:USER ][temporarily ]rejected RCPT <RECIPIENT>: REASON".
// Clients choose SENDER and RECIPIENT, which may contain all these words in quotes.
func (x *exim) rcpt(at int64, s *session, line []byte) {
	rest := after(line, " F=<")
	i := outside(rest, '>')
	sender, rest := rest[:i], bytes.TrimPrefix(rest[i:], []byte(">"))
	fields, rest, ok := bytes.Cut(rest, []byte(" rejected RCPT "))
	fields, temporary := bytes.CutSuffix(fields, []byte(" temporarily"))
	if !ok || len(fields) > 0 && !bytes.HasPrefix(fields, []byte(" A=")) {
		return
	}
	code := uint32(550)
	if temporary {
		code = 451
	}
	addr, rest, cut := cutRecipient(rest)
	reason := bytes.TrimPrefix(rest, []byte(": "))
	if cut {
		addr = incomplete(s, at)
	}
	s.eximUser(at, fields)
	s.mailAgain(at, sender)
	s.rcptRefused(at, addr, code, reason, rejected)
}

// eximArgument is the number of bytes of RCPT's argument that Exim logs.
const eximArgument = 100

// cutRecipient removes the argument of RCPT from the start of s. It returns the address in the
// argument, and the rest of the line from the colon after the argument. cut reports whether Exim may
// have removed the end of the argument. The address is then unknown.
func cutRecipient(s []byte) (addr, rest []byte, cut bool) {
	addr, rest, ok := recipient(s)
	if ok && len(s)-len(rest) < eximArgument {
		return addr, rest, false
	}
	// Exim writes some bytes as a backslash and three octal digits. The client may send such text.
	end := 0
	for i := eximArgument; i+1 < len(s) && i <= 4*eximArgument; i += 3 {
		if string(s[i:i+2]) == ": " && i <= eximArgument+3*len(octalEscape.FindAll(s[:i], -1)) {
			end = i
		}
	}
	if end > 0 {
		return nil, s[end:], true
	}
	return addr, rest, len(s)-len(rest) >= eximArgument
}

var octalEscape = regexp.MustCompile(`\\[0-7]{3}`)

// recipient parses the argument at the start of s. Exim logs the argument as the client has sent it.
// Angle brackets are optional, and Exim accepts a phrase before them. Exim also accepts comments, in
// which quotation marks have no meaning (RFC 5322 section 3.2.2). Exim accepts an argument that ends
// inside a comment. The last colon and space then end the argument, and ok is false.
func recipient(s []byte) (addr, rest []byte, ok bool) {
	open, done, ok := false, false, true
	for len(s) > 0 {
		n := element(s)
		switch c := s[0]; {
		case c == '(':
			if n = comment(s); n == 0 {
				n, ok = max(bytes.LastIndex(s, []byte(": ")), 1), false
			}
		case c == '<':
			addr, open = addr[:0], true
		case c == '>':
			open, done = false, true
		case c == ':' && !open:
			return addr, s, ok
		case !done:
			addr = append(addr, s[:n]...)
		}
		s = s[n:]
	}
	return addr, nil, false
}

// comment returns the length of the comment at the start of s, or 0 if the comment has no end.
// Comments may be nested.
func comment(s []byte) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// eximUser stores the user in the field A=.
func (s *session) eximUser(at int64, fields []byte) {
	if user := value(fields, " A="); user != nil && s.user == "" {
		_, name, _ := bytes.Cut(user, []byte(":"))
		s.user = string(name)
		s.login(at, name, smtp.ResultPass)
	}
}

// received handles "ID <= SENDER H=... P=esmtp S=1234 ... for RECIPIENTS". RECIPIENTS is only
// present if Exim uses the log selector received_recipients. Otherwise, later lines contain the
// recipients.
func (x *exim) received(at int64, s *session, id, sender, rest []byte) {
	if string(sender) == "<>" {
		sender = nil
	}
	fields, _, _ := bytes.Cut(rest, []byte(" S="))
	s.eximUser(at, fields)
	size, _ := strconv.ParseUint(string(value(rest, " S=")), 10, 64)
	i := bytes.LastIndex(rest, []byte(" for "))
	if i < 0 {
		x.messages.add(nil, id, s)
		if one := x.messages.get(nil, id); one != nil && one.session == s {
			one.sender, one.known, one.size, one.nrcpt = bytes.Clone(clip(sender, maxPath)), true, size, 1
			return
		}
	}
	s.mail(at, sender, accepted)
	if i >= 0 {
		n := 0
		for addr := range bytes.SplitSeq(rest[i+len(" for "):], []byte(" ")) {
			if n++; n <= maxRecipients {
				s.rcpt(at, addr, 0, nil, smtp.CauseNone, accepted)
			}
		}
	} else {
		s.rcpt(at, nil, 0, nil, smtp.CauseNone, accepted)
	}
	s.message(at, size, accepted, true)
}

// early handles a client that did not wait for the server's greeting.
func (x *exim) early(at int64, s *session, rest []byte) {
	reply := []byte("improper command pipelining before the greeting")
	if i := bytes.Index(rest, []byte(` input="`)); i >= 0 {
		input := bytes.TrimSuffix(rest[i+len(` input="`):], []byte(`"`))
		reply = append(append(reply, ": "...), smtpd.RedactInput(input, []byte("CONNECT"))...)
	}
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: at}, nil, clip(reply, maxExample))
}

func (x *exim) protocolError(at int64, s *session, command, rest []byte) {
	cause := smtp.CauseNone
	verb := smtpd.VerbOf(command)
	if verb == smtp.VerbAuth && bytes.Contains(rest, []byte("when not advertised")) {
		cause = smtp.CauseUnsupported
	}
	s.command(at, verb, smtpd.Redact(command), 503, nil, cause)
}

func (x *exim) syntaxError(at int64, s *session, command, rest []byte) {
	if verb := smtpd.VerbOf(command); verb != smtp.VerbUnknown || !bytes.Contains(rest, []byte("unrecognized command")) {
		s.command(at, verb, smtpd.Redact(command), 501, nil, smtp.CauseSyntax)
		return
	}
	s.command(at, smtp.VerbUnknown, smtpd.RedactUnknown(command), 500, nil, smtp.CauseUnknown)
}

// noMail handles "no MAIL in SMTP connection from CLIENT D=10s C=EHLO,STARTTLS,QUIT". The field C=
// lists all commands.
func (x *exim) noMail(at int64, s *session, rest []byte) {
	how := s.ending
	for name := range bytes.SplitSeq(value(rest, " C="), []byte(",")) {
		verb := smtpd.VerbOf(name)
		if s.count[verb] == 0 && len(name) > 0 {
			s.did(at, verb)
		}
		if verb == smtp.VerbQuit {
			how = smtp.EndingQuit
		}
	}
	if how == smtp.EndingUnknown {
		how = smtp.EndingClosed
	}
	s.partial = false
	x.end(s, at, how)
}

// closed returns a function for a line that reports the end of a connection.
func closed(how smtp.Ending) func(*exim, int64, *session, []byte) {
	return func(x *exim, at int64, s *session, _ []byte) { x.close(at, s, how) }
}

// maxClosing is the maximum number of ended sessions that wait for the line with their commands.
const maxClosing = 10_000

// close ends a session after a short wait. If the log does not show that the client has sent MAIL,
// it is unknown whether it has.
func (x *exim) close(at int64, s *session, how smtp.Ending) {
	s.ending, s.partial = how, s.count[smtp.VerbMail] == 0
	if len(x.closing) >= maxClosing {
		x.expire(at + grace)
	}
	x.closing = append(x.closing, closing{s, s.serial, at})
}

// expire ends the sessions that have waited long enough.
func (x *exim) expire(now int64) {
	x.messages.expire(now)
	n := 0
	for ; n < len(x.closing) && now-x.closing[n].at > 2*second; n++ {
		if c := &x.closing[n]; c.session.serial == c.serial && x.rows[c.session.key] == c.session {
			x.end(c.session, c.session.last, c.session.ending)
		}
	}
	x.closing = append(x.closing[:0], x.closing[n:]...)
}

// connection handles "SMTP connection from CLIENT lost", the same with "closed by QUIT", and the
// line that counts connections.
func (x *exim) connection(at int64, s *session, rest []byte) {
	switch {
	case bytes.HasPrefix(rest, []byte(" (TCP/IP connection count = ")):
		s.connected = len(s.helo) == 0
	case bytes.HasSuffix(rest, []byte(" closed by QUIT")):
		x.close(at, s, smtp.EndingQuit)
	case bytes.Contains(rest, []byte(" lost")):
		x.close(at, s, smtp.EndingDropped)
	}
}

// dropped handles "SMTP call from CLIENT dropped: too many ...".
func (x *exim) dropped(at int64, s *session, rest []byte) {
	if bytes.Contains(rest, []byte(" dropped: too many ")) {
		x.close(at, s, smtp.EndingRejected)
	}
}

// eximPolicy returns a function for a rejection for a reason other than the recipient.
func eximPolicy(phase smtp.Phase) func(*exim, int64, *session, []byte) {
	return func(_ *exim, at int64, s *session, line []byte) {
		reason := line[bytes.LastIndex(line, []byte(": "))+1:]
		s.policy(at, phase, codeAnd(550, bytes.TrimSpace(reason)))
	}
}
