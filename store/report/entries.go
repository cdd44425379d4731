package report

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
)

// entries maps keys to values. It needs little more memory than its entries, and never
// moves them.
type entries[K comparable, V any] struct {
	limit int
	hash  func(K) uint64
	slots []slot
	pages [][]entry[K, V]
	n     uint32
}

type entry[K comparable, V any] struct {
	key K
	V   V
}

const pageEntries = 1 << 10

// The lower bits of a hash table's slot store the number of an entry, plus 1. The upper bits store
// part of the hash, which avoids most comparisons with other entries. A slot of 0 is free.
type slot uint32

const slotBits = 18 // more than all limits

func newSlot(number uint32, hash uint64) slot {
	return slot(number+1) | slot(hash>>(64-32+slotBits))<<slotBits
}

func (s slot) number() uint32 { return uint32(s)&(1<<slotBits-1) - 1 }

// like reports whether the slot's entry can have the given hash.
func (s slot) like(hash uint64) bool { return uint32(s)>>slotBits == uint32(hash>>(64-32+slotBits)) }

func (t *entries[K, V]) at(i uint32) *entry[K, V] {
	return &t.pages[i/pageEntries][i%pageEntries]
}

// find returns the number of a key's entry. For a new key, it adds an entry, or returns false if
// there are too many entries.
func (t *entries[K, V]) find(k K) (i uint32, ok bool) {
	if int(t.n)*8 >= len(t.slots)*7 { // a fuller table is still fast, because like avoids most comparisons
		t.grow()
	}
	hash := t.hash(k)
	at := t.slot(k, hash)
	if s := t.slots[at]; s > 0 {
		return s.number(), true
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
	t.slots[at] = newSlot(i, hash)
	return i, true
}

// lookup returns the number of a key's entry.
func (t *entries[K, V]) lookup(k K) (i uint32, ok bool) {
	if t.n == 0 {
		return 0, false
	}
	s := t.slots[t.slot(k, t.hash(k))]
	return s.number(), s > 0
}

// slot returns the position of a key's slot. For a new key, it returns the position of
// a free slot.
func (t *entries[K, V]) slot(k K, hash uint64) uint64 {
	last := uint64(len(t.slots) - 1)
	i := hash & last
	for ; t.slots[i] > 0; i = (i + 1) & last {
		if s := t.slots[i]; s.like(hash) && t.at(s.number()).key == k {
			break
		}
	}
	return i
}

func (t *entries[K, V]) grow() {
	t.slots = make([]slot, max(2*len(t.slots), 1<<10))
	for i := range t.n {
		key := t.at(i).key
		hash := t.hash(key)
		t.slots[t.slot(key, hash)] = newSlot(i, hash)
	}
}

// An address is the key of a source.
type address [16]byte

func addressOf(a netip.Addr) address { return a.As16() }

func (a address) addr() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// hashSeed prevents clients from choosing addresses with equal hashes.
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
