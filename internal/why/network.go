package why

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// An Apart describes the other hosts in an IPv6 host's /64. A name is proven if it passes FCrDNS.
// The filter identifies a host with a proven name by its full address. Hosts without a proven name
// in the same /64 count as one host.
type Apart struct {
	Prefix   netip.Prefix `json:"prefix"`
	Sessions int          `json:"sessions"`      // sessions of the other hosts
	Hosts    []string     `json:"hosts"`         // addresses of hosts with proven names, at most maxApart
	Ban      *Ban         `json:"ban,omitempty"` // active ban of the /64, which does not affect the host
}

// maxApart limits the number of hosts with proven names in an answer.
const maxApart = 3

// identity returns the addresses that the filter treats as the session's host.
func identity(r *store.Record) netip.Prefix {
	if !r.Src.IsValid() {
		return netip.Prefix{}
	}
	return memory.Identify(r.Src.Addr(), r.RDNS, r.FCrDNS).Prefix()
}

// identify determines whether the question is about a host with a proven name. The newest recorded
// session from the address gives the answer. If no session is recorded, identify checks for a ban
// of exactly this address.
func (w *query) identify() error {
	q := w.q
	if !q.addr.IsValid() {
		return nil
	}
	host, found := netip.PrefixFrom(q.addr, q.addr.BitLen()), false
	visit := func(r *store.Record) error {
		q.prefix, found = identity(r), true
		return nil
	}
	w.Reader.Only = &store.Selection{Sources: []netip.Prefix{host}}
	if err := history.Walk(w.Reader, time.Time{}, time.Time{}, history.Visitor{Session: visit, Sum: visit}); err != nil || found {
		return err
	}
	rows := memory.NewReader(w.Now)
	return w.Rows([]string{"clock", memory.BansBucket, memory.OthersBucket}, func(en store.Entry) error {
		if rows.Clock(en) {
			return nil
		}
		if b, ok := rows.Ban(en.Key, en.Value); ok && b.Prefix == host {
			q.prefix = host
		}
		return nil
	})
}

// holds reports whether a session belongs to h.
func (h *Host) holds(r *store.Record) bool {
	if !r.Src.IsValid() || !h.Prefix.Contains(r.Src.Addr()) {
		return false
	}
	return h.Prefix.Addr().Is4() || h.Prefix.Bits() != 64 || identity(r) == h.Prefix
}

// countApart counts the sessions of other hosts in the /64.
func (w *query) countApart(r *store.Record, names map[string]bool) {
	q := w.q
	if !q.addr.IsValid() || !r.Src.IsValid() || memory.Source(q.addr) != memory.Source(r.Src.Addr()) || q.from(r) {
		return
	}
	a := w.apart()
	a.Sessions += r.Many()
	if host := identity(r); host.IsSingleIP() && len(names) <= maxApart {
		names[host.Addr().String()] = true
	}
}

// apart describes the other hosts in the /64.
func (w *query) apart() *Apart {
	if w.answer.Apart == nil {
		w.answer.Apart = &Apart{Prefix: memory.Source(w.q.addr), Hosts: []string{}}
	}
	return w.answer.Apart
}

// name fills in the hosts with proven names.
func (a *Apart) name(names map[string]bool) {
	if a == nil {
		return
	}
	all := slices.Sorted(maps.Keys(names))
	a.Hosts = append(a.Hosts, all[:min(len(all), maxApart)]...)
}

// apart writes the paragraph on the other hosts in the /64.
func (p *printer) apart(a *Answer) {
	x := a.Apart
	if x == nil {
		return
	}
	fmt.Fprintf(p.w, "\nOther hosts in %s\n", x.Prefix)
	p.line("recorded", "%s, not counted above", text.Plural(x.Sessions, "session"))
	if x.Ban != nil {
		p.line("ban", "%s", p.ban(x.Ban, &Host{Prefix: x.Prefix})+"; it does not affect "+a.Question)
	}
	for _, host := range x.Hosts {
		p.details("%s why %s", a.command, host)
	}
	if a.Question != prefix.String(x.Prefix) {
		p.details("%s why %s", a.command, x.Prefix)
	}
}
