package main

import (
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// passedOn lists log arguments whose text comes from other packages. The manual does not quote that
// text.
var passedOn = []string{
	"err.Error()",                 // an unreadable file
	`k.name + " available again"`, // segments and state.db; the manual lists both
	`k.name + " unavailable, keeping " + k.data + " in memory"`,
	"line",      // lines from Serve; the test checks its calls instead
	"msg",       // lines from package milter; the test checks its calls instead
	"n",         // notes from package config; the test checks its calls instead
	"e.Error()", // a configuration error
	"w.Error()", // a configuration warning
	"word",      // banned or unbanned
	`strings.TrimSuffix(line, "\n")`,
}

// companionDirs lists the companions' packages, whose log messages are documented in
// scanwatch(8).
var companionDirs = []string{"../internal/dnsbl", "../internal/dnslookup", "../internal/firewall", "../internal/follow", "../internal/followlog", "../internal/forward", "../internal/sharing"}

// milterDir is the directory of milter-scanwatch(8)'s front end.
const milterDir = "../../filter/milter"

// TestDiagnostics checks that DIAGNOSTICS in the manuals lists every message that the
// filter or a companion can log. The test finds the messages in the source's log calls.
func TestDiagnostics(t *testing.T) {
	for _, c := range []struct {
		page  string
		dirs  []string
		least int // minimum number of messages that the test must find
	}{
		{"filter-scanwatch.8", []string{".", "../internal", "../../filter", "../../store"}, 40},
		{"milter-scanwatch.8", []string{"../milter-scanwatch", milterDir}, 5},
		{"scanwatch.8", companionDirs, 8},
	} {
		titles, texts := itemsOf(t, c.page), 0
		for _, dir := range c.dirs {
			err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
				switch {
				case err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == "replay"): // package replay does not log
					return cmpErr(err, filepath.SkipDir)
				case d.IsDir() && name != dir && (name == milterDir || slices.Contains(companionDirs, name)):
					return filepath.SkipDir
				case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
					return nil
				}
				n, err := checkFile(t, name, c.page, titles)
				texts += n
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if texts < c.least {
			t.Errorf("%s: only %d texts were found: the test does not find the log calls", c.page, texts)
		}
	}
}

// itemsOf returns the titles of the items under DIAGNOSTICS in a manual.
func itemsOf(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile("../../man/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, manual, _ := strings.Cut(string(text), "\n.Sh DIAGNOSTICS\n")
	manual, _, _ = strings.Cut(manual, "\n.Sh ")
	var items strings.Builder
	for line := range strings.Lines(manual) {
		if item, ok := strings.CutPrefix(line, ".It "); ok {
			items.WriteString(strings.NewReplacer(`\(dq`, `"`, `\e`, `\`, `\&`, "").Replace(item))
		}
	}
	return items.String()
}

// checkFile checks a source file's log calls, and returns how many messages the manual documents.
func checkFile(t *testing.T, name, page, titles string) (texts int, err error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, name, nil, 0)
	if err != nil {
		return 0, err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		arg := logged(call)
		if arg == nil {
			return true
		}
		text, ok := literal(arg)
		switch {
		case !ok && slices.Contains(passedOn, source(files, arg)):
		case !ok:
			t.Errorf("%s: logs %s, whose text this test cannot determine", files.Position(call.Pos()), source(files, arg))
		case !strings.Contains(titles, inManual(text)):
			t.Errorf("%s: DIAGNOSTICS of %s has no item with %q", files.Position(call.Pos()), page, inManual(text))
		default:
			texts++
		}
		return true
	})
	return texts, nil
}

func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// logged returns call's message argument, or nil if call does not log.
func logged(call *ast.CallExpr) ast.Expr {
	at := func(i int) ast.Expr {
		if i < len(call.Args) {
			return call.Args[i]
		}
		return nil
	}
	name, on := "", ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name, on = f.Sel.Name, strings.ToLower(last(f.X))
	}
	switch {
	case slices.Contains([]string{"Info", "Warn", "Error"}, name) && on == "log":
		return at(0)
	case name == "once" && on == "s", name == "Appendf" && at(1) != nil:
		// Serve logs with a function named "once". Some warnings are written without a
		// logger.
		if text, ok := literal(at(1)); name == "once" || ok && strings.HasPrefix(text, "warning: ") {
			return at(1)
		}
	case name == "note" && on == "c" && len(call.Args) > 0: // package config
		if text, ok := literal(at(0)); ok && text != "%v" {
			return at(0)
		}
	case name == "append" && at(1) != nil:
		// Messages about sessions are built by appending to a variable named line.
		if x, ok := at(0).(*ast.SliceExpr); ok && last(x.X) == "line" {
			if _, ok := literal(at(1)); ok {
				return at(1)
			}
		}
	}
	return nil
}

// last returns the last name of a, a.b or a.b().
func last(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr:
		return last(e.Fun)
	}
	return ""
}

func literal(e ast.Expr) (string, bool) {
	b, ok := e.(*ast.BasicLit)
	if !ok || b.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(b.Value)
	return text, err == nil
}

func source(files *token.FileSet, e ast.Expr) string {
	var b strings.Builder
	_ = printer.Fprint(&b, files, e)
	return b.String()
}

// inManual converts a message to the form that the manual uses: the first line, with N or ... in
// place of each value.
func inManual(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	text = regexp.MustCompile(`%d`).ReplaceAllString(text, "N")
	return regexp.MustCompile(`%[+.0-9]*[a-z]`).ReplaceAllString(text, "...")
}
