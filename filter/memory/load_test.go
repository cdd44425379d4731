package memory

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"testing"

	"scanwatch/store"
)

// all gives everything that m would write.
func all(m *Memory) (rows []string, entries []store.Entry) {
	m.Rewrite()
	for list := m.Changes(1000); len(list) > 0; list = m.Changes(1000) {
		entries = append(entries, list...)
	}
	entries = slices.DeleteFunc(entries, func(e store.Entry) bool { return e.Value == nil }) // rows that are over
	for _, e := range entries {
		rows = append(rows, fmt.Sprintf("%s %x %x", e.Bucket, e.Key, e.Value))
	}
	slices.Sort(rows)
	return rows, entries
}

func seq(entries []store.Entry) iter.Seq[store.Entry] { return slices.Values(entries) }

// FuzzLoad: whatever stands in state.db, it is taken or left out, and what was taken
// comes back the same from what is then written.
func FuzzLoad(f *testing.F) {
	const now = 1795219327
	for which, b := range buckets {
		for _, n := range []int{0, 2, 6, 8, 9, 11, 16, 19, 24} {
			f.Add(uint8(which), bytes.Repeat([]byte{1}, 8), bytes.Repeat([]byte{0x6b}, n), uint32(now))
		}
		f.Add(uint8(which), []byte(b.name), []byte("\x08sessions\x07"), uint32(now))
	}
	f.Add(uint8(1), []byte{32, 192, 0, 2, 1}, append(bytes.Repeat([]byte{0x6b}, banSize), "rule"...), uint32(now))
	f.Add(uint8(2), []byte{48, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, append(bytes.Repeat([]byte{0xff}, banSize), "rule"...), uint32(now))
	f.Fuzz(func(t *testing.T, which uint8, key, value []byte, at uint32) {
		e := store.Entry{Bucket: buckets[int(which)%len(buckets)].name, Key: key, Value: value}
		check := Checker()(e)
		first := New()
		first.Load(seq([]store.Entry{e, e}), int64(at)*1e6) // twice: rows meet
		rows, entries := all(first)
		// The key of the hashes is always there; what makes no sense is not.
		if check != nil && len(rows) != 1 {
			t.Errorf("%v, and yet it left %q", check, rows)
		}
		for _, e := range entries {
			if err := Checker()(e); err != nil {
				t.Errorf("%v: it was written, and %v", e, err)
			}
		}
		second := New()
		second.Load(seq(entries), int64(at)*1e6)
		if again, _ := all(second); !slices.Equal(rows, again) {
			t.Errorf("%q became %q", rows, again)
		}
	})
}
