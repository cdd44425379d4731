package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/tests/simulate"
)

// TestHarvestAcrossSessions plays a host whose sessions each request few mailboxes. banned is the
// session in which the host is banned; 0 means that it is never banned and that all mail to existing
// mailboxes arrives.
func TestHarvestAcrossSessions(t *testing.T) {
	guess := func(i, n int) (steps []simulate.Step) {
		for j := range n {
			steps = append(steps, wrong(simulate.Rcpt, fmt.Sprintf("word%d-%d@example.org", i, j)))
		}
		return steps
	}
	known := say(simulate.Rcpt, simulate.Mailbox(4))
	send := say(simulate.Data, "")
	for name, c := range map[string]struct {
		rdns   string
		sender string
		play   func(i int) []simulate.Step // commands after MAIL in session i
		every  time.Duration
		n      int
		banned int
	}{
		"a known mailbox and four guesses": {"", "joe@example.net", func(i int) []simulate.Step { return append(guess(i, 4), known, send) }, time.Minute, 20, 5},
		"five known mailboxes and four guesses": {"", "joe@example.net", func(i int) []simulate.Step {
			steps := guess(i, 4)
			for j := range 5 {
				steps = append(steps, say(simulate.Rcpt, simulate.Mailbox(4+j)))
			}
			return append(steps, send)
		}, time.Minute, 20, 8},
		"a known mailbox with many subaddresses": {"", "joe@example.net", func(i int) []simulate.Step {
			steps := guess(i, 4)
			for j := range 5 {
				steps = append(steps, say(simulate.Rcpt, strings.Replace(simulate.Mailbox(4), "@", fmt.Sprintf("+%d-%d@", i, j), 1)))
			}
			return append(steps, send)
		}, time.Minute, 20, 5},
		"single guesses":                           {"", "joe@example.net", func(i int) []simulate.Step { return guess(i, 1) }, time.Minute, 20, 7},
		"one recipient a session, null sender":     {"", "", func(i int) []simulate.Step { return guess(i, 1) }, time.Minute, 100, 77},
		"a sender that is verified for many users": {"mail.honest.example", "double-bounce@honest.example", func(i int) []simulate.Step { return guess(i, 1) }, 5 * time.Minute, 35, 0},
		"one message in each connection, of which every twentieth bounces": {"mail.honest.example", "list-bounces@honest.example", func(i int) []simulate.Step {
			if i%20 == 19 {
				return guess(i, 1)
			}
			return []simulate.Step{say(simulate.Rcpt, simulate.Mailbox(i%100)), send}
		}, 5 * time.Second, 400, 0},
	} {
		for _, policy := range []string{"standard", "tight"} {
			t.Run(name+"/"+policy, func(t *testing.T) {
				s := readySite(t, policy)
				s.learn()
				mails, sent := 0, 0
				for i := range c.n {
					steps := append([]simulate.Step{say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, c.sender)}, c.play(i)...)
					visit := visitor(monday.Add(time.Duration(i)*c.every), "203.0.113.66", c.rdns, append(steps, say(simulate.Quit, ""))...)
					out := s.play(sessions(visit))
					if steps[len(steps)-1] == send {
						sent++
						mails += out[0].Mails
					}
					if _, banned := first(s.memory.Bans.Banned(&memory.Client{Addr: visit.Src.Addr()}, visit.Start.Add(time.Minute).UnixMicro())); banned {
						if c.banned == 0 || i+1 > c.banned {
							t.Errorf("banned after session %d", i+1)
							s.report(t, out)
						}
						return
					}
				}
				if c.banned > 0 || mails < sent {
					t.Errorf("not banned after %d sessions; %d of %d messages arrived", c.n, mails, sent)
				}
			})
		}
	}
}
