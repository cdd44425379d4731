// This file holds the parsers for the values of conditions and tables.

package rules

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"scanwatch/internal/prefix"
)

// A valueFunc parses a value. If the value is invalid, the returned string is an error message. A
// second line of the string, if any, is a hint.
type valueFunc func(token) (Value, string)

// values parses a value or a list of values.
func (l *line) values(what string, value valueFunc) (list []Value, err *Error) {
	err = l.each(func() *Error {
		t := l.next()
		if !l.isValue(t) {
			hint := ""
			if t.kind == wordToken {
				hint = fmt.Sprintf("write \"%s\" in quotes to use it as a value", t.text)
			}
			return l.errorf(t.pos, hint, "expected %s%s", what, insteadOf(t))
		}
		v, err := l.value(t, value)
		list = append(list, v)
		return err
	})
	return list, err
}

func (l *line) value(t token, value valueFunc) (Value, *Error) {
	v, wrong := value(t)
	v.Pos = t.pos
	if wrong != "" {
		msg, hint, _ := strings.Cut(wrong, "\n")
		return v, l.errorf(t.pos, hint, "%s", msg)
	}
	return v, nil
}

// nameValue parses a name, a suffix, a glob, a regular expression or a table.
func nameValue(t token) (Value, string) {
	switch t.kind {
	case tableToken:
		return Value{Kind: TableValue, Text: t.text}, ""
	case regexToken:
		if _, err := compileRegex(t.text); err != nil {
			return Value{}, "invalid regular expression: " + err.Error()
		}
		return Value{Kind: RegexValue, Text: t.text}, ""
	}
	switch {
	case t.text == "":
		return Value{}, "a name may not be empty"
	case len(t.text) > maxName:
		return Value{}, fmt.Sprintf("a name may not exceed %d bytes", maxName)
	case t.text == ".":
		return Value{}, "`.` is not a suffix\nwrite \".example.org\" for a domain and all names below it"
	case strings.Contains(t.text, " "):
		return Value{}, "a name may not contain a space"
	}
	return Value{Kind: TextValue, Text: t.text}, ""
}

// compileRegex compiles a regular expression. The expression ignores case.
func compileRegex(text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, fmt.Errorf("it is empty and matches everything")
	}
	if len(text) > maxRegex {
		return nil, fmt.Errorf("it may not exceed %d bytes", maxRegex)
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
		return Value{}, "an address cannot be a regular expression"
	}
	p, dropped, err := prefix.Parse(t.text)
	switch {
	case err != nil:
		msg, hint, _ := strings.Cut(err.Error(), "; ")
		return Value{}, msg + "\n" + hint
	case dropped:
		addr, _, _ := strings.Cut(t.text, "/")
		return Value{}, fmt.Sprintf("%q has bits after its length\nwrite %s for the network or %s for the host", t.text, p, addr)
	}
	return Value{Kind: PrefixValue, Prefix: p}, ""
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
		return Value{}, fmt.Sprintf("`%s` is not an AS number\nwrite AS64496 or 64496", t)
	}
	return Value{Kind: ASValue, AS: uint32(n)}, ""
}

func countryValue(t token) (Value, string) {
	if t.kind == tableToken {
		return Value{Kind: TableValue, Text: t.text}, ""
	}
	s := strings.ToUpper(t.text)
	if t.kind == regexToken || len(s) != 2 || s[0] < 'A' || s[0] > 'Z' || s[1] < 'A' || s[1] > 'Z' {
		return Value{}, fmt.Sprintf("`%s` is not a country\nwrite the two letters of ISO 3166: DE, JP", t)
	}
	return Value{Kind: TextValue, Text: s}, ""
}

func wordValue(what string, words []string) valueFunc {
	return func(t token) (Value, string) {
		if (t.kind != wordToken && t.kind != stringToken) || slices.Index(words, t.text) < 0 {
			hint := replacement(t.text, "")
			if hint == "" {
				hint = didYouMean(t.text, words)
			}
			return Value{}, fmt.Sprintf("unknown %s `%s`\n%s", what, t, hint)
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
		return Value{}, fmt.Sprintf("`%s` is not a listener name", t)
	}
	return Value{Kind: WordValue, Text: t.text}, ""
}

func lookupValue(t token) (Value, string) {
	if t.kind != wordToken && t.kind != stringToken || !isName(t.text) {
		return Value{}, fmt.Sprintf("`%s` is not the name of a lookup", t)
	}
	return Value{Kind: WordValue, Text: t.text}, ""
}

// tableValue parses a value in an inline table, which is an address, an AS number that begins with
// AS, or a name.
func tableValue(t token) (Value, string) {
	if t.kind == wordToken || t.kind == stringToken {
		if len(t.text) > 2 && strings.EqualFold(t.text[:2], "AS") {
			if v, wrong := asValue(t); wrong == "" {
				return v, ""
			}
		}
		// No host name ends in a number, so this value is an address with a typing error.
		last := t.text[strings.LastIndexByte(t.text, '.')+1:]
		_, err := strconv.Atoi(last)
		if err == nil || strings.ContainsAny(t.text, ":/") && !strings.ContainsAny(t.text, "[@*") {
			return addressValue(t)
		}
	}
	if t.kind == tableToken {
		return Value{}, "a table cannot contain a table"
	}
	return nameValue(t)
}
