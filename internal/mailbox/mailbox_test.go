package mailbox

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestAddress checks that parts which mail servers ignore are removed from addresses.
func TestAddress(t *testing.T) {
	for arg, want := range map[string]string{
		"<a@example.org>":                    "a@example.org",
		"a@example.org":                      "a@example.org",
		" <a@example.org> ":                  "a@example.org",
		"<>":                                 "",
		"":                                   "",
		"<(+)a@example.org>":                 "a@example.org",
		"(+)<a@example.org>":                 "a@example.org",
		"<a@(+)example.org>(x)":              "a@example.org",
		"<(a(b)\\)c)a(x)@example.org>":       "a@example.org",
		`<"(+)a"@example.org>`:               `"(+)a"@example.org`,
		`<"a b>"@example.org>`:               `"a b>"@example.org`,
		`<"a\"(b)"@example.org>`:             `"a\"(b)"@example.org`,
		`"x+"<a@example.org>`:                "a@example.org",
		"x+<a@example.org>y SIZE=1":          "a@example.org",
		"<@x+y.example,@z.example:a@b.test>": "a@b.test",
		"x+:a@example.org;":                  "a@example.org",
		"< a @ example.org >":                "a@example.org",
		"<a@[IPv6:2001:db8::1]>":             "a@[IPv6:2001:db8::1]",
		"a@[IPv6:2001:db8::1]":               "a@[IPv6:2001:db8::1]",
		"<a:b@example.org>":                  "a:b@example.org",
		"<a@example.org":                     "a@example.org",
		"(x)<>":                              "",
		"(x":                                 "(x",
		"<g0(+@example.org>":                 "g0",
		"postmaster":                         "postmaster",
		`<"a@example.org>`:                   `"a@example.org>`,
		"a@example.org SIZE=1":               "a@example.org",
		"a:b@example.org":                    "a:b@example.org",
		"a b@example.org":                    "ab@example.org",
		"(a b) <a@example.org>":              "a@example.org",
		"<a@example.org> <b@example.org>":    "a@example.org",
		"<a\\+b@example.org>":                "a\\+b@example.org",
	} {
		if got := string(Address([]byte(arg))); got != want {
			t.Errorf("%s: %q, want %q", arg, got, want)
		}
	}
}

// TestAddressRandom checks that text around the parts of an address does not change the mailbox.
func TestAddressRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	comment := func() string {
		var b strings.Builder
		for range rnd.IntN(3) {
			b.WriteString([]string{" ", "(+)", "(a(+)b)", `(\)+)`, "(@)", "(<x+@y>)", `(")`, "(:)", "(" + strings.Repeat("+", 300) + ")"}[rnd.IntN(9)])
		}
		return b.String()
	}
	for i := range 5000 {
		route := []string{"", "@x+y.example:", "@x.example,@y+.example:"}[rnd.IntN(3)]
		inner := fmt.Sprintf("%s%s%sg%d%s@%sexample.org%s", comment(), route, comment(), i, comment(), comment(), comment())
		if rnd.IntN(3) == 0 {
			inner = "<" + inner + ">"
		} else {
			inner = comment() + []string{"", "x+", `"+<"`}[rnd.IntN(3)] + "<" + inner + ">" + comment()
		}
		if got, want := string(AppendBase(nil, Address([]byte(inner)), '+')), fmt.Sprintf("g%d@example.org", i); got != want {
			t.Fatalf("%s: %q, want %q", inner, got, want)
		}
	}
}
