package cases

// This file checks the manual's sections Presets, Rules, Bans and Standing.

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// only(preset, list) returns the cases in list, each restricted to the given preset.
func only(preset string, list []Case) []Case {
	for i := range list {
		list[i].Presets = []string{preset}
	}
	return list
}

// eval evaluates a policy for the given facts.
func (s *Server) eval(policy string, f rules.Facts) rules.Verdict {
	tree, err := rules.Parse("scanwatch.conf", func(string) ([]byte, error) { return []byte(policy), nil })
	if err == nil {
		var p *rules.Policy
		if p, _, err = rules.Compile(tree, rules.Options{}); err == nil {
			return p.Eval(&f)
		}
	}
	s.Fail("%v", err)
	return rules.Verdict{}
}

// Decides checks whether a rule with the given condition matches.
func (s *Server) Decides(want bool, condition string, f rules.Facts) {
	f.Src = netip.MustParseAddr("203.0.113.50")
	f.Phase = smtp.PhaseMailFrom
	v := s.eval("mode enforce\ntable <late> file \"/nonexistent\"\nrule x phase mail-from match "+condition+" reject\n", f)
	s.Check((v.Act.Rule != nil) == want, "%s decides: %v", condition, !want)
}

// Sticks checks whether a decision remains active.
func (s *Server) Sticks(want bool, phase smtp.Phase, condition string) {
	f := rules.Facts{Phase: phase, Src: netip.MustParseAddr("203.0.113.50"), Helo: []byte("x"), MailFrom: []byte("joe@x.example"), RcptTo: []byte("alice@example.org"), Evidence: rules.RDNSMissing, TLS: true}
	f.Counts[rules.UnknownRecipient.Index()] = 9
	f.Auth = strings.Contains(condition, "auth")
	f.Score = 5
	v := s.eval("mode enforce\nrule x phase "+phase.String()+" match "+condition+" junk\n", f)
	s.Check(v.Act.Rule != nil && v.Act.Sticky == want, "%s remains active: %v", condition, v.Act.Sticky)
}

func ruleRows() []statement {
	const rejects = ` reject "550 5.7.1 `
	return []statement{
		{"Presets", "A preset is a ready-made policy with comments", play(threePresets)},
		{"Presets", "All presets start in observe mode", play(threePresets)},
		{"Presets", "Record only", only("open", play(recordOnly))},
		{"Presets", "Reject a client only if there is proof that it is not there to deliver mail", play(unusual)},
		{"Presets", "Ban directory harvests and scanners for a day, and attack tools for a week. Ban brute-force password attacks for ten minutes at first, and then for longer", play(firstBans)},
		{"Presets", "Also reject servers without a proper greeting, and rented hosts without a proven name", only("tight", play(tightRejects))},
		{"Presets", "The thresholds are lower, and the greeting is delayed by two seconds for unknown clients", append(only("tight", append(play(wait), play(guessLimits)...)), only("standard", play(guessLimits))...)},

		{"Rules", "In each phase, the filter evaluates the rules for that phase in order", lines("rule later phase rcpt-to match src 203.0.113.0/24"+rejects+"A\"\nrule b phase mail-from match mail-from \"b@\""+rejects+"B\"\nrule c phase mail-from match src 203.0.113.0/24"+rejects+"C\"", func(s *Server) {
			s.replies(s.Deliver(unnamed1, "b@x.example", "alice"), "550 5.7.1 B")
			s.replies(s.Deliver(unnamed1, "a@x.example", "alice"), "550 5.7.1 C")
		})},
		{"Rules", "Evaluation stops at the first matching rule that has a decision", lines("rule a phase rcpt-to match rcpt-to \"alice@\" proceed\nrule b phase rcpt-to match src 203.0.113.0/24"+rejects+"B\"", func(s *Server) {
			s.Accepted(s.Deliver(unnamed1, "joe@x.example", "alice"))
			s.replies(s.Deliver(unnamed1, "joe@x.example", "bob"), "550 5.7.1 B")
		})},
		{"Rules", "Scores, tags and delays from earlier matching rules still apply", lines("rule a phase mail-from match any score 50 tag early delay 2s\nrule b phase mail-from match score > 49"+rejects+"B\" delay 3s\nrule c phase mail-from match any tag late delay 40s", earlierEffects)},
		{"Rules", "If no rule decides, the command proceeds", lines("rule a phase { helo, mail-from, rcpt-to, data, commit } match any tag seen", func(s *Server) {
			c := s.Message(unnamed1)
			s.Accepted(c)
			s.Delivered(c)
		})},
		{"Rules", "Authenticated and local sessions are exempt from all rules without an auth condition", lines("rule a phase mail-from match src 203.0.113.0/24"+rejects+"A\"\nrule b phase rcpt-to match auth \"bob\""+rejects+"B\"", func(s *Server) {
			s.replies(s.Message(unnamed1), "550 5.7.1 A")
			s.Delivered(s.Login(laptop("203.0.113.82"), "alice", 0, true))
			s.replies(s.Login(laptop("203.0.113.82"), "bob", 0, true), "550 5.7.1 B")
			v := s.eval(s.text, rules.Facts{Phase: smtp.PhaseMailFrom, Local: true})
			s.Check(v.Act.Rule == nil, "a local session is rejected")
		})},
		{"Rules", "The result of a condition is yes, no or unknown", play(func(s *Server) {
			for _, tt := range []struct {
				f       rules.Facts
				yes, no bool
			}{{rules.Facts{ASN: 1, ASNKnown: true}, true, false}, {rules.Facts{ASN: 2, ASNKnown: true}, false, true}, {rules.Facts{}, false, false}} {
				s.Decides(tt.yes, "asn 1", tt.f)
				s.Decides(tt.no, "!asn 1", tt.f)
			}
		})},
		{"Rules", "For example, a condition is unknown if there is no asn file, if a table has not been loaded, or if DNS did not answer", play(func(s *Server) {
			for _, condition := range []string{"asn 1", "src <late>", "fcrdns", "rdns .example"} {
				s.Decides(false, condition, rules.Facts{FCrDNS: smtp.FCrDNSError})
				s.Decides(false, "!"+condition, rules.Facts{FCrDNS: smtp.FCrDNSError})
			}
		})},
		{"Rules", "An unknown condition never matches, even if it is negated", lines("rule a phase mail-from match !fcrdns"+rejects+"A\"\nrule b phase mail-from match fcrdns"+rejects+"B\"", func(s *Server) {
			s.Accepted(s.Message(without(partner, "error")))
			s.replies(s.Message(without(partner, "fail")), "550 5.7.1 A")
			s.replies(s.Message(partner), "550 5.7.1 B")
		})},
		{"Rules", "Decisions other than proceed remain in force in later phases, even if the client greets again or starts another message", lines("rule a phase mail-from match helo \"bad.example\""+rejects+"A\"\nrule b phase mail-from match helo \"well.example\" proceed\nrule c phase rcpt-to match evidence helo-unqualified"+rejects+"C\"", remains)},
		{"Rules", "A decision is lifted when the client logs in or a pass statement matches", lines("pass match rcpt-to \"postmaster@\"\nrule a phase helo match helo \"bad.example\""+rejects+"A\"\nrule c phase rcpt-to match evidence helo-unqualified"+rejects+"C\"", ends)},
		{"Rules", "Some decisions apply to the current command only; Decisions of rules that have no condition; Decisions of rules that have a condition on mail-from, rcpt-to, auth or tls; Decisions of rules that count recipients", play(func(s *Server) {
			for _, condition := range []string{"any", "mail-from \"joe@\"", "rcpt-to \"alice@\"", "auth", "tls", "count unknown-recipient > 3", "evidence rdns-missing rcpt-to \"alice@\""} {
				s.Sticks(false, smtp.PhaseRcptTo, condition)
			}
			for _, condition := range []string{"evidence rdns-missing", "helo \"x\"", "src 203.0.113.0/24", "score > 4"} {
				s.Sticks(true, smtp.PhaseRcptTo, condition)
			}
		})},
		{"Rules", "Rejecting one recipient therefore does not affect the others", lines("rule a phase rcpt-to match rcpt-to \"bob@\""+rejects+"A\"", func(s *Server) {
			c := s.Deliver(unnamed1, "joe@x.example", "alice", "bob", "carol")
			s.Check(len(c.Refusals()) == 1 && c.Mails() == 1, "%d rejections", len(c.Refusals()))
		})},
	}
}

// replies checks the text of the first rejection.
func (s *Server) replies(c *simulate.Client, text string) {
	r := c.Refusals()
	s.Check(len(r) > 0 && strings.HasPrefix(r[0].Text, text), "the reply to %s is %q, want %q", who(c), answers(c), text)
}

func threePresets(s *Server) {
	names := rules.PolicyNames()
	s.Check(len(names) == 3, "presets %q", names)
	for _, name := range names {
		text, err := simulate.PresetText(name)
		if err != nil {
			s.Fail("%v", err)
			continue
		}
		p, err := simulate.Compile(text)
		s.Check(err == nil && p.Mode == rules.Observe && len(comments(text)) > 3, "%s: mode %v, error %v", name, p.Mode, err)
	}
}

func recordOnly(s *Server) {
	s.Earlier()
	c := s.Ask(bare("203.0.113.80", "ylmf-pc"), manner{}, simulate.Words("w", 0, 40)...)
	s.Accepted(c)
	s.NotBanned(c)
	s.Evidence(c, "botnet-helo", "")
	s.Evidence(c, "harvest", "")
	s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindRcpt }), "no recipient is recorded")
}

func firstBans(s *Server) {
	s.Earlier()
	s.Ask(unnamed1, manner{}, simulate.Words("w", 0, 6)...)
	s.Bans(unnamed1, day)
	scanner, bot, guesser := named("203.0.113.30", "census1.shodan.io"), bare("203.0.113.80", "ylmf-pc"), bare("203.0.113.82", "x.example")
	s.hello(scanner)
	s.Bans(scanner, day)
	s.hello(bot)
	s.Bans(bot, 7*day)
	s.guess(guesser, 60)
	s.Bans(guesser, 10*minute)
	s.Wait(hour)
	s.guess(guesser, 60)
	s.Bans(guesser, hour)
}

func earlierEffects(s *Server) {
	from := s.Now()
	c := s.Connect(unnamed1)
	c.Ehlo()
	c.Mail("joe@x.example")
	s.replies(c, "550 5.7.1 B")
	s.Check(s.Now().Sub(from).Round(time.Second) == 3*time.Second, "the reply took %v", s.Now().Sub(from))
	c.Quit()
	for tag, want := range map[string]bool{"early": true, "late": false} {
		s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindTag && a.text == tag }) == want, "the tag %s is recorded: %v", tag, !want)
	}
}

func remains(s *Server) {
	s.Earlier()
	c := s.Connect(bare("203.0.113.50", "bad.example"))
	s.Check(c.Ehlo() == simulate.Accepted, "the greeting is rejected")
	s.Check(c.Mail("joe@x.example") == simulate.Refused, "the sender is accepted")
	s.Check(c.Greet("EHLO", "well.example") == simulate.Accepted, "the second greeting is rejected: the decision is active before its phase")
	s.Check(c.Mail("joe@x.example") == simulate.Refused, "the sender is accepted after another greeting")
	c.Quit()
	c = s.Connect(bare("203.0.113.51", "word"))
	c.Ehlo()
	for _, to := range []string{"alice@example.org", "bob@example.org"} {
		s.Check(c.Mail("joe@x.example") == simulate.Accepted && c.Rcpt(to) == simulate.Refused, "the recipient %s is accepted", to)
		c.Rset()
	}
	c.Greet("EHLO", "mail.x.example")
	c.Mail("joe@x.example")
	s.Check(c.Rcpt("alice@example.org") == simulate.Refused, "the recipient is accepted after another greeting")
	c.Quit()
	c = s.Connect(bare("203.0.113.52", "well.example"))
	c.Ehlo()
	c.Mail("joe@x.example")
	c.Rset()
	c.Greet("EHLO", "bad.example")
	s.Check(c.Mail("joe@x.example") == simulate.Refused, "proceed remains active")
	c.Quit()
}

func ends(s *Server) {
	s.Earlier()
	h := laptop("203.0.113.50")
	h.Port = 587
	c := s.Connect(h)
	c.Ehlo()
	s.Check(c.Greet("EHLO", "bad.example") == simulate.Refused && c.Greet("EHLO", "laptop") == simulate.Refused, "the greeting is accepted")
	c.StartTLS()
	c.Auth("alice", true)
	s.Check(c.Greet("EHLO", "laptop") == simulate.Accepted && c.Mail("alice@example.org") == simulate.Accepted, "the user is rejected: %s", answers(c))
	c.Quit()
	c = s.Connect(bare("203.0.113.51", "word"))
	c.Ehlo()
	c.Mail("joe@x.example")
	s.Check(c.Rcpt("alice@example.org") == simulate.Refused && c.Rcpt("postmaster@example.org") == simulate.Accepted, "the pass has no effect: %s", answers(c))
	s.Check(c.Data() == simulate.Accepted, "the message is rejected: %s", answers(c))
	c.Quit()
}

func banRows() []statement {
	return []statement{
		{"Bans", "The filter disconnects a banned host as soon as it connects", under(trial("1h"), func(s *Server) {
			s.offend(unnamed1)
			c := s.hello(unnamed1)
			s.Check(c.Barred && c.Closed, "the host is not disconnected")
			s.Rejected("connect", c)
		})},
		{"Bans", "The reply gives the end of the ban, and the rule and the session that caused it", under(trial("1h"), func(s *Server) {
			first := s.offend(unnamed1)
			s.hello(unnamed1)
			text := answers(s.hello(unnamed1))
			for _, part := range []string{s.ban(unnamed1).Until.Format("2006-01-02 15:04"), "trial", fmt.Sprintf("%016x", first.ID())} {
				s.Check(strings.Contains(text, part), "the reply %q has no %s", text, part)
			}
		})},
		{"Bans", "For bans of up to two days, the reply code is 421, so a legitimate server queues its mail and retries", banned("2d", "421")},
		{"Bans", "For longer bans, the reply code is 554, so the sender receives a bounce", append(banned("49h", "554"), banned("366d", "554")...)},
		{"Bans", "Every ban expires", append(under(trial("1h"), expires), under(trial("366d"), expires)...)},
		{"Bans", "Offences are consecutive if each occurs within a day of the end of the previous ban. After a ban of more than six hours, the next offence is consecutive within four times the ban's length", under(trial("{ 10m, 2d, 3d }"), func(s *Server) {
			s.ladder([]time.Duration{0, day, 8 * day, 12 * day}, []time.Duration{10 * minute, 2 * day, 3 * day, 3 * day})
			s.ladder([]time.Duration{0, day + time.Second}, []time.Duration{10 * minute, 10 * minute})
			s.ladder([]time.Duration{0, day, 8*day + time.Second}, []time.Duration{10 * minute, 2 * day, 10 * minute})
		})},
		{"Bans", "The source of an offence is the client's IPv4 address or IPv6 /64", under(trial("1h"), func(s *Server) {
			s.offend(unnamed1)
			s.offend(bare("2001:db8:7:7::1", "x.example"))
			s.offend(greets("2001:db8:9:9::1", "2001-db8-9-9--1.dyn.isp.example", "x.example"))
			for addr, want := range map[string]bool{"203.0.113.50": true, "203.0.113.51": false, "2001:db8:7:7:ffff::2": true, "2001:db8:7:8::1": false, "2001:db8:9:9::2": true} {
				s.Check(s.hello(bare(addr, "x.example")).Barred == want, "%s is banned: %v", addr, !want)
			}
		})},
		{"Bans", "For Teredo addresses, and for NAT64 addresses in 64:ff9b:1::/48, the source is also the single address", under(trial("1h"), func(s *Server) {
			s.offend(bare("2001:0:4136:e378:8000:63bf:3fff:1", "x.example"))
			s.offend(bare("64:ff9b:1::cb00:7101", "x.example"))
			for addr, want := range map[string]bool{"2001:0:4136:e378:8000:63bf:3fff:1": true, "2001:0:4136:e378:8000:63bf:3fff:2": false, "64:ff9b:1::cb00:7101": true, "64:ff9b:1::cb00:7102": false} {
				s.Check(s.hello(bare(addr, "x.example")).Barred == want, "%s is banned: %v", addr, !want)
			}
		})},
		{"Bans", "For an address in 64:ff9b::/96, the source is the IPv4 address in its last 32 bits, which also appears in records and conditions", under(trial("1h")+"\nrule other phase helo match src 203.0.113.9 disconnect", func(s *Server) {
			s.offend(bare("64:ff9b::cb00:7101", "x.example"))
			for addr, want := range map[string]bool{"203.0.113.1": true, "64:ff9b::cb00:7101": true, "64:ff9b::cb00:7102": false} {
				s.Check(s.hello(bare(addr, "x.example")).Barred == want, "%s is banned: %v", addr, !want)
			}
			s.Rejected("ehlo", s.hello(bare("64:ff9b::cb00:7109", "x.example")))
		})},
		{"Bans", "If an IPv6 host has its own proven name, the source is its single address, because some hosting providers divide a /64 among many customers", under(trial("1h"), func(s *Server) {
			h := named("2001:db8:7:7::1", "mail.evil.example")
			s.offend(h)
			s.Check(s.hello(h).Barred, "the host is not banned")
			s.Check(!s.hello(named("2001:db8:7:7::2", "mail.family.example")).Barred && !s.hello(bare("2001:db8:7:7::3", "x.example")).Barred, "a neighbour is banned")
			s.offend(bare("2001:db8:7:7::4", "x.example"))
			s.Check(!s.hello(named("2001:db8:7:7::2", "mail.family.example")).Barred && s.hello(bare("2001:db8:7:7::3", "x.example")).Barred, "a ban of the /64 bans a host with a name, or not the others")
		})},
		{"Bans", "scanwatch unban also clears the source's counters", play(func(s *Server) {
			h := bare("203.0.113.82", "x.example")
			for _, free := range []bool{false, true} {
				s.guess(h, 20)
				s.Flush()
				p := netip.MustParsePrefix("203.0.113.82/32")
				s.memory.Bans.Revoke(p, true, s.Now().UnixMicro())
				if free {
					s.memory.Forget(p)
				}
				s.guess(h, 19)
				s.Check(s.ban(h).Revoked == free, "the counters are cleared: %v, want %v", s.ban(h).Revoked, free)
				s.Wait(2 * day)
			}
		})},
		{"Bans", "Whether such a rule bans the session's source also depends on the recipients that the source has requested within a day", lines(countRule, func(s *Server) {
			s.Earlier()
			for i, wait := range []time.Duration{minute, day + hour} {
				h := named(at("198.51.100.%d", 60+i), fmt.Sprintf("mail.x%d.example", i))
				s.Ask(h, manner{}, ours(mailboxes[:10]...)...)
				s.Wait(wait)
				s.Ask(h, manner{}, simulate.Words(fmt.Sprint("w", i), 0, 4)...)
				s.Bans(h, time.Duration(i)*hour)
			}
		})},
		{"Bans", "If at least a quarter of them exist, the rule does not ban the source, because old mailing lists also have recipients that do not exist", lines(countRule, func(s *Server) {
			s.Earlier()
			for i := range 5 {
				s.Deliver(partner, "joe@x.example", append(slices.Clone(mailboxes[2*i:2*i+2]), former(4*i + 4)[4*i:]...)...)
				s.Bans(partner, 0)
			}
		})},
		{"Bans", "If fewer exist, the third consecutive offence causes a ban if the source has requested at least five recipients that do not exist", lines(countRule, func(s *Server) {
			s.Earlier()
			for i, want := range []time.Duration{0, 0, hour, 2 * hour} {
				s.Ask(named1, manner{}, append(ours("alice"), simulate.Words("w", 5*i, 5)...)...)
				s.Bans(named1, want)
				s.Wait(3 * hour)
			}
			for i := range 6 {
				s.Ask(partner, manner{}, append(ours("alice"), simulate.Words("v", 4*i, 4)...)...)
				s.Bans(partner, 0)
				s.Wait(day + hour)
			}
			for range 4 { // retries
				s.Ask(unnamed1, manner{}, append(ours("alice"), simulate.Words("u", 0, 9)...)...)
				s.Bans(unnamed1, 0)
			}
		})},
		{"Bans", "If a rule counts recipients, or has a condition on harvest or relay-probe evidence, its ban takes effect at the end of the session", append(lines("rule harvest phase rcpt-to match evidence harvest reject ban 1h\nrule relay phase rcpt-to match evidence relay-probe ban 1h", func(s *Server) {
			s.Earlier()
			for i, to := range [][]string{simulate.Words("w", 0, 12), simulate.Foreign(0, 12)} {
				h := named(at("198.51.100.%d", 60+i), fmt.Sprintf("mail.x%d.example", i))
				s.Ask(h, manner{}, append(ours("alice"), to...)...)
				s.Bans(h, 0)
				h = named(at("198.51.100.%d", 70+i), fmt.Sprintf("mail.y%d.example", i))
				s.Ask(h, manner{}, to...)
				s.Bans(h, hour)
			}
		}), lines("rule count phase rcpt-to match count unknown-recipient > 2 reject ban 1h", func(s *Server) {
			s.Earlier()
			c := s.Connect(unnamed1)
			c.Ehlo()
			c.Mail("joe@x.example")
			for _, l := range former(9) {
				c.Rcpt(l + "@example.org")
			}
			s.Bans(unnamed1, 0)
			c.Quit()
			s.Bans(unnamed1, hour)
		})...)},
		{"Bans", "If most of them exist, the session is not an offence", lines(countRule, func(s *Server) {
			s.History(partner, 4, day)
			s.Deliver(partner, "joe@partner.example", slices.Concat(mailboxes[:10], former(9))...)
			s.Check(s.standing(partner).Offence.IsZero(), "a list is an offence")
			s.Deliver(partner, "joe@partner.example", former(29)[9:]...)
			s.Check(!s.standing(partner).Offence.IsZero(), "no offence")
		})},
		{"Bans", "Rules never ban", under(trial("1h"), func(s *Server) {
			s.offend(unnamed1)
			s.Bans(unnamed1, hour)
		})},
		{"Bans", "Clients in <friends>", lines("table <friends> { 203.0.113.50 }\n"+trial("1h"), func(s *Server) {
			s.exempt(unnamed1, "friend")
			s.offend(named1)
			s.Bans(named1, hour)
		})},
		{"Bans", "Authenticated sessions, and sessions that match a pass statement", append(lines("pass match src 203.0.113.50\n"+trial("1h"), func(s *Server) {
			s.Accepted(s.offend(unnamed1))
			s.Bans(unnamed1, 0)
		}), lines(`rule out phase mail-from match auth reject ban 1h`, func(s *Server) {
			h := laptop("203.0.113.50")
			c := s.Login(h, "alice", 0, true)
			s.Rejected("mail-from", c)
			s.Bans(h, 0)
			s.Check(len(s.Logged(`^exempt .*reason=login`)) == 1, "the reason is not logged")
		})...)},
		{"Bans", "The server's own addresses, and private and local addresses", under(trial("1h"), func(s *Server) {
			for _, addr := range []string{"192.0.2.25", "2001:db8:ffff::25", "10.0.0.5", "172.18.0.1", "192.168.4.1", "127.0.0.1", "169.254.3.4", "fd00::5", "fe80::5", "::1"} {
				s.exempt(bare(addr, "x.example"), "local")
			}
		})},
		{"Bans", "Hosts whose proven name is in a domain of <local-domains>, or in the domain of the server's name if the server accepts mail for that domain", append(under("table <local-domains> { \"firm.example\", \"example.org\" }\n"+trial("1h"), func(s *Server) {
			s.exempt(named("198.51.100.60", "web.firm.example"), "own-domain")
			s.exempt(named("198.51.100.61", "firm.example"), "own-domain")
			s.exempt(named("198.51.100.62", "mx2.example.org"), "own-domain")
			for i, h := range []simulate.Host{named("198.51.100.63", "web.notfirm.example"), bare("198.51.100.64", "x.example"), named("198.51.100.65", "198-51-100-65.dyn.firm.example")} {
				s.offend(h)
				s.Check(len(s.bans()) == i+1, "%v is not banned", h.Src)
			}
			forged := named("198.51.100.66", "web.firm.example")
			forged.FCrDNS = "fail"
			s.offend(forged)
			s.Bans(forged, hour)
		}), under(trial("1h"), func(s *Server) {
			own, user := named("198.51.100.67", "web.example.org"), named("198.51.100.68", "web.firm.example")
			s.offend(own)
			s.Bans(own, hour)
			s.Learn()
			s.exempt(named("198.51.100.69", "cron.example.org"), "own-domain")
			s.offend(user)
			s.Bans(user, hour)
		})...)},
		{"Bans", "Hosts from which a user has logged in within the last 30 days, except for a password spray", under(trial("1h"), func(s *Server) {
			h := bare("203.0.113.82", "x.example")
			s.Login(laptop("203.0.113.82"), "alice", 0, true)
			s.exempt(h, "login")
			s.Wait(30 * day)
			s.exempt(h, "login")
			s.Wait(day)
			s.offend(h)
			s.Bans(h, hour)
			other := laptop("203.0.113.83")
			s.Login(other, "alice", 0, true)
			for i := range 8 {
				s.Bans(other, 0)
				s.Guess(other, at("user%d", i))
			}
			s.Bans(other, 10*minute)
			s.Shut(s.Login(other, "alice", 0, true)) // the attack has ended because of the ban, but the ban is still active
		})},
		{"Bans", "Known and trusted clients, except by rules about logins or rules marked even trusted", append(under("", func(s *Server) {
			s.History(partner, 28, 12*hour)
			s.Blind(partner, 11, "LOGIN")
			s.Bans(partner, 10*minute)
		}), append(under(trial("1h"), func(s *Server) {
			s.History(partner, 2, day)
			s.exempt(partner, "known")
		}), under(strings.Replace(trial("1h"), "trial", "trial even trusted", 1), func(s *Server) {
			s.History(partner, 28, 12*hour)
			s.Stands(partner, "trusted")
			s.offend(partner)
			s.Bans(partner, hour)
		})...)...)},
		{"Bans", "Addresses shared by many hosts", append(under("gateway 203.0.113.50\n"+trial("1h"), func(s *Server) {
			s.exempt(unnamed1, "gateway")
		}), append(under(trial("1h"), func(s *Server) { s.shared(5, 3, 3, true) }), append(under(trial("1h"), func(s *Server) { s.shared(4, 3, 3, false) }),
			append(under(trial("1h"), func(s *Server) { s.shared(5, 2, 3, false) }), under(trial("1h"), func(s *Server) { s.shared(5, 3, 2, false) })...)...)...)...)},
		{"Bans", "The filter records and logs each exemption with its reason", under(trial("1h"), func(s *Server) {
			s.History(partner, 2, day)
			c := s.offend(partner)
			s.Check(len(s.Logged(`^exempt src=198.51.100.124 rule=trial reason=known`)) == 1, "the reason is not logged")
			s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindBan && a.exempt == "known" }), "the reason is not recorded")
		})},
		{"Bans", "A ban is observed, not enforced, if its rule is marked observe or the filter is in observe mode. Observed bans are logged and stored, but never cause a client to be rejected, even if the mode changes later", append(
			[]Case{{Lines: "mode observe\n" + trial("1h"), Play: observed}}, lines(strings.Replace(trial("1h"), "trial", "trial observe", 1), observed)...)},
		{"Bans", "scanwatch(8) lists, adds and removes bans", play(func(s *Server) {
			manual, err := os.ReadFile("../../man/scanwatch.8")
			for _, command := range []string{"bans", "ban", "unban"} {
				s.Check(err == nil && strings.Contains(string(manual), "\n.It Ic "+command) || strings.Contains(string(manual), "\n.It Cm "+command), "the manual of scanwatch(8) has no %s", command)
			}
			p := netip.MustParsePrefix("203.0.113.50/32")
			s.memory.Bans.AddPrefix(p, hour, "spam", s.Now().UnixMicro())
			s.Check(s.hello(unnamed1).Barred, "the host is not banned")
			s.memory.Bans.Revoke(p, true, s.Now().UnixMicro())
			s.Check(!s.hello(unnamed1).Barred, "the host is banned")
		})},
	}
}

// banned checks the reply code sent to a banned host.
func banned(length, code string) []Case {
	return under(trial(length), func(s *Server) {
		s.offend(unnamed1)
		s.replies(s.hello(unnamed1), code)
	})
}

func expires(s *Server) {
	s.offend(unnamed1)
	until := s.ban(unnamed1).Until
	s.WaitUntil(until.Add(-time.Second))
	s.Check(s.Connect(unnamed1).Barred, "the ban ended early")
	s.WaitUntil(until)
	s.Check(!s.Connect(unnamed1).Barred, "the ban did not end")
}

// exempt asserts that an offence of h does not cause a ban, for the given reason.
func (s *Server) exempt(h simulate.Host, reason string) {
	before := len(s.Logged(`^exempt src=\S+ rule=trial reason=` + reason))
	s.Rejected("ehlo", s.offend(h))
	s.Bans(h, 0)
	if reason != "friend" { // friends are not logged
		s.Check(len(s.Logged(`^exempt src=\S+ rule=trial reason=`+reason)) > before || before > 0, "no reason for %v", h.Src)
	}
}

// shared sends mail from several domains, with several greetings, on several days.
func (s *Server) shared(senders, helos, days int, many bool) {
	for i := range senders * helos * days {
		h := bare("203.0.113.50", at("host%d.x.example", i%helos))
		s.Deliver(h, at("joe@sender%d.example", i/helos%senders), "alice")
		if (i+1)%(senders*helos) == 0 {
			s.Wait(day)
		}
	}
	if many {
		s.Stands(unnamed1, "none")
		s.exempt(unnamed1, "many")
	} else {
		s.Stands(unnamed1, "known")
	}
}

func observed(s *Server) {
	c := s.offend(unnamed1)
	s.Check(len(s.Logged(`^observed-ban src=203.0.113.50 rule=trial`)) == 1, "the ban is not logged")
	n := 0
	s.memory.Bans.Each(func(b memory.Ban) {
		if b.Observe && b.Prefix.Contains(c.Src) {
			n++
		}
	})
	s.Check(n == 1, "%d bans are stored", n)
	s.Check(!s.hello(unnamed1).Barred, "an observed ban rejects")
	if strings.Contains(s.text, "mode observe") {
		s.Replace("mode observe", "mode enforce")
	} else {
		s.Replace("trial observe", "trial")
	}
	s.Check(!s.hello(unnamed1).Barred, "an observed ban rejects after the change")
}

// countRule bans clients for more than two unknown recipients.
const countRule = "rule count phase rcpt-to match count unknown-recipient > 2 reject ban { 1h, 2h }"
