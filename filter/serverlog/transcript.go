package serverlog

import (
	"bytes"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A dialect describes the format of a server's transcript. A transcript is a log of the lines that
// the client and the server have sent.
type dialect struct {
	// split parses a line. split returns the time, the key of the session, the client's address if
	// the line contains it, and the rest of the line.
	split          func(t *transcript, raw []byte) (at int64, key, addr, rest []byte, ok bool)
	client, server []byte // start of lines from the client and from the server
	// connected and closed are parts of the lines at the start and end of a session. The client's
	// address follows connected, unless every line contains the address.
	connected, closed []byte
	// dateless reports whether the lines contain no dates.
	dateless bool
}

var (
	icewarp = dialect{split: splitIceWarp, dateless: true, client: []byte("<<< "), server: []byte(">>> "), connected: []byte("Connected"), closed: []byte("Disconnected")}
	mdaemon = dialect{split: splitMDaemon, client: []byte("<-- "), server: []byte("--> "), connected: []byte("Accepting SMTP connection from "), closed: []byte("SMTP session ")}
	postal  = dialect{split: splitPostal, client: []byte("<= "), server: []byte("=> "), connected: []byte("Connection opened from "), closed: []byte("Connection closed")}
)

// A transcript is a parser for transcripts.
type transcript struct {
	*table
	dialect
	zone *time.Location
	day  time.Time // date of lines that contain only a time
	last int64     // time of the latest line, in microseconds since the start of day
	sure bool      // day was not guessed from the modification time of the file
	key  []byte    // reused
}

func newTranscript(d dialect) func(*table) parser {
	return func(t *table) parser {
		if d.dateless { // the date is not known yet
			t.clock = func() time.Time { return time.Unix(math.MaxInt32, 0) }
		}
		return &transcript{table: t, dialect: d, zone: t.zone, day: t.date}
	}
}

// A talk is the state of a conversation.
type talk struct {
	red     smtpd.Redactor
	verb    smtp.Verb
	line    []byte // redacted line from the client
	arg     []byte
	wait    bool // a reply to the client's line, or the rest of a login, is expected
	pending bool // there is no reply to the client's latest line yet
	secret  bool // parts of the client's line are masked
	data    bool // the client is sending a message
	quit    bool
	moved   bool // the server has sent a reply after its greeting
	// first and firstAt are the code and the time of a reply with several lines, until its last
	// line has been read. Some logs omit the last line.
	first   uint32
	firstAt int64
}

func (t *transcript) line(l *maillog.Line) verdict {
	raw := bytes.TrimRight(l.Raw, " \r")
	at, key, addr, rest, ok := t.split(t, raw)
	if !ok {
		if len(raw) == 0 {
			return used
		}
		return unknown
	}
	at = t.tick(at)
	text, isClient := bytes.CutPrefix(rest, t.client)
	reply, isServer := bytes.CutPrefix(rest, t.server)
	switch {
	case isClient:
		if s := t.session(key, at, addr); s != nil {
			s.said(text)
		}
	case isServer:
		if s := t.session(key, at, addr); s != nil {
			t.replied(s, at, reply)
		}
	case bytes.HasPrefix(rest, t.connected):
		if addr == nil {
			addr = rest[len(t.connected):]
		}
		if a, p := endpoint(addr); len(a) > 0 {
			s := t.open(key, at, nil, address(a, p))
			s.talk = new(talk)
		}
	case bytes.HasPrefix(rest, t.closed):
		if s := t.get(key, at); s != nil {
			t.end(s, at, s.closing())
		}
	}
	return used
}

// session returns the session to which a line belongs. If the log lacks the start of the session, a
// new session begins with this line, which must contain the address.
func (t *transcript) session(key []byte, at int64, addr []byte) *session {
	if s := t.get(key, at); s != nil || addr == nil {
		return s
	}
	s := t.open(key, at, nil, address(addr, nil))
	s.partial, s.talk = true, new(talk)
	s.talk.red.Late()
	return s
}

// closing returns the ending of a session whose connection was closed.
func (s *session) closing() smtp.Ending {
	switch {
	case s.talk.quit:
		return smtp.EndingQuit
	case s.ending != smtp.EndingUnknown:
		return s.ending
	}
	return smtp.EndingClosed
}

// endpoint parses "[ADDRESS:PORT] ...", "[ADDRESS]:PORT ...", "ADDRESS:PORT ..." or "ADDRESS".
//
// In "[2001:db8::1:25]", 25 may be a port or a part of the address. The address is then "?", because
// another host must not get the evidence about the client.
func endpoint(s []byte) (addr, port []byte) {
	if len(s) > 0 && s[0] == '[' {
		inner, after, _ := bytes.Cut(s[1:], []byte("]"))
		if after, ok := bytes.CutPrefix(after, []byte(":")); ok {
			port, _, _ = bytes.Cut(after, []byte(" "))
			return inner, port
		}
		i := bytes.LastIndexByte(inner, ':')
		switch whole := address(inner, nil).IsValid(); {
		case i < 0 || !address(inner[:i], nil).IsValid():
			return inner, nil
		case whole && number(inner[i+1:]) > 0:
			return []byte("?"), nil
		case !whole:
			return inner[:i], inner[i+1:]
		}
		return inner, nil
	}
	s, _, _ = bytes.Cut(s, []byte(" "))
	if i := bytes.LastIndexByte(s, ':'); i > 0 && bytes.IndexByte(s, ':') == i {
		return s[:i], s[i+1:]
	}
	return s, nil
}

// said handles a line from the client, and ignores message text.
func (s *session) said(line []byte) {
	t := s.talk
	if t.data {
		return
	}
	switch {
	case t.wait && t.first != 0:
		s.outcome(t.firstAt, t.first, nil)
		t.red.Reply(t.verb, t.first)
	case t.pending && t.verb != smtp.VerbAuth: // some logs omit replies to AUTH
		s.partial = true // the outcome of the latest command is unknown
	}
	t.first = 0
	shown, verb := t.red.Line(line)
	t.line = append(t.line[:0], clip(shown, maxExample)...)
	t.secret = masked(shown, line, verb)
	t.arg = append(t.arg[:0], clip(argument(line, verb), maxArgument)...)
	if verb != smtp.VerbExchange {
		t.verb = verb
	}
	t.wait, t.pending = true, true
}

// masked reports whether parts of a line are masked in shown. If parts are masked, the server's
// reply may repeat these parts. A long MAIL or RCPT is cut, but not masked.
func masked(shown, line []byte, verb smtp.Verb) bool {
	shown, line = bytes.TrimSpace(shown), bytes.TrimSpace(line)
	if verb == smtp.VerbMail || verb == smtp.VerbRcpt {
		line = clip(line, max(len(shown), maxExample))
	}
	return !bytes.Equal(shown, line)
}

// status returns the enhanced status code (RFC 3463) at the start of a reply's text. The code may
// be empty.
func status(text []byte) []byte {
	return text[:len(text)-len(bytes.TrimLeft(text, "0123456789."))]
}

// argument returns the address in a MAIL or RCPT command, or the name in a greeting.
func argument(line []byte, verb smtp.Verb) []byte {
	switch verb {
	case smtp.VerbMail, smtp.VerbRcpt:
		_, addr, _ := bytes.Cut(line, []byte(":"))
		addr = bytes.TrimSpace(addr)
		switch {
		case bytes.IndexByte(addr, '(') >= 0: // a comment; see mailbox.Address
			return addr
		case len(addr) > 0 && addr[0] == '<':
			end := 1 + outside(addr[1:], '>')
			if end+1 < len(addr) && addr[end+1] != ' ' { // further text, which may be another address
				return addr
			}
			return addr[1:end]
		}
		addr, _, _ = bytes.Cut(addr, []byte(" "))
		return addr
	case smtp.VerbHelo, smtp.VerbEhlo:
		_, name, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		return bytes.TrimSpace(name)
	}
	return nil
}

// replied handles a line from the server.
func (t *transcript) replied(s *session, at int64, reply []byte) {
	code := codeOf(reply)
	k := s.talk
	k.pending = false
	if code == 0 || len(reply) > 3 && reply[3] == '-' {
		k.first, k.firstAt = code, at
		return // only the last line of a reply counts
	}
	k.first = 0
	text := bytes.TrimSpace(reply[3:])
	if k.wait && k.secret { // the reply may repeat the client's line
		text = status(text)
	}
	switch {
	case !k.wait && !k.data && !k.moved && code == 220:
		t.greeted(s, text)
	case k.data:
		k.data = false
		if code < 400 {
			s.message(at, received(text), inOrder, true)
		} else {
			s.policy(at, smtp.PhaseCommit, reply)
		}
	case code == 421 && !k.wait:
		s.ending = smtp.EndingRejected
	case k.wait:
		s.outcome(at, code, text)
		k.wait = code == 334
		k.red.Reply(k.verb, code)
		if code == 421 {
			s.ending = smtp.EndingRejected
		}
	}
	k.moved = true
}

// dateInName matches the date in the name of a file, such as s20260213-00.log. The number of the
// server may precede the date.
var dateInName = regexp.MustCompile(`(20\d\d)-?([01]\d)-?([0-3]\d)(?:\D|$)`)

// file starts to read a file. If the lines contain no date, they get the date in the file's name.
// If the name contains no date either, the first file gets the date of its modification time. Each
// later file continues with the date of the previous file.
func (t *transcript) file(name string) {
	if !t.dateless {
		return
	}
	m := dateInName.FindStringSubmatch(name)
	if m == nil {
		return
	}
	if day, err := time.ParseInLocation("20060102", m[1]+m[2]+m[3], t.zone); err == nil {
		t.day, t.last, t.sure = day, 0, true
	}
}

// greeted reads the server's name and the date from the greeting of the server.
func (t *transcript) greeted(s *session, text []byte) {
	name, rest, _ := bytes.Cut(text, []byte(" "))
	if bytes.IndexByte(name, '.') > 0 {
		s.server = string(clip(name, maxName))
	}
	if i := bytes.LastIndex(rest, []byte("; ")); i >= 0 {
		if at, err := time.Parse("Mon, 2 Jan 2006 15:04:05 -0700", string(bytes.TrimSpace(rest[i+2:]))); err == nil {
			t.dated(at)
		}
	}
}

// dated sets the date and the time zone of the lines that follow.
func (t *transcript) dated(at time.Time) {
	_, offset := at.Zone()
	zone := time.FixedZone("", offset)
	day := time.Date(at.Year(), at.Month(), at.Day(), 0, 0, 0, 0, zone)
	if t.dateless {
		t.shift(day.UnixMicro() - t.day.UnixMicro())
		t.zone, t.day, t.sure = zone, day, true
	}
}

// received returns the size in a reply such as "2.6.0 1204 bytes received".
func received(text []byte) uint64 {
	head, _, ok := bytes.Cut(text, []byte(" bytes"))
	if !ok {
		return 0
	}
	n, _ := strconv.ParseUint(string(head[bytes.LastIndexByte(head, ' ')+1:]), 10, 64)
	return n
}

// outcomes maps the verb of a command to the function that handles the server's reply.
var outcomes = map[smtp.Verb]func(s *session, at int64, code uint32, text []byte){
	smtp.VerbHelo: greetOutcome, smtp.VerbEhlo: greetOutcome,
	smtp.VerbMail: mailOutcome, smtp.VerbRcpt: rcptOutcome, smtp.VerbAuth: authOutcome,
	smtp.VerbData: dataOutcome, smtp.VerbQuit: quitOutcome, smtp.VerbStartTLS: tlsOutcome, smtp.VerbRset: rsetOutcome,
}

// outcome handles the server's reply to the client's latest line.
func (s *session) outcome(at int64, code uint32, text []byte) {
	if f := outcomes[s.talk.verb]; f != nil {
		f(s, at, code, text)
		return
	}
	otherOutcome(s, at, code, text)
}

func otherOutcome(s *session, at int64, code uint32, text []byte) {
	if code < 400 {
		s.did(at, s.talk.verb)
		return
	}
	cause := smtp.CauseNone
	if s.talk.verb == smtp.VerbUnknown {
		cause = smtp.CauseUnknown
	}
	s.command(at, s.talk.verb, s.talk.line, code, text, cause)
}

func greetOutcome(s *session, at int64, code uint32, text []byte) {
	if code >= 400 {
		otherOutcome(s, at, code, text)
		return
	}
	s.greet(at, s.talk.arg, s.talk.verb)
}

func mailOutcome(s *session, at int64, code uint32, text []byte) {
	switch {
	case code < 400:
		s.mail(at, s.talk.arg, inOrder)
	case code == 501 || code == 503:
		s.command(at, smtp.VerbMail, s.talk.line, code, text, smtpd.CauseOf(smtp.VerbMail, code, text))
	default:
		s.policy(at, smtp.PhaseMailFrom, codeAnd(code, text))
		s.mailFailed(at, s.talk.arg, code, text, smtp.CauseFilter)
	}
}

func rcptOutcome(s *session, at int64, code uint32, text []byte) {
	if code < 400 {
		s.rcpt(at, s.talk.arg, 0, nil, smtp.CauseNone, inOrder)
		return
	}
	s.rcptRefused(at, s.talk.arg, code, text, inOrder)
}

// rcptRefused adds a rejected recipient. A server may also reject a client or sender only at RCPT.
// Such a rejection must not be evidence of a harvest. A recipient therefore counts as missing only
// if the reply's text is about the recipient.
func (s *session) rcptRefused(at int64, addr []byte, code uint32, text []byte, class uint8) {
	cause := smtpd.CauseOf(smtp.VerbRcpt, code, text)
	reason := recipientReason(text, addr)
	if (cause == smtp.CauseRecipient || cause == smtp.CauseUser) && !namesRecipient(text, reason) || cause == smtp.CauseRelay && namesOther(reason) || code < 500 && cause != smtp.CauseRelay {
		cause = smtp.CauseFilter
		s.policy(at, smtp.PhaseRcptTo, codeAnd(code, text))
	}
	s.rcpt(at, addr, code, text, cause, class)
}

// recipientWords lists phrases in replies about recipients that do not exist.
var recipientWords = []string{
	"no such user", "unknown user", "user unknown", "no such recipient", "does not exist", "unknown recipient", "recipient unknown", "invalid recipient",
	"no such mailbox", "mailbox not found", "mailbox unavailable", "unrouteable address", "not a valid mailbox", "user not found", "authentication required",
}

// otherWords lists words in replies about the client, its greeting or the sender. Such a reply may
// also contain one of recipientWords, for example if it is about the sender's mailbox.
var otherWords = []string{"sender", "mail from", "helo", "ehlo", "client", "agent", "dns", "spf", "black", "blocked", "listed"}

// recipientReason returns a reply's text in lower case. recipientReason removes the recipient,
// because the client may choose misleading words as the recipient.
func recipientReason(text, addr []byte) []byte {
	text, addr = bytes.ToLower(clip(text, 2*maxArgument)), bytes.ToLower(addr)
	if bytes.IndexByte(addr, '@') < 0 {
		return text
	}
	return bytes.ReplaceAll(text, addr, nil)
}

// namesRecipient reports whether the status code or the words of a reply prove that the reply is
// about the recipient.
func namesRecipient(text, reason []byte) bool {
	return bytes.HasPrefix(text, []byte("5.1.1 ")) || containsAny(reason, recipientWords) && !namesOther(reason)
}

// namesOther reports whether a reply is about the client or the sender. namesOther also returns
// true if the reply repeats another server's reply about a different address.
func namesOther(reason []byte) bool {
	const rcpt = "rcpt to:<"
	return containsAny(reason, otherWords) || bytes.Count(reason, []byte(rcpt)) > bytes.Count(reason, []byte(rcpt+">"))
}

func containsAny(s []byte, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return bytes.Contains(s, []byte(w)) })
}

func authOutcome(s *session, at int64, code uint32, text []byte) {
	t := s.talk
	switch {
	case code == 334:
	case code < 400:
		s.login(at, t.red.User(), smtp.ResultPass)
	case code == 535:
		s.login(at, t.red.User(), smtp.ResultFail)
	case code == 502 || code == 503 || code == 504:
		s.command(at, smtp.VerbAuth, []byte("AUTH"), code, nil, smtp.CauseUnsupported)
	default:
		s.command(at, smtp.VerbAuth, []byte("AUTH"), code, nil, smtp.CauseNone)
	}
}

func dataOutcome(s *session, at int64, code uint32, text []byte) {
	if s.talk.data = code == 354; !s.talk.data {
		otherOutcome(s, at, code, text)
	}
}

func quitOutcome(s *session, at int64, _ uint32, _ []byte) {
	s.talk.quit = true
	s.add(step{kind: smtp.EventQuit, verb: smtp.VerbQuit, at: at}, nil, nil)
}

func tlsOutcome(s *session, at int64, code uint32, text []byte) {
	if code >= 400 {
		otherOutcome(s, at, code, text)
		return
	}
	s.add(step{kind: smtp.EventTLS, verb: smtp.VerbStartTLS, at: at}, nil, nil)
}

func rsetOutcome(s *session, at int64, _ uint32, _ []byte) {
	s.open = false
	s.did(at, smtp.VerbRset)
	s.add(step{kind: smtp.EventRollback, at: at}, nil, nil)
}

// splitIceWarp parses "ADDRESS [THREAD] 16:14:01 REST". The date comes from the server's greetings.
func splitIceWarp(t *transcript, raw []byte) (at int64, key, addr, rest []byte, ok bool) {
	addr, rest, ok = bytes.Cut(raw, []byte(" "))
	if !ok {
		return 0, nil, nil, nil, false
	}
	rest = bytes.TrimLeft(rest, " ")
	i := bytes.IndexByte(rest, ']')
	if len(rest) == 0 || rest[0] != '[' || i < 0 || len(rest) < i+11 {
		return 0, nil, nil, nil, false
	}
	thread := rest[:i+1]
	micros, ok := maillog.TimeOfDay(rest[i+2:])
	if !ok || rest[i+10] != ' ' {
		return 0, nil, nil, nil, false
	}
	const half = 12 * 60 * minute
	switch {
	case micros < t.last-half:
		t.day = t.day.AddDate(0, 0, 1)
	case micros > t.last+half && t.last != 0: // a delayed line from the day before
		return t.day.AddDate(0, 0, -1).UnixMicro() + micros, t.keyOf(addr, thread), addr, rest[i+11:], true
	}
	t.last = micros
	return t.day.UnixMicro() + micros, t.keyOf(addr, thread), addr, rest[i+11:], true
}

func (t *transcript) keyOf(parts ...[]byte) []byte {
	t.key = t.key[:0]
	for _, p := range parts {
		t.key = append(append(t.key, p...), ' ')
	}
	return t.key
}

// splitMDaemon parses "Sat 2014-07-26 12:58:47.123: 05: [514116] REST". The level "05: " may be
// missing. The lines of different sessions are mixed, so a line without a session number cannot be
// assigned to a session.
func splitMDaemon(t *transcript, raw []byte) (at int64, key, addr, rest []byte, ok bool) {
	if len(raw) < 25 || raw[3] != ' ' {
		return 0, nil, nil, nil, false
	}
	stamp, rest, ok := bytes.Cut(raw[4:], []byte(": "))
	if at, ok2 := maillog.Time(stamp, t.zone); ok && ok2 {
		if len(rest) > 4 && rest[2] == ':' && rest[3] == ' ' {
			rest = rest[4:]
		}
		if i := bytes.IndexByte(rest, ']'); len(rest) > 0 && rest[0] == '[' && i > 0 {
			return at, t.keyOf(rest[:i+1]), nil, bytes.TrimLeft(rest[i+1:], " "), true
		}
		return at, nil, nil, nil, bytes.HasPrefix(rest, []byte("---")) // a separator
	}
	return 0, nil, nil, nil, false
}

// splitPostal parses "[smtp.1:14] [2017-05-15T10:25:12.762] DEBUG -- : [D9WT5N] REST". REST
// contains escape sequences for colours.
func splitPostal(t *transcript, raw []byte) (at int64, key, addr, rest []byte, ok bool) {
	_, rest, ok = bytes.Cut(raw, []byte("] ["))
	stamp, rest, ok2 := bytes.Cut(rest, []byte("]"))
	_, rest, ok3 := bytes.Cut(rest, []byte(" : ["))
	id, rest, ok4 := bytes.Cut(rest, []byte("] "))
	if !ok || !ok2 || !ok3 || !ok4 {
		if !ok3 {
			return 0, nil, nil, nil, false
		}
	}
	if at, ok = maillog.Time(stamp, t.zone); !ok || !ok4 {
		return 0, nil, nil, nil, false
	}
	rest = bytes.TrimLeft(rest, " ")
	if i := bytes.IndexByte(rest, 'm'); len(rest) > 1 && rest[0] == 0x1b && i > 0 && i < 6 {
		rest = bytes.TrimSuffix(rest[i+1:], []byte("\x1b[0m"))
	}
	return at, t.keyOf(id), nil, bytes.TrimLeft(rest, " "), true
}
