// Package require skips tests that cannot run in the current environment.
package require

import (
	"os"
	"os/exec"
	"testing"
)

// Missing skips a test. If SCANWATCH_NO_SKIP is 1, as in CI, Missing fails the test
// instead.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf("SKIP, NOT TESTED: "+format, args...)
}

// Program returns the path of a program required by the test.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, "%s is not installed", name)
	}
	return path
}

// Full skips a long test if -short is set.
func Full(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP, NOT TESTED: -short")
	}
}
