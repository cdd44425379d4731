//go:build !(386 || arm || mips || mipsle)

package cases

// This file contains test cases for names that smtpd truncates. They use a database of AS numbers. The
// package that writes the test database does not compile if int has 32 bits.

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/filter/lookup"
	"scanwatch/tests/simulate"
)

// origins returns a database with one network.
func origins(t *testing.T, network string, asn uint32, owner string) *lookup.Origins {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix(network)
	row := mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(asn), "autonomous_system_organization": mmdbtype.String(owner)}
	if err := tree.Insert(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, row); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "asn.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	o := lookup.NewOrigins(path)
	if _, err := o.Refresh(); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestCutNamesWithOrigins checks that a host with a truncated name is not mistaken for a rented
// host without a name because of its AS number.
func TestCutNamesWithOrigins(t *testing.T) {
	cut := func(addr, rdns, helo string) simulate.Host {
		h := greets(addr, rdns[:min(64, len(rdns))], helo)
		h.FCrDNS = "fail"
		return h
	}
	const university = "mail.department-of-very-long-names.faculty-of-longer-names.university.example"
	var list []Case
	for _, tt := range []struct {
		network string
		asn     uint32
		owner   string
		h       simulate.Host
	}{
		{"52.96.0.0/12", 8075, "MICROSOFT-CORP-MSN-AS-BLOCK", cut("52.101.186.113", "mail-switzerlandnorthazon11020113.outbound.protection.outlook.com", "ZRAP278CU002.outbound.protection.outlook.com")},
		{"52.96.0.0/12", 8075, "MICROSOFT-CORP-MSN-AS-BLOCK", cut("52.101.161.92", "mail-southafricanorthazon11020092.outbound.protection.outlook.com", "JNYP275CU001.outbound.protection.outlook.com")},
		{"198.51.100.0/24", 24940, "HETZNER-AS", cut("198.51.100.99", university, university)},
		{"198.51.100.0/24", 16509, "AMAZON-02", cut("198.51.100.99", university, university)},
	} {
		list = append(list, Case{Name: tt.owner + ", " + tt.h.Helo, ASN: origins(t, tt.network, tt.asn, tt.owner), Play: func(s *Server) {
			s.Earlier()
			c := s.Deliver(tt.h, "anna@uni.example", "alice")
			s.Fair(c)
			s.Delivered(c)
		}})
	}
	Run(t, list)
}
