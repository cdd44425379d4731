package filter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"scanwatch/internal/contain"
)

// A Handler does something with what smtpd tells. All its methods are called
// from one goroutine, in the order of smtpd's lines, and must not wait for
// anything.
type Handler interface {
	// Ready is called once, when smtpd has introduced itself.
	Ready(Config)
	// Report takes note of something that has happened.
	Report(*Event)
	// Decide answers a request.
	Decide(*Event) Reply
}

// Config is what smtpd says of itself before the first event.
type Config struct {
	SMTPDVersion   string
	Protocol       Version // zero before OpenSMTPD 7.6, which does not say
	SessionTimeout time.Duration
	ADMD           string // the site's name, usually the host's
}

// Options say what Serve registers and where it complains.
type Options struct {
	Reports []ID // events to be told of
	Phases  []ID // phases to be asked in
	// Held, if not nil, is kept at the number of answers that wait for their
	// time.
	Held *atomic.Int64
	// Log takes one line without LF about smtpd or a bug in the Handler, not
	// about clients. It must not wait. Each kind of line comes once.
	Log func(string)
}

// Serve reads smtpd's lines from in and writes registrations and answers to
// out until in ends, which is smtpd's only notice that it stops. It returns
// nil then, and otherwise the error of in or out, either of which means that
// smtpd is gone.
//
// Every request that can be told apart from noise is answered exactly once,
// before the next line is looked at: Decide only names the answer, Serve
// writes it, and when Decide panics Serve lets the client proceed.
func Serve(in io.Reader, out io.Writer, h Handler, o Options) error {
	s := server{lines: newLines(in), held: held{out: out, count: o.Held}, handler: h, options: o, said: make(map[string]bool)}
	defer s.held.stop()
	for {
		for s.batch() {
		}
		// One write answers everything that came with one read.
		if len(s.out) > 0 {
			if err := s.held.write(s.out); err != nil {
				return fmt.Errorf("write to smtpd: %w", err)
			}
			s.out = s.out[:0]
		}
		if err := s.lines.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read from smtpd: %w", err)
		}
	}
}

type server struct {
	held    held
	lines   *lines
	handler Handler
	options Options
	config  Config
	ready   bool
	out     []byte
	ev      Event
	asked   bool // ev is a request that has no answer yet
	said    map[string]bool
}

// batch handles the lines that are in the buffer. It returns true if the
// Handler panicked on one of them, and there may be more.
func (s *server) batch() (again bool) {
	defer func() {
		if r := recover(); r != nil {
			again = true
			stack := debug.Stack()
			if s.asked {
				s.answer(Reply{})
			}
			s.once("panic", "bug: handling %v: %v; the session goes on without us\n%s", s.ev.ID, r, stack)
		}
	}()
	for {
		line, cut, ok := s.lines.next()
		if !ok {
			return false
		}
		if cut {
			s.once("long", "a line from smtpd was longer than %d bytes and was cut", maxLine)
		}
		s.line(line)
	}
}

func (s *server) line(line []byte) {
	if rest, ok := bytes.CutPrefix(line, wordConfig); ok {
		s.configLine(rest)
		return
	}
	if err := s.ev.parse(line); err != nil {
		s.once("line", "ignored a line from smtpd: %v: %+.80q", err, line)
		return
	}
	ev := &s.ev
	if Newest.Before(ev.Version.Major, ev.Version.Minor) {
		s.once("version", "smtpd speaks protocol %v, this program knows up to %v: going on", ev.Version, Newest)
	}
	if !ev.request {
		if ev.ID == Unknown {
			s.once("report "+string(ev.name[:min(len(ev.name), 40)]), "ignored an unknown report %+.40q", ev.name)
		} else {
			s.handler.Report(ev)
		}
		return
	}
	s.asked = true
	var r Reply
	if ev.ID == Unknown {
		s.once("phase "+string(ev.name[:min(len(ev.name), 40)]), "let proceed in an unknown phase %+.40q", ev.name)
	} else {
		r = s.handler.Decide(ev)
	}
	s.answer(r)
}

// answer makes the answer, and only then takes the request for answered.
func (s *server) answer(r Reply) {
	if r.Hold <= 0 || !s.held.add(appendReply(nil, &s.ev, r), s.limit(r.Hold)) {
		s.out = appendReply(s.out, &s.ev, r)
	}
	s.asked = false
}

// limit bounds a hold. The client must be answered well before smtpd gives it
// up, and before its own patience ends: RFC 5321 section 4.5.3.2 asks clients
// to wait five minutes.
func (s *server) limit(hold time.Duration) time.Duration {
	if t := s.config.SessionTimeout / 2; t > 0 {
		return min(hold, t, MaxHold)
	}
	return min(hold, MaxHold)
}

// configLine handles what follows "config|". Keys unknown here are skipped.
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
			return // registering again after register|ready would end smtpd
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

// once logs one line of each kind; what a broken smtpd can say has an end.
func (s *server) once(kind, format string, args ...any) {
	if s.options.Log == nil || s.said[kind] || len(s.said) >= 100 {
		return
	}
	s.said[kind] = true
	_ = contain.Run(func() error { // an answer may still be owed
		s.options.Log(fmt.Sprintf(format, args...))
		return nil
	})
}

// ErrNever is returned by Check for what must never be registered.
var ErrNever = errors.New("carries passwords or message text, or ends smtpd")

// Check tells whether o registers only what is safe: never auth (passwords)
// and data-line (message text).
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
