//go:build linux

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// TestReloadTables checks that every valid change to a table takes effect. If the table's file is
// empty, missing or a web page, the table must remain unchanged. All other parts of the policy must
// be enforced, even after a restart without the file.
func TestReloadTables(t *testing.T) {
	const good, listed, inline = "198.51.100.25", "203.0.113.7", "192.0.2.9"
	dir, etc := t.TempDir(), t.TempDir()
	drop, conf := filepath.Join(etc, "drop"), filepath.Join(etc, "scanwatch.conf")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	policy := func(own string) {
		write(conf, fmt.Sprintf("mode enforce\nstore %q\ntable <drop> file %q\ntable <own> { %s }\n"+
			"rule drop phase connect match src <drop> disconnect\nrule own phase connect match src <own> disconnect\n", dir, drop, own))
	}
	policy("192.0.2.1")
	write(drop, "203.0.113.0/24\n"+strings.Repeat("192.0.2.77\n", 10))
	p := filterproc.Start(t, "-f", conf)
	session := 0
	scanwatch := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir, "-f", conf}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v, %s", args, err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	refused := func(when string, want bool, src string) {
		t.Helper()
		if got := p.Come(&session, src, false); strings.HasPrefix(got, "disconnect|") != want {
			t.Errorf("%s: %s: %s", when, src, got)
		}
	}
	refused("start", true, listed)
	for range 12 {
		p.Come(&session, good, true)
	}
	p.Come(&session, inline, false)

	write(drop, "203.0.113.0/24\n198.51.0.0/16\n")
	scanwatch("reload")
	refused("a short list with a known-good host", true, good)

	for _, bad := range []string{"", "# later\n", "<html><p>Please log in</p></html>\n"} {
		policy("192.0.2.1")
		write(drop, bad)
		if out := scanwatch("reload"); !strings.Contains(out, "keeping the previous table") {
			t.Errorf("%q: reload prints %s", bad, out)
		}
		refused("bad file", true, listed)
		refused("bad file", false, inline)
		policy("192.0.2.0/24")
		scanwatch("reload")
		refused("edit together with a bad file", true, inline)
		refused("edit together with a bad file", true, listed)
		if out := scanwatch("status"); !strings.Contains(out, "keeping the previous table") || !strings.Contains(out, "enforce") {
			t.Errorf("%q: status prints %s", bad, out)
		}
	}
	if log := p.End(0); !strings.Contains(log, "keeping the previous table") {
		t.Errorf("logged %s", log)
	}

	p = filterproc.Start(t, "-f", conf)
	refused("restart with a web page", true, inline)
	refused("restart with a web page", false, listed)
	if out := scanwatch("status"); !strings.Contains(out, "conditions on it are unknown") || !strings.Contains(out, "enforce") {
		t.Errorf("status after the restart prints %s", out)
	}
	write(drop, "203.0.113.0/24\n")
	scanwatch("reload")
	refused("fixed", true, listed)
	if out := scanwatch("status"); strings.Contains(out, "table <drop>") {
		t.Errorf("status after the repair prints %s", out)
	}
	write(drop, "")
	scanwatch("reload", "--force")
	refused("emptied by force", false, listed)
	p.End(0)
	if _, err := os.Stat(filepath.Join(dir, "refused")); !os.IsNotExist(err) {
		t.Errorf("a file in the state directory: %v", err)
	}
}
