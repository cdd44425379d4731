//go:build linux

package smtpd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// A Host is an address that has names in DNS.
type Host struct {
	Addr      string
	Name      string // name in the PTR record
	Confirmed bool   // Name has an A or AAAA record for Addr
}

// Constants from RFC 1035 (sections 3.2 and 4.1.1) and RFC 3596.
const (
	typeA, typePTR, typeAAAA = 1, 12, 28
	classIN                  = 1
	flagsAnswer              = 0x8580 // response, authoritative, recursion desired and available
	nameError                = 3
)

// A zone maps names and types to record data.
type zone map[string]map[uint16][][]byte

func newZone(hosts []Host) (zone, error) {
	z := zone{}
	add := func(name string, typ uint16, data []byte) {
		name = strings.ToLower(name)
		if z[name] == nil {
			z[name] = map[uint16][][]byte{}
		}
		z[name][typ] = append(z[name][typ], data)
	}
	for _, h := range hosts {
		addr, err := netip.ParseAddr(h.Addr)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", h.Name, err)
		}
		name, err := packName(h.Name)
		if err != nil {
			return nil, err
		}
		add(reverseName(addr), typePTR, name)
		switch {
		case !h.Confirmed:
		case addr.Is4():
			add(h.Name, typeA, addr.AsSlice())
		default:
			add(h.Name, typeAAAA, addr.AsSlice())
		}
	}
	return z, nil
}

// reverseName returns the name of an address's PTR record.
func reverseName(addr netip.Addr) string {
	var b strings.Builder
	octets := addr.AsSlice()
	for i := len(octets) - 1; i >= 0; i-- {
		if addr.Is4() {
			fmt.Fprintf(&b, "%d.", octets[i])
		} else {
			fmt.Fprintf(&b, "%x.%x.", octets[i]&15, octets[i]>>4)
		}
	}
	if addr.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}

func packName(name string) ([]byte, error) {
	var b []byte
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > 63 {
			return nil, fmt.Errorf("host name %q: label of %d bytes", name, len(label))
		}
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0), nil
}

// answer returns the reply to a query, or nil if the query is invalid.
func (z zone) answer(query []byte) []byte {
	const header = 12
	if len(query) < header || query[2]&0x80 != 0 || binary.BigEndian.Uint16(query[4:]) != 1 {
		return nil
	}
	var labels []string
	i := header
	for i < len(query) && query[i] != 0 {
		n := int(query[i])
		if n > 63 || i+1+n > len(query) {
			return nil
		}
		labels = append(labels, string(query[i+1:i+1+n]))
		i += 1 + n
	}
	if i+5 > len(query) {
		return nil
	}
	typ := binary.BigEndian.Uint16(query[i+1:])
	question := query[header : i+5]

	records, known := z[strings.ToLower(strings.Join(labels, "."))]
	flags, found := uint16(flagsAnswer), records[typ]
	if !known {
		flags |= nameError
	}
	reply := append([]byte(nil), query[:2]...)
	for _, v := range []uint16{flags, 1, uint16(len(found)), 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, v)
	}
	reply = append(reply, question...)
	for _, data := range found {
		reply = append(reply, 0xc0, header) // the question's name
		for _, v := range []uint16{typ, classIN, 0, 60 /* TTL */, uint16(len(data))} {
			reply = binary.BigEndian.AppendUint16(reply, v)
		}
		reply = append(reply, data...)
	}
	return reply
}

// serveDNS answers queries on conn until it is closed.
func (z zone) serveDNS(conn net.PacketConn) error {
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("name server: %w", err)
		}
		if reply := z.answer(buf[:n]); reply != nil {
			if _, err := conn.WriteTo(reply, from); err != nil {
				return fmt.Errorf("name server: %w", err)
			}
		}
	}
}
