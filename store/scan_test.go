package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/store/column"
)

// scannedKeys returns the keys of the records that scan finds in b.
func scannedKeys(t *testing.T, b []byte) map[recordKey]bool {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "rows"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	keys := make(map[recordKey]bool)
	if _, err := scan(f, int64(len(b)), utcDay(noon), func(key, _ []byte, _ int, _ bool) error {
		keys[keyOf(key)] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

// leafPages returns the offsets of the leaf pages with more than four records.
func leafPages(b []byte) (all []int) {
	for at := 2 * 4096; at+4096 <= len(b); at += 4096 {
		if order.Uint64(b[at:]) == uint64(at/4096) && order.Uint16(b[at+8:]) == flagLeaf && order.Uint16(b[at+10:]) > 4 {
			all = append(all, at)
		}
	}
	return all
}

// TestScanCorruptHeader checks that a corrupt page header hides neither the page's
// records nor other pages.
func TestScanCorruptHeader(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
	}
	const n = 1000
	_, path := filled(t, n)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pages := leafPages(b)
	check := func(name string, change func(page []byte)) {
		t.Helper()
		for _, at := range []int{pages[0], pages[len(pages)/2], pages[len(pages)-1]} {
			c := bytes.Clone(b)
			change(c[at:][:4096])
			if got := len(scannedKeys(t, c)); got != n {
				t.Errorf("%s of page %d: %d records, want %d", name, at/4096, got, n)
			}
		}
	}
	for i := range pageHeader {
		for _, bits := range []byte{1, 0x80, 0xff} {
			check(fmt.Sprintf("byte %d of the header ^ %x", i, bits), func(p []byte) { p[i] ^= bits })
		}
	}
	check("the header", func(p []byte) { clear(p[:pageHeader]) })
	check("an overflow of 512", func(p []byte) { p[13] = 2 })
	for i := range pageElement {
		check(fmt.Sprintf("byte %d of an element", i), func(p []byte) { p[pageHeader+2*pageElement+i] ^= 0x55 })
	}
}

// TestScanStaleOverflow checks that the scan reads pages that have replaced an unused
// page's former overflow pages.
func TestScanStaleOverflow(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
	}
	const n = 500
	_, path := filled(t, n)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Overwrite a page with an unused page that once held one large record.
	pages := leafPages(b)
	at := pages[len(pages)/2]
	own := int(order.Uint16(b[at+10:]))
	r := Record{ID: 9999, Start: noon, End: noon}
	var steps []byte
	for range 20 {
		steps = AppendStep(steps, &Step{Kind: KindCommand, Text: make([]byte, 1000)}, 0)
	}
	key, value := AppendKey(nil, noon, 9999), AppendRecord(nil, &r, steps)
	page := b[at:][:4096]
	clear(page)
	order.PutUint64(page, uint64(at/4096))
	order.PutUint16(page[8:], flagLeaf)
	order.PutUint16(page[10:], 1)
	order.PutUint32(page[12:], uint32((pageHeader+pageElement+len(key)+len(value)-1)/4096))
	order.PutUint32(page[pageHeader+4:], pageElement)
	order.PutUint32(page[pageHeader+8:], KeySize)
	order.PutUint32(page[pageHeader+12:], uint32(len(value)))
	copy(page[pageHeader+pageElement:], append(key, value...))
	got := scannedKeys(t, b)
	delete(got, keyOf(key))
	if len(got) < n-own {
		t.Errorf("%d records, want %d", len(got), n-own)
	}
}

// TestScanMisplacedKey checks that a record with a corrupt key is not mistaken for a
// different record.
func TestScanMisplacedKey(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
	}
	const n = 500
	_, path := filled(t, n)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := scannedKeys(t, b)
	page := b[leafPages(b)[3]:][:4096]
	e := elementsOf(page)[2]
	page[e.from+4] ^= 1 // changes the time by some minutes
	for key := range scannedKeys(t, b) {
		if !whole[key] {
			t.Errorf("a record at %s", key.time())
		}
	}
}

// TestRepairPageSizes checks that segments with any page size can be salvaged without
// their meta pages.
func TestRepairPageSizes(t *testing.T) {
	const n = 3000
	for _, size := range []int{1024, 4096, 8192, 16384, 65536} {
		dir, path := filled(t, n)
		src, err := bbolt.Open(path, 0o640, nil)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := bbolt.Open(path+"2", 0o640, &bbolt.Options{PageSize: size})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(bbolt.Compact(dst, src, 0), dst.Close(), src.Close()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path + "2")
		if err != nil {
			t.Fatal(err)
		}
		clear(b[:2*size])
		if err := errors.Join(os.WriteFile(path, b, 0o640), os.Remove(path+"2")); err != nil {
			t.Fatal(err)
		}
		found(t, dir, true)
		if got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{}); len(got) != n {
			t.Errorf("pages of %d bytes: %d records, want %d", size, len(got), n)
		}
	}
}

// TestRepairKeepsMetadata checks that the metadata survives the loss of the meta pages, in a
// segment of rows and in a sealed segment. The metadata contains rule texts, the numbers of dropped
// records, and the mark of a wrong clock. Readers must find the metadata even before the repair.
func TestRepairKeepsMetadata(t *testing.T) {
	for _, texts := range []int{1, 60} { // the texts fit into the bucket's page, or need other pages
		var rules []string
		for i := range texts {
			rules = append(rules, fmt.Sprintf("rule r%d phase connect match src 192.0.2.%d %s", i, i, strings.Repeat("x", 200)))
		}
		for _, sealed := range []bool{false, true} {
			dir := t.TempDir()
			w, _ := openTest(t, dir, Options{})
			w.Rules(rules)
			for i := range 200 {
				add(w, noon.Add(time.Duration(i)*time.Second), uint64(i+1))
			}
			w.Add(noon, 1000, make([]byte, MaxValue+1))
			flush(t, w)
			add(w, noon.Add(time.Hour), 1001) // also writes the number of dropped records
			flush(t, w)
			if err := w.k.current().markDoubt(noon); err != nil {
				t.Fatal(err)
			}
			w.Close()
			name := "2026-11-01.db"
			if sealed {
				sealDays(t, dir)
				name = "2026-11-01.sealed.db"
			}
			path := filepath.Join(dir, sessionsDir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			clear(b[:2*os.Getpagesize()])
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
			check := func() {
				t.Helper()
				r := Reader{Dir: dir, Rules: map[uint32]string{}, Problem: func(string, error) {}}
				if err := r.Each(time.Time{}, time.Time{}, AllKinds, func(*Record) error { return nil }); err != nil {
					t.Error(err)
				}
				want(t, r.Rules, rules...)
			}
			if sealed {
				check()
			}
			found(t, dir, true)
			check()
			repaired := strings.Replace(name, "2026-11-01", "2026-11-01.2", 1)
			if f := found(t, dir, false)[repaired]; f.Dropped == nil || f.Dropped[DropLarge] != 1 || f.Records != 201 {
				t.Errorf("%s: %+v", repaired, f)
			}
			if at, err := createdInDoubt(w.k.directory, &Segment{Name: repaired}); err != nil || !at.Equal(noon) {
				t.Errorf("%s: created at %s, %v", repaired, at, err)
			}
		}
	}
}

// recordsOf reads all records in dir and also returns the number of
// truncated records.
func recordsOf(t *testing.T, dir string) (all []Record, cut int) {
	t.Helper()
	err := (&Reader{Dir: dir, Problem: func(string, error) {}}).Each(time.Time{}, time.Time{}, AllKinds, func(r *Record) error {
		all = append(all, r.Clone())
		if r.Omitted > 0 {
			cut++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, cut
}

// TestRepairKeepsBetterCopy checks that a repair of both files of a day keeps the better
// copy of each record. The repair must not create a record of a session that never took
// place.
func TestRepairKeepsBetterCopy(t *testing.T) {
	const n = 9000
	for name, damageRows := range map[string]func([]byte){
		"steps": func(b []byte) {
			for at := 0; ; {
				i := bytes.Index(b[at:], []byte("helo5"))
				if i < 0 {
					break
				}
				at += i
				b[at-1] = 0x7f // invalid length of the text
				at++
			}
		},
		"ids": func(b []byte) {
			for at := 2 * 4096; at+4096 <= len(b); at += 4096 {
				if page := b[at:][:4096]; order.Uint16(page[8:]) == flagLeaf {
					for _, e := range elementsOf(page) {
						if e.flags == 0 && e.key-e.from == KeySize && e.to <= len(page) {
							page[e.from+8] ^= 1
							break
						}
					}
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getpagesize() != 4096 {
				t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
			}
			dir := withBoth(t, n, damageRows, lastBlock)
			found(t, dir, true)
			all, cut := recordsOf(t, dir)
			seen := make(map[uint64]bool)
			for i := range n {
				seen[mix(uint64(i))] = true
			}
			never, ends := 0, make(map[int64]bool)
			for i := range all {
				ends[all[i].End.UnixMicro()] = true
				if !seen[all[i].ID] && all[i].End.Before(noon.Add(8000*100*time.Millisecond)) {
					never++
				}
			}
			// Only the segment of rows contains the sessions of one block. Depending on the
			// commits, a freed page may contain a second copy of a record, with a corrupt id.
			if twice := len(all) - len(ends); len(ends) != n || never > 0 || twice > 3 {
				t.Errorf("%d records, %d of them twice, %d never took place; want %d", len(all), twice, never, n)
			}
			if cut > 110 { // only the block that is missing from the sealed segment may lose steps
				t.Errorf("%d records are cut", cut)
			}
		})
	}
}

// TestRepairCorruptColumn checks that no record is lost if a column other than a key
// column is corrupt.
func TestRepairCorruptColumn(t *testing.T) {
	const n = 3000
	dir := recorded(t, noon, n)
	sealDays(t, dir)
	path := filepath.Join(dir, sessionsDir, "2026-11-01.sealed.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := recordsOf(t, dir)
	begin := bytes.LastIndex(whole, []byte(blockMagic))
	var r column.Reader
	if err := r.Open(whole[begin:]); err != nil {
		t.Fatal(err)
	}
	lost := make(map[string]bool) // the columns that have been corrupt
	var o block
	for at := begin; at < len(whole); at += 7 {
		whole[at] ^= 0xff
		err := o.open(whole[begin:], AllKinds)
		if _, name, ok := strings.Cut(fmt.Sprint(err), "checksum of column "); ok && !lost[name] {
			lost[name] = true
			sessions := filepath.Join(dir, sessionsDir)
			for _, s := range segmentNames(t, dir) {
				if err := os.Remove(filepath.Join(sessions, s)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path, whole, 0o640); err != nil {
				t.Fatal(err)
			}
			found(t, dir, true)
			all, cut := recordsOf(t, dir)
			want := n
			if name == `"end"` || name == `"id"` {
				want = 0
			}
			if len(all) != want || cut != want {
				t.Errorf("column %s: %d records, %d cut; want %d", name, len(all), cut, want)
			}
			for i := range all {
				if a, b := &all[i], &good[i]; a.key() != b.key() || a.Start.Before(b.Start) || name != `"src"` && name != `":src"` && a.Src.Addr() != b.Src.Addr() {
					t.Fatalf("column %s: %s", name, describe(a))
				}
			}
		}
		whole[at] ^= 0xff
	}
	for _, name := range []string{`"id"`, `"duration"`, `"kinds"`, `"rest"`} {
		if !lost[name] {
			t.Errorf("column %s was never corrupt: %v", name, slices.Sorted(maps.Keys(lost)))
		}
	}
	t.Logf("%d columns: %v", len(lost), slices.Sorted(maps.Keys(lost)))
}

// TestRepairTemporaryFiles checks that a repair reports and removes exactly the
// programs' temporary files.
func TestRepairTemporaryFiles(t *testing.T) {
	dir, _ := filled(t, 3)
	files := []string{"key-123.new", "mode-4.new", "sessions/clock.new", "sessions/2026-11-01.2.db.new", "state.db.new"}
	others := []string{"key.new", "list.new", "mode-x.new", "sessions/list.new"}
	for _, name := range append(files, others...) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	all := found(t, dir, true)
	for _, name := range files {
		if f := all[filepath.Base(name)]; f.Health != HealthLeft || f.Done != "removed" {
			t.Errorf("%s: %+v", name, f)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range others {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestRepairBoundsCopies checks that repeated repairs of state.db keep only a few
// quarantined copies. Repairing a segment must remove quarantined copies and temporary
// files to make room.
func TestRepairBoundsCopies(t *testing.T) {
	dir, path := filled(t, 3000)
	i := Inspector{Dir: dir, Decode: true}
	repair := func(at time.Time) (done string) {
		if err := i.Repair("test", at, func(f *File) error { done += f.Done + "\n"; return nil }); err != nil {
			t.Fatal(err)
		}
		return done
	}
	for n := range 5 {
		if err := os.WriteFile(filepath.Join(dir, StateFile), make([]byte, 2<<20), 0o640); err != nil {
			t.Fatal(err)
		}
		done := repair(noon.Add(time.Duration(n) * time.Minute))
		if copies, _ := filepath.Glob(filepath.Join(dir, StateFile+damagedMark+"*")); len(copies) != min(n+1, stateQuarantined) {
			t.Errorf("%d copies after %d repairs: %s", len(copies), n+1, done)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:8192])
	if err := errors.Join(os.WriteFile(path, b, 0o640), os.WriteFile(path+".new", make([]byte, 4<<20), 0o640)); err != nil {
		t.Fatal(err)
	}
	i.Budget = 3*int64(len(b)) + 4<<20 + 1<<20
	if done := repair(noon.Add(time.Hour)); !strings.Contains(done, "3000 records salvaged") || !strings.Contains(done, StateFile+damagedMark) {
		t.Errorf("%s", done)
	}
	if total := filesIn(t, dir); total > i.Budget {
		t.Errorf("%d bytes of %d", total, i.Budget)
	}
}
