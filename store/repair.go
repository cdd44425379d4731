package store

// Repair of a state directory. Only incomplete files left by a crash are deleted. A
// corrupt segment is quarantined, as in the filter, and its readable records are
// copied to a new part of its day.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

const (
	salvagedMark = ".salvaged" // suffix of a quarantined file whose records are in another part
	salvageBatch = 5000        // records per commit
	salvagePage  = 4096        // page size without a readable meta page
	salvageMost  = 8 << 20     // maximum bytes of a page with its overflow pages
)

// Repair checks the files like Each, repairs them, and calls visit with each result.
// It locks the directory. If a filter is using it, the error is ErrInUse. Program is
// the program version for new files.
//
// A corrupt state.db is quarantined. If only rows are invalid, it is replaced by a
// copy without them and quarantined.
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
	return i.each(p, func(f *File) error {
		done, err := i.repair(p, f, program, now)
		f.Done = done
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

func (i *Inspector) repair(p places, f *File, program string, now time.Time) (done string, err error) {
	d, name := p.of(f)
	aside := quarantineName(name, now)
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
		return salvage(d, *f.Segment, name, program, now)
	case f.Health != HealthDamaged:
		return "", nil
	case f.Segment != nil && f.Segment.Sealed && exists(d, segmentFile(f.Segment.Day, f.Segment.Part)):
		// Its rows have all records.
		return "quarantined as " + aside, errors.Join(d.rename(name, aside+salvagedMark), d.sync())
	case f.Segment != nil:
		done, err = salvage(d, *f.Segment, aside, program, now)
		if err == nil {
			return "quarantined as " + aside + ", " + done, nil
		}
		// Quarantine it nevertheless: a later version may salvage more.
	case !f.broken:
		if err := i.replaceState(d, aside); err != nil {
			return "", err
		}
		f.Health = HealthOK
		return fmt.Sprintf("%d rows removed; a copy with them is %s", f.Bad, aside), nil
	}
	if e := d.rename(name, aside); e != nil {
		return "", errors.Join(e, err)
	}
	return "quarantined as " + aside, errors.Join(err, d.sync())
}

// salvage copies the readable records of the corrupt segment s to a new part of its
// day. It then renames s to aside and marks it as salvaged. If it is interrupted
// before that, records may be in two parts, which readers expect.
func salvage(d *directory, s Segment, aside, program string, now time.Time) (done string, err error) {
	part, err := nextPart(d, s.Day)
	if err != nil {
		return "", err
	}
	limit := 2*s.Size + 16<<20 // new pages may contain fewer records
	var kept int
	if s.Sealed {
		kept, err = salvageBlocks(d, s, part, sealing{limit: limit, program: program, now: now})
		part.Name = sealedName(part)
	} else {
		kept, err = salvageRows(d, s, part, limit, program, now)
	}
	if err == nil {
		err = d.rename(s.Name, aside+salvagedMark)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("salvage %s: %w", s.Name, err)
	case kept == 0:
		return "no record could be salvaged", d.sync()
	}
	return fmt.Sprintf("%d records salvaged into %s", kept, part.Name), d.sync()
}

// salvageRows copies the readable records of rows to the segment part.
func salvageRows(d *directory, s, part Segment, limit int64, program string, now time.Time) (kept int, err error) {
	in, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	out, err := createSessions(d, part, limit, program, now)
	if err != nil {
		return 0, err
	}
	kept, err = copyReadable(out, in, info.Size(), s.Day)
	out.release(err)
	if err == nil && kept > 0 {
		return kept, commitFile(d, part.Name)
	}
	return kept, errors.Join(err, d.remove(part.Name+newSuffix))
}

// salvageBlocks copies the readable blocks of a sealed segment to the sealed segment
// of part, and the readable columns of the others.
func salvageBlocks(d *directory, s, part Segment, o sealing) (kept int, err error) {
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
	for i := range in.blocks {
		if err = in.salvage(&in.blocks[i], out); err != nil {
			out.abort(err)
			return 0, err
		}
	}
	if err = out.flush(); err == nil && out.records == 0 {
		out.abort(nil)
		return 0, nil
	}
	_, err = out.finish()
	return out.records, err
}

// salvage copies a block to out. If columns of steps are corrupt, the records are
// copied without steps of these kinds. If columns of records are corrupt, the block is
// lost.
func (s *sealedFile) salvage(info *blockInfo, out *sealWriter) error {
	var b decodedBlock
	err := s.check(info, &b)
	if err == nil && !info.bare && info.first.compare(out.last) > 0 {
		return out.put(sealedBlock{*info, bytes.Clone(b.value())})
	}
	kinds := AllKinds
	if isDamaged(err) {
		kinds = 0
		for k := Kind(0); k < numKinds; k++ {
			if s.load(info, &b, KindsOf(k)) == nil {
				kinds |= KindsOf(k)
			}
		}
		err = s.load(info, &b, kinds)
	}
	if isDamaged(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.each(func(r *Record) error {
		if r.key().compare(out.last) <= 0 {
			return nil // carve has found two blocks with it
		}
		if kinds != AllKinds {
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

// copyReadable copies the readable records and metadata of a corrupt segment to out.
// It returns the number of records in out.
func copyReadable(out *segment, in *os.File, size int64, day time.Time) (kept int, err error) {
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
				if b.Get(key) == nil { // an unused page can contain the whole record
					if err := b.Put(key, value); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	found, err := scan(in, size, day, func(key, value []byte) error {
		to := &whole
		value, complete, err := readable(key, value)
		if err != nil {
			return nil
		}
		if !complete {
			to = &cut
		}
		add := func() bool { return to.add(keyTime(key), binary.BigEndian.Uint64(key[8:]), value) }
		if whole.n+cut.n < salvageBatch && add() {
			return nil
		}
		err = flush()
		add() // an empty buffer has room for one record
		return err
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = out.commit(nil, found.dropped, &found.rules)
	}
	if err != nil {
		return 0, err
	}
	return kept, out.view(func(tx *bbolt.Tx) error {
		kept = tx.Bucket(bucketSessions).Stats().KeyN
		return nil
	})
}

// readable returns the readable part of a record: without the first invalid step and
// later ones. Complete reports whether that is the whole record. The error is that of
// the head.
func readable(key, value []byte) (part []byte, complete bool, err error) {
	r, err := Decode(key, value)
	if err != nil {
		return nil, false, err
	}
	c := r.Cursor()
	var s Step
	for good := c.rest; ; good = c.rest {
		if c.Next(&s) {
			continue
		}
		if c.Err() == nil {
			return value, true, nil
		}
		r.Omitted++ // the number of lost steps is unknown
		return AppendRecord(nil, &r, r.steps[:len(r.steps)-len(good)]), false, nil
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

// scanned is the metadata of a corrupt segment.
type scanned struct {
	dropped Dropped
	rules   ruleTexts
}

// scan calls visit for each record of the day in a leaf page of f. It ignores the
// tree, so that a record can occur twice. Records in unused pages are valid, because
// records never change. Scan returns the readable metadata.
func scan(f *os.File, size int64, day time.Time, visit func(key, value []byte) error) (meta scanned, err error) {
	meta.rules.text = make(map[uint32]string)
	pageSize, err := pageSizeOf(f, size)
	if err != nil {
		return meta, err
	}
	element := func(key, value []byte) error {
		switch {
		case bytes.Equal(key, keySchema) && len(value) == 2 && binary.BigEndian.Uint16(value) != schema:
			if binary.BigEndian.Uint16(value) < schema {
				return ErrOlder
			}
			return ErrNewer
		case len(value) == 8 && bytes.HasPrefix(key, []byte(keyDropped)):
			for r := range meta.dropped {
				if string(key) == keyDropped+Reasons[r] { // the counter never decreases
					meta.dropped[r] = max(meta.dropped[r], binary.BigEndian.Uint64(value))
				}
			}
			return nil
		}
		if ref, ok := ruleKey(key); ok && len(value) <= 2*maxRuleText && meta.rules.bytes+len(value) <= 8*maxRuleTexts {
			if meta.rules.text[ref] == "" {
				meta.rules.text[ref] = string(value)
				meta.rules.bytes += len(value)
			}
			return nil
		}
		if len(key) != KeySize || len(value) > MaxValue || !belongs(utcDay(keyTime(key)), day) {
			return nil
		}
		return visit(key, value)
	}
	page := make([]byte, 0, pageSize)
	for id, n := int64(2), int64(1); (id+1)*pageSize <= size; id += n {
		n = 1
		page = page[:pageSize]
		if _, err := f.ReadAt(page, id*pageSize); err != nil {
			if errors.Is(err, io.EOF) {
				return meta, nil
			}
			return meta, err
		}
		if order.Uint64(page) != uint64(id) || order.Uint16(page[8:]) != flagLeaf {
			continue
		}
		if more := int64(order.Uint32(page[12:])); more > 0 && (id+1+more)*pageSize <= size && more*pageSize <= salvageMost {
			n += more
			if int64(cap(page)) < n*pageSize {
				page = make([]byte, 0, n*pageSize)
			}
			page = page[:n*pageSize]
			if _, err := f.ReadAt(page, id*pageSize); err != nil {
				return meta, err
			}
		}
		if err := elements(page, true, element); err != nil {
			return meta, err
		}
	}
	return meta, nil
}

// pageSizeOf returns the page size of a corrupt file.
func pageSizeOf(f *os.File, size int64) (int64, error) {
	c := checker{f: f}
	if _, _, err := c.meta(size); err != nil && !isDamaged(err) {
		return 0, err
	}
	if c.pageSize < 1024 || c.pageSize > 1<<16 || c.pageSize&(c.pageSize-1) != 0 {
		return salvagePage, nil
	}
	return c.pageSize, nil
}

// elements calls visit for each element of a leaf page, including elements of inline
// buckets.
func elements(p []byte, outer bool, visit func(key, value []byte) error) error {
	n := min(int(order.Uint16(p[10:])), (len(p)-pageHeader)/pageElement)
	for i := range n {
		e := pageHeader + i*pageElement
		flags, pos := order.Uint32(p[e:]), uint64(order.Uint32(p[e+4:]))
		ksize, vsize := uint64(order.Uint32(p[e+8:])), uint64(order.Uint32(p[e+12:]))
		if uint64(e)+pos+ksize+vsize > uint64(len(p)) {
			continue
		}
		data := p[uint64(e)+pos:][:ksize+vsize]
		key, value := data[:ksize], data[ksize:]
		var err error
		switch {
		case flags == 0:
			err = visit(key, value)
		case flags == leafBucket && outer && len(value) >= bucketHeader+pageHeader && order.Uint64(value) == 0:
			err = elements(value[bucketHeader:], false, visit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replaceState replaces state.db with a copy without the invalid rows. The original
// gets the name aside.
func (i *Inspector) replaceState(d *directory, aside string) error {
	in, err := d.open(stateFile, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := stateFile + newSuffix
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
		err = d.root.Link(stateFile, aside)
	}
	if err != nil {
		return errors.Join(err, d.remove(temp))
	}
	return commitFile(d, stateFile)
}

// removeBadRows removes the invalid rows of a copy of state.db.
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
