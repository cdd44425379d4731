package export

import (
	"net/netip"
	"strconv"
)

// families calls f once for the IPv4 entries and once for the IPv6 entries.
func families(entries []Entry, f func(v string, entries []Entry)) {
	n := 0
	for n < len(entries) && entries[n].Prefix.Addr().Is4() {
		n++
	}
	f("4", entries[:n])
	f("6", entries[n:])
}

// expand divides p into networks whose prefix lengths are multiples of
// unit, and calls f for each of them.
func expand(p netip.Prefix, unit int, f func(netip.Prefix)) {
	bits := (p.Bits() + unit - 1) / unit * unit
	q := netip.PrefixFrom(p.Addr(), bits)
	for n := 1 << (bits - p.Bits()); n > 0; n-- {
		f(q)
		b := q.Addr().AsSlice()
		for i, add := (bits-1)/8, 1<<(7-(bits-1)%8); i >= 0 && add > 0; i-- {
			add += int(b[i])
			b[i], add = byte(add), add>>8
		}
		a, _ := netip.AddrFromSlice(b)
		q = netip.PrefixFrom(a, bits)
	}
}

// parts splits p into numbers of unit bits. The numbers are decimal if unit is 8, and hexadecimal
// otherwise.
func parts(p netip.Prefix, unit int) (list []string) {
	b := p.Addr().AsSlice()
	for at := 0; at < p.Bits(); at += unit {
		switch unit {
		case 4:
			list = append(list, strconv.FormatUint(uint64(b[at/8]>>(4-at%8)&15), 16))
		case 8:
			list = append(list, strconv.Itoa(int(b[at/8])))
		default:
			list = append(list, strconv.FormatUint(uint64(b[at/8])<<8|uint64(b[at/8+1]), 16))
		}
	}
	return list
}
