//go:build linux

package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// TestExportExempts checks that an export with a running filter exempts the same hosts
// as the filter, or fails: without its configuration, and while the filter keeps the
// previous content of a table of exempt hosts whose file became empty.
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
	write(friends, "")
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
	p.End(0)
}
