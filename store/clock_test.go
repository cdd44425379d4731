package store

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A clockMove is a session that ends when the system clock shows the given time.
type clockMove struct {
	at      time.Time
	restart bool // restart the filter first
	wait    bool // first wait until a jump of the clock is trusted
}

// TestClock checks that no day expires too early because of a wrong clock, and that days
// recorded with a wrong clock also expire. The retention is two days.
func TestClock(t *testing.T) {
	y1970, ahead := time.Unix(60, 0).UTC(), noon.AddDate(10, 0, 0)
	move := func(days ...int) (all []clockMove) {
		for _, d := range days {
			all = append(all, clockMove{at: noon.AddDate(0, 0, d)})
		}
		return all
	}
	for _, c := range []struct {
		name  string
		moves []clockMove // sessions after the first two, which are at noon of yesterday and today
		want  string      // days of the remaining files
	}{
		{"nothing", nil, "2026-10-31 2026-11-01"},
		{"two days later", move(1, 2), "2026-11-01 2026-11-02 2026-11-03"},
		{"boot in 1970", []clockMove{{at: y1970, restart: true}}, "1970-01-01 2026-10-31 2026-11-01"},
		{"boot in 1970, then the right time", []clockMove{{at: y1970, restart: true}, {at: noon.Add(time.Minute)}}, "1970-01-01 2026-10-31 2026-11-01"},
		{"boot in 1970, and two days later", append([]clockMove{{at: y1970, restart: true}}, move(1, 2)...), "1970-01-01 2026-11-01 2026-11-02 2026-11-03"},
		{"boot in 1970, and three days later", append([]clockMove{{at: y1970, restart: true}}, move(1, 2, 3)...), "2026-11-02 2026-11-03 2026-11-04"},
		{"1970 for more than a day", []clockMove{{at: y1970, restart: true}, {at: y1970.Add(time.Hour), wait: true}}, "1970-01-01 2026-10-31 2026-11-01"},
		{"an hour back", []clockMove{{at: noon.Add(-time.Hour)}}, "2026-10-31 2026-11-01"},
		{"an hour back at midnight", []clockMove{{at: noon.Add(12*time.Hour + time.Minute)}, {at: noon.Add(11*time.Hour + time.Minute), restart: true}}, "2026-10-31 2026-11-01 2026-11-02"},
		{"resume after five days", move(5), "2026-10-31 2026-11-01 2026-11-06"},
		{"resume after five days, a day later", append(move(5), clockMove{at: noon.AddDate(0, 0, 6), wait: true}), "2026-11-06 2026-11-07"},
		{"years forward", []clockMove{{at: ahead}}, "2026-10-31 2026-11-01 2036-11-01"},
		{"years forward and back", []clockMove{{at: ahead}, {at: noon.Add(time.Hour)}}, "2026-10-31 2026-11-01 2036-11-01"},
		{"boot years ahead, twice", []clockMove{{at: ahead, restart: true}, {at: noon.Add(time.Hour)}, {at: ahead.Add(time.Minute), restart: true}, {at: ahead.Add(time.Hour), restart: true}},
			"2026-10-31 2026-11-01 2036-11-01"},
		{"years forward and back, two days later", append([]clockMove{{at: ahead}}, move(1, 2)...), "2026-11-01 2026-11-02 2026-11-03 2036-11-01"},
		{"years forward and back, three days later", append([]clockMove{{at: ahead}}, move(1, 2, 3)...), "2026-11-02 2026-11-03 2026-11-04"},
		{"two steps", append(move(5), clockMove{at: ahead, wait: true}, clockMove{at: noon.Add(time.Hour)}), "2026-10-31 2026-11-01 2026-11-06 2036-11-01"},
		{"years forward for more than a day", []clockMove{{at: ahead}, {at: ahead.AddDate(0, 0, 1), wait: true}}, "2036-11-01 2036-11-02"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var now atomic.Int64
			o := Options{Keep: 48 * time.Hour, Now: func() time.Time { return time.UnixMicro(now.Load()).UTC() }}
			now.Store(noon.AddDate(0, 0, -1).UnixMicro())
			w, _ := openTest(t, dir, o)
			for i, m := range append(move(-1, 0), c.moves...) {
				flush(t, w)
				if m.restart {
					w.Close()
					w, _ = openTest(t, dir, o)
				}
				if m.wait {
					w.days.budget.clock.doubted = time.Now().Add(-clockDoubt)
				}
				now.Store(m.at.UnixMicro())
				add(w, m.at, uint64(i+1))
				flush(t, w)
			}
			var days []string
			for _, name := range segmentNames(t, dir) {
				days = append(days, strings.TrimSuffix(name, ".db"))
			}
			if got := strings.Join(days, " "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestReferenceTime checks that the reference time for the state is never far from the
// last trusted time.
func TestReferenceTime(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{Now: func() time.Time { return noon }})
	add(w, noon, 1)
	flush(t, w)
	w.Close()
	for _, c := range []struct {
		name      string
		now, want time.Time
	}{
		{"the same day", noon.Add(time.Hour), noon.Add(time.Hour)},
		{"an hour back", noon.Add(-time.Hour), noon.Add(-time.Hour)},
		{"two days later", noon.Add(48 * time.Hour), noon.Add(48 * time.Hour)},
		{"five days later", noon.AddDate(0, 0, 5), noon},
		{"years ahead", noon.AddDate(10, 0, 0), noon},
		{"1970", time.Unix(60, 0), noon},
	} {
		if got := ReferenceTime(dir, c.now); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// Without the clock file, the end of the newest day is the last trusted time.
	if err := w.k.directory.remove(clockFile); err != nil {
		t.Fatal(err)
	}
	if got, want := ReferenceTime(dir, noon.AddDate(10, 0, 0)), utcDay(noon).Add(24*time.Hour); !got.Equal(want) {
		t.Errorf("without the file: %s, want %s", got, want)
	}
	if got := ReferenceTime(filepath.Join(dir, "missing"), noon); !got.Equal(noon) {
		t.Errorf("without a directory: %s", got)
	}
}
