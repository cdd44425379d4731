package memory

import "net/netip"

// A prefixMap holds values by prefix. A lookup tries each prefix length in use.
type prefixMap[V any] struct {
	rows map[netip.Prefix]V
	bits [2][129]bool // by family and prefix length
}

func (m *prefixMap[V]) set(p netip.Prefix, v V) {
	if m.rows == nil {
		m.rows = make(map[netip.Prefix]V)
	}
	m.rows[p] = v
	m.bits[family(p.Addr())][p.Bits()] = true
}

// find returns the value of the narrowest prefix that contains p and for which ok returns true.
func (m *prefixMap[V]) find(p netip.Prefix, ok func(netip.Prefix, V) bool) (v V, found bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if !m.bits[family(p.Addr())][bits] {
			continue
		}
		q, err := p.Addr().Prefix(bits)
		if v, has := m.rows[q]; err == nil && has && ok(q, v) {
			return v, true
		}
	}
	return v, false
}

// contains reports whether a prefix in the map contains p.
func (m *prefixMap[V]) contains(p netip.Prefix) bool {
	_, found := m.find(p, func(netip.Prefix, V) bool { return true })
	return found
}
