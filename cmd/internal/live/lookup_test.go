package live

import (
	"testing"

	"scanwatch/filter/dnslist"
)

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
