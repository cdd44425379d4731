//go:build linux

package process

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

const clockRules = `mode enforce
table <local-domains> { "example.org" }
rule bot phase { helo, mail-from } match evidence botnet-helo disconnect "554 5.7.1 bot" ban 7d
`

// TestClock checks that a wrong clock neither ends bans nor makes them permanent. Standing must
// remain. The clock is ten years ahead or in 1970, for a short time or during a restart.
func TestClock(t *testing.T) {
	day := 24 * time.Hour
	for _, wrong := range []time.Time{time.Now().Add(3650 * day), time.Unix(100, 0)} {
		for _, restart := range []string{"", "before", "after", "before and after"} {
			t.Run(fmt.Sprint(wrong.Year(), " restart ", restart), func(t *testing.T) {
				s := begin(t, "open", func(string, string) string { return clockRules }, time.Now().Add(-15*day))
				s.start()
				s.History(host("198.51.100.125", "mail.partner.example", "mail.partner.example"), 15, day-time.Hour)
				set := func(now time.Time, again bool) {
					if again {
						s.stop()
						s.now = now
						s.start()
						s.scanwatch("flush") // waits until the state has been read
					} else {
						s.set(now)
					}
				}
				set(time.Now(), false)
				first, second := host("203.0.113.1", "", "ylmf-pc"), host("203.0.113.2", "", "ylmf-pc")
				s.ban(first)
				s.state("before", 1)
				set(wrong, strings.Contains(restart, "before"))
				s.barred(first)
				s.ban(second)
				s.state("while the clock is wrong", 2)
				set(time.Now(), strings.Contains(restart, "after"))
				s.barred(first, second)
				s.state("after", 2)
				for _, h := range []simulate.Host{first, second} {
					h.Helo = "mail.example.net"
					s.Connect(h).Leave()
				}
				s.set(time.Now().Add(8 * day))
				for _, h := range []simulate.Host{first, second} {
					h.Helo = "mail.example.net"
					s.Check(!s.Connect(h).Barred, "%v is banned after eight days", h.Src)
				}
				s.stop()
				s.end()
			})
		}
	}
}

// ban bans a host.
func (s *play) ban(h simulate.Host) {
	c := s.Connect(h)
	c.Ehlo()
	s.Check(!c.Barred && c.Closed, "%v is not rejected for its greeting", h.Src)
}

func (s *play) barred(hosts ...simulate.Host) {
	for _, h := range hosts {
		s.Check(s.Connect(h).Barred, "%v is not banned", h.Src)
	}
}

// state asserts that there are n bans of a week, in the state and in an export. The host with mail
// must be trusted.
func (s *play) state(when string, n int) {
	s.Connect(host("192.0.2.200", "", "-")).Leave() // the answer proves that the filter has read all earlier events
	s.Check(strings.Contains(s.scanwatch("status"), "1 host known, 1 trusted") || strings.Contains(s.scanwatch("status"), "0 hosts known, 1 trusted"), "%s: status %s", when, s.scanwatch("status"))
	for _, args := range [][]string{{"bans", "--json"}, {"export", "json"}} {
		out := s.scanwatch(args...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		s.Check(len(lines) == n, "%s: %s: %d lines, want %d:\n%s", when, args[0], len(lines), n, out)
		for _, l := range lines {
			var e struct{ Until, Expires time.Time }
			if err := json.Unmarshal([]byte(l), &e); err != nil {
				s.Fail("%s: %s: %v in %q", when, args[0], err, l)
			}
			for _, end := range []time.Time{e.Until, e.Expires} {
				if left := time.Until(end); !end.IsZero() && (left-7*24*time.Hour).Abs() > time.Hour {
					s.Fail("%s: %s: ends in %v:\n%s", when, args[0], left, l)
				}
			}
		}
	}
}
