//go:build linux && long

package fault

import "testing"

// TestKillNineOften is TestKillNine with many kills.
func TestKillNineOften(t *testing.T) { killNine(t, 100) }
