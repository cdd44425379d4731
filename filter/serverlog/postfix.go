package serverlog

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A postfix parses the log of Postfix. Each smtpd process serves only one client at a time, so the
// process id identifies the session.
type postfix struct {
	*table
	key      []byte // reused
	messages messages
	// unproven holds the latest warning of each process that a client's name does not resolve to
	// its address. The warning comes before the client's session.
	unproven map[string]unproven
	// screened holds the latest session of each address in postscreen.
	screened map[netip.Addr]screened
}

// A screened is a session in postscreen, which may since have been reported or reused.
type screened struct {
	session *session
	serial  uint64
}

// An unproven is the reverse DNS name of a client that does not resolve to the client's address.
type unproven struct {
	addr   netip.Addr
	name   string
	result smtp.FCrDNS
}

// maxUnproven is the maximum number of names that are stored. There is at most one for each
// process.
const maxUnproven = 10_000

func newPostfix(t *table) parser {
	p := &postfix{table: t, messages: newMessages(t), unproven: make(map[string]unproven), screened: make(map[netip.Addr]screened)}
	t.ready = ready
	return p
}

// service returns the part of the program's name after the last slash.
func service(program []byte) []byte { return program[bytes.LastIndexByte(program, '/')+1:] }

func (p *postfix) line(l *maillog.Line) verdict {
	if bytes.IndexByte(l.Program, '/') < 0 {
		return foreign
	}
	p.messages.expire(p.now)
	switch string(service(l.Program)) {
	case "smtpd":
		return p.smtpd(l)
	case "postscreen":
		return p.postscreen(l)
	case "qmgr", "cleanup", "local", "virtual", "lmtp", "smtp", "pipe", "error", "discard":
		p.delivery(l)
		return used
	}
	return foreign
}

// keyOf returns a key for the process that has written the line.
func (p *postfix) keyOf(l *maillog.Line) []byte {
	p.key = append(append(append(p.key[:0], l.Host...), '/'), l.PID...)
	return p.key
}

// A form describes a kind of line by its first words after the queue identifier, if there is one.
type form struct {
	start string
	read  func(p *postfix, l *maillog.Line, id, rest []byte) bool
}

// forms lists the kinds of lines that smtpd writes. The first form that matches a line is used.
var forms = []form{
	{"connect from ", (*postfix).connect},
	{"disconnect from ", (*postfix).disconnect},
	{"client=", (*postfix).client},
	{"reject: ", (*postfix).reject},
	{"milter-reject: ", milterReject},
	{"lost connection after ", ended(smtp.EndingDropped)},
	{"timeout after ", ended(smtp.EndingTimeout)},
	{"too many errors after ", ended(smtp.EndingRejected)},
	{"warning: non-SMTP command from ", (*postfix).otherProtocol},
	{"warning: Illegal address syntax from ", (*postfix).badAddress},
	{"warning: hostname ", (*postfix).unconfirmed},
	{"warning: ", (*postfix).warning},
	{"improper command pipelining after ", (*postfix).pipelining},
	{"Anonymous TLS connection established from ", (*postfix).tls},
	{"Untrusted TLS connection established from ", (*postfix).tls},
	{"Trusted TLS connection established from ", (*postfix).tls},
	{"Verified TLS connection established from ", (*postfix).tls},
}

// unused lists the first words of lines that say nothing about sessions.
var unused = [][]byte{
	[]byte("reject_warning: "), []byte("warn: "), []byte("hold: "), []byte("discard: "), []byte("filter: "), []byte("redirect: "), []byte("permit: "),
	[]byte("fatal: "), []byte("error: "), []byte("panic: "), []byte("statistics: "), []byte("TLS "), []byte("SSL_accept"), []byte("setting up TLS"),
	[]byte("initializing the server-side TLS"), []byte("info: "), []byte("proxy-"), []byte("table "), []byte("connect to "), []byte("save "),
	[]byte("using backwards-compatible"),
}

func (p *postfix) smtpd(l *maillog.Line) verdict {
	id, rest := cutID(l.Text)
	for i := range forms {
		if f := &forms[i]; len(rest) > len(f.start) && string(rest[:len(f.start)]) == f.start {
			if f.read(p, l, id, rest[len(f.start):]) {
				return used
			}
			return unknown
		}
	}
	for _, start := range unused {
		if bytes.HasPrefix(rest, start) {
			return used
		}
	}
	return unknown
}

// cutID removes a queue identifier, or the word NOQUEUE, from the start of s.
func cutID(s []byte) (id, rest []byte) {
	i := bytes.IndexByte(s, ':')
	if i < 5 || i > 20 || i+2 > len(s) || s[i+1] != ' ' {
		return nil, s
	}
	for _, c := range s[:i] {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return nil, s
		}
	}
	if id = s[:i]; string(id) == "warning" || string(id) == "reject" || string(id) == "fatal" || string(id) == "error" || string(id) == "panic" || string(id) == "discard" || string(id) == "filter" || string(id) == "permit" {
		return nil, s
	}
	return id, s[i+2:]
}

// A client is a client in the form that Postfix writes: NAME[ADDRESS] or NAME[ADDRESS]:PORT.
type client struct {
	name []byte
	addr netip.AddrPort
}

// cutClient removes a client from the start of s. Names never contain brackets.
func cutClient(s []byte) (c client, rest []byte, ok bool) {
	i := bytes.IndexByte(s, '[')
	if i < 1 || i > maxName {
		return c, s, false
	}
	j := bytes.IndexByte(s[i:], ']')
	if j < 0 {
		return c, s, false
	}
	c.name = s[:i]
	addr, rest := s[i+1:i+j], s[i+j+1:]
	var port []byte
	if len(rest) > 1 && rest[0] == ':' && rest[1] >= '0' && rest[1] <= '9' {
		n := 1
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		port, rest = rest[1:n], rest[n:]
	}
	c.addr = address(addr, port)
	return c, rest, c.addr.IsValid() || string(addr) == "unknown"
}

// same reports whether c is the client of the session.
func (s *session) same(c client) bool {
	return s.src.Addr() == c.addr.Addr() && (s.src.Port() == c.addr.Port() || c.addr.Port() == 0 || s.src.Port() == 0)
}

// session returns the session to which a line belongs. If the log lacks the start of the session,
// the session begins with this line.
func (p *postfix) session(l *maillog.Line, c client) *session {
	s := p.get(p.keyOf(l), l.At)
	if s != nil && s.same(c) {
		return s
	}
	s = p.begin(l, c)
	s.partial, s.rest = true, true
	return s
}

// begin starts a session. If the line contains a name, the name resolves to the address.
func (p *postfix) begin(l *maillog.Line, c client) *session {
	s := p.open(p.keyOf(l), l.At, l.Host, c.addr)
	switch u, ok := p.unproven[s.key]; {
	case string(c.name) != "unknown":
		s.rdns, s.fcrdns = append(s.rdns[:0], c.name...), smtp.FCrDNSPass
	case ok && u.addr == c.addr.Addr():
		s.rdns, s.fcrdns = append(s.rdns[:0], u.name...), u.result
	}
	delete(p.unproven, s.key)
	if name := l.Program; bytes.Contains(name, []byte("submission")) || bytes.Contains(name, []byte("smtps")) {
		s.dst = submission
	}
	return s
}

// submission is recorded as the server's address if the listener is for users.
var submission = netip.AddrPortFrom(netip.IPv4Unspecified(), 587)

func (p *postfix) connect(l *maillog.Line, _, rest []byte) bool {
	c, _, ok := cutClient(rest)
	if ok {
		unscreen(p, p.begin(l, c))
	}
	return ok
}

// unscreen moves the steps of the client's session in postscreen to its session in smtpd. postscreen
// does not log that a client has passed if it ignores the client's fault (postscreen_greet_action).
func unscreen(p *postfix, s *session) {
	a := s.src.Addr()
	one := p.screened[a]
	if from := one.session; from != nil && from.serial == one.serial && (from.src == s.src || s.src.Port() == 0) {
		delete(p.screened, a)
		for _, st := range from.steps {
			s.add(st, from.get(st.a), from.get(st.b))
		}
		p.forget(from)
	}
}

// ended returns a function for lines that show how the session ends.
func ended(how smtp.Ending) func(*postfix, *maillog.Line, []byte, []byte) bool {
	return func(p *postfix, l *maillog.Line, _, rest []byte) bool {
		word, rest, ok := bytes.Cut(rest, []byte(" from "))
		c, _, ok2 := cutClient(rest)
		if !ok || !ok2 {
			return false
		}
		s := p.session(l, c)
		s.ending = how
		word, _, _ = bytes.Cut(word, []byte(" "))
		verb := smtpd.VerbOf(word)
		s.hung = verb == smtp.VerbAuth
		if how == smtp.EndingTimeout {
			s.add(step{kind: smtp.EventTimeout, at: l.At, class: atEnd}, nil, nil)
		}
		if s.open && verb != smtp.VerbMail && verb != smtp.VerbRcpt && verb != smtp.VerbData && !bytes.HasPrefix(word, []byte("DATA")) {
			s.partial = true // the transaction may have ended before the session did
		}
		return true
	}
}

// A counter is one of the counters that Postfix logs at the end of a session. For example, rcpt=1/4
// means that one of four RCPT commands was accepted.
type counter struct{ ok, all int }

// counted maps the names of counters to verbs.
var counted = map[string]smtp.Verb{
	"helo": smtp.VerbHelo, "ehlo": smtp.VerbEhlo, "starttls": smtp.VerbStartTLS, "auth": smtp.VerbAuth, "mail": smtp.VerbMail, "rcpt": smtp.VerbRcpt,
	"data": smtp.VerbData, "bdat": smtp.VerbOther, "rset": smtp.VerbRset, "noop": smtp.VerbNoop, "vrfy": smtp.VerbNames, "etrn": smtp.VerbOther,
	"help": smtp.VerbOther, "quit": smtp.VerbQuit, "unknown": smtp.VerbUnknown, "xclient": smtp.VerbOther, "xforward": smtp.VerbOther,
}

func (p *postfix) disconnect(l *maillog.Line, _, rest []byte) bool {
	c, rest, ok := cutClient(rest)
	if !ok {
		return false
	}
	s := p.session(l, c)
	var counters [numVerbs]counter
	complete := false
	for len(rest) > 0 {
		var word []byte
		word, rest, _ = bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		name, value, ok := bytes.Cut(word, []byte("="))
		if !ok {
			continue
		}
		n := parseCounter(value)
		if string(name) == "commands" {
			complete = true // Postfix before version 3.0 has no counters
		} else if verb, ok := counted[string(name)]; ok {
			switch {
			case string(name) == "data":
				s.texts, s.delivered = s.texts+n.ok, s.delivered || n.ok > 0
			case string(name) == "bdat" && n.ok > 0: // a message may consist of several chunks
				s.texts, s.delivered = s.texts+1, true
			}
			counters[verb].ok += n.ok
			counters[verb].all += n.all
		}
	}
	if !complete {
		s.partial = true
	}
	s.totals = &counters
	how := s.ending
	switch {
	case counters[smtp.VerbQuit].ok > 0:
		how = smtp.EndingQuit
	case how == smtp.EndingUnknown:
		how = smtp.EndingRejected // smtpd has closed the connection, for example after 421
	}
	p.end(s, l.At, how)
	return true
}

func parseCounter(value []byte) (c counter) {
	first, all, both := bytes.Cut(value, []byte("/"))
	c.ok, _ = strconv.Atoi(string(first))
	c.all = c.ok
	if both {
		c.all, _ = strconv.Atoi(string(all))
	}
	const most = 10_000 // Postfix ends a session with more commands
	c.ok, c.all = min(max(c.ok, 0), most), min(max(c.all, c.ok), most)
	return c
}

// counters adds the commands that the log does not show in separate lines.
func (s *session) counters() {
	n, at := s.totals, s.last
	// If the log contains no line about an AUTH command, the server rejected the command before it
	// checked a password. Exceptions are a milter's rejection and a broken connection. A listener
	// for users offers AUTH, so the reason for its rejection is unknown.
	refused := n[smtp.VerbAuth].all - n[smtp.VerbAuth].ok - s.failed
	if s.hung {
		refused--
	}
	cause := smtp.CauseUnsupported
	if s.refused || s.partial || s.dst == submission {
		cause = smtp.CauseNone
	}
	if n[smtp.VerbAuth].ok > 0 && s.user == "" { // the log contains the user only together with a message
		s.login(at, nil, smtp.ResultPass)
	}
	for range min(max(refused, 0), maxAlike) {
		code := uint32(503)
		if cause == smtp.CauseNone {
			code = 535
		}
		s.command(at, smtp.VerbAuth, []byte("AUTH"), code, nil, cause)
	}
	// After AUTH, Postfix counts the lines of a login as unknown commands.
	text := []byte(nil)
	if n[smtp.VerbAuth].all > 0 {
		text = []byte(smtp.Masked)
	}
	for range min(max(n[smtp.VerbUnknown].all-s.count[smtp.VerbUnknown], 0), maxAlike) {
		s.command(at, smtp.VerbUnknown, text, 500, nil, smtp.CauseUnknown)
	}
	for _, verb := range [...]smtp.Verb{smtp.VerbHelo, smtp.VerbEhlo, smtp.VerbMail, smtp.VerbData, smtp.VerbRset, smtp.VerbNoop, smtp.VerbNames} {
		for range min(max(n[verb].all-s.count[verb], 0), maxAlike) {
			s.did(at, verb)
		}
	}
	if n[smtp.VerbStartTLS].ok > 0 && s.count[smtp.VerbStartTLS] == 0 {
		s.add(step{kind: smtp.EventTLS, verb: smtp.VerbStartTLS, at: at}, nil, nil)
	}
	if n[smtp.VerbQuit].ok > 0 {
		s.add(step{kind: smtp.EventQuit, verb: smtp.VerbQuit, at: at, class: atEnd}, nil, nil)
	}
}

// ready adds the commands that only the counters show. If an accepted recipient has no delivery in
// the log, its name is unknown. The recipient must be counted nevertheless, because rejected
// recipients count less if others are accepted.
func ready(s *session) {
	if s.totals != nil {
		if s.totals[smtp.VerbMail].all == 1 { // there is only one transaction
			s.steps = slices.DeleteFunc(s.steps, func(st step) bool { return st.again })
		}
		s.unnamed = min(s.totals[smtp.VerbRcpt].ok, maxAlike)
		s.counters()
	}
	named, texts, commit := 0, 0, false
	for i := range s.steps {
		switch st := &s.steps[i]; {
		case st.kind == smtp.EventRcpt && st.result == smtp.ResultOK:
			named++
		case st.kind == smtp.EventData:
			texts++
		case st.kind == smtp.EventCommit:
			commit = true
		}
	}
	if s.unnamed <= named {
		return
	}
	for range s.unnamed - named {
		s.rcpt(s.last, nil, 0, nil, smtp.CauseNone, accepted)
	}
	switch {
	case s.delivered && !commit: // with smtpd_proxy_filter, only the counters show that a message was accepted
		s.message(s.last, 0, accepted, true)
	case s.texts > texts: // for example a message on hold, or one that the server has rejected
		s.message(s.last, 0, accepted, false)
	}
}

// client handles a line about an accepted recipient. The line may also contain the user.
func (p *postfix) client(l *maillog.Line, id, rest []byte) bool {
	c, rest, ok := cutClient(rest)
	if !ok {
		return false
	}
	s := p.session(l, c)
	if _, user, ok := bytes.Cut(rest, []byte(", sasl_username=")); ok {
		user, _, _ = bytes.Cut(user, []byte(", sasl_sender="))
		if s.user == "" || s.user != string(user) {
			s.user = string(clip(user, maxName))
			s.login(l.At, user, smtp.ResultPass)
		}
	}
	s.unnamed = max(s.unnamed, 1)
	if !p.prompt {
		p.messages.add(l.Host, id, s)
	}
	return true
}

// A rejection is the part of a line that follows "reject: ".
type rejection struct {
	command, sender, recipient, helo, proto []byte
	client                                  client
	code                                    uint32
	reply                                   []byte // enhanced status code and text of the reply
	hasSender                               bool
}

// parseRejection parses "RCPT from CLIENT: 550 5.1.1 <ARG>: TEXT; from=<> to=<> proto= helo=<>".
// Addresses may contain any text that a client chooses. If the reply does not contain the recipient,
// the fields are parsed from the end of the line.
func parseRejection(s []byte) (r rejection, ok bool) {
	command, rest, ok := bytes.Cut(s, []byte(" from "))
	if !ok {
		return r, false
	}
	r.command = command
	if r.client, rest, ok = cutClient(rest); !ok || !bytes.HasPrefix(rest, []byte(": ")) || len(rest) < 6 {
		return r, false
	}
	rest = rest[2:]
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return r, false
		}
		r.code = r.code*10 + uint32(c-'0')
	}
	rest = bytes.TrimLeft(rest[3:], " ")
	if r.fields(rest) {
		return r, r.code >= 400 && r.code < 600
	}
	rest, r.helo, _ = cutField(rest, " helo=<")
	if i := bytes.LastIndex(rest, []byte(" proto=")); i >= 0 {
		rest, r.proto = bytes.TrimSuffix(rest[:i], comma), bytes.TrimSuffix(rest[i+len(" proto="):], comma)
	}
	rest, r.recipient, _ = cutField(rest, " to=<")
	rest, r.sender, r.hasSender = cutField(rest, " from=<")
	r.reply = bytes.TrimSuffix(rest, []byte(";"))
	if r.text() == nil {
		r.cut()
	}
	return r, r.code >= 400 && r.code < 600
}

// afterTo matches the fields that follow the recipient.
var afterTo = regexp.MustCompile(`^>,? proto=([A-Z]+),? helo=<`)

// fields sets the reply and the fields if the recipient is also in the reply. The client chooses the
// sender, recipient and greeting, which may look like other fields. The field with the longest
// recipient that is also in the reply is genuine.
func (r *rejection) fields(s []byte) (found bool) {
	for i := 0; ; i++ {
		next := bytes.Index(s[i:], []byte(" to=<"))
		if next < 0 {
			return found
		}
		i += next
		addr := s[i+len(" to=<"):]
		addr = addr[:outside(addr, '>')]
		proto := afterTo.FindSubmatch(s[i+len(" to=<")+len(addr):])
		if proto == nil || found && len(addr) <= len(r.recipient) {
			continue
		}
		one := rejection{reply: s[:i], recipient: addr}
		text := one.text()
		from := bytes.Index(text, []byte(" from=<"))
		if from < 0 {
			continue
		}
		from += i - len(text)
		found = true
		r.reply = bytes.TrimSuffix(bytes.TrimSuffix(s[:from], comma), []byte(";"))
		r.recipient, r.proto, r.hasSender = addr, proto[1], true
		r.sender = bytes.TrimSuffix(bytes.TrimSuffix(s[from+len(" from=<"):i], comma), []byte(">"))
		r.helo = bytes.TrimSuffix(s[i+len(" to=<")+len(addr)+len(proto[0]):], []byte(">"))
	}
}

// cut handles a line whose end is missing. Postfix cuts a line after about 2,000 bytes, so a client
// with a long sender could hide its recipients. The reply comes before the text that may be cut. The
// recipient in the reply replaces fields that are missing or that are text of the client.
func (r *rejection) cut() {
	for _, one := range refusals {
		if one.text == "" {
			continue
		}
		rest, ok := bytes.CutPrefix(r.reply, []byte(one.status+"<"))
		addr, rest, ok2 := bytes.Cut(rest, []byte(">: "+one.text))
		if !ok || !ok2 {
			continue
		}
		r.recipient = addr
		if _, sender, ok := bytes.Cut(rest, []byte("; from=<")); ok {
			sender, _, _ = bytes.Cut(sender, append([]byte("> to=<"), addr...))
			r.sender, r.hasSender = sender, true
		}
		return
	}
}

// cutField removes the last field of a line. The field begins with start and ends with ">".
func cutField(s []byte, start string) (rest, value []byte, ok bool) {
	i := bytes.LastIndex(s, []byte(start))
	if i < 0 || s[len(s)-1] != '>' {
		return s, nil, false
	}
	return bytes.TrimSuffix(s[:i], comma), s[i+len(start) : len(s)-1], true
}

// comma separates the fields of lines from postscreen.
var comma = []byte{','}

// milterReject handles a rejection by a milter, which may be scanwatch. A rejection by a milter is
// not evidence.
func milterReject(p *postfix, l *maillog.Line, _, rest []byte) bool {
	return p.rejected(l, rest, true)
}

func (p *postfix) reject(l *maillog.Line, _, rest []byte) bool { return p.rejected(l, rest, false) }

// phases maps commands to the phases in which they are rejected.
var phases = map[string]smtp.Phase{
	"CONNECT": smtp.PhaseConnect, "HELO": smtp.PhaseHelo, "EHLO": smtp.PhaseHelo, "MAIL": smtp.PhaseMailFrom, "RCPT": smtp.PhaseRcptTo,
	"DATA": smtp.PhaseData, "END-OF-MESSAGE": smtp.PhaseCommit,
}

func (p *postfix) rejected(l *maillog.Line, rest []byte, milter bool) bool {
	r, ok := parseRejection(rest)
	if !ok {
		return false
	}
	s := p.session(l, r.client)
	verb := smtp.VerbEhlo
	if string(r.proto) == "SMTP" {
		verb = smtp.VerbHelo
	}
	s.greet(l.At, r.helo, verb)
	phase, known := phases[string(r.command)]
	cause := smtp.CauseFilter
	if !milter {
		cause = r.cause()
	}
	switch {
	case string(r.command) == "VRFY" && cause == smtp.CauseUser: // the client has asked for a mailbox
		s.add(step{kind: smtp.EventRcpt, verb: smtp.VerbNames, result: resultOf(r.code), code: r.code, cause: cause, class: rejected, at: l.At},
			distinct(s, l.At, r.recipient), clip(r.reply, maxExample))
		return true
	case !known: // VRFY, ETRN and other commands
		line := append(append(bytes.Clone(r.command), ' '), r.recipient...)
		s.command(l.At, smtpd.VerbOf(r.command), smtpd.Redact(line), r.code, r.reply, cause)
		return true
	case cause == smtp.CauseFilter:
		s.policy(l.At, phase, codeAnd(r.code, r.reply))
	}
	switch phase {
	case smtp.PhaseCommit:
		s.texts++
	case smtp.PhaseMailFrom:
		s.mailFailed(l.At, r.sender, r.code, r.reply, cause)
	case smtp.PhaseRcptTo:
		if r.hasSender {
			s.mailAgain(l.At, r.sender)
		}
		s.rcpt(l.At, r.recipient, r.code, r.reply, cause, rejected)
	}
	return true
}

// codeAnd returns a reply that consists of a code and a text.
func codeAnd(code uint32, reply []byte) []byte {
	return append(strconv.AppendUint(nil, uint64(code), 10), append([]byte{' '}, clip(reply, maxExample)...)...)
}

// refusals lists the replies to RCPT and VRFY that are about the recipient. Each is described by its status
// code and by the start of its text after the recipient. All other replies may be about the client,
// for example because of a block list, and must not be evidence of a harvest.
//
// By default, Postfix checks the client, the greeting and the sender only at RCPT
// (smtpd_delay_reject).
var refusals = []struct {
	status, text string
	cause        smtp.Cause
}{
	{"5.7.1 ", "Relay access denied", smtp.CauseRelay},
	{"4.7.1 ", "Relay access denied", smtp.CauseRelay},
	{"5.1.1 ", "Recipient address rejected: User unknown", smtp.CauseUser},
	{"5.1.1 ", "Recipient address rejected: undeliverable", smtp.CauseFilter}, // unless refusal knows more
	{"4.1.1 ", "Recipient address rejected: User unknown", smtp.CauseUser},
	{"5.1.3 ", "", smtp.CauseSyntax},
}

// cause returns why Postfix has rejected a command.
func (r *rejection) cause() smtp.Cause {
	switch string(r.command) {
	case "RCPT":
		return r.refusal()
	case "MAIL":
		if r.code == 552 || r.code == 501 {
			return smtp.CauseNone
		}
	case "VRFY":
		if r.refusal() == smtp.CauseUser {
			return smtp.CauseUser
		}
		return smtp.CauseNone
	case "ETRN":
		return smtp.CauseNone
	}
	return smtp.CauseFilter
}

// refusal returns why Postfix has rejected a recipient.
func (r *rejection) refusal() smtp.Cause {
	text := r.text()
	if bytes.HasPrefix(r.reply, []byte("5.1.1 ")) && smtpd.Undeliverable(text) {
		return smtp.CauseUser
	}
	for _, one := range refusals {
		if bytes.HasPrefix(r.reply, []byte(one.status)) && bytes.HasPrefix(text, []byte(one.text)) {
			return one.cause
		}
	}
	return smtp.CauseFilter
}

// text returns TEXT of a reply "5.1.1 <RECIPIENT>: TEXT". If the reply is not about the recipient,
// text returns nil. Postfix may omit the quotes of the recipient.
func (r *rejection) text() []byte {
	_, rest, _ := bytes.Cut(r.reply, []byte(" <"))
	for _, addr := range [...][]byte{r.recipient, unquoted(r.recipient)} {
		if text, ok := bytes.CutPrefix(rest, addr); ok && bytes.HasPrefix(text, []byte(">: ")) {
			return text[len(">: "):]
		}
	}
	return nil
}

// unquoted returns an address without the quotes around its local part (RFC 5321 section 4.1.2).
func unquoted(addr []byte) (out []byte) {
	i := bytes.LastIndexByte(addr, '@')
	if i < 2 || addr[0] != '"' || addr[i-1] != '"' {
		return addr
	}
	for j := 1; j < i-1; j++ {
		if addr[j] == '\\' && j+1 < i-1 {
			j++
		}
		out = append(out, addr[j])
	}
	return append(out, addr[i:]...)
}

// warning handles warnings about failed AUTH commands. Other warnings are ignored. warning parses
// "CLIENT: SASL MECHANISM authentication failed: REASON", the same with "aborted", and "AUTH
// command rate limit exceeded: 11 from CLIENT for service smtp".
func (p *postfix) warning(l *maillog.Line, _, rest []byte) bool {
	limit, isLimit := bytes.CutPrefix(rest, []byte("AUTH command rate limit exceeded: "))
	if isLimit {
		_, rest, _ = bytes.Cut(limit, []byte(" from "))
	}
	c, rest, ok := cutClient(rest)
	rest, isLogin := bytes.CutPrefix(rest, []byte(": SASL "))
	if !ok || !isLogin && !isLimit {
		return true
	}
	s := p.session(l, c)
	mech, reason, failed := bytes.Cut(rest, []byte(" authentication failed: "))
	if isLimit || !failed {
		s.command(l.At, smtp.VerbAuth, []byte("AUTH"), 450, nil, smtp.CauseNone)
		return true
	}
	reason, user, _ := bytes.Cut(reason, []byte(", sasl_username="))
	if string(user) == "(unavailable)" {
		user = nil
	}
	for _, w := range noPassword {
		if bytes.Contains(reason, []byte(w)) {
			s.command(l.At, smtp.VerbAuth, smtpd.Redact(append([]byte("AUTH "), mech...)), 535, nil, smtp.CauseNone)
			return true
		}
	}
	s.login(l.At, user, smtp.ResultFail)
	return true
}

// noPassword lists reasons for a failed AUTH that do not mean a wrong password.
var noPassword = []string{
	"bad protocol / cancel", "authentication aborted", "Invalid authentication mechanism", "Connection lost", "generic failure",
	"no mechanism available", "Temporary authentication failure", "encryption needed",
}

func (p *postfix) otherProtocol(l *maillog.Line, _, rest []byte) bool {
	c, rest, ok := cutClient(rest)
	text, ok2 := bytes.CutPrefix(rest, []byte(": "))
	if !ok || !ok2 {
		return false
	}
	p.session(l, c).command(l.At, smtp.VerbUnknown, foreignLine(text), 500, nil, smtp.CauseUnknown)
	return true
}

// foreignLine returns a line that Postfix logs as a command in another protocol, without secrets. A
// single word may also be a line of a login, which Postfix takes for a command if it has rejected
// AUTH. Words that begin with a mark of another protocol are shown. Postfix writes control characters
// as question marks or escape sequences.
func foreignLine(text []byte) []byte {
	if len(text) > 3 && bytes.IndexByte(text, ' ') < 0 && bytes.IndexByte([]byte(`\?{<*`), text[0]) < 0 {
		return []byte(smtp.Masked)
	}
	return smtpd.Redact(text)
}

// badAddress handles "CLIENT in MAIL command: <ADDRESS>".
func (p *postfix) badAddress(l *maillog.Line, _, rest []byte) bool {
	c, rest, ok := cutClient(rest)
	rest, ok2 := bytes.CutPrefix(rest, []byte(" in "))
	command, addr, ok3 := bytes.Cut(rest, []byte(" command: "))
	if !ok || !ok2 || !ok3 {
		return false
	}
	s := p.session(l, c)
	addr = bytes.TrimSuffix(bytes.TrimPrefix(addr, []byte("<")), []byte(">"))
	if string(command) == "RCPT" {
		s.rcpt(l.At, addr, 501, nil, smtp.CauseSyntax, rejected)
	} else {
		s.command(l.At, smtp.VerbMail, smtpd.Redact(append(append([]byte("MAIL FROM:<"), addr...), '>')), 501, nil, smtp.CauseSyntax)
	}
	return true
}

// unconfirmed handles "NAME does not resolve to address ADDRESS". An error message may follow.
func (p *postfix) unconfirmed(l *maillog.Line, _, rest []byte) bool {
	name, rest, ok := bytes.Cut(rest, []byte(" does not resolve to address "))
	if !ok || len(name) > maxName {
		return true
	}
	addr, problem, failed := bytes.Cut(rest, []byte(": "))
	a := address(addr, nil)
	if !a.IsValid() {
		return true
	}
	u := unproven{a.Addr(), string(name), smtp.FCrDNSFail}
	if failed && !bytes.Contains(problem, []byte("not known")) && !bytes.Contains(problem, []byte("No address")) {
		u.result = smtp.FCrDNSError
	}
	if len(p.unproven) >= maxUnproven {
		clear(p.unproven)
	}
	p.unproven[string(p.keyOf(l))] = u
	return true
}

// pipelining handles "WORD from CLIENT: INPUT".
func (p *postfix) pipelining(l *maillog.Line, _, rest []byte) bool {
	word, after, ok := bytes.Cut(rest, []byte(" from "))
	c, text, ok2 := cutClient(after)
	if !ok || !ok2 {
		return false
	}
	s := p.session(l, c)
	if string(word) != "CONNECT" && len(s.steps) == 0 {
		s.did(l.At, smtpd.VerbOf(word))
	}
	text = bytes.TrimPrefix(text, []byte(": "))
	reply := append([]byte("improper command pipelining after "), clip(word, 20)...)
	reply = append(append(reply, ": "...), smtpd.RedactInput(text, word)...)
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: l.At}, nil, clip(reply, maxExample))
	return true
}

// tls handles "CLIENT: TLSv1.3 with cipher NAME (256/256 bits)".
func (p *postfix) tls(l *maillog.Line, _, rest []byte) bool {
	c, rest, ok := cutClient(rest)
	if !ok {
		return false
	}
	s := p.session(l, c)
	version, cipher, _ := bytes.Cut(bytes.TrimPrefix(rest, []byte(": ")), []byte(" with cipher "))
	cipher, _, _ = bytes.Cut(cipher, []byte(" "))
	s.add(step{kind: smtp.EventTLS, verb: smtp.VerbStartTLS, at: l.At}, clip(append(append(bytes.Clone(version), ':'), cipher...), maxExample), nil)
	return true
}
