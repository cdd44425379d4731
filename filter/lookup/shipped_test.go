package lookup

import (
	"bufio"
	"compress/gzip"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestShippedASN compares the embedded table with its source. TestShippedASN looks up the first and
// last address of each prefix, the addresses next to them, and random addresses.
func TestShippedASN(t *testing.T) {
	f, err := os.Open("intel/asn-prefixes.tsv.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var source Prefixes[uint32]
	var ask []netip.Addr
	lines, prefixes, long := bufio.NewScanner(unpacked), 0, 0
	numbers := make(map[uint32]bool)
	for lines.Scan() {
		as, text, _ := strings.Cut(lines.Text(), "\t")
		if as == "asn" {
			continue
		}
		n, err := strconv.ParseUint(as[2:], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		p := netip.MustParsePrefix(text)
		prefixes++
		if p.Addr().Is6() && p.Bits() > 64 {
			long++
			continue
		}
		numbers[uint32(n)] = true
		source.Add(p, uint32(n))
		ask = append(ask, p.Addr(), lastAddr(p), p.Addr().Prev(), lastAddr(p).Next())
	}
	if prefixes != 39267 || len(numbers) != 163 || long != 2 {
		t.Errorf("%d prefixes of %d AS numbers, %d of them longer than /64", prefixes, len(numbers), long)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		var b [4]byte
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		ask = append(ask, netip.AddrFrom4(b))
		near := ask[random.IntN(4*prefixes-8)].As16()
		near[random.IntN(8)] ^= 1 << random.IntN(8)
		ask = append(ask, netip.AddrFrom16(near))
	}
	known := 0
	for _, a := range ask {
		if !a.IsValid() {
			continue
		}
		want, there := source.Lookup(a)
		got, ok := ShippedASN(a)
		if got != want || ok != there {
			t.Fatalf("%s is AS%d (%v), want AS%d (%v)", a, got, ok, want, there)
		}
		if ok {
			known++
		}
	}
	if known < len(ask)/8 || known > len(ask)*3/4 {
		t.Errorf("%d of %d addresses are known", known, len(ask))
	}
	if len(asnTable) > 300_000 {
		t.Errorf("the table has %d bytes", len(asnTable))
	}
	if n, ok := ShippedASN(netip.Addr{}); ok {
		t.Errorf("no address is AS%d", n)
	}
}

func BenchmarkShippedASN(b *testing.B) {
	for name, text := range map[string]string{"v4": "3.131.215.38", "v4-none": "192.0.2.1", "v6": "2a01:4f8::1"} {
		a := netip.MustParseAddr(text)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ShippedASN(a)
			}
		})
	}
}
