package cases

// This file contains a check for each statement in the manual and in the presets' comments.

import (
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// A statement quotes sentences from a preset or from a section of the manual. If one of these
// sentences is false, a case of the statement fails.
type statement struct {
	where string // presets or a section
	text  string
	check []Case
}

const presets = "standard tight"

func statements() []statement {
	return slices.Concat(presetRows(), limitRows(), scoreRows(), ruleRows(), banRows(), standingRows(), thresholdRows(), harvestRows(), loginRows())
}

// TestStatements checks that the manual and the presets' comments are true.
func TestStatements(t *testing.T) {
	var list []Case
	for _, r := range statements() {
		for where := range strings.FieldsSeq(r.where) {
			for _, c := range r.check {
				c.Name = where + ": " + r.text[:min(len(r.text), 60)]
				switch preset := strings.Contains(presets, where); {
				case c.Lines != "":
				case preset && len(c.Presets) > 0 && !slices.Contains(c.Presets, where):
					continue
				case preset:
					c.Presets = []string{where}
				case len(c.Presets) == 0:
					c.Presets = []string{"standard"}
				}
				list = append(list, c)
			}
		}
	}
	Run(t, list)
}

// play returns a check that runs under the statement's preset. The default is standard.
func play(f func(s *Server)) []Case { return []Case{{Play: f}} }

// under returns a check with lines that are added to the policy.
func under(conf string, f func(s *Server)) []Case { return []Case{{Conf: conf, Play: f}} }

// lines returns a check whose policy consists of the given lines, in enforce mode.
func lines(policy string, f func(s *Server)) []Case {
	return []Case{{Lines: "mode enforce\n" + policy + "\n", Play: f}}
}

// edited returns a check with a policy in which the second text replaces the first.
func edited(old, with string, f func(s *Server)) []Case {
	return []Case{{Edit: func(text string) string { return strings.ReplaceAll(text, old, with) }, Play: f}}
}

// of returns the number that applies to the case's preset.
func (s *Server) of(standard, tight int) int {
	if s.Preset == "tight" {
		return tight
	}
	return standard
}

var (
	unnamed1 = bare("203.0.113.50", "mail.x.example")
	named1   = named("198.51.100.30", "mail.sender.example")
	partner  = named("198.51.100.124", "mail.partner.example")
)

// answered returns the number of unknown recipients that the server itself rejected.
func answered(cs ...*simulate.Client) (n int) {
	for _, c := range cs {
		for _, r := range c.Asked {
			if r.Result == simulate.NoSuch {
				n++
			}
		}
	}
	return n
}

// Answers asserts that the server itself rejected exactly n recipients of cs, and that the filter
// rejected all further recipients.
func (s *Server) Answers(n int, cs ...*simulate.Client) {
	asked := 0
	for _, c := range cs {
		asked += len(c.Asked)
	}
	s.Check(answered(cs...) == n && asked > n, "the server answered %d of %d recipients, want %d", answered(cs...), asked, n)
}

// each plays n sessions with one unknown recipient each.
func (s *Server) each(n int, every time.Duration, m manner, host func(int) simulate.Host) []*simulate.Client {
	return s.Bursts(n, 1, every, m, host)
}

// None asserts that c's record does not contain the token.
func (s *Server) None(c *simulate.Client, token string) {
	s.Check(!slices.Contains(s.Tokens(c), token), "%s has evidence %s", who(c), token)
}

// Finds asserts that c's record contains the token if want is set, and does not contain it
// otherwise.
func (s *Server) Finds(want bool, c *simulate.Client, token, confidence string) {
	if want {
		s.Evidence(c, token, confidence)
	} else {
		s.None(c, token)
	}
}

// acted reports whether c's record contains an act for which ok returns true.
func (s *Server) acted(c *simulate.Client, ok func(act) bool) bool {
	s.Flush()
	r := s.records[c.ID()]
	return r != nil && slices.ContainsFunc(r.acts, ok)
}

// peer returns a host in the form that package memory uses.
func peer(h simulate.Host) *memory.Client {
	c := &memory.Client{Addr: h.Src}
	if h.RDNS != "" && (h.FCrDNS == "" || h.FCrDNS == "pass") {
		c.Domain = memory.RegisteredDomain([]byte(h.RDNS))
	}
	return c
}

func (s *Server) standing(h simulate.Host) memory.Standing {
	s.Flush()
	return s.memory.Peers.Standing(peer(h), s.Now().UnixMicro())
}

// Stands checks a host's standing: none, known or trusted.
func (s *Server) Stands(h simulate.Host, want string) {
	got := s.standing(h)
	s.Check(got.Level.String() == want, "%v is %v on %v, want %s: %+v", h.Src, got.Level, s.Now(), want, got)
}

// ban returns a host's newest ban.
func (s *Server) ban(h simulate.Host) (last memory.Ban) {
	for _, b := range s.bans() {
		if b.Prefix.Contains(h.Src) && b.Since.After(last.Since) {
			last = b
		}
	}
	return last
}

// Bans checks the length of a host's newest ban. Length 0 means that there is no ban.
func (s *Server) Bans(h simulate.Host, want time.Duration) {
	b := s.ban(h)
	s.Check(b.Until.Sub(b.Since) == want, "%v is banned for %v by %s, want %v", h.Src, b.Until.Sub(b.Since), b.Rule, want)
}

// offend greets with a name that the rule trial rejects.
func (s *Server) offend(h simulate.Host) *simulate.Client {
	h.Helo = "trial.example"
	c := s.Connect(h)
	c.Ehlo()
	c.Quit()
	return c
}

// trial returns a rule that rejects the sessions of offend.
func trial(ban string) string {
	return `rule trial phase helo match helo "trial.example" disconnect "554 5.7.1 No" ban ` + ban
}

// hello connects, greets and leaves.
func (s *Server) hello(h simulate.Host) *simulate.Client {
	c := s.Connect(h)
	c.Ehlo()
	c.Quit()
	return c
}

// command sends a line before any greeting.
func (s *Server) command(h simulate.Host, line string) *simulate.Client {
	c := s.Connect(h)
	c.Command(line, simulate.UnknownCommand)
	c.Leave()
	return c
}

// presetRows returns the rows about exemptions, scanners, greetings and protocols.
func presetRows() []statement {
	return []statement{
		{"standard", "standard: reject a client only if there is proof that it is not there to deliver mail", play(unusual)},
		{"standard", "Unusual behaviour only adds points, which are recorded", play(unusual)},
		{"tight", "tight: the same as standard, but also reject servers that do not greet as RFC 5321 requires, and rented hosts without a proven name", play(tightRejects)},
		{"tight", "It rejects some legitimate servers with a bad configuration", play(func(s *Server) {
			s.Earlier()
			s.Rejected("rcpt-to", s.Message(bare("198.51.100.80", "exchange")))
		})},
		{"tight", "The replies contain the reason, and they are temporary if DNS may be the cause", play(tightReplies)},
		{presets, "Start with observe: the log and `scanwatch report` show the decisions without enforcing them", edited("\nmode enforce", "\nmode observe", func(s *Server) {
			c := s.hello(bare("203.0.113.80", "ylmf-pc"))
			s.Accepted(c)
			s.Check(len(s.Logged(`^observed-ban src=\S+ rule=botnet`)) == 1, "the log has no decision")
			s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindVerdict && a.text == "botnet" && !a.enforced }), "the record has no decision")
		})},
		{presets, "Change it to `mode enforce` when the reports are correct", edited("\nmode enforce", "\nmode observe", func(s *Server) {
			s.Replace("\nmode observe", "\nmode enforce")
			s.Rejected("ehlo", s.hello(bare("203.0.113.80", "ylmf-pc")))
		})},
		{presets, "Hosts that are never rejected: local networks, customers, backup servers", edited("table <friends> { }", "table <friends> { 203.0.113.0/28, 203.0.113.80 }", func(s *Server) {
			s.Accepted(s.hello(bare("203.0.113.15", "ylmf-pc")), s.hello(bare("203.0.113.80", "ylmf-pc")))
			s.Rejected("", s.hello(bare("203.0.113.16", "ylmf-pc")))
		})},
		{presets, `List addresses and prefixes here, or read them from a file: file "friends"`, play(friendsFile)},
		{presets, "Names of servers that send legitimate mail", play(knownSenders)},
		{presets, "the list is part of the program", play(knownSenders)},
		{presets, "Friends are exempt from all rules", edited("table <friends> { }", "table <friends> { 203.0.113.50 }\nrule own phase rcpt-to match src 203.0.113.0/24 reject", func(s *Server) {
			s.Earlier()
			s.Rejected("rcpt-to", s.Message(bare("203.0.113.51", "mail.x.example")))
			cs := append(s.Harvests(unnamed1, 60, 30), s.Ask(unnamed1, manner{}, simulate.Foreign(0, 20)...), s.hello(bare("203.0.113.50", "ylmf-pc")))
			s.Accepted(cs...)
			s.NotBanned(cs...)
		})},
		{presets, "Known senders are exempt if FCrDNS proves their name", play(knownSenders)},
		{presets, "Mail to the postmaster (RFC 5321 section 4.5.1) and to abuse (RFC 2142) is exempt, so that senders rejected at other recipients can complain", play(complaint)},
		{"tight", "Unknown clients must wait two seconds for the greeting, which delays spam programs more than mail servers", play(wait)},
		{presets, "Known scanning organisations, which never send mail, recognised by a published prefix or a proven name", play(scanners)},
		{presets, "A name without FCrDNS is not sufficient", play(func(s *Server) {
			h := greets("203.0.113.40", "census1.shodan.io", "mail.x.example")
			h.FCrDNS = "fail"
			s.Accepted(s.Message(h))
			h.FCrDNS = "pass"
			s.Rejected("connect", s.hello(h))
		})},
		{presets, "Greetings that only attack tools use, also on ports where users log in", play(tools)},
		{presets, "Web browsers, SSH clients and other programs that do not speak SMTP, and clients that do not wait for replies three times in an hour", play(otherProtocols)},
		{presets, "A mail server may share the address of such a client, so its mail must arrive between the bans", play(neighbour)},
		{presets, "No other host may greet with the name or the address of this server", play(ourName)},
		{presets, "If the client has no proven name, the cause may be a DNS failure", play(func(s *Server) {
			s.Earlier()
			for _, h := range []simulate.Host{without(named("198.51.100.50", "mx.example.org"), "fail"), without(named("198.51.100.51", "mx.example.org"), "error")} {
				h.Helo = "mx.example.org"
				c := s.Message(h)
				s.Rejected("rcpt-to", c)
				s.Temporary(c)
				s.NotBanned(c)
			}
		})},
		{presets, "The rules decide at the recipient, so the record contains the recipient, and authenticated users are not affected", play(atRecipient)},
		{"tight", "A greeting with the domain of a provider or of this server, from a host with another DNS name", play(forgedDomain)},
		{"tight", "If the DNS name is missing, the cause may be a DNS failure", play(func(s *Server) {
			s.Earlier()
			for _, h := range outages("198.51.100.90", "mail.partner.example", "163.com") {
				c := s.Deliver(h, "joe@partner.example", "alice")
				s.Rejected("rcpt-to", c)
				s.Temporary(c)
			}
		})},
		{"tight", "A greeting is a host name or an address in brackets (RFC 5321 section 4.1.3)", play(goodGreeting)},
		{"tight", "A single word as greeting and no proven name, so that it is unknown which host the client is", play(singleWord)},
		{"tight", "Rented hosts without a reverse DNS name, or with one that fails FCrDNS", play(rentedHost)},
	}
}

// unusual plays several legitimate programs with unusual properties.
func unusual(s *Server) {
	s.Earlier()
	for i, helo := range []string{"exchange", "localhost", "203.0.113.9", "User", "mail.example.com", "gmail.com"} {
		c := s.Message(bare(at("198.51.100.%d", 10+i), helo))
		s.Accepted(c)
		s.Delivered(c)
		s.Check(!c.Junked(), "the message of %s is marked", who(c))
		s.Check(len(s.Tokens(c)) > 0, "%s has no evidence", who(c))
	}
	h := bare("198.51.100.20", "gmail.com")
	h.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
	c := s.Message(h)
	s.Accepted(c)
	s.Check(!c.Junked() && c.Mails() == 1, "the message of %s is rejected or marked", who(c))
	s.Check(len(s.Logged(`^session would=junk .*rule=odd .*score=`)) > 0, "no points are logged")
	s.sixty()
	s.Check(len(s.Logged(`^session would=junk src=203.0.113.55 `)) == 0, "a message with 60 points would be marked")
}

// sixty sends a message that scores 60 points.
func (s *Server) sixty() *simulate.Client {
	h := greets("203.0.113.55", "gw.partner.example", "exchange-1")
	h.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
	c := s.Message(h)
	s.Delivered(c)
	s.Check(slices.Equal(s.Tokens(c), []string{"early-talker", "helo-unqualified"}), "evidence %v", s.Tokens(c))
	return c
}

func tightRejects(s *Server) {
	s.Earlier()
	for i, helo := range []string{"exchange", "localhost", "203.0.113.9", "gmail.com"} {
		s.Rejected("rcpt-to", s.Message(bare(at("198.51.100.%d", 10+i), helo)))
	}
	rentedHost(s)
	c := s.Message(bare("198.51.100.21", "mail.x.example")) // this client has no name and is not a rented host
	s.Accepted(c)
	s.Delivered(c)
}

func tightReplies(s *Server) {
	s.Earlier()
	for helo, text := range map[string]string{"exchange": "450 4.7.25 Give your address a name in DNS, and greet", "gmail.com": "450 4.7.1 That name is not yours", "203.0.113.9": "550 5.7.1 Greet with your host name"} {
		c := s.Message(bare("198.51.100.80", helo))
		s.Check(strings.Contains(answers(c), text), "the reply to %s is %s", helo, answers(c))
	}
}

func friendsFile(s *Server) {
	text := strings.Replace(s.text, "table <friends> { }", `table <friends> { 192.0.2.0/28, file "friends" }`, 1)
	tree, err := rules.Parse("scanwatch.conf", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		s.Fail("%v", err)
		return
	}
	var files []string
	_, _, err = rules.Compile(tree, rules.Options{Load: func(src rules.Source) (rules.Table, error) {
		files = append(files, src.File)
		return nil, nil
	}})
	s.Check(err == nil && slices.Contains(files, "friends"), "files %q, error %v", files, err)
}

func knownSenders(s *Server) {
	s.Earlier()
	h := named("198.51.100.40", "o1.outbound-mail.sendgrid.net")
	cs := s.Harvests(h, 60, 30)
	s.Accepted(cs...)
	s.NotBanned(cs...)
	h = named("198.51.100.41", "o2.outbound-mail.sendgrid.net")
	h.FCrDNS = "fail"
	s.Rejected("rcpt-to", s.Harvests(h, 30, 30)...)
}

func complaint(s *Server) {
	s.Earlier()
	h := greets("203.0.113.60", "dsl-60.isp.example", "mx.example.org")
	s.Rejected("rcpt-to", s.Message(h))
	for _, to := range []string{"postmaster", "abuse", "POSTMASTER"} {
		c := s.Deliver(h, "joe@x.example", to)
		s.Accepted(c)
		s.Delivered(c)
	}
	s.Rejected("rcpt-to", s.Deliver(h, "joe@x.example", "info"))
	s.Rejected("connect", s.Deliver(named("203.0.113.30", "census1.shodan.io"), "joe@x.example", "postmaster"))
}

func wait(s *Server) {
	took := func(h simulate.Host) time.Duration {
		from := s.Now()
		s.Connect(h).Leave()
		return s.Now().Sub(from).Round(100 * time.Millisecond)
	}
	s.Check(took(unnamed1) == 2*time.Second, "an unknown client waited %v", took(unnamed1))
	s.Message(partner)
	s.Check(took(partner) == 2*time.Second, "a client with mail of the same day waited %v", took(partner))
	s.Wait(day)
	s.Check(took(partner) == 0, "a known client waited %v", took(partner))
}

func scanners(s *Server) {
	s.Earlier()
	for _, h := range []simulate.Host{named("203.0.113.30", "census1.shodan.io"), bare("64.62.197.20", "mail.x.example")} {
		s.Rejected("connect", s.spam(h))
		s.Bans(h, day)
	}
	s.Accepted(s.spam(bare("64.62.196.20", "mail.x.example")))
}

func tools(s *Server) {
	for i, port := range []uint16{25, 465, 587} {
		h := bare(at("203.0.113.%d", 80+i), "ylmf-pc")
		h.Port = port
		s.Rejected("ehlo", s.hello(h))
		s.Bans(h, 7*day)
	}
}

// otherProtocols plays programs that do not speak SMTP. The next session of each program
// must be rejected.
func otherProtocols(s *Server) {
	for i, line := range []string{"GET / HTTP/1.1", "SSH-2.0-Go", "\x03", "\x16\x03\x01\x02"} {
		h := bare(at("203.0.113.%d", 90+i), "mail.x.example")
		s.command(h, line)
		if i < s.of(3, 4) {
			s.Bans(h, 10*minute)
		}
		h.Src = h.Src.Next().Next().Next().Next()
		c := s.Connect(h)
		c.Command(line, simulate.UnknownCommand)
		c.Ehlo()
		s.Rejected("ehlo", c)
	}
	for i, h := range []simulate.Host{bare("203.0.113.99", "-"), bare("203.0.113.98", "mail.x.example")} {
		for range 3 {
			s.Bans(h, 0)
			c := s.Connect(h)
			if i > 0 {
				c.Ehlo()
			}
			c.Pipelined()
			s.Wait(minute)
		}
		s.Bans(h, 10*minute)
	}
}

func ourName(s *Server) {
	s.Earlier()
	for i, helo := range []string{"mx.example.org", "192.0.2.25", "[192.0.2.25]", "[IPv6:2001:db8:ffff::25]"} {
		c := s.Message(greets(at("203.0.113.%d", 60+i), at("dsl-%d.isp.example", 60+i), helo))
		s.Rejected("rcpt-to", c)
		s.Check(strings.HasPrefix(answers(c), "rcpt-to: 550"), "the reply is %s", answers(c))
	}
	s.Accepted(s.Message(greets("203.0.113.70", "web.example.org", "mx.example.org")))
}

func atRecipient(s *Server) {
	s.Earlier()
	c := s.Message(greets("203.0.113.60", "dsl-60.isp.example", "mx.example.org"))
	s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindRcpt && strings.HasPrefix(a.text, "alice@") }), "the record has no recipient")
	d := s.Login(greets("203.0.113.61", "dsl-61.isp.example", "mx.example.org"), "alice", 0, true)
	s.Accepted(d)
	s.Delivered(d)
}

func forgedDomain(s *Server) {
	s.Earlier()
	for i, helo := range []string{"163.com", "example.org", "gmail.com"} {
		c := s.Message(greets(at("203.0.113.%d", 60+i), at("dsl-%d.isp.example", 60+i), helo))
		s.Check(strings.HasPrefix(answers(c), "rcpt-to: 550"), "the reply to %s is %s", helo, answers(c))
	}
	s.Accepted(s.Message(greets("220.181.12.215", "m12.mail.163.com", "163.com")), s.Message(greets("203.0.113.70", "www.example.org", "example.org")))
}

func goodGreeting(s *Server) {
	s.Earlier()
	for i, helo := range []string{"203.0.113.9", "localhost", "localhost.localdomain"} {
		s.Rejected("rcpt-to", s.Message(greets(at("198.51.100.%d", 10+i), "mail.partner.example", helo)))
	}
	for i, helo := range []string{"[198.51.100.20]", "mail.partner.example", "mail", "mail.other.example"} {
		s.Accepted(s.Message(greets(at("198.51.100.%d", 20+i), "mail.partner.example", helo)))
	}
}

func singleWord(s *Server) {
	s.Earlier()
	h := greets("198.51.100.20", "mail.partner.example", "exchange")
	s.Accepted(s.Message(h))
	for _, h := range outages("198.51.100.20", "mail.partner.example", "exchange")[:2] {
		c := s.Message(h)
		s.Check(strings.HasPrefix(answers(c), "rcpt-to: 450 4.7.25"), "the reply is %s", answers(c))
	}
}

func rentedHost(s *Server) {
	s.Earlier()
	h := greets("203.0.113.91", "ec2-3-131-215-38.us-east-2.compute.amazonaws.com", "mail.x.example")
	s.Accepted(s.Message(h))
	h.FCrDNS = "fail"
	for _, h := range []simulate.Host{h, bare("3.131.215.38", "mail.x.example")} {
		c := s.Message(h)
		s.Check(strings.HasPrefix(answers(c), "rcpt-to: 450 4.7.25"), "the reply to %v is %s", h.Src, answers(c))
	}
	s.Accepted(s.Message(named("3.131.215.39", "mail.family.example")))
}
