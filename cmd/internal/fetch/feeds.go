package fetch

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// Feeds returns the files that the configuration fetches: first the databases, then the tables in
// order.
func Feeds(tree *rules.Config) ([]*Feed, error) {
	var list []*Feed
	add := func(f *Feed, d rules.Download, pos rules.Pos) error {
		if d.IsZero() {
			return nil
		}
		if err := f.from(d, pos); err != nil {
			return fmt.Errorf("%s: %w", pos, err)
		}
		i := slices.IndexFunc(list, func(g *Feed) bool { return g.File == f.File })
		if i < 0 {
			list = append(list, f)
			return nil
		}
		if g := list[i]; g.Format != feed.Database || g.URL != f.URL || g.KeyFile != f.KeyFile || g.Every != f.Every {
			return fmt.Errorf("%s: %s is already downloaded for %s", pos, f.File, g.Name)
		}
		list[i].Needs = Fields{ASN: true, Country: true}
		return nil
	}
	for _, s := range tree.All() {
		set, ok := s.(*rules.Setting)
		if !ok {
			continue
		}
		f := &Feed{Name: set.Word, File: config.ResolvePath(tree.File, set.Text), Format: feed.Database,
			Needs: Fields{ASN: set.Word == "asn", Country: set.Word == "country"}}
		if err := add(f, set.Download, set.Pos); err != nil {
			return nil, err
		}
	}
	var failed error
	_, _, err := rules.Compile(tree, rules.Options{Load: func(s rules.Source) (rules.Table, error) {
		if s.Builtin || s.Download.IsZero() || failed != nil {
			return nil, nil
		}
		f := &Feed{Name: s.Table, File: config.ResolvePath(s.Pos.File, s.File), Exempts: s.Exempts}
		if f.Format, failed = config.Format(s); failed == nil {
			failed = feed.Check(f.Format)
		}
		if failed != nil {
			failed = fmt.Errorf("%s: %w", s.Pos, failed)
			return nil, nil
		}
		failed = add(f, s.Download, s.Pos)
		return nil, nil
	}})
	if err != nil {
		return nil, err
	}
	return list, failed
}

// from fills in the fields that are derived from a Download.
func (f *Feed) from(d rules.Download, pos rules.Pos) error {
	f.URL, f.Every, f.Least, f.KeyFile = d.URL, d.Every, DefaultLeast, config.ResolvePath(pos.File, d.Key)
	if d.Feed == "" {
		return nil
	}
	p, ok := feed.Find(d.Feed)
	switch {
	case !ok:
		return fmt.Errorf("feed %s is not in the catalogue; see scanwatch update --list", d.Feed)
	case (p.Format == feed.Database) != (f.Format == feed.Database):
		return fmt.Errorf("feed %s has the format %s; asn and country need a database, tables a list", d.Feed, p.Format)
	case d.Every != 0 && d.Every < p.Least:
		return fmt.Errorf("feed %s allows one request every %s", d.Feed, text.Duration(p.Least))
	case p.Header != "" && f.KeyFile == "":
		return fmt.Errorf("feed %s needs a key: write it to a file and add: key \"file\"", d.Feed)
	}
	f.URL, f.Least, f.Header = p.URL, p.Least, p.Header
	return nil
}

// Own returns the addresses and networks that no list may contain.
func Own(s rules.Settings, local []netip.Addr) []netip.Prefix {
	return OwnNetworks(local, slices.Concat(s.OwnAddresses, s.Gateways)...)
}

// every returns the interval between requests.
func (f *Feed) every() time.Duration { return max(cmp.Or(f.Every, DefaultEvery), f.Least) }
