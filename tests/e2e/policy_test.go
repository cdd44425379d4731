//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// asnFile returns a database in which prefix belongs to AS number.
func asnFile(t *testing.T, prefix string, number uint32) []byte {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix(prefix)
	if err := w.Insert(ipNet(p), mmdbtype.Map{
		"autonomous_system_number":       mmdbtype.Uint32(number),
		"autonomous_system_organization": mmdbtype.String("Example"),
	}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "asn.mmdb")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := w.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// visitors contains clients of a server that enforces the standard preset.
var visitors = []struct {
	name, addr, rdns string
	unproven         bool // the name fails FCrDNS
	helo             string
	at               string // first rejected command; "" for none, "connect" for the banner
	reply            string // start of the reply
	evidence, org    string
}{
	{"shadowserver", "203.0.113.1", "scan-03.shadowserver.org", false, "", "connect", "554 5.7.1 ", "scanner", "Shadowserver Foundation"},
	{"criminalip", "203.0.113.2", "security.criminalip.com", false, "", "connect", "554 5.7.1 ", "scanner", "Criminal IP (AI Spera)"},
	{"internet-measurement", "203.0.113.3", "spirited.internet-measurement.com", false, "", "connect", "554 5.7.1 ", "scanner", "Driftnet (internet-measurement.com)"},
	{"securing-email", "203.0.113.4", "probe1.securing-email.com", false, "", "connect", "554 5.7.1 ", "scanner", "Virginia Tech (STARTTLS scanner, securing-email.com)"},
	{"cyberresilience", "203.0.113.5", "a.cyberresilience.io", false, "", "connect", "554 5.7.1 ", "scanner", "CyberResilience"},
	{"amazon cloud", "203.0.113.6", "ec2-203-0-113-6.us-east-2.compute.amazonaws.com", false, "mail.shop.example", "", "", "cloud", "Amazon Web Services"},
	{"google cloud", "203.0.113.7", "7.113.0.203.bc.googleusercontent.com", false, "mail.shop.example", "", "", "cloud", "Google Cloud"},
	{"ylmf-pc", "203.0.113.8", "", false, "ylmf-pc", "EHLO", "554 5.7.1 ", "botnet-helo", "PushDo / Cutwail"},
	{"expanse prefix", "198.235.24.77", "", false, "", "connect", "554 5.7.1 ", "scanner", "Palo Alto Networks (Expanse / Cortex Xpanse)"},
	{"spoofed scanner", "203.0.113.9", "scan-02.shadowserver.org", true, "mail.partner.example", "", "", "scanner", "Shadowserver Foundation"},
	{"spoofed google", "203.0.113.10", "mail-1.google.com", true, "ylmf-pc", "EHLO", "554 5.7.1 ", "botnet-helo", "PushDo / Cutwail"},
	{"amazon ses", "203.0.113.11", "a1-23.smtp-out.amazonses.com", false, "a1-23.smtp-out.amazonses.com", "", "", "", ""},
	{"own name", "203.0.113.12", "", false, "mx.example.org", "RCPT", "450 4.7.1 ", "helo-own-name", ""},
	{"by AS number", "192.0.2.200", "", false, "mail.partner.example", "", "", "scanner", ""},
	{"legitimate mail", "198.51.100.99", "mail.partner.example", false, "mail.partner.example", "", "", "", ""},
}

// scannerASN returns a row of the shipped list that identifies scanners by AS number.
func scannerASN(t *testing.T) (uint32, string) {
	t.Helper()
	for _, row := range shippedRows(t) {
		if row.Kind == "asn" && row.List == "scanners" && row.Confidence != "low" {
			n, err := parseASN(row.Value)
			if err != nil {
				t.Fatal(err)
			}
			return n, row.Org
		}
	}
	t.Fatal("no scanner with an AS number in the list")
	return 0, ""
}

// TestStandardPolicy checks the evidence and the replies of the standard preset for each kind of
// client. In observe mode, the same rules must log the same decisions, but reject no client.
func TestStandardPolicy(t *testing.T) {
	number, asnOrg := scannerASN(t)
	asn := asnFile(t, "192.0.2.200/32", number)
	var hosts []smtpd.Host
	for _, v := range visitors {
		if v.rdns != "" {
			hosts = append(hosts, smtpd.Host{Addr: v.addr, Name: v.rdns, Confirmed: !v.unproven})
		}
	}
	for _, version := range smtpd.Matrix() {
		for _, mode := range []string{"enforce", "observe"} {
			t.Run(version.Name+"/"+mode, func(t *testing.T) {
				smtpd.Require(t, version)
				f, dir := live.Configured(t, live.Preset(t, "standard", mode, `asn "asn.mmdb"`), map[string][]byte{"asn.mmdb": asn})
				s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir, Hosts: hosts})
				for _, v := range visitors {
					at, reply := visit(t, s, v.addr, v.helo)
					want := v.at
					if v.name == "by AS number" {
						want = "connect"
					}
					if mode == "observe" {
						want = ""
					}
					if at != want || want != "" && !strings.HasPrefix(reply, v.reply) {
						t.Errorf("%s: rejected at %q with %q, want at %q with %q", v.name, at, reply, want, v.reply)
					}
					if at != "" && !strings.Contains(reply, "[") {
						t.Errorf("%s: no reference in %q", v.name, reply)
					}
				}
				for _, v := range visitors {
					ended(t, s, v.addr)
				}
				live.Stop(t, s)
				records := cli.Dump(t, s.State())
				for _, v := range visitors {
					found := cli.FromAddr(records, v.addr)
					if len(found) != 1 {
						t.Errorf("%s: %d records", v.name, len(found))
						continue
					}
					org := v.org
					if v.name == "by AS number" {
						org = asnOrg
					}
					i := slices.IndexFunc(found[0].Findings, func(f cli.Finding) bool {
						return f.Evidence == v.evidence && f.Organisation == org && (f.Confidence == "low") == (v.evidence == "cloud" || v.unproven && v.evidence == "scanner")
					})
					if v.evidence != "" && i < 0 || v.evidence == "" && len(found[0].Evidence()) > 0 {
						t.Errorf("%s: findings %+v, want %s of %q", v.name, found[0].Findings, v.evidence, org)
					}
					words := map[string]string{"observe": "(session would=disconnect|observed-ban)", "enforce": "(session decision=disconnect|banned)"}[mode]
					if line := regexp.MustCompile(words + " src=" + regexp.QuoteMeta(v.addr) + " rule="); v.at == "connect" && !line.MatchString(s.FilterLog("scanwatch")) {
						t.Errorf("%s: no %q in the log:\n%s", v.name, line, s.FilterLog("scanwatch"))
					}
				}
			})
		}
	}
}

// visit plays a session with mail for alice, and returns the first rejected command and the
// reply to it.
func visit(t *testing.T, s *smtpd.Server, from, helo string) (at, reply string) {
	t.Helper()
	c, err := s.Dial(from, smtpd.PortMX)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if helo == "" {
		helo = "probe.example.net"
	}
	r, err := c.ReadReply()
	if err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
	if r.Code != 220 {
		if _, err := c.Drain(); err != nil {
			t.Errorf("from %s: not closed after %q: %v", from, r, err)
		}
		return "connect", r.Text
	}
	for _, line := range []string{"EHLO " + helo, "MAIL FROM:<a@example.net>", "RCPT TO:<alice@example.org>", "DATA"} {
		if r, err = c.Cmd(line); err != nil {
			t.Fatalf("from %s: %s: %v", from, line, err)
		}
		if r.Code >= 400 {
			word, _, _ := strings.Cut(line, " ")
			return word, r.Text
		}
	}
	if r, err = c.Cmd("Subject: hello\r\nFrom: a@example.net\r\n\r\nhello\r\n."); err != nil || r.Code != 250 {
		t.Errorf("from %s: message: %v, %v", from, r, err)
	}
	if r, err = c.Cmd("QUIT"); err != nil || r.Code != 221 {
		t.Errorf("from %s: QUIT: %v, %v", from, r, err)
	}
	_, _ = c.Drain()
	return "", ""
}

// ended waits until an address's session is recorded.
func ended(t *testing.T, s *smtpd.Server, from string) {
	t.Helper()
	if err := s.Eventually("the session from "+from+" has ended", func() bool {
		return len(cli.FromAddr(cli.Dump(t, s.State()), from)) > 0
	}); err != nil {
		t.Error(err)
	}
}

// TestDecisionsOnTheWire checks how each decision in each phase affects the client.
// smtpd-filters(7) describes the effects.
func TestDecisionsOnTheWire(t *testing.T) {
	for _, c := range []struct {
		name, rule, at, reply string
		closed                bool
	}{
		{"disconnect at connect", `phase connect match src 203.0.113.1 disconnect "554 5.7.1 away"`, "connect", "554 5.7.1 away [", true},
		{"421 at connect", `phase connect match src 203.0.113.1 disconnect "421 4.7.0 later"`, "connect", "421 4.7.0 later [", true},
		{"reject at helo", `phase helo match helo "probe.example.net" reject "550 5.7.1 not you"`, "EHLO", "550 5.7.1 not you [", false},
		{"disconnect at helo", `phase helo match helo "probe.example.net" disconnect "550 5.7.1 not you"`, "EHLO", "550 5.7.1 not you [", true},
		{"reject at mail-from", `phase mail-from match mail-from "a@example.net" reject "451 4.7.1 later"`, "MAIL", "451 4.7.1 later [", false},
		{"disconnect at mail-from", `phase mail-from match mail-from "a@example.net" disconnect "550 5.7.1 no"`, "MAIL", "550 5.7.1 no [", true},
		{"reject at rcpt-to", `phase rcpt-to match rcpt-to "alice@example.org" reject "550 5.7.1 no"`, "RCPT", "550 5.7.1 no [", false},
		{"disconnect at rcpt-to", `phase rcpt-to match rcpt-to "alice@example.org" disconnect "421 4.7.0 no"`, "RCPT", "421 4.7.0 no [", true},
		{"reject at data", `phase data match src 203.0.113.1 reject "550 5.7.1 no"`, "DATA", "550 5.7.1 no [", false},
		{"junk", `phase data match src 203.0.113.1 junk`, "", "", false},
		{"delay", `phase helo match src 203.0.113.1 delay 1s`, "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, version := range smtpd.Matrix() {
				t.Run(version.Name, func(t *testing.T) {
					smtpd.Require(t, version)
					f, dir := live.Configured(t, "mode enforce\nrule r "+c.rule+"\n", nil)
					s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir})
					at, reply := visit(t, s, "203.0.113.1", "")
					if at != c.at || !strings.HasPrefix(reply, c.reply) {
						t.Errorf("rejected at %q with %q, want at %q with %q", at, reply, c.at, c.reply)
					}
					if c.name == "junk" {
						if err := s.Eventually("the message is there", func() bool { return strings.Contains(mails(t, s), "X-Spam: ") }); err != nil {
							t.Errorf("%v; mail: %s", err, mails(t, s))
						}
					}
					ended(t, s, "203.0.113.1")
					live.Stop(t, s)
					r := cli.FromAddr(cli.Dump(t, s.State()), "203.0.113.1")
					if len(r) != 1 || (r[0].Ending == "rejected") != c.closed {
						t.Errorf("records %+v, want one that ended rejected: %v", r, c.closed)
					}
				})
			}
		})
	}
}

// TestDelayEverywhere checks that the filter can delay its answer in each phase.
func TestDelayEverywhere(t *testing.T) {
	config := "mode enforce\n"
	for _, phase := range []string{"connect", "helo", "mail-from", "rcpt-to", "data", "commit"} {
		config += "rule at-" + phase + " phase " + phase + " match any delay 1s\n"
	}
	for _, version := range smtpd.Matrix() {
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			f, dir := live.Configured(t, config, nil)
			s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir})
			begin := time.Now()
			if at, reply := visit(t, s, "203.0.113.1", ""); at != "" {
				t.Errorf("rejected at %s with %q", at, reply)
			}
			if took := time.Since(begin); took < 6*time.Second {
				t.Errorf("six answers held for a second took %v", took)
			}
			live.Stop(t, s)
		})
	}
}

// mails returns all delivered mail.
func mails(t *testing.T, s *smtpd.Server) string {
	t.Helper()
	var all strings.Builder
	names, _ := filepath.Glob(filepath.Join(s.Mail(), "new", "*"))
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}
