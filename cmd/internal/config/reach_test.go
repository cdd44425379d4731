package config

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
