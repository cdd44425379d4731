package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/filter/serverlog"
)

// TestServersManual checks that scanwatch-servers(7) and scanwatch(8) name each kind of log, and
// that the manual's policy is valid.
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
