//go:build linux

package manual

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/why"
	"scanwatch/rules"
	"scanwatch/store/report"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// manual returns the text of a manual page.
func manual(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../man", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestManualHasFlags checks that the manual describes the programs' flags.
func TestManualHasFlags(t *testing.T) {
	for _, program := range []string{"filter-scanwatch", "milter-scanwatch"} {
		usage, _ := exec.Command(smtpd.Bin(program), "-h").CombinedOutput()
		page := manual(t, program+".8")
		flags := regexp.MustCompile(`(?m)^  -(\w)`).FindAllStringSubmatch(string(usage), -1)
		if len(flags) < 6 {
			t.Errorf("usage of %s: %s", program, usage)
		}
		for _, flag := range flags {
			if !strings.Contains(page, ".It Fl "+flag[1]) {
				t.Errorf("%s.8 does not describe -%s", program, flag[1])
			}
		}
	}
}

// TestManualHasEvidence checks that scanwatch.conf(5) describes each evidence token.
// filter-scanwatch(8) must describe the tokens of the scenarios.
func TestManualHasEvidence(t *testing.T) {
	page := manual(t, "scanwatch.conf.5")
	for _, token := range rules.Tokens {
		if !strings.Contains(page, token.Name) {
			t.Errorf("scanwatch.conf.5 does not describe %s", token.Name)
		}
	}
	page = manual(t, "filter-scanwatch.8")
	for name := range live.Expected {
		for _, token := range live.Expected[name].Evidence {
			if !strings.Contains(page, token) {
				t.Errorf("filter-scanwatch.8 does not describe %s", token)
			}
		}
	}
}

// TestManualHasMembers checks that the manual lists all members of JSON objects.
func TestManualHasMembers(t *testing.T) {
	page := manual(t, "scanwatch.8")
	for start, c := range map[string]struct {
		object any
		depth  int // nesting of lists and objects
	}{
		".Ss report --json":      {report.Summary{}, 9},
		".Ss bans --json":        {why.Ban{}, 9},
		".Op Fl -json | -letter": {why.Answer{}, 0},
	} {
		_, section, ok := strings.Cut(page, "\n"+start)
		if !ok {
			t.Errorf("no %s", start)
		}
		section, _, _ = strings.Cut(section, "\n.Ss ")
		for name := range members(reflect.TypeOf(c.object), c.depth) {
			if !regexp.MustCompile(`(?m)^\.(Cm|It Cm|Pq) (.* )?` + name + `( |$)`).MatchString(section) {
				t.Errorf("%s: no member %s", start, name)
			}
		}
	}
}

// members returns the member names in a type's JSON.
func members(of reflect.Type, depth int) map[string]bool {
	all := map[string]bool{}
	for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return all
	}
	for f := range of.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name != "" {
			all[name] = true
		}
		if f.Anonymous || depth > 0 {
			maps.Copy(all, members(f.Type, depth-1))
		}
	}
	return all
}

// TestManualHasFormats checks that scanwatch.conf(5) describes each format of
// table files.
func TestManualHasFormats(t *testing.T) {
	page := manual(t, "scanwatch.conf.5")
	for _, f := range feed.Formats() {
		if !strings.Contains(page, f.Name) {
			t.Errorf("scanwatch.conf.5 does not describe the format %s", f.Name)
		}
	}
}

// TestManualExamples checks that the commands in filter-scanwatch(8) work with a recorded
// stream. tests/packaging checks the examples of smtpd.conf(5).
func TestManualExamples(t *testing.T) {
	_, section, _ := strings.Cut(manual(t, "filter-scanwatch.8"), "\n.Sh EXAMPLES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	dir := t.TempDir()
	stream, err := os.ReadFile("../streams/7.9/bad-helo.in")
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
