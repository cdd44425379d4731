package main

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
)

// withCompanions returns a program with a configuration and its companions.
func withCompanions(t *testing.T, text string) *program {
	t.Helper()
	name := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(name, lists, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return &program{memory: memory.New(), policies: policies{active: c}, set: c.Policy.Settings, log: slog.New(slog.DiscardHandler)}
}

// TestUnsafeRunDir checks that a directory in which other users can create the socket is
// not used, and that the status names the companions that cannot connect.
func TestUnsafeRunDir(t *testing.T) {
	parent := t.TempDir()
	for name, c := range map[string]struct {
		mode fs.FileMode
		uid  int
		want string
	}{
		"good":   {0o755, os.Geteuid(), ""},
		"group":  {0o775, os.Geteuid(), "other users can write"},
		"sticky": {0o777 | fs.ModeSticky, os.Geteuid(), "other users can write"},
		"owner":  {0o755, 4001, "belongs to another user"},
		"absent": {0, 0, "no such file"},
	} {
		dir := filepath.Join(parent, name)
		if c.mode != 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, c.mode); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Chown(dir, c.uid, -1); err != nil {
					t.Fatal(err)
				}
			} else if c.uid != os.Geteuid() {
				continue // only root can change the owner
			}
		} else {
			dir = filepath.Join(dir, "below")
		}
		p := withCompanions(t, "rundir \""+dir+"\"\ncompanion sync user 4001 to ipset \"scanwatch\"\n")
		p.prepareCompanions()
		list := p.companions.Status()
		if len(list) != 1 || c.want == "" && list[0].Problem != "" || !strings.Contains(list[0].Problem, c.want) {
			t.Errorf("%s: %+v", name, list)
		}
		if (p.runDir != "") != (c.want == "") {
			t.Errorf("%s: the directory %q is used", name, p.runDir)
		}
	}
}
