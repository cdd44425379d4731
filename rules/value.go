// The values of conditions and tables, and how they are read.

package rules

import (
	"fmt"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
)

// valueFunc makes a value of a token. The string says what is wrong with it.
type valueFunc func(token) (Value, string)

// values takes one value or a list of them.
func (l *line) values(what string, value valueFunc) (list []Value, err *Error) {
	err = l.each(func() *Error {
		t := l.next()
		if !l.isValue(t) {
			hint := ""
			if t.kind == wordToken {
				hint = fmt.Sprintf("write \"%s\" in quotes if that is meant", t.text)
			}
			return l.errorf(t.pos, hint, "expected %s%s", what, insteadOf(t))
		}
		v, wrong := value(t)
		if wrong != "" {
			msg, hint, _ := strings.Cut(wrong, "\n")
			return l.errorf(t.pos, hint, "%s", msg)
		}
		v.Pos = t.pos
		list = append(list, v)
		return nil
	})
	return list, err
}

// nameValue makes a value of a name, suffix, glob, regular expression or table.
func nameValue(t token) (Value, string) {
	switch t.kind {
	case tableToken:
		return Value{Kind: TableValue, Text: t.text}, ""
	case regexToken:
		if _, err := compileRegex(t.text); err != nil {
			return Value{}, "bad regular expression: " + err.Error()
		}
		return Value{Kind: RegexValue, Text: t.text}, ""
	}
	switch {
	case t.text == "":
		return Value{}, "an empty name never matches"
	case len(t.text) > maxName:
		return Value{}, fmt.Sprintf("no name is longer than %d bytes", maxName)
	case t.text == ".":
		return Value{}, "`.` is no suffix\nwrite \".example.org\" for a domain and all below it"
	case strings.Contains(t.text, " "):
		return Value{}, "no name has a blank in it"
	}
	return Value{Kind: TextValue, Text: t.text}, ""
}

// compileRegex makes a case-blind RE2 expression.
func compileRegex(text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, fmt.Errorf("it is empty and would match everything")
	}
	if len(text) > maxRegex {
		return nil, fmt.Errorf("it is longer than %d bytes", maxRegex)
	}
	re, err := regexp.Compile("(?i)" + text)
	if e, ok := err.(*syntax.Error); ok {
		return nil, fmt.Errorf("%s: %s", e.Code, strings.TrimPrefix(e.Expr, "(?i)"))
	}
	return re, err
}

func addressValue(t token) (Value, string) {
	switch t.kind {
	case tableToken:
		return Value{Kind: TableValue, Text: t.text}, ""
	case regexToken:
		return Value{}, "an address is no regular expression"
	}
	p, wrong := parsePrefix(t.text)
	return Value{Kind: PrefixValue, Prefix: p}, wrong
}

func parsePrefix(s string) (netip.Prefix, string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return p, fmt.Sprintf("`%s` is no address or prefix\nwrite 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32", s)
		}
		a = a.Unmap()
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Sprintf("`%s` is wider than the IPv4 addresses it holds", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p.Masked() != p {
		return p, fmt.Sprintf("`%s` has bits behind its length\nwrite %s for the network or %s for the host", s, p.Masked(), p.Addr())
	}
	return p, ""
}

func asValue(t token) (Value, string) {
	if t.kind == tableToken {
		return Value{Kind: TableValue, Text: t.text}, ""
	}
	digits := t.text
	if len(digits) > 2 && strings.EqualFold(digits[:2], "AS") {
		digits = digits[2:]
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if t.kind == regexToken || err != nil || n == 0 {
		return Value{}, fmt.Sprintf("`%s` is no AS number\nwrite AS64496 or 64496", t)
	}
	return Value{Kind: ASValue, AS: uint32(n)}, ""
}

func countryValue(t token) (Value, string) {
	if t.kind == tableToken {
		return Value{Kind: TableValue, Text: t.text}, ""
	}
	s := strings.ToUpper(t.text)
	if t.kind == regexToken || len(s) != 2 || s[0] < 'A' || s[0] > 'Z' || s[1] < 'A' || s[1] > 'Z' {
		return Value{}, fmt.Sprintf("`%s` is no country\nwrite the two letters of ISO 3166: DE, JP", t)
	}
	return Value{Kind: TextValue, Text: s}, ""
}

func wordValue(what string, words []string) valueFunc {
	return func(t token) (Value, string) {
		if (t.kind != wordToken && t.kind != stringToken) || index(words, t.text) < 0 {
			return Value{}, fmt.Sprintf("there is no %s `%s`\n%s", what, t, didYouMean(t.text, words))
		}
		return Value{Kind: WordValue, Text: t.text}, ""
	}
}

func tokenNames() []string {
	names := make([]string, len(Tokens))
	for i, t := range Tokens {
		names[i] = t.Name
	}
	return names
}

func evidenceValue(t token) (Value, string) { return wordValue("evidence", tokenNames())(t) }

func listenerValue(t token) (Value, string) {
	if t.kind != wordToken && t.kind != stringToken || !isName(t.text) {
		return Value{}, fmt.Sprintf("`%s` is no name of a listener", t)
	}
	return Value{Kind: WordValue, Text: t.text}, ""
}

// tableValue is what an inline table can hold: addresses, AS numbers that begin
// with AS, and names.
func tableValue(t token) (Value, string) {
	if t.kind == wordToken || t.kind == stringToken {
		if len(t.text) > 2 && strings.EqualFold(t.text[:2], "AS") {
			if v, wrong := asValue(t); wrong == "" {
				return v, ""
			}
		}
		// No name ends with a number: that is a slip in an address.
		last := t.text[strings.LastIndexByte(t.text, '.')+1:]
		_, err := strconv.Atoi(last)
		if err == nil || strings.ContainsAny(t.text, ":/") && !strings.ContainsAny(t.text, "[@*") {
			return addressValue(t)
		}
	}
	if t.kind == tableToken {
		return Value{}, "a table cannot hold a table"
	}
	return nameValue(t)
}
