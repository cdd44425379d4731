package store

// What is remembered across sessions is in DIR/state.db (mode 0640), a bbolt
// file with a bucket for each table, whose rows package memory describes, and
//
//	meta  "schema"   uint16, big-endian: 1
//	      "created"  int64, big-endian: microseconds since 1970
//	      "program"  text: version of the program that made the file
//
// DIR/state.db.damaged-20261102T101500000Z was set aside, and DIR/state.db.new
// is being made; only a crash leaves it behind. Whoever writes holds a flock(2)
// on DIR, so that two never make the file at once, and bbolt's on the file.

import (
	"bytes"
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
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"scanwatch/internal/contain"
)

const (
	stateFile = "state.db"

	stateEvery   = 5 * time.Second
	stateMax     = 256 << 20 // bytes of the file
	stateBatch   = 2000      // entries in a commit: a longer one shows in latency
	compactEvery = 20        // commits: looking for empty room goes through the file
	stateAside   = 3         // damaged files that are kept; a failing disk makes many
)

// An Entry is one thing that is remembered. A nil Value deletes it.
type Entry struct {
	Bucket     string
	Key, Value []byte
}

// StateOptions are the settings of a State.
type StateOptions struct {
	Buckets []string      // in the order in which they are loaded; others are left alone, "meta" is taken
	Program string        // version to note in a new file
	Log     *slog.Logger  // nil: be silent
	Every   time.Duration // how often changes are written; 5 s if not set
	MaxSize int64         // of the file in bytes; 256 MiB if not set

	// Load is called once, in the background, when the file has been opened
	// or made, with all that is in it. An entry is valid only until the next
	// one. bbolt has no checksums for data: any bytes may come. If the file
	// turns out to be damaged on the way, the entries end there.
	Load func(iter.Seq[Entry])
	// Changes returns at most n entries that have changed since it was last
	// called; they are the State's from then on. It is called in the
	// background, after Load.
	Changes func(n int) []Entry
	// Rewrite is called, after Load, when the file was made or is not the one
	// that was written before: Changes has to return everything again. What else
	// is in the file stays there.
	Rewrite func()

	// Room, if not nil, is called in the background before the file may grow, with
	// the size that all files of the state may have from then on, in bytes. It
	// returns when the budget has that room.
	Room func(bytes int64) error

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
	lock    *os.File    // the directory
	was     os.FileInfo // the file that was written last
	lost    bool        // the file has to be written anew
	loaded  bool
	wait    int     // commits until compact looks again
	batch   []Entry // what could not be written yet
	failing string  // the cause of the error that was logged last; empty when all is well
}

// StateStatus tells how a State is doing.
type StateStatus struct {
	Path    string    `json:"path"`
	Open    bool      `json:"open"`
	Error   string    `json:"error,omitempty"` // why it cannot be read or written
	Since   time.Time `json:"since,omitzero"`  // of the error
	Schema  int       `json:"schema"`          // that this program writes
	Bytes   int64     `json:"bytes"`
	Loaded  uint64    `json:"loaded"`            // entries read
	Written uint64    `json:"written"`           // entries written
	LeftOut uint64    `json:"left_out,omitzero"` // entries that no bbolt file can hold
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
	s.status.Path, s.status.Schema = s.path, len(o.migrations)+1
	contain.Loop(s.log, "writing what is remembered", s.run, func() { close(s.done) })
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

// Close writes the last changes and lets go of the file. The error tells why
// they could not be written; later calls return the same.
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

// Snapshot makes a consistent copy of what is on disk. If the file is not open,
// the error is ErrFinished.
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

// WriteTo writes a consistent copy of what is on disk, as Snapshot makes it.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	snap, err := s.Snapshot()
	if err != nil {
		return 0, err
	}
	n, err := snap.WriteTo(w)
	return n, errors.Join(err, snap.Close())
}

// run is the background.
func (s *State) run() {
	debug.SetPanicOnFault(true) // see guard

	retry := retryFirst
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	attempt := func() error {
		err := contain.Run(s.write)
		s.report(err)
		switch {
		case err == nil:
			retry = retryFirst
			timer.Reset(s.o.Every)
		case errors.Is(err, ErrNewer): // that takes an operator
			timer.Reset(retryLast)
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
		case <-timer.C:
			_ = attempt()
		case reply := <-s.flushes:
			reply <- attempt()
		case <-s.stop:
			s.report(contain.Run(s.write))
			s.letGo(nil)
			if s.lock != nil {
				s.lock.Close()
			}
			return
		}
	}
}

// report tells when it begins to fail, fails for another reason, or works again.
func (s *State) report(err error) {
	switch {
	case err != nil && cause(err) != s.failing:
		s.log.Error("what is remembered cannot be read or written; it is kept in memory", "err", err, "hint", stateHint(err), contain.Stack(err))
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

func stateHint(err error) string {
	switch {
	case errors.Is(err, bolterrors.ErrMaxSizeReached):
		return "remove the file while the filter runs: it is written anew from memory, without gaps"
	case errors.Is(err, ErrNewer):
		return "run the newer program again, or move the file away to begin a new one"
	}
	return hint(err)
}

// write makes sure that the file is open and writes all changes to it.
func (s *State) write() error {
	// A file that turns out to be damaged is followed by a new one; more than
	// that is a failure to be tried again later.
	for broken := false; ; {
		if err := s.ready(); err != nil {
			return err
		}
		if len(s.batch) == 0 && s.o.Changes != nil {
			// A commit takes up to a page for each entry: a small file must have
			// room for that.
			s.batch = s.o.Changes(int(min(stateBatch, max(s.o.MaxSize/(64<<10), 1))))
		}
		if len(s.batch) == 0 {
			if s.over() {
				s.wait = 0
				return s.compact() // by now all is deleted that has no place any more
			}
			return nil
		}
		if err := s.compact(); err != nil {
			return fmt.Errorf("make %s smaller: %w", s.path, err)
		}
		leftOut, err := s.commit()
		if err == nil {
			s.mu.Lock()
			s.status.Written += uint64(len(s.batch) - leftOut)
			s.status.LeftOut += uint64(leftOut)
			first := s.status.LeftOut == uint64(leftOut)
			s.mu.Unlock()
			if leftOut > 0 && first {
				s.log.Error("what is remembered has entries without a key, or too large; they are left out", "file", s.path)
			}
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

// failed lets go of the file after err, and tells whether it was damaged and is
// out of the way.
func (s *State) failed(err error) bool {
	if errors.Is(err, bolterrors.ErrMaxSizeReached) || errors.Is(err, errBudget) || errors.Is(err, ErrInUse) {
		return false // nothing is wrong with the file
	}
	ours := !s.replaced()
	s.letGo(err)
	return isDamaged(err) && (!ours || s.setAside(err) == nil)
}

// commit writes the batch. It leaves out what bbolt cannot take in any file,
// which would hold up everything that comes after it.
func (s *State) commit() (leftOut int, err error) {
	if s.o.Room != nil && !s.over() {
		if err := s.o.Room(s.mostAfter()); err != nil {
			return 0, err
		}
	}
	err = s.open.update(func(tx *bbolt.Tx) error {
		for i := range s.batch {
			e := &s.batch[i]
			if len(e.Key) == 0 || len(e.Key) > bbolt.MaxKeySize || int64(len(e.Value)) > bbolt.MaxValueSize {
				leftOut++
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
				return damaged("a bucket and an entry of %s are mixed up", e.Bucket)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return leftOut, err
}

// over tells that the file is larger than it may be: it was made under a larger limit.
// Until it is made smaller it asks for no room, which there is none of.
func (s *State) over() bool {
	info, err := s.open.file.Stat()
	return err == nil && info.Size() > s.o.MaxSize
}

// compact writes the rows into a new file, without the room that is between
// them, if that is worth it, and goes on with the new one. Rows come and go in no
// order: in time three quarters of a file may be empty, and bbolt never gives
// anything back. Both files together stay below the limit of one, unless the old one
// alone is larger.
func (s *State) compact() error {
	info, err := s.open.file.Stat()
	if err != nil || info.Size() < s.o.MaxSize/8*5 {
		return nil // whoever writes finds out what is wrong
	}
	if s.wait--; s.wait > 0 {
		return nil
	}
	s.wait = compactEvery
	var used int64
	err = s.open.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			st := b.Stats()
			used += int64(st.LeafInuse + st.BranchInuse)
			return nil
		})
	})
	if err != nil {
		return s.unlessDamaged(err)
	}
	room := used/8*10 + 1<<20 // pages are filled to nine tenths
	over := info.Size() > s.o.MaxSize
	if room > s.o.MaxSize || !over && info.Size()+room > s.o.MaxSize {
		return nil
	}
	if s.o.Room != nil && !over {
		if err := s.o.Room(stateSize(s.dir) + room); err != nil {
			return err
		}
	}
	temp := s.path + newSuffix
	os.Remove(temp)
	seg, err := s.segment(temp, s.o.MaxSize, func() (*os.File, error) { return openRegular(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL) })
	if err != nil {
		os.Remove(temp)
		return err
	}
	const batch = 4 << 20
	err = guard(func() error { return bbolt.Compact(seg.db, s.open.db, batch) })
	if isDamaged(err) {
		s.open.mu.Lock()
		s.open.broken = true // bbolt may hold its locks
		s.open.mu.Unlock()
	}
	var now os.FileInfo
	if err == nil {
		now, err = seg.file.Stat()
	}
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		seg.release(err)
		os.Remove(temp)
		return s.unlessDamaged(err)
	}
	s.letGo(nil)
	s.mu.Lock()
	s.open = seg
	s.mu.Unlock()
	s.was, s.wait = now, 0
	s.log.Info("the file of what is remembered was made smaller", "file", s.path, "from", info.Size(), "to", now.Size())
	return syncDir(s.dir)
}

// unlessDamaged is err, but for damage, which is for the next commit to find.
func (s *State) unlessDamaged(err error) error {
	if isDamaged(err) {
		return nil
	}
	return err
}

// mostAfter is the size that the files may have when the batch is written. Each
// entry may change a page of its own, which goes to a new place.
func (s *State) mostAfter() int64 {
	const page = 8 << 10 // with its share of the pages above it
	grow := int64(allocSize)
	for i := range s.batch {
		grow += page + int64(len(s.batch[i].Key)+len(s.batch[i].Value))
	}
	all, file := stateSize(s.dir), int64(0)
	if info, err := s.open.file.Stat(); err == nil {
		file = info.Size()
	}
	return all - file + max(file, min(file+grow, s.o.MaxSize))
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

// ready makes sure that the file is open and still has its name, and that its
// owner knows what it holds.
func (s *State) ready() error {
	if s.open != nil && s.replaced() {
		s.log.Warn("the file of what is remembered was removed or replaced; it is written anew", "file", s.path)
		s.letGo(nil)
	}
	if s.open == nil {
		if err := s.openFile(); err != nil {
			return err
		}
	}
	if !s.loaded {
		s.loaded = true
		if err := s.load(); err != nil {
			s.lost = true // what did come must not be lost
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

// openFile opens the file, or makes it.
func (s *State) openFile() error {
	if err := os.Mkdir(s.dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.lockDir(); err != nil {
		return fmt.Errorf("lock %s: %w", s.dir, err)
	}
	seg, err := s.openExisting()
	if isDamaged(err) {
		if err := s.setAside(err); err != nil {
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
	s.mu.Lock()
	s.open = seg
	s.mu.Unlock()
	return nil
}

// lockDir locks the directory, unless that was done and it is still the same.
func (s *State) lockDir() error {
	if s.lock != nil {
		have, err := s.lock.Stat()
		if err == nil {
			if now, err := os.Stat(s.dir); err == nil && os.SameFile(have, now) {
				return nil
			}
		}
		s.lock.Close()
		s.lock = nil
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	if err := lockExclusive(dir); err != nil {
		dir.Close()
		return err
	}
	s.lock = dir
	return nil
}

func (s *State) segment(path string, limit int64, open func() (*os.File, error)) (*segment, error) {
	return newSegment(Segment{Name: stateFile}, path, open, limit)
}

// overRoom is what a file that is over the limit may grow still: to delete from it
// takes room, too.
const overRoom = 32 << 20

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
	limit := s.o.MaxSize
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		limit = info.Size() + overRoom
	}
	seg, err := s.segment(s.path, limit, func() (*os.File, error) { return f, nil })
	if err != nil {
		return nil, err
	}
	known, old := len(s.o.migrations)+1, false
	err = seg.view(func(tx *bbolt.Tx) error {
		n, err := schemaOf(tx, known)
		old = n < known
		return err
	})
	if err == nil && old {
		err = seg.update(s.migrate)
	}
	if err != nil {
		seg.release(err)
		return nil, err
	}
	return seg, nil
}

// migrate brings the file to the schema of this program, all in one transaction.
func (s *State) migrate(tx *bbolt.Tx) error {
	known := len(s.o.migrations) + 1
	n, err := schemaOf(tx, known)
	if err != nil {
		return err
	}
	for ; n < known; n++ {
		if err := s.o.migrations[n-1](tx); err != nil {
			return fmt.Errorf("from schema %d to %d: %w", n, n+1, err)
		}
		if err := tx.Bucket(bucketMeta).Put(keySchema, binary.BigEndian.AppendUint16(nil, uint16(n+1))); err != nil {
			return err
		}
	}
	return nil
}

// schemaOf returns the schema of a file, and refuses one that is newer than
// known.
func schemaOf(tx *bbolt.Tx, known int) (int, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return 0, damaged("the bucket of meta data is missing")
	}
	v := meta.Get(keySchema)
	if len(v) != 2 || v[0] == 0 && v[1] == 0 {
		return 0, damaged("no schema version")
	}
	n := int(binary.BigEndian.Uint16(v))
	if n > known {
		return n, fmt.Errorf("schema %d, this program knows up to %d: %w", n, known, ErrNewer)
	}
	return n, nil
}

// create makes the file under another name, so that a crash leaves no half of it.
func (s *State) create() (*segment, error) {
	temp := s.path + newSuffix
	os.Remove(temp)
	seg, err := s.segment(temp, s.o.MaxSize, func() (*os.File, error) { return openRegular(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL) })
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
			meta.Put(keyProgram, []byte(s.o.Program)))
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
func (s *State) load() (err error) {
	if s.o.Load == nil {
		return nil
	}
	var n uint64
	s.o.Load(func(yield func(Entry) bool) {
		for e := range s.open.entries(s.o.Buckets, &err) {
			n++
			if !yield(e) {
				return
			}
		}
	})
	s.mu.Lock()
	s.status.Loaded = n
	s.mu.Unlock()
	return err
}

// entries goes through buckets; what goes wrong ends it and is put into failed.
//
// Entries are taken from bbolt many at a time, so that a fault of the mapping
// never passes through whoever uses them: their locks would stay held, and what
// goes wrong on their side would look like damage.
func (s *segment) entries(buckets []string, failed *error) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		var buf, last []byte
		var some []Entry
		for _, name := range buckets {
			last = last[:0]
			for more := true; more; {
				buf, some = buf[:0], some[:0]
				*failed = s.view(func(tx *bbolt.Tx) error {
					b := tx.Bucket([]byte(name))
					if b == nil {
						more = false
						return nil
					}
					c := b.Cursor()
					k, v := c.Seek(last)
					if len(last) > 0 && bytes.Equal(k, last) {
						k, v = c.Next()
					}
					for ; k != nil && len(buf) < cursorBytes; k, v = c.Next() {
						if v == nil {
							return damaged("bucket %s holds another bucket", name)
						}
						from := len(buf)
						to := from + len(k)
						buf = append(append(buf, k...), v...)
						some = append(some, Entry{Bucket: name, Key: buf[from:to:to], Value: buf[to:len(buf):len(buf)]})
					}
					more = k != nil
					return nil
				})
				if *failed != nil {
					return
				}
				for _, e := range some {
					last = append(last[:0], e.Key...)
					if !yield(e) {
						return
					}
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
	contain.Go(s.log, "closing a file", func() {
		defer close(released)
		seg.release(err)
	})
	select {
	case <-released:
	case <-time.After(closeWait):
	}
}

// setAside renames the damaged file, so that it is neither used nor lost, and
// removes the oldest of those that were set aside before.
func (s *State) setAside(why error) error {
	s.lost = true
	aside := s.path + damagedMark + strings.ReplaceAll(s.o.now().UTC().Format("20060102T150405.000"), ".", "") + "Z"
	if err := os.Rename(s.path, aside); err != nil {
		return fmt.Errorf("set aside %s, which is %w: %w", s.path, why, err)
	}
	s.log.Error("the damaged file of what is remembered was set aside and a new one begun; what only it knew is lost", "file", aside, "err", why)
	all, err := os.ReadDir(s.dir) // in order of their names, and so of their times
	if err != nil {
		return nil // there is one too many, at worst
	}
	all = slices.DeleteFunc(all, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), stateFile+damagedMark) })
	for _, e := range all[:max(0, len(all)-stateAside)] {
		_ = os.Remove(filepath.Join(s.dir, e.Name()))
	}
	return nil
}

// ReadState calls visit for all that the state directory dir remembers in
// buckets. It opens the file only for reading; if a filter has it open, live
// writes a copy of it, and if live is nil the error is ErrInUse. The entry is
// valid until visit returns. ReadState ends with the first error of visit.
func ReadState(dir string, buckets []string, live func(io.Writer) error, visit func(Entry) error) error {
	path := filepath.Join(dir, stateFile)
	db, file, err := openState(path, live)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	s := segment{db: db, file: file}
	err = s.view(func(tx *bbolt.Tx) error {
		_, err := schemaOf(tx, len(migrations)+1)
		return err
	})
	var stopped error
	if err == nil {
		for e := range s.entries(buckets, &err) {
			if stopped = visit(e); stopped != nil {
				break
			}
		}
	}
	s.release(err)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return stopped
}

// openState opens the file in place, or else a copy that live writes.
func openState(path string, live func(io.Writer) error) (*bbolt.DB, *os.File, error) {
	for tries := 0; ; tries++ {
		db, file, err := openReadOnly(func() (*os.File, error) { return openRegular(path, os.O_RDONLY) })
		if !errors.Is(err, ErrInUse) || live == nil {
			return db, file, err
		}
		copied, err := tempFile()
		if err != nil {
			return nil, nil, err
		}
		err = live(copied)
		if err == nil {
			return openReadOnly(func() (*os.File, error) { return copied, nil })
		}
		copied.Close()
		if !errors.Is(err, ErrFinished) || tries == 5 {
			return nil, nil, fmt.Errorf("%w, and no copy can be had: %w", ErrInUse, err)
		}
		// Let go of between the two: a moment later it can be read in place.
		time.Sleep(time.Duration(tries) * 50 * time.Millisecond)
	}
}
