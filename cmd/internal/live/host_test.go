package live

import (
	"testing"
	"time"

	"scanwatch/filter/share"
)

// TestHostLine checks the description of another host in the status.
func TestHostLine(t *testing.T) {
	at := time.Unix(1e9, 0)
	for want, h := range map[string]share.HostStatus{
		"mx2: 1 row, latest change 1m30s ago":                                 {Rows: 1, Last: at.Add(-90 * time.Second)},
		"mx2: 7 rows, latest change 0s ago, 3 omitted; too many bans\\x1b[0m": {Rows: 7, Last: at.Add(time.Minute), Omitted: 3, Problem: "too many bans\x1b[0m"},
		"mx2: 0 rows; authenticated with another fleet key":                   {Problem: "authenticated with another fleet key"},
	} {
		h.Name = "mx2"
		if got := hostLine(&h, at); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
