package replay

// One session: its record, and smtpd's side of it.

import (
	"bytes"
	"slices"
	"strconv"

	"scanwatch/filter"
	"scanwatch/store"
)

// A visit is a session that is being played.
type visit struct {
	rec  store.Record
	out  Outcome
	cur  store.Cursor
	at   int64 // of what comes next, in microseconds
	over bool  // nothing comes next
	gone bool  // turned away by the policy
	said int64 // time of the newest event

	// What comes next: the step of a command, or of something that smtpd did,
	// and what filters said to it when it was recorded.
	step   store.Step
	held   store.Step // comes after step
	last   bool       // there is no step, only the end
	filter store.Step
	asked  bool   // filter is set
	ours   bool   // it was our own decision
	spoke  bool   // we decided something, or would have
	ruled  string // the phase of a verdict of ours that filter has to follow
	ruling verdict

	junk     bool // the session
	wasJunk  bool // something in the session, when it was recorded
	refused  bool // the greeting, and there was none since
	whole    int  // messages lost for all of their recipients
	tx       tx
	done     store.Counts // commands so far
	commands int          // failed ones that have a step
	padded   bool
	replies  [8]reply
	nreplies int
}

// tx is a transaction of the record, and what is left of it.
type tx struct {
	open   bool // now
	sender []byte
	msgid  uint32
	was    int  // recipients accepted when it was recorded
	now    int  // and now
	data   bool // DATA was accepted when it was recorded
	junk   bool
	why    Refusal // of the latest refusal
}

// reply is an answer whose text is kept in the first step that has it only.
type reply struct {
	code uint32
	verb [4]byte
	text []byte
}

// advance finds out what comes next.
func (v *visit) advance() {
	v.asked, v.ours, v.spoke = false, false, false
	first := int64(0)
	start := v.rec.Start.UnixMicro()
	if v.held.Kind != store.KindNone {
		v.step, v.held = v.held, store.Step{}
		v.at = v.said
		return
	}
	for v.cur.Next(&v.step) {
		s := &v.step
		at := start + s.At.Microseconds()
		if first == 0 && at > v.said {
			first = at
		}
		switch s.Kind {
		case store.KindVerdict:
			v.spoke = true
			if s.Result == store.ResultOK {
				v.ruled = string(s.Arg)
			}
		case store.KindFilter:
			v.filter, v.asked = *s, true
			v.wasJunk = v.wasJunk || string(s.Text) == "junk"
			v.ours = v.ruled != "" && isPhase(s.Arg, v.ruled)
			v.ruled = ""
			v.out.Ended = v.out.Ended || v.ours && v.refusedThen()
		case store.KindFinding, store.KindTag, store.KindBan:
		default:
			v.swap()
			v.at = max(first, v.said)
			return
		}
	}
	v.last = true
	v.at = max(v.rec.End.UnixMicro(), v.said)
}

// swap puts a failed command that comes behind refused input where it belongs: it
// was recorded when the session went on, the input at once.
func (v *visit) swap() {
	if v.step.Kind != store.KindInput {
		return
	}
	c := v.cur
	var s store.Step
	for c.Next(&s) {
		switch s.Kind {
		case store.KindFinding, store.KindVerdict, store.KindTag, store.KindBan:
			continue
		case store.KindCommand, store.KindHelo:
			if s.Code >= 400 {
				v.held, v.step, v.cur = v.step, s, c
			}
		}
		return
	}
}

// report puts an event.
func (p *Player) report(v *visit, id filter.ID, fields ...[]byte) {
	p.ev.Make(id, p.now, v.rec.ID, fields...)
	p.table.Report(&p.ev)
}

func (p *Player) client(v *visit, parts ...[]byte) {
	p.line = p.line[:0]
	for _, b := range parts {
		p.line = append(p.line, b...)
	}
	p.report(v, filter.ProtocolClient, p.line)
	v.done.Commands++
}

// server answers: with a code and a text.
func (p *Player) server(v *visit, code uint32, text []byte) {
	p.line = strconv.AppendUint(p.line[:0], uint64(code), 10)
	p.line = append(append(p.line, ' '), text...)
	p.report(v, filter.ProtocolServer, p.line)
	if code >= 400 {
		v.done.Failed++
	}
}

// The texts of smtpd that do not matter.
var (
	ok         = []byte("2.0.0 Ok")
	unknown    = []byte("5.5.1 Invalid command: Command unrecognized")
	notAllowed = []byte("5.5.1 Invalid command: Command not allowed at this point.")
)

func (p *Player) connect(v *visit) {
	r := &v.rec
	p.now = r.Start.UnixMicro()
	v.said = p.now
	v.cur = r.Cursor()
	p.learnName(v)
	rdns := r.RDNS
	if len(rdns) == 0 {
		rdns = []byte("<unknown>")
	}
	src, addr := []byte("unix:local"), []byte("local")
	switch {
	case r.Local:
	case r.Src.IsValid():
		p.srcText = r.Src.AppendTo(p.srcText[:0])
		src, addr = p.srcText, nil // nobody looks at the address of the request
	default:
		src = []byte("unknown")
	}
	if p.dst != r.Dst || p.dstText == nil {
		p.dst, p.dstText = r.Dst, []byte(r.Dst.String())
	}
	p.report(v, filter.LinkConnect, rdns, []byte(r.FCrDNS.String()), src, p.dstText)
	v.advance()
	p.ask(v, filter.PhaseConnect, rdns, addr)
	if v.gone {
		if !v.last {
			v.follow(&v.step)
		}
		return
	}
	if !v.asked || !isPhase(v.filter.Arg, "connect") {
		return
	}
	if v.refusedThen() && !v.ours {
		// Another filter's reply, which has no step of its own.
		p.report(v, filter.ProtocolServer, v.filter.Reply)
	}
	v.asked, v.ours = false, false
}

// learnName looks for what the server calls itself, in a session that was found
// to call itself so.
func (p *Player) learnName(v *visit) {
	c := v.cur
	var s store.Step
	for c.Next(&s) {
		if s.Kind == store.KindFinding && string(s.Text) == "helo-own-name" {
			p.name = slices.Clone(s.Arg)
			return
		}
	}
}

// ask puts a request, if the policy wants it, and tells whether the client may
// go on. If not, it has got its answer, and may be gone.
func (p *Player) ask(v *visit, phase filter.ID, fields ...[]byte) bool {
	var r filter.Reply
	word := []byte(wordOf(phase))
	// Where another filter refused, nobody knows whether it was asked before us,
	// unless we said something.
	unasked := v.refusedThen() && !v.ours && !v.spoke && isPhase(v.filter.Arg, phaseWord(string(word)))
	if p.asked[phase] && !unasked {
		p.ev.Make(phase, p.now, v.rec.ID, fields...)
		p.cur = v
		r = p.table.Decide(&p.ev)
		p.cur = nil
		r.Decision = r.Decision.In(phase)
	}
	switch {
	case r.Decision >= filter.Reject:
		v.gone = hangsUp(r.Decision, r.Text)
		decision := r.Decision
		if v.gone {
			decision = filter.Disconnect
		}
		known := p.table.Known(v.rec.ID, p.now)
		p.report(v, filter.FilterResponse, word, []byte(decision.String()), []byte(r.Text))
		p.line = append(p.line[:0], r.Text...)
		p.report(v, filter.ProtocolServer, p.line)
		v.done.Failed++
		why := Refusal{Rule: v.ruling.rule, Phase: phaseWord(phase.String()), Decision: decision, Ban: v.ruling.ban, Known: known}
		v.tx.why = why
		if v.out.Refusal.Rule == "" {
			v.out.Refusal = why
		}
		return false
	case r.Decision == filter.Junk:
		p.report(v, filter.FilterResponse, word, []byte(r.Decision.String()))
		if phase == filter.PhaseMailFrom || phase == filter.PhaseRcptTo || phase == filter.PhaseData {
			v.tx.junk = true
		} else {
			v.junk = true // all messages of the session
		}
	}
	if !v.asked || !isPhase(v.filter.Arg, phaseWord(string(word))) {
		return true
	}
	v.out.Spared = v.out.Spared || v.sparedNow()
	p.others(v)
	return true
}

// others repeats what another filter said.
func (p *Player) others(v *visit) {
	if v.asked && !v.ours {
		p.report(v, filter.FilterResponse, v.filter.Arg, v.filter.Text, v.filter.Reply)
	}
}

// refusedThen tells whether a filter refused what comes next when it was
// recorded.
func (v *visit) refusedThen() bool {
	return v.asked && (string(v.filter.Text) == "reject" || string(v.filter.Text) == "disconnect")
}

// sparedNow tells that our own rule refused it, and the policy does not: what
// would have come of it, nobody knows.
func (v *visit) sparedNow() bool { return v.ours && v.refusedThen() }

// wordOf is what filter-response calls a phase.
func wordOf(phase filter.ID) string {
	switch phase {
	case filter.PhaseConnect:
		return "connected"
	case filter.PhaseStartTLS:
		return "tls"
	}
	return phase.String()
}

// do does what comes next.
func (p *Player) do(v *visit) {
	p.now = v.at
	s := &v.step
	if v.last {
		p.finish(v)
		return
	}
	start := v.rec.Start.UnixMicro()
	v.said = max(v.at, start+s.At.Microseconds())
	if v.refused && s.Kind != store.KindHelo && s.Kind != store.KindQuit && s.Kind != store.KindTimeout {
		v.follow(s)
		return // it was refused the greeting: no command counts
	}
	if s.Code == 421 || v.held.Kind == store.KindInput || v.asked && string(v.filter.Text) == "disconnect" {
		p.padBefore(v)
	}
	switch s.Kind {
	case store.KindGreeting:
		p.now = v.said
		p.line = append(append(append(p.line[:0], "220 "...), p.name...), " ESMTP OpenSMTPD"...)
		p.report(v, filter.ProtocolServer, p.line)
	case store.KindHelo:
		p.helo(v, s)
	case store.KindTLS:
		if v.done.Commands > 0 {
			p.client(v, []byte("STARTTLS"))
			p.others(v)
			p.server(v, 220, ok)
		}
		p.now = v.said
		p.report(v, filter.LinkTLS, s.Text)
	case store.KindAuth:
		p.client(v, []byte("AUTH PLAIN ********"))
		p.others(v)
		p.now = v.said
		p.report(v, filter.LinkAuth, []byte(s.Result.String()), s.Text)
		if s.Result == store.ResultPass {
			v.done.AuthPass++
			p.server(v, 235, ok)
		} else {
			p.server(v, 535, ok)
		}
	case store.KindMail:
		p.mail(v, s)
	case store.KindRcpt:
		p.rcpt(v, s)
	case store.KindData:
		p.data(v, s)
	case store.KindCommit:
		p.commit(v, s)
	case store.KindRollback:
		p.rollback(v)
	case store.KindCommand:
		p.command(v, s)
	case store.KindInput:
		p.pad(v)
		p.server(v, s.Code, s.Reply)
	case store.KindTimeout:
		p.pad(v)
		p.report(v, filter.Timeout)
	case store.KindQuit:
		p.padBefore(v)
		p.client(v, []byte("QUIT"))
		p.others(v)
		p.server(v, 221, ok)
	}
}

func (p *Player) helo(v *visit, s *store.Step) {
	p.client(v, s.Arg, []byte{' '}, s.Text)
	if s.Result != store.ResultOK && !v.asked {
		p.now = v.said
		p.server(v, s.Code, v.text(s))
		return // smtpd refuses such a greeting without asking anybody
	}
	phase := filter.PhaseEhlo
	if len(s.Arg) > 0 && (s.Arg[0] == 'H' || s.Arg[0] == 'h') {
		phase = filter.PhaseHelo
	}
	v.refused = !p.ask(v, phase, s.Text)
	switch {
	case v.refused || v.sparedNow():
	case s.Result != store.ResultOK:
		p.server(v, s.Code, v.text(s))
	default:
		p.now = v.said
		p.report(v, filter.LinkIdentify, s.Arg, s.Text)
		p.server(v, 250, ok)
	}
}

func (p *Player) mail(v *visit, s *store.Step) {
	p.client(v, []byte("MAIL FROM:<"), s.Text, []byte{'>'})
	if s.Result == store.ResultOK {
		v.tx = tx{sender: s.Text, msgid: s.MsgID}
	}
	if s.Code != 503 && s.Code != 501 && !p.ask(v, filter.PhaseMailFrom, s.Text) {
		return
	}
	p.now = v.said
	if s.Result == store.ResultOK {
		v.tx.open = true
		p.server(v, 250, ok)
	} else {
		p.server(v, s.Code, v.text(s))
	}
	p.report(v, filter.TxMail, v.msgid(), []byte(s.Result.String()), s.Text)
}

func (p *Player) rcpt(v *visit, s *store.Step) {
	if s.Result == store.ResultOK {
		v.tx.was++
	}
	if !v.tx.open && v.tx.why.Rule != "" {
		return // the transaction was refused
	}
	p.client(v, []byte("RCPT TO:<"), s.Text, []byte{'>'})
	// smtpd refuses what is no address without asking anybody, unless a filter
	// made it so.
	if s.Code == 501 && !v.spoke {
		p.others(v)
	} else if !p.ask(v, filter.PhaseRcptTo, s.Text) {
		p.report(v, filter.TxRcpt, v.msgid(), result(p.line), s.Text)
		return
	}
	if v.sparedNow() {
		return
	}
	p.now = v.said
	if s.Result == store.ResultOK {
		v.tx.now++
		p.server(v, 250, ok)
	} else {
		p.server(v, s.Code, v.text(s))
	}
	p.report(v, filter.TxRcpt, v.msgid(), []byte(s.Result.String()), s.Text)
}

// result is what tx events call the filter's refusal, whose reply stands in line.
func result(line []byte) []byte {
	if len(line) > 0 && line[0] == '4' {
		return []byte("tempfail")
	}
	return []byte("permfail")
}

func (p *Player) data(v *visit, s *store.Step) {
	dot := v.tx.data
	v.tx.data = s.Result == store.ResultOK
	if v.tx.why.Rule != "" && (!v.tx.open || v.tx.was > 0 && v.tx.now == 0) {
		return // nobody left to send it to
	}
	phase := filter.PhaseData
	if dot {
		p.client(v, []byte{'.'})
		v.done.Commands--
		phase = filter.PhaseCommit
	} else {
		p.client(v, []byte("DATA"))
	}
	if (!dot || v.asked) && !p.ask(v, phase) {
		p.report(v, filter.TxData, v.msgid(), result(p.line))
		v.tx.now = 0
		return
	}
	if v.sparedNow() {
		return
	}
	p.now = v.said
	if s.Result == store.ResultOK {
		p.server(v, 354, ok)
	} else {
		p.server(v, s.Code, v.text(s))
	}
	p.report(v, filter.TxData, v.msgid(), []byte(s.Result.String()))
}

func (p *Player) commit(v *visit, s *store.Step) {
	t := &v.tx
	if t.why.Rule != "" && (!t.open || t.now == 0) {
		v.lost(t, false)
		p.rollback(v)
		return
	}
	p.client(v, []byte{'.'})
	v.done.Commands--
	if !p.ask(v, filter.PhaseCommit) {
		v.lost(t, false)
		p.report(v, filter.TxData, v.msgid(), result(p.line))
		p.rollback(v)
		return
	}
	p.now = v.said
	if t.now < t.was {
		v.lost(t, true)
	}
	if (t.junk || v.junk) && !v.wasJunk {
		v.out.Junked++
	}
	p.server(v, 250, ok)
	p.report(v, filter.TxCommit, v.msgid(), strconv.AppendUint(nil, s.Size, 10))
	v.done.Mails++
	*t = tx{}
}

// lost notes that a message that was accepted would not have been, or not for
// some of its recipients.
func (v *visit) lost(t *tx, some bool) {
	m := Message{Sender: t.sender, Rcpts: t.was, Some: some, Refusal: t.why}
	if some {
		m.Rcpts -= t.now
	} else {
		v.whole++
	}
	if m.Rule == "" {
		m.Refusal = v.out.Refusal
	}
	v.out.Lost = append(v.out.Lost, m)
}

func (p *Player) rollback(v *visit) {
	if v.tx.open || v.tx.why.Rule == "" {
		p.report(v, filter.TxRollback, v.msgid())
	}
	v.tx = tx{}
}

// command plays a failed command.
func (p *Player) command(v *visit, s *store.Step) {
	v.commands++
	p.client(v, s.Text)
	if v.asked && isPhase(v.filter.Arg, "mail-from") {
		if !p.ask(v, filter.PhaseMailFrom, path(s.Text)) || v.sparedNow() {
			return
		}
	} else if v.asked {
		if !p.ask(v, phaseOf(v.filter.Arg)) || v.sparedNow() {
			return
		}
	}
	text := v.text(s)
	if s.Code == 500 && bytes.HasPrefix(text, []byte("5.5.1 ")) {
		v.done.Unknown++
	}
	p.server(v, s.Code, text)
	if v.commands == maxExamples {
		p.padFailed(v)
	}
}

// phaseOf is the phase that filter-response means.
func phaseOf(word []byte) filter.ID {
	for id := filter.PhaseConnect; id <= filter.PhaseCommit; id++ {
		if wordOf(id) == string(word) {
			return id
		}
	}
	return filter.PhaseNoop
}

// path is the address in a line such as MAIL FROM:<address> SIZE=1.
func path(line []byte) []byte {
	i := bytes.IndexByte(line, '<')
	j := bytes.IndexByte(line, '>')
	if i < 0 || j < i {
		return nil
	}
	return line[i+1 : j]
}

// text is the text of the reply to s, which the first such step of a session
// has.
func (v *visit) text(s *store.Step) []byte {
	var verb [4]byte
	copy(verb[:], bytes.ToUpper(s.Text[:min(len(s.Text), 4)]))
	if s.Kind != store.KindCommand {
		verb = [4]byte{byte(s.Kind)}
	}
	n := min(v.nreplies, len(v.replies))
	if len(s.Reply) > 0 {
		v.replies[v.nreplies%len(v.replies)] = reply{s.Code, verb, s.Reply}
		v.nreplies++
		return s.Reply
	}
	for _, r := range v.replies[:n] {
		if r.code == s.Code && r.verb == verb {
			return r.text
		}
	}
	if s.Code == 500 {
		return unknown
	}
	return ok
}

// maxExamples is how many failed commands have steps of their own: see
// session.Session.
const maxExamples = 20

// maxPadded is how many commands without steps are played in a session.
const maxPadded = 10_000

// padFailed plays the failed commands that have no step of their own.
func (p *Player) padFailed(v *visit) {
	c := &v.rec.Counts
	for i := 0; v.done.Unknown < c.Unknown && i < maxPadded; i++ {
		p.client(v, []byte("X"))
		v.done.Unknown++
		p.server(v, 500, unknown)
	}
}

// pad plays, before a session ends, the commands that have no step.
func (p *Player) pad(v *visit) {
	if v.padded || v.gone {
		return
	}
	v.padded = true
	c := &v.rec.Counts
	if v.rec.Omitted > 0 {
		p.padFailed(v)
	}
	for i := 0; v.done.Commands < c.Commands && i < maxPadded; i++ {
		p.client(v, []byte("NOOP"))
		if v.done.Failed < c.Failed && v.commands >= maxExamples {
			p.server(v, 503, notAllowed)
		} else {
			p.server(v, 250, ok)
		}
	}
}

// padBefore pads before the last command.
func (p *Player) padBefore(v *visit) {
	v.done.Commands++
	p.pad(v)
	v.done.Commands--
}

// finish ends a session as it ended.
func (p *Player) finish(v *visit) {
	v.over = true
	if v.whole > 0 && v.done.Mails == 0 {
		v.loseOmitted() // nothing that is known got through
	}
	e := v.rec.Ending
	if v.out.Spared {
		e = store.EndingUnknown // nobody knows how it would have gone on
	}
	if e == store.EndingUnknown || e == store.EndingStopped || e == store.EndingClosed {
		p.table.Cut(v.rec.ID, e, p.now)
		return
	}
	p.pad(v)
	p.report(v, filter.LinkDisconnect)
}

// msgid is the id of the transaction, as smtpd writes it.
func (v *visit) msgid() []byte {
	b := strconv.AppendUint(make([]byte, 0, 8), uint64(v.tx.msgid), 16)
	return b
}

// follow keeps account of what is recorded and not played.
func (v *visit) follow(s *store.Step) {
	t := &v.tx
	switch s.Kind {
	case store.KindMail:
		if s.Result == store.ResultOK {
			why := t.why
			*t = tx{sender: s.Text, why: why}
		}
	case store.KindRcpt:
		if s.Result == store.ResultOK {
			t.was++
		}
	case store.KindCommit:
		v.lost(t, false)
		t.was = 0
	}
}

// lose finds out what was lost because the session ended early.
func (v *visit) lose() {
	if v.tx.why.Rule == "" {
		v.tx.why = v.out.Refusal
	}
	for v.cur.Next(&v.step) {
		v.follow(&v.step)
	}
	v.loseOmitted()
}

// loseOmitted loses the messages whose steps were omitted from the record.
func (v *visit) loseOmitted() {
	for range min(max(int(v.rec.Counts.Mails)-int(v.done.Mails)-v.whole, 0), maxPadded) {
		v.out.Lost = append(v.out.Lost, Message{Unknown: true, Refusal: v.out.Refusal})
	}
}
