package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/rules"
)

// pageText is the page. It has no script, and refers to nothing outside itself.
//
//go:embed page.html
var pageText string

// Measures of the charts in CSS pixels. What goes across is in percent, so that
// letters keep their size on a phone.
const (
	plotHeight = 170
	barRow     = 36 // for a label and the bar below it
	barTop     = 20 // of the bar in its row
	heatRow    = 50
	heatHead   = 22
	labelRunes = 36 // of the label of a bar; the table has it in full
	chartRows  = 10
)

// page is what the template shows. All texts are printable; the template quotes
// them for HTML.
type page struct {
	*Summary
	Troubles []string // problems, and what is not recorded one by one
	Period   string
	Tiles    []tile
	Doubtful []doubtRow
	Time     *timeChart // nil if there were no sessions
	Bars     []barChart
	Heat     *heatChart // nil if nobody was found
	Orgs     []barChart
	Lists    []list
}

type tile struct {
	Value, Name string
	Hot         bool
}

type doubtRow struct {
	Doubt
	What, When string
	Accepted   string // how many messages; empty if none
}

// A timeChart has a bar for each stretch of time.
type timeChart struct {
	ID, Title, Desc string
	Height          int
	Grid            []gridLine
	Bars            []timeBar
	Labels          []timeLabel
	Table           table
}

type gridLine struct {
	Y    string
	Text string
}

type timeBar struct {
	X, Width    string
	Y, Height   string // of the sessions without findings
	YF, HeightF string // of those with
	Title       string
}

type timeLabel struct {
	X, Text string
	Wide    bool // only where there is room
}

// A barChart has a bar for each name.
type barChart struct {
	ID, Title, Desc string
	Parts           bool // a part of each bar stands for the sessions with findings
	Height          int
	Bars            []nameBar
	Table           table
}

type nameBar struct {
	Label, Value       string
	TextY, Y           int
	Width, Found, Full string
}

// A heatChart has a cell for each row and time.
type heatChart struct {
	ID, Title, Desc string
	Height          int
	Heads           []timeLabel
	Rows            []heatLine
	Problems        []string
	Period          string
	Table           table
	Note            string
}

type heatLine struct {
	Label string
	TextY int
	Y     int
	Cells []heatCell
}

type heatCell struct {
	X, Center, Text string
	Opacity         string
	Known           bool
}

type list struct {
	Title, Note string
	Open        bool
	Table       table
}

type table struct {
	Heads []string // those of numbers begin with #
	Rows  [][]string
	More  int
}

// Numeric tells whether a column is one of numbers.
func (t *table) Numeric(column int) bool { return strings.HasPrefix(t.Heads[column], "#") }

// Head is what stands above a column.
func (t *table) Head(column int) string { return strings.TrimPrefix(t.Heads[column], "#") }

// HTML writes the summary, and who came back if that is not nil, as one page that
// needs nothing else: no script, no font, no image. Times are in zone.
func (s *Summary) HTML(w io.Writer, returns *ReturnSummary, zone *time.Location) error {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return fmt.Errorf("read the template of the page: %w", err)
	}
	const layout = "2006-01-02 15:04"
	p := &page{
		Summary:  s,
		Troubles: append(slices.Clone(s.Problems), s.sampled()...),
		Period:   s.Since.In(zone).Format(layout) + " to " + s.Until.In(zone).Format(layout+" -0700"),
		Tiles: []tile{
			{number3(s.Remote.Sessions), "sessions of other hosts", false},
			{number3(s.Addresses), "addresses", false},
			{number3(s.Remote.Found), "sessions with findings", s.Remote.Found > 0},
			{number3(s.Remote.Refused), "sessions turned away", false},
			{number3(s.Remote.Mails), "messages accepted", false},
			{number3(s.Remote.RcptPermfail), "recipients refused", false},
		},
		Time: s.timeChart(zone),
		Heat: returns.heatChart(zone),
	}
	for _, d := range s.Doubts {
		one := doubtRow{Doubt: d, What: d.refusals(), When: d.Last.In(zone).Format(layout)}
		if d.Mails > 0 {
			one.Accepted = plural(d.Mails, "message", "messages")
		}
		p.Doubtful = append(p.Doubtful, one)
	}
	p.Bars, p.Orgs = s.barCharts()
	p.Lists = s.lists()
	var b bytes.Buffer // so that nothing is written if the template fails
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("make the page: %w", err)
	}
	_, err = b.WriteTo(w)
	return err
}

// number3 writes n with its thousands divided.
func number3(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func percent(part, whole int) string {
	if whole <= 0 {
		return "0%"
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 2, 64) + "%"
}

// ceiling is a round number that is not below n, and its half is round as well.
func ceiling(n int) int {
	for unit := 1; ; unit *= 10 {
		for _, round := range []int{2, 4, 6, 8, 10} {
			if round*unit >= n {
				return round * unit
			}
		}
	}
}

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
	layout, each := "2006-01-02", "in each stretch of days"
	step := 24 * time.Hour
	if n := len(s.Timeline); n > 1 {
		step = s.Timeline[1].Start.Sub(s.Timeline[0].Start.Time)
	} else if s.Until.Sub(s.Since.Time) < 24*time.Hour {
		step = time.Hour
	}
	switch {
	case step < 20*time.Hour:
		layout = "2006-01-02 15:04"
		each = "every " + strings.TrimSuffix(strings.TrimSuffix(step.String(), "0s"), "0m")
		if step == time.Hour {
			each = "an hour"
		} else if step == quarter {
			each = "a quarter of an hour"
		}
	case step < 30*time.Hour: // a day may have 25 hours
		each = "a day"
	case step < 8*24*time.Hour:
		each = "a week"
	default:
		each = "four weeks"
	}
	c := &timeChart{ID: "time", Title: "Sessions " + each, Height: plotHeight + 24,
		Desc: fmt.Sprintf("Sessions of other hosts %s, with the part that had findings. Most came %s: %s, %s with findings.", each,
			busiest.Start.In(zone).Format(layout), plural(busiest.Sessions, "session", "sessions"), number3(busiest.Found)),
		Table: table{Heads: []string{"from", "#sessions", "#with findings", "#turned away"}},
	}
	for _, n := range []int{0, top / 2, top} {
		c.Grid = append(c.Grid, gridLine{strconv.Itoa(plotHeight - plotHeight*n/top), number3(n)})
	}
	pixels := func(n int) float64 { return plotHeight * float64(n) / float64(top) }
	text := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
	n := len(s.Timeline)
	for i, span := range s.Timeline {
		calm, hot := pixels(span.Sessions-span.Found), pixels(span.Found)
		if span.Sessions > 0 {
			c.Bars = append(c.Bars, timeBar{
				X: percent(100*i+10, 100*n), Width: percent(80, 100*n),
				Y: text(plotHeight - hot - calm), Height: text(calm), YF: text(plotHeight - hot), HeightF: text(hot),
				Title: fmt.Sprintf("%s: %s, %d with findings", span.Start.In(zone).Format(layout), plural(span.Sessions, "session", "sessions"), span.Found),
			})
		}
		c.Table.Rows = append(c.Table.Rows, []string{span.Start.In(zone).Format(layout), number3(span.Sessions), number3(span.Found), number3(span.Refused)})
	}
	c.Labels = timeLabels(s.Timeline, step, zone)
	return c
}

// timeLabels chooses which bars are labelled: at most ten, and of these every
// second one where there is little room. Hours are labelled where the clock is round.
func timeLabels(spans []Span, step time.Duration, zone *time.Location) (labels []timeLabel) {
	const most = 10
	n := len(spans)
	if step >= 20*time.Hour {
		stride := (n + most - 1) / most
		for i := 0; i < n; i += stride {
			labels = append(labels, timeLabel{percent(2*i+1, 2*n), spans[i].Start.In(zone).Format("2 Jan"), i/stride%2 == 1})
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
		if clock%wide >= step {
			continue
		}
		text := at.Format("15:04")
		if clock < step {
			text = at.Format("2 Jan")
		}
		labels = append(labels, timeLabel{percent(i, n), text, clock%narrow >= step})
	}
	return labels
}

// barCharts makes the charts of what was found and from which networks, and that
// of organisations, as far as there are any.
func (s *Summary) barCharts() (charts, orgs []barChart) {
	add := func(to *[]barChart, c barChart, n int, bar func(i int) (label string, value, found int)) {
		if n == 0 {
			return
		}
		top := 0
		for i := range n {
			_, value, _ := bar(i)
			top = max(top, value)
		}
		for i := range min(n, chartRows) {
			label, value, found := bar(i)
			c.Bars = append(c.Bars, nameBar{Label: cut(label, labelRunes), Full: label, Value: number3(value), TextY: i*barRow + 13, Y: i*barRow + barTop,
				Width: percent(value, top), Found: percent(found, top)})
		}
		c.Height = len(c.Bars) * barRow
		first, value, _ := bar(0)
		c.Desc = fmt.Sprintf("%s. The longest of %d bars is %s with %s.", c.Title, len(c.Bars), first, plural(value, "session", "sessions"))
		*to = append(*to, c)
	}
	evidence := barChart{ID: "evidence", Title: "Sessions by what was found", Table: table{Heads: []string{"evidence", "the host", "#sessions"}}}
	for _, e := range s.Evidence {
		means := ""
		if t := rules.TokenByName(e.Name); t != nil {
			means = t.Means
		}
		evidence.Table.Rows = append(evidence.Table.Rows, []string{e.Name, means, number3(e.Sessions)})
	}
	add(&charts, evidence, len(s.Evidence), func(i int) (string, int, int) {
		return s.Evidence[i].Name, s.Evidence[i].Sessions, s.Evidence[i].Sessions
	})

	byOrg := barChart{ID: "organisations", Title: "Sessions by organisation", Table: table{Heads: []string{"organisation", "found as", "#sessions"}, More: s.More["organisations"]}}
	for _, o := range s.Organisations {
		byOrg.Table.Rows = append(byOrg.Table.Rows, []string{o.Name, o.Evidence, number3(o.Sessions)})
	}
	add(&orgs, byOrg, len(s.Organisations), func(i int) (string, int, int) {
		return s.Organisations[i].Name, s.Organisations[i].Sessions, s.Organisations[i].Sessions
	})

	nets := barChart{ID: "networks", Title: "Sessions by network", Parts: true, Table: table{Heads: []string{"network", "#addresses", "#sessions", "#with findings"}, More: s.More["networks"]}}
	for _, n := range s.Networks {
		nets.Table.Rows = append(nets.Table.Rows, []string{n.Prefix, number3(n.Addresses), number3(n.Sessions), number3(n.Found)})
	}
	add(&charts, nets, len(s.Networks), func(i int) (string, int, int) {
		return s.Networks[i].Prefix, s.Networks[i].Sessions, s.Networks[i].Found
	})
	return charts, orgs
}

// heatChart shows the shares of hosts that came back.
func (r *ReturnSummary) heatChart(zone *time.Location) *heatChart {
	if r == nil || len(r.Rows) == 0 {
		return nil
	}
	c := &heatChart{ID: "returns", Title: "Hosts that came back", Problems: r.Problems,
		Period: r.Since.In(zone).Format("2006-01-02 15:04") + " to " + r.Until.In(zone).Format("2006-01-02 15:04"),
		Table:  table{Heads: []string{"hosts that were", "#hosts"}}}
	n := len(returnSteps)
	for i, step := range returnSteps {
		c.Heads = append(c.Heads, timeLabel{X: percent(2*i+1, 2*n), Text: "within " + step.name})
		c.Table.Heads = append(c.Table.Heads, "#"+step.name)
	}
	c.Table.Heads = append(c.Table.Heads, "ban")
	for i := range r.Rows {
		row := &r.Rows[i]
		cells := []string{row.Of, number3(row.Hosts)}
		line := heatLine{Label: cut(row.Of, labelRunes) + ", " + plural(row.Hosts, "host", "hosts"), TextY: heatHead + len(c.Rows)*heatRow + 13, Y: heatHead + len(c.Rows)*heatRow + 19}
		for k, w := range row.Within {
			cell, text := heatCell{X: percent(k, n), Center: percent(2*k+1, 2*n), Text: "–"}, "–"
			if w.Watched > 0 {
				share := float64(w.Returned) / float64(w.Watched)
				text = strconv.FormatFloat(100*share, 'f', 0, 64) + "%"
				if w.Watched >= leastHosts {
					cell.Known, cell.Text = true, text
					cell.Opacity = strconv.FormatFloat(0.06+0.5*share, 'f', 2, 64)
				}
			}
			line.Cells = append(line.Cells, cell)
			cells = append(cells, text)
		}
		ban := row.Ban
		if row.AtLeast {
			ban = "≥ " + ban
		}
		c.Table.Rows = append(c.Table.Rows, append(cells, ban))
		if len(c.Rows) < chartRows {
			c.Rows = append(c.Rows, line)
		}
	}
	c.Height = heatHead + len(c.Rows)*heatRow
	first := r.Rows[0]
	c.Desc = fmt.Sprintf("Of hosts that were banned or found, the share that came back within 1 hour, 1 day, 7 days and 30 days. The first of %d rows is about %d hosts: %s.", len(c.Rows), first.Hosts, first.Of)
	c.Note = fmt.Sprintf("Shares are of the hosts that were first found long enough ago to know; the chart has those of %d hosts or more. The ban that is suggested in the table is the shortest after which fewer than %d%% more came back.", leastHosts, int(fewMore*100))
	return c
}

// lists are those that have no chart.
func (s *Summary) lists() (lists []list) {
	add := func(l list) {
		if len(l.Table.Rows) > 0 {
			lists = append(lists, l)
		}
	}
	rulesList := list{Title: "Rules", Open: true, Note: "Sessions in which a rule decided, or would have; hosts that it banned, or spared.",
		Table: table{Heads: []string{"rule", "#done", "#observed", "#bans", "#spared"}, More: s.More["rules"]}}
	for _, r := range s.Rules {
		rulesList.Table.Rows = append(rulesList.Table.Rows, []string{r.Rule, number3(r.Done), number3(r.Observed), number3(r.Bans), number3(r.Spared)})
	}
	add(rulesList)
	sources := func(title, note, which string, all []Source, heads []string, numbers func(*Source) []string) {
		l := list{Title: title, Note: note, Table: table{Heads: append([]string{"address", "name"}, heads...), More: s.More[which]}}
		for i := range all {
			l.Table.Rows = append(l.Table.Rows, append([]string{all[i].Address, all[i].RDNS}, numbers(&all[i])...))
		}
		add(l)
	}
	sources("Sources", "", "sources", s.Sources, []string{"#sessions", "#findings"}, func(x *Source) []string {
		return []string{number3(x.Sessions), number3(x.Found)}
	})
	helo := list{Title: "HELO names", Table: table{Heads: []string{"name", "#sessions"}, More: s.More["helo"]}}
	for _, h := range s.Helo {
		helo.Table.Rows = append(helo.Table.Rows, []string{h.Name, number3(h.Sessions)})
	}
	add(helo)
	attempts := func(title, note, which string, all []Attempt) {
		l := list{Title: title, Note: note, Table: table{Heads: []string{"address", "domains", "#sessions", "#refused"}, More: s.More[which]}}
		for i := range all {
			a := &all[i]
			domains := slices.Clone(a.Domains)
			if n := a.domains - len(a.Domains); n > 0 {
				domains = append(domains, "+"+strconv.Itoa(n))
			}
			l.Table.Rows = append(l.Table.Rows, []string{a.Address, strings.Join(domains, " "), number3(a.Sessions), number3(a.Refused)})
		}
		add(l)
	}
	attempts("Harvest attempts", fmt.Sprintf("Hosts that tried %d or more unknown recipients in one session, in domains where recipients were accepted from other hosts.", harvestFrom), "harvest", s.Harvest)
	attempts("Relay attempts", "Recipients that were refused in domains where none was accepted from other hosts. The owners of these addresses are victims, not culprits.", "relay", s.Relay)
	sources("AUTH guessing", "", "auth", s.Auth, []string{"#sessions", "#failed", "#refused"}, func(x *Source) []string {
		return []string{number3(x.Sessions), number3(x.AuthFail), number3(x.AuthRefused)}
	})
	return lists
}
