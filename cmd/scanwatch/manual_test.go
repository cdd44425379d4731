package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"scanwatch/store/export"
)

// TestManual checks that the manual documents exactly the commands and flags that exist, and
// describes the selectors only once.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "\n.Ss Commands\n")
	list, selectors, _ := strings.Cut(list, "\n.Ss Selectors\n")
	selectors, _, _ = strings.Cut(selectors, "\n.S")
	parts := make(map[string]string) // by command
	heading := regexp.MustCompile(`(?m)^\.(?:It|It Xo\n\.)\s*Ic ([a-z]+)`)
	at := heading.FindAllStringSubmatchIndex(list, -1)
	for i, m := range at {
		end := len(list)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		parts[list[m[2]:m[3]]] += list[m[0]:end]
	}
	has := func(text, flag string) bool {
		return regexp.MustCompile(`Fl ` + regexp.QuoteMeta(flag) + `\b`).MatchString(text)
	}
	for _, c := range program(io.Discard).root().Commands() {
		part, ok := parts[c.Name()]
		if !ok {
			t.Errorf("the manual does not have %s", c.Name())
		}
		delete(parts, c.Name())
		flags := map[string]bool{"f": true}
		for _, cmd := range append(leaves(c), c) {
			cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				long := "-" + f.Name
				flags[long], flags[f.Shorthand] = true, true
				if !has(part, long) && !(f.Shorthand != "" && has(part, f.Shorthand)) && !(strings.Contains(part, "Ar selector") && has(selectors, long)) {
					t.Errorf("the manual does not have -%s of %s", long, cmd.CommandPath())
				}
			})
		}
		for _, m := range regexp.MustCompile(`Fl (-?[a-z-]+)`).FindAllStringSubmatch(part, -1) {
			if !flags[m[1]] {
				t.Errorf("the manual has -%s, which %s does not have", m[1], c.Name())
			}
		}
	}
	for name := range parts {
		t.Errorf("the manual has %s, which is not a command", name)
	}
}

// TestManualDiagnostics checks that the manual explains every warning that the program can print.
func TestManualDiagnostics(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, manual, _ := strings.Cut(string(page), "\n.Sh DIAGNOSTICS\n")
	manual, _, _ = strings.Cut(manual, "\n.Sh ")
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`"((?:warning|scanwatch): [^"]*)"`).FindAllStringSubmatch(string(source), -1) {
			text := regexp.MustCompile(`%[a-z]`).ReplaceAllString(strings.ReplaceAll(m[1], `\n`, ""), "...")
			switch text {
			case "scanwatch: ...", "scanwatch: ...: ...", "warning: ...": // errors from other packages
			case "scanwatch: and ... more":
			default:
				found++
				if !strings.Contains(manual, ".It "+text+"\n") {
					t.Errorf("%s: DIAGNOSTICS has no item %q", name, text)
				}
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d warnings were found: the test looks in the wrong places", found)
	}
}

// TestManualFormats checks that the manual documents exactly the export formats that
// exist, each with a crontab line.
func TestManualFormats(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(page), ".Sh EXPORT\n")
	part, _, _ = strings.Cut(part, "\n.Sh ")
	var got, want []string
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm (.+)$`).FindAllStringSubmatch(part, -1) {
		got = append(got, strings.Split(m[1], " , ")...)
	}
	for _, f := range export.Formats() {
		want = append(want, f.Name)
		switch f.Name {
		case "plain", "json", "csv", "pf-anchor", "bsd-route":
		default:
			if !regexp.MustCompile(`(?m)^[*/0-9 ]+ .*\bscanwatch export ` + f.Name + " ").MatchString(part) {
				t.Errorf("no line for cron exports %s", f.Name)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the manual has %v, want %v", got, want)
	}
}

// TestExportRecipes checks that no recipe pipes an export directly into the program that loads it.
// If the export failed, that program would load an empty list.
func TestExportRecipes(t *testing.T) {
	found := 0
	for _, dir := range []string{"../../man", "../../docs", "../../contrib", "../../packaging", "../../ports", "../../README.md", ".", "../../store/export"} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(name, ".png") {
				return err
			}
			text, err := os.ReadFile(name)
			for _, line := range regexp.MustCompile("scanwatch export [a-z][^`]*").FindAllString(string(text), -1) {
				found++
				if command, _, _ := strings.Cut(line, "&&"); regexp.MustCompile(`[^|]\|[^|]`).MatchString(command) {
					t.Errorf("%s: %s", name, line)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("only %d lines found", found)
	}
}

// TestHelp checks that each command's help fits in 80 columns, and includes a
// sentence, two examples and a description of each flag.
func TestHelp(t *testing.T) {
	for _, c := range append(leaves(program(io.Discard).root()), program(io.Discard).root()) {
		args := strings.Fields(c.CommandPath())[1:]
		var out, help, stderr bytes.Buffer
		status := program(&stderr).main(append(args, "--help"), &out)
		status |= program(&stderr).main(append([]string{"help"}, args...), &help)
		if status != exitOK || out.String() != help.String() || stderr.Len() > 0 {
			t.Errorf("%s: status %d, help differs from --help: %v, %s", c.CommandPath(), status, out.String() != help.String(), stderr.String())
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.HasPrefix(line, "  scanwatch completion") {
				t.Errorf("%s: %d columns: %s", c.CommandPath(), n, line)
			}
		}
		if !regexp.MustCompile(`^[A-Z][^.]+\.$`).MatchString(c.Short) || strings.Count(c.Example, "  scanwatch ") != 2 || strings.Count(c.Example, "\n") != 1 {
			t.Errorf("%s: help without a sentence or two examples: %q, %q", c.CommandPath(), c.Short, c.Example)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			name, usage := pflag.UnquoteUsage(f)
			if usage == "" || f.NoOptDefVal == "" && name != strings.ToUpper(name) {
				t.Errorf("%s: --%s without a description or a name for its value: %q, %q", c.CommandPath(), f.Name, name, usage)
			}
		})
	}
}
