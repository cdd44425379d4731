//go:build linux

package lookup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestServer checks a real smtpd. Once the list has answered, a listed host must be rejected at the
// first command whose rule needs the answer. Mail from other hosts must be accepted.
func TestServer(t *testing.T) {
	port := rbldnsd(t)
	for _, version := range smtpd.Matrix() {
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			// Use root, who may use all commands. The other tests run the companion as a separate
			// user.
			conf := fmt.Sprintf("mode enforce\ncompanion lookup user 0 resolver 127.0.0.1 port %d\n", port) +
				strings.NewReplacer("rate 100", "rate 100 hold 400ms", "phase mail-from", "phase helo").Replace(list)
			f, dir := live.Configured(t, conf+fmt.Sprintf("rundir %q\n", smtpd.StateDir+"/run"), nil)
			s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir})
			file := filepath.Join(t.TempDir(), "scanwatch.conf")
			if err := os.WriteFile(file, []byte(conf+fmt.Sprintf("rundir %q\n", filepath.Join(s.State(), "run"))), 0o644); err != nil {
				t.Fatal(err)
			}
			filterproc.Eventually(t, "the socket of companions", func() bool {
				_, err := os.Stat(filepath.Join(s.State(), "run", "control.sock"))
				return err == nil
			})
			cmd := exec.Command(smtpd.Bin("scanwatch"), "lookup", "-f", file)
			log := filterproc.LogFile(t, cmd)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			filterproc.Eventually(t, "the list in use", func() bool { return strings.Contains(log(), "list enabled") })
			filterproc.Eventually(t, "the companion in the status", func() bool {
				return strings.Contains(cli.Run(t, s.State(), "status"), "companion lookup: running, 1 entry")
			})
			firstRejected(t, func(host string) string { return visit(t, s, host) }, "550 5.7.1 Listed [")
			if got := visit(t, s, "203.0.113.200"); got != "" {
				t.Errorf("a host that is not listed: %s", got)
			}
			live.Stop(t, s)
			if text := log(); strings.Contains(text, "level=ERROR") {
				t.Error(text)
			}
		})
	}
}

// visit sends a message, and returns the reply that rejects it, or "".
func visit(t *testing.T, s *smtpd.Server, from string) string {
	t.Helper()
	c, err := s.Dial(from, smtpd.PortMX)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.ReadReply()
	for _, line := range []string{"EHLO probe.example.net", "MAIL FROM:<a@example.net>", "RCPT TO:<alice@example.org>", "DATA", "Subject: hello\r\n\r\nhello\r\n."} {
		if err != nil {
			t.Fatalf("from %s: %v", from, err)
		}
		if r.Code >= 400 {
			return r.Text
		}
		r, err = c.Cmd(line)
	}
	if err != nil || r.Code != 250 {
		t.Errorf("from %s: message: %v, %v", from, r, err)
	}
	return ""
}
