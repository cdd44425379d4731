package contain_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// source is a file that is part of the filter.
type source struct {
	*ast.File
	name     string
	fset     *token.FileSet
	comments map[int]string // by line
}

func (s *source) at(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// sources parses every file of this module that is linked into the filter.
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

// selector splits a call like time.AfterFunc(...).
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

// TestGoroutines: nothing but this package begins a goroutine in the filter,
// because a panic in one ends the mail server. What does it nevertheless says why
// it cannot panic: "// contained: REASON" in its line.
func TestGoroutines(t *testing.T) {
	begun, excused := 0, 0
	for _, s := range sources(t) {
		if s.name == "internal/contain/contain.go" {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			x, name := selector(n)
			_, isGo := n.(*ast.GoStmt)
			switch {
			case x == "contain" && (name == "Go" || name == "Loop"):
				begun++
			case isGo, name == "AfterFunc", name == "Go":
				if reason, ok := strings.CutPrefix(s.comments[s.at(n)], "// contained: "); ok && len(reason) > 5 {
					excused++
				} else {
					t.Errorf("%s:%d: a goroutine that no one contains: use contain.Go or contain.Loop", s.name, s.at(n))
				}
			}
			return true
		})
	}
	if begun < 10 || excused > 5 {
		t.Errorf("%d goroutines are begun by this package, %d are excused", begun, excused)
	}
}

// TestLocks: a lock is let go of by defer, or nothing is called before it is. A
// panic that is contained must not leave a lock behind which the goroutine that
// answers waits for.
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

// held tells what is called between a lock and its end; empty is fine.
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
				why = "something is called"
			}
			return true
		})
	}
	return "the function ends"
}

// harmless are the functions of the language and conversions that may be called
// under a lock.
var harmless = map[string]bool{"len": true, "cap": true, "append": true, "min": true, "max": true, "delete": true, "clear": true, "uint64": true, "int": true, "close": true}
