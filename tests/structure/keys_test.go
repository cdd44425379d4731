package structure

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// TestTimeKeys checks that no map has times as keys. Equal times with different locations would be
// different keys.
func TestTimeKeys(t *testing.T) {
	sources(t, func(_ string, f *ast.File, fset *token.FileSet) {
		ast.Inspect(f, func(n ast.Node) bool {
			m, ok := n.(*ast.MapType)
			if !ok {
				return true
			}
			if key, ok := m.Key.(*ast.SelectorExpr); ok && key.Sel.Name == "Time" {
				t.Errorf("%s has times as keys; use the number of the day", strings.TrimPrefix(fset.Position(m.Pos()).String(), root+"/"))
			}
			return true
		})
	})
}
