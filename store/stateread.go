package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// entries iterates over the entries of buckets, copying them from bbolt in batches. entries stops
// at an error, which it stores in failed.
//
// A fault in the mapping must not unwind through the caller, whose locks would
// remain held. Conversely, a panic in the caller must not be treated as
// corruption.
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
					for ; k != nil && len(buf) < rowsBytes; k, v = c.Next() {
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

// ReadState calls visit for each entry in the given buckets of state.db in the state directory dir.
// ReadState does not change the file. If a filter has the file open, ReadState calls live to write
// a copy, and reads the copy. If live is nil, ReadState then returns ErrInUse. The entry is valid
// until visit returns. ReadState returns the first error returned by visit.
func ReadState(dir string, buckets []string, live func(io.Writer) error, visit func(Entry) error) error {
	path := filepath.Join(dir, StateFile)
	db, file, err := openState(dir, live)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	s := segment{db: db, file: file}
	err = s.view(func(tx *bbolt.Tx) error {
		_, err := stateSchemaOf(tx, migrations)
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

// Used reports whether a filter has used the state directory dir. A used directory has a
// state.db, a quarantined copy of it, or sessions. An unreadable directory counts as
// used.
func Used(dir string) bool {
	d, err := openDirectory(dir)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	defer d.root.Close()
	files, err := d.files()
	has := func(f os.FileInfo) bool {
		return f.Name() == StateFile || strings.HasPrefix(f.Name(), StateFile+damagedMark)
	}
	if err != nil || slices.ContainsFunc(files, has) {
		return true
	}
	all, err := Segments(dir)
	return len(all) > 0 || err != nil && !errors.Is(err, os.ErrNotExist)
}

// StateMissing reports whether a filter has used the state directory dir but
// its state.db is missing.
func StateMissing(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, StateFile))
	return errors.Is(err, os.ErrNotExist) && Used(dir)
}

// HasState reports whether the state directory dir has a state.db.
func HasState(dir string) bool {
	d, err := openDirectory(dir)
	if err != nil {
		return false
	}
	defer d.root.Close()
	return exists(d, StateFile)
}

// openState opens state.db, or the copy of it that live writes.
func openState(dir string, live func(io.Writer) error) (*bbolt.DB, *os.File, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return nil, nil, err
	}
	defer d.root.Close()
	for tries := 0; ; tries++ {
		f, err := d.open(StateFile, os.O_RDONLY)
		if err != nil {
			return nil, nil, err
		}
		db, err := openReadOnly(f)
		if !errors.Is(err, ErrInUse) || live == nil {
			return db, f, err
		}
		copied, err := tempFile()
		if err != nil {
			return nil, nil, err
		}
		err = live(copied)
		if err == nil {
			db, err := openReadOnly(copied)
			return db, copied, err
		}
		copied.Close()
		if !errors.Is(err, ErrFinished) || tries == 5 {
			return nil, nil, fmt.Errorf("%w, and no copy is available: %w", ErrInUse, err)
		}
		// The filter has just released the file, so the file will soon be readable.
		time.Sleep(time.Duration(tries) * 50 * time.Millisecond)
	}
}
