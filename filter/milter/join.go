package milter

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"scanwatch/internal/smtp"
)

// A Logged is a session in the mail server's log. A Logged contains the facts that the milter
// protocol does not report.
type Logged struct {
	ID         uint64         `json:"id"` // the same value whenever the log is read
	Server     string         `json:"server"`
	Src        netip.AddrPort `json:"src"` // the port is 0 if the log has no ports
	Dst        netip.AddrPort `json:"dst"`
	RDNS       []byte         `json:"rdns"`
	FCrDNS     smtp.FCrDNS    `json:"fcrdns"`
	Start, End int64          // microseconds since 1970
	Ending     smtp.Ending    `json:"ending"`
	Mail       bool           `json:"mail"` // the client has sent MAIL
	Rest       bool           `json:"rest"` // the log lacks the start of the session
	Facts      []Fact         `json:"facts"`
}

// A Fact is an event that the milter protocol does not report.
type Fact struct {
	Kind   smtp.Kind   `json:"kind"`
	Verb   smtp.Verb   `json:"verb"` // verb; for EventInput with After set, the verb of the previous command
	After  bool        `json:"after"`
	Cause  smtp.Cause  `json:"cause"`
	Result smtp.Result `json:"result"`
	Code   uint32      `json:"code"`
	Text   []byte      `json:"text"` // user name, recipient, or redacted text of a command
	Reply  []byte      `json:"reply"`
}

// unreported reports whether an event in Postfix's log is one that the milter protocol does not
// report. For example, if a client speaks another protocol, Postfix ends the session before the
// milter receives the command. Unknown commands without text are reported by the milter protocol.
func unreported(e *smtp.Event) bool {
	switch e.Kind {
	case smtp.EventAuth, smtp.EventInput, smtp.EventTimeout:
		return true
	case smtp.EventRcpt:
		return e.Verb == smtp.VerbNames
	case smtp.EventCommand:
		return e.Verb == smtp.VerbAuth || e.Verb == smtp.VerbMail || e.Verb == smtp.VerbUnknown && len(e.Text) > 0 && string(e.Text) != smtp.Masked
	}
	return false
}

// A Collector collects sessions from the events of a log.
type Collector struct {
	Send func(*Logged)

	server string
	one    Logged
	line   bool      // the client has sent a command
	verb   smtp.Verb // verb of the latest command
}

// Site sets the name of the mail server.
func (c *Collector) Site(name string) { c.server = name }

// Event adds an event to the current session. When the session ends, Event calls Send.
func (c *Collector) Event(e *smtp.Event) {
	l := &c.one
	switch e.Kind {
	case smtp.EventConnect:
		*l = Logged{ID: e.Session, Server: c.server, Src: e.Src, Dst: e.Dst, RDNS: bytes.Clone(e.RDNS), FCrDNS: e.FCrDNS, Start: e.Time, Rest: e.Ending == smtp.EndingPartial}
		c.line = false
	case smtp.EventLine:
		c.line, c.verb = true, e.Verb
		l.Mail = l.Mail || e.Verb == smtp.VerbMail
	case smtp.EventDisconnect:
		l.End, l.Ending = e.Time, e.Ending
		c.Send(l)
	default:
		if !unreported(e) {
			return
		}
		f := Fact{Kind: e.Kind, Verb: e.Verb, Cause: e.Cause, Result: e.Result, Code: e.Code, Text: bytes.Clone(e.Text), Reply: bytes.Clone(e.Reply)}
		switch e.Kind {
		case smtp.EventAuth:
			f.Text = bytes.Clone(e.Name)
		case smtp.EventInput:
			f.Verb, f.After = c.verb, c.line
		case smtp.EventRcpt:
			f.Text = bytes.Clone(e.Addr)
		}
		l.Facts = append(l.Facts, f)
	}
}

// Encode returns the session as a string without spaces, at most the given number of bytes long. If
// the facts do not fit, the first ones are omitted. The last facts are more important, because a
// successful login comes last.
func (l *Logged) Encode(most int) (string, error) {
	for {
		data, err := json.Marshal(l)
		if n := len(l.Facts); err != nil || n == 0 || base64.RawURLEncoding.EncodedLen(len(data)) <= most {
			return base64.RawURLEncoding.EncodeToString(data), err
		}
		l.Facts = l.Facts[len(l.Facts)/4+1:]
	}
}

// Decode parses the output of Encode.
func Decode(text string) (*Logged, error) {
	l := new(Logged)
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(data, l)
	}
	return l, err
}

const (
	// JoinWait is the time that a session which has ended in the milter waits for the log. A
	// session in the log waits as long for the end of the milter's session. Clients never wait.
	JoinWait = 5 * time.Second
	// logSilence is the time without a message from the program that reads the log. When logSilence
	// has passed, sessions no longer wait for the log.
	logSilence = 30 * time.Second
	// maxSkew is the maximum difference between the start of a session in the log and in the
	// milter. There is a difference because some logs contain only whole seconds. The difference
	// must be small because a client may soon use the same port again.
	maxSkew = 5 * time.Second
	// maxLate is the maximum age of a session in the log. Older sessions are ignored.
	maxLate = 10 * time.Minute
	// maxWaiting is the maximum number of the milter's sessions that wait.
	maxWaiting = 5000
	maxLogged  = 1000 // number of sessions in the log that wait; each needs up to 20 kilobytes
	maxJoined  = 4096 // number of sessions that are known, because the same part of the log may be read again
)

// A parted is a session that has ended in the milter, but has not been reported as ended.
type parted struct {
	id         uint64
	server     string
	src        netip.AddrPort
	start, end int64
	ending     smtp.Ending
	// The milter knows that the client has sent a command, has sent MAIL, or has logged in.
	spoke, mail, login bool
}

// joins holds the milter's sessions that wait for the log, and sessions in the log that wait for
// the milter. The oldest come first.
type joins struct {
	heard  int64 // time of the latest message from the program that reads the log
	parted []*parted
	logged []*Logged
	came   []int64 // when each session in logged was received
	joined []joined
	next   int // index into joined at which the next session is stored

	stopped bool // the server has stopped
}

// A joined identifies a session in the log that has been received.
type joined struct {
	id         uint64
	src        netip.AddrPort
	start, end int64
}

// contains reports whether l is the same session, or its rest. If the program that reads the log was
// killed, it may read the log again from a line inside a session.
func (o *joined) contains(l *Logged) bool {
	return o.id == l.ID ||
		l.Rest && l.Src == o.src && l.Src.Port() != 0 && o.start <= l.Start && l.End <= o.end
}

// once reports whether a session has not been received before.
func (j *joins) once(l *Logged) bool {
	if slices.ContainsFunc(j.joined, func(o joined) bool { return o.contains(l) }) {
		return false
	}
	one := joined{l.ID, l.Src, l.Start, l.End}
	if len(j.joined) < maxJoined {
		j.joined = append(j.joined, one)
	} else {
		j.joined[j.next] = one
		j.next = (j.next + 1) % maxJoined
	}
	return true
}

func (l *Logged) is(p *parted) bool {
	skew := maxSkew.Microseconds()
	return l.Src == p.src && l.Src.Port() != 0 && max(l.Start-p.start, p.start-l.Start) <= skew
}

// Alive records that a program that reads the log is running. Alive returns false after the server
// has stopped.
func (s *Server) Alive() (ok bool) {
	s.locked("", func(at int64) { s.joins.heard, ok = at, !s.joins.stopped })
	return ok
}

// Join adds the facts in the log to a session. Join returns false after the server has stopped.
func (s *Server) Join(l *Logged) bool {
	if !s.Alive() {
		return false
	}
	s.locked("", func(at int64) {
		j := &s.joins
		if at-l.End > maxLate.Microseconds() || !j.once(l) {
			return
		}
		if i := slices.IndexFunc(j.parted, l.is); i >= 0 {
			p := j.parted[i]
			s.facts(p, l)
			if decisive(l.Ending) {
				j.parted = slices.Delete(j.parted, i, i+1)
				s.close(p)
			}
			return
		}
		if len(j.logged) >= maxLogged {
			s.alone(j.logged[0], at)
			j.logged, j.came = j.logged[1:], j.came[1:]
		}
		j.logged, j.came = append(j.logged, l), append(j.came, at)
	})
	return true
}

// decisive reports whether the log shows how a session ended. If the ending is unknown, further
// facts about the session may follow, because postscreen(8) and smtpd(8) log the same session one
// after the other.
func decisive(e smtp.Ending) bool { return e != smtp.EndingUnknown && e != smtp.EndingPartial }

// part ends a session in the milter. If the log is being read, the session first waits for the log.
func (s *Server) part(p *parted, at int64) {
	j, done := &s.joins, at-s.joins.heard > logSilence.Microseconds()
	for i := 0; i < len(j.logged); {
		if l := j.logged[i]; l.is(p) {
			s.facts(p, l)
			done = done || decisive(l.Ending)
			j.logged, j.came = slices.Delete(j.logged, i, i+1), slices.Delete(j.came, i, i+1)
		} else {
			i++
		}
	}
	if done {
		s.close(p)
		return
	}
	if s.Parted != nil {
		s.Parted(p.id, p.end, p.ending)
	}
	if len(j.parted) >= maxWaiting {
		s.close(j.parted[0])
		j.parted = j.parted[1:]
	}
	j.parted = append(j.parted, p)
}

// stop ends all sessions that wait.
func (s *Server) stop() {
	s.expire(0)
	s.locked("", func(int64) { s.joins.stopped = true })
}

// expire ends the sessions that have waited for at least the given time.
func (s *Server) expire(wait time.Duration) {
	s.locked("", func(at int64) {
		j, since := &s.joins, at-wait.Microseconds()
		for len(j.parted) > 0 && (j.parted[0].end <= since || j.parted[0].end > at) {
			p := j.parted[0]
			j.parted = j.parted[1:]
			s.close(p)
		}
		for len(j.logged) > 0 && (j.came[0] <= since || j.came[0] > at) {
			l := j.logged[0]
			j.logged, j.came = j.logged[1:], j.came[1:]
			s.alone(l, at)
		}
	})
}

// close reports the end of a session.
func (s *Server) close(p *parted) {
	e := p.event(smtp.EventDisconnect)
	e.Ending = p.ending
	s.Sink.Event(e)
}

func (p *parted) event(kind smtp.Kind) *smtp.Event {
	return &smtp.Event{Kind: kind, Time: p.end, Session: p.id}
}

// alone reports a session in the log that the milter has not seen. For example, the server rejected
// the client before it called the milter. A session without facts is not reported.
func (s *Server) alone(l *Logged, at int64) {
	if len(l.Facts) == 0 || !l.Src.IsValid() {
		return
	}
	if s.site == "" { // keep a known name, because the name in the log may be shorter
		s.name(l.Server)
	}
	p := &parted{id: l.ID, end: min(l.End, at)}
	e := p.event(smtp.EventConnect)
	e.Time, e.Src, e.Dst, e.RDNS, e.FCrDNS = min(l.Start, p.end), l.Src, l.Dst, l.RDNS, l.FCrDNS
	s.Sink.Event(e)
	s.facts(p, l)
	p.ending = smtp.EndingPartial
	s.close(p)
}

// facts reports the facts in the log. Unless the filter has ended the session, the ending in the
// log is used.
func (s *Server) facts(p *parted, l *Logged) {
	s.name(p.server)
	if l.Mail && !p.mail {
		s.line(p, smtp.VerbMail)
		p.mail = true
	}
	for i := range l.Facts {
		f := &l.Facts[i]
		e := p.event(f.Kind)
		e.Verb, e.Cause, e.Result, e.Code, e.Text, e.Reply = f.Verb, f.Cause, f.Result, f.Code, f.Text, f.Reply
		switch {
		case !unreported(e):
			continue
		case e.Kind == smtp.EventAuth:
			if e.Name, e.Text, e.Verb = e.Text, nil, smtp.VerbAuth; e.Result == smtp.ResultPass && p.login {
				continue
			}
			s.line(p, smtp.VerbAuth)
			s.reply(p, e, 535)
			p.login = p.login || e.Result == smtp.ResultPass
		case e.Kind == smtp.EventCommand:
			s.line(p, e.Verb)
			s.reply(p, e, 500)
		case e.Kind == smtp.EventRcpt:
			e.Addr, e.Text = e.Text, nil
			s.line(p, e.Verb)
			s.reply(p, e, 550)
		case e.Kind == smtp.EventInput && f.After && !p.spoke:
			s.line(p, f.Verb)
		}
		s.Sink.Event(e)
	}
	if decisive(l.Ending) && p.ending != smtp.EndingRejected {
		p.ending = l.Ending
	}
}

func (s *Server) line(p *parted, verb smtp.Verb) {
	e := p.event(smtp.EventLine)
	e.Verb, p.spoke = verb, true
	s.Sink.Event(e)
}

// reply reports the logged reply to a command. A failed command whose code is unknown is given the
// code failed.
func (s *Server) reply(p *parted, of *smtp.Event, failed uint32) {
	e := p.event(smtp.EventReply)
	e.Verb, e.Code, e.Cause = of.Verb, of.Code, of.Cause
	switch {
	case of.Result == smtp.ResultPass:
		e.Code = 235
	case e.Code == 0:
		e.Code = failed
	}
	s.Sink.Event(e)
}
