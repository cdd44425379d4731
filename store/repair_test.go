package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestSpecialFiles checks that a link or a pipe that replaces a data file is an error for repairs
// and for readers.
func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{})
	add(w, noon, 1)
	flush(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, sessionsDir, "2026-10-31.db"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(t.TempDir(), "other"), filepath.Join(dir, StateFile)); err != nil {
		t.Fatal(err)
	}
	for _, repair := range []bool{false, true} {
		files := found(t, dir, repair)
		for name, want := range map[string]Health{"2026-10-31.db": HealthUnread, StateFile: HealthUnread, "2026-11-01.db": HealthOK} {
			if got := files[name].Health; got != want {
				t.Errorf("repair %v: %s is %q, want %q", repair, name, got, want)
			}
		}
	}
	d, err := openDirectory(filepath.Join(dir, sessionsDir))
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	if all, err := d.stableSegments(); len(all) != 2 || err != nil {
		t.Errorf("a reader sees %d segments: %v", len(all), err)
	}
}

// found inspects or repairs a state directory and returns the state of each
// file, keyed by name.
func found(t *testing.T, dir string, repair bool) map[string]File {
	t.Helper()
	i := Inspector{Dir: dir, Decode: true, Tables: []string{"bans", "peers"}, Row: func(e Entry) error {
		if string(e.Value) == "bad" {
			return errors.New("is wrong")
		}
		return nil
	}}
	all := make(map[string]File)
	visit := func(f *File) error { all[filepath.Base(f.Name)] = *f; return nil }
	var err error
	if repair {
		err = i.Repair("test", noon, visit)
	} else {
		err = i.Each(visit)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// filled creates a state directory with n sessions from one day.
func filled(t *testing.T, n int) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	w, _ := openTest(t, dir, Options{})
	for i := range n {
		add(w, noon.Add(time.Duration(i)*time.Microsecond), uint64(i+1))
	}
	flush(t, w)
	w.Close()
	return dir, filepath.Join(dir, sessionsDir, "2026-11-01.db")
}

func TestInspect(t *testing.T) {
	dir, path := filled(t, 3000)
	f := found(t, dir, false)["2026-11-01.db"]
	if f.Health != HealthOK || f.Records != 3000 || !f.Oldest.Equal(noon) || !f.Newest.Equal(noon.Add(2999*time.Microsecond)) || f.Live {
		t.Errorf("%+v", f)
	}
	if err := os.WriteFile(path+newSuffix, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if f := found(t, dir, false)["2026-11-01.db.new"]; f.Health != HealthLeft {
		t.Errorf("%+v", f)
	}
	w, _ := openTest(t, dir, Options{})
	add(w, noon.Add(time.Hour), 9999)
	flush(t, w)
	if f := found(t, dir, false)["2026-11-01.db"]; f.Health != HealthInUse {
		t.Errorf("without a copy: %+v", f)
	}
	i := Inspector{Dir: dir, Snapshot: liveReader(dir, w).Snapshot}
	err := i.Each(func(f *File) error {
		if strings.HasSuffix(f.Name, ".db") && (f.Health != HealthOK || f.Records != 3001 || !f.Live) {
			t.Errorf("with a copy: %+v", f)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := i.Repair("test", noon, func(*File) error { t.Error("repairs"); return nil }); !errors.Is(err, ErrInUse) {
		t.Errorf("while a filter runs: %v", err)
	}
}

// TestRepair checks that after each kind of damage, a repair leaves every readable
// record exactly once, and keeps the corrupt file.
func TestRepair(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damages are made for pages of 4096 bytes")
	}
	const n = 3000
	least := map[string]int{"both meta pages flipped": n, "truncated": 1, "one page": n - 200}
	kinds := map[string]func([]byte) []byte{"one page": func(b []byte) []byte {
		clear(b[20*4096 : 21*4096])
		return b
	}}
	for name, f := range damage {
		kinds[name] = f
	}
	for name, break_ := range kinds {
		t.Run(name, func(t *testing.T) {
			dir, path := filled(t, n)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := break_(data)
			if err := os.WriteFile(path, damaged, 0o640); err != nil {
				t.Fatal(err)
			}
			if f := found(t, dir, false)["2026-11-01.db"]; f.Health != HealthDamaged || f.Problem == "" {
				t.Errorf("found %+v", f)
			}
			if f := found(t, dir, true)["2026-11-01.db"]; f.Health != HealthAside || f.Done == "" {
				t.Errorf("repaired: %+v", f)
			}
			kept, err := os.ReadFile(path + ".damaged-20261101T120000000Z.salvaged")
			if errors.Is(err, os.ErrNotExist) && least[name] == 0 {
				kept, err = os.ReadFile(path + ".damaged-20261101T120000000Z" + emptyMark)
			}
			if err != nil || string(kept) != string(damaged) {
				t.Errorf("the damaged file is not kept: %v", err)
			}
			got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
			if len(got) < least[name] || len(got) > n {
				t.Errorf("%d records are back, want %d at least", len(got), least[name])
			}
			before := segmentNames(t, dir)
			for name, f := range found(t, dir, true) {
				if f.Health.Bad() || f.Done != "" {
					t.Errorf("repaired again: %s %+v", name, f)
				}
			}
			if after := segmentNames(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("once %v, twice %v", before, after)
			}
			w, log := openTest(t, dir, Options{})
			add(w, noon.Add(time.Hour), 9999)
			flush(t, w)
			if more, _ := ids(t, liveReader(dir, w), time.Time{}, time.Time{}); len(more) != len(got)+1 {
				t.Errorf("then %d records, want %d: %s", len(more), len(got)+1, log)
			}
		})
	}
}

// TestRepairSetAsideSmallAndBroken checks the repair of files that the filter has
// quarantined, and of small segments with inline buckets. Invalid records must be
// omitted.
func TestRepairSetAsideSmallAndBroken(t *testing.T) {
	dir, path := filled(t, 3)
	db, err := bbolt.Open(path, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketSessions)
		return errors.Join(b.Put(AppendKey(nil, noon, 99), []byte{0xff}),
			b.Put(AppendKey(nil, noon.AddDate(1, 0, 0), 98), nil),
			tx.Bucket(bucketMeta).Put([]byte(keyDropped+"full"), []byte{0, 0, 0, 0, 0, 0, 0, 7}))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if f := found(t, dir, false)["2026-11-01.db"]; f.Health != HealthDamaged || f.Bad != 1 || f.Records != 5 {
		t.Errorf("%+v", f)
	}
	aside := "2026-11-01.db.damaged-20261101T000000Z"
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), aside)); err != nil {
		t.Fatal(err)
	}
	if f := found(t, dir, true)[aside]; f.Health != HealthAside || f.Done != "3 records salvaged into 2026-11-01.2.db" {
		t.Errorf("%+v", f)
	}
	f := found(t, dir, false)["2026-11-01.2.db"]
	if f.Health != HealthOK || f.Records != 3 || f.Dropped[DropFull] != 7 {
		t.Errorf("%+v", f)
	}
}

func TestRepairNewerSchemaIsLeftAlone(t *testing.T) {
	dir, path := filled(t, 3)
	db, err := bbolt.Open(path, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte{0, 9}) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if f := found(t, dir, true)["2026-11-01.db"]; f.Health != HealthNewer || f.Done != "" {
		t.Errorf("%+v", f)
	}
	aside := path + ".damaged-20261101T000000Z"
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	if f := found(t, dir, true)[filepath.Base(aside)]; !strings.Contains(f.Done, "not repaired") {
		t.Errorf("%+v", f)
	}
	if got := segmentNames(t, dir); len(got) != 1 || got[0] != filepath.Base(aside) {
		t.Errorf("segments %v", got)
	}
}

func TestRepairState(t *testing.T) {
	fill := func(t *testing.T) (dir, path string) {
		dir = t.TempDir()
		rows := []Entry{{Bucket: "bans", Key: []byte("a"), Value: []byte("good")}, {Bucket: "bans", Key: []byte("b"), Value: []byte("bad")}, {Bucket: "peers", Key: []byte("c"), Value: []byte("good")}}
		s := OpenState(dir, StateOptions{Buckets: []string{"bans", "peers"}, Changes: func(int) (list []Entry) {
			list, rows = rows, nil
			return list
		}})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return dir, filepath.Join(dir, StateFile)
	}
	aside := StateFile + ".damaged-20261101T120000000Z"
	t.Run("a row", func(t *testing.T) {
		dir, _ := fill(t)
		if f := found(t, dir, true)[StateFile]; f.Health != HealthOK || f.Bad != 1 || f.Records != 3 || f.Tables["bans"] != 2 {
			t.Errorf("%+v", f)
		}
		all := found(t, dir, false)
		if f := all[StateFile]; f.Health != HealthOK || f.Records != 2 || all[aside].Health != HealthAside {
			t.Errorf("%+v", all)
		}
	})
	t.Run("a file", func(t *testing.T) {
		dir, path := fill(t)
		if err := os.WriteFile(path, []byte("garbage"), 0o640); err != nil {
			t.Fatal(err)
		}
		if f := found(t, dir, true)[StateFile]; f.Health != HealthAside || f.Done != "quarantined as "+aside {
			t.Errorf("%+v", f)
		}
		if all := found(t, dir, true); len(all) != 1 {
			t.Errorf("%+v", all)
		}
	})
}

// FuzzScan checks that all records salvaged from any file can be decoded.
func FuzzScan(f *testing.F) {
	dir := f.TempDir()
	w := Open(dir, Options{Now: func() time.Time { return noon }})
	for i := range 60 {
		w.Add(noon.Add(time.Duration(i)), uint64(i), AppendRecord(nil, &Record{ID: uint64(i), Start: noon, End: noon}, nil))
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, sessionsDir, "2026-11-01.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{})
	for at := 0; at < 8*4096; at += 4096 {
		f.Add(uint32(at+8), []byte{2, 0, 0xff, 0xff, 0xff})
		f.Add(uint32(at+16), []byte{1, 0, 0, 0, 0xff})
	}
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		data := append([]byte(nil), whole[:min(len(whole), 64<<10)]...)
		copy(data[int(at)%len(data):], change)
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		_, err = scan(file, int64(len(data)), utcDay(noon), func(key, value []byte, _ int, _ bool) error {
			r, err := Decode(key, value)
			return errors.Join(err, r.Steps(func(*Step) bool { return true }))
		})
		if err != nil && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrOlder) {
			t.Fatal(err)
		}
	})
}

// TestRepairKeepsHeads checks that a record with an invalid step is salvaged
// with the steps that precede it.
func TestRepairKeepsHeads(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{})
	for id := range uint64(3) {
		_, v := sampleRecord(noon, id+1)
		if id == 1 {
			at := bytes.Index(v, []byte("a@example.net")) - 1 // position of the sender's length
			v[at] = 0x7f
		}
		w.Add(noon, id+1, v)
	}
	flush(t, w)
	w.Close()
	if f := found(t, dir, true)["2026-11-01.db"]; f.Bad != 1 || !strings.Contains(f.Done, "3 records salvaged into 2026-11-01.2.db") {
		t.Errorf("%+v", f)
	}
	for name, f := range found(t, dir, false) {
		if f.Health.Bad() {
			t.Errorf("%s is %+v", name, f)
		}
	}
	var got []string
	err := (&Reader{Dir: dir}).Each(time.Time{}, time.Time{}, AllKinds, func(r *Record) error {
		steps := 0
		err := r.Steps(func(*Step) bool { steps++; return true })
		got = append(got, fmt.Sprintf("%d: %s, %d steps, %d omitted", r.ID, r.RDNS, steps, r.Omitted))
		return err
	})
	want := []string{"1: scan.example.org, 3 steps, 0 omitted", "2: scan.example.org, 1 steps, 1 omitted", "3: scan.example.org, 3 steps, 0 omitted"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
