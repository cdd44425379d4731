package store_test

import (
	"iter"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// recorded returns the records of simulated sessions.
func recorded(sessions iter.Seq[simulate.Session]) []store.Record {
	all, err := simulate.Record(sessions)
	if err != nil {
		panic(err)
	}
	return all
}

// attacked returns a day's sessions in which a legitimate server is the target
// of a directory harvest and a brute-force attack. The sessions have 15 steps
// on average.
var attacked = sync.OnceValue(func() []store.Record {
	attack := simulate.Attack{Seed: 1, Start: simulate.Midnight, Every: 24 * time.Hour / 20_000, Sessions: 20_000, Each: 10}
	harvest := simulate.Harvest(attack)
	attack.Seed, attack.Each = 2, 5
	return recorded(simulate.Merge(simulate.Day(1, 20_000), simulate.Merge(harvest, simulate.Guess(attack))))
})

// mixed returns sessions in the same proportions as tests/bench.
var mixed = sync.OnceValue(func() []store.Record {
	all := recorded(simulate.Mixed(100_000, 7*time.Millisecond))
	for i := range all {
		all[i].ID = simulate.Random(all[i].ID)
	}
	return all
})

// loads lists the sets of sessions for the benchmarks.
var loads = []struct {
	name string
	all  func() []store.Record
}{{"attacks", attacked}, {"mix", mixed}}

// BenchmarkSeal measures the encoding of sessions as blocks.
func BenchmarkSeal(b *testing.B) {
	for _, l := range loads {
		b.Run(l.name, func(b *testing.B) {
			all := l.all()
			size := 0
			b.ReportAllocs()
			for b.Loop() {
				size = 0
				for _, v := range store.Seal(all) {
					size += len(v)
				}
			}
			b.ReportMetric(float64(size)/float64(len(all)), "bytes/session")
			b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}

// BenchmarkReadBlocks measures reading sessions in blocks with only some kinds
// of steps.
func BenchmarkReadBlocks(b *testing.B) {
	for _, l := range loads {
		for _, of := range []struct {
			name  string
			kinds store.Kinds
		}{{"header", 0}, {"evidence", store.KindsOf(store.KindFinding, store.KindVerdict)}, {"all", store.AllKinds}} {
			b.Run(l.name+"/"+of.name, func(b *testing.B) {
				all := l.all()
				blocks := store.Seal(all)
				steps := 0
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					if err := store.ReadBlocks(blocks, of.kinds, func(r *store.Record) error {
						n++
						return r.Steps(func(*store.Step) bool { steps++; return true })
					}); err != nil || n != len(all) {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(steps)/float64(b.N*len(all)), "steps/session")
				b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "sessions/s")
			})
		}
	}
}

// BenchmarkContainer compares a sealed day in a bbolt file with a plain file of the same
// blocks and index.
func BenchmarkContainer(b *testing.B) {
	for _, l := range loads {
		all := l.all()
		dir := b.TempDir()
		plain := store.PlainFile{Name: filepath.Join(dir, "plain")}
		for _, c := range []struct {
			name  string
			write func() (int64, error)
			read  func(func(*store.Record) error) error
		}{
			{"bbolt", func() (int64, error) { return store.SealFile(dir, all) },
				func(f func(*store.Record) error) error { return store.ReadFile(dir, 0, f) }},
			{"plain", func() (int64, error) { return plain.Write(all) }, func(f func(*store.Record) error) error { return plain.Read(0, f) }},
		} {
			b.Run(l.name+"/write/"+c.name, func(b *testing.B) {
				var size int64
				for b.Loop() {
					var err error
					if size, err = c.write(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(size)/float64(len(all)), "bytes/session")
			})
			b.Run(l.name+"/read/"+c.name, func(b *testing.B) {
				for b.Loop() {
					n := 0
					if err := c.read(func(*store.Record) error { n++; return nil }); err != nil || n != len(all) {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "sessions/s")
			})
		}
	}
}
