package main

// Sessions that never were, told of as smtpd tells of real ones.

import (
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"

	"scanwatch/filter"
)

// A step is something that an invented client does.
type step struct{ kind, text string }

// invention is a session that smtpd would have with a client, as far as it
// depends on the filter: what smtpd tells of it next depends on the answers.
type invention struct {
	src          netip.AddrPort
	dst          string
	rdns, fcrdns string
	steps        []step
	asked        []filter.ID             // the phases that are registered
	answer       func() (string, string) // the last one: decision and text

	yield     func(string) bool
	at        int
	greeted   bool
	tx        int // transactions so far
	open      bool
	accepted  int    // recipients of the open transaction
	gone      bool   // the client was disconnected
	temporary bool   // the last refusal was
	missed    []step // what did not come about: smtpd refused it, or the client was gone
}

// newInvention checks what the user says of a session.
func newInvention(src, dst, rdns, fcrdns string, steps []step) (*invention, error) {
	v := &invention{dst: dst, rdns: rdns, fcrdns: fcrdns, steps: steps}
	var err error
	if v.src, err = netip.ParseAddrPort(src); err != nil {
		a, err := netip.ParseAddr(src)
		if err != nil {
			return nil, fmt.Errorf("--src %q is no address", src)
		}
		v.src = netip.AddrPortFrom(a, 40000)
	}
	host, _, err := net.SplitHostPort(dst)
	if _, bad := netip.ParseAddr(host); err != nil || bad != nil {
		return nil, fmt.Errorf("--dst %q is not ADDRESS:PORT", dst)
	}
	switch {
	case fcrdns == "" && rdns != "":
		v.fcrdns = "pass"
	case fcrdns == "":
		v.fcrdns = "fail"
	case !slices.Contains([]string{"pass", "fail", "error"}, fcrdns):
		return nil, fmt.Errorf("--fcrdns %q is none of pass, fail and error", fcrdns)
	}
	if rdns == "" {
		v.rdns = "<unknown>"
	}
	if strings.Contains(rdns, "|") {
		return nil, fmt.Errorf("--rdns %q is no name", rdns) // the field would end there
	}
	greeted, sender := false, false
	for _, s := range steps {
		switch s.kind {
		case "helo":
			greeted = true
		case "mail-from":
			if sender = true; !greeted {
				return nil, fmt.Errorf("--mail-from needs --helo before it")
			}
		case "rcpt", "refuse":
			if !sender {
				return nil, fmt.Errorf("--%s needs --mail-from before it", s.kind)
			}
		}
	}
	return v, nil
}

// lines yields what smtpd says of the session. It ends where smtpd ends it, and
// with a message if the last transaction has a recipient.
func (v *invention) lines() iter.Seq[string] {
	return func(yield func(string) bool) {
		v.yield = yield
		yield("config|ready\n")
		v.connect()
		for len(v.steps) > 0 && !v.gone {
			s := v.steps[0]
			if s.kind == "mail-from" && v.open {
				v.finish()
				if v.gone {
					break
				}
				if v.open { // nothing came of it
					v.client("RSET")
					v.server("250 2.0.0 Reset state")
					v.rollback()
				}
			}
			v.steps = v.steps[1:]
			v.do(s)
		}
		if v.missed = append(v.missed, v.steps...); !v.gone {
			v.finish()
		}
		if !v.gone {
			v.client("QUIT")
			v.server("221 2.0.0 Bye")
		}
		if v.open {
			v.rollback()
		}
		v.report("link-disconnect")
	}
}

// possible tells whether smtpd takes a command now.
func (v *invention) possible(kind string) bool {
	switch kind {
	case "mail-from":
		return v.greeted
	case "rcpt", "refuse":
		return v.open
	}
	return true
}

func (v *invention) connect() {
	v.report("link-connect", v.rdns, v.fcrdns, v.src.String(), v.dst)
	if v.ask(filter.PhaseConnect, "connected", v.rdns+"|"+v.src.Addr().String()) {
		v.server("220 mx.example.org ESMTP OpenSMTPD")
	}
}

func (v *invention) do(s step) {
	v.client(command(s))
	if !v.possible(s.kind) {
		v.missed = append(v.missed, s)
		v.server("503 5.5.1 Invalid command: Command not allowed at this point.")
		return
	}
	switch s.kind {
	case "helo":
		if v.ask(filter.PhaseEhlo, "ehlo", s.text) {
			v.greeted = true
			v.report("link-identify", "EHLO", s.text)
			v.server("250 mx.example.org Hello")
		}
	case "line":
		v.server("500 5.5.1 Invalid command: Command unrecognized")
	case "auth":
		v.report("link-auth", "pass", s.text)
		v.server("235 2.0.0 Authentication succeeded")
	case "guess":
		v.report("link-auth", "fail", s.text)
		v.server("535 Authentication failed")
	case "mail-from":
		if v.ask(filter.PhaseMailFrom, "mail-from", s.text) {
			v.tx++
			v.open, v.accepted = true, 0
			v.server("250 2.0.0 Ok")
			v.report("tx-mail", v.msgid(), "ok", s.text)
		}
	case "rcpt", "refuse":
		switch proceed := v.ask(filter.PhaseRcptTo, "rcpt-to", s.text); {
		case !proceed:
			v.report("tx-rcpt", v.msgid(), v.refusal(), s.text)
		case s.kind == "refuse":
			v.server("550 Invalid recipient: <" + s.text + ">")
			v.report("tx-rcpt", v.msgid(), "permfail", s.text)
		default:
			v.accepted++
			v.server("250 2.1.5 Destination address valid: Recipient ok")
			v.report("tx-rcpt", v.msgid(), "ok", s.text)
		}
	}
}

// command is what the client says for a step.
func command(s step) string {
	switch s.kind {
	case "helo":
		return "EHLO " + s.text
	case "auth", "guess":
		return "AUTH PLAIN"
	case "mail-from":
		return "MAIL FROM:<" + s.text + ">"
	case "rcpt", "refuse":
		return "RCPT TO:<" + s.text + ">"
	}
	return s.text
}

// finish sends the message, if the transaction has a recipient.
func (v *invention) finish() {
	if !v.open || v.accepted == 0 {
		return
	}
	v.client("DATA")
	if !v.ask(filter.PhaseData, "data", "") {
		v.report("tx-data", v.msgid(), v.refusal())
		return // and the transaction is still open
	}
	v.server(`354 Enter mail, end with "." on a line by itself`)
	v.report("tx-data", v.msgid(), "ok")
	v.client(".")
	if !v.ask(filter.PhaseCommit, "commit", "") {
		v.report("tx-data", v.msgid(), v.refusal())
		v.rollback()
		return
	}
	v.open = false
	v.server("250 2.0.0 Message accepted for delivery")
	v.report("tx-commit", v.msgid(), "100")
}

func (v *invention) rollback() {
	v.open = false
	v.report("tx-rollback", v.msgid())
}

func (v *invention) refusal() string {
	if v.temporary {
		return "tempfail"
	}
	return "permfail"
}

func (v *invention) msgid() string { return fmt.Sprintf("%08x", v.tx) }

func (v *invention) client(line string) { v.report("protocol-client", line) }
func (v *invention) server(line string) { v.report("protocol-server", line) }

func (v *invention) report(event string, fields ...string) {
	v.line("report", strings.Join(append([]string{event, invented}, fields...), "|"))
}

// ask puts a question, if that phase is registered, and tells whether the
// client may go on. Otherwise it has got the filter's answer.
func (v *invention) ask(phase filter.ID, name, arg string) bool {
	decision, text := filter.Proceed.String(), ""
	if slices.Contains(v.asked, phase) {
		v.line("filter", phase.String()+"|"+invented+"|"+invented+"|"+arg)
		decision, text = v.answer()
	}
	if decision != filter.Reject.String() && decision != filter.Disconnect.String() {
		v.report("filter-response", name, decision)
		return true
	}
	v.report("filter-response", name, decision, text)
	v.server(text)
	v.temporary = strings.HasPrefix(text, "4")
	v.gone = ends(decision, text)
	return false
}

// ends tells whether smtpd closes the connection after an answer: also after a
// reject whose code says so.
func ends(decision, text string) bool {
	return decision == filter.Disconnect.String() || strings.HasPrefix(text, "421")
}

// invented is the session, and the token of all its requests.
const invented = "0000000000000001"

// line yields a line. Each has a time of its own.
func (v *invention) line(kind, rest string) {
	v.at += 100
	v.yield(fmt.Sprintf("%s|0.7|1000000000.%06d|smtp-in|%s\n", kind, v.at, strings.Map(func(r rune) rune {
		if r == '\n' || r == 0 {
			return '?'
		}
		return r
	}, rest)))
}
