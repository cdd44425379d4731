//go:build !(386 || arm || mips || mipsle)

// The writer of test databases does not compile where an int has 32 bits.

package config

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/filter/memory"
)

// TestReachDatabase: a database that is replaced is not in use before it is known
// whom it hits; one that is broken never is.
func TestReachDatabase(t *testing.T) {
	dir := t.TempDir()
	conf, file := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "asn.mmdb")
	write(t, conf, "mode enforce\nasn \"asn.mmdb\"\nrule as phase connect match asn AS64496 disconnect\n")
	database := func(number uint32) {
		t.Helper()
		w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IncludeReservedNetworks: true})
		if err == nil {
			_, network, _ := net.ParseCIDR("198.51.100.0/24")
			err = w.Insert(network, mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(number)})
		}
		if err != nil {
			t.Fatal(err)
		}
		next, err := os.Create(file + ".new")
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if _, err := w.WriteTo(next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next.Name(), file); err != nil {
			t.Fatal(err)
		}
	}
	host := memory.Peer{Prefix: netip.MustParsePrefix("198.51.100.25/32"), Mails: 20, LastMail: time.Unix(1793620800, 0)}
	peers := slices.Values([]memory.Peer{host})
	database(64500)
	before, err := Load(conf, builtinLists(t), nil, true)
	if err != nil || before.Changed() {
		t.Fatal(err, before.Changed())
	}
	database(64496)
	if !before.Changed() {
		t.Error("a new database is not noticed")
	}
	after, err := Load(conf, builtinLists(t), before, false)
	if err != nil {
		t.Fatal(err)
	}
	if r := after.Reach(peers, before); len(r) != 1 || r[0].Rule != "as" {
		t.Errorf("reach %v", r)
	}
	number := func(c *Config) uint32 { o, _ := c.ASN.Lookup(host.Prefix.Addr()); return o.ASN }
	if number(before) != 64500 || number(after) != 64496 {
		t.Errorf("before %d, after %d", number(before), number(after))
	}
	before.Seen(after) // it was refused
	if before.Changed() {
		t.Error("what was refused is tried again")
	}
	write(t, file, "no database")
	broken, err := Load(conf, builtinLists(t), before, false)
	if err != nil || number(broken) != 64500 || len(broken.Notes) != 1 || !strings.Contains(broken.Notes[0], "the one read before stays in use") {
		t.Errorf("broken: %v, %d, %q", err, number(broken), broken.Notes)
	}
	if same, err := Load(conf, builtinLists(t), broken, false); err != nil || number(same) != 64500 || same.Changed() {
		t.Errorf("broken, once more: %v", err)
	}
}
