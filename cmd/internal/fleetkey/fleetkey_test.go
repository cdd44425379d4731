package fleetkey

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "fleet.key")
	created, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(name); !errors.Is(err, os.ErrExist) {
		t.Fatalf("an existing key was replaced: %v", err)
	}
	read, err := Read(name)
	if err != nil || read != created {
		t.Fatal(read.Fingerprint(), created.Fingerprint(), err)
	}
	if strings.Contains(created.Text(), strings.ReplaceAll(created.Fingerprint(), "-", "")) {
		t.Fatal("the fingerprint is part of the key")
	}
	for _, c := range []struct {
		mode os.FileMode
		text string
		want string
	}{
		{0o604, created.Text(), "all users can access"},
		{0o660, created.Text(), "can change it"},
		{0o640, created.Text(), ""},
		{0o600, created.Text()[1:], "has no key"},
		{0o600, "", "has no key"},
		{0o600, strings.Repeat("0", 2000), "has more than 1024 bytes"},
	} {
		if err := os.WriteFile(name, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(name); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), name)) {
			t.Errorf("mode %o, %d bytes: %v, want %q", c.mode, len(c.text), err, c.want)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(fifo); err == nil {
		t.Error("a FIFO was read")
	}
}

// TestPurposes checks that a code is valid only for its purpose and its message.
func TestPurposes(t *testing.T) {
	k := New()
	seen := map[[32]byte]string{}
	for what, sum := range map[string][32]byte{
		"batch": k.Sum(PurposeBatch, []byte("ab"), []byte("c")), "boundary": k.Sum(PurposeBatch, []byte("a"), []byte("bc")),
		"facts": k.Sum(PurposeFacts, []byte("ab"), []byte("c")), "other key": New().Sum(PurposeBatch, []byte("ab"), []byte("c")),
	} {
		if other, ok := seen[sum]; ok {
			t.Errorf("%s and %s have the same code", what, other)
		}
		seen[sum] = what
	}
}
