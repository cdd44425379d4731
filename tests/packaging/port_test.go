//go:build linux

package packaging

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// portFiles lists the files of a Go port; see bsd.port.mk(5) and go-module(5).
var portFiles = regexp.MustCompile(`^(Makefile|distinfo|pkg/(DESCR|PLIST|README|[A-Za-z_][A-Za-z0-9_]*\.rc))$`)

// substituted lists the variables that bsd.port.mk(5) replaces in files below pkg. The list also
// contains V.
var substituted = []string{"ARCH", "HOMEPAGE", "LOCALBASE", "LOCALSTATEDIR", "MACHINE_ARCH", "MAINTAINER", "PKGSTEM", "PREFIX", "RCDIR", "SYSCONFDIR", "TRUEPREFIX", "VARBASE", "V"}

var (
	fixedPath  = regexp.MustCompile(`/usr/local\b|/var/(?:db|lib|spool|www)\b`)
	variable   = regexp.MustCompile(`\$\{([A-Z]+)\}`)
	assignment = regexp.MustCompile(`^([A-Z_]+)\s*[?:!]?=`)
)

// portProblems returns the problems that OpenBSD's portcheck(1) would report for a file of the
// port.
func portProblems(name, text string, mode fs.FileMode) []string {
	var problems []string
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if !portFiles.MatchString(name) {
		report("is not a file of a port")
	}
	if mode&0o111 != 0 {
		report("is executable")
	}
	if !strings.HasSuffix(text, "\n") {
		report("does not end in a newline")
	}
	assigned := make(map[string]bool)
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if strings.TrimRight(line, " \t") != line {
			report("line %d: trailing space", n)
		}
		if len(line) > 80 && strings.Contains(line, " ") && name != "pkg/PLIST" {
			report("line %d: longer than 80 columns", n)
		}
		if line == "" && name == "pkg/PLIST" {
			report("line %d: empty", n)
		}
		if name != "distinfo" && name != "pkg/PLIST" && fixedPath.MatchString(line) {
			report("line %d: fixed path", n)
		}
		if m := assignment.FindStringSubmatch(line); m != nil && name == "Makefile" {
			if assigned[m[1]] {
				report("line %d: second assignment to %s", n, m[1])
			}
			assigned[m[1]] = true
		}
		for _, m := range variable.FindAllStringSubmatch(line, -1) {
			if strings.HasPrefix(name, "pkg/") && !slices.Contains(substituted, m[1]) {
				report("line %d: %s is not replaced", n, m[1])
			}
		}
	}
	return problems
}

// TestPort checks the port as portcheck(1) does. The port must also follow the other ports in
// mail/opensmtpd-filters, whose Makefile.inc sets the package's name.
func TestPort(t *testing.T) {
	needs(t, "bmake")
	err := filepath.WalkDir(port, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(port, path)
		for _, problem := range portProblems(name, read(t, path), info.Mode()) {
			t.Errorf("%s: %s", name, problem)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	category := "PKGNAME ?= opensmtpd-filter-${FILTER_NAME}-${V}\nMODGO_BINDIR ?= libexec/smtpd\n"
	if err := os.WriteFile(filepath.Join(work, "bsd.port.mk"), []byte(category), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"PKGNAME": "opensmtpd-filter-scanwatch-" + version, "DISTNAME": "scanwatch-" + version, "MODGO_VERSION": "v" + version,
		"CATEGORIES": "mail", "MODULES": "lang/go", "PERMIT_PACKAGE": "Yes", "NO_TEST": "", "REVISION": "",
	} {
		if got := strings.TrimSpace(run(t, port, nil, "bmake", "-r", "-m", work, "-V", "${"+name+"}")); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	comment := strings.TrimSpace(run(t, port, nil, "bmake", "-r", "-m", work, "-V", "${COMMENT}"))
	if first, _, _ := strings.Cut(comment, " "); len(comment) > 60 || first == "a" || first == "an" || first == "the" || strings.HasSuffix(comment, ".") {
		t.Errorf("COMMENT is %q", comment)
	}
	for _, bad := range []struct{ name, text, want string }{
		{"Makefile", "V =\t1\nV =\t2\n", "line 2: second assignment to V"},
		{"pkg/README", "in /var/db/x\n", "line 1: fixed path"},
		{"pkg/README", "${NAME}\n", "line 1: NAME is not replaced"},
		{"pkg/x.rc", "x \n", "line 1: trailing space"},
		{"pkg/MESSAGE.orig", "x\n", "is not a file of a port"},
	} {
		if got := portProblems(bad.name, bad.text, 0o644); !slices.Equal(got, []string{bad.want}) {
			t.Errorf("%s %q: %v, want %s", bad.name, bad.text, got, bad.want)
		}
	}
}
