//go:build linux

package e2e

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

// TestHarvestOnTheWire checks a directory harvest of 50 unknown recipients. The filter must
// disconnect the client at the sixth recipient, and reject its next connections until the ban is
// revoked. The ban must survive even if the filter is killed. A mailing list with 51 members and
// three typos must be accepted. A browser may play only one session.
func TestHarvestOnTheWire(t *testing.T) {
	const harvester, list, browser = "203.0.113.1", "203.0.113.50", "203.0.113.80"
	var members []string
	for i := range 51 {
		members = append(members, fmt.Sprintf("member%d", i))
	}
	for _, version := range smtpd.Matrix() {
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			f, dir := live.Configured(t, live.Preset(t, "standard", "enforce", "rule browser phase end match evidence talks-http ban 1h"), nil)
			o := smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir, Members: members,
				Hosts: []smtpd.Host{{Addr: list, Name: "lists.example.net", Confirmed: true}}}
			s := live.Start(t, o)

			var to []string
			for i, m := range members {
				to = append(to, m)
				if i%20 == 7 {
					to = append(to, m+"x")
				}
			}
			if ok, refused, err := live.Transaction(s, list, "owner@lists.example.net", to, true); err != nil || ok != 51 || refused != 3 {
				t.Errorf("list: %d accepted, %d rejected, %v", ok, refused, err)
			}
			to = nil
			for i := range 50 {
				to = append(to, fmt.Sprintf("nobody%d", i))
			}
			if ok, refused, err := live.Transaction(s, harvester, "x@example.com", to, false); ok != 0 || refused != 5 || err == nil || !strings.HasPrefix(err.Error(), "421 4.7.0 Too many unknown recipients") {
				t.Errorf("harvester: %d accepted, %d rejected, then %v", ok, refused, err)
			}
			refusedAtOnce := func(s *smtpd.Server, from, rule string) {
				t.Helper()
				c, err := s.Dial(from, smtpd.PortMX)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if r, err := c.ReadReply(); err != nil || r.Code != 421 || !strings.Contains(r.Text, "Banned until ") || !strings.Contains(r.Text, "("+rule+") [") {
					t.Errorf("%s: %v, %v", from, r, err)
				}
				if _, err := c.Drain(); err != nil {
					t.Errorf("%s: not closed: %v", from, err)
				}
			}
			refusedAtOnce(s, harvester, "harvest")

			// smtpd sends no request to the filter for an HTTP line.
			c, err := s.Dial(browser, smtpd.PortMX)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := c.ReadReply(); err != nil || r.Code != 220 {
				t.Errorf("browser: %v, %v", r, err)
			}
			if r, err := c.Cmd("GET / HTTP/1.0"); err != nil || r.Code != 500 {
				t.Errorf("browser: %v, %v", r, err)
			}
			c.Close()
			ended(t, s, browser)
			refusedAtOnce(s, browser, "browser")

			// Flush first. When the filter is killed, smtpd also exits.
			cli.Run(t, s.State(), "flush")
			if err := s.KillFilter(); err != nil {
				t.Fatal(err)
			}
			<-s.Ended()
			_ = s.Stop()
			s = live.Start(t, o)
			if err := s.Eventually("the state has been read", func() bool {
				return cli.Listens(s.State())() && strings.Contains(cli.Run(t, s.State(), "status"), " known clients")
			}); err != nil {
				t.Fatal(err)
			}
			refusedAtOnce(s, harvester, "harvest")
			if out := cli.Run(t, s.State(), "bans"); !strings.Contains(out, harvester) || !strings.Contains(out, "harvest") {
				t.Errorf("bans:\n%s", out)
			}
			cli.Run(t, s.State(), "unban", harvester)
			if at, reply := visit(t, s, harvester, ""); at != "" {
				t.Errorf("after unban: rejected at %s with %q", at, reply)
			}
			live.Stop(t, s)
		})
	}
}

// TestGuesserOnTheWire checks that a brute-force client is banned on the submission port. A user in
// the same network must not be affected, nor an office in which one device has an old password.
func TestGuesserOnTheWire(t *testing.T) {
	const guesser, neighbour, office = "203.0.113.1", "203.0.113.2", "198.51.100.1"
	for _, version := range smtpd.Matrix() {
		if !version.TLS {
			continue
		}
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			f, dir := live.Configured(t, "mode enforce\nrule guess phase end match count auth-failure > 3 in 1h by src ban 1d\nrule spray phase end match evidence auth-spray ban 1d\n", nil)
			s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir})
			login := func(from, helo, user, password string) (int, string) {
				t.Helper()
				c, err := s.Dial(from, smtpd.PortSubmission)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if r, err := c.ReadReply(); err != nil || r.Code != 220 {
					return r.Code, r.Text
				}
				if _, err := c.Cmd("EHLO " + helo); err != nil {
					t.Fatal(err)
				}
				if _, err := c.StartTLS(); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Cmd("EHLO " + helo); err != nil {
					t.Fatal(err)
				}
				r, err := c.Cmd("AUTH PLAIN " + smtpd.Plain(user, password))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Cmd("QUIT"); err != nil {
					t.Fatal(err)
				}
				_, _ = c.Drain()
				return r.Code, r.Text
			}
			for i := range 4 {
				if code, text := login(guesser, "ylmf-pc", "alice", smtpd.GuessFirst); code != 535 {
					t.Errorf("guess %d: %s", i+1, text)
				}
				if code, text := login(neighbour, "laptop", "alice", smtpd.AlicePassword); code != 235 {
					t.Errorf("user: %s", text)
				}
			}
			if err := s.Eventually("the attacker is banned", func() bool { return slices.Contains(cli.Banned(t, s.State()), netip.MustParsePrefix(guesser+"/32")) }); err != nil {
				t.Fatal(err)
			}
			if code, text := login(guesser, "ylmf-pc", "alice", smtpd.AlicePassword); code != 421 {
				t.Errorf("the attacker with the right password: %s", text)
			}
			if code, text := login(neighbour, "laptop", "alice", smtpd.AlicePassword); code != 235 {
				t.Errorf("user after the ban: %s", text)
			}
			// A user mistypes the password twice, and a phone has an old password.
			for _, try := range []struct {
				user, password string
				code           int
			}{
				{"bob", smtpd.GuessFirst, 535}, {"bob", smtpd.GuessSecond, 535}, {"bob", smtpd.BobPassword, 235},
				{"carol", smtpd.GuessFirst, 535}, {"carol", smtpd.GuessFirst, 535}, {"carol", smtpd.GuessFirst, 535},
				{"carol", smtpd.GuessFirst, 535}, {"carol", smtpd.GuessFirst, 535}, {"bob", smtpd.BobPassword, 235},
			} {
				if code, text := login(office, "phone", try.user, try.password); code != try.code {
					t.Errorf("office, %s: %s, want %d", try.user, text, try.code)
				}
			}
			live.Stop(t, s)
		})
	}
}
