//go:build !(386 || arm || mips || mipsle)

// The package that writes test databases does not compile on systems with 32-bit integers.

package lookup

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

var databaseBuilt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// database returns a database with the given networks.
func database(tb testing.TB, options mmdbwriter.Options, networks map[string]mmdbtype.Map) []byte {
	tb.Helper()
	options.BuildEpoch = databaseBuilt.Unix()
	options.IncludeReservedNetworks = true // the networks for documentation are reserved
	tree, err := mmdbwriter.New(options)
	if err != nil {
		tb.Fatal(err)
	}
	for text, record := range networks {
		if err := tree.Insert(ipNet(netip.MustParsePrefix(text)), record); err != nil {
			tb.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func asnDatabase(tb testing.TB, org string) []byte {
	return database(tb, mmdbwriter.Options{DatabaseType: "GeoLite2-ASN"}, map[string]mmdbtype.Map{
		"192.0.2.0/24": {
			"autonomous_system_number":       mmdbtype.Uint32(64496),
			"autonomous_system_organization": mmdbtype.String(org),
		},
		"2001:db8::/32": {
			"autonomous_system_number":       mmdbtype.Uint32(4200000000),
			"autonomous_system_organization": mmdbtype.String("Example Six"),
		},
	})
}

func writeFile(tb testing.TB, path string, content []byte) {
	tb.Helper()
	// Rename the file as update programs do, so that the inode changes.
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		tb.Fatal(err)
	}
}

func openedOrigins(tb testing.TB, content []byte) *Origins {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "test.mmdb")
	writeFile(tb, path, content)
	o := NewOrigins(path)
	if changed, err := o.Refresh(); err != nil || !changed {
		tb.Fatalf("Refresh: %v, %v", changed, err)
	}
	return o
}

func TestOriginsLookup(t *testing.T) {
	country := func(code string) mmdbtype.Map {
		return mmdbtype.Map{"country": mmdbtype.Map{
			"iso_code": mmdbtype.String(code),
			"names":    mmdbtype.Map{"en": mmdbtype.String("Name")},
		}}
	}
	tests := []struct {
		name, databaseType string
		ipVersion          int
		record             mmdbtype.Map
		want               Origin
	}{
		{"MaxMind ASN", "GeoLite2-ASN", 6, mmdbtype.Map{
			"autonomous_system_number":       mmdbtype.Uint32(64496),
			"autonomous_system_organization": mmdbtype.String("Example"),
		}, Origin{ASN: 64496, Org: "Example"}},
		{"MaxMind ISP", "GeoIP2-ISP", 6, mmdbtype.Map{
			"autonomous_system_number":       mmdbtype.Uint32(64496),
			"autonomous_system_organization": mmdbtype.String("Example"),
			"isp":                            mmdbtype.String("Example"),
		}, Origin{ASN: 64496, Org: "Example"}},
		{"IPv4 only", "GeoLite2-ASN", 4, mmdbtype.Map{
			"autonomous_system_number": mmdbtype.Uint32(64496),
		}, Origin{ASN: 64496}},
		{"DB-IP ASN", "DBIP-ASN-Lite (compat=GeoLite2-ASN)", 6, mmdbtype.Map{
			"autonomous_system_number":       mmdbtype.Uint32(64497),
			"autonomous_system_organization": mmdbtype.String("Example"),
		}, Origin{ASN: 64497, Org: "Example"}},
		{"MaxMind country", "GeoLite2-Country", 6, country("ZZ"), Origin{Country: "ZZ"}},
		{"DB-IP country", "DBIP-Country-Lite", 6, country("ZY"), Origin{Country: "ZY"}},
		{"fields of MaxMind with another type", "Example-Site", 6, mmdbtype.Map{
			"autonomous_system_number": mmdbtype.Uint32(64498),
			"country":                  mmdbtype.Map{"iso_code": mmdbtype.String("ZX")},
		}, Origin{ASN: 64498, Country: "ZX"}},
		{"IPinfo ASN", "ipinfo standard_asn.mmdb", 6, mmdbtype.Map{
			"asn": mmdbtype.String("AS64499"), "name": mmdbtype.String("Example"), "domain": mmdbtype.String("example.org"),
		}, Origin{ASN: 64499, Org: "Example"}},
		{"IPinfo lite", "ipinfo bundle_lite.mmdb", 6, mmdbtype.Map{
			"asn": mmdbtype.String("AS64499"), "as_name": mmdbtype.String("Example"),
			"country": mmdbtype.String("Nowhere"), "country_code": mmdbtype.String("ZW"),
		}, Origin{ASN: 64499, Org: "Example", Country: "ZW"}},
		{"IPinfo country", "ipinfo country.mmdb", 6, mmdbtype.Map{
			"country": mmdbtype.String("ZV"), "country_name": mmdbtype.String("Nowhere"),
		}, Origin{Country: "ZV"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := openedOrigins(t, database(t,
				mmdbwriter.Options{DatabaseType: tt.databaseType, IPVersion: tt.ipVersion},
				map[string]mmdbtype.Map{"192.0.2.0/24": tt.record}))
			want := tt.want
			want.Prefix = netip.MustParsePrefix("192.0.2.0/24")
			for _, addr := range []string{"192.0.2.1", "::ffff:192.0.2.1"} {
				if got, ok := o.Lookup(netip.MustParseAddr(addr)); got != want || !ok {
					t.Errorf("%s: got %+v, %v, want %+v", addr, got, ok, want)
				}
			}
			if got, ok := o.Lookup(netip.MustParseAddr("198.51.100.1")); got != (Origin{}) || !ok {
				t.Errorf("unannounced address: %+v, %v, want nothing, evaluated", got, ok)
			}
			if _, ok := o.Lookup(netip.MustParseAddr("2001:db8::1")); ok != (tt.ipVersion == 6) {
				t.Errorf("IPv6 address: evaluated %v", ok)
			}
			if _, ok := o.Lookup(netip.Addr{}); ok {
				t.Error("the invalid address was evaluated")
			}
			state := o.State()
			if !state.Loaded || state.Type != tt.databaseType || !state.Built.Equal(databaseBuilt) ||
				state.ASN != (want.ASN != 0) || state.Country != (want.Country != "") || state.Failures != 0 {
				t.Errorf("state %+v", state)
			}
		})
	}
}

func TestOriginsWithoutFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.mmdb")
	o := NewOrigins(path)
	addr := netip.MustParseAddr("192.0.2.1")
	if _, ok := o.Lookup(addr); ok {
		t.Error("evaluated before a file was read")
	}
	changed, err := o.Refresh()
	if changed || err == nil || !strings.Contains(err.Error(), "does not exist; conditions on networks and countries are unknown") {
		t.Errorf("Refresh: %v, %v", changed, err)
	}
	if changed, err := o.Refresh(); changed || err != nil {
		t.Errorf("the same error is returned twice: %v, %v", changed, err)
	}
	if _, ok := o.Lookup(addr); ok || o.State().Loaded {
		t.Error("evaluated without a file")
	}
	writeFile(t, path, asnDatabase(t, "Example"))
	if changed, err := o.Refresh(); !changed || err != nil {
		t.Errorf("Refresh of a file that appeared: %v, %v", changed, err)
	}
	if origin, ok := o.Lookup(addr); !ok || origin.ASN != 64496 {
		t.Errorf("got %+v, %v", origin, ok)
	}
}

func TestOriginsRefresh(t *testing.T) {
	good := asnDatabase(t, "First")
	o := openedOrigins(t, good)
	org := func() string {
		origin, ok := o.Lookup(netip.MustParseAddr("192.0.2.1"))
		if !ok {
			return "not evaluated"
		}
		return origin.Org
	}
	steps := []struct {
		name    string
		change  func()
		changed bool
		err     string // part of the error; empty if there is none
		org     string
	}{
		{"nothing new", func() {}, false, "", "First"},
		{"replaced", func() { writeFile(t, o.path, asnDatabase(t, "Second")) }, true, "", "Second"},
		{"an error page", func() { writeFile(t, o.path, []byte("<html>")) }, false, "the previous database remains in use", "Second"},
		{"the same error page", func() {}, false, "", "Second"},
		{"truncated in place", func() {
			if err := os.Truncate(o.path, 3); err != nil {
				t.Fatal(err)
			}
		}, false, "not a complete database", "Second"},
		{"empty", func() { writeFile(t, o.path, nil) }, false, "not a complete database", "Second"},
		{"half a database", func() { writeFile(t, o.path, good[:len(good)/2]) }, false, "not a complete database", "Second"},
		{"another kind of database", func() {
			writeFile(t, o.path, database(t, mmdbwriter.Options{DatabaseType: "GeoIP2-Domain"},
				map[string]mmdbtype.Map{"192.0.2.0/24": {"domain": mmdbtype.String("example.org")}}))
		}, false, `type "GeoIP2-Domain": no AS numbers`, "Second"},
		{"a database of nothing", func() {
			writeFile(t, o.path, database(t, mmdbwriter.Options{DatabaseType: "GeoLite2-ASN"}, nil))
		}, false, "no AS numbers", "Second"},
		{"gone", func() {
			if err := os.Remove(o.path); err != nil {
				t.Fatal(err)
			}
		}, false, "does not exist; the previous database", "Second"},
		{"a directory", func() {
			if err := os.Mkdir(o.path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, false, "not a regular file", "Second"},
		{"back again", func() {
			if err := os.Remove(o.path); err != nil {
				t.Fatal(err)
			}
			writeFile(t, o.path, asnDatabase(t, "Third"))
		}, true, "", "Third"},
		{"truncated while in use", func() {
			if err := os.Truncate(o.path, 0); err != nil {
				t.Fatal(err)
			}
		}, false, "not a complete database", "Third"},
	}
	for _, step := range steps {
		step.change()
		changed, err := o.Refresh()
		if changed != step.changed || (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("%s: changed %v, error %v, want %v, %q", step.name, changed, err, step.changed, step.err)
		}
		if got := org(); got != step.org {
			t.Errorf("%s: lookups return %q, want %q", step.name, got, step.org)
		}
	}
}

// TestOriginsRefreshWhileLookingUp checks that the file can be replaced during lookups.
// TestOriginsRefreshWhileLookingUp is only useful with -race.
func TestOriginsRefreshWhileLookingUp(t *testing.T) {
	o := openedOrigins(t, asnDatabase(t, "Example 0"))
	content := [][]byte{asnDatabase(t, "Example 1"), asnDatabase(t, "Example 2")}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				origin, ok := o.Lookup(netip.MustParseAddr("192.0.2.1"))
				if !ok || origin.ASN != 64496 || !strings.HasPrefix(origin.Org, "Example ") {
					t.Errorf("got %+v, %v", origin, ok)
					return
				}
			}
		})
	}
	for i := range 50 {
		writeFile(t, o.path, content[i%2])
		if _, err := o.Refresh(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}

// FuzzOrigins checks that a corrupt file never causes a panic. Wrong or missing answers are
// allowed.
func FuzzOrigins(f *testing.F) {
	good := asnDatabase(f, "Example")
	f.Add(good, []byte{192, 0, 2, 1})
	f.Add(good[:len(good)-20], []byte{192, 0, 2, 1})
	f.Add(database(f, mmdbwriter.Options{DatabaseType: "ipinfo"}, map[string]mmdbtype.Map{
		"192.0.2.0/24": {"asn": mmdbtype.String("AS64496")},
	}), []byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, content, ip []byte) {
		file, err := openOrigins(content)
		if err != nil {
			if strings.Contains(err.Error(), "broken:") {
				t.Errorf("the reader panicked: %v", err)
			}
			return
		}
		addr, ok := netip.AddrFromSlice(ip)
		if !ok || addr.Is6() && file.reader.Metadata.IPVersion == 4 {
			return
		}
		if _, err := file.lookup(addr.Unmap()); err != nil && errors.Is(err, errChanging) {
			t.Error(err)
		}
	})
}

func BenchmarkOrigins(b *testing.B) {
	networks := make(map[string]mmdbtype.Map)
	for i := range 20_000 {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + i/256), byte(i), 0, 0}), 16).String()
		networks[prefix] = mmdbtype.Map{
			"autonomous_system_number":       mmdbtype.Uint32(64496 + i%1000),
			"autonomous_system_organization": mmdbtype.String("Example Network " + prefix),
		}
	}
	content := database(b, mmdbwriter.Options{DatabaseType: "GeoLite2-ASN"}, networks)
	o := openedOrigins(b, content)
	addr := netip.MustParseAddr("2.2.0.1")
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if origin, ok := o.Lookup(addr); !ok || origin.ASN == 0 {
				b.Fatal("not found")
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			if _, err := openOrigins(content); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("refresh-unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := o.Refresh(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
