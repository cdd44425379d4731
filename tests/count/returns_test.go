//go:build linux

package count

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"scanwatch/tests/internal/cli"
)

// A returnRow counts the hosts in a class. For each period, it contains the number of hosts that
// were observed for at least that period, and the number of these hosts that returned within it.
type returnRow struct {
	Hosts             int
	Watched, Returned map[string]int
}

var returnTimes = map[string]time.Duration{"1h": time.Hour, "1d": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "30d": 30 * 24 * time.Hour}

// A firstTime identifies a host and a class, such as bans or a kind of finding.
type firstTime struct {
	class string
	host  netip.Prefix
}

// expectReturns returns the expected rows for records. A host returns if it connects again after
// its first session with the ban or evidence.
func expectReturns(records []*record, until time.Time) map[string]returnRow {
	var all []*session
	for _, r := range records {
		all = append(all, r.sessions...)
	}
	slices.SortStableFunc(all, func(a, b *session) int { return int(a.end - b.end) })
	first := map[firstTime]int64{}
	starts := map[netip.Prefix][]int64{}
	for _, s := range all {
		if s.local {
			continue
		}
		host := source(s.src)
		starts[host] = append(starts[host], s.start)
		classes := slices.Clone(s.evidence)
		if len(classes) > 0 {
			classes = append(classes, "any finding")
		}
		if s.ban != nil {
			classes = append(classes, "banned")
		}
		for _, class := range classes {
			if k := (firstTime{class, host}); first[k] == 0 {
				first[k] = s.end
			}
		}
	}
	rows := map[string]returnRow{}
	for k, at := range first {
		row, ok := rows[k.class]
		if !ok {
			row = returnRow{Watched: map[string]int{}, Returned: map[string]int{}}
		}
		row.Hosts++
		after := int64(math.MaxInt64)
		for _, start := range starts[k.host] {
			if start > at {
				after = min(after, start-at)
			}
		}
		for name, span := range returnTimes {
			if until.Sub(time.UnixMicro(at)) >= span {
				row.Watched[name]++
				if after <= span.Microseconds() {
					row.Returned[name]++
				}
			}
		}
		rows[k.class] = row
	}
	return rows
}

// compareReturns compares the report on returning hosts.
func (r *run) compareReturns(p period, records []*record) {
	r.t.Helper()
	var printed struct {
		Until time.Time
		Rows  []struct {
			Of     string
			Hosts  int
			Within []struct {
				Within            string
				Watched, Returned int
			}
		}
		NotFollowed int `json:"not_followed"`
	}
	cli.Decode(r.t, cli.Run(r.t, r.dir, append([]string{"report", "returns", "--json"}, p.args()...)...), &printed)
	type table struct{ Returns map[string]returnRow }
	got := table{map[string]returnRow{}}
	for _, row := range printed.Rows {
		one := returnRow{row.Hosts, map[string]int{}, map[string]int{}}
		for _, w := range row.Within {
			if w.Watched > 0 {
				one.Watched[w.Within] = w.Watched
			}
			if w.Returned > 0 {
				one.Returned[w.Within] = w.Returned
			}
		}
		got.Returns[row.Of] = one
	}
	if printed.NotFollowed > 0 {
		r.t.Errorf("%s: %d findings are not followed", p.name, printed.NotFollowed)
	}
	compare(r.t, p.name, got, table{expectReturns(records, printed.Until)})
}
