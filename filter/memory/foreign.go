package memory

import (
	"slices"
	"sync"
)

// A foreignRow is a row of other hosts.
type foreignRow[V any] struct {
	row    V
	origin uint16 // number of the host with the latest information; see hostNames
}

// A foreignKey identifies a row of other hosts. Rows from the server already include all
// its hosts. Each file has separate rows, so that neither the server nor another file can
// replace them.
type foreignKey[K comparable] struct {
	key  K
	file uint16 // number of the file's host plus 1; 0 for the server
}

// A foreignTable holds the rows of other hosts. All methods require the lock.
type foreignTable[K comparable, V any] struct {
	rows      map[foreignKey[K]]foreignRow[V]
	held      map[uint16]int // number of rows by origin
	files     map[uint16]int // number of rows by foreignKey.file
	displaced map[uint16]int // by origin: rows deleted since startup because the table was full
	// dirty lists the changed keys, as in table. It is nil if the rows are not written to
	// disk.
	dirty map[foreignKey[K]]bool
}

func newForeignTable[K comparable, V any]() foreignTable[K, V] {
	return foreignTable[K, V]{
		rows: make(map[foreignKey[K]]foreignRow[V]),
		held: make(map[uint16]int), files: make(map[uint16]int), displaced: make(map[uint16]int),
	}
}

func (t *foreignTable[K, V]) mark(k foreignKey[K], onDisk bool) {
	if _, ok := t.dirty[k]; !ok && t.dirty != nil {
		t.dirty[k] = onDisk
	}
}

func (t *foreignTable[K, V]) set(k foreignKey[K], row foreignRow[V]) {
	old, had := t.rows[k]
	if had {
		add(t.held, old.origin, -1)
	} else {
		add(t.files, k.file, 1)
	}
	add(t.held, row.origin, 1)
	t.rows[k] = row
	if t.dirty != nil && (!had || any(old) != any(row)) {
		t.mark(k, had)
	}
}

func (t *foreignTable[K, V]) del(k foreignKey[K]) {
	row, ok := t.rows[k]
	if !ok {
		return
	}
	delete(t.rows, k)
	add(t.held, row.origin, -1)
	add(t.files, k.file, -1)
	if onDisk, ok := t.dirty[k]; ok && !onDisk {
		delete(t.dirty, k)
	} else if t.dirty != nil {
		t.dirty[k] = true
	}
}

func (t *foreignTable[K, V]) deleteFunc(del func(foreignKey[K], *foreignRow[V]) bool) (n int) {
	for k, row := range t.rows {
		if del(k, &row) {
			t.del(k)
			n++
		}
	}
	return n
}

// add adds n to a number, and deletes it when it becomes 0.
func add(numbers map[uint16]int, k uint16, n int) {
	if numbers[k] += n; numbers[k] == 0 {
		delete(numbers, k)
	}
}

// room is the maximum number of other hosts' rows.
func (t *table[K, V]) room() int { return t.limit / maxForeign }

// makeForeignRoom prepares the table for a row of origin. It samples a few rows and deletes the
// expired ones. If the table is full, it also deletes a row of the host with the most rows,
// which may be origin, so that no host can displace the rows of a host with fewer rows.
func (t *table[K, V]) makeForeignRoom(origin uint16, now uint32) {
	f, past := &t.foreign, t.clock.past(now)
	full := len(f.rows) >= t.room()
	most, highest := origin, f.held[origin]+1
	for host, n := range f.held {
		if full && (n > highest || n == highest && host < most && most != origin) {
			most, highest = host, n
		}
	}
	var least foreignKey[K]
	var lowest int64
	n := 0
	for k, row := range f.rows { // the order is random
		switch score := t.evictionScore(k.key, row.row, now); {
		case score < 0 && (past == now || t.evictionScore(k.key, row.row, past) < 0):
			f.del(k)
		case full && row.origin != most:
			continue
		case n == 0 || score < lowest:
			least, lowest = k, score
		}
		if n++; n == samples {
			break
		}
	}
	if n > 0 && len(f.rows) >= t.room() {
		f.del(least)
		f.displaced[most]++
	}
}

// other returns the other hosts' row for k, unless it has expired. If there are several, the
// origin is that of the most useful one.
func (t *table[K, V]) other(k K, now uint32) (v V, origin uint16, ok bool) {
	best := int64(-1)
	for file := range t.foreign.files {
		f, found := t.foreign.rows[foreignKey[K]{k, file}]
		if !found {
			continue
		}
		score := t.evictionScore(k, f.row, now)
		switch {
		case score < 0:
			continue
		case ok:
			v = t.union(k, v, f.row)
		default:
			v, ok = f.row, true
		}
		if score > best || score == best && f.origin < origin {
			best, origin = score, f.origin
		}
	}
	return v, origin, ok
}

// union is schema.higher that allocates memory only when it is called, not for every event.
func (t *table[K, V]) union(k K, v, other V) V {
	t.schema.higher(k, &v, other)
	return v
}

// elsewhereRows stores the rows of other hosts' clients, so that the standing of these clients
// is known after a restart, like the bans that do not apply to them.
type elsewhereRows struct {
	*table[peerKey, peer]
	s *shared
}

const (
	// ElsewhereBucket is the bucket with the rows of other hosts' clients.
	ElsewhereBucket = "elsewhere"
	// completeKey is the key of an empty row that is present once the standing on all hosts
	// of a server has arrived. It is greater than all other keys.
	completeKey = "\xff"
)

func (elsewhereRows) bucketName() string { return ElsewhereBucket }

func (t elsewhereRows) status() Status {
	displaced := 0
	for _, n := range t.foreign.displaced {
		displaced += n
	}
	return Status{"clients of other hosts", len(t.foreign.rows), t.room(), uint64(displaced)}
}

func (t elsewhereRows) changes(n int, put func(key, value []byte)) (left int) {
	if n > 0 && t.s.completeDirty {
		t.s.completeDirty = false
		var value []byte
		if t.s.complete {
			value = []byte{1}
		}
		put([]byte(completeKey), value)
		n--
	}
	for k := range t.foreign.dirty {
		if n <= 0 {
			break
		}
		delete(t.foreign.dirty, k)
		var value []byte
		if row, ok := t.foreign.rows[k]; ok {
			value = append(t.value(row.row), t.s.hosts.list[row.origin]...)
		}
		key := t.schema.key(k.key)
		if k.file > 0 {
			key = append(key, t.s.hosts.list[k.file-1]...)
		}
		put(key, value)
		n--
	}
	return n
}

func (t elsewhereRows) restore(key, value []byte, now uint32) bool {
	if string(key) == completeKey {
		t.s.complete = true
		return true
	}
	if len(key) < peerKeySize || len(value) <= peerSize {
		return false
	}
	k := foreignKey[peerKey]{}
	row, ok := foreignRow[peer]{}, false
	if k.key, row.row, ok = t.decode(key[:peerKeySize], value[:peerSize]); !ok {
		return false
	}
	origin := string(value[peerSize:])
	row.origin = t.s.hosts.number(origin)
	if len(key) > peerKeySize {
		k.file = t.s.hosts.number(string(key[peerKeySize:])) + 1
	}
	switch _, live := t.foreign.rows[k]; {
	case live: // has arrived since startup
	case origin == t.s.name, t.evictionScore(k.key, row.row, now) < 0:
		t.foreign.dirty[k] = true
	default:
		if len(t.foreign.rows) >= t.room() {
			t.makeForeignRoom(row.origin, now)
		}
		t.foreign.set(k, row)
		delete(t.foreign.dirty, k)
	}
	return true
}

func (t elsewhereRows) shift(by int64) {
	for k, row := range t.foreign.rows {
		t.schema.shift(k.key, &row.row, by)
		t.foreign.set(k, row)
	}
}

func (t elsewhereRows) rewrite() {
	t.s.completeDirty = t.s.complete
	for k := range t.foreign.rows {
		t.foreign.mark(k, true)
	}
}

// Complete records that the standing that clients have on all other hosts of a server has
// arrived. The record is stored, like the standing.
func (m *Memory) Complete() {
	m.Bans.HaveStanding()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.complete {
		m.complete, m.completeDirty = true, true
	}
}

// Room returns the maximum number of other hosts' rows in each bucket that has one.
func (m *Memory) Room() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	room := make(map[string]int)
	for _, t := range sharedTables(m) {
		if n := t.room(); n > 0 {
			room[t.bucketName()] = n
		}
	}
	return room
}

// Displaced returns the number of rows of every other host that have been deleted since startup
// because a table was full.
func (m *Memory) Displaced() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	byHost := make(map[string]int)
	for _, t := range sharedTables(m) {
		for host, n := range t.displaced() {
			byHost[m.hosts.list[host]] += n
		}
	}
	return byHost
}

// deleteAll deletes this host's and other hosts' rows for which del returns true. The lock is
// released regularly while del is called.
func deleteAll[K comparable, V any](mu *sync.Mutex, t *table[K, V], del func(K) bool) {
	var keys []K
	each(mu, t, func(k K, _ V) (K, bool) { return k, del(k) }, func(k K) { keys = append(keys, k) })
	for some := range slices.Chunk(keys, chunk) {
		t.delAll(mu, some)
	}
	var foreign []foreignKey[K]
	eachIn(mu, func() map[foreignKey[K]]foreignRow[V] { return t.foreign.rows },
		func(k foreignKey[K], _ foreignRow[V]) (foreignKey[K], bool) { return k, del(k.key) },
		func(k foreignKey[K]) { foreign = append(foreign, k) })
	for some := range slices.Chunk(foreign, chunk) {
		t.foreign.delAll(mu, some)
	}
}

func (t *foreignTable[K, V]) delAll(mu *sync.Mutex, keys []foreignKey[K]) {
	mu.Lock()
	defer mu.Unlock()
	for _, k := range keys {
		t.del(k)
	}
}

// eraseForeign is erase for the rows of other hosts.
func eraseForeign[K comparable, V any](mu *sync.Mutex, t *table[K, V], dry bool, want func(K, V) bool) (n int) {
	mu.Lock()
	defer mu.Unlock()
	for k, f := range t.foreign.rows {
		if !want(k.key, f.row) {
			continue
		}
		if n++; !dry {
			t.foreign.del(k)
		}
	}
	return n
}
