package cases

// This file contains test cases for users on the submission ports. Users log in from any
// computer, and occasionally with a wrong password.

import (
	"fmt"
	"strings"
	"testing"

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
