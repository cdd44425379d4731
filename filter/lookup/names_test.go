package lookup

import (
	"fmt"
	"strings"
	"testing"
)

func namesOf(tb testing.TB, list ...string) *Names[string] {
	tb.Helper()
	var n Names[string]
	for _, name := range list {
		if err := n.Add(name, name); err != nil {
			tb.Fatal(err)
		}
	}
	return &n
}

func TestNamesLookup(t *testing.T) {
	n := namesOf(t, "mail.example.org", ".example.org", ".Sub.Example.ORG.", "*.example.net",
		".example.com", "example.com", "*.both.example", ".both.example", "[192.0.2.1]", "ylmf-pc", ".org",
		"bytes\xff.example.org")
	tests := []struct{ name, text, want string }{
		{"exact goes before suffix", "mail.example.org", "mail.example.org"},
		{"below an exact entry", "a.mail.example.org", ".example.org"},
		{"suffix covers itself", "example.org", ".example.org"},
		{"suffix covers below", "a.b.c.example.org", ".example.org"},
		{"longest suffix", "x.sub.example.org", ".Sub.Example.ORG."},
		{"longest suffix itself", "sub.example.org", ".Sub.Example.ORG."},
		{"label border", "badexample.org", ".org"},
		{"case", "A.EXAMPLE.Org", ".example.org"},
		{"trailing dot", "a.example.org.", ".example.org"},
		{"two trailing dots", "a.example.org..", ""},
		{"star covers below", "a.example.net", "*.example.net"},
		{"star does not cover itself", "example.net", ""},
		{"exact and suffix of one name", "example.com", "example.com"},
		{"below exact and suffix of one name", "a.example.com", ".example.com"},
		{"first of two equal entries", "a.both.example", "*.both.example"},
		{"only the second covers it", "both.example", ".both.example"},
		{"address literal", "[192.0.2.1]", "[192.0.2.1]"},
		{"no dot", "YLMF-PC", "ylmf-pc"},
		{"no dot, longer", "ylmf-pc2", ""},
		{"below a name without a dot", "a.ylmf-pc", ""},
		{"top-level suffix", "org", ".org"},
		{"bytes beyond ASCII", "BYTES\xff.example.org", "bytes\xff.example.org"},
		{"empty", "", ""},
		{"dot", ".", ""},
		{"leading dot", ".example.org", ".example.org"},
		{"empty labels", "a..example.org", ".example.org"},
		{"longest name", strings.Repeat("a.", 121) + "example.org", ".example.org"},
		{"longest name with its dot", strings.Repeat("a.", 121) + "example.org.", ".example.org"},
		{"too long for a name", strings.Repeat("a.", 123) + "example.org", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := n.LookupBytes([]byte(tt.text))
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("LookupBytes(%q) = %q, %v, want %q", tt.text, got, ok, tt.want)
			}
		})
	}
}

func TestNamesZeroValue(t *testing.T) {
	var n Names[int]
	if v, ok := n.LookupBytes([]byte("example.org")); ok || v != 0 {
		t.Errorf("an empty table answers %d, %v", v, ok)
	}
}

func TestNamesFirstStays(t *testing.T) {
	var n Names[int]
	for i, name := range []string{"example.org", "EXAMPLE.org.", ".example.org", ".example.org"} {
		if err := n.Add(name, i); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := n.LookupBytes([]byte("example.org")); v != 0 {
		t.Errorf("exact: %d", v)
	}
	if v, _ := n.LookupBytes([]byte("a.example.org")); v != 2 {
		t.Errorf("suffix: %d", v)
	}
	if n.Len() != 2 {
		t.Errorf("%d entries", n.Len())
	}
}

func TestNamesAddRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "empty name"},
		{"dot", ".", "empty name"},
		{"star", "*.", "empty name"},
		{"empty label", "a..b", "empty label"},
		{"two leading dots", "..a", "empty label"},
		{"two trailing dots", "a..", "empty label"},
		{"space", "a b", "space or control"},
		{"control character", "a\x01b", "space or control"},
		{"delete", "a\x7fb", "space or control"},
		{"too long", strings.Repeat("a", 256), "longer than 255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n Names[int]
			err := n.Add(tt.text, 1)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Add(%q): error %v, want %q in it", tt.text, err, tt.want)
			}
			if n.Len() != 0 {
				t.Errorf("Add(%q) left an entry", tt.text)
			}
		})
	}
}

// FuzzNames compares LookupBytes with a simple implementation.
func FuzzNames(f *testing.F) {
	f.Add(".example.org\nmail.example.org\n*.sub.example.org", "A.mail.example.org.")
	f.Add("a\n.a\n*.a", "a.a.a")
	f.Add(".org", "..org")
	f.Fuzz(func(t *testing.T, list, name string) {
		var n Names[string]
		var entries []string
		for _, entry := range strings.Split(list, "\n") {
			if n.Add(entry, entry) == nil {
				entries = append(entries, entry)
			}
		}
		got, _ := n.LookupBytes([]byte(name))
		if want := coveringEntry(entries, name); got != want {
			t.Errorf("entries %q, name %q: got %q, want %q", entries, name, got, want)
		}
	})
}

// coveringEntry returns the same result as Names.LookupBytes. coveringEntry compares all entries.
func coveringEntry(entries []string, name string) (best string) {
	name = lowerASCII(strings.TrimSuffix(name, "."))
	if len(name) > 255 {
		return ""
	}
	longest := -1 // twice the length of the text of the best entry, plus 1 if the entry is exact
	for _, entry := range entries {
		text := lowerASCII(strings.TrimSuffix(entry, "."))
		weight := -1
		switch {
		case strings.HasPrefix(text, "*."):
			if strings.HasSuffix(name, text[1:]) {
				weight = 2 * len(text[2:])
			}
		case strings.HasPrefix(text, "."):
			if strings.HasSuffix("."+name, text) {
				weight = 2 * len(text[1:])
			}
		case name == text:
			weight = 2*len(text) + 1
		}
		if weight > longest {
			longest, best = weight, entry
		}
	}
	return best
}

func BenchmarkNames(b *testing.B) {
	var n Names[int]
	for i := range 10_000 {
		if err := n.Add(fmt.Sprintf(".host%d.zone%d.example.org", i, i%97), i); err != nil {
			b.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"hit":     "mx1.host4711.zone55.example.org",
		"miss":    "mail-wr1-f47.google.example.com",
		"short":   "localhost",
		"hostile": strings.Repeat("a.", 121) + "example.org",
	} {
		text := []byte(text)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n.LookupBytes(text)
			}
		})
	}
}
