package structure

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// readers lists the packages other than store that may use Reader.Each, with the reasons.
var readers = map[string]string{
	"store/history": "Walk calls visitors that handle aggregates",
}

// TestReaders checks that records are read with history.Walk, so that no reader omits aggregates.
// The test recognises Reader.Each by the number of arguments, because other methods named Each have
// one or two.
func TestReaders(t *testing.T) {
	sources(t, func(dir string, f *ast.File, fset *token.FileSet) {
		if dir == "store" || readers[dir] != "" {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 3 {
				return true
			}
			if fn, ok := call.Fun.(*ast.SelectorExpr); ok && fn.Sel.Name == "Each" {
				t.Errorf("%s reads records with Each; use history.Walk", strings.TrimPrefix(fset.Position(call.Pos()).String(), root+"/"))
			}
			return true
		})
	})
}
