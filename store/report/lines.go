package report

import (
	"fmt"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// lines collects the lines of a text.
type lines struct {
	strings.Builder
	style text.Style
	zone  *time.Location
}

// plainLines returns lines of the given width without colours.
func plainLines(columns int, zone *time.Location) *lines {
	return &lines{style: text.Style{Columns: columns}, zone: zone}
}

// section begins a section if it has lines.
func (l *lines) section(title string, n int) bool {
	if n > 0 {
		l.WriteString("\n" + l.style.Title(title) + "\n")
	}
	return n > 0
}

// para writes s in several lines, indented after the first one.
func (l *lines) para(s string, indent int) {
	l.WriteString(text.Fold(s, l.style.Columns, indent))
	l.WriteByte('\n')
}

// row writes s in one line, which is cut at the width.
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

// more writes the number of omitted lines.
func (l *lines) more(n int) {
	if n > 0 {
		fmt.Fprintf(l, "  and %d more\n", n)
	}
}

// at returns a time of the period, with the day.
func (l *lines) at(t time.Time) string { return t.In(l.zone).Format("01-02 15:04") }

// table writes rows with aligned columns in the width of the lines.
func (l *lines) table(rows [][]string) { l.style.Table(l, rows) }
