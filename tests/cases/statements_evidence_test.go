package cases

// This file checks the detection thresholds in the manual.

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// seen returns a check with a policy that rejects nothing.
func seen(f func(s *Server)) []Case { return lines("", f) }

func thresholdRows() []statement {
	return []statement{
		{"thresholds", "Detection thresholds", seen(func(s *Server) { s.Accepted(s.Message(unnamed1)) })},
		{"thresholds", "If a client repeats an attempt to relay within 30 days, the confidence is low", seen(func(s *Server) {
			s.Earlier()
			for _, confidence := range []string{"medium", "low"} {
				s.Evidence(s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...), "relay-probe", confidence)
			}
			s.Wait(31 * day)
			s.Evidence(s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...), "relay-probe", "medium")
		})},
		{"thresholds", "A rejected recipient counts as unknown if its domain is local, and otherwise as an attempt to relay", seen(func(s *Server) {
			s.Earlier()
			c := s.Ask(unnamed1, manner{}, simulate.Words("w", 0, 1)...)
			s.Evidence(c, "unknown-recipient", "high")
			s.None(c, "relay-probe")
			c = s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...)
			s.Evidence(c, "relay-probe", "")
			s.None(c, "unknown-recipient")
		})},
		{"thresholds", "Until the filter knows a local domain, the finding is unknown-recipient with low confidence, and its match is undecided", seen(func(s *Server) {
			for _, to := range []string{"nobody@example.org", "joe@foreign.example"} {
				c := s.Ask(unnamed1, manner{}, to)
				s.Evidence(c, "unknown-recipient", "low")
				s.Check(s.findings(c)[0].match == "undecided", "%v", s.findings(c))
			}
		})},
		{"thresholds", "Recipients rejected by a filter do not count", lines("rule x phase rcpt-to match src 203.0.113.0/24 reject", func(s *Server) {
			c := s.Ask(unnamed1, manner{}, append(simulate.Words("w", 0, 20), simulate.Foreign(0, 20)...)...)
			for _, token := range []string{"unknown-recipient", "relay-probe", "harvest"} {
				s.None(c, token)
			}
		})},
		{"thresholds", "A message with the null sender has an unknown recipient", seen(func(s *Server) {
			s.Earlier()
			c, d := s.Ask(unnamed1, manner{Null: true}, simulate.Words("w", 0, 1)...), s.Ask(unnamed1, manner{}, simulate.Words("w", 0, 1)...)
			s.Evidence(c, "backscatter", "high")
			s.None(c, "unknown-recipient")
			s.None(d, "backscatter")
		})},
		{"thresholds", "The senders double-bounce, mailer-daemon and postmaster, with any domain, count as null senders, because servers also use them to verify addresses", play(func(s *Server) {
			s.Earlier()
			for i, sender := range []string{"double-bounce@x.example", "MAILER-DAEMON@y.example", "Postmaster@z.example"} {
				h := bare(at("203.0.113.%d", 60+i), "mail.x.example")
				c := s.Ask(h, manner{Sender: sender}, simulate.Words("w", 10*i, 2)...)
				s.Evidence(c, "backscatter", "high")
				s.None(c, "unknown-recipient")
				s.Evidence(s.Ask(h, manner{Sender: sender}, simulate.Words("v", 10*i, 5)...), "harvest", "high")
			}
			s.Evidence(s.Ask(unnamed1, manner{Sender: "bounces@x.example"}, simulate.Words("w", 50, 1)...), "unknown-recipient", "high")
		})},
		{"thresholds", "Bounces are counted separately, because anyone can forge a sender", play(func(s *Server) {
			s.Earlier()
			s.Accepted(s.each(10, minute, manner{Null: true}, same(unnamed1))...)
			s.Answers(5, s.repeat(6, minute, func(i int) *simulate.Client { return s.Ask(unnamed1, manner{}, simulate.Words("v", i, 1)...) })...)
		})},
		{"thresholds", "Hosts in at least three other networks have tried this recipient, each within 30 days of the previous one, in sessions without an accepted recipient", seen(probedNetworks)},
		{"thresholds", "The recipient has never accepted mail", seen(probedNetworks)},
		{"thresholds", "Bounces do not count", seen(func(s *Server) {
			s.Earlier()
			s.probe("jobs", 5, 0, manner{Null: true})
			s.None(s.Ask(unnamed1, manner{}, ours("jobs")...), "probed-recipient")
		})},
		{"thresholds", "The mailbox may be new, so a client with its own proven name may try each pair of sender and recipient once in 30 days without causing this evidence. All hosts of a domain together may try such mailboxes at most five times a day. The exception for proven names does not apply to a session with another unknown recipient", seen(freeAsks)},
		{"thresholds", "The first command arrived within 1 ms of the server's greeting. All later commands arrived at least 15 ms after the previous reply, so the client must have sent the first command before the greeting", seen(func(s *Server) {
			for i, tt := range []struct {
				pace  []float64
				found bool
			}{
				{[]float64{.95, 15.1, 20, 30}, true}, {[]float64{1.1, 15.1, 20, 30}, false}, {[]float64{.95, 14.9, 20, 30}, false}, {[]float64{.95, 20, 30, 14.9}, false},
			} {
				c := s.paced(at("203.0.113.%d", i+1), 3, tt.pace...)
				got := slices.ContainsFunc(s.findings(c), func(f finding) bool { return f.token == "early-talker" && f.confidence == "medium" })
				s.Check(got == tt.found, "%v: %v", tt.pace, s.findings(c))
			}
		})},
		{"thresholds", "The confidence is low after one or two later commands, and medium after three", seen(func(s *Server) {
			s.None(s.paced("203.0.113.1", 0, .1, 60), "early-talker")
			for n, confidence := range []string{"low", "low", "medium"} {
				c := s.paced(at("203.0.113.%d", n+2), n+1, .1, 60)
				for _, f := range s.findings(c) {
					s.Check(f.token != "early-talker" || f.confidence == confidence || f.confidence == "low", "%d later commands: %v", n+1, f)
				}
				s.Evidence(c, "early-talker", confidence)
			}
		})},
		{"thresholds", "A well-behaved client nearby may look the same, so use this evidence only in scores or in combination with other evidence", []Case{{Presets: []string{"standard", "tight"}, Play: func(s *Server) {
			s.Earlier()
			for range 5 {
				c := s.paced("203.0.113.1", 9, .1, 60)
				s.Evidence(c, "early-talker", "medium")
				s.Accepted(c)
				s.NotBanned(c)
			}
		}}}},
		{"thresholds", "Local addresses and clients with a round-trip time below 15 ms never cause this evidence", seen(func(s *Server) {
			s.None(s.paced("203.0.113.1", 8, .1, 14.9), "early-talker")
			s.None(s.paced("10.0.0.5", 8, .1, 60), "early-talker")
			s.None(s.paced("192.0.2.25", 8, .1, 60), "early-talker")
		})},
		{"thresholds", "Within an hour, an account logged in from eight networks, used eight sender addresses in other domains, or wrote to more than 500 recipients", seen(accountLimits)},
		{"thresholds", "Ten unknown recipients in one session are also evidence against the account", seen(accountLimits)},
		{"thresholds", "Each login during the next day causes the evidence again, unless the cause was unknown recipients", seen(func(s *Server) {
			s.moved("alice", 8)
			s.Wait(day - hour)
			s.Evidence(s.moved("alice", 1), "account-abuse", "medium")
			s.Wait(2 * hour)
			s.None(s.moved("alice", 1), "account-abuse")
			s.nowhere("carol", 10)
			s.None(s.moved("carol", 1), "account-abuse")
		})},
		{"thresholds", "The evidence concerns the account, never the address. Only rules with an auth condition can act on account-abuse", append(under("rule abuse phase { mail-from, rcpt-to } match evidence account-abuse reject ban 1h", func(s *Server) {
			s.Earlier()
			c := s.nowhere("carol", 12)
			s.Accepted(c)
			s.Evidence(c, "account-abuse", "")
			s.NotBanned(c)
			s.Check(s.standing(c.Host).Offence.IsZero(), "the address has an offence")
		}), under("rule abuse phase { mail-from, rcpt-to } match auth evidence account-abuse reject ban 1h", func(s *Server) {
			c := s.nowhere("carol", 12)
			s.Rejected("rcpt-to", c)
			s.NotBanned(c)
		})...)},
		{"thresholds", "More than 50 sessions from one address or /64 are open", seen(func(s *Server) {
			for _, net := range []string{"203.0.113.50", "2001:db8:7:7::%x"} {
				var last *simulate.Client
				for i := range 51 {
					s.Check(last == nil || len(s.Tokens(last)) == 0, "session %d has evidence", i)
					addr := net
					if strings.Contains(net, "%") {
						addr = fmt.Sprintf(net, i+1)
					}
					last = s.Connect(bare(addr, "mail.x.example"))
				}
				last.Leave()
				s.Evidence(last, "flood", "")
			}
		})},
		{"thresholds", "The client disconnected or timed out during a transaction, and no message was accepted in the session", seen(abandoned)},
		{"thresholds", "The client never sent MAIL, and no filter rejected a command", append(seen(func(s *Server) {
			s.Evidence(s.hello(unnamed1), "no-mail", "high")
			s.Evidence(s.command(unnamed1, "XYZZY"), "no-mail", "high")
			s.None(s.Message(unnamed1), "no-mail")
			s.None(s.Deliver(unnamed1, "joe@x.example", "nobody"), "no-mail")
		}), lines("rule x phase helo match src 203.0.113.0/24 reject", func(s *Server) { s.None(s.hello(unnamed1), "no-mail") })...)},
	}
}

// paced plays a client that greets, sends further commands and disconnects. n is the number of
// commands. ms contains the pauses before the commands in milliseconds.
func (s *Server) paced(addr string, n int, ms ...float64) *simulate.Client {
	h := named(addr, "mail.sender.example")
	for _, x := range ms {
		h.Pace = append(h.Pace, time.Duration(x*float64(time.Millisecond)))
	}
	c := s.Connect(h)
	c.Ehlo()
	for range n {
		c.Rset()
	}
	c.Leave()
	return c
}

func abandoned(s *Server) {
	leave := func(steps ...func(c *simulate.Client)) *simulate.Client {
		c := s.Connect(unnamed1)
		c.Ehlo()
		for _, step := range steps {
			step(c)
		}
		c.Leave()
		return c
	}
	mail := func(c *simulate.Client) { c.Mail("joe@x.example") }
	rcpt := func(c *simulate.Client) { c.Rcpt("alice@example.org") }
	data := func(c *simulate.Client) { c.Data() }
	s.Evidence(leave(mail), "abandoned", "high")
	s.Evidence(leave(mail, rcpt), "abandoned", "high")
	s.None(leave(), "abandoned")
	s.None(leave(mail, rcpt, data), "abandoned")
	s.None(leave(mail, func(c *simulate.Client) { c.Quit() }), "abandoned")
	s.None(leave(mail, func(c *simulate.Client) { c.Rset() }), "abandoned")
	s.None(leave(mail, rcpt, data, mail), "abandoned")
}

func accountLimits(s *Server) {
	s.Earlier()
	for n, found := range map[int]bool{7: false, 8: true} {
		s.Finds(found, s.moved(at("user%d", n), n), "account-abuse", "medium")
		s.Finds(found, s.senders(at("member%d", n), n, 8*minute), "account-abuse", "medium")
		s.None(s.senders(at("slow%d", n), n, 9*minute), "account-abuse")
	}
	for n, found := range map[int]bool{9: false, 10: true} {
		s.Finds(found, s.nowhere(at("user%d", n), n), "account-abuse", "medium")
	}
	for n, found := range map[int]bool{500: false, 501: true} {
		c := s.member(laptop("198.51.100.72"), at("user%d", n), 1, own("bob"), func(int) []string { return simulate.Foreign(0, n) })
		s.Finds(found, c, "account-abuse", "medium")
	}
}

// harvestRows returns the rows about harvests.
func harvestRows() []statement {
	ask := func(s *Server, h simulate.Host, n int, before ...string) *simulate.Client {
		return s.Ask(h, manner{}, append(ours(before...), simulate.Words(at("w%d-", s.Sessions()), 0, n)...)...)
	}
	return []statement{
		{"thresholds", "A session counts as a directory harvest in any of the following cases", seen(func(s *Server) {
			s.Earlier()
			s.Evidence(ask(s, unnamed1, 5), "harvest", "high")
		})},
		{"thresholds", "The session has five different unknown recipients with one sender, and no accepted recipient", seen(func(s *Server) {
			s.Earlier()
			s.None(ask(s, unnamed1, 4), "harvest")
			s.Evidence(ask(s, unnamed1, 5), "harvest", "high")
			s.None(ask(s, unnamed1, 6, "alice"), "harvest")
			s.None(s.Ask(unnamed1, manner{}, ours("x", "x", "y", "y", "z", "z")...), "harvest")
			s.None(s.Separate(unnamed1, []string{"a@x.example", "b@x.example"}, invented(5)...), "harvest")
		})},
		{"thresholds", "The session has ten unknown recipients, and they are at least three quarters of all its recipients", seen(func(s *Server) {
			s.Earlier()
			s.None(ask(s, unnamed1, 9, "alice"), "harvest")
			s.Evidence(ask(s, unnamed1, 10, "alice", "bob", "carol"), "harvest", "high")
			s.None(ask(s, unnamed1, 10, "alice", "bob", "carol", "dave"), "harvest")
			s.None(ask(s, unnamed1, 11, "alice", "bob", "carol", "dave"), "harvest")
			s.Evidence(ask(s, unnamed1, 12, "alice", "bob", "carol", "dave"), "harvest", "high")
		})},
		{"thresholds", "A client's retries of recipients that a rule has rejected do not count", lines("rule count phase rcpt-to match count unknown-recipient > 2 in 1h by src reject", func(s *Server) {
			s.Earlier()
			s.Ask(unnamed1, manner{}, append(ours("alice"), simulate.Words("w", 0, 9)...)...)
			s.Replace("> 2", "> 99")
			s.None(s.Ask(unnamed1, manner{}, simulate.Words("w", 3, 6)...), "harvest")
			s.Evidence(s.Ask(unnamed1, manner{}, simulate.Words("v", 0, 6)...), "harvest", "high")
		})},
		{"thresholds", "If the threshold is reached only with recipients that rules rejected, the confidence is low", play(func(s *Server) {
			s.Earlier()
			s.None(ask(s, unnamed1, 9, "alice"), "harvest")
			s.Wait(2 * day)
			s.Evidence(ask(s, unnamed1, 10, "alice"), "harvest", "low")
			s.Bans(unnamed1, 0)
		})},
		{"thresholds", "A transaction with the null sender has three unknown recipients. A real bounce has only one recipient", seen(func(s *Server) {
			s.Earlier()
			s.None(s.Ask(unnamed1, manner{Null: true}, simulate.Words("a", 0, 2)...), "harvest")
			s.Evidence(s.Ask(unnamed1, manner{Null: true}, simulate.Words("b", 0, 3)...), "harvest", "high")
			s.None(s.Ask(unnamed1, manner{Null: true, Per: 1}, simulate.Words("c", 0, 30)...), "harvest")
		})},
		{"thresholds", "The session has five unknown recipients, and this server has not yet accepted any recipient", seen(func(s *Server) {
			s.None(ask(s, unnamed1, 4), "harvest")
			s.Evidence(ask(s, unnamed1, 5), "harvest", "medium")
			s.Evidence(s.Separate(unnamed1, []string{"a@x.example", "b@x.example"}, invented(5)...), "harvest", "medium")
		})},
		{"thresholds", "The thresholds named all and share are doubled for known clients", seen(func(s *Server) {
			s.History(partner, 2, day)
			s.None(ask(s, partner, 9), "harvest")
			s.None(ask(s, partner, 19, "alice"), "harvest")
			s.Evidence(ask(s, partner, 20, "alice"), "harvest", "high")
			s.History(named1, 2, day)
			s.Evidence(ask(s, named1, 10), "harvest", "high")
		})},
		{"thresholds", "Speed is not evidence, because all mail servers are fast", seen(func(s *Server) {
			s.Earlier()
			h := partner
			h.Pace = []time.Duration{100 * time.Microsecond}
			c := s.Separate(h, []string{"joe@partner.example"}, mailboxes[1:]...)
			s.Delivered(c)
			s.Check(len(s.Tokens(c)) == 0, "evidence %v", s.Tokens(c))
		})},
	}
}

// probe requests a mailbox from each of n networks.
func (s *Server) probe(box string, n int, every time.Duration, m manner, before ...string) {
	for i := range n {
		s.Ask(bare(at("198.18.%d.9", i), "mail.x.example"), m, ours(append(before, box)...)...)
		s.Wait(every)
	}
}

func probedNetworks(s *Server) {
	s.Earlier()
	asks := func(box string, found bool) {
		s.Finds(found, s.Ask(unnamed1, manner{}, ours(box)...), "probed-recipient", "medium")
	}
	s.probe("two", 2, 0, manner{})
	asks("two", false)
	s.probe("three", 3, 0, manner{})
	asks("three", true)
	for range 5 {
		s.Ask(bare("198.18.1.9", "mail.x.example"), manner{}, ours("one")...)
		s.Ask(bare("198.18.1.10", "mail.x.example"), manner{}, ours("one")...)
	}
	asks("one", false)
	s.probe("covered", 3, 0, manner{}, "alice")
	asks("covered", false)
	s.probe("bob", 3, 0, manner{})
	s.Deliver(unnamed1, "joe@x.example", "bob")
	s.None(s.Deliver(unnamed1, "joe@x.example", "bob="), "probed-recipient")
	s.probe("late", 3, 0, manner{})
	s.probe("later", 3, 0, manner{})
	s.Wait(30 * day)
	asks("late", true)
	s.Wait(day)
	asks("later", false)
	s.probe("slow", 3, 30*day, manner{})
	asks("slow", true)
	s.probe("slower", 3, 31*day, manner{})
	asks("slower", false)
}

func freeAsks(s *Server) {
	s.Earlier()
	for i := range 9 {
		s.probe(at("box%d", i), 3, 0, manner{})
	}
	asks := func(found bool, from string, local ...string) {
		s.Finds(found, s.Ask(partner, manner{Sender: from}, ours(local...)...), "probed-recipient", "medium")
	}
	asks(false, "a@x.example", "box0")
	asks(true, "a@x.example", "box0")  // the same request again
	asks(false, "b@x.example", "box0") // another sender
	asks(true, "a@x.example", "other", "box1")
	for i := range 3 {
		asks(false, "a@x.example", at("box%d", 2+i))
	}
	asks(true, "a@x.example", "box5") // the domain's sixth recipient
	s.Finds(true, s.Ask(named("203.0.113.70", "mx2.partner.example"), manner{}, ours("box6")...), "probed-recipient", "")
	s.Finds(false, s.Ask(named1, manner{}, ours("box6")...), "probed-recipient", "")
	s.Finds(true, s.Ask(bare("203.0.113.71", "mail.x.example"), manner{}, ours("box7")...), "probed-recipient", "")
	s.Wait(day + minute)
	asks(false, "a@x.example", "box8")
	asks(true, "a@x.example", "box0")
	s.Wait(29 * day) // 30 days after the first request
	for i := range 3 {
		s.Ask(bare(at("198.18.%d.10", i), "mail.x.example"), manner{}, ours("box0")...)
	}
	asks(false, "a@x.example", "box0")
}

// loginRows returns the rows about logins.
func loginRows() []statement {
	failures := "rule none phase end match count auth-failure > 1000 in 7d by src ban 1m"
	return []statement{
		{"thresholds", "A user's failures do not count if the user logs in from the same address within a day", lines(failures, func(s *Server) {
			for i, tt := range []struct {
				user, addr string
				after      time.Duration
				left       int
			}{{"office", "", minute, 0}, {"office", "", 23 * hour, 0}, {"office", "", 26 * hour, 15}, {"alice", "", minute, 15}, {"office", "203.0.113.200", minute, 15}} {
				h := laptop(at("203.0.113.%d", 10+i))
				s.guess(h, 15)
				s.Check(s.failures(h) == 15, "%d failures", s.failures(h))
				s.Wait(tt.after)
				from := h
				if tt.addr != "" {
					from = laptop(tt.addr)
				}
				s.Login(from, tt.user, 0, true)
				s.Check(s.failures(h) == tt.left, "%v: %d failures are left, want %d", tt, s.failures(h), tt.left)
			}
		})},
		{"thresholds", "If any user has logged in from the address within the last 30 days, each user's failures count only once per hour", lines(failures, func(s *Server) {
			h := laptop("203.0.113.10")
			s.Login(h, "alice", 0, true)
			s.Wait(30 * day)
			s.guess(h, 15)
			s.Check(s.failures(h) == 1, "%d failures in an hour", s.failures(h))
			s.Guess(h, "bob", "bob")
			s.Check(s.failures(h) == 2, "%d failures of two users", s.failures(h))
			s.Wait(hour)
			s.guess(h, 15)
			s.Check(s.failures(h) == 3, "%d failures in two hours", s.failures(h))
			s.Wait(day)
			s.guess(h, 15)
			s.Check(s.failures(h) == 18, "%d failures after 31 days", s.failures(h))
		})},
		{"thresholds", "Names of the same mailbox, such as alice, alice+news and alice@example.org, count as one user", lines(failures, func(s *Server) {
			h := laptop("203.0.113.10")
			names := []string{"alice", "Alice+news", "alice@example.org", "ALICE@EXAMPLE.ORG"}
			s.Guess(h, names...)
			s.Check(s.failures(h) == 4, "%d failures", s.failures(h))
			s.Login(h, "alice", 0, true)
			s.Check(s.failures(h) == 0, "%d failures are left", s.failures(h))
			s.Guess(h, strings.Fields("bob bob+news bob@example.org")...)
			s.Check(s.failures(h) == 1, "%d failures in an hour", s.failures(h))
		})},
		{"thresholds", "The presets count failures by address only, so many addresses that each try a few passwords for the same user are not banned", play(func(s *Server) {
			s.Tried(960, s.repeat(960, 90*time.Second, func(i int) *simulate.Client { return s.Guess(bare(at("203.0.113.%d", 100+i%40), "x.example"), "bob") }))
			s.NotBanned(s.Guess(bare("203.0.113.100", "x.example"), "bob"))
		})},
		{"thresholds", "Five users failed to log in from one address within a day", seen(func(s *Server) {
			spray := func(addr string, n int, every time.Duration) (c *simulate.Client) {
				for i := range n {
					c = s.Guess(laptop(addr), at("user%d", i))
					s.Wait(every)
				}
				return c
			}
			s.None(spray("203.0.113.10", 4, 0), "auth-spray")
			s.Evidence(spray("198.51.100.11", 5, 5*hour), "auth-spray", "high")
			s.None(spray("192.0.2.12", 5, 6*hour+minute), "auth-spray")
		})},
		{"thresholds", "An unknown client has sent VRFY or EXPN with ten different names, which the server has rejected, and the session has no accepted recipient", seen(func(s *Server) {
			s.History(partner, 2, day)
			for _, verb := range []string{"VRFY", "EXPN"} {
				s.None(s.names(unnamed1, verb, 40, 9, "550 5.1.1 User unknown"), "harvest")
				s.None(s.names(partner, verb, 40, 40, "550 5.1.1 User unknown"), "harvest")
				s.Evidence(s.names(unnamed1, verb, 10, 10, "550 5.1.1 User unknown"), "harvest", "high")
			}
			c := s.Connect(named1)
			c.Ehlo()
			c.Mail("joe@sender.example")
			c.Rcpt("alice@example.org")
			for i := range 20 {
				c.Command(at("VRFY user%d", i), "550 5.1.1 User unknown")
			}
			c.Quit()
			s.None(c, "harvest")
		})},
		{"thresholds", "If users have logged in from the address within the last 30 days, the threshold is twice their number, but at least eight and at most 32", seen(func(s *Server) {
			for i, tt := range []struct{ logins, most int }{{1, 8}, {4, 8}, {5, 10}, {16, 32}, {20, 32}} {
				h := laptop(at("203.0.113.%d", 10+i))
				for j := range tt.logins {
					s.Login(h, at("member%d", j), 0, true)
				}
				s.Wait(30 * day)
				for j := range tt.most - 1 {
					s.None(s.Guess(h, at("user%d", j)), "auth-spray")
				}
				s.sprays(h, "another", "third", "fourth")
			}
		})},
		{"thresholds", "The last 32 users who have logged in from an address do not count at this address, however often they fail", seen(func(s *Server) {
			h := laptop("203.0.113.10")
			for i := range 33 {
				s.Login(h, at("member%d", i), 0, true)
			}
			for range 25 {
				for i := range 32 {
					s.None(s.Guess(h, at("member%d", 1+i)), "auth-spray")
				}
				s.Wait(minute)
			}
			for i := range 31 {
				s.None(s.Guess(h, at("user%d", i)), "auth-spray")
			}
			s.sprays(h, "member0", "another", "third")
		})},
		{"thresholds", "At an address with logins, failures of three other users are enough if each user has failed 20 times. If more than three users have logged in from an address, that number of other users is needed", seen(func(s *Server) {
			for i, tt := range []struct{ logins, most int }{{1, 3}, {3, 3}, {5, 5}} {
				h := laptop(at("203.0.113.%d", 10+i))
				for j := range tt.logins {
					s.Login(h, at("member%d", j), 0, true)
				}
				for j := range tt.most - 1 {
					s.None(s.guessAs(h, at("user%d", j), 30), "auth-spray")
				}
				s.None(s.guessAs(h, "another", 19), "auth-spray")
				s.Evidence(s.guessAs(h, "another", 1), "auth-spray", "high")
			}
		})},
		{"thresholds", "The failures of one other user are enough if they reach 280 within a clock hour, and those of two other users if each reaches 140", seen(func(s *Server) {
			for i, users := range []int{1, 2} {
				h := laptop(at("203.0.113.%d", 10+i))
				s.Login(h, "alice", 0, true)
				s.Wait(29 * day)
				for j := range 279 {
					s.None(s.Guess(h, at("user%d", j%users)), "auth-spray")
					s.Wait(5 * time.Second)
				}
				s.Evidence(s.Guess(h, at("user%d", 279%users)), "auth-spray", "high")
			}
		})},
		{"thresholds", "After a ban of an address with logins, counting starts again", play(func(s *Server) {
			h := laptop("203.0.113.10")
			s.Login(h, "alice", 0, true)
			for _, d := range []time.Duration{10 * minute, hour, day} {
				for i := range 8 {
					s.Accepted(s.Guess(h, at("user%d", i)))
				}
				s.Bans(h, d)
				s.Shut(s.Guess(h, "user0"))
				s.Wait(d)
			}
			for range 2 {
				s.Accepted(s.guessAs(h, "office", 20), s.guessAs(h, "scan", 20), s.guessAs(h, "backup", 19), s.guessAs(h, "backup", 1))
				s.Bans(h, day)
				s.Shut(s.Guess(h, "backup"))
				s.Wait(day)
			}
		})},
		{"thresholds", "The confidence is low if one user fails to log in from five networks within a day, perhaps because of a mistyped password. The confidence is also low if eight users fail to log in from one network within an hour", seen(func(s *Server) {
			for i := range 4 {
				s.None(s.Guess(bare(at("198.18.%d.9", i), "x.example"), "office"), "auth-spray")
				s.Wait(5 * hour)
			}
			s.lowSpray(s.Guess(bare("198.18.4.9", "x.example"), "office"))
			for i := range 7 {
				s.None(s.Guess(bare(at("203.0.113.%d", i+1), "x.example"), at("user%d", i)), "auth-spray")
				s.Wait(8 * minute)
			}
			s.lowSpray(s.Guess(bare("203.0.113.8", "x.example"), "user7"))
			for i := range 8 {
				s.None(s.Guess(bare(at("198.51.100.%d", i+1), "x.example"), at("member%d", i)), "auth-spray")
				s.Wait(9 * minute)
			}
		})},
		{"thresholds", "The day and the hour begin with the first failure", seen(func(s *Server) {
			for i := range 8 { // users 1 to 5 fail within nine hours, but on two days
				s.None(s.Guess(laptop("203.0.113.10"), at("user%d", i)), "auth-spray")
				s.Wait([]time.Duration{19 * hour, hour, hour, 4 * hour, hour, hour, hour, hour}[i])
			}
			s.Evidence(s.Guess(laptop("203.0.113.10"), "user8"), "auth-spray", "high")
		})},
		{"thresholds", "If a host tries the attacked user in a second session, the confidence is high", seen(func(s *Server) {
			for i := range 5 {
				s.Guess(bare(at("198.18.%d.9", i), "x.example"), "office")
			}
			s.Evidence(s.Guess(bare("198.18.0.9", "x.example"), "office"), "auth-spray", "high")
			s.lowSpray(s.Guess(bare("198.18.5.9", "x.example"), "office", "office"))
			s.Evidence(s.Guess(bare("198.18.5.9", "x.example"), "office"), "auth-spray", "high")
		})},
	}
}

// lowSpray asserts that the record has the evidence auth-spray, but only with low
// confidence.
func (s *Server) lowSpray(c *simulate.Client) {
	s.Evidence(c, "auth-spray", "low")
	for _, f := range s.findings(c) {
		s.Check(f.token != "auth-spray" || f.confidence == "low", "%v", f)
	}
}

// sprays plays failed logins until there is evidence of a password spray. The filter stores a hash
// of 16 bits for each user, so it may mistake a user for an earlier one.
func (s *Server) sprays(h simulate.Host, users ...string) {
	for i, user := range users {
		c := s.Guess(h, user)
		if i == len(users)-1 || slices.Contains(s.Tokens(c), "auth-spray") {
			s.Evidence(c, "auth-spray", "high")
			return
		}
	}
}

// guessAs plays a session with n wrong passwords for a user.
func (s *Server) guessAs(h simulate.Host, user string, n int) *simulate.Client {
	return s.Guess(h, slices.Repeat([]string{user}, n)...)
}

// failures returns the number of an address's failed logins in 7 days.
func (s *Server) failures(h simulate.Host) int {
	s.Flush()
	n, _ := s.memory.Counters.Count(peer(h), rules.Window{Evidence: rules.AuthFailure, Window: 7 * day, By: rules.BySrc}, s.Now().UnixMicro())
	return n
}
