package session

import (
	"bytes"

	"scanwatch/filter"
	"scanwatch/rules"
	"scanwatch/store"
)

// fold brings s up to date with one event. The order of smtpd's lines for one
// command is: protocol-client, filter-response, link-identify or link-auth,
// protocol-server, then tx-mail, tx-rcpt, tx-data or tx-commit.
func (t *Table) fold(s *Session, ev *filter.Event) {
	switch ev.ID {
	case filter.ProtocolClient:
		t.client(s, ev.Field(0), ev.Time)
	case filter.ProtocolServer:
		t.server(s, ev.Field(0), ev.Time)
	case filter.FilterResponse:
		t.filtered(s, ev)
	case filter.LinkIdentify:
		t.greet(s, ev.Field(1), ev.Time)
		s.cmd.open = false
		t.step(s, ev.Time, &store.Step{Kind: store.KindHelo, Text: s.Helo, Arg: ev.Field(0), Result: store.ResultOK})
		t.judgeHelo(s, ev.Time)
	case filter.LinkTLS:
		s.TLS = true
		t.step(s, ev.Time, &store.Step{Kind: store.KindTLS, Text: cut(ev.Field(0), maxLine)})
	case filter.LinkAuth:
		t.auth(s, ev)
	case filter.TxMail:
		t.mail(s, ev)
	case filter.TxRcpt:
		t.rcpt(s, ev)
	case filter.TxData:
		t.data(s, ev)
	case filter.TxCommit:
		s.cmd.open = false
		s.Counts.Mails++
		size, _ := parseUint(ev.Field(1))
		t.step(s, ev.Time, &store.Step{Kind: store.KindCommit, Size: size})
		s.tx.reset()
	case filter.TxRollback:
		t.flushCommand(s)
		t.step(s, ev.Time, &store.Step{Kind: store.KindRollback})
		s.tx.reset()
	case filter.Timeout:
		s.timedOut = true
		t.step(s, ev.Time, &store.Step{Kind: store.KindTimeout})
	}
}

// greet takes a greeting. A client that greets anew, for instance after
// STARTTLS, stays who it was.
func (t *Table) greet(s *Session, name []byte, at int64) {
	// With lean detail nobody tells that a filter has rewritten the name.
	if len(s.Helo) > 0 && !bytes.EqualFold(s.Helo, name) && !s.cmd.rewritten && !t.lean && !t.exempt(s) {
		t.find(s, at, finding{evidence: rules.HeloChanged, by: "helo", proof: name, match: string(s.Helo), confidence: "medium"})
	}
	if s.judged && !bytes.Equal(s.Helo, name) {
		s.judged = false
	}
	s.Helo = set(s.Helo, name, maxName)
}

// client takes a line that the client sent. From here on only its redacted
// form exists.
func (t *Table) client(s *Session, line []byte, at int64) {
	t.flushCommand(s)
	s.cmd.reset()
	var secret bool
	s.cmd.line, s.cmd.verb, secret = redact(s.cmd.line, line, s.sawAuth, s.inExchange)
	s.sawAuth = s.sawAuth || secret
	s.cmd.open, s.cmd.waiting, s.cmd.at = true, true, at
	s.hungUp = false
	t.paced(s, at)
	if s.pace.replied != 0 {
		s.shape.command(s.cmd.verb, s.pace.last)
	}
	switch s.cmd.verb {
	case verbHelo, verbEhlo:
		s.saidHelo = true
	case verbMail:
		s.triedMail = true
	case verbDot, verbExchange:
		return // no command
	}
	s.Counts.Commands++
}

// server takes one line of smtpd's answer: three digits, a blank or, if more
// lines follow, a hyphen, and text.
func (t *Table) server(s *Session, line []byte, at int64) {
	code, text, last := parseReply(line)
	if !s.greeted {
		s.greeted = true
		if code == 220 {
			name, _, _ := bytes.Cut(text, []byte{' '})
			t.name = set(t.name, name, maxName)
			s.pace.replied = at
			t.step(s, at, &store.Step{Kind: store.KindGreeting})
			return
		}
		s.saidHelo = true
		if s.cmd.filtered {
			return // a filter turned the client away, and has been noted
		}
	}
	if code == 421 {
		s.hungUp = true
	}
	c := &s.cmd
	if !c.waiting {
		if code >= 400 {
			// Nothing was asked: smtpd did not like the input itself, for
			// instance because two commands came at once, and hangs up.
			s.hungUp = true
			s.Counts.Failed++
			text = t.shownReply(cut(text, maxLine), nil, nil)
			t.step(s, at, &store.Step{Kind: store.KindInput, Code: code, Reply: text})
			t.judgeInput(s, text, at)
		}
		return
	}
	if !last {
		return
	}
	c.waiting, c.code = false, code
	if s.pace.replied != 0 { // a record of lean detail has no greeting that time could be taken from
		s.pace.replied = at
	}
	s.inExchange = code == 334
	if code >= 400 {
		c.reply = redactReply(c.reply[:0], text, c.verb, c.filtered)
		s.Counts.Failed++
		s.noData = s.noData || c.verb == verbData || hasPrefixFold(c.line, "BDAT")
		if !c.filtered && hasPrefixFold(line, "500 5.5.1 ") {
			s.Counts.Unknown++
		}
		return
	}
	switch c.verb {
	case verbHelo, verbEhlo, verbMail, verbRset:
		s.noData = false
	}
	switch c.verb {
	case verbMail, verbRcpt, verbData, verbDot:
		// The event that tells the outcome comes next.
	case verbQuit:
		s.quit = true
		c.open = false
		t.step(s, at, &store.Step{Kind: store.KindQuit})
	default:
		c.open = false
	}
}

// filtered takes the decision of a filter in the chain, ours included.
func (t *Table) filtered(s *Session, ev *filter.Event) {
	if decision := ev.Field(1); string(decision) != "proceed" {
		t.decided(s, ev.Time, ev.Field(0), decision, ev.Field(2))
	}
}

// decided takes what a filter decided in a phase, by the name that smtpd has for
// it, and what it gave with that.
func (t *Table) decided(s *Session, at int64, phase, decision, param []byte) {
	s.hungUp = string(decision) == "disconnect"
	s.cmd.filtered = s.hungUp || string(decision) == "reject"
	s.turnedAway = s.turnedAway || s.cmd.filtered
	if string(phase) == "auth" {
		param = nil // what a filter says of AUTH may be the password
	}
	s.cmd.rewritten = s.cmd.rewritten || !s.cmd.filtered
	param = t.shownParam(phase, decision, param)
	t.step(s, at, &store.Step{Kind: store.KindFilter, Text: cut(decision, maxLine), Arg: cut(phase, maxLine), Reply: cut(param, maxLine)})
}

func (t *Table) auth(s *Session, ev *filter.Event) {
	s.cmd.open = false
	r := store.ParseResult(ev.Field(0))
	user := t.shownUser(cut(ev.Field(1), maxName))
	s.user = append(s.user[:0], user...)
	if r == store.ResultPass {
		s.login = set(s.login, ev.Field(1), maxName)
		s.Authed = true
		s.Counts.AuthPass++
	} else {
		s.Counts.AuthFail++
	}
	t.step(s, ev.Time, &store.Step{Kind: store.KindAuth, Text: cut(user, maxUser), Result: r})
	t.judgeAuth(s, user, r, ev.Time)
}

// outcome takes the reply of the command that an event belongs to. It returns
// false if there is none: smtpd books an input error on the command before,
// with that command's address, and it must not count twice. The code is 0 where
// smtpd is not asked to tell it.
func (t *Table) outcome(s *Session, r store.Result) (code uint32, reply []byte, ok bool) {
	c := &s.cmd
	if !c.open && !t.lean {
		return 0, nil, false
	}
	c.open = false
	if r == store.ResultOK {
		return 0, nil, true
	}
	if c.code == 0 { // it was not told
		s.Counts.Failed++
	}
	return c.code, t.firstReply(s), true
}

// firstReply returns the text of smtpd's answer if the session has not yet
// recorded one for this verb with this code.
func (t *Table) firstReply(s *Session) []byte {
	bit := uint64(1) << ((uint32(s.cmd.verb)*37 + s.cmd.code) % 64)
	if s.shown&bit != 0 {
		return nil
	}
	s.shown |= bit
	return s.cmd.reply
}

func (t *Table) mail(s *Session, ev *filter.Event) {
	r := store.ParseResult(ev.Field(1))
	code, reply, ok := t.outcome(s, r)
	if !ok {
		return
	}
	s.triedMail = true
	msgid, _ := parseHex32(ev.Field(0))
	if r == store.ResultOK {
		s.tx.reset()
		s.tx.open, s.tx.msgid = true, msgid
		s.tx.sender = set(s.tx.sender, ev.Field(2), maxPath)
	}
	addr := cut(ev.Field(2), maxPath)
	shown := t.shownSender(addr)
	t.step(s, ev.Time, &store.Step{Kind: store.KindMail, Text: shown, Result: r, Code: code, Reply: t.shownReply(reply, addr, shown), MsgID: msgid})
}

func (t *Table) rcpt(s *Session, ev *filter.Event) {
	r := store.ParseResult(ev.Field(1))
	byFilter := s.cmd.filtered
	code, reply, ok := t.outcome(s, r)
	if !ok {
		return
	}
	addr := cut(ev.Field(2), maxPath)
	shown := t.shownRcpt(addr, !byFilter && unknownRcpt(r, code), ev.Time)
	t.step(s, ev.Time, &store.Step{Kind: store.KindRcpt, Text: shown, Result: r, Code: code, Reply: t.shownReply(reply, addr, shown)})
	switch r {
	case store.ResultOK:
		s.Counts.RcptOK++
		s.tx.passed = s.tx.passed || s.cmd.passed
	case store.ResultTempfail:
		s.Counts.RcptTempfail++
	default:
		s.Counts.RcptPermfail++
	}
	if !byFilter {
		t.judgeRcpt(s, addr, shown, r, code, ev.Time)
	}
}

func (t *Table) data(s *Session, ev *filter.Event) {
	r := store.ParseResult(ev.Field(1))
	code, reply, ok := t.outcome(s, r)
	if !ok {
		return
	}
	t.step(s, ev.Time, &store.Step{Kind: store.KindData, Result: r, Code: code, Reply: t.shownReply(reply, nil, nil)})
}

// flushCommand records the last command if it failed and no event has told
// so: unknown commands, commands out of order, and greetings smtpd refused.
func (t *Table) flushCommand(s *Session) {
	c := &s.cmd
	if !c.open || c.code < 400 {
		c.open = false
		return
	}
	c.open = false
	if s.noData && c.verb == verbUnknown && string(c.line) != stars && language(c.line) == rules.UnknownCommand {
		c.line = append(c.line[:0], messageText...)
	}
	proof := t.shownLine(c.line, c.verb)
	st := store.Step{Kind: store.KindCommand, Text: proof, Code: c.code}
	switch c.verb {
	case verbHelo, verbEhlo:
		word, name := cutWord(c.line)
		st = store.Step{Kind: store.KindHelo, Text: t.shownHelo(name), Arg: word, Result: result(c.code), Code: c.code}
	case verbExchange:
		// Its outcome is the one of the AUTH command.
		st.Text = []byte("AUTH " + stars)
	}
	if (c.verb == verbAuth || c.verb == verbExchange) && !c.filtered {
		s.Counts.AuthRefused++
	}
	if st.Kind == store.KindCommand {
		s.examples++
	}
	if s.examples <= maxExamples || st.Kind != store.KindCommand { // the rest is counted
		st.Reply = t.shownReply(t.firstReply(s), nil, nil)
		t.step(s, c.at, &st)
	}
	t.judgeCommand(s, proof)
}

// messageText stands for what a client sent behind a DATA that was refused, as some do:
// it is no command, and its words are none of our business.
const messageText = "(message text)"

// maxExamples is the number of failed commands of a session that are kept
// with their text; all are counted.
const maxExamples = 20

func result(code uint32) store.Result {
	if code < 500 {
		return store.ResultTempfail
	}
	return store.ResultPermfail
}

func cut(b []byte, most int) []byte { return b[:min(len(b), most)] }

// parseReply divides a reply line. A line that is none has code 0.
func parseReply(line []byte) (code uint32, text []byte, last bool) {
	if len(line) < 3 {
		return 0, line, true
	}
	for _, d := range line[:3] {
		if d < '0' || d > '9' {
			return 0, line, true
		}
		code = code*10 + uint32(d-'0')
	}
	if len(line) == 3 {
		return code, nil, true
	}
	return code, line[4:], line[3] != '-'
}

func parseUint(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' || v > 1<<60/10 {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, len(b) > 0
}

// parseHex32 reads a message id.
func parseHex32(b []byte) (v uint32, ok bool) {
	if len(b) > 8 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, len(b) > 0
}
