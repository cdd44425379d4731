package cases

// This file contains test cases for the data that the filter stores about a host, a mailbox or an
// address.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// retry sends a message to a mailbox until it is accepted, as a mail server does.
func (s *Server) retry(h simulate.Host, to string, waits ...time.Duration) (c *simulate.Client) {
	for _, w := range append([]time.Duration{0}, waits...) {
		s.Wait(w)
		if c = s.Deliver(h, sender(h), to); c.Mails() > 0 {
			break
		}
	}
	return c
}

const gatewayRecipe = `mode enforce
table <local-domains> { "example.org" }
table <friends> { 192.0.2.10 }
listener mx port 25
pass from <friends>
pass match rcpt-to "postmaster@"
rule harvest on mx phase rcpt-to match evidence harvest disconnect "421 4.7.0 Too many unknown recipients" ban 1d
rule known on mx phase rcpt-to match evidence probed-recipient !seen-good disconnect "421 4.7.0 Too many unknown recipients"
`

// TestNewMailbox checks that a new mailbox receives mail even if clients requested it before it
// existed.
func TestNewMailbox(t *testing.T) {
	long := []time.Duration{15 * minute, hour, 4 * hour, 12 * hour, day}
	list := []Case{{Name: "the recipe for a gateway", Lines: gatewayRecipe, Play: func(s *Server) {
		s.Earlier()
		for i := range 4 {
			s.Ask(bare(at("198.18.%d.3", i), "bot"), simulate.Manner{}, "jobs@example.org")
			s.Wait(hour)
		}
		s.Mailboxes = append(s.Mailboxes, "jobs")
		s.Wait(day)
		s.Delivered(s.retry(named("198.51.100.120", "mail.applicant.example"), "jobs", long...))
	}}}
	for _, box := range []string{"jobs", "press", "summer-school"} {
		list = append(list, Case{Name: "applicants wrote to " + box + " before", Play: func(s *Server) {
			s.Earlier()
			for i := range 5 {
				s.Ask(named(at("198.18.%d.3", i), fmt.Sprintf("mail.applicant%d.example", i)), simulate.Manner{}, ours(box)...)
				s.Wait(hour)
			}
			s.Mailboxes = append(s.Mailboxes, box)
			s.Wait(hour)
			cs := []*simulate.Client{
				s.retry(named("198.51.100.120", "mail.person0.example"), box, long...),
				s.retry(named("198.18.2.3", "mail.applicant2.example"), box, long...),
				s.retry(named("198.51.100.121", "mail.person1.example"), box),
			}
			s.Delivered(cs...)
			s.NotBanned(cs...)
		}}, Case{Name: "forty networks harvest, " + box + " arrives at the second attempt", Play: func(s *Server) {
			s.Learn()
			for i := range 40 {
				s.Ask(bare(at("198.18.%d.9", i), "mail.x.example"), simulate.Manner{}, append(simulate.Words("siege", 20*i, 20), ours(box)...)...)
				s.Wait(2 * minute)
			}
			s.Mailboxes = append(s.Mailboxes, box)
			c := s.retry(named("198.51.100.160", "mail.applicant.example"), box, 15*minute)
			s.Delivered(c)
			s.Temporary(c)
		}})
	}
	Run(t, list)
}

// TestSiege checks that legitimate mail arrives during a distributed harvest.
func TestSiege(t *testing.T) {
	Run(t, []Case{{Name: "a partner, a list and a newcomer", Play: func(s *Server) {
		partner := named("198.51.100.161", "mail.partner.example")
		s.Learn()
		s.History(partner, 3, day)
		for i := range 30 {
			s.Ask(bare(at("198.18.%d.9", i), "mail.x.example"), simulate.Manner{}, simulate.Words("siege", 20*i, 20)...)
			s.Wait(2 * minute)
		}
		a := s.Message(partner)
		b := s.Deliver(named("198.51.100.162", "lists.club.example"), "owner@club.example", "alice", "left1", "bob", "carol", "dave")
		c := s.Message(named("198.51.100.163", "mail.new.example"))
		d := s.Message(named("2001:db8:163::25", "mail.new6.example"))
		s.Accepted(a, c, d)
		s.Delivered(a, b, c, d)
	}}})
}

// TestHistory checks that ordinary mail improves the standing, and that offences expire.
func TestHistory(t *testing.T) {
	partner := named("198.51.100.124", "mail.partner.example")
	list := []Case{{Name: "once a year, with a harvester in the network", Play: func(s *Server) {
		h := named("198.51.100.121", "mail.taxoffice.example")
		s.Deliver(h, "notice@taxoffice.example", "alice")
		s.Wait(360 * day)
		s.Harvests(bare("198.51.100.200", "mail.x.example"), 28, 4)
		s.Wait(20 * hour)
		c := s.Deliver(h, "notice@taxoffice.example", "left1", "alice", "bob")
		s.Fair(c)
		s.Delivered(c)
	}}, {Name: "one mistake of a known sender: six of ten are unknown", Play: func(s *Server) {
		s.History(partner, 5, 7*day)
		c := s.Deliver(partner, "joe@partner.example", slices.Concat(former(6), mailboxes[1:5])...)
		s.Wait(20 * hour)
		d := s.Message(partner)
		s.Temporary(c)
		s.NotBanned(c)
		s.Accepted(d)
		s.Delivered(d)
	}}, {Name: "the standing survives a restart", Play: func(s *Server) {
		s.History(partner, 12, day)
		s.Restart()
		c := s.Deliver(partner, "joe@partner.example", slices.Concat(former(4), mailboxes[1:5], former(8)[4:])...)
		s.Fair(c)
		s.Delivered(c)
	}}}
	for _, to := range []string{"postmaster", "abuse", "Postmaster", "abuse+report"} {
		list = append(list, Case{Name: to + " in the message after a rejection", Play: func(s *Server) {
			s.Earlier()
			c := s.Connect(greets("198.51.100.122", "new.partner.example", "mx.example.org"))
			c.Ehlo()
			c.Mail("joe@partner.example")
			c.Rcpt("alice@example.org")
			c.Rset()
			c.Mail("joe@partner.example")
			c.Rcpt(to + "@example.org")
			c.Data()
			c.Quit()
			s.Delivered(c)
		}})
	}
	for _, known := range []string{"!seen-good ", ""} {
		list = append(list, Case{Name: "a host with twelve messages appears in a feed, rule " + known, Conf: `table <feed> { 203.0.113.77 }
rule listed phase connect match src <feed> ` + known + `disconnect "554 5.7.1 You are in a list" ban 7d`, Play: func(s *Server) {
			h := named("198.51.100.123", "mail.partner.example")
			s.History(h, 12, day)
			s.Replace("{ 203.0.113.77 }", "{ 203.0.113.77, 198.51.100.123 }")
			c, d := s.Message(h), s.Message(bare("203.0.113.77", "mail.x.example"))
			s.Rejected("connect", d)
			s.NotBanned(c)
			if known != "" {
				s.Fair(c)
				s.Delivered(c)
			}
		}})
	}
	Run(t, list)
}

// TestFriends checks that friends are exempt from all rules.
func TestFriends(t *testing.T) {
	friends := func(addr string) func(string) string {
		return func(text string) string {
			return strings.Replace(text, "table <friends> { }", "table <friends> { "+addr+" }", 1)
		}
	}
	// odd plays an old program that sends mail to former users.
	odd := func(s *Server, addr string) *simulate.Client {
		return s.Deliver(bare(addr, "User"), "scanner@printer.example", append(former(6), "alice")...)
	}
	var list []Case
	for _, tt := range []struct{ table, friend, other string }{
		{"192.0.2.80", "192.0.2.80", "192.0.2.81"}, {"192.0.2.64/28", "192.0.2.70", "192.0.2.90"}, {"2001:db8:80::/48", "2001:db8:80:1::5", "2001:db8:81::5"},
	} {
		list = append(list, Case{Name: tt.table, Edit: friends(tt.table), Play: func(s *Server) {
			a, b := odd(s, tt.friend), odd(s, tt.friend)
			s.Accepted(a, b)
			s.Delivered(a, b)
			s.NotBanned(a)
			s.Rejected("", odd(s, tt.other), odd(s, tt.other))
		}}, Case{Name: "a monitor, " + tt.table, Edit: friends(tt.table), Play: func(s *Server) {
			h := named(tt.friend, "monitor.firm.example")
			var cs []*simulate.Client
			for i := range 20 {
				c := s.Connect(h)
				if i%2 == 1 {
					c.Ehlo()
					c.Quit()
				}
				c.Leave()
				cs = append(cs, c)
				s.Wait(minute)
			}
			s.Fair(cs...)
			s.Check(len(s.Tokens(cs...)) == 0, "findings of a friend: %v", s.Tokens(cs...))
			lines := s.Logged(`\b` + strings.ReplaceAll(tt.friend, ".", `\.`) + `\b`)
			s.Check(len(lines) == 0, "log lines of a friend: %q", lines[:min(2, len(lines))])
		}})
	}
	Run(t, list)
}

// TestPace checks very fast and very slow clients.
func TestPace(t *testing.T) {
	var list []Case
	for name, ms := range map[string][]float64{
		"in two packets each, near by":       {0, 40.1, 45.5, 48.2, 43.3, 40.7},
		"20 ms before each but the first":    {0, 20.4, 22.1, 20.8, 21.5},
		"slow now and then":                  {0, .6, 300, .5, 45.2, .4},
		"at the other end of a satellite":    {650, 700, 800, 660},
		"a minute for each command":          {50, 60_000, 45_000, 70_000, 58_000},
		"fast for everything, in the subnet": {.3, .4, .3, .5},
		"slow only after the recipients":     {0, 0.5, 0.4, 0.6, 900},
	} {
		list = append(list, Case{Name: name, Presets: []string{"tight"}, Play: func(s *Server) {
			for i := range 3 {
				h := named("198.51.100.130", "copier.office.example")
				for _, x := range ms {
					h.Pace = append(h.Pace, time.Duration(x*float64(time.Millisecond)))
				}
				c := s.Deliver(h, "someone@office.example", "alice", "bob")
				s.Fair(c)
				s.Delivered(c)
				s.Wait(time.Duration(10*(i+1)) * minute)
			}
		}})
	}
	slices.SortFunc(list, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	Run(t, list)
}
