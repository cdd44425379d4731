package store

import (
	"path/filepath"
	"testing"
	"time"
)

func BenchmarkAdd(b *testing.B) {
	w := Open(b.TempDir(), Options{})
	defer w.Close()
	_, v := sampleRecord(noon, 1)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w.Add(noon.Add(time.Duration(i)*time.Microsecond), uint64(i), v)
		// Flush before the buffer is full, because dropping a record is cheaper than adding it. The
		// flush itself is not measured.
		if i++; i%10_000 == 0 {
			b.StopTimer()
			if err := w.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		b.Errorf("%d of %d records were dropped", n, i)
	}
}

func BenchmarkCommit500(b *testing.B) {
	d, err := openDirectory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	info := Segment{Name: "2026-11-01.db", Day: noon, Part: 1}
	s, err := createSegment(d, info, 4<<30, "", noon)
	if err != nil {
		b.Fatal(err)
	}
	defer s.release(nil)
	_, v := sampleRecord(noon, 1)
	batch := buffer{data: make([]byte, 0, 1<<20)}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		batch.reset()
		for range batchRecords {
			batch.add(noon.Add(time.Duration(n)*time.Microsecond), uint64(n), v)
			n++
		}
		if err := s.commit(batch.data, Dropped{}, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkEachMillion(b *testing.B) {
	dir := b.TempDir()
	w := Open(dir, Options{Budget: 4 << 30, Now: func() time.Time { return noon }})
	const million = 1_000_000
	for i := range million {
		add(w, noon.Add(time.Duration(i)*100*time.Millisecond), uint64(i))
		if i%10_000 == 0 {
			if err := w.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	all, err := Segments(dir)
	if err != nil {
		b.Fatal(err)
	}
	var size int64
	for _, s := range all {
		size += s.Size
	}
	b.ReportAllocs()
	for b.Loop() {
		n, steps := 0, 0
		r := &Reader{Dir: dir, Problem: func(s string, err error) { b.Error(filepath.Join(dir, s), err) }}
		err := r.Each(time.Time{}, time.Time{}, AllKinds, func(rec *Record) error {
			n++
			return rec.Steps(func(*Step) bool { steps++; return true })
		})
		if err != nil || n != million || steps != 3*million {
			b.Fatalf("%d records, %d steps, %v", n, steps, err)
		}
	}
	b.ReportMetric(float64(b.N)*million/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(size)/million, "bytes/record")
}
