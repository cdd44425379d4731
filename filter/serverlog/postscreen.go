package serverlog

import (
	"bytes"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// screenWords maps the first word of a postscreen log line to the function that parses the line.
// The function receives the text before and after [ADDRESS]:PORT.
var screenWords = map[string]func(p *postfix, l *maillog.Line, s *session, head, tail []byte){
	"CONNECT":     nil,
	"PREGREET":    (*postfix).pregreet,
	"HANGUP":      nil, // a line with DISCONNECT follows
	"DISCONNECT":  (*postfix).screenEnd,
	"PASS":        (*postfix).screenPass,
	"NOQUEUE":     (*postfix).screenReject,
	"NON-SMTP":    (*postfix).screenForeign,
	"BARE":        nil,
	"COMMAND":     (*postfix).screenCommand,
	"DNSBL":       nil,
	"ALLOWLISTED": (*postfix).screenPass,
	"WHITELISTED": (*postfix).screenPass,
	"DENYLISTED":  nil,
	"BLACKLISTED": nil,
	"DATA":        nil,
	"BDAT":        nil,
}

// postscreen handles a line from postscreen. A single process of postscreen serves all clients, so
// a session is identified by the client's address and port.
func (p *postfix) postscreen(l *maillog.Line) verdict {
	word, rest, _ := bytes.Cut(l.Text, []byte(" "))
	word = bytes.TrimSuffix(word, []byte(":"))
	read, ok := screenWords[string(word)]
	if !ok {
		return used // warnings and statistics of the cache
	}
	i := bytes.IndexByte(rest, '[')
	if i < 0 {
		return unknown
	}
	c, after, ok := cutClient(append([]byte("x"), rest[i:]...))
	if !ok || !c.addr.IsValid() {
		return unknown
	}
	p.key = append(append(p.key[:0], "postscreen "...), l.Host...)
	p.key = append(c.addr.AppendTo(append(p.key, ' ')), ' ')
	s := p.get(p.key, l.At)
	if s == nil {
		s = p.open(p.key, l.At, l.Host, c.addr)
		s.partial = string(word) != "CONNECT"
		if len(p.screened) >= maxOpen {
			clear(p.screened)
		}
		p.screened[c.addr.Addr()] = screened{s, s.serial}
	}
	if read != nil {
		read(p, l, s, rest[:i], after)
	}
	return used
}

// pregreet handles "PREGREET 14 after 0.1 from [ADDRESS]:PORT: TEXT". The client has sent a line
// before the server's greeting.
func (p *postfix) pregreet(l *maillog.Line, s *session, _, tail []byte) {
	text := bytes.TrimPrefix(tail, []byte(": "))
	reply := append([]byte("improper command pipelining before the greeting: "), smtpd.RedactInput(text, []byte("CONNECT"))...)
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: l.At}, nil, clip(reply, maxExample))
}

// screenEnd ends a session. The ending is partial, because postscreen may have disconnected the
// client itself and does not log all commands.
func (p *postfix) screenEnd(l *maillog.Line, s *session, _, _ []byte) {
	p.end(s, l.At, smtp.EndingPartial)
}

// screenPass ends the session in postscreen. smtpd logs the rest of the session.
func (p *postfix) screenPass(_ *maillog.Line, s *session, _, _ []byte) {
	// If smtpd does not log ports, its next session of the address is this one, and not another one
	// that is still in postscreen.
	p.screened[s.src.Addr()] = screened{}
	if len(s.steps) == 0 {
		p.forget(s)
		return
	}
	p.end(s, s.last, smtp.EndingPartial)
}

// screenForeign handles "NON-SMTP COMMAND from [ADDRESS]:PORT after CONNECT: GET / HTTP/1.1".
func (p *postfix) screenForeign(l *maillog.Line, s *session, _, tail []byte) {
	if _, text, ok := bytes.Cut(tail, []byte(": ")); ok {
		s.command(l.At, smtp.VerbUnknown, foreignLine(text), 500, nil, smtp.CauseUnknown)
	}
}

// screenCommand handles "COMMAND PIPELINING from [ADDRESS]:PORT after EHLO: TEXT". Other words than
// PIPELINING mean that the client exceeded a limit on time, number or length, which is not
// evidence.
func (p *postfix) screenCommand(l *maillog.Line, s *session, head, tail []byte) {
	if !bytes.HasPrefix(head, []byte("PIPELINING")) {
		return
	}
	word, text, _ := bytes.Cut(bytes.TrimPrefix(tail, []byte(" after ")), []byte(": "))
	s.did(l.At, smtpd.VerbOf(word))
	reply := append([]byte("improper command pipelining after "), clip(word, 20)...)
	reply = append(append(reply, ": "...), smtpd.RedactInput(text, word)...)
	s.add(step{kind: smtp.EventInput, cause: smtp.CausePipelining, at: l.At}, nil, clip(reply, maxExample))
}

// screenReject handles "NOQUEUE: reject: RCPT from [ADDRESS]:PORT: 550 5.7.1 ...". postscreen does
// not know which recipients exist, so all its rejections are about the client.
func (p *postfix) screenReject(l *maillog.Line, s *session, head, tail []byte) {
	head, ok := bytes.CutPrefix(head, []byte("reject: "))
	if !ok {
		return
	}
	line := append(append(append(append([]byte{}, head...), "x["...), s.src.Addr().String()...), ']')
	r, ok := parseRejection(append(line, tail...))
	if !ok {
		return
	}
	s.greet(l.At, r.helo, smtp.VerbEhlo)
	if phase, known := phases[string(r.command)]; known {
		s.policy(l.At, phase, codeAnd(r.code, r.reply))
	}
}
