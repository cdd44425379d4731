//go:build !linux

package store

import "testing"

func needTmpfs(t *testing.T, _, _ string) {
	t.Skip("SKIPPED, NOT TESTED: the test mounts a tmpfs as Linux does")
}
func remount(*testing.T, string, bool)  {}
func resize(*testing.T, string, string) {}
