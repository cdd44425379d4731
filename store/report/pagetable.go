package report

import (
	"cmp"
	"slices"
	"strings"

	"scanwatch/internal/text"
)

const (
	maxRows    = 1_000 // rows of a table on the page
	firstRows  = 10    // rows that are shown first
	fewRows    = 5     // rows that need no filter
	maxFilters = 10    // page.html has a style rule for each filter
)

// A table holds the rows and filters of a table on the page.
type table struct {
	Caption string // description for screen readers
	Heads   []head
	Rows    []tableRow
	Filters []filter // the first is active
	More    int
	Wide    bool   // the table has many columns, so each row is a card on narrow screens
	Empty   string // replaces a table without rows
}

// A head is the heading of a column.
type head struct {
	Text    string
	Numeric bool
}

type tableRow struct {
	Marks []int // the filters that show the row
	Cells []cell
}

// A cell holds the text of a table cell. Sub is a second line of text. Width
// and Found are the lengths of bars as percentages, or empty. A Long cell uses
// the full width of narrow screens.
type cell struct {
	Text, Sub    string
	Code         bool
	Time, Long   bool
	Width, Found string
	Level        string // shade of the cell; empty: none
}

// A filter shows only the rows that have its mark.
type filter struct {
	Text string
	Rows int
}

// heads returns the headings of columns. The name of a numeric column starts with #.
func heads(names ...string) (all []head) {
	for _, n := range names {
		all = append(all, head{strings.TrimPrefix(n, "#"), strings.HasPrefix(n, "#")})
	}
	return all
}

// add adds a row of cells, texts and numbers. If kind is not empty, it names the row's
// filter.
func (t *table) add(kind string, cells ...any) {
	if len(t.Rows) == maxRows {
		t.More++
		return
	}
	r := tableRow{}
	for _, c := range cells {
		switch c := c.(type) {
		case cell:
			r.Cells = append(r.Cells, c)
		case string:
			r.Cells = append(r.Cells, cell{Text: c})
		case int:
			r.Cells = append(r.Cells, cell{Text: text.Thousands(c)})
		}
	}
	t.Rows = append(t.Rows, r)
	if kind != "" {
		t.mark(kind)
	}
}

// mark adds the last row to a filter. Filters beyond maxFilters are omitted.
func (t *table) mark(kind string) {
	i := slices.IndexFunc(t.Filters, func(f filter) bool { return f.Text == kind })
	if i < 0 {
		i = len(t.Filters)
		t.Filters = append(t.Filters, filter{Text: kind})
	}
	t.Filters[i].Rows++
	last := &t.Rows[len(t.Rows)-1]
	last.Marks = append(last.Marks, i)
}

// filter completes the filters for the first rows, for all rows, and for the most
// frequent marks. A short table has no filters.
func (t *table) filter(first int) {
	if len(t.Rows) <= fewRows {
		t.Filters = nil
		for i := range t.Rows {
			t.Rows[i].Marks = nil
		}
		return
	}
	marks := make([]int, len(t.Filters)) // the marks, the most frequent first
	for i := range marks {
		marks[i] = i
	}
	slices.SortStableFunc(marks, func(a, b int) int { return cmp.Compare(t.Filters[b].Rows, t.Filters[a].Rows) })
	filters := []filter{{"all", len(t.Rows)}}
	if len(t.Rows) > first {
		filters = []filter{{"first", first}, {"all", len(t.Rows)}}
	}
	fixed := len(filters)
	numbers := map[int]int{}
	for _, m := range marks[:min(len(marks), maxFilters-fixed)] {
		if t.Filters[m].Rows < len(t.Rows) {
			numbers[m] = len(filters)
			filters = append(filters, t.Filters[m])
		}
	}
	for i := range t.Rows {
		var of []int
		if i < first {
			of = append(of, 0)
		}
		if fixed == 2 {
			of = append(of, 1)
		}
		for _, m := range t.Rows[i].Marks {
			if n, ok := numbers[m]; ok {
				of = append(of, n)
			}
		}
		t.Rows[i].Marks = of
	}
	t.Filters = filters
	if len(filters) < 2 {
		t.Filters = nil
	}
}

// bar adds a row with a bar for value and a shorter bar for found. A value
// equal to top has a bar of full length.
func (t *table) bar(name, sub string, value, found, top int, further ...any) {
	c := cell{Text: name, Sub: sub, Width: text.Percent(value, max(top, 1), 1), Found: text.Percent(found, max(top, 1), 1)}
	t.add("", append([]any{c}, further...)...)
}
