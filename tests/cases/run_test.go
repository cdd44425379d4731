package cases

import (
	"regexp"
	"strings"
	"testing"
)

// notWithMilter lists the cases that fail with a milter, with the reasons. All other cases succeed
// with both front ends.
var notWithMilter = []struct{ cases, why string }{
	{"TestStatements/", "the statements describe what smtpd reports and answers"},
	{"TestBlind/|TestSubmissionGuessing/|TestOwnAccount/|TestOffice/eight|TestDistributedGuessing/|TestTools/.*port 465|TestCommands/AUTH", "AUTH and failed logins are not reported"},
	{"TestFalseGreetings/no name|TestCommands/MAIL FROM:joe", "commands with invalid syntax are not reported"},
	{"TestCommands/(several|a request) in one write|TestRelay/two commands", "pipelining is not reported"},
	{"TestNames/VRFY", "VRFY is not reported"},
	{"TestJunk/", "a milter that does not change messages cannot mark them"},
	{"TestCutNames|TestSenders/.*outlook|TestSenders/all, in turn/tight", "only smtpd truncates names"},
	{"TestHarvestInSession/|TestAccountRules/|TestBoughtStanding/(ten|fifteen)|TestCover/|TestNullSender/(one|four) a session" +
		"|TestMixedHarvest/|TestDistributedHarvest/|TestNetworkHarvest/|TestSlowHarvest/again|TestRelay/(fifty|percent|one a session)",
		"the server answers recipients that it refuses; the policy cannot hide them"},
}

// fits reports whether a case applies to a milter.
func fits(name string) bool {
	name = strings.ReplaceAll(name, "_", " ")
	for _, n := range notWithMilter {
		if regexp.MustCompile(n.cases).MatchString(name) {
			return false
		}
	}
	return true
}

// Run plays cases under their presets, with both front ends.
func Run(t *testing.T, list []Case) {
	t.Helper()
	for i := range list {
		c := &list[i]
		presets := c.Presets
		if len(presets) == 0 {
			presets = []string{"standard", "tight"}
		}
		if c.Lines != "" {
			presets = []string{"own"}
		}
		for _, preset := range presets {
			t.Run(c.Name+"/"+preset, func(t *testing.T) { playOver(t, c, preset, false) })
			if fits(t.Name() + "/" + c.Name + "/" + preset) {
				t.Run(c.Name+"/"+preset+"/milter", func(t *testing.T) { playOver(t, c, preset, true) })
			}
		}
	}
}

// playOver plays a case with one of the front ends: the one for milters if milter is set, and the
// one for smtpd if not.
func playOver(t *testing.T, c *Case, preset string, milter bool) {
	t.Helper()
	start := New
	if milter {
		start = NewMilter
	}
	s, err := start(c, preset)
	if err != nil {
		t.Fatal(err)
	}
	c.Play(s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := len(s.Fails); n > 0 {
		t.Errorf("%d failures:\n%s", n, strings.Join(s.Fails[:min(3, n)], "\n"))
	}
}
