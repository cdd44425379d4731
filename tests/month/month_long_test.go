//go:build long

package month_test

import (
	"fmt"
	"testing"
)

// TestMonths checks the policies' promises over several months.
func TestMonths(t *testing.T) {
	for seed := uint64(2); seed <= 5; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tables, failures := play(t, seed)
			judge(t, tables, failures)
		})
	}
}
