package main

// The verb report, in all its forms.

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const reportHelp = sinceHelp + `
Without --since: the last 24 hours, and for returns everything that is kept.

  --until WHEN what ended before WHEN; default now
  --top N      lines of each list; default 10
  --json       one JSON object
  --mail       a letter of 72 columns, for cron(8)
  --quiet      print nothing if there is nothing to tell: no problem, no finding
  --html FILE  write a page with charts, which needs nothing but itself, and
               print nothing unless --mail or --json is given; - is the
               standard output

report returns tells of the hosts that were banned or found how many came back
within 1h, 1d, 7d and 30d, and how long a ban that suggests.

report scanners lists the known scanning organisations that came.
  --optout     also how to ask each not to come again, and a letter for the rest`

// pageMode is that of a page that was not there before: it names people.
const pageMode = 0o640

func report(e *env, args []string) error {
	when := e.flags.String("since", "", "")
	end := e.flags.String("until", "", "")
	top := e.flags.Int("top", 10, "")
	asJSON := e.flags.Bool("json", false, "")
	asMail := e.flags.Bool("mail", false, "")
	quiet := e.flags.Bool("quiet", false, "")
	page := e.flags.String("html", "", "")
	optOut := e.flags.Bool("optout", false, "")
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	about := strings.Join(args, "")
	switch {
	case about != "" && about != "returns" && about != "scanners":
		return usage("report %q: there is no such report; did you mean report returns or report scanners?", about)
	case about != "" && (*asMail || *quiet || *page != ""):
		return usage("report %s: --mail, --quiet and --html are for the report without %s", about, about)
	case *optOut && about != "scanners":
		return usage("--optout is for report scanners")
	case *asJSON && *asMail:
		return usage("--json and --mail: choose one")
	case *page == "-" && (*asJSON || *asMail):
		return usage("--html -: the page and the report cannot both go to the standard output; name a file")
	case *top < 1:
		return usage("--top %d: must be at least 1", *top)
	}
	var t period
	if *when != "" || about != "returns" {
		if t.since, err = e.since(cmp.Or(*when, "24h")); err != nil {
			return err
		}
	}
	if *end != "" {
		if t.until, err = e.moment("until", *end); err != nil {
			return err
		}
		if *when == "" && about != "returns" {
			t.since = t.until.Add(-24 * time.Hour)
		}
	}
	switch {
	case t.since.After(e.now()):
		return usage("--since %s: lies in the future", *when)
	case !t.until.IsZero() && !t.since.Before(t.until):
		return usage("--until %s: is not after --since", *end)
	}
	switch about {
	case "returns":
		return e.returns(t, *asJSON)
	case "scanners":
		return e.scanners(t, *optOut, *asJSON)
	}

	s, r, err := e.summary(t, *top, *quiet)
	if err != nil {
		return err
	}
	if *page != "" {
		if err := e.page(*page, s, t.until); err != nil {
			return err
		}
	}
	switch {
	case *quiet && s.Nothing():
	case *asJSON:
		err = s.JSON(e.out)
	case *asMail:
		err = s.Mail(e.out, e.zone)
	case *page == "":
		err = s.Text(e.out, e.zone)
	}
	return errors.Join(err, unread(r))
}

// period is the time of a report. A zero until is now, or whatever came later by
// another clock.
type period struct{ since, until time.Time }

// each goes through the sessions of the period, and returns its end.
func (e *env) each(r *store.Reader, t period, f func(*store.Record)) (until time.Time, err error) {
	until = t.until
	if until.IsZero() || until.After(e.now()) {
		until = e.now()
	}
	err = eachUntil(r, t.since, t.until, func(rec *store.Record) error {
		if rec.End.After(until) {
			until = rec.End
		}
		f(rec)
		return nil
	})
	return until, err
}

// summary goes through the sessions of a period. If there were none that is a
// problem, unless it is quiet that is wanted.
func (e *env) summary(t period, top int, quiet bool) (*store_report.Summary, *store.Reader, error) {
	r, client, problems, err := e.reader()
	if err != nil {
		return nil, nil, err
	}
	if client != nil {
		defer client.Close()
	}
	problems = append(problems, e.problems(client)...)
	r.Problem = func(segment string, err error) { problems = append(problems, segment+": "+err.Error()) }
	days, err := e.days() // before the sessions: none that is counted is missing then
	if err != nil {
		problems = append(problems, "what was counted by the day: "+err.Error())
	}
	c := store_report.NewCollector()
	n, broken := 0, 0
	until, err := e.each(r, t, func(rec *store.Record) {
		n++
		if c.Add(rec) != nil {
			broken++
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if broken > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions have damaged steps, and are only counted", broken))
	}
	if d := r.Dropped; d.Total() > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions were dropped and are not in this report (%s)", d.Total(), d))
	}
	switch {
	case r.Unread > 0: // nobody knows what is in them
	case n == 0 && !quiet:
		problems = append(problems, "no sessions were recorded in this time")
	}
	for i := range problems {
		problems[i] = store_report.Printable([]byte(problems[i]))
	}
	s := c.Summary(t.since.In(e.zone), until, top, problems)
	var counted []store_report.DayCount
	for i := range days {
		if t.until.IsZero() || !days[i].Day.AddDate(0, 0, 1).After(t.until) {
			counted = append(counted, store_report.DayCount{Day: days[i].Day, Sessions: int(days[i].Of(memory.DaySessions)), Mails: int(days[i].Of(memory.DayMails))})
		}
	}
	s.NotKept = c.Compare(counted, t.since)
	return s, r, nil
}

// problems tells what the running filter, if there is one, says is wrong, and
// whether the disk budget is too small.
func (e *env) problems(client *control.Client) (problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	limits := e.limits()
	budget := limits.Budget
	if client != nil {
		s, err := client.Status()
		if err != nil {
			add("the filter does not tell how it is doing: %v", err)
		} else {
			budget = s.Store.Budget
			since := func(t time.Time) string { return t.In(e.zone).Format(time.DateTime) }
			if s.Store.Error != "" {
				add("sessions cannot be written since %s: %s", since(s.Store.Since), s.Store.Error)
			}
			if s.State.Error != "" {
				add("what is remembered cannot be written since %s: %s", since(s.State.Since), s.State.Error)
			}
			if ev := s.Events; ev != nil && ev.Error != "" {
				add("events cannot be written since %s: %s", since(ev.Since), ev.Error)
			}
			if s.Config.Problem != "" {
				add("%s: %s", s.Config.File, s.Config.Problem)
			}
			problems = append(problems, s.Config.Notes...)
		}
	}
	all, err := store.Segments(e.dir)
	if err != nil || len(all) == 0 {
		return problems // reading tells
	}
	var size int64
	for _, s := range all {
		size += s.Size
	}
	kept := e.now().Sub(all[0].Day)
	if days := int(kept.Hours() / 24); size > budget/100*budgetFull && kept < limits.Keep-24*time.Hour {
		add("%d %% of the disk budget is used with %d days of sessions: the oldest will go before the %d days of keep are over; see scanwatch stats",
			size*100/budget, days, int(limits.Keep.Hours()/24))
	}
	return problems
}

// budgetFull is the percentage of the disk budget from which on it is told of. An
// eighth is always kept free.
const budgetFull = 80

// page writes the page about s to a file. Who came back is told of all that is
// kept, up to the end of the page.
func (e *env) page(name string, s *store_report.Summary, until time.Time) error {
	returned, _, err := e.whoReturned(period{until: until})
	if err != nil {
		return err
	}
	write := func(w io.Writer) error { return s.HTML(w, returned, e.zone) }
	if name == "-" {
		return write(e.out)
	}
	return replaceFile(name, pageMode, write)
}

// replaceFile puts a new file in place of name at once, or leaves name as it is.
// A file that was there keeps its mode.
func replaceFile(name string, mode os.FileMode, write func(io.Writer) error) (err error) {
	info, err := os.Stat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("write %s: it is there, and no regular file", name)
	case err == nil:
		mode = info.Mode().Perm()
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	// Beside it, since only within one file system a file takes another's place. The
	// name begins with a dot, so that who collects *.prom does not take it.
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if path := new(fs.PathError); errors.As(err, &path) {
		return fmt.Errorf("write %s: make a file in %s: %w", name, filepath.Dir(name), path.Err) // not the name of a file that nobody knows
	} else if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	w := bufio.NewWriter(f)
	for _, do := range []func() error{
		func() error { return write(w) }, w.Flush, func() error { return f.Chmod(mode) }, f.Sync, f.Close,
		func() error { return os.Rename(f.Name(), name) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}
