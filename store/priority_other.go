//go:build !linux

package store

// runWithLowPriority does nothing: a single thread has no priority of its own.
func runWithLowPriority() {}
