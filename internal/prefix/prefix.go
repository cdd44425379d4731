// Package prefix parses the IP addresses and prefixes in policies, lists and commands. All packages
// use this parser, so they accept the same syntax.
package prefix

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Parse parses an address or a prefix: 192.0.2.1, 192.0.2.0/24, 2001:db8::1, [2001:db8::1] or
// 2001:db8::/32. An address becomes a prefix that covers only that address. An IPv4-mapped address,
// or a NAT64 address, becomes IPv4. Zones, ranges and ports are not allowed. Parse clears the host
// bits, and dropped reports whether any host bit was set.
func Parse(s string) (p netip.Prefix, dropped bool, err error) {
	host, length, hasLength := strings.Cut(s, "/")
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		if inner = strings.TrimSuffix(inner, "]"); strings.Contains(inner, ":") {
			host = inner
		}
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return p, false, refuse(s)
	case addr.Zone() != "":
		return p, false, fmt.Errorf("%q has a zone; write %s", s, addr.WithZone(""))
	case !hasLength:
		addr = Embedded(addr.Unmap())
		return netip.PrefixFrom(addr, addr.BitLen()), false, nil
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil || int(bits) > addr.BitLen() || len(length) > 1 && length[0] == '0' {
		return p, false, fmt.Errorf("%q has no valid prefix length, which is a number from 0 to %d", s, addr.BitLen())
	}
	given := netip.PrefixFrom(addr, int(bits))
	if addr.Is4In6() && given.Bits() < mappedBits {
		return p, false, fmt.Errorf("%q covers more than the IPv4-mapped addresses; write an IPv4 prefix", s)
	}
	p = Unmap(given)
	return p, given.Masked() != given, nil
}

// refuse returns the error for text that is neither an address nor a prefix.
func refuse(s string) error {
	if first, last, ok := strings.Cut(s, "-"); ok {
		_, err1 := netip.ParseAddr(strings.TrimSpace(first))
		_, err2 := netip.ParseAddr(strings.TrimSpace(last))
		if err1 == nil && err2 == nil {
			return fmt.Errorf("%q is a range; write it as prefixes, such as 192.0.2.0/24", s)
		}
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return fmt.Errorf("%q has a port; write %s", s, a.Addr().Unmap().WithZone(""))
	}
	return fmt.Errorf("%q is not an address or prefix; write 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32", s)
}

// Range returns the prefixes that cover exactly the addresses from first to last, or
// nil if last is before first or the families differ.
func Range(first, last netip.Addr) (list []netip.Prefix) {
	first, last = first.Unmap().WithZone(""), last.Unmap().WithZone("")
	if !first.IsValid() || first.BitLen() != last.BitLen() {
		return nil
	}
	for first.IsValid() && first.Compare(last) <= 0 {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || end(wider).Compare(last) > 0 {
				break
			}
			p = wider
		}
		list = append(list, p)
		first = end(p).Next() // invalid after the last address of the family
	}
	return list
}

// end returns the last address in p.
func end(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ParseLogged is like Parse, for text copied from a log. ParseLogged ignores a port after an
// address.
func ParseLogged(s string) (p netip.Prefix, dropped bool, err error) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		s = a.Addr().String()
	}
	return Parse(s)
}

// nat64 is the prefix that translators put before IPv4 addresses (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Embedded returns the IPv4 address of a client that connected through a NAT64 or SIIT translator.
// The IPv6 addresses of all such clients are in a single /64. Embedded returns any other address
// unchanged, including an address that contains a private IPv4 address.
func Embedded(a netip.Addr) netip.Addr {
	if !nat64.Contains(a) {
		return a
	}
	b := a.As16()
	if v4 := netip.AddrFrom4([4]byte(b[12:])); v4.IsGlobalUnicast() && !v4.IsPrivate() {
		return v4
	}
	return a
}

// mappedBits is the length of ::ffff:0:0/96 (RFC 4291 section 2.5.5.2).
const mappedBits = 96

// Unmap clears the host bits of p and converts an IPv4-mapped prefix to IPv4.
// If p is invalid, the result is the zero prefix.
func Unmap(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4In6() && p.Bits() >= mappedBits {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	return p
}

// String returns p as an operator would write it. For a prefix that covers a single address, String
// returns the address.
func String(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Local returns the addresses of this host's interfaces, or nil if the system
// cannot list them.
func Local() []netip.Addr {
	var local []netip.Addr
	addrs, _ := net.InterfaceAddrs() // on error, the list is empty
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local = append(local, p.Addr())
		}
	}
	return local
}
