package milter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/safego"
	"scanwatch/internal/smtp"
)

// A Sink receives events. Each event is valid only during the call. Calls are never concurrent.
type Sink interface {
	// Site is called when the name of the mail server becomes known.
	Site(name string)
	// Event handles an event that is not a request.
	Event(*smtp.Event)
	// Ask answers an event of kind EventRequest.
	Ask(*smtp.Event) smtp.Answer
}

// A Server answers the mail servers that connect to the milter's socket.
type Server struct {
	Sink Sink
	Log  *slog.Logger
	// Held, if set, is updated with the number of answers that are being delayed.
	Held *atomic.Int64
	// Now returns the current time. If Now is nil, time.Now is used.
	Now func() time.Time
	// Parted, if set, is called for a session that has ended but still waits for the mail server's
	// log. When the log has been read, the session's EventDisconnect follows, possibly after other
	// events. Parted and Sink are never called concurrently.
	Parted func(id uint64, at int64, how smtp.Ending)

	mu    sync.Mutex // held during calls to Sink and Parted
	site  string
	joins joins
	conns sync.WaitGroup
	ended map[net.Conn]struct{}
	said  sync.Map // kinds of problems that have been logged
}

const (
	// MaxHold is the maximum delay of an answer. Postfix waits 30 seconds for an answer by default
	// (milter_command_timeout).
	MaxHold = 20 * time.Second
	// MaxHeld is the maximum number of answers that are delayed at the same time. Other answers are
	// sent immediately.
	MaxHeld = 500
	// MaxConns is the maximum number of connections. If there are more, mail servers continue
	// without the filter.
	MaxConns = 5000
	// poll is the interval at which a waiting request is tried again.
	poll = 10 * time.Millisecond
)

// Serve answers mail servers until ctx is done. Serve then closes all connections, after which mail
// servers continue without the filter.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	closing := context.AfterFunc(ctx, func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.ended {
			c.Close()
		}
	})
	defer closing()
	defer s.stop()
	defer s.conns.Wait()
	safego.Go(s.Log, "ending sessions that wait for the log", func() { s.expireAll(ctx) })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // for example, too many open files
			s.once("accept", "connection not accepted", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !s.track(c, true) {
			c.Close()
			s.once("connections", "connection not accepted", errTooMany)
			continue
		}
		s.conns.Add(1)
		safego.Go(s.Log, "a connection of the mail server", func() {
			defer s.conns.Done()
			defer s.track(c, false)
			defer c.Close()
			if err := s.conn(ctx, c); err != nil && ctx.Err() == nil {
				s.once("conn", "connection of the mail server ended", err)
			}
		})
	}
}

// expireAll ends sessions that have waited too long for the log. expireAll runs until ctx is done.
func (s *Server) expireAll(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.expire(JoinWait)
		}
	}
}

var errTooMany = errors.New("too many connections")

// track stores that a connection was opened or closed. track returns false if too many connections
// are open.
func (s *Server) track(c net.Conn, open bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = make(map[net.Conn]struct{})
	}
	if !open {
		delete(s.ended, c)
	} else if len(s.ended) >= MaxConns {
		return false
	} else {
		s.ended[c] = struct{}{}
	}
	return true
}

// once logs each kind of problem only once, so that a broken mail server cannot fill the log.
func (s *Server) once(kind, msg string, err error) {
	if _, again := s.said.LoadOrStore(kind, true); !again {
		s.Log.Warn(msg, "err", err)
	}
}

// conn answers the commands of a connection. A connection may carry several sessions, one after the
// other.
func (s *Server) conn(ctx context.Context, rw io.ReadWriter) error {
	w := newWire(rw)
	p, err := w.read()
	if errors.Is(err, io.EOF) {
		return nil // for example, a program has tested whether the socket accepts connections
	}
	if err != nil {
		return err
	}
	if p.command != cmdNegotiate {
		return fmt.Errorf("%w: the first command is %q", errProtocol, p.command)
	}
	answer, err := negotiation(p.data)
	if err != nil {
		return err
	}
	if err := w.write(cmdNegotiate, answer); err != nil {
		return err
	}
	one := &conversation{server: s, wire: w, session: newSession()}
	// Without QUIT, the mail server or this process has stopped.
	defer func() {
		if ctx.Err() == nil {
			one.end(smtp.EndingUnknown)
		}
	}()
	for {
		p, err := w.read()
		if err == nil && p.command == cmdQuit {
			one.end(smtp.EndingClosed)
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := one.command(ctx, p); err != nil {
			return err
		}
	}
}

func newSession() *session { return &session{id: rand.Uint64(), macros: make(macros)} }

// A conversation answers the commands of a session.
type conversation struct {
	server  *Server
	wire    *wire
	session *session
	// refusal, if set, is the reply to all further commands, because the client must be
	// disconnected. Mail servers disconnect a client only if the reply's code is 421.
	refusal string
}

// handlers maps commands to functions that return the answer to the client.
var handlers = map[byte]func(*conversation, []byte, int64) smtp.Answer{
	cmdConnect: (*conversation).connect,
	cmdHelo:    (*conversation).helo,
	cmdMail:    (*conversation).mail,
	cmdRcpt:    (*conversation).rcpt,
	cmdData:    (*conversation).data,
	cmdEOM:     (*conversation).message,
	cmdUnknown: (*conversation).unknown,
	// A mail server sends these commands only if it ignores the negotiation.
	cmdHeader: nothing, cmdEOH: nothing, cmdBody: nothing,
}

func nothing(*conversation, []byte, int64) smtp.Answer { return smtp.Answer{} }

func (c *conversation) command(ctx context.Context, p packet) error {
	switch p.command {
	case cmdMacros:
		if len(p.data) > 0 {
			c.macros(p.data[0], p.data[1:])
		}
		return nil
	case cmdAbort:
		c.locked(func(at int64) {
			if c.session.mail {
				c.session.mail = false
				c.server.Sink.Event(c.session.begin(smtp.EventRollback, at))
			}
		})
		return nil // this command has no answer
	case cmdQuitReuse:
		c.end(smtp.EndingClosed)
		c.session, c.refusal = newSession(), ""
		return nil
	}
	handle := handlers[p.command]
	if handle == nil {
		return fmt.Errorf("%w: unexpected command %q", errProtocol, p.command)
	}
	var a smtp.Answer
	begin, until := time.Now(), time.Time{}
	for {
		c.locked(func(at int64) { a = handle(c, p.data, at) })
		if a.Wait <= 0 {
			break
		}
		if until.IsZero() {
			until = time.Now().Add(a.Wait)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
		}
		c.session.repeated = true
		c.session.waited = time.Now().After(until) || time.Since(begin) > MaxHold || ctx.Err() != nil
	}
	c.session.repeated, c.session.waited = false, false
	c.hold(ctx, min(a.Hold, MaxHold-time.Since(begin)))
	return c.answer(p.command, a)
}

// macros adds the macros of a command. macros removes the macros of the previous recipient.
func (c *conversation) macros(command byte, data []byte) {
	if command == cmdRcpt {
		for _, name := range [...]string{"rcpt_mailer", "rcpt_host", "rcpt_addr"} {
			delete(c.session.macros, name)
		}
	}
	c.session.macros.parse(data)
}

// locked calls f with the current time. No other events are reported during the call.
func (c *conversation) locked(f func(at int64)) { c.server.locked(c.session.server, f) }

// locked calls f with the current time. No other events are reported during the call. site is the
// name of the mail server, or "" if it is unknown.
func (s *Server) locked(site string, f func(at int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	s.name(site)
	err := safego.Run(func() error { f(now().UnixMicro()); return nil })
	if err != nil {
		s.once("panic", "bug: the session continues without the filter", err)
	}
}

// name stores the name of the mail server for the events that follow. Several servers may use the
// same socket.
func (s *Server) name(name string) {
	if name != "" && name != s.site {
		s.site = name
		s.Sink.Site(name)
	}
}

// hold delays an answer.
func (c *conversation) hold(ctx context.Context, d time.Duration) {
	held := c.server.Held
	if d <= 0 || held == nil {
		return
	}
	defer held.Add(-1)
	if held.Add(1) > MaxHeld {
		return
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// answer sends the answer to a command to the mail server.
func (c *conversation) answer(command byte, a smtp.Answer) error {
	switch {
	case a.Decision < smtp.Reject:
		return c.wire.write(replyContinue)
	case command == cmdUnknown: // the protocol does not allow a text here
		return c.wire.write(replyReject)
	}
	return c.wire.write(replyCode, []byte(a.Text), []byte{0})
}

// validReply matches the start of a reply that mail servers accept from a milter.
var validReply = regexp.MustCompile(`^[45][0-9][0-9] .`)

// enhancedReply matches replies with an enhanced status code (RFC 2034 section 4).
var enhancedReply = regexp.MustCompile(`^(4[0-9]{2} 4|5[0-9]{2} 5)\.[0-9]{1,3}\.[0-9]{1,3}( |$)`)

// maxText is the maximum length of a reply (RFC 5321 section 4.5.3.1.5).
const maxText = 500

// replyOf returns the reply to the client. Mail servers disconnect the client only if the reply has
// the code 421.
func replyOf(a smtp.Answer) string {
	text := a.Text
	if !validReply.MatchString(text) {
		text = "550 5.7.1 Refused by local policy"
	}
	if a.Decision == smtp.Disconnect && text[0] == '4' {
		text = "421" + text[3:]
	}
	if text[4] >= '0' && text[4] <= '9' && !enhancedReply.MatchString(text) { // Postfix would reject the reply, and ignore the milter
		text = text[:4] + text[:1] + ".0.0 " + text[4:]
	}
	// Postfix and Sendmail interpret percent signs in the text.
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '%' {
			return '?'
		}
		return r
	}, text[:min(len(text), maxText)])
}

// ask asks the policy for an answer. If the client must be disconnected, all further commands get
// the same answer. A rejection is also reported as an EventFilter.
func (c *conversation) ask(e *smtp.Event) (a smtp.Answer) {
	e.Waited = c.session.waited
	phase, at := e.Phase, e.Time
	if a = c.server.Sink.Ask(e); a.Wait > 0 {
		return a
	}
	if a.Decision < smtp.Reject {
		return smtp.Answer{Hold: a.Hold}
	}
	a.Text = replyOf(a)
	if a.Decision == smtp.Disconnect || phase == smtp.PhaseConnect {
		c.refusal = a.Text
	}
	c.filtered(phase, a, at)
	return a
}

// filtered reports a decision to reject a command.
func (c *conversation) filtered(phase smtp.Phase, a smtp.Answer, at int64) {
	e := c.session.begin(smtp.EventFilter, at)
	e.Name, e.Word, e.Text, e.Cause = []byte(phase.String()), []byte(a.Decision.String()), clip([]byte(a.Text), maxExample), smtp.CauseFilter
	c.server.Sink.Event(e)
}

// refused returns the answer to a command of a client that should have been disconnected. ok is
// false for other clients.
func (c *conversation) refused() (a smtp.Answer, ok bool) {
	return smtp.Answer{Decision: smtp.Disconnect, Text: c.refusal}, c.refusal != ""
}

func codeOf(text string) (code uint32, result smtp.Result) {
	for i := range 3 {
		code = 10*code + uint32(text[i]-'0')
	}
	if text[0] == '4' {
		return code, smtp.ResultTempfail
	}
	return code, smtp.ResultPermfail
}

// reject changes the outcome of a command, because the filter rejects it.
func reject(e *smtp.Event, a smtp.Answer) *smtp.Event {
	e.Code, e.Result = codeOf(a.Text)
	e.Cause, e.Reply = smtp.CauseFilter, clip([]byte(a.Text), maxExample)
	return e
}

// outcome reports a command's reply and outcome.
func (c *conversation) outcome(e *smtp.Event, a smtp.Answer) {
	if a.Decision >= smtp.Reject {
		reject(e, a)
	}
	outcome := *e
	r := c.session.begin(smtp.EventReply, e.Time)
	r.Verb, r.Code, r.Cause = outcome.Verb, outcome.Code, outcome.Cause
	if r.Code == 0 {
		r.Code = 250
	}
	c.server.Sink.Event(r)
	c.session.ev = outcome
	c.server.Sink.Event(&c.session.ev)
}

func (c *conversation) connect(data []byte, at int64) smtp.Answer {
	s := c.session
	if !s.open {
		s.server = s.macros["j"]
		c.server.name(s.server)
		c.server.Sink.Event(s.connect(data, at))
	}
	a := c.ask(s.request(smtp.PhaseConnect, at, nil, nil))
	if a.Decision >= smtp.Reject {
		c.server.Sink.Event(s.refusedConnection(a.Text, at))
	}
	return a
}

func (c *conversation) helo(data []byte, at int64) smtp.Answer {
	s := c.session
	name, _, _ := cut(data)
	name = smtpd.Greeting(name, maxName)
	if e := s.secure(at); e != nil {
		c.server.Sink.Event(e)
	}
	if !s.repeated {
		c.server.Sink.Event(s.line(smtp.VerbEhlo, at))
	}
	a, done := c.refused()
	if !done {
		a = c.ask(s.request(smtp.PhaseHelo, at, name, nil))
	}
	if a.Wait <= 0 {
		c.outcome(s.helo(name, at), a)
	}
	return a
}

func (c *conversation) mail(data []byte, at int64) smtp.Answer {
	s := c.session
	addr := mailbox(data)
	if e := s.login(at); e != nil {
		c.server.Sink.Event(e)
	}
	if !s.repeated {
		c.server.Sink.Event(s.line(smtp.VerbMail, at))
	}
	a, done := c.refused()
	if !done {
		a = c.ask(s.request(smtp.PhaseMailFrom, at, nil, addr))
	}
	if a.Wait <= 0 {
		c.outcome(s.sender(addr, at), a)
		s.mail = a.Decision < smtp.Reject
	}
	return a
}

func (c *conversation) rcpt(data []byte, at int64) smtp.Answer {
	s := c.session
	addr := s.requested(data, at)
	if !s.repeated {
		c.server.Sink.Event(s.line(smtp.VerbRcpt, at))
	}
	a, done := c.refused()
	if !done {
		r := s.request(smtp.PhaseRcptTo, at, nil, addr)
		r.Refused, r.Exists = s.refused(), !s.refused()
		a = c.ask(r)
	}
	switch {
	case a.Wait > 0:
	case s.refused(): // the server sends its own reply to the client, except before it disconnects
		c.outcome(s.recipient(addr, at), smtp.Answer{})
		if a.Decision < smtp.Disconnect {
			return smtp.Answer{Hold: a.Hold}
		}
	default:
		c.outcome(s.recipient(addr, at), a)
	}
	return a
}

func (c *conversation) data(_ []byte, at int64) smtp.Answer {
	s := c.session
	if !s.repeated {
		c.server.Sink.Event(s.line(smtp.VerbData, at))
	}
	a, done := c.refused()
	if !done {
		a = c.ask(s.request(smtp.PhaseData, at, nil, nil))
	}
	if a.Wait <= 0 {
		c.outcome(s.data(at), a)
	}
	return a
}

func (c *conversation) message(_ []byte, at int64) smtp.Answer {
	s := c.session
	a, done := c.refused()
	if !done {
		a = c.ask(s.request(smtp.PhaseCommit, at, nil, nil))
	}
	switch {
	case a.Wait > 0:
		return a
	case a.Decision >= smtp.Reject:
		c.server.Sink.Event(s.begin(smtp.EventRollback, at))
	default:
		c.server.Sink.Event(s.begin(smtp.EventCommit, at))
	}
	s.mail = false
	return a
}

func (c *conversation) unknown(data []byte, at int64) smtp.Answer {
	s := c.session
	if e := s.unknown(data, at); e != nil {
		command := *e
		l := s.line(command.Verb, at)
		l.Text = command.Text
		c.server.Sink.Event(l)
		c.outcome(&command, smtp.Answer{})
	}
	if a, ok := c.refused(); ok {
		return a
	}
	return smtp.Answer{}
}

// end reports the end of the session.
func (c *conversation) end(how smtp.Ending) {
	if !c.session.open {
		return
	}
	c.session.open = false
	c.locked(func(at int64) {
		if c.session.mail {
			c.server.Sink.Event(c.session.begin(smtp.EventRollback, at))
		}
		s := c.session
		p := &parted{id: s.id, server: s.server, src: s.src, start: s.start, end: at, ending: how, spoke: s.spoke, mail: s.sent, login: s.user != ""}
		if c.refusal != "" {
			p.ending = smtp.EndingRejected
		}
		c.server.part(p, at)
	})
}
