package report

import (
	"bytes"
	"cmp"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"scanwatch/internal/hostname"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// A source counts the sessions from an address.
type source struct {
	sessions, found, mails, rcptOK, rcptPermfail, rcptTempfail, authFail, authRefused uint32

	refused, observed uint32 // as in Totals

	last    uint32 // end of the last session, in seconds since 1970
	worst   worst
	rdns    uint32 // number of the name in lists.rdns
	certain bool   // a record has evidence of high confidence about behaviour
	abuse   bool   // a record has evidence of behaviour that no mail server shows
	named   bool   // IPv6 host with a proven name, which is not grouped with others in its /64
}

// add adds another address's counts.
func (s *source) add(n *source) {
	s.sessions, s.found, s.mails = s.sessions+n.sessions, s.found+n.found, s.mails+n.mails
	s.rcptOK, s.rcptPermfail, s.rcptTempfail = s.rcptOK+n.rcptOK, s.rcptPermfail+n.rcptPermfail, s.rcptTempfail+n.rcptTempfail
	s.authFail, s.authRefused = s.authFail+n.authFail, s.authRefused+n.authRefused
	s.refused, s.observed, s.last = s.refused+n.refused, s.observed+n.observed, max(s.last, n.last)
	s.worst.merge(n.worst)
	s.rdns, s.abuse, s.named = cmp.Or(s.rdns, n.rdns), s.abuse || n.abuse, s.named || n.named
}

// good reports whether the source belongs in the list of accepted mail. A
// source that behaves in a way that no mail server does is not listed there.
func (s *source) good() bool { return s.mails > 0 && !s.abuse }

// sources holds the number of sessions of each address, and the number of sources.
type sources struct {
	number func(netip.Addr) uint64
	all    entries[address, source]
	rdns   arena
	more   distinct       // counts the sources if all is full
	own    sketch.Sketch  // sources of records with an address
	common *sketch.Sketch // sources of aggregates without an address; nil if there are none
}

// add sets a record's source and counts the record for that source. add returns false if there are
// too many sources.
func (l *sources) add(n *current) bool {
	if !n.Src.IsValid() {
		if n.sum && len(n.Sketch) > 0 {
			if l.common == nil {
				l.common = new(sketch.Sketch)
			}
			l.common.Merge(n.Sketch)
		}
		return true
	}
	before := l.all.n
	key := addressOf(n.Src.Addr())
	i, ok := l.all.find(key)
	if !ok {
		if l.more.empty() {
			for i := range l.all.n {
				l.more.add(mix(l.number(l.all.at(i).key.addr()), 0))
			}
		}
		l.more.add(mix(l.number(n.Src.Addr()), 0))
		l.own.Add(l.number(n.Src.Addr()))
		return false
	}
	if l.all.n > before {
		l.own.Add(l.number(n.Src.Addr()))
	}
	src := &l.all.at(i).V
	n.source, n.number = src, i
	if src.rdns == 0 && len(n.RDNS) > 0 {
		src.rdns = l.rdns.add(n.RDNS)
	}
	src.named = src.named || n.Src.Addr().Is6() && n.FCrDNS == smtp.FCrDNSPass && !hostname.Generic(n.RDNS) && hostname.Registered(n.RDNS) != ""
	k := &n.Counts
	src.sessions += uint32(n.Many())
	src.mails += k.Mails
	src.rcptOK += k.RcptOK
	src.rcptPermfail += k.RcptPermfail
	src.rcptTempfail += k.RcptTempfail
	src.authFail += k.AuthFail
	src.authRefused += k.AuthRefused
	return true
}

// lookup returns the counts of an address, or nil for an unknown address.
func (l *sources) lookup(key address) *source {
	if i, ok := l.all.lookup(key); ok {
		return &l.all.at(i).V
	}
	return nil
}

// A client is a listed source: an IPv4 address, an IPv6 address with a proven
// name, or all other addresses of a /64.
type client struct {
	*source          // counts of the address, or totals of several addresses
	key     *address // the lowest address
	logins  uint32   // sessions with a login, which are not in the other numbers
	several bool     // the source has several addresses
}

// clients lists all sources in the order of their addresses.
type clients struct {
	*sources
	tokens, orgs *names
	all          []client
	of           []uint32 // index in all of each entry of sources
}

// clients groups the addresses by source.
func (c *Collector) clients() *clients {
	l := &c.lists.sources
	t := &l.all
	order := make([]uint32, t.n)
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int { return bytes.Compare(t.at(x).key[:], t.at(y).key[:]) })
	h := &clients{sources: l, tokens: &c.evidence, orgs: &c.orgs, all: make([]client, 0, t.n), of: make([]uint32, t.n)}
	var last uint64
	group := -1 // index of the last source without its own name
	for _, i := range order {
		e := t.at(i)
		number := l.number(e.key.addr())
		switch {
		case e.V.named:
			h.of[i] = uint32(len(h.all))
			h.all = append(h.all, client{source: &e.V, key: &e.key})
		case group < 0 || number != last:
			last, group = number, len(h.all)
			h.of[i] = uint32(group)
			h.all = append(h.all, client{source: &e.V, key: &e.key})
		default:
			h.of[i] = uint32(group)
			one := &h.all[group]
			if !one.several {
				one.several, one.source = true, new(*one.source)
			}
			one.add(&e.V)
		}
		h.all[h.of[i]].logins += c.lists.logins[e.key]
	}
	return h
}

// count returns the number of sources and the maximum error in percent with a
// probability of 98 %. If the number is exact, percent is 0.
func (l *clients) count() (n, percent int) {
	n = len(l.all)
	if !l.more.empty() {
		n, percent = l.more.count()
	}
	if l.common != nil {
		// Both sketches have similar errors, so their difference is meaningful.
		all := l.own
		all.Merge(l.common[:])
		n, percent = n+max(all.Count()-l.own.Count(), 0), 4
	}
	return n, percent
}

// address returns a source's address, or its prefix if the source has several addresses. An
// aggregate of several addresses is recorded with the lowest address of the prefix.
func (c *client) address() string {
	a := c.key.addr()
	if a.Is6() && !c.named && (c.several || [8]byte(c.key[8:]) == [8]byte{}) {
		p, _ := a.Prefix(64)
		return p.String()
	}
	return a.String()
}

// view returns the printed form of source i.
func (l *clients) view(i uint32) Source {
	s := &l.all[i]
	return Source{Address: s.address(), Named: s.named, RDNS: text.Escape(l.rdns.get(s.rdns)), Organisation: l.orgs.printed(s.worst.org),
		Evidence: l.tokens.printed(s.worst.evidence), Logins: int(s.logins), Last: text.At(time.Unix(int64(s.last), 0).UTC()), Totals: s.totals()}
}

func (s *source) totals() Totals {
	return Totals{Sessions: int(s.sessions), Found: int(s.found), Refused: int(s.refused), Observed: int(s.observed), Mails: int(s.mails), RcptOK: int(s.rcptOK),
		RcptPermfail: int(s.rcptPermfail), RcptTempfail: int(s.rcptTempfail), AuthFail: int(s.authFail), AuthRefused: int(s.authRefused)}
}

// list returns the sources and the number of omitted sources. top limits the length of the list.
// The function by returns two numbers. Sources are sorted by these numbers, highest first, and then
// by address. Sources for which the first number is 0 are ignored.
func (l *clients) list(top int, by func(*source) (int, int)) (list []Source, more int) {
	all := make([]uint32, 0, len(l.all))
	for i := range l.all {
		if n, _ := by(l.all[i].source); n > 0 {
			all = append(all, uint32(i))
		}
	}
	all, more = first(all, top, func(x, y uint32) int {
		a, b := &l.all[x], &l.all[y]
		a1, a2 := by(a.source)
		b1, b2 := by(b.source)
		return cmp.Or(cmp.Compare(b1, a1), cmp.Compare(b2, a2), bytes.Compare(a.key[:], b.key[:]))
	})
	list = []Source{}
	for _, i := range all {
		list = append(list, l.view(i))
	}
	return list, more
}

// first returns the first elements of all in the order of compare, and the number of remaining
// elements. top limits the length of the list.
func first[T any](all []T, top int, compare func(a, b T) int) (list []T, more int) {
	slices.SortFunc(all, compare)
	n := min(top, len(all))
	return all[:n], len(all) - n
}

// networks returns the networks and the number of omitted networks. top limits the length of the
// list.
func (l *clients) networks(top int) (list []Network, more int) {
	type network struct{ client, addresses, sessions, found uint32 }
	all := make([]network, 0, len(l.all)) // growing it would take five times the memory
	var last netip.Prefix
	for i := range l.all {
		e := &l.all[i]
		if last.IsValid() && last.Contains(e.key.addr()) {
			n := &all[len(all)-1]
			n.addresses, n.sessions, n.found = n.addresses+1, n.sessions+e.sessions, n.found+e.found
			continue
		}
		last = networkOf(e.key.addr())
		all = append(all, network{uint32(i), 1, e.sessions, e.found})
	}
	prefix := func(n network) netip.Prefix { return networkOf(l.all[n.client].key.addr()) }
	all, more = first(all, top, func(a, b network) int {
		return cmp.Or(cmp.Compare(b.sessions, a.sessions), cmp.Compare(b.found, a.found), prefix(a).Addr().Compare(prefix(b).Addr()))
	})
	list = []Network{}
	for _, n := range all {
		list = append(list, Network{prefix(n).String(), int(n.addresses), int(n.sessions), int(n.found)})
	}
	return list, more
}

// networkOf returns the address's network, of a size that is typical for a site.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a = a.Unmap().WithZone(""); a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // invalid address
	}
	return p
}

// maxExact is the maximum number of sources that are counted exactly.
const maxExact = 500_000

// distinct counts distinct hashes. The count is exact up to maxExact. Higher counts are
// estimated from the share of marked bits (linear counting).
type distinct struct {
	n     int
	set   []uint64 // hash table; 0: free slot
	marks []uint64 // bits that replace set above maxExact
}

const (
	setBits  = 20 // set has 1<<setBits slots and is at most half full
	markBits = 23 // 40 million hashes have an error of 0.2 %
)

func (d *distinct) empty() bool { return d.set == nil && d.marks == nil }

func (d *distinct) add(h uint64) {
	if d.marks != nil {
		d.mark(h)
		return
	}
	if d.set == nil {
		d.set = make([]uint64, 1<<setBits)
	}
	h |= 1 // a hash of 0 would mean a free slot
	i := h >> (64 - setBits)
	for d.set[i] != 0 {
		if d.set[i] == h {
			return
		}
		i = (i + 1) % (1 << setBits)
	}
	d.set[i] = h
	if d.n++; d.n <= maxExact {
		return
	}
	d.marks = make([]uint64, 1<<markBits/64)
	for _, h := range d.set {
		if h != 0 {
			d.mark(h)
		}
	}
	d.set = nil
}

func (d *distinct) mark(h uint64) {
	i := h >> (64 - markBits)
	d.marks[i/64] |= 1 << (i % 64)
}

// count returns the number of distinct hashes and the maximum error in percent.
func (d *distinct) count() (n, percent int) {
	if d.marks == nil {
		return d.n, 0
	}
	free := 1 << markBits
	for _, w := range d.marks {
		free -= bits.OnesCount64(w)
	}
	return int(math.Round((1 << markBits) * math.Log((1<<markBits)/float64(max(free, 1))))), 1
}
