package cases

// This file contains test cases for relay probes. A relay probe is a recipient in a foreign domain,
// requested by a client that has not logged in. The server rejects all these recipients. Each limit
// is the number of recipients that the server itself, and not the filter, rejects.

import (
	"fmt"
	"slices"
	"testing"

	"scanwatch/tests/simulate"
)

// probed asserts that the server itself replied to at most n recipients in foreign
// domains.
func (s *Server) probed(n int, cs ...*simulate.Client) {
	got := 0
	for _, c := range cs {
		got += c.Relayed()
	}
	s.Check(got <= n, "%d recipients were answered; the limit is %d", got, n)
}

// TestRelay checks relay probes with and without <local-domains>.
func TestRelay(t *testing.T) {
	var list []Case
	routes := []string{"victim%d%%domain%[1]d.example@example.org", "@example.org:victim%d@domain%[1]d.example", "domain%d.example!victim%[1]d@example.org"}
	for preset, most := range map[string]int{"standard": 20, "tight": 6} {
		for i, h := range harvesters {
			one := []string{preset}
			name := func(what string) string { return fmt.Sprintf("%s of host %d", what, i) }
			list = append(list, Case{Name: name("fifty domains"), Presets: one, Play: func(s *Server) {
				s.Learn()
				c := s.Ask(h, manner{}, simulate.Foreign(0, 50)...)
				s.Rejected("", c)
				s.probed(most, c)
				s.Evidence(c, "relay-probe", "")
			}}, Case{Name: name("fifty domains, with <local-domains>"), Presets: one, Conf: `table <local-domains> { "example.org" }`, Play: func(s *Server) {
				c := s.Ask(h, manner{Per: 1}, simulate.Foreign(0, 50)...)
				s.Rejected("", c)
				s.probed(most, c)
				s.Evidence(c, "relay-probe", "")
			}}, Case{Name: name("one a session, forty domains in a day"), Presets: one, Play: func(s *Server) {
				s.Learn()
				cs := s.repeat(40, 20*minute, func(j int) *simulate.Client { return s.Ask(h, manner{}, simulate.Foreign(j, 1)...) })
				s.probed(most+10, cs...)
				s.Evidence(cs[0], "relay-probe", "")
			}}, Case{Name: name("percent, bang and source routes"), Presets: one, Play: func(s *Server) {
				s.Learn()
				var to []string
				for j := range 36 {
					to = append(to, fmt.Sprintf(routes[j%3], j))
				}
				c := s.Ask(h, manner{}, to...)
				s.Rejected("", c)
				s.probed(most, c)
				s.Evidence(c, "relay-probe", "")
			}})
		}
	}
	slices.SortStableFunc(list, func(a, b Case) int { return slices.Compare(a.Presets, b.Presets) })
	list = append(list, Case{Name: "a known tester before any mail was accepted", Presets: []string{"standard"}, Play: func(s *Server) {
		c := s.Ask(bare("203.0.113.24", "WIN-9QL4SDRB93L"), manner{Sender: "spameri@tiscali.it"}, "spameri@tiscali.it")
		s.Evidence(c, "relay-probe", "")
	}}, Case{Name: "two commands of a tester in one write", Presets: []string{"tight"}, Play: func(s *Server) {
		s.Learn()
		c := s.Connect(bare("203.0.113.26", "client.example.net"))
		c.Greet("HELO", "client.example.net")
		c.Pipelined()
		s.Evidence(c, "pipelining", "")
	}})
	Run(t, list)
}
