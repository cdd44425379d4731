package rules

import (
	"regexp"
	"strings"
	"testing"
)

// FuzzGlob compares matchGlob with a regular expression.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*b", "ab"}, {"a*b*", "axxbxb"}, {"**a", "ba"}, {"*.example.org", "mail.EXAMPLE.org"}, {"a*a", "a"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, glob, text string) {
		if strings.ContainsFunc(glob+text, func(r rune) bool { return r > '~' }) || len(glob) > 50 {
			return // the regular expression matches characters, but the glob matches bytes
		}
		glob = lower(glob)
		want := regexp.MustCompile(`(?s)^` + strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, `.*`) + `$`).MatchString(lower(text))
		if got := matchGlob(glob, []byte(text)); got != want {
			t.Errorf("matchGlob(%q, %q) = %v, want %v", glob, text, got, want)
		}
	})
}

func TestCheckText(t *testing.T) {
	for _, tt := range []struct {
		text string
		ok   bool
	}{
		{"550 x", true}, {"421 4.7.0 Later", true}, {"450 no enhanced code", true}, {"554 5.7 x", true}, {"550 5.7.1 see $session", true},
		{"550 4.7.1 x", false}, {"550", false}, {"550 ", false}, {"550  x", false}, {"550 x ", false}, {"550-x y", false}, {"650 x", false},
		{"250 x", false}, {"5x0 x", false}, {"570 x", false}, {"550\tx", false}, {"550 a\nb", false}, {"", false}, {"550 \x7f", false},
	} {
		if got := checkText(tt.text) == ""; got != tt.ok {
			t.Errorf("checkText(%q): %q, want ok %v", tt.text, checkText(tt.text), tt.ok)
		}
	}
}
