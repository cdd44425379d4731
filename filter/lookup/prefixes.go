package lookup

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"
)

// Prefixes maps address prefixes to values and finds the most specific one
// that covers an address. The zero value is empty and ready to use. Filling is
// for one goroutine; afterwards any number may look up.
//
// An IPv4 address written as IPv6 (::ffff:192.0.2.1) counts as IPv4 throughout.
type Prefixes[V any] struct {
	table bart.Table[V]
}

// Add enters p, whose host bits are ignored, and tells whether it did: the
// first value of a prefix stays, and an invalid prefix is none.
func (t *Prefixes[V]) Add(p netip.Prefix, v V) bool {
	p = unmapPrefix(p)
	if !p.IsValid() {
		return false
	}
	if _, there := t.table.Get(p); there {
		return false
	}
	t.table.Insert(p, v)
	return true
}

// Len counts the prefixes.
func (t *Prefixes[V]) Len() int { return t.table.Size() }

// Lookup finds the value of the most specific prefix that covers addr.
func (t *Prefixes[V]) Lookup(addr netip.Addr) (V, bool) {
	return t.table.Lookup(addr.Unmap())
}

// LookupPrefix is a slower Lookup that also tells which prefix it was.
func (t *Prefixes[V]) LookupPrefix(addr netip.Addr) (netip.Prefix, V, bool) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		var none V
		return netip.Prefix{}, none, false
	}
	return t.table.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
}

// Overlapping returns the value of a prefix that has an address in common with
// p, if there is one.
func (t *Prefixes[V]) Overlapping(p netip.Prefix) (v V, ok bool) {
	p = unmapPrefix(p)
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

// Narrower goes through the prefixes within p, but not p itself.
func (t *Prefixes[V]) Narrower(p netip.Prefix) iter.Seq[netip.Prefix] {
	p = unmapPrefix(p)
	return func(yield func(netip.Prefix) bool) {
		if !p.IsValid() {
			return
		}
		for q := range t.table.Subnets(p) {
			if q != p && !yield(q) {
				return
			}
		}
	}
}

// unmapPrefix masks p and turns a prefix of mapped addresses into the IPv4
// prefix that is meant. It returns the invalid prefix for an invalid one.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	const mappedBits = 96 // ::ffff:0:0/96, RFC 4291 section 2.5.5.2
	p = p.Masked()
	if p.Addr().Is4In6() && p.Bits() >= mappedBits {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	return p
}
