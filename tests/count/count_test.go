//go:build linux

package count

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

// countSessions is the number of sessions in TestCount, and also the seed.
var countSessions = flag.Int("count.sessions", 20_000, "sessions of TestCount")

// TestCount counts the sessions in a stream independently, and compares the result with reports,
// records, counters and bans for several periods. The stream contains floods, aggregates, restarts,
// and sealed and open days.
func TestCount(t *testing.T) { count(t, *countSessions) }

// The filter is stopped on the second day, and killed on the third day.
var (
	stopped = begin.Add(36*time.Hour + 30*time.Minute)
	killed  = begin.Add(2*24*time.Hour + 15*time.Hour + 45*time.Minute)
	ends    = begin.Add(3*24*time.Hour + 90*time.Minute) // the third day is not sealed before 02:00
)

func count(t *testing.T, sessions int) {
	w := newWorld(size{sessions: sessions, until: ends, quiet: []time.Time{stopped, killed}})
	r := newRun(t, w, 512)
	r.play(stopped)
	r.stop()
	r.start()
	r.play(killed)
	r.kill()
	r.start()
	r.play(ends.Add(time.Minute))
	r.flush()
	r.sealed(2)
	if rows, _ := r.segments(3); rows == 0 {
		t.Fatal("no day is open")
	}
	sums, full, summed := 0, 0, 0
	for _, one := range r.ledger.records {
		if one.sum {
			sums, summed = sums+1, summed+len(one.sessions)
		}
		if one.ids == sumIDs {
			full++
		}
	}
	t.Logf("%d sessions, %d records; %d in %d aggregates, %d of these full", len(r.all), len(r.ledger.records), summed, sums, full)
	if full == 0 || summed < sessions/4 {
		t.Error("there are too few aggregates")
	}
	for _, p := range r.periods() {
		r.check(p)
	}
	r.compareStats()
	r.compareBans()
	r.stop()
	for _, p := range r.periods()[:4] { // repeated without a running filter
		r.check(p)
	}
	r.compareStats()
	r.compareBans()
}

// A period is a report's time range. A zero time means no limit.
type period struct {
	name         string
	since, until time.Time
}

// args returns the flags for the period.
func (p *period) args() (list []string) {
	if !p.since.IsZero() {
		list = append(list, "--since", p.since.Format(time.RFC3339Nano))
	}
	if !p.until.IsZero() {
		list = append(list, "--until", p.until.Format(time.RFC3339Nano))
	}
	return list
}

// has reports whether a record ended in the period.
func (p *period) has(r *record) bool {
	end := time.UnixMicro(r.end)
	return !end.Before(p.since) && (p.until.IsZero() || end.Before(p.until))
}

// periods returns the periods to compare: the whole stream, each day, and parts of sealed and open
// days. Some periods start or end within an aggregate, exactly at its end, or one microsecond
// later.
func (r *run) periods() (list []period) {
	day := func(n int) time.Time { return begin.AddDate(0, 0, n) }
	list = append(list, period{"everything", begin.AddDate(-1, 0, 0), time.Time{}})
	for n := range 4 {
		list = append(list, period{fmt.Sprintf("day %d", n), day(n), day(n + 1)})
	}
	list = append(list,
		period{"two sealed days", day(0), day(2)},
		period{"within a sealed day", day(0).Add(4*time.Hour + 17*time.Minute + 123457*time.Microsecond), day(0).Add(19*time.Hour + 3*time.Second)},
		period{"over midnight between sealed days", day(0).Add(20 * time.Hour), day(1).Add(3*time.Hour + 30*time.Minute)},
		period{"from a sealed to an open day", day(1).Add(11 * time.Hour), day(2).Add(13 * time.Hour)},
		period{"both restarts", stopped.Add(-30 * time.Minute), killed.Add(30 * time.Minute)},
		period{"a minute", day(1).Add(10 * time.Hour), day(1).Add(10*time.Hour + time.Minute)},
		period{"nothing", day(-3), day(-2)})
	rng := r.world.rng
	var sums []*record
	for _, one := range r.ledger.records {
		if one.sum && len(one.sessions) > 2 {
			sums = append(sums, one)
		}
	}
	for n := range 6 {
		sum := sums[rng.IntN(len(sums))]
		inside, end := time.UnixMicro(sum.sessions[len(sum.sessions)/2].end), time.UnixMicro(sum.end)
		span := time.Duration(rng.Int64N(int64(20 * time.Hour)))
		list = append(list, []period{
			{"from within an aggregate", inside, inside.Add(span)},
			{"until within an aggregate", inside.Add(-span), inside},
			{"until the end of an aggregate", end.Add(-span), end},
			{"until after the end of an aggregate", end.Add(-span), end.Add(time.Microsecond)},
			{"from the end of an aggregate", end, end.Add(span)},
			{"from after the end of an aggregate", end.Add(time.Microsecond), end.Add(span)},
		}[n])
	}
	return list
}

// check compares a period's output with the ledger's records.
func (r *run) check(p period) {
	r.t.Helper()
	var records []*record
	for _, one := range r.ledger.records {
		if p.has(one) {
			records = append(records, one)
		}
	}
	compare(r.t, p.name, *report(r.t, r.dir, p.args()), *expect(records))
	r.compareDump(p, records)
	r.compareReturns(p, records)
	r.compareScanners(p, records)
}
