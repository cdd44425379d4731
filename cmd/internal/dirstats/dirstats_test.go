package dirstats

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/statedir"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// TestCollect checks the numbers and the forecast for a directory with the sessions of two days.
func TestCollect(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	d := &statedir.Dir{Path: t.TempDir(), Now: func() time.Time { return now }, Settings: rules.Settings{Budget: 64 << 20}}
	w := store.Open(d.Path, store.Options{Now: d.Now, Program: "test"})
	for i := range 100 {
		end := now.Add(-time.Duration(99-i) * 15 * time.Minute) // oldest first
		w.Add(end, uint64(i), store.AppendRecord(nil, &store.Record{Start: end, End: end, Src: netip.MustParseAddrPort("192.0.2.1:25")}, nil))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Collect(d, func(problem string) { t.Error(problem) })
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Segments) != 2 || s.Records != 100 || s.Unread != 0 || s.Budget != 64<<20 || s.Keep != rules.DefaultKeep.Hours()/24 {
		t.Errorf("%+v", s)
	}
	size := s.Segments[0].Size + s.Segments[1].Size
	if s.Average != size/100 || s.PerDay < size*9/10 || s.PerDay > size || s.Days < 1 {
		t.Errorf("%d bytes per record, %d per day, %.1f days", s.Average, s.PerDay, s.Days)
	}
	var b bytes.Buffer
	s.Text(&b, time.UTC)
	for _, want := range []string{"SEGMENT ", "2026-11-01.db ", "2026-11-02.db ", "records     100, too few for an average size\n", "budget      sufficient for ", "dropped     no sessions\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// TestForecastOfSealedDays checks that the forecast uses the average size of sealed
// records even for the current day.
func TestForecastOfSealedDays(t *testing.T) {
	day := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s := &Stats{Budget: 8 << 20, Keep: 90, Records: 15_000}
	for i, f := range []store.File{{Size: 100_000, Records: 10_000}, {Size: 1_000_000, Records: 5000}} {
		f.Segment = &store.Segment{Day: day.AddDate(0, 0, i), Sealed: i == 0}
		f.Oldest, f.Newest = text.At(f.Segment.Day), text.At(f.Segment.Day.Add(24*time.Hour))
		s.Segments = append(s.Segments, f)
	}
	s.derive()
	if want := int64(100_000+50_000) / 2; s.PerDay != want {
		t.Errorf("%d bytes per day, want %d", s.PerDay, want)
	}
}
