package session

import (
	"testing"
	"time"

	"scanwatch/store"
)

// TestSumOfOrganisations: one source may look like several organisations; a sum counts
// each for itself.
func TestSumOfOrganisations(t *testing.T) {
	var p sampler
	var m sum
	for i, org := range []string{"Example One", "Example Two", "Example One"} {
		r := store.Record{ID: uint64(i + 1), Start: time.Unix(1795219327, 0), End: time.Unix(1795219328, 0)}
		steps := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Result: store.ResultOK, Text: []byte("scanner"), Org: []byte(org)}, 0)
		m.add(&p, store.AppendRecord(nil, &r, steps), &r, true)
	}
	if len(m.steps) != 2 || string(m.steps[0].Org) != "Example One" || m.steps[0].Times != 2 || string(m.steps[1].Org) != "Example Two" || m.steps[1].Times != 1 {
		t.Errorf("got %+v", m.steps)
	}
}
