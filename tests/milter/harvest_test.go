//go:build linux

package milter

import (
	"fmt"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/require"
)

// TestHarvestOfRefusedRecipients checks that a client is banned that requests recipients which the
// server itself rejects, and how many it can test until then.
func TestHarvestOfRefusedRecipients(t *testing.T) {
	require.Full(t)
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.startMilter(conf(t, "standard", "enforce"))
			start(s, s.recipe(name))
			word := 0
			guess := func(sender string) []string {
				word++
				return []string{"MAIL FROM:<" + sender + ">", fmt.Sprintf("RCPT TO:<word%d@example.org>", word), "RSET"}
			}
			tested := func(src string, sessions, each int, lines func() []string) (n int) {
				for range sessions {
					session := scenario{src: src, lines: []string{"EHLO mail.sender.example"}}
					for range each {
						session.lines = append(session.lines, lines()...)
					}
					replies := session.play(t)
					s.idle()
					if strings.HasPrefix(replies[0], "421 ") {
						return n
					}
					n += strings.Count(strings.ToLower(strings.Join(replies, "\n")), "user unknown")
				}
				t.Errorf("%s: not banned after %d recipients\n%s", src, n, cli.Run(t, s.path("state"), "bans"))
				return n
			}
			null := func() []string { return guess("") }
			mixed := func() []string {
				word += 4
				return []string{"MAIL FROM:<joe@sender.example>", "RCPT TO:<games@example.org>", fmt.Sprintf("RCPT TO:<word%d@example.org>", word),
					fmt.Sprintf("RCPT TO:<word%d@example.org>", word+1), fmt.Sprintf("RCPT TO:<word%d@example.org>", word+2), fmt.Sprintf("RCPT TO:<word%d@example.org>", word+3), "QUIT"}
			}
			for what, c := range map[string]struct{ n, most int }{
				"null sender in one session":       {tested("198.51.100.201", 12, 120, null), 120},
				"null sender, one guess a session": {tested("198.51.100.202", 110, 1, null), 102}, // the test's hosts count as named
				"a known mailbox and four guesses": {tested("198.51.100.203", 20, 1, mixed), 30},
			} {
				t.Logf("%s: %d recipients tested", what, c.n)
				if c.n > c.most {
					t.Errorf("%s: %d recipients tested, want at most %d", what, c.n, c.most)
				}
			}
			if log := s.log(); strings.Contains(log, "bug") || strings.Contains(log, "level=ERROR") {
				t.Error(log)
			}
		})
	}
}

// TestNewSite checks that a mailing list reaches all members who exist, although the filter knows
// none of them, and some do not exist.
func TestNewSite(t *testing.T) {
	require.Full(t)
	members := map[string]func(*site) string{
		"Postfix": func(s *site) string {
			s.write("members.regexp", "/^member\\./ x\n")
			return "\nlocal_recipient_maps = regexp:" + s.path("members.regexp") + "\n"
		},
		"Sendmail": func(*site) string { return "LOCAL_RULE_0\nRmember.$-<@$*>\t$#local $: games\n" },
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.startMilter(conf(t, "standard", "enforce"))
			start(s, s.recipe(name)+members[name](s))
			for i := range 28 {
				member, want := fmt.Sprintf("member.%d", i), "250 2.1.5"
				if i%3 == 2 {
					member, want = fmt.Sprintf("former.%d", i), "550 5.1.1"
				}
				session := scenario{src: "198.51.100.210", lines: []string{
					"EHLO mail.lists.example", fmt.Sprintf("MAIL FROM:<list+%d@lists.example>", i), "RCPT TO:<" + member + "@example.org>", "QUIT",
				}}
				replies := session.play(t)
				s.idle()
				if len(replies) < 4 || !strings.HasPrefix(replies[3], want) {
					t.Fatalf("%s: %q, want %s", member, replies, want)
				}
			}
		})
	}
}

// TestGreylisting checks that a mailing list with missing members is not banned by its first attempt,
// in which Postfix defers all known members and rejects the missing ones.
func TestGreylisting(t *testing.T) {
	require.Full(t)
	s := newSite(t)
	s.startMilter(conf(t, "standard", "enforce"))
	s.write("members.regexp", "/^member\\./ x\n")
	start := servers["Postfix"]
	start(s, s.recipe("Postfix")+"\nlocal_recipient_maps = regexp:"+s.path("members.regexp")+`
smtpd_recipient_restrictions = reject_unauth_destination, reject_unlisted_recipient,
    check_client_access inline:{ { 198.51.100.211 = 450 4.2.0 Greylisted } }
`)
	other := scenario{src: "203.0.113.200", lines: []string{"EHLO mail.other.example", "MAIL FROM:<x@other.example>"}}
	for i := range 28 {
		other.lines = append(other.lines, fmt.Sprintf("RCPT TO:<member.%d@example.org>", i))
	}
	other.lines = append(other.lines, "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT")
	other.play(t)
	s.idle()
	for i := range 28 {
		member, want := fmt.Sprintf("member.%d", i), "450 4.2.0"
		if i%3 == 2 {
			member, want = fmt.Sprintf("former.%d", i), "550 5.1.1"
		}
		session := scenario{src: "198.51.100.211", lines: []string{
			"EHLO mail.lists.example", fmt.Sprintf("MAIL FROM:<list+%d@lists.example>", i), "RCPT TO:<" + member + "@example.org>", "QUIT",
		}}
		replies := session.play(t)
		s.idle()
		if len(replies) < 4 || !strings.HasPrefix(replies[3], want) {
			t.Fatalf("%s: %q, want %s\n%s", member, replies, want, cli.Run(t, s.path("state"), "bans"))
		}
	}
}
