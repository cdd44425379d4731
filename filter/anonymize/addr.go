package anonymize

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"scanwatch/filter/lookup"
)

// special are the networks that mean something by themselves: their addresses stay
// in them. None is longer than what addresses are counted by (/24 and /48).
var special = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"64:ff9b::/32", "::/8", "2001::/32", "2001:db8::/32", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// class is what must be the same of an address and of the one that replaces it: the
// network that it stays in, and whose it is by the shipped lists.
type class struct {
	within netip.Prefix
	row    *lookup.Row
}

func (a *Anonymizer) class(addr netip.Addr) class {
	c := class{row: a.lists.Addr(addr)}
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	near, _ := addr.Prefix(bits)
	if c.row != nil {
		c.within, _ = netip.ParsePrefix(c.row.Value) // the lists have been read
	}
	if a.mixed[near] && (c.row == nil || c.within.Bits() < bits) {
		c.within = near
	}
	if c.within.IsValid() {
		return c
	}
	for _, p := range special {
		if p.Contains(addr) {
			c.within = p
			return c
		}
	}
	if addr.Is4() {
		c.within = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	} else {
		c.within, _ = addr.Prefix(3)
	}
	return c
}

// mixedNetworks are the /24 and /48 in which some addresses are on the lists and
// others are not.
func mixedNetworks(lists *lookup.Lists) map[netip.Prefix]bool {
	mixed := make(map[netip.Prefix]bool)
	for _, row := range lists.Rows() {
		if row.Kind != "cidr" {
			continue
		}
		p, err := netip.ParsePrefix(row.Value)
		if err != nil {
			continue
		}
		bits := 24
		if p.Addr().Is6() {
			bits = 48
		}
		if p.Bits() > bits {
			near, _ := p.Addr().Prefix(bits)
			mixed[near] = true
		}
	}
	return mixed
}

// Addr replaces an address: those of one /24, or /48, come to be in one, and those
// of two in two; what is private, or somebody's on the lists, stays that.
//
// It is the construction of Xu, Fan, Ammar and Moon (Crypto-PAn): each bit is turned
// or not, as a keyed function of the bits before it says. It is repeated until the
// address is of the class that it was of, which keeps it a permutation.
func (a *Anonymizer) Addr(addr netip.Addr) netip.Addr {
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() {
		return addr
	}
	was := a.class(addr)
	for {
		addr = a.turn(addr, was.within.Bits())
		if a.class(addr) == was {
			return addr
		}
	}
}

// turn replaces the bits of an address behind the first keep ones.
func (a *Anonymizer) turn(addr netip.Addr, keep int) netip.Addr {
	four := addr.Is4()
	in := addr.As16()
	if four {
		keep += 96
	}
	out := in
	var block [16]byte
	for i := keep; i < 128; i++ {
		// The i bits before, a one, and zeros.
		block = [16]byte{}
		copy(block[:i/8], in[:i/8])
		block[i/8] = in[i/8]&^(0xff>>(i%8)) | 0x80>>(i%8)
		a.aes.Encrypt(a.block[:], block[:])
		out[i/8] ^= a.block[0] & 1 << (7 - i%8)
	}
	addr = netip.AddrFrom16(out)
	if four {
		addr = addr.Unmap()
	}
	return addr
}

// Prefix replaces a network.
func (a *Anonymizer) Prefix(p netip.Prefix) netip.Prefix {
	if !p.IsValid() || p.Bits() == 0 {
		return p
	}
	return netip.PrefixFrom(a.Addr(p.Addr()), p.Bits()).Masked()
}

// quad reads the four numbers of an IPv4 address, with a dot, hyphen or underscore
// between them, at the beginning of text. It returns its length, 0 if there is none.
func quad(text []byte) (addr netip.Addr, sep byte, n int) {
	var b [4]byte
	for i := range b {
		if i > 0 {
			if n >= len(text) || i == 1 && text[n] != '.' && text[n] != '-' && text[n] != '_' || i > 1 && text[n] != sep {
				return netip.Addr{}, 0, 0
			}
			sep = text[n]
			n++
		}
		v, digits := 0, 0
		for n < len(text) && digits < 3 && '0' <= text[n] && text[n] <= '9' {
			v, digits, n = v*10+int(text[n]-'0'), digits+1, n+1
		}
		if digits == 0 || v > 255 {
			return netip.Addr{}, 0, 0
		}
		b[i] = byte(v)
	}
	if n < len(text) && '0' <= text[n] && text[n] <= '9' {
		return netip.Addr{}, 0, 0
	}
	return netip.AddrFrom4(b), sep, n
}

// appendQuad appends what replaces an address as quad has read it. Numbers keep their
// leading zeros. If the host's own address stands there backwards, as many name
// servers give it, so does its replacement.
func (a *Anonymizer) appendQuad(dst, text []byte, addr netip.Addr, sep byte) []byte {
	b := addr.As4()
	back := netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]})
	reversed := back == a.host && addr != a.host
	if reversed {
		addr = back
	}
	b = a.Addr(addr).As4()
	if reversed {
		b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	}
	padded := len(text) == 15
	for i, v := range b {
		if i > 0 {
			dst = append(dst, sep)
		}
		if padded && v < 100 {
			dst = append(dst, '0')
		}
		if padded && v < 10 {
			dst = append(dst, '0')
		}
		dst = strconv.AppendUint(dst, uint64(v), 10)
	}
	return dst
}

// half is the round function of the words' permutation.
func (a *Anonymizer) half(tweak uint64, round byte, v uint32) uint32 {
	var block [16]byte
	binary.BigEndian.PutUint64(block[:], tweak)
	block[8] = round
	binary.BigEndian.PutUint32(block[12:], v)
	a.wordAES.Encrypt(a.block[:], block[:])
	return binary.BigEndian.Uint32(a.block[:])
}
