package cases

// This file contains the clients that several cases use.

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

const (
	minute = time.Minute
	hour   = time.Hour
	day    = 24 * time.Hour
)

// named returns a host that greets with its proven name.
func named(addr, name string) simulate.Host {
	return simulate.Host{Src: netip.MustParseAddr(addr), RDNS: name, Helo: name}
}

// greets returns a host whose greeting differs from its proven name.
func greets(addr, name, helo string) simulate.Host {
	h := named(addr, name)
	h.Helo = helo
	return h
}

// bare returns a host without a name.
func bare(addr, helo string) simulate.Host {
	return simulate.Host{Src: netip.MustParseAddr(addr), Helo: helo}
}

// without returns h in the form in which smtpd sees the host during a DNS outage.
func without(h simulate.Host, fcrdns string) simulate.Host {
	h.RDNS, h.FCrDNS = "", fcrdns
	return h
}

// at returns address number i of a network. The network is a format string with one number.
func at(format string, i int) string { return fmt.Sprintf(format, i) }

// far returns an address in network number i of 250.
func far(i int) string { return fmt.Sprintf("198.18.%d.%d", i%250, 10+i%200) }

// sender returns a sender in h's domain.
func sender(h simulate.Host) string {
	if _, domain, ok := strings.Cut(h.RDNS, "."); ok && strings.Contains(domain, ".") {
		return "news@" + domain
	}
	return "joe@sender.example"
}

// ours appends the server's domain to local parts.
func ours(local ...string) (to []string) {
	for _, l := range local {
		to = append(to, l+"@"+simulate.Domain)
	}
	return to
}

// Deliver sends a message to local parts in one session. If a local part ends with =, the server
// rejects it although the mailbox exists. If it ends with ~, the server defers it.
func (s *Server) Deliver(h simulate.Host, from string, local ...string) *simulate.Client {
	c := s.Connect(h)
	c.Ehlo()
	c.Mail(from)
	for _, l := range local {
		name := strings.TrimRight(l, "=~")
		switch to := name + "@" + simulate.Domain; l[len(name):] {
		case "=":
			c.RcptFate(to, simulate.Unknown)
		case "~":
			c.RcptFate(to, simulate.Later)
		default:
			c.Rcpt(to)
		}
	}
	c.Data()
	c.Quit()
	return c
}

// Message sends a message to alice.
func (s *Server) Message(h simulate.Host) *simulate.Client { return s.Deliver(h, sender(h), "alice") }

// History sends n messages, and waits for the duration every after each message.
func (s *Server) History(h simulate.Host, n int, every time.Duration) {
	for range n {
		s.Message(h)
		s.Wait(every)
	}
}

// Earlier delivers a message from another server. From this message, the filter learns that the
// domain is local and that the mailbox exists.
func (s *Server) Earlier() { s.Message(named("203.0.113.9", "mx.earlier.example")) }

// Learn delivers ordinary mail for some days.
func (s *Server) Learn() {
	h := named("198.51.100.30", "mail.sender.example")
	for _, to := range []string{"alice", "bob", "carol"} {
		s.Deliver(h, sender(h), to)
		s.Wait(6 * hour)
	}
}

// Separate sends one message per transaction, all in one session. from contains the sender of each
// message, or one sender for all messages.
func (s *Server) Separate(h simulate.Host, from []string, local ...string) *simulate.Client {
	c := s.Connect(h)
	c.Ehlo()
	for i, l := range local {
		c.Mail(from[i%len(from)])
		if c.Rcpt(l+"@"+simulate.Domain) == simulate.Accepted {
			c.Data()
		} else {
			c.Rset()
		}
	}
	c.Quit()
	return c
}

// Bounces sends bounces, each in a separate transaction.
func (s *Server) Bounces(h simulate.Host, local ...string) *simulate.Client {
	return s.Separate(h, []string{""}, local...)
}

// invented returns n nonexistent local parts that do not resemble each other.
func invented(n int) (local []string) {
	for i := range n {
		local = append(local, fmt.Sprintf("%c%dq%d", 'a'+rune(i*7%26), 7919*(i+3)%10007, i))
	}
	return local
}

// former returns n local parts of former users.
func former(n int) (local []string) {
	for i := range n {
		local = append(local, fmt.Sprint("left", i))
	}
	return local
}

// Login plays a user who first tries wrong passwords. If right is set, the user eventually logs in
// and sends a message.
func (s *Server) Login(h simulate.Host, user string, wrong int, right bool) *simulate.Client {
	if h.Port == 0 {
		h.Port = 587
	}
	c := s.Connect(h)
	c.Ehlo()
	if h.Port != 465 {
		c.StartTLS()
	}
	for range wrong {
		c.Auth(user, false)
	}
	if right {
		c.Auth(user, true)
		c.Mail(user + "@" + simulate.Domain)
		c.Rcpt("joe@partner.example")
		c.Data()
	}
	c.Quit()
	return c
}

// laptop returns a user's host.
func laptop(addr string) simulate.Host { return greets(addr, "dsl-5.isp.example", "laptop") }

// Harvests requests n unknown mailboxes, per of them in each session.
func (s *Server) Harvests(h simulate.Host, n, per int) (cs []*simulate.Client) {
	for i := 0; i < n; i += per {
		cs = append(cs, s.Ask(h, simulate.Manner{Sender: "s@evil.example"}, simulate.Words("name", i, min(per, n-i))...))
		s.Wait(minute)
	}
	return cs
}

// Bot plays a session that greets like an infected computer.
func (s *Server) Bot(addr string) {
	c := s.Connect(bare(addr, "ylmf-pc"))
	c.Ehlo()
	c.Quit()
}

// Bursts plays n sessions that each request new unknown mailboxes.
func (s *Server) Bursts(n, each int, every time.Duration, m simulate.Manner, host func(i int) simulate.Host) (cs []*simulate.Client) {
	for i := range n {
		cs = append(cs, s.Ask(host(i), m, simulate.Words("w", i*each, each)...))
		s.Wait(every)
	}
	return cs
}

// same returns a function that returns h for every session.
func same(h simulate.Host) func(int) simulate.Host { return func(int) simulate.Host { return h } }
