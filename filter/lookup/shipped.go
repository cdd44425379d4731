package lookup

import (
	_ "embed"
	"encoding/binary"
	"net/netip"
	"sort"
)

//go:generate go run ./intel/asntable

// asnTable contains the networks that the ASes in the shipped lists announced in June 2026. The
// format of asnTable is described in intel/asntable. The sources have the licence CC BY 4.0: Route
// Views (routeviews.org), "IP to ASN Lite" by DB-IP (db-ip.com), and the statistics of the NRO
// (nro.net), all collected by ip-location-db.
//
//go:embed intel/asn.bin
var asnTable string

// ShippedASN returns the number of the AS that announces addr, if the AS is a scanner or hosting
// provider in the shipped lists. The embedded table is as old as the release, so callers should
// prefer the operator's database. The table is read in place.
func ShippedASN(addr netip.Addr) (number uint32, ok bool) {
	var key uint64
	family := 0
	switch addr = addr.Unmap(); {
	case addr.Is4():
		b := addr.As4()
		key = uint64(binary.BigEndian.Uint32(b[:])) >> 6
	case addr.Is6():
		b := addr.As16()
		key, family = binary.BigEndian.Uint64(b[:]), 1
	default:
		return 0, false
	}
	t := tableReader{asnTable}
	numbers := t.next(4 * int(t.uint16()))
	var index, ranges tableReader
	for ; family >= 0; family-- {
		blocks, bytes := t.uint32(), t.uint32()
		index, ranges = t.next(12*int(blocks)), t.next(int(bytes))
	}
	// Find the last block that starts at or before the key.
	block := sort.Search(len(index.text)/12, func(i int) bool { entry := index.at(12 * i); return entry.uint64() > key }) - 1
	if block < 0 {
		return 0, false
	}
	entry := index.at(12 * block)
	start := entry.uint64()
	ranges = ranges.at(int(entry.uint32()))
	for range 64 {
		if ranges.text == "" {
			return 0, false
		}
		start += ranges.uvarint()
		last := start + ranges.uvarint()
		as := ranges.next(1).text[0]
		if key < start {
			return 0, false
		}
		if key <= last {
			entry := numbers.at(4 * int(as))
			return entry.uint32(), true
		}
		start = last + 1
	}
	return 0, false
}

// A tableReader reads integers from an embedded table. A tableReader panics if the text is too
// short. Tests of the table ensure that the text is long enough.
type tableReader struct{ text string }

func (t *tableReader) at(offset int) tableReader { return tableReader{t.text[offset:]} }

func (t *tableReader) next(n int) (head tableReader) {
	head.text, t.text = t.text[:n], t.text[n:]
	return head
}

func (t *tableReader) uint(n int) (v uint64) {
	for i := range n {
		v = v<<8 | uint64(t.text[i])
	}
	t.text = t.text[n:]
	return v
}

func (t *tableReader) uint16() uint16 { return uint16(t.uint(2)) }
func (t *tableReader) uint32() uint32 { return uint32(t.uint(4)) }
func (t *tableReader) uint64() uint64 { return t.uint(8) }

func (t *tableReader) uvarint() (v uint64) {
	for i := 0; ; i++ {
		b := t.text[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			t.text = t.text[i+1:]
			return v
		}
	}
}
