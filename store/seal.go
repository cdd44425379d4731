package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// sealBatch is the total size in bytes of the blocks in a commit. Each bbolt
// commit copies the previous commit's last blocks and leaves the old pages
// unused, so large commits produce smaller files.
const sealBatch = 8 << 20

// A sealWriter writes a sealed segment under a temporary name.
type sealWriter struct {
	d       *directory
	out     *segment
	mark    []byte // see newMark
	encoder *blockEncoder
	info    blockInfo // index entry for the records in encoder
	hashes  []uint64  // hashes of these records; see appendHashes
	blocks  []sealedBlock
	size    int // total size of the blocks in bytes
	records int // number of records in all blocks
	count   int // number of blocks
	last    recordKey
}

// A sealedBlock is a block with its index entry.
type sealedBlock struct {
	blockInfo
	value []byte
}

// createSealed creates the temporary file for the sealed segment of a part. The file
// gets the original segment's metadata.
func createSealed(d *directory, part Segment, meta metadata, o sealing) (*sealWriter, error) {
	info := Segment{Name: sealedName(part), Day: part.Day, Part: part.Part, Sealed: true}
	out, err := createFile(d, info, o.limit, sealedSchema, o.program, o.now, bucketBlocks, bucketIndex)
	if err != nil {
		return nil, sealError(err)
	}
	w := &sealWriter{d: d, out: out, mark: newMark(), encoder: newBlockEncoder()}
	err = out.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketMeta)
		for k, v := range meta {
			switch k {
			case string(keySchema), string(keyProgram), keyMark, keyBlocks: // the new file has its own values
				continue
			}
			if err := b.Put([]byte(k), v); err != nil {
				return err
			}
		}
		return b.Put([]byte(keyMark), appendMark(nil, w.mark))
	})
	if err != nil {
		w.abort(err)
		return nil, sealError(err)
	}
	return w, nil
}

// add adds a record, whose key must be greater than the previous key. add reports whether a block
// is complete.
func (w *sealWriter) add(r *Record) (complete bool, err error) {
	w.encoder.add(r)
	w.info.count(r)
	w.last = w.info.last
	w.hashes = appendHashes(w.hashes, r)
	if w.encoder.rows() < blockRows && w.encoder.bytes() < blockBytes {
		return false, nil
	}
	return true, w.flush()
}

// flush completes a block with the records added since the last block.
func (w *sealWriter) flush() error {
	if w.encoder.rows() == 0 {
		return nil
	}
	b := sealedBlock{w.info, w.encoder.finish(nil)}
	b.filter = appendFilter(nil, w.hashes)
	b.crc = crc32.Checksum(b.value, castagnoli)
	w.info, w.hashes = blockInfo{}, w.hashes[:0]
	return w.put(b)
}

// put adds a block after the records added so far.
func (w *sealWriter) put(b sealedBlock) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.blocks = append(w.blocks, b)
	w.last = b.last
	w.size += len(b.value)
	w.records += int(b.records)
	w.count++
	if w.size < sealBatch {
		return nil
	}
	return w.commit()
}

func (w *sealWriter) commit() error {
	err := w.out.update(func(tx *bbolt.Tx) error {
		for i := range w.blocks {
			b := &w.blocks[i]
			key := b.first.append(nil)
			for name, value := range map[string][]byte{string(bucketBlocks): slices.Concat(w.mark, b.value), string(bucketIndex): b.append(nil)} {
				bucket := tx.Bucket([]byte(name))
				bucket.FillPercent = fillPercent
				if err := bucket.Put(key, value); err != nil {
					return err
				}
			}
		}
		return nil
	})
	w.blocks, w.size = w.blocks[:0], 0
	return err
}

// finish writes the last blocks and the number of blocks, renames the file and returns its size.
// finish commits twice, so that each of bbolt's two meta pages leads to all blocks.
func (w *sealWriter) finish() (size int64, err error) {
	err = w.flush()
	if err == nil {
		err = w.commit()
	}
	for range 2 {
		if err == nil {
			err = w.out.update(func(tx *bbolt.Tx) error {
				return tx.Bucket(bucketMeta).Put([]byte(keyBlocks), binary.BigEndian.AppendUint32(nil, uint32(w.count)))
			})
		}
	}
	if err == nil {
		err = w.out.file.Sync()
	}
	if err == nil {
		var info os.FileInfo
		if info, err = w.out.file.Stat(); err == nil {
			size = info.Size()
		}
	}
	if err != nil {
		w.abort(err)
		return 0, err
	}
	w.out.release(nil)
	return size, commitFile(w.d, w.out.Name)
}

// abort removes the temporary file. err is the reason.
func (w *sealWriter) abort(err error) {
	w.out.release(err)
	_ = w.d.remove(w.out.Name + newSuffix)
}

// sealing holds the settings for sealing a segment.
type sealing struct {
	limit   int64 // maximum size of the sealed segment
	program string
	now     time.Time
	pause   func(took time.Duration) error // called after each block; an error ends the sealing
}

// A sealResult is the result of sealing a segment.
type sealResult struct {
	Segment
	records int
	cut     int   // records that were corrupt: they were omitted, or have only their first steps
	size    int64 // size of the sealed segment
	err     error // set by the caller of seal
}

// errNoRoom is returned if a copy would exceed its maximum size.
var errNoRoom = errors.New("the budget has no room")

// seal replaces a finished segment of rows with a sealed segment. After a crash, either only the
// rows or both files exist; if both exist, readers use the sealed segment. If the rows contain
// corrupt records, seal quarantines the file.
func seal(d *directory, s Segment, o sealing) (res sealResult, err error) {
	res.Segment = s
	if sealedWhole(d, s) {
		return res, d.remove(s.Name) // a crash prevented the removal of the rows
	}
	f, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return res, err
	}
	in, err := openRows(f, s, newQuery(time.Time{}, time.Time{}, AllKinds))
	if err != nil {
		return res, err
	}
	defer in.close() // holds the lock until then, so that no Writer opens the rows
	out, err := createSealed(d, s, in.src.metadata(), o)
	if err != nil {
		return res, err
	}
	if res.cut, err = copyRows(out, in.src.(*rows), o.pause); err == nil && res.cut > 0 {
		err = out.out.markLoss(o.now)
	}
	if err != nil {
		out.abort(err)
		return res, sealError(err)
	}
	if res.cut > 0 && exists(d, sealedName(s)) {
		// The sealed segment is corrupt, but may contain records that the rows have lost.
		if err := d.rename(sealedName(s), quarantineName(sealedName(s), o.now)); err != nil {
			out.abort(err)
			return res, err
		}
	}
	if res.size, err = out.finish(); err != nil {
		return res, sealError(err)
	}
	res.records = out.records
	if res.cut > 0 {
		return res, d.rename(s.Name, quarantineName(s.Name, o.now)+salvagedMark)
	}
	return res, d.remove(s.Name)
}

// sealedWhole reports whether the sealed segment for rows exists and is intact.
func sealedWhole(d *directory, rows Segment) bool {
	if !exists(d, sealedName(rows)) {
		return false
	}
	f, err := openSealed(d, Segment{Name: sealedName(rows), Day: rows.Day, Part: rows.Part, Sealed: true})
	if err != nil {
		return false
	}
	defer f.close()
	return f.broken == nil && f.each(func(int, *decodedBlock) error { return nil }) == nil
}

func sealError(err error) error {
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		return errNoRoom
	}
	return err
}

// copyRows copies the readable records and returns the number of corrupt ones.
func copyRows(out *sealWriter, in *rows, pause func(time.Duration) error) (cut int, err error) {
	from := time.Now()
	var rec Record
	for n := 0; ; n++ {
		_, ok, err := in.next()
		if err != nil || !ok {
			return cut, err
		}
		if n%64 == 0 {
			runtime.Gosched() // a request may wait for a processor
		}
		value, whole, err := readable(in.key, in.value)
		if !whole || err != nil {
			cut++
		}
		if err != nil {
			continue
		}
		if rec, err = Decode(in.key, value); err != nil {
			return cut, err
		}
		complete, err := out.add(&rec)
		if err == nil && complete && pause != nil {
			err = pause(time.Since(from))
			from = time.Now()
		}
		if err != nil {
			return cut, err
		}
	}
}

// SealDays seals the finished segments of a state directory that no filter is
// using. A segment is finished if its day has ended by now or if it is full.
// SealDays returns the number of segments that it has sealed.
func SealDays(dir, program string, now time.Time) (n int, err error) {
	d, err := openSessions(dir)
	if err != nil {
		return 0, err
	}
	defer d.root.Close()
	lock, err := d.lock()
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	all, err := d.segments()
	if err != nil {
		return 0, err
	}
	for _, s := range finished(all, now) {
		if _, err := seal(d, s, sealing{limit: 2*s.Size + 16<<20, program: program, now: now}); err != nil {
			return n, fmt.Errorf("seal %s: %w", d.name(s.Name), err)
		}
		n++
	}
	return n, nil
}

// finished returns the segments of rows to which no Writer will add records, oldest
// first. reached is a time that has certainly passed.
func finished(all []Segment, reached time.Time) (list []Segment) {
	last := make(map[int64]int) // part by day: times are not keys, see tests/structure
	for _, s := range all {
		last[s.Day.Unix()] = max(last[s.Day.Unix()], s.Part)
	}
	over := reached.Add(-sealAfter)
	for _, s := range all {
		if !s.Sealed && !s.Quarantined && (s.Part < last[s.Day.Unix()] || !s.Day.Add(24*time.Hour).After(over)) {
			list = append(list, s)
		}
	}
	return list
}

// sealAfter is the time after the end of a day at which its last segment is
// sealed. Sessions that end late are still added to that segment until the
// Writer opens the next one.
const sealAfter = 2 * time.Hour
