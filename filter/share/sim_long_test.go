//go:build long

package share

import "testing"

// TestManyHosts repeats TestHosts with 200 hosts.
func TestManyHosts(t *testing.T) {
	var total simCount
	for seed := range uint64(1000) {
		s := newSim(t, 1_000_000+seed, 200)
		s.run(60)
		if s.check(); t.Failed() {
			t.FailNow()
		}
		total.add(s.count)
	}
	t.Logf("%+v", total)
}
