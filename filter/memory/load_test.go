package memory

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"testing"

	"scanwatch/internal/kv"
)

// all returns all rows that m writes.
func all(m *Memory) (rows []string, entries []kv.Entry) {
	m.Rewrite()
	for list := m.Changes(1000); len(list) > 0; list = m.Changes(1000) {
		entries = append(entries, list...)
	}
	entries = slices.DeleteFunc(entries, func(e kv.Entry) bool { return e.Value == nil }) // ignore the deletions of expired rows
	for _, e := range entries {
		rows = append(rows, fmt.Sprintf("%s %x %x", e.Bucket, e.Key, e.Value))
	}
	slices.Sort(rows)
	return rows, entries
}

func seq(entries []kv.Entry) iter.Seq[kv.Entry] { return slices.Values(entries) }

// FuzzLoad checks that each row is loaded or ignored, and that loaded rows are written
// back unchanged.
func FuzzLoad(f *testing.F) {
	const now = 1795219327
	buckets := New().buckets
	for which, b := range buckets {
		for _, n := range []int{0, 2, 6, 8, 9, 11, 16, 19, 24} {
			f.Add(uint8(which), bytes.Repeat([]byte{1}, 8), bytes.Repeat([]byte{0x6b}, n), uint32(now))
		}
		f.Add(uint8(which), []byte(b.bucketName()), []byte("\x08sessions\x07"), uint32(now))
	}
	f.Add(uint8(1), []byte{32, 192, 0, 2, 1}, append(bytes.Repeat([]byte{0x6b}, banSize), "rule"...), uint32(now))
	f.Add(uint8(2), []byte{48, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, append(bytes.Repeat([]byte{0xff}, banSize), "rule"...), uint32(now))
	f.Fuzz(func(t *testing.T, which uint8, key, value []byte, at uint32) {
		e := kv.Entry{Bucket: buckets[int(which)%len(buckets)].bucketName(), Key: key, Value: value}
		check := Checker()(e)
		first := New()
		first.Load(seq([]kv.Entry{e, e}), int64(at)*1e6) // twice, so that the rows merge
		rows, entries := all(first)
		// If the row is invalid, only the hash key and the last row of the peers bucket
		// are written.
		if check != nil && len(rows) != 2 {
			t.Errorf("%v, but the rows are %q", check, rows)
		}
		for _, e := range entries {
			if err := Checker()(e); err != nil {
				t.Errorf("written row %v: %v", e, err)
			}
		}
		second := New()
		second.Load(seq(entries), int64(at)*1e6)
		if again, _ := all(second); !slices.Equal(rows, again) {
			t.Errorf("%q became %q", rows, again)
		}
	})
}
