//go:build linux && long

package sync

import "testing"

// TestManyKills is TestKills with more rounds.
func TestManyKills(t *testing.T) { chaos(t, 100) }
