//go:build linux

package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/smtpd"
)

// TestWhyTellsTheRuleAsItWas: the filter keeps what a rule said when it decided,
// also when the configuration has become another one since.
func TestWhyTellsTheRuleAsItWas(t *testing.T) {
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "scanwatch.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte("mode enforce\n"+text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const first, second = `rule bot phase helo match evidence botnet-helo reject "550 5.7.1 First"`, `rule bot phase helo match helo "ylmf-pc" reject "550 5.7.1 Second"`
	write(first)
	p := begin(t, "-f", conf, "-s", dir)
	// Asked until it answers; go test's own limit ends this.
	for exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status").Run() != nil {
	}
	for i, text := range []string{first, second} {
		if i > 0 {
			write(text)
			command(t, dir, "reload")
		}
		if got := p.ask(i+1, "ylmf-pc"); !strings.HasPrefix(got, "reject|550 5.7.1 ") {
			t.Errorf("answer %q", got)
		}
	}
	command(t, dir, "flush")
	live := command(t, dir, "-f", conf, "why", "192.0.2.1")
	p.end(0)
	for _, out := range []string{live, command(t, dir, "-f", conf, "why", "192.0.2.1")} {
		flat := strings.Join(strings.Fields(out), " ")
		if !strings.Contains(flat, "read "+first+" (it reads differently now)") || !strings.Contains(flat, "read "+second+" ! ") {
			t.Errorf("why:\n%s", out)
		}
	}
}
