//go:build linux && long

package soak

import "testing"

// TestSoakMillions is TestSoak with millions of sources. A few days of records exceed the budget.
func TestSoakMillions(t *testing.T) { soak(t, size{5_000_000, 2_000_000, 256 << 20, 2.5}) }
