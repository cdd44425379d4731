// Command asntable compiles asn-prefixes.tsv.gz into asn.bin, the table embedded in
// package lookup. Run it with go generate in filter/lookup.
//
// Each line of the source contains a prefix and the number of the AS that announces it. Prefixes do
// not overlap. The table combines adjacent prefixes of an AS into a range. The layout of the table
// is:
//
//	number of AS numbers (uint16), AS numbers (uint32 each)
//	for IPv4, then for IPv6:
//	  number of blocks (uint32), length of the ranges in bytes (uint32)
//	  for each block: first address (uint64), offset of its ranges (uint32)
//	  ranges: gap to the previous range, length minus one (varints), index of the
//	  AS number (byte)
//
// Integers are big-endian. Addresses and lengths are in units: a unit is 64 addresses of IPv4, or a
// /64 of IPv6. A block contains 64 ranges. The first gap of a block is 0. Two IPv6 prefixes are
// omitted, because they are smaller than a /64.
package main

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"log"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

const blockRanges = 64

// A span is a range of units that one AS announces. last is the last unit of the range.
type span struct {
	first, last uint64
	as          uint32
}

func main() {
	log.SetFlags(0)
	v4, v6, err := read("intel/asn-prefixes.tsv.gz")
	if err != nil {
		log.Fatal(err)
	}
	table, err := encode(v4, v6)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("intel/asn.bin", table, 0o644); err != nil {
		log.Fatal(err)
	}
}

func read(name string) (v4, v6 []span, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		return nil, nil, err
	}
	lines := bufio.NewScanner(unpacked)
	lines.Scan() // skip the header
	for lines.Scan() {
		as, text, _ := strings.Cut(lines.Text(), "\t")
		number, err := strconv.ParseUint(strings.TrimPrefix(as, "AS"), 10, 32)
		if err != nil {
			return nil, nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, nil, err
		}
		s := span{as: uint32(number)}
		if p.Addr().Is4() {
			b := p.Addr().As4()
			s.first = uint64(binary.BigEndian.Uint32(b[:])) >> 6
			s.last = s.first + 1<<(26-p.Bits()) - 1
			v4 = append(v4, s)
		} else if p.Bits() <= 64 {
			b := p.Addr().As16()
			s.first = binary.BigEndian.Uint64(b[:])
			s.last = s.first + 1<<(64-p.Bits()) - 1
			v6 = append(v6, s)
		}
	}
	return join(v4), join(v6), lines.Err()
}

// join sorts spans and merges adjacent spans of the same AS.
func join(spans []span) (joined []span) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].as == s.as && joined[n-1].last+1 == s.first {
			joined[n-1].last = s.last
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

func encode(families ...[]span) ([]byte, error) {
	var numbers []uint32
	for _, spans := range families {
		for _, s := range spans {
			numbers = append(numbers, s.as)
		}
	}
	slices.Sort(numbers)
	if numbers = slices.Compact(numbers); len(numbers) > 256 {
		return nil, fmt.Errorf("%d AS numbers; an index of one byte has at most 256", len(numbers))
	}
	be := binary.BigEndian
	table := be.AppendUint16(nil, uint16(len(numbers)))
	for _, n := range numbers {
		table = be.AppendUint32(table, n)
	}
	for _, spans := range families {
		var index, ranges []byte
		next := uint64(0)
		for i, s := range spans {
			if i%blockRanges == 0 {
				index = be.AppendUint32(be.AppendUint64(index, s.first), uint32(len(ranges)))
				next = s.first
			}
			if s.first < next {
				return nil, fmt.Errorf("AS%d: overlaps the previous range", s.as)
			}
			ranges = binary.AppendUvarint(binary.AppendUvarint(ranges, s.first-next), s.last-s.first)
			as, _ := slices.BinarySearch(numbers, s.as)
			ranges = append(ranges, byte(as))
			next = s.last + 1
		}
		table = be.AppendUint32(be.AppendUint32(table, uint32(len(index)/12)), uint32(len(ranges)))
		table = append(append(table, index...), ranges...)
	}
	return table, nil
}
