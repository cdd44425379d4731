package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// An owner stores rows like the filter's tables. A changed row is dirty until
// Changes has returned it. Loading entries holds the lock.
type owner struct {
	mu       sync.Mutex
	rows     map[string]string // keyed by "bucket/key"
	dirty    map[string]bool
	loads    int
	rewrites int
	largest  int    // maximum number of entries returned by Changes
	onEntry  func() // called during Load while the lock is held
}

func newOwner() *owner { return &owner{rows: map[string]string{}, dirty: map[string]bool{}} }

func (o *owner) set(name, value string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rows[name], o.dirty[name] = value, true
}

func (o *owner) remove(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.rows, name)
	o.dirty[name] = true
}

func (o *owner) load(all iter.Seq[Entry]) {
	o.mu.Lock()
	o.loads++
	for e := range all {
		if o.onEntry != nil {
			o.onEntry()
		}
		name := e.Bucket + "/" + string(e.Key)
		if _, ok := o.rows[name]; !ok {
			o.rows[name] = string(e.Value)
		}
	}
	o.mu.Unlock() // if a panic unwinds through this function, the lock remains held
}

func (o *owner) changes(n int) (list []Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name := range o.dirty {
		if len(list) == n {
			break
		}
		delete(o.dirty, name)
		bucket, key, _ := strings.Cut(name, "/")
		e := Entry{Bucket: bucket, Key: []byte(key)}
		if v, ok := o.rows[name]; ok {
			e.Value = []byte(v)
		}
		list = append(list, e)
	}
	o.largest = max(o.largest, len(list))
	return list
}

func (o *owner) rewrite() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rewrites++
	for name := range o.rows {
		o.dirty[name] = true
	}
}

func (o *owner) all() map[string]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.rows)
}

var testBuckets = []string{"bans", "peers"}

// openTestState opens a State that writes only when it is flushed.
func openTestState(t testing.TB, dir string, o *owner, set ...func(*StateOptions)) (*State, *lines) {
	t.Helper()
	l := &lines{}
	opts := StateOptions{
		Buckets: testBuckets, Program: "test", Log: slog.New(slog.NewTextHandler(l, nil)), Every: time.Hour, MaxSize: 64 << 20,
		Load: o.load, Changes: o.changes, Rewrite: o.rewrite,
		now: func() time.Time { return noon },
	}
	for _, f := range set {
		f(&opts)
	}
	s := OpenState(dir, opts)
	t.Cleanup(func() { s.Close() })
	return s, l
}

func flushState(t testing.TB, s *State) {
	t.Helper()
	if err := s.Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func liveState(s *State) func(io.Writer) error {
	return func(w io.Writer) error {
		snap, err := s.Snapshot()
		if err != nil {
			return err
		}
		defer snap.Close()
		_, err = snap.WriteTo(w)
		return err
	}
}

func readState(t testing.TB, dir string, live func(io.Writer) error) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := ReadState(dir, testBuckets, live, func(e Entry) error {
		got[e.Bucket+"/"+string(e.Key)] = string(e.Value)
		return nil
	})
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return got
}

func wantState(t testing.TB, got, want map[string]string) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	if len(got)+len(want) > 20 {
		t.Errorf("%d entries are not the %d that are wanted", len(got), len(want))
		return
	}
	t.Errorf("got  %q\nwant %q", got, want)
}

// fill adds n entries of about 40 bytes to an owner.
func (o *owner) fill(n int) {
	for i := range n {
		o.set(fmt.Sprintf("peers/%08x", uint32(i)*2654435761), fmt.Sprintf("%032d", i))
	}
}

func TestStateRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := newOwner()
	first.set("bans/192.0.2.0/24", "scanner")
	first.set("peers/empty", "")
	first.set("peers/gone", "soon")
	first.set("peers/binary", "\x00\xff")
	first.fill(5000)
	s, log := openTestState(t, dir, first)
	flushState(t, s)
	first.remove("peers/gone")
	first.remove("bans/never there")
	first.set("bans/192.0.2.0/24", "scanner again")
	flushState(t, s)
	want := first.all()
	wantState(t, readState(t, dir, liveState(s)), want)
	if first.largest > 2000 {
		t.Errorf("a batch of %d entries was asked for, want at most 2000", first.largest)
	}
	st := s.Status()
	if !st.Open || st.Error != "" || st.Path != filepath.Join(dir, "state.db") || st.Written != 5004+3 || st.Bytes < 5000*40 {
		t.Errorf("status %+v", st)
	}
	first.set("peers/last", "written by Close")
	want["peers/last"] = "written by Close"
	for range 2 { // the second call has no effect
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s.Status().Open {
		t.Error("it is open after Close")
	}
	wantState(t, readState(t, dir, nil), want)

	second := newOwner()
	s, log2 := openTestState(t, dir, second)
	flushState(t, s)
	wantState(t, second.all(), want)
	if second.loads != 1 || second.rewrites != 0 || s.Status().Loaded != uint64(len(want)) || s.Status().Written != 0 {
		t.Errorf("%d loads, %d rewrites, status %+v; want all loaded once and nothing written", second.loads, second.rewrites, s.Status())
	}
	if log.String()+log2.String() != "" {
		t.Errorf("log is not empty: %s%s", log, log2)
	}
	for path, want := range map[string]os.FileMode{"": 0o750, "state.db": 0o640} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm()&^want != 0 {
			t.Errorf("%q: %v, %v; want at most %v", path, info.Mode(), err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); left != nil {
		t.Errorf("files remain: %q", left)
	}
}

// TestStateLeavesOtherBucketsAlone checks that unknown buckets, written by a newer
// version, remain.
func TestStateLeavesOtherBucketsAlone(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	o.set("peers/a", "1")
	o.set("bans/b", "2")
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	s.Close()
	o2 := newOwner()
	s, _ = openTestState(t, dir, o2, func(o *StateOptions) { o.Buckets = []string{"bans", "new"} })
	o2.set("new/c", "3")
	flushState(t, s)
	s.Close()
	wantState(t, o2.all(), map[string]string{"bans/b": "2", "new/c": "3"})
	wantState(t, readState(t, dir, nil), map[string]string{"bans/b": "2", "peers/a": "1"})
}

func TestStateWithoutOwner(t *testing.T) {
	dir := t.TempDir()
	s := OpenState(dir, StateOptions{})
	if err := s.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Flush(t.Context()); err == nil {
		t.Error("flush after Close succeeded")
	}
	if _, err := s.Snapshot(); !errors.Is(err, ErrFinished) {
		t.Errorf("snapshot after Close: %v, want %v", err, ErrFinished)
	}
}

func TestStateFlushEndsWithItsContext(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s, _ := openTestState(t, t.TempDir(), newOwner(), func(o *StateOptions) {
		o.Changes = func(int) []Entry {
			select {
			case <-entered:
			default:
				close(entered)
			}
			<-leave
			return nil
		}
	})
	defer close(leave)
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("flush: %v", err)
	}
}

// TestStateKeepsOneBatch checks that Changes is called only after the previous batch is
// on disk. A failed batch is written before newer changes.
func TestStateKeepsOneBatch(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "missing")
	dir := filepath.Join(parent, "state")
	o := newOwner()
	o.set("peers/a", "old")
	s, log := openTestState(t, dir, o)
	for range 3 {
		if err := s.Flush(t.Context()); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("flush: %v, want %v", err, os.ErrNotExist)
		}
	}
	if st := s.Status(); st.Open || st.Error == "" || !st.Since.Equal(noon) {
		t.Errorf("status %+v", st)
	}
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	if o.loads > 1 {
		t.Errorf("%d loads", o.loads)
	}

	// A directory replaces the file, so that the write fails after Changes has returned
	// the batch.
	o.set("peers/a", "newer")
	flushState(t, s)
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path, 0o750); err != nil {
		t.Fatal(err)
	}
	o.set("peers/a", "newest")
	if err := s.Flush(t.Context()); err == nil {
		t.Fatal("flush into a directory succeeded")
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), map[string]string{"peers/a": "newest"})
	if b, e := log.count("unavailable, keeping state in memory"), log.count("available again"); b != 2 || e != 2 {
		t.Errorf("%d and %d lines, want 2 and 2: %s", b, e, log)
	}
	if s.Status().Error != "" {
		t.Errorf("status %+v", s.Status())
	}
}

func TestStateCloseTellsWhatIsNotWritten(t *testing.T) {
	o := newOwner()
	o.set("peers/a", "1")
	s, _ := openTestState(t, filepath.Join(t.TempDir(), "missing", "state"), o)
	for range 2 {
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("close: %v", err)
		}
	}
}

// damagedState creates a state.db with 3000 entries and corrupts the file. want
// contains the entries.
func damagedState(t *testing.T, break_ func([]byte) []byte) (dir string, want map[string]string) {
	t.Helper()
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damages are made for pages of 4096 bytes")
	}
	dir = t.TempDir()
	o := newOwner()
	o.fill(3000)
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path, break_(data), 0o640); err != nil {
		t.Fatal(err)
	}
	return dir, o.all()
}

func quarantined(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "state.db.damaged-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDamagedStateIsSetAside(t *testing.T) {
	for name, break_ := range damage {
		t.Run(name, func(t *testing.T) {
			dir, _ := damagedState(t, break_)
			err := ReadState(dir, testBuckets, nil, func(Entry) error { return nil })
			if !isDamaged(err) {
				t.Errorf("read: %v, want damage", err)
			}
			before, _ := os.ReadFile(filepath.Join(dir, StateFile))
			o := newOwner()
			o.set("peers/a", "1")
			s, log := openTestState(t, dir, o)
			flushState(t, s)
			if o.rewrites != 1 {
				t.Errorf("%d rewrites, want 1", o.rewrites)
			}
			if log.count("quarantined") != 1 || log.count("unavailable") != 0 {
				t.Errorf("log: %s", log)
			}
			aside := quarantined(t, dir)
			if len(aside) != 1 {
				t.Fatalf("quarantined: %q, want one", aside)
			}
			if after, _ := os.ReadFile(aside[0]); !bytes.Equal(before, after) {
				t.Error("the quarantined file has another content")
			}
			wantState(t, readState(t, dir, liveState(s)), o.all())
		})
	}
}

// TestStateWithOneMetaPage checks that bbolt uses the other meta page if one of the two
// is corrupt.
func TestStateWithOneMetaPage(t *testing.T) {
	for page := range 2 {
		t.Run(fmt.Sprint(page), func(t *testing.T) {
			dir, want := damagedState(t, func(b []byte) []byte {
				b[page*4096+40] ^= 1
				return b
			})
			o := newOwner()
			s, log := openTestState(t, dir, o)
			flushState(t, s)
			if log.String() != "" || quarantined(t, dir) != nil {
				t.Errorf("log: %s", log)
			}
			// The corrupt page may have been the last commit's page.
			got := o.all()
			if len(got) < 2000 {
				t.Errorf("%d entries", len(got))
			}
			for k, v := range got {
				if want[k] != v {
					t.Errorf("%q is %q, want %q", k, v, want[k])
				}
			}
		})
	}
}

func TestStateCutShortWhileOpen(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(*testing.T, *State) // the first access that causes the fault
	}{
		{"a commit meets it", func(*testing.T, *State) {}},
		{"a snapshot meets it", func(t *testing.T, s *State) {
			if snap, err := s.Snapshot(); !isDamaged(err) {
				t.Errorf("snapshot %v, %v", snap, err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			o := newOwner()
			o.fill(3000)
			s, log := openTestState(t, dir, o)
			flushState(t, s)
			if err := os.Truncate(s.path, 0); err != nil {
				t.Fatal(err)
			}
			c.first(t, s)
			o.set("peers/a", "1")
			for s.Flush(t.Context()) != nil && quarantined(t, dir) == nil {
			}
			flushState(t, s)
			if log.count("quarantined") != 1 || len(quarantined(t, dir)) != 1 {
				t.Errorf("quarantined %q; log: %s", quarantined(t, dir), log)
			}
			wantState(t, readState(t, dir, liveState(s)), o.all())
		})
	}
}

// rewriteSchema sets the schema of a state.db that is not open.
func rewriteSchema(t *testing.T, path string, schema []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, schema) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestNewerStateIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	s, _ := openTestState(t, dir, newOwner())
	flushState(t, s)
	s.Close()
	rewriteSchema(t, s.path, []byte{0, firstStateSchema + 1})
	before := listing(t, dir)
	o := newOwner()
	o.set("peers/a", "1")
	s, log := openTestState(t, dir, o)
	for range 2 {
		if err := s.Flush(t.Context()); !errors.Is(err, ErrNewer) {
			t.Fatalf("flush: %v, want %v", err, ErrNewer)
		}
	}
	if err := ReadState(dir, testBuckets, nil, func(Entry) error { return nil }); !errors.Is(err, ErrNewer) {
		t.Errorf("read: %v, want %v", err, ErrNewer)
	}
	if n := log.count("unavailable, keeping state in memory"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, log)
	}
	if o.loads+o.rewrites != 0 {
		t.Errorf("%d loads, %d rewrites", o.loads, o.rewrites)
	}
	if err := s.Close(); err == nil {
		t.Error("close succeeded, with nothing written")
	}
	if after := listing(t, dir); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
}

func TestStateSchemaThatIsNone(t *testing.T) {
	for name, schema := range map[string][]byte{"zero": {0, 0}, "of one byte": {1}, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := openTestState(t, dir, newOwner())
			flushState(t, s)
			s.Close()
			rewriteSchema(t, s.path, schema)
			s, log := openTestState(t, dir, newOwner())
			flushState(t, s)
			if len(quarantined(t, dir)) != 1 {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestStateSymbolicLinkIsRefused(t *testing.T) {
	for _, name := range []string{"state.db", "state.db.new"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(t.TempDir(), "target")
			if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			o := newOwner()
			o.set("peers/a", "1")
			s, _ := openTestState(t, dir, o)
			err := s.Flush(t.Context())
			if refused := err != nil && strings.Contains(err.Error(), "symbolic link"); refused != (name == "state.db") {
				t.Errorf("flush: %v", err)
			}
			if b, _ := os.ReadFile(target); string(b) != "precious" {
				t.Errorf("the target of the link was changed: %q", b)
			}
			s.Close()
			err = ReadState(dir, testBuckets, nil, func(Entry) error { return nil })
			if refused := err != nil && strings.Contains(err.Error(), "symbolic link"); refused != (name == "state.db") {
				t.Errorf("read: %v", err)
			}
		})
	}
}

func TestSecondStateWaitsForTheFirst(t *testing.T) {
	dir := t.TempDir()
	one, two := newOwner(), newOwner()
	one.set("peers/a", "1")
	first, _ := openTestState(t, dir, one)
	flushState(t, first)
	two.set("peers/b", "2")
	second, log := openTestState(t, dir, two)
	for range 3 {
		if err := second.Flush(t.Context()); !errors.Is(err, ErrInUse) {
			t.Fatalf("flush: %v, want %v", err, ErrInUse)
		}
	}
	if n := log.count("in use by another process"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, log)
	}
	if _, err := second.Snapshot(); !errors.Is(err, ErrFinished) {
		t.Errorf("snapshot: %v, want %v", err, ErrFinished)
	}
	if two.loads != 0 {
		t.Error("loaded before it was open")
	}
	one.set("peers/c", "3")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	flushState(t, second)
	if log.count("available again") != 1 {
		t.Errorf("log: %s", log)
	}
	want := map[string]string{"peers/a": "1", "peers/b": "2", "peers/c": "3"}
	wantState(t, two.all(), want)
	wantState(t, readState(t, dir, liveState(second)), want)
}

func TestStateRemovedWhileOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := newOwner()
	o.fill(100)
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	for i, name := range []string{dir, s.path} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			o.set("peers/a", "1") // without this change, nothing would be written
		}
		flushState(t, s)
		wantState(t, readState(t, dir, liveState(s)), o.all())
	}
	if log.count("state.db removed or replaced") != 2 {
		t.Errorf("log: %s", log)
	}
	if o.loads > 1 {
		t.Errorf("%d loads", o.loads)
	}
}

func TestStateDirectoryReadOnly(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() == 0 {
		needTmpfs(t, dir, "8m")
		remount(t, dir, true)
	} else if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	o := newOwner()
	o.set("peers/a", "1")
	s, log := openTestState(t, dir, o)
	for range 2 {
		if err := s.Flush(t.Context()); err == nil {
			t.Fatal("flush into a read-only directory succeeded")
		}
	}
	if n := log.count("unavailable, keeping state in memory"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, log)
	}
	if os.Getuid() == 0 {
		remount(t, dir, false)
	} else if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
}

func TestStateDiskFull(t *testing.T) {
	dir := t.TempDir()
	needTmpfs(t, dir, "1m")
	o := newOwner()
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	o.fill(20_000)
	for range 3 {
		if err := s.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("flush: %v, want %v", err, syscall.ENOSPC)
		}
	}
	if n := log.count("unavailable, keeping state in memory"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, log)
	}
	resize(t, dir, "64m")
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if log.count("available again") != 1 || quarantined(t, dir) != nil {
		t.Errorf("log: %s", log)
	}
}

// TestStateTimes checks the times of writes and retries. In a synctest bubble, time.Sleep
// needs no real time.
func TestStateTimes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, StateFile)
	opened := func(s *State) bool {
		synctest.Wait()
		return s.Status().Open
	}
	open := func(o *owner) *State {
		return OpenState(dir, StateOptions{Buckets: testBuckets, Load: o.load, Changes: o.changes, Rewrite: o.rewrite})
	}
	t.Run("written every 5 s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := newOwner()
			s := open(o)
			defer s.Close()
			if !opened(s) {
				t.Fatalf("status %+v", s.Status())
			}
			o.set("peers/a", "1")
			time.Sleep(5*time.Second - time.Nanosecond)
			synctest.Wait()
			if n := s.Status().Written; n != 0 {
				t.Errorf("%d entries written before 5 s", n)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if n := s.Status().Written; n != 1 {
				t.Errorf("%d entries written after 5 s, want 1", n)
			}
		})
	})
	t.Run("tried again when in use", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := lockShared(f); err != nil {
				t.Fatal(err)
			}
			o := newOwner()
			s := open(o)
			defer s.Close()
			time.Sleep(8 * time.Second)
			if opened(s) {
				t.Error("opened although it was locked")
			}
			f.Close()
			time.Sleep(retryInUse)
			if !opened(s) || o.loads != 1 || o.all()["peers/a"] != "1" {
				t.Errorf("not open %v after its release: %+v", retryInUse, s.Status())
			}
		})
	})
	t.Run("longest pause is 30 s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := lockShared(f); err != nil {
				t.Fatal(err)
			}
			s := open(newOwner())
			defer s.Close()
			time.Sleep(time.Hour)
			f.Close()
			time.Sleep(30 * time.Second)
			if !opened(s) {
				t.Errorf("not open after 30 s: %+v", s.Status())
			}
		})
	})
}

func TestReadState(t *testing.T) {
	dir := t.TempDir()
	ignore := func(Entry) error { return nil }
	if err := ReadState(dir, testBuckets, nil, ignore); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	o := newOwner()
	o.fill(10_000)
	o.set("bans/a", "1")
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	stop := errors.New("stop")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, c := range []struct {
		name  string
		live  func(io.Writer) error
		visit func(Entry) error
		want  error
	}{
		{"live", liveState(s), ignore, nil},
		{"live, visit fails", liveState(s), func(Entry) error { return stop }, stop},
		{"live fails", func(io.Writer) error { return stop }, ignore, stop},
		{"live fails, in use", func(io.Writer) error { return stop }, ignore, ErrInUse},
		{"live gives half", func(w io.Writer) error {
			var b bytes.Buffer
			if err := liveState(s)(&b); err != nil {
				return err
			}
			_, err := w.Write(b.Bytes()[:b.Len()/2])
			return err
		}, ignore, &damagedError{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := ReadState(dir, testBuckets, c.live, c.visit)
			if isDamaged(c.want) != isDamaged(err) || !isDamaged(c.want) && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if left := listing(t, tmp); left != "" {
		t.Errorf("files remain: %s", left)
	}
	s.Close()
	before := listing(t, dir)
	var order []string
	err := ReadState(dir, []string{"peers", "bans", "missing"}, nil, func(e Entry) error {
		if len(order) == 0 || order[len(order)-1] != e.Bucket {
			order = append(order, e.Bucket)
		}
		return nil
	})
	if err != nil || fmt.Sprint(order) != "[peers bans]" {
		t.Errorf("buckets %v, %v; want them in the order that was asked for", order, err)
	}
	if err := ReadState(dir, testBuckets, nil, func(Entry) error { return stop }); err != stop {
		t.Errorf("visit's error became %v", err)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
}

func TestStateSnapshotDoesNotHoldUpCommits(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	o.fill(1000)
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	want := o.all()
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	o.fill(20_000)
	flushState(t, s)
	copied := t.TempDir()
	f, err := os.Create(filepath.Join(copied, StateFile))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := snap.WriteTo(f); err != nil || n != snap.Segment.Size {
		t.Errorf("%d of %d bytes, %v", n, snap.Segment.Size, err)
	}
	if err := errors.Join(f.Close(), snap.Close()); err != nil {
		t.Fatal(err)
	}
	wantState(t, readState(t, copied, nil), want)
	wantState(t, readState(t, dir, liveState(s)), o.all())
}

// copyState1 copies testdata/state-1.db and sets its schema to firstStateSchema.
func copyState1(t *testing.T) (dir string) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED, NOT TESTED: bbolt's files are in the byte order of the machine, and this one's is another")
	}
	data, err := os.ReadFile(filepath.Join("testdata", "state-1.db"))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	path := filepath.Join(dir, StateFile)
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
	rewriteSchema(t, path, []byte{0, firstStateSchema})
	return dir
}

func wantState1() map[string]string {
	want := map[string]string{"bans/\x20\xc0\x00\x02\x07": "scanner"}
	for i := range 200 {
		want[fmt.Sprintf("peers/%03d", i)] = fmt.Sprintf("%032d", i)
	}
	return want
}

func TestStateOfSchema1(t *testing.T) {
	dir := copyState1(t)
	wantState(t, readState(t, dir, nil), wantState1())
	o := newOwner()
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	wantState(t, o.all(), wantState1())
	o.set("peers/a", "1")
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if log.String() != "" {
		t.Errorf("log is not empty: %s", log)
	}
}

func TestStateMigrations(t *testing.T) {
	// The first migration renames a bucket, and the second migration marks its values.
	rename := func(tx *bbolt.Tx) error {
		to, err := tx.CreateBucket([]byte("partners"))
		if err != nil {
			return err
		}
		if err := tx.Bucket([]byte("peers")).ForEach(to.Put); err != nil {
			return err
		}
		return tx.DeleteBucket([]byte("peers"))
	}
	mark := func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("partners"))
		return b.ForEach(func(k, v []byte) error { return b.Put(k, append([]byte("v3 "), v...)) })
	}
	trouble := errors.New("trouble")
	want := map[string]string{}
	for k, v := range wantState1() {
		if name, ok := strings.CutPrefix(k, "peers/"); ok {
			want["partners/"+name] = "v3 " + v
		}
	}
	with := func(m ...func(*bbolt.Tx) error) func(*StateOptions) {
		return func(o *StateOptions) { o.Buckets, o.migrations = []string{"partners"}, m }
	}

	dir := copyState1(t)
	before, err := os.ReadFile(filepath.Join(dir, StateFile))
	if err != nil {
		t.Fatal(err)
	}
	o := newOwner()
	s, _ := openTestState(t, dir, o, with(rename, func(*bbolt.Tx) error { return trouble }))
	if err := s.Flush(t.Context()); !errors.Is(err, trouble) {
		t.Errorf("flush: %v, want %v", err, trouble)
	}
	s.Close()
	if after, err := os.ReadFile(s.path); err != nil || !bytes.Equal(before, after) || quarantined(t, dir) != nil {
		t.Errorf("a migration that failed changed the file: %v", err)
	}

	for round := range 2 { // the second round has nothing to migrate
		o = newOwner()
		s, _ = openTestState(t, dir, o, with(rename, mark))
		flushState(t, s)
		wantState(t, o.all(), want)
		if err := s.view(func(tx *bbolt.Tx) error {
			if n := binary.BigEndian.Uint16(tx.Bucket(bucketMeta).Get(keySchema)); n != firstStateSchema+2 {
				t.Errorf("round %d: schema %d, want %d", round, n, firstStateSchema+2)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}

	s, _ = openTestState(t, dir, newOwner())
	if err := s.Flush(t.Context()); !errors.Is(err, ErrNewer) {
		t.Errorf("the program before: %v, want %v", err, ErrNewer)
	}
}

func (s *State) view(f func(*bbolt.Tx) error) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return s.k.open.view(f)
}

func TestStateLoadIsCalledOnce(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	if o.loads != 1 {
		t.Errorf("%d loads of a new file, want 1", o.loads)
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	if o.loads != 1 {
		t.Errorf("%d loads after the file was made again, want 1", o.loads)
	}
}

// TestStateCutShortWhileItIsLoaded checks that a fault in the mapping does not unwind
// through an owner that holds a lock.
func TestStateCutShortWhileItIsLoaded(t *testing.T) {
	dir, want := damagedState(t, func(b []byte) []byte { return b })
	o := newOwner()
	once := sync.OnceFunc(func() {
		if err := os.Truncate(filepath.Join(dir, StateFile), 0); err != nil {
			t.Error(err)
		}
	})
	o.onEntry = once
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	got := o.all()
	if len(got) == 0 || len(got) == len(want) {
		t.Errorf("%d of %d entries were loaded, want some", len(got), len(want))
	}
	if o.loads != 1 || log.count("quarantined") != 1 {
		t.Errorf("%d loads; log: %s", o.loads, log)
	}
	wantState(t, readState(t, dir, liveState(s)), got)
}

func TestStateReplacedWhileOpen(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	o2 := newOwner()
	o2.set("peers/theirs", "1")
	s2, _ := openTestState(t, other, o2)
	flushState(t, s2)
	s2.Close()

	o := newOwner()
	o.fill(100)
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	if err := os.Rename(s2.path, s.path); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	if o.loads != 1 || o.rewrites != 2 || log.count("state.db removed or replaced") != 1 {
		t.Errorf("%d loads, %d rewrites (of them one for the new file); log: %s", o.loads, o.rewrites, log)
	}
	want := o.all()
	want["peers/theirs"] = "1"
	wantState(t, readState(t, dir, liveState(s)), want)
}

// TestStateEntriesThatCannotBe checks that entries outside bbolt's limits do not
// prevent other entries from being written.
func TestStateEntriesThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	o.set("peers/", "no key")
	o.set("peers/"+strings.Repeat("k", 40_000), "a key that is too large")
	o.set("peers/a", "1")
	o.set("unheard/of", "a bucket")
	o.remove("unheard/again")
	s, log := openTestState(t, dir, o)
	flushState(t, s)
	o.set("peers/", "again")
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), map[string]string{"peers/a": "1"})
	if st := s.Status(); st.Dropped != 3 || st.Written != 3 {
		t.Errorf("status %+v; want 3 dropped, 3 written", st)
	}
	if log.count("invalid, dropped") != 1 || quarantined(t, dir) != nil {
		t.Errorf("log: %s", log)
	}
}

func TestStateFull(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	s, log := openTestState(t, dir, o, func(o *StateOptions) { o.MaxSize = 1 << 20 })
	o.fill(30_000)
	for range 3 {
		if err := s.Flush(t.Context()); !errors.Is(err, bolterrors.ErrMaxSizeReached) {
			t.Fatalf("flush: %v, want %v", err, bolterrors.ErrMaxSizeReached)
		}
	}
	if log.count("unavailable, keeping state in memory") != 1 || log.count("remove the file while the filter is running") != 1 {
		t.Errorf("log: %s", log)
	}
	if st := s.Status(); !st.Open || st.Bytes > 1<<20 {
		t.Errorf("status %+v", st)
	}
	// The remedy given in the log works after the owner has deleted entries.
	for name := range o.all() {
		if name > "peers/1" {
			o.remove(name)
		}
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if log.count("available again") != 1 {
		t.Errorf("log: %s", log)
	}
}

func TestStatesThatAreMadeAtOnce(t *testing.T) {
	for range 20 {
		dir := filepath.Join(t.TempDir(), "state")
		var all [4]*State
		var errs [4]error
		var wg sync.WaitGroup
		for i := range all {
			o := newOwner()
			o.set(fmt.Sprintf("peers/%d", i), "1")
			all[i], _ = openTestState(t, dir, o)
			wg.Go(func() { errs[i] = all[i].Flush(t.Context()) })
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				wantState(t, readState(t, dir, liveState(all[i])), map[string]string{fmt.Sprintf("peers/%d", i): "1"})
			case !errors.Is(err, ErrInUse):
				t.Errorf("%d: %v", i, err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of them have the file, want 1", won)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("the directory holds %v, %v", entries, err)
		}
	}
}

func TestDamagedStatesAreNotGathered(t *testing.T) {
	dir := t.TempDir()
	now := noon
	o := newOwner()
	o.set("peers/a", "1")
	s, log := openTestState(t, dir, o, func(o *StateOptions) { o.now = func() time.Time { return now } })
	flushState(t, s)
	for range 6 {
		now = now.Add(time.Second)
		if err := os.Truncate(s.path, 100); err != nil {
			t.Fatal(err)
		}
		o.set("peers/a", "1")
		flushState(t, s)
	}
	if n := log.count("corrupt file quarantined"); n != 6 || log.count("quarantined files removed, too many") != 3 {
		t.Errorf("%d lines, want 6: %s", n, log)
	}
	want := "[state.db.damaged-20261101T120004000Z state.db.damaged-20261101T120005000Z state.db.damaged-20261101T120006000Z]"
	var names []string
	for _, name := range quarantined(t, dir) {
		names = append(names, filepath.Base(name))
	}
	if got := fmt.Sprint(names); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	wantState(t, readState(t, dir, liveState(s)), o.all())
}

func TestNewerStateIsTriedEvery30s(t *testing.T) {
	dir := t.TempDir()
	s, _ := openTestState(t, dir, newOwner())
	flushState(t, s)
	s.Close()
	rewriteSchema(t, s.path, []byte{0, firstStateSchema + 1})
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := OpenState(dir, StateOptions{Buckets: testBuckets, Load: o.load, Changes: o.changes})
		defer s.Close()
		synctest.Wait()
		if st := s.Status(); st.Open || !strings.Contains(st.Error, "newer version") {
			t.Errorf("status %+v", st)
		}
		rewriteSchema(t, s.path, []byte{0, firstStateSchema})
		time.Sleep(30*time.Second - time.Nanosecond)
		synctest.Wait()
		if s.Status().Open {
			t.Error("tried again before 30 s")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !s.Status().Open {
			t.Errorf("not open after 30 s: %+v", s.Status())
		}
	})
}

func TestStateWriteTo(t *testing.T) {
	o := newOwner()
	o.set("peers/a", "1")
	s, _ := openTestState(t, t.TempDir(), o)
	flushState(t, s)
	var b bytes.Buffer
	if n, err := s.WriteTo(&b); err != nil || n != int64(b.Len()) || n == 0 {
		t.Errorf("%d of %d bytes, %v", n, b.Len(), err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, StateFile), b.Bytes(), 0o640); err != nil {
		t.Fatal(err)
	}
	wantState(t, readState(t, dir, nil), o.all())
	s.Close()
	if _, err := s.WriteTo(io.Discard); !errors.Is(err, ErrFinished) {
		t.Errorf("after Close: %v, want %v", err, ErrFinished)
	}
}

func TestReadStateOfAnOpenFile(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	o.set("peers/a", "1")
	s, _ := openTestState(t, dir, o)
	flushState(t, s)
	if err := ReadState(dir, testBuckets, nil, func(Entry) error { return nil }); !errors.Is(err, ErrInUse) {
		t.Errorf("without live: %v, want %v", err, ErrInUse)
	}
	// The filter exits between the two attempts to read.
	wantState(t, readState(t, dir, func(w io.Writer) error {
		s.Close()
		return liveState(s)(w)
	}), o.all())
}

// TestStateConcurrently runs an owner and readers concurrently for the race detector.
func TestStateConcurrently(t *testing.T) {
	dir := t.TempDir()
	o := newOwner()
	s, log := openTestState(t, dir, o, func(o *StateOptions) { o.Every = time.Millisecond })
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				name := fmt.Sprintf("peers/%d.%d", g, i)
				o.set(name, "1")
				if i%3 == 0 {
					o.remove(name)
				}
				s.Status()
				if i%50 == 0 {
					if err := s.Flush(t.Context()); err != nil {
						t.Error(err)
					}
					if err := liveState(s)(io.Discard); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, readState(t, dir, nil), o.all())
	if log.String() != "" {
		t.Errorf("log is not empty: %s", log)
	}
}

// benchEntries is the number of 40-byte entries in a large state.
const benchEntries = 500_000

// largeState creates a large state.db. The keys are effectively random, because most of
// the filter's keys are hashes.
func largeState(b *testing.B, dir string) (bytes int64) {
	b.Helper()
	next := 0
	s := OpenState(dir, StateOptions{Buckets: testBuckets, Every: time.Hour, Changes: func(n int) []Entry {
		n = min(n, benchEntries-next)
		list := make([]Entry, n)
		for i := range list {
			list[i] = benchEntry(next, 0)
			next++
		}
		return list
	}})
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	bytes = s.Status().Bytes
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return bytes
}

func benchEntry(i int, value byte) Entry {
	key := make([]byte, 16)
	binary.BigEndian.PutUint64(key, uint64(i)*0x9E3779B97F4A7C15)
	binary.BigEndian.PutUint64(key[8:], uint64(i))
	return Entry{Bucket: "peers", Key: key, Value: bytes.Repeat([]byte{value}, 24)}
}

func BenchmarkStateOpenAndLoad500000(b *testing.B) {
	dir := b.TempDir()
	size := largeState(b, dir)
	var opened, loaded time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start, n := time.Now(), 0
		var first time.Time
		s := OpenState(dir, StateOptions{Buckets: testBuckets, Every: time.Hour, Load: func(all iter.Seq[Entry]) {
			first = time.Now()
			for range all {
				n++
			}
			loaded += time.Since(first)
		}})
		if err := s.Close(); err != nil || n != benchEntries {
			b.Fatalf("%d entries, %v", n, err)
		}
		opened += first.Sub(start)
	}
	b.ReportMetric(float64(opened.Milliseconds())/float64(b.N), "ms/open")
	b.ReportMetric(float64(loaded.Nanoseconds())/float64(b.N)/benchEntries, "ns/entry")
	b.ReportMetric(float64(size)/(1<<20), "MiB")
}

func BenchmarkStateCommit2000(b *testing.B) {
	dir := b.TempDir()
	largeState(b, dir)
	var batch []Entry
	s := OpenState(dir, StateOptions{Buckets: testBuckets, Every: time.Hour, Changes: func(int) []Entry {
		list := batch
		batch = nil
		return list
	}})
	defer s.Close()
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		list := make([]Entry, stateBatch)
		for i := range list {
			n++
			list[i] = benchEntry(n*7919%benchEntries, byte(n))
		}
		batch = list
		if err := s.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.Status().Bytes)/(1<<20), "MiB")
}

// TestStateCompacts checks that the free pages left by deleted rows never cause the
// file to exceed its limit, and that no row is lost. The file and its copy together
// must also remain below the limit.
func TestStateCompacts(t *testing.T) {
	const limit = 8 << 20
	dir := t.TempDir()
	o := newOwner()
	var most int64
	s, log := openTestState(t, dir, o, func(so *StateOptions) {
		so.MaxSize = limit
		so.Room = func(n int64) error {
			most = max(most, n)
			return nil
		}
	})
	key := func(i int) string { return fmt.Sprintf("peers/%08x", uint32(i)*2654435761) }
	const rows = 60_000
	for round := range 3 {
		for i := range rows {
			o.set(key(round*rows+i), strings.Repeat("x", 40))
		}
		flushState(t, s)
		for i := range rows {
			if i%10 > 0 {
				o.remove(key(round*rows + i))
			}
		}
		flushState(t, s)
	}
	flushState(t, s)
	if n := strings.Count(log.String(), "state.db compacted"); n == 0 {
		t.Error("the file was never compacted")
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("logged %s", log)
	}
	if most > limit {
		t.Errorf("it asked for %d bytes, the limit is %d", most, limit)
	}
	if got := s.Status().Bytes; got > limit {
		t.Errorf("%d bytes", got)
	}
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, readState(t, dir, nil), o.all())
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); left != nil {
		t.Errorf("files remain: %v", left)
	}
}
