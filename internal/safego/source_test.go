package safego_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// source is a source file of the filter.
type source struct {
	*ast.File
	name     string
	fset     *token.FileSet
	comments map[int]string // comments by line
}

func (s *source) at(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// sources returns the parsed files of this module that are linked into the filter.
func sources(t *testing.T) (all []source) {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "-f", `{{if not .Standard}}{{range .GoFiles}}{{$.ImportPath}} {{$.Dir}}/{{.}}{{"\n"}}{{end}}{{end}}`, "scanwatch/cmd/filter-scanwatch")
	out, err := list.Output()
	if err != nil {
		t.Fatalf("list the packages of the filter: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		path, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(path, "scanwatch/") {
			continue
		}
		s := source{name: filepath.Join(strings.TrimPrefix(path, "scanwatch/"), filepath.Base(name)), fset: token.NewFileSet(), comments: map[int]string{}}
		if s.File, err = parser.ParseFile(s.fset, name, nil, parser.ParseComments); err != nil {
			t.Fatal(err)
		}
		for _, g := range s.Comments {
			for _, c := range g.List {
				s.comments[s.at(c)] = c.Text
			}
		}
		all = append(all, s)
	}
	if len(all) < 50 {
		t.Fatalf("only %d files", len(all))
	}
	return all
}

// selector returns the two names in a call such as time.AfterFunc(...).
func selector(n ast.Node) (x, name string) {
	if call, ok := n.(*ast.CallExpr); ok {
		if s, ok := call.Fun.(*ast.SelectorExpr); ok {
			if id, ok := s.X.(*ast.Ident); ok {
				x = id.Name
			}
			return x, s.Sel.Name
		}
	}
	return "", ""
}

// TestGoroutines checks that the filter starts goroutines only through this package,
// because a panic in any other goroutine would shut down the mail server. An exception
// needs a comment "// safe: REASON" that explains why the goroutine cannot panic.
func TestGoroutines(t *testing.T) {
	started, others := 0, 0
	for _, s := range sources(t) {
		if s.name == "internal/safego/safego.go" {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			x, name := selector(n)
			_, isGo := n.(*ast.GoStmt)
			switch {
			case x == "safego" && (name == "Go" || name == "Loop"):
				started++
			case isGo, name == "AfterFunc", name == "Go":
				if reason, ok := strings.CutPrefix(s.comments[s.at(n)], "// safe: "); ok && len(reason) > 5 {
					others++
				} else {
					t.Errorf("%s:%d: goroutine without recovery; use safego.Go or safego.Loop", s.name, s.at(n))
				}
			}
			return true
		})
	}
	if started < 10 || others > 5 {
		t.Errorf("%d goroutines are started by this package, %d others", started, others)
	}
}

// TestLocks checks that a panic cannot leave a lock held: either the lock is released
// by defer, or no function is called while it is held. If a lock were never
// released, the goroutine that answers requests would wait for it forever.
func TestLocks(t *testing.T) {
	locks := 0
	for _, s := range sources(t) {
		ast.Inspect(s.File, func(n ast.Node) bool {
			var list []ast.Stmt
			switch b := n.(type) {
			case *ast.BlockStmt:
				list = b.List
			case *ast.CaseClause:
				list = b.Body
			case *ast.CommClause:
				list = b.Body
			}
			for i, stmt := range list {
				if e, ok := stmt.(*ast.ExprStmt); !ok || !isLock(e.X, "Lock", "RLock") {
					continue
				}
				locks++
				if why := held(list[i+1:]); why != "" {
					t.Errorf("%s:%d: a lock is held while %s: unlock by defer", s.name, s.at(stmt), why)
				}
			}
			return true
		})
	}
	if locks < 30 {
		t.Errorf("only %d locks", locks)
	}
}

func isLock(n ast.Node, names ...string) bool {
	_, got := selector(n)
	for _, name := range names {
		if got == name {
			return true
		}
	}
	return false
}

// held returns the reason why a panic could leave the lock held, or "".
func held(stmts []ast.Stmt) (why string) {
	if len(stmts) > 0 {
		if d, ok := stmts[0].(*ast.DeferStmt); ok && isLock(d.Call, "Unlock", "RUnlock") {
			return ""
		}
	}
	for _, stmt := range stmts {
		if e, ok := stmt.(*ast.ExprStmt); ok && isLock(e.X, "Unlock", "RUnlock") {
			return why
		}
		ast.Inspect(stmt, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if id, ok := call.Fun.(*ast.Ident); !ok || !harmless[id.Name] {
				why = "a function is called"
			}
			return true
		})
	}
	return "the function ends"
}

// harmless lists the built-in functions and conversions that may be called while a lock
// is held.
var harmless = map[string]bool{"len": true, "cap": true, "append": true, "min": true, "max": true, "delete": true, "clear": true, "uint64": true, "int": true, "close": true}
