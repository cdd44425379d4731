package cases

// This file checks the presets' limits and points.

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

// limitRows returns the rows about bans, harvests, relaying, brute force and accounts.
func limitRows() []statement {
	return []statement{
		{presets, "The first ban lasts for the first duration in the list", under(trial("{ 10m, 1h, 1d }"), func(s *Server) {
			s.offend(unnamed1)
			s.Bans(unnamed1, 10*minute)
		})},
		{presets, "each offence within a day after a ban gets the next duration", under(trial("{ 10m, 1h, 1d }"), func(s *Server) {
			s.ladder([]time.Duration{0, day, day, day + time.Second}, []time.Duration{10 * minute, hour, day, day})
			s.ladder([]time.Duration{0, day + time.Second, day}, []time.Duration{10 * minute, 10 * minute, hour})
		})},
		{presets, "With 0s, the first offence is only counted", under(trial("{ 0s, 1h, 1d }"), func(s *Server) {
			s.ladder([]time.Duration{0, day, day}, []time.Duration{0, hour, day})
			s.offend(named1)
			s.Wait(day + minute)
			s.offend(named1)
			s.Bans(named1, 0)
		})},
		{presets, "Only scanners and attack tools are banned for more than two days", play(func(s *Server) {
			policy, _, err := simulate.CompileAnyway(s.text)
			if err != nil {
				s.Fail("%v", err)
				return
			}
			var long []string
			for _, r := range policy.Rules() {
				if len(r.Ban) > 0 && slices.Max(r.Ladder()) > 2*day {
					long = append(long, r.Name)
				}
			}
			s.Check(slices.Equal(long, []string{"scanner", "botnet"}), "long bans by %v", long)
		})},
		{presets, "During all other bans, the reply is temporary, so a mail server retries until the ban has ended", play(neighbour)},
		{presets, "Clients that sent mail on an earlier day are banned only for failed logins, or by a rule with even trusted", under(trial("1h"), knownNotBanned)},
		{presets, "Clients that sent mail on many days are rejected only for their behaviour, and with a temporary code", play(trustedConduct)},
		{presets, "Directory harvest: a session with five unknown recipients and no other", play(harvestLimits)},
		{presets, "The reply is temporary", play(func(s *Server) {
			s.Earlier()
			c := s.Ask(named1, manner{}, simulate.Words("w", 0, 6)...)
			s.Check(strings.HasPrefix(answers(c), "rcpt-to: 421"), "the reply is %s", answers(c))
			s.Bans(named1, day)
		})},
		{presets, "Slow harvest: unknown recipients in several sessions", play(slowHarvest)},
		{presets, "The rules reject only recipients that are not known to exist, so mail to existing mailboxes passes", play(existingPass)},
		{presets, "For known clients, the numbers are doubled", play(func(s *Server) {
			s.History(unnamed1, 1, 26*hour)
			s.History(named1, 1, 26*hour)
			s.Answers(9, s.each(10, minute, manner{}, same(unnamed1))...)
			s.Answers(11, s.each(12, minute, manner{}, same(named1))...)
		})},
		{presets, "The replies show a client which mailboxes exist, because only unknown recipients are rejected", play(persistent)},
		{presets, "A host that requests many more unknown recipients is therefore banned, and hosts in a domain or network that does so are disconnected", play(persistent)},
		{presets, "A known host is banned when its session ends", play(bought)},
		{presets, "Bounces to unknown recipients: many are normal, because senders are easy to forge", play(func(s *Server) {
			s.Earlier()
			s.Answers(16, s.each(17, 30*minute, manner{Null: true}, same(unnamed1))...)
			s.Answers(41, s.each(42, 20*minute, manner{Null: true}, same(named1))...)
		})},
		{presets, "Distributed harvest: if all clients together have requested more than twenty unknown recipients in an hour, an unknown client without a proven name may request only three in a session", play(siege)},
		{presets, "Relay probes: recipients in foreign domains, of which each counts once", play(relayLimit)},
		{presets, "Mail to local domains passes", play(func(s *Server) {
			s.Earlier()
			s.Ask(unnamed1, manner{}, simulate.Foreign(0, 9)...)
			s.Ask(unnamed1, manner{}, simulate.Foreign(9, 9)...)
			s.Wait(15 * minute)
			s.Rejected("rcpt-to", s.Ask(unnamed1, manner{}, simulate.Foreign(50, 1)...))
			c := s.Deliver(unnamed1, "joe@x.example", "judy") // judy has not received mail before
			s.Accepted(c)
			s.Delivered(c)
		})},
		{presets, "The server itself rejects relaying", play(func(s *Server) {
			s.Earlier()
			c := s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...)
			s.Accepted(c)
			s.Check(answered(c) == 1, "the server accepted relaying")
			s.Evidence(c, "relay-probe", "")
		})},
		{presets, "the local domains come from accepted mail or from <local-domains>", append(play(func(s *Server) {
			s.None(s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...), "relay-probe")
			s.Earlier()
			s.Evidence(s.Ask(unnamed1, manner{}, simulate.Foreign(1, 1)...), "relay-probe", "medium")
		}), under(`table <local-domains> { "example.org" }`, func(s *Server) {
			s.Evidence(s.Ask(unnamed1, manner{}, simulate.Foreign(0, 1)...), "relay-probe", "high")
		})...)},
		{"tight", "More than thirty unknown commands in a day", play(noise)},
		{presets, "Brute force", play(guessLimits)},
		{presets, "The filter cannot reply to AUTH, so the ban takes effect at the next connection", play(func(s *Server) {
			c := s.guess(bare("203.0.113.82", "x.example"), 40)
			s.Check(c.Tries == 40, "%d passwords were answered", c.Tries)
			s.Shut(s.guess(bare("203.0.113.82", "x.example"), 1))
		})},
		{presets, "Addresses with a recent successful login are banned only for a password spray", play(func(s *Server) {
			h := laptop("203.0.113.82")
			s.Login(h, "alice", 0, true)
			s.Wait(30 * day)
			for i := range 6 {
				s.Guess(h, at("user%d", i))
			}
			s.Blind(h, 20, "LOGIN")
			s.NotBanned(s.guess(h, 50))
			s.Guess(h, "user6")
			s.Bans(h, 10*minute)
			s.Wait(2 * day)
			s.guess(h, 50)
			s.Check(s.ban(h).Rule == "guess", "the login counts after 30 days")
		})},
		{presets, "For other addresses, the limits are so high that a phone may retry an old password", play(func(s *Server) {
			h := laptop("203.0.113.82")
			s.guess(h, s.of(19, 10))
			s.Bans(h, 0)
			s.guess(h, 1)
			s.Bans(h, 10*minute)
		})},
		{"standard", "More than fifty concurrent connections of one host", play(func(s *Server) { s.concurrent(50) })},
		{"tight", "More than thirty concurrent connections of one host", play(func(s *Server) { s.concurrent(30) })},
		{presets, "A stolen account: logins from many networks, many sender addresses, many unknown recipients", edited("\n#rule stolen", "\nrule stolen", func(s *Server) {
			s.Earlier()
			for _, c := range []*simulate.Client{s.moved("alice", 8), s.senders("bob", 8, minute), s.nowhere("carol", 10)} {
				s.Check(strings.Contains(answers(c), ": 450"), "%s was not rejected: %s", c.Host.Src, answers(c))
			}
		})},
		{presets, "To reject its mail until the password is changed, remove the #", append(edited("\n#rule stolen", "\nrule stolen", func(s *Server) {
			s.Rejected("", s.senders("bob", 9, minute))
		}), play(func(s *Server) { s.Accepted(s.senders("bob", 9, minute)) })...)},
	}
}

// ladder plays an offence after the end of each ban, and checks the length of each new ban.
func (s *Server) ladder(after, want []time.Duration) {
	h := bare(at("203.0.113.%d", 100+s.Sessions()%100), "x.example")
	end := s.Now().Add(minute)
	greet := time.Duration(s.of(0, 2)) * time.Second // greeting delay
	for i, d := range after {
		s.WaitUntil(end.Add(d - greet))
		at := s.Now().Add(greet).Truncate(time.Second)
		s.offend(h)
		end = at
		b := s.ban(h)
		got := time.Duration(0)
		if !b.Since.Before(at) {
			got, end = b.Until.Sub(b.Since), b.Until
		}
		s.Check(got == want[i], "offence %d after %v: a ban for %v, want %v", i+1, d, got, want[i])
	}
}

func knownNotBanned(s *Server) {
	s.Message(named1)
	s.offend(named1)
	s.Bans(named1, hour) // mail on the same day
	s.History(partner, 8, hour)
	s.Wait(day)
	for range 3 {
		c := s.offend(partner)
		s.Rejected("ehlo", c)
		s.NotBanned(c)
		s.Wait(day)
	}
	s.guess(partner, 20)
	s.Bans(partner, 10*minute)
}

func trustedConduct(s *Server) {
	s.History(partner, 28, 12*hour)
	s.Stands(partner, "trusted")
	h := partner
	h.Helo = "mx.example.org"
	s.Accepted(s.Message(h)) // rules about names do not apply to trusted clients
	c := s.Ask(partner, manner{}, simulate.Words("w", 0, 60)...)
	s.Rejected("rcpt-to", c)
	s.Temporary(c)
	s.NotBanned(c)
	s.Wait(31 * day)
	h.Helo = "ylmf-pc"
	s.History(partner, 28, 12*hour)
	s.Stands(partner, "trusted")
	c = s.hello(h)
	s.Rejected("ehlo", c)
	s.Temporary(c)
	s.NotBanned(c)
}

func harvestLimits(s *Server) {
	s.Earlier()
	host := func() simulate.Host {
		n := s.Sessions()
		return named(at("203.0.113.%d", n), fmt.Sprintf("mail.sender%d.example", n))
	}
	a, b := s.Ask(host(), manner{}, simulate.Words("a", 0, 4)...), s.Ask(host(), manner{}, simulate.Words("a", 0, 6)...)
	s.Accepted(a)
	s.Answers(5, b)
	s.Evidence(b, "harvest", "high")
	s.Banned(b)
	s.None(s.Ask(host(), manner{}, append(ours("alice"), simulate.Words("b", 0, 6)...)...), "harvest")
}

// neighbour plays offices in which a device misbehaves every hour. A new mail server at the same
// address retries a message every 70 minutes.
func neighbour(s *Server) {
	s.Earlier()
	for i, bad := range []func(h simulate.Host){
		func(h simulate.Host) { s.command(h, "GET / HTTP/1.1") },
		func(h simulate.Host) { s.Blind(h, 6, "LOGIN") },
		func(h simulate.Host) {
			for range 4 {
				c := s.Connect(h)
				c.Ehlo()
				c.Pipelined()
				c.Quit()
			}
		},
		func(h simulate.Host) { s.Ask(h, manner{}, simulate.Foreign(s.Sessions(), 1)...) },
	} {
		h := named(at("198.51.100.%d", 40+i), fmt.Sprintf("gw.firm%d.example", i))
		var last *simulate.Client
		for n := range 4 * 24 * 6 { // every ten minutes for four days
			if n%6 == 0 {
				bad(h)
			}
			if n >= 24*6 && n%7 == 0 && (last == nil || last.Mails() == 0) {
				last = s.Message(h)
				s.Temporary(last)
			}
			s.Wait(10 * minute)
		}
		s.Delivered(last)
	}
}

func slowHarvest(s *Server) {
	s.Earlier()
	s.Answers(5, s.each(6, minute, manner{}, same(unnamed1))...)
	s.Bans(unnamed1, 0)
	s.Answers(6, s.each(7, minute, manner{}, same(named1))...)
	s.Wait(2 * day)
	for _, h := range []simulate.Host{bare("203.0.113.51", "mail.x.example"), partner} {
		s.Answers(s.of(21, 11), s.each(s.of(22, 12), 45*minute, manner{}, same(h))...)
		s.Wait(2 * day)
	}
	s.Answers(s.of(21, 11), s.each(s.of(22, 12), 45*minute, manner{}, func(i int) simulate.Host { return bare(at("203.0.113.%d", 100+i), "mail.x.example") })...)
	s.Wait(2 * day)
	s.Answers(s.of(41, 21), s.each(s.of(42, 22), 25*minute, manner{}, func(i int) simulate.Host { return named(far(i), fmt.Sprintf("mx%d.broken.example", i)) })...)
}

func existingPass(s *Server) {
	s.Earlier()
	s.each(6, minute, manner{}, same(unnamed1))
	c := s.Deliver(unnamed1, "joe@x.example", "nobody7", "alice")
	s.Rejected("rcpt-to", c)
	s.Temporary(c)
	s.Delivered(c)
	s.Rejected("rcpt-to", s.Deliver(unnamed1, "joe@x.example", "ivan")) // the mailbox exists, but has not received mail
}

func siege(s *Server) {
	s.Earlier()
	others := func(n int) {
		for range n {
			i := s.Sessions()
			s.each(1, 30*time.Second, manner{}, same(named(far(i), fmt.Sprintf("mx.other%d.example", i))))
		}
	}
	all := append(ours("alice"), simulate.Words("w", 0, 8)...)
	ask := func(addr string, n int) { s.Answers(n, s.Ask(bare(addr, "mail.x.example"), manner{}, all...)) }
	others(17)
	ask("203.0.113.51", 4) // with its fourth request, this host and the others have requested twenty recipients
	s.Wait(2 * hour)
	others(18)
	ask("198.51.100.51", 3)
	s.Answers(6, s.Ask(named1, manner{}, all...))
	others(20)
	ask("192.0.2.52", 3)
	s.Wait(2 * hour)
	ask("192.0.2.51", 5) // no siege
}

// persistent continues to request recipients after too many unknown recipients. The reply for an
// existing mailbox must then be different.
func persistent(s *Server) {
	s.Earlier()
	word := 0
	play := func(free, most int, every time.Duration, host func(int) simulate.Host) simulate.Host {
		s.Bursts(free, 1, every, manner{Sender: at("s%d@x.example", most)}, host)
		for i := range most + 1 {
			h := host(free + i)
			c := s.Ask(h, manner{}, fmt.Sprintf("more%d@example.org", word), "alice@example.org")
			word++
			s.Check(strings.Contains(answers(c), "rcpt-to: 421") == (i == most), "%v, recipient %d: %s", h.Src, i+1, answers(c))
			if i < most {
				s.Bans(h, 0)
			}
			s.Wait(30 * time.Second)
		}
		return host(free + most)
	}
	// These are bounces, because other rules would ban the host earlier for other mail.
	for i := range 16 + s.of(60, 30) + 1 {
		s.Bans(unnamed1, 0)
		s.Ask(unnamed1, manner{Null: true}, fmt.Sprintf("bounce%d@example.org", i))
		s.Wait(minute)
	}
	s.Bans(unnamed1, hour)
	c := s.Ask(bare("203.0.113.70", "mail.y.example"), manner{Null: true, Per: 1}, simulate.Words("bounced", 0, 100)...)
	last := c.Refusals()[len(c.Refusals())-1]
	s.Check(c.Closed && strings.HasPrefix(last.Text, "421"), "bounces in one session: %s", last.Text)
	s.Wait(2 * day)
	play(s.of(21, 11), s.of(120, 60), 5*minute, func(i int) simulate.Host { return bare(at("198.51.100.%d", 100+i), "mail.x.example") })
	s.Wait(2 * day)
	play(s.of(41, 21), s.of(120, 60), 5*minute, func(i int) simulate.Host { return named(far(i), fmt.Sprintf("mx%d.broken.example", i)) })
}

// bought sends a message, and on the next day requests recipients that do not exist.
func bought(s *Server) {
	s.Earlier()
	s.History(unnamed1, 1, 26*hour)
	for i := 0; s.ban(unnamed1).Rule == ""; i++ {
		if i > 2*s.of(60, 30) {
			s.Fail("no ban after %d sessions", i)
			return
		}
		c := s.Ask(unnamed1, manner{}, simulate.Words("bought", 3*i, 3)...)
		s.Check(!c.Barred, "session %d: %s", i+1, answers(c))
		s.Wait(minute)
	}
	s.Check(s.ban(unnamed1).Rule == "persistent-end", "banned by %s", s.ban(unnamed1).Rule)
	s.Bans(unnamed1, hour)
}

func relayLimit(s *Server) {
	s.Earlier()
	h := unnamed1
	ask := func(i int) *simulate.Client { return s.Ask(h, manner{}, simulate.Foreign(i, 1)...) }
	most := s.of(10, 4)
	s.repeat(most-1, minute, ask)
	s.Accepted(s.repeat(most-1, minute, ask)...) // retries
	s.Bans(h, 0)
	s.Accepted(ask(most - 1))
	s.Bans(h, 10*minute)
	s.Wait(11 * minute)
	cs := s.repeat(most+20, minute, ask)
	s.Rejected("rcpt-to", cs...)
	s.Temporary(cs...)
	s.Bans(h, 10*minute)
}

func noise(s *Server) {
	play := func(h simulate.Host, n int, mail bool) {
		c := s.Connect(h)
		c.Ehlo()
		for range n {
			c.Command("XYZZY", simulate.UnknownCommand)
		}
		if mail {
			c.Mail("joe@x.example")
			c.Rcpt("alice@example.org")
			c.Data()
		}
		c.Quit()
	}
	play(unnamed1, 30, false)
	s.Bans(unnamed1, 0)
	play(unnamed1, 1, false)
	s.Bans(unnamed1, 10*minute)
	play(named1, 31, true) // the session includes a message
	s.Bans(named1, 10*minute)
}

// guess tries wrong passwords for one user in one session.
func (s *Server) guess(h simulate.Host, n int) *simulate.Client {
	users := make([]string, n)
	for i := range users {
		users[i] = "office"
	}
	return s.Guess(h, users...)
}

func guessLimits(s *Server) {
	host := func(i int) simulate.Host { return bare(at("203.0.113.%d", 80+i), "x.example") }
	banned := func(h simulate.Host, n int, play func()) {
		for range n {
			s.Bans(h, 0)
			play()
		}
		s.Bans(h, 10*minute)
	}
	h := host(0)
	banned(h, s.of(20, 11), func() { s.guess(h, 1) })
	slow := host(1)
	banned(slow, s.of(41, 31), func() { s.Wait(28 * minute); s.guess(slow, 1) })
	n, spray := 0, host(2)
	banned(spray, 5, func() { n++; s.Guess(spray, at("user%d", n)) })
	blind := host(3)
	banned(blind, s.of(11, 4), func() { s.Blind(blind, 1, "PLAIN") })
	early := host(4)
	early.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
	banned(early, 1, func() { s.Blind(early, 2, "LOGIN") })
}

// concurrent opens connections from one host. The filter must accept exactly most of them.
func (s *Server) concurrent(most int) {
	s.History(partner, 2, day)
	for i := range most + 1 {
		c := s.Connect(unnamed1)
		s.Check(c.Barred == (i == most), "connection %d: rejected %v", i+1, c.Barred)
		s.Check(!s.Connect(partner).Barred, "connection %d of a known client is rejected", i+1)
	}
}

// moved logs in from n networks, and returns the last session.
func (s *Server) moved(user string, n int) (c *simulate.Client) {
	for i := range n {
		c = s.member(bare(at("198.18.%d.9", 10+i), "laptop"), user, 1, own(user), func(int) []string { return []string{"joe@partner.example"} })
		s.Wait(minute)
	}
	return c
}

// senders sends from n addresses in one network, and returns the last session.
func (s *Server) senders(user string, n int, every time.Duration) (c *simulate.Client) {
	for i := range n {
		c = s.member(laptop("198.51.100.70"), user, 1, func(int) string { return at("winner%d@lottery.example", i) }, func(int) []string { return []string{"joe@partner.example"} })
		s.Wait(every)
	}
	return c
}

// nowhere sends to n nonexistent recipients, and then to an existing one.
func (s *Server) nowhere(user string, n int) *simulate.Client {
	return s.member(laptop("198.51.100.71"), user, 1, own(user), func(int) []string { return append(simulate.Words("w", 0, n), ours("alice")...) })
}

// scoreRows returns the rows about points.
func scoreRows() (rows []statement) {
	for _, tt := range []struct {
		where, token, points, text string
		low                        bool // play produces low confidence
		play                       func(s *Server) simulate.Host
	}{
		{"standard", "rdns-missing", "20", "has no reverse DNS name", false, func(s *Server) simulate.Host { return s.sends(unnamed1) }},
		{"tight", "rdns-missing", "30", "has no reverse DNS name", false, func(s *Server) simulate.Host { return s.sends(unnamed1) }},
		{"standard", "fcrdns-fail", "10", "has a reverse DNS name that fails FCrDNS", false, unproven},
		{"tight", "fcrdns-fail", "20", "has a reverse DNS name that fails FCrDNS", false, unproven},
		{"standard", "cloud", "10", "is a rented host of a cloud provider", true, rented},
		{"tight", "cloud", "20", "is a rented host of a cloud provider", true, rented},
		{presets, "helo-unqualified", "20", "greets with a name without a dot", false, greeting("exchange")},
		{presets, "helo-word", "20", "greets with a common computer name", true, greeting("mail.example.com")},
		{"standard", "helo-bare-address", "30", "greets with an address without brackets", false, greeting("203.0.113.9")},
		{"standard", "helo-localhost", "30", "greets as localhost", false, greeting("localhost")},
		{"standard", "helo-invalid", "30", "greets with an invalid name", false, func(s *Server) simulate.Host {
			return s.says(unnamed1, "EHLO foo..bar", "501 5.5.4 Invalid command arguments: Invalid domain name")
		}},
		{"standard", "helo-forged", "40", "greets with a forged name", false, greeting("163.com")},
		{"tight", "helo-changed", "10", "greets with different names in one session", false, func(s *Server) simulate.Host {
			c := s.Connect(unnamed1)
			c.Ehlo()
			c.Greet("EHLO", "mail.y.example")
			c.Quit()
			return unnamed1
		}},
		{presets, "pipelining", "20", "sends commands without waiting for replies", false, func(s *Server) simulate.Host {
			c := s.Connect(unnamed1)
			c.Ehlo()
			c.Pipelined()
			return unnamed1
		}},
		{presets, "early-talker", "40", "speaks before the server's greeting", false, func(s *Server) simulate.Host {
			h := unnamed1
			h.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
			return s.sends(h)
		}},
		{"standard", "probed-recipient", "30", "writes to a recipient that other hosts have probed", false, probing},
		{"tight", "probed-recipient", "40", "writes to a recipient that other hosts have probed", false, probing},
		{"tight", "syntax-error", "10", "sends commands with invalid arguments", true, func(s *Server) simulate.Host {
			c := s.Connect(unnamed1)
			c.Ehlo()
			c.Command("MAIL FROM:joe@x.example", "501 5.5.2 Syntax error: Syntax error")
			c.Quit()
			return unnamed1
		}},
		{presets, "scanner", "60", "belongs to a known scanning organisation", false, func(s *Server) simulate.Host { return s.sends(named("203.0.113.30", "census1.shodan.io")) }},
		{presets, "botnet-helo", "60", "uses the greeting of a known botnet or attack tool", false, greeting("ylmf-pc")},
	} {
		line := "score evidence " + tt.token + " " + tt.points
		rows = append(rows, statement{tt.where, line + ": " + tt.text, points(line, tt.low, tt.play)})
	}
	return append(rows, statement{presets, "Points for unusual properties that legitimate servers also have", play(func(s *Server) {
		s.Earlier()
		c := s.Message(bare("198.51.100.99", "server1.exchange"))
		s.Accepted(c)
		s.Delivered(c)
	})}, statement{presets, "A host that is only possibly a scanner adds half of the points", points("score evidence scanner 60", true, func(s *Server) simulate.Host {
		h := named("203.0.113.30", "census1.shodan.io")
		h.FCrDNS = "fail"
		return s.sends(h)
	})}, statement{"standard", "Points never lead to a rejection here: because of `observe`, the rule only records which messages it would mark", play(unusual)},
		statement{"tight", "Many points: the message is delivered and marked as junk", play(func(s *Server) {
			s.Earlier()
			h := bare("203.0.113.54", "mail.x.example") // 30 points
			c := s.Message(h)
			s.Delivered(c)
			s.Check(!c.Junked() && !s.sixty().Junked(), "a message with at most 60 points is marked")
			h.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond} // 40 points
			c = s.Message(h)
			s.Delivered(c)
			s.Check(c.Junked(), "a message with 70 points is not marked")
		})})
}

// points checks that a session has exactly the number of points in the line. If low is set, the
// confidence is low, and the session has half of these points.
func points(line string, low bool, play func(s *Server) simulate.Host) (list []Case) {
	var n int
	if _, err := fmt.Sscanf(line[strings.LastIndexByte(line, ' ')+1:], "%d", &n); err != nil {
		panic(err)
	}
	if low {
		n /= 2
	}
	for _, most := range []int{n - 1, n} {
		list = append(list, lines(fmt.Sprintf("%s\nrule points phase end match score > %d ban 1h", line, most), func(s *Server) {
			s.Earlier()
			h := play(s)
			s.Check((s.ban(h).Rule == "points") == (most < n), "more than %d points is %v", most, most >= n)
		})...)
	}
	return list
}

func (s *Server) sends(h simulate.Host) simulate.Host {
	s.Deliver(h, "joe@x.example", "alice")
	return h
}

func (s *Server) says(h simulate.Host, line, reply string) simulate.Host {
	c := s.Connect(h)
	c.Command(line, reply)
	c.Quit()
	return h
}

func greeting(helo string) func(s *Server) simulate.Host {
	return func(s *Server) simulate.Host { return s.sends(bare("203.0.113.50", helo)) }
}

func unproven(s *Server) simulate.Host {
	h := named("203.0.113.50", "mail.x.example")
	h.FCrDNS = "fail"
	return s.sends(h)
}

func rented(s *Server) simulate.Host {
	return s.sends(greets("203.0.113.91", "ec2-3-131-215-38.us-east-2.compute.amazonaws.com", "mail.x.example"))
}

func probing(s *Server) simulate.Host {
	for i := range 3 {
		s.Ask(bare(at("198.18.%d.9", i), "mail.x.example"), manner{}, "jobs@example.org")
	}
	s.Ask(unnamed1, manner{}, "jobs@example.org")
	return unnamed1
}
