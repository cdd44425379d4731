package cases

// This file contains test cases for attackers that imitate a mail server during a harvest, or that
// try to acquire standing.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// TestCover checks that existing recipients do not hide unknown recipients.
func TestCover(t *testing.T) {
	var list []Case
	for i, h := range harvesters {
		for _, cover := range []string{"postmaster+%d", "abuse+%d", "Postmaster+x%d"} {
			list = append(list, Case{Name: fmt.Sprintf("%s before each, host %d", cover, i), Play: func(s *Server) {
				s.Learn()
				c := s.Ask(h, manner{Before: func(j int) string { return fmt.Sprintf(cover, j) + "@example.org" }}, simulate.Words("plus", 0, 200)...)
				s.Rejected("", c)
				s.AtMost(10, []*simulate.Client{c})
				s.Evidence(c, "harvest", "low")
			}})
		}
		list = append(list, Case{Name: fmt.Sprintf("alice+N before each, host %d", i), Play: func(s *Server) {
			s.Learn()
			c := s.Ask(h, manner{Before: func(j int) string { return fmt.Sprintf("alice+%d@example.org", j) }}, simulate.Words("plus", 0, 200)...)
			s.Rejected("", c)
			s.AtMost(10, []*simulate.Client{c}, "alice")
			s.Evidence(c, "harvest", "low")
		}}, Case{Name: fmt.Sprintf("all mailboxes in turn, host %d", i), Play: func(s *Server) {
			s.Mailboxes = append(s.Mailboxes, "kim", "leo", "mia", "noah")
			s.Learn()
			c := s.Ask(h, manner{Before: func(j int) string { return ours(s.Mailboxes[j%17])[0] }}, simulate.Words("ring", 0, 300)...)
			s.Rejected("", c)
			s.AtMost(40, []*simulate.Client{c}, s.Mailboxes...)
		}}, Case{Name: fmt.Sprintf("four of each in every session, host %d", i), Play: func(s *Server) {
			s.Learn()
			s.AtMost(60, s.Bursts(150, 4, 5*minute, manner{Before: func(j int) string { return ours(mailboxes[1+j%4])[0] }}, same(h)), mailboxes...)
		}})
	}
	Run(t, list)
}

// TestNullSender checks harvests that look like bounces, from hosts without a name.
func TestNullSender(t *testing.T) {
	var list []Case
	for i, h := range []simulate.Host{harvesters[0], harvesters[3]} {
		list = append(list, Case{Name: fmt.Sprintf("four a session, host %d", i), Play: func(s *Server) {
			s.Learn()
			s.AtMost(60, s.Bursts(300, 4, 10*time.Second, manner{Null: true, Per: 1}, same(h)))
		}}, Case{Name: fmt.Sprintf("one a session, host %d", i), Play: func(s *Server) {
			s.Learn()
			s.AtMost(60, s.Bursts(200, 1, 5*minute, manner{Null: true}, same(h)))
		}})
	}
	Run(t, list)
}

// TestBoughtStanding checks that messages that are easy for an attacker to send do not improve
// standing.
func TestBoughtStanding(t *testing.T) {
	h := named("203.0.113.66", "vps.x.example")
	list := []Case{{Name: "ten messages to a user on one day", Play: func(s *Server) {
		s.Learn()
		s.History(h, 10, 5*minute)
		s.Wait(day)
		s.AtMost(100, s.Bursts(100, 9, minute, manner{}, same(h)))
	}}, {Name: "fifteen messages on fifteen days", Play: func(s *Server) {
		s.Learn()
		s.History(h, 15, day)
		s.AtMost(100, s.Bursts(100, 4, 2*minute, manner{Sender: "news@x.example"}, same(h)))
	}}, {Name: "messages of neighbours first", Play: func(s *Server) {
		s.Learn()
		for i := range 3 {
			s.Message(named(at("203.0.113.%d", 10+i), fmt.Sprintf("mail.other%d.example", i)))
			s.Wait(hour)
		}
		s.Wait(day)
		s.AtMost(40, s.Bursts(300, 4, 10*time.Second, manner{}, same(bare("203.0.113.69", "mail.x.example"))))
	}}, {Name: "neighbours that send every day", Play: func(s *Server) {
		s.Learn()
		for i := range 6 {
			s.Message(named(at("203.0.113.%d", 10+i%3), fmt.Sprintf("mail.other%d.example", i%3)))
			s.Wait(12 * hour)
		}
		s.AtMost(40, s.Bursts(120, 1, 12*minute, manner{}, same(bare("203.0.113.70", "mail.x.example"))))
	}}}
	for _, to := range []string{"postmaster", "abuse", "postmaster+hello", "POSTMASTER"} {
		list = append(list, Case{Name: "a message to " + to + " first", Play: func(s *Server) {
			s.Learn()
			s.Deliver(h, "news@x.example", to)
			s.Wait(minute)
			s.AtMost(40, s.Bursts(300, 4, 10*time.Second, manner{}, same(h)))
		}}, Case{Name: "messages to " + to + " between", Play: func(s *Server) {
			s.Learn()
			var cs []*simulate.Client
			for i := range 20 {
				s.Ask(h, manner{Per: 1, Send: true}, slices.Repeat(ours(to), 20)...)
				s.Wait(minute)
				cs = append(cs, s.Ask(h, manner{}, simulate.Words("w", 9*i, 9)...))
				s.Wait(minute)
			}
			s.AtMost(40, cs)
		}})
	}
	for _, pair := range []string{
		"vmi1234567.contaboserver.net vmi7654321.contaboserver.net", "h2912345.stratoserver.net h2954321.stratoserver.net",
		"srv123456.hstgr.cloud srv654321.hstgr.cloud", "vps-1a2b3c4d.vps.ovh.net vps-9a8b7c6d.vps.ovh.net",
		"p5b0c1d2e.dip0.t-ipconnect.de p4fcdab12.dip0.t-ipconnect.de", "s18712345.onlinehome-server.info s18754321.onlinehome-server.info",
		"static.7.2.0.192.clients.your-server.de static.71.113.0.203.clients.your-server.de", "v2202401234567890.ultrasrv.de v2202409876543210.ultrasrv.de",
	} {
		good, bad, _ := strings.Cut(pair, " ")
		list = append(list, Case{Name: "default names of a hoster: " + pair, Presets: []string{"standard"}, Play: func(s *Server) {
			s.Learn()
			s.Message(named("192.0.2.90", good))
			s.Wait(day)
			s.AtMost(40, s.Bursts(200, 4, 10*time.Second, manner{}, same(named("203.0.113.71", bad))))
		}})
	}
	Run(t, list)
}

const junkPolicy = `mode enforce
pass match rcpt-to { "postmaster@", "abuse@" }
score evidence rdns-missing 70
rule odd phase data match score > 60 junk
`

// TestJunk checks that a message to the postmaster is not exempt from the rules if it also has
// other recipients.
func TestJunk(t *testing.T) {
	var list []Case
	for _, to := range [][]string{{"postmaster", "alice"}, {"alice", "postmaster"}, {"abuse", "alice", "bob"}, {"alice", "abuse", "postmaster"}} {
		list = append(list, Case{Name: strings.Join(to, ", "), Lines: junkPolicy, Play: func(s *Server) {
			s.Learn()
			c := s.Ask(bare("203.0.113.72", "mail.x.example"), manner{Send: true}, "alice@example.org")
			d := s.Ask(bare("203.0.113.73", "mail.x.example"), manner{Send: true}, ours(to...)...)
			s.Check(c.Junked(), "the message to alice is not marked as junk")
			s.Check(d.Junked(), "the message to %v is not marked as junk", to)
		}})
	}
	Run(t, list)
}
