package store

import (
	"os"
	"syscall"
	"testing"
)

// needTmpfs mounts a tmpfs of the given size on dir for the test. Without root
// privileges, it skips the test, or fails it if skips are not permitted.
func needTmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Skipf("SKIPPED, NOT TESTED: a tmpfs cannot be mounted (%v); run as root", err)
	}
	// Unmount after the Writer is closed.
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func remount(t *testing.T, dir string, readOnly bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount("", dir, "", flags, ""); err != nil {
		t.Fatal(err)
	}
}

func resize(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
}
