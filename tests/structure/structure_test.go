// Package structure checks the size limits of types and functions.
package structure

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	root       = "../.."
	maxMethods = 25
	maxLines   = 80
)

// long lists the functions that may have more than maxLines lines, with the reasons. The only valid
// reason is that the function is a table, or a switch over a table.
var long = map[string]string{}

// sources calls visit for each file that is not a test and is outside tests.
func sources(t *testing.T, visit func(dir string, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		if d.IsDir() {
			if rel == "tests" || rel != "." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err == nil && !ast.IsGenerated(f) {
			visit(filepath.Dir(rel), f, fset)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// receiver returns the type name of a method's receiver, or "" for a function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	e := f.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// TestSizes checks that no type has too many methods, and that no function has too many
// lines.
func TestSizes(t *testing.T) {
	methods := map[string]int{}
	large := map[string]int{}
	sources(t, func(dir string, f *ast.File, fset *token.FileSet) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := fn.Name.Name
			if r := receiver(fn); r != "" {
				methods[dir+"."+r]++
				name = r + "." + name
			}
			if lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; lines > maxLines {
				large[dir+"."+name] = lines
			}
		}
	})
	seen := map[string]bool{}
	excess := func(name string, n int, of string, limit int) {
		seen[name] = true
		if long[name] != "" {
			return
		}
		t.Errorf("%s has %d %s; the limit is %d", name, n, of, limit)
	}
	for _, name := range slices.Sorted(maps.Keys(large)) {
		excess(name, large[name], "lines", maxLines)
	}
	for _, name := range slices.Sorted(maps.Keys(methods)) {
		if methods[name] > maxMethods {
			excess(name, methods[name], "methods", maxMethods)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(long)) {
		if !seen[name] {
			t.Errorf("remove %s from the list: it is within the limits", name)
		}
	}
}
