package prefix_test

import (
	"net/netip"
	"strings"
	"testing"

	"scanwatch/internal/prefix"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in, want string
		dropped  bool
	}{
		{"192.0.2.1", "192.0.2.1/32", false},
		{"192.0.2.0/24", "192.0.2.0/24", false},
		{"192.0.2.1/24", "192.0.2.0/24", true},
		{"192.0.2.1/32", "192.0.2.1/32", false},
		{"0.0.0.0/0", "0.0.0.0/0", false},
		{"2001:db8::1", "2001:db8::1/128", false},
		{"[2001:db8::1]", "2001:db8::1/128", false},
		{"[2001:db8::]/32", "2001:db8::/32", false},
		{"2001:DB8::/32", "2001:db8::/32", false},
		{"2001:db8::1/64", "2001:db8::/64", true},
		{"::ffff:192.0.2.1", "192.0.2.1/32", false},
		{"::ffff:192.0.2.0/120", "192.0.2.0/24", false},
		{"::ffff:192.0.2.1/120", "192.0.2.0/24", true},
		{"64:ff9b::c633:6401", "198.51.100.1/32", false},
		{"64:ff9b::c633:6401/96", "64:ff9b::/96", true},
		{"64:ff9b::a00:1", "64:ff9b::a00:1/128", false},
		{"64:ff9b::7f00:1", "64:ff9b::7f00:1/128", false},
		{"64:ff9b:1::c633:6401", "64:ff9b:1::c633:6401/128", false},
		{"::/0", "::/0", false},
	} {
		got, dropped, err := prefix.Parse(c.in)
		if err != nil || got.String() != c.want || dropped != c.dropped {
			t.Errorf("%s: got %s, %v, %v; want %s, %v", c.in, got, dropped, err, c.want, c.dropped)
		}
	}
}

func TestParseError(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "not an address or prefix",
		"mail.example.org":           "not an address or prefix",
		"192.0.2":                    "not an address or prefix",
		"[192.0.2.1]":                "not an address or prefix",
		" 192.0.2.1":                 "not an address or prefix",
		"[2001:db8::1":               "not an address or prefix",
		"192.0.2.0 - 192.0.2.9":      "range",
		"192.0.2.0-192.0.2.9":        "range",
		"192.0.2.1:25":               "has a port; write 192.0.2.1",
		"[2001:db8::1]:25":           "has a port; write 2001:db8::1",
		"fe80::1%em0":                "zone",
		"192.0.2.0/33":               "from 0 to 32",
		"192.0.2.0/024":              "prefix length",
		"192.0.2.0/+4":               "prefix length",
		"192.0.2.0/":                 "prefix length",
		"192.0.2.0/255.255.255.0":    "prefix length",
		"2001:db8::/129":             "from 0 to 128",
		"::ffff:0.0.0.0/90":          "covers more than the IPv4-mapped addresses",
		"192.0.2.0/24/8":             "prefix length",
		"2001:db8::1 - 2001:db8::ff": "range",
	} {
		if got, _, err := prefix.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %s, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestRange(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.10 192.0.2.20":           "192.0.2.10/31 192.0.2.12/30 192.0.2.16/30 192.0.2.20/32",
		"192.0.2.0 192.0.2.255":           "192.0.2.0/24",
		"192.0.2.7 192.0.2.7":             "192.0.2.7/32",
		"255.255.255.254 255.255.255.255": "255.255.255.254/31",
		"0.0.0.0 255.255.255.255":         "0.0.0.0/0",
		"2001:db8::1 2001:db8::3":         "2001:db8::1/128 2001:db8::2/127",
		"192.0.2.9 192.0.2.1":             "",
		"192.0.2.9 2001:db8::1":           "",
	} {
		first, last, _ := strings.Cut(in, " ")
		var got []string
		for _, p := range prefix.Range(netip.MustParseAddr(first), netip.MustParseAddr(last)) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestParseLogged(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1:25": "192.0.2.1/32", "[2001:db8::1]:25": "2001:db8::1/128", "[::ffff:192.0.2.1]:25": "192.0.2.1/32", "192.0.2.0/24": "192.0.2.0/24"} {
		if got, _, err := prefix.ParseLogged(in); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestString(t *testing.T) {
	for _, s := range []string{"192.0.2.1", "192.0.2.0/24", "2001:db8::1", "2001:db8::/32"} {
		if p, _, _ := prefix.Parse(s); prefix.String(p) != s {
			t.Errorf("%s becomes %s", s, prefix.String(p))
		}
	}
}

// FuzzParse checks that Parse accepts the text of every prefix that it returns.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "[2001:db8::]/32", "::ffff:192.0.2.0/120", "a-b", "fe80::1%em0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, _, err := prefix.Parse(s)
		if err != nil {
			if p != (netip.Prefix{}) {
				t.Errorf("%q: an error and %s", s, p)
			}
			return
		}
		again, dropped, err := prefix.Parse(prefix.String(p))
		if err != nil || dropped || again != p || p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Errorf("%q becomes %s becomes %s, %v, %v", s, p, again, dropped, err)
		}
	})
}
