//go:build linux

package e2e

// This file tests the presets in enforce mode on real servers. Unusual legitimate clients
// must be served, and similar attackers must be found.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// This Microsoft mail server has a name of 65 bytes. smtpd on Linux truncates the name to 64 bytes,
// so FCrDNS fails.
const (
	longName = "mail-switzerlandnorthazon11020113.outbound.protection.outlook.com"
	longAddr = "52.101.186.113"
)

// oddHosts lists the hosts with a reverse DNS name.
var oddHosts = []smtpd.Host{
	{Addr: "198.51.100.112", Name: "app.customer.example", Confirmed: true},
	{Addr: "198.51.100.113", Name: "mail.partner.example", Confirmed: true},
	{Addr: "198.51.100.114", Name: "copier.office.example", Confirmed: true},
	{Addr: "2001:db8:77:1::2", Name: "mail.family.example", Confirmed: true},
	{Addr: longAddr, Name: longName, Confirmed: true},
}

// friend is an address in <friends>.
const friend = "192.0.2.77"

// An oddClient is a legitimate client that a careless policy would reject. If loose is set, the
// tight preset also rejects it, as the preset's comments explain. play returns the senders of the
// messages that must arrive.
type oddClient struct {
	name  string
	tls   bool
	loose bool
	play  func(t *testing.T, s *smtpd.Server) (senders []string)
}

var oddClients = []oddClient{
	{name: "greeting [127.0.0.1] of a host with a proven name", loose: true, play: func(t *testing.T, s *smtpd.Server) []string {
		return []string{served(t, s, "198.51.100.112", "[127.0.0.1]", "app@customer.example")}
	}},
	{name: "eight bounces, then a message", play: func(t *testing.T, s *smtpd.Server) []string {
		x := call(t, s, "198.51.100.113", smtpd.PortMX)
		x.say("EHLO mail.partner.example")
		for _, to := range strangers(0, 8) {
			if told, _ := x.message("", to); told != 1 {
				t.Errorf("the bounce for %s was not answered by smtpd: %q", to, x.texts)
			}
		}
		_, accepted := x.message("joe@partner.example", "alice")
		x.quit()
		if got := fine(accepted, x); got != "ok" {
			t.Errorf("message after the bounces: %s", got)
		}
		return []string{"joe@partner.example", served(t, s, "198.51.100.113", "mail.partner.example", "ann@partner.example")}
	}},
	{name: "computer called ADMIN on the submission port", tls: true, play: func(t *testing.T, s *smtpd.Server) []string {
		x := submission(t, s, "198.51.100.120", "ADMIN")
		if code := x.password("alice", smtpd.AlicePassword); code != 235 {
			t.Errorf("login: %d, %q", code, x.texts)
		}
		_, accepted := x.message("alice@"+smtpd.Domain, "bob")
		x.quit()
		if got := fine(accepted, x); got != "ok" {
			t.Errorf("message: %s", got)
		}
		return []string{"alice@" + smtpd.Domain}
	}},
	{name: "neighbour of a harvester in a /64", play: func(t *testing.T, s *smtpd.Server) []string {
		const harvester = "2001:db8:77:1::1"
		if n := asks(t, s, harvester, "a@x.example", strangers(100, 20)...); n > 5 {
			t.Errorf("%d unknown recipients of the harvester were answered", n)
		}
		if x := call(t, s, harvester, smtpd.PortMX); len(x.texts) == 0 || !strings.Contains(x.texts[0], "Banned until ") {
			t.Errorf("the harvester is not banned: %q", x.texts)
		}
		return []string{served(t, s, "2001:db8:77:1::2", "mail.family.example", "joe@family.example")}
	}},
	{name: "Microsoft name of 65 bytes", play: func(t *testing.T, s *smtpd.Server) []string {
		sender := served(t, s, longAddr, "ZRAP278CU002.outbound.protection.outlook.com", "anna@uni.example")
		ended(t, s, longAddr)
		if r := cli.FromAddr(cli.Dump(t, s.State()), longAddr)[0]; r.RDNS != longName[:64] || r.FCrDNS != "fail" {
			t.Errorf("reverse DNS %q, %s: smtpd does not cut it", r.RDNS, r.FCrDNS)
		}
		return []string{sender}
	}},
	{name: "friend", play: func(t *testing.T, s *smtpd.Server) []string {
		for _, helo := range []string{"ylmf-pc", smtpd.HostName, "friend"} {
			x := call(t, s, friend, smtpd.PortMX)
			x.say("EHLO %s", helo)
			if told, _ := x.message("cron@firm.example", strangers(200, 6)...); told != 6 {
				t.Errorf("%d of 6 recipients were answered by smtpd: %q", told, x.texts)
			}
			x.say("VRFY root")
			x.c.Close() // without QUIT
		}
		x := call(t, s, friend, smtpd.PortMX)
		x.say("GET / HTTP/1.0")
		x.c.Close()
		return []string{served(t, s, friend, "localhost", "monitor@firm.example")}
	}},
}

// served checks that a client can send a message, and returns the sender.
func served(t *testing.T, s *smtpd.Server, from, helo, sender string) string {
	t.Helper()
	x := call(t, s, from, smtpd.PortMX)
	x.say("EHLO %s", helo)
	_, accepted := x.message(sender, "alice")
	x.quit()
	if got := fine(accepted, x); got != "ok" {
		t.Errorf("from %s, EHLO %s: %s", from, helo, got)
	}
	return sender
}

// arrived waits until the messages are delivered. None of them may be marked as junk.
func arrived(t *testing.T, s *smtpd.Server, senders ...string) {
	t.Helper()
	for _, sender := range senders {
		if err := s.Eventually("the message of "+sender+" has arrived", func() bool {
			return strings.Contains(mails(t, s), "\nSubject: from "+sender+"\n")
		}); err != nil {
			t.Error(err)
		}
	}
	if all := mails(t, s); strings.Contains(all, "X-Spam") {
		t.Errorf("a message is marked as junk:\n%s", all)
	}
}

// presetServer starts a server that enforces a preset, with friend in <friends>. The function edit
// changes the policy.
func presetServer(t *testing.T, version smtpd.Version, preset string, edit func(string) string) *smtpd.Server {
	t.Helper()
	text := live.Preset(t, preset, "enforce", `asn "asn.mmdb"`)
	befriended := strings.Replace(text, "table <friends> { }", "table <friends> { "+friend+" }", 1)
	if befriended == text {
		t.Fatal("the preset has no table <friends>")
	}
	f, dir := live.Configured(t, edit(befriended), map[string][]byte{"asn.mmdb": asnFile(t, "52.96.0.0/12", 8075)})
	return live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir, Hosts: oddHosts})
}

// promptly removes the greeting delay.
func promptly(text string) string { return slowRule.ReplaceAllString(text, "") }

// TestOddClients checks that the presets serve unusual legitimate clients and ban none of them. A
// friend is neither evaluated nor logged.
func TestOddClients(t *testing.T) {
	for _, version := range smtpd.Matrix() {
		for _, preset := range []string{"standard", "tight"} {
			t.Run(version.Name+"/"+preset, func(t *testing.T) {
				s := presetServer(t, version, preset, promptly)
				for _, c := range oddClients {
					if c.tls && !version.TLS || c.loose && preset == "tight" {
						continue
					}
					t.Run(c.name, func(t *testing.T) { arrived(t, s, c.play(t, s)...) })
				}
				shared := netip.MustParsePrefix("2001:db8:77:1::/64")
				if banned := cli.Banned(t, s.State()); len(banned) != 1 || !shared.Overlaps(banned[0]) {
					t.Errorf("banned: %v, want only the harvester in %v", banned, shared)
				}
				live.Stop(t, s)
				for _, r := range cli.FromAddr(cli.Dump(t, s.State()), friend) {
					if len(r.Findings) > 0 {
						t.Errorf("findings about the friend: %+v", r.Findings)
					}
				}
				if log := s.FilterLog("scanwatch"); strings.Contains(log, friend) {
					t.Errorf("the friend is in the log:\n%s", log)
				}
			})
		}
	}
}

// TestPoliteClientNearby checks a client that sends each command in two segments. The second
// segment waits for the delayed acknowledgement of the first. Such a client must not count as an
// early talker.
func TestPoliteClientNearby(t *testing.T) {
	for _, version := range smtpd.Matrix() {
		t.Run(version.Name, func(t *testing.T) {
			const from = "198.51.100.114"
			s := presetServer(t, version, "tight", func(text string) string { return text })
			for range 2 {
				c, err := s.Dial(from, smtpd.PortMX)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if err := c.Nagle(); err != nil {
					t.Fatal(err)
				}
				x := &caller{c: c, t: t, inTwo: true}
				x.heard(c.ReadReply())
				x.say("EHLO copier.office.example")
				_, accepted := x.message("scan@office.example", "alice")
				x.quit()
				if got := fine(accepted, x); got != "ok" {
					t.Error(got)
				}
			}
			arrived(t, s, "scan@office.example")
			if banned := cli.Banned(t, s.State()); len(banned) > 0 {
				t.Errorf("banned: %v", banned)
			}
			live.Stop(t, s)
		})
	}
}

// TestPlusAddresses checks that mail to a subaddress of the postmaster does not hide a harvest.
func TestPlusAddresses(t *testing.T) {
	for _, version := range smtpd.Matrix() {
		for _, preset := range []string{"standard", "tight"} {
			t.Run(version.Name+"/"+preset, func(t *testing.T) {
				const from = "203.0.113.53"
				s := presetServer(t, version, preset, promptly)
				x := call(t, s, from, smtpd.PortMX)
				x.say("EHLO mail.x.example")
				x.say("MAIL FROM:<a@x.example>")
				guesses, covers := 0, 0
				for i, local := range strangers(0, 50) {
					if x.say("RCPT TO:<postmaster+%d@%s>", i, smtpd.Domain) == 250 {
						covers++
					}
					if code := x.say("RCPT TO:<%s@%s>", local, smtpd.Domain); code == 550 || code == 524 {
						guesses++
					}
				}
				x.quit()
				if covers == 0 || guesses == 0 || guesses > 10 {
					t.Errorf("%d unknown recipients answered after %d accepted recipients, then %q", guesses, covers, x.texts)
				}
				ended(t, s, from)
				live.Stop(t, s)
				if r := cli.FromAddr(cli.Dump(t, s.State()), from)[0]; !slices.Contains(r.Evidence(), "harvest") {
					t.Errorf("evidence %q, want harvest", r.Evidence())
				}
			})
		}
	}
}

// TestStolenAccountOnTheWire checks that the filter detects the use of a stolen account. The rule
// in the presets must stop the account but not the address, so that another user at the same
// address can continue.
func TestStolenAccountOnTheWire(t *testing.T) {
	const home, rule = "198.51.100.70", "\n#rule stolen "
	for _, version := range smtpd.Matrix() {
		if !version.TLS {
			continue
		}
		for _, preset := range []string{"standard", "tight"} {
			t.Run(version.Name+"/"+preset, func(t *testing.T) {
				s := presetServer(t, version, preset, func(text string) string {
					if !strings.Contains(text, rule) {
						t.Fatalf("the preset has no line %q", rule)
					}
					return strings.Replace(promptly(text), rule, rule[:1]+rule[2:], 1)
				})
				// member logs in as a user and sends a message to each recipient.
				member := func(from string, a smtpd.Account, sender string, to ...string) (sent int, x *caller) {
					x = submission(t, s, from, "laptop")
					if code := x.password(a.User, a.Password); code != 235 {
						t.Errorf("login of %s from %s: %d, %q", a.User, from, code, x.texts)
					}
					for _, r := range to {
						if _, accepted := x.message(sender, r); accepted {
							sent++
						}
					}
					x.quit()
					return sent, x
				}
				alice, bob, carol := smtpd.Accounts[0], smtpd.Accounts[1], smtpd.Accounts[2]
				if n, x := member(home, bob, "bob@example.org", "alice", "carol"); n != 2 {
					t.Errorf("the owner sent %d of 2 messages: %q", n, x.texts)
				}
				sent, thief := 0, ""
				var last *caller
				for i := range 12 {
					n := 0
					thief = fmt.Sprintf("198.18.%d.9", 10+i)
					n, last = member(thief, bob, "winner@lottery.example", "alice", "carol", "mailuser")
					sent += n
				}
				// The first of the eight networks is the user's home network.
				if sent == 0 || sent > 7*3 || len(last.texts) == 0 || !strings.HasPrefix(last.texts[0], "450 4.7.1 This account sends unusual mail") {
					t.Errorf("the thief sent %d of 36 messages, then %q", sent, last.texts)
				}
				if n, x := member(thief, carol, "carol@example.org", "alice"); n != 1 {
					t.Errorf("another user at the address of the thief: %q", x.texts)
				}
				if n, x := member(home, alice, "alice@example.org", "bob"); n != 1 {
					t.Errorf("another user at the address of the owner: %q", x.texts)
				}
				arrived(t, s, "bob@example.org", "carol@example.org", "alice@example.org")
				if banned := cli.Banned(t, s.State()); len(banned) > 0 {
					t.Errorf("banned: %v", banned)
				}
				live.Stop(t, s)
				records := cli.Dump(t, s.State())
				if r := cli.FromAddr(records, thief); !slices.ContainsFunc(r, func(r cli.Record) bool { return slices.Contains(r.Evidence(), "account-abuse") }) {
					t.Errorf("no evidence account-abuse in %+v", r)
				}
				for _, r := range cli.FromAddr(records, home) {
					if slices.Contains(r.Evidence(), "account-abuse") {
						t.Errorf("evidence account-abuse at home: %+v", r)
					}
				}
			})
		}
	}
}
