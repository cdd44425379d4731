package rules

import (
	"iter"
	"net/netip"
	"slices"
)

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

// Overlaps tells whether t has a network that has an address in common with p.
func (t *inline) Overlaps(p netip.Prefix) bool { return overlaps(t.c.prefixes, p) }

// Narrower goes through the networks of t within p.
func (t *inline) Narrower(p netip.Prefix) iter.Seq[netip.Prefix] { return narrower(t.c.prefixes, p) }

func narrower(list []netip.Prefix, p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, q := range list {
			if q.Bits() > p.Bits() && p.Overlaps(q) && !yield(q) {
				return
			}
		}
	}
}

func overlaps(list []netip.Prefix, p netip.Prefix) bool {
	for _, q := range list {
		if q.Overlaps(p) {
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

// Friends tells whether the table <friends> or a pass statement names an
// address within p, whatever else the statement asks for. It cannot tell while
// a table that might is not loaded.
func (p *Policy) Friends(within netip.Prefix) Truth {
	list := slices.Clone(p.tables["friends"])
	for i := range p.passes {
		for j := range p.passes[i].conds {
			c := &p.passes[i].conds[j]
			if c.tree.Word != "src" || c.not {
				continue
			}
			if overlaps(c.prefixes, within) {
				return Yes
			}
			list = append(list, c.tables...)
		}
	}
	answer := No
	for _, t := range list {
		switch t := t.(type) {
		case interface{ Overlaps(netip.Prefix) bool }:
			if t.Overlaps(within) {
				return Yes
			}
		default:
			answer = Unknown
		}
	}
	return answer
}

// Narrower finds the networks within p that rules ask for by src: what holds for some
// address of p does not hold for all. It returns at most n, each once.
func (p *Policy) Narrower(within netip.Prefix, n int) (found []netip.Prefix) {
	add := func(list iter.Seq[netip.Prefix]) {
		for q := range list {
			if len(found) >= n {
				return
			}
			if !slices.Contains(found, q) {
				found = append(found, q)
			}
		}
	}
	for i := range p.rules {
		for j := range p.rules[i].conds {
			c := &p.rules[i].conds[j]
			if c.tree.Word != "src" {
				continue
			}
			add(narrower(c.prefixes, within))
			for _, t := range c.tables {
				if t, ok := t.(interface {
					Narrower(netip.Prefix) iter.Seq[netip.Prefix]
				}); ok {
					add(t.Narrower(within))
				}
			}
		}
	}
	return found
}
