package report

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestColumns checks that CSV has a column for each counter, and for each JSON member
// that is neither a list nor an object.
func TestColumns(t *testing.T) {
	var names []string
	for i := range columns {
		names = append(names, columns[i].name)
	}
	for _, from := range []reflect.Type{reflect.TypeFor[View](), reflect.TypeFor[Counts]()} {
		for i := range from.NumField() {
			f := from.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || f.Type.Kind() == reflect.Slice || f.Type == reflect.TypeFor[Counts]() {
				continue
			}
			if !slices.Contains(names, name) {
				t.Errorf("no column %s", name)
			}
		}
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			t.Errorf("two columns %s", name)
		}
	}
}
