//go:build linux

// Package attacker plays a user who attacks root while root works in the user's directory. While a
// program runs, the user repeatedly replaces files and directories with links to root's files.
package attacker

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"scanwatch/tests/internal/require"
)

// UID is the ID of the user, who has no account.
const UID = 54321

// A Stage is a pair of directories, one owned by the user and one by root.
type Stage struct {
	T      *testing.T
	Dir    string // the user's directory
	Victim string // root's directory
	before string
}

// New creates a stage. Victim contains a file for each name.
func New(t *testing.T, names ...string) *Stage {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "root is needed to attack root")
	}
	base, err := os.MkdirTemp("", "attack")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	s := &Stage{T: t, Dir: filepath.Join(base, "theirs"), Victim: filepath.Join(base, "victim")}
	// The user may read Victim, but not change it.
	s.Check(os.Chmod(base, 0o755), os.Mkdir(s.Dir, 0o750), os.Chown(s.Dir, UID, UID), os.Mkdir(s.Victim, 0o755))
	for _, name := range names {
		s.Check(os.WriteFile(filepath.Join(s.Victim, name), []byte("precious "+name), 0o600))
	}
	s.before = s.look()
	return s
}

// Check fails the test if any error is not nil.
func (s *Stage) Check(errs ...error) {
	s.T.Helper()
	for _, err := range errs {
		if err != nil {
			s.T.Fatal(err)
		}
	}
}

// Give changes the owner of everything in Dir to the user.
func (s *Stage) Give() {
	s.T.Helper()
	s.Check(filepath.WalkDir(s.Dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, UID, UID)
	}))
}

// look describes all of root's files.
func (s *Stage) look() string {
	s.T.Helper()
	var b strings.Builder
	s.Check(filepath.WalkDir(s.Victim, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d inode %d links %d", name, info.Mode(), owner.Uid, owner.Gid, owner.Ino, owner.Nlink)
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %.60q", text)
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

// During calls f repeatedly. At the same time, the user keeps replacing each name in Dir with a
// link to the corresponding target, and back. The calls end when names have been replaced during
// enough calls. None of root's files may change.
func (s *Stage) During(rounds int, names, targets []string, f func()) {
	s.T.Helper()
	var stop atomic.Bool
	var swaps atomic.Int64
	done := make(chan error)
	go func() {
		// Only the current thread has the user's rights. The thread ends with the goroutine.
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, UID, UID, UID},
			{unix.SYS_SETRESUID, UID, UID, UID},
		} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		for !stop.Load() {
			for i, name := range names {
				path := filepath.Join(s.Dir, name)
				decoy := filepath.Join(filepath.Dir(path), ".decoy-"+filepath.Base(name))
				// Creating or replacing the link may fail, because the program renames and removes
				// files at the same time.
				_ = os.Symlink(targets[i], decoy)
				if unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, decoy, unix.RENAME_EXCHANGE) != nil &&
					os.Symlink(targets[i], path) != nil {
					continue
				}
				swaps.Add(1)
				if i == len(names)-1 {
					runtime.Gosched()
				}
			}
		}
		done <- nil
	}()
	for n := 0; n < rounds; {
		before := swaps.Load()
		f()
		if swaps.Load() > before {
			n++
		}
		select {
		case err := <-done:
			s.T.Fatalf("the attacker gave up: %v", err)
		default:
		}
	}
	stop.Store(true)
	s.Check(<-done)
	s.Unchanged()
}

// Unchanged fails the test if any of root's files has changed.
func (s *Stage) Unchanged() {
	s.T.Helper()
	if after := s.look(); after != s.before {
		s.T.Errorf("before:\n%s\nafter:\n%s", s.before, after)
	}
}

// Left returns the name of a file in the user's directory that belongs to root, or "". Temporary
// files are ignored.
func (s *Stage) Left() (name string) {
	s.T.Helper()
	s.Check(filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid == 0 {
			name = path
		}
		return err
	}))
	return name
}
