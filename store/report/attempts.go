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
	// harvestFrom is the minimum number of unknown recipients, in one local domain and
	// one session, that counts as a directory harvest.
	harvestFrom = 5
	// harvestSlow is the minimum number of unknown recipients in the whole period that counts as a
	// directory harvest, for a host without accepted mail. harvestSlow detects hosts that test one
	// recipient in each session.
	harvestSlow = 20
	maxAttempts = 3 // domains of an Attempt
)

// tried holds the counts of a source's rejected recipients in a domain.
type tried struct {
	refused, sessions uint32
	last, now, most   uint32 // the last record, its number of recipients, and the maximum for one record
}

// attempts holds the counts of rejected recipients.
type attempts struct {
	domains names // the recipients' domains; extra is the number of accepted recipients
	tried   entries[uint64, tried]
}

// rcpt updates the counts for a recipient that smtpd accepted or permanently rejected. In an
// aggregate, a step may represent several recipients.
func (c *Collector) rcpt(s *store.Step) {
	n := &c.now
	byFilter := n.byFilter
	n.byFilter = false
	if byFilter || !n.rejected {
		n.recipient, n.rejected = s.Text, n.rejected || byFilter
	}
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
	case t == nil && n.Erased: // a source without an address is not listed
		return
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

// find sets a recipient's domain. An address without a domain is local. find returns false if there
// are too many domains, or if an aggregate does not name the domain.
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
	var lower [maxName]byte
	i := a.domains.find(appendLower(lower[:0], domain[:min(len(domain), maxName-len("@"))]))
	if i < 0 {
		return false
	}
	*d = recipientDomain{text: domain, number: uint32(i), valid: true}
	return true
}

func appendLower(dst, text []byte) []byte {
	for _, b := range text {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		dst = append(dst, b)
	}
	return dst
}

// clientTried counts a source's rejected recipients in a domain, across all of
// the source's addresses.
type clientTried struct{ client, domain, refused, sessions, most uint32 }

// byClient returns the counts, sorted by source and domain.
func (a *attempts) byClient(from *clients) []clientTried {
	all := make([]clientTried, a.tried.n)
	for i := range a.tried.n {
		e := a.tried.at(i)
		all[i] = clientTried{from.of[e.key>>32], uint32(e.key), e.V.refused, e.V.sessions, e.V.most}
	}
	slices.SortFunc(all, func(x, y clientTried) int {
		return cmp.Or(cmp.Compare(x.client, y.client), cmp.Compare(x.domain, y.domain))
	})
	merged := all[:0]
	for _, x := range all {
		if n := len(merged) - 1; n >= 0 && merged[n].client == x.client && merged[n].domain == x.domain {
			m := &merged[n]
			m.refused, m.sessions, m.most = m.refused+x.refused, m.sessions+x.sessions, max(m.most, x.most)
			continue
		}
		merged = append(merged, x)
	}
	return merged
}

// An attempt combines the clientTried elements of one source. at is the index of the first of these
// adjacent elements.
type attempt struct {
	client, refused, sessions uint32
	at                        int
}

// list returns the sources of each kind, and the number of omitted sources. top limits the length
// of each list. Directory harvests are rejected recipients in local domains, and relay probes are
// recipients in other domains. A domain is local if a recipient in it was accepted from an
// unauthenticated client.
func (a *attempts) list(top int, from *clients) (harvest, relay []Attempt, more [2]int) {
	tried := a.byClient(from)
	var all [2][]attempt
	for i, x := range tried {
		list, ok := a.listOf(&x, from)
		if !ok {
			continue
		}
		to := &all[list]
		if n := len(*to); n == 0 || (*to)[n-1].client != x.client {
			*to = append(*to, attempt{client: x.client, at: i})
		}
		last := &(*to)[len(*to)-1]
		last.refused, last.sessions = last.refused+x.refused, last.sessions+x.sessions
	}
	var lists [2][]Attempt
	for list := range all {
		var best []attempt
		best, more[list] = first(all[list], top, func(x, y attempt) int {
			return cmp.Or(cmp.Compare(y.refused, x.refused), cmp.Compare(x.client, y.client))
		})
		lists[list] = []Attempt{}
		for _, x := range best {
			lists[list] = append(lists[list], a.view(x, list, tried[x.at:], from))
		}
	}
	return lists[0], lists[1], more
}

// listOf returns the list to which a source and domain belong: 0 for directory harvests
// and 1 for relay probes. ok is false if the domain is local, but the client tried too
// few recipients for a harvest.
func (a *attempts) listOf(x *clientTried, from *clients) (list int, ok bool) {
	domain := int(x.domain)
	if a.domains.list[domain].extra > 0 || len(a.domains.text(domain)) == 0 {
		return 0, x.most >= harvestFrom || x.refused >= harvestSlow && from.all[x.client].mails == 0
	}
	return 1, true
}

// view converts x to its printable form. tried starts with the elements of x's source.
func (a *attempts) view(x attempt, list int, tried []clientTried, from *clients) Attempt {
	src := from.view(x.client)
	v := Attempt{Address: src.Address, RDNS: src.RDNS, Refused: int(x.refused), Sessions: min(int(x.sessions), src.Sessions)}
	for i := range tried {
		if tried[i].client != x.client {
			break
		}
		if of, ok := a.listOf(&tried[i], from); ok && of == list {
			v.domains++
			v.Domains = append(v.Domains, text.Escape(a.domains.text(int(tried[i].domain))))
		}
	}
	slices.Sort(v.Domains)
	v.Domains = v.Domains[:min(len(v.Domains), maxAttempts)]
	return v
}
