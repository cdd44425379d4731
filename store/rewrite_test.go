package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// erasing returns an Edit that removes the source and the steps of the selected records.
func erasing(which func(*Record) bool) Edit {
	var to Record
	return func(r *Record) *Record {
		if !which(r) || r.Erased {
			return nil
		}
		to = r.WithSteps(nil)
		to.Src, to.RDNS, to.Erased = netip.AddrPort{}, nil, true
		return &to
	}
}

// TestRewrite checks that a rewrite replaces some records, leaves none of their
// bytes, and copies the other records and blocks.
func TestRewrite(t *testing.T) {
	const n, which = 9000, 5005
	for _, sealed := range []bool{false, true} {
		dir := recorded(t, noon, n)
		if sealed {
			sealDays(t, dir)
		}
		d, err := openSessions(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.root.Close()
		s, _ := parseSegment(segmentNames(t, dir)[0])
		path := filepath.Join(dir, sessionsDir, s.Name)
		o := sealing{limit: 64 << 20, program: "test", now: noon.Add(time.Hour)}
		before := described(t, &Reader{Dir: dir}, time.Time{}, time.Time{}, AllKinds)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if changed, err := rewriteFile(d, s, o, func(*Record) *Record { return nil }); changed != 0 || err != nil {
			t.Errorf("%d changed, %v", changed, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
			t.Error("a rewrite without a change has changed the file")
		}
		var src netip.Addr
		erase := erasing(func(r *Record) bool {
			if r.ID == mix(which) {
				src = r.Src.Addr()
			}
			return r.ID == mix(which)
		})
		if changed, err := rewriteFile(d, s, o, erase); changed != 1 || err != nil {
			t.Fatalf("%d changed, %v", changed, err)
		}
		after := described(t, &Reader{Dir: dir}, time.Time{}, time.Time{}, AllKinds)
		if len(after) != n || after[which] == before[which] || !slices.Equal(after[:which], before[:which]) || !slices.Equal(after[which+1:], before[which+1:]) {
			t.Errorf("%d records, want %d of which one has changed", len(after), n)
		}
		found := foundIDs(t, dir, mix(which))
		r := &Reader{Dir: dir}
		all, err := r.Find(mix(which))
		if len(found) != 1 || err != nil || len(all) != 1 || !all[0].Erased || all[0].Src.IsValid() || all[0].RDNS != nil {
			t.Errorf("%d records, %+v, %v", len(found), all, err)
		}
		r.Only = &Selection{Sources: []netip.Prefix{netip.PrefixFrom(src, src.BitLen())}}
		if got, problems := ids(t, r, time.Time{}, time.Time{}); slices.Contains(got, mix(which)) || problems != nil {
			t.Errorf("the record is found by its source; %q", problems)
		}
		for name, f := range foundFiles(t, dir) {
			if f.Health != HealthOK || f.Records != n {
				t.Errorf("%s: %+v", name, f)
			}
		}
		if again, err := rewriteFile(d, s, o, erase); again != 0 || err != nil {
			t.Errorf("%d changed again, %v", again, err)
		}
		if _, err := rewriteFile(d, s, o, func(r *Record) *Record { c := *r; c.ID++; return &c }); err == nil {
			t.Error("another key was accepted")
		}
		o.limit = 1 << 16
		if _, err := rewriteFile(d, s, o, erasing(func(*Record) bool { return true })); !errors.Is(err, errNoRoom) {
			t.Errorf("without room: %v", err)
		}
		if left := strings.Join(segmentNames(t, dir), " "); left != s.Name {
			t.Errorf("left: %s", left)
		}
	}
}

func foundFiles(t *testing.T, dir string) map[string]File { return found(t, dir, false) }

// TestRewriteBlocks checks that a rewrite copies blocks that contain no replaced records, and that
// the bytes of replaced blocks have been overwritten. A corrupt block must cause an error, because
// the block could contain records to replace.
func TestRewriteBlocks(t *testing.T) {
	dir := recorded(t, noon, 9000)
	sealDays(t, dir)
	d, err := openSessions(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	s := Segment{Name: "2026-11-01.sealed.db", Day: utcDay(noon), Part: 1, Sealed: true}
	o := sealing{limit: 64 << 20, program: "test", now: noon}
	blocksOf := func() (all [][]byte) {
		f, err := openSealed(d, s)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		err = f.each(func(_ int, b *decodedBlock) error { all = append(all, bytes.Clone(b.value())); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	old := blocksOf()
	// Record 5005 is in the second block.
	if changed, err := rewriteFile(d, s, o, erasing(func(r *Record) bool { return r.ID == mix(5005) })); changed != 1 || err != nil {
		t.Fatalf("%d changed, %v", changed, err)
	}
	now := blocksOf()
	if len(now) != 3 || !bytes.Equal(now[0], old[0]) || bytes.Equal(now[1], old[1]) || !bytes.Equal(now[2], old[2]) {
		t.Error("not just the second block has changed")
	}
	path := filepath.Join(dir, sessionsDir, s.Name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, old[0]) || bytes.Contains(b, old[1][64:]) {
		t.Error("the second block is still in the file, or the first is not")
	}
	at := bytes.Index(b, old[2]) + len(old[2])/2
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	if changed, err := rewriteFile(d, s, o, erasing(func(r *Record) bool { return r.ID == mix(1) })); !isDamaged(err) {
		t.Errorf("%d changed, %v", changed, err)
	}
}

// TestWriterRewrites checks that a running Writer rewrites its open segment and a
// sealed segment. Records added before and after the rewrite must be kept. A snapshot
// of the open segment must not contain the replaced records.
func TestWriterRewrites(t *testing.T) {
	dir := t.TempDir()
	now := noon
	w, log := openTest(t, dir, Options{Seal: true, Now: func() time.Time { return now }})
	for i := range 50 {
		add(w, noon.Add(time.Duration(i-50)*time.Hour), uint64(i+1))
	}
	flush(t, w)
	settle(t, w)
	reader := liveReader(dir, w)
	before, _ := ids(t, reader, time.Time{}, time.Time{})
	add(w, now, 99) // not yet on disk
	all, err := w.Segments()
	if err != nil {
		t.Fatal(err)
	}
	changed, sealed := 0, 0
	for _, s := range all {
		if s.Sealed {
			sealed++
		}
		n, err := w.Rewrite(t.Context(), s.Name, erasing(func(r *Record) bool { return true }))
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		changed += n
	}
	if changed != len(before)+1 || sealed == 0 || len(all) == sealed {
		t.Errorf("%d records changed, want %d; %d of %d segments are sealed", changed, len(before)+1, sealed, len(all))
	}
	now = now.Add(time.Minute)
	add(w, now, 100)
	flush(t, w)
	want := append(before, 99, 100)
	left := 0
	err = reader.Each(time.Time{}, time.Time{}, AllKinds, func(r *Record) error {
		if !r.Erased {
			left++
		}
		return nil
	})
	if got, problems := ids(t, reader, time.Time{}, time.Time{}); err != nil || !slices.Equal(got, want) || problems != nil || left != 1 {
		t.Errorf("%d records, want %d; %d are not erased; %q, %v", len(got), len(want), left, problems, err)
	}
	for _, name := range []string{"../state.db", "2026-11-01.db.damaged-1", "x"} {
		if _, err := w.Rewrite(t.Context(), name, erasing(func(*Record) bool { return true })); err == nil {
			t.Errorf("%q was rewritten", name)
		}
	}
	if n, err := w.Rewrite(t.Context(), "2020-01-01.db", erasing(func(*Record) bool { return true })); n != 0 || err != nil {
		t.Errorf("a segment that is gone: %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.Rewrite(t.Context(), all[0].Name, erasing(func(*Record) bool { return true })); err == nil {
		t.Error("a closed writer has rewritten a segment")
	}
	if log.count("ERROR") > 0 {
		t.Error(log)
	}
	scanFor(t, dir, "ylmf-pc")
}

// scanFor reports an error for each file in dir that contains a text. Compressed columns
// are also searched.
func scanFor(t *testing.T, dir, text string) {
	t.Helper()
	all, err := Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		b, err := os.ReadFile(filepath.Join(dir, sessionsDir, s.Name))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte(text)); n > 1 || s.Sealed && n > 0 { // the last test adds one again
			t.Errorf("%s has %q %d times", s.Name, text, n)
		}
	}
}

// TestRewriteWithinBudget checks that a rewrite of a full directory stays within the
// budget, because it needs room for only one segment.
func TestRewriteWithinBudget(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{Budget: MinBudget, Seal: true, Now: func() time.Time { return noon }})
	noise := make([]byte, 900) // cannot be compressed
	for i := range 20_000 {
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(noise)
		r := Record{ID: uint64(i + 1), Start: noon, End: noon.Add(time.Duration(i) * time.Millisecond)}
		w.Add(r.End, r.ID, AppendRecord(nil, &r, AppendStep(nil, &Step{Kind: KindHelo, Text: noise}, 0)))
		if i%1000 == 0 {
			flush(t, w)
		}
	}
	flush(t, w)
	settle(t, w)
	all, err := w.Segments()
	if err != nil {
		t.Fatal(err)
	}
	if all[0].Name == "2026-11-01.db" {
		t.Fatalf("the directory was never full: %+v", all)
	}
	changed := 0
	for _, s := range all {
		n, err := w.Rewrite(t.Context(), s.Name, erasing(func(r *Record) bool { return r.ID%3 == 0 }))
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		changed += n
		if st := w.Status(); st.Bytes > MinBudget {
			t.Errorf("%d bytes after %s", st.Bytes, s.Name)
		}
	}
	if changed == 0 {
		t.Error("no record changed")
	}
}

// TestRewriteDirectory checks a rewrite with and without a running filter.
func TestRewriteDirectory(t *testing.T) {
	dir := recorded(t, noon, 100)
	w, _ := openTest(t, dir, Options{})
	erase := erasing(func(*Record) bool { return true })
	i := &Inspector{Dir: dir, Budget: 64 << 20}
	add(w, noon, 1)
	flush(t, w)
	if err := i.Rewrite("test", noon, erase, func(f *Rewritten) { t.Error(f) }); !errors.Is(err, ErrInUse) {
		t.Errorf("with a filter: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(dir, sessionsDir, "2026-10-01.db.damaged-20261101T000000000Z")
	for _, name := range []string{aside, filepath.Join(dir, sessionsDir, "2026-11-01.db.new"), filepath.Join(dir, StateFile+damagedMark+"1")} {
		if err := os.WriteFile(name, []byte("x"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	err := i.Rewrite("test", noon, erase, func(f *Rewritten) {
		n += f.Changed
		if f.Err != nil {
			t.Error(f)
		}
	})
	if err != nil || n != 101 {
		t.Errorf("%d records, %v", n, err)
	}
	if exists, _ := filepath.Glob(filepath.Join(dir, sessionsDir, "*.new")); exists != nil {
		t.Errorf("left: %v", exists)
	}
	if names, err := Quarantined(dir); err != nil || fmt.Sprint(names) != "[sessions/2026-10-01.db.damaged-20261101T000000000Z state.db.damaged-1]" {
		t.Errorf("quarantined: %q, %v", names, err)
	}
	i.Budget = 1 << 18
	if err := os.WriteFile(filepath.Join(dir, sessionsDir, "2026-10-02.db.damaged-20261101T000000000Z"), make([]byte, 1<<18), 0o640); err != nil {
		t.Fatal(err)
	}
	err = i.Rewrite("test", noon, func(r *Record) *Record { c := r.WithSteps(nil); return &c }, func(f *Rewritten) {
		if !errors.Is(f.Err, errNoRoom) {
			t.Errorf("without room: %+v", f)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if err := (&Inspector{Dir: t.TempDir()}).Rewrite("test", noon, erase, func(f *Rewritten) { t.Error(f) }); err != nil {
		t.Errorf("a directory without sessions: %v", err)
	}
}

// rewriter repeatedly rewrites a directory and prints a line for each file.
func rewriter(dir string) {
	fmt.Println("ready")
	turn := os.Getenv("SCANWATCH_TEST_FIRST")
	i := Inspector{Dir: dir, Budget: 64 << 20}
	err := i.Rewrite("test", noon, func(r *Record) *Record {
		to := *r
		to.Server = []byte("turn " + turn)
		return &to
	}, func(f *Rewritten) { fmt.Println(f.Name, f.Err) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestRewriteKill checks that a killed rewrite leaves each file either unchanged or completely
// rewritten. The next rewrite must replace the old files.
func TestRewriteKill(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, sessionsDir), 0o750); err != nil {
		t.Fatal(err)
	}
	const n, days = 3000, 6
	for day := range days {
		from := recorded(t, noon.AddDate(0, 0, day), n)
		if day%2 == 0 {
			if _, err := SealDays(from, "test", noon.AddDate(0, 0, 10)); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range segmentNames(t, from) {
			if err := os.Rename(filepath.Join(from, sessionsDir, name), filepath.Join(dir, sessionsDir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rounds := sealKillRounds
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		killed(t, days+1, 0, "SCANWATCH_TEST_REWRITE="+dir, fmt.Sprintf("SCANWATCH_TEST_FIRST=%d", round))
		servers := map[int64]map[string]int{}
		total := 0
		err := (&Reader{Dir: dir, Problem: func(s string, err error) { t.Error(s, err) }}).Each(time.Time{}, time.Time{}, AllKinds, func(r *Record) error {
			day := utcDay(r.End).Unix()
			if servers[day] == nil {
				servers[day] = map[string]int{}
			}
			servers[day][string(r.Server)]++
			total++
			return r.Steps(func(*Step) bool { return true })
		})
		if err != nil || total != n*days {
			t.Fatalf("%d records, %v", total, err)
		}
		for day, all := range servers {
			if len(all) != 1 {
				t.Errorf("day %d is neither old nor new: %v", day, all)
			}
		}
	}
	i := &Inspector{Dir: dir, Budget: 64 << 20}
	changed := 0
	if err := i.Rewrite("test", noon, erasing(func(*Record) bool { return true }), func(f *Rewritten) { changed += f.Changed }); err != nil || changed != n*days {
		t.Errorf("%d records changed, %v", changed, err)
	}
	for name, f := range found(t, dir, false) {
		if f.Health != HealthOK {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// TestStateCompact checks that the file does not contain a deleted row after Compact,
// and that rows can still be written and read.
func TestStateCompact(t *testing.T) {
	dir := t.TempDir()
	var batch []Entry
	row := func(key, value string) Entry {
		e := Entry{Bucket: "peers", Key: []byte(key)}
		if value != "" {
			e.Value = []byte(value)
		}
		return e
	}
	reserved := int64(0)
	s := OpenState(dir, StateOptions{Buckets: []string{"peers"}, Every: time.Hour, MaxSize: 4 << 20,
		Changes: func(int) (list []Entry) {
			list, batch = batch, nil
			return list
		}, Room: func(n int64) error { reserved = max(reserved, n); return nil }})
	defer s.Close()
	path := filepath.Join(dir, StateFile)
	has := func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(b, []byte("198.51.100.77"))
	}
	batch = []Entry{row("a", "198.51.100.77"), row("b", "other")}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch = []Entry{row("a", "")}
	if err := s.Flush(t.Context()); err != nil || !has() {
		t.Fatalf("the deleted row is not in the file before Compact: %v", err)
	}
	batch = []Entry{row("c", "late")}
	if err := s.Compact(t.Context()); err != nil || has() {
		t.Errorf("the deleted row is still in the file: %v", err)
	}
	if reserved == 0 || reserved > 4<<20 {
		t.Errorf("%d bytes reserved", reserved)
	}
	batch = []Entry{row("d", "later")}
	if err := s.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	var got []string
	if err := ReadState(dir, []string{"peers"}, nil, func(e Entry) error { got = append(got, string(e.Value)); return nil }); err != nil || strings.Join(got, " ") != "other late later" {
		t.Errorf("%q, %v", got, err)
	}
	small := OpenState(dir, StateOptions{Buckets: []string{"peers"}, Every: time.Hour, MaxSize: 1 << 20})
	defer small.Close()
	if err := small.Compact(t.Context()); !errors.Is(err, errNoRoom) {
		t.Errorf("without room: %v", err)
	}
}
