//go:build linux && long

package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestHarness checks that every number is measured, including zero.
func TestHarness(t *testing.T) {
	var out, log bytes.Buffer
	b := &bench{mixes: allMixes, out: &out, log: &log, missing: map[string]bool{}}
	b.hurry()
	if err := b.all("speed,rates,space,dropping,costs,history,milters"); err != nil {
		t.Fatalf("%v\n%s%s", err, out.Bytes(), log.Bytes())
	}
	for line := range strings.Lines(log.String()) {
		if strings.HasPrefix(line, "SKIP") {
			t.Log(line)
		}
	}
	for _, c := range contestants {
		if b.has(c.name) && !strings.Contains(out.String(), c.name+" ") {
			t.Errorf("%s is missing", c.name)
		}
	}
	for _, g := range b.goals {
		// In short runs, a difference of microseconds can be measured as zero or negative.
		if g.got == 0 && !strings.Contains(g.what, "add") {
			t.Errorf("no measurement for %q", g.what)
		}
	}
	if !strings.Contains(out.String(), "\ngoal ") {
		t.Errorf("no table of goals:\n%s", out.Bytes())
	}
}
