package rules

import (
	"net/netip"
	"testing"
)

// TestFriends checks that a network contains a friend if a pass statement or a table contains one
// of its addresses. The answer must be unknown if a table is not loaded.
func TestFriends(t *testing.T) {
	const conf = `table <friends> { 192.0.2.0/24, 2001:db8:1::5 }
table <partners> { 198.51.100.7 }
pass from { 203.0.113.9, <partners> }
pass match src 203.0.113.77 helo "mx.example.net"
pass match !src 203.0.113.200 rdns .example.net fcrdns
rule r phase connect match src 203.0.113.201 disconnect
`
	policy := func(text string) *Policy {
		tree, err := Parse("x", func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := Compile(tree, Options{Load: func(Source) (Table, error) { return nil, nil }})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := policy(conf)
	missing := policy(conf + "table <later> file \"later.txt\"\npass from <later>\n")
	for _, c := range []struct {
		prefix string
		want   Truth
	}{
		{"192.0.2.7/32", Yes}, {"192.0.0.0/16", Yes}, {"192.0.3.0/24", No},
		{"2001:db8:1::/64", Yes}, {"2001:db8:2::/64", No},
		{"198.51.100.0/24", Yes}, {"198.51.100.8/32", No},
		{"203.0.113.9/32", Yes}, {"203.0.113.77/32", Yes}, {"203.0.113.200/32", No}, {"203.0.113.201/32", No},
	} {
		q := netip.MustParsePrefix(c.prefix)
		if got := p.Friends(q); got != c.want {
			t.Errorf("%s: %v, want %v", q, got, c.want)
		}
		want := c.want
		if want == No {
			want = Unknown
		}
		if got := missing.Friends(q); got != want {
			t.Errorf("%s with a table missing: %v, want %v", q, got, want)
		}
	}
}
