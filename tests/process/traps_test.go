//go:build linux && !(386 || arm || mips || mipsle)

package process

// This file checks configurations that look correct but are faulty. The package that writes the
// test databases does not compile if int has 32 bits.

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/tests/cases"
	servers "scanwatch/tests/internal/smtpd"
)

// A trap is a faulty configuration, together with a similar correct one.
type trap struct {
	name, bad, good string
	files           map[string]string
	// works reports whether a filter obeys the faulty configuration. If so, scanwatch
	// check need not report a problem. works may be nil.
	works func(s *cases.Server) bool
	// in and out list clients. If a filter with the faulty configuration rejects all of in and
	// accepts all of out, scanwatch check need not report a problem.
	in, out []string
}

const (
	after = "\npass from <friends>\nrule a phase mail-from match helo \"mail.x.example\" reject"
	drop  = "\nrule a phase connect match src <drop> disconnect"
)

var traps = []trap{
	{name: "evidence of low confidence is not counted", bad: "rule a phase mail-from match count syntax-error > 3 disconnect", good: "rule a phase mail-from match count unknown-command > 3 disconnect",
		works: func(s *cases.Server) bool {
			c := s.Connect(host("203.0.113.5", "", "mail.x.example"))
			c.Ehlo()
			for range 6 {
				c.Command("MAIL FROM:joe@x.example", "501 5.5.2 Syntax error: Syntax error")
			}
			c.Mail("joe@x.example")
			c.Quit()
			return len(c.Refusals()) > 0
		}},
	{name: "evidence of a session is found once", bad: "rule a phase mail-from match count helo-unqualified > 1 reject", good: "rule a phase mail-from match count helo-unqualified > 1 in 1d by src reject"},
	{name: "the same for localhost", bad: "rule a phase rcpt-to match count helo-localhost > 2 reject", good: "rule a phase rcpt-to match count helo-localhost > 2 in 1d by src reject"},
	{name: "cloud without FCrDNS", bad: `rule a phase rcpt-to match evidence cloud !fcrdns reject "450 4.7.25 Fix your reverse DNS"`, good: `rule a phase rcpt-to match evidence cloud fcrdns reject "450 4.7.25 Not from a rented host"`,
		works: func(s *cases.Server) bool {
			h := host("3.131.215.38", "ec2-3-131-215-38.us-east-2.compute.amazonaws.com", "mail.x.example")
			h.FCrDNS = "fail"
			return len(s.Message(h).Refusals()) > 0
		}},
	{name: "names in a table of addresses", bad: `table <friends> { "mail.partner.example" }` + after, good: "table <friends> { 192.0.2.7 }" + after,
		works: func(s *cases.Server) bool {
			c, d := s.Message(host("198.51.100.40", "mail.partner.example", "mail.x.example")), s.Message(host("203.0.113.5", "", "mail.x.example"))
			return len(c.Refusals()) == 0 && len(d.Refusals()) > 0
		}},
	{name: "a name in a file of addresses", bad: `table <friends> file "bad.txt"` + after, good: `table <friends> file "good.txt"` + after,
		files: map[string]string{"bad.txt": "192.0.2.7\nmail.partner.example\n", "good.txt": "192.0.2.7\n192.0.2.8\n"}},
	{name: "networks for a greeting", bad: "table <t> { 192.0.2.0/24 }\nrule a phase mail-from match helo <t> reject", good: "table <t> { \".x.example\" }\nrule a phase mail-from match helo <t> reject"},
	{name: "names for an address", bad: "table <t> { \"mail.x.example\" }\nrule a phase mail-from match src <t> reject", good: "table <t> { 198.18.0.0/24 }\nrule a phase mail-from match src <t> reject"},
	{name: "networks among the local domains", bad: "table <local-domains> { 192.0.2.0/24 }", good: `table <local-domains> { "example.org" }`},
	{name: "a domain as own name", bad: `own-name ".firm.example"`, good: `own-name "mx.firm.example"`},
	{name: "failed logins with auth", bad: "rule a phase end match evidence auth-failure auth admin ban 1h", good: "rule a phase end match count auth-failure > 10 in 1h by src ban 1h"},
	{name: "no name at connect, on all ports", bad: "rule a phase connect match evidence rdns-missing disconnect", good: "listener mx port 25\nrule a on mx phase connect match evidence rdns-missing disconnect"},
	{name: "a sender that any name lets pass", bad: `pass match mail-from "boss@partner.example" fcrdns`, good: `pass match mail-from "boss@partner.example" rdns ".partner.example" fcrdns`},
	{name: "a range with a hyphen", bad: `table <drop> file "bad.txt"` + drop, good: `table <drop> file "good.txt"` + drop,
		files: map[string]string{"bad.txt": "9.9.9.10 - 9.9.9.20\n", "good.txt": "9.9.9.10/31\n9.9.9.12/30\n9.9.9.16/30\n9.9.9.20\n"},
		in:    []string{"9.9.9.10", "9.9.9.15", "9.9.9.20"}, out: []string{"9.9.9.9", "9.9.9.21"}},
	{name: "two addresses on a line", bad: `table <drop> file "bad.txt"` + drop, files: map[string]string{"bad.txt": "9.9.9.7, 9.9.10.9\n"},
		in: []string{"9.9.9.7", "9.9.10.9"}, out: []string{"9.9.9.8", "9.9.10.8"}},
	{name: "a hundredth of all addresses in a feed", bad: `table <drop> file "bad.txt"` + drop, good: `table <drop> file "good.txt"` + drop,
		files: map[string]string{"bad.txt": "9.9.9.0/24\n8.8.8.0/7\n", "good.txt": "9.9.9.0/24\n8.8.8.0/24\n"}},
	{name: "a wide IPv6 prefix in a feed", bad: `table <drop> file "bad.txt"` + drop, good: `table <drop> file "good.txt"` + drop,
		files: map[string]string{"bad.txt": "9.9.9.0/24\n2000::/12\n", "good.txt": "9.9.9.0/24\n2001:db8::/32\n"}},
	{name: "a network with bits of a host", bad: "table <drop> { 198.18.7.9/16 }" + drop, good: "table <drop> { 198.18.0.0/16 }" + drop},
	{name: "an asn file without AS numbers", bad: "asn \"geo.mmdb\"\nrule a phase mail-from match asn 64496 reject", good: "asn \"as.mmdb\"\nrule a phase mail-from match asn 64496 reject", files: databases},
	{name: "a country file without countries", bad: "country \"as.mmdb\"\nrule a phase mail-from match country DE reject", good: "country \"geo.mmdb\"\nrule a phase mail-from match country DE reject", files: databases},
}

// databases holds databases of AS numbers and countries.
var databases = map[string]string{
	"geo.mmdb": database("GeoLite2-Country", mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}}),
	"as.mmdb": database("GeoLite2-ASN", mmdbtype.Map{
		"autonomous_system_number": mmdbtype.Uint32(64496), "autonomous_system_organization": mmdbtype.String("Example"),
	}),
}

func database(kind string, row mmdbtype.Map) string {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: kind, IncludeReservedNetworks: true})
	if err != nil {
		panic(err)
	}
	if err := tree.Insert(&net.IPNet{IP: net.IPv4(203, 0, 113, 0).To4(), Mask: net.CIDRMask(24, 32)}, row); err != nil {
		panic(err)
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		panic(err)
	}
	return b.String()
}

// checked returns the errors and warnings of scanwatch check about a configuration.
func checked(t *testing.T, lines string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files2 := map[string]string{"scanwatch.conf": "mode enforce\n" + lines + "\n"}
	for name, text := range files {
		files2[name] = text
	}
	for name, text := range files2 {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(servers.Bin("scanwatch"), "check", filepath.Join(dir, "scanwatch.conf")).CombinedOutput()
	if err != nil || strings.Contains(strings.ToLower(string(out)), "warn") {
		return string(out) + " "
	}
	return ""
}

// obeyed reports whether a filter obeys the faulty configuration.
func (tt *trap) obeyed(t *testing.T) bool {
	t.Helper()
	if tt.works != nil {
		s, err := cases.New(&cases.Case{Lines: "mode enforce\n" + tt.bad + "\n"}, "own")
		if err != nil {
			t.Fatal(err)
		}
		works := tt.works(s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		return works
	}
	if tt.in == nil {
		return false
	}
	s := &play{t: t, conf: filepath.Join(t.TempDir(), "scanwatch.conf"), dir: t.TempDir(), now: time.Now().Add(-time.Hour)}
	s.write("scanwatch.conf", "mode enforce\n"+tt.bad+"\n")
	for name, text := range tt.files {
		s.write(name, text)
	}
	s.start()
	for _, addr := range tt.in {
		s.Rejected("connect", s.Message(host(addr, "", "mail.x.example")))
	}
	for _, addr := range tt.out {
		s.Accepted(s.Message(host(addr, "", "mail.x.example")))
	}
	s.stop()
	s.end()
	return true
}

// TestTraps checks that scanwatch check reports configurations that cannot work, and does not
// report similar correct configurations.
func TestTraps(t *testing.T) {
	for i := range traps {
		tt := &traps[i]
		if checked(t, tt.bad, tt.files) == "" {
			if !tt.obeyed(t) {
				t.Errorf("%s: check accepts %q, which has no effect", tt.name, tt.bad)
			}
		}
		if tt.good != "" {
			if out := checked(t, tt.good, tt.files); out != "" {
				t.Errorf("%s: check complains about the correct form: %s", tt.name, out)
			}
		}
	}
}
