package lookup_test

import (
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

// TestEvidenceIsKnownToRules checks that package rules knows all evidence tokens in the lists.
// Package lookup does not import package rules.
func TestEvidenceIsKnownToRules(t *testing.T) {
	l, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range l.Rows() {
		if row.Evidence != "" && rules.TokenByName(row.Evidence) == nil {
			t.Errorf("%s line %d: evidence %q is not a token", row.List, row.Line, row.Evidence)
		}
	}
}
