package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// days manages the segments of a Writer. Only the background goroutine uses days.
type days struct {
	k       *keeper // keeps the open segment
	budget  budget
	program string
	usage   usage // guarded by k.mu

	seal    bool     // there is room for a sealed segment
	sealing Segment  // the segment that is being sealed; without a name if there is none
	apart   []string // files of the sealing in progress, for which room is already reserved
}

// limit returns the maximum size of a segment. When a segment is full, a new segment is started as
// the next part of the day. The sealed segment needs no more room than the segment of rows that it
// replaces.
func (d *days) limit() int64 { return max(d.budget.bytes/16, MinBudget/8) }

// prepare creates and locks the directory. prepare also prunes if the lock is new.
func (d *days) prepare() error {
	fresh, err := d.k.lockDirectory()
	if fresh {
		err = d.pruneAfter(d.k.directory.removeTemporary())
	}
	return err
}

// pruneAfter returns err, or prunes if err is nil.
func (d *days) pruneAfter(err error) error {
	if err != nil {
		return err
	}
	if d.k.open == nil {
		return d.prune(0)
	}
	return d.prune(d.limit())
}

// prune removes segments until room bytes are free for the open segment.
func (d *days) prune(room int64) error {
	if d.k.directory == nil {
		return nil // there is no directory
	}
	if d.seal {
		room += d.limit()
	}
	u, err := d.budget.prune(d.k.directory, d.k.openName(), d.apart, room)
	if err != nil && !errors.Is(err, errBudget) && u == (usage{}) {
		return err
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.usage = u
	return err
}

// Reserve reserves bytes of the budget for the State's files. Reserve returns when this space is
// free.
func (w *Writer) Reserve(bytes int64) error {
	r := reservation{bytes, make(chan error, 1)}
	select {
	case w.rooms <- r:
		return <-r.reply
	case <-w.k.done:
		// The Writer's goroutine has ended, and the State is making its last commit.
		w.days.budget.state = bytes
		return w.days.prune(0)
	}
}

type reservation struct {
	bytes int64
	reply chan error
}

func (d *days) makeRoom(bytes int64) error {
	d.budget.state = bytes
	switch err := d.prepare(); {
	case errors.Is(err, ErrInUse):
		return err // the process with the lock is not aware of this reservation
	case err != nil:
		return nil // without a directory there is nothing to remove
	}
	return d.pruneAfter(nil)
}

// commitPending writes all pending records in batches.
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

// commitBatch writes the first pending records and returns their size.
func (w *Writer) commitBatch() (int, error) {
	key, _, _ := nextRecord(w.rest)
	day := utcDay(keyTime(key))
	if w.k.open != nil && !belongs(day, w.k.open.Day) {
		w.k.release(nil)
	}
	if w.k.open != nil && w.k.replaced() {
		w.k.log.Warn("open segment removed or replaced, using another", "segment", w.k.open.Name)
		w.k.release(nil)
	}
	// Replace a full or corrupt segment only once. After a second failure, the batch
	// waits for the next attempt.
	for tries := 0; ; tries++ {
		if w.k.open == nil {
			if err := w.days.openDay(day); err != nil {
				return 0, err
			}
		}
		size, err := w.commitTo(w.k.open)
		if err == nil {
			return size, nil
		}
		open := w.k.open.Segment
		if errors.Is(err, bolterrors.ErrMaxSizeReached) && tries < 2 {
			w.k.release(nil)
			if e := w.days.create(open.Day, open.Part+1); e != nil {
				return 0, e
			}
			continue
		}
		w.k.release(err)
		if isDamaged(err) {
			_ = w.k.quarantine(open.Name, err) // quarantine logs the error
			if tries == 0 {
				continue
			}
		}
		return 0, fmt.Errorf("write %s: %w", w.days.path(open.Name), err)
	}
}

// commitTo commits one batch to s and returns its size.
func (w *Writer) commitTo(s *segment) (size int, err error) {
	size, count := w.batch(s.Day)
	w.mu.Lock()
	drops, rules := w.drops, w.rules
	w.mu.Unlock()
	var unsaved Dropped
	for r := range drops {
		unsaved[r] = drops[r] - w.saved[r]
	}
	if err := s.commit(w.rest[:size], unsaved, rules); err != nil {
		return 0, err
	}
	w.saved = drops
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	w.status.Committed += uint64(count)
	return size, nil
}

func (d *days) path(name string) string { return filepath.Join(d.k.path(), name) }

// belongs reports whether a record belongs in the segment of the given day. Late records from the
// previous day also belong in the segment. A record from any other day means that the clock was
// changed or that an old stream is being replayed.
func belongs(record, open time.Time) bool {
	late := open.Sub(record)
	return late >= 0 && late <= 24*time.Hour
}

// batch returns the size and number of the records in rest that fit into one commit.
func (w *Writer) batch(day time.Time) (size, count int) {
	for rest := w.rest; len(rest) > 0 && count < batchRecords; count++ {
		key, _, after := nextRecord(rest)
		n := len(rest) - len(after)
		if count > 0 && (size+n > batchBytes || !belongs(utcDay(keyTime(key)), day)) {
			break
		}
		size += n
		rest = after
	}
	return size, count
}

// openDay opens the last part of a day, or creates a new part.
func (d *days) openDay(day time.Time) error {
	last, part, err := d.lastPart(day)
	if err != nil {
		return err
	}
	if last == nil || last.Sealed || last.Name == d.sealing.Name {
		return d.create(day, part+1)
	}
	if err := d.prune(d.limit() - last.Size); err != nil { // prune counts the size of last
		return err
	}
	s, err := openSegment(d.k.directory, *last, d.limit())
	switch {
	case err == nil:
		d.k.use(s)
		return d.prune(d.limit())
	case isDamaged(err):
		_ = d.k.quarantine(last.Name, err) // quarantine logs the error
	case errors.Is(err, ErrInUse):
		// A reader holds the lock. It cannot be another filter, which would have locked the
		// directory.
	case errors.Is(err, ErrNewer), errors.Is(err, ErrOlder):
		d.k.log.Warn("segment of another version, starting the next part", "err", err)
	case errors.Is(err, fs.ErrNotExist):
		return d.create(day, part) // prune has removed it as the oldest segment
	default:
		return fmt.Errorf("open %s: %w", d.path(last.Name), err)
	}
	return d.create(day, part+1)
}

// lastPart returns the last part of a day and its number. last is nil if the day has no
// parts, or if its last part is quarantined.
func (d *days) lastPart(day time.Time) (last *Segment, part int, err error) {
	all, err := d.k.directory.segments()
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
		if s.Part == part && !s.Quarantined {
			last = &s
		}
	}
	return last, part, nil
}

// quarantined reports whether a day has a quarantined file.
func (d *days) quarantined(day time.Time) (bool, error) {
	all, err := d.k.directory.segments()
	return slices.ContainsFunc(all, func(s Segment) bool { return s.Quarantined && s.Day.Equal(day) }), err
}

// createLoss creates a part of a past day to mark that day as lossy.
func (d *days) createLoss(day time.Time) error {
	part, err := nextPart(d.k.directory, day)
	if err != nil {
		return err
	}
	return createLoss(d.k.directory, part, sealing{limit: d.limit(), program: d.program, now: d.k.now()})
}

// create creates and opens the given part of a day. If a file with that name exists,
// create uses the next free part.
func (d *days) create(day time.Time, part int) error {
	if err := d.prune(d.limit()); err != nil {
		return err
	}
	name := segmentFile(day, part)
	for {
		if !exists(d.k.directory, name) && !exists(d.k.directory, sealedName(Segment{Day: day, Part: part})) {
			break
		}
		part++
		name = segmentFile(day, part)
	}
	s, err := createSegment(d.k.directory, Segment{Name: name, Day: day, Part: part}, d.limit(), d.program, d.k.now())
	if err != nil {
		return fmt.Errorf("create %s: %w", d.path(name), err)
	}
	d.k.use(s)
	lossy, err := d.quarantined(day)
	if err == nil && lossy {
		err = s.markLoss(d.k.now())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", d.path(name), err)
	}
	if at := d.budget.clock.doubt(); !at.IsZero() {
		if err := s.markDoubt(at); err != nil {
			return fmt.Errorf("write %s: %w", d.path(name), err)
		}
	}
	return d.prune(d.limit())
}
