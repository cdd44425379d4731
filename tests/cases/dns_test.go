package cases

// This file contains test cases for names that the resolver does not find, or that smtpd
// truncates to 64 bytes.

import (
	"fmt"
	"testing"

	"scanwatch/tests/simulate"
)

const localDomains = `table <local-domains> { "example.org", "firm.example" }`

// outages returns the forms in which smtpd may report a partner during a DNS outage.
func outages(addr, name, helo string) []simulate.Host {
	h := greets(addr, name, helo)
	kept := h
	kept.FCrDNS = "fail"
	return []simulate.Host{without(h, "fail"), kept, without(h, "error")}
}

// TestOutage checks that no client is rejected permanently while DNS fails.
func TestOutage(t *testing.T) {
	list := []Case{{Name: "known servers are recognised by address", Play: func(s *Server) {
		h, other := named("198.51.100.97", "mail.partner.example"), named("2001:db8:97::25", "gw.partner6.example")
		s.History(h, 12, day)
		s.History(other, 12, day)
		for _, x := range []simulate.Host{h, other} {
			for _, out := range outages(x.Src.String(), x.RDNS, x.Helo) {
				c := s.Deliver(out, sender(x), "alice")
				s.Fair(c)
				s.Delivered(c)
			}
		}
	}}}
	for i, helo := range []string{"mail.partner.example", "gw", "exchange", "[198.51.100.90]", "mx-out.other.example", "firm.example", "163.com"} {
		from := "joe@partner.example"
		list = append(list, Case{Name: "unknown servers that greet " + helo, Presets: []string{"standard"}, Play: func(s *Server) {
			s.Earlier()
			for _, h := range outages(at("198.51.100.%d", 90+i), "mail.partner.example", helo) {
				c := s.Deliver(h, from, "alice")
				s.Accepted(c)
				s.NotBanned(c)
				s.Delivered(c)
				if i < 5 { // the other clients greet with a domain that may be forged
					s.NotBlamed(c)
				}
			}
		}}, Case{Name: "unknown servers that greet " + helo + " may retry", Presets: []string{"tight"}, Conf: localDomains, Play: func(s *Server) {
			s.Earlier()
			for _, h := range outages(at("198.51.100.%d", 90+i), "mail.partner.example", helo) {
				c := s.Deliver(h, from, "alice")
				s.Temporary(c)
				s.NotBanned(c)
			}
		}})
	}
	Run(t, list)
}

// TestCutNames checks that a name that smtpd has truncated to 64 bytes neither proves anything nor
// is evidence.
func TestCutNames(t *testing.T) {
	var list []Case
	for _, h := range []simulate.Host{
		greets("52.101.186.113", "mail-switzerlandnorthazon11020113.outbound.protection.outlook.co", "ZRAP278CU002.outbound.protection.outlook.com"),
		greets("52.101.171.63", "mail-germanywestcentralazon11010063.outbound.protection.outlook.", "FR6P281CU001.outbound.protection.outlook.com"),
		greets("52.101.161.92", "mail-southafricanorthazon11020092.outbound.protection.outlook.co", "JNYP275CU001.outbound.protection.outlook.com"),
		greets("2a01:111:f403:c20a::1", "mail-australiasoutheastazlp170120003.outbound.protection.outlook", "ME3PR01CU001.outbound.protection.outlook.com"),
		greets("198.51.100.99", "mail.department-of-very-long-names.faculty-of-longer-names.unive", "mail.department-of-very-long-names.faculty-of-longer-names.university.example"),
		greets("2001:db8:99::25", "relay.institute-for-long-host-names.school-of-longer-labels.colle", "relay.institute-for-long-host-names.school-of-longer-labels.college.example"),
	} {
		if len(h.RDNS) > 64 {
			h.RDNS = h.RDNS[:64]
		}
		h.FCrDNS = "fail"
		list = append(list, Case{Name: h.Helo, Play: func(s *Server) {
			for i := range 3 {
				if i == 2 {
					s.Earlier()
				}
				c := s.Deliver(h, "anna@uni.example", "alice")
				s.Fair(c)
				s.Delivered(c)
				s.Wait(hour)
			}
		}})
	}
	for _, h := range []simulate.Host{
		greets("52.101.193.9", "mail-northcentralusazon11010009.outbound.protection.outlook.com", "CH1PR05CU001.outbound.protection.outlook.com"),
		greets("2a01:111:f403:c105::1", "mail-northcentralusazlp170100001.outbound.protection.outlook.com", "CH1PR05CU001.outbound.protection.outlook.com"),
	} {
		list = append(list, Case{Name: fmt.Sprint(len(h.RDNS), " bytes and complete: a known sender with former addresses"), Play: func(s *Server) {
			s.Earlier()
			c := s.Deliver(h, "list@uni.example", append(former(6), "alice")...)
			s.Accepted(c)
			s.Delivered(c)
			s.NotBanned(c)
		}})
	}
	Run(t, list)
}
