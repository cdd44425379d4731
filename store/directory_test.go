package store

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestRepairAgainstSwaps checks that a repair does not change files outside the state
// directory, even if the directory's owner replaces files and the sessions directory
// with links during the repair.
func TestRepairAgainstSwaps(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	if err := os.Mkdir(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	names := []string{"2026-11-01.db", "2026-11-01.db.new", "2026-11-01.2.db.new", "2026-11-01.db.damaged-20261101T110000000Z", StateFile, StateFile + newSuffix}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(victim, name), []byte("precious "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := owned(t, victim)
	from, _ := filled(t, 50)
	good, err := os.ReadFile(filepath.Join(from, sessionsDir, "2026-11-01.db"))
	if err != nil {
		t.Fatal(err)
	}
	good[3*os.Getpagesize()] ^= 1
	dir := filepath.Join(base, "state")
	sessions, moved := filepath.Join(dir, sessionsDir), filepath.Join(dir, "moved")
	var swaps sync.Mutex // held during each swap
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; !stop.Load(); n++ {
			swaps.Lock()
			// Each call may fail, because the repair renames and removes the same files.
			if os.Rename(sessions, moved) == nil {
				_ = os.Symlink(victim, sessions)
				runtime.Gosched()
				_ = os.Remove(sessions)
				_ = os.Rename(moved, sessions)
			}
			for _, path := range []string{filepath.Join(sessions, names[n%4]), filepath.Join(dir, names[4+n%2])} {
				if os.Rename(path, path+".away") == nil {
					_ = os.Symlink(filepath.Join(victim, filepath.Base(path)), path)
					runtime.Gosched()
					_ = os.Remove(path)
					_ = os.Rename(path+".away", path)
				}
			}
			swaps.Unlock()
		}
	}()
	i := Inspector{Dir: dir, Decode: true, Tables: []string{"bans"}, Row: func(Entry) error { return os.ErrInvalid }}
	for range rounds {
		swaps.Lock()
		_ = os.MkdirAll(sessions, 0o750)
		for _, name := range names[:4] {
			_ = os.WriteFile(filepath.Join(dir, "put"), good, 0o640)
			_ = os.Rename(filepath.Join(dir, "put"), filepath.Join(sessions, name))
		}
		_ = os.WriteFile(filepath.Join(dir, StateFile), good, 0o640)
		_ = os.WriteFile(filepath.Join(dir, StateFile+newSuffix), good, 0o640)
		swaps.Unlock()
		_ = i.Repair("test", noon, func(*File) error { return nil })
	}
	stop.Store(true)
	<-done
	if after := owned(t, victim); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// owned returns the owners, modes and contents of the files in a directory.
func owned(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range all {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		b.WriteString(strings.Join([]string{e.Name(), info.Mode().String(), fmt.Sprint(owner.Uid), fmt.Sprintf("%.40q", content)}, " ") + "\n")
	}
	return b.String()
}
