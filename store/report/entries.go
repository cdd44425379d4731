package report

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
)

// entries maps keys to values. It needs little more memory than its
// entries, and never moves an entry.
type entries[K comparable, V any] struct {
	limit int
	hash  func(K) uint64
	slots []uint32 // 1 + number of an entry, or 0
	pages [][]entry[K, V]
	n     uint32
}

type entry[K comparable, V any] struct {
	key K
	V   V
}

const pageEntries = 1 << 10

// at returns the entry with a number.
func (t *entries[K, V]) at(i uint32) *entry[K, V] {
	return &t.pages[i/pageEntries][i%pageEntries]
}

// find returns the number of the entry of a key. It adds a missing one, or returns false
// at the limit.
func (t *entries[K, V]) find(k K) (i uint32, ok bool) {
	if int(t.n)*4 >= len(t.slots)*3 {
		t.grow()
	}
	slot := t.slot(k)
	if i := t.slots[slot]; i > 0 {
		return i - 1, true
	}
	if int(t.n) >= t.limit {
		return 0, false
	}
	if t.n%pageEntries == 0 {
		t.pages = append(t.pages, make([]entry[K, V], pageEntries))
	}
	i = t.n
	t.at(i).key = k
	t.n++
	t.slots[slot] = t.n
	return i, true
}

// lookup returns the number of the entry of a key.
func (t *entries[K, V]) lookup(k K) (i uint32, ok bool) {
	if t.n == 0 {
		return 0, false
	}
	i = t.slots[t.slot(k)]
	return i - 1, i > 0
}

// slot returns the slot of a key, or the free slot for it.
func (t *entries[K, V]) slot(k K) uint64 {
	last := uint64(len(t.slots) - 1)
	slot := t.hash(k) & last
	for t.slots[slot] > 0 && t.at(t.slots[slot]-1).key != k {
		slot = (slot + 1) & last
	}
	return slot
}

func (t *entries[K, V]) grow() {
	t.slots = make([]uint32, max(2*len(t.slots), 1<<10))
	for i := range t.n {
		t.slots[t.slot(t.at(i).key)] = i + 1
	}
}

// An address is the key of a source.
type address [16]byte

func addressOf(a netip.Addr) address { return a.As16() }

func (a address) addr() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// hashSeed keeps clients from choosing addresses with equal hashes.
var hashSeed = [2]uint64{rand.Uint64(), rand.Uint64()}

func (a address) hash() uint64 {
	return mix(binary.LittleEndian.Uint64(a[:]), binary.LittleEndian.Uint64(a[8:]))
}

// mix returns a hash of two numbers.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^hashSeed[0], b^hashSeed[1])
	hi, lo = bits.Mul64(hi^lo^hashSeed[0], 0x9e3779b97f4a7c15)
	return hi ^ lo
}
