//go:build linux

package count

import (
	"fmt"
	"net/netip"
)

// A line is a line from smtpd without the fields that all lines share.
type line struct {
	at   int64 // microseconds since 1970
	ask  bool  // a request
	text string
}

// A script consists of the lines of one session.
type script struct {
	id    uint64
	at    int64
	src   netip.Addr // invalid for a local session
	lines []line
	asked map[string]bool // the phases that the filter has registered
	token *uint64         // number of requests
	rcpts int
	facts
}

// facts holds properties of a session that only the generator knows, because the lines do not show
// them.
type facts struct {
	evidence []string // findings
	implied  []string // evidence found only in the daily counters
	rejected string   // rule that disconnected the client
	watched  bool     // the observed rule has matched
	ban      *ban     // imposed in this session
	until    int64    // end of the ban, in seconds since 1970
}

// found adds evidence.
func (s *script) found(token string) { s.evidence = append(s.evidence, token) }

// Pauses of the client and the server in microseconds. The pauses are long enough that no client
// causes the evidence early-talker.
const (
	clientPause = 40_000
	serverPause = 1_000
)

func (s *script) report(format string, args ...any) {
	s.at += serverPause
	s.lines = append(s.lines, line{s.at, false, fmt.Sprintf(format, args...)})
}

// ask writes a request. The last bit of its token is the expected answer: 1 for disconnect, 0 for
// proceed.
func (s *script) ask(phase, arg string, disconnect bool) {
	if !s.asked[phase] {
		return
	}
	s.at += serverPause
	*s.token++
	token := *s.token << 1
	if disconnect {
		token++
	}
	s.lines = append(s.lines, line{s.at, true, fmt.Sprintf("%s|%016x|%016x|%s", phase, s.id, token, arg)})
}

func (s *script) client(text string) {
	s.at += clientPause
	s.report("protocol-client|%016x|%s", s.id, text)
}

func (s *script) server(text string) { s.report("protocol-server|%016x|%s", s.id, text) }

func (s *script) connect(rdns, fcrdns, src, dst string) {
	s.lines = append(s.lines, line{s.at, false, fmt.Sprintf("link-connect|%016x|%s|%s|%s|%s", s.id, rdns, fcrdns, src, dst)})
}

func (s *script) greeting() { s.server("220 mx.example.org ESMTP OpenSMTPD") }

func (s *script) disconnect() { s.report("link-disconnect|%016x", s.id) }

func (s *script) ehlo(name string) {
	s.client("EHLO " + name)
	s.ask("ehlo", name, false)
	s.report("link-identify|%016x|EHLO|%s", s.id, name)
	s.server("250 mx.example.org Hello")
}

func (s *script) quit() {
	s.client("QUIT")
	s.server("221 2.0.0 Bye")
	s.disconnect()
}

// login writes a login that succeeds or fails.
func (s *script) login(user string, pass bool) {
	s.client("AUTH PLAIN")
	s.server("334 ")
	s.client("********")
	if pass {
		s.report("link-auth|%016x|pass|%s", s.id, user)
		s.server("235 2.0.0 Authentication succeeded")
		return
	}
	s.report("link-auth|%016x|fail|%s", s.id, user)
	s.server("535 Authentication failed")
}

func (s *script) mail(sender string) {
	s.rcpts = 0
	s.client("MAIL FROM:<" + sender + ">")
	s.ask("mail-from", sender, false)
	s.server("250 2.0.0 Ok")
	s.report("tx-begin|%016x|%08x", s.id, uint32(s.id))
	s.report("tx-mail|%016x|%08x|ok|%s", s.id, uint32(s.id), sender)
}

// rcpt writes a recipient with the result ok, permfail or tempfail.
func (s *script) rcpt(to, result string) {
	s.rcpts++
	s.client("RCPT TO:<" + to + ">")
	s.ask("rcpt-to", to, false)
	switch result {
	case "ok":
		s.server("250 2.1.5 Destination address valid: Recipient ok")
	case "permfail":
		s.server("550 Invalid recipient: <" + to + ">")
	default:
		s.server("451 4.3.0 Temporary failure")
	}
	s.report("tx-rcpt|%016x|%08x|%s|%s", s.id, uint32(s.id), result, to)
}

// data writes an accepted message.
func (s *script) data() {
	s.client("DATA")
	s.ask("data", "", false)
	s.server(`354 Enter mail, end with "." on a line by itself`)
	s.report("tx-data|%016x|%08x|ok", s.id, uint32(s.id))
	s.report("tx-commit|%016x|%08x|1234", s.id, uint32(s.id))
	s.server("250 2.0.0 Message accepted for delivery")
}

// rollback writes the end of a transaction without a message.
func (s *script) rollback() {
	s.report("tx-rollback|%016x|%08x", s.id, uint32(s.id))
	s.report("tx-reset|%016x|%08x", s.id, uint32(s.id))
}

// turnedAway ends the session because the filter rejects it.
func (s *script) turnedAway(rule, reply string) {
	s.rejected = rule
	s.server(reply)
	s.disconnect()
}
