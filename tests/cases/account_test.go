package cases

// This file contains test cases for stolen accounts. The presets do not reject authenticated
// clients, so the tests check the evidence. Rules that use the evidence must work or cause an
// error.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// member plays a session in which an authenticated client sends n messages.
func (s *Server) member(h simulate.Host, user string, n int, from func(i int) string, to func(i int) []string) *simulate.Client {
	h.Port = 587
	c := s.Connect(h)
	c.Ehlo()
	c.StartTLS()
	c.Auth(user, true)
	for i := range n {
		c.Mail(from(i))
		for _, r := range to(i) {
			c.Rcpt(r)
		}
		c.Data()
	}
	c.Quit()
	return c
}

func own(user string) func(int) string {
	return func(int) string { return user + "@" + simulate.Domain }
}

// ordinary plays a user's mail on four days.
func (s *Server) ordinary(user string) (cs []*simulate.Client) {
	for range 4 {
		cs = append(cs, s.member(laptop("198.51.100.70"), user, 2, own(user), func(i int) []string { return []string{fmt.Sprintf("friend%d@partner.example", i)} }))
		s.Wait(day)
	}
	return cs
}

// stolen plays the abuse of an account. Clients from several networks log in within a minute and
// forge senders. Half of their recipients do not exist.
func (s *Server) stolen(user string, networks int) (cs []*simulate.Client) {
	for k := range networks {
		cs = append(cs, s.member(bare(at("198.18.%d.9", 10+k), "laptop"), user, 5, func(i int) string { return fmt.Sprintf("winner%d@lottery.example", i) }, func(i int) []string {
			return []string{"alice@example.org", fmt.Sprintf("nobody%d-%d@example.org", k, i), fmt.Sprintf("staff%d-%d@example.org", k, i), fmt.Sprintf("x%d-%d@foreign.example", k, i)}
		}))
		s.Wait(5 * time.Second)
	}
	return cs
}

// acts returns the evidence of cs, except evidence about names, greetings or addresses.
func (s *Server) acts(cs ...*simulate.Client) (list []string) {
	for _, token := range s.Tokens(cs...) {
		if !strings.HasPrefix(token, "rdns") && !strings.HasPrefix(token, "fcrdns") && !strings.HasPrefix(token, "helo-") && !strings.HasPrefix(token, "cloud") {
			list = append(list, token)
		}
	}
	return list
}

// TestStolenAccount checks that the filter detects the use of a stolen account.
func TestStolenAccount(t *testing.T) {
	var list []Case
	for _, user := range []string{"bob", "info"} {
		list = append(list, Case{Name: "twelve networks, account of " + user, Play: func(s *Server) {
			before, cs := s.ordinary(user), s.stolen(user, 12)
			s.Check(len(s.acts(cs[6:]...)) > 0, "no finding in the last six of twelve sessions")
			s.Check(len(s.acts(before...)) == 0, "findings in ordinary sessions: %v", s.acts(before...))
			s.Accepted(before...)
			s.NotBanned(before...)
		}})
		for _, n := range []int{10, 5} {
			list = append(list, Case{Name: fmt.Sprintf("%d unknown recipients in a session, account of %s", 30*n, user), Play: func(s *Server) {
				before := s.ordinary(user)
				c := s.member(laptop("198.51.100.70"), user, n, own(user), func(i int) []string { return simulate.Words(fmt.Sprintf("w%d-", i), 0, 30) })
				s.Check(len(s.acts(c)) > 0, "no finding")
				s.Check(len(s.acts(before...)) == 0, "findings in ordinary sessions: %v", s.acts(before...))
			}})
		}
	}
	Run(t, list)
}

// TestAccountRules checks that each rule with auth works, or causes an error or a warning.
func TestAccountRules(t *testing.T) {
	one := func(s *Server) []*simulate.Client {
		return []*simulate.Client{s.member(bare("198.51.100.70", "laptop"), "bob", 1, own("bob"), func(int) []string { return simulate.Words("w", 0, 100) })}
	}
	many := func(s *Server) []*simulate.Client { return s.stolen("bob", 12) }
	var list []Case
	for _, tt := range []struct {
		match string
		most  int
		play  func(s *Server) []*simulate.Client
	}{
		{"count unknown-recipient > 5", 7, one},
		{"count unknown-recipient > 20 in 1h by user", 30, many},
		{"evidence harvest", 12, one},
	} {
		line := "rule out phase rcpt-to match auth " + tt.match + ` disconnect "421 4.7.0 Ask the postmaster"`
		text, err := simulate.PresetText("standard")
		if err != nil {
			t.Fatal(err)
		}
		if _, warning, err := simulate.CompileAnyway(text + line + "\n"); err != nil || warning != "" {
			t.Logf("%s: %v %s", line, err, warning)
			continue
		}
		list = append(list, Case{Name: tt.match, Presets: []string{"standard"}, Conf: line, Play: func(s *Server) {
			s.ordinary("bob")
			n := 0
			for _, c := range tt.play(s) {
				for _, r := range c.Asked {
					if r.Result == simulate.NoSuch {
						n++
					}
				}
			}
			s.Check(n <= tt.most, "%d unknown recipients were answered; the limit is %d", n, tt.most)
		}})
	}
	list = append(list, Case{Name: "a sender of another domain", Presets: []string{"standard"},
		Conf: `rule out phase mail-from match auth !mail-from "@example.org" reject "550 5.7.1 Not your address"`, Play: func(s *Server) {
			before := s.ordinary("bob")
			cs := s.stolen("bob", 2)
			s.Accepted(before...)
			s.Rejected("mail-from", cs...)
			for _, c := range cs {
				s.Check(c.Mails() == 0, "a message with a forged sender was accepted")
			}
		}})
	Run(t, list)
}
