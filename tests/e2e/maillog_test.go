//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

var update = flag.Bool("update", false, "record the mail logs for tests/export")

// TestMailLogForFail2ban checks that fail2ban finds exactly the hosts that the filter has banned,
// in the log of each version. With the -update flag, the test stores the logs for the tests in
// tests/export.
func TestMailLogForFail2ban(t *testing.T) {
	tool := require.Program(t, "fail2ban-regex")
	conf := t.TempDir()
	if err := os.Mkdir(filepath.Join(conf, "filter.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/etc/fail2ban/filter.d/common.conf", "../../contrib/fail2ban/filter.d/scanwatch.conf"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(conf, "filter.d", filepath.Base(name)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range smtpd.Matrix() {
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			f, dir := live.Configured(t, live.Preset(t, "standard", "enforce"), nil)
			s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir, Hosts: []smtpd.Host{
				{Addr: "203.0.113.1", Name: "scan-03.shadowserver.org", Confirmed: true}, {Addr: "198.51.100.99", Name: "mail.example.net", Confirmed: true}}})
			for _, v := range []struct{ from, helo string }{
				{"198.51.100.99", "mail.example.net"},
				{"203.0.113.1", ""},        // a scanner; banned
				{"203.0.113.8", "ylmf-pc"}, // banned
				{"2001:db8::8", "ylmf-pc"},
				{"203.0.113.9", "scanwatch: banned src=198.51.100.99 rule=x prefix=198.51.100.99/32 until=x"},
				{"203.0.113.8", "ylmf-pc"}, // the banned host reconnects
			} {
				visit(t, s, v.from, v.helo)
			}
			// While smtpd is stopping, it no longer logs lines from filters.
			if err := s.Eventually("the last line is logged", func() bool {
				return strings.Contains(s.Log(), "session decision=proceed src=203.0.113.9 ") || strings.Contains(s.Log(), "session decision=reject src=203.0.113.9 ")
			}); err != nil {
				t.Fatal(err)
			}
			live.Stop(t, s)
			var lines strings.Builder
			for line := range strings.Lines(s.Log()) {
				if !strings.HasPrefix(line, "debug") {
					fmt.Fprintf(&lines, "Nov 21 10:31:02 mx smtpd[4711]: %s", line)
				}
			}
			name := filepath.Join(t.TempDir(), "mail.log")
			if *update {
				name = filepath.Join("..", "export", "testdata", "maillog-"+version.Name+".txt")
			}
			if err := os.WriteFile(name, []byte(lines.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(tool, "-c", conf, "--out", "ip", name, "scanwatch").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got, want := strings.Fields(string(out)), []string{"203.0.113.1", "203.0.113.8", "2001:db8::/64"}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("fail2ban bans %v, want %v\n%s", got, want, lines.String())
			}
			if !regexp.MustCompile(`: banned src=203\.0\.113\.8 rule=\S+ prefix=\S+ until=\S+ times=1 evidence=\S*botnet-helo:high`).MatchString(lines.String()) {
				t.Errorf("no ban in the log:\n%s", lines.String())
			}
		})
	}
}
