package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"scanwatch/internal/contain"
)

// The limits of a Writer.
const (
	DefaultBudget = 512 << 20
	DefaultKeep   = 90 * 24 * time.Hour
	DefaultBuffer = 8 << 20

	// MinBudget is the smallest budget; a smaller one is raised to it. A
	// segment is an eighth of it and must hold the largest batch.
	MinBudget = 16 << 20

	// MaxValue is the size of the largest record that is kept, in bytes.
	MaxValue = 256 << 10

	batchRecords = 2000      // longer commits show in latency, shorter ones cost more
	batchBytes   = 512 << 10 // so that a batch always fits into a new segment
	batchDelay   = time.Second

	retryFirst = time.Second
	retryLast  = 30 * time.Second
	retryInUse = 100 * time.Millisecond // while the filter before this one may still be stopping,
	inUseFor   = 30 * time.Second       // which takes no longer
	logEvery   = time.Minute            // for lines that a stranger can cause
	pruneEvery = time.Hour
	closeWait  = 200 * time.Millisecond

	clockJump  = 48 * time.Hour // more than that forward is doubted ...
	clockDoubt = time.Hour      // ... so long
)

// Options are the settings of a Writer. The zero value means the defaults.
type Options struct {
	Budget  int64         // upper limit for all files in DIR/sessions and state.db, in bytes
	Keep    time.Duration // how long sessions are kept; against Now
	Buffer  int           // memory for records that wait for the disk, in bytes
	Program string        // version to note in new segments
	Log     *slog.Logger  // nil: be silent
	Now     func() time.Time
}

// A Writer takes records and writes them to day segments in the background.
// Nothing that happens to the disk makes it wait or fail: records wait in
// memory while there is room, are counted and dropped when there is none, and
// go to disk again as soon as that works.
//
// Records are sorted into days by the end of their session. One of yesterday that
// comes when today's segment has been begun goes to today's.
type Writer struct {
	dir string // DIR/sessions
	o   Options
	log *slog.Logger

	wake    chan struct{} // there is something to do; never blocks who sends
	flushes chan chan error
	rooms   chan reservation
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the background is gone

	mu     sync.Mutex // held for nanoseconds, never across a system call
	active buffer     // what Add fills
	added  uint64
	drops  Dropped
	rules  *ruleTexts // replaced, never changed
	closed bool

	stateMu sync.Mutex // for what follows, which only the background changes
	state   Status
	open    *segment

	// Of the background alone.
	pending   buffer // what is being written
	rest      []byte // the part of pending that is not committed yet
	lock      *os.File
	stateRoom int64     // what the State may take; 0: it has not asked
	believed  time.Time // by the clock, when prune looked; see clock
	doubted   time.Time // since when it is ahead of that; zero if it is not
	saved     Dropped   // the part of drops that is on disk
	told      Dropped   // the part of drops that was logged
	toldAt    time.Time
	failing   string // the cause of the error that was logged last; empty when all is well
}

// Status tells how a Writer is doing.
type Status struct {
	Dir       string    `json:"dir"`               // DIR/sessions
	Segment   string    `json:"segment,omitempty"` // name of the open segment, if there is one
	Error     string    `json:"error,omitempty"`   // why records cannot be written; empty if they can
	Since     time.Time `json:"since,omitzero"`    // of the error
	Added     uint64    `json:"added"`             // records taken
	Committed uint64    `json:"committed"`         // records on disk
	Dropped   Dropped   `json:"dropped"`
	Buffered  int       `json:"buffered"` // bytes that wait in memory
	Buffer    int       `json:"buffer"`   // bytes that may wait in memory
	Bytes     int64     `json:"bytes"`    // size of all segments and of state.db
	Budget    int64     `json:"budget"`
	Segments  int       `json:"segments"` // segments on disk
	Damaged   int       `json:"damaged"`  // of these, set aside
}

// Open starts a Writer on the state directory dir, which is made if it is
// missing (but not its parents). It returns at once and cannot fail; what goes
// wrong with the directory is logged, and tried again.
func Open(dir string, o Options) *Writer {
	if o.Budget == 0 {
		o.Budget = DefaultBudget
	}
	o.Budget = max(o.Budget, MinBudget)
	if o.Keep == 0 {
		o.Keep = DefaultKeep
	}
	if o.Buffer == 0 {
		o.Buffer = DefaultBuffer
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	w := &Writer{
		dir:     filepath.Join(dir, sessionsDir),
		o:       o,
		log:     o.Log,
		wake:    make(chan struct{}, 1),
		flushes: make(chan chan error),
		rooms:   make(chan reservation),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		// Memory is taken from the system only as it is filled.
		active:  buffer{data: make([]byte, 0, o.Buffer/2)},
		pending: buffer{data: make([]byte, 0, o.Buffer/2)},
	}
	w.state = Status{Dir: w.dir, Buffer: o.Buffer, Budget: o.Budget}
	contain.Loop(w.log, "writing sessions", w.run, func() { close(w.done) })
	return w
}

// Add takes the record of the session that ended at end; value, made by
// AppendRecord, is copied. It never blocks on the disk.
func (w *Writer) Add(end time.Time, id uint64, value []byte) {
	if w.take(end, id, value) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// take puts a record in the buffer, or counts it, and tells whether there is
// something to do.
func (w *Writer) take(end time.Time, id uint64, value []byte) (wake bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		w.drops[DropClosed]++
		return false
	case len(value) > MaxValue:
		w.drops[DropLarge]++
	case !w.active.add(end, id, value):
		w.drops[DropFull]++
	default:
		w.added++
		return w.active.n == 1 || w.active.n == batchRecords
	}
	return true
}

// Flush returns when every record that was added before is on disk, or with the
// error of the attempt.
func (w *Writer) Flush(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case w.flushes <- reply:
	case <-w.done:
		return errors.New("flush recorded sessions: the store is closed")
	case <-ctx.Done():
		return fmt.Errorf("flush recorded sessions: %w", ctx.Err())
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flush recorded sessions: %w", ctx.Err())
	}
}

// Close writes what was added before and ends the Writer. Records that cannot
// be written are dropped; the error tells how many, and why. Records added
// later are dropped.
func (w *Writer) Close() error {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	if again {
		<-w.done
		return nil
	}
	close(w.stop)
	<-w.done
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	if w.state.Error != "" {
		w.mu.Lock()
		defer w.mu.Unlock()
		return fmt.Errorf("%s; lost sessions: %s", w.state.Error, w.drops)
	}
	return nil
}

// Status tells how the Writer is doing.
func (w *Writer) Status() Status {
	s := w.diskStatus()
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Added, s.Dropped = w.added, w.drops
	s.Buffered += len(w.active.data)
	return s
}

func (w *Writer) diskStatus() Status {
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	s := w.state
	s.Bytes += w.openSize()
	return s
}

// openSize is the size of the open segment. The caller holds stateMu, or is the
// background.
func (w *Writer) openSize() int64 {
	if w.open == nil {
		return 0
	}
	info, err := w.open.file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// Segments lists the segments on disk.
func (w *Writer) Segments() ([]Segment, error) { return Segments(filepath.Dir(w.dir)) }

// Snapshot makes a consistent copy of the segment with the given name, if it is
// the one that is open; for all others it returns ErrFinished.
func (w *Writer) Snapshot(name string) (*Snapshot, error) {
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	if w.open == nil || w.open.Name != name {
		return nil, fmt.Errorf("copy %q: %w", name, ErrFinished)
	}
	s := &Snapshot{Segment: w.open.Segment}
	err := guard(func() (err error) {
		if s.tx, err = w.open.begin(false); err == nil {
			s.Segment.Size = s.tx.Size()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	return s, nil
}

// ErrFinished tells that a segment is not open: readers take it from its file.
var ErrFinished = errors.New("no segment of this name is being written; read the file")

// run is the background.
func (w *Writer) run() {
	debug.SetPanicOnFault(true) // see guard

	// The timer runs towards the next commit or the next attempt.
	timer := time.NewTimer(0) // prepare at once
	armed := true
	retry := retryFirst
	began := time.Now()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()

	attempt := func() error {
		err := w.drain()
		timer.Stop()
		armed = err != nil
		switch {
		case err == nil:
			retry = retryFirst
		case handover(err, began):
			timer.Reset(retryInUse)
		default:
			timer.Reset(retry)
			retry = min(2*retry, retryLast)
		}
		return err
	}
	for {
		select {
		case <-w.wake:
			w.tellDrops()
			w.mu.Lock()
			n := w.active.n
			w.mu.Unlock()
			switch {
			case w.failing != "" || n == 0: // the timer decides when to try again
			case n >= batchRecords:
				attempt()
			case !armed:
				timer.Reset(batchDelay)
				armed = true
			}
		case <-timer.C:
			armed = false
			attempt()
		case reply := <-w.flushes:
			reply <- attempt()
		case r := <-w.rooms:
			w.stateRoom = r.bytes
			r.reply <- contain.Run(func() error {
				switch err := w.prepareOnce(); {
				case errors.Is(err, ErrInUse):
					return err // who has the sessions does not know of our room
				case err != nil:
					return nil // there is nothing that could make room
				}
				return w.prune(w.openRoom())
			})
		case <-prune.C:
			err := contain.Run(func() error {
				if err := w.prepareOnce(); err != nil {
					return err
				}
				return w.prune(w.openRoom())
			})
			w.report(err)
			if err != nil && !armed {
				timer.Reset(retry)
				armed = true
			}
		case <-w.stop:
			timer.Stop()
			w.finish()
			return
		}
	}
}

// handover tells whether err is that the filter before this one has not let go yet.
// The next one may begin soon, and would be before us.
func handover(err error, began time.Time) bool {
	return errors.Is(err, ErrInUse) && time.Since(began) < inUseFor
}

// finish writes what it can, once, and lets go of everything.
func (w *Writer) finish() {
	err := w.drain()
	if err != nil {
		lost := countRecords(w.rest)
		w.mu.Lock()
		lost += w.active.n
		w.drops[DropClosed] += uint64(lost)
		w.mu.Unlock()
		w.log.Error("sessions lost at the end", "records", lost, "err", err)
	}
	w.toldAt = time.Time{} // the last line must not be held back
	w.tellDrops()
	w.closeSegment(nil)
	if w.lock != nil {
		w.lock.Close()
	}
}

func countRecords(data []byte) (n int) {
	for len(data) > 0 {
		_, _, data = nextRecord(data)
		n++
	}
	return n
}

// drain writes everything that was added before it was called.
func (w *Writer) drain() error {
	err := contain.Run(func() error {
		if err := w.prepareOnce(); err != nil {
			return err
		}
		if err := w.commitPending(); err != nil {
			return err
		}
		w.pending.reset()
		w.mu.Lock()
		w.active, w.pending = w.pending, w.active
		w.mu.Unlock()
		w.rest = w.pending.data
		return w.commitPending()
	})
	w.report(err)
	w.stateMu.Lock()
	w.state.Buffered = len(w.rest)
	w.stateMu.Unlock()
	return err
}

// report logs when the writer begins to fail, fails for another reason, or
// works again.
func (w *Writer) report(err error) {
	now := w.o.Now()
	w.tellDrops()
	switch {
	case err != nil && cause(err) != w.failing:
		w.log.Error("sessions cannot be written; they wait in memory", "err", err, "hint", hint(err), contain.Stack(err))
	case err == nil && w.failing != "":
		w.log.Info("sessions are written again", "dir", w.dir)
	default:
		return
	}
	w.stateMu.Lock()
	defer w.stateMu.Unlock()
	if err == nil {
		w.failing, w.state.Error, w.state.Since = "", "", time.Time{}
		return
	}
	if w.failing == "" {
		w.state.Since = now
	}
	w.failing, w.state.Error = cause(err), err.Error()
}

// cause is what lies at the bottom of err: the same trouble, met while doing
// different things, is logged once.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// hint tells the operator what to do about err.
func hint(err error) string {
	switch {
	case errors.Is(err, ErrInUse):
		return "another filter-scanwatch uses this directory; give each its own with -s, or wait for the old one to end"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free some space, or set a smaller budget"
	case errors.Is(err, fs.ErrNotExist):
		return "make the directory: install -d -o USER -g GROUP -m 750 DIRECTORY, with user and group that the filter runs as"
	case errors.Is(err, fs.ErrPermission):
		return "the directory must exist and belong to the user that the filter runs as"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only"
	}
	return "tried again until it works"
}

// tellDrops logs dropped records, at most once a minute.
func (w *Writer) tellDrops() {
	w.mu.Lock()
	drops, waiting := w.drops, len(w.active.data)+len(w.rest)
	w.mu.Unlock()
	if drops == w.told {
		return
	}
	now := w.o.Now()
	if since := now.Sub(w.toldAt); since >= 0 && since < logEvery {
		return
	}
	var fresh Dropped
	for r := range drops {
		fresh[r] = drops[r] - w.told[r]
	}
	w.log.Warn("sessions dropped", "records", fresh.String(), "total", drops.Total(), "waiting", waiting, "buffer", w.o.Buffer)
	w.told, w.toldAt = drops, now
}
