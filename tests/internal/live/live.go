//go:build linux

// Package live starts the filter on a real OpenSMTPD server for tests.
package live

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/rules"
	"scanwatch/tests/internal/smtpd"
)

// Filter returns the filter as an operator would configure it.
func Filter(args ...string) smtpd.Filter {
	return smtpd.Filter{
		Name: "scanwatch",
		Path: smtpd.Bin("filter-scanwatch"),
		Args: append([]string{"-s", smtpd.StateDir}, args...),
	}
}

// AllPhases lists the phases for which a filter may register.
var AllPhases = []string{"connect", "helo", "ehlo", "starttls", "mail-from", "rcpt-to", "data", "commit", "rset", "noop", "quit"}

// FilterAskedInAllPhases returns a filter that receives requests in every phase.
func FilterAskedInAllPhases() smtpd.Filter {
	return smtpd.Through(smtpd.Bin("teefilter"), Filter(), "", AllPhases...)
}

// Start starts a server. Its DNS contains the host names of the scenarios. The server stops when
// the test ends.
func Start(t *testing.T, o smtpd.Options) *smtpd.Server {
	t.Helper()
	smtpd.Require(t, o.Version)
	o.Hosts = append(o.Hosts, smtpd.Hosts()...)
	if o.Dir == "" {
		// Stop removes the default directory, but tests read the state after Stop.
		o.Dir = StateDir(t)
	}
	s, err := smtpd.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

// StateDir returns a new directory that smtpd's users can enter.
func StateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Stop stops a server, which must be running.
func Stop(t *testing.T, s *smtpd.Server) {
	t.Helper()
	if !s.Alive() {
		t.Errorf("smtpd ended early:\n%s", s.Log())
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, s.Log())
	}
}

// Configured writes a configuration and other files for the filter, and returns the
// filter and the server's directory.
func Configured(t *testing.T, config string, files map[string][]byte) (smtpd.Filter, string) {
	t.Helper()
	dir := StateDir(t)
	etc := filepath.Join(dir, "state")
	if err := os.Mkdir(etc, 0o750); err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{"scanwatch.conf": []byte(config)}
	maps.Copy(all, files)
	for name, data := range all {
		if err := os.WriteFile(filepath.Join(etc, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Filter("-f", smtpd.StateDir+"/scanwatch.conf"), dir
}

// Preset returns the given lines followed by a preset policy in the given mode.
func Preset(t *testing.T, name, mode string, lines ...string) string {
	t.Helper()
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(append(lines, ""), "\n") + strings.Replace(string(text), "\nmode observe\n", "\nmode "+mode+"\n", 1)
}
