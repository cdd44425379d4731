package mailbox

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// TestAddress checks that only parts on which all mail servers agree are removed from addresses.
func TestAddress(t *testing.T) {
	for arg, want := range map[string]string{
		"<a@example.org>":                  "a@example.org",
		"a@example.org":                    "a@example.org",
		" <a@example.org> ":                "a@example.org",
		"< a@example.org >":                "a@example.org",
		"<>":                               "",
		"":                                 "",
		"<> SMTPUTF8":                      "",
		"<> BODY=8BITMIME SIZE=1":          "",
		"<a@example.org> ORCPT=rfc822;a@b": "a@example.org",
		"a@example.org SIZE=1":             "a@example.org",
		"postmaster":                       "postmaster",
		"<a+b@example.org>":                "a+b@example.org",
		"<a@[IPv6:2001:db8::1]>":           "a@[IPv6:2001:db8::1]",
		"a@[IPv6:2001:db8::1]":             "a@[IPv6:2001:db8::1]",
		`<"a b"@example.org>`:              `"a b"@example.org`,
		"<@x.example,@z.example:a@b.test>": "@x.example,@z.example:a@b.test",
		"<a+:a@example.org;>":              "a+:a@example.org;",
		"a+:a@example.org;":                "a+:a@example.org;",
		"<><a@example.org>":                "<><a@example.org>",
		"<> <a@example.org>":               "<> <a@example.org>",
		"<x@example.org> a@example.org":    "<x@example.org> a@example.org",
		"<x@example.org> a":                "<x@example.org> a",
		"<x@example.org> =a":               "<x@example.org> =a",
		"<a+><a@example.org>":              "<a+><a@example.org>",
		"<a+<a@example.org>>":              "<a+<a@example.org>>",
		"(+)<a@example.org>":               "(+)<a@example.org>",
		"<a@example.org>(x)":               "<a@example.org>(x)",
		"<(+)a@example.org>":               "(+)a@example.org",
		"<a@example.org":                   "a@example.org",
		"<a+:b@example.org":                "<a+:b@example.org",
		`<"a b>"@example.org>`:             `<"a b>"@example.org>`,
		"a b@example.org":                  "a b@example.org",
	} {
		if got := string(Address([]byte(arg))); got != want {
			t.Errorf("%s: %q, want %q", arg, got, want)
		}
	}
}

// TestDistinct checks that arguments in every form that some mail server accepts have different
// mailboxes if they are different, and the same mailbox if they are equal.
func TestDistinct(t *testing.T) {
	for _, form := range []string{
		"<a+:%s@example.org;>", "<a+:;%s@example.org>", "<a+:(c)%s@example.org;>", "<a+:b:%s@example.org;>", "a+:%s@example.org",
		"<><%s@example.org>", "<a+><%s@example.org>", "a+<%s@example.org>", "<a+> <%s@example.org>", "<a+> %s@example.org", "<a+> %s",
		"<%s(+@example.org)@example.org>", `<(\(+)%s@example.org>`, `<(a"+)%s@example.org>`, "(+@)<%s@example.org>", "(<+)<%s@example.org>",
		`"a+"<%s@example.org>`, "<@a+b:%s@example.org>", `<"a+%s"@example.org>`, `<a\+%s@example.org>`, "<a+%s%%example.org@example.org>",
		"<example.org!a+%s>", "<a+:%s@[192.0.2.1]>", "<a+%s@[192.0.2.1>", "<a+@b,%s@example.org>", "<%s@example.org>", "%s",
	} {
		seen := make(map[string]bool)
		for i := range 8 {
			for range 2 {
				seen[string(AppendBase(nil, Address(fmt.Appendf(nil, form, fmt.Sprintf("g%d", i))), '+'))] = true
			}
		}
		if len(seen) != 8 {
			t.Errorf("%s: %d different mailboxes of 8: %q", form, len(seen), slices.Collect(maps.Keys(seen)))
		}
	}
}

// TestPlain checks which addresses are plain, and that only plain addresses have a detail.
func TestPlain(t *testing.T) {
	for addr, want := range map[string]string{
		"Alice+news@example.org":             "alice@example.org",
		"alice+news":                         "alice",
		"postmaster":                         "postmaster",
		"a+b@[192.0.2.1]":                    "a@[192.0.2.1]",
		"jos\u00e9+x@example.org":            "jos\u00e9@example.org",
		"+x@example.org":                     "+x@example.org",
		"hash:0123456789abcdef@example.org":  "hash:0123456789abcdef@example.org",
		"user=example.com@lists.example.org": "user=example.com@lists.example.org",
	} {
		if got := string(AppendBase(nil, []byte(addr), '+')); got != want || !Plain([]byte(addr)) {
			t.Errorf("%s: %q, want %q, and plain", addr, got, want)
		}
	}
	for _, addr := range []string{`"a+b"@example.org`, "a+b%c@example.org", "c!a+b", "@c:a+b@example.org", "a+ b@example.org", "a+b@example.org;", "a+b@[x]y"} {
		if got := string(AppendBase(nil, []byte(addr), '+')); got != addr || Plain([]byte(addr)) {
			t.Errorf("%s: %q is plain or has a detail", addr, got)
		}
	}
}
