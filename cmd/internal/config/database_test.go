//go:build !(386 || arm || mips || mipsle)

// Package mmdbwriter, which writes the test databases, does not compile on 32-bit
// systems.

package config

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// database writes a database with a single network to path.
func database(t *testing.T, path string, record mmdbtype.Map) {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IncludeReservedNetworks: true})
	if err == nil {
		_, network, _ := net.ParseCIDR("198.51.100.0/24")
		err = w.Insert(network, record)
	}
	if err != nil {
		t.Fatal(err)
	}
	next, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if _, err := w.WriteTo(next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next.Name(), path); err != nil {
		t.Fatal(err)
	}
}

func asn(number uint32) mmdbtype.Map {
	return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(number)}
}

// TestWrongDatabase checks that a database lacking a field that its statement needs causes a
// warning at the statement's position.
func TestWrongDatabase(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	database(t, filepath.Join(dir, "as"), asn(64496))
	database(t, filepath.Join(dir, "geo"), mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}})
	for text, want := range map[string]string{
		"asn \"as\"\ncountry \"geo\"\n": "",
		"mode observe\nasn \"geo\"\n":   "scanwatch.conf:2:1: warning: database " + dir + "/geo has no AS numbers (type GeoLite2-ASN): conditions on asn never match",
		"country \"as\"\n":              "scanwatch.conf:1:1: warning: database " + dir + "/as has no countries",
		"country \"as\"\nasn \"as\"\n":  "scanwatch.conf:1:1: warning: database " + dir + "/as has no countries",
	} {
		write(t, conf, text)
		c, err := Load(conf, builtinLists(t), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Warnings.Error(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: warnings %q, want %q", text, got, want)
		}
	}
}

// TestReplacedDatabase checks that a reload uses a replaced database, and that an invalid
// database is never used.
func TestReplacedDatabase(t *testing.T) {
	dir := t.TempDir()
	conf, file := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "asn.mmdb")
	write(t, conf, "mode enforce\nasn \"asn.mmdb\"\nrule as phase connect match asn AS64496 disconnect\n")
	database(t, file, asn(64500))
	before, err := Load(conf, builtinLists(t), nil, true)
	if err != nil || before.Changed() {
		t.Fatal(err, before.Changed())
	}
	database(t, file, asn(64496))
	if !before.Changed() {
		t.Error("a new database is not detected")
	}
	after, err := Load(conf, builtinLists(t), before, false)
	if err != nil {
		t.Fatal(err)
	}
	number := func(c *Config) uint32 { o, _ := c.ASN.Lookup(netip.MustParseAddr("198.51.100.25")); return o.ASN }
	if number(before) != 64500 || number(after) != 64496 {
		t.Errorf("before %d, after %d", number(before), number(after))
	}
	before.MarkSeen(after) // rejected
	if before.Changed() {
		t.Error("a rejected database is loaded again")
	}
	write(t, file, "no database")
	broken, err := Load(conf, builtinLists(t), before, false)
	if err != nil || number(broken) != 64500 || len(broken.Notes) != 1 || !strings.Contains(broken.Notes[0], "the previous database remains in use") {
		t.Errorf("broken: %v, %d, %q", err, number(broken), broken.Notes)
	}
	if same, err := Load(conf, builtinLists(t), broken, false); err != nil || number(same) != 64500 || same.Changed() {
		t.Errorf("broken, once more: %v", err)
	}
}
