package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/filter/share"
	"scanwatch/rules"
)

// TestFileReaders checks how scanwatch check determines who can read a file: its owner, its group
// or all users, provided that they can enter the directory.
func TestFileReaders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	file := filepath.Join(dir, "fleet.key")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const other = 54321
	group := []uint32{uint32(os.Getgid())}
	for _, c := range []struct {
		dir, file os.FileMode
		reader    reader
		want      bool
	}{
		{0o755, 0o400, reader{uid: uint32(os.Getuid())}, true},
		{0o755, 0o400, reader{uid: 0}, true},
		{0o755, 0o400, reader{uid: other, groups: group}, false},
		{0o755, 0o440, reader{uid: other, groups: group}, true},
		{0o755, 0o440, reader{uid: other}, false},
		{0o755, 0o444, reader{uid: other}, true},
		{0o750, 0o444, reader{uid: other}, false},
		{0o750, 0o440, reader{uid: other, groups: group}, true},
		{0o700, 0o440, reader{uid: other, groups: group}, false},
	} {
		if err := os.Chmod(file, c.file); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.dir); err != nil {
			t.Fatal(err)
		}
		infoDir, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.reader.may(4, info) && c.reader.may(1, infoDir); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestLongestBan checks that the policy text and package share use the same default limit.
func TestLongestBan(t *testing.T) {
	if rules.DefaultLongest != share.DefaultLimits().Duration {
		t.Error(rules.DefaultLongest, share.DefaultLimits().Duration)
	}
}

// TestUserOfService checks that the error about a service's user names the remedy.
func TestUserOfService(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the test needs root")
	}
	if err := become("nosuchuser"); err == nil || !strings.Contains(err.Error(), "create the user as in COMPANIONS") {
		t.Error(err)
	}
}
