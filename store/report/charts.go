package report

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"scanwatch/internal/text"
)

// plotHeight is the maximum height of a chart's bars in CSS pixels. Widths are
// percentages, so text has the same size on a phone.
const plotHeight = 150

// A timeChart has a bar for each span of time.
type timeChart struct {
	Title, Desc string
	Height      int
	Grid        []gridLine
	Bars        []timeBar
	Labels      []timeLabel
	Table       *table
}

type gridLine struct {
	Y    string
	Text string
}

type timeBar struct {
	X, Width    string
	Y, Height   string // sessions without findings
	YF, HeightF string // sessions with findings
	Title       string
}

type timeLabel struct {
	X, Text string
	Wide    bool // shown on wide screens only
}

// A weekChart has a cell for each hour of each day of the week. The shade is proportional
// to the square root of the session count, so that one attack does not hide all other
// hours.
type weekChart struct {
	Title, Desc string
	Height      int
	Labels      []timeLabel
	Days        []weekDay
	Most        string // session count of the darkest cell
	Table       *table
}

type weekDay struct {
	Name     string
	TextY, Y int
	Cells    []weekCell
}

type weekCell struct {
	X, Center   string
	Text, Title string
	Level       string // shade of the cell; empty if the hour is not in the period
}

// Heights of a weekChart's heading and rows in CSS pixels.
const (
	weekHead = 22
	weekRow  = 28
)

// shades is the number of shades for numbers above 0.
const shades = 5

// shade returns the shade for a share between 0 and 1. Only a share of 0 has shade 0.
func shade(share float64) int { return min(int(math.Ceil(share*shades)), shades) }

var weekDays = [...]string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

// newWeekChart returns the chart of the sessions with findings, or nil if there were no
// sessions.
func newWeekChart(h *Hours) *weekChart {
	if h == nil {
		return nil
	}
	most, day, hour := 0, 0, 0
	for d := range h {
		for i := range h[d] {
			if n := h[d][i].Found; n > most {
				most, day, hour = n, d, i
			}
		}
	}
	c := &weekChart{Title: "Sessions with findings by weekday and hour", Height: weekHead + len(h)*weekRow, Most: text.Thousands(most),
		Desc:  "No session had findings.",
		Table: &table{Caption: "Sessions with findings and all sessions by weekday and hour", Heads: heads("hour")}}
	if most > 0 {
		c.Desc = fmt.Sprintf("Maximum: %s from %02d:00 with %s.", weekDays[day], hour, text.Plural(most, "session"))
	}
	hours := len(h[0])
	for i := 0; i < hours; i += 3 {
		c.Labels = append(c.Labels, timeLabel{X: text.Percent(2*i+1, 2*hours, 2), Text: fmt.Sprintf("%02d", i)})
	}
	rows := make([][]any, hours)
	for i := range rows {
		rows[i] = []any{fmt.Sprintf("%02d:00", i)}
	}
	for d, name := range weekDays {
		y := weekHead + d*weekRow
		row := weekDay{Name: name, TextY: y + 18, Y: y}
		for i := range h[d] {
			n := &h[d][i]
			one := weekCell{X: text.Percent(i, hours, 3), Center: text.Percent(2*i+1, 2*hours, 3)}
			number := "–"
			if n.Covered {
				one.Level = strconv.Itoa(shade(math.Sqrt(float64(n.Found) / float64(max(most, 1)))))
				one.Title = fmt.Sprintf("%s from %02d:00: %s, %s with findings", name, i, text.Plural(n.Sessions, "session"), text.Thousands(n.Found))
				number = text.Thousands(n.Found) + " / " + text.Thousands(n.Sessions)
			}
			if n.Found > 0 {
				one.Text = short(n.Found)
			}
			row.Cells = append(row.Cells, one)
			rows[i] = append(rows[i], number)
		}
		c.Days = append(c.Days, row)
		c.Table.Heads = append(c.Table.Heads, head{name, true})
	}
	for _, r := range rows {
		c.Table.add("", r...)
	}
	return c
}

// short formats a number in at most four characters.
func short(n int) string {
	switch {
	case n < 1000:
		return strconv.Itoa(n)
	case n < 10_000:
		return strconv.FormatFloat(float64(n/100)/10, 'f', 1, 64) + "k"
	case n < 1_000_000:
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n/1_000_000) + "M"
}

// ceiling returns a round number that is at least n. Half of the result is also a round number.
func ceiling(n int) int {
	for unit := 1; ; unit *= 10 {
		for _, round := range []int{2, 4, 6, 8, 10} {
			if round*unit >= n {
				return round * unit
			}
		}
	}
}

// spanLength returns the length of a timeline span, a phrase for it such as "per hour",
// and the layout in which the start of a span is printed.
func spanLength(s *Summary) (step time.Duration, each, layout string) {
	step = 24 * time.Hour
	if n := len(s.Timeline); n > 1 {
		step = s.Timeline[1].Start.Sub(s.Timeline[0].Start.Time)
	} else if s.Until.Sub(s.Since.Time) < 24*time.Hour {
		step = time.Hour
	}
	switch {
	case step == quarter:
		return step, "per quarter of an hour", minuteTime
	case step < 20*time.Hour:
		return step, "per hour", minuteTime
	case step < 30*time.Hour: // a day may have 25 hours
		return step, "per day", "2006-01-02"
	case step < 8*24*time.Hour:
		return step, "per week", "2006-01-02"
	}
	return step, "per four weeks", "2006-01-02"
}

// timeTitle returns the title of the timeline.
func timeTitle(s *Summary) string {
	_, each, _ := spanLength(s)
	return "Sessions " + each
}

// timeChart returns the chart of the timeline, or nil if there were no sessions.
func (s *Summary) timeChart(zone *time.Location) *timeChart {
	if len(s.Timeline) == 0 {
		return nil
	}
	most, busiest := 0, s.Timeline[0]
	for _, span := range s.Timeline {
		if span.Sessions > most {
			most, busiest = span.Sessions, span
		}
	}
	top := ceiling(max(most, 1))
	step, each, layout := spanLength(s)
	c := &timeChart{Title: "Sessions " + each, Height: plotHeight + 24,
		Desc: fmt.Sprintf("Sessions of other hosts %s, and the share with findings. Maximum: %s with %s, %s with findings.", each,
			busiest.Start.In(zone).Format(layout), text.Plural(busiest.Sessions, "session"), text.Thousands(busiest.Found)),
		Table: &table{Caption: "Sessions " + each, Heads: heads("from", "#sessions", "#with findings", "#rejected")},
	}
	for _, n := range []int{0, top / 2, top} {
		c.Grid = append(c.Grid, gridLine{strconv.Itoa(plotHeight - plotHeight*n/top), text.Thousands(n)})
	}
	pixels := func(n int) float64 { return plotHeight * float64(n) / float64(top) }
	decimal := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
	n := len(s.Timeline)
	for i, span := range s.Timeline {
		calm, hot := pixels(span.Sessions-span.Found), pixels(span.Found)
		start := span.Start.In(zone).Format(layout)
		if span.Sessions > 0 {
			c.Bars = append(c.Bars, timeBar{
				X: text.Percent(100*i+12, 100*n, 2), Width: text.Percent(76, 100*n, 2),
				Y: decimal(plotHeight - hot - calm), Height: decimal(calm), YF: decimal(plotHeight - hot), HeightF: decimal(hot),
				Title: fmt.Sprintf("%s: %s, %s with findings", start, text.Plural(span.Sessions, "session"), text.Thousands(span.Found)),
			})
		}
		c.Table.add("", start, span.Sessions, span.Found, span.Refused)
	}
	c.Labels = timeLabels(s.Timeline, step, zone)
	return c
}

// timeLabels returns at most ten labels, half of which are shown on a narrow
// screen. Spans of hours have labels at round hours.
func timeLabels(spans []Span, step time.Duration, zone *time.Location) (labels []timeLabel) {
	const most = 10
	n := len(spans)
	if step >= 20*time.Hour {
		stride := (n + most - 1) / most
		for i := 0; i < n; i += stride {
			labels = append(labels, timeLabel{text.Percent(2*i+1, 2*n, 2), spans[i].Start.In(zone).Format("2 Jan"), i/stride%2 == 1})
		}
		return labels
	}
	strides := []time.Duration{time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour}
	fits := func(most int) time.Duration {
		for _, stride := range strides {
			if time.Duration(n)*step <= time.Duration(most)*stride {
				return stride
			}
		}
		return strides[len(strides)-1]
	}
	wide, narrow := fits(most), fits(most/2)
	for i, span := range spans {
		at := span.Start.In(zone)
		clock := time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
		newDay := clock < step
		if i > 0 { // a day may have no midnight, or two
			newDay = at.Day() != spans[i-1].Start.In(zone).Day()
		}
		label := at.Format("15:04")
		switch {
		case newDay:
			clock, label = 0, at.Format("2 Jan")
		case clock < step || clock%wide >= step:
			continue
		}
		labels = append(labels, timeLabel{text.Percent(i, n, 2), label, clock%narrow >= step})
	}
	return labels
}
