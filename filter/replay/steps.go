package replay

import (
	"bytes"
	"slices"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// players maps each kind of step to the function that replays such a step.
var players = map[store.Kind]func(*Player, *playback, *store.Step){
	store.KindGreeting: greeting,
	store.KindHelo:     helo,
	store.KindTLS:      tls,
	store.KindAuth:     auth,
	store.KindMail:     mail,
	store.KindRcpt:     rcpt,
	store.KindData:     data,
	store.KindCommit:   commit,
	store.KindRollback: rollback,
	store.KindCommand:  failedCommand,
	store.KindInput:    input,
	store.KindTimeout:  timeout,
	store.KindQuit:     quit,
	store.KindListed:   listed,
}

// play replays the next step.
func play(p *Player, v *playback) {
	p.now = v.at
	n := &v.next
	if n.last {
		finish(p, v)
		return
	}
	s := &n.step
	v.newest = max(v.at, v.rec.Start.UnixMicro()+s.At.Microseconds())
	if v.unhelo && s.Kind != store.KindHelo && s.Kind != store.KindQuit && s.Kind != store.KindTimeout && s.Kind != store.KindListed {
		skip(p, v, s) // impossible, because the client has not greeted
		return
	}
	if s.Code == 421 || n.held.Kind == store.KindInput || n.filtered && n.filter.Decision == smtp.Disconnect {
		padBefore(p, v)
	}
	if play := players[s.Kind]; play != nil {
		play(p, v, s)
	}
}

// listed replays the answer of a DNS list. The list is not asked again.
func listed(p *Player, v *playback, s *store.Step) {
	e := p.event(v, smtp.EventListed)
	e.Name, e.Text, e.Word, e.Result = s.Text, s.Arg, s.Match, s.Result
	p.send()
}

func greeting(p *Player, v *playback, _ *store.Step) {
	p.now = v.newest
	e := p.event(v, smtp.EventGreeting)
	e.Code, e.Name = 220, p.name
	p.send()
}

func helo(p *Player, v *playback, s *store.Step) {
	verb := smtpd.VerbOf(heloLine(s))
	p.line(v, verb, nil)
	if s.Result != smtp.ResultOK && !v.next.filtered {
		p.now = v.newest
		failHelo(p, v, s, s.Code, v.text(s))
		return // the server rejects an invalid greeting without asking the filter
	}
	v.unhelo = !p.ask(v, smtp.PhaseHelo, s.Text, nil)
	switch {
	case v.unhelo || v.next.resumed():
	case s.Result != smtp.ResultOK:
		failHelo(p, v, s, s.Code, v.text(s))
	default:
		p.now = v.newest
		e := p.event(v, smtp.EventHelo)
		e.Verb, e.Word, e.Name, e.Result, e.Rewritten = verb, s.Arg, s.Text, smtp.ResultOK, v.cmd.rewritten
		p.send()
		p.reply(v, verb, 250, ok)
	}
}

// heloLine returns the greeting as the line that the client sent.
func heloLine(s *store.Step) []byte {
	if len(s.Text) == 0 {
		return s.Arg
	}
	return slices.Concat(s.Arg, []byte{' '}, s.Text)
}

// failHelo reports the reply to a greeting that was rejected.
func failHelo(p *Player, v *playback, s *store.Step, code uint32, text []byte) {
	line := heloLine(s)
	p.fail(v, smtpd.VerbOf(line), line, code, text)
	e := &v.cmd.failed
	e.Kind, e.Result, e.Word, e.Name = smtp.EventHelo, result(code), s.Arg, s.Text
}

func tls(p *Player, v *playback, s *store.Step) {
	if v.done.Commands > 0 {
		p.line(v, smtp.VerbStartTLS, nil)
		p.others(v)
		p.reply(v, smtp.VerbStartTLS, 220, ok)
	}
	p.now = v.newest
	p.event(v, smtp.EventTLS).Text = s.Text
	p.send()
}

func auth(p *Player, v *playback, s *store.Step) {
	p.line(v, smtp.VerbAuth, nil)
	p.others(v)
	p.now = v.newest
	e := p.event(v, smtp.EventAuth)
	e.Name, e.Result = s.Text, s.Result
	p.send()
	if s.Result == smtp.ResultPass {
		v.done.AuthPass++
		p.reply(v, smtp.VerbAuth, 235, ok)
	} else {
		p.reply(v, smtp.VerbAuth, 535, ok)
	}
}

func mail(p *Player, v *playback, s *store.Step) {
	p.line(v, smtp.VerbMail, nil)
	if s.Result == smtp.ResultOK {
		v.tx = transaction{sender: s.Text, msgid: s.MsgID}
	}
	// The server does not ask the filter about a command that is malformed or out of sequence.
	if s.Code != 503 && s.Code != 501 && !p.ask(v, smtp.PhaseMailFrom, nil, s.Text) {
		return
	}
	p.now = v.newest
	code, text := uint32(250), ok
	if s.Result == smtp.ResultOK {
		v.tx.open = true
	} else {
		code, text = s.Code, v.text(s)
	}
	e := p.outcome(v, smtp.EventMail, smtp.VerbMail, s.Result, code, text)
	e.Addr, e.MsgID = s.Text, v.tx.msgid
	p.send()
}

func rcpt(p *Player, v *playback, s *store.Step) {
	if !v.tx.open && v.tx.why.Rule != "" {
		skip(p, v, s) // the policy rejected the transaction
		return
	}
	if s.Result == smtp.ResultOK {
		v.tx.was++
	}
	p.line(v, smtp.VerbRcpt, nil)
	// The server does not ask the filter about a malformed address. If a rule made a decision and
	// the code is 501, the code comes from the rule's reply.
	if s.Code == 501 && !v.next.ruled {
		p.others(v)
	} else if !p.ask(v, smtp.PhaseRcptTo, nil, s.Text) {
		return
	}
	if v.next.resumed() {
		return
	}
	p.now = v.newest
	code, text := uint32(250), ok
	if s.Result == smtp.ResultOK {
		v.tx.now++
	} else {
		code, text = s.Code, v.text(s)
	}
	p.outcome(v, smtp.EventRcpt, smtp.VerbRcpt, s.Result, code, text).Addr = s.Text
	p.send()
}

func data(p *Player, v *playback, s *store.Step) {
	dot := v.tx.data
	v.tx.data = s.Result == smtp.ResultOK
	if v.tx.why.Rule != "" && (!v.tx.open || v.tx.was > 0 && v.tx.now == 0) {
		return // all recipients were rejected
	}
	verb, phase := smtp.VerbData, smtp.PhaseData
	if dot {
		verb, phase = smtp.VerbDot, smtp.PhaseCommit
	}
	p.line(v, verb, nil)
	if (!dot || v.next.filtered) && !p.ask(v, phase, nil, nil) {
		v.tx.now = 0
		return
	}
	if v.next.resumed() {
		return
	}
	p.now = v.newest
	code, text := uint32(354), ok
	if s.Result != smtp.ResultOK {
		code, text = s.Code, v.text(s)
	}
	p.outcome(v, smtp.EventData, verb, s.Result, code, text)
	p.send()
}

func commit(p *Player, v *playback, s *store.Step) {
	t := &v.tx
	if t.why.Rule != "" && (!t.open || t.now == 0) {
		v.lost(t, false)
		rollback(p, v, s)
		return
	}
	p.line(v, smtp.VerbDot, nil)
	if !p.ask(v, smtp.PhaseCommit, nil, nil) {
		v.lost(t, false)
		rollback(p, v, s)
		return
	}
	p.now = v.newest
	if t.now < t.was {
		v.lost(t, true)
	}
	if (t.junk || v.junk) && !v.wasJunk {
		v.out.Junked++
	}
	p.reply(v, smtp.VerbDot, 250, ok)
	p.event(v, smtp.EventCommit).Size = s.Size
	p.send()
	v.done.Mails++
	*t = transaction{}
}

func rollback(p *Player, v *playback, _ *store.Step) {
	if v.tx.open || v.tx.why.Rule == "" {
		p.rolledBack(v)
	}
	v.tx = transaction{}
}

func failedCommand(p *Player, v *playback, s *store.Step) {
	v.examples++
	verb := smtpd.VerbOf(s.Text)
	p.line(v, verb, s.Text)
	if phase := v.next.filter.Phase; v.next.filtered && phase < smtp.PhaseEnd {
		var addr []byte
		if phase == smtp.PhaseMailFrom {
			addr = path(s.Text)
		}
		if !p.ask(v, phase, nil, addr) || v.next.resumed() {
			return
		}
	} else {
		p.others(v)
	}
	text := v.text(s)
	p.fail(v, verb, s.Text, s.Code, text)
	if v.cmd.failed.Cause == smtp.CauseUnknown {
		v.done.Unknown++
	}
	if v.examples == maxExamples {
		padFailed(p, v)
	}
}

// path returns the address in a line such as MAIL FROM:<address> SIZE=1.
func path(line []byte) []byte {
	i := bytes.IndexByte(line, '<')
	j := bytes.IndexByte(line, '>')
	if i < 0 || j < i {
		return nil
	}
	return line[i+1 : j]
}

func input(p *Player, v *playback, s *store.Step) {
	pad(p, v)
	text := v.text(s)
	e := p.event(v, smtp.EventInput)
	e.Code, e.Reply, e.Cause = s.Code, text, smtpd.InputCauseOf(text)
	p.send()
	v.done.Failed++
}

func timeout(p *Player, v *playback, _ *store.Step) {
	pad(p, v)
	p.event(v, smtp.EventTimeout)
	p.send()
}

func quit(p *Player, v *playback, _ *store.Step) {
	padBefore(p, v)
	p.line(v, smtp.VerbQuit, nil)
	p.others(v)
	p.reply(v, smtp.VerbQuit, 221, ok)
	p.event(v, smtp.EventQuit)
	p.send()
}

const (
	// maxExamples is the maximum number of failed commands that a record contains as steps.
	maxExamples = 20
	// maxPadded is the maximum number of commands without a step that are replayed per session.
	maxPadded = 10_000
)

// padFailed replays unknown commands that the record counts but contains no steps for.
func padFailed(p *Player, v *playback) {
	for i := 0; v.done.Unknown < v.rec.Counts.Unknown && i < maxPadded; i++ {
		line := []byte("X")
		if v.sawAuth {
			line = []byte(smtp.Masked) // the front end also masks such a line
		}
		p.line(v, smtp.VerbUnknown, line)
		v.done.Unknown++
		p.fail(v, smtp.VerbUnknown, line, 500, unknownCommand)
	}
}

// pad replays the commands that the record counts but contains no steps for. pad is called before
// the session ends.
func pad(p *Player, v *playback) {
	if v.padded || v.gone {
		return
	}
	v.padded = true
	c := &v.rec.Counts
	if v.rec.Omitted > 0 {
		padFailed(p, v)
	}
	for i := 0; v.done.Commands < c.Commands && i < maxPadded; i++ {
		line := []byte("NOOP")
		p.line(v, smtp.VerbNoop, line)
		if v.done.Failed < c.Failed && v.examples >= maxExamples {
			p.fail(v, smtp.VerbNoop, line, 503, notAllowed)
		} else {
			p.reply(v, smtp.VerbNoop, 250, ok)
		}
	}
}

// padBefore calls pad before the last command of the session.
func padBefore(p *Player, v *playback) {
	v.done.Commands++
	pad(p, v)
	v.done.Commands--
}

// finish ends a session in the same way as its record.
func finish(p *Player, v *playback) {
	v.over = true
	if v.lostAll > 0 && v.done.Mails == 0 {
		v.loseOmitted() // every message with a step was lost, so messages without a step count as lost too
	}
	ending := v.rec.Ending
	if v.out.Resumed {
		ending = smtp.EndingUnknown // it is unknown how the session would have continued
	}
	switch ending {
	case smtp.EndingUnknown, smtp.EndingStopped, smtp.EndingClosed:
		p.flush(v)
		p.filter.Cut(v.rec.ID, ending, p.now)
	default:
		pad(p, v)
		p.disconnect(v, ending)
	}
}
