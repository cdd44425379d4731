package serverlog

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A sendmail parses the log of Sendmail. Sendmail starts a process for each client. Lines about
// recipients contain neither the client nor the sender. A later line with from= contains the client
// and the sender.
type sendmail struct {
	*table
	key      []byte // reused
	messages messages
}

func newSendmail(t *table) parser {
	t.ready = (*session).unproven
	return &sendmail{table: t, messages: newMessages(t)}
}

// mailPrograms lists the names of the program in log lines about received mail.
var mailPrograms = []string{"sendmail", "sm-mta", "sendmail-mta"}

// A mailForm is a form of line. A mailForm is recognised by the text at its start or, if inside is
// set, by the text after the client at its start. Clients choose parts of a line, so the position
// of the client must be certain.
type mailForm struct {
	text   string
	inside bool
	read   func(m *sendmail, l *maillog.Line, id, rest []byte)
	// genuine, if set, reports whether the line is not "ADDRESS... REASON". Sendmail writes such a
	// line for an error in MAIL or RCPT. The client chooses the address, which may look like the
	// start of another line. The client cannot choose the end of the line. It cannot choose spaces
	// either, except in quotes, comments and angle brackets.
	genuine func(rest []byte) bool
}

var mailForms = []mailForm{
	{"connect from ", false, (*sendmail).connect, nil},
	{"ruleset=", false, (*sendmail).ruleset, regexp.MustCompile(`^ruleset=[0-9a-z_]+, arg1=`).Match},
	{"from=", false, (*sendmail).from, endsWithRelay},
	{"AUTH failure (", false, (*sendmail).authFailure, nil},
	{"AUTH=server, ", false, (*sendmail).authenticated, nil},
	{"STARTTLS=server, ", false, (*sendmail).startTLS, nil},
	{"Sending \"", false, (*sendmail).unknownCommand, nil},
	{"milter=", false, (*sendmail).milter, regexp.MustCompile(`^milter=[^ ,"(<]+, action=`).Match},
	{"Milter: ", false, (*sendmail).milterHelo, nil},
	{"--- ", false, (*sendmail).reply, nil},
	{"rejecting commands from ", false, (*sendmail).early, nil},
	{"rejecting server ", false, (*sendmail).early, nil},
	{"lost input channel from ", false, (*sendmail).lost, nil},
	{" did not issue MAIL/EXPN/VRFY/ETRN", true, (*sendmail).noMail, nil},
	{": probable open proxy: command=", true, (*sendmail).proxy, nil},
	{": VRFY ", true, (*sendmail).names, nil},
	{": EXPN ", true, (*sendmail).names, nil},
}

// endsWithRelay reports whether a line ends with ", relay=" and a client.
func endsWithRelay(rest []byte) bool {
	relay := field(rest, "relay=")
	end := afterRelay(relay)
	return end != nil && len(end) == 0 && relayOf(relay).IsValid() && bytes.HasSuffix(rest, relay)
}

func (m *sendmail) line(l *maillog.Line) verdict {
	if !slices.Contains(mailPrograms, string(l.Program)) {
		return foreign
	}
	m.messages.expire(m.now)
	id, rest := cutID(l.Text)
	after := afterRelay(rest)
	for i := range mailForms {
		f := &mailForms[i]
		switch {
		case f.inside && bytes.HasPrefix(after, []byte(f.text)):
			f.read(m, l, id, rest)
			return used
		case !f.inside && len(rest) > len(f.text) && string(rest[:len(f.text)]) == f.text && (f.genuine == nil || f.genuine(rest)):
			f.read(m, l, id, rest[len(f.text):])
			return used
		}
	}
	// Only Sendmail can write about the delivery of a message that the client has sent.
	if list, ok := bytes.CutPrefix(rest, []byte("to=")); ok && m.messages.get(l.Host, id) != nil {
		m.to(l, id, list)
	} else if addr, ok := cutUnknown(rest); ok {
		m.userUnknown(l, addr)
	}
	return used // Sendmail writes many other lines
}

// cutUnknown removes the text with which Sendmail, or the default entry of virtusertable, rejects a
// missing user.
func cutUnknown(s []byte) (arg []byte, ok bool) {
	if arg, ok = bytes.CutSuffix(s, []byte("... User unknown")); !ok {
		arg, ok = bytes.CutSuffix(s, []byte("... No such user here"))
	}
	return arg, ok
}

// afterRelay returns the text that follows a client at the start of s, or nil if there is no
// client. A client has the form "NAME [ADDRESS]" or "[ADDRESS]". "USER@" may precede it, or
// "IDENT:USER@" if the client's ident reply means that the user is not a user of the system.
func afterRelay(s []byte) []byte {
	i := bytes.IndexByte(s, '[')
	j := bytes.IndexByte(s, ']')
	if i < 0 || j < i {
		return nil
	}
	user, name := cutIdent(s[:i])
	if n := len(name); bytes.ContainsAny(bytes.TrimPrefix(user, []byte("IDENT:")), " \"<>,:") || n > 0 && (name[n-1] != ' ' || bytes.ContainsFunc(name[:n-1], notInName)) {
		return nil
	}
	return bytes.TrimPrefix(s[j+1:], []byte(" (may be forged)"))
}

// cutIdent splits "USER@NAME ". USER is the client's own ident reply (RFC 1413), so it may contain
// "@".
func cutIdent(s []byte) (user, name []byte) {
	i := bytes.LastIndexByte(s, '@') + 1
	return s[:i], s[i:]
}

// notInName reports whether Sendmail never writes r in the name of a client.
func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-./^_`{|}~", r)
}

// session returns the session of the process that has written the line.
func (m *sendmail) session(l *maillog.Line) *session {
	m.key = append(append(append(m.key[:0], l.Host...), '/'), l.PID...)
	if s := m.get(m.key, l.At); s != nil {
		return s
	}
	s := m.open(m.key, l.At, l.Host, client{}.addr)
	s.partial = true
	return s
}

// client returns the session for a line about a client of the form "NAME [ADDRESS]" or "[ADDRESS]".
// If the session has a different client, the process id was reused, and a new session begins.
func (m *sendmail) client(l *maillog.Line, who []byte) *session {
	s := m.session(l)
	if addr := relayOf(who); addr.IsValid() && s.src.IsValid() && addr != s.src {
		var pending []step // steps of the new client, because the line with the client comes at the end of each transaction
		s.steps = slices.DeleteFunc(s.steps, func(st step) bool {
			if st.class != unsent {
				return false
			}
			pending = append(pending, st)
			return true
		})
		text := bytes.Clone(s.text)
		s = m.open(m.key, l.At, l.Host, client{}.addr)
		s.partial = true
		for _, st := range pending {
			s.add(st, text[st.a.from:st.a.to], text[st.b.from:st.b.to])
		}
	}
	s.seen(who)
	return s
}

// relayOf returns the address of a client, or the zero AddrPort if there is none.
func relayOf(who []byte) netip.AddrPort {
	i := bytes.IndexByte(who, '[')
	addr, _, ok := bytes.Cut(who[i+1:], []byte("]"))
	if i < 0 || !ok {
		return netip.AddrPort{}
	}
	return address(addr, nil)
}

// seen stores the client of a session. Sendmail adds "may be forged" to a name that does not
// resolve to the address.
func (s *session) seen(text []byte) {
	if s.src.IsValid() {
		return
	}
	if s.src = relayOf(text); !s.src.IsValid() {
		return
	}
	i := bytes.IndexByte(text, '[')
	_, rest, _ := bytes.Cut(text[i:], []byte("]"))
	_, name := cutIdent(text[:i])
	if name = bytes.TrimSpace(name); len(name) > 0 && len(name) <= maxName {
		s.rdns, s.fcrdns = append(s.rdns[:0], name...), smtp.FCrDNSPass
		if bytes.Contains(rest, []byte("(may be forged)")) {
			s.fcrdns = smtp.FCrDNSFail
		}
	}
}

// unproven removes rejected recipients whose sender is unknown. Such recipients may be recipients
// of bounces, which must not count as unknown recipients.
func (s *session) unproven() {
	if s.hung = false; s.mark < len(s.steps) {
		s.steps = slices.DeleteFunc(s.steps, func(st step) bool { return st.kind == smtp.EventRcpt && st.class == unsent })
	}
}

// field returns the value that follows a name such as "relay=", up to the next comma.
func field(s []byte, name string) []byte {
	i := bytes.LastIndex(s, []byte(", "+name))
	if i < 0 {
		return nil
	}
	value, _, _ := bytes.Cut(s[i+2+len(name):], []byte(", "))
	return value
}

func (m *sendmail) connect(l *maillog.Line, _, rest []byte) {
	m.key = append(append(append(m.key[:0], l.Host...), '/'), l.PID...)
	s := m.open(m.key, l.At, l.Host, client{}.addr)
	s.seen(rest)
}

// mailRefusals lists the replies to RCPT that are about the recipient.
var mailRefusals = []struct {
	text  string
	cause smtp.Cause
}{
	{"Relaying denied", smtp.CauseRelay},
	{"User unknown", smtp.CauseUser},
}

// relayReject matches the text between the argument of a rule set and the reply.
var relayReject = regexp.MustCompile(`, relay=([^,]*\[[0-9A-Za-z.:]+\](?: \(may be forged\))?), reject=`)

// ruleset handles "check_rcpt, arg1=<ADDRESS>, relay=CLIENT, reject=550 5.7.1 <ADDRESS>... TEXT".
// The client chooses the address, which may contain the names of fields. The line contains the
// address twice, so the genuine fields are in the middle.
func (m *sendmail) ruleset(l *maillog.Line, _, rest []byte) {
	all := relayReject.FindAllSubmatchIndex(rest, -1)
	if len(all)%2 == 0 {
		return
	}
	at := all[len(all)/2]
	head, reply := rest[:at[0]], rest[at[1]:]
	name, arg, _ := bytes.Cut(head, []byte(", arg1="))
	if len(all) > 1 && !bytes.Contains(reply, append(bytes.Clone(arg), "... "...)) {
		return
	}
	s := m.client(l, rest[at[2]:at[3]])
	code := codeOf(reply)
	if code == 0 {
		return
	}
	text := bytes.TrimLeft(reply[3:], " ")
	switch string(name) {
	case "check_rcpt":
		cause := smtp.CauseFilter
		for _, r := range mailRefusals {
			if bytes.Contains(smtpd.Reason(text), []byte(r.text)) {
				cause = r.cause
				break
			}
		}
		if cause == smtp.CauseFilter {
			s.policy(l.At, smtp.PhaseRcptTo, reply)
		}
		s.rcpt(l.At, m.recipient(l, s, arg), code, text, cause, unsent)
	case "check_mail":
		s.policy(l.At, smtp.PhaseMailFrom, reply)
		s.mailFailed(l.At, bare(unescaped(arg)), code, text, smtp.CauseFilter)
	default:
		s.policy(l.At, smtp.PhaseConnect, reply)
	}
}

// bare returns an address without angle brackets.
func bare(addr []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimPrefix(bytes.TrimSpace(addr), []byte("<")), []byte(">"))
}

// codeOf returns the code at the start of a reply, or 0 if there is none.
func codeOf(reply []byte) (code uint32) {
	if len(reply) < 3 {
		return 0
	}
	for _, c := range reply[:3] {
		if c < '0' || c > '9' {
			return 0
		}
		code = code*10 + uint32(c-'0')
	}
	return code
}

// shortened is the length of an address in the log if Sendmail has removed the middle.
const shortened = 203

// recipient returns the argument of RCPT.
func (m *sendmail) recipient(l *maillog.Line, s *session, arg []byte) []byte {
	if len(arg) >= shortened {
		return incomplete(s, l.At)
	}
	return unescaped(arg)
}

// userUnknown handles "ARGUMENT... User unknown". The argument is the text that the client has sent
// after "RCPT TO:", with or without angle brackets.
func (m *sendmail) userUnknown(l *maillog.Line, arg []byte) {
	s := m.session(l)
	s.rcpt(l.At, m.recipient(l, s, arg), 550, []byte("5.1.1 User unknown"), smtp.CauseUser, unsent)
}

// from handles a line at the end of a transaction: "<SENDER>, size=18, class=0, nrcpts=1, msgid=<>,
// proto=ESMTP, daemon=MTA, relay=CLIENT". If msgid is missing, the client has sent no message.
func (m *sendmail) from(l *maillog.Line, id, rest []byte) {
	i := bytes.Index(rest, []byte(", size="))
	if i < 0 {
		return
	}
	s := m.client(l, field(rest, "relay="))
	sender := bare(unescaped(rest[:i]))
	last := len(s.steps)
	first := last
	for j := s.mark; j < len(s.steps); j++ {
		if s.steps[j].class == unsent {
			first = min(first, j)
			s.steps[j].class = rejected
		}
	}
	if first < last { // move the sender before its recipients
		s.mail(l.At, sender, rejected)
		if last < len(s.steps) {
			st := s.steps[last]
			copy(s.steps[first+1:], s.steps[first:last])
			s.steps[first] = st
		}
	}
	n, _ := strconv.Atoi(string(field(rest, "nrcpts=")))
	switch {
	case n > 0 && len(field(rest, "msgid=")) > 0:
		m.messages.add(l.Host, id, s)
		if one := m.messages.get(l.Host, id); one != nil {
			one.sender = bytes.Clone(clip(sender, maxPath))
			one.size, _ = strconv.ParseUint(string(field(rest, "size=")), 10, 64)
			one.nrcpt = min(n, maxAlike)
		}
	default:
		if first == last {
			s.mail(l.At, sender, inOrder)
		}
		for range min(n, maxAlike) { // these recipients were accepted, but there was no message
			s.rcpt(l.At, nil, 0, nil, smtp.CauseNone, accepted)
		}
	}
	s.mark = len(s.steps)
}

// to handles a line about a delivery: "<A>,<B>, delay=, ..., stat=Sent". A delivery proves that the
// message was accepted.
func (m *sendmail) to(l *maillog.Line, id, rest []byte) {
	one := m.messages.get(l.Host, id)
	list, rest, ok := bytes.Cut(rest, []byte(", "))
	if one == nil || !ok || bytes.Contains(rest, []byte("stat=aborted by sender")) {
		return
	}
	if ctl, _, ok := bytes.Cut(rest, []byte(", ")); ok && bytes.HasPrefix(ctl, []byte("ctladdr=<")) {
		list = bytes.TrimPrefix(ctl, []byte("ctladdr="))
		list, _, _ = bytes.Cut(list, []byte(" "))
	}
	one.known = true
	for addr := range bytes.SplitSeq(list, []byte(",")) {
		if one.overflow() {
			continue
		}
		if addr = bare(addr); bytes.IndexByte(addr, '@') > 0 && len(one.rcpts) < maxRecipients {
			one.rcpts = append(one.rcpts, bytes.Clone(clip(addr, maxPath)))
		} else {
			one.nrcpt = max(one.nrcpt-1, len(one.rcpts))
		}
	}
	if len(one.rcpts) >= one.nrcpt {
		m.messages.done(string(m.messages.key), true)
	}
}

// authFailure handles "MECHANISM): REASON, user=USER, relay=CLIENT". Sendmail before 8.16 does not
// log the user.
func (m *sendmail) authFailure(l *maillog.Line, _, rest []byte) {
	s := m.client(l, field(rest, "relay="))
	if bytes.Contains(rest, []byte("cancel")) || bytes.Contains(rest, []byte("generic failure")) || bytes.Contains(rest, []byte("no mechanism available")) {
		mech, _, _ := bytes.Cut(rest, []byte(")"))
		s.command(l.At, smtp.VerbAuth, smtpd.Redact(append([]byte("AUTH "), mech...)), 535, nil, smtp.CauseNone)
		return
	}
	_, user, _ := bytes.Cut(rest, []byte(", user="))
	if i := bytes.LastIndex(user, []byte(", relay=")); i >= 0 {
		user = user[:i]
	}
	s.login(l.At, user, smtp.ResultFail)
}

func (m *sendmail) authenticated(l *maillog.Line, _, rest []byte) {
	relay, _, _ := bytes.Cut(bytes.TrimPrefix(rest, []byte("relay=")), []byte(", "))
	s := m.client(l, relay)
	s.login(l.At, field(rest, "authid="), smtp.ResultPass)
}

func (m *sendmail) startTLS(l *maillog.Line, _, rest []byte) {
	rest = append([]byte(", "), rest...)
	s := m.client(l, field(rest, "relay="))
	text := append(append(bytes.Clone(field(rest, "version=")), ':'), field(rest, "cipher=")...)
	s.add(step{kind: smtp.EventTLS, verb: smtp.VerbStartTLS, at: l.At}, clip(text, maxExample), nil)
}

// unknownCommand handles the line that Sendmail writes when it passes an unknown command to a
// milter.
func (m *sendmail) unknownCommand(l *maillog.Line, _, rest []byte) {
	if text, ok := bytes.CutSuffix(rest, []byte(`" to Milter`)); ok && len(text) > 0 {
		m.session(l).command(l.At, smtp.VerbUnknown, smtpd.RedactUnknown(unescaped(text)), 500, nil, smtp.CauseUnknown)
	}
}

// unescaped decodes the escapes in Sendmail's log. Sendmail writes a backslash twice, and a control
// character as a backslash and three octal digits.
func unescaped(s []byte) (out []byte) {
	for {
		i := bytes.Index(s, []byte(`\\`))
		if i < 0 {
			return append(out, octal(s)...)
		}
		out = append(append(out, octal(s[:i])...), '\\')
		s = s[i+2:]
	}
}

// octal decodes octal escapes of control characters.
func octal(s []byte) (out []byte) {
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(string(s[i+1:i+4]), 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return out
}

// milterPhases maps the actions in a milter's lines to phases.
var milterPhases = map[string]smtp.Phase{
	"connect": smtp.PhaseConnect, "helo": smtp.PhaseHelo, "mail": smtp.PhaseMailFrom, "rcpt": smtp.PhaseRcptTo,
	"data": smtp.PhaseData, "header": smtp.PhaseCommit, "eoh": smtp.PhaseCommit, "body": smtp.PhaseCommit, "eom": smtp.PhaseCommit,
}

// milter handles "NAME, action=ACTION, reject=554 5.7.1 TEXT".
func (m *sendmail) milter(l *maillog.Line, id, rest []byte) {
	head, reply, ok := bytes.Cut(rest, []byte(", reject="))
	if !ok {
		return
	}
	phase, known := milterPhases[string(field(head, "action="))]
	if !known {
		return
	}
	m.session(l).policy(l.At, phase, reply)
	if phase == smtp.PhaseCommit {
		m.messages.get(l.Host, id)
		m.messages.done(string(m.messages.key), false)
	}
}

// reply ignores a line with a reply. With a LogLevel above 14, Sendmail logs all replies, and logs
// errors twice.
func (m *sendmail) reply(_ *maillog.Line, _, _ []byte) {}

// milterHelo handles "helo=NAME, reject=TEXT". Other lines that begin with "Milter: " are ignored.
func (m *sendmail) milterHelo(l *maillog.Line, _, rest []byte) {
	name, ok := bytes.CutPrefix(rest, []byte("helo="))
	if i := bytes.LastIndex(name, []byte(", reject=")); ok && i > 0 {
		m.session(l).greet(l.At, name[:i], smtp.VerbEhlo)
	}
}

// early handles a client that has sent commands before the greeting or before the reply to HELO.
func (m *sendmail) early(l *maillog.Line, _, rest []byte) {
	s := m.client(l, rest)
	when := "before the greeting"
	if !bytes.Contains(rest, []byte("pre-greeting")) {
		if when = "after HELO"; len(s.steps) == 0 {
			s.did(l.At, smtp.VerbHelo)
		}
	}
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: l.At}, nil, clip([]byte("improper command pipelining "+when), maxExample))
}

// lost handles "CLIENT to MTA after STATE".
func (m *sendmail) lost(l *maillog.Line, _, rest []byte) {
	s := m.client(l, rest)
	s.ending = smtp.EndingDropped
}

// noMail handles the end of a session without a message. The log may lack some of the client's
// commands.
func (m *sendmail) noMail(l *maillog.Line, _, rest []byte) {
	s := m.client(l, rest)
	s.partial = false
	how := s.ending
	if how == smtp.EndingUnknown || len(s.steps) == 0 {
		how = smtp.EndingPartial
	}
	m.end(s, l.At, how)
}

func (m *sendmail) proxy(l *maillog.Line, _, rest []byte) {
	who, line, _ := bytes.Cut(rest, []byte(": probable open proxy: command="))
	s := m.client(l, who)
	s.command(l.At, smtp.VerbUnknown, smtpd.Redact(line), 500, nil, smtp.CauseUnknown)
}

func (m *sendmail) names(l *maillog.Line, _, rest []byte) {
	s := m.client(l, rest)
	s.did(l.At, smtp.VerbNames)
}
