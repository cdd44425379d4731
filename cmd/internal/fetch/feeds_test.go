package fetch

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"scanwatch/rules"
)

// TestFeeds checks which files of a configuration are fetched.
func TestFeeds(t *testing.T) {
	files := map[string]string{
		"/etc/scanwatch.conf": `asn "db" feed dbip-asn every 7d
country "/v/geo" url "https://example.org/geo.mmdb" key "geo.key"
own-address 203.0.113.4
gateway 203.0.113.5
include "sub/more.conf"
table <both> file "both" format plain url "https://example.org/both"
table <mine> file "mine"
pass from { <both>, <partner> }
rule r phase connect match src <both> disconnect
rule s phase connect match src <clouds> disconnect
`,
		"/etc/sub/more.conf": `table <partner> file "partner" format addresses url "https://example.org/partner" every 6h
table <clouds> { file "aws" feed aws-ec2, file "gc" format google "service Other" feed google-cloud }
`,
	}
	tree, err := rules.Parse("/etc/scanwatch.conf", func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, os.ErrNotExist
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := Feeds(tree)
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	want := []Feed{
		{Name: "asn", File: "/etc/db", URL: "https://download.db-ip.com/free/dbip-asn-lite-%Y-%m.mmdb.gz", Format: "mmdb", Needs: Fields{ASN: true}, Least: 6 * time.Hour, Every: 7 * day},
		{Name: "country", File: "/v/geo", URL: "https://example.org/geo.mmdb", Format: "mmdb", Needs: Fields{Country: true}, KeyFile: "/etc/geo.key", Least: DefaultLeast},
		{Name: "partner", File: "/etc/sub/partner", URL: "https://example.org/partner", Format: "addresses", Exempts: true, Least: DefaultLeast, Every: 6 * time.Hour},
		{Name: "clouds", File: "/etc/sub/aws", URL: "https://ip-ranges.amazonaws.com/ip-ranges.json", Format: "aws service EC2", Least: 6 * time.Hour},
		{Name: "clouds", File: "/etc/sub/gc", URL: "https://www.gstatic.com/ipranges/cloud.json", Format: "google service Other", Least: 6 * time.Hour},
		{Name: "both", File: "/etc/both", URL: "https://example.org/both", Format: "plain", Least: DefaultLeast},
	}
	for i, f := range list {
		if i >= len(want) || *f != want[i] {
			t.Errorf("%d: %+v", i, *f)
		}
	}
	if len(list) != len(want) {
		t.Errorf("%d feeds, want %d", len(list), len(want))
	}
	if own := fmt.Sprint(Own(tree.Settings(), []netip.Addr{netip.MustParseAddr("198.51.100.1")})); own != "[198.51.100.1/32 203.0.113.4/32 203.0.113.5/32]" {
		t.Errorf("own networks %s", own)
	}
}
