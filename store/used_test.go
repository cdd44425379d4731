package store

import (
	"os"
	"path/filepath"
	"testing"
)

// TestUsed checks which files show that a filter has used a state directory.
func TestUsed(t *testing.T) {
	for _, c := range []struct {
		file string
		want bool
	}{
		{"", false},
		{"key", false},
		{"state.db.new", false}, // only a crash leaves it
		{"sessions/clock", false},
		{"state.db", true},
		{"state.db.damaged-20261102T101500000Z", true},
		{"sessions/2026-11-02.db", true},
		{"sessions/2026-11-02.sealed.db", true},
		{"sessions/2026-11-02.db.damaged-20261102T101500000Z.salvaged", true},
	} {
		dir := t.TempDir()
		if c.file != "" {
			name := filepath.Join(dir, c.file)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := Used(dir); got != c.want {
			t.Errorf("%q: %v", c.file, got)
		}
	}
	if Used(filepath.Join(t.TempDir(), "missing")) {
		t.Error("a missing directory is used")
	}
}
