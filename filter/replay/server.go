package replay

import (
	"bytes"
	"slices"
	"strings"

	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// A command is the latest line from the client. The outcome of the command has not been reported
// yet.
type command struct {
	at        int64      // microseconds since 1970
	failed    smtp.Event // event that must be reported before the next line, unless its code is 0
	filtered  bool       // a filter rejected the command
	rewritten bool       // a filter changed the command
}

// These are the texts of replies. The texts of replies do not affect the evidence.
var (
	ok             = []byte("2.0.0 Ok")
	unknownCommand = []byte("5.5.1 Invalid command: Command unrecognized")
	notAllowed     = []byte("5.5.1 Invalid command: Command not allowed at this point.")
)

// maxText is the maximum length of a reply in an event, in bytes.
const maxText = 200

// event prepares p.ev as an event of the session.
func (p *Player) event(v *playback, kind smtp.Kind) *smtp.Event {
	p.ev = smtp.Event{Kind: kind, Time: p.now, Session: v.rec.ID}
	return &p.ev
}

// send passes the prepared event to the pipeline.
func (p *Player) send() { p.filter.Event(&p.ev) }

// connect opens a session and asks the policy in the connect phase.
func (p *Player) connect(v *playback) {
	r := &v.rec
	p.now = r.Start.UnixMicro()
	v.newest = p.now
	v.cursor = r.Cursor()
	p.learnName(v)
	e := p.event(v, smtp.EventConnect)
	e.Src, e.Dst, e.Local, e.RDNS, e.RDNSCut, e.FCrDNS = r.Src, r.Dst, r.Local, r.RDNS, smtp.MayBeCut(r.RDNS, r.FCrDNS), r.FCrDNS
	p.send()
	v.advance()
	for !v.next.last && v.next.step.Kind == store.KindListed { // DNS lists answered before the decision in the connect phase
		listed(p, v, &v.next.step)
		v.advance()
	}
	p.ask(v, smtp.PhaseConnect, nil, nil)
	n := &v.next
	if v.gone {
		if !n.last {
			skip(p, v, &n.step)
		}
		return
	}
	if !n.decided(smtp.PhaseConnect) {
		return
	}
	if n.refused() && !n.ours {
		code, _ := splitReply(n.filter.Reply) // the reply replaces the server's greeting, for which there is no step
		p.event(v, smtp.EventGreeting).Code = code
		p.send()
	}
	n.filtered, n.ours = false, false
}

// learnName stores the server's name if the client has greeted with it.
func (p *Player) learnName(v *playback) {
	c := v.cursor
	s := &p.step
	for c.Next(s) {
		if s.Kind == store.KindFinding && string(s.Text) == "helo-own-name" {
			p.name = slices.Clone(s.Arg)
			return
		}
	}
}

func (p *Player) disconnect(v *playback, how smtp.Ending) {
	p.flush(v)
	p.event(v, smtp.EventDisconnect).Ending = how
	p.send()
}

// rolledBack reports that a transaction has ended without a message.
func (p *Player) rolledBack(v *playback) {
	p.flush(v)
	p.event(v, smtp.EventRollback)
	p.send()
}

// line reports a line from the client.
func (p *Player) line(v *playback, verb smtp.Verb, text []byte) {
	p.flush(v)
	v.cmd = command{at: p.now}
	v.sawAuth = v.sawAuth || verb == smtp.VerbAuth || string(text) == smtp.Masked
	e := p.event(v, smtp.EventLine)
	e.Verb, e.Text = verb, text
	p.send()
	if verb != smtp.VerbDot {
		v.done.Commands++
	}
}

// flush reports the latest command if it failed and no other event has reported its outcome.
func (p *Player) flush(v *playback) {
	if v.cmd.failed.Code != 0 {
		p.ev = v.cmd.failed
		v.cmd.failed.Code = 0
		p.send()
	}
}

// reply reports the reply to a command. An unknown code is 0.
func (p *Player) reply(v *playback, verb smtp.Verb, code uint32, text []byte) {
	if code == 0 {
		return
	}
	e := p.event(v, smtp.EventReply)
	e.Verb, e.Code, e.Cause = verb, code, v.cause(verb, code, text)
	if code >= 400 {
		v.done.Failed++
	}
	p.send()
}

// cause returns why a command failed.
func (v *playback) cause(verb smtp.Verb, code uint32, text []byte) smtp.Cause {
	if v.cmd.filtered {
		return smtp.CauseFilter
	}
	return smtpd.CauseOf(verb, code, text)
}

// fail reports the reply to a failed command. The event with the outcome of the command is stored
// until the next line.
func (p *Player) fail(v *playback, verb smtp.Verb, line []byte, code uint32, text []byte) {
	p.reply(v, verb, code, text)
	v.cmd.failed = smtp.Event{Kind: smtp.EventCommand, Time: v.cmd.at, Session: v.rec.ID, Verb: verb, Text: line, Code: code, Reply: text, Cause: v.cause(verb, code, text)}
}

// outcome reports the reply to a command and prepares an event with the command's result.
func (p *Player) outcome(v *playback, kind smtp.Kind, verb smtp.Verb, result smtp.Result, code uint32, text []byte) *smtp.Event {
	p.reply(v, verb, code, text)
	e := p.event(v, kind)
	e.Verb, e.Result = verb, result
	if result != smtp.ResultOK {
		e.Code, e.Reply, e.Cause = code, text, v.cause(verb, code, text)
	}
	return e
}

// result returns the result of a command that failed with the given reply code.
func result(code uint32) smtp.Result {
	if code >= 400 && code < 500 {
		return smtp.ResultTempfail
	}
	return smtp.ResultPermfail
}

// decision reports the decision of a filter.
func (p *Player) decision(v *playback, d smtp.Decision, phase, word string, text []byte) {
	v.cmd.filtered = d >= smtp.Reject
	v.cmd.rewritten = v.cmd.rewritten || !v.cmd.filtered
	e := p.event(v, smtp.EventFilter)
	e.Name, e.Word, e.Text = []byte(phase), []byte(word), text[:min(len(text), maxText)]
	if v.cmd.filtered {
		e.Cause = smtp.CauseFilter
	}
	p.send()
}

// others reports the recorded decision of another filter.
func (p *Player) others(v *playback) {
	if n := &v.next; n.filtered && !n.ours {
		p.decision(v, n.filter.Decision, n.filter.PhaseName(), n.filter.DecisionName(), n.filter.Reply)
	}
}

// ask asks the policy if it has rules for the phase. ask reports whether the client may continue.
// If the client may not continue, v.gone reports whether the client was disconnected.
func (p *Player) ask(v *playback, phase smtp.Phase, name, addr []byte) bool {
	n := &v.next
	var a smtp.Answer
	// Do not ask the policy if another filter may have rejected the command before this filter was
	// asked. This filter was certainly asked if one of its rules made a recorded decision.
	unasked := n.refused() && !n.ours && !n.ruled && n.decided(phase) && !p.o.AskRefused
	if p.asked.Has(phase) && !unasked {
		e := p.event(v, smtp.EventRequest)
		e.Phase, e.Name, e.Addr = phase, name, addr
		p.cur = v
		a = p.filter.Ask(e)
		p.cur = nil
		if p.o.Answered != nil {
			p.o.Answered(v.rec.ID, phase, a)
		}
	}
	switch {
	case a.Decision >= smtp.Reject:
		p.refuse(v, phase, a)
		return false
	case a.Decision == smtp.Junk:
		p.decision(v, a.Decision, phase.String(), a.Decision.String(), nil)
		if phase == smtp.PhaseMailFrom || phase == smtp.PhaseRcptTo || phase == smtp.PhaseData {
			v.tx.junk = true
		} else {
			v.junk = true
		}
	}
	if n.decided(phase) {
		v.out.Resumed = v.out.Resumed || n.resumed()
		p.others(v)
	}
	return true
}

// refuse carries out a rejection.
func (p *Player) refuse(v *playback, phase smtp.Phase, a smtp.Answer) {
	// A server closes the connection after the code 421 (RFC 5321 section 3.8).
	v.gone = a.Decision == smtp.Disconnect || strings.HasPrefix(a.Text, "421")
	if v.gone {
		a.Decision = smtp.Disconnect
	}
	p.decision(v, a.Decision, phase.String(), a.Decision.String(), []byte(a.Text))
	why := Refusal{Rule: v.rule, Phase: phase.String(), Decision: a.Decision, Ban: v.banned}
	v.tx.why = why
	if v.out.Refusal.Rule == "" {
		v.out.Refusal = why
	}
	p.refused(v, phase, a.Text)
}

// refused reports the reply to a rejected command and the outcome of the command.
func (p *Player) refused(v *playback, phase smtp.Phase, answer string) {
	code, text := splitReply([]byte(answer))
	s := &v.next.step
	switch {
	case phase == smtp.PhaseConnect:
		p.event(v, smtp.EventGreeting).Code = code
		p.send()
		v.done.Failed++
	case s.Kind == store.KindCommand:
		p.fail(v, smtpd.VerbOf(s.Text), s.Text, code, text)
	case phase == smtp.PhaseHelo:
		failHelo(p, v, s, code, text)
	case phase == smtp.PhaseMailFrom:
		p.fail(v, smtp.VerbMail, slices.Concat([]byte("MAIL FROM:<"), s.Text, []byte{'>'}), code, text)
	case phase == smtp.PhaseRcptTo:
		p.outcome(v, smtp.EventRcpt, smtp.VerbRcpt, result(code), code, text).Addr = s.Text
		p.send()
	case phase == smtp.PhaseData:
		p.outcome(v, smtp.EventData, smtp.VerbData, result(code), code, text)
		p.send()
	case phase == smtp.PhaseCommit:
		p.outcome(v, smtp.EventData, smtp.VerbDot, result(code), code, text)
		p.send()
	}
}

// splitReply splits the line of a reply into its code and text.
func splitReply(line []byte) (code uint32, text []byte) {
	first, text, _ := bytes.Cut(line, []byte{' '})
	for _, c := range first {
		if c < '0' || c > '9' || code > 99 {
			return 0, line
		}
		code = code*10 + uint32(c-'0')
	}
	return code, text
}
