package report

import (
	"maps"
	"slices"
	"time"

	"scanwatch/internal/localday"
	"scanwatch/internal/text"
)

// quarter is the resolution of the timeline. Days in every time zone start at a multiple
// of quarter.
const quarter = 15 * time.Minute

// spanSteps maps the length of the timeline to the length of its spans, so that each
// span is wide enough to be visible as a bar.
var spanSteps = [...]struct {
	upTo   time.Duration
	length time.Duration // less than a day
	days   int
}{
	{6 * time.Hour, quarter, 0},
	{4 * 24 * time.Hour, time.Hour, 0},
	{100 * 24 * time.Hour, 0, 1},
	{2 * 366 * 24 * time.Hour, 0, 7},
	{1<<63 - 1, 0, 28},
}

// A Span counts unauthenticated clients' sessions that ended in a part of the period.
type Span struct {
	Start    Time `json:"start"`
	Sessions int  `json:"sessions"`
	Found    int  `json:"found"`   // sessions with a finding
	Refused  int  `json:"refused"` // sessions rejected by a rule or a ban
}

// A Network counts the sessions of an IPv4 /24 or an IPv6 /48.
type Network struct {
	Prefix    string `json:"prefix"`
	Addresses int    `json:"addresses"`
	Sessions  int    `json:"sessions"`
	Found     int    `json:"found"`
}

// timeline divides the period into spans of equal length. Days and hours are in since's time zone.
// A gap of more than 100 days before the first session is omitted.
func (c *Collector) timeline(since, until time.Time) []Span {
	spans := []Span{}
	times := slices.Sorted(maps.Keys(c.quarters.all))
	if len(times) == 0 {
		return spans
	}
	first := time.Unix(times[0]*int64(quarter/time.Second), 0).In(since.Location())
	if since.IsZero() || first.Sub(since) > 100*24*time.Hour {
		since = first
	}
	total, step := until.Sub(since), 0
	for spanSteps[step].upTo < total {
		step++
	}
	length, days := spanSteps[step].length, spanSteps[step].days
	after := func(start time.Time) time.Time {
		if days > 0 {
			return localday.Start(start.Year(), start.Month(), start.Day()+days, start.Location())
		}
		return start.Add(length)
	}
	start := localday.Start(since.Year(), since.Month(), since.Day(), since.Location())
	for next := after(start); days == 0 && !next.After(since); next = after(start) {
		start = next
	}
	for start.Before(until) || len(times) > 0 {
		next := after(start)
		s := Span{Start: text.At(start)}
		for len(times) > 0 && times[0]*int64(quarter/time.Second) < next.Unix() {
			q := c.quarters.all[times[0]]
			s.Sessions, s.Found, s.Refused = s.Sessions+q.Sessions, s.Found+q.Found, s.Refused+q.Refused
			times = times[1:]
		}
		spans = append(spans, s)
		start = next
	}
	return spans
}
