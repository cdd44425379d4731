//go:build !linux

package store

// runWithLowPriority does nothing, because threads have no separate priority here.
func runWithLowPriority() {}
