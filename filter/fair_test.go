package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

const day = 24 * time.Hour

func msg(at time.Time, addr, rdns, rcpt string) simulate.Session {
	return visitor(at, addr, rdns, say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "joe@example.net"), say(simulate.Rcpt, rcpt), say(simulate.Data, ""), say(simulate.Quit, ""))
}

func asks(at time.Time, addr, rdns string, n, salt int) simulate.Session {
	steps := []simulate.Step{say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "spam@example.net")}
	for i := range n {
		steps = append(steps, wrong(simulate.Rcpt, fmt.Sprintf("word%d-%d@example.org", salt, i)))
	}
	return visitor(at, addr, rdns, append(steps, say(simulate.Quit, ""))...)
}

func (s *site) report(t *testing.T, out []simulate.Outcome) {
	for i, o := range out {
		if len(o.Refused) > 0 {
			t.Logf("session %d %s: %+v", i, o.Src, o.Refused)
		}
	}
	for _, l := range s.log {
		t.Log(l)
	}
}

// TestNeighbours checks that a host is not rejected or banned because of other hosts in its /24 or
// /48.
func TestNeighbours(t *testing.T) {
	for _, c := range [][2]string{{"203.0.113.66", "203.0.113.7"}, {"2001:db8:1:aaaa::1", "2001:db8:1:1::1"}} {
		s := readySite(t, "standard")
		s.learn()
		var list []simulate.Session
		for i := range 6 {
			list = append(list, asks(monday.Add(time.Duration(i)*time.Minute), c[0], "", 4, i))
		}
		honest := msg(monday.Add(20*time.Hour), c[1], "mail.honest.example", simulate.Mailbox(4))
		list = append(list, honest)
		out := s.play(sessions(list...))
		if o := out[6]; o.Mails != 1 {
			t.Errorf("legitimate neighbour %s, which requested one existing recipient: %+v", c[1], o)
			s.report(t, out[6:])
		}
		if b, ok := first(s.memory.Bans.Banned(&memory.Client{Addr: honest.Src.Addr()}, monday.Add(21*time.Hour).UnixMicro())); ok {
			t.Errorf("and banned: %+v", b)
		}
	}
}

// TestSharedServer checks that mail from a server with many customers is not rejected because of
// one of them.
func TestSharedServer(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		t.Run(name, func(t *testing.T) {
			s := readySite(t, name)
			s.learn()
			var list []simulate.Session
			at := monday.Add(-60 * day)
			for i := range 500 { // two months of legitimate mail
				list = append(list, delivery(at.Add(time.Duration(i)*2*time.Hour), "203.0.113.5", "out1.hoster.example"))
			}
			list = append(list, asks(monday, "203.0.113.5", "out1.hoster.example", 11, 0))                  // one customer requests missing recipients
			list = append(list, asks(monday.Add(time.Hour), "203.0.113.5", "out1.hoster.example", 6, 1))    // the same customer
			list = append(list, delivery(monday.Add(2*time.Hour), "203.0.113.5", "out1.hoster.example"))    // another customer
			list = append(list, asks(monday.Add(26*time.Hour), "203.0.113.5", "out1.hoster.example", 6, 2)) // the same customer on the next day
			list = append(list, delivery(monday.Add(27*time.Hour), "203.0.113.5", "out1.hoster.example"))
			list = append(list, asks(monday.Add(9*day), "203.0.113.5", "out1.hoster.example", 6, 3))
			list = append(list, delivery(monday.Add(9*day+time.Hour), "203.0.113.5", "out1.hoster.example"))
			out := s.play(sessions(list...))
			for _, i := range []int{502, 504, 506} {
				if out[i].Mails != 1 {
					t.Errorf("legitimate mail %d of the shared server: %+v", i, out[i].Refused)
				}
			}
		})
	}
}

// TestSharedServerRelays checks mail from a server with many customers while one of them causes
// relay probes. The relay probes are caused by the MX record of a foreign domain that points to
// this host. Mail to this domain is not mail for a local domain.
func TestSharedServerRelays(t *testing.T) {
	text, _ := rules.ReadyPolicy("tight")
	s := newSite(t, string(text)+"\ntable <local-domains> { \"example.org\" }\n")
	s.policy = s.policy.InMode(rules.Enforce)
	var list []simulate.Session
	for i := range 500 {
		list = append(list, delivery(monday.Add(-60*day).Add(time.Duration(i)*2*time.Hour), "203.0.113.5", "out1.hoster.example"))
	}
	probe := func(at time.Time, n int) simulate.Session {
		steps := []simulate.Step{say(simulate.Ehlo, "out1.hoster.example"), say(simulate.Mail, "joe@example.net")}
		for i := range n {
			steps = append(steps, wrong(simulate.Rcpt, fmt.Sprintf("u%d@evil.example.com", i))) // the MX record of this domain points to this host
		}
		return visitor(at, "203.0.113.5", "out1.hoster.example", append(steps, say(simulate.Quit, ""))...)
	}
	list = append(list, probe(monday, 1), probe(monday.Add(time.Hour), 5), delivery(monday.Add(2*time.Hour), "203.0.113.5", "out1.hoster.example"))
	out := s.play(sessions(list...))
	if o := out[502]; o.Mails != 1 {
		t.Errorf("legitimate mail: %+v", o.Refused)
	}
}

// TestNothingLearnedFromLAN checks that a domain does not become local because hosts in the local
// network send mail to it.
func TestNothingLearnedFromLAN(t *testing.T) {
	s := readySite(t, "tight")
	s.learn()
	lan := visitor(monday, "192.168.1.5", "", say(simulate.Ehlo, "app"), say(simulate.Mail, "app@example.org"), say(simulate.Rcpt, "bob@partner.example"), say(simulate.Data, ""), say(simulate.Quit, ""))
	partner := visitor(monday.Add(time.Hour), "203.0.113.5", "mail.partner.example", say(simulate.Ehlo, "partner.example"), say(simulate.Mail, "bob@partner.example"), say(simulate.Rcpt, simulate.Mailbox(3)), say(simulate.Data, ""), say(simulate.Quit, ""))
	out := s.play(sessions(lan, partner))
	if out[1].Mails != 1 {
		t.Errorf("the partner's answer: %+v; local domains: %v", out[1].Refused, s.memory.Domains.List())
	}
}

// TestNothingLearnedFromFriends checks that a domain does not become local because friends send
// mail to it. A friend is a public host that may relay (pass from <friends>).
func TestNothingLearnedFromFriends(t *testing.T) {
	text, _ := rules.ReadyPolicy("tight")
	s := newSite(t, strings.Replace(string(text), "table <friends> { }", "table <friends> { 198.51.100.0/24 }", 1))
	s.policy = s.policy.InMode(rules.Enforce)
	friend := visitor(monday, "198.51.100.9", "app.example.org", say(simulate.Ehlo, "app.example.org"), say(simulate.Mail, "app@example.org"), say(simulate.Rcpt, "bob@partner.example"), say(simulate.Data, ""), say(simulate.Quit, ""))
	s.play(sessions(friend))
	if d := s.memory.Domains.List(); len(d) > 0 {
		t.Errorf("local domains: %v", d)
	}
}

// TestUserUnderAttack checks that a user who mistypes a password is not rejected while other
// networks are guessing the user's password.
func TestUserUnderAttack(t *testing.T) {
	s := readySite(t, "standard")
	login := func(at time.Time, addr string, steps ...simulate.Step) simulate.Session {
		return visitor(at, addr, "", append([]simulate.Step{say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, "")}, steps...)...)
	}
	var list []simulate.Session
	for i, a := range []string{"203.0.113.1", "198.51.100.1", "192.0.2.200", "100.20.30.40"} {
		list = append(list, login(monday.Add(time.Duration(i)*time.Hour), a, wrong(simulate.Auth, "alice"), say(simulate.Quit, "")))
	}
	// A user in a hotel mistypes a password once. The mail program then reconnects.
	list = append(list, login(monday.Add(20*time.Hour), "100.64.7.7", wrong(simulate.Auth, "alice"), say(simulate.Quit, "")))
	list = append(list, login(monday.Add(20*time.Hour+time.Minute), "100.64.7.7", say(simulate.Auth, "alice"), say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "x@example.com"), say(simulate.Data, ""), say(simulate.Quit, "")))
	out := s.play(sessions(list...))
	if o := out[5]; o.Mails != 1 {
		t.Errorf("alice: %+v", o)
		s.report(t, nil)
	}
}

// TestNeighbourOfGuesser checks that a user who mistypes a password is not rejected because logins
// of eight other users in the same /24 have failed within an hour.
func TestNeighbourOfGuesser(t *testing.T) {
	s := readySite(t, "standard")
	login := func(at time.Time, addr string, steps ...simulate.Step) simulate.Session {
		return visitor(at, addr, "", append([]simulate.Step{say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, "")}, steps...)...)
	}
	var list []simulate.Session
	for i := range 8 {
		list = append(list, login(monday.Add(time.Duration(i)*time.Minute), "203.0.113.66", wrong(simulate.Auth, fmt.Sprint("guess", i)), say(simulate.Quit, "")))
	}
	list = append(list, login(monday.Add(20*time.Minute), "203.0.113.7", wrong(simulate.Auth, "alice"), say(simulate.Quit, "")))
	list = append(list, login(monday.Add(21*time.Minute), "203.0.113.7", say(simulate.Auth, "alice"), say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "x@example.com"), say(simulate.Data, ""), say(simulate.Quit, "")))
	out := s.play(sessions(list...))
	if o := out[9]; o.Mails != 1 {
		t.Errorf("alice: %+v", o)
	}
}

// TestBoughtName checks that a directory harvest is detected although a message to the postmaster
// was accepted before.
func TestBoughtName(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		s := readySite(t, name)
		s.learn()
		list := []simulate.Session{msg(monday, "203.0.113.5", "mail.sender.example", "postmaster@example.org")}
		for i := range 200 {
			list = append(list, asks(monday.Add(time.Duration(i+1)*time.Minute), "203.0.113.5", "mail.sender.example", 9, i))
		}
		out := s.play(sessions(list...))
		asked, cut := 0, 0
		for _, o := range out {
			asked += o.RcptUnknown
			if len(o.Refused) > 0 {
				cut++
			}
		}
		if cut == 0 {
			t.Errorf("%s: asked for %d unknown recipients in 200 minutes, cut in %d of 200 sessions", name, asked, cut)
		}
	}
}

// TestGuessesAmongRepeats checks that a harvest is detected even if the client requests an existing
// recipient before each missing one.
func TestGuessesAmongRepeats(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		s := readySite(t, name)
		s.learn()
		steps := []simulate.Step{say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "spam@example.net")}
		for i := range 200 {
			steps = append(steps, say(simulate.Rcpt, "postmaster@example.org"), wrong(simulate.Rcpt, fmt.Sprintf("word%d@example.org", i)))
		}
		out := s.play(sessions(visitor(monday, "203.0.113.5", "", append(steps, say(simulate.Quit, ""))...)))
		if o := out[0]; o.RcptUnknown > 50 {
			t.Errorf("%s: one session learned of %d unknown recipients, one accepted recipient named again and again: refused %d, mails %d", name, o.RcptUnknown, o.RcptRefused, o.Mails)
		}
	}
}

// TestBanEnds checks that a ban is not extended if the client connects while it is banned.
func TestBanEnds(t *testing.T) {
	s := newSite(t, "mode enforce\nrule guess phase end match count auth-failure > 5 in 7d by src ban 1h\n")
	login := func(at time.Time, steps ...simulate.Step) simulate.Session {
		return visitor(at, "203.0.113.5", "", append([]simulate.Step{say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, "")}, steps...)...)
	}
	var list []simulate.Session
	for i := range 6 {
		list = append(list, login(monday.Add(time.Duration(i)*time.Minute), wrong(simulate.Auth, "alice"), say(simulate.Quit, "")))
	}
	for i := range 100 { // a phone connects every half hour; after the ban, its password is correct
		list = append(list, login(monday.Add(time.Duration(i+1)*30*time.Minute), say(simulate.Auth, "alice"), say(simulate.Quit, "")))
	}
	out := s.play(sessions(list...))
	n := 0
	for _, o := range out {
		if o.Disconnected {
			n++
		}
	}
	if n > 2 {
		b, _ := first(s.memory.Bans.Banned(&memory.Client{Addr: list[0].Src.Addr()}, list[len(list)-1].Start.UnixMicro()))
		t.Errorf("a ban of 1h rejected %d connections, one every 30 minutes: %+v", n, b)
	}
}

// TestFloodOfOurHouse checks that the flood rule of the preset "tight" does not match hosts in the
// local network.
func TestFloodOfOurHouse(t *testing.T) {
	s := readySite(t, "tight")
	s.learn()
	var list []simulate.Session
	for i := range 32 {
		v := delivery(monday.Add(time.Duration(i)*time.Millisecond), "10.0.0.5", "")
		v.Steps[0].Gap = 10 * time.Second
		list = append(list, v)
	}
	bad := 0
	out := s.play(sessions(list...))
	for _, o := range out {
		if len(o.Refused) > 0 {
			bad++
		}
	}
	if bad > 0 {
		t.Errorf("%d sessions of 10.0.0.5 refused: %+v", bad, out[31].Refused)
	}
}

// TestBansWithoutRules checks that manual bans are enforced even if the policy contains no rules.
func TestBansWithoutRules(t *testing.T) {
	if p := smtpd.Requests(filter.Phases(policy(t, "mode enforce\n"))); len(p) == 0 {
		t.Error("smtpd sends no requests: scanwatch ban reports a ban that is not enforced")
	}
}

// TestCustomersOfOneHoster checks that the mail of one customer does not improve the standing of
// other customers of the same hosting provider.
func TestCustomersOfOneHoster(t *testing.T) {
	for _, d := range []string{"your-server.de", "contaboserver.net", "ovh.net", "hwclouds-dns.com", "secureserver.net", "vultrusercontent.com", "linodeusercontent.com", "amazonaws.com", "googleusercontent.com", "hostinger.com", "colocrossing.com", "t-ipconnect.de"} {
		s := readySite(t, "standard")
		s.learn()
		a, b := "static.1-2-3-4.clients."+d, "static.9-8-7-6.clients."+d
		list := []simulate.Session{delivery(monday, "203.0.113.5", a)} // a legitimate customer
		list = append(list, asks(monday.Add(day), "100.20.30.40", b, 50, 1))
		list = append(list, asks(monday.Add(day+time.Hour), "100.20.30.40", b, 50, 2))
		out := s.play(sessions(list...))
		if o := out[1]; o.RcptUnknown > 5 {
			t.Errorf("%s: another customer could request %d recipients before the disconnect; log: %v", d, o.RcptUnknown, grep(s.log, "spared"))
		}
	}
}

func grep(list []string, word string) (out []string) {
	for _, l := range list {
		if strings.HasPrefix(l, word) {
			out = append(out, l)
		}
	}
	return out
}
