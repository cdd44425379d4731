package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/internal/safego"
)

const (
	retryFirst = time.Second
	retryLast  = 30 * time.Second
	retryInUse = 100 * time.Millisecond // the previous filter may still be stopping
	inUseFor   = 30 * time.Second       // maximum time for the previous filter to stop
	closeWait  = 200 * time.Millisecond
)

// A keeper keeps one bbolt file open for a background goroutine. The file is a
// Writer's current segment or a State's file. A keeper locks the directory,
// logs each failure once, takes snapshots, and quarantines corrupt files.
type keeper struct {
	keeperOptions

	flushes chan chan error
	stop    chan struct{} // closed by close
	done    chan struct{} // closed when the goroutine has ended
	closing sync.Once

	mu      sync.Mutex // guards the next three fields, which only the goroutine changes
	open    *segment
	problem string    // the current error; empty without one
	since   time.Time // when problem started

	// Only the background goroutine accesses the following fields.
	directory *directory    // nil until it is locked
	lock      *os.File      // the lock of the directory
	cause     string        // the cause that was logged last; empty without a problem
	retry     time.Duration // the pause after the next failure
	started   time.Time
}

type keeperOptions struct {
	name  string // name of the file or directory in log lines
	data  string // name of its content in log lines
	state string // the state directory
	below string // the directory in it to create and lock; empty for the state directory itself
	log   *slog.Logger
	now   func() time.Time
	hint  func(error) string // returns the remedy for an error
}

func newKeeper(o keeperOptions) keeper {
	return keeper{keeperOptions: o, flushes: make(chan chan error), stop: make(chan struct{}), done: make(chan struct{}),
		retry: retryFirst, started: time.Now()}
}

func (k *keeper) start(run func()) {
	safego.Loop(k.log, "the writer of "+k.name, run, func() { close(k.done) })
}

// flush requests a write from the goroutine and returns any write error.
func (k *keeper) flush(ctx context.Context) error { return k.request(ctx, k.flushes, "flush") }

// request sends a request to the goroutine and returns its error. verb names the
// request in messages.
func (k *keeper) request(ctx context.Context, to chan<- chan error, verb string) error {
	reply := make(chan error, 1)
	select {
	case to <- reply:
	case <-k.done:
		return fmt.Errorf("%s %s: already closed", verb, k.name)
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", verb, k.name, ctx.Err())
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", verb, k.name, ctx.Err())
	}
}

// close stops the goroutine, waits for it to end, and returns any remaining
// problem.
func (k *keeper) close() error {
	k.closing.Do(func() { close(k.stop) })
	<-k.done
	if problem, _ := k.failure(); problem != "" {
		return errors.New(problem)
	}
	return nil
}

// failure returns the current problem and the time at which it started.
func (k *keeper) failure() (problem string, since time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem, k.since
}

// current returns the open file, or nil.
func (k *keeper) current() *segment {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open
}

// snapshot returns a consistent copy of the open file, or ErrFinished if
// the open file has a different name.
func (k *keeper) snapshot(name string) (*Snapshot, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil || k.open.Name != name {
		return nil, fmt.Errorf("copy %q: %w", name, ErrFinished)
	}
	s := &Snapshot{Segment: k.open.Segment}
	err := guard(func() (err error) {
		if s.tx, err = k.open.begin(false); err == nil {
			s.Segment.Size = s.tx.Size()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	return s, nil
}

// report logs the first failure, failures with a new cause, and the recovery.
func (k *keeper) report(err error) {
	switch {
	case err != nil && cause(err) != k.cause:
		k.log.Error(k.name+" unavailable, keeping "+k.data+" in memory", "err", err, "hint", k.hint(err), safego.Stack(err))
	case err == nil && k.cause != "":
		k.log.Info(k.name+" available again", "dir", k.path())
	default:
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.cause, k.problem, k.since = "", "", time.Time{}
		return
	}
	if k.cause == "" {
		k.since = k.now()
	}
	k.cause, k.problem = cause(err), err.Error()
}

// cause returns the innermost error's text. Each cause is logged once, even if
// several operations fail because of it.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// pause returns the time to wait before the next attempt. After a success, this is idle.
func (k *keeper) pause(err error, idle time.Duration) time.Duration {
	switch {
	case err == nil:
		k.retry = retryFirst
		return idle
	case errors.Is(err, ErrNewer), errors.Is(err, ErrOlder): // only the operator can fix this
		return retryLast
	case errors.Is(err, ErrInUse) && time.Since(k.started) < inUseFor:
		return retryInUse // retry soon, before another process locks the directory
	}
	pause := k.retry
	k.retry = min(2*k.retry, retryLast)
	return pause
}

// path returns the path of the directory.
func (k *keeper) path() string { return filepath.Join(k.state, k.below) }

// lockDirectory creates and locks the directory. fresh reports whether the lock is new.
func (k *keeper) lockDirectory() (fresh bool, err error) {
	if k.lock != nil {
		if k.sameDirectory() {
			return false, nil
		}
		k.log.Warn("directory removed or replaced, using the new one", "dir", k.path())
		k.release(nil)
		k.lock.Close()
		k.lock = nil
	}
	d, err := k.openDirectory()
	if err != nil {
		return false, err
	}
	lock, err := d.lock()
	if err != nil {
		d.root.Close()
		return false, err
	}
	k.directory, k.lock = d, lock
	return true, nil
}

// openDirectory opens the directory, creating it if necessary.
func (k *keeper) openDirectory() (*directory, error) {
	if err := os.Mkdir(k.state, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	state, err := openDirectory(k.state)
	if err != nil || k.below == "" {
		return state, err
	}
	defer state.root.Close()
	if err := state.root.Mkdir(k.below, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, state.failed("mkdir", k.below, err)
	}
	return state.sub(k.below)
}

// sameDirectory reports whether the path still refers to the locked directory.
func (k *keeper) sameDirectory() bool {
	stat := os.Lstat
	if k.below == "" {
		stat = os.Stat
	}
	have, err := k.lock.Stat()
	if err != nil {
		return false
	}
	now, err := stat(k.path())
	return err == nil && os.SameFile(have, now)
}

// use sets the open file.
func (k *keeper) use(s *segment) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = s
}

// openName returns the name of the open file, or "" if no file is open.
func (k *keeper) openName() string {
	if s := k.current(); s != nil {
		return s.Name
	}
	return ""
}

// size returns the size of the open file, or 0 if no file is open.
func (k *keeper) size() int64 {
	if s := k.current(); s != nil {
		if info, err := s.file.Stat(); err == nil {
			return info.Size()
		}
	}
	return 0
}

// replaced reports whether the open file's name now refers to a different file
// or no longer exists.
func (k *keeper) replaced() bool {
	have, err := k.open.file.Stat()
	if err != nil {
		return true
	}
	now, err := k.directory.root.Lstat(k.open.Name)
	return err != nil || !os.SameFile(have, now)
}

// release closes the open file. err is the reason and may be nil.
func (k *keeper) release(err error) {
	s := k.current()
	k.use(nil)
	if s == nil {
		return
	}
	// When closing, bbolt waits for readers of a snapshot, but the goroutine must not
	// wait.
	released := make(chan struct{})
	safego.Go(k.log, "closing a file of "+k.name, func() {
		defer close(released)
		s.release(err)
	})
	select {
	case <-released:
	case <-time.After(closeWait):
	}
}

func (k *keeper) shut() {
	k.release(nil)
	if k.lock != nil {
		k.lock.Close()
	}
}

// quarantine renames a corrupt file. The store no longer uses the file, but keeps its
// data.
func (k *keeper) quarantine(name string, reason error) error {
	to := quarantineName(name, k.now())
	if err := k.directory.rename(name, to); err != nil {
		k.log.Error("corrupt file not quarantined", "file", k.directory.name(name), "err", err, "damage", reason)
		return fmt.Errorf("quarantine %s, which is %w: %w", k.directory.name(name), reason, err)
	}
	k.log.Error("corrupt file quarantined", "file", k.directory.name(to), "err", reason)
	return nil
}

// quarantineName returns the name of a quarantined file.
func quarantineName(name string, at time.Time) string {
	return name + damagedMark + strings.ReplaceAll(at.UTC().Format("20060102T150405.000"), ".", "") + "Z"
}

// hint returns the remedy for err.
func hint(err error) string {
	switch {
	case errors.Is(err, ErrInUse):
		return "another filter-scanwatch uses this directory; give each its own with -s, or wait for the old one to end"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free some space, or set a smaller budget"
	case errors.Is(err, fs.ErrNotExist):
		return "create the directory: install -d -o USER -g GROUP -m 750 DIRECTORY, with the user and group of the filter"
	case errors.Is(err, fs.ErrPermission):
		return "the directory must exist and belong to the user of the filter"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only"
	}
	return "retried until it works"
}
