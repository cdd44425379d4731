package cases

import (
	"fmt"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// TestBalance checks that through the milter, neither mail sent on an earlier day nor many known
// mailboxes hide a harvest, and that mailing lists with dead members reach all other members.
func TestBalance(t *testing.T) {
	known := named("198.51.100.31", "mail.other.example")
	list := named("198.51.100.77", "lists.uni.example")
	// teach delivers mail to existing members from another host, and waits until the next day.
	teach := func(s *Server, size int) {
		for i := 0; i < size; i += 50 {
			var to []string
			for j := i; j < min(i+50, size); j++ {
				if s.Exists(fmt.Sprintf("user%d", j)) {
					to = append(to, fmt.Sprintf("user%d", j))
				}
			}
			s.Delivered(s.Deliver(known, "x@other.example", to...))
		}
		s.Wait(day)
	}
	// post sends a message to each member in a separate session.
	post := func(s *Server, size int) {
		for i := range size {
			c := s.Connect(list)
			c.Ehlo()
			c.Mail(fmt.Sprintf("list+user%d@uni.example", i))
			if r := c.Rcpt(fmt.Sprintf("user%d@example.org", i)); r == simulate.Accepted {
				c.Data()
			} else if s.Exists(fmt.Sprintf("user%d", i)) {
				s.Fail("member %d: %v %s", i, r, answers(c))
			}
			c.Quit()
			s.Wait(5 * time.Second)
		}
		s.Bans(list, 0)
	}
	// harvest requests nine words in each of 300 sessions, and the given mailboxes seven at a time.
	harvest := func(s *Server, h simulate.Host, mailboxes int, most int) {
		tested := 0
		for i := range 300 {
			var words []string
			for j := range min(mailboxes, 7) {
				if user := fmt.Sprintf("user%d", (7*i+j)%mailboxes); s.Exists(user) {
					words = append(words, user)
				}
			}
			if s.Ask(h, manner{}, append(words, simulate.Words("guess", 9*i, 9)...)...).Barred {
				break
			}
			tested += 9
			s.Wait(30 * time.Second)
		}
		if tested > most {
			s.Fail("%d mailboxes tested, want at most %d", tested, most)
		}
	}
	for name, play := range map[string]func(*Server){
		"list of 300, first mail of a new site": func(s *Server) { post(s, 300) },
		"list of 3,000":                         func(s *Server) { teach(s, 3000); post(s, 3000) },
		"list of 3,000, known": func(s *Server) {
			s.History(list, 12, day)
			teach(s, 3000)
			post(s, 3000)
		},
		"harvest after a message on an earlier day": func(s *Server) {
			s.Delivered(s.Deliver(unnamed1, "joe@x.example", "alice"))
			s.Wait(day)
			harvest(s, unnamed1, 0, s.of(200, 150))
		},
		"harvest beside 200 mailboxes": func(s *Server) { teach(s, 200); harvest(s, named1, 200, 1000) },
	} {
		for _, preset := range []string{"standard", "tight"} {
			t.Run(name+"/"+preset, func(t *testing.T) {
				t.Parallel()
				playOver(t, &Case{Play: func(s *Server) {
					s.Learn()
					s.Exists = func(l string) bool {
						var n int
						if _, err := fmt.Sscanf(l, "user%d", &n); err == nil {
							return (n*7919+104729)/13*31%100 >= 8
						}
						return l == "alice"
					}
					play(s)
				}}, preset, true)
			})
		}
	}
}
