package simulate

// This file simulates clients that follow no script, but choose each step after the reply to the
// previous step.

import (
	"errors"
	"io"
	"iter"
	"net/netip"
	"strings"
	"time"

	"scanwatch/filter/smtpd"
)

// A Live is a simulated server whose clients are Go code. A Live runs on the caller's goroutine.
// smtpd.Serve is a coroutine that continues whenever a client waits for an answer. Commands of
// clients and WaitUntil advance the clock.
type Live struct {
	// Exists reports whether a local part in Domain is a mailbox. The local part is in
	// lower case and has no subaddress. All other recipients are unknown. Only
	// authenticated clients can send to foreign domains.
	Exists func(local string) bool

	p        *player
	now      int64 // microseconds since 1970
	sessions uint64
	send     func() // makes the filter read all lines and, if the last line is a request, answer it
	ended    bool
	wrong    string
	err      error
	rcpt     Fate // fate of the requested recipient
}

// Fate returns the server's own answer to the requested recipient.
func (l *Live) Fate() Fate { return l.rcpt }

// NewLive returns a server whose clock starts at the given time and whose events go to h.
func NewLive(h smtpd.Handler, phases []smtpd.ID, start time.Time) *Live {
	l := &Live{now: start.UnixMicro(), p: &player{}, Exists: func(string) bool { return false }}
	for _, id := range phases {
		l.p.phases[id] = true
	}
	l.p.out = append(l.p.out, handshake...)
	o := smtpd.Options{Phases: phases, Log: func(s string) {
		if l.wrong == "" {
			l.wrong = s
		}
	}}
	resume, _ := iter.Pull(func(yield func(struct{}) bool) {
		l.err = smtpd.Serve(lines{l, yield}, l.p, hurried{h, &l.p.hold}, o)
	})
	l.send = func() { resume() }
	l.send()
	return l
}

// NewLiveOver returns a server for a filter that is a process and has completed the handshake.
// Delayed answers of the filter take real time.
func NewLiveOver(filter io.Writer, answer func() string, phases []smtpd.ID, start time.Time) *Live {
	l := &Live{now: start.UnixMicro(), p: &player{}, Exists: func(string) bool { return false }}
	for _, id := range phases {
		l.p.phases[id] = true
	}
	l.send = func() {
		if _, err := filter.Write(l.p.out); err != nil {
			l.err = errors.Join(l.err, err)
		}
		l.p.out = l.p.out[:0]
		if l.p.asked != nil {
			l.p.answer = append(l.p.answer, strings.TrimSuffix(answer(), "\n")...)
		}
	}
	return l
}

// Number sets the number of the next session, so that one stream can continue another.
func (l *Live) Number(n int) { l.sessions = uint64(n) }

// Close ends the stream and returns the filter's first error: a panic, an answer that
// smtpd does not accept, or a missing answer.
func (l *Live) Close() error {
	l.ended = true
	l.send()
	if l.err == nil && l.wrong != "" {
		l.err = errors.New(l.wrong)
	}
	return l.err
}

// Now returns the server's time.
func (l *Live) Now() time.Time { return time.UnixMicro(l.now).UTC() }

// WaitUntil advances the clock to at, unless it is already later.
func (l *Live) WaitUntil(at time.Time) { l.now = max(l.now, at.UnixMicro()) }

// Sessions returns the number of sessions so far.
func (l *Live) Sessions() int { return int(l.sessions) }

// exchange lets the filter read all lines and answer the last one.
func (l *Live) exchange(v *visit) {
	l.p.asked = v
	l.send()
	l.p.asked = nil
	err := l.p.written
	switch {
	case err != nil:
	case len(l.p.answer) == 0:
		err = errors.New("a request was not answered")
	default:
		err = v.hear(l.p.answer)
	}
	l.p.answer = l.p.answer[:0]
	if err != nil {
		v.gone = true
		l.err = errors.Join(l.err, err)
	}
}

// lines is the input of smtpd.Serve. When all input has been read, Read switches to the clients.
type lines struct {
	*Live
	yield func(struct{}) bool
}

func (r lines) Read(b []byte) (int, error) {
	p := r.p
	for p.read == len(p.out) {
		p.out, p.read = p.out[:0], 0
		if r.ended || !r.yield(struct{}{}) {
			return 0, io.EOF
		}
	}
	n := copy(b, p.out[p.read:])
	p.read += n
	return n, nil
}

// A Host describes a client's network properties.
type Host struct {
	Src    netip.Addr
	RDNS   string // empty for none
	FCrDNS string // pass, fail or error; by default pass if there is a name
	Port   uint16 // server port, by default 25; 465 starts with TLS
	Helo   string
	// RTT is the duration of a command. If Pace is not empty, it contains the durations of the
	// first commands instead. Pace's last duration also applies to all later commands.
	RTT  time.Duration
	Pace []time.Duration
}

// Result is the result of a command.
type Result string

// Failed means a wrong password, or a command that is not allowed. Unknown and Deferred are answers
// of the server. Refused is an answer of the filter. Gone means that the connection had already
// ended.
const (
	Accepted Result = "ok"
	NoSuch   Result = "unknown"
	Deferred Result = "deferred"
	Refused  Result = "refused"
	Failed   Result = "failed"
	Gone     Result = "closed"
)

// A Client is an open session.
type Client struct {
	Host
	v      *visit
	l      *Live
	Closed bool
	Barred bool // the filter rejected the connection
	Asked  []Asked
	Tries  int // passwords checked by the server
}

// An Asked is a requested recipient and its result.
type Asked struct {
	Rcpt   string
	Result Result
}

// Connect opens a session.
func (l *Live) Connect(h Host) *Client {
	if h.FCrDNS == "" {
		h.FCrDNS = "fail"
		if h.RDNS != "" {
			h.FCrDNS = "pass"
		}
	}
	if h.Port == 0 {
		h.Port = 25
	}
	if h.RTT == 0 {
		h.RTT = 60 * time.Millisecond
	}
	if h.Helo == "" {
		h.Helo = h.RDNS
	}
	l.sessions++
	src := netip.AddrPortFrom(h.Src, uint16(20_000+mix(l.sessions)%40_000))
	v := newVisit(l.p, &Session{Start: l.Now(), Src: src, Dst: serverAddr(h.Src, h.Port), RDNS: h.RDNS, FCrDNS: h.FCrDNS}, l.sessions)
	v.stop() // no script
	c := &Client{Host: h, v: v, l: l}
	v.yield = func(w wait) bool {
		if w == forAnswer {
			l.exchange(v)
		}
		return true
	}
	v.smtps, v.live = h.Port == 465, true
	c.step(func() { v.connect() })
	c.Barred = len(v.outcome.Refused) > 0
	return c
}

// step runs f as one of the client's steps, on the server's clock. It reports whether the session
// was still open.
func (c *Client) step(f func()) bool {
	if c.Closed {
		return false
	}
	c.v.now = max(c.l.now, c.v.now)
	f()
	if c.v.gone {
		c.end()
	}
	c.l.now = max(c.l.now, c.v.now)
	if len(c.l.p.out) > batch {
		c.l.send()
	}
	return true
}

func (c *Client) end() {
	if c.v.tx.open {
		c.v.rollback()
	}
	c.v.report(smtpd.LinkDisconnect)
	c.Closed = true
}

// gap waits for the duration of a command.
func (c *Client) gap() {
	d := c.RTT + time.Duration(mix(c.v.id+uint64(c.v.now))%uint64(c.RTT/4+1))
	if len(c.Pace) > 0 {
		if d = c.Pace[0]; len(c.Pace) > 1 {
			c.Pace = c.Pace[1:]
		}
	}
	c.v.now += d.Microseconds()
}

// say plays a command and returns the filter's answer, or Accepted.
func (c *Client) say(f func()) Result {
	n := len(c.v.outcome.Refused)
	if !c.step(func() { c.gap(); f() }) {
		return Gone
	}
	c.v.leaving = false // the caller decides how the client reacts
	if len(c.v.outcome.Refused) > n {
		return Refused
	}
	return Accepted
}

// ID returns smtpd's session id.
func (c *Client) ID() uint64 { return c.v.id }

// Refusals returns the filter's negative answers.
func (c *Client) Refusals() []Refusal { return c.v.outcome.Refused }

// Mails returns the number of messages accepted. Junked reports whether a message was
// marked as junk.
func (c *Client) Mails() int   { return c.v.outcome.Mails }
func (c *Client) Junked() bool { return c.v.outcome.Junked }

// LoggedIn reports whether a login succeeded.
func (c *Client) LoggedIn() bool { return c.v.authed }

// InTransaction reports whether a transaction is open.
func (c *Client) InTransaction() bool { return c.v.tx.open }

// Ehlo greets with the host's name.
func (c *Client) Ehlo() Result { return c.Greet("EHLO", c.Helo) }

// Greet greets with the given name.
func (c *Client) Greet(verb, name string) Result {
	c.Helo = name
	return c.say(func() {
		if c.Barred {
			c.v.client(verb + " " + name)
			c.v.server(outOfOrder)
			return
		}
		c.v.greet(verb, name)
	})
}

// StartTLS starts TLS and greets again.
func (c *Client) StartTLS() Result { return c.say(func() { c.v.startTLS(c.RTT) }) }

// Auth tries to log in.
func (c *Client) Auth(user string, right bool) Result {
	s := &Step{Text: user}
	if !right {
		s.Fate = Unknown
	}
	open := c.v.submission() && c.v.tls && !c.v.authed
	if r := c.say(func() { c.v.auth(s) }); r != Accepted {
		return r
	}
	if open {
		c.Tries++
	}
	if !c.v.authed {
		return Failed
	}
	return Accepted
}

// Mail starts a transaction.
func (c *Client) Mail(sender string) Result {
	r := c.say(func() { c.v.mail(sender) })
	if r == Accepted && !c.v.tx.open {
		return Failed
	}
	return r
}

// Rcpt requests a recipient.
func (c *Client) Rcpt(to string) Result { return c.RcptFate(to, c.fate(to)) }

func (c *Client) fate(to string) Fate {
	at := strings.LastIndexByte(to, '@')
	local, _, _ := strings.Cut(strings.ToLower(to[:max(at, 0)]), "+")
	switch ours := strings.EqualFold(to[at+1:], Domain); {
	case ours && c.l.Exists(local), !ours && c.v.authed:
		return OK
	}
	return Unknown
}

// RcptFate requests a recipient. fate is the server's own answer to the request.
func (c *Client) RcptFate(to string, fate Fate) Result {
	open := c.v.tx.open
	c.l.rcpt = fate
	r := c.say(func() { c.v.rcpt(&Step{Text: to, Fate: fate}) })
	switch {
	case r != Accepted:
	case !open:
		r = Failed
	case fate == Unknown:
		r = NoSuch
	case fate == Later:
		r = Deferred
	}
	if r != Gone && open {
		c.Asked = append(c.Asked, Asked{to, r})
	}
	return r
}

// Data sends a message to the accepted recipients.
func (c *Client) Data() Result {
	if !c.Closed && c.v.tx.accepted == 0 {
		return c.say(func() { c.v.client("DATA"); c.v.server("503 5.5.4 Invalid command arguments: No recipient specified") })
	}
	return c.say(func() { c.v.data(1200) })
}

// Rset ends the transaction.
func (c *Client) Rset() Result { return c.say(func() { c.v.rset() }) }

// Command sends a line for which smtpd sends no request to filters.
func (c *Client) Command(line, reply string) Result {
	return c.say(func() { c.v.client(line); c.v.server(reply) })
}

// Pipelined sends several lines in one write.
func (c *Client) Pipelined() Result { return c.say(func() { c.v.pipelined() }) }

// Quit ends the session.
func (c *Client) Quit() { c.say(func() { c.v.quit() }) }

// Leave closes the connection.
func (c *Client) Leave() { c.step(func() { c.v.gone = true }) }

// Flush lets the filter read all lines sent so far.
func (l *Live) Flush() { l.send() }
