//go:build linux

package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// TestWhyShowsTheRuleThatDecided checks that "scanwatch why" shows the rule's text as it was at the
// time of the decision, even if the configuration has changed since.
func TestWhyShowsTheRuleThatDecided(t *testing.T) {
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "scanwatch.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte("mode enforce\n"+text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const first, second = `rule bot phase helo match evidence botnet-helo reject "550 5.7.1 First"`, `rule bot phase helo match helo "ylmf-pc" reject "550 5.7.1 Second"`
	write(first)
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	// Ask until the filter answers. On failure, the time limit of go test ends the loop.
	for exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status").Run() != nil {
	}
	for i, text := range []string{first, second} {
		if i > 0 {
			write(text)
			cli.Run(t, dir, "reload")
		}
		if got := p.Ask(i+1, "ylmf-pc"); !strings.HasPrefix(got, "reject|550 5.7.1 ") {
			t.Errorf("answer %q", got)
		}
	}
	cli.Run(t, dir, "flush")
	live := cli.Run(t, dir, "-f", conf, "why", "192.0.2.1")
	p.End(0)
	for _, out := range []string{live, cli.Run(t, dir, "-f", conf, "why", "192.0.2.1")} {
		flat := strings.Join(strings.Fields(out), " ")
		if !strings.Contains(flat, "text "+first+" (the current policy has a different text)") || !strings.Contains(flat, "text "+second+" ! ") {
			t.Errorf("why:\n%s", out)
		}
	}
}
