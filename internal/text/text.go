// Package text formats text for operators. The package escapes hostile text, wraps
// lines, and formats numbers with units. The package imports no other package
// of this module.
package text

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escape escapes text from the network for output on a terminal, in a log line and in JSON. Control
// characters, invisible characters, spaces other than U+0020, invalid UTF-8, the backslash, and
// characters that change the writing direction become \r \n \t \\ \xNN \uNNNN and \UNNNNNNNN.
// Unescape restores the text. Escape does not protect spreadsheet cells; see Cell.
func Escape[T ~string | ~[]byte](hostile T) string {
	b := []byte(hostile)
	if plain(b) {
		return string(hostile)
	}
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, b[0])
		case r == '\\':
			out.WriteString(`\\`)
		case r == '\r':
			out.WriteString(`\r`)
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\t':
			out.WriteString(`\t`)
		case Visible(r):
			out.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			fmt.Fprintf(&out, `\U%08x`, r)
		}
		b = b[n:]
	}
	return out.String()
}

// plain reports whether b certainly needs no escaping.
func plain(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' || c == '\\' {
			return false
		}
	}
	return true
}

// Unescape reverses Escape.
func Unescape(s string) ([]byte, error) {
	var out bytes.Buffer
	for len(s) > 0 {
		if s[0] != '\\' {
			out.WriteByte(s[0])
			s = s[1:]
			continue
		}
		r, multibyte, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return nil, fmt.Errorf("unescape %q: %w", s, err)
		}
		if multibyte {
			out.WriteRune(r)
		} else {
			out.WriteByte(byte(r))
		}
		s = rest
	}
	return out.Bytes(), nil
}

// Quote escapes hostile text and puts it in double quotes. A double quote in the text
// becomes \".
func Quote[T ~string | ~[]byte](hostile T) string {
	return `"` + strings.ReplaceAll(Escape(hostile), `"`, `\"`) + `"`
}

// Visible reports whether a terminal shows r as a separate character. Spaces other than U+0020,
// variation selectors, fillers and format characters are not visible.
func Visible(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// ASCII returns at most n bytes of hostile text for an SMTP reply (RFC 5321 section
// 4.2). Bytes other than printable ASCII become question marks.
func ASCII[T ~string | ~[]byte](hostile T, n int) string {
	b := []byte(hostile[:min(len(hostile), n)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// Cell adds an apostrophe before text that a spreadsheet program might evaluate as a formula. Cell
// skips leading spaces and recognises full-width signs, as some of these programs do.
func Cell(s string) string {
	if first, _ := utf8.DecodeRuneInString(strings.TrimLeft(s, " ")); strings.ContainsRune("=+-@\t\r\n＝＋－＠", first) {
		return "'" + s
	}
	return s
}

// Plural returns n and a noun, as in "1 session" and "2 sessions". Irregular plurals are given as
// the third argument.
func Plural[N ~int | ~int64 | ~uint32 | ~uint64](n N, one string, many ...string) string {
	switch {
	case n == 1:
		return "1 " + one
	case len(many) > 0:
		return fmt.Sprintf("%d %s", n, many[0])
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// Ordinal returns 1st, 2nd, 3rd, 4th and so on.
func Ordinal(n int) string {
	end := "th"
	if n/10%10 != 1 {
		switch n % 10 {
		case 1:
			end = "st"
		case 2:
			end = "nd"
		case 3:
			end = "rd"
		}
	}
	return strconv.Itoa(n) + end
}

// Percent returns part as a percentage of whole, with the given number of decimals.
// Percent returns 0% if whole is 0.
func Percent[N ~int | ~int64 | ~uint32 | ~uint64](part, whole N, decimals int) string {
	if whole <= 0 {
		return "0%"
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', decimals, 64) + "%"
}

// Thousands returns n with commas between groups of three digits.
func Thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
