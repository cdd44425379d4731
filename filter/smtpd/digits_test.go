package smtpd

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
)

// TestDigits tries all bytes at all positions of an id and of a time. TestDigits compares the
// results with package strconv's.
func TestDigits(t *testing.T) {
	for place := range 16 {
		for c := range 256 {
			b := []byte("0123456789abcdef|rest")
			b[place] = byte(c)
			v, rest, more, ok := takeHex(b)
			digit := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
			if c == '|' {
				if ok != (place > 0) || !bytes.Equal(rest, b[place+1:]) {
					t.Errorf("%q: %v, rest %q", b, ok, rest)
				}
				continue
			}
			if ok != digit || !more || string(rest) != "rest" {
				t.Errorf("%q: %v %v, rest %q", b, ok, more, rest)
			}
			if want, _ := strconv.ParseUint(string(b[:16]), 16, 64); digit && v != want {
				t.Errorf("%q is %x, want %x", b, v, want)
			}
		}
	}
	for place := range 17 {
		for c := range 256 {
			b := []byte("1763728812.123456|rest")
			b[place] = byte(c)
			field, want, _ := bytes.Cut(b, []byte{'|'})
			stamp, ok := parseStamp(field)
			if ok && len(field) != 17 {
				continue // smtpd always writes six digits after the point
			}
			if v, rest := takeStamp(b); v != stamp && ok || !bytes.Equal(rest, want) {
				t.Errorf("%q is %d, rest %q; want %d, %q", b, v, rest, stamp, want)
			}
		}
	}
	for i := range 200_000 {
		n := int64(uint64(i) * 88_172_645_463_325 % 1e16)
		b := fmt.Appendf(nil, "%010d.%06d|", n/1e6, n%1e6)
		if v, rest := takeStamp(b); v != n || len(rest) != 0 {
			t.Fatalf("%q is %d", b, v)
		}
	}
}
