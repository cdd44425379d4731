package memory

import (
	"testing"
	"time"

	"scanwatch/rules"
	"scanwatch/store"
)

// TestDays: what the disk has kept of a day and what came since the start add
// up, and is read the same without the filter.
func TestDays(t *testing.T) {
	e := Ended{Found: true, Refused: true, Whole: true, Evidence: rules.Harvest, Counts: &store.Counts{RcptOK: 3, RcptPermfail: 1 << 31}}
	m := New()
	for range 3 {
		m.Ended(&e, at(0))
	}
	m.Ended(&Ended{Local: true, Whole: true, Counts: &store.Counts{Mails: 2}}, at(24*time.Hour))
	d := disk{}
	d.take(m)
	m = New()
	m.Ended(&Ended{Counts: &store.Counts{}}, at(0))
	d.load(m, at(48*time.Hour))
	d.take(m)

	list := m.Days()
	if len(list) != 2 || !list[1].Day.Equal(list[0].Day.AddDate(0, 0, 1)) {
		t.Fatalf("days %v", list)
	}
	for f, want := range map[Figure]uint64{DaySessions: 4, DayWhole: 3, DayFound: 3, DayRefused: 3, DayRcptOK: 9, DayRcptPermfail: 3 << 31, DayMails: 0} {
		if got := list[0].Of(f); got != want {
			t.Errorf("%v: %d, want %d", f, got, want)
		}
	}
	if list[0].Lost() != 1 || list[0].Figures["evidence harvest"] != 3 || list[1].Of(DayMails) != 2 {
		t.Errorf("days %v", list)
	}
	read := 0
	for _, en := range d {
		if en.Bucket != "days" {
			continue
		}
		day, ok := ReadDay(en.Key, en.Value)
		if !ok || day.Of(DaySessions) == 0 {
			t.Errorf("row %x is read as %v, %v", en.Key, day, ok)
		}
		read++
		for cut := 1; cut < len(en.Value); cut++ {
			if a, ok := ReadDay(en.Key, en.Value[:cut]); ok && len(a.Figures) == len(day.Figures) {
				t.Errorf("a row cut to %d bytes is read as whole", cut)
			}
		}
	}
	if read != 2 {
		t.Errorf("%d rows", read)
	}
}

func BenchmarkEnded(b *testing.B) {
	m := New()
	e := Ended{Found: true, Whole: true, Evidence: rules.Harvest | rules.NoMail, Counts: &store.Counts{}}
	b.ReportAllocs()
	for b.Loop() {
		m.Ended(&e, at(0))
	}
}
