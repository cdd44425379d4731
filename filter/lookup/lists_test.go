package lookup

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/hostname"
)

func builtin(tb testing.TB) *Lists {
	tb.Helper()
	l, err := Builtin()
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// patternExamples contains a text that matches for each pattern in the lists.
var patternExamples = map[string]string{
	`/^[0-9]{1,3}(\.[0-9]{1,3}){3}$/`: "192.0.2.1",
	`/^\[127(\.[0-9]{1,3}){3}\]$/`:    "[127.0.1.1]",
	`/^[^A-Za-z]/`:                    "\x16\x03\x01\x02\x00\x01",
	`/^$/`:                            "",
	`/^(?i)(EHLO|HELO)\s*$/`:          "ehlo ",
	`/(?i)(pppoe|dialup|dhcp|adsl|[.-](dyn|dynamic|broadband|catv|gprs|cdma)[.-])/`: "host-1.dyn.example.net",
	`/(?i)^user-[a-z0-9]+$/`:                               "user-7f",
	`/^(?i)(GET|POST|CONNECT|HEAD|OPTIONS|PUT) /`:          "GET / HTTP/1.1",
	`/(?i)^\(?ns[0-9]+\.ip-[0-9-]+\.(eu|com|net)\)?$/`:     "ns1.ip-192-0-2.eu",
	`/(?i)^vps-?[0-9a-z]+(\.vps)?\.ovh\.(net|ca|us)$/`:     "vps-1a2b.vps.ovh.net",
	`/(?i)^diretorias/`:                                    "diretorias1.example.net",
	`/(?i)^vps[0-9]+\.com$/`:                               "vps7.com",
	`/^[^.:\[\]\s]+$/`:                                     "mailhost",
	`/(?i)^ylmf-pc/`:                                       "ylmf-pc2",
	`/(?i)\.ip-[0-9]+-[0-9]+-[0-9]+\.(eu|net|com|us|ca)$/`: "ns3012345.ip-51-255-10.eu",
	`/(?i)^(toshiba|acer|hp|dell|lenovo|asus|sony|samsung|medion|msi)-[a-z0-9-]+$/`: "TOSHIBA-L8QYR7M",
	`/(?i)^[a-z0-9]+-pc$/`:                          "anna-PC",
	`/^MGLNDD_[0-9.]+_[0-9]+/`:                      "MGLNDD_192.0.2.1_25",
	`/(?i)^desktop-[a-z0-9]{7}$/`:                   "DESKTOP-A1B2C3D",
	`/(?i)^laptop-[a-z0-9]{8}$/`:                    "laptop-a1b2c3d4",
	`/(?i)^win-[a-z0-9]{11}$/`:                      "WIN-0123456789A",
	`/^(?i)AUTH LOGIN/`:                             "AUTH LOGIN",
	`/BitSightBot\/1\.0/`:                           "User-Agent: BitSightBot/1.0",
	`/CensysInspect\/1\.1/`:                         "User-Agent: Mozilla/5.0 (compatible; CensysInspect/1.1)",
	`/CyberOKInspect\/1\.0/`:                        "User-Agent: CyberOKInspect/1.0",
	`/cypex\.ai\/scanning/`:                         "User-Agent: cypex.ai/scanning",
	`/compatible; Detectify\)/`:                     "User-Agent: Mozilla/5.0 (compatible; Detectify)",
	`/InternetMeasurement\/1\.0/`:                   "User-Agent: InternetMeasurement/1.0",
	`/Infrawatch\/1\.0/`:                            "User-Agent: Infrawatch/1.0",
	`/ot-scan\/1 /`:                                 "User-Agent: ot-scan/1 (research)",
	`/HTTP Banner Detection/`:                       "User-Agent: HTTP Banner Detection",
	`/l9scan|l9explore/`:                            "User-Agent: l9explore/1.2",
	`/masscan\/1\.[0-9]/`:                           "User-Agent: masscan/1.3",
	`/ModatScanner\/1\.0/`:                          "User-Agent: ModatScanner/1.0",
	`/NetSystemsResearch studies the availability/`: "User-Agent: NetSystemsResearch studies the availability of services",
	`/NetcraftSurveyAgent/`:                         "User-Agent: NetcraftSurveyAgent/1.0",
	`/Nmap Scripting Engine/`:                       "User-Agent: Mozilla/5.0 (compatible; Nmap Scripting Engine)",
	`/GenomeCrawlerd\/1\.0/`:                        "User-Agent: GenomeCrawlerd/1.0",
	`/^(?i)(Accept|Host|User-Agent|Connection|Content-Length): /`: "Host: mx.example.org",
	`/^SSH-[12]\./`:                 "SSH-2.0-Go",
	`/docs\.getodin\.com/`:          "User-Agent: docs.getodin.com",
	`/OnlyScans|Keydrop\.io\/1\.0/`: "User-Agent: Keydrop.io/1.0",
	`/Expanse, a Palo Alto Networks company|Hello from Palo Alto Networks/`: "User-Agent: Hello from Palo Alto Networks",
	`/RecordedFuture Global Inventory Crawler/`:                             "User-Agent: RecordedFuture Global Inventory Crawler",
	`/ShadowSpan-Scanner\/1\.0/`:                                            "User-Agent: ShadowSpan-Scanner/1.0",
	`/Umai-Scanner\/2\.0/`:                                                  "User-Agent: Umai-Scanner/2.0",
	`/visionheight\.com\/scan/`:                                             "User-Agent: visionheight.com/scan",
	`/abuse\.xmco\.fr/`:                                                     "User-Agent: abuse.xmco.fr",
	`/zern\.io\/1\.0/`:                                                      "User-Agent: zern.io/1.0",
	`/Mozilla\/5\.0 zgrab\/0\.x/`:                                           "User-Agent: Mozilla/5.0 zgrab/0.x",
}

var update = flag.Bool("update", false, "rewrite the golden files")

// TestEveryRowAnswers checks that each row matches its own value. Some tools and greetings are in
// two lists. testdata/shadowed.golden contains the rows that are not returned, and the rows that
// are returned instead.
func TestEveryRowAnswers(t *testing.T) {
	l := builtin(t)
	if got, want := len(l.Rows()), 3639+225+142+116; got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	var shadowed strings.Builder
	for _, row := range l.Rows() {
		answers := askFor(t, l, row)
		if !slices.Contains(answers, row) {
			fmt.Fprintf(&shadowed, "%s\t%s\t%s\tby %s\n", row.List, row.Org, row.Value, names(answers))
		}
	}
	const golden = "testdata/shadowed.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(shadowed.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if shadowed.String() != string(want) {
		t.Errorf("shadowed rows are\n%s\nwant (rewrite with -update)\n%s", shadowed.String(), want)
	}
}

// askFor looks up a text that must match the row. The text is the value of the row, a name or
// address in the value, or the example of its pattern.
func askFor(t *testing.T, l *Lists, row *Row) []*Row {
	t.Helper()
	text := row.Value
	if strings.HasPrefix(text, "/") {
		var ok bool
		if text, ok = patternExamples[row.Value]; !ok {
			t.Errorf("no example for pattern %s", row.Value)
		}
	}
	switch row.Kind {
	case "cidr":
		// Look up the last address as well, because a more specific row may have the same first
		// address.
		p := netip.MustParsePrefix(text)
		return []*Row{l.Addr(p.Addr()), l.Addr(lastAddr(p))}
	case "asn":
		n, err := strconv.ParseUint(text[2:], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		a, b := l.ASN(uint32(n))
		return []*Row{a, b}
	case "rdns":
		if strings.HasPrefix(text, ".") {
			text = "Host-1" + text
		}
		a, b, c := l.RDNS([]byte(text))
		if row.Class == "scanner-mail" && l.ScannerMail([]byte(text)) && a == nil {
			return []*Row{row}
		}
		return []*Row{a, b, c}
	case "helo":
		if strings.HasPrefix(text, ".") {
			text = "Host-1" + text
		}
		a, b, c := l.Helo([]byte(text))
		return []*Row{a, b, c, l.Word([]byte(text))}
	}
	return []*Row{l.Line([]byte(text))}
}

func names(rows []*Row) string {
	var s []string
	for _, row := range rows {
		if row != nil {
			s = append(s, row.List+" "+row.Org)
		}
	}
	return strings.Join(slices.Compact(s), ", ")
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TestPatternExamples checks that each example matches its pattern.
func TestPatternExamples(t *testing.T) {
	for value, text := range patternExamples {
		expr := value[1 : len(value)-1]
		if !regexp.MustCompile(expr).MatchString(text) {
			t.Errorf("%s does not match its example %q", value, text)
		}
	}
}

// TestListsAnswer checks which rows match some typical hosts.
func TestListsAnswer(t *testing.T) {
	l := builtin(t)
	describe := func(rows ...*Row) string {
		var s []string
		for _, row := range rows {
			if row == nil {
				s = append(s, "-")
				continue
			}
			s = append(s, row.Org+"/"+row.Evidence+"/"+row.Confidence)
		}
		return strings.Join(s, " | ")
	}
	tests := []struct {
		name, kind, text, want string
	}{
		{"scanner by name", "rdns", "scan-01.shadowserver.org", "Shadowserver Foundation/scanner/high | - | -"},
		{"case and trailing dot", "rdns", "Scan-01.ShadowServer.ORG.", "Shadowserver Foundation/scanner/high | - | -"},
		{"label border", "rdns", "scan.notshadowserver.org", "- | - | -"},
		{"name of the domain itself", "rdns", "shadowserver.org", "Shadowserver Foundation/scanner/high | - | -"},
		{"cloud", "rdns", "ec2-192-0-2-1.us-east-2.compute.amazonaws.com", "- | Amazon Web Services/cloud/high | -"},
		{"more specific cloud row", "rdns", "1.2.0.192.bc.googleusercontent.com", "- | Google Cloud/cloud/high | -"},
		{"sender in a cloud", "rdns", "a8-35.smtp-out.amazonses.com", "- | - | Amazon SES//high"},
		{"both sender and cloud", "rdns", "out-1.mail-out.ovh.net", "- | OVHcloud/cloud/low | OVHcloud (mail relays)//medium"},
		{"nobody", "rdns", "mx.example.org", "- | - | -"},
		{"no name", "rdns", "", "- | - | -"},
		{"unknown", "rdns", "<unknown>", "- | - | -"},

		{"bot", "helo", "ylmf-pc", "PushDo / Cutwail/botnet-helo/high | - | -"},
		{"bot in capitals", "helo", "YLMF-PC", "PushDo / Cutwail/botnet-helo/high | - | -"},
		{"bot with a tail", "helo", "ylmf-pc7", "PushDo / Cutwail/botnet-helo/medium | - | -"},
		{"tool without a dot", "helo", "masscan", "No dot in the name/helo-unqualified/medium | masscan/scanner/high | -"},
		{"tester", "helo", "www6.CheckTLS.com", "- | CheckTLS/scanner/medium | -"},
		{"localhost", "helo", "localhost", "localhost/helo-localhost/medium | - | -"},
		{"localhost.localdomain", "helo", "localhost.localdomain", "localhost.localdomain/helo-localhost/medium | - | -"},
		{"loopback literal", "helo", "[127.0.0.1]", "Loopback literal/helo-localhost/medium | - | -"},
		{"literal", "helo", "[192.0.2.1]", "- | - | -"},
		{"bare address", "helo", "192.0.2.1", "Bare IPv4 address/helo-bare-address/high | - | -"},
		{"bare loopback", "helo", "127.0.0.1", "Bare IPv4 address/helo-bare-address/high | - | -"},
		{"forged provider", "helo", "google.com", "Forged provider name/helo-forged/medium | - | -"},
		{"host of that provider", "helo", "mail-wr1-f47.google.com", "- | - | Gmail and Google Workspace//high"},
		{"empty", "helo", "", "Empty EHLO (Nmap, ZGrab2)/helo-missing/high | - | -"},
		{"legitimate host in an office", "helo", "server.corp.local", "Private top-level name//medium | - | -"},
		{"pattern with evidence precedes suffix without", "helo", "diretorias.example.local", "Mass mailer (diretorias)/botnet-helo/medium | - | -"},
		{"tool in a private domain", "helo", "Gerg.Local.", "Medusa/botnet-helo/high | - | -"},
		{"scanner in a private domain", "helo", "masscan.localdomain", "Private top-level name//medium | masscan/scanner/high | -"},
		{"host below the name of a tool", "helo", "mail.gerg.local", "Private top-level name//medium | - | -"},
		{"tool with a public suffix", "helo", "gerg.example", "- | - | -"},
		{"private suffix alone", "helo", ".local", "Private top-level name//medium | - | -"},
		{"any loopback literal", "helo", "[127.0.1.1]", "Loopback literal/helo-localhost/medium | - | -"},
		{"localhost of IPv6", "helo", "localhost6.localdomain6", "localhost.localdomain/helo-localhost/medium | - | -"},
		{"fresh windows", "helo", "WIN-0123456789A", "No dot in the name/helo-unqualified/medium | - | -"},
		{"known windows", "helo", "win-c5h9jsrghtg", "Windows default name, spam relay tester/botnet-helo/medium | - | -"},
		{"honest", "helo", "mx.example.org", "- | - | -"},
		{"mail host of a provider", "helo", "nam11-dm6-obe.outbound.protection.outlook.com", "- | - | Microsoft Exchange Online//high"},

		{"user agent among header lines", "line", "User-Agent: Hello from Palo Alto Networks, find out more about our scans", "Palo Alto Networks (Expanse / Cortex Xpanse)/scanner/high"},
		{"organisation before its tool", "line", "User-Agent: Mozilla/5.0 zgrab/0.x (compatible; CensysInspect/1.1)", "Censys/scanner/high"},
		{"http", "line", "GET / HTTP/1.1", "HTTP client on port 25/talks-http/high"},
		{"http header", "line", "Host: mx.example.org", "Non-SMTP client on port 25/talks-http/high"},
		{"ssh", "line", "SSH-2.0-Go", "Non-SMTP client on port 25/talks-ssh/low"},
		{"leading white space", "line", " \tGET / HTTP/1.1", "HTTP client on port 25/talks-http/high"},
		{"legitimate login", "line", "AUTH LOGIN", "AUTH before it is offered//medium"},
		{"binary", "line", "\x16\x03\x01", "Binary probe on port 25//medium"},
		{"stretchoid", "line", "MGLNDD_192.0.2.1_25", "Stretchoid/scanner/high"},
		{"empty greeting", "line", "EHLO", "Empty EHLO/helo-missing/high"},
		{"legitimate greeting", "line", "EHLO mx.example.org", "-"},
		{"legitimate sender", "line", "MAIL FROM:<a@example.org> SIZE=100", "-"},

		{"scanner network", "asn", "398324", "Censys/scanner/high | -"},
		{"cloud network", "asn", "16509", "- | Amazon Web Services/cloud/high"},
		{"other network", "asn", "64496", "- | -"},

		{"unused address", "addr", "192.0.2.1", "-"},
		{"scanner address", "addr", "71.6.135.131", "Shodan/scanner/medium"},
		{"mapped scanner address", "addr", "::ffff:71.6.135.131", "Shodan/scanner/medium"},
	}
	for _, tt := range tests {
		t.Run(tt.kind+" "+tt.name, func(t *testing.T) {
			var got string
			switch tt.kind {
			case "rdns":
				got = describe(l.RDNS([]byte(tt.text)))
			case "helo":
				got = describe(l.Helo([]byte(tt.text)))
			case "line":
				got = describe(l.Line([]byte(tt.text)))
			case "asn":
				n, err := strconv.ParseUint(tt.text, 10, 32)
				if err != nil {
					t.Fatal(err)
				}
				got = describe(l.ASN(uint32(n)))
			case "addr":
				got = describe(l.Addr(netip.MustParseAddr(tt.text)))
			}
			if got != tt.want {
				t.Errorf("%q\n got %s\nwant %s", tt.text, got, tt.want)
			}
		})
	}
}

// TestEvidenceOfRows counts the rows by list, category and evidence. TestEvidenceOfRows compares
// the counts with a golden file, so that changes to the lists are noticed.
func TestEvidenceOfRows(t *testing.T) {
	counts := make(map[string]int)
	for _, row := range builtin(t).Rows() {
		evidence := row.Evidence
		if evidence == "" {
			evidence = "none"
		}
		counts[row.List+" "+row.Category+" "+evidence]++
	}
	var got strings.Builder
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&got, "%s %d\n", key, counts[key])
	}
	const golden = "testdata/evidence.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant (rewrite with -update)\n%s", got.String(), want)
	}
}

// TestAllowedNamesAreInnocent checks that the lists of bots and scanners do not match the name of a
// known sender.
func TestAllowedNamesAreInnocent(t *testing.T) {
	l := builtin(t)
	for _, row := range l.Rows() {
		if row.List != KnownSenders {
			continue
		}
		name := "host-1" + row.Value
		if !strings.HasPrefix(row.Value, ".") {
			name = row.Value
		}
		if scanner, _, _ := l.RDNS([]byte(name)); scanner != nil {
			t.Errorf("rdns %s is a scanner: %s", name, scanner.Org)
		}
		if bot, scanner, _ := l.Helo([]byte(name)); bot != nil && bot.Evidence != "" || scanner != nil {
			t.Errorf("helo %s matches: %s", name, names([]*Row{bot, scanner}))
		}
	}
}

func TestListsAreRefused(t *testing.T) {
	const header = "org\tcategory\tclass\tkind\tvalue\tevidence\tconfidence\tdate\tsource\tnote\n"
	tests := []struct{ name, list, text, want string }{
		{"header", Scanners, "org\tkind\n", "1: the header is not"},
		{"columns", Scanners, header + "A\tcommercial\n", "2: 2 columns instead of 10"},
		{"confidence", Scanners, header + "A\tc\tx\tcidr\t192.0.2.0/24\t\tsure\t2026-11-29\ts\t\n", `2: confidence "sure"`},
		{"date", Scanners, header + "A\tc\tx\tcidr\t192.0.2.0/24\t\thigh\t2026\ts\t\n", `2: parsing time "2026"`},
		{"kind", Scanners, header + "A\tc\tx\tmac\tx\t\thigh\t2026-11-29\ts\t\n", `list scanners, line 2: unknown kind "mac"`},
		{"prefix", Scanners, header + "A\tc\tx\tcidr\t192.0.2\t\thigh\t2026-11-29\ts\t\n", "line 2"},
		{"prefix in a list without", Clouds, header + "A\tc\tx\tcidr\t192.0.2.0/24\t\thigh\t2026-11-29\ts\t\n", "may contain prefixes"},
		{"as number", Clouds, header + "A\tc\tx\tasn\tASX\t\thigh\t2026-11-29\ts\t\n", `AS number "ASX"`},
		{"as number in a list without", KnownSenders, header + "A\tc\tx\tasn\tAS64496\t\thigh\t2026-11-29\ts\t\n", "may contain AS numbers"},
		{"name", Clouds, header + "A\tc\tx\trdns\t..\t\thigh\t2026-11-29\ts\t\n", `name ".."`},
		{"name in a list without", BotnetHelo, header + "A\tc\tx\trdns\t.example.org\t\thigh\t2026-11-29\ts\t\n", "may contain names"},
		{"greeting pattern", BotnetHelo, header + "A\tc\tx\thelo\t/(/\t\thigh\t2026-11-29\ts\t\n", "names of the lists: pattern 1"},
		{"line pattern", BotnetHelo, header + "A\tc\tx\tuseragent-or-command\t/(/\t\thigh\t2026-11-29\ts\t\n", "lines of the lists: pattern 1"},
		{"line without slashes", BotnetHelo, header + "A\tc\tx\tuseragent-or-command\tGET\t\thigh\t2026-11-29\ts\t\n", "between slashes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rows, err := parseRows(tt.list, tt.text)
			if err == nil {
				_, err = newLists(rows)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestListsDoNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("SKIPPED, NOT TESTED: the race detector makes regexp allocate; run without -race")
	}
	l := builtin(t)
	rdns := []byte("ec2-192-0-2-1.us-east-2.compute.amazonaws.com")
	helo := []byte("WIN-0123456789A")
	line := []byte("User-Agent: Mozilla/5.0 zgrab/0.x")
	addr := netip.MustParseAddr("71.6.135.131")
	// Regular expressions allocate their caches when they first match.
	l.Helo(helo)
	l.Line(line)
	if n := testing.AllocsPerRun(100, func() {
		l.Addr(addr)
		l.ASN(398324)
		l.RDNS(rdns)
		l.Helo(helo)
		l.Line(line)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBuiltin(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Builtin(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLists(b *testing.B) {
	l := builtin(b)
	addr := netip.MustParseAddr("71.6.135.131")
	for name, text := range map[string]string{
		"honest":  "mx1.mail.example.org",
		"cloud":   "ec2-192-0-2-1.us-east-2.compute.amazonaws.com",
		"scanner": "scan-01.shadowserver.org",
	} {
		text := []byte(text)
		b.Run("rdns-"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l.RDNS(text)
			}
		})
		b.Run("helo-"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l.Helo(text)
			}
		})
	}
	for name, text := range map[string]string{
		"mail":  "MAIL FROM:<somebody@example.org> SIZE=12345 BODY=8BITMIME",
		"zgrab": "User-Agent: Mozilla/5.0 zgrab/0.x",
	} {
		text := []byte(text)
		b.Run("line-"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l.Line(text)
			}
		})
	}
	b.Run("addr", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.Addr(addr)
		}
	})
	b.Run("asn", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.ASN(398324)
		}
	})
}

// TestRentedRowsAge checks that a row about a rented address has low confidence after 90 days. All
// other rows must keep their confidence.
func TestRentedRowsAge(t *testing.T) {
	l := builtin(t)
	rented, high := 0, 0
	for _, row := range l.Rows() {
		date, err := time.Parse(time.DateOnly, row.Date)
		if err != nil {
			t.Fatal(err)
		}
		if row.ConfidenceAt(date.AddDate(0, 0, 89)) != row.Confidence {
			t.Errorf("%s %s: the confidence changes within 90 days", row.Org, row.Value)
		}
		late := row.ConfidenceAt(date.AddDate(0, 0, 91))
		switch {
		case !row.Rented() && late != row.Confidence:
			t.Errorf("%s %s: the confidence changes, but the address is not rented", row.Org, row.Value)
		case row.Rented() && late != "low":
			t.Errorf("%s %s: confidence %s after 91 days", row.Org, row.Value, late)
		case row.Rented():
			rented++
			if row.Confidence != "low" {
				high++
			}
			if p := netip.MustParsePrefix(row.Value); p.Bits() < p.Addr().BitLen()-1 {
				t.Errorf("%s is not a single address", row.Value)
			}
		}
	}
	t.Logf("%d rows for rented addresses, %d of them with more than low confidence when they were new", rented, high)
	for addr, want := range map[string]bool{"159.223.98.198": true, "3.17.207.148": true, "147.185.132.7": false, "162.216.149.104": false, "64.62.197.20": false} {
		if row := l.Addr(netip.MustParseAddr(addr)); row == nil || row.Rented() != want {
			t.Errorf("%s: rented is not %v: %+v", addr, want, row)
		}
	}
}

// TestNoRowForPublicSuffixes checks that no row matches all customers of a registry or of a free
// DNS provider.
func TestNoRowForPublicSuffixes(t *testing.T) {
	for _, row := range builtin(t).Rows() {
		name, suffix := strings.CutPrefix(row.Value, ".")
		if !suffix || row.Evidence == "" || row.Evidence == "cloud" || row.Evidence == heloWord {
			continue
		}
		if hostname.Registered([]byte("host."+name)) == "host."+name {
			t.Errorf("%s line %d: %s is a public suffix", row.List, row.Line, row.Value)
		}
	}
}

// TestOneOwnerOfAPrefix checks that there is only one row for a prefix that two organisations
// share.
func TestOneOwnerOfAPrefix(t *testing.T) {
	seen := make(map[string]string)
	for _, row := range builtin(t).Rows() {
		if row.Kind != "cidr" {
			continue
		}
		if org, twice := seen[row.Value]; twice {
			t.Errorf("%s has the owners %s and %s", row.Value, org, row.Org)
		}
		seen[row.Value] = row.Org
	}
}

// TestHostersAreGeneric checks that package hostname and the lists contain the same hosting
// providers.
func TestHostersAreGeneric(t *testing.T) {
	for _, row := range builtin(t).Rows() {
		if row.List != Clouds || row.Kind != "rdns" || strings.HasPrefix(row.Value, "/") || row.Value == ".ovh.net" || row.Value == ".cloudapp.azure.com" {
			continue
		}
		if name := "v12" + row.Value; !hostname.Generic([]byte(name)) {
			t.Errorf("%s is not generic", name)
		}
	}
}
