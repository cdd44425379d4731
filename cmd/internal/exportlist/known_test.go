package exportlist

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// TestGapsOfTheOldestDay checks when missing parts of the oldest day count as a gap. Parts may be
// missing because they have expired. If the day is lossy, other parts may also have lost sessions,
// so it must be a gap even if the first part has expired.
func TestGapsOfTheOldestDay(t *testing.T) {
	first := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	second := first.Add(day)
	now := second.Add(12 * time.Hour)
	of := dayOf(first)
	counts := []memory.Day{{Day: first, Counters: map[string]uint64{memory.DayWhole.String(): 100}}}
	for _, c := range []struct {
		name     string
		part     int // number of the first remaining part
		lossy    bool
		counted  bool
		sessions uint64
		want     string
	}{
		{"the first parts expired", 2, false, true, 40, ""},
		{"a mark, and counted sessions are missing", 2, true, true, 99, gapGone},
		{"a mark, and all sessions are there", 2, true, true, 100, gapRepair},
		{"a mark, and no counts", 2, true, false, 40, gapRepair},
		{"a whole day without a mark", 1, false, true, 100, ""},
		{"a whole day, and most sessions are missing", 1, false, true, 40, gapGone},
	} {
		k := known{from: first, sessions: map[dayNumber]uint64{of: c.sessions}, lossy: map[dayNumber]bool{of: c.lossy}, cut: map[dayNumber]bool{}}
		if c.counted {
			k.days = counts
		}
		all := []store.Segment{{Day: first, Part: c.part}, {Day: first, Part: c.part + 1}, {Day: second, Part: 1}}
		var got []string
		for _, g := range k.gaps(all, now) {
			got = append(got, fmt.Sprintf(g.why, g.day))
		}
		want := []string{}
		if c.want != "" {
			want = []string{fmt.Sprintf(c.want, of)}
		}
		if !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s: %q, want %q", c.name, strings.Join(got, "; "), want)
		}
	}
}
