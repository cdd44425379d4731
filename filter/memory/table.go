package memory

import (
	"encoding/binary"
	"iter"
	"maps"
	"sync"
)

// A schema describes a table.
type schema[K comparable, V any] struct {
	name   string // name in Status
	bucket string // name of the bucket on disk
	limit  int    // maximum number of rows

	// evictionScore returns the usefulness of a row, or a negative number if it has
	// expired. A full table evicts rows with low scores first.
	evictionScore func(k K, v V, now uint32) int64

	key    func(K) []byte
	value  func(V) []byte
	decode func(key, value []byte) (K, V, bool)
	// merge merges a stored row into a row added since startup. If merge is nil, the
	// stored row is ignored.
	merge func(live *V, stored V)
	// shift adds a number of seconds to the times in a row. For a table without
	// times, shift is nil.
	shift func(k K, v *V, by int64)
	// dropped, if set, is called for each row that is evicted or has expired.
	dropped func(k K, v V)
	// combine merges the rows of several hosts with the same key, in any order. Tables
	// without combine are not shared.
	combine func(k K, v *V, other V)
	// higher is like combine, but merging the same row again has no effect: it keeps the
	// higher of two counts instead of adding them.
	higher func(k K, v *V, other V)
	// reduce, if set, reduces another host's row to its effect here. It returns
	// false if the row has no effect.
	reduce func(k K, v *V) bool
	// private, if set, reports whether the row of k is not shared.
	private func(k K) bool
	// newest returns the latest time in a row of a shared table, in seconds since 1970.
	newest func(k K, v V) int64
}

// A table is a map with a maximum number of rows. Each table keeps track of changed
// rows, which must be written to disk.
type table[K comparable, V any] struct {
	schema[K, V]
	clock *clock
	rows  map[K]V
	// dirty lists the keys of rows changed since the last write. The value reports
	// whether the disk has a row with the key. Rows that are added and deleted between
	// two writes are not included, so dirty is never larger than twice the table.
	dirty   map[K]bool
	evicted uint64
	peak    int // maximum number of rows since the map was allocated

	// outgoing lists the keys of this host's rows that other hosts must receive.
	// The value reports whether the row has changed since the previous call to
	// Memory.Outgoing, rather than only been announced. outgoing is nil if rows are
	// not shared. Evicted and expired rows are removed, so outgoing is never larger
	// than twice the table.
	outgoing map[K]bool
	foreign  foreignTable[K, V] // rows of other hosts

	// next iterates over the rows that remain to be written while all rows are
	// rewritten. Otherwise, next is nil.
	next func() (K, bool)
	stop func()
}

func newTable[K comparable, V any](s *shared, c schema[K, V]) table[K, V] {
	return table[K, V]{schema: c, clock: &s.clock, rows: make(map[K]V), dirty: make(map[K]bool), foreign: newForeignTable[K, V]()}
}

func (t *table[K, V]) bucketName() string { return t.bucket }

func (t *table[K, V]) status() Status { return Status{t.name, len(t.rows), t.limit, t.evicted} }

func (t *table[K, V]) get(k K) (V, bool) {
	v, ok := t.rows[k]
	return v, ok
}

// live returns the row of k, or the zero V if there is none or it has expired.
func (t *table[K, V]) live(k K, now uint32) (v V, ok bool) {
	if v, ok = t.rows[k]; ok && t.evictionScore(k, v, now) < 0 {
		var none V
		return none, false
	}
	return v, ok
}

// put sets a row. If the row is new, put samples a few other rows and deletes the
// expired ones. If the table is full, put also evicts the sampled row with the lowest
// score. No operation scans the whole table.
func (t *table[K, V]) put(k K, v V, now uint32) {
	_, had := t.rows[k]
	if !had {
		t.makeRoom(now)
	}
	t.rows[k] = v
	t.peak = max(t.peak, len(t.rows))
	if _, ok := t.dirty[k]; !ok {
		t.dirty[k] = had
	}
	if t.outgoing != nil && t.shares(k) {
		t.outgoing[k] = true
	}
}

func (t *table[K, V]) shares(k K) bool { return t.private == nil || !t.private(k) }

// touch changes an existing row without sending it to other hosts again.
func (t *table[K, V]) touch(k K, v V) {
	t.rows[k] = v
	if _, ok := t.dirty[k]; !ok {
		t.dirty[k] = true
	}
}

// samples is the number of rows that put samples for each new row. With more than one
// sample, expired rows are deleted faster than new rows are added.
const samples = 5

func (t *table[K, V]) makeRoom(now uint32) {
	if t.peak > 10_000 && len(t.rows) < t.peak/16 {
		// Replace a nearly empty map, because iterating over it visits all its empty
		// slots.
		rows := make(map[K]V, 2*len(t.rows))
		maps.Copy(rows, t.rows)
		t.rows, t.peak = rows, len(rows)
	}
	past := t.clock.past(now)
	var least K
	var lowest int64
	n := 0
	for k, v := range t.rows { // the order is random
		switch score := t.evictionScore(k, v, now); {
		case score < 0 && (past == now || t.evictionScore(k, v, past) < 0):
			t.drop(k, v)
		case n == 0 || score < lowest:
			least, lowest = k, score
		}
		if n++; n == samples {
			break
		}
	}
	if v, ok := t.rows[least]; ok && len(t.rows) >= t.limit {
		t.drop(least, v)
		t.evicted++
	}
}

// drop deletes a row that is evicted or has expired.
func (t *table[K, V]) drop(k K, v V) {
	t.del(k)
	delete(t.outgoing, k) // other hosts keep their copies of the row until they expire
	if t.dropped != nil {
		t.dropped(k, v)
	}
}

func (t *table[K, V]) del(k K) {
	delete(t.rows, k)
	if t.outgoing != nil && t.shares(k) {
		t.outgoing[k] = true
	}
	if onDisk, ok := t.dirty[k]; ok && !onDisk {
		delete(t.dirty, k)
	} else {
		t.dirty[k] = true
	}
}

func (t *table[K, V]) deleteFunc(del func(K) bool) {
	for k := range t.rows {
		if del(k) {
			t.del(k)
		}
	}
}

// shift adds a number of seconds to the times in all rows.
func (t *table[K, V]) shift(by int64) {
	if t.schema.shift == nil {
		return
	}
	for k, v := range t.rows {
		t.schema.shift(k, &v, by)
		t.rows[k] = v
		if _, ok := t.dirty[k]; !ok {
			t.dirty[k] = true
		}
	}
}

func (t *table[K, V]) rewrite() {
	if t.stop != nil {
		t.stop()
	}
	t.next, t.stop = iter.Pull(maps.Keys(t.rows))
}

func (t *table[K, V]) changes(n int, put func(key, value []byte)) (left int) {
	pass := func(k K) {
		var value []byte
		if v, ok := t.rows[k]; ok {
			value = t.value(v)
		}
		delete(t.dirty, k)
		put(t.key(k), value)
		n--
	}
	for n > 0 && t.next != nil {
		k, ok := t.next()
		if !ok {
			t.stop()
			t.next, t.stop = nil, nil
			break
		}
		pass(k)
	}
	before := len(t.dirty)
	for k := range t.dirty {
		if n <= 0 {
			break
		}
		pass(k)
	}
	if len(t.dirty) == 0 && before > 0 {
		t.dirty = make(map[K]bool) // clear would keep the map's memory
	}
	return n
}

func (t *table[K, V]) restore(key, value []byte, now uint32) bool {
	k, v, ok := t.decode(key, value)
	if !ok {
		return false
	}
	t.restoreRow(k, v, now)
	return true
}

// restoreRow adds a row from disk unless it has expired.
func (t *table[K, V]) restoreRow(k K, v V, now uint32) {
	if t.outgoing != nil {
		t.outgoing[k] = false
	}
	if t.evictionScore(k, v, now) < 0 {
		delete(t.outgoing, k)
		t.dirty[k] = true
		if t.dropped != nil {
			t.dropped(k, v)
		}
		return
	}
	if live, ok := t.rows[k]; ok {
		if t.merge != nil {
			t.merge(&live, v)
		}
		t.rows[k] = live
		t.dirty[k] = true
		return
	}
	if len(t.rows) < t.limit {
		t.rows[k] = v
		return
	}
	// The table is full, because its limit was higher when the file was written. Mark
	// the row as present on disk, so that its eviction deletes it from the file.
	t.put(k, v, now)
	delete(t.dirty, k)
}

// each calls visit with the exported value of each row for which export returns true.
// export is called with the lock held, and visit without it. Rows added during the call
// may be skipped.
func each[K comparable, V, E any](mu *sync.Mutex, t *table[K, V], export func(K, V) (E, bool), visit func(E)) {
	eachIn(mu, func() map[K]V { return t.rows }, export, visit)
}

// eachIn is like each, but for a map. rows is called with the lock held.
func eachIn[K comparable, V, E any](mu *sync.Mutex, rows func() map[K]V, export func(K, V) (E, bool), visit func(E)) {
	var next func() (K, V, bool)
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	list := make([]E, 0, chunk)
	some := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if next == nil {
			next, stop = iter.Pull2(maps.All(rows()))
		}
		for range chunk {
			k, v, more := next()
			if !more {
				return false
			}
			if e, ok := export(k, v); ok {
				list = append(list, e)
			}
		}
		return true
	}
	for more := true; more; {
		list = list[:0]
		more = some()
		for _, e := range list {
			visit(e)
		}
	}
}

var be = binary.BigEndian

// number encodes n in 8 bytes.
func number(n uint64) []byte { return be.AppendUint64(nil, n) }

func readNumber(b []byte) (uint64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return be.Uint64(b), true
}

// words encodes each number in 2 bytes.
func words(list ...uint16) (b []byte) {
	for _, w := range list {
		b = be.AppendUint16(b, w)
	}
	return b
}

// read decodes 2-byte numbers from b, which must be long enough.
func read(b []byte, to ...*uint16) {
	for i, p := range to {
		*p = be.Uint16(b[2*i:])
	}
}

func readWords(b []byte, to []uint16) {
	for i := range to {
		to[i] = be.Uint16(b[2*i:])
	}
}
