package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		dir, file string
		want      bool
	}{
		{"/etc/scanwatch", "/etc/scanwatch/scanwatch.conf", true},
		{"/etc/scanwatch", "/etc/scanwatch/lists/a", true},
		{"/etc/scanwatch", "/etc/scanwatch", true},
		{"/etc/scanwatch/", "/etc/./scanwatch//a", true},
		{"/etc/scanwatch", "/etc/scanwatch.conf", false},
		{"/etc/scanwatch", "/etc/scanwatch/../passwd", false},
		{"/etc/scanwatch", "/etc", false},
		{"/etc/scanwatch", "/etc/scanwatch/..conf", true},
	} {
		if got := within(c.dir, c.file); got != c.want {
			t.Errorf("%s within %s: %v, want %v", c.file, c.dir, got, c.want)
		}
	}
}

// TestState checks that Prepare creates the state directory or, if that is impossible,
// grants the parent directory. The root directory must never be granted.
func TestState(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[string]string{
		filepath.Join(dir, "new"):         filepath.Join(dir, "new"),
		file:                              dir,
		filepath.Join(dir, "a/scanwatch"): filepath.Join(dir, "a"), // the directory is missing, so access to it cannot be granted
	} {
		if got := (Paths{State: state}).state(); got != want {
			t.Errorf("%s: %s, want %s", state, got, want)
		}
	}
	if !isDir(filepath.Join(dir, "new")) {
		t.Error("the state directory was not created")
	}
}

// TestNoReport checks that Covers returns true for any file if there is no sandbox.
func TestNoReport(t *testing.T) {
	var none *Report
	if !none.Covers("/etc/passwd") || !new(Report).Covers("/etc/passwd") {
		t.Error("not covered")
	}
}
