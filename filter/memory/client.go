package memory

import (
	"encoding/binary"
	"net/netip"

	"scanwatch/internal/smtp"
)

// A Client identifies a session's client in the tables.
type Client struct {
	Addr     netip.Addr
	Domain   string // RegisteredDomain of the proven name; empty if there is none
	ASN      uint32
	ASNKnown bool
	Helo     []byte // empty before the greeting
	User     []byte // user of the latest login attempt; empty if there was none
	Session  uint64
	Cut      bool // the name may be truncated, so the host may have its own name
	// Account is set once the session is authenticated. The behaviour of an
	// authenticated session is attributed to the user, never to the address.
	Account bool
	// Shared is set if many hosts share the address because it is private or
	// belongs to a gateway. A shared address has no standing.
	Shared bool
}

// Host returns the client's identity.
func (c *Client) Host() Host { return HostOf(c.Addr, c.Domain != "" || c.Cut) }

// A Host identifies a host by its IPv4 address, or by the /64 of its IPv6 address,
// because an IPv6 host can choose any address in its /64.
//
// An IPv6 host with a proven name is identified by its full address, because
// hosting providers spread the addresses of one /64 over many customers. The same
// applies to networks in which a /64 holds unrelated hosts; see scattered.
type Host struct{ hi, lo uint64 }

// HostOf returns the host with the given address. own must be true if the host has its
// own proven name.
func HostOf(a netip.Addr, own bool) Host {
	if a.Is4() {
		b := a.As4()
		return Host{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	h := Host{hi: binary.BigEndian.Uint64(b[:8])}
	if own || h.scattered() {
		h.lo = binary.BigEndian.Uint64(b[8:])
	}
	return h
}

// scattered reports whether neighbouring addresses of h belong to unrelated hosts, as with
// Teredo (RFC 4380) and NAT64 with a local prefix (RFC 8215).
func (h Host) scattered() bool { return h.hi>>32 == 0x20010000 || h.hi>>16 == 0x64ff9b0001 }

// hostIn returns the host of a prefix for which isSource is true.
func hostIn(p netip.Prefix) Host { return HostOf(p.Addr(), p.Bits() == 128) }

// wide returns the /64 of an IPv6 host. An IPv4 host is returned unchanged.
func (h Host) wide() Host {
	if h.hi == 0 {
		return h
	}
	return Host{hi: h.hi}
}

// Prefix returns the host's addresses.
func (h Host) Prefix() netip.Prefix {
	if h.hi == 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(h.lo))
		return netip.PrefixFrom(netip.AddrFrom4(b), 32)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], h.hi)
	binary.BigEndian.PutUint64(b[8:], h.lo)
	bits := 64
	if h.lo != 0 {
		bits = 128
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), bits)
}

// number returns a number that identifies h: the IPv4 address, or the upper half of the
// /64. IPv4 and IPv6 numbers do not collide, because there are no IPv6 hosts in
// 0000::/32.
func (h Host) number() uint64 {
	switch {
	case h.hi == 0:
		return h.lo
	case h.lo == 0:
		return h.hi
	}
	return max(mix(h.hi, h.lo), 1<<32)
}

// mix returns a hash of two numbers.
func mix(a, b uint64) uint64 { return (a*0x9e3779b97f4a7c15 ^ b) * 0xd6e8feb86659fd93 }

func (h Host) append(b []byte) []byte { return be.AppendUint64(be.AppendUint64(b, h.hi), h.lo) }

func readHost(b []byte) (h Host, ok bool) {
	if len(b) != 16 {
		return h, false
	}
	return Host{be.Uint64(b), be.Uint64(b[8:])}, true
}

// Identify returns the identity of the host with the given address and reverse DNS
// name. Client.Host in the same session returns the same identity.
func Identify(a netip.Addr, rdns []byte, f smtp.FCrDNS) Host {
	return HostOf(a, a.Is6() && (smtp.MayBeCut(rdns, f) || f == smtp.FCrDNSPass && RegisteredDomain(rdns) != ""))
}

// Source returns the prefix that identifies a host without its own proven name: the
// IPv4 address, or the /64 of the IPv6 address.
func Source(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return HostOf(a, false).Prefix()
}

// Number returns Source as a number: the IPv4 address, or the upper half of the IPv6
// address.
func Number(a netip.Addr) uint64 { return HostOf(a, false).number() }

// network returns a number that identifies the address's /24, or /48 for IPv6.
func network(a netip.Addr) uint64 {
	if a.Is4() {
		return Number(a) &^ 0xff
	}
	b := a.As16()
	return be.Uint64(b[:8]) &^ 0xffff
}

// isSource reports whether p covers a single host, or only some of its addresses.
func isSource(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() == 32 || p.Addr().Is6() && p.Bits() >= 64
}

// widen returns the prefix that a manual ban of p covers: the /64 of a single IPv6
// address, or p itself for anything else.
func widen(p netip.Prefix) netip.Prefix {
	if p.Addr().Is6() && p.Bits() > 64 {
		p = netip.PrefixFrom(p.Addr(), 64)
	}
	return p.Masked()
}

// short returns a 16-bit hash that is never 0. Sixteen bits suffice to distinguish a
// few numbers.
func short(n uint64) uint16 {
	n *= 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio, which spreads the hashes well
	return max(uint16(n>>48), 1)
}

// addShort adds a hash to a list of distinct hashes with a fixed length.
func addShort(list []uint16, hash uint16) {
	for i, s := range list {
		if s == 0 {
			list[i] = hash
		}
		if s == 0 || s == hash {
			return
		}
	}
}

func countShort(list []uint16) (n int) {
	for _, s := range list {
		if s != 0 {
			n++
		}
	}
	return n
}

// distinctNetworks holds the hashes of a few networks. There is room for the networks
// that a finding requires, plus the client's own.
type distinctNetworks [distinctAt + 1]uint16

// A request for a missing mailbox is a finding only if distinctAt other networks have
// requested the same mailbox.
const distinctAt = 3

// others returns the number of networks, not counting a's own.
func (n *distinctNetworks) others(a netip.Addr) (count int) {
	network := short(network(a))
	for _, s := range n {
		if s != 0 && s != network {
			count++
		}
	}
	return count
}

func seconds(micros int64) uint32 { return uint32(max(micros, 0) / 1e6) }

const daySeconds = 24 * 3600

// dayOf returns the day, counted in days since 1970.
func dayOf(now uint32) uint16 { return uint16(now / daySeconds) }

// ageScore returns the eviction score of a row that was last used on the given day and
// expires after keep days.
func ageScore(day uint16, now uint32, keep int) int64 {
	return int64(day) + int64(keep) - int64(dayOf(now))
}
