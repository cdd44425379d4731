package report

import "time"

// Hours counts sessions by day of the week, starting with Monday, and by local hour.
// When daylight saving time ends, sessions from both occurrences of the
// repeated hour are added together.
type Hours [7][24]Hour

// An Hour counts the sessions that ended in one hour of the week.
type Hour struct {
	Sessions, Found int
	Covered         bool // the period includes a part of the hour
}

// hours adds up the session counts of quarter-hours for each hour of the week. Hours are in since's
// time zone. hours returns nil if there are no sessions.
func hours(quarters map[int64]*Span, since, until time.Time) *Hours {
	if len(quarters) == 0 {
		return nil
	}
	h := new(Hours)
	at := func(t time.Time) *Hour { return &h[(int(t.Weekday())+6)%7][t.Hour()] }
	for number, q := range quarters {
		cell := at(time.Unix(number*int64(quarter/time.Second), 0).In(since.Location()))
		cell.Sessions, cell.Found, cell.Covered = cell.Sessions+q.Sessions, cell.Found+q.Found, true
	}
	// Eight days cover all hours of the week, regardless of clock changes.
	if last := until.Add(-8 * 24 * time.Hour); since.Before(last) {
		since = last.In(since.Location())
	}
	for t := since; t.Before(until); t = t.Add(quarter) {
		at(t).Covered = true
	}
	return h
}
