package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/prefix"
	"scanwatch/rules"
)

// A table is a rules.Table that was loaded from a file or a shipped list.
type table struct {
	prefixes lookup.Prefixes[struct{}]
	names    lookup.Names[struct{}]
	patterns *lookup.Patterns[struct{}]
	asns     map[uint32]bool
	size     int
	contents rules.Contents
	digest   string // SHA-256 of the file
}

// Contents returns the kinds of entries in t.
func (t *table) Contents() rules.Contents { return t.contents }

func (t *table) MatchAddr(a netip.Addr) bool {
	_, ok := t.prefixes.Lookup(a)
	return ok
}

// Overlaps reports whether a network in t overlaps p.
func (t *table) Overlaps(p netip.Prefix) bool {
	_, ok := t.prefixes.Overlapping(p)
	return ok
}

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

// key returns s without its position, use and download, so that a table is recognised
// even if its line has moved.
func key(s rules.Source) rules.Source {
	s.Pos, s.Exempts, s.Download = rules.Pos{}, false, rules.Download{Feed: s.Feed}
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
	file := ResolvePath(s.Pos.File, s.File)
	c.files[file] = stampOf(file)
	format, err := Format(s)
	if err != nil {
		return nil, err
	}
	f, err := feed.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !s.Download.IsZero():
		return nil, fmt.Errorf("%w; to download it: scanwatch update %s", err, s.Table)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	parse := feed.Parse
	if s.Exempts {
		parse = feed.ParseExempt
	}
	sum := sha256.New()
	r, err := parse(io.TeeReader(f, sum), format)
	if errors.Is(err, feed.ErrEmpty) {
		r, err = &feed.Result{}, nil // a new table may start with an empty file
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if old := before.table(s); old != nil && old.size > 0 && r.Len() == 0 && !c.forced {
		return nil, fmt.Errorf("%s: %w, previously %d; to empty the table: scanwatch reload --force", file, feed.ErrEmpty, old.size)
	}
	if r.Len() == 0 && blank(f) {
		c.Blank = append(c.Blank, s.Table)
		c.note("table <%s>: %s is empty; if this is intended, write a comment in it", s.Table, file)
	}
	if n := r.Refused.Total; n > 0 {
		c.note("table <%s>: %s: %d of %d entries rejected, the first: %v; see scanwatch import --check", s.Table, file, n, n+r.Len(), r.Refused.First[0])
	}
	if n := r.Doubts.Total; n > 0 && c.strict {
		c.note("table <%s>: %s: probable mistake: %v", s.Table, file, r.Doubts.First[0])
	}
	t := &table{size: r.Len(), asns: make(map[uint32]bool), digest: hex.EncodeToString(sum.Sum(nil))}
	for _, p := range r.Prefixes {
		t.prefixes.Add(p, struct{}{})
	}
	if len(r.Prefixes) > 0 {
		t.contents.Add(rules.Addresses, len(r.Prefixes), prefix.String(r.Prefixes[0]))
	}
	if len(r.ASNs) > 0 {
		t.contents.Add(rules.Numbers, len(r.ASNs), fmt.Sprintf("AS%d", r.ASNs[0]))
	}
	for _, n := range r.Names {
		t.contents.AddName(n)
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

// Format returns the format of the table's file, as named in package feed, or "" if the format
// must be detected.
func Format(s rules.Source) (string, error) {
	if s.Feed == "" || s.Format != "" {
		return strings.TrimSpace(s.Format + " " + s.Param), nil
	}
	p, ok := feed.Find(s.Feed)
	switch {
	case !ok:
		return "", fmt.Errorf("feed %s is not in the catalogue; see scanwatch update --list", s.Feed)
	case p.Format == feed.Database:
		return "", fmt.Errorf("feed %s is a database; use it with asn or country", s.Feed)
	}
	return p.Format, nil
}

// blank reports whether a small file contains only white space, for example because of a
// failed download or a full disk. To keep a table empty, the operator can put a comment
// in its file.
func blank(f *os.File) bool {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	return err == nil && len(bytes.TrimSpace(text)) == 0
}

// shipped maps the name of each shipped list to an evidence token. The list's table contains only
// the rows with this token.
var shipped = map[string]string{
	lookup.Scanners:     "scanner",
	lookup.Clouds:       "cloud",
	lookup.BotnetHelo:   "botnet-helo",
	lookup.KnownSenders: "",
}

// builtin returns the table for a shipped list, without low-confidence rows such as
// rented addresses that were listed more than 90 days ago.
func builtin(name string, lists *lookup.Lists) (*table, error) {
	evidence, ok := shipped[name]
	if !ok {
		return nil, errors.New("not an included list; use <scanners>, <clouds>, <botnet-helo> or <known-senders>")
	}
	t := &table{asns: make(map[uint32]bool)}
	var patterns []lookup.Pattern[struct{}]
	for _, row := range lists.Rows() {
		if row.List != name || row.Evidence != evidence || row.ConfidenceAt(time.Now()) == "low" {
			continue
		}
		t.size++
		switch row.Kind {
		case "cidr":
			p, _, err := prefix.Parse(row.Value)
			if err != nil {
				return nil, err
			}
			t.prefixes.Add(p, struct{}{})
			t.contents.Add(rules.Addresses, 1, row.Value)
		case "asn":
			var n uint32
			if _, err := fmt.Sscanf(row.Value, "AS%d", &n); err != nil {
				return nil, fmt.Errorf("AS number %q: %w", row.Value, err)
			}
			t.asns[n] = true
			t.contents.Add(rules.Numbers, 1, row.Value)
		case "rdns", "helo":
			t.contents.Add(rules.Names, 1, row.Value)
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
