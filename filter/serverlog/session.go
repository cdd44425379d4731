package serverlog

import (
	"bytes"
	"net/netip"
	"slices"
	"unsafe"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// Limits on a session.
const (
	// maxAlike is the maximum number of steps of a session with the same kind, result
	// and cause, and half of it is the maximum of equal steps. Further steps are
	// omitted. The limits are separate, so that harmless steps do not use up the
	// space for evidence.
	maxAlike   = 300
	maxName    = 255 // RFC 5321 section 4.5.3.1.2
	maxPath    = 256 // RFC 5321 section 4.5.3.1.3
	maxExample = 200
)

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// A session is an SMTP session that has not been played yet.
type session struct {
	key         string
	name        string // first key
	serial      uint64 // number of the session in the table; 0 after it has been played
	id          uint64 // set when the session is played
	start, last int64  // microseconds since 1970
	src, dst    netip.AddrPort
	fcrdns      smtp.FCrDNS
	rdns        []byte
	server      string
	// partial is set if the log does not show all commands of the session.
	partial bool
	ending  smtp.Ending
	ended   bool
	waiting int // messages whose outcome is still to come; the session is played after them

	steps []step
	text  []byte
	size  int  // of steps and text, in bytes
	held  *int // size of all sessions of the table

	helo    []byte // latest greeting
	sender  []byte // sender of the latest step
	open    bool   // a transaction is open
	refused bool   // the server's policy or a milter has rejected a command
	hung    bool   // the client left during a login
	failed  int    // AUTH commands that failed, with a line in the log
	// connected is set if the log shows that the address connected, in a line without
	// text chosen by the client. Exim only.
	connected bool
	user      string             // who is logged in
	mark      int                // steps before belong to earlier transactions
	unnamed   int                // accepted recipients, with or without a name
	count     [numVerbs]int      // steps by verb
	totals    *[numVerbs]counter // counters of Postfix; nil before the end
	talk      *talk              // of a transcript
	prev      *session           // less recently used
	next      *session           // more recently used
}

const numVerbs = int(smtp.VerbExchange) + 1

// A step is an event in a session. If a log shows acceptance later than rejection, the
// class of a step determines when the step is played.
type step struct {
	kind   smtp.Kind
	verb   smtp.Verb
	result smtp.Result
	cause  smtp.Cause
	class  uint8
	code   uint32
	at     int64
	a, b   span // argument, reply
	size   uint64
	// again is set if the step may repeat the previous MAIL. The log shows no separate
	// command.
	again bool
}

// Classes of steps.
const (
	inOrder uint8 = iota
	accepted
	rejected
	unsent // rejected, and the sender is still unknown
	atEnd
)

// A span is part of a session's text.
type span struct{ from, to uint32 }

// keep copies b to the session's text.
func (s *session) keep(b []byte) span {
	from := len(s.text)
	s.text = append(s.text, b...)
	s.grow(len(b))
	return span{uint32(from), uint32(len(s.text))}
}

func (s *session) get(p span) []byte { return s.text[p.from:p.to] }

// add adds a step with its argument and reply, unless the session has too many steps
// that are alike.
func (s *session) add(st step, a, b []byte) {
	s.count[st.verb]++
	if s.full(&st, a) {
		s.partial = true
		if st.kind != smtp.EventMail || st.result != smtp.ResultOK {
			return
		}
		// The recipients that follow need their sender. An earlier sender without
		// recipients is not needed.
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

// full reports whether the session has too many steps like st, with the argument a.
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

// greet adds a greeting, unless it repeats the latest one.
func (s *session) greet(at int64, name []byte, verb smtp.Verb) {
	if len(name) == 0 || string(name) == string(s.helo) {
		return
	}
	s.helo = append(s.helo[:0], clip(name, maxName)...)
	s.add(step{kind: smtp.EventHelo, verb: verb, result: smtp.ResultOK, at: at}, smtpd.Greeting(name, maxName), nil)
}

// login adds a login attempt. The user may be unknown.
func (s *session) login(at int64, user []byte, result smtp.Result) {
	if result == smtp.ResultFail {
		s.failed++
	}
	s.add(step{kind: smtp.EventAuth, verb: smtp.VerbAuth, result: result, at: at}, clip(user, maxName), nil)
}

// command adds a failed command, with its redacted text.
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

// policy adds a rejection that does not depend on the recipient.
func (s *session) policy(at int64, phase smtp.Phase, reply []byte) {
	s.refused = true
	s.add(step{kind: smtp.EventFilter, at: at}, []byte(phase.String()), clip(reply, maxExample))
}

// mail adds the sender of a transaction.
func (s *session) mail(at int64, sender []byte, class uint8) {
	s.open, s.sender = true, append(s.sender[:0], clip(sender, maxPath)...)
	s.add(step{kind: smtp.EventMail, verb: smtp.VerbMail, result: smtp.ResultOK, class: class, at: at}, smtpd.Argument(sender, maxPath), nil)
}

// mailAgain adds the sender of a rejected recipient, for logs that do not show where a
// transaction starts. Recipients with the same sender belong to one transaction, except
// those of the null sender: a bounce to several recipients is evidence, but several
// bounces are not.
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
	s.add(step{kind: smtp.EventMail, verb: smtp.VerbMail, result: resultOf(code), cause: cause, code: code, at: at}, smtpd.Argument(sender, maxPath), clip(reply, maxExample))
}

// rcpt adds a recipient. If code is 0, the recipient was accepted.
func (s *session) rcpt(at int64, addr []byte, code uint32, reply []byte, cause smtp.Cause, class uint8) {
	st := step{kind: smtp.EventRcpt, verb: smtp.VerbRcpt, result: smtp.ResultOK, class: class, at: at}
	if code != 0 {
		st.result, st.code, st.cause = resultOf(code), code, cause
	}
	s.add(st, smtpd.Argument(addr, maxPath), clip(reply, maxExample))
}

// message adds the end of an accepted message.
func (s *session) message(at int64, size uint64, class uint8) {
	s.open = false
	s.add(step{kind: smtp.EventData, verb: smtp.VerbData, result: smtp.ResultOK, class: class, at: at}, nil, nil)
	s.add(step{kind: smtp.EventCommit, class: class, at: at, size: size}, nil, nil)
}

// resultOf returns the result of a rejected command.
func resultOf(code uint32) smtp.Result {
	if code >= 400 && code < 500 {
		return smtp.ResultTempfail
	}
	return smtp.ResultPermfail
}

// A player plays sessions.
type player struct {
	sink Sink
	site string
	ev   smtp.Event // reused
}

// A Sink receives the events of sessions, which are valid only during the call.
type Sink interface {
	// Site is called before a session's events if the server's name differs from
	// that in the previous session.
	Site(name string)
	Event(*smtp.Event)
}

func (p *player) event(s *session, kind smtp.Kind, at int64) *smtp.Event {
	p.ev = smtp.Event{Kind: kind, Time: max(at, s.start), Session: s.id}
	return &p.ev
}

// play reports the events of a session.
func (p *player) play(s *session) {
	if s.server != "" && s.server != p.site {
		p.site = s.server
		p.sink.Site(s.server)
	}
	e := p.event(s, smtp.EventConnect, s.start)
	e.Src, e.Dst, e.RDNS, e.FCrDNS = s.src, s.dst, s.rdns, s.fcrdns
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

// lineless lists the kinds of events that are not caused by a line from the client.
var lineless = [smtp.NumKinds]bool{smtp.EventCommit: true, smtp.EventRollback: true, smtp.EventInput: true, smtp.EventFilter: true, smtp.EventTimeout: true}

// step reports the client's line, the server's reply and the outcome of a step.
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
