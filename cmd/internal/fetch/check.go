package fetch

import (
	"bytes"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/prefix"
)

// A new file is plausible if it has at least half and at most three times as many entries as the
// old file.
const (
	shrink = 2
	growth = 3
)

// maxSpace is the largest address space that a list may cover. Growth up to smallSpace is plausible
// regardless of the previous list. The units are IPv4 addresses and IPv6 /32 networks. The
// catalogue's largest feeds, which list clouds, need less than half of the limits.
var (
	maxSpace   = space{1 << 28, 1 << 16} // a sixteenth of IPv4; an IPv6 /16
	smallSpace = space{1 << 20, 1 << 8}  // a /12; an IPv6 /24
)

// maxASNs is the maximum number of AS numbers in a list, about a tenth of the numbers in use.
const maxASNs = 8192

// If more than a tenth of a list's entries are rejected, its format has probably changed.
const rejectedPart = 10

// check returns a doubtError if the new file must not replace the old one. old is nil if there is
// no old file. check records the new file's numbers in r.
func (f *Feed) check(o Options, old, content []byte, r *Result) error {
	if f.Format == feed.Database {
		return f.checkDatabase(o, old, content, r)
	}
	list, err := f.parse(content)
	if err != nil {
		return doubtError{error: err}
	}
	entries := entriesOf(list)
	r.Entries, r.Rejected, r.Date = len(entries), list.Refused.Total, list.Date
	switch {
	case list.Wide > 0:
		return doubtf("has a prefix wider than /8 (IPv6: /19): %v", list.Refused.First[0])
	case list.Refused.Total*rejectedPart > list.Len():
		return doubtf("%d of %d entries are invalid, the first: %v", list.Refused.Total, list.Refused.Total+list.Len(), list.Refused.First[0])
	}
	if p, own, ok := overlap(list.Prefixes, o.Own); ok && !f.Exempts {
		return doubtf("contains %s, which overlaps this host's address or gateway %s", prefix.String(p), prefix.String(own))
	}
	if err := f.checkNames(o, list.Names); err != nil {
		return err
	}
	var previous feed.Result // empty without a previous list
	if old != nil {
		if list, err := f.parse(old); err == nil {
			previous = *list
		}
	}
	before := entriesOf(&previous)
	r.Added, r.Removed = missing(before, entries), missing(entries, before)
	if o.Any {
		return nil
	}
	switch {
	case list.Incomplete != "":
		return sizef("%s", list.Incomplete)
	case len(list.ASNs) > maxASNs:
		return sizef("has %d AS numbers, more than %d", len(list.ASNs), maxASNs)
	}
	if len(before) > 0 {
		if err := plausible("entries", len(before), len(entries)); err != nil {
			return err
		}
	}
	return plausibleSpace(previous.Prefixes, list.Prefixes)
}

// A space is an amount of address space: IPv4 addresses and IPv6 /32 networks.
type space [2]float64

// spaceOf returns the address space that a list covers. Networks inside other networks do not
// count.
func spaceOf(list []netip.Prefix) (s space) {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare) // a network precedes the networks inside it
	var last netip.Prefix
	for _, p := range list {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue
		}
		last = p
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		s[family] += math.Ldexp(1, 32-p.Bits())
	}
	return s
}

// plausibleSpace returns an error if a list covers too many addresses, because a few wide prefixes
// could reject all mail. If the previous list is missing or damaged, only a small space is
// plausible.
func plausibleSpace(before, now []netip.Prefix) error {
	was, is := spaceOf(before), spaceOf(now)
	for i, unit := range []string{"IPv4 addresses", "IPv6 networks /32"} {
		switch least := growth * max(was[i], smallSpace[i]); {
		case is[i] > maxSpace[i]:
			return sizef("covers %.0f %s, more than %.0f", is[i], unit, maxSpace[i])
		case is[i] > least && was[i] == 0:
			return sizef("covers %.0f %s, more than %.0f, and there is no previous list of prefixes for comparison", is[i], unit, least)
		case is[i] > least:
			return sizef("covers %.0f %s, more than three times the previous %.0f", is[i], unit, was[i])
		}
	}
	return nil
}

func plausible(what string, before, now int) error {
	switch {
	case now*shrink < before:
		return sizef("has %d %s, fewer than half of the previous %d", now, what, before)
	case now > before*growth:
		return sizef("has %d %s, more than three times the previous %d", now, what, before)
	}
	return nil
}

func (f *Feed) parse(content []byte) (*feed.Result, error) {
	if f.Exempts {
		return feed.ParseExempt(bytes.NewReader(content), f.Format)
	}
	return feed.Parse(bytes.NewReader(content), f.Format)
}

// entriesOf returns the set of a list's entries.
func entriesOf(list *feed.Result) map[any]bool {
	set := make(map[any]bool, list.Len())
	for _, p := range list.Prefixes {
		set[p] = true
	}
	for _, n := range list.ASNs {
		set[n] = true
	}
	for _, s := range list.Names {
		set[s] = true
	}
	return set
}

// checkNames returns an error if a name or suffix in a list covers this host, or a public suffix
// such as com or co.uk. A name without a dot probably comes from a different kind of file.
func (f *Feed) checkNames(o Options, names []string) error {
	for _, entry := range names {
		name := strings.TrimPrefix(strings.TrimPrefix(entry, "*"), ".")
		suffix, public := publicsuffix.PublicSuffix(name)
		switch {
		case public && name == suffix:
			return doubtf("contains the public suffix %s", entry)
		case !strings.Contains(name, ".") && !o.Any:
			return sizef("contains %s, a name without a dot", entry)
		}
		for _, own := range o.Names {
			if !f.Exempts && (own == name || strings.HasSuffix(own, "."+name)) {
				return doubtf("contains %s, which covers this host's name %s", entry, own)
			}
		}
	}
	return nil
}

// missing returns the number of entries that only the second set contains.
func missing(in, from map[any]bool) (n int) {
	for e := range from {
		if !in[e] {
			n++
		}
	}
	return n
}

// overlap returns a list's first prefix that overlaps one of this host's networks.
func overlap(list, own []netip.Prefix) (p, net netip.Prefix, ok bool) {
	for _, p := range list {
		for _, net := range own {
			if p.Overlaps(net) {
				return p, net, true
			}
		}
	}
	return p, net, false
}

func (f *Feed) checkDatabase(o Options, old, content []byte, r *Result) error {
	next, err := lookup.CheckOrigins(content)
	if err != nil {
		return doubtError{error: err}
	}
	r.Date = next.Built
	switch {
	case f.Needs.ASN && !next.ASN:
		return doubtf("has no AS numbers (type %s)", next.Type)
	case f.Needs.Country && !next.Country:
		return doubtf("has no countries (type %s)", next.Type)
	}
	before, err := lookup.CheckOrigins(old)
	switch {
	case err != nil || o.Any:
		return nil
	case next.Built.Before(before.Built):
		return sizef("was built %s, before the previous one of %s", next.Built.Format(time.DateOnly), before.Built.Format(time.DateOnly))
	}
	return plausible("bytes", len(old), len(content))
}

// OwnNetworks returns the given networks and the addresses of this host's interfaces, except
// addresses that are always rejected. An IPv6 address is treated as its /64.
func OwnNetworks(local []netip.Addr, also ...netip.Prefix) (own []netip.Prefix) {
	for _, a := range local {
		a = a.Unmap()
		p := netip.PrefixFrom(a, a.BitLen())
		if a.Is6() {
			p = netip.PrefixFrom(a.WithZone(""), 64).Masked()
		}
		if feed.Forbidden(p) == "" {
			own = append(own, p)
		}
	}
	return append(own, also...)
}

// OwnNames returns this host's name and the given names, in lower case.
func OwnNames(also ...string) (names []string) {
	if name, err := os.Hostname(); err == nil {
		also = append(also, name)
	}
	for _, name := range also {
		if name = strings.ToLower(strings.TrimSuffix(name, ".")); name != "" {
			names = append(names, name)
		}
	}
	return names
}
