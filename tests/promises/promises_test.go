//go:build linux

// Package promises checks that the sandbox on OpenBSD allows all operations of the filter and the
// companions. The tests of other packages run under strace(1). Each system call inside the sandbox
// is compared with pledge(2) and unveil(2).
package promises

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// roles maps each process with a sandbox to the constant with its promises in
// sandbox_openbsd.go. Every role must occur in the traces.
var roles = map[string]string{
	"filter-scanwatch":  "promises",
	"milter-scanwatch":  "promises",
	"scanwatch serve":   "servePromises",
	"scanwatch lookup":  "servePromises",
	"scanwatch share":   "clientPromises",
	"scanwatch forward": "clientPromises",
	"scanwatch update":  "clientPromises",
}

// promised returns the string constants in sandbox_openbsd.go.
func promised(t *testing.T) map[string][]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../cmd/internal/sandbox/sandbox_openbsd.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			if lit, ok := v.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				text, _ := strconv.Unquote(lit.Value)
				all[v.Names[0].Name] = strings.Fields(text)
			}
		}
		return true
	})
	return all
}

// A process is the part of a trace that follows the start of the sandbox.
type process struct {
	role   string
	files  map[string]string // permissions of unveil(2) by path
	calls  []call
	closed map[string]bool // files to which Linux denied access
}

var listens = regexp.MustCompile(`sun_path="([^"@]+)"`)

// confined returns the process in a trace, or nil if the process had no sandbox.
func confined(trace string) *process {
	p := &process{files: make(map[string]string), closed: make(map[string]bool)}
	calls := parse(trace)
	for i, c := range calls {
		texts := c.strings()
		switch {
		case c.name == "execve" && len(texts) > 1 && p.role == "":
			p.role = filepath.Base(texts[0])
			for _, arg := range texts[2:] {
				if role := p.role + " " + arg; roles[role] != "" {
					p.role = role
					break
				}
			}
		case c.name == "faccessat" && len(texts) == 1:
			if grant, ok := strings.CutPrefix(texts[0], "audit:"); ok {
				permissions, file, _ := strings.Cut(grant, ":")
				p.files[file] = permissions
			}
		case c.name == "seccomp" && strings.Contains(c.args, "SECCOMP_SET_MODE_FILTER"):
			p.calls = calls[i+1:]
			for _, c := range p.calls {
				if texts := c.strings(); c.name == "openat" && strings.Contains(c.result, "EACCES") {
					p.closed[resolve(c.arg(0), texts[0])] = true
				}
			}
			return p
		}
	}
	return nil
}

// resolve returns the path of a file argument. A relative name is resolved against a directory,
// which strace shows in angle brackets.
func resolve(at, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	_, dir, _ := strings.Cut(at, "<")
	return filepath.Join(strings.TrimSuffix(dir, ">"), name)
}

// allows reports whether unveil(2) allows an operation. The most specific path that contains the
// file decides. If inspect is set, directories above a path may also be inspected.
func (p *process) allows(file string, need rune, inspect bool) bool {
	for dir := file; ; dir = filepath.Dir(dir) {
		if permissions, ok := p.files[dir]; ok {
			info, err := os.Stat(dir)
			if dir == file || err != nil || info.IsDir() {
				return strings.ContainsRune(permissions, need)
			}
		}
		if dir == "/" || dir == "." {
			break
		}
	}
	for granted := range p.files {
		if inspect && strings.HasPrefix(granted, strings.TrimSuffix(file, "/")+"/") {
			return true
		}
	}
	return false
}

// denied returns the file operations of a call that unveil(2) would deny. It omits operations on
// files to which Linux also denied access.
func (p *process) denied(c call) []string {
	var problems []string
	check := func(file, needs string) {
		if p.closed[file] {
			return
		}
		for _, need := range needs {
			if !p.allows(file, need, c.name == "newfstatat" || c.name == "readlinkat") {
				problems = append(problems, fmt.Sprintf("unveil %q %c", file, need))
			}
		}
	}
	texts := c.strings()
	switch {
	case c.name == "openat" && len(texts) > 0:
		check(resolve(c.arg(0), texts[0]), c.permissions())
	case c.name == "connect" || c.name == "bind":
		if m := listens.FindStringSubmatch(c.args); m != nil {
			need := "w"
			if c.name == "bind" {
				need = "wc"
			}
			check(m[1], need)
		}
	case access[c.name] != "":
		dirs := regexp.MustCompile(`(?:AT_FDCWD|\d+)<[^>]*>`).FindAllString(c.args, -1)
		for i, need := range access[c.name] {
			if need != '-' && i < len(texts) && i < len(dirs) && texts[i] != "" {
				check(resolve(dirs[i], texts[i]), string(need))
			}
		}
	}
	return problems
}

// suites lists the tests that run under strace.
var suites = []struct{ dir, run string }{
	{"sandbox", "."},
	{"process", "^(TestForward|TestReload|TestHandover|TestSignals|TestUpdate)$"},
	{"serve", "^TestServe$"},
	{"lookup", "^TestReload$"},
	{"share", "^(TestBans|TestConnections)$"},
	{"milter", "^(TestManyConnections|TestSocket)$"},
}

// TestPromises checks that the promises and paths of OpenBSD's sandbox are sufficient.
func TestPromises(t *testing.T) {
	require.Full(t)
	require.Program(t, "strace")
	traces, err := os.MkdirTemp("", "traces-")
	if err == nil { // services run as their own users
		err = os.Chmod(traces, 0o777|os.ModeSticky)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(traces) })
	for _, s := range suites {
		cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-ldflags=-w", "-run", s.run, "../"+s.dir) // like "make test"
		cmd.Env = append(os.Environ(), smtpd.EnvTrace+"="+traces)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	audit(t, traces)
}

// audit compares the calls of all processes with the promises of their roles.
func audit(t *testing.T, traces string) {
	t.Helper()
	promises := promised(t)
	files, err := filepath.Glob(filepath.Join(traces, "*"))
	if err != nil {
		t.Fatal(err)
	}
	calls, problems := make(map[string]int), make(map[string]string)
	for _, file := range files {
		trace, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p := confined(string(trace))
		if p == nil {
			continue
		}
		have := promises[roles[p.role]]
		if len(have) == 0 {
			t.Fatalf("%s: unknown role %q", file, p.role)
		}
		calls[p.role] += len(p.calls)
		for _, c := range p.calls {
			report := func(problem string) {
				problems[p.role+": "+problem] = fmt.Sprintf("%s(%s) = %s", c.name, c.args, c.result)
			}
			needs, ok := c.promises()
			if !ok {
				report("unknown call " + c.name)
			}
			for _, need := range needs {
				if !slices.ContainsFunc(strings.Fields(need), func(s string) bool { return slices.Contains(have, s) }) {
					report(c.name + " needs the promise " + need)
				}
			}
			for _, problem := range p.denied(c) {
				report(problem)
			}
		}
	}
	for _, role := range slices.Sorted(maps.Keys(roles)) {
		t.Logf("%s: %d calls", role, calls[role])
		if calls[role] == 0 {
			t.Errorf("%s: not in the traces", role)
		}
	}
	for _, problem := range slices.Sorted(maps.Keys(problems)) {
		t.Errorf("%s\n\t%s", problem, problems[problem])
	}
}
