package text

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Width returns the number of columns that s occupies on a terminal.
func Width(s string) int {
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

// wide lists the wide and full-width ranges in Unicode's EastAsianWidth.txt. Ranges are
// joined if only unassigned characters separate them.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1100, 0x115f, 1}, {0x231a, 0x231b, 1}, {0x23e9, 0x23ec, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0x33ff, 1}, {0x3400, 0x4dbf, 1},
		{0x4e00, 0xa4cf, 1}, {0xa960, 0xa97f, 1}, {0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1}},
	R32: []unicode.Range32{{0x16fe0, 0x18aff, 1}, {0x1b000, 0x1b2ff, 1}, {0x1f200, 0x1f2ff, 1}, {0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1},
		{0x1f900, 0x1f9ff, 1}, {0x1fa70, 0x1faff, 1}, {0x20000, 0x3fffd, 1}},
}

// Cut shortens s to the given number of columns. If anything is cut off, the result ends in an
// ellipsis.
func Cut(s string, columns int) string {
	if Width(s) <= columns {
		return s
	}
	w := 0
	for i, r := range s {
		if w+runeWidth(r) > columns-1 {
			return s[:i] + "…"
		}
		w += runeWidth(r)
	}
	return s
}

// Pad cuts s to the given number of columns, or pads it with spaces.
func Pad(s string, columns int) string {
	s = Cut(s, columns)
	return s + strings.Repeat(" ", columns-Width(s))
}

// Table writes rows with aligned columns. The last column is not padded.
func Table(w io.Writer, rows [][]string) { table(w, rows, math.MaxInt) }

// table is like Table, but cells that are wider than limit do not widen their column.
func table(w io.Writer, rows [][]string, limit int) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if n := Width(cell); n <= limit {
				widths[i] = max(widths[i], n)
			}
		}
	}
	for _, row := range rows {
		for i, cell := range row[:len(row)-1] {
			fmt.Fprint(w, Pad(cell, max(widths[i], Width(cell))), "  ")
		}
		fmt.Fprintln(w, row[len(row)-1])
	}
}

// Wrap breaks the lines of s at spaces, so that no line is wider than columns.
// Continuation lines are indented by indent spaces. A word that is longer than a line
// is not broken, so that an operator can copy it.
func Wrap(s string, columns, indent int) string { return wrap(s, columns, indent, false) }

// Fold is like Wrap, but also breaks long words. Use Fold for hostile text.
func Fold(s string, columns, indent int) string { return wrap(s, columns, indent, true) }

func wrap(s string, columns, indent int, fold bool) string {
	if utf8.RuneCountInString(s) <= columns/2 && !strings.Contains(s, "\n") {
		return s
	}
	var out strings.Builder
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			out.WriteByte('\n')
		}
		for Width(line) > columns {
			end, next := breakPoint(line, columns, fold)
			if next == len(line) {
				line = line[:end] // without a space at the end
				break
			}
			out.WriteString(strings.TrimRight(line[:end], " ") + "\n")
			line = strings.Repeat(" ", indent) + line[next:]
		}
		out.WriteString(line)
	}
	return out.String()
}

// breakPoint returns the position at which to break a line that is wider than
// columns. The first part ends at index end, and the next line starts at index
// next.
func breakPoint(line string, columns int, fold bool) (end, next int) {
	begin := len(line) - len(strings.TrimLeft(line, " "))
	w, full, space := 0, len(line), 0
	for i, r := range line {
		if r == ' ' && i > begin {
			space = i
		}
		if w+runeWidth(r) > columns {
			full = i
			break
		}
		w += runeWidth(r)
	}
	switch {
	case fold && space <= full/2:
		return full, full
	case space > 0:
		return space, space + 1
	}
	if i := strings.IndexByte(line[full:], ' '); i >= 0 {
		return full + i, full + i + 1
	}
	return len(line), len(line)
}
