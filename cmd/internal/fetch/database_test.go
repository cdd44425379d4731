//go:build !(386 || arm || mips || mipsle)

// The package that writes test databases does not compile if int has 32 bits.

package fetch

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
)

// database returns a database with n networks.
func database(t *testing.T, built time.Time, n int, record mmdbtype.Map) string {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "test", BuildEpoch: built.Unix(), IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		_, network, err := net.ParseCIDR(fmt.Sprintf("198.51.%d.0/24", i))
		if err != nil {
			t.Fatal(err)
		}
		record = maps.Clone(record)
		record["autonomous_system_organization"] = mmdbtype.String(fmt.Sprintf("organisation %d %s", i, strings.Repeat("x", 500)))
		if err := w.Insert(network, record); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zip(t *testing.T, content string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestDatabase checks that a valid download replaces the database, and that an invalid download
// does not.
func TestDatabase(t *testing.T) {
	as := func() mmdbtype.Map { return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(64496)} }
	place := func() mmdbtype.Map {
		return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}}
	}
	old := database(t, noon, 20, as())
	next := database(t, noon.AddDate(0, 1, 0), 22, as())
	s := newSite(t)
	s.feed.Format, s.feed.Needs, s.feed.Name = feed.Database, Fields{ASN: true}, "asn"
	s.answer = says(old)
	if r := s.run(t); r.Outcome != Updated || r.Bytes != len(old) || !r.Date.Equal(noon) {
		t.Fatalf("%+v", r)
	}
	for _, c := range []struct{ name, content, why string }{
		{"countries", database(t, noon, 20, place()), "has no AS numbers"},
		{"cut", next[:len(next)-40], "not a complete database"},
		{"cut and compressed", zip(t, next)[:300], "gzip: "},
		{"HTML", "<html>", "not a complete database"},
		{"older", database(t, noon.AddDate(0, -1, 0), 20, as()), "was built 2026-10-02, before the previous one of 2026-11-02"},
		{"halved", database(t, noon, 5, as()), "fewer than half of the previous"},
		{"tripled", database(t, noon, 90, as()), "more than three times the previous"},
	} {
		s.answer = says(c.content)
		if r := s.run(t); r.Outcome != Kept || !strings.Contains(r.Why, c.why) || s.content(t) != old {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	s.answer = says(zip(t, next))
	if r := s.run(t); r.Outcome != Updated || s.content(t) != next {
		t.Errorf("%+v", r)
	}
	if r := s.run(t); r.Outcome != Unchanged {
		t.Errorf("again: %+v", r)
	}
	o := lookup.NewOrigins(s.feed.File)
	if _, err := o.Refresh(); err != nil {
		t.Fatal(err)
	}
	if got, ok := o.Lookup(netip.MustParseAddr("198.51.21.1")); !ok || got.ASN != 64496 {
		t.Errorf("%+v, %v", got, ok)
	}
	s.feed.Needs = Fields{ASN: true, Country: true}
	s.answer = says(database(t, noon.AddDate(0, 2, 0), 22, as()))
	if r := s.run(t); r.Outcome != Kept || !strings.Contains(r.Why, "has no countries") {
		t.Errorf("%+v", r)
	}
}
