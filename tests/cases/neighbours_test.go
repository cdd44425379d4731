package cases

// This file contains test cases for legitimate hosts that share an address, a network or a
// name with an attacker.

import (
	"fmt"
	"testing"

	"scanwatch/tests/simulate"
)

// TestNeighbours checks that offences do not affect hosts with adjacent addresses.
func TestNeighbours(t *testing.T) {
	var list []Case
	for i, net := range []string{"2001:db8:3c02:0", "2001:db8:400:d0"} {
		known := named(net+":f03c:92ff:fe92:3fc7", "mail.family.example")
		list = append(list, Case{Name: fmt.Sprint("a known server in a /64 with a bot and a harvester, ", i), Play: func(s *Server) {
			s.History(known, 3, day)
			s.Bot(net + ":f03c:91ff:fe11:1")
			s.Wait(2 * hour)
			s.Harvests(bare(net+":f03c:91ff:fe11:2", "mail.x.example"), 9, 20)
			s.Wait(hour)
			c := s.Message(known)
			s.Accepted(c)
			s.Delivered(c)
		}}, Case{Name: fmt.Sprint("an unknown server in a /64 with a harvester, ", i), Play: func(s *Server) {
			s.Earlier()
			s.Harvests(bare(net+"::1001:1", "mail.x.example"), 9, 20)
			s.Wait(hour)
			s.Temporary(s.Message(named(net+"::2002:1", "mail.uncle.example")))
		}})
	}
	for i, addr := range []string{"68.183.46.233", "3.17.207.148", "172.105.212.74", "159.223.98.198"} {
		list = append(list, Case{Name: "a mail server on a former scanner's address " + addr, Play: func(s *Server) {
			s.Earlier()
			fairMessage(s, named(addr, fmt.Sprintf("mail.family%d.example", i)))
		}})
	}
	for _, network := range []string{"64:ff9b::cb00:71%02x", "64:ff9b:1:cb00::%x", "2001:0:4136:e378:8000:63bf:3fff:%x"} { // NAT64, NAT64 with a local prefix, and Teredo
		list = append(list, Case{Name: "unrelated hosts in a /64, " + network, Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			s.Bot(at(network, 9))
			s.Harvests(bare(at(network, 10), "mail.x.example"), 9, 20)
			for i := range 8 {
				s.Guess(bare(at(network, 20+i), "pc.x.example"), fmt.Sprint("user", i))
			}
			s.Wait(hour)
			fairMessage(s, bare(at(network, 30), "mail.family.example"))
			s.Accepted(s.Login(laptop(at(network, 31)), "alice", 0, true))
			s.Shut(s.hello(bare(at(network, 9), "other.example")))
		}})
	}
	list = append(list, gatewayCases()...)
	Run(t, list)
}

// TestCompany checks legitimate hosts that share a provider or a network with attackers, or that
// look like attackers.
func TestCompany(t *testing.T) {
	list := []Case{{Name: "customers of a hosting provider, one of which harvests", Play: func(s *Server) {
		rented := func(i int) simulate.Host {
			return greets(at("198.18.%d.5", i), fmt.Sprintf("vmi%d.hoster.example", 1000000+37*i), fmt.Sprintf("mail.site%d.example", i))
		}
		post := func(i int) *simulate.Client {
			return s.Deliver(rented(i), fmt.Sprintf("joe@site%d.example", i), "alice")
		}
		for i := range 8 {
			post(i)
			s.Wait(hour)
		}
		s.Harvests(greets("198.18.99.5", "vmi1009999.hoster.example", "mail.x.example"), 9, 20)
		s.Wait(hour)
		for i := 4; i < 12; i++ {
			c := post(i)
			s.Fair(c)
			s.Delivered(c)
		}
	}}, {Name: "a known server with mail for a domain that moved away", Conf: `table <local-domains> { "example.org" }`, Play: func(s *Server) {
		h := named("198.51.100.110", "mail.partner.example")
		s.History(h, 12, day)
		var to []string
		for i := range 6 {
			to = append(to, fmt.Sprintf("person%d@moved.example", i))
		}
		c := s.Ask(h, simulate.Manner{Sender: "joe@partner.example", Per: 1}, to...)
		s.Wait(hour)
		d := s.Message(h)
		s.Temporary(c)
		s.Accepted(d)
		s.Delivered(d)
		s.NotBanned(c)
	}}, {Name: "the mail host of a scanning organisation", Play: func(s *Server) {
		s.Earlier()
		for _, to := range []string{"abuse", "postmaster"} {
			c := s.Deliver(named("198.51.100.111", "mail.shadowserver.org"), "autoreports@shadowserver.org", to)
			s.Delivered(c)
			s.NotBanned(c)
		}
	}}, {Name: "twenty connections at a time of a known server", Play: func(s *Server) {
		h := named("198.51.100.112", "mail.partner.example")
		s.History(h, 3, day)
		var cs []*simulate.Client
		for range 20 {
			cs = append(cs, s.Connect(h))
		}
		for _, c := range cs {
			c.Ehlo()
			c.Mail("joe@partner.example")
			c.Rcpt("alice@example.org")
			c.Data()
		}
		for _, c := range cs {
			c.Quit()
		}
		s.Fair(cs...)
		s.Delivered(cs...)
	}}}
	Run(t, list)
}

// gatewayCases lists addresses that many clients share.
func gatewayCases() (list []Case) {
	for _, addr := range []string{"172.18.0.1", "10.0.5.1", "192.168.4.1", "fd00:18::1"} {
		list = append(list, Case{Name: "a gateway with the address " + addr, Play: func(s *Server) {
			good := func(i int) simulate.Host { return bare(addr, fmt.Sprintf("mail.good%d.example", i)) }
			for i := range 10 {
				s.Deliver(good(i), fmt.Sprintf("joe@good%d.example", i), "alice")
				s.Wait(hour)
			}
			s.Bot(addr)
			s.Harvests(bare(addr, "mail.x.example"), 12, 12)
			s.Wait(5 * minute)
			c := s.Deliver(good(3), "joe@good3.example", "alice")
			s.Accepted(c)
			s.Delivered(c)
			s.NotBanned(c)
		}})
	}
	return list
}
