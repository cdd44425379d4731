package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"go.etcd.io/bbolt"
)

// metadata holds the values in the bucket "meta".
type metadata map[string][]byte

func (m metadata) read(b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		m[string(k)] = bytes.Clone(v)
		return nil
	})
}

// get returns a value, as bbolt.Bucket.Get does.
func (m metadata) get(key []byte) []byte { return m[string(key)] }

// rules adds the rule texts to the map all.
func (m metadata) rules(all map[uint32]string) {
	for k, v := range m {
		if ref, ok := ruleKey([]byte(k)); ok {
			all[ref] = string(v)
		}
	}
}

// rows reads the records of a row segment. rows copies records from bbolt in batches to reduce the
// number of calls to guard. Only rows accesses the mapping.
type rows struct {
	segment
	tx    *bbolt.Tx
	c     *bbolt.Cursor
	meta  metadata
	query query

	key, value []byte // the current record, in buf
	buf        []byte // records, encoded as in a buffer
	rest       []byte // the records of buf after the current one
	started    bool
	end        bool
	broken     error
}

const rowsBytes = 64 << 10

// openRows opens a segment of rows and closes the file on error.
func openRows(f *os.File, info Segment, q query) (*cursor, error) {
	db, err := openReadOnly(f)
	if err != nil {
		return nil, err
	}
	r := &rows{segment: segment{Segment: info, db: db, file: f}, query: q, meta: make(metadata)}
	c := &cursor{info: info, src: r}
	err = guard(func() (err error) {
		if r.tx, err = db.Begin(false); err != nil {
			return err
		}
		if err := checkSchema(r.tx); err != nil {
			return err
		}
		if err := r.meta.read(r.tx.Bucket(bucketMeta)); err != nil {
			return err
		}
		r.c = r.tx.Bucket(bucketSessions).Cursor()
		if last, _ := r.c.Last(); len(last) == KeySize {
			c.last = keyOf(last)
		}
		return nil
	})
	if err != nil {
		r.broken = err
		r.close()
		return nil, err
	}
	return c, nil
}

func (r *rows) next() (recordKey, bool, error) {
	if len(r.rest) == 0 && !r.end {
		if err := r.fill(); err != nil {
			r.end, r.broken = true, err
		}
	}
	if len(r.rest) == 0 {
		return recordKey{}, false, r.broken
	}
	r.key, r.value, r.rest = nextRecord(r.rest)
	return keyOf(r.key), true, nil
}

func (r *rows) fill() error {
	r.buf = r.buf[:0]
	defer func() { r.rest = r.buf }()
	return guard(func() error {
		for len(r.buf) < rowsBytes {
			var k, v []byte
			if r.started {
				k, v = r.c.Next()
			} else {
				k, v = r.c.Seek(r.query.from.append(nil))
			}
			r.started = true
			if k == nil {
				r.end = true
				return nil
			}
			if len(k) != KeySize || uint64(len(v)) > math.MaxUint32 {
				return damaged("key of %d bytes", len(k))
			}
			if r.query.ends(keyOf(k)) {
				r.end = true
				return nil
			}
			r.buf = append(r.buf, k...)
			r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(len(v)))
			r.buf = append(r.buf, v...)
		}
		return nil
	})
}

func (r *rows) record(to *Record) error {
	*to = Record{step: to.step, skip: ^r.query.kinds}
	return to.decode(r.key, r.value)
}

func (r *rows) metadata() metadata { return r.meta }

func (r *rows) close() {
	if !isDamaged(r.broken) && r.tx != nil {
		_ = guard(r.tx.Rollback)
	}
	r.release(r.broken)
}

// blocks reads the records of a sealed segment. It reads and decodes the next block in the
// background.
type blocks struct {
	file    *sealedFile
	query   query
	pending []*blockInfo                 // the blocks after the one in ahead
	ahead   <-chan result[*decodedBlock] // the next block; nil at the end
	now     *decodedBlock                // the current block
	row     int                          // the current record
	end     int                          // index of the first record after the selected ones
	errs    []error                      // errors that have not been reported yet
}

// spareBlocks holds blocks whose buffers are free. Each open segment needs two blocks.
type spareBlocks chan *decodedBlock

func (s spareBlocks) get() *decodedBlock {
	select {
	case b := <-s:
		return b
	default:
		return new(decodedBlock)
	}
}

func (s spareBlocks) put(b *decodedBlock) {
	select {
	case s <- b:
	default: // enough
	}
}

// openBlocks opens a sealed segment.
func openBlocks(d *directory, info Segment, q query) (*cursor, error) {
	f, err := openSealed(d, info)
	if err != nil {
		return nil, err
	}
	b := &blocks{file: f, query: q, now: q.spare.get()}
	if f.broken != nil {
		b.errs = append(b.errs, f.broken)
	}
	c := &cursor{info: info, last: f.lastKey(), src: b}
	for i := range f.blocks {
		switch info := &f.blocks[i]; {
		case info.last.compare(q.from) < 0 || q.ends(info.first):
		case q.only == nil || q.only.mayHave(info):
			b.pending = append(b.pending, info)
		default:
			if c.skipped == 0 {
				c.oldest = info.first
			}
			c.skipped += info.sessions
		}
	}
	b.fetch(q.spare.get())
	return c, nil
}

// fetch starts reading the next block in the background.
func (b *blocks) fetch(to *decodedBlock) {
	if b.ahead = nil; len(b.pending) == 0 {
		b.query.spare.put(to)
		return
	}
	info := b.pending[0]
	b.pending = b.pending[1:]
	b.ahead = background(func() (*decodedBlock, error) { return to, b.file.load(info, to, b.query.kinds) })
}

// next moves to the next record. If earlier blocks cannot be read, next returns both an error and
// true.
func (b *blocks) next() (key recordKey, ok bool, err error) {
	for b.row++; b.row >= b.end; {
		if b.ahead == nil {
			return recordKey{}, false, b.failure()
		}
		loaded := <-b.ahead
		b.row, b.end = 0, 0
		if loaded.value != nil { // nil after a panic
			spare := b.now
			b.now = loaded.value
			b.fetch(spare)
		}
		switch {
		case loaded.err == nil:
			b.row = b.now.search(b.query.from)
			if b.end = len(b.now.keys); b.query.to != (recordKey{}) {
				b.end = b.now.search(b.query.to)
			}
		case isDamaged(loaded.err):
			b.errs = append(b.errs, loaded.err)
		default:
			b.ahead = nil
			return recordKey{}, false, loaded.err
		}
	}
	return b.now.keys[b.row], true, b.failure()
}

// failure returns an error for corruption that has not been reported yet.
func (b *blocks) failure() error {
	all := b.errs
	b.errs = nil
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return fmt.Errorf("%w, and %d more errors", all[0], len(all)-1)
}

func (b *blocks) record(to *Record) error {
	b.now.record(b.row, to)
	return nil
}

func (b *blocks) metadata() metadata { return b.file.meta }

func (b *blocks) close() {
	if b.ahead != nil {
		if loaded := <-b.ahead; loaded.value != nil {
			b.query.spare.put(loaded.value)
		}
	}
	b.query.spare.put(b.now)
	b.file.close()
}
