package store

// This file repairs a state directory. Repair deletes only incomplete files left by a
// crash. Like the filter, Repair quarantines corrupt segments, and it copies
// their readable records to a new part of the day.

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

const (
	salvagedMark = ".salvaged"             // suffix of a quarantined file whose readable records are in another file
	emptyMark    = ".empty" + salvagedMark // suffix of a quarantined file without readable records
	salvageBatch = 5000                    // records per commit
	leastRoom    = 64 << 10                // minimum room for a copy
)

// Repair checks the files as Each does, repairs them, and calls visit with each result. Repair
// locks the directory and returns ErrInUse if a filter is using it. program is the program version
// to write into new files.
//
// Repair quarantines a corrupt state.db. If only some rows of state.db are invalid,
// Repair replaces the file with a copy without these rows. If there is no room
// for a copy on disk or in the budget, the file remains in place.
func (i *Inspector) Repair(program string, now time.Time, visit func(*File) error) error {
	p, err := openPlaces(i.Dir)
	if err != nil {
		return err
	}
	defer p.close()
	for _, d := range p.all() {
		lock, err := d.lock()
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	r := repairing{Inspector: i, p: p, program: program, now: now}
	return i.each(p, func(f *File) error {
		done, err := r.file(f)
		if f.Done = done; len(r.removed) > 0 {
			f.Done = strings.TrimPrefix(f.Done+"; ", "; ") + "removed to free space or because there were too many: " + strings.Join(r.removed, ", ")
			r.removed = nil
		}
		if err != nil {
			f.Done = strings.TrimPrefix(f.Done+"; ", "; ") + "not repaired: " + err.Error()
		} else if f.Health == HealthDamaged {
			f.Health = HealthAside
		} else if done != "" && f.Health == HealthAside {
			f.Problem = ""
		}
		return visit(f)
	})
}

// repairing is a repair of a directory.
type repairing struct {
	*Inspector
	p       places
	program string
	now     time.Time
	removed []string // spare and temporary files that were removed for the current file
}

// file repairs a file and returns a description of the actions taken.
func (r *repairing) file(f *File) (done string, err error) {
	d, name := r.p.of(f)
	aside := quarantineName(name, r.now)
	switch {
	case f.Health == HealthLeft:
		if s, ok := parseSegment(name); ok && !sealedWhole(d, s) {
			return "not removed: " + sealedName(s) + " is corrupt", nil
		}
		if err := d.remove(name); err != nil {
			return "", err
		}
		return "removed", nil
	case f.Segment != nil && f.Health == HealthAside && !strings.HasSuffix(name, salvagedMark):
		done, err := r.salvage(d, *f.Segment, name, nil)
		return done.String(), err
	case f.Health != HealthDamaged:
		return "", nil
	case f.Segment != nil && f.Segment.Sealed && exists(d, segmentFile(f.Segment.Day, f.Segment.Part)):
		return r.both(d, *f.Segment, aside)
	case f.Segment != nil:
		done, err := r.salvage(d, *f.Segment, aside, nil)
		if err != nil {
			return "", err
		}
		return "quarantined as " + aside + done.mark + ", " + done.String(), nil
	case !f.broken:
		if free, err := r.room(f.Size); err != nil || free < f.Size {
			return "", errors.Join(err, leftInPlace(errNoRoom))
		}
		if err := r.replaceState(d, aside); err != nil {
			return "", leftInPlace(err)
		}
		f.Health = HealthOK
		r.removed = append(r.removed, d.trimCopies()...)
		return fmt.Sprintf("%d rows removed; a copy with them is %s", f.Bad, aside), nil
	}
	if err := d.rename(name, aside); err != nil {
		return "", err
	}
	r.removed = append(r.removed, d.trimCopies()...)
	return "quarantined as " + aside, d.sync()
}

// both repairs a part of a day for which two files exist: a corrupt sealed segment and the segment
// of rows from which it was made. If the rows are intact, they remain, and both copies only the
// records that they lack. If the rows are also corrupt, both keeps the better copy of each record.
func (r *repairing) both(d *directory, sealed Segment, aside string) (done string, err error) {
	rows := Segment{Name: segmentFile(sealed.Day, sealed.Part), Day: sealed.Day, Part: sealed.Part}
	info, err := d.root.Lstat(rows.Name)
	if err != nil {
		return "", err
	}
	rows.Size = info.Size()
	index, err := copiesIn(d, sealed)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", sealed.Name, err)
	}
	keys, err := wholeKeys(d, rows, index)
	note := "its rows are intact"
	if isDamaged(err) {
		keys, note = nil, "its rows are also corrupt"
		to, err := r.salvage(d, rows, quarantineName(rows.Name, r.now), index)
		if err != nil {
			return "", err
		}
		if to.kept > 0 {
			note += ": " + to.String()
			if keys, err = wholeKeys(d, to.part, nil); err != nil {
				return note, err
			}
		}
	} else if err != nil {
		return "", fmt.Errorf("read %s: %w", rows.Name, err)
	}
	more, err := r.salvage(d, sealed, aside, &otherCopy{keys: keys})
	if err != nil {
		return note, err
	}
	if more.kept > 0 || len(keys) == 0 {
		note += "; " + more.String()
	}
	return "quarantined as " + aside + more.mark + ", " + note, nil
}

// wholeKeys returns the keys of the intact records in a segment of rows. If a record is corrupt, or
// index excludes its key, wholeKeys returns an error in addition to the keys.
func wholeKeys(d *directory, s Segment, index *otherCopy) (keys []recordKey, err error) {
	f, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	c, err := openRows(f, s, newQuery(time.Time{}, time.Time{}, AllKinds))
	if err != nil {
		return nil, err
	}
	defer c.close()
	in := c.src.(*rows)
	var bad error
	for {
		key, ok, err := in.next()
		if !ok || err != nil {
			return keys, cmp.Or(err, bad)
		}
		switch _, whole, err := readable(in.key, in.value); {
		case err != nil:
			bad = err
		case !whole:
			bad = damaged("a step of a record")
		case index.excludes(key):
			bad = damaged("a record that the sealed segment does not have")
		default:
			keys = append(keys, key)
		}
	}
}

// salvaged is the result of a salvage.
type salvaged struct {
	part Segment // the new part, with the copied records
	kept int     // number of copied records
	mark string  // appended to the name of the quarantined file
}

func (s salvaged) String() string {
	switch {
	case s.part.Name == "":
		return ""
	case s.kept == 0:
		return "no record could be salvaged"
	}
	return fmt.Sprintf("%d records salvaged into %s", s.kept, s.part.Name)
}

// salvage copies the readable records of the corrupt segment s to a new part of its day. Records
// that the other file already contains are omitted. The file s is then renamed to the name aside
// and marked as salvaged. A crash before the rename leaves records in two parts of the day, which
// readers tolerate. After an error, s remains.
func (r *repairing) salvage(d *directory, s Segment, aside string, other *otherCopy) (to salvaged, err error) {
	part, err := nextPart(d, s.Day)
	if err != nil {
		return to, err
	}
	mark := salvagedMark
	err = r.within(s.Size, func(limit int64) (err error) {
		o := sealing{limit: limit, program: r.program, now: r.now}
		copyTo := salvageRows
		if s.Sealed {
			copyTo = salvageBlocks
		}
		if to.kept, err = copyTo(d, s, part, other, o); err != nil || to.kept > 0 || !other.empty() {
			return err
		}
		mark = emptyMark
		if !s.Sealed && exists(d, sealedName(s)) {
			return nil // the sealed segment is copied next, and its copy gets the mark "loss"
		}
		return createLoss(d, part, o)
	})
	if err == nil {
		err = d.rename(s.Name, aside+mark)
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return salvaged{}, fmt.Errorf("salvage %s: %w", s.Name, leftInPlace(err))
	}
	if to.part, to.mark = part, mark; s.Sealed {
		to.part.Name, to.part.Sealed = sealedName(part), true
	}
	return to, nil
}

// leftInPlace adds the remedy to the error about a file that was not moved.
func leftInPlace(err error) error {
	switch {
	case errors.Is(err, errNoRoom):
		return fmt.Errorf("%w for a copy, and no salvaged file is left to remove; left in place: set a larger budget, or move a file away, and repair again", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; left in place: free some space and repair again", err)
	}
	return err
}

// within calls write with the maximum size that the copy of a file may have. This size is the free
// part of the budget.
func (r *repairing) within(size int64, write func(limit int64) error) error {
	most := 2*size + 16<<20 // new pages may contain fewer records
	tried := int64(leastRoom)
	for _, need := range []int64{size + allocSize, most} {
		free, err := r.room(need)
		if err != nil {
			return err
		}
		if free = min(free, most); free <= tried {
			continue
		}
		tried = free
		if err := write(free); !errors.Is(sealError(err), errNoRoom) {
			return err
		}
	}
	return errNoRoom
}

// room returns the number of free bytes in the budget. To free need bytes, room
// removes temporary files, and then spare files in the order in which they were
// quarantined.
func (r *repairing) room(need int64) (free int64, err error) {
	if r.Budget == 0 {
		return math.MaxInt64, nil
	}
	size, copies, err := r.p.state.stateFiles()
	if err != nil {
		return 0, err
	}
	free = r.Budget - size
	for _, c := range copies {
		free -= c.Size()
	}
	var list []spare
	var all []Segment
	if r.p.sessions != nil {
		files, err := r.p.sessions.files()
		if err != nil {
			return 0, err
		}
		for _, f := range files {
			if _, ok := parseSegment(strings.TrimSuffix(f.Name(), newSuffix)); !ok {
				continue
			}
			if free -= f.Size(); strings.HasSuffix(f.Name(), newSuffix) { // temporary file left by a crash
				list = append(list, spare{r.p.sessions, f.Name(), f.Size()})
			}
		}
		all = segmentsOf(files)
	}
	for _, s := range append(list, sparesOf(r.p.state, copies, r.p.sessions, all)...) {
		if free >= need {
			break
		}
		if err := s.in.remove(s.name); err != nil {
			return 0, err
		}
		free += s.size
		r.removed = append(r.removed, s.name)
	}
	return free, nil
}

// salvageRows copies the readable records of a segment of rows to the segment part. Records that
// the other file already contains are omitted.
func salvageRows(d *directory, s, part Segment, other *otherCopy, o sealing) (kept int, err error) {
	in, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	out, err := createSessions(d, part, o.limit, o.program, o.now)
	if err != nil {
		return 0, err
	}
	if err = out.markLoss(o.now); err == nil {
		kept, err = copyReadable(out, in, info.Size(), s.Day, other)
	}
	out.release(err)
	if err == nil && kept > 0 {
		return kept, commitFile(d, part.Name)
	}
	return kept, errors.Join(err, d.remove(part.Name+newSuffix))
}

// salvageBlocks copies the readable blocks of a sealed segment, and the readable columns of corrupt
// blocks, to the sealed segment of part. Records that the other file already contains are omitted.
func salvageBlocks(d *directory, s, part Segment, other *otherCopy, o sealing) (kept int, err error) {
	in, err := openSealed(d, s)
	if isDamaged(err) {
		return 0, nil // no block can be found
	}
	if err != nil {
		return 0, err
	}
	defer in.close()
	out, err := createSealed(d, part, in.meta, o)
	if err != nil {
		return 0, err
	}
	err = out.out.markLoss(o.now)
	for i := range in.blocks {
		if err == nil {
			err = in.salvage(&in.blocks[i], out, other)
		}
	}
	if err != nil {
		out.abort(err)
		return 0, err
	}
	if err = out.flush(); err == nil && out.records == 0 {
		out.abort(nil)
		return 0, nil
	}
	_, err = out.finish()
	return out.records, err
}

// salvage copies a block's records to the segment out. Records that the other file already contains
// are omitted. The copied records lack the values of corrupt columns; see block.lenient. A block
// whose keys are corrupt is lost.
func (s *sealedFile) salvage(info *blockInfo, out *sealWriter, other *otherCopy) error {
	var b decodedBlock
	err := s.check(info, &b)
	if err == nil && !info.bare && !other.overlaps(info) && info.first.compare(out.last) > 0 {
		return out.put(sealedBlock{*info, bytes.Clone(b.value())})
	}
	if isDamaged(err) {
		b.lenient = true
		err = s.load(info, &b, AllKinds)
	}
	if isDamaged(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.each(func(r *Record) error {
		if r.key().compare(out.last) <= 0 || other.has(r.key(), b.quality(r.row)) {
			return nil // carve found two copies of the block, or other has the record
		}
		if b.lossy {
			r.Omitted++ // the number of lost steps is unknown
		}
		_, err := out.add(r)
		return err
	})
}

func exists(d *directory, name string) bool {
	_, err := d.root.Lstat(name)
	return err == nil
}

// copyReadable copies the readable records and metadata of a corrupt segment to the segment out.
// Records that the other file already contains are omitted. copyReadable returns the number of
// records in the new segment.
func copyReadable(out *segment, in *os.File, size int64, day time.Time, other *otherCopy) (kept int, err error) {
	batch := func() buffer { return buffer{data: make([]byte, 0, salvageBatch*1024+MaxValue)} }
	whole, cut := batch(), batch()
	flush := func() error {
		defer whole.reset()
		defer cut.reset()
		if err := out.commit(whole.data, Dropped{}, nil); err != nil {
			return err
		}
		return out.update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketSessions)
			for rest := cut.data; len(rest) > 0; {
				var key, value []byte
				key, value, rest = nextRecord(rest)
				if b.Get(key) == nil { // unless an unused page contained the whole record
					if err := b.Put(key, value); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	found, err := scan(in, size, day, func(key, value []byte, steps int, complete bool) error {
		to, quality := &whole, int32(wholeCopy)
		if !complete {
			to, quality = &cut, int32(steps)
		}
		if other.has(keyOf(key), quality) || other.excludes(keyOf(key)) {
			return nil
		}
		add := func() bool { return to.add(keyTime(key), binary.BigEndian.Uint64(key[8:]), value) }
		if whole.n+cut.n < salvageBatch && add() {
			return nil
		}
		err := flush()
		add() // an empty buffer has room for one record
		return err
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = out.commit(nil, found.dropped, &found.rules)
	}
	if err == nil && !found.doubt.IsZero() {
		err = out.markDoubt(found.doubt)
	}
	if err != nil {
		return 0, err
	}
	return kept, out.view(func(tx *bbolt.Tx) error {
		kept = tx.Bucket(bucketSessions).Stats().KeyN
		return nil
	})
}

// readable returns the part of a record before its first invalid step. complete reports
// whether the whole record is readable. readable returns an error if fields before the
// steps are unreadable.
func readable(key, value []byte) (part []byte, complete bool, err error) {
	part, _, complete, err = readableSteps(key, value)
	return part, complete, err
}

// readableSteps is like readable but also returns the number of steps in part.
func readableSteps(key, value []byte) (part []byte, steps int, complete bool, err error) {
	r, err := Decode(key, value)
	if err != nil {
		return nil, 0, false, err
	}
	c := r.Cursor()
	var s Step
	for good := c.rest; ; good = c.rest {
		if c.Next(&s) {
			steps++
			continue
		}
		if c.Err() == nil {
			return value, steps, true, nil
		}
		r.Omitted++ // the number of lost steps is unknown
		return AppendRecord(nil, &r, r.steps[:len(r.steps)-len(good)]), steps, false, nil
	}
}

// nextPart returns the next part of a day.
func nextPart(d *directory, day time.Time) (Segment, error) {
	all, err := d.segments()
	if err != nil {
		return Segment{}, err
	}
	part := 0
	for _, s := range all {
		if s.Day.Equal(day) {
			part = max(part, s.Part)
		}
	}
	part++
	return Segment{Name: segmentFile(day, part), Day: day, Part: part}, nil
}

// replaceState replaces state.db with a copy without the invalid rows, and
// renames the original to aside.
func (i *Inspector) replaceState(d *directory, aside string) error {
	in, err := d.open(StateFile, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := StateFile + newSuffix
	out, err := d.create(temp)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Close())
	if err == nil {
		err = i.removeBadRows(d, temp)
	}
	if err == nil {
		err = d.root.Link(StateFile, aside)
	}
	if err != nil {
		return errors.Join(err, d.remove(temp))
	}
	return commitFile(d, StateFile)
}

// removeBadRows removes the invalid rows from a copy of state.db.
func (i *Inspector) removeBadRows(d *directory, name string) error {
	s, err := openStateFile(d, name, stateMax, migrations)
	if err != nil {
		return err
	}
	var bad []Entry
	for e := range s.entries(i.Tables, &err) {
		if i.Row(e) != nil {
			bad = append(bad, Entry{Bucket: e.Bucket, Key: bytes.Clone(e.Key)})
		}
	}
	if err == nil {
		err = s.update(func(tx *bbolt.Tx) error {
			_, err := putEntries(tx, bad)
			return err
		})
	}
	s.release(err)
	return err
}
