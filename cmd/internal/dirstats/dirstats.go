// Package dirstats describes the contents of a state directory, and estimates how many
// days of records fit into the disk budget.
package dirstats

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// rateDays is the number of days before the last session over which the growth rate is
// calculated.
const rateDays = 7

// sealedEnough is the minimum number of sealed records. With fewer records, unsealed ones also
// count towards the average size.
const sealedEnough = 1000

// listedDays is the number of days whose counters are listed in the text output.
const listedDays = 14

// Stats describes a state directory.
type Stats struct {
	Segments    []store.File    `json:"segments"`
	State       *store.File     `json:"state"`            // nil without state.db
	Quarantined int             `json:"quarantined"`      // number of corrupt files
	Unread      int             `json:"unread"`           // number of corrupt or unreadable files
	Records     int             `json:"records"`          // sessions and aggregates in all segments
	Bytes       int64           `json:"bytes"`            // total size of all files
	Budget      int64           `json:"budget"`           // bytes
	Keep        float64         `json:"keep_days"`        // retention
	Average     int64           `json:"bytes_per_record"` // average size of a record in segments; 0 without records
	PerDay      int64           `json:"bytes_per_day"`    // growth in the last rateDays; 0 if unknown
	Days        float64         `json:"days"`             // days until the budget is used up at this growth
	Dropped     store.Dropped   `json:"dropped"`          // sessions dropped while the segments were written
	Recent      *store.Dropped  `json:"dropped_since"`    // sessions dropped since the filter started; nil without a running filter
	Memory      []memory.Status `json:"memory,omitempty"` // tables of the running filter
	Counted     []memory.Day    `json:"counted"`          // all sessions by day, recorded or not
	Loss        string          `json:"loss,omitempty"`   // a missing or recently lost state.db, with the remedy
}

// Collect reads all files in dir. It calls warn if a running filter cannot first write
// out its buffered sessions.
func Collect(dir *statedir.Dir, warn func(string)) (*Stats, error) {
	i, err := dir.Inspector()
	if err != nil {
		return nil, err
	}
	limits := dir.Limits()
	s := &Stats{Segments: []store.File{}, Budget: limits.Budget, Keep: limits.Keep.Hours() / 24}
	switch client, err := control.Dial(dir.Path); {
	case err == nil:
		if err := client.Flush(); err != nil { // not fatal: this command must work when the disk is full
			warn("buffered sessions are not included: " + err.Error())
		}
		status, err := client.Status()
		client.Close()
		if err != nil {
			return nil, err
		}
		s.Budget, s.Recent, s.Memory = status.Store.Budget, &status.Store.Dropped, status.Memory
	case !errors.Is(err, control.ErrNotRunning):
		warn(err.Error())
	}
	if err := i.Each(s.add); err != nil {
		return nil, err
	}
	s.derive()
	s.Counted, err = dir.Days()
	s.Loss = dir.Loss()
	return s, err
}

func (s *Stats) add(f *store.File) error {
	s.Bytes += f.Size
	if f.Health.Bad() {
		s.Unread++
	}
	switch {
	case f.Health == store.HealthAside:
		s.Quarantined++
	case f.Segment != nil:
		s.Segments = append(s.Segments, *f)
		s.Records += f.Records
		for r, n := range f.Dropped {
			s.Dropped[r] += n
		}
	case f.Tables != nil:
		s.State = f
	}
	return nil
}

// derive calculates averages and the forecast.
func (s *Stats) derive() {
	if s.Records == 0 {
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
			oldest = f.Oldest.Time
		}
		if f.Newest.After(newest) {
			newest = f.Newest.Time
		}
	}
	s.Average = all / int64(s.Records)
	from := newest.Truncate(24*time.Hour).AddDate(0, 0, -rateDays)
	var rows, sealed store.File // totals of the recent unsealed and sealed segments
	for i := range s.Segments {
		f := &s.Segments[i]
		sum := &rows
		if f.Segment.Sealed {
			sum = &sealed
		}
		if f.Records > 0 && !f.Segment.Day.Before(from) {
			sum.Size, sum.Records = sum.Size+f.Size, sum.Records+f.Records
		}
	}
	recent := rows.Size + sealed.Size
	if sealed.Records >= sealedEnough { // sealing compresses the records of a day to about a fifth
		recent = sealed.Size + int64(float64(sealed.Size)/float64(sealed.Records)*float64(rows.Records))
	}
	if oldest.After(from) {
		from = oldest
	}
	days := newest.Sub(from).Hours() / 24
	if days < 1.0/24 {
		return
	}
	s.PerDay = int64(float64(recent) / days)
	// An eighth of the budget is reserved for the current segment and for sealing.
	room := s.Budget / 8 * 7
	if s.State != nil {
		room -= s.State.Size
	}
	s.Days = float64(max(room, 0)) / float64(max(s.PerDay, 1))
}

// Text writes s as text, with times in the given zone.
func (s *Stats) Text(w io.Writer, zone *time.Location) {
	if s.Unread > 0 {
		line(w, "PROBLEM", "unreadable or corrupt files, missing from these numbers: %d; see scanwatch fsck", s.Unread)
	}
	if s.Loss != "" {
		fmt.Fprintln(w, text.Wrap("PROBLEM     "+s.Loss, 79, 12))
	}
	s.segments(w, zone)
	s.tables(w)
	s.days(w)
	s.totals(w)
}

func line(w io.Writer, name, format string, args ...any) {
	fmt.Fprintf(w, "%-12s%s\n", name, fmt.Sprintf(format, args...))
}

func (s *Stats) segments(w io.Writer, zone *time.Location) {
	const layout = "2006-01-02 15:04"
	const row = "%-20s %8v %6v  %-16s %-16s %s\n"
	fmt.Fprintf(w, row, "SEGMENT", "RECORDS", "SIZE", "OLDEST", "NEWEST", "DROPPED")
	for i := range s.Segments {
		f := &s.Segments[i]
		oldest, newest := "-", "-"
		if f.Records > 0 {
			oldest, newest = f.Oldest.In(zone).Format(layout), f.Newest.In(zone).Format(layout)
		}
		dropped := cmp.Or(f.Dropped.String(), "-")
		if f.Health.Bad() {
			dropped = string(f.Health)
		}
		fmt.Fprintf(w, row, f.Segment.Name, f.Records, text.ShortSize(f.Size), oldest, newest, dropped)
	}
	fmt.Fprintln(w)
}

func (s *Stats) tables(w io.Writer) {
	f := s.State
	if f == nil {
		return
	}
	fmt.Fprintf(w, "%-16s %10s %6s\n", "TABLE", "ROWS", "SIZE")
	fmt.Fprintf(w, "%-16s %10d %6s\n", f.Name, f.Records, text.ShortSize(f.Size))
	for _, name := range memory.Buckets() {
		if n := f.Tables[name]; n > 0 {
			fmt.Fprintf(w, "  %-14s %10d\n", name, n)
		}
	}
	fmt.Fprintln(w)
}

func (s *Stats) days(w io.Writer) {
	n := len(s.Counted)
	if n == 0 {
		return
	}
	const row = "%-16s %10v %8v %8v %8v %8v %10v\n"
	fmt.Fprintf(w, row, "DAY (UTC)", "SESSIONS", "MESSAGES", "LOGINS", "FINDINGS", "REJECTED", "IN SUMS")
	for i := max(0, n-listedDays); i < n; i++ {
		d := &s.Counted[i]
		fmt.Fprintf(w, row, d.Day.Format(time.DateOnly), d.Of(memory.DaySessions), d.Of(memory.DayMails), d.Of(memory.DayAuthenticated),
			d.Of(memory.DayFound), d.Of(memory.DayRefused), d.Of(memory.DaySummed))
	}
	if n > listedDays {
		fmt.Fprintf(w, "and %d earlier days; --json lists all\n", n-listedDays)
	}
	fmt.Fprintln(w)
}

func (s *Stats) totals(w io.Writer) {
	line(w, "disk", "%s of %s, %.1f %%", text.ShortSize(s.Bytes), text.ShortSize(s.Budget), 100*float64(s.Bytes)/float64(s.Budget))
	switch {
	case s.Records == 0:
		line(w, "records", "none")
	case s.Records < 1000*len(s.Segments): // segments have an initial size that dominates the average
		line(w, "records", "%d, too few for an average size", s.Records)
	default:
		line(w, "records", "%d, %d bytes on average", s.Records, s.Average)
	}
	if s.Quarantined > 0 {
		line(w, "quarantined", "corrupt files: %d; see scanwatch fsck", s.Quarantined)
	}
	if s.Days > 0 {
		line(w, "budget", "sufficient for %.0f days at %s per day; retention is %.0f days", s.Days, text.ShortSize(s.PerDay), s.Keep)
	} else {
		line(w, "budget", "no forecast before an hour of records; retention is %.0f days", s.Keep)
	}
	line(w, "dropped", "%s", dropped(s.Dropped))
	if s.Recent != nil {
		line(w, "", "%s since the filter started", dropped(*s.Recent))
	}
	for _, m := range s.Memory {
		if m.Evicted > 0 {
			line(w, "evicted", "%d rows of %s since the filter started; the limit is %d", m.Evicted, m.Table, m.Limit)
		}
	}
}

func dropped(d store.Dropped) string {
	if d.Total() == 0 {
		return "no sessions"
	}
	return fmt.Sprintf("%d sessions: %s", d.Total(), d)
}
