package lookup_test

import (
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

// The lists speak the tokens of package rules, without importing it.
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
