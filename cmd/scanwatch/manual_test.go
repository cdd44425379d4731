package main

import (
	"bufio"
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"scanwatch/store/export"
)

// TestManual: each verb is in the manual, and each flag that it really has is
// in the part about it, and in its help; and there are no others there.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	parts := make(map[string]string) // by verb
	_, list, _ := strings.Cut(string(page), "Verbs may be shortened")
	list, _, _ = strings.Cut(list, "\n.Sh ")
	heading := regexp.MustCompile(`(?m)^\.(?:It|It Xo\n\.)\s*Ic ([a-z]+)`)
	at := heading.FindAllStringSubmatchIndex(list, -1)
	for i, m := range at {
		end := len(list)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		parts[list[m[2]:m[3]]] += list[m[0]:end]
	}
	for _, v := range verbs() {
		var help strings.Builder
		e := &env{err: io.Discard, now: time.Now, zone: time.UTC, find: func(string) string { return "" },
			out: bufio.NewWriter(&help), verb: &v, flags: flag.NewFlagSet(v.name, flag.ContinueOnError)}
		e.flags.SetOutput(io.Discard)
		if err := v.run(e, []string{"-h"}); err != flag.ErrHelp {
			t.Errorf("%s -h: %v", v.name, err)
		}
		e.out.Flush()
		part, ok := parts[v.name]
		if !ok {
			t.Errorf("the manual has nothing of %s", v.name)
		}
		delete(parts, v.name)
		flags := make(map[string]bool)
		e.flags.VisitAll(func(f *flag.Flag) {
			name := f.Name
			if len(name) > 1 {
				name = "-" + name
			}
			flags[name] = true
			if !regexp.MustCompile(`Fl ` + name + `\b`).MatchString(part) {
				t.Errorf("the manual has nothing of -%s of %s", name, v.name)
			}
			if !strings.Contains(help.String(), "-"+name) {
				t.Errorf("the help has nothing of -%s of %s", name, v.name)
			}
		})
		for _, m := range regexp.MustCompile(`Fl (-?[a-z-]+)`).FindAllStringSubmatch(part, -1) {
			if !flags[m[1]] && m[1] != "f" {
				t.Errorf("the manual tells of -%s, which %s does not have", m[1], v.name)
			}
		}
	}
	for name := range parts {
		t.Errorf("the manual tells of %s, which is no verb", name)
	}
}

// TestManualDiagnostics: each warning that the program can print is explained in
// the manual.
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
			case "scanwatch: ...", "scanwatch: ...: ...", "warning: ...": // what others say
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

// TestManualFormats: the manual has every format of export, with a line for
// cron, and no other.
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

// TestHelpFits: what a verb prints with -h is readable in 80 columns.
func TestHelpFits(t *testing.T) {
	for _, v := range verbs() {
		var out, stderr bytes.Buffer
		if status := program(&stderr).main([]string{v.name, "-h"}, &out); status != exitOK {
			t.Errorf("%s -h: status %d", v.name, status)
		}
		for line := range strings.Lines(out.String() + stderr.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%s -h: %d columns: %s", v.name, n, line)
			}
		}
	}
}
