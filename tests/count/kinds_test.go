//go:build linux

package count

import (
	"fmt"
	"net/netip"
	"strings"
)

// A host is the origin of sessions.
type host struct {
	kind   int // index in kinds
	number int // unique among the hosts of its kind
	addr   netip.Addr
	rdns   string
	fcrdns string
	visits int
}

// A kind describes a class of clients. play writes a session after the server's greeting.
type kind struct {
	name    string
	hosts   int  // per 1,000 sessions; at least 4 in total
	weight  int  // share of the sessions outside floods
	burst   bool // also arrives in floods
	spread  bool // each host has a separate network
	six     bool // every second host has an IPv6 network
	user    bool // connects to the port for users
	local   bool // connects to the local socket
	rdns    string
	play    func(s *script, h *host)
	implied string // evidence about the address
}

// helo returns the name of a generated host. The name ends with .example, which is on no list.
func helo(h *host) string { return fmt.Sprintf("h%d.%s.example", h.number, kinds[h.kind].name) }

// unknown returns a recipient that does not exist and that no other session requests.
func unknown(s *script) string { return fmt.Sprintf("u%x.%d@example.org", s.id, s.rcpts) }

// leave ends a session without mail.
func leave(s *script) {
	s.quit()
	s.found("no-mail")
}

// greets returns a client that greets with the given name and disconnects. evidence is the token of
// the finding that the name causes.
func greets(name, evidence string) func(*script, *host) {
	return func(s *script, _ *host) {
		s.ehlo(name)
		s.found(evidence)
		leave(s)
	}
}

// leaveMail ends a session after a transaction without a message.
func leaveMail(s *script) {
	s.client("QUIT")
	s.server("221 2.0.0 Bye")
	s.rollback()
	s.disconnect()
}

// harvest tries a few recipients that do not exist. Five unknown recipients count as a
// directory harvest.
func harvest(s *script, h *host) {
	s.ehlo(helo(h))
	s.mail("probe@sender.example")
	n := 2 + (h.number+h.visits)%6
	for range n {
		s.rcpt(unknown(s), "permfail")
	}
	s.found("unknown-recipient")
	if n >= 5 {
		s.found("harvest")
	}
	leaveMail(s)
}

// relay tries recipients in one to three foreign domains. The observed rule matches at the second
// recipient. The recipients are new in each session, because repeated recipients do not count as
// probes.
func relay(s *script, h *host) {
	s.ehlo(helo(h))
	s.mail("probe@sender.example")
	n := 1 + h.visits%3
	for i := range n {
		s.rcpt(fmt.Sprintf("victim%x@d%d.elsewhere.example", s.id, (h.number+i)%5), "permfail")
	}
	s.found("relay-probe")
	s.watched = n > 1
	leaveMail(s)
}

// deliver sends a message. Some recipients do not exist or are deferred.
func deliver(s *script, h *host) {
	s.ehlo(h.rdns)
	s.mail("news@sender.example")
	for i := range 1 + h.visits%3 {
		s.rcpt(fmt.Sprintf("user%d@example.org", i), "ok")
	}
	if h.visits%7 == 3 {
		s.rcpt(unknown(s), "permfail")
		s.found("unknown-recipient")
	}
	if h.visits%5 == 1 {
		s.rcpt("busy@example.org", "tempfail")
	}
	s.data()
	s.quit()
}

// guess tries to log in as users that no other host tries, and fails. Six users from one host are
// evidence of a spray.
func guess(users int) func(*script, *host) {
	return func(s *script, h *host) {
		s.ehlo(helo(h))
		for i := range users {
			s.login(fmt.Sprintf("user%d@%s", (i+h.visits)%max(users, 3), helo(h)), false)
		}
		s.found("auth-failure")
		if users >= 5 {
			s.found("auth-spray")
		}
		leave(s)
	}
}

// tool greets like an attack tool. The rule "tool" disconnects and bans the client.
func tool(s *script, _ *host) {
	s.client("EHLO ylmf-pc")
	s.ask("ehlo", "ylmf-pc", true)
	s.found("botnet-helo")
	s.turnedAway("tool", "554 5.7.1 No")
}

func http(s *script, _ *host) {
	for _, text := range []string{"GET / HTTP/1.1", "Host: mx.example.org"} {
		s.client(text)
		s.server("500 5.5.1 Invalid command: Command unrecognized")
	}
	s.disconnect()
	s.found("talks-http")
	s.found("no-mail")
}

// userMail logs in, sometimes at the second attempt, and sends a message.
func userMail(s *script, h *host) {
	s.ehlo("laptop.sender.example")
	user := "user@" + helo(h)
	if h.visits%4 == 2 {
		s.login(user, false)
		s.found("auth-failure")
	}
	s.login(user, true)
	s.mail(user)
	s.rcpt("friend@elsewhere.example", "ok")
	s.data()
	s.quit()
}

func localMail(s *script, _ *host) {
	s.ehlo("localhost")
	s.mail("root@example.org")
	s.rcpt("admin@example.org", "ok")
	s.data()
	s.quit()
}

func abandon(s *script, h *host) {
	s.ehlo(helo(h))
	s.mail("a@sender.example")
	s.rcpt("user1@example.org", "ok")
	s.rollback()
	s.disconnect()
	s.found("abandoned")
}

func bounce(s *script, h *host) {
	s.ehlo(helo(h))
	s.mail("")
	s.rcpt(unknown(s), "permfail")
	s.found("backscatter")
	leaveMail(s)
}

func silent(s *script, _ *host) {
	s.at += clientPause
	s.disconnect()
	s.found("no-mail")
}

func unsupported(s *script, h *host) {
	s.ehlo(helo(h))
	s.client("AUTH LOGIN")
	s.server("503 5.5.1 Invalid command: Command not supported")
	s.found("auth-unsupported")
	leave(s)
}

func changed(s *script, h *host) {
	s.ehlo(helo(h))
	s.ehlo("other." + helo(h))
	s.found("helo-changed")
	leave(s)
}

// nameless sends EHLO without a name.
func nameless(s *script, _ *host) {
	s.client("EHLO")
	s.server("501 5.5.1 Invalid command: EHLO requires domain name")
	s.found("helo-missing")
	leave(s)
}

func scan(s *script, h *host) {
	s.ehlo(helo(h))
	leave(s)
}

// manyNames greets with more names than an aggregate can contain.
func manyNames(s *script, h *host) {
	s.ehlo(fmt.Sprintf("n%d.%s", h.visits%12, helo(h)))
	leave(s)
}

// longName greets with a name of 150 bytes.
func longName(s *script, h *host) {
	s.ehlo(strings.Repeat("long.", 30-2) + fmt.Sprintf("h%02d.a.example", h.number%100))
	leave(s)
}

// crowd stays connected for half a minute, so that the host has many open sessions.
func crowd(s *script, h *host) {
	s.ehlo(helo(h))
	s.at += 30e6
	leave(s)
}

func listed(s *script, h *host) {
	s.found("scanner")
	scan(s, h)
}

// kinds lists all kinds of clients. init fills the list, because the functions refer to
// it.
var kinds []kind

func init() {
	kinds = []kind{
		{name: "mail", hosts: 15, weight: 30, rdns: "mx%d.sender.example", play: deliver},
		{name: "user", hosts: 2, weight: 8, user: true, spread: true, play: userMail},
		{name: "local", hosts: 0, weight: 3, local: true, play: localMail},
		{name: "scan", hosts: 20, weight: 12, burst: true, six: true, play: scan},
		{name: "liar", hosts: 3, weight: 3, burst: true, rdns: "ptr%d.liar.example", implied: "fcrdns-fail", play: scan},
		{name: "harvest", hosts: 6, weight: 6, burst: true, six: true, spread: true, play: harvest},
		{name: "relay", hosts: 4, weight: 4, burst: true, six: true, spread: true, play: relay},
		{name: "guess", hosts: 6, weight: 6, burst: true, six: true, spread: true, play: guess(2)},
		{name: "spray", hosts: 2, weight: 2, burst: true, spread: true, play: guess(6)},
		{name: "noauth", hosts: 3, weight: 3, burst: true, play: unsupported},
		{name: "tool", hosts: 3, weight: 4, burst: true, six: true, play: tool},
		{name: "http", hosts: 3, weight: 4, burst: true, play: http},
		{name: "abandon", hosts: 2, weight: 2, play: abandon},
		{name: "bounce", hosts: 2, weight: 2, spread: true, play: bounce},
		{name: "silent", hosts: 3, weight: 2, burst: true, play: silent},
		{name: "changed", hosts: 2, weight: 2, burst: true, play: changed},
		{name: "loop", hosts: 2, weight: 2, burst: true, play: greets("localhost", "helo-localhost")},
		{name: "own", hosts: 2, weight: 1, play: greets("mx.example.org", "helo-own-name")},
		{name: "forged", hosts: 2, weight: 1, play: greets("gmail.com", "helo-forged")},
		{name: "empty", hosts: 2, weight: 1, burst: true, play: nameless},
		{name: "names", hosts: 2, weight: 1, burst: true, play: manyNames},
		{name: "long", hosts: 2, weight: 1, burst: true, play: longName},
		{name: "crowd", hosts: 1, burst: true, play: crowd},
		{name: "listed", hosts: 2, weight: 2, burst: true, rdns: "s%d.censys-scanner.com", play: listed},
		{name: "linger", play: func(s *script, h *host) { s.ehlo(helo(h)) }}, // must be last; see newWorld
	}
}
