package live

import (
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/share"
)

// TestHostLine checks the description of another host in the status.
func TestHostLine(t *testing.T) {
	at := time.Unix(1e9, 0)
	for want, h := range map[string]share.HostStatus{
		"mx2: 1 row, latest change 1m30s ago, last heard on the server 5s ago": {
			Rows: 1, Last: at.Add(-90 * time.Second), By: share.ByServer, Heard: at.Add(-5 * time.Second)},
		"mx2: 7 rows (2 unbans), latest change 0s ago, from a file written 1h ago, 3 omitted; too many bans\\x1b[0m": {
			Rows: 7, Unbans: 2, Last: at.Add(time.Minute), By: share.ByFile, Heard: at.Add(-time.Hour), Omitted: 3, Problem: "too many bans\x1b[0m"},
		"mx2: 0 rows, not heard on the server; authenticated with a different fleet key": {By: share.ByServer, Problem: "authenticated with a different fleet key"},
		"mx2: 2 rows, received before the start of the filter":                           {Rows: 2},
	} {
		h.Name = "mx2"
		if got := hostLine(&h, at); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestFleetLine checks the description of this host in the status.
func TestFleetLine(t *testing.T) {
	for want, f := range map[string]control.FleetStatus{
		"this host is mx1, fingerprint of the key unknown":                                                       {Name: "mx1"},
		"this host is mx1, fingerprint of the key a-b, bans by other hosts are only observed, ignoring mx8, mx9": {Name: "mx1", Key: "a-b", Observe: true, Ignore: []string{"mx8", "mx9"}},
	} {
		if got := fleetLine(&f); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
