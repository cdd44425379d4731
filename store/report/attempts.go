package report

import (
	"bytes"
	"cmp"
	"slices"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

const (
	// harvestFrom is the minimum number of unknown recipients in one local domain
	// and one session that indicates a directory harvest.
	harvestFrom = 5
	maxAttempts = 3 // domains of an Attempt
)

// tried counts the rejected recipients of a source in a domain.
type tried struct {
	refused, sessions uint32
	last, now, most   uint32 // the last record, its number of recipients, and the maximum for one session
}

// attempts counts rejected recipients.
type attempts struct {
	domains names // of recipients; extra counts the accepted ones
	tried   entries[uint64, tried]
}

// rcpt counts a recipient that smtpd has accepted or permanently rejected, or the tally
// of such recipients.
func (c *Collector) rcpt(s *store.Step) {
	n := &c.now
	byFilter := n.byFilter
	n.byFilter = false
	if byFilter || s.Result != smtp.ResultOK && s.Result != smtp.ResultPermfail {
		return
	}
	count := max(s.Count, 1)
	a, d := &c.lists.attempts, &n.domain
	if !a.find(n, s.Text) {
		c.dropped["domains of recipients"] += int(count)
		return
	}
	if s.Result == smtp.ResultOK {
		a.domains.list[d.number].extra += count
		return
	}
	if d.tried == nil && n.source != nil {
		if i, ok := a.tried.find(uint64(n.number)<<32 | uint64(d.number)); ok {
			d.tried = &a.tried.at(i).V
		}
	}
	t := d.tried
	switch {
	case t == nil:
		c.dropped["attempts"] += int(count)
		return
	case n.sum:
		t.sessions += s.Times
		t.most = max(t.most, s.Most)
	default:
		if t.last != c.record {
			t.last, t.now = c.record, 0
			t.sessions++
		}
		t.now++
		t.most = max(t.most, t.now)
	}
	t.refused += count
}

// find sets the domain of a recipient. An address without a domain is local. It returns
// false at the limit, and for the further domains of a sum.
func (a *attempts) find(n *current, recipient []byte) bool {
	d := &n.domain
	domain := recipient[bytes.LastIndexByte(recipient, '@')+1:]
	if len(domain) == len(recipient) {
		if n.sum && len(domain) > 0 {
			return false
		}
		domain = nil
	}
	if d.is(domain) {
		return true
	}
	var lower [255]byte
	i := a.domains.find(appendLower(lower[:0], domain))
	if i < 0 {
		return false
	}
	*d = recipientDomain{text: domain, number: uint32(i), valid: true}
	return true
}

func appendLower(dst, text []byte) []byte {
	for _, b := range text[:min(len(text), 255)] {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		dst = append(dst, b)
	}
	return dst
}

// attempt is the sum of several tried of a source.
type attempt struct{ source, refused, sessions uint32 }

// list separates rejected recipients in local domains from others. A domain is
// local if one of its recipients was accepted from an unauthenticated client. It returns
// the first top sources of each list, and the number of further ones.
func (a *attempts) list(top int, from *sources) (harvest, relay []Attempt, more [2]int) {
	t := &a.tried
	order := make([]uint32, t.n)
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int { return cmp.Compare(t.at(x).key, t.at(y).key) })
	var all [2][]attempt
	for _, i := range order {
		list, ok := a.listOf(i)
		if !ok {
			continue
		}
		src, v := uint32(t.at(i).key>>32), &t.at(i).V
		to := &all[list]
		if n := len(*to); n == 0 || (*to)[n-1].source != src {
			*to = append(*to, attempt{source: src})
		}
		last := &(*to)[len(*to)-1]
		last.refused, last.sessions = last.refused+v.refused, last.sessions+v.sessions
	}
	var lists [2][]Attempt
	for list := range all {
		var best []attempt
		best, more[list] = first(all[list], top, func(x, y attempt) int {
			return cmp.Or(cmp.Compare(y.refused, x.refused), bytes.Compare(from.all.at(x.source).key[:], from.all.at(y.source).key[:]))
		})
		lists[list] = []Attempt{}
		for _, x := range best {
			lists[list] = append(lists[list], a.view(x, list, order, from))
		}
	}
	return lists[0], lists[1], more
}

// listOf returns the list of an entry of tried: 0 for a harvest and 1 for a relay probe.
// It returns false for few recipients in a local domain.
func (a *attempts) listOf(i uint32) (list int, ok bool) {
	e := a.tried.at(i)
	domain := int(uint32(e.key))
	if a.domains.list[domain].extra > 0 || len(a.domains.text(domain)) == 0 {
		return 0, e.V.most >= harvestFrom
	}
	return 1, true
}

// view returns an attempt as it is printed. Order contains all entries of tried by their
// keys.
func (a *attempts) view(x attempt, list int, order []uint32, from *sources) Attempt {
	t := &a.tried
	src := from.view(x.source)
	v := Attempt{Address: src.Address, RDNS: src.RDNS, Refused: int(x.refused), Sessions: min(int(x.sessions), src.Sessions)}
	at, _ := slices.BinarySearchFunc(order, uint64(x.source)<<32, func(i uint32, k uint64) int { return cmp.Compare(t.at(i).key, k) })
	for _, i := range order[at:] {
		if uint32(t.at(i).key>>32) != x.source {
			break
		}
		if of, ok := a.listOf(i); ok && of == list {
			v.domains++
			v.Domains = append(v.Domains, text.Escape(a.domains.text(int(uint32(t.at(i).key)))))
		}
	}
	slices.Sort(v.Domains)
	v.Domains = v.Domains[:min(len(v.Domains), maxAttempts)]
	return v
}
