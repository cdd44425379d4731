package cases

// This file contains test cases for directory harvests from one host or network. Each limit is the
// maximum number of mailboxes that an attacker can verify.

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

type manner = simulate.Manner

// harvesters contains hosts that harvest in one session.
var harvesters = []simulate.Host{
	bare("203.0.113.50", "mail.x.example"),
	greets("203.0.113.51", "host-51.isp.example", "host-51.isp.example"),
	greets("203.0.113.52", "vps.x.example", "mail.x.example"),
	bare("2001:db8:50:1::7", "mail.six.example"),
}

// TestHarvestInSession checks harvests within one session.
func TestHarvestInSession(t *testing.T) {
	var list []Case
	for i, h := range harvesters {
		for _, n := range []int{50, 30} {
			list = append(list, Case{Name: fmt.Sprintf("%d in one session of host %d", n, i), Play: func(s *Server) {
				s.Learn()
				c := s.Ask(h, manner{Drop: i%2 == 0}, simulate.Words("guess", 0, n)...)
				s.Rejected("rcpt-to", c)
				s.AtMost(6, []*simulate.Client{c})
				s.Evidence(c, "harvest", "")
				s.Banned(c)
			}})
		}
		list = append(list, Case{Name: fmt.Sprintf("each in a transaction of host %d", i), Play: func(s *Server) {
			s.Learn()
			c := s.Ask(h, manner{Per: 1}, simulate.Words("guess", 0, 50)...)
			s.Rejected("", c)
			s.AtMost(10, []*simulate.Client{c})
		}}, Case{Name: fmt.Sprintf("a list of which a fifth exists, host %d", i), Play: func(s *Server) {
			s.Learn()
			to := simulate.Words("name", 0, 80)
			for j, m := range mailboxes {
				to[5*j+4] = ours(m)[0]
			}
			c := s.Ask(h, manner{}, to...)
			s.Rejected("", c)
			s.AtMost(20, []*simulate.Client{c})
		}}, Case{Name: fmt.Sprintf("half of them from the null sender, host %d", i), Presets: []string{"standard"}, Play: func(s *Server) {
			s.Learn()
			from := []string{"a@x.example", ""}
			var local []string
			for j := range 40 {
				local = append(local, fmt.Sprintf("both%d", j))
			}
			c := s.Separate(h, from, local...)
			s.Rejected("", c)
			s.AtMost(10, []*simulate.Client{c})
		}}, Case{Name: fmt.Sprintf("a transaction of the null sender, host %d", i), Presets: []string{"standard"}, Play: func(s *Server) {
			s.Learn()
			c := s.Ask(h, manner{Null: true}, simulate.Words("null", 0, 40)...)
			s.Rejected("", c)
			s.AtMost(5, []*simulate.Client{c})
			s.Evidence(c, "harvest", "")
		}}, Case{Name: fmt.Sprintf("before any mail was accepted, host %d", i), Presets: []string{"standard"}, Play: func(s *Server) {
			c := s.Ask(h, manner{}, simulate.Words("guess", 0, 50)...)
			s.Rejected("rcpt-to", c)
			s.AtMost(6, []*simulate.Client{c})
			s.Evidence(c, "unknown-recipient", "")
			s.Evidence(c, "harvest", "")
		}})
	}
	Run(t, list)
}

// TestSlowHarvest checks harvests in many sessions.
func TestSlowHarvest(t *testing.T) {
	var list []Case
	for i, h := range []simulate.Host{harvesters[0], harvesters[1], harvesters[3]} {
		list = append(list, Case{Name: fmt.Sprintf("one a session, 120 in a day, host %d", i), Play: func(s *Server) {
			s.Learn()
			s.AtMost(40, s.Bursts(120, 1, 12*minute, manner{}, same(h)))
		}}, Case{Name: fmt.Sprintf("four a session, every ten seconds, host %d", i), Play: func(s *Server) {
			s.Learn()
			s.AtMost(40, s.Bursts(400, 4, 10*time.Second, manner{}, same(h)))
		}}, Case{Name: fmt.Sprintf("one every ten minutes for five days, host %d", i), Play: func(s *Server) {
			s.Learn()
			var all []*simulate.Client
			var days []int
			for d := range 5 {
				var cs []*simulate.Client
				for j := range 144 {
					cs = append(cs, s.Ask(h, manner{}, simulate.Words("slow", 144*d+j, 1)...))
					s.Wait(10 * minute)
				}
				all, days = append(all, cs...), append(days, told(cs))
			}
			s.AtMost(120, all)
			s.Check(days[0] <= 40 && days[4] <= 20, "learned about %v mailboxes on five days", days)
		}}, Case{Name: fmt.Sprintf("again after the ban, ten days, host %d", i), Play: func(s *Server) {
			s.Learn()
			cs := s.Bursts(20, 50, 12*hour, manner{}, same(h))
			s.AtMost(60, cs)
			s.Rejected("", cs[1])
			s.AtMost(1, cs[1:2])
		}})
	}
	Run(t, list)
}

// TestNetworkHarvest checks harvests from several hosts in one network.
func TestNetworkHarvest(t *testing.T) {
	var list []Case
	for _, each := range []int{4, 2, 50} {
		list = append(list, Case{Name: fmt.Sprintf("250 hosts of a /24, %d each", each), Play: func(s *Server) {
			s.Learn()
			cs := s.Bursts(250, each, 5*minute, manner{}, func(i int) simulate.Host { return bare(at("203.0.113.%d", i+1), "mail.x.example") })
			s.AtMost(150, cs)
			s.Accepted(s.Message(named("203.0.113.251", "mail.neighbour.example"))) // no unknown recipient is requested
		}})
	}
	for _, each := range []int{4, 1} {
		list = append(list, Case{Name: fmt.Sprintf("ever new addresses of a /64, %d each", each), Play: func(s *Server) {
			s.Learn()
			s.AtMost(40, s.Bursts(100, each, 5*minute, manner{}, func(i int) simulate.Host { return bare(fmt.Sprintf("2001:db8:7:7::%x", i+1), "mail.x.example") }))
		}})
	}
	for _, domain := range []string{"farm.example", "vps.hoster.example"} {
		list = append(list, Case{Name: "a /64 with proven names of " + domain, Play: func(s *Server) {
			s.Learn()
			s.AtMost(60, s.Bursts(100, 4, minute, manner{Sender: "a@" + domain}, func(i int) simulate.Host {
				return named(fmt.Sprintf("2001:db8:77:1::%x", i+1), fmt.Sprintf("mx%d.%s", i, domain))
			}))
		}})
	}
	Run(t, list)
}

// limits checks how many mailboxes each session could verify: at most first in each of the first
// nine sessions, and at most then in each later session.
func (s *Server) limits(cs []*simulate.Client, first, then int) {
	for i, c := range cs {
		most := first
		if i >= 9 {
			most = then
		}
		if n := told([]*simulate.Client{c}); n > most {
			s.Fail("session %d learned about %d mailboxes; the limit is %d", i+1, n, most)
			return
		}
	}
}

// noticed asserts that c's record has evidence of a harvest.
func (s *Server) noticed(c *simulate.Client) {
	got := s.Tokens(c)
	s.Check(slices.ContainsFunc(got, func(token string) bool {
		return slices.Contains([]string{"harvest", "unknown-recipient", "probed-recipient"}, token)
	}), "%s has no evidence of a harvest, only %v", who(c), got)
}

// TestDistributedHarvest checks harvests from a new network every few minutes.
func TestDistributedHarvest(t *testing.T) {
	unnamed := func(i int) simulate.Host { return bare(far(i), fmt.Sprintf("mail.x%d.example", i)) }
	newcomer := func(s *Server, addr string) { s.Accepted(s.Message(named(addr, "mail.newcomer.example"))) }
	var list []Case
	for _, every := range []time.Duration{5 * minute, 2 * minute} {
		list = append(list, Case{Name: fmt.Sprintf("250 networks, one every %v, fifty each", every), Play: func(s *Server) {
			s.Learn()
			cs := s.Bursts(250, 50, every, manner{}, unnamed)
			newcomer(s, "192.0.2.77")
			s.limits(cs, 6, 3)
			s.Evidence(cs[0], "harvest", "")
			s.noticed(cs[100])
		}}, Case{Name: fmt.Sprintf("the same fifty, every %v", every), Play: func(s *Server) {
			s.Learn()
			var cs []*simulate.Client
			for i := range 60 {
				cs = append(cs, s.Ask(unnamed(i), manner{}, simulate.Words("list", 0, 50)...))
				s.Wait(every)
			}
			newcomer(s, "2001:db8:77::25")
			s.limits(cs, 6, 3)
			s.noticed(cs[20])
		}})
	}
	list = append(list, Case{Name: "one message of the botnet first", Play: func(s *Server) {
		s.Learn()
		s.Ask(bare("198.18.255.9", "mail.x9.example"), manner{Send: true}, "postmaster@example.org")
		var cs []*simulate.Client
		for i := range 60 {
			s.Wait(5 * minute)
			cs = append(cs, s.Ask(unnamed(i), manner{}, simulate.Words("list", 0, 4)...))
		}
		s.limits(cs, 6, 3)
	}}, Case{Name: "servers with proven names", Play: func(s *Server) {
		s.Learn()
		cs := s.Bursts(100, 50, 5*minute, manner{}, func(i int) simulate.Host { return named(far(i), fmt.Sprintf("mx%d.broken%d.example", i%7, i)) })
		s.limits(cs, 6, 6)
		s.Evidence(cs[0], "harvest", "")
		s.noticed(cs[50])
	}}, Case{Name: "an existing mailbox first", Play: func(s *Server) {
		s.Learn()
		var cs []*simulate.Client
		for i := range 40 {
			cs = append(cs, s.Ask(unnamed(i), manner{}, append(ours("alice"), simulate.Words("mix", 20*i, 20)...)...))
			s.Wait(5 * minute)
		}
		s.limits(cs, 7, 4)
		s.Accepted(s.Message(named("192.0.2.78", "mail.stranger.example")),
			s.Deliver(named("198.51.100.30", "mail.sender.example"), "joe@sender.example", "bob"))
	}})
	Run(t, list)
}

// TestMixedHarvest checks harvests whose sessions also deliver a message.
func TestMixedHarvest(t *testing.T) {
	var list []Case
	for i, h := range harvesters {
		for _, one := range []bool{false, true} {
			list = append(list, Case{Name: fmt.Sprintf("a message and nine names every four hours, host %d, one transaction %v", i, one), Play: func(s *Server) {
				s.Learn()
				var cs []*simulate.Client
				for j := range 60 {
					var to []string
					for k := range 9 {
						to = append(to, fmt.Sprintf("mixed%d-%d", j, k))
					}
					if to = append([]string{"alice"}, to...); one {
						cs = append(cs, s.Deliver(h, "a@x.example", to...))
					} else {
						cs = append(cs, s.Separate(h, []string{"a@x.example"}, to...))
					}
					s.Wait(4 * hour)
				}
				s.AtMost(60, cs[:30], "alice")
				s.AtMost(30, cs[30:], "alice")
				s.Banned(cs[0])
			}})
		}
		list = append(list, Case{Name: fmt.Sprintf("a message and sixty names, then only the deferred names, host %d", i), Play: func(s *Server) {
			s.Learn()
			var cs []*simulate.Client
			for j := range 5 {
				to := []string{"alice"}
				for k := range 60 {
					to = append(to, fmt.Sprintf("again%d-%d", j, k))
				}
				end := s.Now().Add(25 * hour)
				for s.Now().Before(end) {
					c := s.Deliver(h, "a@x.example", to...)
					cs = append(cs, c)
					to = append([]string{"alice"}, deferred(c)...)
					s.Wait(hour)
				}
			}
			s.AtMost(s.of(21, 11)*6, cs, "alice") // the limit per day, in six periods of a day
		}})
	}
	Run(t, list)
}

// names sends n commands with VRFY or EXPN, about a number of different names.
func (s *Server) names(h simulate.Host, verb string, n, different int, reply string) *simulate.Client {
	c := s.Connect(h)
	c.Ehlo()
	for i := range n {
		c.Command(fmt.Sprintf("%s user%d", verb, i%different), reply)
	}
	c.Quit()
	return c
}

// TestNames checks dictionary attacks with VRFY and EXPN. A few names, or the same name again and
// again, prove nothing.
func TestNames(t *testing.T) {
	h := bare("203.0.113.95", "x.example")
	var list []Case
	for verb, reply := range map[string]string{"VRFY": "550 5.1.1 User unknown", "EXPN": "500 5.5.1 Invalid command: Command unrecognized"} {
		list = append(list, Case{Name: verb, Play: func(s *Server) {
			s.Learn()
			for _, tt := range []struct{ n, different int }{{9, 9}, {40, 9}} {
				c := s.names(h, verb, tt.n, tt.different, reply)
				s.Check(!slices.Contains(s.Tokens(c), "harvest"), "%d of %d names are a harvest", tt.different, tt.n)
				s.NotBanned(c)
			}
			c := s.names(h, verb, 10, 10, reply)
			s.Evidence(c, "harvest", "high")
			s.Banned(c)
		}})
	}
	Run(t, list)
}
