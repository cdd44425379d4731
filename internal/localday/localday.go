// Package localday returns the limits of calendar days in a time zone.
package localday

import "time"

// Start returns the first instant of a day in a zone. It is not midnight if the
// clock is set forward at midnight, as in America/Santiago. Of two midnights, it is
// the first. Values of month and day outside their range are normalized as in
// time.Date.
func Start(year int, month time.Month, day int, zone *time.Location) time.Time {
	noon := time.Date(year, month, day, 12, 0, 0, 0, zone)
	change, _ := noon.ZoneBounds() // the latest change of the clock before noon
	midnight := withOffset(noon, noon)
	if change.IsZero() {
		return midnight
	}
	before := withOffset(noon, change.Add(-time.Nanosecond))
	switch {
	case before.Before(change): // the clock changes between midnight and noon
		return before
	case midnight.Before(change): // there is no midnight
		return change
	}
	return midnight
}

// withOffset returns midnight of the day of noon with the offset that holds at
// another time.
func withOffset(noon, other time.Time) time.Time {
	_, offset := other.Zone()
	year, month, day := noon.Date()
	return time.Date(year, month, day, 0, 0, -offset, 0, time.UTC).In(noon.Location())
}
