package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestWriterSeals checks that a Writer seals each day after its end, and only while the
// clock is trusted.
func TestWriterSeals(t *testing.T) {
	midnight := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		moves []clockMove // sessions after the first two, which are at noon of yesterday and today
		want  string
	}{
		{"today", nil, "2026-10-31.sealed.db 2026-11-01.db"},
		{"after midnight", []clockMove{{at: midnight.Add(time.Minute)}}, "2026-10-31.sealed.db 2026-11-01.db 2026-11-02.db"},
		{"hours after midnight", []clockMove{{at: midnight.Add(3 * time.Hour)}}, "2026-10-31.sealed.db 2026-11-01.sealed.db 2026-11-02.db"},
		{"hours after midnight, restart", []clockMove{{at: midnight.Add(3 * time.Hour), restart: true}}, "2026-10-31.sealed.db 2026-11-01.sealed.db 2026-11-02.db"},
		{"an hour back at midnight", []clockMove{{at: midnight.Add(time.Minute)}, {at: midnight.Add(-59 * time.Minute), restart: true}}, "2026-10-31.sealed.db 2026-11-01.db 2026-11-02.db"},
		{"late sessions of a sealed day", []clockMove{{at: midnight.Add(3 * time.Hour)}, {at: midnight.Add(-time.Minute), restart: true}, {at: midnight.Add(4 * time.Hour)}},
			"2026-10-31.sealed.db 2026-11-01.sealed.db 2026-11-01.2.sealed.db 2026-11-02.db"},
		{"boot in 1970", []clockMove{{at: time.Unix(60, 0), restart: true}}, "1970-01-01.db 2026-10-31.sealed.db 2026-11-01.db"},
		{"boot in 1970, then the right time", []clockMove{{at: time.Unix(60, 0), restart: true}, {at: midnight.Add(3 * time.Hour)}},
			"1970-01-01.sealed.db 2026-10-31.sealed.db 2026-11-01.sealed.db 2026-11-02.db"},
		{"resume after five days", []clockMove{{at: noon.AddDate(0, 0, 5)}}, "2026-10-31.sealed.db 2026-11-01.db 2026-11-06.db"},
		{"resume after five days, a day later", []clockMove{{at: noon.AddDate(0, 0, 5)}, {at: noon.AddDate(0, 0, 6), wait: true}},
			"2026-10-31.sealed.db 2026-11-01.sealed.db 2026-11-06.sealed.db 2026-11-07.db"},
		{"years forward", []clockMove{{at: noon.AddDate(10, 0, 0)}, {at: noon.AddDate(10, 0, 1)}}, "2026-10-31.sealed.db 2026-11-01.db 2036-11-01.db 2036-11-02.db"},
		{"years forward and back", []clockMove{{at: noon.AddDate(10, 0, 0)}, {at: noon.Add(time.Hour)}}, "2026-10-31.sealed.db 2026-11-01.db 2036-11-01.db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var now atomic.Int64
			o := Options{Seal: true, Now: func() time.Time { return time.UnixMicro(now.Load()).UTC() }}
			now.Store(noon.AddDate(0, 0, -1).UnixMicro())
			w, log := openTest(t, dir, o)
			moves := append([]clockMove{{at: noon.AddDate(0, 0, -1)}, {at: noon}}, c.moves...)
			for i, m := range moves {
				if m.restart {
					w.Close()
					w, log = openTest(t, dir, o)
				}
				if m.wait {
					w.days.budget.clock.doubted = time.Now().Add(-clockDoubt)
				}
				now.Store(m.at.UnixMicro())
				add(w, m.at, uint64(i+1))
				flush(t, w)
				settle(t, w)
			}
			if got := strings.Join(segmentNames(t, dir), " "); got != c.want {
				t.Errorf("%s, want %s; %s", got, c.want, log)
			}
			if got, problems := ids(t, liveReader(dir, w), time.Time{}, time.Time{}); len(got) != len(moves) || problems != nil {
				t.Errorf("%d records, %q; want %d", len(got), problems, len(moves))
			}
		})
	}
}

// settle waits until the Writer has sealed all finished segments.
func settle(t *testing.T, w *Writer) {
	t.Helper()
	for {
		flush(t, w)
		if w.Status().Sealing == "" {
			return
		}
	}
}

// TestSealingReplacesRowsDuringAWalk checks that a reader gets each record once and in
// order, even while segments are sealed.
func TestSealingReplacesRowsDuringAWalk(t *testing.T) {
	const days, each = 6, 500
	for round := range days {
		dir := t.TempDir()
		w, _ := openTest(t, dir, Options{Now: func() time.Time { return noon }})
		for i := range days * each {
			add(w, noon.AddDate(0, 0, i/each).Add(time.Duration(i)*time.Second), uint64(i+1))
		}
		flush(t, w)
		w.Close()
		var got []uint64
		r := &Reader{Dir: dir, Problem: func(s string, err error) { t.Errorf("%s: %v", s, err) }}
		err := r.Each(time.Time{}, time.Time{}, AllKinds, func(rec *Record) error {
			if got = append(got, rec.ID); len(got) == round*each+1 {
				sealDays(t, dir)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, seq(days*each)) {
			t.Errorf("round %d: %d records, %v", round, len(got), err)
		}
	}
}

// TestReadersWhileAWriterSeals checks that concurrent readers get each record once while
// a Writer seals segments.
func TestReadersWhileAWriterSeals(t *testing.T) {
	const days, each = 12, 60
	dir := t.TempDir()
	var now atomic.Int64
	now.Store(noon.UnixMicro())
	w, _ := openTest(t, dir, Options{Seal: true, Now: func() time.Time { return time.UnixMicro(now.Load()) }})
	flush(t, w) // creates the directory
	var stop atomic.Bool
	var readers sync.WaitGroup
	var flushed atomic.Int64
	for range 2 {
		readers.Go(func() {
			for !stop.Load() {
				least := int(flushed.Load())
				var got []uint64
				r := liveReader(dir, w)
				r.Problem = func(s string, err error) { t.Errorf("%s: %v", s, err) }
				err := r.Each(time.Time{}, time.Time{}, AllKinds, func(rec *Record) error {
					got = append(got, rec.ID)
					return nil
				})
				if err != nil || len(got) < least || !slices.Equal(got, seq(len(got))) {
					t.Errorf("%d records, want %d at least: %v", len(got), least, err)
				}
			}
		})
	}
	for i := range days * each {
		at := noon.Add(time.Duration(i) * 24 * time.Hour / each)
		now.Store(at.UnixMicro())
		add(w, at, uint64(i+1))
		if i%20 == 19 {
			flush(t, w)
			flushed.Store(int64(i + 1))
		}
	}
	settle(t, w)
	stop.Store(true)
	readers.Wait()
	if s := w.Status(); s.Sealed != days-1 && s.Sealed != days {
		t.Errorf("%+v", s)
	}
}

// TestBudgetWhileSealing checks that the files never exceed the budget while full
// segments are sealed, and that during a flood, sealing makes room for a longer
// history.
func TestBudgetWhileSealing(t *testing.T) {
	total := floodRecords
	kept := map[bool]int{}
	for _, sealed := range []bool{false, true} {
		dir := t.TempDir()
		w, log := openTest(t, dir, Options{Budget: MinBudget, Buffer: 2 << 20, Seal: sealed})
		for i := range total {
			end := noon.Add(time.Duration(i) * time.Millisecond)
			r, steps := variedRecord(i, end)
			for range 6 {
				steps = append(steps, steps...)
				if len(steps) > 1000 {
					break
				}
			}
			w.Add(end, r.ID, AppendRecord(nil, r, steps))
			if i%100 != 99 {
				continue
			}
			flush(t, w)
			if i%1000 == 999 {
				settle(t, w) // so that the result does not depend on the speed of sealing
			}
			var sum int64
			for range 2 { // a file can be renamed while it is listed
				sum = 0
				files, err := os.ReadDir(filepath.Join(dir, sessionsDir))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					if info, err := f.Info(); err == nil {
						sum += info.Size()
					}
				}
				if sum <= MinBudget {
					break
				}
			}
			if sum > MinBudget {
				t.Fatalf("%d bytes after %d records, the budget is %d", sum, i+1, MinBudget)
			}
		}
		settle(t, w)
		got, problems := ids(t, liveReader(dir, w), time.Time{}, time.Time{})
		if problems != nil {
			t.Errorf("problems %q", problems)
		}
		if s := log.String(); strings.Contains(s, "WARN") || strings.Contains(s, "ERROR") {
			t.Errorf("log: %s", s)
		}
		kept[sealed] = len(got)
	}
	t.Logf("of %d records, %d are kept in rows, %d with sealing", total, kept[false], kept[true])
	if kept[true] <= kept[false] {
		t.Errorf("%d records with sealing, %d without", kept[true], kept[false])
	}
}

// TestSealWithoutRoom checks that a segment is not sealed if sealing would not make it
// smaller, and that no other segment is removed to make room.
func TestSealWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	now := noon
	w, log := openTest(t, dir, Options{Seal: true, Now: func() time.Time { return now }})
	noise := make([]byte, 900)
	for i := range 3000 {
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(noise)
		r := Record{ID: uint64(i + 1), Start: noon, End: noon.Add(time.Duration(i))}
		w.Add(r.End, r.ID, AppendRecord(nil, &r, AppendStep(nil, &Step{Kind: KindHelo, Text: noise}, 0)))
	}
	flush(t, w)
	info, err := os.Stat(filepath.Join(dir, sessionsDir, "2026-11-01.db"))
	if err != nil {
		t.Fatal(err)
	}
	// Simulate rows that use less space than blocks.
	d := w.k.directory
	if _, err := seal(d, Segment{Name: "2026-11-01.db", Day: utcDay(noon), Part: 1}, sealing{limit: info.Size() / 2}); !errors.Is(err, ErrInUse) {
		t.Errorf("sealing the open segment: %v, want %v", err, ErrInUse)
	}
	w.Close()
	if _, err := seal(d, Segment{Name: "2026-11-01.db", Day: utcDay(noon), Part: 1}, sealing{limit: info.Size() / 2}); !errors.Is(err, errNoRoom) {
		t.Errorf("%v, want %v", err, errNoRoom)
	}
	if got := strings.Join(segmentNames(t, dir), " "); got != "2026-11-01.db" {
		t.Errorf("segments %s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, sessionsDir, "*"+newSuffix)); left != nil {
		t.Errorf("left: %v; %s", left, log)
	}
	res, err := seal(d, Segment{Name: "2026-11-01.db", Day: utcDay(noon), Part: 1}, sealing{limit: MinBudget})
	if err != nil || res.records != 3000 { // the number is logged
		t.Errorf("sealed %d records: %v", res.records, err)
	}
}

// TestSealDamagedRows checks the sealing of corrupt segments of rows. If a page is corrupt, the
// segment must be quarantined. If only records are corrupt, the intact records must be sealed and
// the segment of rows must be kept. A segment with a different schema must remain unchanged.
func TestSealDamagedRows(t *testing.T) {
	for _, c := range []struct {
		name    string
		damage  func(t *testing.T, path string)
		want    string // names of the segments
		records int
		log     string
	}{
		{"a page", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := 2 * 4096; at < len(b); at += 4096 {
				b[at] ^= 0x40
			}
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
		}, "2026-10-31.db.damaged-20261101T120000000Z 2026-10-31.2.sealed.db 2026-11-01.db", 1, "corrupt file quarantined"},
		{"a step", func(t *testing.T, path string) {
			_, v := sampleRecord(noon, 1)
			v[bytes.Index(v, []byte("a@example.net"))-1] = 0x7f
			change(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(bucketSessions).Put(AppendKey(nil, noon.AddDate(0, 0, -1), 7), v)
			})
		}, "2026-10-31.db.damaged-20261101T120000000Z.salvaged 2026-10-31.sealed.db 2026-11-01.db", 102, "corrupt records, original quarantined"},
		{"a head", func(t *testing.T, path string) {
			change(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(bucketSessions).Put(AppendKey(nil, noon.AddDate(0, 0, -1), 7), []byte{0xff})
			})
		}, "2026-10-31.db.damaged-20261101T120000000Z.salvaged 2026-10-31.sealed.db 2026-11-01.db", 101, "corrupt records, original quarantined"},
		{"a newer schema", func(t *testing.T, path string) {
			change(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte{0, schema + 1}) })
		}, "2026-10-31.db 2026-11-01.db", 1, ""},
		{"an older schema", func(t *testing.T, path string) {
			change(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte{0, 1}) })
		}, "2026-10-31.db 2026-11-01.db", 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w, _ := openTest(t, dir, Options{})
			for i := range 100 {
				add(w, noon.AddDate(0, 0, -1).Add(time.Duration(i)*time.Second), uint64(i+100))
			}
			flush(t, w)
			w.Close()
			c.damage(t, filepath.Join(dir, sessionsDir, "2026-10-31.db"))
			w, log := openTest(t, dir, Options{Seal: true})
			add(w, noon, 1)
			settle(t, w)
			if got := strings.Join(segmentNames(t, dir), " "); got != c.want {
				t.Errorf("segments %s, want %s", got, c.want)
			}
			if got, _ := ids(t, liveReader(dir, w), time.Time{}, time.Time{}); len(got) != c.records {
				t.Errorf("%d records, want %d", len(got), c.records)
			}
			if c.log != "" && log.count(c.log) != 1 || c.log == "" && strings.Contains(log.String(), "WARN") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// change changes a file with bbolt.
func change(t *testing.T, path string, f func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestRowsAndSealed checks a day that has both a segment of rows and a sealed segment after a
// crash.
func TestRowsAndSealed(t *testing.T) {
	for _, c := range []struct {
		name    string
		damage  string // the damaged file
		repair  bool   // repair the directory; if false, start a Writer
		want    string
		problem bool
	}{
		{"writer", "", false, "2026-11-01.sealed.db", false},
		{"repair", "", true, "2026-11-01.sealed.db", false},
		{"writer, the sealed file is corrupt", "2026-11-01.sealed.db", false, "2026-11-01.sealed.db", true},
		{"repair, the sealed file is corrupt", "2026-11-01.sealed.db", true, "2026-11-01.db 2026-11-01.sealed.db.damaged-20261101T120000000Z.salvaged", true},
		{"writer, the rows are corrupt", "2026-11-01.db", false, "2026-11-01.sealed.db", false},
		{"repair, the rows are corrupt", "2026-11-01.db", true, "2026-11-01.sealed.db", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 5000
			dir := recorded(t, noon, n)
			path := filepath.Join(dir, sessionsDir, "2026-11-01.db")
			rows, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sealDays(t, dir)
			if err := os.WriteFile(path, rows, 0o640); err != nil {
				t.Fatal(err)
			}
			if c.damage != "" {
				path := filepath.Join(dir, sessionsDir, c.damage)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				clear(b[len(b)/2:][:100])
				if err := os.WriteFile(path, b, 0o640); err != nil {
					t.Fatal(err)
				}
			}
			got, problems := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
			if (len(got) < n) != c.problem || (problems != nil) != c.problem {
				t.Errorf("before: %d records, %q", len(got), problems)
			}
			if c.repair {
				found(t, dir, true)
			} else {
				now := noon.AddDate(0, 0, 1)
				w, _ := openTest(t, dir, Options{Seal: true, Now: func() time.Time { return now }})
				settle(t, w)
				w.Close()
			}
			if got := strings.Join(segmentNames(t, dir), " "); got != c.want {
				t.Errorf("segments %s, want %s", got, c.want)
			}
			if got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{}); len(got) != n {
				t.Errorf("then: %d records", len(got))
			}
			for name, f := range found(t, dir, false) {
				if f.Health.Bad() || f.Health == HealthLeft {
					t.Errorf("%s: %+v", name, f)
				}
			}
		})
	}
}
