package store

// Repairing a state directory. Nothing is deleted but files that a crash has
// left half made: a damaged segment is set aside, as the filter does, and what can
// be read of it goes into a new part of its day.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

const (
	salvagedMark = ".salvaged" // at the end of the name: its records are in another part
	salvageBatch = 5000        // records in a commit; nobody waits for it
	salvagePage  = 4096        // size of pages, if no meta page can be read
	salvageMost  = 8 << 20     // bytes of a page with its overflow
)

// Repair goes through the files as Each does, repairs what can be, and calls
// visit with what was found and done. It locks the directory, which no filter may
// use meanwhile: else the error is ErrInUse. Program is noted in new files.
//
// A damaged state.db is set aside whole. Of one that has only rows that make no
// sense a copy is set aside, and the rows are removed.
func (i *Inspector) Repair(program string, now time.Time, visit func(*File) error) error {
	for _, dir := range []string{i.Dir, filepath.Join(i.Dir, sessionsDir)} {
		open := openDir
		if dir == i.Dir { // wherever the operator says it is
			open = os.Open
		}
		lock, err := open(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != i.Dir {
			continue
		}
		if err == nil {
			defer lock.Close()
			err = lockExclusive(lock)
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", dir, err)
		}
	}
	return i.Each(func(f *File) error {
		done, err := i.repair(f, program, now)
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

func (i *Inspector) repair(f *File, program string, now time.Time) (done string, err error) {
	path := filepath.Join(i.Dir, f.Name)
	aside := path + damagedMark + strings.ReplaceAll(now.UTC().Format("20060102T150405.000"), ".", "") + "Z"
	switch {
	case f.Health == HealthLeft:
		if err := os.Remove(path); err != nil {
			return "", err
		}
		return "removed", nil
	case f.Segment != nil && f.Health == HealthAside && !strings.HasSuffix(path, salvagedMark):
		return salvage(path, *f.Segment, program, now)
	case f.Health != HealthDamaged:
		return "", nil
	case f.Segment == nil && !f.broken:
		if err := copyFile(path, aside); err != nil {
			return "", err
		}
		if err := i.removeBadRows(f); err != nil {
			return "", err
		}
		f.Health = HealthOK
		return fmt.Sprintf("%d rows removed; a copy with them is %s", f.Bad, filepath.Base(aside)), nil
	}
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	done = "set aside as " + filepath.Base(aside)
	if f.Segment == nil {
		return done, nil
	}
	more, err := salvage(aside, *f.Segment, program, now)
	return strings.TrimSuffix(done+", "+more, ", "), err
}

// salvage puts the records of the segment s, set aside as path, into a new part
// of its day, and marks the file, so that it is done once.
func salvage(path string, s Segment, program string, now time.Time) (done string, err error) {
	in, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	name, part, err := nextPart(dir, s.Day)
	if err != nil {
		return "", err
	}
	temp := filepath.Join(dir, name+newSuffix)
	limit := 2*info.Size() + 16<<20 // pages may be less full than they were
	out, err := initSegment(temp, Segment{Name: name, Day: s.Day, Part: part}, limit, program, now)
	if err != nil {
		return "", err
	}
	batch := buffer{data: make([]byte, 0, salvageBatch*1024+MaxValue)}
	found, err := scan(in, info.Size(), s.Day, func(key, value []byte) error {
		add := func() bool { return batch.add(keyTime(key), binary.BigEndian.Uint64(key[8:]), value) }
		if batch.n < salvageBatch && add() {
			return nil
		}
		err := out.commit(batch.data, Dropped{}, nil)
		batch.reset()
		add() // there is room for one
		return err
	})
	if err == nil {
		err = out.commit(batch.data, found.dropped, &found.rules)
	}
	kept := 0
	if err == nil {
		err = out.view(func(tx *bbolt.Tx) error {
			kept = tx.Bucket(bucketSessions).Stats().KeyN
			return nil
		})
	}
	if err == nil {
		err = giveTo(out.file, dir)
	}
	out.release(err)
	if err == nil && kept > 0 {
		err = os.Rename(temp, filepath.Join(dir, name))
	}
	if err != nil || kept == 0 {
		os.Remove(temp)
	}
	if err == nil {
		err = os.Rename(path, path+salvagedMark)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("salvage %s: %w", filepath.Base(path), err)
	case kept == 0:
		return "no record could be salvaged", syncDir(dir)
	}
	return fmt.Sprintf("%d records salvaged into %s", kept, name), syncDir(dir)
}

// nextPart is the name of the first part of a day after all there are.
func nextPart(dir string, day time.Time) (name string, part int, err error) {
	all, err := Segments(filepath.Dir(dir))
	if err != nil {
		return "", 0, err
	}
	for _, s := range all {
		if s.Day.Equal(day) {
			part = max(part, s.Part)
		}
	}
	part++
	return segmentFile(day, part), part, nil
}

// scanned is what the meta data of a damaged segment tell.
type scanned struct {
	dropped Dropped
	rules   ruleTexts
}

// scan calls visit with all records of a day in the leaf pages of f, whatever
// leads to them; some may come twice. Pages that are not in use any more hold
// records as well, the same as elsewhere: they are never changed. It returns what
// the meta data tell, as far as that can be read.
func scan(f *os.File, size int64, day time.Time, visit func(key, value []byte) error) (meta scanned, err error) {
	meta.rules.text = make(map[uint32]string)
	c := checker{f: f}
	if _, _, err := c.meta(size); err != nil && !isDamaged(err) {
		return meta, err
	}
	if c.pageSize < 1024 || c.pageSize > 1<<16 || c.pageSize&(c.pageSize-1) != 0 {
		c.pageSize = salvagePage
	}
	element := func(key, value []byte) error {
		switch {
		case bytes.Equal(key, keySchema) && len(value) == 2 && binary.BigEndian.Uint16(value) > schema:
			return ErrNewer
		case len(value) == 8 && bytes.HasPrefix(key, []byte(keyDropped)):
			for r := range meta.dropped {
				if string(key) == keyDropped+Reasons[r] { // it only ever grows
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
		if len(key) != KeySize || len(value) > MaxValue || !belongs(utcDay(keyTime(key)), day) || wholeRecord(key, value) != nil {
			return nil
		}
		return visit(key, value)
	}
	page := make([]byte, 0, c.pageSize)
	for id, n := int64(2), int64(1); (id+1)*c.pageSize <= size; id += n {
		n = 1
		page = page[:c.pageSize]
		if _, err := f.ReadAt(page, id*c.pageSize); err != nil {
			if errors.Is(err, io.EOF) {
				return meta, nil
			}
			return meta, err
		}
		if order.Uint64(page) != uint64(id) || order.Uint16(page[8:]) != flagLeaf {
			continue
		}
		if more := int64(order.Uint32(page[12:])); more > 0 && (id+1+more)*c.pageSize <= size && more*c.pageSize <= salvageMost {
			n += more
			if int64(cap(page)) < n*c.pageSize {
				page = make([]byte, 0, n*c.pageSize)
			}
			page = page[:n*c.pageSize]
			if _, err := f.ReadAt(page, id*c.pageSize); err != nil {
				return meta, err
			}
		}
		if err := elements(page, true, element); err != nil {
			return meta, err
		}
	}
	return meta, nil
}

// elements calls visit for the elements of a leaf page that lie within it, those
// of buckets in the page included.
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

// removeBadRows removes the rows of state.db that make no sense.
func (i *Inspector) removeBadRows(f *File) error {
	s := State{path: filepath.Join(i.Dir, f.Name), o: StateOptions{MaxSize: stateMax, migrations: migrations}}
	var err error
	if s.open, err = s.openExisting(); err != nil {
		return err
	}
	for e := range s.open.entries(i.Tables, &err) {
		if i.Row(e) != nil {
			s.batch = append(s.batch, Entry{Bucket: e.Bucket, Key: bytes.Clone(e.Key)})
		}
	}
	if err == nil {
		_, err = s.commit()
	}
	s.open.release(err)
	return err
}

// copyFile makes a copy, with the owner of the directory.
func copyFile(from, to string) error {
	in, err := openRegular(from, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := openRegular(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, giveTo(out, filepath.Dir(to)), out.Sync(), out.Close())
	if err != nil {
		os.Remove(to)
	}
	return err
}

// giveTo gives a file that root has made to the owner of its directory, who runs
// the filter.
func giveTo(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}
