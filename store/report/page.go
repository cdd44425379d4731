package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"time"

	"scanwatch/internal/text"
)

// pageText is the page's template, which has no scripts and no external
// references.
//
//go:embed page.html
var pageText string

// Layouts of times on the page.
const (
	minuteTime = "2006-01-02 15:04"
	pageTime   = "Mon 2 Jan 2006 15:04"
)

// stamp formats a time in a table, omitting the year if it equals the
// page's year.
func (p *Page) stamp(t time.Time, zone *time.Location) cell {
	layout := "2 Jan 15:04"
	if t = t.In(zone); t.Year() != p.Until.In(zone).Year() {
		layout = "2 Jan 2006 15:04"
	}
	return cell{Text: t.Format(layout), Time: true}
}

// view holds the data for the template. All text is printable, and the template escapes
// it.
type view struct {
	Server, From, To, Made string
	Mode, Site             string
	Troubles               []string // problems and notes
	Doubts                 string   // hosts with possible false positives
	Fine                   string   // set if there are neither problems nor doubts
	Tiles                  []tile
	Compared               string // the other period, or the reason for omitting the comparison
	Compare                *table // nil: omitted
	Sections               []pageSection
	NotListed              map[string]int
	Foot                   string
}

// A tile is a headline number.
type tile struct {
	Value, Name string
	Change      string // since the previous period
	Also        string
	Hot         bool
}

// A pageSection is a section of the page. Exactly one of Time, Week and Table
// is set.
type pageSection struct {
	ID, Title string
	Notes     []string
	Half      bool // two such sections are side by side on wide screens
	Decisions bool // shows the mode
	Time      *timeChart
	Week      *weekChart
	Table     *table
}

// HTML writes the page. The page contains no scripts, fonts, images or external
// references. Times are in zone.
func (p *Page) HTML(w io.Writer, zone *time.Location) error {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return fmt.Errorf("parse the page's template: %w", err)
	}
	var b bytes.Buffer // a failed template must not cause partial output
	if err := t.Execute(&b, p.view(zone)); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	_, err = b.WriteTo(w)
	return err
}

func (p *Page) view(zone *time.Location) *view {
	s := p.Summary
	v := &view{
		Server: p.Site.Server, Mode: p.Site.Mode, Site: p.Site.String(), Troubles: troubles(s), NotListed: s.NotListed,
		From: s.Since.In(zone).Format(pageTime), To: s.Until.In(zone).Format(pageTime + " -0700"),
		Made:  p.Site.Made.In(zone).Format(pageTime + " -0700"),
		Tiles: p.tiles(),
		Foot: fmt.Sprintf("Charts and lists cover unauthenticated hosts. %s and %s are only counted.",
			text.Plural(s.Authenticated.Sessions, "authenticated session"), text.Plural(s.Local.Sessions, "local session")),
	}
	if v.Doubts = s.SuspectHosts.String(); v.Doubts == "" && len(v.Troubles) == 0 {
		v.Fine = "No problems: the filter is running, and this report is complete. There are no possible false positives."
	}
	v.Compared, v.Compare = p.comparison(zone)
	add := func(all ...pageSection) {
		for _, c := range all {
			if c.Time != nil || c.Week != nil || c.Table != nil && (len(c.Table.Rows) > 0 || c.Table.Empty != "") {
				v.Sections = append(v.Sections, c)
			}
		}
	}
	add(p.suspects(zone), pageSection{ID: "time", Title: timeTitle(s), Time: s.timeChart(zone)})
	add(p.scanning(zone), p.goodMail(zone), p.bans(zone), p.rejections(zone))
	add(pageSection{ID: "week", Title: "Findings by weekday and hour", Week: newWeekChart(s.Hours),
		Notes: []string{"Sessions with findings, in local time."}})
	add(p.counted()...)
	add(p.attacks(zone)...)
	add(p.rules(), p.returns(zone))
	return v
}

// period formats a period with the UTC offset at its end.
func period(since, until time.Time, zone *time.Location) string {
	return since.In(zone).Format(pageTime) + " to " + until.In(zone).Format(pageTime+" -0700")
}

// tiles returns the headline numbers. If the previous period is known, each number
// shows its change.
func (p *Page) tiles() []tile {
	s := p.Summary
	now, before := FiguresOf(s), p.Before.Figures
	one := func(name string, n, earlier int) tile {
		t := tile{Value: text.Thousands(n), Name: name}
		if p.compares() {
			t.Change = change(n, earlier)
		}
		return t
	}
	sources := one("sources", now.Addresses, before.Addresses)
	if s.AddressesError > 0 {
		sources.Value, sources.Name = "≈ "+text.Thousands(s.about()), fmt.Sprintf("sources, within %d %%", s.AddressesError)
	}
	found := one("sessions with findings", now.Found, before.Found)
	found.Hot = now.Found > 0
	rejected := one("sessions rejected", now.Refused, before.Refused)
	switch {
	case now.Observed > 0 && now.Refused == 0:
		rejected = one("sessions would be rejected", now.Observed, before.Observed)
	case now.Observed > 0:
		rejected.Also = text.Thousands(now.Observed) + " more would be rejected"
	}
	return []tile{one("sessions of other hosts", now.Sessions, before.Sessions), sources, found, rejected,
		one("messages accepted", now.Mails, before.Mails), one("recipients rejected", now.RcptPermfail, before.RcptPermfail)}
}

// compares reports whether the page compares the period with the previous one.
func (p *Page) compares() bool { return p.Before.Missing == "" && !p.Before.Until.IsZero() }

// change formats the change in a number as a signed difference and a percentage.
func change(now, before int) string {
	if now == before {
		return "±0"
	}
	sign, diff := "+", now-before
	if diff < 0 {
		sign, diff = "−", -diff
	}
	c := sign + text.Thousands(diff)
	if before == 0 {
		return c
	}
	share := 100 * float64(diff) / float64(before)
	if share < 0.5 {
		return c + " (<1 %)"
	}
	return c + " (" + sign + text.Thousands(int(math.Round(share))) + " %)"
}

// comparison returns a sentence about the previous period and a table of its
// figures.
func (p *Page) comparison(zone *time.Location) (string, *table) {
	b := &p.Before
	if b.Missing != "" {
		return "No comparison with the previous period: " + b.Missing + ".", nil
	}
	if !p.compares() {
		return "", nil
	}
	t := &table{Caption: "Comparison with the previous period", Heads: heads("", "#this period", "#previous period", "#change")}
	now, before := FiguresOf(p.Summary), b.Figures
	for _, c := range []struct {
		name        string
		now, before int
	}{
		{"sessions of other hosts", now.Sessions, before.Sessions}, {"sources", now.Addresses, before.Addresses},
		{"sessions with findings", now.Found, before.Found}, {"sessions rejected", now.Refused, before.Refused},
		{"sessions that would be rejected", now.Observed, before.Observed}, {"messages accepted", now.Mails, before.Mails},
		{"recipients rejected", now.RcptPermfail, before.RcptPermfail},
	} {
		if c.now+c.before > 0 {
			t.add("", c.name, c.now, c.before, change(c.now, c.before))
		}
	}
	return "Changes are relative to " + period(b.Since, b.Until, zone) + ".", t
}

// decided returns the names of the columns for rejected sessions. Empty columns are
// omitted.
func decided(refused, observed bool) (columns []string) {
	if refused {
		columns = append(columns, "#rejected")
	}
	if observed {
		columns = append(columns, "#would be rejected")
	}
	return columns
}
