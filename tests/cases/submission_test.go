package cases

// This file contains test cases for users on the submission ports. Users log in from any
// computer, and occasionally with a wrong password.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// loggedIn asserts that users logged in and sent a message.
func loggedIn(s *Server, cs ...*simulate.Client) {
	s.Fair(cs...)
	s.Delivered(cs...)
}

// TestComputers checks that the name of a user's computer has no effect before the login.
func TestComputers(t *testing.T) {
	var list []Case
	for i, name := range strings.Fields("User ADMIN X hydra localhost [192.168.1.5] 127.0.0.1 [127.0.0.1] DESKTOP-8F3K2L1 home user admin [IPv6:::1] WIN-9QL4SDRB93L laptop.local iPhone") {
		for _, port := range []uint16{465, 587} {
			list = append(list, Case{Name: fmt.Sprintf("%s on port %d", name, port), Play: func(s *Server) {
				for _, addr := range []string{at("198.51.100.%d", 30+i), at("2001:db8:30::%d", i+1)} {
					h := laptop(addr)
					h.Helo, h.Port = name, port
					loggedIn(s, s.Login(h, "alice", i%2, true))
				}
			}})
		}
	}
	list = append(list, Case{Name: "a second submission port", Presets: []string{"standard"}, Conf: "listener submission port { 465, 587, 2525 }", Play: func(s *Server) {
		for i, name := range []string{"laptop", "User", "192.168.1.77", "localhost"} {
			h := laptop("198.51.100.37")
			h.Port, h.Helo = 2525, name
			loggedIn(s, s.Login(h, []string{"alice", "bob"}[i%2], 0, true))
			s.Wait(hour)
		}
	}})
	Run(t, list)
}

// TestOffice checks an office whose users log in. Logins and mail from the office must be accepted,
// even if other logins from its address fail.
func TestOffice(t *testing.T) {
	office := greets("198.51.100.34", "office.firm.example", "laptop")
	server := named("198.51.100.34", "office.firm.example")
	settled := func(s *Server, users, days int) (staff []string) {
		s.Earlier()
		for i := range users {
			staff = append(staff, at("member%d", i))
		}
		for range days {
			for _, u := range staff {
				loggedIn(s, s.Login(office, u, 0, true))
				s.Wait(minute)
			}
			s.Wait(22 * hour)
		}
		return staff
	}
	works := func(s *Server, user string) {
		cs := []*simulate.Client{s.Login(office, user, 0, true), s.Message(server)}
		s.Accepted(cs...)
		s.Delivered(cs...)
	}
	var list []Case
	for _, users := range []int{10, 25, 40} {
		list = append(list, Case{Name: fmt.Sprintf("%d users, eight old phones, one of which retries for two days", users), Play: func(s *Server) {
			staff := settled(s, users, 3)
			for i := range 8 {
				s.Login(office, at("former%d", i), 1, false)
			}
			for i := range 48 {
				s.Wait(30 * minute)
				s.Login(office, "former1", 1, false)
				s.Wait(30 * minute)
				works(s, staff[i%users])
			}
		}}, Case{Name: fmt.Sprintf("%d users whose phones keep their old passwords", users), Play: func(s *Server) {
			staff := settled(s, users, 1)
			for i := range 6 * 12 {
				for j, u := range staff {
					if i%3 == j%3 {
						s.Login(office, u, 1, false)
					}
				}
				if i%12 == 11 {
					works(s, staff[i/12])
				}
				s.Wait(5 * minute)
			}
		}})
	}
	for _, name := range []string{"%s@example.org", "%s+phone", "%s@EXAMPLE.org"} {
		for _, days := range []int{0, 2} {
			list = append(list, Case{Name: fmt.Sprintf("ten users, %d days known, log in after an attempt as %s", days, fmt.Sprintf(name, "user")), Play: func(s *Server) {
				staff := settled(s, 10, days)
				if days == 0 {
					staff = strings.Fields("alice bob carol dave erin frank grace heidi ivan judy")
				}
				for range 3 {
					for _, u := range staff {
						s.Login(office, fmt.Sprintf(name, u), 1, false)
						loggedIn(s, s.Login(office, u, 0, true))
						s.Wait(10 * minute)
					}
					s.Wait(22 * hour)
				}
			}})
		}
	}
	list = append(list, Case{Name: "a campus where another user mistypes and leaves each hour", Play: func(s *Server) {
		staff := settled(s, 13, 1)
		for i := range 72 {
			s.Login(office, at("guest%d", i), 1, false)
			s.Wait(30 * minute)
			works(s, staff[i%len(staff)])
			s.Wait(30 * minute)
		}
	}}, Case{Name: "one user, and another user's device that retries all day while five users mistype", Play: func(s *Server) {
		staff := settled(s, 1, 1)
		for i := range 288 {
			s.Login(office, "former", 1, false)
			if i%48 == 0 {
				s.Login(office, at("guest%d", i), 3, false)
			}
			s.Wait(5 * minute)
		}
		works(s, staff[0])
	}}, Case{Name: "eight users of one mistype at once, and then one of them hourly", Play: func(s *Server) {
		staff := settled(s, 1, 1)
		for i := range 8 {
			s.Login(office, at("guest%d", i), 1, false)
		}
		s.Bans(office, 10*minute)
		s.Wait(10 * minute)
		for range 24 {
			works(s, staff[0])
			s.Login(office, "guest1", 1, false)
			s.Wait(hour)
		}
	}})
	Run(t, list)
}

// TestSettings checks mail programs with wrong settings for the encryption. The colleagues of the
// user, who share its address and have never logged in, must not be locked out.
func TestSettings(t *testing.T) {
	office := greets("198.51.100.29", "office.firm.example", "laptop")
	office.Port = 587
	users := []string{"alice", "bob", "carol", "dave"}
	play := func(s *Server, n int, every time.Duration, wrong func()) {
		s.Earlier()
		for i := range n * len(users) {
			wrong()
			s.Wait(every)
			if i%n == n-1 {
				loggedIn(s, s.Login(office, users[i/n], 0, true))
			}
		}
	}
	Run(t, []Case{{Name: "TLS without STARTTLS on port 587", Play: func(s *Server) {
		play(s, 3, 10*minute, func() {
			c := s.Connect(office)
			c.Command("\x16\x03\x01\x02", simulate.UnknownCommand)
			c.Command("\x03\xff", simulate.UnknownCommand)
			c.Leave()
			s.Evidence(c, "talks-tls", "low")
			s.Evidence(c, "talks-binary", "low")
		})
	}}, {Name: "a login without STARTTLS on port 587", Play: func(s *Server) {
		play(s, 12, 5*minute, func() {
			if c := s.Blind(office, 1, "PLAIN"); !s.milter { // a milter receives no AUTH commands
				s.Evidence(c, "auth-unsupported", "low")
			}
		})
	}}, {Name: "binary data without TLS on port 587", Presets: []string{"tight"}, Play: func(s *Server) {
		s.Learn()
		c := s.Connect(office)
		c.Command("\x03", simulate.UnknownCommand)
		c.Leave()
		s.Evidence(c, "talks-binary", "high")
		s.Banned(c)
	}}})
}

// TestMistakes checks that users with wrong passwords are not locked out.
func TestMistakes(t *testing.T) {
	office := greets("198.51.100.34", "office.firm.example", "laptop")
	staff := []string{"alice", "bob", "carol", "dave", "erin"}
	Run(t, []Case{{Name: "five users mistype and leave, and log in an hour later", Play: func(s *Server) {
		s.Earlier()
		for _, u := range staff {
			s.Login(office, u, 1, false)
			s.Wait(minute)
		}
		s.Wait(hour)
		for _, u := range staff {
			c := s.Login(office, u, 0, true)
			s.Accepted(c)
			s.Delivered(c)
		}
	}}, {Name: "five users mistype and log in", Play: func(s *Server) {
		s.Earlier()
		for _, u := range staff {
			loggedIn(s, s.Login(office, u, 1, true))
		}
	}}, {Name: "a telephone with an old password in an office, all day", Play: func(s *Server) {
		s.Earlier()
		h := laptop("198.51.100.35")
		cs := []*simulate.Client{s.Login(h, "bob", 0, true)}
		for i := range 120 {
			s.Login(h, "alice", 1, false)
			s.Wait(4 * minute)
			if i%20 == 0 {
				cs = append(cs, s.Login(h, "bob", 0, true))
			}
		}
		loggedIn(s, append(cs, s.Login(h, "alice", 1, true))...)
	}}, {Name: "twelve mistakes in a session, then the right password", Play: func(s *Server) {
		h := laptop("198.51.100.36")
		loggedIn(s, s.Login(h, "alice", 12, true), s.Login(h, "alice", 0, true))
	}}, {Name: "a traveller mistypes in six networks a day", Play: func(s *Server) {
		s.Earlier()
		for i := range 6 {
			h := laptop(at("198.18.%d.7", i))
			s.Login(h, "alice", 1, false)
			loggedIn(s, s.Login(h, "alice", 0, true))
			s.Wait(2 * hour)
		}
	}}, {Name: "a user whose account is attacked, from a new place", Play: func(s *Server) {
		s.Earlier()
		for i := range 30 {
			s.Login(laptop(at("198.18.%d.7", i)), "alice", 1, false)
			s.Wait(minute)
		}
		loggedIn(s, s.Login(laptop("198.51.100.38"), "alice", 1, true), s.Login(laptop("2001:db8:38::2"), "alice", 0, true))
	}}})
}
