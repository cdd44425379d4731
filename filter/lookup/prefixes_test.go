package lookup

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func TestPrefixesLookup(t *testing.T) {
	var p Prefixes[string]
	for _, text := range []string{
		"192.0.2.0/24", "192.0.2.128/25", "192.0.2.129/32", "198.51.100.77/24",
		"::ffff:203.0.113.0/120", "2001:db8::/32", "2001:db8:0:1::/64", "::/0",
	} {
		if !p.Add(netip.MustParsePrefix(text), text) {
			t.Fatalf("%s was not added", text)
		}
	}
	tests := []struct{ name, addr, want string }{
		{"covered", "192.0.2.1", "192.0.2.0/24"},
		{"more specific", "192.0.2.130", "192.0.2.128/25"},
		{"single address", "192.0.2.129", "192.0.2.129/32"},
		{"host bits in the entry", "198.51.100.1", "198.51.100.77/24"},
		{"mapped address", "::ffff:192.0.2.1", "192.0.2.0/24"},
		{"mapped entry", "203.0.113.9", "::ffff:203.0.113.0/120"},
		{"not covered", "198.51.101.1", ""},
		{"IPv6", "2001:db8::1", "2001:db8::/32"},
		{"IPv6 more specific", "2001:db8:0:1::1", "2001:db8:0:1::/64"},
		{"IPv6 with a zone", "2001:db8::1%eth0", "2001:db8::/32"},
		{"IPv6 default", "2001:db9::1", "::/0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := netip.MustParseAddr(tt.addr)
			got, ok := p.Lookup(addr)
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("Lookup(%s) = %q, %v, want %q", addr, got, ok, tt.want)
			}
			prefix, got2, ok2 := p.LookupPrefix(addr)
			if got2 != got || ok2 != ok {
				t.Errorf("LookupPrefix(%s) = %q, %v, Lookup %q, %v", addr, got2, ok2, got, ok)
			}
			if ok && !prefix.Contains(addr.Unmap().WithZone("")) {
				t.Errorf("LookupPrefix(%s) = %s", addr, prefix)
			}
		})
	}
}

func TestPrefixesEdges(t *testing.T) {
	var p Prefixes[int]
	if _, ok := p.Lookup(netip.MustParseAddr("192.0.2.1")); ok {
		t.Error("an empty table answers")
	}
	if !p.Add(netip.MustParsePrefix("192.0.2.0/24"), 1) || p.Add(netip.MustParsePrefix("192.0.2.9/24"), 2) {
		t.Error("the second value of a prefix was taken")
	}
	if v, _ := p.Lookup(netip.MustParseAddr("192.0.2.1")); v != 1 || p.Len() != 1 {
		t.Errorf("value %d of %d", v, p.Len())
	}
	if p.Add(netip.Prefix{}, 3) {
		t.Error("the invalid prefix was added")
	}
	if _, ok := p.Lookup(netip.Addr{}); ok {
		t.Error("the invalid address was found")
	}
	if _, _, ok := p.LookupPrefix(netip.Addr{}); ok {
		t.Error("the invalid address was found with its prefix")
	}
}

func TestPrefixesDoNotAllocate(t *testing.T) {
	p := manyPrefixes(1000)
	addr := netip.MustParseAddr("::ffff:192.0.2.1")
	if n := testing.AllocsPerRun(100, func() { p.Lookup(addr) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func manyPrefixes(count int) *Prefixes[int] {
	var p Prefixes[int]
	random := rand.New(rand.NewPCG(1, 2))
	for p.Len() < count {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], random.Uint32())
		p.Add(netip.PrefixFrom(netip.AddrFrom4(a), 16+random.IntN(17)), p.Len())
	}
	return &p
}

func BenchmarkPrefixes(b *testing.B) {
	p := manyPrefixes(100_000)
	random := rand.New(rand.NewPCG(3, 4))
	addrs := make([]netip.Addr, 1024)
	for i := range addrs {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], random.Uint32())
		addrs[i] = netip.AddrFrom4(a)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Lookup(addrs[i%len(addrs)])
	}
}

func BenchmarkPrefixesAdd(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		manyPrefixes(100_000)
	}
}

func TestPrefixesOverlapping(t *testing.T) {
	var p Prefixes[string]
	for _, s := range []string{"192.0.2.0/24", "198.51.100.7/32", "2001:db8:1::5/128", "::ffff:203.0.113.0/120"} {
		p.Add(netip.MustParsePrefix(s), s)
	}
	for prefix, want := range map[string]string{
		"192.0.2.9/32": "192.0.2.0/24", "192.0.0.0/16": "192.0.2.0/24", "192.0.3.0/24": "", "198.51.100.0/29": "198.51.100.7/32", "198.51.100.8/29": "",
		"2001:db8:1::/64": "2001:db8:1::5/128", "2001:db8:2::/64": "", "203.0.113.9/32": "::ffff:203.0.113.0/120", "::ffff:192.0.2.1/128": "192.0.2.0/24",
	} {
		if got, ok := p.Overlapping(netip.MustParsePrefix(prefix)); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", prefix, got, ok, want)
		}
	}
	if _, ok := p.Overlapping(netip.Prefix{}); ok {
		t.Error("no prefix overlaps")
	}
}

// TestPrefixesChange checks Set, Delete and Covering.
func TestPrefixesChange(t *testing.T) {
	var p Prefixes[int]
	for i, s := range []string{"192.0.2.0/24", "192.0.2.9/32", "192.0.0.0/16", "::ffff:192.0.2.9/128", "2001:db8::/32"} {
		p.Set(netip.MustParsePrefix(s), i)
	}
	p.Set(netip.Prefix{}, 9)
	p.Delete(netip.MustParsePrefix("2001:db8::1/32"))
	p.Delete(netip.MustParsePrefix("192.0.2.8/29"))
	p.Delete(netip.Prefix{})
	var covering []int
	for q, v := range p.Covering(netip.MustParseAddr("::ffff:192.0.2.9")) {
		if w, ok := p.Lookup(q.Addr()); q.IsSingleIP() && (!ok || w != v) {
			t.Errorf("%v: %d, not %d", q, w, v)
		}
		covering = append(covering, v)
	}
	if !slices.Equal(covering, []int{3, 0, 2}) {
		t.Errorf("covering %v", covering)
	}
	all := 0
	for range p.All() {
		all++
	}
	if all != 3 || p.Len() != 3 {
		t.Errorf("%d prefixes, length %d", all, p.Len())
	}
}
