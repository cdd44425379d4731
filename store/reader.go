package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/internal/safego"
)

// A Reader reads recorded sessions. A Reader neither creates nor changes files in the state
// directory.
type Reader struct {
	Dir string // the state directory

	// Snapshot writes a consistent copy of a segment that a filter is writing. Snapshot returns
	// ErrFinished if the segment has since been finished. If Snapshot is nil, the Reader cannot
	// read segments that a filter is writing. Each calls Snapshot in a different goroutine.
	Snapshot func(w io.Writer, name string) error

	// Problem, if not nil, is called for each unreadable segment and for each segment
	// with invalid records. The Reader skips unreadable segments and invalid records.
	Problem func(segment string, err error)

	// Dropped counts the records that the filter dropped. Only segments that the last call read are
	// considered.
	Dropped Dropped

	// Lossy is the set of days that may have lost records because of a corrupt
	// file. Each call sets Lossy according to the segments that it reads.
	Lossy []time.Time

	// Rules, if not nil, receives the segments' rule texts, keyed by RuleRef.
	// Rule texts come from the operator, so only a forged file contains hostile
	// text.
	Rules map[uint32]string

	// Only, if not nil, selects records. Blocks without selected records are
	// not read.
	Only *Selection

	// Searched is the number of sessions that the last call processed: those it read plus those it
	// skipped because of Only. Oldest is the end of the oldest of these sessions. Searched and
	// Oldest include blocks that are only partly in the call's period.
	Searched int
	Oldest   time.Time

	// Unread is the number of segments that the last call could not read.
	// Corrupt and quarantined segments are not counted.
	Unread int
}

// Each calls f for each session that ended in the period. The period includes since and excludes
// until. Sessions are ordered by their end, except after clock changes. A zero time means no limit.
// Only steps of the given kinds are read. The record and its text are valid until f returns. Each
// returns the first error returned by f.
func (r *Reader) Each(since, until time.Time, kinds Kinds, f func(*Record) error) error {
	q := newQuery(since, until, kinds)
	q.only = r.Only
	return r.each(q, f)
}

// Find returns the sessions with the given id, oldest first. The result
// includes aggregates that cover a session with this id. There may be several
// sessions, because different runs of smtpd may have used the same id.
func (r *Reader) Find(id uint64) ([]Record, error) {
	var found []Record
	q := newQuery(time.Time{}, time.Time{}, AllKinds)
	q.only = &Selection{IDs: []uint64{id}}
	err := r.each(q, func(rec *Record) error {
		found = append(found, rec.Clone())
		return nil
	})
	return found, err
}

// A Selection selects records. The zero Selection selects none.
type Selection struct {
	Sources []netip.Prefix // records of these sources; aggregates of many sources have none
	IDs     []uint64       // records with these ids, and aggregates that refer to one
}

// has reports whether a record is selected.
func (s *Selection) has(r *Record) (found bool) {
	src := r.Src.Addr().Unmap()
	if slices.Contains(s.IDs, r.ID) || slices.ContainsFunc(s.Sources, func(p netip.Prefix) bool { return p.Contains(src) }) {
		return true
	}
	if r.Sessions == 0 || len(s.IDs) == 0 {
		return false
	}
	_ = r.Steps(func(st *Step) bool {
		found = st.Kind == KindReference && slices.Contains(s.IDs, st.Session)
		return !found
	})
	return found
}

// mayHave reports whether a block may contain selected records. mayHave also returns true for a
// lost block, so that the reader reports the loss.
func (s *Selection) mayHave(b *blockInfo) bool {
	return b.lost != nil || slices.ContainsFunc(s.Sources, b.maySource) ||
		slices.ContainsFunc(s.IDs, func(id uint64) bool { return b.may(hashID(id)) })
}

// A query selects records.
type query struct {
	from, to recordKey // to is exclusive, and zero without a limit
	kinds    Kinds
	only     *Selection // nil for all
	spare    spareBlocks
}

func newQuery(since, until time.Time, kinds Kinds) query {
	q := query{kinds: kinds, spare: make(spareBlocks, 4)}
	// Round the limits up, because keys hold whole microseconds.
	micros := func(t time.Time) uint64 {
		return uint64(max(t.Add(time.Microsecond-time.Nanosecond).UnixMicro(), 0))
	}
	if !since.IsZero() {
		q.from.end = micros(since)
	}
	if !until.IsZero() {
		if q.to.end = micros(until); q.to.end == 0 {
			q.to.id = 1 // id 1, because a zero key means no limit
		}
	}
	return q
}

// ends reports whether a key comes after all selected keys.
func (q *query) ends(k recordKey) bool { return q.to != recordKey{} && k.compare(q.to) >= 0 }

func (r *Reader) problem(segment string, err error) {
	if r.Problem != nil {
		r.Problem(segment, err)
	}
}

// badRecords counts the invalid records of each segment, so that only one
// problem is reported for each segment.
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
		problem(s, fmt.Errorf("%d records cannot be decoded, first error: %w", b.count[i], b.first[i]))
	}
}

// each merges the records of all segments. All other functions read records through each. Segments
// overlap only if records were written late. Usually, two segments are open: the first for its
// records, and the next for its first key.
func (r *Reader) each(q query, f func(*Record) error) error {
	r.Dropped, r.Lossy, r.Unread, r.Searched, r.Oldest = Dropped{}, nil, 0, 0, time.Time{}
	var bad badRecords
	defer func() { bad.report(r.problem) }()
	d, all, err := r.segments(q.from)
	if err != nil {
		return err
	}
	defer d.root.Close()
	var group []*cursor // the segments that are being merged
	ahead := r.openAhead(d, all, q)
	defer func() {
		for _, c := range group {
			c.close()
		}
		if o := <-ahead; o.value != nil {
			o.value.close()
		}
	}()
	var last recordKey // the key of the last call of f
	rec := Record{step: new(Step)}
	for called := false; len(all) > 0 || len(group) > 0; {
		// The next segment joins the group if its records may precede records in the
		// group's last segment.
		for len(all) > 0 && !(len(group) > 0 && group[len(group)-1].after(group[:len(group)-1])) {
			info, o := all[0], <-ahead
			all = all[1:]
			ahead = r.openAhead(d, all, q)
			if c, err := r.opened(info, o.value, o.err); err != nil {
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
			if c.key.compare(first.key) < 0 {
				first = c
			}
		}
		if !called || first.key != last {
			if !called {
				r.older(first.key)
			}
			last, called = first.key, true
			if err := first.src.record(&rec); err != nil {
				bad.add(first.info.Name, err)
			} else {
				r.Searched += rec.Many()
				if q.only == nil || q.only.has(&rec) {
					if err := f(&rec); err != nil {
						return err
					}
				}
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

// older changes Oldest to k's time if k's time is earlier.
func (r *Reader) older(k recordKey) {
	if t := k.time(); r.Oldest.IsZero() || t.Before(r.Oldest) {
		r.Oldest = t
	}
}

// segments opens the directory of sessions and lists the segments that can have records from a key
// onwards. segments reports quarantined segments as problems.
func (r *Reader) segments(from recordKey) (*directory, []Segment, error) {
	d, err := openSessions(r.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list recorded sessions: %w", err)
	}
	all, err := d.stableSegments()
	if err != nil {
		d.root.Close()
		return nil, nil, fmt.Errorf("list recorded sessions: %w", err)
	}
	now := current(all)
	all = slices.DeleteFunc(slices.Clone(now), func(s Segment) bool {
		if from != (recordKey{}) && s.Day.Before(utcDay(from.time())) {
			return true
		}
		switch {
		case strings.HasSuffix(s.Name, emptyMark):
			r.problem(s.Name, errors.New("quarantined as corrupt; no record could be salvaged"))
		case strings.HasSuffix(s.Name, salvagedMark) && slices.ContainsFunc(now, s.precedes):
			r.problem(s.Name, errors.New("quarantined as corrupt; its readable records are in another file of the day"))
		case s.Quarantined:
			r.problem(s.Name, errors.New("quarantined as corrupt"))
		}
		return s.Quarantined
	})
	return d, all, nil
}

// precedes reports whether o may hold the records salvaged from s. Salvaged records are
// in the same part of the day or in a later part.
func (s Segment) precedes(o Segment) bool {
	return !o.Quarantined && o.Day.Equal(s.Day) && o.Part >= s.Part
}

// A cursor points to a record of an open segment.
type cursor struct {
	info Segment
	key  recordKey // key of the current record
	last recordKey // the last key of the segment
	ok   bool      // there is a current record
	src  source

	skipped uint64    // number of sessions in blocks that are not read
	oldest  recordKey // key of the first skipped session
}

// A source iterates over a segment's selected records in order.
type source interface {
	// next moves to the next record and returns its key. next returns false at the end, or after an
	// error that ends the segment.
	next() (recordKey, bool, error)
	// record decodes the current record.
	record(*Record) error
	metadata() metadata
	close()
}

// next moves to the next record, or returns false at the end.
func (c *cursor) next() (ok bool, err error) {
	c.key, c.ok, err = c.src.next()
	return c.ok, err
}

// after reports whether all of c's records follow the other cursors' records.
func (c *cursor) after(others []*cursor) bool {
	if len(others) == 0 {
		return false // the next segment can have earlier records
	}
	for _, o := range others {
		if c.key.compare(o.last) <= 0 {
			return false
		}
	}
	return true
}

func (c *cursor) close() { c.src.close() }

// openAhead opens all[0] in the background, because checking a segment of rows requires reading the
// whole file. If all is empty, openAhead returns nil.
func (r *Reader) openAhead(d *directory, all []Segment, q query) <-chan result[*cursor] {
	return background(func() (*cursor, error) {
		if len(all) == 0 {
			return nil, nil
		}
		c, err := r.openCursor(d, all[0], q)
		if err != nil {
			return nil, err
		}
		_, err = c.next()
		return c, err
	})
}

type result[T any] struct {
	value T
	err   error
}

// background calls f in a goroutine and returns a channel for the result.
func background[T any](f func() (T, error)) <-chan result[T] {
	c := make(chan result[T], 1)
	go func() { // safe: safego.Run recovers panics in f
		var r result[T]
		r.err = safego.Run(func() (err error) {
			r.value, err = f()
			return err
		})
		c <- r
	}()
	return c
}

// opened returns a cursor at a segment's first selected record. opened returns nil if the segment
// has no selected records or was removed after it was listed. err is the error of openAhead.
func (r *Reader) opened(info Segment, c *cursor, err error) (*cursor, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if c == nil {
		if !isDamaged(err) {
			r.Unread++
		}
		return nil, err
	}
	meta := c.src.metadata()
	for i, n := range readDropped(meta.get) {
		r.Dropped[i] += n
	}
	if meta.get(keyLoss) != nil {
		r.Lossy = append(r.Lossy, info.Day)
	}
	if r.Rules != nil {
		meta.rules(r.Rules)
	}
	if c.skipped > 0 {
		r.Searched += int(c.skipped)
		r.older(c.oldest)
	}
	if !c.ok {
		c.close()
		return nil, err
	}
	if err != nil {
		r.problem(info.Name, err)
	}
	return c, nil
}

func (r *Reader) openCursor(d *directory, info Segment, q query) (*cursor, error) {
	if info.Sealed {
		return openBlocks(d, info, q)
	}
	f, err := r.openFile(d, info)
	if errors.Is(err, fs.ErrNotExist) { // it may have been sealed since it was listed
		info.Name, info.Sealed = sealedName(info), true
		return openBlocks(d, info, q)
	}
	if err != nil {
		return nil, err
	}
	return openRows(f, info, q)
}

// openFile opens a finished segment of rows, or a copy of a segment that is being
// written.
func (r *Reader) openFile(d *directory, info Segment) (*os.File, error) {
	for tries := 0; ; tries++ {
		f, err := d.open(info.Name, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		// Lock the file first, because a file that is being written would not pass the
		// check.
		err = lockShared(f)
		if err == nil {
			return f, nil
		}
		f.Close()
		if !errors.Is(err, ErrInUse) {
			return nil, err
		}
		if r.Snapshot == nil || tries == 5 {
			return nil, fmt.Errorf("%w; if filter-scanwatch is running, its control socket must be reachable", err)
		}
		copied, err := tempFile()
		if err != nil {
			return nil, err
		}
		if err = r.Snapshot(copied, info.Name); err == nil {
			return copied, nil
		}
		copied.Close()
		if !errors.Is(err, ErrFinished) {
			return nil, err
		}
		// The segment has just been finished, and the Writer will release the file
		// soon.
		time.Sleep(time.Duration(tries) * 50 * time.Millisecond)
	}
}

// tempFile returns an unlinked file, which the system removes on close.
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

// openReadOnly locks, checks and maps a file, and closes it on error.
func openReadOnly(f *os.File) (*bbolt.DB, error) {
	// Lock the file first, because a file that is being written would not pass the
	// check. bbolt locks the file again.
	if err := lockShared(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return openBolt(f, bbolt.Options{ReadOnly: true})
}
