package filter_test

import (
	"strings"
	"testing"
	"time"

	"scanwatch/tests/simulate"
)

// TestLogLevels checks the lines of a session at each level: one at its end, and with
// Verbose one for each finding and decision, too. A friend and a session with weak evidence
// only have no line.
func TestLogLevels(t *testing.T) {
	for _, tt := range []struct {
		verbose bool
		want    []string
	}{
		{false, []string{
			"banned src=192.0.2.1 rule=bots ",
			"session decision=reject src=192.0.2.1 rule=bots phase=helo evidence=botnet-helo:high ",
		}},
		{true, []string{
			"finding evidence=botnet-helo src=192.0.2.1 ",
			"verdict decision=reject src=192.0.2.1 rule=bots ",
			"banned src=192.0.2.1 rule=bots ",
			"session decision=reject src=192.0.2.1 rule=bots phase=helo evidence=botnet-helo:high ",
			"finding evidence=cloud src=198.51.100.201 confidence=low ",
		}},
	} {
		s := newSite(t, `mode enforce
table <friends> { 192.0.2.77 }
rule bots phase helo match evidence botnet-helo reject "550 5.7.1 no" ban 1h
`)
		s.verbose = tt.verbose
		s.play(sessions(
			visitor(monday, "192.0.2.1", "", say(simulate.Ehlo, "ylmf-pc")),
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
