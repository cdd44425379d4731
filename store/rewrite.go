package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/internal/safego"
)

// An Edit returns a record's replacement, or nil if the record remains unchanged. The replacement
// must have the same key. The replacement may alias the record and is valid until the next call. A
// record may be passed to an Edit more than once.
type Edit func(*Record) *Record

// edited returns the result of edit. edited returns an error if the replacement has a different
// key, because the record would be out of order.
func (edit Edit) edited(r *Record) (*Record, error) {
	to := edit(r)
	if to != nil && to.key() != r.key() {
		return nil, fmt.Errorf("replace session %016x: the key has changed", r.ID)
	}
	return to, nil
}

// rewriteSealed replaces records in a sealed segment and returns their number.
// The new file contains no bytes of the replaced records. Blocks without
// replaced records are copied. rewriteSealed returns an error if a block is
// corrupt, because the block could contain records to replace.
func rewriteSealed(d *directory, s Segment, o sealing, edit Edit) (changed int, err error) {
	in, err := openSealed(d, s)
	if err != nil {
		return 0, err
	}
	defer in.close()
	if in.broken != nil {
		return 0, in.broken
	}
	rows := make([]map[int]bool, len(in.blocks)) // the rows to replace, by block
	err = in.each(func(i int, b *decodedBlock) error {
		return b.each(func(r *Record) error {
			to, err := edit.edited(r)
			if to == nil || err != nil {
				return err
			}
			if rows[i] == nil {
				rows[i] = make(map[int]bool)
			}
			rows[i][r.row] = true
			changed++
			return nil
		})
	})
	if err != nil || changed == 0 {
		return 0, err
	}
	out, err := createSealed(d, s, in.meta, o)
	if err != nil {
		return 0, err
	}
	err = in.each(func(i int, b *decodedBlock) error {
		if rows[i] == nil {
			return out.put(sealedBlock{in.blocks[i], bytes.Clone(b.value())})
		}
		return b.each(func(r *Record) (err error) {
			if rows[i][r.row] {
				r = edit(r)
			}
			_, err = out.add(r)
			return err
		})
	})
	if err != nil {
		out.abort(err)
		return 0, sealError(err)
	}
	_, err = out.finish()
	return changed, sealError(err)
}

// rewriteRows is like rewriteSealed, but for a segment of rows. in holds its content.
func rewriteRows(d *directory, in *rows, o sealing, edit Edit) (changed int, err error) {
	if changed, err = in.editEach(edit, func(_, _ []byte, to *Record) error { return nil }); err != nil || changed == 0 {
		return 0, err
	}
	info := Segment{Name: in.Name, Day: in.Day, Part: in.Part}
	out, err := createFile(d, info, o.limit, schema, o.program, o.now, bucketSessions)
	if err != nil {
		return 0, sealError(err)
	}
	err = out.update(func(tx *bbolt.Tx) error {
		for k, v := range in.meta {
			if err := tx.Bucket(bucketMeta).Put([]byte(k), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = in.copyTo(out, edit)
	}
	out.release(err)
	if err != nil {
		_ = d.remove(in.Name + newSuffix)
		return 0, sealError(err)
	}
	return changed, commitFile(d, in.Name)
}

// copyTo copies the records to the segment out and replaces the edited records.
func (r *rows) copyTo(out *segment, edit Edit) error {
	batch := buffer{data: make([]byte, 0, batchBytes+MaxValue+recordHead)}
	flush := func() error {
		defer batch.reset()
		return out.commit(batch.data, Dropped{}, nil)
	}
	_, err := r.editEach(edit, func(key, value []byte, to *Record) error {
		if to != nil {
			value = AppendRecord(nil, to, to.encodedSteps())
		}
		if !batch.add(keyTime(key), keyOf(key).id, value) {
			return fmt.Errorf("session %016x: %d bytes", keyOf(key).id, len(value))
		}
		if len(batch.data) < batchBytes {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// editEach calls f for each row. to is the replacement, or nil if the row remains
// unchanged. editEach returns the number of replacements, or an error if a row is
// corrupt.
func (r *rows) editEach(edit Edit, f func(key, value []byte, to *Record) error) (changed int, err error) {
	r.rest, r.started, r.end = nil, false, false
	for {
		_, ok, err := r.next()
		if err != nil || !ok {
			return changed, err
		}
		if _, whole, err := readable(r.key, r.value); err != nil || !whole {
			return changed, damaged("session %016x", keyOf(r.key).id)
		}
		rec, err := Decode(r.key, r.value)
		if err != nil {
			return changed, err
		}
		to, err := edit.edited(&rec)
		if err == nil {
			err = f(r.key, r.value, to)
		}
		if err != nil {
			return changed, err
		}
		if to != nil {
			changed++
		}
	}
}

// openRows returns the rows of an open segment. done must be called after reading them.
func (s *segment) openRows() (r *rows, done func(), err error) {
	r = &rows{segment: segment{Segment: s.Segment}, query: newQuery(time.Time{}, time.Time{}, AllKinds), meta: make(metadata)}
	err = guard(func() (err error) {
		if r.tx, err = s.begin(false); err != nil {
			return err
		}
		if err := r.meta.read(r.tx.Bucket(bucketMeta)); err != nil {
			return err
		}
		r.c = r.tx.Bucket(bucketSessions).Cursor()
		return nil
	})
	return r, func() {
		if r.tx != nil && !isDamaged(r.broken) {
			_ = guard(r.tx.Rollback)
		}
	}, err
}

// rewriteFile rewrites a segment that is not open.
func rewriteFile(d *directory, s Segment, o sealing, edit Edit) (changed int, err error) {
	if s.Sealed {
		return rewriteSealed(d, s, o, edit)
	}
	f, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	in, err := openRows(f, s, newQuery(time.Time{}, time.Time{}, AllKinds))
	if err != nil {
		return 0, err
	}
	defer in.close()
	return rewriteRows(d, in.src.(*rows), o, edit)
}

// rewriting is a request to a Writer's goroutine.
type rewriting struct {
	name  string
	edit  Edit
	reply chan rewritten
}

type rewritten struct {
	changed int
	err     error
}

// Rewrite replaces records in a segment and returns their number. Rewrite first writes records that
// were added earlier. Rewrite waits until no segment is being sealed, because rewriting and sealing
// use the same reserved space. If the segment was removed after it was listed, Rewrite returns 0.
func (w *Writer) Rewrite(ctx context.Context, name string, edit Edit) (changed int, err error) {
	r := rewriting{name, edit, make(chan rewritten, 1)}
	select {
	case w.rewrites <- r:
	case <-w.k.done:
		return 0, errors.New("the writer was closed")
	case <-ctx.Done():
		return 0, fmt.Errorf("rewrite %s: %w; a day is being sealed", name, ctx.Err())
	}
	select {
	case done := <-r.reply:
		return done.changed, done.err
	case <-ctx.Done():
		return 0, fmt.Errorf("rewrite %s: %w", name, ctx.Err())
	}
}

// acceptRewrites returns the channel of rewrite requests, or nil while a segment is being
// sealed.
func acceptRewrites(w *Writer) <-chan rewriting {
	if w.days.sealing.Name != "" {
		return nil
	}
	return w.rewrites
}

// rewriteNow handles a rewrite request. New records wait in the buffer until the request
// is done.
func rewriteNow(w *Writer, r *rewriting) (done rewritten) {
	done.err = safego.Run(func() (err error) {
		done.changed, err = w.days.rewrite(r, sealing{limit: w.days.limit(), program: w.o.Program, now: w.o.Now()})
		return err
	})
	_ = safego.Run(func() error { return w.days.pruneAfter(nil) }) // the next commit reports any error
	return done
}

func (d *days) rewrite(r *rewriting, o sealing) (changed int, err error) {
	s, ok := parseSegment(r.name)
	if !ok || s.Quarantined {
		return 0, fmt.Errorf("rewrite %.80q: not a segment", r.name)
	}
	if d.k.directory == nil {
		return 0, errors.New("the directory cannot be written")
	}
	if !s.Sealed && !exists(d.k.directory, s.Name) { // the segment has been sealed since it was listed
		s.Name, s.Sealed = sealedName(s), true
	}
	room := d.limit() // room for the copy; prune adds the same room again if segments are sealed
	if d.k.open != nil && !d.seal {
		room *= 2
	}
	if err := d.prune(room); err != nil {
		return 0, err
	}
	if d.k.openName() == s.Name {
		return d.rewriteOpen(o, r.edit)
	}
	changed, err = rewriteFile(d.k.directory, s, o, r.edit)
	if errors.Is(err, fs.ErrNotExist) && !exists(d.k.directory, s.Name) {
		return 0, nil
	}
	return changed, err
}

// rewriteOpen rewrites the open segment. The next commit opens the new file.
func (d *days) rewriteOpen(o sealing, edit Edit) (changed int, err error) {
	in, done, err := d.k.open.openRows()
	if err == nil {
		changed, err = rewriteRows(d.k.directory, in, o, edit)
	}
	if isDamaged(err) {
		d.k.open.abandon()
	}
	done()
	if changed > 0 || isDamaged(err) {
		d.k.release(err)
	}
	return changed, err
}

// A Rewritten is the result of rewriting a file.
type Rewritten struct {
	Name    string // path below the state directory
	Changed int    // number of replaced records
	Err     error  // the reason why the file was not rewritten
}

// Rewrite replaces records of all segments and calls visit with each result. Rewrite locks the
// directory of sessions and returns ErrInUse if a filter is using it. Each file is replaced with a
// complete copy, for which the budget must have room. program is the program version to write into
// the copies.
func (i *Inspector) Rewrite(program string, now time.Time, edit Edit, visit func(*Rewritten)) error {
	p, err := openPlaces(i.Dir)
	if err != nil || p.sessions == nil {
		return err
	}
	defer p.close()
	lock, err := p.sessions.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := p.sessions.removeTemporary(); err != nil {
		return err
	}
	all, err := p.sessions.segments()
	if err != nil {
		return fmt.Errorf("list recorded sessions: %w", err)
	}
	room := repairing{Inspector: i, p: p, program: program, now: now}
	for _, s := range all {
		if s.Quarantined {
			continue
		}
		f := &Rewritten{Name: filepath.Join(sessionsDir, s.Name)}
		f.Err = room.within(s.Size, func(limit int64) (err error) {
			f.Changed, err = rewriteFile(p.sessions, s, sealing{limit: limit, program: program, now: now}, edit)
			return err
		})
		visit(f)
	}
	return nil
}

// Quarantined returns the quarantined files in a state directory, as paths relative to
// that directory.
func Quarantined(dir string) (names []string, err error) {
	p, err := openPlaces(dir)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.sessions != nil {
		all, err := p.sessions.segments()
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if s.Quarantined {
				names = append(names, filepath.Join(sessionsDir, s.Name))
			}
		}
	}
	_, copies, err := p.state.stateFiles()
	for _, f := range copies {
		names = append(names, f.Name())
	}
	return names, err
}
