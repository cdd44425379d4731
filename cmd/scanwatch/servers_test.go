package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/filter/serverlog"
)

// TestServersManual checks that scanwatch-servers(7) and scanwatch(8) name each kind of log,
// and that the policy of the manual has no errors.
func TestServersManual(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch-servers.7")
	if err != nil {
		t.Fatal(err)
	}
	commands, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range serverlog.Kinds {
		if !strings.Contains(string(page), k.Name) || !strings.Contains(string(commands), k.Name) {
			t.Errorf("the manuals do not name %s", k.Name)
		}
	}
	if tested := strings.Count(string(page), "\nTested: "); tested != 3 {
		t.Errorf("%d servers are tested, according to the manual", tested)
	}
	_, text, _ := strings.Cut(string(page), "\n.Ss Policy\n")
	_, text, _ = strings.Cut(text, ".Bd -literal -offset indent\n")
	text, _, ok := strings.Cut(text, ".Ed\n")
	file := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, `\e`, `\`)), 0o600); err != nil || !ok {
		t.Fatal(ok, err)
	}
	var out, stderr strings.Builder
	if status := program(&stderr).main([]string{"check", file}, &out); status != exitOK || stderr.Len() > 0 || !strings.Contains(out.String(), "no errors") {
		t.Errorf("status %d: %s%s", status, out.String(), stderr.String())
	}
	if status := program(io.Discard).main([]string{"follow", "qmail", "-"}, io.Discard); status != exitUsage {
		t.Errorf("follow of an unknown kind: status %d", status)
	}
}

// TestServersViews checks that the views of sessions from other servers' logs do not name smtpd,
// or a server without a name.
func TestServersViews(t *testing.T) {
	for _, k := range serverlog.Kinds {
		dir := t.TempDir()
		run := func(args ...string) string {
			t.Helper()
			var out, stderr strings.Builder
			if status := program(&stderr).main(append([]string{"-s", dir}, args...), &out); status != exitOK {
				t.Fatalf("%s %q: status %d, %s", k.Name, args, status, stderr.String())
			}
			return out.String()
		}
		log := "../../filter/serverlog/testdata/" + k.Name + ".log"
		first, second := run("import", k.Name, log), run("import", k.Name, log)
		if strings.Contains(first, "recorded") || !regexp.MustCompile(`sessions  (\d+), (\d+) already recorded\n`).MatchString(second) {
			t.Errorf("%s: first import\n%s\nsecond\n%s", k.Name, first, second)
		}
		views := run("report", "--since", "2020-01-01") + run("why", "--all", "--since", "2020-01-01", "0.0.0.0/0")
		for _, id := range regexp.MustCompile(`scanwatch show ([0-9a-f]{16})`).FindAllStringSubmatch(views, -1) {
			views += run("show", id[1])
		}
		if !strings.Contains(views, "Reported  by") || !strings.Contains(views, "reported by") {
			t.Errorf("%s: incomplete views:\n%s", k.Name, views)
		}
		for _, line := range strings.Split(views, "\n") {
			if strings.Contains(line, "smtpd") || strings.Contains(line, "by  ") || strings.Contains(line, "not running") {
				t.Errorf("%s: %s", k.Name, line)
			}
		}
	}
}
