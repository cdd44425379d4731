package lookup

import (
	"net/netip"

	"github.com/gaissmai/bart"

	"scanwatch/internal/prefix"
)

// Prefixes maps address prefixes to values and finds the most specific prefix
// that covers an address. The zero value is empty and ready to use.
//
// An IPv4-mapped IPv6 address (::ffff:192.0.2.1) is an IPv4 address throughout.
type Prefixes[V any] struct {
	table bart.Table[V]
}

// Add adds p without its host bits and reports whether p is new. It keeps the value
// of an existing prefix and ignores an invalid one.
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

// Lookup returns the value of the most specific prefix that covers addr.
func (t *Prefixes[V]) Lookup(addr netip.Addr) (V, bool) {
	return t.table.Lookup(addr.Unmap())
}

// LookupPrefix is a slower Lookup that also returns the prefix.
func (t *Prefixes[V]) LookupPrefix(addr netip.Addr) (netip.Prefix, V, bool) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		var none V
		return netip.Prefix{}, none, false
	}
	return t.table.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
}

// Overlapping returns the value of a prefix that overlaps p, if there is one.
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
