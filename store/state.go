package store

// What is remembered across sessions is in DIR/state.db (mode 0640), a bbolt
// file with a bucket for each table, whose rows package memory describes, and
//
//	meta  "schema"   uint16, big-endian: 1
//	      "created"  int64, big-endian: microseconds since 1970
//	      "program"  text: version of the program that made the file
//
// DIR/state.db.damaged-20261102T101500Z was set aside, and DIR/state.db.new is
// being made; only a crash leaves it behind.

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
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

const (
	stateFile = "state.db"

	stateEvery = 10 * time.Second
	stateMax   = 256 << 20 // bytes of the file
	stateBatch = 2000      // entries in a commit: a longer one shows in latency
)

// An Entry is one thing that is remembered. A nil Value deletes it.
type Entry struct {
	Bucket     string
	Key, Value []byte
}

// StateOptions are the settings of a State.
type StateOptions struct {
	Buckets []string      // in the order in which they are loaded; others are left alone
	Program string        // version to note in a new file
	Log     *slog.Logger  // nil: be silent
	Every   time.Duration // how often changes are written; 10 s if not set
	MaxSize int64         // of the file in bytes; 256 MiB if not set

	// Load is called in the background when the file has been opened, with
	// all that is in it. An entry is valid only until the next one.
	Load func(iter.Seq[Entry])
	// Changes returns at most n entries that have changed since it was last
	// called. It is called in the background, after Load.
	Changes func(n int) []Entry
	// Rewrite is called when the file is gone, and a new one needs everything.
	Rewrite func()

	now        func() time.Time
	migrations []func(*bbolt.Tx) error
}

// migrations lead from one schema to the next: the first from 1 to 2. The schema
// of this program is one more than there are. A file of every schema that ever
// was is kept in testdata.
var migrations []func(*bbolt.Tx) error

// A State keeps what is remembered across sessions. It is opened, read and
// written in the background; nothing that happens to the disk makes anybody
// wait. What cannot be written stays with its owner, except for one batch.
type State struct {
	dir, path string
	o         StateOptions
	log       *slog.Logger

	flushes chan chan error
	stop    chan struct{}
	done    chan struct{}
	closing sync.Once

	mu     sync.Mutex // for what follows, which only the background changes
	status StateStatus
	open   *segment

	// Of the background alone.
	batch   []Entry // what could not be written yet
	loaded  bool
	failing string
}

// StateStatus tells how a State is doing.
type StateStatus struct {
	Path    string    `json:"path"`
	Open    bool      `json:"open"`
	Error   string    `json:"error,omitempty"` // why it cannot be read or written
	Since   time.Time `json:"since,omitzero"`  // of the error
	Bytes   int64     `json:"bytes"`
	Loaded  uint64    `json:"loaded"`  // entries read
	Written uint64    `json:"written"` // entries written
}

// OpenState opens the state in the directory dir in the background. It returns
// at once and cannot fail; what goes wrong is logged, and tried again: after a
// restart, the process before may still hold the file.
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
	s := &State{
		dir: dir, path: filepath.Join(dir, stateFile), o: o, log: o.Log,
		flushes: make(chan chan error), stop: make(chan struct{}), done: make(chan struct{}),
	}
	s.status.Path = s.path
	go s.run()
	return s
}

// Flush returns when all that Changes has to give is on disk, or with the error
// of the attempt.
func (s *State) Flush(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case s.flushes <- reply:
	case <-s.done:
		return fmt.Errorf("flush %s: it is closed", s.path)
	case <-ctx.Done():
		return fmt.Errorf("flush %s: %w", s.path, ctx.Err())
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flush %s: %w", s.path, ctx.Err())
	}
}

// Close writes the last changes and lets go of the file.
func (s *State) Close() error {
	s.closing.Do(func() { close(s.stop) })
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Error != "" {
		return fmt.Errorf("write %s: %s", s.path, s.status.Error)
	}
	return nil
}

// Status tells how the State is doing.
func (s *State) Status() StateStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Open = s.open != nil
	if s.open != nil {
		if info, err := s.open.file.Stat(); err == nil {
			st.Bytes = info.Size()
		}
	}
	return st
}

// Snapshot makes a consistent copy of what is on disk.
func (s *State) Snapshot() (*Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil, fmt.Errorf("copy %s: %w", s.path, ErrFinished)
	}
	snap := &Snapshot{Segment: s.open.Segment}
	err := guard(func() (err error) {
		if snap.tx, err = s.open.begin(false); err == nil {
			snap.Segment.Size = snap.tx.Size()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", s.path, err)
	}
	return snap, nil
}

func (s *State) run() {
	defer close(s.done)
	debug.SetPanicOnFault(true) // see guard

	retry := retryFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	attempt := func() error {
		err := s.write()
		s.report(err)
		if err != nil {
			timer.Reset(retry)
			retry = min(2*retry, retryLast)
		} else {
			retry = retryFirst
			timer.Reset(s.o.Every)
		}
		return err
	}
	for {
		select {
		case <-timer.C:
			_ = attempt()
		case reply := <-s.flushes:
			reply <- attempt()
		case <-s.stop:
			s.report(s.write())
			s.letGo(nil)
			return
		}
	}
}

// report tells when it begins to fail, fails for another reason, or works again.
func (s *State) report(err error) {
	switch {
	case err != nil && cause(err) != s.failing:
		s.log.Error("what is remembered cannot be read or written; it is kept in memory", "err", err, "hint", hint(err))
	case err == nil && s.failing != "":
		s.log.Info("what is remembered is written again", "file", s.path)
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.failing, s.status.Error, s.status.Since = "", "", time.Time{}
		return
	}
	if s.failing == "" {
		s.status.Since = s.o.now()
	}
	s.failing, s.status.Error = cause(err), err.Error()
}

// write makes sure that the file is open and writes all changes to it.
func (s *State) write() error {
	if s.open != nil && s.replaced() {
		s.log.Warn("the file of what is remembered was removed or replaced; it is written anew", "file", s.path)
		s.letGo(nil)
	}
	if s.open == nil {
		if err := s.openFile(); err != nil {
			return err
		}
	}
	for {
		if len(s.batch) == 0 && s.o.Changes != nil {
			s.batch = s.o.Changes(stateBatch)
		}
		if len(s.batch) == 0 {
			return nil
		}
		if err := s.commit(); err != nil {
			s.letGo(err)
			if isDamaged(err) {
				s.setAside(err)
			}
			return fmt.Errorf("write %s: %w", s.path, err)
		}
		s.mu.Lock()
		s.status.Written += uint64(len(s.batch))
		s.mu.Unlock()
		s.batch = nil
	}
}

func (s *State) commit() error {
	return s.open.update(func(tx *bbolt.Tx) error {
		for i := range s.batch {
			e := &s.batch[i]
			b := tx.Bucket([]byte(e.Bucket))
			if b == nil {
				return damaged("the bucket %s is missing", e.Bucket)
			}
			var err error
			if e.Value == nil {
				err = b.Delete(e.Key)
			} else {
				err = b.Put(e.Key, e.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// replaced tells whether the name of the file leads to something else now.
func (s *State) replaced() bool {
	have, err := s.open.file.Stat()
	if err != nil {
		return true
	}
	now, err := os.Lstat(s.path)
	return err != nil || !os.SameFile(have, now)
}

// openFile opens the file, or makes it. What it holds is loaded the first time;
// later it is the memory that knows better.
func (s *State) openFile() error {
	if err := os.Mkdir(s.dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	seg, err := s.openExisting()
	switch {
	case isDamaged(err):
		s.setAside(err)
		fallthrough
	case errors.Is(err, fs.ErrNotExist):
		if seg, err = s.create(); err != nil {
			return fmt.Errorf("make %s: %w", s.path, err)
		}
		if s.o.Rewrite != nil {
			s.o.Rewrite()
		}
		s.loaded = true
	case err != nil:
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	s.mu.Lock()
	s.open = seg
	s.mu.Unlock()
	if s.loaded {
		return nil
	}
	n, err := s.load()
	if err != nil {
		s.letGo(err)
		if isDamaged(err) {
			s.setAside(err)
		}
		return fmt.Errorf("read %s: %w", s.path, err)
	}
	s.loaded = true
	s.mu.Lock()
	s.status.Loaded = n
	s.mu.Unlock()
	return nil
}

func (s *State) segment(path string, open func() (*os.File, error)) (*segment, error) {
	return newSegment(Segment{Name: stateFile}, path, open, s.o.MaxSize)
}

func (s *State) openExisting() (*segment, error) {
	f, err := openRegular(s.path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	// The lock comes first: a file that another process is writing would not
	// pass the check. bbolt takes it again, on the same descriptor.
	if err := lockExclusive(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	seg, err := s.segment(s.path, func() (*os.File, error) { return f, nil })
	if err != nil {
		return nil, err
	}
	err = seg.update(s.migrate)
	if err != nil {
		seg.release(err)
		return nil, err
	}
	return seg, nil
}

// migrate brings the file to the schema of this program, and makes the buckets
// that are missing.
func (s *State) migrate(tx *bbolt.Tx) error {
	n, err := schemaOf(tx)
	if err != nil {
		return err
	}
	known := len(s.o.migrations) + 1
	if n > known {
		return fmt.Errorf("schema %d, this program knows up to %d: %w", n, known, ErrNewer)
	}
	for ; n < known; n++ {
		if err := s.o.migrations[n-1](tx); err != nil {
			return fmt.Errorf("from schema %d to %d: %w", n, n+1, err)
		}
		if err := tx.Bucket(bucketMeta).Put(keySchema, binary.BigEndian.AppendUint16(nil, uint16(n+1))); err != nil {
			return err
		}
	}
	for _, b := range s.o.Buckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
			return err
		}
	}
	return nil
}

func schemaOf(tx *bbolt.Tx) (int, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return 0, damaged("the bucket of meta data is missing")
	}
	v := meta.Get(keySchema)
	if len(v) != 2 || v[0] == 0 && v[1] == 0 {
		return 0, damaged("no schema version")
	}
	return int(binary.BigEndian.Uint16(v)), nil
}

// create makes the file under another name, so that a crash leaves no half of it.
func (s *State) create() (*segment, error) {
	temp := s.path + newSuffix
	os.Remove(temp)
	seg, err := s.segment(temp, func() (*os.File, error) { return openRegular(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL) })
	if err != nil {
		os.Remove(temp)
		return nil, err
	}
	err = seg.update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		return errors.Join(
			meta.Put(keySchema, binary.BigEndian.AppendUint16(nil, uint16(len(s.o.migrations)+1))),
			meta.Put(keyCreated, binary.BigEndian.AppendUint64(nil, uint64(s.o.now().UnixMicro()))),
			meta.Put(keyProgram, []byte(s.o.Program)),
			s.migrate(tx))
	})
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		seg.release(err)
		os.Remove(temp)
		return nil, err
	}
	return seg, nil
}

// load gives all entries to their owner.
func (s *State) load() (n uint64, err error) {
	if s.o.Load == nil {
		return 0, nil
	}
	err = s.open.view(func(tx *bbolt.Tx) error {
		s.o.Load(func(yield func(Entry) bool) {
			for e := range entries(tx, s.o.Buckets) {
				n++
				if !yield(e) {
					return
				}
			}
		})
		return nil
	})
	return n, err
}

func entries(tx *bbolt.Tx, buckets []string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, name := range buckets {
			b := tx.Bucket([]byte(name))
			if b == nil {
				continue
			}
			c := b.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				if v != nil && !yield(Entry{name, k, v}) {
					return
				}
			}
		}
	}
}

// letGo closes the file after err, or after no error.
func (s *State) letGo(err error) {
	s.mu.Lock()
	seg := s.open
	s.open = nil
	s.mu.Unlock()
	if seg == nil {
		return
	}
	// bbolt waits for the readers of a snapshot; they get only a moment.
	released := make(chan struct{})
	go func() {
		defer close(released)
		seg.release(err)
	}()
	select {
	case <-released:
	case <-time.After(closeWait):
	}
}

// setAside renames the damaged file, so that it is neither used nor lost.
func (s *State) setAside(why error) {
	aside := s.path + damagedMark + strings.ReplaceAll(s.o.now().UTC().Format("20060102T150405.000"), ".", "") + "Z"
	if err := os.Rename(s.path, aside); err != nil {
		s.log.Error("the damaged file of what is remembered cannot be set aside", "err", err, "damage", why)
		return
	}
	s.log.Error("the damaged file of what is remembered was set aside; bans and good peers that only it knew are lost", "file", aside, "err", why)
}

// ReadState calls visit for all that the state directory dir remembers in
// buckets. It opens the file only for reading; if a filter has it open, live
// writes a copy of it. The entry is valid until visit returns.
func ReadState(dir string, buckets []string, live func(io.Writer) error, visit func(Entry) error) error {
	path := filepath.Join(dir, stateFile)
	db, file, err := openReadOnly(func() (*os.File, error) { return openRegular(path, os.O_RDONLY) })
	if errors.Is(err, ErrInUse) {
		var copied *os.File
		if copied, err = tempFile(); err != nil {
			return err
		}
		if err = live(copied); err != nil {
			copied.Close()
			return fmt.Errorf("%s: %w, and no copy can be had: %w", path, ErrInUse, err)
		}
		db, file, err = openReadOnly(func() (*os.File, error) { return copied, nil })
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	s := segment{db: db, file: file}
	var stopped error
	err = s.view(func(tx *bbolt.Tx) error {
		n, err := schemaOf(tx)
		if err != nil {
			return err
		}
		if known := len(migrations) + 1; n > known {
			return fmt.Errorf("schema %d, this program knows up to %d: %w", n, known, ErrNewer)
		}
		for e := range entries(tx, buckets) {
			if stopped = visit(e); stopped != nil {
				break
			}
		}
		return nil
	})
	s.release(err)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return stopped
}
