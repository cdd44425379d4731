package simulate

// This file makes the simulated server use the milter protocol. The file translates smtpd's
// requests and reports into the milter commands that Postfix would send.

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/milter"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A Milter is a pipeline with its front end for milters. A Milter implements smtpd.Handler for
// NewLive. Commands that Postfix does not report to a milter are omitted.
type Milter struct {
	*filter.Pipeline
	// Fate returns the server's own answer to the requested recipient. Postfix reports rejected
	// recipients to milters.
	Fate func() Fate

	server   milter.Server
	pipes    pipes
	stop     context.CancelFunc
	stopped  chan struct{}
	clock    atomic.Int64 // microseconds since 1970
	sessions map[uint64]*milterSession
	session  uint64 // session whose command the front end is handling
	handled  chan struct{}
	err      error
}

// A milterSession is the simulated server's connection to the front end.
type milterSession struct {
	conn    net.Conn
	in      *bufio.Reader
	macros  [][2]string // macros of the next command
	command string      // latest line from the client
	open    bool        // a transaction is open from the milter's point of view
}

// NewMilter returns a Milter with the same parts as the program.
func NewMilter(o filter.Options) *Milter {
	o.FrontEnd = "milter"
	ctx, stop := context.WithCancel(context.Background())
	m := &Milter{Pipeline: filter.New(o), stop: stop, stopped: make(chan struct{}), sessions: make(map[uint64]*milterSession), handled: make(chan struct{}, 1)}
	m.pipes = make(pipes)
	m.server = milter.Server{Sink: milterSink{m}, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.UnixMicro(m.clock.Load()) }}
	go func() {
		defer close(m.stopped)
		_ = m.server.Serve(ctx, m.pipes)
	}()
	return m
}

// Stop stops the front end and the pipeline, as the program does, and returns the first protocol
// violation.
func (m *Milter) Stop() error {
	m.stop()
	<-m.stopped
	m.Pipeline.Stop()
	return m.err
}

// A milterSink replaces the session ids in events with the simulated sessions' ids.
type milterSink struct{ *Milter }

func (s milterSink) Event(e *smtp.Event) {
	e.Session = s.session
	s.Pipeline.Event(e)
	if e.Kind == smtp.EventRollback {
		select {
		case s.handled <- struct{}{}:
		default:
		}
	}
}

func (s milterSink) Ask(e *smtp.Event) smtp.Answer {
	e.Session = s.session
	return s.Pipeline.Ask(e)
}

// pipes is a listener for in-process connections.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return new(net.UnixAddr) }

// Ready implements smtpd.Handler.
func (m *Milter) Ready(smtpd.Config) {}

// Report implements smtpd.Handler.
func (m *Milter) Report(ev *smtpd.Event) {
	if ev.ID == smtpd.LinkConnect {
		m.connect(ev)
		return
	}
	s := m.at(ev)
	if s == nil {
		return
	}
	switch ev.ID {
	case smtpd.LinkTLS:
		s.macros = append(s.macros, [2]string{"{tls_version}", string(ev.Field(0))})
	case smtpd.LinkAuth:
		if string(ev.Field(0)) == "pass" {
			s.macros = append(s.macros, [2]string{"{auth_authen}", string(ev.Field(1))})
		}
	case smtpd.ProtocolClient:
		s.command = string(ev.Field(0))
	case smtpd.ProtocolServer:
		if string(ev.Field(0)) == UnknownCommand {
			m.ask(s, 'U', s.command+"\x00")
		}
	case smtpd.TxRollback:
		if s.open {
			s.open = false
			m.send(s, 'A', "")
			<-m.handled
		}
	case smtpd.LinkDisconnect:
		m.send(s, 'Q', "")
		if _, err := s.in.ReadByte(); !errors.Is(err, io.EOF) {
			m.fail(fmt.Errorf("after QUIT: %w", err))
		}
		delete(m.sessions, ev.Session)
	}
}

// at returns the session of an event. It also sets the clock and the current session as in
// the event.
func (m *Milter) at(ev *smtpd.Event) *milterSession {
	m.clock.Store(ev.Time)
	m.session = ev.Session
	return m.sessions[ev.Session]
}

// resolved maps FCrDNS results to Postfix's words.
var resolved = map[string]string{"pass": "OK", "fail": "FORGED", "error": "TEMP"}

func (m *Milter) connect(ev *smtpd.Event) {
	near, far := net.Pipe()
	m.pipes <- far
	s := &milterSession{conn: near, in: bufio.NewReader(near)}
	m.sessions[ev.Session] = s
	m.at(ev)
	rdns, result := string(ev.Field(0)), resolved[string(ev.Field(1))]
	if rdns == "<unknown>" {
		rdns, result = "unknown", "FAIL"
	}
	name := rdns
	if result != "OK" {
		name = "unknown"
	}
	src, dst := netip.MustParseAddrPort(string(ev.Field(2))), netip.MustParseAddrPort(string(ev.Field(3)))
	m.exchange(s, 'O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")
	s.macros = [][2]string{
		{"j", ServerName}, {"{daemon_addr}", dst.Addr().String()}, {"{daemon_port}", fmt.Sprint(dst.Port())},
		{"{client_ptr}", rdns}, {"{client_resolve}", result},
	}
	family, address := "4", src.Addr().String()
	if src.Addr().Is6() {
		family, address = "6", "IPv6:"+address
	}
	s.command = name + "\x00" + family + string(binary.BigEndian.AppendUint16(nil, src.Port())) + address + "\x00"
}

// commands maps requests to milter commands.
var commands = map[smtpd.ID]byte{
	smtpd.PhaseConnect: 'C', smtpd.PhaseHelo: 'H', smtpd.PhaseEhlo: 'H', smtpd.PhaseMailFrom: 'M',
	smtpd.PhaseRcptTo: 'R', smtpd.PhaseData: 'T', smtpd.PhaseCommit: 'E',
}

// refusedRcpt maps the server's own answers to the macros for a rejected recipient.
var refusedRcpt = map[Fate][2]string{
	Unknown: {"5.1.1", "Recipient address rejected: User unknown in local recipient table"},
	Later:   {"4.3.0", "Temporary lookup failure"},
}

// Decide implements smtpd.Handler.
func (m *Milter) Decide(ev *smtpd.Event) smtp.Answer {
	s, command := m.at(ev), commands[ev.ID]
	if s == nil || command == 0 {
		return smtp.Answer{}
	}
	switch arg := string(ev.Field(0)); command {
	case 'C':
		return m.ask(s, command, s.command)
	case 'H':
		return m.ask(s, command, arg+"\x00")
	case 'M':
		a := m.ask(s, command, "<"+arg+">\x00")
		s.open = a.Decision < smtp.Reject
		return a
	case 'R':
		s.macros = [][2]string{{"{rcpt_mailer}", "local"}, {"{rcpt_addr}", arg}}
		refused, ok := refusedRcpt[m.Fate()]
		if !ok {
			return m.ask(s, command, "<"+arg+">\x00")
		}
		if !strings.EqualFold(arg[strings.LastIndexByte(arg, '@')+1:], Domain) && refused[0] == "5.1.1" {
			refused = [2]string{"5.7.1", "Relay access denied"}
		}
		s.macros = [][2]string{{"{rcpt_mailer}", "error"}, {"{rcpt_host}", refused[0]}, {"{rcpt_addr}", refused[1]}}
		m.ask(s, command, "<"+arg+">\x00")
		return smtp.Answer{} // the client receives the server's own reply
	case 'E':
		s.open = false
	}
	return m.ask(s, command, "")
}

// ask sends a command and returns the answer.
func (m *Milter) ask(s *milterSession, command byte, data string) smtp.Answer {
	if len(s.macros) > 0 {
		macros := string(command)
		for _, pair := range s.macros {
			macros += pair[0] + "\x00" + pair[1] + "\x00"
		}
		s.macros = nil
		m.send(s, 'D', macros)
	}
	reply, text := m.exchange(s, command, data)
	text, _, _ = strings.Cut(text, "\x00")
	switch reply {
	case 'c':
		return smtp.Answer{}
	case 'r':
		return smtp.Answer{Decision: smtp.Reject, Text: "550 5.7.1 Command rejected"}
	case 'y':
		return smtp.Answer{Decision: smtp.Reject, Text: text}
	}
	m.fail(fmt.Errorf("the answer to %q is %q", command, reply))
	return smtp.Answer{}
}

// exchange sends a command and returns the reply.
func (m *Milter) exchange(s *milterSession, command byte, data string) (reply byte, text string) {
	m.send(s, command, data)
	var head [5]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		m.fail(err)
		return 'c', ""
	}
	rest := make([]byte, binary.BigEndian.Uint32(head[:])-1)
	if _, err := io.ReadFull(s.in, rest); err != nil {
		m.fail(err)
	}
	return head[4], string(rest)
}

func (m *Milter) send(s *milterSession, command byte, data string) {
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))
	if _, err := s.conn.Write(append(append(packet, command), data...)); err != nil {
		m.fail(err)
	}
}

// fail keeps the first error.
func (m *Milter) fail(err error) {
	if m.err == nil {
		m.err = err
	}
}
