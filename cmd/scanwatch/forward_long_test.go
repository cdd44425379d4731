//go:build long

package main

import "testing"

// TestForwardManyKills is TestForwardKills with more rounds.
func TestForwardManyKills(t *testing.T) { forwardKills(t, 100) }
