package store

// DIR/state.db (mode 0640) contains the state that outlasts sessions. The file is a bbolt
// file with a bucket for each table. Package filter/memory describes the rows.
//
//	meta  "schema"   uint16, big-endian: 2
//	      "created"  int64, big-endian: microseconds since 1970
//	      "program"  text: version of the program that created the file
//
// DIR/state.db.damaged-20261102T101500000Z is a quarantined file. DIR/state.db.new is a
// file that is being created. It remains only after a crash. The writing process holds
// bbolt's lock on the file. It also holds a flock(2) on DIR, so that two processes
// never create the file at the same time.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"scanwatch/internal/kv"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
)

const (
	// StateFile is the name of the state's file in the state directory.
	StateFile = "state.db"

	stateEvery       = 5 * time.Second
	stateMax         = 256 << 20 // bytes of the file
	stateBatch       = 2000      // entries per commit; a longer commit increases latency
	stateQuarantined = 3         // maximum number of quarantined files; a failing disk produces many
)

// An Entry is a row of the state; a nil Value deletes the row.
type Entry = kv.Entry

// StateOptions are the settings of a State.
type StateOptions struct {
	Buckets []string      // in loading order; "meta" is reserved; others are ignored
	Program string        // program version for a new file
	Log     *slog.Logger  // nil disables logging
	Every   time.Duration // write interval; 5 s if 0
	MaxSize int64         // maximum size of the file in bytes; 256 MiB if 0

	// Load is called once, in the background, with all entries of the file.
	// Each entry is valid only until the next one. Entries can contain any
	// bytes, because bbolt has no checksums for data. If the file is corrupt,
	// the sequence ends early.
	Load func(iter.Seq[Entry])
	// Changes returns at most n entries that have changed since the last call. The
	// State owns the returned entries. Changes is called in the background, after Load.
	Changes func(n int) []Entry
	// Rewrite is called after Load if the file is new or was replaced. After Rewrite,
	// Changes must return all entries again. Entries in the file that Changes
	// does not return are kept.
	Rewrite func()

	// Room, if not nil, is called in the background before the file grows. bytes is the
	// new maximum size of the file together with its temporary file. Room returns when
	// the budget has room for bytes.
	Room func(bytes int64) error

	now        func() time.Time
	migrations []func(*bbolt.Tx) error
}

// firstStateSchema is the first schema of state.db that this program reads;
// the rows of schema 1 were different.
const firstStateSchema = 2

// migrations[i] converts a file from schema firstStateSchema+i to the next schema. The
// current schema is firstStateSchema plus the number of migrations. The testdata
// directory has a file for every released schema.
var migrations []func(*bbolt.Tx) error

// A State stores the rows of state.db. Only a background goroutine accesses the file, so that a
// slow or failing disk does not block a caller. The State holds one batch of unwritten changes, and
// the owner of the rows holds all other changes.
type State struct {
	path string
	o    StateOptions
	k    keeper

	compacts chan chan error

	status StateStatus // guarded by k.mu

	// Only the background goroutine accesses the following fields.
	was    os.FileInfo // the last written file
	lost   bool        // all entries must be written again
	loaded bool
	wait   int     // commits until compact checks the file again
	batch  []Entry // entries that have not been written
}

// StateStatus describes a State and its file.
type StateStatus struct {
	Path    string    `json:"path"`
	Open    bool      `json:"open"`
	Error   string    `json:"error,omitempty"` // the cause if the file cannot be read or written
	Since   text.Time `json:"since,omitzero"`  // when the error started
	Schema  int       `json:"schema"`          // schema that this program writes
	Bytes   int64     `json:"bytes"`
	Loaded  uint64    `json:"loaded"`           // entries read
	Written uint64    `json:"written"`          // entries written
	Dropped uint64    `json:"dropped,omitzero"` // entries outside bbolt's limits
}

// OpenState starts a State in the directory dir. OpenState returns immediately and never fails. If
// an operation fails, the error is logged and the operation is retried, because the previous
// process may still have the file open after a restart.
func OpenState(dir string, o StateOptions) *State {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Every == 0 {
		o.Every = stateEvery
	}
	if o.MaxSize == 0 {
		o.MaxSize = stateMax
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.migrations == nil {
		o.migrations = migrations
	}
	s := &State{path: filepath.Join(dir, StateFile), o: o, compacts: make(chan chan error),
		k: newKeeper(keeperOptions{name: StateFile, data: "state", state: dir, log: o.Log, now: o.now, hint: stateHint})}
	s.status.Path, s.status.Schema = s.path, firstStateSchema+len(o.migrations)
	s.k.start(s.run)
	return s
}

// Flush writes all changes and returns any write error.
func (s *State) Flush(ctx context.Context) error { return s.k.flush(ctx) }

// Close writes the last changes and releases the file. Every call returns that
// write's error.
func (s *State) Close() error {
	if err := s.k.close(); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// Status returns the State's status.
func (s *State) Status() StateStatus {
	size := s.k.size()
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	st := s.status
	st.Open, st.Bytes, st.Error, st.Since = s.k.open != nil, size, s.k.problem, text.At(s.k.since)
	return st
}

// Snapshot returns a consistent copy of the file, or ErrFinished if the
// file is not open.
func (s *State) Snapshot() (*Snapshot, error) { return s.k.snapshot(StateFile) }

// WriteTo writes a consistent copy of the file; see Snapshot.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	snap, err := s.Snapshot()
	if err != nil {
		return 0, err
	}
	n, err := snap.WriteTo(w)
	return n, errors.Join(err, snap.Close())
}

// run is the background goroutine.
func (s *State) run() {
	debug.SetPanicOnFault(true) // see guard

	timer := time.NewTimer(0)
	defer timer.Stop()
	attempt := func() error {
		err := safego.Run(s.write)
		s.k.report(err)
		timer.Reset(s.k.pause(err, s.o.Every))
		return err
	}
	for {
		select {
		case <-timer.C:
			_ = attempt()
		case reply := <-s.k.flushes:
			reply <- attempt()
		case reply := <-s.compacts:
			reply <- safego.Run(s.compactNow)
		case <-s.k.stop:
			s.k.report(safego.Run(s.write))
			s.k.shut()
			return
		}
	}
}

func stateHint(err error) string {
	switch {
	case errors.Is(err, bolterrors.ErrMaxSizeReached):
		return "remove the file while the filter is running: it is rewritten from memory without free pages"
	case errors.Is(err, ErrOlder):
		return "the filter continues without this state; it creates a new one in a new directory"
	case errors.Is(err, ErrNewer):
		return "run the newer program again, or move the file away to start a new one"
	}
	return hint(err)
}

// write opens the file if necessary and writes all changes.
func (s *State) write() error {
	// Replace a corrupt file only once. After a second failure, the changes wait for
	// the next attempt.
	for broken := false; ; {
		if err := s.ready(); err != nil {
			return err
		}
		if len(s.batch) == 0 && s.o.Changes != nil {
			// Each entry in a commit uses up to one page. A small file must
			// have room for the pages of a batch.
			s.batch = s.o.Changes(int(min(stateBatch, max(s.o.MaxSize/(64<<10), 1))))
		}
		if len(s.batch) == 0 {
			if s.oversized() {
				s.wait = 0
				return s.compact() // compact after all superfluous rows have been deleted
			}
			return nil
		}
		if err := s.compact(); err != nil {
			return fmt.Errorf("compact %s: %w", s.path, err)
		}
		dropped, err := s.commit()
		if err == nil {
			s.count(len(s.batch)-dropped, dropped)
			s.batch = nil
			continue
		}
		again := s.failed(err) && !broken
		if !again {
			return fmt.Errorf("write %s: %w", s.path, err)
		}
		broken = true
	}
}

// count counts the entries of a commit and logs the first drops.
func (s *State) count(written, dropped int) {
	s.k.mu.Lock()
	first := dropped > 0 && s.status.Dropped == 0
	s.status.Written += uint64(written)
	s.status.Dropped += uint64(dropped)
	s.k.mu.Unlock()
	if first {
		s.k.log.Error("state entries invalid, dropped", "file", s.path, "entries", dropped)
	}
}

// failed releases the file after err. failed reports whether the file was corrupt and has been
// quarantined.
func (s *State) failed(err error) bool {
	if errors.Is(err, bolterrors.ErrMaxSizeReached) || errors.Is(err, errBudget) || errors.Is(err, ErrInUse) {
		return false // the file is intact
	}
	usable := !s.k.replaced()
	s.k.release(err)
	return isDamaged(err) && (!usable || s.quarantine(err) == nil)
}

// commit writes the batch. Entries outside bbolt's limits are dropped, because they would
// block all later entries.
func (s *State) commit() (dropped int, err error) {
	if s.o.Room != nil && !s.oversized() {
		if err := s.o.Room(s.maxSize()); err != nil {
			return 0, err
		}
	}
	err = s.k.open.update(func(tx *bbolt.Tx) (err error) {
		dropped, err = putEntries(tx, s.batch)
		return err
	})
	return dropped, err
}

// putEntries writes or deletes entries. putEntries drops entries outside bbolt's limits and returns
// their number.
func putEntries(tx *bbolt.Tx, batch []Entry) (dropped int, err error) {
	for i := range batch {
		e := &batch[i]
		if len(e.Key) == 0 || len(e.Key) > bbolt.MaxKeySize || int64(len(e.Value)) > bbolt.MaxValueSize {
			dropped++
			continue
		}
		b, err := tx.CreateBucketIfNotExists([]byte(e.Bucket))
		switch {
		case err != nil:
		case e.Value == nil:
			err = b.Delete(e.Key)
		default:
			err = b.Put(e.Key, e.Value)
		}
		if errors.Is(err, bolterrors.ErrIncompatibleValue) {
			return dropped, damaged("a bucket and an entry of %s are mixed up", e.Bucket)
		}
		if err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

// ready opens the file if it is not open or was replaced. ready loads the file only once.
func (s *State) ready() error {
	if s.k.open != nil && s.k.replaced() {
		s.k.log.Warn("state.db removed or replaced, rewriting it", "file", s.path)
		s.k.release(nil)
	}
	if s.k.open == nil {
		if err := s.openFile(); err != nil {
			return err
		}
	}
	if !s.loaded {
		s.loaded = true
		if err := s.load(); err != nil {
			s.lost = true // the loaded entries must be written again
			if !s.failed(err) {
				return fmt.Errorf("read %s: %w", s.path, err)
			}
			if err := s.openFile(); err != nil {
				return err
			}
		}
	}
	if s.lost && s.o.Rewrite != nil {
		s.o.Rewrite()
	}
	s.lost = false
	return nil
}

// openFile opens or creates the file.
func (s *State) openFile() error {
	if _, err := s.k.lockDirectory(); err != nil {
		return err
	}
	_ = s.k.directory.remove(StateFile + newSuffix) // temporary file left by a crash
	seg, err := openStateFile(s.k.directory, StateFile, s.o.MaxSize, s.o.migrations)
	if isDamaged(err) {
		if err := s.quarantine(err); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		s.lost = true
		seg, err = s.create()
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	info, err := seg.file.Stat()
	if err != nil {
		seg.release(nil)
		return err
	}
	if s.was != nil && !os.SameFile(s.was, info) {
		s.lost = true
	}
	s.was = info
	s.k.use(seg)
	return nil
}

// create creates the file under a temporary name, so that a crash does not leave an
// incomplete file.
func (s *State) create() (*segment, error) {
	seg, err := createFile(s.k.directory, Segment{Name: StateFile}, s.o.MaxSize, firstStateSchema+len(s.o.migrations), s.o.Program, s.o.now())
	if err != nil {
		return nil, err
	}
	if err := commitFile(s.k.directory, StateFile); err != nil {
		seg.release(err)
		return nil, err
	}
	return seg, nil
}

// load passes all entries to the Load function.
func (s *State) load() (err error) {
	if s.o.Load == nil {
		return nil
	}
	var n uint64
	s.o.Load(func(yield func(Entry) bool) {
		for e := range s.k.open.entries(s.o.Buckets, &err) {
			n++
			if !yield(e) {
				return
			}
		}
	})
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.status.Loaded = n
	return err
}

// quarantine quarantines a corrupt file and removes the oldest quarantined
// files if there are too many.
func (s *State) quarantine(reason error) error {
	s.lost = true
	if err := s.k.quarantine(StateFile, reason); err != nil {
		return err
	}
	if names := s.k.directory.trimCopies(); len(names) > 0 {
		s.k.log.Warn("quarantined files removed, too many", "files", strings.Join(names, " "))
	}
	return nil
}

// extraRoom is the number of bytes by which a file may exceed its limit while
// rows are deleted, because deleting rows also requires room.
const extraRoom = 32 << 20

// openStateFile opens an existing file for writing and migrates it.
func openStateFile(d *directory, name string, maxSize int64, migrations []func(*bbolt.Tx) error) (*segment, error) {
	limit := maxSize
	if info, err := d.root.Lstat(name); err == nil && info.Size() > limit {
		limit = info.Size() + extraRoom
	}
	old := false
	seg, err := openFile(d, Segment{Name: name}, limit, func(tx *bbolt.Tx) error {
		n, err := stateSchemaOf(tx, migrations)
		old = n < firstStateSchema+len(migrations)
		return err
	})
	if err == nil && old {
		if err = seg.update(func(tx *bbolt.Tx) error { return migrate(tx, migrations) }); err != nil {
			seg.release(err)
		}
	}
	if err != nil {
		return nil, err
	}
	return seg, nil
}

// stateSchemaOf returns the schema of a state.db. stateSchemaOf returns ErrNewer or ErrOlder if
// this program cannot read the schema.
func stateSchemaOf(tx *bbolt.Tx, migrations []func(*bbolt.Tx) error) (int, error) {
	n, err := schemaOf(tx, firstStateSchema+len(migrations))
	if err == nil && n < firstStateSchema {
		err = knownSchema(n, firstStateSchema)
	}
	return n, err
}

// migrate converts the file to this program's schema in one transaction.
func migrate(tx *bbolt.Tx, migrations []func(*bbolt.Tx) error) error {
	n, err := stateSchemaOf(tx, migrations)
	if err != nil {
		return err
	}
	for ; n < firstStateSchema+len(migrations); n++ {
		if err := migrations[n-firstStateSchema](tx); err != nil {
			return fmt.Errorf("migrate from schema %d to %d: %w", n, n+1, err)
		}
		if err := tx.Bucket(bucketMeta).Put(keySchema, binary.BigEndian.AppendUint16(nil, uint16(n+1))); err != nil {
			return err
		}
	}
	return nil
}
