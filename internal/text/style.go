package text

import (
	"fmt"
	"io"
	"strings"
)

// A Style determines the output's width and whether colours are used.
type Style struct {
	Columns int
	Colour  bool
}

// ECMA-48 sequences for attributes and colours. The colours come from the terminal's
// palette, so they suit dark and light backgrounds.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

const esc = 0x1b // the first byte of each sequence

var sequences = []string{bold, red, yellow, reset}

// Title styles a heading.
func (s Style) Title(text string) string { return s.paint(bold, text) }

// Alarm styles text about a problem.
func (s Style) Alarm(text string) string { return s.paint(red, text) }

// Notice styles text that needs attention.
func (s Style) Notice(text string) string { return s.paint(yellow, text) }

func (s Style) paint(sequence, text string) string {
	if !s.Colour || text == "" {
		return text
	}
	return sequence + text + reset
}

// continued indents a continuation line of a row.
const continued = "             "

// minWide is the width of a cell up to which the cell always widens its column.
const minWide = 15

// Table writes rows with aligned columns. If a row is too wide, its last cells
// continue on the following lines. The first row holds the headings; headings
// that do not fit are omitted. A single wide cell, such as an IPv6 address, does
// not widen its column, because then the cells of all rows would continue on
// other lines.
func (s Style) Table(w io.Writer, rows [][]string) {
	var b strings.Builder
	table(&b, rows, max(s.Columns/3, minWide))
	for i, line := range strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n") {
		line = strings.TrimRight(line, " ")
		n := len(rows[i]) // number of cells in the first line
		for ; n > 1 && Width(line) > s.Columns; n-- {
			line = strings.TrimRight(strings.TrimSuffix(line, strings.TrimRight(rows[i][n-1], " ")), " ")
		}
		fmt.Fprintln(w, Cut(line, s.Columns))
		if i == 0 {
			continue
		}
		line = ""
		for _, cell := range rows[i][n:] {
			if line != "" && Width(line+"  "+strings.TrimRight(cell, " ")) > s.Columns {
				fmt.Fprintln(w, Cut(strings.TrimRight(line, " "), s.Columns))
				line = ""
			}
			if line == "" {
				line = continued + cell
			} else {
				line += "  " + cell
			}
		}
		if line = strings.TrimRight(line, " "); line != "" {
			fmt.Fprintln(w, Cut(line, s.Columns))
		}
	}
}
