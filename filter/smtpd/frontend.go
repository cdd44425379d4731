package smtpd

import (
	"bytes"

	"scanwatch/internal/smtp"
)

// A Sink receives the events of a FrontEnd. Each event is valid only during the call.
type Sink interface {
	// Site is called once, before the first event. The name comes from the option admd in
	// smtpd.conf(5). OpenSMTPD before version 7 does not send it; the name is then empty.
	Site(name string)
	// Event handles an event that is not a request.
	Event(*smtp.Event)
	// Ask answers an event of kind EventRequest.
	Ask(*smtp.Event) smtp.Answer
}

// A FrontEnd translates the reports and requests of smtpd into events of package smtp. smtpd
// reports the reply to a command and its outcome in separate lines, and the FrontEnd combines them.
// The FrontEnd removes passwords, and interprets the codes and texts of replies. A FrontEnd
// implements Handler.
type FrontEnd struct {
	sink  Sink
	conns map[uint64]*conn
	ev    smtp.Event // reused
}

// maxConns is the maximum number of sessions that are tracked. smtpd runs out of file descriptors
// before it has that many sessions.
const maxConns = 50_000

// NewFrontEnd returns a FrontEnd that reports to sink.
func NewFrontEnd(sink Sink) *FrontEnd {
	return &FrontEnd{sink: sink, conns: make(map[uint64]*conn)}
}

// Reports lists the reports that a FrontEnd needs. smtpd sends only reports that are registered.
var Reports = []ID{
	LinkConnect, LinkIdentify, LinkTLS, LinkAuth, LinkDisconnect,
	TxMail, TxRcpt, TxData, TxCommit, TxRollback,
	ProtocolClient, ProtocolServer, FilterResponse, Timeout,
}

// phases maps smtpd's requests to phases. Some requests are never registered. Requests auth and
// data-line contain passwords and message text. After a rejected starttls request, the client would
// continue without encryption. Rejecting rset, noop or quit has no effect on clients.
var phases = map[ID]smtp.Phase{
	PhaseConnect:  smtp.PhaseConnect,
	PhaseHelo:     smtp.PhaseHelo,
	PhaseEhlo:     smtp.PhaseHelo,
	PhaseMailFrom: smtp.PhaseMailFrom,
	PhaseRcptTo:   smtp.PhaseRcptTo,
	PhaseData:     smtp.PhaseData,
	PhaseCommit:   smtp.PhaseCommit,
}

// Requests returns the IDs of the requests in the given phases.
func Requests(set smtp.PhaseSet) (ids []ID) {
	for id := PhaseConnect; id < numIDs; id++ {
		if phase, ok := phases[id]; ok && set.Has(phase) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (f *FrontEnd) Ready(c Config) { f.sink.Site(c.ADMD) }

func (f *FrontEnd) Report(ev *Event) {
	if ev.Out {
		return // the session is one in which smtpd sends mail
	}
	if ev.ID == LinkConnect {
		f.connect(ev)
		return
	}
	c := f.conns[ev.Session]
	if c == nil {
		return // the session started before the filter did, or too many sessions are open
	}
	if h := handlers[ev.ID]; h != nil {
		h(f, c, ev)
	}
}

func (f *FrontEnd) Decide(ev *Event) smtp.Answer {
	phase, ok := phases[ev.ID]
	c := f.conns[ev.Session]
	if !ok || c == nil {
		return smtp.Answer{}
	}
	f.ev = smtp.Event{Kind: smtp.EventRequest, Time: ev.Time, Session: ev.Session, Phase: phase, Waited: ev.Waited}
	switch phase {
	case smtp.PhaseHelo:
		f.ev.Name = Greeting(ev.Field(0), maxName)
	case smtp.PhaseMailFrom, smtp.PhaseRcptTo:
		f.ev.Addr = Argument(ev.Field(0), maxPath)
	}
	a := f.sink.Ask(&f.ev)
	a.Decision = Allowed(a.Decision, ev.ID)
	return a
}

// Stop reports the commands that have no outcome yet. When smtpd stops, it does not send
// link-disconnect, so the sink must end the sessions.
func (f *FrontEnd) Stop() {
	for _, c := range f.conns {
		f.flush(c)
	}
	clear(f.conns)
}

// handlers maps each report about an open session to the function that handles it.
var handlers = [numIDs]func(*FrontEnd, *conn, *Event){
	LinkIdentify:   (*FrontEnd).identify,
	LinkTLS:        (*FrontEnd).tls,
	LinkAuth:       (*FrontEnd).auth,
	LinkDisconnect: (*FrontEnd).disconnect,
	TxMail:         (*FrontEnd).mail,
	TxRcpt:         (*FrontEnd).rcpt,
	TxData:         (*FrontEnd).data,
	TxCommit:       (*FrontEnd).commit,
	TxRollback:     (*FrontEnd).rollback,
	ProtocolClient: (*FrontEnd).client,
	ProtocolServer: (*FrontEnd).server,
	FilterResponse: (*FrontEnd).filtered,
	Timeout:        (*FrontEnd).timeout,
}

// begin prepares f.ev as the next event.
func (f *FrontEnd) begin(c *conn, kind smtp.Kind, at int64) *smtp.Event {
	f.ev = smtp.Event{Kind: kind, Time: at, Session: c.id}
	return &f.ev
}

// send passes the prepared event to the sink.
func (f *FrontEnd) send() { f.sink.Event(&f.ev) }

func (f *FrontEnd) connect(ev *Event) {
	c := &conn{id: ev.Session}
	if f.conns[c.id] == nil && len(f.conns) >= maxConns {
		f.begin(c, smtp.EventConnect, ev.Time)
		f.send() // the sink must see all sessions, because it counts those beyond the limit
		return
	}
	f.conns[c.id] = c
	e := f.begin(c, smtp.EventConnect, ev.Time)
	src := ev.Field(2)
	e.Local = hasPrefixFold(src, "UNIX:")
	if rdns := ev.Field(0); string(rdns) != "<unknown>" {
		e.RDNS = clip(rdns, maxName)
	}
	e.FCrDNS = smtp.ParseFCrDNS(ev.Field(1))
	e.RDNSCut = smtp.MayBeCut(e.RDNS, e.FCrDNS)
	if !e.Local {
		e.Src = parseAddrPort(src)
		e.Dst = parseAddrPort(ev.Field(3))
	}
	f.send()
}

func (f *FrontEnd) disconnect(c *conn, ev *Event) {
	f.flush(c)
	f.begin(c, smtp.EventDisconnect, ev.Time).Ending = c.ending()
	f.send()
	delete(f.conns, c.id)
}

func (f *FrontEnd) identify(c *conn, ev *Event) {
	c.cmd.open = false
	e := f.begin(c, smtp.EventHelo, ev.Time)
	e.Verb, e.Word, e.Name = lookupVerb(ev.Field(0)), ev.Field(0), Greeting(ev.Field(1), maxName)
	e.Result, e.Rewritten = smtp.ResultOK, c.cmd.rewritten
	f.send()
}

func (f *FrontEnd) tls(c *conn, ev *Event) {
	f.begin(c, smtp.EventTLS, ev.Time).Text = clip(ev.Field(0), maxExample)
	f.send()
}

func (f *FrontEnd) auth(c *conn, ev *Event) {
	c.cmd.open = false
	e := f.begin(c, smtp.EventAuth, ev.Time)
	e.Result, e.Name = smtp.ParseResult(ev.Field(0)), clip(ev.Field(1), maxName)
	f.send()
}

// outcome prepares an event with the outcome of the current command. outcome returns nil if the
// command already has an outcome. A second outcome is possible, because smtpd reports an error in
// the input also as an outcome of the previous command.
func (f *FrontEnd) outcome(c *conn, kind smtp.Kind, ev *Event) *smtp.Event {
	if !c.cmd.open {
		return nil
	}
	c.cmd.open = false
	e := f.begin(c, kind, ev.Time)
	e.Verb = c.cmd.verb
	if e.Result = smtp.ParseResult(ev.Field(1)); e.Result != smtp.ResultOK {
		e.Code, e.Reply, e.Cause = c.cmd.code, c.cmd.reply, c.cmd.cause()
	}
	return e
}

func (f *FrontEnd) mail(c *conn, ev *Event) {
	if e := f.outcome(c, smtp.EventMail, ev); e != nil {
		if id, ok := parseHex(ev.Field(0), 8); ok {
			e.MsgID = uint32(id)
		}
		e.Addr = Argument(ev.Field(2), maxPath)
		f.send()
	}
}

func (f *FrontEnd) rcpt(c *conn, ev *Event) {
	if e := f.outcome(c, smtp.EventRcpt, ev); e != nil {
		e.Addr = Argument(ev.Field(2), maxPath)
		f.send()
	}
}

func (f *FrontEnd) data(c *conn, ev *Event) {
	if f.outcome(c, smtp.EventData, ev) != nil {
		f.send()
	}
}

func (f *FrontEnd) commit(c *conn, ev *Event) {
	c.cmd.open = false
	size, _ := parseDigits(ev.Field(1), 18)
	f.begin(c, smtp.EventCommit, ev.Time).Size = uint64(size)
	f.send()
}

func (f *FrontEnd) rollback(c *conn, ev *Event) {
	f.flush(c)
	f.begin(c, smtp.EventRollback, ev.Time)
	f.send()
}

func (f *FrontEnd) timeout(c *conn, ev *Event) {
	c.timedOut = true
	f.begin(c, smtp.EventTimeout, ev.Time)
	f.send()
}

// client handles a line from the client. No other code sees the original line, which may contain
// secrets.
func (f *FrontEnd) client(c *conn, ev *Event) {
	f.flush(c)
	c.cmd.reset()
	c.cmd.line, c.cmd.verb, c.cmd.secret = redact(c.cmd.line, ev.Field(0), lineState{c.sawAuth, c.inExchange, c.noData})
	c.sawAuth = c.sawAuth || c.cmd.secret
	c.cmd.open, c.cmd.waiting, c.cmd.at = true, true, ev.Time
	c.hungUp = false
	e := f.begin(c, smtp.EventLine, ev.Time)
	e.Verb, e.Text = c.cmd.verb, c.cmd.line
	f.send()
}

// server handles one line of a reply from smtpd (RFC 5321 section 4.2). The line consists of three
// digits, a hyphen or a space, and text. A hyphen means that further lines follow.
func (f *FrontEnd) server(c *conn, ev *Event) {
	code, text, last := parseReply(ev.Field(0))
	cmd := &c.cmd
	if !c.greeted {
		c.greeted = true
		e := f.begin(c, smtp.EventGreeting, ev.Time)
		if e.Code = code; code == 220 {
			name, _, _ := bytes.Cut(text, []byte{' '})
			e.Name = clip(name, maxName)
		}
		f.send()
		if code == 220 || cmd.filtered { // if a filter determined the outcome, EventFilter was sent instead
			return
		}
	}
	if code == 421 {
		c.hungUp = true
	}
	if !cmd.waiting {
		if code >= 400 {
			// smtpd itself has rejected the input and closes the connection. For example, the
			// client did not wait for the reply to its previous command.
			c.hungUp = true
			e := f.begin(c, smtp.EventInput, ev.Time)
			e.Code, e.Reply, e.Cause = code, clip(text, maxExample), InputCauseOf(text)
			f.send()
		}
		return
	}
	if !last {
		return
	}
	cmd.waiting, cmd.code = false, code
	c.inExchange = code == 334
	if code >= 400 {
		cmd.reply = redactReply(cmd.reply[:0], text, cmd)
		cmd.unknown = !cmd.filtered && bytes.HasPrefix(ev.Field(0), []byte("500 5.5.1 "))
		c.noData = c.noData || cmd.verb == smtp.VerbData || hasPrefixFold(cmd.line, "BDAT")
	}
	e := f.begin(c, smtp.EventReply, ev.Time)
	e.Verb, e.Code, e.Cause = cmd.verb, code, cmd.cause()
	f.send()
	if code < 400 {
		f.succeeded(c, ev.Time)
	}
}

// succeeded handles a reply with a code below 400.
func (f *FrontEnd) succeeded(c *conn, at int64) {
	switch c.cmd.verb {
	case smtp.VerbHelo, smtp.VerbEhlo, smtp.VerbMail, smtp.VerbRset:
		c.noData = false
	}
	switch c.cmd.verb {
	case smtp.VerbMail, smtp.VerbRcpt, smtp.VerbData, smtp.VerbDot:
		// The outcome is in a separate report.
	case smtp.VerbQuit:
		c.quit, c.cmd.open = true, false
		f.begin(c, smtp.EventQuit, at)
		f.send()
	default:
		c.cmd.open = false
	}
}

// filtered handles a decision of any filter in the chain, including this filter.
func (f *FrontEnd) filtered(c *conn, ev *Event) {
	phase, decision, param := ev.Field(0), ev.Field(1), ev.Field(2)
	if string(decision) == "proceed" {
		return
	}
	c.hungUp = string(decision) == "disconnect"
	c.cmd.filtered = c.hungUp || string(decision) == "reject"
	c.cmd.rewritten = c.cmd.rewritten || !c.cmd.filtered
	e := f.begin(c, smtp.EventFilter, ev.Time)
	e.Name, e.Word, e.Text = phaseWord(phase), clip(decision, maxExample), clip(param, maxExample)
	if string(phase) == "auth" || c.cmd.secret {
		e.Text = nil // a filter may have quoted the password in its reply to a login
	}
	if c.cmd.filtered {
		e.Cause = smtp.CauseFilter
	}
	f.send()
}

// phaseWord converts a phase's name in filter-response lines to its name in requests.
func phaseWord(b []byte) []byte {
	switch string(b) {
	case "connected":
		return []byte("connect")
	case "ehlo":
		return []byte("helo")
	case "tls":
		return []byte("starttls")
	}
	return clip(b, maxExample)
}

// flush reports the latest command if it failed and smtpd has not reported its outcome. smtpd does
// not report the outcome of unknown commands, commands out of sequence, and rejected greetings.
func (f *FrontEnd) flush(c *conn) {
	cmd := &c.cmd
	if !cmd.open || cmd.code < 400 {
		cmd.open = false
		return
	}
	cmd.open = false
	e := f.begin(c, smtp.EventCommand, cmd.at)
	e.Verb, e.Text = cmd.verb, cmd.line
	e.Code, e.Reply, e.Cause = cmd.code, cmd.reply, cmd.cause()
	switch cmd.verb {
	case smtp.VerbHelo, smtp.VerbEhlo:
		e.Kind, e.Result = smtp.EventHelo, failure(cmd.code)
		e.Word, e.Name = cutWord(cmd.line)
	case smtp.VerbExchange:
		e.Text = []byte("AUTH " + smtp.Masked) // show only the command AUTH, to which the line belongs
	}
	f.send()
}

// messageText replaces the lines that follow a rejected DATA. Such lines may be message text, which
// must not be recorded.
const messageText = "(message text)"

// failure returns the result of a command whose reply has the code 400 or above.
func failure(code uint32) smtp.Result {
	if code < 500 {
		return smtp.ResultTempfail
	}
	return smtp.ResultPermfail
}
