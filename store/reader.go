package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/internal/contain"
)

// A Reader goes through recorded sessions. It never makes or changes a file of
// the state directory.
type Reader struct {
	Dir string // the state directory

	// Snapshot writes a consistent copy of a segment that a filter is writing;
	// for one that is finished meanwhile it returns ErrFinished. If it is nil,
	// such segments cannot be read. It is called by another goroutine than Each.
	Snapshot func(w io.Writer, name string) error

	// Problem, if not nil, is told about segments that cannot be read, and about
	// records that cannot be decoded. They are left out; nothing else is.
	Problem func(segment string, err error)

	// Dropped is the sum of what was dropped while the segments that were gone
	// through last were written.
	Dropped Dropped

	// Rules, if not nil, gets the texts of rules of the segments that are gone
	// through, by what RuleRef makes of them. They are hostile only if the file is.
	Rules map[uint32]string

	// Unread is how many segments could not be read at all, of those that were
	// gone through last; Problem was told. Segments that are damaged, or that
	// were set aside, are not among them.
	Unread int
}

// Each calls f for each session that ended at since or later, and before until,
// in the order in which they ended; only around a change of the clock the order
// may be another. A zero time means no limit. The record and
// its texts are valid until f returns. Each ends with the first error of f.
func (r *Reader) Each(since, until time.Time, f func(*Record) error) error {
	var bad badRecords
	var rec Record
	var step Step
	err := r.each(since, until, func(segment string, key, value []byte) (err error) {
		rec = Record{step: &step}
		if err = rec.decode(key, value); err != nil {
			bad.add(segment, err)
			return nil
		}
		return f(&rec)
	})
	bad.report(r.problem)
	return err
}

// Find returns the sessions with the given id, oldest first. There may be
// several, from several runs of smtpd.
func (r *Reader) Find(id uint64) ([]Record, error) {
	var found []Record
	var bad badRecords
	err := r.each(time.Time{}, time.Time{}, func(segment string, key, value []byte) error {
		if binary.BigEndian.Uint64(key[8:]) != id {
			return nil
		}
		rec, err := Decode(key, bytes.Clone(value))
		if err != nil {
			bad.add(segment, err)
			return nil
		}
		found = append(found, rec)
		return nil
	})
	bad.report(r.problem)
	return found, err
}

func (r *Reader) problem(segment string, err error) {
	if r.Problem != nil {
		r.Problem(segment, err)
	}
}

// badRecords counts records that cannot be decoded, so that there is one
// complaint per segment.
type badRecords struct {
	segments []string
	count    []int
	first    []error
}

func (b *badRecords) add(segment string, err error) {
	i := slices.Index(b.segments, segment)
	if i < 0 {
		i = len(b.segments)
		b.segments, b.count, b.first = append(b.segments, segment), append(b.count, 0), append(b.first, err)
	}
	b.count[i]++
}

func (b *badRecords) report(problem func(string, error)) {
	for i, s := range b.segments {
		problem(s, fmt.Errorf("%d records cannot be decoded, the first because of: %w", b.count[i], b.first[i]))
	}
}

// each merges the segments. They overlap only where a record came late, so that
// nearly always one is open, and the next one for its first key.
func (r *Reader) each(since, until time.Time, f func(segment string, key, value []byte) error) error {
	r.Dropped, r.Unread = Dropped{}, 0
	all, err := Segments(r.Dir)
	if err != nil {
		return err
	}
	from, to := keyRange(since, until)
	all = slices.DeleteFunc(all, func(s Segment) bool {
		if !since.IsZero() && s.Day.Before(utcDay(since)) {
			return true
		}
		switch {
		case strings.HasSuffix(s.Name, salvagedMark):
			r.problem(s.Name, errors.New("was found damaged; what could be read of it is in a later part of the day"))
		case s.Damaged:
			r.problem(s.Name, errors.New("was found damaged and set aside"))
		}
		return s.Damaged
	})

	var group []*cursor // the segments that are being merged
	ahead := r.openAhead(all)
	defer func() {
		for _, c := range group {
			c.close()
		}
		if file := <-ahead; file.err == nil {
			_ = guard(file.db.Close)
		}
	}()
	var last []byte // the key that was passed to f last
	for len(all) > 0 || len(group) > 0 {
		// Another segment joins if its records may come before the group's last.
		for len(all) > 0 && !(len(group) > 0 && group[len(group)-1].after(group[:len(group)-1])) {
			info, file := all[0], <-ahead
			all = all[1:]
			ahead = r.openAhead(all)
			c, err := r.open(info, from, to, file)
			if err != nil {
				if !isDamaged(err) {
					r.Unread++
				}
				r.problem(info.Name, err)
			} else if c != nil {
				group = append(group, c)
			}
		}
		if len(group) == 0 {
			break
		}
		first := group[0]
		for _, c := range group[1:] {
			if bytes.Compare(c.key, first.key) < 0 {
				first = c
			}
		}
		if !bytes.Equal(first.key, last) || last == nil {
			last = append(last[:0], first.key...)
			if err := f(first.info.Name, first.key, first.value); err != nil {
				return err
			}
		}
		ok, err := first.next()
		if err != nil {
			r.problem(first.info.Name, err)
		}
		if !ok {
			first.close()
			group = slices.DeleteFunc(group, func(c *cursor) bool { return c == first })
		}
	}
	return nil
}

func keyRange(since, until time.Time) (from, to []byte) {
	if !since.IsZero() {
		// The key is in microseconds: the first whole one at or after since.
		from = AppendKey(nil, since.Add(time.Microsecond-time.Nanosecond), 0)
	}
	if !until.IsZero() {
		to = AppendKey(nil, until.Add(time.Microsecond-time.Nanosecond), 0)
	}
	return from, to
}

// opened is what came of opening the file of a segment.
type opened struct {
	db   *bbolt.DB
	file *os.File
	err  error
}

// openAhead opens the file of the first of these segments, if there is one, while
// the records before it are gone through: to check a file is to read all of it.
func (r *Reader) openAhead(all []Segment) <-chan opened {
	c := make(chan opened, 1)
	if len(all) == 0 {
		c <- opened{err: fs.ErrNotExist}
		return c
	}
	go func() { // contained: it always sends
		var o opened
		err := contain.Run(func() (err error) {
			o.db, o.file, err = r.openFile(all[0])
			return err
		})
		o.err = err
		c <- o
	}()
	return c
}

// open makes a cursor of a file, at the first record of the range. It returns nil
// if there is none, or if the segment has been removed since it was listed.
func (r *Reader) open(info Segment, from, to []byte, o opened) (*cursor, error) {
	db, file, err := o.db, o.file, o.err
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &cursor{info: info, db: db, file: file, from: from, to: to}
	err = guard(func() (err error) {
		if c.tx, err = db.Begin(false); err != nil {
			return err
		}
		if err := checkSchema(c.tx); err != nil {
			return err
		}
		for i, n := range readDropped(c.tx.Bucket(bucketMeta)) {
			r.Dropped[i] += n
		}
		if r.Rules != nil {
			readRules(c.tx.Bucket(bucketMeta), r.Rules)
		}
		c.c = c.tx.Bucket(bucketSessions).Cursor()
		c.last, _ = c.c.Last()
		c.last = bytes.Clone(c.last)
		return nil
	})
	ok := false
	if err == nil {
		ok, err = c.next()
	}
	if !ok {
		c.close()
		return nil, err
	}
	return c, nil
}

// openFile opens a segment in place if it is finished, and otherwise a copy.
func (r *Reader) openFile(info Segment) (*bbolt.DB, *os.File, error) {
	path := filepath.Join(r.Dir, sessionsDir, info.Name)
	for tries := 0; ; tries++ {
		db, file, err := openReadOnly(func() (*os.File, error) { return openRegular(path, os.O_RDONLY) })
		if !errors.Is(err, ErrInUse) {
			return db, file, err
		}
		if r.Snapshot == nil || tries == 5 {
			return nil, nil, fmt.Errorf("%w; if filter-scanwatch is running, its control socket must be reachable", err)
		}
		copied, err := tempFile()
		if err != nil {
			return nil, nil, err
		}
		err = r.Snapshot(copied, info.Name)
		if err == nil {
			return openReadOnly(func() (*os.File, error) { return copied, nil })
		}
		copied.Close()
		if !errors.Is(err, ErrFinished) {
			return nil, nil, err
		}
		// Finished between the two: the writer lets go of the file in a moment.
		time.Sleep(time.Duration(tries) * 50 * time.Millisecond)
	}
}

// tempFile returns a file without a name, so that nothing is left behind.
func tempFile() (*os.File, error) {
	f, err := os.CreateTemp("", "scanwatch-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openReadOnly locks and checks a file and maps it.
func openReadOnly(open func() (*os.File, error)) (*bbolt.DB, *os.File, error) {
	f, err := open()
	if err != nil {
		return nil, nil, err
	}
	// bbolt takes the lock; a file that is being written would not pass the
	// check, so the lock must be asked for first.
	if err := lockShared(f); err != nil {
		f.Close()
		return nil, nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, nil, err
	}
	return openBolt(f.Name(), func() (*os.File, error) { return f, nil }, bbolt.Options{ReadOnly: true})
}

// A cursor goes through the records of a segment. It takes them from bbolt many
// at a time, so that what guards against a broken file costs little, and so
// that nobody else touches the mapping.
type cursor struct {
	info     Segment
	db       *bbolt.DB
	file     *os.File
	tx       *bbolt.Tx
	c        *bbolt.Cursor
	from, to []byte
	last     []byte // the last key of the segment

	key, value []byte // the current record; alias buf
	buf        []byte // records as in a buffer
	rest       []byte // those of buf that come after the current one
	started    bool
	end        bool
	broken     error
}

const cursorBytes = 64 << 10

// next goes to the next record. At the end, or where the segment turns out to be
// broken, it returns false.
func (c *cursor) next() (bool, error) {
	if len(c.rest) == 0 && !c.end {
		if err := c.fill(); err != nil {
			c.end, c.broken = true, err
		}
	}
	if len(c.rest) == 0 {
		return false, c.broken
	}
	c.key, c.value, c.rest = nextRecord(c.rest)
	return true, nil
}

func (c *cursor) fill() error {
	c.buf = c.buf[:0]
	defer func() { c.rest = c.buf }()
	return guard(func() error {
		for len(c.buf) < cursorBytes {
			var k, v []byte
			switch {
			case c.started:
				k, v = c.c.Next()
			case c.from != nil:
				k, v = c.c.Seek(c.from)
			default:
				k, v = c.c.First()
			}
			c.started = true
			if k == nil || c.to != nil && bytes.Compare(k, c.to) >= 0 {
				c.end = true
				return nil
			}
			if len(k) != KeySize || uint64(len(v)) > math.MaxUint32 {
				return damaged("key of %d bytes", len(k))
			}
			c.buf = append(c.buf, k...)
			c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(v)))
			c.buf = append(c.buf, v...)
		}
		return nil
	})
}

// after tells whether all records of c come after those of the others.
func (c *cursor) after(others []*cursor) bool {
	if len(others) == 0 {
		return false // it is not known yet what comes next
	}
	for _, o := range others {
		if bytes.Compare(c.key, o.last) <= 0 {
			return false
		}
	}
	return true
}

func (c *cursor) close() {
	if isDamaged(c.broken) {
		c.file.Close() // bbolt may hold its own locks
		return
	}
	_ = guard(func() error {
		if c.tx != nil {
			_ = c.tx.Rollback()
		}
		return c.db.Close()
	})
}
