package rules

import (
	"net/netip"
	"slices"
)

// An inline is a table whose entries are in the configuration. All entries are compared one after
// the other, so a long list should be in a file.
type inline struct {
	c        cond
	contents Contents
}

// Contents returns the number of entries in each class.
func (t *inline) Contents() Contents { return t.contents }

func (t *inline) MatchAddr(a netip.Addr) bool {
	return slices.ContainsFunc(t.c.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Overlaps reports whether p and a prefix in t have a common address.
func (t *inline) Overlaps(p netip.Prefix) bool { return overlaps(t.c.prefixes, p) }

func overlaps(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, p.Overlaps)
}

func (t *inline) MatchName(b []byte) bool { return matchAny(t.c.names, trimDot(b)) }

func (t *inline) MatchASN(n uint32) bool { return slices.Contains(t.c.as, n) }

// sources holds the parts of a table. A part that is not loaded is nil.
type sources []Table

func (s sources) any(match func(Table) bool) bool {
	return slices.ContainsFunc(s, func(t Table) bool { return t != nil && match(t) })
}

func (s sources) MatchAddr(a netip.Addr) bool {
	return s.any(func(t Table) bool { return t.MatchAddr(a) })
}

func (s sources) MatchName(b []byte) bool {
	return s.any(func(t Table) bool { return t.MatchName(b) })
}

func (s sources) MatchASN(n uint32) bool {
	return s.any(func(t Table) bool { return t.MatchASN(n) })
}

// Friends reports whether the prefix contains the address of a friend. Friends are the addresses in
// the table <friends> and in the src conditions of pass statements. Other conditions of the pass
// statements are ignored. If no friend is found and a table is not loaded, Friends returns Unknown.
func (p *Policy) Friends(within netip.Prefix) Truth {
	if overlaps(p.friends.prefixes, within) {
		return Yes
	}
	answer := No
	for _, t := range p.friends.tables {
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

// friends holds the networks and tables that Friends searches. The networks and tables are
// collected only once, because the filter calls Friends for each unknown client.
type friends struct {
	prefixes []netip.Prefix
	tables   []Table // nil for a table that is not loaded
}

func findFriends(p *Policy) (all friends) {
	all.tables = slices.Clone(p.tables["friends"])
	for i := range p.passes {
		for j := range p.passes[i].conds {
			if c := &p.passes[i].conds[j]; c.tree.Word == "src" && !c.not {
				all.prefixes = append(all.prefixes, c.prefixes...)
				all.tables = append(all.tables, c.tables...)
			}
		}
	}
	return all
}

// PassesKnown reports whether <friends> and all tables in pass statements are loaded.
func (p *Policy) PassesKnown() bool {
	list := slices.Clone(p.tables["friends"])
	for i := range p.passes {
		for j := range p.passes[i].conds {
			list = append(list, p.passes[i].conds[j].tables...)
		}
	}
	return !slices.Contains(list, nil)
}

// PassesUseTable reports whether a pass statement uses the table. PassesUseTable always returns
// true for <friends>, because this table exempts clients without a pass statement.
func (p *Policy) PassesUseTable(name string) bool {
	return name == "friends" || slices.ContainsFunc(p.passes, func(s pass) bool {
		return slices.ContainsFunc(s.tree.Conds, func(c *Cond) bool {
			return slices.ContainsFunc(c.Values, func(v Value) bool { return v.Kind == TableValue && v.Text == name })
		})
	})
}

// Declaration returns the declaration of a table, or nil.
func (p *Policy) Declaration(name string) *TableDecl {
	for _, s := range p.config.All() {
		if t, ok := s.(*TableDecl); ok && t.Name == name {
			return t
		}
	}
	return nil
}

// PassesUse reports whether a pass statement contains a condition with the given word.
func (p *Policy) PassesUse(word string) bool {
	return slices.ContainsFunc(p.passes, func(s pass) bool {
		return slices.ContainsFunc(s.conds, func(c cond) bool { return c.tree.Word == word })
	})
}
