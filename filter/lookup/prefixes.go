package lookup

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"

	"scanwatch/internal/prefix"
)

// Prefixes maps address prefixes to values. Prefixes finds the most specific prefix that contains
// an address. The zero Prefixes is empty and ready to use.
//
// All methods treat an IPv4-mapped IPv6 address (::ffff:192.0.2.1) as an IPv4 address.
type Prefixes[V any] struct {
	table bart.Table[V]
}

// Add adds p without its host bits and reports whether p is new. If p already exists, its value
// does not change. Invalid prefixes are ignored.
func (t *Prefixes[V]) Add(p netip.Prefix, v V) bool {
	p = prefix.Unmap(p)
	if !p.IsValid() {
		return false
	}
	if _, there := t.table.Get(p); there {
		return false
	}
	t.table.Insert(p, v)
	return true
}

// Len returns the number of prefixes.
func (t *Prefixes[V]) Len() int { return t.table.Size() }

// Lookup returns the value of the most specific prefix that contains addr.
func (t *Prefixes[V]) Lookup(addr netip.Addr) (V, bool) {
	return t.table.Lookup(addr.Unmap())
}

// LookupPrefix is like Lookup, but also returns the prefix and is slower.
func (t *Prefixes[V]) LookupPrefix(addr netip.Addr) (netip.Prefix, V, bool) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		var none V
		return netip.Prefix{}, none, false
	}
	return t.table.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
}

// Overlapping returns the value of any prefix that overlaps p.
func (t *Prefixes[V]) Overlapping(p netip.Prefix) (v V, ok bool) {
	p = prefix.Unmap(p)
	if !p.IsValid() {
		return v, false
	}
	if _, v, ok = t.table.LookupPrefixLPM(p); ok {
		return v, true
	}
	for _, v := range t.table.Subnets(p) {
		return v, true
	}
	return v, false
}

// Set adds p without its host bits, or replaces its value.
func (t *Prefixes[V]) Set(p netip.Prefix, v V) {
	if p = prefix.Unmap(p); p.IsValid() {
		t.table.Insert(p, v)
	}
}

// Delete removes p. Prefixes within p are kept.
func (t *Prefixes[V]) Delete(p netip.Prefix) {
	if p = prefix.Unmap(p); p.IsValid() {
		t.table.Delete(p)
	}
}

// All iterates over all prefixes in no particular order. The table must not change during the
// iteration.
func (t *Prefixes[V]) All() iter.Seq2[netip.Prefix, V] { return t.table.All() }

// Covering iterates over the prefixes that contain addr. The most specific prefix comes first.
func (t *Prefixes[V]) Covering(addr netip.Addr) iter.Seq2[netip.Prefix, V] {
	addr = addr.Unmap().WithZone("")
	return t.table.Supernets(netip.PrefixFrom(addr, addr.BitLen()))
}
