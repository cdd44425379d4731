package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"scanwatch/internal/smtp"

	"scanwatch/internal/safego"
)

// A Handler handles the events of smtpd. The methods of a Handler are called in the order of the
// lines from smtpd, and never concurrently. Decide is called again later for a request that waits.
// No method may block.
type Handler interface {
	// Ready is called once, after smtpd has sent its complete configuration.
	Ready(Config)
	// Report handles a report.
	Report(*Event)
	// Decide returns the answer to a request. If the answer has a Wait, Decide is called again for
	// the same request. If Event.Waited is set, the answer must not have a Wait.
	Decide(*Event) smtp.Answer
}

// Config is the configuration that smtpd sends before the first event.
type Config struct {
	SMTPDVersion   string
	Protocol       Version // zero for OpenSMTPD before 7.6, which does not send its version of the protocol
	SessionTimeout time.Duration
	ADMD           string // name of the site, usually the host name
}

// Options are the settings of Serve.
type Options struct {
	Reports []ID // reports to register
	Phases  []ID // phases to register
	// Held, if set, is updated with the number of delayed responses.
	Held *atomic.Int64
	// Wake receives a value when a waiting request may have an answer. If Wake is nil, requests
	// never wait.
	Wake <-chan struct{}
	// Log logs a line without LF. Log must not block. The lines report problems with smtpd or bugs
	// in the Handler, but contain nothing about clients. Each kind of line is logged only once.
	Log func(string)
}

// Serve reads lines from in, and writes registrations and responses to out. When smtpd shuts down,
// it closes in, and Serve returns nil. An error on in or out means that smtpd has exited.
//
// Serve sends exactly one response to each valid request. If Decide panics, the response is
// proceed.
func Serve(in io.Reader, out io.Writer, h Handler, o Options) error {
	s := server{lines: newLines(in), held: held{out: out, count: o.Held}, handler: h, options: o, said: make(map[string]bool), parked: make(chan struct{}, 1)}
	defer s.held.stop()
	defer s.startWaiting()()
	for {
		if err := s.batches(); err != nil {
			return fmt.Errorf("write to smtpd: %w", err)
		}
		if err := s.lines.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read from smtpd: %w", err)
		}
	}
}

type server struct {
	mu sync.Mutex // held while lines or waiting requests are handled, but not while Serve waits for input

	held    held
	lines   *lines
	handler Handler
	options Options
	config  Config
	ready   bool
	out     []byte
	ev      Event
	asked   bool // ev is a request without an answer
	said    map[string]bool
	waiters []waiter
	parked  chan struct{} // receives a value when a request starts to wait
}

// batches handles the lines in the buffer. batches sends all their responses in one write.
func (s *server) batches() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.batch() {
	}
	return s.flush()
}

// flush sends the responses that are complete.
func (s *server) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	err := s.held.write(s.out)
	s.out = s.out[:0]
	return err
}

// batch handles the lines in the buffer. again reports whether the Handler has panicked; the buffer
// may then contain further lines.
func (s *server) batch() (again bool) {
	defer s.recovered(&again)
	for {
		line, cut, ok := s.lines.next()
		if !ok {
			return false
		}
		if cut {
			s.once("long", "line from smtpd truncated: longer than %d bytes", maxLine)
		}
		s.line(line)
	}
}

// recovered recovers from a panic in the Handler and answers the current request. recovered must be
// called with defer. After a panic, recovered sets again unless again is nil.
func (s *server) recovered(again *bool) {
	r := recover()
	if r == nil {
		return
	}
	if again != nil {
		*again = true
	}
	stack := debug.Stack()
	if s.asked {
		s.answer(smtp.Answer{})
	}
	s.once("panic", "bug: handling %v: %v; the session continues without the filter\n%s", s.ev.ID, r, stack)
}

// lineHead returns the fields of a line before its session. Later fields must not be logged,
// because they may contain a password, for example if a user name contains a line feed.
func lineHead(line []byte) []byte {
	if !bytes.HasPrefix(line, []byte("report|")) && !bytes.HasPrefix(line, []byte("filter|")) {
		return nil
	}
	for i, n := 0, 0; i < len(line); i++ {
		if line[i] == '|' {
			if n++; n == 5 {
				return line[:i]
			}
		}
	}
	return line
}

func (s *server) line(line []byte) {
	if rest, ok := bytes.CutPrefix(line, []byte("config|")); ok {
		s.configLine(rest)
		return
	}
	if err := s.ev.parse(line); err != nil {
		s.once("line", "invalid line from smtpd ignored: %v: %+.80q", err, lineHead(line))
		return
	}
	ev := &s.ev
	if Newest.Before(ev.Version.Major, ev.Version.Minor) {
		s.once("version", "smtpd protocol %v is newer than %v; continuing", ev.Version, Newest)
	}
	if !ev.request {
		if ev.ID == Unknown {
			s.once("report "+string(ev.name[:min(len(ev.name), 40)]), "unknown report ignored: %+.40q", ev.name)
		} else {
			s.handler.Report(ev)
		}
		return
	}
	s.asked = true
	var r smtp.Answer
	if ev.ID == Unknown {
		s.once("phase "+string(ev.name[:min(len(ev.name), 40)]), "unknown phase, proceeding: %+.40q", ev.name)
	} else {
		if r = s.handler.Decide(ev); r.Wait > 0 {
			if s.park(r.Wait) {
				s.asked = false
				return
			}
			ev.Waited = true
			r = s.handler.Decide(ev)
		}
	}
	s.answer(r)
}

// answer appends the response, and after that marks the request as answered. If the first step
// panics, the request is still pending.
func (s *server) answer(r smtp.Answer) {
	if r.Hold <= 0 || !s.held.add(appendReply(nil, &s.ev, r), s.limit(r.Hold)) {
		s.out = appendReply(s.out, &s.ev, r)
	}
	s.asked = false
}

// limit shortens a delay that is so long that smtpd or the client may time out. RFC 5321 section
// 4.5.3.2 recommends a timeout of five minutes for clients.
func (s *server) limit(hold time.Duration) time.Duration {
	if t := s.config.SessionTimeout / 2; t > 0 {
		return min(hold, t, MaxHold)
	}
	return min(hold, MaxHold)
}

// configLine handles a line without its first word, "config", and ignores unknown keys.
func (s *server) configLine(rest []byte) {
	key, value, _ := cut(rest)
	switch string(key) {
	case "smtpd-version":
		s.config.SMTPDVersion = string(value)
	case "protocol":
		s.config.Protocol, _ = parseVersion(value)
	case "smtp-session-timeout":
		n, _ := strconv.Atoi(string(value))
		s.config.SessionTimeout = time.Duration(n) * time.Second
	case "admd":
		s.config.ADMD = string(value)
	case "ready":
		if s.ready {
			return // smtpd exits if a filter registers twice
		}
		s.ready = true
		s.out = s.appendRegistration(s.out)
		s.handler.Ready(s.config)
	}
}

func (s *server) appendRegistration(dst []byte) []byte {
	for _, id := range s.options.Reports {
		dst = fmt.Appendf(dst, "register|report|smtp-in|%v\n", id)
	}
	for _, id := range s.options.Phases {
		dst = fmt.Appendf(dst, "register|filter|smtp-in|%v\n", id)
	}
	return append(dst, "register|ready\n"...)
}

// once logs one line of each kind, and at most 100 lines, so that a broken smtpd cannot fill the
// log.
func (s *server) once(kind, format string, args ...any) {
	if s.options.Log == nil || s.said[kind] || len(s.said) >= 100 {
		return
	}
	s.said[kind] = true
	_ = safego.Run(func() error { // the request must be answered even if Log panics
		s.options.Log(fmt.Sprintf(format, args...))
		return nil
	})
}

// ErrNever is returned by Check if an event must never be registered.
var ErrNever = errors.New("must not be registered: contains passwords or message text, or makes smtpd exit")

// Check returns an error if o contains an event that must not be registered. Requests in the phases
// auth and data-line contain passwords and message text.
func (o Options) Check() error {
	for _, id := range o.Phases {
		if !id.IsPhase() || id == PhaseAuth || id == PhaseDataLine {
			return fmt.Errorf("phase %v: %w", id, ErrNever)
		}
	}
	for _, id := range o.Reports {
		if id == Unknown || id.IsPhase() {
			return fmt.Errorf("report %v: %w", id, ErrNever)
		}
	}
	return nil
}
