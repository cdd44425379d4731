package lookup

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func patternsOf(tb testing.TB, exprs ...string) *Patterns[string] {
	tb.Helper()
	list := make([]Pattern[string], len(exprs))
	for i, expr := range exprs {
		list[i] = Pattern[string]{Expr: expr, Value: expr}
	}
	p, err := NewPatterns(list)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestPatternsMatch(t *testing.T) {
	tests := []struct {
		name  string
		exprs []string
		text  string
		want  string
	}{
		{"none", []string{`abc`}, "xyz", ""},
		{"empty set", nil, "xyz", ""},
		{"literal", []string{`abc`, `xyz`}, "wxyz", `xyz`},
		{"first in the list", []string{`xyz`, `wxy`}, "wxyz", `xyz`},
		{"without a literal, first", []string{`^[^a-z]`, `xyz`}, "1xyz", `^[^a-z]`},
		{"without a literal, last", []string{`xyz`, `^[^a-z]`}, "1xyz", `xyz`},
		{"literal there, pattern not", []string{`^xyz`, `yz$`}, "wxyz", `yz$`},
		{"case matters", []string{`abc`, `ABC`}, "xABCx", `ABC`},
		{"case does not matter", []string{`(?i)abc`}, "xABCx", `(?i)abc`},
		{"long s", []string{`(?i)desk`}, "de\u017fk", `(?i)desk`},
		{"kelvin", []string{`(?i)desk`}, "DES\u212a", `(?i)desk`},
		{"letters beyond ASCII", []string{`(?i)öl`}, "ÖL", `(?i)öl`},
		{"replacement character matches a broken byte", []string{"a\ufffdb"}, "a\xffb", "a\ufffdb"},
		{"alternatives", []string{`l9scan|l9explore`}, "l9explore/1", `l9scan|l9explore`},
		{"one literal inside another", []string{`bcx`, `abcd`}, "abcd", `abcd`},
		{"overlapping literals", []string{`abab`, `bac`}, "ababac", `abab`},
		{"failure link", []string{`abcd`, `bce`}, "abce", `bce`},
		{"optional literal", []string{`^(abc)?x$`}, "x", `^(abc)?x$`},
		{"repeated literal", []string{`^(abc){2,3}$`}, "abcabc", `^(abc){2,3}$`},
		{"literal repeated from none", []string{`^(abc){0,3}$`}, "", `^(abc){0,3}$`},
		{"empty expression", []string{``}, "anything", ``},
		{"long literal", []string{strings.Repeat("long", 10)}, strings.Repeat("long", 10), strings.Repeat("long", 10)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := patternsOf(t, tt.exprs...)
			wantOK := slices.ContainsFunc(tt.exprs, func(e string) bool { return regexp.MustCompile(e).MatchString(tt.text) })
			got, ok := p.Match([]byte(tt.text))
			if got != tt.want || ok != wantOK {
				t.Errorf("%q on %q: got %q, %v, want %q, %v", tt.exprs, tt.text, got, ok, tt.want, wantOK)
			}
		})
	}
}

func TestPatternsNil(t *testing.T) {
	var p *Patterns[int]
	if _, ok := p.Match([]byte("x")); ok || p.Len() != 0 {
		t.Error("a nil set matches")
	}
}

func TestNewPatternsRefuses(t *testing.T) {
	_, err := NewPatterns([]Pattern[int]{{Expr: "a"}, {Expr: "("}})
	if err == nil || !strings.Contains(err.Error(), "pattern 2:") {
		t.Errorf("error %v", err)
	}
}

// FuzzPatterns compares Match with package regexp.
func FuzzPatterns(f *testing.F) {
	f.Add("abc\n(?i)^win-[a-z0-9]{11}$\n^[^a-z]", "WIN-0123456789A")
	f.Add("(?i)ask\nl9scan|l9explore", "A\u017fK")
	f.Add("a\ufffdb", "a\xffb")
	f.Add("(?i:k)s\n(ab|a(c|d)){1,2}e", "\u212as ade")
	f.Fuzz(func(t *testing.T, list, text string) {
		var set []Pattern[string]
		want := ""
		matched := false
		for _, expr := range strings.Split(list, "\n") {
			re, err := regexp.Compile(expr)
			if err != nil || len(set) == 64 {
				continue
			}
			set = append(set, Pattern[string]{Expr: expr, Value: expr})
			if !matched && re.MatchString(text) {
				want, matched = expr, true
			}
		}
		p, err := NewPatterns(set)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := p.Match([]byte(text)); got != want || ok != matched {
			t.Errorf("list %q, text %q: got %q, %v, want %q, %v", list, text, got, ok, want, matched)
		}
	})
}

func BenchmarkPatterns(b *testing.B) {
	for _, count := range []int{50, 500} {
		var exprs []string
		for i := range count {
			exprs = append(exprs, fmt.Sprintf(`(?i)^host-[0-9]+\.customer%d\.example\.(net|com)$`, i))
		}
		p := patternsOf(b, exprs...)
		for name, text := range map[string]string{
			"miss": "mx1.mail.example.org",
			"hit":  fmt.Sprintf("host-1.customer%d.example.net", count-1),
		} {
			text := []byte(text)
			b.Run(fmt.Sprintf("%d-%s", count, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.Match(text)
				}
			})
		}
	}
}
