package config

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
)

// table is a rules.Table that was read from a file or is shipped.
type table struct {
	prefixes lookup.Prefixes[struct{}]
	names    lookup.Names[struct{}]
	patterns *lookup.Patterns[struct{}]
	asns     map[uint32]bool
	size     int
}

func (t *table) MatchAddr(a netip.Addr) bool {
	_, ok := t.prefixes.Lookup(a)
	return ok
}

// Overlaps tells whether t has a network that has an address in common with p.
func (t *table) Overlaps(p netip.Prefix) bool {
	_, ok := t.prefixes.Overlapping(p)
	return ok
}

// Narrower goes through the networks of t within p.
func (t *table) Narrower(p netip.Prefix) iter.Seq[netip.Prefix] { return t.prefixes.Narrower(p) }

func (t *table) MatchName(name []byte) bool {
	if _, ok := t.names.LookupBytes(name); ok {
		return true
	}
	if t.patterns == nil {
		return false
	}
	_, ok := t.patterns.Match(name)
	return ok
}

func (t *table) MatchASN(n uint32) bool { return t.asns[n] }

// key is s without its place in the file, which changes when lines move.
func key(s rules.Source) rules.Source {
	s.Pos = rules.Pos{}
	return s
}

func (c *Config) table(s rules.Source) *table {
	if c == nil {
		return nil
	}
	return c.tables[key(s)]
}

func (c *Config) load(s rules.Source, lists *lookup.Lists, before *Config) (rules.Table, error) {
	if s.Builtin {
		t, err := builtin(s.Table, lists)
		if err != nil {
			return nil, err
		}
		c.tables[key(s)] = t
		return t, nil
	}
	file := Beside(s.Pos.File, s.File)
	if slices.Contains(c.refused, file) {
		c.files[file] = stamp{}
		return nil, fmt.Errorf("%s: %w", file, errRefused)
	}
	c.files[file] = stampOf(file)
	f, err := feed.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := feed.Parse(f, strings.TrimSpace(s.Format+" "+s.Param))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if old := before.table(s); old != nil {
		if err := feed.Shrunk(old.size, r.Len()); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if n := r.Refused.Total; n > 0 {
		c.note("table <%s>: %s: %d of %d entries were not taken, the first: %v; see scanwatch import --check", s.Table, file, n, n+r.Len(), r.Refused.First[0])
	}
	t := &table{size: r.Len(), asns: make(map[uint32]bool)}
	for _, p := range r.Prefixes {
		t.prefixes.Add(p, struct{}{})
	}
	for _, n := range r.Names {
		if err := t.names.Add(n, struct{}{}); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	for _, n := range r.ASNs {
		t.asns[n] = true
	}
	c.tables[key(s)] = t
	return t, nil
}

// shipped are the tables that can be builtin, with the evidence that their
// rows support; the lists hold rows that support other evidence as well.
var shipped = map[string]string{
	lookup.Scanners:   "scanner",
	lookup.Clouds:     "cloud",
	lookup.BotnetHelo: "botnet-helo",
	lookup.Allow:      "",
}

// builtin makes a table of a shipped list, without the rows of low confidence:
// those are good for a score, and not for a match.
func builtin(name string, lists *lookup.Lists) (*table, error) {
	evidence, ok := shipped[name]
	if !ok {
		return nil, fmt.Errorf("no list of that name is shipped; there are <scanners>, <clouds>, <botnet-helo> and <allow>")
	}
	t := &table{asns: make(map[uint32]bool)}
	var patterns []lookup.Pattern[struct{}]
	for _, row := range lists.Rows() {
		if row.List != name || row.Evidence != evidence || row.Confidence == "low" {
			continue
		}
		t.size++
		switch row.Kind {
		case "cidr":
			p, err := netip.ParsePrefix(row.Value)
			if err != nil {
				return nil, err
			}
			t.prefixes.Add(p, struct{}{})
		case "asn":
			var n uint32
			if _, err := fmt.Sscanf(row.Value, "AS%d", &n); err != nil {
				return nil, fmt.Errorf("AS number %q: %w", row.Value, err)
			}
			t.asns[n] = true
		case "rdns", "helo":
			if expr, ok := strings.CutPrefix(row.Value, "/"); ok {
				patterns = append(patterns, lookup.Pattern[struct{}]{Expr: strings.TrimSuffix(expr, "/")})
			} else if err := t.names.Add(row.Value, struct{}{}); err != nil {
				return nil, err
			}
		}
	}
	if len(patterns) == 0 {
		return t, nil
	}
	var err error
	t.patterns, err = lookup.NewPatterns(patterns)
	return t, err
}
