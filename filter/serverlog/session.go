package serverlog

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// Limits on the size of a session.
const (
	// maxAlike is the maximum number of steps of a session that have the same kind, result and
	// cause. For steps with equal arguments, the maximum is half of maxAlike. Further steps are
	// omitted. Each kind has its own limit, so that harmless steps cannot displace evidence.
	maxAlike    = 300
	maxName     = 255  // RFC 5321 section 4.5.3.1.2
	maxPath     = 256  // RFC 5321 section 4.5.3.1.3
	maxArgument = 2048 // longest line that mail servers accept
	maxExample  = 200
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// A session is an SMTP session whose events have not been reported yet.
type session struct {
	key         string
	name        string // key of the session when it started
	serial      uint64 // number of the session in the table; 0 after it has been reported
	first       uint64 // hash of the first line
	id          uint64 // set when the session is reported
	start, last int64  // microseconds since 1970
	src, dst    netip.AddrPort
	fcrdns      smtp.FCrDNS
	rdns        []byte
	server      string
	// partial reports whether the log may lack some of the session's commands.
	partial bool
	rest    bool // the log lacks the start of the session
	ending  smtp.Ending
	ended   bool
	// pending contains the messages whose outcome is unknown. If the session has ended, it is reported
	// once they are known, or after some time.
	pending []*message
	waits   netip.Addr // address whose sessions it waits with in table.waiting, or invalid

	steps []step
	text  []byte
	size  int  // size of steps and text in bytes
	held  *int // size of all sessions in the table

	helo    []byte // latest greeting
	sender  []byte // sender of the latest step
	open    bool   // a transaction is open
	refused bool   // the server's policy or a milter has rejected the client or a command
	hung    bool   // the client disconnected during a login
	failed  int    // number of failed AUTH commands for which the log has a line
	// connected reports whether a line of Exim's log proves that the address has connected. The
	// line contains no text that the client has chosen.
	connected bool
	user      string             // user that is logged in
	mark      int                // number of steps that belong to earlier transactions
	unnamed   int                // number of accepted recipients, including those without a name
	count     [numVerbs]int      // number of steps by verb
	totals    *[numVerbs]counter // counters of Postfix; nil until the session ends
	texts     int                // number of messages that the client has sent, according to the counters and rejections
	delivered bool               // the counters show that a message was accepted
	talk      *talk              // set if the log is a transcript
	prev      *session           // previous session in the order of use
	next      *session           // next session in the order of use
}

const numVerbs = int(smtp.VerbExchange) + 1

// A step is an event in a session. Some logs show that a recipient was accepted only after later
// rejections. The class of a step determines the order in which the steps are reported.
type step struct {
	kind   smtp.Kind
	verb   smtp.Verb
	result smtp.Result
	cause  smtp.Cause
	class  uint8
	code   uint32
	at     int64
	a, b   span // argument and reply
	size   uint64
	// again reports whether the step repeats the sender of the previous MAIL, although the client
	// may have sent only one MAIL.
	again bool
}

// The classes of steps.
const (
	inOrder uint8 = iota
	accepted
	rejected
	unsent // rejected, and the sender is not known yet
	atEnd
)

// A span is a part of a session's text.
type span struct{ from, to uint32 }

// keep appends b to the session's text.
func (s *session) keep(b []byte) span {
	from := len(s.text)
	s.text = append(s.text, b...)
	s.grow(len(b))
	return span{uint32(from), uint32(len(s.text))}
}

func (s *session) get(p span) []byte { return s.text[p.from:p.to] }

// add adds a step with its argument and reply. The step is omitted if the session already has too
// many similar steps.
func (s *session) add(st step, a, b []byte) {
	s.count[st.verb]++
	if s.full(&st, a) {
		s.partial = true
		if st.kind != smtp.EventMail || st.result != smtp.ResultOK {
			return
		}
		// Keep this sender, because its recipients follow. Drop the previous sender if it has no
		// recipients.
		if last := s.steps[len(s.steps)-1]; last.kind == st.kind && last.result == st.result {
			s.steps = s.steps[:len(s.steps)-1]
			s.grow(-int(unsafe.Sizeof(st)))
			if int(last.b.to) == len(s.text) {
				s.text = s.text[:last.a.from]
				s.grow(int(last.a.from) - int(last.b.to))
			}
		}
	}
	st.a, st.b = s.keep(a), s.keep(b)
	s.steps = append(s.steps, st)
	s.grow(int(unsafe.Sizeof(st)))
}

// full reports whether the session has too many steps like st with the argument a.
func (s *session) full(st *step, a []byte) bool {
	if len(s.steps) < maxAlike/2 {
		return false
	}
	alike, equal := 0, false
	for i := range s.steps {
		if o := &s.steps[i]; o.kind == st.kind && o.result == st.result && o.cause == st.cause {
			alike++
			equal = equal || len(a) > 0 && bytes.Equal(s.get(o.a), a)
		}
	}
	return alike >= maxAlike || alike >= maxAlike/2 && equal
}

func (s *session) grow(by int) {
	s.size += by
	*s.held += by
}

// greet adds a greeting if it differs from the latest one.
func (s *session) greet(at int64, name []byte, verb smtp.Verb) {
	if len(name) == 0 || string(name) == string(s.helo) {
		return
	}
	s.helo = append(s.helo[:0], clip(name, maxName)...)
	s.add(step{kind: smtp.EventHelo, verb: verb, result: smtp.ResultOK, at: at}, smtpd.Greeting(name, maxName), nil)
}

// login adds a login attempt. user may be empty if it is unknown.
func (s *session) login(at int64, user []byte, result smtp.Result) {
	if result == smtp.ResultFail {
		s.failed++
	}
	s.add(step{kind: smtp.EventAuth, verb: smtp.VerbAuth, result: result, at: at}, clip(user, maxName), nil)
}

// command adds a failed command. line is the redacted text of the command.
func (s *session) command(at int64, verb smtp.Verb, line []byte, code uint32, reply []byte, cause smtp.Cause) {
	if verb == smtp.VerbAuth {
		s.failed++
	}
	s.add(step{kind: smtp.EventCommand, verb: verb, cause: cause, code: code, at: at}, clip(line, maxExample), clip(reply, maxExample))
}

// did adds a command that the server has accepted.
func (s *session) did(at int64, verb smtp.Verb) {
	s.add(step{kind: smtp.EventLine, verb: verb, at: at}, nil, nil)
}

// policy adds a rejection for a reason other than the recipient.
func (s *session) policy(at int64, phase smtp.Phase, reply []byte) {
	s.refused = true
	s.add(step{kind: smtp.EventFilter, at: at}, []byte(phase.String()), clip(reply, maxExample))
}

// mail adds the sender of a transaction.
func (s *session) mail(at int64, sender []byte, class uint8) {
	s.open, s.sender = true, append(s.sender[:0], clip(sender, maxPath)...)
	s.add(step{kind: smtp.EventMail, verb: smtp.VerbMail, result: smtp.ResultOK, class: class, at: at}, smtpd.Address(sender, maxPath), nil)
}

// mailAgain adds the sender of a rejected recipient. mailAgain is used for logs that do not show
// where a transaction starts. Recipients with the same sender are assumed to belong to one
// transaction. Recipients of the null sender are assumed to belong to different transactions,
// because a bounce to several recipients is evidence, but several bounces are not.
func (s *session) mailAgain(at int64, sender []byte) {
	switch sender = clip(sender, maxPath); {
	case !s.open || !bytes.Equal(s.sender, sender):
		s.mail(at, sender, rejected)
	case len(sender) == 0:
		s.add(step{kind: smtp.EventMail, result: smtp.ResultOK, class: rejected, at: at, again: true}, nil, nil)
	}
}

// mailFailed adds a rejected MAIL.
func (s *session) mailFailed(at int64, sender []byte, code uint32, reply []byte, cause smtp.Cause) {
	s.add(step{kind: smtp.EventMail, verb: smtp.VerbMail, result: resultOf(code), cause: cause, code: code, at: at}, smtpd.Address(sender, maxPath), clip(reply, maxExample))
}

// rcpt adds a recipient. code is 0 if the recipient was accepted.
func (s *session) rcpt(at int64, addr []byte, code uint32, reply []byte, cause smtp.Cause, class uint8) {
	st := step{kind: smtp.EventRcpt, verb: smtp.VerbRcpt, result: smtp.ResultOK, class: class, at: at}
	if code != 0 {
		st.result, st.code, st.cause = resultOf(code), code, cause
	}
	s.add(st, distinct(s, at, addr), clip(reply, maxExample))
}

// incomplete returns a name for a recipient whose text in the log is incomplete. Different
// recipients may have the same text, for example because a long comment precedes the addresses.
// Therefore, each has its own name. The name is the same whenever the log is read.
func incomplete(s *session, at int64) []byte {
	return smtpd.Name(fmt.Appendf(nil, "%s %d %d", s.key, at, s.count[smtp.VerbRcpt]))
}

// distinct returns the address of a recipient without credentials, or a name. Different recipients
// have different addresses or names.
func distinct(s *session, at int64, arg []byte) []byte {
	if addr := smtpd.Recipient(arg, maxPath); addr != nil || len(arg) == 0 {
		return addr
	}
	return incomplete(s, at)
}

// message adds the text of a message and, if it is known to have been accepted, its end.
func (s *session) message(at int64, size uint64, class uint8, ok bool) {
	s.open = false
	s.add(step{kind: smtp.EventData, verb: smtp.VerbData, result: smtp.ResultOK, class: class, at: at}, nil, nil)
	if !ok {
		s.partial = true
		return
	}
	s.add(step{kind: smtp.EventCommit, class: class, at: at, size: size}, nil, nil)
}

// resultOf returns the result of a command that was rejected with the given code.
func resultOf(code uint32) smtp.Result {
	if code >= 400 && code < 500 {
		return smtp.ResultTempfail
	}
	return smtp.ResultPermfail
}

// A player reports the events of sessions to a Sink.
type player struct {
	sink Sink
	site string
	ev   smtp.Event // reused
}

// A Sink receives the events of sessions. Each event is valid only during the call.
type Sink interface {
	// Site is called before the events of a session if the server's name differs from that of the
	// previous session.
	Site(name string)
	Event(*smtp.Event)
}

func (p *player) event(s *session, kind smtp.Kind, at int64) *smtp.Event {
	p.ev = smtp.Event{Kind: kind, Time: max(at, s.start), Session: s.id}
	return &p.ev
}

// play reports all events of a session.
func (p *player) play(s *session) {
	if s.server != "" && s.server != p.site {
		p.site = s.server
		p.sink.Site(s.server)
	}
	e := p.event(s, smtp.EventConnect, s.start)
	e.Src, e.Dst, e.RDNS, e.FCrDNS = s.src, s.dst, s.rdns, s.fcrdns
	if s.rest {
		e.Ending = smtp.EndingPartial
	}
	p.sink.Event(e)
	slices.SortStableFunc(s.steps, func(a, b step) int { return int(a.class) - int(b.class) })
	at := s.start
	for i := range s.steps {
		st := &s.steps[i]
		at = max(at, st.at)
		p.step(s, st, at)
	}
	e = p.event(s, smtp.EventDisconnect, max(at, s.last))
	e.Ending = s.ending
	p.sink.Event(e)
}

// lineless contains the kinds of events that no line from the client causes.
var lineless = [smtp.NumKinds]bool{smtp.EventCommit: true, smtp.EventRollback: true, smtp.EventInput: true, smtp.EventFilter: true, smtp.EventTimeout: true}

// step reports the events of a step: the client's line, the server's reply and the outcome.
func (p *player) step(s *session, st *step, at int64) {
	if !lineless[st.kind] && !st.again && !(st.kind == smtp.EventTLS && st.verb != smtp.VerbStartTLS) {
		e := p.event(s, smtp.EventLine, at)
		e.Verb = st.verb
		p.sink.Event(e)
		e = p.event(s, smtp.EventReply, at)
		e.Verb, e.Code, e.Cause = st.verb, st.code, st.cause
		if e.Code == 0 {
			e.Code = 250
			if st.kind == smtp.EventAuth && st.result != smtp.ResultPass {
				e.Code = 535
			}
		}
		p.sink.Event(e)
	}
	if st.kind == smtp.EventLine {
		return
	}
	e := p.event(s, st.kind, at)
	e.Verb, e.Result, e.Code, e.Cause, e.Size = st.verb, st.result, st.code, st.cause, st.size
	a, b := s.get(st.a), s.get(st.b)
	e.Reply = b
	switch st.kind {
	case smtp.EventHelo:
		e.Name, e.Word, e.Text = a, heloWords[st.verb == smtp.VerbHelo], a
	case smtp.EventAuth:
		e.Name = a
	case smtp.EventTLS, smtp.EventCommand:
		e.Text = a
	case smtp.EventFilter:
		e.Name, e.Word, e.Text, e.Reply, e.Cause = a, rejectWord, b, nil, smtp.CauseFilter
	default:
		e.Addr = a
	}
	p.sink.Event(e)
}

var (
	rejectWord = []byte(smtp.Reject.String())
	heloWords  = map[bool][]byte{true: []byte("HELO"), false: []byte("EHLO")}
)
