package memory

import (
	"testing"
	"time"

	"scanwatch/rules"
)

// TestDays checks that stored counters are added to the counters since startup, and
// that ReadDay decodes the rows.
func TestDays(t *testing.T) {
	e := Ended{Found: true, Refused: true, Whole: true, Evidence: rules.Harvest, RcptOK: 3, RcptPermfail: 1 << 31}
	m := New()
	for range 3 {
		m.Days.Add(&e, at(0))
	}
	m.Days.Add(&Ended{Local: true, Whole: true, Mails: 2}, at(24*time.Hour))
	d := disk{}
	d.take(m)
	m = New()
	m.Days.Add(&Ended{}, at(0))
	d.load(m, at(48*time.Hour))
	d.take(m)

	list := m.Days.List()
	if len(list) != 2 || !list[1].Day.Equal(list[0].Day.AddDate(0, 0, 1)) {
		t.Fatalf("days %v", list)
	}
	for f, want := range map[DayCounter]uint64{DaySessions: 4, DayWhole: 3, DayFound: 3, DayRefused: 3, DayRcptOK: 9, DayRcptPermfail: 3 << 31, DayMails: 0} {
		if got := list[0].Of(f); got != want {
			t.Errorf("%v: %d, want %d", f, got, want)
		}
	}
	if list[0].Of(DaySummed) != 1 || list[0].Counters["evidence harvest"] != 3 || list[1].Of(DayMails) != 2 {
		t.Errorf("days %v", list)
	}
	read := 0
	for _, en := range d {
		if en.Bucket != "days" {
			continue
		}
		day, ok := ReadDay(en.Key, en.Value)
		if !ok || day.Of(DaySessions) == 0 {
			t.Errorf("row %x is decoded as %v, %v", en.Key, day, ok)
		}
		read++
		for cut := 1; cut < len(en.Value); cut++ {
			if a, ok := ReadDay(en.Key, en.Value[:cut]); ok && len(a.Counters) == len(day.Counters) {
				t.Errorf("a row truncated to %d bytes is complete", cut)
			}
		}
	}
	if read != 2 {
		t.Errorf("%d rows", read)
	}
}

func BenchmarkEnded(b *testing.B) {
	m := New()
	e := Ended{Found: true, Whole: true, Evidence: rules.Harvest | rules.NoMail}
	b.ReportAllocs()
	for b.Loop() {
		m.Days.Add(&e, at(0))
	}
}
