// Package report turns recorded sessions into text, JSON and CSV. It knows
// nothing of files and sockets: records come in, bytes go to a writer.
//
// All text that came over the network is hostile. It passes Printable on its
// way into a View or a Summary, and nothing else is ever rendered.
package report

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes text from the network safe to show: control characters,
// invisible and direction-changing ones, blanks other than the space, bytes that
// are no UTF-8, and the backslash are written as \r \n \t \\ \xNN \uNNNN or
// \UNNNNNNNN. Unprintable is its reverse.
func Printable(b []byte) string {
	safe := true
	for _, c := range b {
		if c < ' ' || c > '~' || c == '\\' {
			safe = false
			break
		}
	}
	if safe {
		return string(b)
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
		case unicode.IsPrint(r) && !hidden(r):
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

// hidden tells whether a rune counts as printable although nothing is seen of
// it: variation selectors, fillers, and the like.
func hidden(r rune) bool {
	return unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// Unprintable returns the bytes that Printable has made s of.
func Unprintable(s string) ([]byte, error) {
	var out bytes.Buffer
	for len(s) > 0 {
		if s[0] != '\\' {
			out.WriteByte(s[0])
			s = s[1:]
			continue
		}
		r, multibyte, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return nil, fmt.Errorf("read back %q: %w", s, err)
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

// width is the number of columns that s takes on a terminal.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && unicode.In(r, wide):
		return 2
	}
	return 1
}

// wide are the ranges of Unicode's EastAsianWidth.txt whose runes are wide or
// full-width, joined where only unassigned ones lie between.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1100, 0x115f, 1}, {0x231a, 0x231b, 1}, {0x23e9, 0x23ec, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0x33ff, 1}, {0x3400, 0x4dbf, 1},
		{0x4e00, 0xa4cf, 1}, {0xa960, 0xa97f, 1}, {0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1}},
	R32: []unicode.Range32{{0x16fe0, 0x18aff, 1}, {0x1b000, 0x1b2ff, 1}, {0x1f200, 0x1f2ff, 1}, {0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1},
		{0x1f900, 0x1f9ff, 1}, {0x1fa70, 0x1faff, 1}, {0x20000, 0x3fffd, 1}},
}

// cut shortens s to n columns; what was cut off is shown as an ellipsis.
func cut(s string, n int) string {
	if width(s) <= n {
		return s
	}
	w := 0
	for i, r := range s {
		if w+runeWidth(r) > n-1 {
			return s[:i] + "…"
		}
		w += runeWidth(r)
	}
	return s
}

// Fit fills s, which is printable, with blanks to n columns of a terminal, or
// cuts it.
func Fit(s string, n int) string { return pad(s, n) }

// pad fills s with blanks to n columns, or cuts it.
func pad(s string, n int) string {
	s = cut(s, n)
	return s + strings.Repeat(" ", n-width(s))
}

// wrap writes s to lines of at most 80 columns; all but the first begin with
// indent blanks. It breaks at a blank where there is one.
func wrap(out *strings.Builder, s string, indent int) { wrapTo(out, s, indent, 80) }

func wrapTo(out *strings.Builder, s string, indent, columns int) {
	for width(s) > columns {
		w, at, blank := 0, len(s), 0
		for i, r := range s {
			if w+runeWidth(r) > columns {
				at = i
				break
			}
			w += runeWidth(r)
			if r == ' ' && i > indent+8 {
				blank = i
			}
		}
		skip := 0
		if blank > at/2 {
			at, skip = blank, 1
		}
		out.WriteString(s[:at])
		out.WriteByte('\n')
		s = strings.Repeat(" ", indent) + s[at+skip:]
	}
	out.WriteString(s)
	out.WriteByte('\n')
}
