//go:build linux

package main

// This file measures how fast a year of sealed days is read.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/store"
	walk "scanwatch/store/history"
	"scanwatch/store/report"
	"scanwatch/tests/simulate"
)

// visitors is the number of sources that never send mail.
const visitors = 1_000_000

// visitor returns the address and name of a source that never sends mail.
func visitor(n uint64) (netip.Addr, []byte) {
	n %= visitors
	return netip.AddrFrom4([4]byte{11 + byte(n>>16), byte(n >> 8), byte(n), 7}), fmt.Appendf(nil, "host%d.isp%d.example", n, n%1000)
}

// A past is a history of sealed days, which are all copies of one day of the stream mix.
type past struct {
	dir      string
	days     int
	sessions int
	until    time.Time
	rare     netip.Addr // a source that never sends mail
	daily    netip.Addr // a host that sends several messages every day
}

// makePast records and seals days of sessions. The last day is yesterday.
func makePast(dir string, days, daily int) (*past, error) {
	p, one, err := newPast(dir, days, daily)
	if err != nil {
		return nil, err
	}
	for day := 0; day < days; {
		batch := min(30, days-day) // unsealed rows take up five times as much space as sealed days
		if err := p.add(one, day, batch); err != nil {
			return nil, err
		}
		if _, err := store.SealDays(p.dir, "bench", p.until.AddDate(0, 0, day+batch-days+1)); err != nil {
			return nil, err
		}
		day += batch
	}
	return p, nil
}

// newPast returns a past without sessions, and the records of the one day that all other days
// repeat.
func newPast(dir string, days, daily int) (*past, []store.Record, error) {
	one, err := simulate.Record(simulate.Mixed(daily, 24*time.Hour/time.Duration(daily)-time.Microsecond))
	return &past{dir: dir, days: days, until: time.Now().UTC().Truncate(24 * time.Hour)}, one, err
}

// add adds days to the records, starting with the given day.
func (p *past) add(one []store.Record, day, days int) error {
	var now time.Time
	w := store.Open(p.dir, store.Options{Budget: 64 << 30, Keep: 10 * 365 * 24 * time.Hour, Now: func() time.Time { return now }})
	var value, steps []byte
	for d := day; d < day+days; d++ {
		later := p.until.AddDate(0, 0, d-p.days).Sub(one[0].Start.Truncate(24 * time.Hour))
		for i := range one {
			r := one[i]
			r.ID, r.Start, r.End = simulate.Random(uint64(d*len(one)+i)), r.Start.Add(later), r.End.Add(later)
			var name []byte
			if r.Counts.Mails == 0 {
				var addr netip.Addr
				addr, name = visitor(r.ID)
				r.Src, r.RDNS, p.rare = netip.AddrPortFrom(addr, r.Src.Port()), name, addr
			} else {
				p.daily = r.Src.Addr()
			}
			steps = renamed(steps[:0], &one[i], name)
			value = store.AppendRecord(value[:0], &r, steps)
			now = r.End
			w.Add(r.End, r.ID, value)
			if p.sessions++; p.sessions%5000 == 0 {
				if err := w.Flush(context.Background()); err != nil {
					return err
				}
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		return fmt.Errorf("%d records were dropped", n)
	}
	return nil
}

// renamed appends the steps of r to dst. If name is not empty, it replaces the name in the
// greeting.
func renamed(dst []byte, r *store.Record, name []byte) []byte {
	var last time.Duration
	_ = r.Steps(func(s *store.Step) bool {
		if s.Kind == store.KindHelo && name != nil {
			s.Text = name
		}
		dst = store.AppendStep(dst, s, s.At-last)
		last = s.At
		return true
	})
	return dst
}

// reading is a command that reads records.
type reading struct {
	what   string
	cold   bool
	args   []string
	status int     // expected exit status
	runs   []usage // results
}

// rate returns millions of sessions per second in the median run.
func (r *reading) rate(sessions int) float64 { return float64(sessions) / r.wall().Seconds() / 1e6 }

func (r *reading) wall() time.Duration {
	return r.median(func(u usage) time.Duration { return u.wall })
}

func (r *reading) cpu() time.Duration { return r.median(func(u usage) time.Duration { return u.cpu }) }

func (r *reading) median(of func(usage) time.Duration) time.Duration {
	var all []time.Duration
	for _, u := range r.runs {
		all = append(all, of(u))
	}
	return median(all)
}

// memory returns the maximum memory used in any run.
func (r *reading) memory() (most int64) {
	for _, u := range r.runs {
		most = max(most, u.memory)
	}
	return most
}

// history measures the commands that read records, on a year with ten million sessions.
func (b *bench) history() error {
	days, daily, tested := 365, 27_400, 300_000
	if b.quick {
		days, daily, tested = 3, 500, 500
	}
	p, err := makePast(filepath.Join(b.dir, "year"), days, daily)
	if err != nil {
		return err
	}
	defer os.RemoveAll(p.dir)
	short, err := makePast(filepath.Join(b.dir, "days"), max(tested/daily, 1), daily)
	if err != nil {
		return err
	}
	defer os.RemoveAll(short.dir)
	disk := size(p.dir)
	fmt.Fprintf(b.out, "\nhistory: %d sessions on %d days, %.1f MB, %d bytes each\n", p.sessions, days, float64(disk)/1e6, disk/int64(p.sessions))
	of := func(dir string, args ...string) []string {
		return append([]string{filepath.Join(b.dir, "scanwatch"), "-s", dir}, args...)
	}
	full := &reading{what: "report", args: of(p.dir, "report", "--since", "2y")}
	why := &reading{what: "why, a client without mail", cold: true, args: of(p.dir, "why", p.rare.String())}
	test := &reading{what: "backtest of the preset standard", args: of(short.dir, "backtest", "--policy", "standard"), status: 3}
	all := []*reading{full,
		{what: "report --json", args: of(p.dir, "report", "--since", "2y", "--json")},
		{what: "report, cold", cold: true, args: full.args}, why,
		{what: "why, a host with mail every day", cold: true, args: of(p.dir, "why", p.daily.String())}, test}
	for range min(b.pairs, 3) {
		for _, r := range all {
			if err := r.run(p.dir); err != nil {
				return err
			}
		}
	}
	totals, err := b.totals(p)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "command\tseconds\tCPU seconds\tmillion sessions/s\tMB")
	for _, r := range append(all, totals) {
		n := p.sessions
		if r == test {
			n = short.sessions
		}
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.3f\t%.0f\n", r.what, r.wall().Seconds(), r.cpu().Seconds(), r.rate(n), float64(r.memory())/1e6)
	}
	w.Flush()
	b.goalAtLeast("totals and evidence of a year, million sessions/s, warm", totals.rate(p.sessions), 10)
	b.goalAtLeast("report of a year, million sessions/s, warm", full.rate(p.sessions), 3)
	b.goal("MB of memory of this report", float64(full.memory())/1e6, 64)
	b.goal("s of why ADDRESS over a year, cold", why.wall().Seconds(), 2)
	b.goalAtLeast("backtest, thousand sessions/s", 1e3*test.rate(short.sessions), 60)
	b.goal("bytes on disk per sealed session of the mix", float64(disk)/float64(p.sessions), 60)
	return nil
}

// run runs the command once.
func (r *reading) run(dir string) error {
	if r.cold {
		if err := cold(dir); err != nil {
			return err
		}
	}
	u, err := timed(io.Discard, r.args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == r.status {
		err = nil
	}
	r.runs = append(r.runs, u)
	return err
}

// totals measures how long this process takes to count totals and evidence.
func (b *bench) totals(p *past) (*reading, error) {
	r := &reading{what: "totals and evidence, warm"}
	for range min(b.pairs, 3) {
		var failed error
		reader := &store.Reader{Dir: p.dir, Problem: func(s string, err error) { failed = fmt.Errorf("%s: %w", s, err) }}
		c := report.NewTotals()
		before, began := cpuTime(), time.Now()
		err := walk.Walk(reader, time.Time{}, time.Time{}, c.Visitor())
		u := usage{wall: time.Since(began), cpu: cpuTime() - before}
		if n := c.Summary(p.until, p.until, 10, nil).Remote.Sessions; err == nil && failed == nil && n != p.sessions {
			failed = fmt.Errorf("%d sessions, not %d", n, p.sessions)
		}
		if err = errors.Join(err, failed); err != nil {
			return nil, err
		}
		r.runs = append(r.runs, u)
	}
	return r, nil
}

// cpuTime returns the CPU time of this process.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
