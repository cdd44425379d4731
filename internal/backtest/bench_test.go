package backtest

import (
	"iter"
	"syscall"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// cpuTime returns the CPU time used by the process.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRun replays sealed days through the standard preset. The mix load is generated as in
// tests/bench. The attacks load is a mail server's normal day plus a directory
// harvest.
func BenchmarkRun(b *testing.B) {
	attack := simulate.Attack{Seed: 1, Start: simulate.Midnight, Every: 24 * time.Hour / 20_000, Sessions: 20_000, Each: 10}
	for _, load := range []struct {
		name string
		all  iter.Seq[simulate.Session]
	}{{"mix", simulate.Mixed(100_000, 860*time.Millisecond)}, {"attacks", simulate.Merge(simulate.Day(1, 20_000), simulate.Harvest(attack))}} {
		b.Run(load.name, func(b *testing.B) {
			records, err := simulate.Record(load.all)
			if err != nil {
				b.Fatal(err)
			}
			dir := b.TempDir()
			if err := simulate.Seal(dir, records); err != nil {
				b.Fatal(err)
			}
			text, err := simulate.PresetText("standard")
			if err != nil {
				b.Fatal(err)
			}
			policy, err := simulate.Compile(text)
			if err != nil {
				b.Fatal(err)
			}
			lists, err := lookup.Builtin()
			if err != nil {
				b.Fatal(err)
			}
			o := Options{Name: "standard", Test: &filter.Settings{Policy: policy.InMode(rules.Enforce)}, Lists: lists, Progress: func(int, time.Time) {}}
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				o.Reader = &store.Reader{Dir: dir, Problem: func(s string, err error) { b.Error(s, err) }}
				if r, err := Run(o); err != nil || r.Sessions != len(records) {
					b.Fatal(r, err)
				}
			}
			b.ReportMetric(float64(b.N*len(records))/b.Elapsed().Seconds(), "sessions/s")
			b.ReportMetric((cpuTime()-before).Seconds()*1e6/float64(b.N*len(records)), "cpu-us/session")
		})
	}
}
