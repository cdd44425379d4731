package memory

import (
	"iter"
	"maps"
)

// A table is a map with a limit. What changes in it is noted, for the disk.
type table[K comparable, V any] struct {
	rows  map[K]V
	most  int
	worth func(k K, v V, now uint32) int64 // the least is forgotten first; below 0: dead
	// dirty are the rows that have changed since they were told to the disk,
	// with whether it has a row of that key. What comes and goes before it was
	// ever told is not among them: so there are never more than twice as many
	// as rows, even if nobody asks.
	dirty  map[K]bool
	forgot uint64
	peak   int // rows since the map was made

	// While all rows have to be written anew: where that is.
	next func() (K, bool)
	stop func()
}

func newTable[K comparable, V any](most int, worth func(K, V, uint32) int64) table[K, V] {
	return table[K, V]{rows: make(map[K]V), most: most, worth: worth, dirty: make(map[K]bool)}
}

func (t *table[K, V]) get(k K) (V, bool) {
	v, ok := t.rows[k]
	return v, ok
}

// put sets a row. A new one makes room for itself: some rows are looked at, the
// dead among them are dropped, and if the table is full the one worth least.
// So nothing ever has to go through the whole table.
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
}

// samples is how many rows are looked at when a row is added: more than one, so
// that the dead go faster than rows come.
const samples = 5

func (t *table[K, V]) makeRoom(now uint32) {
	if t.peak > 10_000 && len(t.rows) < t.peak/16 {
		// Going through a map that is nearly empty passes all its empty places.
		rows := make(map[K]V, 2*len(t.rows))
		maps.Copy(rows, t.rows)
		t.rows, t.peak = rows, len(rows)
	}
	var least K
	var worth int64
	n := 0
	for k, v := range t.rows { // begins anywhere
		switch w := t.worth(k, v, now); {
		case w < 0:
			t.del(k)
		case n == 0 || w < worth:
			least, worth = k, w
		}
		if n++; n == samples {
			break
		}
	}
	if len(t.rows) >= t.most {
		t.del(least)
		t.forgot++
	}
}

func (t *table[K, V]) del(k K) {
	delete(t.rows, k)
	if onDisk, ok := t.dirty[k]; ok && !onDisk {
		delete(t.dirty, k)
	} else {
		t.dirty[k] = true
	}
}

// clear forgets everything, without telling the disk.
func (t *table[K, V]) clear() {
	clear(t.rows)
	clear(t.dirty)
}

func (t *table[K, V]) status(name string) Status {
	return Status{name, len(t.rows), t.most, t.forgot}
}

// rewrite makes changes return every row again.
func (t *table[K, V]) rewrite() {
	if t.stop != nil {
		t.stop()
	}
	t.next, t.stop = iter.Pull(maps.Keys(t.rows))
}

// changes calls visit for at most n rows that have changed; the row is nil if
// it is gone.
func (t *table[K, V]) changes(n int, visit func(K, *V)) (left int) {
	tell := func(k K) {
		if v, ok := t.rows[k]; ok {
			visit(k, &v)
		} else {
			visit(k, nil)
		}
		n--
	}
	for n > 0 && t.next != nil {
		k, ok := t.next()
		if !ok {
			t.stop()
			t.next, t.stop = nil, nil
			break
		}
		delete(t.dirty, k)
		tell(k)
	}
	told := 0
	for k := range t.dirty {
		if n <= 0 {
			break
		}
		delete(t.dirty, k)
		tell(k)
		told++
	}
	if len(t.dirty) == 0 && told > 0 {
		t.dirty = make(map[K]bool) // an empty map keeps the room of a full one
	}
	return n
}
