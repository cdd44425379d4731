// Package localday finds where calendar days begin in a time zone.
package localday

import "time"

// Start returns the first instant of a day in a time zone. If the clock is set
// forward at midnight, as in America/Santiago, the day has no midnight and
// Start returns the time of the change. If the clock is set back and the day
// has two midnights, Start returns the first one. Out-of-range values of month
// and day are normalized, as in time.Date.
func Start(year int, month time.Month, day int, zone *time.Location) time.Time {
	noon := time.Date(year, month, day, 12, 0, 0, 0, zone)
	change, _ := noon.ZoneBounds() // latest change of the UTC offset before noon
	midnight := withOffset(noon, noon)
	if change.IsZero() {
		return midnight
	}
	before := withOffset(noon, change.Add(-time.Nanosecond))
	switch {
	case before.Before(change): // the offset changes after midnight
		return before
	case midnight.Before(change): // the clock is set forward, and the day has no midnight
		return change
	}
	return midnight
}

// withOffset returns midnight on noon's day, using the UTC offset in effect at
// another time.
func withOffset(noon, other time.Time) time.Time {
	_, offset := other.Zone()
	year, month, day := noon.Date()
	return time.Date(year, month, day, 0, 0, -offset, 0, time.UTC).In(noon.Location())
}
