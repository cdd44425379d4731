package filter_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// TestLogLevels checks the log lines for a session at each level. A session is logged once, when it
// ends or when its client is banned. With Verbose, each finding and decision is also logged.
// Sessions of friends are not logged. Also not logged are sessions in which all evidence has low
// confidence.
func TestLogLevels(t *testing.T) {
	for _, tt := range []struct {
		verbose bool
		want    []string
	}{
		{false, []string{
			"banned src=192.0.2.1 rule=bots prefix=192.0.2.1/32 until=2026-11-16T10:00:00Z times=1 evidence=botnet-helo:high ",
			"session decision=reject src=192.0.2.2 rule=forged phase=helo evidence=helo-unqualified:medium helo=a_b ",
		}},
		{true, []string{
			"finding evidence=botnet-helo src=192.0.2.1 ",
			"verdict decision=reject src=192.0.2.1 rule=bots ",
			"banned src=192.0.2.1 rule=bots ",
			"finding evidence=helo-unqualified src=192.0.2.2 ",
			"verdict decision=reject src=192.0.2.2 rule=forged ",
			"session decision=reject src=192.0.2.2 rule=forged phase=helo evidence=helo-unqualified:",
			"finding evidence=cloud src=198.51.100.201 confidence=low ",
		}},
	} {
		s := newSite(t, `mode enforce
table <friends> { 192.0.2.77 }
rule bots phase helo match evidence botnet-helo reject "550 5.7.1 no" ban 1h
rule forged phase helo match evidence helo-unqualified reject
`)
		s.verbose = tt.verbose
		s.play(sessions(
			visitor(monday, "192.0.2.1", "", say(simulate.Ehlo, "ylmf-pc")),
			visitor(monday.Add(time.Minute), "192.0.2.2", "", say(simulate.Ehlo, "a_b")),
			visitor(monday.Add(time.Hour), "192.0.2.77", "", say(simulate.Ehlo, "ylmf-pc")),
			delivery(monday.Add(2*time.Hour), "198.51.100.201", "ec2-198-51-100-201.compute-1.amazonaws.com"),
			delivery(monday.Add(3*time.Hour), "198.51.100.200", "mx.example.net"),
		))
		if len(s.log) != len(tt.want) {
			t.Errorf("verbose %v: %d lines, want %d:\n%s", tt.verbose, len(s.log), len(tt.want), strings.Join(s.log, "\n"))
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(s.log[i], want) {
				t.Errorf("verbose %v: line %d is\n%s\nwant %s", tt.verbose, i+1, s.log[i], want)
			}
		}
	}
}

// TestLogOfBans checks that a session with a rejection and an observed ban is logged with its
// rejection.
func TestLogOfBans(t *testing.T) {
	const text = `mode enforce
rule probe observe phase helo match evidence botnet-helo ban 7d
rule bad phase mail-from match helo "x.example" reject
rule bots phase mail-from match helo "ylmf-pc" reject
rule lost phase end match evidence talks-http ban 10m
`
	s := newSite(t, text)
	enforced := s.policy
	play := func(at time.Time, addr string, steps ...simulate.Step) {
		s.play(sessions(visitor(at, addr, "", steps...)))
	}
	all := func(observe bool, at time.Time, addr string, steps ...simulate.Step) []string {
		if s.policy = enforced; observe {
			s.policy = enforced.InMode(rules.Observe)
		}
		play(at, addr, steps...)
		return s.log
	}
	bad := []simulate.Step{say(simulate.Ehlo, "x.example"), say(simulate.Mail, "a@example.com")}
	bot := []simulate.Step{say(simulate.Ehlo, "ylmf-pc"), say(simulate.Mail, "a@example.com")}
	for _, tt := range []struct {
		name, want string
		log        []string
	}{
		{"observed", "session would=reject src=192.0.2.1 rule=bad ", all(true, monday, "192.0.2.1", bad...)},
		{"rejected with an observed ban", "session decision=reject src=192.0.2.2 rule=bots ", all(false, monday.Add(2*time.Minute), "192.0.2.2", bot...)},
		{"ban", "banned src=192.0.2.3 rule=lost ", all(false, monday.Add(3*time.Minute), "192.0.2.3", say(simulate.Command, "GET / HTTP/1.1"))},
	} {
		if !slices.ContainsFunc(tt.log, func(l string) bool { return strings.HasPrefix(l, tt.want) }) {
			t.Errorf("%s: no %q in\n%s", tt.name, tt.want, strings.Join(tt.log, "\n"))
		}
	}
}

// TestLogOfADay checks the length of the log after a day with attacks. Each session must be logged
// at most once, and a flood must cause far fewer lines than it has sessions.
func TestLogOfADay(t *testing.T) {
	const n = 3500 // sessions of each kind
	for _, tt := range []struct {
		name  string
		every time.Duration
		most  int
	}{{"a day", 24 * time.Hour / n, 2 * n}, {"a flood", 10 * time.Millisecond, n}} {
		s := readySite(t, "standard")
		s.play(simulate.Merge(
			simulate.Harvest(simulate.Attack{Seed: 1, Start: monday, Every: tt.every, Sessions: n, Each: 15}),
			simulate.Guess(simulate.Attack{Seed: 2, Start: monday, Every: tt.every, Sessions: n, Each: 3})))
		if len(s.log) == 0 || len(s.log) > tt.most {
			t.Errorf("%s: %d sessions have %d lines, want at most %d", tt.name, 2*n, len(s.log), tt.most)
		}
		t.Logf("%s: %d sessions, %d lines", tt.name, 2*n, len(s.log))
	}
}
