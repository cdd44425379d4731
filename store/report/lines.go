package report

import (
	"fmt"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// lines collects lines of text with a limited width.
type lines struct {
	strings.Builder
	style text.Style
	zone  *time.Location
}

// plainLines returns lines of the given width without colours.
func plainLines(columns int, zone *time.Location) *lines {
	return &lines{style: text.Style{Columns: columns}, zone: zone}
}

// section starts a section of n lines. If n is 0, it writes nothing and returns false.
func (l *lines) section(title string, n int) bool {
	if n > 0 {
		l.WriteString("\n" + l.style.Title(title) + "\n")
	}
	return n > 0
}

// para wraps s into lines. All lines after the first are indented.
func (l *lines) para(s string, indent int) {
	l.WriteString(text.Fold(s, l.style.Columns, indent))
	l.WriteByte('\n')
}

// row writes one line, truncated to the width.
func (l *lines) row(format string, args ...any) {
	l.WriteString(text.Cut(strings.TrimRight(fmt.Sprintf(format, args...), " "), l.style.Columns))
	l.WriteByte('\n')
}

// problems writes the section of problems.
func (l *lines) problems(all []string) {
	if len(all) == 0 {
		return
	}
	l.WriteString("\n" + l.style.Alarm("Problems") + "\n")
	for _, p := range all {
		l.para("  ! "+p, 4)
	}
}

// more writes a line with the number of omitted lines.
func (l *lines) more(n int) {
	if n > 0 {
		fmt.Fprintf(l, "  and %d more\n", n)
	}
}

// at formats a time in the period, including the month and day.
func (l *lines) at(t time.Time) string { return t.In(l.zone).Format("01-02 15:04") }

// table writes rows with aligned columns within the width of the lines.
func (l *lines) table(rows [][]string) { l.style.Table(l, rows) }
