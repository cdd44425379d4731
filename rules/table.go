package rules

import "net/netip"

// inline is a table written as a list in the configuration. It looks at one
// value after another: long lists belong into files.
type inline struct{ c cond }

func (t *inline) MatchAddr(a netip.Addr) bool {
	for _, p := range t.c.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (t *inline) MatchName(b []byte) bool {
	b = trimDot(b)
	for i := range t.c.names {
		if t.c.names[i].match(b) {
			return true
		}
	}
	return false
}

func (t *inline) MatchASN(n uint32) bool {
	for _, as := range t.c.as {
		if as == n {
			return true
		}
	}
	return false
}

// sources are what one table is made of; a nil is not loaded.
type sources []Table

func (s sources) MatchAddr(a netip.Addr) bool {
	for _, t := range s {
		if t != nil && t.MatchAddr(a) {
			return true
		}
	}
	return false
}

func (s sources) MatchName(b []byte) bool {
	for _, t := range s {
		if t != nil && t.MatchName(b) {
			return true
		}
	}
	return false
}

func (s sources) MatchASN(n uint32) bool {
	for _, t := range s {
		if t != nil && t.MatchASN(n) {
			return true
		}
	}
	return false
}
