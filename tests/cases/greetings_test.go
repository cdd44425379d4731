package cases

// This file contains test cases for legitimate servers and programs with an unusual
// greeting. A client may greet with a name other than its own (RFC 5321 section 4.1.4).

import (
	"fmt"
	"net/netip"
	"testing"

	"scanwatch/tests/simulate"
)

// TestCorrectedGreetings checks that a client that corrects its greeting is judged by the new
// greeting. A client without a proven name cannot correct a false name.
func TestCorrectedGreetings(t *testing.T) {
	play := func(h simulate.Host, first string) func(*Server) *simulate.Client {
		return func(s *Server) *simulate.Client {
			s.Earlier()
			c := s.Connect(h)
			if first == "" {
				c.Command("EHLO mail.\xc3\xa9xample.example", "501 5.5.1 Invalid command: Invalid domain name")
			} else {
				c.Greet("EHLO", first)
			}
			c.Greet("EHLO", h.Helo)
			c.Mail(sender(h))
			c.Rcpt("alice@example.org")
			c.Data()
			c.Quit()
			return c
		}
	}
	var list []Case
	server, nameless := named("198.51.100.65", "mail.firm.example"), bare("198.51.100.66", "mail.club.example")
	for _, tt := range []struct {
		first, token string
		host         simulate.Host
		fair         bool
	}{
		{"", "helo-invalid", server, true},
		{"", "helo-invalid", nameless, true},
		{"localhost", "helo-localhost", server, true},
		{"198.51.100.66", "helo-bare-address", nameless, true},
		{"gmail.com", "helo-forged", server, true},
		{"gmail.com", "helo-forged", nameless, false},
		{"mx.example.org", "helo-own-name", nameless, false},
	} {
		list = append(list, Case{Name: fmt.Sprintf("%s after %q", tt.host.Helo, tt.first), Presets: []string{"tight"}, Play: func(s *Server) {
			c := play(tt.host, tt.first)(s)
			if !s.milter || tt.first != "" {
				s.Evidence(c, tt.token, "")
			}
			if !tt.fair {
				s.Rejected("rcpt-to", c)
				return
			}
			s.Accepted(c)
			s.Delivered(c)
		}})
	}
	Run(t, list)
}

func fairMessage(s *Server, h simulate.Host) {
	c := s.Message(h)
	s.Fair(c)
	s.Delivered(c)
}

// TestGreetings checks that programs with a proven name may greet with a private or
// loopback address.
func TestGreetings(t *testing.T) {
	var list []Case
	for i, helo := range []string{"[127.0.0.1]", "[IPv6:::1]", "[127.0.1.1]", "[IPv6:fe80::1]", "[169.254.3.4]"} {
		list = append(list, Case{Name: "a program greets " + helo, Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			fairMessage(s, greets(at("198.51.100.%d", 50+i), "app.customer.example", helo))
			fairMessage(s, greets("2001:db8:50::1", "app6.customer.example", helo))
		}})
	}
	for i, helo := range []string{"[10.1.2.3]", "[172.18.0.5]", "[192.168.178.20]", "[10.0.0.4]", "[172.17.0.1]", "[IPv6:fd00::5]"} {
		list = append(list, Case{Name: "a program greets " + helo, Play: func(s *Server) {
			s.Earlier()
			fairMessage(s, greets(at("198.51.100.%d", 60+i), fmt.Sprintf("app%d.customer.example", i), helo))
		}}, Case{Name: "a program greets " + helo + ", which the server has as well", Presets: []string{"standard"},
			Own: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("10.0.0.4"), netip.MustParseAddr("fd00::5")},
			Play: func(s *Server) {
				s.Earlier()
				fairMessage(s, greets(at("198.51.100.%d", 60+i), fmt.Sprintf("app%d.customer.example", i), helo))
			}})
	}
	for i, name := range []string{"admin", "hydra", "user", "x"} {
		list = append(list, Case{Name: "the first word of the proven name is " + name, Play: func(s *Server) {
			s.Earlier()
			c := s.Message(greets(at("198.51.100.%d", 70+i), name+".uni.example", name))
			s.Temporary(c)
			s.NotBanned(c)
		}})
	}
	for i, h := range []struct{ rdns, helo string }{
		{"mail.corp.example", "EXCH01.corp.local"}, {"", "EXCH01.corp.local"}, {"mx.corp.example", "mail_gw.corp.example"}, {"gw.corp.example", "WIN-9QL4SDRB93L"},
		{"", "SRV-MAIL.intern"}, {"mail.office.example", "exchange.office.lan"},
	} {
		list = append(list, Case{Name: fmt.Sprintf("Exchange named %q greets %s", h.rdns, h.helo), Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			fairMessage(s, greets(at("198.51.100.%d", 80+i), h.rdns, h.helo))
		}})
	}
	app := greets("198.51.100.50", "app.customer.example", "127.0.0.1")
	list = append(list, Case{Name: "127.0.0.1 without brackets, known", Presets: []string{"standard"}, Play: func(s *Server) {
		h := app
		h.Helo = h.RDNS
		s.History(h, 3, day)
		fairMessage(s, app)
	}}, Case{Name: "127.0.0.1 without brackets, unknown", Presets: []string{"standard"}, Play: func(s *Server) {
		s.Earlier()
		c := s.Message(app)
		s.Temporary(c)
		s.NotBanned(c)
	}})
	for i, helo := range []string{"mail.example.com", "localhost.localdomain", "3f2a1b9c4d5e", "mx.example.net"} {
		list = append(list, Case{Name: "a known server moves to a container with the name " + helo, Play: func(s *Server) {
			h := named(at("198.51.100.%d", 110+i), "mail.family.example")
			s.History(h, 12, day)
			h.Helo = helo
			fairMessage(s, h)
		}})
	}
	Run(t, list)
}

// TestDomainGreetings checks greetings with a domain above the proven name, or with a
// local domain.
func TestDomainGreetings(t *testing.T) {
	var list []Case
	for _, h := range []simulate.Host{
		greets("220.181.12.215", "m12.mail.163.com", "163.com"), greets("123.125.123.56", "smtp123-56.mail.sohu.com", "sohu.com"),
		greets("198.51.100.58", "cc3.mail.college.example", "college.example"), greets("64.12.138.5", "imo-m08.mx.aol.com", "aol.com"),
	} {
		list = append(list, Case{Name: h.RDNS + " greets " + h.Helo, Play: func(s *Server) {
			s.Earlier()
			fairMessage(s, h)
		}})
	}
	const rented = "static.55.100.51.198.clients.hoster.example"
	list = append(list, Case{Name: "the web server of our own domain", Conf: "own-name \"family.example\"\ntable <local-domains> { \"example.org\", \"family.example\" }", Play: func(s *Server) {
		s.Earlier()
		fairMessage(s, greets("198.51.100.54", "web1.family.example", "family.example"))
	}}, Case{Name: "the web server of a customer, by proven name", Conf: localDomains, Play: func(s *Server) {
		s.Earlier()
		h := greets("198.51.100.56", "www.firm.example", "firm.example")
		c := s.Deliver(h, "www-data@firm.example", "alice")
		s.Fair(c)
		s.Delivered(c)
	}}, Case{Name: "the web server of a customer, known by address", Conf: localDomains, Play: func(s *Server) {
		h := greets("198.51.100.55", rented, "web.firm.example")
		for range 12 {
			s.Deliver(h, "www-data@firm.example", "alice")
			s.Wait(day)
		}
		h.Helo = "firm.example"
		c := s.Deliver(h, "www-data@firm.example", "alice")
		s.Fair(c)
		s.Delivered(c)
	}}, Case{Name: "the web server of a customer, unknown: the postmaster is within reach", Conf: localDomains, Play: func(s *Server) {
		s.Earlier()
		h := greets("198.51.100.57", rented, "firm.example")
		c := s.Deliver(h, "www-data@firm.example", "alice")
		s.Delivered(s.Deliver(h, "admin@firm.example", "postmaster"))
		s.NotBanned(c)
	}})
	Run(t, list)
}
