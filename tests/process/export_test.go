//go:build linux

package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// TestExportExempts checks that an export either exempts the same hosts as the running filter, or
// fails. The test exports without the filter's configuration, with a different configuration, and
// after a file of exempt hosts has become empty.
func TestExportExempts(t *testing.T) {
	dir := t.TempDir()
	state, conf, friends, list := filepath.Join(dir, "state"), filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "friends"), filepath.Join(dir, "list")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(conf, "table <partners> file \"friends\"\npass match src <partners>\n")
	write(friends, "203.0.113.9\n")
	p := filterproc.Start(t, "-f", conf, "-s", state)
	filterproc.Eventually(t, "the control socket", cli.Listens(state))
	for _, host := range []string{"192.0.2.7", "203.0.113.9"} {
		cli.Run(t, state, "ban", "--force", host)
	}
	export := func(args ...string) (status int, stderr string) {
		t.Helper()
		write(list, "old\n")
		status, _, stderr = scanwatch(t, "", append([]string{"-s", state, "export", "plain", "-o", list}, args...)...)
		return status, stderr
	}
	has := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(list); err != nil || string(text) != want {
			t.Errorf("the list is %q, %v, want %q", text, err, want)
		}
	}
	if status, stderr := export("-f", conf); status != 0 {
		t.Errorf("status %d: %s", status, stderr)
	}
	has("192.0.2.7\n")
	if status, stderr := export(); status != 1 || !strings.Contains(stderr, "the filter uses the configuration "+conf) {
		t.Errorf("without the configuration: status %d: %s", status, stderr)
	}
	has("old\n")
	write(friends, "# none\n")
	cli.Run(t, state, "reload")
	if status, stderr := export("-f", conf); status != 1 || !strings.Contains(stderr, "the filter keeps the previous content of the table <partners>") {
		t.Errorf("with an empty table: status %d: %s", status, stderr)
	}
	has("old\n")
	cli.Run(t, state, "reload", "--force")
	if status, stderr := export("-f", conf); status != 0 {
		t.Errorf("after reload --force: status %d: %s", status, stderr)
	}
	has("192.0.2.7\n203.0.113.9\n")
	other := filepath.Join(dir, "other.conf")
	write(other, "mode observe\n")
	if status, stderr := export("-f", other); status != 1 || !strings.Contains(stderr, "the filter uses the configuration "+conf) {
		t.Errorf("with another configuration: status %d: %s", status, stderr)
	}
	p.End(0)

	// After a restart, the filter does not know the previous content of the file.
	const empty = "the file of the table <partners> is empty; if this is intended, write a comment in it"
	write(friends, "")
	p = filterproc.Start(t, "-f", conf, "-s", state)
	if status, stderr := export("-f", conf); status != 1 || !strings.Contains(stderr, empty) {
		t.Errorf("after a restart: status %d: %s", status, stderr)
	}
	if log := p.End(0); !strings.Contains(log, "table <partners>: "+friends+" is empty") {
		t.Errorf("log: %s", log)
	}
	if status, stderr := export(); status != 0 || !strings.Contains(stderr, "no configuration: no host is exempted by a pass statement") {
		t.Errorf("without the filter and its configuration: status %d: %s", status, stderr)
	}
}

// TestExportLostState checks exports after state.db was lost, before and after the filter's next
// start. Findings are never exported, because the new state.db may lack hosts with mail. Bans are
// exported only after the operator has accepted the loss.
func TestExportLostState(t *testing.T) {
	zero := func(t *testing.T, name string) {
		if err := os.WriteFile(name, make([]byte, 65536), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, lose := range map[string]func(t *testing.T, state, name string){
		"removed": func(t *testing.T, _, name string) { os.Remove(name) },
		"corrupt": func(t *testing.T, _, name string) { zero(t, name) },
		"repaired": func(t *testing.T, state, name string) {
			zero(t, name)
			_, _, _ = scanwatch(t, "", "-s", state, "fsck", "--repair")
		},
		"imported": func(t *testing.T, state, name string) {
			os.Remove(name)
			if status, _, stderr := scanwatch(t, mailLog, "-s", state, "import", "smtpd-log", "-"); status != 0 {
				t.Error(status, stderr)
			}
		},
		"kept": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			state, conf := filepath.Join(dir, "state"), filepath.Join(dir, "scanwatch.conf")
			if err := os.WriteFile(conf, []byte("mode observe\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			export := func(want string, args ...string) {
				t.Helper()
				status, out, stderr := scanwatch(t, "", append([]string{"-s", state, "-f", conf, "export", "plain"}, args...)...)
				if failed := strings.Contains(want, " "); failed && (status != 1 || out != "" || !strings.Contains(stderr, want)) || !failed && (status != 0 || out != want) {
					t.Errorf("%v: status %d, %q, %s; want %q", args, status, out, stderr, want)
				}
			}
			p := filterproc.Start(t, "-f", conf, "-s", state)
			filterproc.Eventually(t, "the control socket", cli.Listens(state))
			cli.Run(t, state, "ban", "--force", "192.0.2.7")
			p.End(0)
			finding(t, state)
			if lose != nil {
				lose(t, state, filepath.Join(state, "state.db"))
				if name == "removed" || name == "repaired" {
					export("state.db was lost", "--evidence", "any")
					export("state.db is missing or empty")
				}
			}
			for range 2 { // the mark of the loss must remain
				filterproc.Start(t, "-f", conf, "-s", state).End(0)
			}
			if lose == nil {
				export("203.0.113.9\n", "--evidence", "any")
				export("192.0.2.7\n")
				return
			}
			today := time.Now().UTC().Format(time.DateOnly)
			export("are not all known: state.db was lost", "--evidence", "any")
			export("are not all known: state.db was lost", "--evidence", "any", "--accept-loss", today)
			export("state.db was lost or is incomplete since " + today + ", and earlier bans are missing; to export the others, add --accept-loss " + today)
			export("add --accept-loss "+today, "--accept-loss", "2001-01-01")
			export("", "--accept-loss", today)
		})
	}
}
