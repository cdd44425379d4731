//go:build linux && long

package sync

import "testing"

// TestManyKills is TestKills with more rounds.
func TestManyKills(t *testing.T) {
	for target := range firewalls {
		t.Run(target, func(t *testing.T) { chaos(t, target, 100) })
	}
}
