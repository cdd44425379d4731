package cases

// This file checks the manual's section Standing.

import (
	"fmt"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

func standingRows() []statement {
	return []statement{
		{"Standing", "A client's standing is based on the mail accepted from it", play(func(s *Server) {
			s.Stands(partner, "none")
			s.Deliver(partner, "joe@partner.example", "nobody")
			s.hello(partner)
			s.Wait(day)
			s.Stands(partner, "none")
			s.Message(partner)
			s.Wait(day)
			s.Stands(partner, "known")
			s.Stands(bare("198.51.100.125", "x.example"), "none")
		})},
		{"Standing", "Each host has its own standing. The registered domain of the host's name also earns standing if FCrDNS passes and the greeting or the sender is in the same domain", play(byDomain)},
		{"Standing", "If a domain's hosts send mail for many other domains, the domain counts as a provider's and has no standing", play(func(s *Server) {
			for i := range 4 {
				s.Deliver(named(at("198.51.100.%d", 40+i), at("out%d.hoster.example", i)), at("joe@customer%d.example", i), "alice")
				s.Wait(day)
				want := "known"
				if i == 3 {
					want = "none"
				}
				s.Stands(named("198.51.100.99", "out9.hoster.example"), want)
			}
			s.Stands(named("198.51.100.43", "out3.hoster.example"), "known") // the host itself becomes known
		})},
		{"Standing", "Only ordinary mail counts: it has a non-null sender and at least one recipient that is not a role account such as postmaster. Mail exempted by a pass statement does not count", lines("pass match rcpt-to \"bob@\"\nrule x phase rcpt-to match rcpt-to \"none@\" reject", func(s *Server) {
			for i, tt := range []struct{ from, to, want string }{
				{"joe@x.example", "alice", "known"}, {"", "alice", "none"}, {"joe@x.example", "postmaster", "none"}, {"joe@x.example", "abuse", "none"},
				{"joe@x.example", "hostmaster", "none"}, {"joe@x.example", "bob", "none"},
			} {
				h := bare(at("198.51.100.%d", 10+i), "mail.x.example")
				s.Mailboxes = append(s.Mailboxes, "hostmaster")
				s.Delivered(s.Deliver(h, tt.from, tt.to))
				s.Wait(day)
				s.Stands(h, tt.want)
			}
		})},
		{"Standing", "Mail also does not count if the session has five unknown or deferred recipients and they are at least three quarters of its recipients", lines("rule count phase rcpt-to match count unknown-recipient > 1000 in 1d by src reject", func(s *Server) {
			s.Earlier()
			for i, tt := range []struct {
				members, former int
				want            string
			}{{1, 4, "known"}, {1, 5, "none"}, {2, 5, "known"}, {2, 6, "none"}} {
				h := bare(at("198.51.100.%d", 10+i), "mail.x.example")
				s.Delivered(s.Deliver(h, "joe@x.example", append(members[:tt.members:tt.members], former(tt.former)...)...))
				s.Wait(day)
				s.Stands(h, tt.want)
			}
		})},
		{"Standing", "Ordinary mail was accepted on an earlier day within the last 400 days, or authenticated users of this server write to the domain", play(knownSince)},
		{"Standing", "Rules ban a known client only for failed logins, or if they are marked even trusted", play(bought)},
		{"Standing", "The thresholds for the recipients of a known client are doubled", append(under(trial("1h"), knownNotBanned), play(func(s *Server) {
			s.History(named1, 1, 26*hour)
			s.Answers(11, s.each(12, minute, manner{}, same(named1))...)
		})...)},
		{"Standing", "At least ten messages were accepted in total, on at least seven different days", play(trustedSince)},
		{"Standing", "The last message arrived at least ten days after the first, and within the last 90 days", play(trustedSince)},
		{"Standing", "Rules about lists, names, places and scores do not apply to trusted clients unless marked even trusted", play(aboutClients)},
		{"Standing", "Rules about behaviour, other than failed logins, defer trusted clients instead of rejecting them", append(play(aboutConduct), play(func(s *Server) {
			s.History(partner, 14, day)
			s.Wait(hour)
			s.Accepted(s.each(11, minute, manner{}, same(partner))...)
			c := s.Ask(partner, manner{}, simulate.Words("v", 0, 1)...)
			s.replies(c, "450")
			s.NotBanned(c)
		})...)},
		{"Standing", "Evidence of abuse, or a match on a rule with ban, is an offence", append(under(trial("1h"), func(s *Server) {
			s.offends(func(h simulate.Host) { s.offend(h) })
		}), play(func(s *Server) {
			s.offends(func(h simulate.Host) { s.Ask(h, manner{}, simulate.Foreign(0, 1)...) })
			s.History(partner, 2, day)
			s.Wait(day)
			s.Ask(partner, manner{}, simulate.Words("w", 0, 4)...) // too few unknown recipients for abuse
			s.Check(s.standing(partner).Offence.IsZero(), "four unknown recipients are an offence")
		})...)},
		{"Standing", "An offence halves the counted messages and days, but at most once a day. After an offence, a client is not trusted for 30 days", under(trial("1h"), halves)},
		{"Standing", "When the filter starts, standing is unknown until the state has been read", under(trial("1h"), func(s *Server) {
			s.Stands(partner, "none")
			s.memory.Expect()
			s.Stands(partner, "unknown")
			c := s.offend(partner)
			s.Temporary(c)
			s.NotBanned(c)
		})},
		{"Standing", "If a client's standing prevents a decision, the filter logs and records this", under(trial("1h"), func(s *Server) {
			s.History(partner, 14, day)
			c := s.offend(partner)
			s.Accepted(c)
			s.Check(len(s.Logged(`^session would=disconnect src=198.51.100.124 rule=trial .*withheld=trusted`)) == 1, "it is not logged")
			s.Check(s.acted(c, func(a act) bool { return a.kind == store.KindVerdict && a.exempt == "trusted" && !a.enforced }), "it is not recorded")
		})},
		{"Standing", "scanwatch why shows a client's standing and the reason for it", play(func(s *Server) {
			s.History(partner, 14, day)
			got := s.standing(partner)
			s.Check(got.Level == rules.StandingTrusted && got.By == "host" && got.Messages == 14 && got.Days == 14 && got.Last.Sub(got.First) == 13*day, "%+v", got)
		})},
	}
}

func byDomain(s *Server) {
	for i, tt := range []struct {
		helo, from, fcrdns, want string
	}{
		{"mail.d%d.example", "joe@other.example", "pass", "known"}, {"mail.other.example", "joe@d%d.example", "pass", "known"},
		{"mail.other.example", "joe@other.example", "pass", "none"}, {"mail.d%d.example", "joe@d%d.example", "fail", "none"},
	} {
		fill := func(format string) string { return strings.ReplaceAll(format, "%d", fmt.Sprint(i)) }
		h := greets(at("198.51.100.%d", 10+i), fill("mail.d%d.example"), fill(tt.helo))
		h.FCrDNS = tt.fcrdns
		s.Delivered(s.Deliver(h, fill(tt.from), "alice"))
		s.Wait(day)
		s.Stands(h, "known")
		other := named(at("203.0.113.%d", 10+i), fill("mx2.d%d.example"))
		s.Stands(other, tt.want)
		other.FCrDNS = "fail"
		s.Stands(other, "none")
	}
}

func knownSince(s *Server) {
	s.Message(partner)
	s.Stands(partner, "none") // on the same day
	s.Wait(day)
	s.Stands(partner, "known")
	s.Wait(399 * day)
	s.Stands(partner, "known")
	s.Wait(day)
	s.Stands(partner, "none")
	other := named("203.0.113.70", "mx2.partner.example")
	s.Stands(other, "none")
	s.Login(laptop("203.0.113.82"), "alice", 0, true) // alice writes to joe@partner.example
	s.Stands(other, "known")
	s.Stands(bare("203.0.113.71", "mx3.partner.example"), "none")
}

// trustedSince sends messages on several days, and checks the resulting standing.
func trustedSince(s *Server) {
	for i, tt := range []struct {
		days  []int // of the messages
		after int   // days
		want  string
	}{
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, 1, "trusted"},
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 1, "known"},     // ten days, the last of them nine days after the first
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 10}, 1, "known"},       // nine messages
		{[]int{0, 0, 0, 0, 1, 2, 3, 4, 5, 10}, 1, "trusted"},  // mail on seven days
		{[]int{0, 0, 0, 0, 0, 1, 2, 3, 4, 10}, 1, "known"},    // mail on six days
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, 90, "trusted"}, // the last message was sent 90 days ago
		{[]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, 91, "known"},
	} {
		h := bare(at("198.51.100.%d", 10+i), "mail.x.example")
		from := s.Now()
		for _, d := range tt.days {
			s.WaitUntil(from.Add(time.Duration(d) * day))
			s.Message(h)
		}
		s.Wait(time.Duration(tt.after) * day)
		s.Stands(h, tt.want)
	}
}

// about evaluates a rule with the given condition for a trusted client. It returns the decision and
// the reply code.
func (s *Server) about(condition, even string) (smtp.Decision, string) {
	f := rules.Facts{Phase: smtp.PhaseRcptTo, Src: partner.Src, RDNS: []byte(partner.RDNS), FCrDNS: smtp.FCrDNSPass, Helo: []byte(partner.Helo), ASN: 1, ASNKnown: true, Country: "DE",
		Standing: rules.StandingTrusted, Score: 50, Evidence: ^rules.Evidence(0), Window: counts{}}
	for i := range f.Counts {
		f.Counts[i] = 99
	}
	v := s.eval("mode enforce\nrule x "+even+" phase rcpt-to match "+condition+" reject \"550 5.7.1 No\" ban 1h\n", f)
	s.Check(even != "" || v.Act.BanRule == nil, "%s bans", condition)
	return v.Act.Decision, v.Act.Text[:min(3, len(v.Act.Text))]
}

// counts returns a high value for every counter.
type counts struct{}

func (counts) Count(*rules.Facts, rules.Evidence, time.Duration, rules.Key) (int, bool) {
	return 99, true
}

func aboutClients(s *Server) {
	for _, condition := range []string{
		"src 198.51.100.0/24", `rdns ".partner.example"`, "fcrdns", `helo "mail.partner.example"`, "asn 1", "country DE", "score > 40", "evidence scanner", "evidence cloud",
		"evidence rdns-missing", "evidence helo-forged", "evidence helo-own-name", "evidence helo-unqualified", "count helo-forged > 5 in 1h", "count cloud > 5 in 1h by prefix",
	} {
		got, _ := s.about(condition, "")
		s.Check(got == smtp.Proceed, "%s applies", condition)
		got, text := s.about(condition, "even trusted")
		s.Check(got == smtp.Reject && text == "550", "%s does not apply with even trusted: %v %s", condition, got, text)
	}
}

func aboutConduct(s *Server) {
	for _, condition := range []string{
		"evidence harvest", "evidence botnet-helo", "evidence talks-http", "evidence relay-probe", "evidence flood", "evidence early-talker", "evidence pipelining",
		"evidence probed-recipient", "count unknown-recipient > 5 in 1d", "count unknown-recipient > 5", "count flood > 30", "count relay-probe > 5 in 1d",
	} {
		got, text := s.about(condition, "")
		s.Check(got == smtp.Reject && text == "450", "%s: %v %s", condition, got, text)
	}
	for _, condition := range []string{"evidence auth-spray", "evidence auth-unsupported", "count auth-failure > 5 in 1h"} {
		got, text := s.about(condition, " ")
		s.Check(got == smtp.Reject && text == "550", "%s: %v %s", condition, got, text)
	}
}

// offends asserts that play is an offence.
func (s *Server) offends(play func(h simulate.Host)) {
	h := named("198.51.100.60", "mail.other.example")
	s.History(h, 4, day)
	before := s.standing(h)
	play(h)
	got := s.standing(h)
	s.Check(before.Messages == 4 && got.Messages == 2 && got.Days == 2 && !got.Offence.IsZero(), "no offence: %+v", got)
}

func halves(s *Server) {
	for i, tt := range []struct {
		messages, days int
		after          string // standing 31 days after the offence
	}{{19, 13, "trusted"}, {18, 13, "known"}, {19, 12, "known"}, {1, 1, "known"}} {
		h := bare(at("198.51.100.%d", 10+i), "mail.x.example")
		for d := range tt.days {
			s.Message(h)
			for d == 0 && s.standing(h).Messages < tt.messages-tt.days+1 {
				s.Message(h)
			}
			s.Wait(day)
		}
		s.Check(s.standing(h).Messages == tt.messages && s.standing(h).Days == tt.days, "%+v", s.standing(h))
		s.Ask(h, manner{}, simulate.Foreign(0, 1)...)
		s.Check(s.standing(h).Messages == (tt.messages+1)/2 && s.standing(h).Days == (tt.days+1)/2, "%+v", s.standing(h))
		s.Ask(h, manner{}, simulate.Foreign(1, 1)...) // on the same day
		s.Check(s.standing(h).Messages == (tt.messages+1)/2, "two halvings on a day: %+v", s.standing(h))
		s.Stands(h, "known")
		s.Wait(30 * day)
		s.Stands(h, "known")
		s.Wait(day)
		s.Stands(h, tt.after)
	}
}
