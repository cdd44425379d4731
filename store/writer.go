package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"scanwatch/internal/safego"
	"scanwatch/internal/text"
)

// Limits of a Writer.
const (
	DefaultBudget = 512 << 20
	DefaultKeep   = 90 * 24 * time.Hour
	DefaultBuffer = 8 << 20

	// MinBudget is the minimum budget in bytes. Smaller values are raised to MinBudget,
	// because the largest batch must fit into a segment.
	MinBudget = 16 << 20

	// MaxValue is the maximum size of a record in bytes.
	MaxValue = 256 << 10

	batchRecords = 2000      // longer commits increase latency, shorter ones cost more
	batchBytes   = 512 << 10 // a batch must fit into a new segment
	batchDelay   = time.Second

	logEvery   = time.Minute // minimum interval between messages that a client can cause
	pruneEvery = time.Hour
)

// Options are the settings of a Writer. Zero fields have defaults.
type Options struct {
	Budget  int64         // maximum size of all files in DIR/sessions and of state.db in bytes
	Keep    time.Duration // retention of sessions
	Buffer  int           // memory for unwritten records in bytes
	Program string        // program version for new segments
	Log     *slog.Logger  // nil disables logging
	Now     func() time.Time
	Seal    bool // seal finished segments in the background
}

// A Writer writes records to day segments in the background. Disk errors neither block
// callers nor cause calls to fail. Records wait in a bounded buffer, and failed writes
// are retried. If the buffer is full, records are dropped and counted.
//
// A record belongs to the day on which its session ended. If today's segment
// already exists, it also receives late records from the previous day.
type Writer struct {
	o Options
	k keeper // keeps the current segment open

	wake   chan struct{} // signals new records; senders never block
	rooms  chan reservation
	sealed chan sealResult

	rewrites chan rewriting

	mu     sync.Mutex // held for nanoseconds, never during a system call
	active buffer     // the buffer for Add
	added  uint64
	drops  Dropped
	rules  *ruleTexts // immutable
	closed bool

	status Status // guarded by k.mu

	// Only the background goroutine accesses the following fields.
	days       days
	pending    buffer          // the buffer that is being written
	rest       []byte          // the part of pending that has not been committed
	saved      Dropped         // the part of drops that is stored on disk
	logged     Dropped         // the part of drops that has been logged
	unsealed   map[string]bool // segments that cannot be sealed; true: forever; false: until the next tick of prune
	sealFailed bool            // no segment can be sealed until the next tick
	opened     string          // the open segment at the last call of sealNext
	loggedAt   time.Time       // the time of the last log line about drops
}

// Status describes a Writer and its files.
type Status struct {
	Dir         string    `json:"dir"`               // DIR/sessions
	Segment     string    `json:"segment,omitempty"` // name of the open segment
	Error       string    `json:"error,omitempty"`   // the cause if records cannot be written
	Since       text.Time `json:"since,omitzero"`    // when the error started
	Added       uint64    `json:"added"`             // records accepted
	Committed   uint64    `json:"committed"`         // records on disk
	Dropped     Dropped   `json:"dropped"`
	Buffered    int       `json:"buffered"` // bytes in memory
	Buffer      int       `json:"buffer"`   // maximum of Buffered
	Bytes       int64     `json:"bytes"`    // size of all segments and of state.db
	Budget      int64     `json:"budget"`
	Segments    int       `json:"segments"`             // number of segments on disk
	Sealed      int       `json:"sealed"`               // number of sealed segments on disk
	Quarantined int       `json:"quarantined"`          // number of quarantined segments on disk
	Sealing     string    `json:"sealing,omitempty"`    // name of the segment that is being sealed
	SealError   string    `json:"seal_error,omitempty"` // the last error of sealing, until a segment is sealed
}

// Open starts a Writer on the state directory dir. Open creates the directory but not its parents.
// Open returns immediately and never fails. If an operation fails, the error is logged and the
// operation is retried.
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
		o:      o,
		k:      newKeeper(keeperOptions{name: "sessions directory", data: "records", state: dir, below: sessionsDir, log: o.Log, now: o.Now, hint: hint}),
		wake:   make(chan struct{}, 1),
		rooms:  make(chan reservation),
		sealed: make(chan sealResult, 1),

		rewrites: make(chan rewriting),
		// The system allocates the buffers' memory only when it is first
		// written to.
		active:  buffer{data: make([]byte, 0, o.Buffer/2)},
		pending: buffer{data: make([]byte, 0, o.Buffer/2)},
		status:  Status{Dir: filepath.Join(dir, sessionsDir), Buffer: o.Buffer, Budget: o.Budget},
	}
	w.unsealed, w.opened = make(map[string]bool), "none"
	w.days = days{k: &w.k, seal: o.Seal, budget: budget{dir: dir, bytes: o.Budget, keep: o.Keep, clock: clock{now: o.Now}, log: o.Log, created: make(map[string]time.Time)}, program: o.Program}
	w.k.start(w.run)
	return w
}

// Add adds the record of a session that ended at end. value is the output of AppendRecord
// and is copied. Add does not wait for the disk.
func (w *Writer) Add(end time.Time, id uint64, value []byte) {
	if w.take(end, id, value) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// take buffers a record or counts it as dropped. wake reports whether the
// background goroutine must be woken.
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

// Flush writes all records that were added before the call and returns any
// write error.
func (w *Writer) Flush(ctx context.Context) error { return w.k.flush(ctx) }

// Close writes all records that were added and stops the Writer. Records that
// cannot be written and records added later are dropped. The error contains
// the cause and the number of dropped records. Only the first call returns the
// error.
func (w *Writer) Close() error {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	err := w.k.close()
	if err == nil || again {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Errorf("%w; lost sessions: %s", err, w.drops)
}

// Status returns the Writer's status.
func (w *Writer) Status() Status {
	s := w.diskStatus()
	s.Bytes += w.k.size()
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Added, s.Dropped = w.added, w.drops
	s.Buffered += len(w.active.data)
	return s
}

func (w *Writer) diskStatus() Status {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	s := w.status
	s.Error, s.Since = w.k.problem, text.At(w.k.since)
	s.Segments, s.Sealed, s.Quarantined, s.Bytes = w.days.usage.segments, w.days.usage.sealed, w.days.usage.quarantined, w.days.usage.bytes
	if w.k.open != nil {
		s.Segment = w.k.open.Name
	}
	return s
}

// Segments returns the segments on disk.
func (w *Writer) Segments() ([]Segment, error) { return Segments(w.days.budget.dir) }

// Snapshot returns a consistent copy of the open segment, or ErrFinished if
// the open segment has a different name.
func (w *Writer) Snapshot(name string) (*Snapshot, error) { return w.k.snapshot(name) }

// ErrFinished is returned if the named segment is not open. The caller can read the file instead.
var ErrFinished = errors.New("no segment of this name is being written; read the file")

// run is the background goroutine.
func (w *Writer) run() {
	debug.SetPanicOnFault(true) // see guard

	// The timer starts the next commit or retry.
	timer := time.NewTimer(0) // lock the directory immediately
	armed := true
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()

	attempt := func() error {
		err := w.drain()
		if open := w.k.openName(); open != w.opened {
			w.opened = open
			w.sealNext()
		}
		timer.Stop()
		pause := w.k.pause(err, 0)
		if armed = err != nil; armed {
			timer.Reset(pause)
		}
		return err
	}
	for {
		select {
		case <-w.wake:
			w.logDrops()
			switch n := w.buffered(); {
			case w.k.cause != "" || n == 0: // wait for the timer before a retry
			case n >= batchRecords:
				_ = attempt()
			case !armed:
				timer.Reset(batchDelay)
				armed = true
			}
		case <-timer.C:
			armed = false
			_ = attempt()
		case reply := <-w.k.flushes:
			reply <- attempt()
		case r := <-w.sealed:
			w.sealDone(&r)
		case r := <-acceptRewrites(w):
			err := attempt() // writes the records that were added earlier
			done := rewritten{err: err}
			if err == nil {
				done = rewriteNow(w, &r)
			}
			r.reply <- done
		case r := <-w.rooms:
			r.reply <- safego.Run(func() error { return w.days.makeRoom(r.bytes) })
		case <-prune.C:
			err := safego.Run(func() error { return w.days.pruneAfter(w.days.prepare()) })
			w.report(err)
			maps.DeleteFunc(w.unsealed, func(_ string, forever bool) bool { return !forever })
			w.sealFailed = false
			w.sealNext()
			if err != nil && !armed {
				timer.Reset(w.k.retry)
				armed = true
			}
		case <-w.k.stop:
			timer.Stop()
			w.finish()
			return
		}
	}
}

// buffered returns the number of records waiting in the active buffer.
func (w *Writer) buffered() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.active.n
}

// finish writes the last records and releases all files.
func (w *Writer) finish() {
	if err := w.drain(); err != nil {
		lost := countRecords(w.rest)
		w.mu.Lock()
		lost += w.active.n
		w.drops[DropClosed] += uint64(lost)
		w.mu.Unlock()
		w.k.log.Error("sessions lost at shutdown", "records", lost, "err", err)
	}
	w.loggedAt = time.Time{} // log the last drops immediately
	w.logDrops()
	w.sealStop()
	w.k.shut()
}

func countRecords(data []byte) (n int) {
	for len(data) > 0 {
		_, _, data = nextRecord(data)
		n++
	}
	return n
}

// drain writes all records that were added before the call.
func (w *Writer) drain() error {
	err := safego.Run(func() error {
		if err := w.days.prepare(); err != nil {
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
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	w.status.Buffered = len(w.rest)
	return err
}

func (w *Writer) report(err error) {
	w.logDrops()
	w.k.report(err)
}

// logDrops logs dropped records, at most once a minute.
func (w *Writer) logDrops() {
	w.mu.Lock()
	drops, waiting := w.drops, len(w.active.data)+len(w.rest)
	w.mu.Unlock()
	if drops == w.logged {
		return
	}
	now := w.o.Now()
	if since := now.Sub(w.loggedAt); since >= 0 && since < logEvery {
		return
	}
	var fresh Dropped
	for r := range drops {
		fresh[r] = drops[r] - w.logged[r]
	}
	w.k.log.Warn("sessions dropped", "records", fresh.String(), "total", drops.Total(), "waiting", waiting, "buffer", w.o.Buffer)
	w.logged, w.loggedAt = drops, now
}
