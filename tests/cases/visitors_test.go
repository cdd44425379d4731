package cases

// This file contains test cases for scanners, rented hosts, false greetings and programs
// that do not speak SMTP.

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"scanwatch/tests/simulate"
)

// spam sends a message as an unknown client.
func (s *Server) spam(h simulate.Host) *simulate.Client {
	return s.Deliver(h, "joe@x.example", "alice")
}

// TestScanners checks that scanners are identified and that their messages are rejected.
func TestScanners(t *testing.T) {
	var list []Case
	for name, org := range map[string]string{
		"security.criminalip.com": "Criminal IP", "azpdcs2.scan.cyberresilience.io": "CyberResilience", "planned.internet-measurement.com": "Driftnet",
		"probe1.securing-email.com": "securing-email", "scan-15k.shadowserver.org": "Shadowserver", "census1.shodan.io": "Shodan",
		"census7.shodan.io": "Shodan", "scan-02e.shadowserver.org": "Shadowserver",
	} {
		for _, addr := range []string{"203.0.113.30", "2001:db8:30::9"} {
			list = append(list, Case{Name: name + " at " + addr, Play: func(s *Server) {
				c := s.spam(named(addr, name))
				s.Rejected("", c)
				s.Check(c.Mails() == 0, "a message was accepted")
				s.Organisation(c, "scanner", org)
			}})
		}
		list = append(list, Case{Name: name + " without FCrDNS", Play: func(s *Server) {
			h := greets("203.0.113.40", name, "mail.x.example")
			h.FCrDNS = "fail"
			c := s.Connect(h)
			c.Ehlo()
			c.Quit()
			s.Accepted(c)
			s.Evidence(c, "scanner", "low")
		}})
	}
	for addr, org := range map[string]string{"147.185.132.7": "Palo Alto", "162.216.149.104": "Palo Alto", "64.62.197.20": "Shadowserver"} {
		list = append(list, Case{Name: addr, Play: func(s *Server) {
			c := s.spam(bare(addr, "mail.x.example"))
			s.Rejected("", c)
			s.Check(c.Mails() == 0, "a message was accepted")
			s.Organisation(c, "scanner", org)
		}})
	}
	slices.SortFunc(list, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	list = append(list, Case{Name: "Expanse names itself in HTTP", Play: func(s *Server) {
		c := s.Connect(bare("203.0.113.41", "-"))
		for _, line := range []string{"GET / HTTP/1.1", "Host: 192.0.2.25:25", "User-Agent: Expanse, a Palo Alto Networks company, searches across the global IPv4 space multiple times per day to identify customers' presences on the Internet."} {
			c.Command(line, simulate.UnknownCommand)
		}
		c.Leave()
		s.Evidence(c, "talks-http", "")
		s.Organisation(c, "talks-http", "")
		s.Check(slices.ContainsFunc(s.findings(c), func(f finding) bool { return strings.Contains(f.org, "Palo Alto") }), "Palo Alto is not named: %v", s.findings(c))
	}})
	Run(t, list)
}

// TestFalseGreetings checks the evidence of false greetings, and that clients with a false greeting
// are rejected.
func TestFalseGreetings(t *testing.T) {
	var list []Case
	for helo, tt := range map[string]struct{ token, presets string }{
		"mx.example.org": {"helo-own-name", "standard tight"}, "192.0.2.25": {"helo-own-address", "standard tight"}, "[192.0.2.25]": {"helo-own-address", "standard tight"},
		"localhost": {"helo-localhost", "tight"}, "localhost.localdomain": {"helo-localhost", "tight"},
		"203.0.113.53": {"helo-bare-address", "tight"}, "gmail.com": {"helo-forged", "tight"}, "WIN-7N1FIECL6IC": {"", "tight"},
		"mail.example.net": {"", ""}, "mx.example.com": {"", ""}, "server.test": {"", ""}, "mail.example.org": {"", ""}, "mail-yw1-f172.google.com": {"", ""}, "amazon.co.jp": {"", ""},
		"ebay.de": {"", ""}, "host.invalid": {"", ""}, "mx2.example.org": {"", ""},
	} {
		list = append(list, Case{Name: helo, Play: func(s *Server) {
			s.Learn()
			c := s.spam(bare("203.0.113.53", helo))
			if tt.token != "" {
				s.Evidence(c, tt.token, "")
			}
			got := s.Tokens(c)
			s.Check(slices.ContainsFunc(got, func(x string) bool { return strings.HasPrefix(x, "helo-") || x == "botnet-helo" || x == "scanner" }), "only %v", got)
			if strings.Contains(tt.presets, s.Preset) {
				s.Rejected("", c)
				s.Check(c.Mails() == 0, "a message was accepted")
			}
		}})
	}
	slices.SortFunc(list, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	list = append(list, Case{Name: "no name, no greeting, invalid name", Play: func(s *Server) {
		s.Learn()
		a := s.Connect(bare("203.0.113.60", "-"))
		a.Command("EHLO", "501 5.5.1 Invalid command: EHLO requires domain name")
		a.Quit()
		b := s.Connect(bare("203.0.113.61", "-"))
		b.Mail("joe@x.example")
		b.Quit()
		c := s.Connect(bare("203.0.113.62", "-"))
		c.Command("EHLO foo..bar", "501 5.5.4 Invalid command arguments: Invalid domain name")
		c.Quit()
		s.Evidence(a, "helo-missing", "")
		s.Evidence(b, "helo-missing", "")
		s.Evidence(c, "helo-invalid", "")
	}})
	Run(t, list)
}

// TestCommands checks the evidence of commands that smtpd rejects.
func TestCommands(t *testing.T) {
	var list []Case
	for line, tt := range map[string]struct{ reply, token string }{
		"AUTH NTLM":               {"503 5.5.1 Invalid command: Command not supported", "auth-unsupported"},
		"XYZZY":                   {simulate.UnknownCommand, "unknown-command"},
		"MAIL FROM:joe@x.example": {"501 5.5.2 Syntax error: Syntax error", "syntax-error"},
		"STAT":                    {simulate.UnknownCommand, "unknown-command"},
	} {
		list = append(list, Case{Name: line, Play: func(s *Server) {
			s.Learn()
			c := s.Connect(bare("203.0.113.71", "mail.x.example"))
			c.Ehlo()
			c.Command(line, tt.reply)
			c.Quit()
			s.Evidence(c, tt.token, "")
		}})
	}
	slices.SortFunc(list, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	for line, token := range map[string]string{
		"GET /": "talks-http", "get / http/1.1": "talks-http",
	} {
		list = append(list, Case{Name: line, Play: func(s *Server) {
			c := s.Connect(bare("203.0.113.72", "-"))
			c.Command(line, simulate.UnknownCommand)
			c.Leave()
			if !s.milter { // a milter receives only the first word
				s.Evidence(c, token, "")
			}
		}})
	}
	list = append(list, Case{Name: "several in one write", Play: func(s *Server) {
		s.Learn()
		c := s.Connect(bare("203.0.113.74", "-"))
		c.Pipelined()
		s.Evidence(c, "pipelining", "")
	}}, Case{Name: "a request in one write, three times", Presets: []string{"tight"}, Play: func(s *Server) {
		cs := s.repeat(4, 5*minute, func(int) *simulate.Client {
			c := s.Connect(bare("203.0.113.92", "-"))
			c.Pipelined()
			return c
		})
		s.Shut(cs[3])
	}}, Case{Name: "nothing but unknown commands, thirty sessions in a day", Presets: []string{"tight"}, Play: func(s *Server) {
		cs := s.repeat(30, 30*minute, func(int) *simulate.Client {
			c := s.Connect(bare("203.0.113.93", "probe.x.example"))
			c.Ehlo()
			for _, l := range []string{"XYZZY", "STAT", "LIST"} {
				c.Command(l, simulate.UnknownCommand)
			}
			c.Quit()
			return c
		})
		s.Shut(cs[29])
	}})
	Run(t, list)
}

// TestRented checks the names of rented hosts, and their use of other protocols.
func TestRented(t *testing.T) {
	const ec2 = "ec2-3-131-215-38.us-east-2.compute.amazonaws.com"
	names := []string{ec2, "104.149.216.162.bc.googleusercontent.com", "vmi1234567.contaboserver.net", "static.7.2.0.192.clients.your-server.de",
		"ns3012345.ip-51-255-10.eu", "ip-50-62-1-2.ip.secureserver.net", "astra4139.startdedicated.de"}
	var list []Case
	for i, n := range names {
		list = append(list, Case{Name: n, Play: func(s *Server) {
			c := s.Connect(greets(at("203.0.113.%d", 80+i), n, "mail.x.example"))
			c.Ehlo()
			c.Quit()
			s.Evidence(c, "cloud", "")
		}})
		if i < 2 {
			list = append(list, Case{Name: n + " without FCrDNS", Presets: []string{"tight"}, Play: func(s *Server) {
				s.Learn()
				h := greets("203.0.113.91", n, "mail.x.example")
				h.FCrDNS = "fail"
				c := s.spam(h)
				s.Rejected("", c)
				s.Check(c.Mails() == 0, "the message was accepted")
				s.Temporary(c)
			}})
		}
	}
	for token, line := range map[string]string{"talks-ssh": "SSH-2.0-Go", "talks-http": "GET / HTTP/1.1", "talks-tls": "\x16\x03\x01\x02", "talks-binary": "\x03"} {
		for _, h := range []simulate.Host{greets("203.0.113.90", ec2, "mail.x.example"), bare("2001:db8:90::1", "mail.x.example")} {
			list = append(list, Case{Name: fmt.Sprintf("%s from %v, then mail", token, h.Src), Presets: []string{"tight"}, Play: func(s *Server) {
				c := s.Connect(h)
				c.Command(line, simulate.UnknownCommand)
				c.Leave()
				s.Wait(minute)
				s.Shut(s.spam(h))
				s.Evidence(c, token, "")
			}})
		}
	}
	slices.SortFunc(list, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	Run(t, list)
}
