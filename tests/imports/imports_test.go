// Package imports checks the import rules of docs/architecture.md.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "scanwatch/"

// A rule forbids packages from depending on other packages, directly or through other packages of
// this module. A pattern that ends in "/..." includes the named package and all packages below
// it.
type rule struct {
	from, not []string
	reason    string
}

var rules = []rule{
	{[]string{"internal/smtp"}, []string{"..."}, "the vocabulary is the leaf that all packages share"},
	{[]string{"store/..."}, []string{"filter/...", "rules/..."}, "records must be readable without the filter and without a policy"},
	{[]string{"store/column"}, []string{"..."}, "a block knows nothing of sessions"},
	{[]string{"rules/..."}, []string{"filter/..."}, "a policy is text; only filter/decide applies it"},
	{[]string{"filter/track", "filter/detect", "filter/decide", "filter/journal"}, []string{"filter/smtpd/...", "filter/milter/...", "filter/follow/..."}, "facts, findings, decisions and records do not depend on the mail server"},
	{[]string{"filter/maillog"}, []string{"store/...", "rules/...", "filter/memory"}, "a parser of logs needs neither state nor policy"},
	{[]string{"filter/memory"}, []string{"store/..."}, "the tables in memory do not depend on the disk"},
	{[]string{"cmd/internal/dnsbl"}, []string{"cmd/internal/statedir", "store/history"}, "the name server reads no records"},
	{[]string{"cmd/internal/fetch"}, []string{"cmd/internal/control", "cmd/internal/statedir", "store/..."}, "downloads need neither the filter nor its records"},
	{[]string{"filter/..."}, []string{"store/report/..."}, "the filter writes no reports"},
	{[]string{"cmd/internal/follow", "cmd/internal/firewall", "cmd/internal/forward"}, []string{"cmd/internal/statedir", "cmd/internal/exportlist"}, "companions know the running filter only, and may not read its files"},
}

// future lists packages that are named in rules but do not exist yet.
var future = []string{"filter/follow/..."}

// pendingPackages lists packages in rules that are still being written. If strict is set, a package
// that does not exist is a failure.
var pendingPackages = []string{}

// pending lists dependencies that break a rule and will be removed. If strict is set, an entry that
// breaks no rule is a failure.
var pending = []string{
	"store/export -> rules/...", // through store/report
	"store/report -> rules/...",
}

// If strict is set, the lists of pending packages and dependencies must be empty.
const strict = false

// The filter must not import these packages, because it must neither fetch data nor start
// programs.
var (
	filterPrograms = []string{"cmd/filter-scanwatch", "cmd/milter-scanwatch"}
	notInTheFilter = []string{"net/http", "os/exec"}
	// The list of public suffixes imports net/http/cookiejar only to implement an interface.
	exempt = []string{"golang.org/x/net/publicsuffix"}
)

type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// list returns the packages that match patterns, with their dependencies on the given system.
func list(t *testing.T, goos string, patterns ...string) map[string]*pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Imports,Standard"}, patterns...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := map[string]*pkg{}
	for d := json.NewDecoder(out); ; {
		p := new(pkg)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

// matches reports whether a package of this module matches a pattern.
func matches(pattern, path string) bool {
	name, ours := strings.CutPrefix(path, module)
	if !ours {
		return false
	}
	if pattern == "..." {
		return true
	}
	below, ok := strings.CutSuffix(pattern, "/...")
	if !ok {
		return name == pattern
	}
	return name == below || strings.HasPrefix(name, below+"/")
}

// path returns the shortest chain of imports from a package to any package for which found returns
// true, or nil. through reports whether a package may be part of the chain.
func path(all map[string]*pkg, from string, found, through func(string) bool) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if all[queue[0]] == nil {
			continue
		}
		for _, next := range all[queue[0]].Imports {
			if _, seen := before[next]; seen {
				continue
			}
			before[next] = queue[0]
			if found(next) {
				chain := []string{next}
				for p := queue[0]; p != ""; p = before[p] {
					chain = append(chain, p)
				}
				slices.Reverse(chain)
				return chain
			}
			if through(next) {
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// TestImports checks that no package breaks a rule on any system.
func TestImports(t *testing.T) {
	broken := map[string]bool{}
	for _, goos := range []string{"linux", "openbsd"} {
		all := list(t, goos, "./...")
		ours := func(path string) bool { return strings.HasPrefix(path, module) }
		for _, r := range rules {
			for _, from := range slices.Sorted(maps.Keys(all)) {
				if !slices.ContainsFunc(r.from, func(p string) bool { return matches(p, from) }) {
					continue
				}
				for _, not := range r.not {
					if matches(not, from) {
						continue
					}
					chain := path(all, from, func(p string) bool { return matches(not, p) }, ours)
					if chain == nil {
						continue
					}
					name := strings.TrimPrefix(from, module) + " -> " + not
					broken[name] = true
					if !slices.Contains(pending, name) {
						t.Errorf("%s: %s imports %s; %s", goos, name, strings.Join(chain, " -> "), r.reason)
					}
				}
			}
		}
		if goos == "linux" {
			checkPatterns(t, all)
		}
	}
	for _, name := range pending {
		switch {
		case !broken[name] && strict:
			t.Errorf("remove %q from the pending dependencies: it no longer exists", name)
		case !broken[name]:
			t.Logf("remove %q from the pending dependencies: it no longer exists", name)
		case strict:
			t.Errorf("pending: %s", name)
		}
	}
}

// checkPatterns checks that each pattern in the rules matches a package.
func checkPatterns(t *testing.T, all map[string]*pkg) {
	t.Helper()
	for _, r := range rules {
		for _, pattern := range slices.Concat(r.from, r.not) {
			exists := false
			for p := range all {
				exists = exists || matches(pattern, p)
			}
			switch {
			case exists && slices.Contains(pendingPackages, pattern):
				t.Logf("remove %s from the pending packages: it exists", pattern)
				if strict {
					t.Fail()
				}
			case exists, slices.Contains(future, pattern):
			case slices.Contains(pendingPackages, pattern) && !strict:
				t.Logf("%s does not exist yet", pattern)
			default:
				t.Errorf("no package matches %s, which a rule names", pattern)
			}
		}
	}
}

// TestFilterProgram checks that no package in the filter imports a forbidden package. Library
// packages are also checked.
func TestFilterProgram(t *testing.T) {
	for _, goos := range []string{"linux", "openbsd", "freebsd", "netbsd"} {
		all := list(t, goos, "./"+filterPrograms[0], "./"+filterPrograms[1])
		for _, program := range filterPrograms {
			for _, not := range notInTheFilter {
				chain := path(all, module+program, func(p string) bool { return p == not }, func(p string) bool { return !slices.Contains(exempt, p) })
				if chain != nil {
					t.Errorf("%s: %s contains %s: %s", goos, program, not, strings.Join(chain, " -> "))
				}
			}
		}
	}
}
