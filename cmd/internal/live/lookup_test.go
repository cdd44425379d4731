package live

import (
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/dnslist"
	"scanwatch/internal/text"
)

// TestCompanionLine checks the description of a companion in the status.
func TestCompanionLine(t *testing.T) {
	now := time.Now()
	done := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	for want, c := range map[string]control.CompanionStatus{
		"not seen since the filter started": {},
		"running, 1 entry":                  {Seen: text.At(now), Entries: 1},
		"running, 0 entries, last success 2026-11-02 12:00:00, 12 lost": {Seen: text.At(now), Done: text.At(done), Lost: 12},
	} {
		c.Name = "forward url"
		if got := companionLine(&c, time.UTC); got != "forward url: "+want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestLookupLine checks the description of a DNS list in the status.
func TestLookupLine(t *testing.T) {
	for want, l := range map[string]dnslist.ListStatus{
		"bl (bl.example.org): 1 question, 1 listed, 0 not listed": {Asked: 1, Listed: 1},
		"bl (bl.example.org): 9 questions, 1 listed, 2 not listed, unknown: 2 timeout, 1 code, 3 dropped": {
			Asked: 9, Listed: 1, Absent: 2, Unknown: map[string]uint64{"code": 1, "timeout": 2, "rate": 0}, Dropped: 3},
	} {
		l.Name, l.Zone = "bl", "bl.example.org"
		if got := lookupLine(&l); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
