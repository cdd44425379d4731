//go:build !linux

package store

// runWithLowPriority does nothing on systems without a separate priority for each thread.
func runWithLowPriority() {}
