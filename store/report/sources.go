package report

import (
	"bytes"
	"cmp"
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"scanwatch/internal/sketch"
	"scanwatch/internal/text"
)

// A source counts the sessions of an address.
type source struct {
	sessions, found, mails, rcptOK, rcptPermfail, rcptTempfail, authFail, authRefused uint32

	rdns    uint32 // in lists.rdns
	certain bool   // a record has evidence of high confidence about behaviour
	abuse   bool   // a record has evidence of what no mail server does
}

// sources counts the sessions of each source, and all sources.
type sources struct {
	number func(netip.Addr) uint64
	all    entries[address, source]
	rdns   arena
	more   distinct       // that are not in all
	own    sketch.Sketch  // of records with an address
	common *sketch.Sketch // of sums without an address; nil without such sums
}

// add sets the source of a record, and counts the record for it. It returns false over
// the limit.
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
		if l.more.add(key.hash()) {
			for i := range l.all.n {
				l.more.mark(l.all.at(i).key.hash())
			}
		}
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

// count returns the number of sources, and its maximum error in percent with a
// probability of 98 %: 0 for an exact number.
func (l *sources) count() (n, percent int) {
	if n, percent = l.more.count(); percent == 0 {
		n += int(l.all.n)
	}
	if l.common != nil {
		// The errors of both estimates are similar.
		all := l.own
		all.Merge(l.common[:])
		n, percent = n+max(all.Count()-l.own.Count(), 0), 4
	}
	return n, percent
}

// view returns the source with a number as it is printed.
func (l *sources) view(i uint32) Source {
	e := l.all.at(i)
	s := &e.V
	return Source{Address: e.key.addr().String(), RDNS: text.Escape(l.rdns.get(s.rdns)), Totals: Totals{
		Sessions: int(s.sessions), Found: int(s.found), Mails: int(s.mails), RcptOK: int(s.rcptOK), RcptPermfail: int(s.rcptPermfail),
		RcptTempfail: int(s.rcptTempfail), AuthFail: int(s.authFail), AuthRefused: int(s.authRefused)}}
}

// list returns the first top sources in descending order of two numbers, and of
// the address, and the number of further sources. It omits sources whose first number
// is 0.
func (l *sources) list(top int, by func(*source) (int, int)) (list []Source, more int) {
	t := &l.all
	var all []uint32
	for i := range t.n {
		if n, _ := by(&t.at(i).V); n > 0 {
			all = append(all, i)
		}
	}
	all, more = first(all, top, func(x, y uint32) int {
		a, b := t.at(x), t.at(y)
		a1, a2 := by(&a.V)
		b1, b2 := by(&b.V)
		return cmp.Or(cmp.Compare(b1, a1), cmp.Compare(b2, a2), bytes.Compare(a.key[:], b.key[:]))
	})
	list = []Source{}
	for _, i := range all {
		list = append(list, l.view(i))
	}
	return list, more
}

// first returns the first top elements of all in the order of compare, and the number
// of the others. It does not sort those.
func first[T any](all []T, top int, compare func(a, b T) int) (list []T, more int) {
	list = []T{}
	sorted := false // list has the first top elements so far, and later candidates
	for _, x := range all {
		if sorted && compare(x, list[top-1]) >= 0 {
			continue
		}
		if list = append(list, x); len(list) == 2*top {
			slices.SortFunc(list, compare)
			list, sorted = list[:top], top > 0
		}
	}
	slices.SortFunc(list, compare)
	list = list[:min(top, len(list))]
	return list, len(all) - len(list)
}

// networks returns the first top networks, and the number of further ones.
func (l *sources) networks(top int) (list []Network, more int) {
	t := &l.all
	order := make([]uint32, t.n)
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int { return bytes.Compare(t.at(x).key[:], t.at(y).key[:]) })
	type network struct{ source, addresses, sessions, found uint32 }
	all := make([]network, 0, t.n)
	var last netip.Prefix
	for _, i := range order {
		e := t.at(i)
		if last.IsValid() && last.Contains(e.key.addr()) {
			n := &all[len(all)-1]
			n.addresses, n.sessions, n.found = n.addresses+1, n.sessions+e.V.sessions, n.found+e.V.found
			continue
		}
		last = networkOf(e.key.addr())
		all = append(all, network{i, 1, e.V.sessions, e.V.found})
	}
	prefix := func(n network) netip.Prefix { return networkOf(t.at(n.source).key.addr()) }
	all, more = first(all, top, func(a, b network) int {
		return cmp.Or(cmp.Compare(b.sessions, a.sessions), cmp.Compare(b.found, a.found), prefix(a).Addr().Compare(prefix(b).Addr()))
	})
	list = []Network{}
	for _, n := range all {
		list = append(list, Network{prefix(n).String(), int(n.addresses), int(n.sessions), int(n.found)})
	}
	return list, more
}

// networkOf returns a network of the size that one site typically has.
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

// maxExact is the number of sources up to which their number is exact.
const maxExact = 500_000

// distinct counts different hashes: exactly up to maxExact, less maxSources, and then by
// the share of marked bits (linear counting).
type distinct struct {
	n     int
	set   []uint64 // by hash; 0: free
	marks []uint64 // replaces set
}

const (
	setBits  = 19 // at most 57 % full
	markBits = 23 // 40 million hashes have an error of 0.2 %
)

// add adds a hash. It reports whether it has begun to mark hashes.
func (d *distinct) add(h uint64) (marks bool) {
	if d.marks != nil {
		d.mark(h)
		return false
	}
	if d.set == nil {
		d.set = make([]uint64, 1<<setBits)
	}
	h |= 1 // not 0
	i := h >> (64 - setBits)
	for d.set[i] != 0 {
		if d.set[i] == h {
			return false
		}
		i = (i + 1) % (1 << setBits)
	}
	d.set[i] = h
	if d.n++; d.n <= maxExact-maxSources {
		return false
	}
	d.marks = make([]uint64, 1<<markBits/64)
	for _, h := range d.set {
		if h != 0 {
			d.mark(h)
		}
	}
	d.set = nil
	return true
}

func (d *distinct) mark(h uint64) {
	i := h >> (64 - markBits)
	d.marks[i/64] |= 1 << (i % 64)
}

// count returns the number of different hashes, and its maximum error in percent.
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
