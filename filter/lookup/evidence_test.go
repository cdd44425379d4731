package lookup_test

import (
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

// The lists contain the tokens of package rules; lookup does not import that package.
func TestEvidenceIsKnownToRules(t *testing.T) {
	l, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range l.Rows() {
		if row.Evidence != "" && rules.TokenByName(row.Evidence) == nil {
			t.Errorf("%s line %d: evidence %q is no token", row.List, row.Line, row.Evidence)
		}
	}
}
