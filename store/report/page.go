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

	"scanwatch/internal/text"
	"scanwatch/rules"
)

// pageText is the template of the page. It has no script and no external reference.
//
//go:embed page.html
var pageText string

// Heights in the charts, in CSS pixels. Widths are in percent, so that text keeps
// its size on a phone.
const (
	plotHeight = 170
	barRow     = 36 // a label and the bar below it
	barTop     = 20 // distance from the top of the row to the bar
	heatRow    = 50
	heatHead   = 22
	labelRunes = 36 // maximum length of a bar's label; the table has the full text
	chartRows  = 10
)

// page is the data of the template, which escapes all texts. The texts are
// printable.
type page struct {
	*Summary
	Troubles []string // problems and notes
	Period   string
	Tiles    []tile
	Doubtful []suspectRow
	Time     *timeChart // nil without sessions
	Bars     []barChart
	Heat     *heatChart // nil without findings
	Orgs     []barChart
	Lists    []list
}

type tile struct {
	Value, Name string
	Hot         bool
}

type suspectRow struct {
	SuspectRefusal
	What, When string
	Accepted   string // number of messages; empty for 0
}

// A timeChart has a bar for each span of time.
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
	Y, Height   string // sessions without findings
	YF, HeightF string // sessions with findings
	Title       string
}

type timeLabel struct {
	X, Text string
	Wide    bool // shown on wide screens only
}

// A barChart has a bar for each name.
type barChart struct {
	ID, Title, Desc string
	Parts           bool // a part of each bar shows the sessions with findings
	Height          int
	Bars            []nameBar
	Table           table
}

type nameBar struct {
	Label, Value       string
	TextY, Y           int
	Width, Found, Full string
}

// A heatChart has a cell for each row and period.
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
	Heads []string // numeric columns start with #
	Rows  [][]string
	More  int
}

// Numeric reports whether a column is numeric.
func (t *table) Numeric(column int) bool { return strings.HasPrefix(t.Heads[column], "#") }

// Head returns the heading of a column.
func (t *table) Head(column int) string { return strings.TrimPrefix(t.Heads[column], "#") }

// HTML writes the summary as a page without scripts, fonts, images or external
// references. It includes returns unless that is nil. Times are in zone.
func (s *Summary) HTML(w io.Writer, returns *ReturnSummary, zone *time.Location) error {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return fmt.Errorf("parse the template of the page: %w", err)
	}
	const layout = "2006-01-02 15:04"
	p := &page{
		Summary:  s,
		Troubles: troubles(s),
		Period:   s.Since.In(zone).Format(layout) + " to " + s.Until.In(zone).Format(layout+" -0700"),
		Tiles: []tile{
			{text.Thousands(s.Remote.Sessions), "sessions of other hosts", false},
			s.addressTile(),
			{text.Thousands(s.Remote.Found), "sessions with findings", s.Remote.Found > 0},
			{text.Thousands(s.Remote.Refused), "sessions rejected", false},
			{text.Thousands(s.Remote.Mails), "messages accepted", false},
			{text.Thousands(s.Remote.RcptPermfail), "recipients rejected", false},
		},
		Time: s.timeChart(zone),
		Heat: returns.heatChart(zone),
	}
	for _, d := range s.Suspects {
		one := suspectRow{SuspectRefusal: d, What: d.refusals(), When: d.Last.In(zone).Format(layout)}
		if d.Mails > 0 {
			one.Accepted = text.Plural(d.Mails, "message")
		}
		p.Doubtful = append(p.Doubtful, one)
	}
	p.Bars, p.Orgs = s.barCharts()
	p.Lists = s.lists()
	var b bytes.Buffer // a failed template must not cause partial output
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	_, err = b.WriteTo(w)
	return err
}

// addressTile returns the tile of the number of addresses.
func (s *Summary) addressTile() tile {
	if s.AddressesError == 0 {
		return tile{text.Thousands(s.Addresses), "addresses", false}
	}
	return tile{text.Thousands(s.about()), fmt.Sprintf("addresses (about, within %d %%)", s.AddressesError), false}
}

// ceiling returns a round number of at least n. Its half is also round.
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
	layout, each := "2006-01-02", "per span"
	step := 24 * time.Hour
	if n := len(s.Timeline); n > 1 {
		step = s.Timeline[1].Start.Sub(s.Timeline[0].Start.Time)
	} else if s.Until.Sub(s.Since.Time) < 24*time.Hour {
		step = time.Hour
	}
	switch {
	case step < 20*time.Hour:
		layout = "2006-01-02 15:04"
		each = "per " + strings.TrimSuffix(strings.TrimSuffix(step.String(), "0s"), "0m")
		if step == time.Hour {
			each = "per hour"
		} else if step == quarter {
			each = "per quarter of an hour"
		}
	case step < 30*time.Hour: // a day may have 25 hours
		each = "per day"
	case step < 8*24*time.Hour:
		each = "per week"
	default:
		each = "per four weeks"
	}
	c := &timeChart{ID: "time", Title: "Sessions " + each, Height: plotHeight + 24,
		Desc: fmt.Sprintf("Sessions of other hosts %s, and those with findings. Maximum: %s with %s, %s with findings.", each,
			busiest.Start.In(zone).Format(layout), text.Plural(busiest.Sessions, "session"), text.Thousands(busiest.Found)),
		Table: table{Heads: []string{"from", "#sessions", "#with findings", "#rejected"}},
	}
	for _, n := range []int{0, top / 2, top} {
		c.Grid = append(c.Grid, gridLine{strconv.Itoa(plotHeight - plotHeight*n/top), text.Thousands(n)})
	}
	pixels := func(n int) float64 { return plotHeight * float64(n) / float64(top) }
	decimal := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
	n := len(s.Timeline)
	for i, span := range s.Timeline {
		calm, hot := pixels(span.Sessions-span.Found), pixels(span.Found)
		if span.Sessions > 0 {
			c.Bars = append(c.Bars, timeBar{
				X: text.Percent(100*i+10, 100*n, 2), Width: text.Percent(80, 100*n, 2),
				Y: decimal(plotHeight - hot - calm), Height: decimal(calm), YF: decimal(plotHeight - hot), HeightF: decimal(hot),
				Title: fmt.Sprintf("%s: %s, %d with findings", span.Start.In(zone).Format(layout), text.Plural(span.Sessions, "session"), span.Found),
			})
		}
		c.Table.Rows = append(c.Table.Rows, []string{span.Start.In(zone).Format(layout), text.Thousands(span.Sessions), text.Thousands(span.Found), text.Thousands(span.Refused)})
	}
	c.Labels = timeLabels(s.Timeline, step, zone)
	return c
}

// timeLabels returns at most ten labels, half of them for narrow screens. Spans of
// hours have labels at round hours.
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

// barCharts returns the charts of evidence and networks, and the chart of
// organisations.
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
			c.Bars = append(c.Bars, nameBar{Label: text.Cut(label, labelRunes), Full: label, Value: text.Thousands(value), TextY: i*barRow + 13, Y: i*barRow + barTop,
				Width: text.Percent(value, top, 2), Found: text.Percent(found, top, 2)})
		}
		c.Height = len(c.Bars) * barRow
		first, value, _ := bar(0)
		c.Desc = fmt.Sprintf("%s. The longest of %d bars is %s with %s.", c.Title, len(c.Bars), first, text.Plural(value, "session"))
		*to = append(*to, c)
	}
	evidence := barChart{ID: "evidence", Title: "Sessions by evidence", Table: table{Heads: []string{"evidence", "meaning: the host", "#sessions"}}}
	for _, e := range s.Evidence {
		means := ""
		if t := rules.TokenByName(e.Name); t != nil {
			means = t.Means
		}
		evidence.Table.Rows = append(evidence.Table.Rows, []string{e.Name, means, text.Thousands(e.Sessions)})
	}
	add(&charts, evidence, len(s.Evidence), func(i int) (string, int, int) {
		return s.Evidence[i].Name, s.Evidence[i].Sessions, s.Evidence[i].Sessions
	})

	byOrg := barChart{ID: "organisations", Title: "Sessions by organisation", Table: table{Heads: []string{"organisation", "evidence", "#sessions"}, More: s.More["organisations"]}}
	for _, o := range s.Organisations {
		byOrg.Table.Rows = append(byOrg.Table.Rows, []string{o.Name, o.Evidence, text.Thousands(o.Sessions)})
	}
	add(&orgs, byOrg, len(s.Organisations), func(i int) (string, int, int) {
		return s.Organisations[i].Name, s.Organisations[i].Sessions, s.Organisations[i].Sessions
	})

	nets := barChart{ID: "networks", Title: "Sessions by network", Parts: true, Table: table{Heads: []string{"network", "#addresses", "#sessions", "#with findings"}, More: s.More["networks"]}}
	for _, n := range s.Networks {
		nets.Table.Rows = append(nets.Table.Rows, []string{n.Prefix, text.Thousands(n.Addresses), text.Thousands(n.Sessions), text.Thousands(n.Found)})
	}
	add(&charts, nets, len(s.Networks), func(i int) (string, int, int) {
		return s.Networks[i].Prefix, s.Networks[i].Sessions, s.Networks[i].Found
	})
	return charts, orgs
}

// heatChart returns the chart of returning hosts.
func (r *ReturnSummary) heatChart(zone *time.Location) *heatChart {
	if r == nil || len(r.Rows) == 0 {
		return nil
	}
	c := &heatChart{ID: "returns", Title: "Returning hosts", Problems: r.Problems,
		Period: r.Since.In(zone).Format("2006-01-02 15:04") + " to " + r.Until.In(zone).Format("2006-01-02 15:04"),
		Table:  table{Heads: []string{"class", "#hosts"}}}
	n := len(returnSteps)
	for i, step := range returnSteps {
		c.Heads = append(c.Heads, timeLabel{X: text.Percent(2*i+1, 2*n, 2), Text: "within " + step.name})
		c.Table.Heads = append(c.Table.Heads, "#"+step.name)
	}
	c.Table.Heads = append(c.Table.Heads, "ban")
	for i := range r.Rows {
		row := &r.Rows[i]
		cells := []string{row.Of, text.Thousands(row.Hosts)}
		line := heatLine{Label: text.Cut(row.Of, labelRunes) + ", " + text.Plural(row.Hosts, "host"), TextY: heatHead + len(c.Rows)*heatRow + 13, Y: heatHead + len(c.Rows)*heatRow + 19}
		for k, w := range row.Within {
			cell, share := heatCell{X: text.Percent(k, n, 2), Center: text.Percent(2*k+1, 2*n, 2), Text: "–"}, "–"
			if w.Watched > 0 {
				part := float64(w.Returned) / float64(w.Watched)
				share = strconv.FormatFloat(100*part, 'f', 0, 64) + "%"
				if w.Watched >= minHosts {
					cell.Known, cell.Text = true, share
					cell.Opacity = strconv.FormatFloat(0.06+0.5*part, 'f', 2, 64)
				}
			}
			line.Cells = append(line.Cells, cell)
			cells = append(cells, share)
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
	c.Desc = fmt.Sprintf("The share of banned hosts and hosts with findings that returned within 1 hour, 1 day, 7 days and 30 days. The first of %d rows covers %d hosts: %s.", len(c.Rows), first.Hosts, first.Of)
	c.Note = fmt.Sprintf("The shares are those of hosts that were watched for at least the given time; the chart shows shares of %d hosts or more. The ban in the table is the shortest after which fewer than %d%% more returned.", minHosts, int(fewMore*100))
	return c
}

// lists returns the lists that have no chart.
func (s *Summary) lists() (lists []list) {
	add := func(l list) {
		if len(l.Table.Rows) > 0 {
			lists = append(lists, l)
		}
	}
	rulesList := list{Title: "Rules", Open: true, Note: "Sessions with a decision of a rule, enforced or observed; bans, and bans that were withheld.",
		Table: table{Heads: []string{"rule", "#enforced", "#observed", "#bans", "#exempt"}, More: s.More["rules"]}}
	for _, r := range s.Rules {
		rulesList.Table.Rows = append(rulesList.Table.Rows, []string{r.Rule, text.Thousands(r.Enforced), text.Thousands(r.Observed), text.Thousands(r.Bans), text.Thousands(r.Exempt)})
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
		return []string{text.Thousands(x.Sessions), text.Thousands(x.Found)}
	})
	helo := list{Title: "HELO names", Table: table{Heads: []string{"name", "#sessions"}, More: s.More["helo"]}}
	for _, h := range s.Helo {
		helo.Table.Rows = append(helo.Table.Rows, []string{h.Name, text.Thousands(h.Sessions)})
	}
	add(helo)
	attempts := func(title, note, which string, all []Attempt) {
		l := list{Title: title, Note: note, Table: table{Heads: []string{"address", "domains", "#sessions", "#rejected"}, More: s.More[which]}}
		for i := range all {
			a := &all[i]
			domains := slices.Clone(a.Domains)
			if n := a.domains - len(a.Domains); n > 0 {
				domains = append(domains, "+"+strconv.Itoa(n))
			}
			l.Table.Rows = append(l.Table.Rows, []string{a.Address, strings.Join(domains, " "), text.Thousands(a.Sessions), text.Thousands(a.Refused)})
		}
		add(l)
	}
	attempts("Directory harvests", fmt.Sprintf(harvestText, harvestFrom, harvestSlow), "harvest", s.Harvest)
	attempts("Relay probes", relayText, "relay", s.Relay)
	sources("AUTH brute force", "", "auth", s.Auth, []string{"#sessions", "#failed", "#rejected"}, func(x *Source) []string {
		return []string{text.Thousands(x.Sessions), text.Thousands(x.AuthFail), text.Thousands(x.AuthRefused)}
	})
	accounts := list{Title: "Accounts under attack", Open: true, Note: attackedText,
		Table: table{Heads: []string{"user", "#failed", "#networks", "#logins"}, More: s.More["attacked_accounts"]}}
	for i := range s.Attacked {
		u := &s.Attacked[i]
		accounts.Table.Rows = append(accounts.Table.Rows, []string{u.User, text.Thousands(u.Failed), u.networks(), text.Thousands(u.Logins)})
	}
	add(accounts)
	return lists
}
