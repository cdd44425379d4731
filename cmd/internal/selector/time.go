package selector

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/localday"
)

// TimeForms describes the times accepted by ParseTime, for help text.
const TimeForms = "90m, 1d12h, 2w, 12mo or 1y (before now), today, yesterday, 2026-11-29, \"2026-11-29 12:00\", or RFC 3339"

// maxYears is the longest span in years.
const maxYears = 100

// layouts lists the layouts for local times, most frequent first.
var layouts = []string{"2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", "2006-01-02T15:04:05"}

// ParseTime parses a time. A span such as 90m is subtracted from now. A time without a
// UTC offset is interpreted in zone. Times before 1970 become the start of 1970.
func ParseTime(text string, now time.Time, zone *time.Location) (time.Time, error) {
	t, err := parseTime(text, now, zone)
	if first := time.Unix(0, 0); err == nil && t.Before(first) {
		t = first.In(zone)
	}
	return t, err
}

func parseTime(text string, now time.Time, zone *time.Location) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return localday.Start(t.Year(), t.Month(), t.Day(), zone), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t, nil
		}
	}
	year, month, day := now.In(zone).Date()
	switch text {
	case "now":
		return now, nil
	case "today":
		return localday.Start(year, month, day, zone), nil
	case "yesterday":
		return localday.Start(year, month, day-1, zone), nil
	}
	s, err := parseSpan(text)
	if errors.Is(err, errNoSpan) {
		return time.Time{}, fmt.Errorf("not a time; use %s", TimeForms)
	} else if err != nil {
		return time.Time{}, err
	}
	return now.In(zone).AddDate(-s.years, -s.months, 0).Add(-s.rest), nil
}

// ParseSpan parses a duration such as 90m, 1d12h or 2w. Months have 30 days, and years
// have 365.
func ParseSpan(text string) (time.Duration, error) {
	s, err := parseSpan(text)
	if errors.Is(err, errNoSpan) {
		return 0, errors.New("not a span of time; use 90m, 12h, 1d12h, 2w, 6mo or 1y")
	}
	return time.Duration(s.years*365+s.months*30)*24*time.Hour + s.rest, err
}

// A span is a duration that may include calendar years and months, whose length varies.
type span struct {
	years, months int
	rest          time.Duration
}

var errNoSpan = errors.New("not a span of time")

// units lists the units of a span, largest first.
var units = []struct {
	name   string
	add    func(s *span, n int)
	length time.Duration // approximate
}{
	{"y", func(s *span, n int) { s.years += n }, 365 * 24 * time.Hour},
	{"mo", func(s *span, n int) { s.months += n }, 30 * 24 * time.Hour},
	{"w", func(s *span, n int) { s.rest += time.Duration(n) * 7 * 24 * time.Hour }, 7 * 24 * time.Hour},
	{"d", func(s *span, n int) { s.rest += time.Duration(n) * 24 * time.Hour }, 24 * time.Hour},
	{"h", func(s *span, n int) { s.rest += time.Duration(n) * time.Hour }, time.Hour},
	{"m", func(s *span, n int) { s.rest += time.Duration(n) * time.Minute }, time.Minute},
	{"s", func(s *span, n int) { s.rest += time.Duration(n) * time.Second }, time.Second},
}

// parseSpan parses numbers with units. Units must be in descending order and must not be
// repeated.
func parseSpan(text string) (s span, err error) {
	if text == "" {
		return s, errNoSpan
	}
	const most = maxYears * 365 * 24 * time.Hour
	next, left := 0, most
	for text != "" {
		digits := len(text) - len(strings.TrimLeft(text, "0123456789"))
		letters := len(text) - digits - len(strings.TrimLeft(text[digits:], "abcdefghijklmnopqrstuvwxyz"))
		name := text[digits : digits+letters]
		for next < len(units) && units[next].name != name {
			next++
		}
		if digits == 0 || next == len(units) {
			return s, errNoSpan
		}
		u := units[next]
		n, err := strconv.Atoi(text[:digits])
		if err != nil || n > int(left/u.length) { // Atoi fails only on overflow
			return s, fmt.Errorf("longer than %d years", maxYears)
		}
		left -= time.Duration(n) * u.length
		u.add(&s, n)
		text = text[digits+letters:]
		next++
	}
	return s, nil
}
