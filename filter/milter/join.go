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

// A Logged is a session in the log of the mail server, with the facts that the milter protocol does
// not report.
type Logged struct {
	ID         uint64         `json:"id"` // the same if the log is read again
	Server     string         `json:"server"`
	Src        netip.AddrPort `json:"src"` // port 0 if the log has no ports
	Dst        netip.AddrPort `json:"dst"`
	RDNS       []byte         `json:"rdns"`
	FCrDNS     smtp.FCrDNS    `json:"fcrdns"`
	Start, End int64          // microseconds since 1970
	Ending     smtp.Ending    `json:"ending"`
	Mail       bool           `json:"mail"` // the client has sent MAIL
	Facts      []Fact         `json:"facts"`
}

// A Fact is an event that the milter protocol does not report.
type Fact struct {
	Kind   smtp.Kind   `json:"kind"`
	Verb   smtp.Verb   `json:"verb"` // for EventInput, that of the command before, if After is set
	After  bool        `json:"after"`
	Cause  smtp.Cause  `json:"cause"`
	Result smtp.Result `json:"result"`
	Code   uint32      `json:"code"`
	Text   []byte      `json:"text"` // user, or redacted command
	Reply  []byte      `json:"reply"`
}

// unreported reports whether the milter protocol does not report an event in the log of Postfix.
// Postfix ends sessions with other protocols before the milter receives the command. The other
// unknown commands in the log have no text.
func unreported(e *smtp.Event) bool {
	switch e.Kind {
	case smtp.EventAuth, smtp.EventInput, smtp.EventTimeout:
		return true
	case smtp.EventCommand:
		return e.Verb == smtp.VerbAuth || e.Verb == smtp.VerbMail || e.Verb == smtp.VerbUnknown && len(e.Text) > 0 && string(e.Text) != smtp.Masked
	}
	return false
}

// A Collector collects the sessions that the reader of a log plays.
type Collector struct {
	Send func(*Logged)

	server string
	one    Logged
	line   bool      // the session has a command
	verb   smtp.Verb // of the latest command
}

// Site sets the name of the mail server.
func (c *Collector) Site(name string) { c.server = name }

// Event adds an event to the session. At the end of the session, Event calls Send.
func (c *Collector) Event(e *smtp.Event) {
	l := &c.one
	switch e.Kind {
	case smtp.EventConnect:
		*l = Logged{ID: e.Session, Server: c.server, Src: e.Src, Dst: e.Dst, RDNS: bytes.Clone(e.RDNS), FCrDNS: e.FCrDNS, Start: e.Time}
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
		}
		l.Facts = append(l.Facts, f)
	}
}

// Encode returns the session in at most the given number of bytes, without spaces. If there are too
// many facts, the first ones are omitted, because a login succeeds last.
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
	// JoinWait is the time that an ended session waits for the log, and a session of the log for
	// the end of the milter's session. Clients never wait.
	JoinWait = 5 * time.Second
	// logSilence is the time after the latest sign of the reader of the log, after which sessions
	// no longer wait.
	logSilence = 30 * time.Second
	// maxSkew is the maximum difference between the starts of a session in the log and in the
	// milter. The log may have whole seconds only. A client may soon use the same port again.
	maxSkew = 5 * time.Second
	// maxLate is the age in which a session of the log still has an effect.
	maxLate = 10 * time.Minute
	// maxWaiting is the maximum number of waiting sessions of the milter.
	maxWaiting = 5000
	maxLogged  = 1000 // sessions of the log, which need up to 20 kilobytes each
	maxJoined  = 4096 // identifiers of sessions of the log, which may be read again
)

// A parted is a session that has ended, and has not been reported as ended.
type parted struct {
	id         uint64
	server     string
	src        netip.AddrPort
	start, end int64
	ending     smtp.Ending
	// Facts that the milter knows: the client has sent a command, has sent MAIL, has logged in.
	spoke, mail, login bool
}

// joins holds the sessions that wait for their other half, oldest first.
type joins struct {
	heard  int64 // time of the latest sign of the reader
	parted []*parted
	logged []*Logged
	came   []int64 // when the sessions in logged came
	ids    []uint64
	next   int // in ids

	stopped bool // the server has stopped
}

func (l *Logged) is(p *parted) bool {
	skew := maxSkew.Microseconds()
	return l.Src == p.src && l.Src.Port() != 0 && max(l.Start-p.start, p.start-l.Start) <= skew
}

// Alive notes that a reader of the log is running. It returns false after the server has stopped.
func (s *Server) Alive() (ok bool) {
	s.locked("", func(at int64) { s.joins.heard, ok = at, !s.joins.stopped })
	return ok
}

// Join adds the facts of the log to a session. It returns false after the server has stopped.
func (s *Server) Join(l *Logged) bool {
	if !s.Alive() {
		return false
	}
	s.locked("", func(at int64) {
		j := &s.joins
		if at-l.End > maxLate.Microseconds() || slices.Contains(j.ids, l.ID) {
			return
		}
		if len(j.ids) < maxJoined {
			j.ids = append(j.ids, l.ID)
		} else {
			j.ids[j.next] = l.ID
			j.next = (j.next + 1) % maxJoined
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

// decisive reports whether the log shows how a session ended. Otherwise, more may follow:
// postscreen(8) and smtpd(8) log the same session in turn.
func decisive(e smtp.Ending) bool { return e != smtp.EndingUnknown && e != smtp.EndingPartial }

// part ends a session, or lets it wait for the log if one is read.
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
		s.Parted(p.id)
	}
	if len(j.parted) >= maxWaiting {
		s.close(j.parted[0])
		j.parted = j.parted[1:]
	}
	j.parted = append(j.parted, p)
}

// stop ends all waiting sessions.
func (s *Server) stop() {
	s.expire(0)
	s.locked("", func(int64) { s.joins.stopped = true })
}

// expire ends the sessions that have waited for the given time.
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

// alone reports a session that the milter has not seen, for example because the server refused the
// client before. Without facts, it is not reported.
func (s *Server) alone(l *Logged, at int64) {
	if len(l.Facts) == 0 || !l.Src.IsValid() {
		return
	}
	if s.site == "" { // the name in the log may be shorter
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

// facts reports the facts of the log, and uses its ending unless the filter has ended the session.
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

// reply reports the reply to a command of the log. The code is that of a failure.
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
