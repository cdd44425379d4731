//go:build !linux

package store

// runWithLowPriority does nothing on systems without thread priorities.
func runWithLowPriority() {}
