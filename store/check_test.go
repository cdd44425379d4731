package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// segmentBytes returns a segment with n sessions. Several commits and two runs of a
// Writer ensure that it contains all kinds of pages.
func segmentBytes(t testing.TB, n int) []byte {
	t.Helper()
	dir := t.TempDir()
	for part := range 2 {
		w := Open(dir, Options{Now: func() time.Time { return noon }})
		for i := range n / 2 {
			add(w, noon.Add(time.Duration(i)*time.Second), uint64(2*i+part+1))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, sessionsDir, "2026-11-01.db"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readAll checks the segment b. If the check succeeds, readAll reads and writes the segment with
// bbolt.
func readAll(t testing.TB, path string, b []byte) (records int, err error) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
	d, err := openDirectory(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	s, err := openSegment(d, Segment{Name: filepath.Base(path)}, 8<<20)
	if err != nil {
		return 0, err
	}
	defer func() { s.release(err) }()
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketSessions).ForEach(func(k, v []byte) error {
			records++
			if r, err := Decode(k, v); err == nil {
				_ = r.Steps(func(*Step) bool { return true })
			}
			return nil
		})
	})
	if err == nil {
		var b buffer
		b.data = make([]byte, 0, 1000)
		b.add(noon.Add(time.Hour), 1, []byte("value"))
		err = s.commit(b.data, Dropped{DropFull: 1}, nil)
	}
	return records, err
}

// TestFlippedBits flips bits of the bytes that bbolt trusts. Either the check must
// reject the file, or reading it must be harmless.
func TestFlippedBits(t *testing.T) {
	b := segmentBytes(t, 1000)
	path := filepath.Join(t.TempDir(), "segment.db")
	if n, err := readAll(t, path, b); err != nil || n != 1000 {
		t.Fatalf("%d records, %v; want 1000", n, err)
	}
	page := os.Getpagesize()
	refused, passed := 0, 0
	for start := 0; start+page <= len(b); start += page {
		kind := order.Uint16(b[start+8:])
		if order.Uint64(b[start:]) != uint64(start/page) || kind == 0 {
			continue // this page was never written
		}
		for at := start + start/page%flipEvery; at < start+pageHeader+2*pageElement; at += flipEvery {
			bit := byte(1) << (at % 8)
			b[at] ^= bit
			if _, err := readAll(t, path, b); err != nil {
				refused++
			} else {
				passed++
			}
			b[at] ^= bit
		}
	}
	t.Logf("%d files were refused, %d could be read", refused, passed)
	if refused == 0 || passed == 0 {
		t.Error("that cannot be: some bits matter and some pages are free")
	}
}

func TestCheckAcceptsTheOtherMetaPage(t *testing.T) {
	b := segmentBytes(t, 1000)
	path := filepath.Join(t.TempDir(), "segment.db")
	first := bytes.Clone(b)
	clear(first[:100])
	if _, err := readAll(t, path, first); err != nil {
		t.Errorf("without the first meta page: %v", err)
	}
	second := bytes.Clone(b)
	clear(second[os.Getpagesize()+16:][:64])
	if _, err := readAll(t, path, second); err != nil {
		t.Errorf("without the second meta page: %v", err)
	}
}

// FuzzCheck checks that guard contains every failure of bbolt that a checked file can
// cause.
func FuzzCheck(f *testing.F) {
	whole := segmentBytes(f, 200)
	f.Add(uint32(0), []byte{})
	f.Add(uint32(4096*3+10), []byte{0xff, 0xff})
	f.Add(uint32(4096*4+16), []byte{0, 0, 0, 0, 0xff, 0xff})
	f.Add(uint32(4096*9+24), []byte{9})
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], patch)
		_, _ = readAll(t, filepath.Join(t.TempDir(), "segment.db"), b)
	})
}

func BenchmarkCheck(b *testing.B) {
	path := filepath.Join(b.TempDir(), "segment.db")
	data := segmentBytes(b, 100_000)
	if err := os.WriteFile(path, data, 0o640); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := checkFile(f); err != nil {
			b.Fatal(err)
		}
	}
}
