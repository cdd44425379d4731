package cases

// This file contains test cases for brute force. The filter cannot answer AUTH, so it can reject a
// client only at the next connection. Each limit is the number of password attempts that the server
// answers until then.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// repeat plays n sessions, one after each interval every.
func (s *Server) repeat(n int, every time.Duration, play func(i int) *simulate.Client) (cs []*simulate.Client) {
	for i := range n {
		cs = append(cs, play(i))
		s.Wait(every)
	}
	return cs
}

// guessers contains hosts that attack on port 25.
var guessers = []simulate.Host{
	bare("203.0.113.82", "x.example"), greets("203.0.113.83", "dsl-83.isp.example", "x.example"), bare("2001:db8:83::2", "mail.x.example"),
}

// TestBlind checks brute force on port 25, where smtpd rejects AUTH.
func TestBlind(t *testing.T) {
	var list []Case
	for i, h := range guessers {
		for _, n := range []int{15, 25} {
			list = append(list, Case{Name: fmt.Sprintf("%d in one session of host %d", n, i), Play: func(s *Server) {
				c := s.Blind(h, n, "LOGIN")
				s.Wait(minute)
				s.Shut(s.Blind(h, 1, "LOGIN"))
				s.Evidence(c, "auth-unsupported", "")
				s.Banned(c)
			}})
		}
		for _, mechanism := range []string{"LOGIN", "PLAIN"} {
			list = append(list, Case{Name: fmt.Sprintf("%s, one every two minutes of host %d", mechanism, i), Play: func(s *Server) {
				cs := s.repeat(60, 2*minute, func(int) *simulate.Client { return s.Blind(h, 1, mechanism) })
				s.Tried(30, cs)
				s.Evidence(cs[0], "auth-unsupported", "")
			}}, Case{Name: fmt.Sprintf("%s, one an hour for three days of host %d", mechanism, i), Play: func(s *Server) {
				s.Tried(40, s.repeat(72, hour, func(int) *simulate.Client { return s.Blind(h, 1, mechanism) }))
			}})
		}
		list = append(list, Case{Name: fmt.Sprintf("NTLM and CRAM-MD5 of host %d", i), Play: func(s *Server) {
			cs := s.repeat(14, minute, func(j int) *simulate.Client { return s.Blind(h, 1, []string{"NTLM", "CRAM-MD5"}[j%2]) })
			s.Tried(12, cs)
			s.Evidence(cs[0], "auth-unsupported", "")
		}}, Case{Name: fmt.Sprintf("speaks before the greeting, host %d", i), Play: func(s *Server) {
			early := h
			early.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
			c := s.Blind(early, 3, "LOGIN")
			s.Wait(minute)
			s.Evidence(c, "early-talker", "")
			s.Evidence(c, "auth-unsupported", "")
			if s.Preset == "tight" {
				s.Shut(s.Blind(h, 1, "LOGIN"))
				s.Banned(c)
			}
		}})
	}
	Run(t, list)
}

// TestTools checks greetings of attack tools on all ports.
func TestTools(t *testing.T) {
	var list []Case
	for _, port := range []uint16{25, 465, 587} {
		list = append(list, Case{Name: fmt.Sprintf("ylmf-pc on port %d", port), Play: func(s *Server) {
			h := bare("203.0.113.80", "ylmf-pc")
			h.Port = port
			play := func() *simulate.Client {
				if port == 25 {
					return s.Blind(h, 1, "LOGIN")
				}
				return s.Guess(h, "hanks")
			}
			c := play()
			s.Rejected("ehlo", c)
			s.Check(c.Tries == 0 || port == 25, "%d passwords were answered", c.Tries)
			s.Evidence(c, "botnet-helo", "")
			if port == 25 {
				s.Banned(c)
			}
		}})
	}
	list = append(list, Case{Name: "a hundred hosts", Play: func(s *Server) {
		for i := range 100 {
			s.Rejected("", s.Blind(bare(far(i), "ylmf-pc"), 1, "LOGIN"))
		}
	}})
	Run(t, list)
}

// TestSubmissionGuessing checks brute force on the submission ports.
func TestSubmissionGuessing(t *testing.T) {
	var list []Case
	for _, port := range []uint16{587, 465} {
		on := func(addr string) simulate.Host {
			h := bare(addr, "x.example")
			h.Port = port
			return h
		}
		one := on("203.0.113.86")
		name := func(text string) string { return fmt.Sprintf("%s, port %d", text, port) }
		list = append(list, Case{Name: name("one user, forty in an hour"), Play: func(s *Server) {
			cs := s.repeat(14, 4*minute, func(int) *simulate.Client { return s.Guess(one, "office", "office", "office") })
			s.Tried(36, cs)
			s.Evidence(cs[0], "auth-failure", "")
			s.Banned(cs[0])
		}}, Case{Name: name("six users, one each"), Play: func(s *Server) {
			users := strings.Fields("office info test scan admin backup")
			cs := s.repeat(6, minute, func(i int) *simulate.Client { return s.Guess(one, users[i]) })
			s.Shut(cs[5])
			s.Evidence(cs[4], "auth-spray", "")
			s.Banned(cs[0])
		}}, Case{Name: name("a new user every 20 minutes for a day"), Play: func(s *Server) {
			s.Tried(40, s.repeat(72, 20*minute, func(i int) *simulate.Client { return s.Guess(one, fmt.Sprint("user", i)) }))
		}}, Case{Name: name("three users in turn, every three minutes for a day"), Play: func(s *Server) {
			s.Tried(200, s.repeat(480, 3*minute, func(i int) *simulate.Client { return s.Guess(one, []string{"office", "scan", "backup"}[i%3]) }))
		}}, Case{Name: name("40 hosts of a network, one new user an hour each"), Play: func(s *Server) {
			s.Tried(300, s.repeat(400, 90*time.Second, func(i int) *simulate.Client {
				return s.Guess(on(at("203.0.113.%d", 100+i%40)), fmt.Sprintf("user%d-%d", i/40, i%40))
			}))
		}}, Case{Name: name("ever new addresses of a /64, one each"), Play: func(s *Server) {
			cs := s.repeat(45, minute, func(i int) *simulate.Client { return s.Guess(on(fmt.Sprintf("2001:db8:9:9::%x", i+1)), "office") })
			s.Shut(cs[44])
		}})
	}
	Run(t, list)
}

// TestOwnAccount checks attackers who log in to their accounts. The login comes from the
// attacking address, or from an address with other users.
func TestOwnAccount(t *testing.T) {
	h := laptop("203.0.113.60")
	login := func(s *Server, users int) {
		for i := range users {
			s.Accepted(s.Login(h, at("own%d", i), 0, true))
		}
		s.Wait(hour)
	}
	var list []Case
	for _, tt := range []struct{ users, guessed, most int }{{1, 3, 300}, {1, 6, 300}, {1, 40, 150}, {3, 6, 300}, {10, 20, 900}} {
		list = append(list, Case{Name: fmt.Sprintf("%d accounts, guesses %d users in turn for a day", tt.users, tt.guessed), Play: func(s *Server) {
			login(s, tt.users)
			cs := s.repeat(700, 2*minute, func(i int) *simulate.Client {
				if i%30 == 0 {
					s.Login(h, "own0", 0, true)
				}
				return s.guessAs(h, at("user%d", i%tt.guessed), 5)
			})
			s.Tried(tt.most, cs)
			s.Banned(cs[0])
		}})
	}
	list = append(list, Case{Name: "sprays from its own address", Play: func(s *Server) {
		login(s, 1)
		cs := s.repeat(9, minute, func(i int) *simulate.Client { return s.Guess(h, at("user%d", i)) })
		s.Shut(cs[8])
		s.Banned(cs[0])
	}}, Case{Name: "sprays from its own address for three days", Play: func(s *Server) {
		login(s, 1)
		s.Tried(60, s.repeat(216, 20*minute, func(i int) *simulate.Client { return s.Guess(h, at("user%d", i)) }))
	}})
	Run(t, list)
}

// TestDistributedGuessing checks a distributed attack on one account. The attacking hosts
// must be recognised in the first round, and the owner of the account must be able to log
// in.
func TestDistributedGuessing(t *testing.T) {
	var list []Case
	for _, user := range []string{"alice", "office"} {
		list = append(list, Case{Name: "thirty networks, one an hour each, for " + user, Play: func(s *Server) {
			s.Login(laptop("192.0.2.60"), user, 0, true)
			s.Wait(hour)
			cs := s.repeat(300, 2*minute, func(i int) *simulate.Client {
				return s.Guess(bare(at("198.18.%d.9", i%30), fmt.Sprintf("mail%d.x.example", i%30)), user)
			})
			own := []*simulate.Client{s.Login(laptop("192.0.2.60"), user, 0, true), s.Login(laptop("198.51.100.60"), user, 0, true), s.Login(laptop("2001:db8:60::4"), user, 1, true)}
			s.Accepted(own...)
			s.Delivered(own...)
			s.Tried(150, cs)
			s.Evidence(cs[29], "auth-spray", "")
		}})
	}
	Run(t, list)
}

// TestFlood checks the limit on a host's concurrent connections.
func TestFlood(t *testing.T) {
	var list []Case
	for i, h := range guessers {
		for preset, most := range map[string]int{"standard": 50, "tight": 30} {
			list = append(list, Case{Name: fmt.Sprint("120 sessions at a time of host ", i), Presets: []string{preset}, Play: func(s *Server) {
				s.Learn()
				var cs []*simulate.Client
				held := 0
				for range 120 {
					c := s.Connect(h)
					if cs = append(cs, c); !c.Closed {
						held++
					}
				}
				s.Check(held <= most+1, "%d sessions are open; the limit is %d", held, most)
				for _, c := range cs {
					c.Ehlo()
					c.Leave()
				}
				if preset == "standard" {
					s.Evidence(cs[50], "flood", "")
				}
			}})
		}
	}
	Run(t, list)
}
