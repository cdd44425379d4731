//go:build linux

package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
	"scanwatch/tests/smtpd"
)

// manual is the text of a manual page without its markup of options.
func manual(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "man", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestManualHasVerbsAndFlags: what the programs' help tells of is in their
// manuals.
func TestManualHasVerbsAndFlags(t *testing.T) {
	page := manual(t, "scanwatch.8")
	help, _ := exec.Command(smtpd.Bin("scanwatch"), "-h").CombinedOutput()
	_, list, ok := strings.Cut(string(help), "shortened:\n")
	if !ok {
		t.Fatalf("help: %s", help)
	}
	verbs := 0
	for line := range strings.Lines(list) {
		verb := strings.Fields(line)[0]
		verbs++
		if !strings.Contains(page, "Ic "+verb) {
			t.Errorf("scanwatch.8 has nothing of the verb %s", verb)
		}
		more, _ := exec.Command(smtpd.Bin("scanwatch"), verb, "-h").CombinedOutput()
		for _, flag := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(string(more), -1) {
			if !strings.Contains(page, "Fl -"+flag[1]) {
				t.Errorf("scanwatch.8 has nothing of the flag --%s of %s", flag[1], verb)
			}
		}
	}
	if verbs < 10 {
		t.Errorf("only %d verbs in the help", verbs)
	}
	usage, _ := exec.Command(smtpd.Bin("filter-scanwatch"), "-h").CombinedOutput()
	page = manual(t, "filter-scanwatch.8")
	for _, flag := range regexp.MustCompile(`(?m)^  -(\w)`).FindAllStringSubmatch(string(usage), -1) {
		if !strings.Contains(page, ".It Fl "+flag[1]) {
			t.Errorf("filter-scanwatch.8 has nothing of -%s", flag[1])
		}
	}
}

// TestManualHasEvidence: each token of evidence is in the manual of the policy
// language, and each that is gathered in the filter's.
func TestManualHasEvidence(t *testing.T) {
	page := manual(t, "scanwatch.conf.5")
	for _, token := range rules.Tokens {
		if !strings.Contains(page, token.Name) {
			t.Errorf("scanwatch.conf.5 has nothing of %s", token.Name)
		}
	}
	page = manual(t, "filter-scanwatch.8")
	for name := range expected {
		for _, token := range expected[name].evidence {
			if !strings.Contains(page, token) {
				t.Errorf("filter-scanwatch.8 has nothing of %s", token)
			}
		}
	}
}

// TestManualHasFormats: every format of a table's file is in the manual.
func TestManualHasFormats(t *testing.T) {
	page := manual(t, "scanwatch.conf.5")
	for _, f := range feed.Formats() {
		if !strings.Contains(page, f.Name) {
			t.Errorf("scanwatch.conf.5 has nothing of the format %s", f.Name)
		}
	}
}

// TestManualExamples: the commands of filter-scanwatch(8) do what they say, on a
// recorded stream. Its pieces of smtpd.conf(5) are given to smtpd in tests/pack.
func TestManualExamples(t *testing.T) {
	_, section, _ := strings.Cut(manual(t, "filter-scanwatch.8"), "\n.Sh EXAMPLES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	dir := t.TempDir()
	stream, err := os.ReadFile("streams/7.9/bad-helo.in")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "stream.in"), stream, 0o644); err != nil {
		t.Fatal(err)
	}
	var out []byte
	ran := 0
	for _, m := range regexp.MustCompile(`(?m)^\$ (.*)$`).FindAllStringSubmatch(section, -1) {
		cmd := exec.Command("sh", "-ec", strings.ReplaceAll(m[1], "/tmp/state", "state"))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(smtpd.Bin("scanwatch"))+":"+os.Getenv("PATH"))
		if out, err = cmd.Output(); err != nil {
			t.Errorf("%s: %v", m[1], err)
		}
		ran++
	}
	if ran < 2 || !strings.Contains(string(out), "Findings by evidence") {
		t.Errorf("%d commands, the last printed:\n%s", ran, out)
	}
}
