package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// fillPercent leaves little room in pages: keys only ever come at the end.
	fillPercent = 0.9

	// allocSize is the step in which a segment's file grows. Small, so that a
	// quiet day costs little; a step costs one more sync.
	allocSize = 256 << 10

	// lockTimeout makes bbolt try the lock of a file once and not wait.
	lockTimeout = time.Nanosecond
)

// A segment is an open bbolt file.
type segment struct {
	Segment
	db   *bbolt.DB
	file *os.File // the same file, to let go of it when bbolt cannot be asked any more

	rules *ruleTexts // those that were written to it last

	mu     sync.Mutex
	broken bool // bbolt panicked in Begin
}

// guard calls f and turns a panic of bbolt, or a fault of the memory it has
// mapped, into a damagedError. After one, bbolt may hold its own locks: the
// segment must be abandoned and not closed.
//
// A fault means that the file became shorter than its mapping, or that the
// disk could not deliver a page. Without SetPanicOnFault it would end the
// process, and the mail server with it.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return f()
}

// openBolt opens the file that open returns with bbolt. What it returns along
// with an error is closed.
func openBolt(path string, open func() (*os.File, error), o bbolt.Options) (db *bbolt.DB, file *os.File, err error) {
	o.Timeout = lockTimeout
	o.NoStatistics = true
	o.OpenFile = func(string, int, os.FileMode) (*os.File, error) {
		f, err := open()
		file = f
		return f, err
	}
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, 0o640, &o)
		return err
	})
	if err != nil {
		if file != nil {
			file.Close() // lets go of the lock too, if bbolt panicked before it could
		}
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			err = ErrInUse
		case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
			err = damaged("%v", err)
		}
		return nil, nil, err
	}
	return db, file, nil
}

// openRegular opens a file of a segment and refuses everything else, symbolic
// links included.
func openRegular(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) {
		return nil, fmt.Errorf("open %s: is a symbolic link, which is refused", path)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open %s: is no regular file", path)
	}
	return f, nil
}

// openDir opens a directory of ours. One that leads elsewhere is refused: who can
// put it there could have root rename and remove files where he likes.
func openDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		if info, e := os.Lstat(path); e == nil && info.Mode().Type() == fs.ModeSymlink {
			return nil, fmt.Errorf("open %s: is a symbolic link, which is refused; name the directory itself with store or -s", path)
		}
		return nil, err
	}
	return f, nil
}

// openSegment opens an existing segment for writing, after checking it.
func openSegment(dir string, info Segment, limit int64) (*segment, error) {
	path := filepath.Join(dir, info.Name)
	f, err := openRegular(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	// The check needs no lock: who else writes holds the directory's.
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s, err := newSegment(info, path, func() (*os.File, error) { return f, nil }, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.view(checkSchema); err != nil {
		s.release(err)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// createSegment makes a new segment. It gets its name only when it is whole, so
// that a crash leaves no half of one behind.
func createSegment(dir string, info Segment, limit int64, program string, now time.Time) (*segment, error) {
	path := filepath.Join(dir, info.Name)
	temp := path + newSuffix
	s, err := initSegment(temp, info, limit, program, now)
	if err != nil {
		return nil, err
	}
	s.release(nil)
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return newSegment(info, path, func() (*os.File, error) { return openRegular(path, os.O_RDWR) }, limit)
}

// initSegment makes a segment without records, under a name that is not its own.
func initSegment(temp string, info Segment, limit int64, program string, now time.Time) (*segment, error) {
	os.Remove(temp) // a crash may have left it
	s, err := newSegment(info, temp, func() (*os.File, error) { return openRegular(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL) }, limit)
	if err != nil {
		os.Remove(temp)
		return nil, err
	}
	err = s.update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketSessions); err != nil {
			return err
		}
		return errors.Join(
			meta.Put(keySchema, binary.BigEndian.AppendUint16(nil, schema)),
			meta.Put(keyCreated, binary.BigEndian.AppendUint64(nil, uint64(now.UnixMicro()))),
			meta.Put(keyProgram, []byte(program)))
	})
	if err != nil {
		s.release(err)
		os.Remove(temp)
		return nil, err
	}
	return s, nil
}

func newSegment(info Segment, path string, open func() (*os.File, error), limit int64) (*segment, error) {
	db, file, err := openBolt(path, open, bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		// Mapped once and for all: to map anew, bbolt would have to wait for
		// the readers of a snapshot.
		InitialMmapSize: int(limit),
		MaxSize:         int(limit),
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocSize
	return &segment{Segment: info, db: db, file: file}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems cannot
		return err
	}
	return nil
}

// begin begins a transaction. If bbolt panics in it, which a file cut short
// brings about, it keeps its locks: whoever came next would wait for ever. So
// that is noted, and nobody comes next.
func (s *segment) begin(writable bool) (tx *bbolt.Tx, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return nil, damaged("it has failed before")
	}
	s.broken = true
	tx, err = s.db.Begin(writable)
	s.broken = false
	return tx, err
}

func (s *segment) update(f func(*bbolt.Tx) error) error {
	return guard(func() error {
		tx, err := s.begin(true)
		if err != nil {
			return err
		}
		err = f(tx)
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback() // nothing is left to do if Commit has done it
		}
		return err
	})
}

func (s *segment) view(f func(*bbolt.Tx) error) error {
	return guard(func() error {
		tx, err := s.begin(false)
		if err != nil {
			return err
		}
		return errors.Join(f(tx), tx.Rollback())
	})
}

// release closes the segment after err, or after no error.
func (s *segment) release(err error) {
	if isDamaged(err) {
		s.file.Close() // bbolt may never return; its mapping is lost
		return
	}
	_ = guard(s.db.Close) // everything in it is committed: nothing can be lost
}

func isDamaged(err error) bool {
	var d *damagedError
	return errors.As(err, &d)
}

// commit writes records, which are laid out as in a buffer, and the texts of
// rules that are new, and adds to the counters of dropped records.
func (s *segment) commit(records []byte, drops Dropped, rules *ruleTexts) error {
	err := s.update(func(tx *bbolt.Tx) error {
		if rules != s.rules {
			if err := putRules(tx, rules); err != nil {
				return err
			}
		}
		b := tx.Bucket(bucketSessions)
		if b == nil {
			return damaged("the bucket of sessions is missing")
		}
		b.FillPercent = fillPercent
		for len(records) > 0 {
			var key, value []byte
			key, value, records = nextRecord(records)
			if err := b.Put(key, value); err != nil {
				return err
			}
		}
		return addDropped(tx, drops)
	})
	if err == nil {
		s.rules = rules
	}
	return err
}

func addDropped(tx *bbolt.Tx, drops Dropped) error {
	if drops == (Dropped{}) {
		return nil
	}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return damaged("the bucket of meta data is missing")
	}
	old := readDropped(meta)
	for r, n := range drops {
		if n > 0 {
			key := []byte(keyDropped + Reasons[r])
			if err := meta.Put(key, binary.BigEndian.AppendUint64(nil, old[r]+n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func readDropped(meta *bbolt.Bucket) (d Dropped) {
	for r := range d {
		if v := meta.Get([]byte(keyDropped + Reasons[r])); len(v) == 8 {
			d[r] = binary.BigEndian.Uint64(v)
		}
	}
	return d
}

// checkSchema refuses what this program cannot read.
func checkSchema(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil || tx.Bucket(bucketSessions) == nil {
		return damaged("a bucket is missing")
	}
	v := meta.Get(keySchema)
	if len(v) != 2 {
		return damaged("no schema version")
	}
	if n := binary.BigEndian.Uint16(v); n > schema {
		return fmt.Errorf("schema %d, this program knows up to %d: %w", n, schema, ErrNewer)
	}
	return nil
}

// A Snapshot is a consistent copy of a segment that is being written. While it
// is open the segment cannot reuse its free space: copy it soon and close it.
type Snapshot struct {
	Segment Segment
	tx      *bbolt.Tx
}

// WriteTo writes the copy: Segment.Size bytes.
func (s *Snapshot) WriteTo(w io.Writer) (n int64, err error) {
	err = guard(func() (err error) {
		n, err = s.tx.WriteTo(w)
		return err
	})
	return n, err
}

// Close ends the snapshot.
func (s *Snapshot) Close() error { return guard(s.tx.Rollback) }

// lockShared takes the lock that bbolt takes for reading, if nobody writes.
func lockShared(f *os.File) error { return lock(f, syscall.LOCK_SH) }

// lockExclusive takes the lock that bbolt takes for writing, if nobody has the
// file open.
func lockExclusive(f *os.File) error { return lock(f, syscall.LOCK_EX) }

func lock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}
