package cases

import (
	"fmt"
	"testing"

	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// TestRulesAfterServer checks that a rule that only rejects does not hide a harvest from the other
// rules if the mail server itself has already rejected the recipients. A mail server asks a milter
// about recipients that it has already rejected.
func TestRulesAfterServer(t *testing.T) {
	harvester := bare("203.0.113.90", "mail.x.example")
	for _, c := range []Case{
		{Name: "network", Play: func(s *Server) {
			s.Learn()
			s.Bursts(6, 4, minute, manner{}, func(i int) simulate.Host { return bare(at("203.0.113.%d", 31+i), "mail.x.example") })
			c := s.Ask(harvester, manner{}, simulate.Words("guess", 0, 15)...)
			s.Evidence(c, "harvest", "high")
			s.Banned(c)
			rejections(s, c, "harvest")
		}},
		{Name: "all clients", Play: func(s *Server) {
			s.Learn()
			s.Bursts(8, 3, minute, manner{}, func(i int) simulate.Host { return bare(far(i), "mail.x.example") })
			c := s.Ask(harvester, manner{}, simulate.Words("guess", 0, 15)...)
			s.Evidence(c, "harvest", "high")
			s.Banned(c)
			rejections(s, c, "harvest")
		}},
		{Name: "one mailbox exists", Play: func(s *Server) {
			s.Learn()
			s.Bursts(6, 4, minute, manner{}, func(i int) simulate.Host { return bare(at("203.0.113.%d", 31+i), "mail.x.example") })
			var c *simulate.Client
			for i := range 6 {
				c = s.Deliver(harvester, "a@x.example", append([]string{"alice"}, invented(14 * (i + 1))[14*i:]...)...)
				s.Wait(minute)
			}
			s.Banned(c)
		}},
		{Name: "flood", Presets: []string{"own"}, Lines: "mode enforce\n" +
			"rule flood phase rcpt-to match evidence recipient-flood disconnect \"421 4.7.0 Bye\" ban 1d\n" +
			"rule few phase rcpt-to match count unknown-recipient > 3 in 1h by src reject \"450 4.7.1 Later\"\n", Play: func(s *Server) {
			s.Learn()
			c := s.Ask(harvester, manner{}, simulate.Words("guess", 0, 20)...)
			s.Banned(c)
			rejections(s, c, "flood") // the flood consists of recipients that a rule would have rejected
		}},
	} {
		presets := c.Presets
		if presets == nil {
			presets = []string{"standard", "tight"}
		}
		for _, preset := range presets {
			t.Run(fmt.Sprintf("%s/%s", c.Name, preset), func(t *testing.T) { playOver(t, &c, preset, true) })
		}
	}
}

// rejections asserts that only the rules in want have rejected c.
func rejections(s *Server, c *simulate.Client, want ...string) {
	s.Flush()
	var got []string
	for _, a := range s.records[c.ID()].acts {
		if a.kind == store.KindVerdict && a.enforced && (len(got) == 0 || got[len(got)-1] != a.text) {
			got = append(got, a.text)
		}
	}
	s.Check(fmt.Sprint(got) == fmt.Sprint(want), "%s was rejected by %q, want %q", who(c), got, want)
}
