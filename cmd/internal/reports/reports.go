// Package reports collects the data for Prometheus metrics and for reports on recorded
// sessions.
package reports

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
	"scanwatch/store/report"
)

// A Source describes the input of a report.
type Source struct {
	Dir      *statedir.Dir
	Selector *selector.Selector
	Zone     *time.Location
	Host     string // name of this machine; may be empty
	// Stale describes the downloads without a recent success.
	Stale []string
}

// ahead is the maximum time that a session may end in the future, because the clock may have been
// set back since. If a session ends even later, it was recorded with a wrong clock.
const ahead = 2 * 24 * time.Hour

// A period describes the selected records that were read.
type period struct {
	until    time.Time // at most now, or the end of the last session
	sessions int
	damaged  int // sessions with corrupt steps
	future   int // sessions ignored because they end in the future
}

// collect calls v for each selected record. v returns an error if a record's steps are corrupt.
// Sessions that were recorded with a wrong clock must not extend the period, which could then grow
// by years. Such sessions are ignored, unless the user has selected an end.
func (s *Source) collect(r *statedir.Records, v history.Visitor) (p period, err error) {
	now := s.Dir.Now()
	p.until = s.Selector.Until
	if p.until.IsZero() || p.until.After(now) {
		p.until = now
	}
	selected := func(visit func(*store.Record) error) func(*store.Record) error {
		return func(rec *store.Record) error {
			switch {
			case !s.Selector.Match(rec):
				return nil
			case s.Selector.Until.IsZero() && rec.End.After(now.Add(ahead)):
				p.future += rec.Many()
				return nil
			case rec.End.After(p.until):
				p.until = rec.End
			}
			p.sessions += rec.Many()
			if visit(rec) != nil {
				p.damaged += rec.Many()
			}
			return nil
		}
	}
	err = history.Walk(r, s.Selector.Since, s.Selector.Until,
		history.Visitor{Kinds: v.Kinds | s.Selector.Kinds(), Session: selected(v.Session), Sum: selected(v.Sum)})
	return p, err
}

// others returns the days with records, for a report without sessions. others returns "" if there are
// none.
func (s *Source) others() string {
	all, _ := store.Segments(s.Dir.Path) // an error is already a problem of the report
	all = slices.DeleteFunc(all, func(g store.Segment) bool { return g.Quarantined })
	if len(all) == 0 {
		return ""
	}
	first := all[0].Day.Format(time.DateOnly)
	return fmt.Sprintf("; there are records from %s to %s: use --since %[1]s", first, all[len(all)-1].Day.Format(time.DateOnly))
}

// gcPercent is below Go's default to save memory. Garbage collections are still rare, because a
// report keeps most of the memory that it allocates.
const gcPercent = 5

// A Report holds the counts for the selected sessions.
type Report struct {
	// Incomplete is set if files could not be read.
	Incomplete error

	source    *Source
	counts    *report.Collector
	until     time.Time
	problems  []string
	damaged   bool              // sessions or files are corrupt or missing
	days      []report.DayCount // counters for all sessions by day; nil if only some sessions are selected
	unwritten int
	site      report.Site
}

// Read counts the selected sessions. If no sessions are selected and quiet is not set,
// the report lists this as a problem.
func (s *Source) Read(quiet bool) (*Report, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	// Read the counters before the filter writes its records. Every counted session is then in the
	// records.
	days, dayProblem := s.Dir.Days()
	counted := s.Dir.Now()
	r, err := s.Dir.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	a := &Report{source: s, counts: report.NewCollector(memory.Number), site: s.site(nil)}
	var problems []string
	// Other problems already include the reason. If all records of a directory were imported, no
	// front end should be running.
	if r.Down != nil && len(r.Problems()) == 0 && control.LatestFrontEnd(s.Dir.Path).Name != "" {
		problems = append(problems, r.Down.Error())
	}
	if r.Client != nil {
		if status, err := r.Client.Status(); err == nil { // on error, problems reports it
			a.unwritten, a.site = int(status.Live.Summed), s.site(&status)
		}
	}
	a.counts.CountDays(counted, s.Dir.Now)
	opened := len(r.Problems())
	p, err := s.collect(r, a.counts.Visitor())
	if err != nil {
		return nil, err
	}
	a.until, a.Incomplete = p.until, r.Incomplete()
	a.damaged = p.damaged > 0 || len(r.Problems()) > opened || r.Dropped.Total() > 0
	problems = append(problems, r.Problems()...)
	problems = append(problems, s.problems(r.Client)...)
	problems = append(problems, s.Stale...)
	if dayProblem != nil {
		problems = append(problems, "daily counters unavailable: "+dayProblem.Error())
	}
	problems = append(problems, gaps(r, &p)...)
	if r.Unread == 0 && p.sessions == 0 && !quiet { // unreadable files may contain sessions
		problems = append(problems, "no sessions were recorded in this period"+s.others())
	}
	for i := range problems {
		problems[i] = text.Escape(problems[i])
	}
	a.problems = problems
	// The counters also include sessions in unreadable files. A comparison with the records is
	// possible only if all files are readable.
	if !s.Selector.Narrow() && r.Unread == 0 {
		a.days = []report.DayCount{}
		for i := range days {
			if end := s.Selector.Until; end.IsZero() || !days[i].Day.AddDate(0, 0, 1).After(end) {
				a.days = append(a.days, report.DayCount{Day: days[i].Day, Sessions: int(days[i].Of(memory.DaySessions)), Mails: int(days[i].Of(memory.DayMails))})
			}
		}
	}
	return a, nil
}

// Summary returns the report's summary. Lists have at most limit entries.
func (a *Report) Summary(limit int) *report.Summary {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	since := a.source.Selector.Since
	summary := a.counts.Summary(since.In(a.source.Zone), a.until, limit, a.problems)
	summary.Mode, summary.Policy = a.site.Mode, a.site.String()
	if bans, err := a.source.Dir.Bans(func(b *memory.Ban) bool { return !b.Expired(a.until) }); err == nil { // the page reports the error
		setBanned(summary.Scanning, bans)
	}
	if a.days != nil {
		summary.NotKept, summary.Unwritten = a.counts.Compare(a.days, since, a.unwritten), a.unwritten
	}
	return summary
}

// Summary reads the selected sessions and returns their summary. Lists have at most limit
// entries. incomplete is set if files could not be read.
func (s *Source) Summary(limit int, quiet bool) (summary *report.Summary, incomplete, err error) {
	a, err := s.Read(quiet)
	if err != nil {
		return nil, nil, err
	}
	return a.Summary(limit), a.Incomplete, nil
}

// gaps describes sessions that are missing from the report.
func gaps(r *statedir.Records, p *period) (problems []string) {
	if p.damaged > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions have damaged steps and are only counted", p.damaged))
	}
	if p.future > 0 {
		problems = append(problems, fmt.Sprintf("%s dated in the future and not in this report, because the clock was wrong; select them with --until, or remove their files",
			text.Plural(p.future, "session is", "sessions are")))
	}
	if n := r.Dropped.Total(); n > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions were dropped and are not in this report (%s)", n, r.Dropped))
	}
	return problems
}

// problems returns the problems in the running filter's status. It also reports a disk budget that
// is too small for the retention.
func (s *Source) problems(client *control.Client) (problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	limits := s.Dir.Limits()
	budget := limits.Budget
	if client != nil {
		status, err := client.Status()
		if err != nil {
			add("the filter does not report its status: %v", err)
		} else {
			budget = status.Store.Budget
			problems = append(problems, statusProblems(&status, s.Zone)...)
		}
	} else if loss := s.Dir.Loss(); loss != "" {
		problems = append(problems, loss)
	}
	all, err := store.Segments(s.Dir.Path)
	if err != nil || len(all) == 0 {
		return problems // reading the records returns the same error
	}
	var size int64
	for _, segment := range all {
		size += segment.Size
	}
	kept := s.Dir.Now().Sub(all[0].Day)
	if size > budget/100*budgetFull && kept < limits.Keep-24*time.Hour {
		add("%d%% of the disk budget is used by only %d days; the retention of %d days cannot be met; see scanwatch stats",
			size*100/budget, int(kept.Hours()/24), int(limits.Keep.Hours()/24))
	}
	return problems
}

// budgetFull is a percentage of the disk budget. If more of the budget is in use, and the records
// do not reach back over the whole retention, this is a problem. Records use at most seven eighths
// of the budget.
const budgetFull = 80

// statusProblems returns the problems in a filter's status.
func statusProblems(s *control.Status, zone *time.Location) (problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	since := func(t time.Time) string { return t.In(zone).Format(time.DateTime) }
	if s.Store.Error != "" {
		add("sessions have not been written since %s: %s", since(s.Store.Since.Time), s.Store.Error)
	}
	if s.State.Error != "" {
		add("state.db has not been written since %s: %s", since(s.State.Since.Time), s.State.Error)
	}
	if problem := s.StateLost(time.Now()); problem != "" {
		add("%s", problem)
	}
	if s.Config.Halted != nil {
		add("the operator has stopped enforcement; scanwatch mode policy resumes it")
	}
	if s.Source != nil && s.Source.Problem != "" {
		add("log of the mail server: %s", s.Source.Problem)
	}
	if s.Config.Problem != "" {
		add("%s: %s", cmp.Or(s.Config.File, "configuration"), s.Config.Problem)
	}
	problems = append(problems, s.FleetProblems()...)
	problems = append(problems, s.CompanionProblems(time.Now())...)
	return append(problems, s.Config.Notes...)
}

// read calls v for each selected record, and returns the end of the period and any
// problems. incomplete is set if files could not be read.
func (s *Source) read(v history.Visitor) (until time.Time, problems []string, incomplete, err error) {
	r, err := s.Dir.Open()
	if err != nil {
		return until, nil, nil, err
	}
	defer r.Close()
	p, err := s.collect(r, v)
	return p.until, append(r.Problems(), gaps(r, &p)...), r.Incomplete(), err
}

// Returns reports on hosts that reconnected after a ban or finding. The visitors in further receive
// the same records. incomplete is set if files could not be read.
func (s *Source) Returns(further ...history.Visitor) (summary *report.ReturnSummary, incomplete, err error) {
	c := report.NewReturns(memory.Number)
	until, problems, incomplete, err := s.read(both(append(further, c.Visitor())))
	if err != nil {
		return nil, nil, err
	}
	return c.Summary(s.Selector.Since, until, problems), incomplete, nil
}

// both returns a visitor that calls all given visitors.
func both(all []history.Visitor) (v history.Visitor) {
	each := func(of func(*history.Visitor) func(*store.Record) error) func(*store.Record) error {
		return func(r *store.Record) (err error) {
			for i := range all {
				err = errors.Join(err, of(&all[i])(r))
			}
			return err
		}
	}
	for i := range all {
		v.Kinds |= all[i].Kinds
	}
	v.Session = each(func(v *history.Visitor) func(*store.Record) error { return v.Session })
	v.Sum = each(func(v *history.Visitor) func(*store.Record) error { return v.Sum })
	return v
}

// Users reports on logins. Lists have at most limit entries. incomplete is set if files could not
// be read.
func (s *Source) Users(limit int) (summary *report.UserSummary, incomplete, err error) {
	c := report.NewUsers()
	until, problems, incomplete, err := s.read(c.Visitor())
	if err != nil {
		return nil, nil, err
	}
	return c.Summary(s.Selector.Since, until, limit, problems), incomplete, nil
}

// Scanners reports on scanning organisations. contacts lists their opt-outs and may be nil.
// incomplete is set if files could not be read.
func (s *Source) Scanners(contacts map[string]report.OptOut) (summary *report.ScannerSummary, incomplete, err error) {
	c := report.NewScanners()
	until, problems, incomplete, err := s.read(c.Visitor())
	if err != nil {
		return nil, nil, err
	}
	return c.Summary(s.Selector.Since, until, problems, contacts), incomplete, nil
}
