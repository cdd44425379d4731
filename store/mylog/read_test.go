package mylog

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// FuzzRead: whatever lies in the directory of the old filter, under whatever name, is
// a session or is skipped with a reason, and counted once.
func FuzzRead(f *testing.F) {
	names, err := filepath.Glob("testdata/history/*")
	if err != nil || len(names) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range names[:min(len(names), 12)] {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(filepath.Base(name), text, text)
	}
	f.Add("x", []byte("$VAR1 = {};"), []byte{})
	f.Fuzz(func(t *testing.T, name string, one, two []byte) {
		if name == "" || len(name) > 200 || filepath.Base(name) != name {
			return
		}
		dir := fstest.MapFS{name: {Data: one}, name + "-2": {Data: two}}
		visited := 0
		report, err := Read(dir, func(s *Session) error {
			visited++
			return Lines(io.Discard, s)
		}, func(done, total int) {})
		if err != nil {
			return // no such directory, or not one of the old filter
		}
		if visited != report.Sessions || report.Files+report.Others != 2 || visited+report.Skipped > report.Files || len(report.Skips) != report.Skipped {
			t.Errorf("visited %d, %+v", visited, report)
		}
	})
}
