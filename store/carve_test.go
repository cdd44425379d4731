package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// forgedBlock returns a block of two sessions that never took place.
func forgedBlock(end time.Time, id uint64) []byte {
	e := newBlockEncoder()
	for i := range 2 {
		e.add(&Record{ID: id + uint64(i), Start: end, End: end.Add(time.Duration(i))})
	}
	return e.finish(nil)
}

// recordedText records sessions with incompressible text, some of which
// include the given text.
func recordedText(t *testing.T, n int, text []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	w, _ := openTest(t, dir, Options{Buffer: 32 << 20})
	noise := rand.NewChaCha8([32]byte{1})
	for i := range n {
		b := make([]byte, 600)
		_, _ = noise.Read(b)
		if i%100 == 50 {
			b = append(b, text...)
		}
		end := noon.Add(time.Duration(i) * time.Second)
		r := Record{ID: uint64(i + 1), Start: end, End: end}
		w.Add(end, r.ID, AppendRecord(nil, &r, AppendStep(nil, &Step{Kind: KindCommand, Text: b}, 0)))
	}
	flush(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestForgedBlocks checks that a client's text is never read as a block or a page. The test
// corrupts various sets of pages in a sealed segment.
func TestForgedBlocks(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
	}
	const n = 9000
	forged := forgedBlock(noon.Add(time.Hour), 1_000_000)
	text := bytes.Clone(forged)
	text = append(text, make([]byte, markSize)...)
	text = append(text, forged...)
	for range 20 { // more than there are blocks in the file
		text = append(text, "0123456789abcdef"...)
		text = append(text, forged...)
	}
	dir := recordedText(t, n, text)
	sealDays(t, dir)
	path := filepath.Join(dir, sessionsDir, "2026-11-01.sealed.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(whole, forged) < n/100 {
		t.Fatalf("%d copies of the forged block in the file", bytes.Count(whole, forged))
	}
	var heads []int // offsets of the pages that contain their own number
	for at := 8192; at+4096 <= len(whole); at += 4096 {
		if order.Uint64(whole[at:]) == uint64(at/4096) {
			heads = append(heads, at)
		}
	}
	damages := map[string]func(b []byte){
		"both meta pages": func(b []byte) { clear(b[:8192]) },
		"all but leaf pages": func(b []byte) {
			clear(b[:8192])
			for _, at := range heads {
				if order.Uint16(b[at+8:]) != flagLeaf {
					clear(b[at:][:4096])
				}
			}
		},
		"all numbered pages": func(b []byte) {
			clear(b[:8192])
			for _, at := range heads {
				clear(b[at:][:64])
			}
		},
	}
	for _, at := range heads {
		damages[fmt.Sprintf("page %d", at/4096)] = func(b []byte) { clear(b[at:][:4096]) }
	}
	least := map[string]int{"both meta pages": n, "all but leaf pages": n}
	for name, damage := range damages {
		b := bytes.Clone(whole)
		damage(b)
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
		for _, repaired := range []bool{false, true} {
			if repaired {
				found(t, dir, true)
			}
			got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
			for _, id := range got {
				if id > n {
					t.Fatalf("%s, repaired %t: session %d never took place", name, repaired, id)
				}
			}
			if len(got) < least[name] {
				t.Errorf("%s, repaired %t: %d records, want %d", name, repaired, len(got), least[name])
			}
		}
		for _, s := range segmentNames(t, dir) {
			if err := os.Remove(filepath.Join(dir, sessionsDir, s)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCarvedBlockOfAnotherDay checks that carve ignores a block with records
// from a different day.
func TestCarvedBlockOfAnotherDay(t *testing.T) {
	dir := recorded(t, noon, 100)
	sealDays(t, dir)
	sessions := filepath.Join(dir, sessionsDir)
	b, err := os.ReadFile(filepath.Join(sessions, "2026-11-01.sealed.db"))
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:8192])
	for name, want := range map[string]int{"2026-11-01": 100, "2026-10-31": 0, "2026-11-03": 0, "0001-01-01": 0} {
		if err := os.RemoveAll(sessions); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(sessions, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sessions, name+sealedSuffix), b, 0o640); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{}); len(got) != want {
				t.Errorf("%s: %d records, want %d", name, len(got), want)
			}
			found(t, dir, true)
		}
	}
}
