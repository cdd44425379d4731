package main

// The verbs about the files of the state directory.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const fsckHelp = `Goes through every file, record and row. Of files that the filter is writing it
looks at a copy. The exit status is 1 if a file is not well.

  --repair  set damaged files aside, as the filter does; salvage what can be
            read of segments into a new part of their day; remove rows of
            state.db that make no sense, after a copy; remove what a crash has
            left half made. The filter must not run meanwhile.
  --json    one JSON object a line`

// inspector returns what goes through the files; those that the filter is writing
// come through its socket.
func (e *env) inspector() (*store.Inspector, error) {
	stepBack()
	if _, err := os.ReadDir(e.dir); err != nil {
		return nil, dirError(err)
	}
	// Asked anew each time: the filter cuts off who is silent for long.
	ask := func(f func(*control.Client) error) error {
		client, err := control.Dial(e.dir)
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrInUse, err)
		}
		defer client.Close()
		return f(client)
	}
	return &store.Inspector{
		Dir:    e.dir,
		Tables: memory.Buckets(),
		Snapshot: func(w io.Writer, name string) error {
			return ask(func(c *control.Client) error { return c.Snapshot(w, name) })
		},
		State: func(w io.Writer) error { return ask(func(c *control.Client) error { return c.State(w) }) },
	}, nil
}

func fsck(e *env, args []string) error {
	repair := e.flags.Bool("repair", false, "")
	asJSON := e.flags.Bool("json", false, "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	i, err := e.inspector()
	if err != nil {
		return err
	}
	i.Decode, i.Row = true, memory.Checker()
	all, bad := 0, 0
	visit := func(f *store.File) error {
		all++
		if f.Health.Bad() {
			bad++
		}
		if *asJSON {
			if err := json.NewEncoder(e.out).Encode(f); err != nil {
				return err
			}
			return e.out.Flush()
		}
		if all == 1 {
			fmt.Fprintf(e.out, "%-24s %10s %12s  %s\n", "FILE", "RECORDS", "BYTES", "STATE")
		}
		fmt.Fprintf(e.out, "%-24s %10d %12d  %s\n", store_report.Printable([]byte(f.Name)), f.Records, f.Size, fileState(f))
		return e.out.Flush() // the next one may take a while
	}
	if *repair {
		err = i.Repair(version, e.now(), visit)
		if errors.Is(err, store.ErrInUse) {
			return fmt.Errorf("nothing was repaired: %w; stop smtpd first, or repair a copy of the directory with -s", err)
		}
	} else {
		err = i.Each(visit)
	}
	switch {
	case err != nil:
		return err
	case all == 0 && !*asJSON:
		fmt.Fprintln(e.out, "nothing is recorded yet")
	case bad > 0 && *repair:
		return fmt.Errorf("%d of %d files are not well", bad, all)
	case bad > 0:
		return fmt.Errorf("%d of %d files are not well; --repair mends what is damaged", bad, all)
	}
	return nil
}

// fileState is the state of a file in words.
func fileState(f *store.File) string {
	text := string(f.Health)
	if f.Live {
		text += " (a copy; the filter writes it)"
	}
	if f.Problem != "" {
		text += ": " + f.Problem
	}
	if f.Bad > 1 {
		text += fmt.Sprintf(", and %d more", f.Bad-1)
	}
	if f.Done != "" {
		text += "; " + f.Done
	}
	return store_report.Printable([]byte(text))
}

const statsHelp = `Shows what the state directory holds: sizes, numbers, ages, what was dropped,
and for how long the budget will do. Works with and without a running filter.

  --json        one JSON object
  --prometheus  numbers for Prometheus instead, for its node exporter
  -o FILE       put them into FILE, which is replaced at once`

// rateDays is how many days, before the last session, tell how fast the disk
// fills.
const rateDays = 7

// statsDays is how many of the last days are listed.
const statsDays = 14

// A stock is what stats found.
type stock struct {
	Segments []store.File    `json:"segments"`
	State    *store.File     `json:"state"`            // nil: there is no state.db
	Aside    int             `json:"aside"`            // damaged files that were set aside
	Unread   int             `json:"unread"`           // files that could not be read, or are damaged
	Sessions int             `json:"sessions"`         // in all segments
	Bytes    int64           `json:"bytes"`            // of all files
	Budget   int64           `json:"budget"`           // bytes
	Keep     float64         `json:"keep_days"`        // by age
	Average  int64           `json:"bytes_a_session"`  // of the segments; 0: there are none
	PerDay   int64           `json:"bytes_a_day"`      // lately; 0: too short a time to tell
	Days     float64         `json:"days"`             // that the budget holds at this rate
	Dropped  store.Dropped   `json:"dropped"`          // while the segments were written
	Lately   *store.Dropped  `json:"dropped_since"`    // since the running filter began; nil: none runs
	Memory   []memory.Status `json:"memory,omitempty"` // of the running filter
	DayList  []memory.Day    `json:"counted"`          // what was counted by the day, kept or not
}

func stats(e *env, args []string) error {
	asJSON := e.flags.Bool("json", false, "")
	prometheus := e.flags.Bool("prometheus", false, "")
	file := e.flags.String("o", "", "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	switch {
	case *prometheus && *asJSON:
		return usage("--json and --prometheus: choose one")
	case *prometheus:
		return e.metrics(*file)
	case *file != "":
		return usage("-o is for --prometheus")
	}
	i, err := e.inspector()
	if err != nil {
		return err
	}
	limits := e.limits()
	s := stock{Segments: []store.File{}, Budget: limits.Budget, Keep: limits.Keep.Hours() / 24}
	if client, err := control.Dial(e.dir); err == nil {
		err = client.Flush() // what waits in its memory belongs to the picture
		status, failed := client.Status()
		client.Close()
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		s.Budget, s.Lately, s.Memory = status.Store.Budget, &status.Store.Dropped, status.Memory
	} else if !errors.Is(err, control.ErrNotRunning) {
		fmt.Fprintf(e.err, "scanwatch: %v\n", err)
	}
	if err := i.Each(s.add); err != nil {
		return err
	}
	s.reckon()
	if s.DayList, err = e.days(); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(e.out).Encode(&s)
	}
	s.text(e.out, e.zone)
	return nil
}

// limits are the budget and the age of the configuration.
func (e *env) limits() rules.Settings {
	var s rules.Settings
	if name := e.find(e.file); name != "" {
		if tree, err := rules.Parse(name, os.ReadFile); err == nil { // else there was a warning
			s = tree.Settings()
		}
	}
	s.Budget, s.Keep = cmp.Or(s.Budget, rules.DefaultBudget), cmp.Or(s.Keep, rules.DefaultKeep)
	return s
}

// add takes one file.
func (s *stock) add(f *store.File) error {
	s.Bytes += f.Size
	if f.Health.Bad() {
		s.Unread++
	}
	switch {
	case f.Health == store.HealthAside:
		s.Aside++
	case f.Segment != nil:
		s.Segments = append(s.Segments, *f)
		s.Sessions += f.Records
		for r, n := range f.Dropped {
			s.Dropped[r] += n
		}
	case f.Tables != nil:
		s.State = f
	}
	return nil
}

// reckon works out what follows from the files.
func (s *stock) reckon() {
	if s.Sessions == 0 {
		return
	}
	var all int64
	var oldest, newest time.Time
	for i := range s.Segments {
		f := &s.Segments[i]
		if f.Records == 0 {
			continue
		}
		all += f.Size
		if oldest.IsZero() || f.Oldest.Before(oldest) {
			oldest = f.Oldest
		}
		if f.Newest.After(newest) {
			newest = f.Newest
		}
	}
	s.Average = all / int64(s.Sessions)
	from := newest.Truncate(24*time.Hour).AddDate(0, 0, -rateDays)
	var lately int64
	for i := range s.Segments {
		if f := &s.Segments[i]; f.Records > 0 && !f.Segment.Day.Before(from) {
			lately += f.Size
		}
	}
	if oldest.After(from) {
		from = oldest
	}
	days := newest.Sub(from).Hours() / 24
	if days < 1.0/24 {
		return
	}
	s.PerDay = int64(float64(lately) / days)
	// An eighth is kept free for the segment that is being written.
	room := s.Budget / 8 * 7
	if s.State != nil {
		room -= s.State.Size
	}
	s.Days = float64(max(room, 0)) / float64(max(s.PerDay, 1))
}

func (s *stock) text(w io.Writer, zone *time.Location) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s%s\n", name, fmt.Sprintf(format, args...))
	}
	if s.Unread > 0 {
		line("PROBLEM", "files that cannot be read, and are missing in this: %d; see scanwatch fsck", s.Unread)
	}
	const layout = "2006-01-02 15:04"
	row := "%-16s %8v %11v %-16s %-16s %s\n"
	fmt.Fprintf(w, row, "SEGMENT", "SESSIONS", "BYTES", "OLDEST", "NEWEST", "DROPPED")
	for i := range s.Segments {
		f := &s.Segments[i]
		oldest, newest := "-", "-"
		if f.Records > 0 {
			oldest, newest = f.Oldest.In(zone).Format(layout), f.Newest.In(zone).Format(layout)
		}
		what := cmp.Or(f.Dropped.String(), "-")
		if f.Health.Bad() {
			what = string(f.Health)
		}
		fmt.Fprintf(w, row, f.Segment.Name, f.Records, f.Size, oldest, newest, what)
	}
	fmt.Fprintln(w)
	if f := s.State; f != nil {
		fmt.Fprintf(w, "%-16s %10s %12s\n", "TABLE", "ROWS", "BYTES")
		fmt.Fprintf(w, "%-16s %10d %12d\n", f.Name, f.Records, f.Size)
		for _, name := range memory.Buckets() {
			if n := f.Tables[name]; n > 0 {
				fmt.Fprintf(w, "  %-14s %10d\n", name, n)
			}
		}
		fmt.Fprintln(w)
	}
	if n := len(s.DayList); n > 0 {
		const row = "%-16s %10v %8v %8v %8v %8v %10v\n"
		fmt.Fprintf(w, row, "DAY (UTC)", "SESSIONS", "MAILS", "LOGINS", "FOUND", "REFUSED", "UNRECORDED")
		for i := max(0, n-statsDays); i < n; i++ {
			d := &s.DayList[i]
			fmt.Fprintf(w, row, d.Day.Format(time.DateOnly), d.Of(memory.DaySessions), d.Of(memory.DayMails), d.Of(memory.DayAuthenticated),
				d.Of(memory.DayFound), d.Of(memory.DayRefused), d.Lost())
		}
		if n > statsDays {
			fmt.Fprintf(w, "and %d days before; --json has all\n", n-statsDays)
		}
		fmt.Fprintln(w)
	}
	line("disk", "%d bytes of %d, %.1f %%", s.Bytes, s.Budget, 100*float64(s.Bytes)/float64(s.Budget))
	switch {
	case s.Sessions == 0:
		line("sessions", "none")
	case s.Sessions < 1000*len(s.Segments): // a new segment takes as much as these do
		line("sessions", "%d, too few to tell what one takes", s.Sessions)
	default:
		line("sessions", "%d, of %d bytes on average", s.Sessions, s.Average)
	}
	if s.Aside > 0 {
		line("aside", "damaged files that were set aside: %d; see scanwatch fsck", s.Aside)
	}
	if s.Days > 0 {
		line("budget", "holds %.0f days at %d bytes a day, as of late; the limit by age is %.0f", s.Days, s.PerDay, s.Keep)
	} else {
		line("budget", "an hour is needed to tell how long it holds; at most %.0f days", s.Keep)
	}
	line("dropped", "%s", dropped(s.Dropped))
	if s.Lately != nil {
		line("", "%s since the filter began", dropped(*s.Lately))
	}
	for _, m := range s.Memory {
		if m.Forgot > 0 {
			line("forgotten", "%d rows of %s since the filter began, because there was room for %d", m.Forgot, m.Table, m.Most)
		}
	}
}

func dropped(d store.Dropped) string {
	if d.Total() == 0 {
		return "no sessions"
	}
	return fmt.Sprintf("%d sessions: %s", d.Total(), d)
}
