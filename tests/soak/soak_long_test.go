//go:build linux && long

package soak

import "testing"

// TestSoakMillions checks the same with millions of sources: a few days exceed the
// budget.
func TestSoakMillions(t *testing.T) { soak(t, size{5_000_000, 2_000_000, 256 << 20, 2.5}) }
