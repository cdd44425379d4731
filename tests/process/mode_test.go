//go:build linux

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// TestMode checks that observe mode immediately stops all enforcement: bans, and also rules that
// have already rejected the client. The mode must survive a restart and a reload. The mode ends by
// command or at the given time. If the mode file is invalid, the mode ends only by command.
func TestMode(t *testing.T) {
	const host, banned = "203.0.113.7", "198.51.100.9"
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "scanwatch.conf")
	text := fmt.Sprintf("mode enforce\nstore %q\nrule drop phase connect match src 203.0.113.0/24 disconnect\n", dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var p *filterproc.Program
	session := 0
	scanwatch := func(want string, args ...string) {
		t.Helper()
		out, err := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir, "-f", conf}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s, want %s", args, err, out, want)
		}
	}
	rejects := func(when string, want bool) {
		t.Helper()
		for _, src := range []string{host, banned} {
			if got := p.Come(&session, src, false); strings.HasPrefix(got, "disconnect|") != want {
				t.Errorf("%s: %s: %s", when, src, got)
			}
		}
	}
	restart := func(wants ...string) {
		t.Helper()
		if p != nil {
			log := p.End(0)
			for _, want := range wants {
				if !strings.Contains(log, want) {
					t.Errorf("the log lacks %q: %s", want, log)
				}
			}
		}
		p = filterproc.Start(t, "-f", conf)
		filterproc.Eventually(t, "the control socket", cli.Listens(dir))
		scanwatch("", "flush") // waits until the state has been read
	}
	restart()
	scanwatch("is banned", "ban", banned)
	scanwatch("mode enforce\n", "mode")
	scanwatch(banned+"\n", "export", "plain")
	rejects("at first", true)
	scanwatch("mode observe, by the operator; scanwatch -f "+conf+" -s "+dir+" mode policy returns to mode enforce\n", "mode", "observe")
	rejects("halted", false)
	for _, args := range [][]string{{"export", "plain"}, {"export", "plain", "--evidence", "any"}} {
		list := filepath.Join(t.TempDir(), "list")
		scanwatch("enforcement is stopped by scanwatch mode observe: the list is empty", append(args, "-o", list)...)
		if text, err := os.ReadFile(list); err != nil || len(text) > 0 {
			t.Errorf("halted: the list has %q, %v", text, err)
		}
	}
	scanwatch("loaded", "reload")
	rejects("halted and reloaded", false)
	scanwatch("the mode of the policy is enforce", "status")
	restart("observing only, by the operator")
	rejects("halted and restarted", false)
	scanwatch("mode enforce\n", "mode", "policy")
	rejects("no more", true)
	restart("operator restored the configured mode")
	rejects("no more, and restarted", true)

	scanwatch("mode observe, by the operator until ", "mode", "observe", "--for", "2h")
	rejects("for two hours", false)
	write := func(line string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "mode"), []byte(line), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("observe " + time.Now().Add(-time.Second).UTC().Format(time.RFC3339) + "\n")
	restart("until=")
	rejects("the time is over", true)
	write("observ")
	restart()
	rejects("not a mode", false)
	scanwatch("mode enforce\n", "mode", "policy")
	rejects("fixed", true)
	restart("mode unreadable, observing only; use scanwatch mode")
	p.End(0)
	if _, err := os.Stat(filepath.Join(dir, "mode")); !os.IsNotExist(err) {
		t.Errorf("the file remains: %v", err)
	}
}
