package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// fillPercent is high because keys are appended in order, so bbolt never splits a full page.
	fillPercent = 0.9

	// allocSize is the number of bytes by which a file grows. A smaller value
	// would save space on a quiet day but require an additional sync.
	allocSize = 256 << 10

	// lockTimeout limits bbolt to one attempt to lock a file, without waiting.
	lockTimeout = time.Nanosecond
)

// A segment is an open bbolt file.
type segment struct {
	Segment
	db   *bbolt.DB
	file *os.File // used to close the file if bbolt can no longer be called

	rules *ruleTexts // texts in the last commit

	mu     sync.Mutex
	broken bool // bbolt has panicked in Begin
}

// guard calls f. If bbolt panics, or its mapped memory causes a fault, guard returns a
// damagedError. After an error, bbolt may hold locks, so the caller must abandon the
// segment instead of closing it.
//
// A fault means that the file is shorter than its mapping, or that the disk cannot read
// a page. Without SetPanicOnFault, a fault would end the process and thus the mail
// server.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return f()
}

// openBolt opens a file and closes the file on error.
func openBolt(f *os.File, o bbolt.Options) (db *bbolt.DB, err error) {
	o.Timeout = lockTimeout
	o.NoStatistics = true
	o.OpenFile = func(string, int, os.FileMode) (*os.File, error) { return f, nil }
	err = guard(func() (err error) {
		db, err = bbolt.Open(f.Name(), 0o640, &o)
		return err
	})
	if err != nil {
		f.Close() // also releases the lock after a panic of bbolt
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			err = ErrInUse
		case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
			err = damaged("%v", err)
		}
		return nil, err
	}
	return db, nil
}

// openFile opens an existing file for writing. openFile locks the file, checks its pages, and calls
// check to check its content.
func openFile(d *directory, info Segment, limit int64, check func(*bbolt.Tx) error) (*segment, error) {
	f, err := d.open(info.Name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	// Lock the file first, because a file that is being written would not pass the
	// check. bbolt locks the file again, on the same descriptor.
	if err := lockExclusive(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	s, err := newSegment(info, f, limit)
	if err != nil {
		return nil, err
	}
	if err := s.view(check); err != nil {
		s.release(err)
		return nil, err
	}
	return s, nil
}

// createFile creates a file with metadata and the given buckets. The file has a
// temporary name until commitFile renames it, so that a crash does not leave an
// incomplete file.
func createFile(d *directory, info Segment, limit int64, schema int, program string, now time.Time, buckets ...[]byte) (*segment, error) {
	temp := info.Name + newSuffix
	f, err := d.create(temp)
	if err != nil {
		return nil, err
	}
	s, err := newSegment(info, f, limit)
	if err != nil {
		_ = d.remove(temp)
		return nil, err
	}
	err = s.update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		return errors.Join(
			meta.Put(keySchema, binary.BigEndian.AppendUint16(nil, uint16(schema))),
			meta.Put(keyCreated, binary.BigEndian.AppendUint64(nil, uint64(now.UnixMicro()))),
			meta.Put(keyProgram, []byte(program)))
	})
	if err != nil {
		s.release(err)
		_ = d.remove(temp)
		return nil, err
	}
	return s, nil
}

// commitFile renames a complete file, which may still be open, to its final
// name.
func commitFile(d *directory, name string) error {
	if err := d.rename(name+newSuffix, name); err != nil {
		_ = d.remove(name + newSuffix)
		return err
	}
	return d.sync()
}

func openSegment(d *directory, info Segment, limit int64) (*segment, error) {
	s, err := openFile(d, info, limit, checkSchema)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name(info.Name), err)
	}
	return s, nil
}

// createSegment creates a segment without records and opens it.
func createSegment(d *directory, info Segment, limit int64, program string, now time.Time) (*segment, error) {
	s, err := createSessions(d, info, limit, program, now)
	if err != nil {
		return nil, err
	}
	if err := commitFile(d, info.Name); err != nil {
		s.release(err)
		return nil, err
	}
	return s, nil
}

// createSessions creates a segment without records under a temporary name.
func createSessions(d *directory, info Segment, limit int64, program string, now time.Time) (*segment, error) {
	return createFile(d, info, limit, schema, program, now, bucketSessions)
}

// newSegment opens the database in f for writing. newSegment closes f on error.
func newSegment(info Segment, f *os.File, limit int64) (*segment, error) {
	db, err := openBolt(f, bbolt.Options{
		FreelistType: bbolt.FreelistMapType,
		// Map the maximum size immediately, because bbolt waits for readers of
		// snapshots before it extends a mapping.
		InitialMmapSize: int(limit),
		MaxSize:         int(limit),
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocSize
	if info.Sealed { // a sealed segment does not grow later, and is synced when it is complete
		db.AllocSize, db.NoSync, db.NoGrowSync = os.Getpagesize(), true, true
	}
	return &segment{Segment: info, db: db, file: f}, nil
}

// begin starts a transaction. If the file was truncated, bbolt may panic and keep its
// locks. begin then marks the segment as broken, because the next call would wait
// forever.
func (s *segment) begin(writable bool) (tx *bbolt.Tx, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return nil, damaged("a previous access has failed")
	}
	s.broken = true
	tx, err = s.db.Begin(writable)
	s.broken = false
	return tx, err
}

// abandon marks the segment as broken, because bbolt may hold its locks.
func (s *segment) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
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
			_ = tx.Rollback() // does nothing after Commit
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

// release closes the segment. err is the reason and may be nil.
func (s *segment) release(err error) {
	if isDamaged(err) {
		s.file.Close() // db.Close might never return, so the mapping leaks
		return
	}
	_ = guard(s.db.Close) // all data is committed
}

func isDamaged(err error) bool {
	var d *damagedError
	return errors.As(err, &d)
}

// commit writes buffered records, new rule texts and dropped-record counts.
func (s *segment) commit(records []byte, drops Dropped, rules *ruleTexts) error {
	err := s.update(func(tx *bbolt.Tx) error {
		if rules != s.rules {
			if err := putRules(tx, rules); err != nil {
				return err
			}
		}
		b := tx.Bucket(bucketSessions)
		if b == nil {
			return damaged("the sessions bucket is missing")
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
		return damaged("the metadata bucket is missing")
	}
	old := readDropped(meta.Get)
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

func readDropped(get func([]byte) []byte) (d Dropped) {
	for r := range d {
		if v := get([]byte(keyDropped + Reasons[r])); len(v) == 8 {
			d[r] = binary.BigEndian.Uint64(v)
		}
	}
	return d
}

// checkSchema returns an error if this program cannot read the segment.
func checkSchema(tx *bbolt.Tx) error {
	if tx.Bucket(bucketSessions) == nil {
		return damaged("the sessions bucket is missing")
	}
	n, err := schemaOf(tx, schema)
	if err == nil {
		err = knownSchema(n, schema)
	}
	return err
}

// schemaOf returns a file's schema. schemaOf returns ErrNewer if the schema is newer than any that
// this program knows.
func schemaOf(tx *bbolt.Tx, known int) (int, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return 0, damaged("the metadata bucket is missing")
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

// A Snapshot is a consistent copy of a file that is being written. Until Close, bbolt
// cannot reuse free space in the file.
type Snapshot struct {
	Segment Segment
	tx      *bbolt.Tx
}

// WriteTo writes the copy, which has Segment.Size bytes.
func (s *Snapshot) WriteTo(w io.Writer) (n int64, err error) {
	err = guard(func() (err error) {
		n, err = s.tx.WriteTo(w)
		return err
	})
	return n, err
}

// Close releases the snapshot.
func (s *Snapshot) Close() error { return guard(s.tx.Rollback) }

// lockShared locks f as bbolt does for reading. Locking fails while a process has the
// file open for writing.
func lockShared(f *os.File) error { return lock(f, syscall.LOCK_SH) }

// lockExclusive locks f as bbolt does for writing. Locking fails while another process
// has the file open.
func lockExclusive(f *os.File) error { return lock(f, syscall.LOCK_EX) }

func lock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}
