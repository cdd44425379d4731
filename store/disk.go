package store

// The part of a Writer that deals with the disk: its directory, the budget, and
// which segment a record goes to. All of it runs in the background.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"

	"scanwatch/internal/contain"
)

// segmentLimit is the size at which a segment is finished and the next part of
// its day begins.
func (w *Writer) segmentLimit() int64 { return w.o.Budget / 8 }

// prepareOnce prepares the directory unless that was done already and it is
// still the same directory.
func (w *Writer) prepareOnce() error {
	if w.lock != nil {
		have, err := w.lock.Stat()
		if err == nil {
			if now, err := os.Lstat(w.dir); err == nil && os.SameFile(have, now) {
				return nil
			}
		}
		w.log.Warn("the directory of sessions was removed or replaced", "dir", w.dir)
		w.closeSegment(nil)
		w.lock.Close()
		w.lock = nil
	}
	return w.prepare()
}

// prepare makes and locks the directory, and removes what is too old.
func (w *Writer) prepare() error {
	if w.lock == nil {
		for _, dir := range []string{filepath.Dir(w.dir), w.dir} {
			if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		lock, err := openDir(w.dir)
		if err != nil {
			return err
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = ErrInUse
			}
			return fmt.Errorf("lock %s: %w", w.dir, err)
		}
		w.lock = lock
	}
	return w.prune(w.openRoom())
}

// openRoom is what the open segment may take of the budget.
func (w *Writer) openRoom() int64 {
	if w.open == nil {
		return 0
	}
	return w.segmentLimit()
}

var errBudget = errors.New("the budget is used up")

// prune removes segments that are too old, and then the oldest ones until all
// that are left leave room bytes of the budget. The open segment is not looked
// at: its room is the caller's to give.
func (w *Writer) prune(room int64) error {
	all, err := w.Segments()
	if err != nil {
		return err
	}
	total := stateSize(filepath.Dir(w.dir))
	// A state.db that is larger than it may be, since the budget was larger once, is
	// being made smaller: it must not cost the history, nor hold up what comes.
	over := int64(0)
	if info, err := os.Lstat(filepath.Join(filepath.Dir(w.dir), stateFile)); err == nil {
		over = max(info.Size()-w.o.Budget/2, 0)
	}
	total -= over
	room += max(w.stateRoom-total, 0)
	for _, s := range all {
		if w.open == nil || s.Name != w.open.Name {
			total += s.Size
		}
	}
	oldest := utcDay(w.clock(all).Add(-w.o.Keep))
	segments, damaged := 0, 0
	for _, s := range all {
		isOpen := w.open != nil && s.Name == w.open.Name
		if !isOpen && (s.Day.Before(oldest) || total+room > w.o.Budget) {
			if e := os.Remove(filepath.Join(w.dir, s.Name)); e == nil || errors.Is(e, fs.ErrNotExist) {
				total -= s.Size
				continue
			} else if err == nil {
				err = e
			}
		}
		segments++
		if s.Damaged {
			damaged++
		}
	}
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	w.state.Segments, w.state.Damaged, w.state.Bytes = segments, damaged, total+over
	if err == nil && total+room > w.o.Budget {
		err = fmt.Errorf("%w: %d bytes for %s, and nothing can be removed", errBudget, w.o.Budget, w.dir)
	}
	return err
}

// clock is the time by which segments grow old. One that jumps forward, as that of a
// machine without a battery does when it starts, must not cost the history: it is
// believed only when it has been there for an hour, by a clock that cannot jump.
func (w *Writer) clock(all []Segment) time.Time {
	now := w.o.Now()
	if w.believed.IsZero() {
		w.believed = newest(all, now)
	}
	switch {
	case now.Sub(w.believed) <= clockJump, !w.doubted.IsZero() && time.Since(w.doubted) >= clockDoubt:
		w.believed, w.doubted = now, time.Time{}
	case w.doubted.IsZero():
		w.doubted = time.Now()
	}
	if now.Before(w.believed) {
		return now
	}
	return w.believed
}

// newest is the end of the newest day of all, but not after now.
func newest(all []Segment, now time.Time) time.Time {
	at := now
	for _, s := range all { // in order
		if now.After(s.Day) {
			at = s.Day.Add(24 * time.Hour)
		}
	}
	if at.After(now) {
		return now
	}
	return at
}

// Lately is the time by which what the state directory dir remembers has grown old
// when a filter starts: now, unless the newest session there is older than two days.
// Then the clock may be wrong, and what is in time by that session is kept for the time
// being.
func Lately(dir string, now time.Time) time.Time {
	all, err := Segments(dir)
	if err != nil {
		return now
	}
	if at := newest(all, now); now.Sub(at) > clockJump {
		return at
	}
	return now
}

// Reserve gives the files of the State as much of the budget as they may take
// from now on, and returns when that is free.
func (w *Writer) Reserve(bytes int64) error {
	r := reservation{bytes, make(chan error, 1)}
	select {
	case w.rooms <- r:
		return <-r.reply
	case <-w.done:
		// The last thing that is written, by the only one who still does.
		w.stateRoom = bytes
		return w.prune(0)
	}
}

type reservation struct {
	bytes int64
	reply chan error
}

// stateSize is the size of state.db, of what was set aside of it and of what is
// being made, which all count for the budget.
func stateSize(dir string) (size int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), stateFile) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil { // else it was removed meanwhile
			size += info.Size()
		}
	}
	return size
}

// commitPending writes rest, batch by batch.
func (w *Writer) commitPending() error {
	for len(w.rest) > 0 {
		n, err := w.commitBatch()
		if err != nil {
			return err
		}
		w.rest = w.rest[n:]
	}
	return nil
}

// commitBatch writes the first records of rest and returns their size.
func (w *Writer) commitBatch() (int, error) {
	key, _, _ := nextRecord(w.rest)
	day := utcDay(keyTime(key))
	if w.open != nil && !belongs(day, w.open.Day) {
		w.closeSegment(nil)
	}
	if w.open != nil && w.replaced() {
		w.log.Warn("a segment was removed or replaced while it was open", "segment", w.open.Name)
		w.closeSegment(nil)
	}
	// A segment that is full, or turns out to be damaged, is followed by
	// another one; more than that is a failure to be tried again later.
	for tries := 0; ; tries++ {
		if w.open == nil {
			if err := w.openDay(day); err != nil {
				return 0, err
			}
		}
		size, count := w.batch()
		w.mu.Lock()
		drops, rules := w.drops, w.rules
		w.mu.Unlock()
		var unsaved Dropped
		for r := range drops {
			unsaved[r] = drops[r] - w.saved[r]
		}
		err := w.open.commit(w.rest[:size], unsaved, rules)
		if err == nil {
			w.saved = drops
			w.stateMu.Lock()
			w.state.Committed += uint64(count)
			w.stateMu.Unlock()
			return size, nil
		}
		name, full := w.open.Name, errors.Is(err, bolterrors.ErrMaxSizeReached)
		if full && tries < 2 {
			if e := w.nextPart(); e != nil {
				return 0, e
			}
			continue
		}
		w.closeSegment(err)
		if isDamaged(err) {
			w.setAside(name, err)
			if tries == 0 {
				continue
			}
		}
		return 0, fmt.Errorf("write %s: %w", filepath.Join(w.dir, name), err)
	}
}

// belongs tells whether a record of the given day goes to the open segment: the
// segment's own day, and the day before for records that come late. Anything
// else means that the clock was set, or that old streams are replayed.
func belongs(record, open time.Time) bool {
	late := open.Sub(record)
	return late >= 0 && late <= 24*time.Hour
}

// batch measures how much of rest goes into one commit.
func (w *Writer) batch() (size, count int) {
	for rest := w.rest; len(rest) > 0 && count < batchRecords; count++ {
		key, _, after := nextRecord(rest)
		n := len(rest) - len(after)
		if count > 0 && (size+n > batchBytes || !belongs(utcDay(keyTime(key)), w.open.Day)) {
			break
		}
		size += n
		rest = after
	}
	return size, count
}

// replaced tells whether the open segment's name leads to something else now.
func (w *Writer) replaced() bool {
	have, err := w.open.file.Stat()
	if err != nil {
		return true
	}
	now, err := os.Lstat(filepath.Join(w.dir, w.open.Name))
	return err != nil || !os.SameFile(have, now)
}

// openDay opens the last part of a day, or begins the day's first or next one.
func (w *Writer) openDay(day time.Time) error {
	last, part, err := w.lastPart(day)
	if err != nil {
		return err
	}
	if last == nil {
		return w.create(day, part+1)
	}
	path := filepath.Join(w.dir, last.Name)
	if err := w.prune(w.segmentLimit() - last.Size); err != nil { // last counts as one of all
		return err
	}
	s, err := openSegment(w.dir, *last, w.segmentLimit())
	switch {
	case err == nil:
		w.setOpen(s)
		return w.prune(w.segmentLimit())
	case isDamaged(err):
		w.setAside(last.Name, err)
	case errors.Is(err, ErrInUse):
		// Not another filter, which would have the directory: a reader. It is
		// not waited for.
	case errors.Is(err, ErrNewer):
		w.log.Warn("a segment is left alone and the next part of its day begun", "err", err)
	case errors.Is(err, fs.ErrNotExist):
		return w.create(day, part) // it was the oldest, and the budget needed it
	default:
		return fmt.Errorf("open %s: %w", path, err)
	}
	return w.create(day, part+1)
}

// lastPart finds the last part of a day, nil if it is set aside or there is none,
// and the highest number of a part.
func (w *Writer) lastPart(day time.Time) (last *Segment, part int, err error) {
	all, err := w.Segments()
	if err != nil {
		return nil, 0, err
	}
	for _, s := range all {
		if !s.Day.Equal(day) {
			continue
		}
		if s.Part > part {
			part, last = s.Part, nil
		}
		if s.Part == part && !s.Damaged {
			last = &s
		}
	}
	return last, part, nil
}

// create begins part, or the first one after it whose name is free.
func (w *Writer) create(day time.Time, part int) error {
	if err := w.prune(w.segmentLimit()); err != nil {
		return err
	}
	var name string
	for ; ; part++ {
		name = segmentFile(day, part)
		if _, err := os.Lstat(filepath.Join(w.dir, name)); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
	}
	s, err := createSegment(w.dir, Segment{Name: name, Day: day, Part: part}, w.segmentLimit(), w.o.Program, w.o.Now())
	if err != nil {
		return fmt.Errorf("make %s: %w", filepath.Join(w.dir, name), err)
	}
	w.setOpen(s)
	return w.prune(w.segmentLimit())
}

// nextPart finishes the open segment, which is full, and begins the next part.
func (w *Writer) nextPart() error {
	day, part := w.open.Day, w.open.Part
	w.closeSegment(nil)
	return w.create(day, part+1)
}

func (w *Writer) setOpen(s *segment) {
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	w.open, w.state.Segment = s, s.Name
}

// closeSegment lets go of the open segment, after err or after no error.
func (w *Writer) closeSegment(err error) {
	w.stateMu.Lock()
	s := w.open
	w.open, w.state.Segment = nil, ""
	w.stateMu.Unlock()
	if s == nil {
		return
	}
	// bbolt waits for the readers of a snapshot before it closes; records give
	// them only a moment.
	released := make(chan struct{})
	contain.Go(w.log, "closing a file", func() {
		defer close(released)
		s.release(err)
	})
	select {
	case <-released:
	case <-time.After(closeWait):
	}
}

// setAside renames a damaged segment, so that it is neither used nor lost.
func (w *Writer) setAside(name string, why error) {
	old := filepath.Join(w.dir, name)
	aside := old + damagedMark + strings.ReplaceAll(w.o.Now().UTC().Format("20060102T150405.000"), ".", "") + "Z"
	if err := os.Rename(old, aside); err != nil {
		w.log.Error("a damaged segment cannot be set aside", "err", err, "damage", why)
		return
	}
	w.log.Error("a damaged segment was set aside", "segment", filepath.Base(aside), "err", why)
}
