package dnsbl

import (
	"net/netip"
)

// appendWire appends a name in wire form, in lower case and with the root label.
func appendWire(b []byte, name string) []byte {
	start := len(b)
	b = append(b, 0)
	for i := range len(name) {
		c := name[i]
		if c == '.' {
			b[start] = byte(len(b) - start - 1)
			start = len(b)
			b = append(b, 0)
			continue
		}
		b = append(b, lower(c))
	}
	b[start] = byte(len(b) - start - 1)
	return append(b, 0)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// equalFold reports whether two names in wire form are equal, ignoring case. b must be in
// lower case. Length bytes are never mistaken for letters, because they are too small.
func equalFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != b[i] {
			return false
		}
	}
	return true
}

// suffix returns the number of labels in name before its last n bytes. ok is false if
// those n bytes do not start at a label.
func suffix(name []byte, n int) (labels int, ok bool) {
	for len(name) > n {
		name = name[1+name[0]:]
		labels++
	}
	return labels, len(name) == n
}

// addresses returns the networks that the labels before a zone's name represent (RFC 5782 sections
// 2.1 and 2.4). The labels are in reverse order. A few labels may represent both an IPv4 and an
// IPv6 network. If they represent no network of a family, that family's prefix is invalid. A full
// set of labels represents a single address.
func addresses(name []byte, labels int) (four, six netip.Prefix) {
	if labels == 0 || labels > 32 {
		return four, six
	}
	var octets [4]byte
	var bytes [16]byte
	is4, is6 := labels <= 4, true
	for i := labels - 1; i >= 0 && (is4 || is6); i-- {
		label := name[1 : 1+name[0]]
		name = name[1+name[0]:]
		if is4 {
			octets[i], is4 = octet(label)
		}
		if digit, ok := nibble(label); ok {
			bytes[i/2] |= digit << (4 - i%2*4)
		} else {
			is6 = false
		}
	}
	if is4 {
		four = netip.PrefixFrom(netip.AddrFrom4(octets), 8*labels)
	}
	if is6 {
		six = netip.PrefixFrom(netip.AddrFrom16(bytes), 4*labels)
	}
	return four, six
}

func octet(label []byte) (byte, bool) {
	if len(label) == 0 || len(label) > 3 || len(label) > 1 && label[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range label {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return byte(n), n <= 255
}

func nibble(label []byte) (byte, bool) {
	if len(label) != 1 {
		return 0, false
	}
	switch c := lower(label[0]); {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
