package cases

// This file contains test cases for mailing lists, newsletters, forums and notices with former
// recipients.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

var (
	lists   = named("198.51.100.21", "lists.club.example")
	lists6  = named("2001:db8:21::3", "lists.choir.example")
	shop    = named("198.51.100.22", "mail.shop.example")
	forum   = named("198.51.100.23", "forum.club.example")
	members = []string{"alice", "bob", "carol", "dave"}
)

// delivered asserts that the members receive the message, and that the host is not banned.
func delivered(s *Server, c *simulate.Client) {
	s.Delivered(c)
	s.NotBanned(c)
}

// TestLists checks that lists with former members still reach all other members.
func TestLists(t *testing.T) {
	var list []Case
	for _, h := range []simulate.Host{lists, lists6} {
		for _, n := range []int{5, 6, 7} {
			for _, last := range []int{0, 1, 2} { // number of members that follow the former members
				to := slices.Concat(members[:4-last], former(n), members[4-last:])
				list = append(list, Case{Name: fmt.Sprintf("%s is unknown, %d have left, %d members are last", h.RDNS, n, last), Play: func(s *Server) {
					s.Earlier()
					delivered(s, s.Deliver(h, "list-bounces@"+h.RDNS, to...))
				}})
			}
		}
		list = append(list, Case{Name: h.RDNS + " is known, six have left", Play: func(s *Server) {
			s.History(h, 5, day)
			c := s.Deliver(h, "list-bounces@"+h.RDNS, slices.Concat(members, former(6))...)
			s.Fair(c)
			s.Delivered(c)
		}}, Case{Name: h.RDNS + " is trusted, eight have left", Play: func(s *Server) {
			s.History(h, 14, day)
			c := s.Deliver(h, "list-bounces@"+h.RDNS, slices.Concat(former(4), members, former(8)[4:])...)
			s.Fair(c)
			s.Delivered(c)
		}})
	}
	list = append(list, Case{Name: "a trusted sender starts a newsletter, eight of twenty have left", Play: func(s *Server) {
		s.Mailboxes = append(s.Mailboxes, "kim", "leo")
		s.History(shop, 12, day)
		c := s.Deliver(shop, "news@shop.example", slices.Concat(former(3), mailboxes[1:7], former(8)[3:], mailboxes[7:])...)
		s.Fair(c)
		s.Delivered(c)
	}}, Case{Name: "a known sender starts a newsletter, the first six have left", Play: func(s *Server) {
		s.Mailboxes = append(s.Mailboxes, "kim", "leo", "mia")
		s.History(shop, 4, 7*day)
		delivered(s, s.Deliver(shop, "news@shop.example", slices.Concat(former(6), s.Mailboxes[2:])...))
	}})
	Run(t, list)
}

// TestRetriedLists checks that a list server is not banned for its retries. A mail server retries
// only recipients that were deferred. After the members got the message, these are only former ones.
func TestRetriedLists(t *testing.T) {
	var list []Case
	for _, n := range []int{11, 12, 14, 25} {
		for _, verp := range []bool{false, true} {
			list = append(list, Case{Name: fmt.Sprintf("an unknown list server retries %d former members, own senders %v", n, verp), Play: func(s *Server) {
				for _, m := range mailboxes {
					s.Deliver(named("203.0.113.9", "mx.earlier.example"), "joe@earlier.example", m)
				}
				s.Wait(day)
				to, got := slices.Concat(former(3), members[:2], former(n)[3:], members[2:]), 0
				for _, wait := range []time.Duration{0, 15 * minute, 30 * minute, hour, 2 * hour, 4 * hour} {
					s.Wait(wait)
					var c *simulate.Client
					if verp {
						var from []string
						for _, l := range to {
							from = append(from, "bounce-"+l+"@lists.example")
						}
						c = s.Separate(lists, from, to...)
					} else {
						c = s.Deliver(lists, "list-bounces@lists.example", to...)
					}
					got += accepted(c)
					if to = deferred(c); len(to) == 0 {
						break
					}
				}
				s.Check(got == len(members), "%d members got the message", got)
				c := s.Message(lists)
				s.Accepted(c)
				delivered(s, c)
			}})
		}
	}
	Run(t, list)
}

// accepted returns the number of c's recipients that the server accepted.
func accepted(c *simulate.Client) (n int) {
	for _, a := range c.Asked {
		if a.Result == simulate.Accepted {
			n++
		}
	}
	return n
}

// deferred returns the local parts of c's recipients that a rule has deferred.
func deferred(c *simulate.Client) (local []string) {
	for _, a := range c.Asked {
		if a.Result == simulate.Refused {
			l, _, _ := strings.Cut(a.Rcpt, "@")
			local = append(local, l)
		}
	}
	return local
}

func confirmations(n int) (from []string) {
	for i := range n {
		from = append(from, fmt.Sprintf("confirm-%d@club.example", i))
	}
	return from
}

// TestForums checks forums whose visitors have entered invented addresses.
func TestForums(t *testing.T) {
	var list []Case
	for _, n := range []int{5, 6} {
		list = append(list, Case{Name: fmt.Sprintf("a known forum, %d invented addresses", n), Play: func(s *Server) {
			s.History(forum, 12, day)
			s.Fair(s.Separate(forum, confirmations(n), invented(n)...))
		}}, Case{Name: fmt.Sprintf("an unknown forum, %d invented addresses in an hour", n), Play: func(s *Server) {
			s.Earlier()
			var cs []*simulate.Client
			for i, l := range invented(n) {
				cs = append(cs, s.Deliver(forum, confirmations(n)[i], l))
				s.Wait(10 * minute)
			}
			s.Wait(20 * hour)
			last := s.Message(forum)
			s.Fair(append(cs, last)...)
			s.Delivered(last)
		}}, Case{Name: fmt.Sprintf("an unknown forum, %d invented addresses in one connection", n), Play: func(s *Server) {
			s.Earlier()
			c := s.Separate(forum, confirmations(n), invented(n)...)
			s.Wait(hour)
			last := s.Message(forum)
			s.Temporary(c)
			s.Accepted(last)
			s.Delivered(last)
			s.NotBanned(c)
		}})
	}
	Run(t, list)
}

// TestBrokenTables checks that an outage of the server's recipient table does not cause evidence
// against senders.
func TestBrokenTables(t *testing.T) {
	h := named("198.51.100.24", "lists.uni.example")
	marked := func(names []string, mark string) (list []string) {
		for _, n := range names {
			list = append(list, n+mark)
		}
		return list
	}
	Run(t, []Case{{Name: "mailboxes of yesterday are unknown", Play: func(s *Server) {
		for _, m := range mailboxes[1:7] {
			s.Deliver(named("203.0.113.9", "mx.earlier.example"), "joe@earlier.example", m)
			s.Wait(5 * minute)
		}
		s.Wait(20 * hour)
		c := s.Deliver(h, "list@uni.example", marked(mailboxes[1:7], "=")...)
		s.Wait(hour)
		d := s.Deliver(h, "list@uni.example", mailboxes[1:7]...)
		s.Fair(c, d)
		s.Delivered(d)
	}}, {Name: "the directory does not answer", Play: func(s *Server) {
		s.Earlier()
		c := s.Deliver(h, "list@uni.example", marked(mailboxes[1:9], "~")...)
		s.Wait(30 * minute)
		d := s.Deliver(h, "list@uni.example", mailboxes[1:9]...)
		s.Fair(c, d)
		s.Delivered(d)
	}}, {Name: "the directory does not answer a new list server for an hour", Play: func(s *Server) {
		s.Earlier()
		for range 5 {
			s.Fair(s.Deliver(h, "list@uni.example", marked(slices.Concat(mailboxes[1:9], former(4)), "~")...))
			s.Wait(15 * minute)
		}
		c := s.Deliver(h, "list@uni.example", mailboxes[1:9]...)
		s.Fair(c)
		s.Delivered(c)
	}}})
}

// TestNotices checks programs that send notices to mailboxes that do not exist.
func TestNotices(t *testing.T) {
	jobs, supplier := named("198.51.100.25", "jobs.partner.example"), named("198.51.100.26", "mail.supplier.example")
	var list []Case
	for _, n := range []int{10, 25} {
		list = append(list, Case{Name: fmt.Sprintf("%d notices to one former user", n), Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			from := make([]string, n)
			for i := range from {
				from[i] = fmt.Sprintf("cron-%d@partner.example", i)
			}
			s.Fair(s.Separate(jobs, from, slices.Repeat([]string{"karl"}, n)...))
		}})
	}
	for _, wrong := range [][]string{{"billing", "invoices"}, {"billing"}, {"billing", "invoices", "accounts"}} {
		list = append(list, Case{Name: fmt.Sprintf("a wrong address a day for a month, %d in turn", len(wrong)), Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			var cs []*simulate.Client
			for i := range 30 {
				cs = append(cs, s.Deliver(supplier, "robot@supplier.example", wrong[i%len(wrong)]))
				s.Wait(day)
			}
			last := s.Deliver(supplier, "robot@supplier.example", "alice")
			s.Fair(append(cs, last)...)
			s.Delivered(last)
		}})
	}
	Run(t, list)
}
