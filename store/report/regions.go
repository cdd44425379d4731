package report

import (
	"cmp"
	"net/netip"

	"scanwatch/internal/text"
)

// A Place is an address's network and country. Unknown fields are empty. The
// text may be hostile.
type Place struct {
	AS      string // number, such as AS64500
	Org     string // name of the organisation that has the AS number
	Country string // two letters
}

// A Region counts the sources in an AS or a country.
type Region struct {
	Name         string `json:"name"` // AS number or country; empty for unknown ones
	Organisation string `json:"organisation,omitempty"`
	Addresses    int    `json:"addresses"`
	Totals
}

// regions returns the sources' AS numbers and countries and adds the numbers of
// omitted entries to more. Without a database, it returns nil.
func regions(l *clients, locate func(netip.Addr) Place, top int, more map[string]int) (as, countries []Region) {
	if locate == nil {
		return nil, nil
	}
	type region struct {
		source
		org       string
		addresses int
	}
	var found [2]map[string]*region
	known := [2]bool{}
	for i := range found {
		found[i] = map[string]*region{}
	}
	for i := range l.all {
		place := locate(l.all[i].key.addr())
		for k, name := range [2]string{place.AS, place.Country} {
			r := found[k][name]
			if r == nil {
				r = new(region)
				found[k][name] = r
			}
			if k == 0 {
				r.org = cmp.Or(r.org, place.Org)
			}
			known[k] = known[k] || name != ""
			r.addresses++
			r.source.add(l.all[i].source)
		}
	}
	list := func(k int, what string) (list []Region) {
		if !known[k] {
			return nil
		}
		for name, r := range found[k] {
			list = append(list, Region{Name: text.Escape(name), Organisation: text.Escape(r.org), Addresses: r.addresses, Totals: r.totals()})
		}
		list, more[what] = first(list, top, func(a, b Region) int {
			return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(b.Found, a.Found), cmp.Compare(a.Name, b.Name))
		})
		return list
	}
	return list(0, "as_numbers"), list(1, "countries")
}
