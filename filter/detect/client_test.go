package detect

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
)

// TestRoutable checks which addresses belong to a single host.
func TestRoutable(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1": false, "10.0.0.1": false, "172.17.0.1": false, "192.168.1.1": false, "169.254.1.1": false, "100.64.0.1": false,
		"::1": false, "fe80::1": false, "fd00::1": false, "0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "255.255.255.255": false,
		"241.0.0.1": false, "192.0.0.8": false, "fec0::1": false, "ff02::1": false,
		"192.0.2.25": true, "198.51.100.1": true, "203.0.113.1": true, "2001:db8::1": true, "8.8.8.8": true,
	} {
		if got := routable(netip.MustParseAddr(addr)); got != want {
			t.Errorf("routable(%s) = %v", addr, got)
		}
	}
}

// site returns a site with the server mx.example.org at 192.0.2.25. The site's local domains are
// example.org and firm.example.
func site() *Site {
	m := memory.New()
	m.Domains.Learn([]byte("example.org"), 1)
	m.Domains.Learn([]byte("firm.example"), 1)
	return &Site{Name: []byte("mx.example.org"), Memory: m, Addrs: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.25"): true}}
}

// identify returns the findings for a client with the given names that connects and greets. Each
// has the form "token/confidence".
func identify(t *testing.T, lists *lookup.Lists, src, rdns string, fcrdns smtp.FCrDNS, helo string, port uint16) (found []string) {
	t.Helper()
	s := &track.Session{Submission: port == 465 || port == 587} // the same as rules.Policy.Submission
	c := &Case{Session: s, State: new(State), Site: site(), Lists: lists, Client: new(memory.Client)}
	c.Memory = c.Site.Memory
	for _, ev := range []smtp.Event{
		{Kind: smtp.EventConnect, Time: 1, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 4000), Dst: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.25"), port),
			RDNS: []byte(rdns), FCrDNS: fcrdns, RDNSCut: smtp.MayBeCut([]byte(rdns), fcrdns)},
		{Kind: smtp.EventHelo, Time: 2, Result: smtp.ResultOK, Name: []byte(helo)},
	} {
		s.Apply(&ev)
		c.Event = &ev
		Run(c)
	}
	for _, f := range c.Findings {
		found = append(found, f.Token()+"/"+f.Confidence)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func builtin(tb testing.TB) *lookup.Lists {
	tb.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		tb.Fatal(err)
	}
	return lists
}

const (
	pass = smtp.FCrDNSPass
	fail = smtp.FCrDNSFail
	dead = smtp.FCrDNSError

	// The names cut and other belong to Exchange Online. The first was truncated by smtpd. The
	// other has exactly 64 bytes.
	cut   = "mail-switzerlandnorthazon11020113.outbound.protection.outlook.co"
	whole = "mail-northcentralusazlp170100001.outbound.protection.outlook.com"
)

// TestProofOfGreetings checks the effect of a reverse DNS name on evidence about a greeting. If a
// proven name has the same owner as the greeting, there is no evidence. A truncated name proves
// nothing. If DNS has failed, the confidence is never high.
func TestProofOfGreetings(t *testing.T) {
	lists := builtin(t)
	for _, tt := range []struct {
		name, rdns string
		fcrdns     smtp.FCrDNS
		helo, want string
	}{
		{"own name", "mail.partner.example", pass, "mail.partner.example", ""},
		{"own name with a dot", "mail.partner.example", pass, "MAIL.partner.example.", ""},
		{"domain above", "m12.mail.163.com", pass, "163.com", ""},
		{"same owner", "smtp123-56.mail.sohu.com", pass, "sohu.com", ""},
		{"other owner", "mail.partner.example", pass, "163.com", "helo-forged/high"},
		{"another customer below a public suffix", "a.eu.org", pass, "b.eu.org", ""},
		{"provider of the customer", "vm1.westeurope.cloudapp.azure.com", pass, "gmail.com", "cloud/low helo-forged/high"},

		{"no name, DNS may be down", "", fail, "163.com", "helo-forged/medium rdns-missing/high"},
		{"no name, DNS is down", "", dead, "163.com", "helo-forged/medium rdns-missing/high"},
		{"unproven name of the owner", "m12.mail.163.com", fail, "163.com", "fcrdns-fail/high helo-forged/low"},
		{"unproven name of the owner, DNS is down", "m12.mail.163.com", dead, "163.com", "helo-forged/low"},
		{"truncated", cut, fail, "hotmail.com", ""},
		{"truncated, greets with a host name", cut, fail, "ZRAP278CU002.outbound.protection.outlook.com", ""},
		{"complete", whole, pass, "CH1PR05CU001.outbound.protection.outlook.com", ""},

		{"local domain", "", fail, "firm.example", "helo-forged/medium rdns-missing/high"},
		{"local domain, proven", "www.firm.example", pass, "firm.example", ""},
		{"local domain, rented server", "static.55.100.51.198.clients.hoster.example", pass, "firm.example", "helo-forged/medium"},
		{"local domain, truncated", cut, fail, "firm.example", ""},
		{"host in a local domain", "", fail, "mail.firm.example", "helo-forged/low rdns-missing/high"},
		{"host in a local domain, deep", "", fail, "a.b.c.firm.example", "helo-forged/low rdns-missing/high"},
		{"host in a local domain, rented server", "static.55.100.51.198.clients.hoster.example", pass, "web.firm.example", ""},
		{"our name", "", fail, "mx.example.org", "helo-own-name/high rdns-missing/high"},
		{"our name with a dot", "mail.partner.example", pass, "MX.example.org.", "helo-own-name/high"},
		{"local domain with a dot", "mail.partner.example", pass, "firm.example.", "helo-forged/medium"},
		{"our address with a dot", "mail.partner.example", pass, "[192.0.2.25].", "helo-own-address/high"},
		{"bare address with a dot", "mail.partner.example", pass, "192.0.2.25.", "helo-bare-address/high helo-own-address/high"},
		{"our name, DNS is down", "", dead, "mx.example.org", "helo-own-name/medium rdns-missing/high"},
		{"our name, our host", "web1.example.org", pass, "mx.example.org", ""},
		{"our address", "mail.partner.example", pass, "[192.0.2.25]", "helo-own-address/high"},
		{"a private address", "mail.partner.example", pass, "[172.17.0.1]", ""},

		{"host of a provider, no name", "", fail, "mail-yw1-f172.google.com", "helo-forged/low rdns-missing/high"},
		{"greeting of a provider, another proven name", "o2.email.shop.example", pass, "wrqvvcnk.outbound-mail.sendgrid.net", ""},
		{"no dots to speak of", "", fail, strings.Repeat(".", 100), "rdns-missing/high"},
	} {
		if got := strings.Join(identify(t, lists, "203.0.113.9", tt.rdns, tt.fcrdns, tt.helo, 25), " "); got != tt.want {
			t.Errorf("%s: %s (%v) greets %s:\n got %s\nwant %s", tt.name, tt.rdns, tt.fcrdns, tt.helo, got, tt.want)
		}
	}
}

// TestClassesOfGreetings checks that tools are detected on all listeners. Greetings with a common
// computer name must have low confidence. Such a name is no evidence on a submission listener, or
// if it is the first label of the proven name.
func TestClassesOfGreetings(t *testing.T) {
	lists := builtin(t)
	for _, tt := range []struct {
		rdns   string
		fcrdns smtp.FCrDNS
		helo   string
		port   uint16
		want   string
	}{
		{"", fail, "ylmf-pc", 25, "botnet-helo/high rdns-missing/high"},
		{"", fail, "ylmf-pc", 587, "botnet-helo/high rdns-missing/high"},
		{"", fail, "User", 25, "helo-unqualified/medium helo-word/low rdns-missing/high"},
		{"", fail, "User", 587, "rdns-missing/high"},
		{"", fail, "ADMIN", 465, "rdns-missing/high"},
		{"", fail, "TOSHIBA-L8QYR7M", 25, "helo-unqualified/medium helo-word/low rdns-missing/high"},
		{"", fail, "WIN-9QL4SDRB93L", 25, "helo-unqualified/medium helo-word/low rdns-missing/high"},
		{"", fail, "WIN-7N1FIECL6IC", 587, "botnet-helo/medium rdns-missing/high"},
		{"hydra.uni.example", pass, "hydra", 25, ""},
		{"admin.uni.example", pass, "ADMIN", 25, ""},
		{"", fail, "diretorias07.saude.example", 25, "botnet-helo/medium rdns-missing/high"},
		{"diretorias.saude.example", pass, "diretorias.saude.example", 25, ""},
		{"ylmf-pc.uni.example", pass, "ylmf-pc.uni.example.", 587, ""},
		{"gw.uni.example", pass, "ylmf-pc.uni.example", 25, ""},
		{"ylmf-pc.uni.example", fail, "ylmf-pc.uni.example", 25, "botnet-helo/medium fcrdns-fail/high"},
		{"x.distritek.cab", pass, "x.distritek.cab", 25, "botnet-helo/medium"},
		{"", fail, "zx18.quadmetrics.com", 25, "rdns-missing/high scanner/low"},
		{"mail.partner.example", pass, "zx18.quadmetrics.com", 25, "scanner/low"},
		{"zx18.quadmetrics.com", pass, "zx18.quadmetrics.com", 25, "scanner/high scanner/medium"},
		{"", fail, "WIN-7N1FIECL6IC.local", 25, "botnet-helo/medium rdns-missing/high"},
		{"", fail, "masscan.lan", 587, "rdns-missing/high scanner/high"},
		{"mail.firm.example", pass, "changeme.local", 25, "botnet-helo/low"},
		{"mail.partner.example", pass, "[127.0.1.1]", 25, "helo-localhost/medium"},
		{"", fail, "web.de", 25, "helo-forged/medium rdns-missing/high"},
		{"mout.web.de", pass, "web.de", 25, ""},
		{"www6.checktls.com", pass, "www6.CheckTLS.com", 25, "scanner/low"},
		{"", fail, "tools.wormly.com", 25, "rdns-missing/high scanner/low"},
		{"", fail, "nmap.scanme.org", 25, "rdns-missing/high scanner/high"},
		{"x.uni.example", pass, "user", 25, "helo-unqualified/medium helo-word/low"},
		{"", fail, "mail.example.com", 25, "helo-word/low rdns-missing/high"},
		{"", fail, "mail.example.com", 587, "rdns-missing/high"},
		{"", fail, "server.test", 25, "helo-word/low rdns-missing/high"},
		{"", fail, "speedtouch.lan", 25, "helo-word/low rdns-missing/high"},
		{"mail.example.net", pass, "mail.example.net", 25, ""},
		{"mail.partner.example", pass, "127.0.0.1", 25, "helo-bare-address/high"},
		{"mail.partner.example", pass, "[127.0.0.1]", 25, "helo-localhost/medium"},
		{"gw.firm.example", pass, "localhost", 25, "helo-localhost/medium"},
		{"mail.family.dpdns.org", pass, "mail.family.dpdns.org", 25, ""},
		{"", fail, "mail.family.dpdns.org", 25, "rdns-missing/high"},
	} {
		got := strings.Join(identify(t, lists, "203.0.113.9", tt.rdns, tt.fcrdns, tt.helo, tt.port), " ")
		if got != tt.want {
			t.Errorf("%s (%v) greets %s on port %d:\n got %s\nwant %s", tt.rdns, tt.fcrdns, tt.helo, tt.port, got, tt.want)
		}
	}
}

// TestListedHosts checks rows about rented addresses, about names and mail hosts of scanners, and
// about names of hosting providers.
func TestListedHosts(t *testing.T) {
	lists := builtin(t)
	for _, tt := range []struct {
		src, rdns string
		fcrdns    smtp.FCrDNS
		want      string
	}{
		{"147.185.132.7", "", fail, "cloud/high rdns-missing/high scanner/high"}, // network of Palo Alto that a hosting provider announces
		{"147.185.132.7", "mail.family.example", pass, "cloud/high scanner/high"},
		{"68.183.46.233", "", fail, "cloud/high rdns-missing/high scanner/high"}, // the test runs in 1970, so the row has not expired
		{"68.183.46.233", "mail.family.example", pass, "cloud/high scanner/low"},
		{"68.183.46.233", "vmi1.contaboserver.net", pass, "cloud/high cloud/low scanner/high"},
		{"71.6.135.131", "census1.shodan.io", pass, "cloud/high scanner/high"},
		{"203.0.113.9", "scan-15k.shadowserver.org", pass, "scanner/high"},
		{"203.0.113.9", "scan-15k.shadowserver.org", fail, "fcrdns-fail/high scanner/low"},
		{"203.0.113.9", "keeper-us-east-1b.mxtoolbox.com", pass, "scanner/low"},
		{"203.0.113.9", "mail.shadowserver.org", pass, ""},
		{"203.0.113.9", "mx2.onyphe.io", pass, ""},
		{"64.62.202.2", "mail.shadowserver.org", pass, ""},
		{"203.0.113.9", "ns3012345.ip-51-255-10.eu", pass, "cloud/low"},
		{"52.101.186.113", cut, fail, ""},
	} {
		s := new(track.Session)
		c := &Case{Session: s, State: new(State), Site: site(), Lists: lists, Client: new(memory.Client)}
		c.Memory = c.Site.Memory
		src := netip.MustParseAddr(tt.src)
		ev := smtp.Event{Kind: smtp.EventConnect, Time: 1, Src: netip.AddrPortFrom(src, 4000), RDNS: []byte(tt.rdns), FCrDNS: tt.fcrdns, RDNSCut: smtp.MayBeCut([]byte(tt.rdns), tt.fcrdns)}
		s.Apply(&ev)
		s.ASN, s.ASNKnown = lookup.ShippedASN(src)
		c.Event = &ev
		Run(c)
		var found []string
		for _, f := range c.Findings {
			found = append(found, f.Token()+"/"+f.Confidence)
		}
		slices.Sort(found)
		if got := strings.Join(found, " "); got != tt.want {
			t.Errorf("%s, %s (%v):\n got %s\nwant %s", tt.src, tt.rdns, tt.fcrdns, got, tt.want)
		}
	}
}
