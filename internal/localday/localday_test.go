package localday

import (
	"testing"
	"time"
)

// TestStart checks the first instant of days with and without a clock change.
func TestStart(t *testing.T) {
	for _, c := range []struct {
		zone string
		day  string
		want string
	}{
		{"UTC", "2026-11-01", "2026-11-01T00:00:00Z"},
		{"America/Santiago", "2026-09-05", "2026-09-05T00:00:00-04:00"},
		{"America/Santiago", "2026-09-06", "2026-09-06T01:00:00-03:00"}, // a day without midnight
		{"America/Santiago", "2026-09-07", "2026-09-07T00:00:00-03:00"},
		{"America/Santiago", "2026-04-04", "2026-04-04T00:00:00-03:00"}, // 25 hours
		{"America/Santiago", "2026-04-05", "2026-04-05T00:00:00-04:00"},
		{"America/Havana", "2026-11-01", "2026-11-01T00:00:00-04:00"}, // a day with two midnights
		{"America/Havana", "2026-11-02", "2026-11-02T00:00:00-05:00"},
		{"Europe/Berlin", "2026-03-29", "2026-03-29T00:00:00+01:00"},
		{"Europe/Berlin", "2026-10-25", "2026-10-25T00:00:00+02:00"},
		{"Asia/Kolkata", "2026-10-25", "2026-10-25T00:00:00+05:30"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		day, err := time.Parse(time.DateOnly, c.day)
		if err != nil {
			t.Fatal(err)
		}
		got := Start(day.Year(), day.Month(), day.Day(), zone)
		if got.Format(time.RFC3339) != c.want {
			t.Errorf("%s in %s: %s, want %s", c.day, c.zone, got.Format(time.RFC3339), c.want)
		}
	}
}

// TestYear checks that a year's days are consecutive in each zone.
func TestYear(t *testing.T) {
	for _, name := range []string{"America/Santiago", "America/Havana", "America/Sao_Paulo", "Asia/Beirut", "Africa/Cairo", "America/Scoresbysund", "Australia/Lord_Howe", "Europe/London"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for year := 2008; year < 2028; year++ {
			last := Start(year, 1, 0, zone)
			for day := 1; day <= 365; day++ {
				at := Start(year, 1, day, zone)
				if at.Day() == last.Day() || at.Sub(last) > 25*time.Hour || at.Add(-time.Nanosecond).Day() != last.Day() {
					t.Fatalf("%s, day %d of %d: %s after %s", name, day, year, at, last)
				}
				last = at
			}
		}
	}
}
