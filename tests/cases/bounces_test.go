package cases

// This file contains test cases for messages with the null sender (RFC 5321 section 4.5.5). Such
// messages are either bounces of forged mail or sender verification.

import (
	"fmt"
	"slices"
	"testing"

	"scanwatch/tests/simulate"
)

var victims = []simulate.Host{
	named("198.51.100.20", "mail.partner.example"),
	named("2001:db8:20::25", "mx.six.example"),
	greets("198.51.100.21", "mout-bounce.provider.example", "mout.provider.example"),
	bare("198.51.100.22", "mail.unnamed.example"),
}

// TestBounces checks that backscatter and sender verification do not count as a harvest.
func TestBounces(t *testing.T) {
	var list []Case
	for i, h := range victims {
		for _, n := range []int{6, 8, 12} {
			list = append(list, Case{Name: fmt.Sprintf("%d bounces in a connection of host %d", n, i), Play: func(s *Server) {
				if n != 8 {
					s.Earlier()
				}
				s.Fair(s.Bounces(h, invented(n)...))
			}})
		}
		list = append(list, Case{Name: fmt.Sprintf("a useful bounce after others of host %d", i), Play: func(s *Server) {
			s.Earlier()
			c := s.Bounces(h, append(invented(6), "alice")...)
			s.Fair(c)
			s.Delivered(c)
		}}, Case{Name: fmt.Sprintf("own mail after many bounces of host %d", i), Play: func(s *Server) {
			s.Earlier()
			n := 40
			if h.RDNS == "" {
				n = 15 // the limit is lower for hosts without a name
			}
			s.Bounces(h, invented(n)...)
			s.Wait(10 * minute)
			c := s.Message(h)
			s.Fair(c)
			s.Delivered(c)
		}}, Case{Name: fmt.Sprintf("sender verification of host %d", i), Play: func(s *Server) {
			s.Earlier()
			var cs []*simulate.Client
			for _, l := range []string{"alice", "sales", "bob", "newsletter", "no-reply", "carol", "support", "karl"} {
				cs = append(cs, s.Ask(h, simulate.Manner{Null: true}, ours(l)...))
				s.Wait(7 * minute)
			}
			s.Fair(cs...)
		}})
	}
	list = append(list, Case{Name: "fifteen bounces of a known server", Play: func(s *Server) {
		s.History(victims[0], 12, day)
		s.Fair(s.Bounces(victims[0], invented(15)...))
	}}, Case{Name: "ten bounces to one forged sender", Play: func(s *Server) {
		s.Earlier()
		s.Fair(s.Bounces(victims[0], slices.Repeat([]string{"karl"}, 10)...))
	}}, Case{Name: "five servers of a provider, three bounces a connection", Play: func(s *Server) {
		s.Earlier()
		pool := func(i int) simulate.Host {
			return named(at("198.51.100.%d", 40+i%5), fmt.Sprintf("mout%d.provider.example", i%5))
		}
		var cs []*simulate.Client
		for i := range 15 {
			cs = append(cs, s.Bounces(pool(i), invented(3*i + 3)[3*i:]...))
			s.Wait(15 * minute)
		}
		last := s.Message(pool(1))
		s.Fair(append(cs, last)...)
		s.Delivered(last)
	}})
	Run(t, list)
}
