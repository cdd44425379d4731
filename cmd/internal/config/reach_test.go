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

// TestReachNarrow: of an IPv6 host its /64 is remembered; a rule for one address in
// there may be for the host.
func TestReachNarrow(t *testing.T) {
	peers := slices.Values([]memory.Peer{{Prefix: netip.MustParsePrefix("2001:db8:0:1::/64"), Mails: 20, LastMail: time.Unix(1793620800, 0)}})
	const pass = "pass from { 2001:db8:0:1::25 }\n"
	for _, c := range []struct {
		name, before, after string // what is listed
		inline              bool
		first               string // of the configuration
		want                string // rules that newly turn it away
	}{
		{name: "its network", before: "2001:db8:0:2::/64", after: "2001:db8::/48", want: "drop"},
		{name: "an address of it", before: "2001:db8:0:2::/64", after: "2001:db8:0:2::/64 2001:db8:0:1::25/128", want: "drop"},
		{name: "written in the rule", before: "2001:db8:0:2::/64", after: "2001:db8:0:2::/64, 2001:db8:0:1::/96", inline: true, want: "drop"},
		{name: "another network", before: "2001:db8:0:2::/64", after: "2001:db8:0:2::/64 2001:db8:0:3::25/128"},
		{name: "the same as before", before: "2001:db8:0:1::25/128", after: "2001:db8:0:1::25/128"},
		{name: "another one than before", before: "2001:db8:0:1::25/128", after: "2001:db8:0:1::26/128", want: "drop"},
		{name: "within what was listed before", before: "2001:db8:0:1::/64", after: "2001:db8:0:1::25/128"},
		{name: "a friend", first: pass, before: "2001:db8:0:2::/64", after: "2001:db8:0:2::/64 2001:db8:0:1::25/128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			conf, drop := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop.txt")
			var loaded [2]*Config
			for i, list := range []string{c.before, c.after} {
				if c.inline {
					write(t, conf, "mode enforce\nrule drop phase connect match src { "+list+" } disconnect\n")
				} else {
					write(t, conf, strings.Replace(withTable, "rule", c.first+"rule", 1))
					write(t, drop, strings.ReplaceAll(list, " ", "\n")+"\n")
				}
				var err error
				if loaded[i], err = Load(conf, builtinLists(t), nil, true); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, r := range loaded[1].Reach(peers, loaded[0]) {
				got = append(got, r.Rule)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

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
