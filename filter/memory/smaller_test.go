package memory

import (
	"context"
	"encoding/binary"
	"iter"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/store"
)

func fillBans(m *Memory, n int) {
	for i := range n {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], 0x20010db8<<32|uint64(i))
		m.Bans.Add(&Client{Addr: netip.AddrFrom16(b)}, BanRequest{Ladder: []time.Duration{day}, Rule: "a-rule-with-a-name"}, at(0))
	}
}

// TestFewerRows checks that rows that no longer fit into smaller tables are also
// deleted from the file.
func TestFewerRows(t *testing.T) {
	large := New()
	fillBans(large, 5000)
	_, entries := all(large)
	disk := map[string]bool{}
	for _, e := range entries {
		disk[e.Bucket+string(e.Key)] = true
	}
	small := New()
	small.Limit(AllBytes / 1000)
	small.Load(seq(entries), at(0))
	for list := small.Changes(1000); len(list) > 0; list = small.Changes(1000) {
		for _, e := range list {
			if e.Value == nil {
				delete(disk, e.Bucket+string(e.Key))
			} else {
				disk[e.Bucket+string(e.Key)] = true
			}
		}
	}
	if want := len(small.Bans.own.hosts.rows) + 2; len(disk) != want { // plus the hash key and the last row of the peers
		t.Errorf("%d rows on disk, %d in memory", len(disk), want)
	}
}

// TestSmallerBudget checks that state.db shrinks to fit a smaller budget, and that no
// session records are lost.
func TestSmallerBudget(t *testing.T) {
	const budget = store.MinBudget
	dir := t.TempDir()
	ctx := context.Background()
	open := func(m *Memory, budget int64) (*store.Writer, *store.State) {
		m.Limit(budget / 2)
		w := store.Open(dir, store.Options{Budget: budget, Now: func() time.Time { return time.UnixMicro(at(0)) }})
		return w, store.OpenState(dir, store.StateOptions{Buckets: Buckets(), MaxSize: budget / 2, Every: time.Hour, Room: w.Reserve,
			Load: func(all iter.Seq[kv.Entry]) { m.Load(all, at(0)) }, Changes: m.Changes, Rewrite: m.Rewrite})
	}
	add := func(w *store.Writer, id uint64) {
		t.Helper()
		r := store.Record{ID: id, Start: time.UnixMicro(at(0)), End: time.UnixMicro(at(0))}
		w.Add(r.End, r.ID, store.AppendRecord(nil, &r, nil))
		if err := w.Flush(ctx); err != nil {
			t.Errorf("session %d: %v", id, err)
		}
	}
	large := New()
	w, s := open(large, 32*budget)
	fillBans(large, 80_000)
	add(w, 1)
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n := s.Status().Bytes; n <= budget/2 {
		t.Fatalf("only %d bytes", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	small := New()
	w, s = open(small, budget)
	add(w, 2)
	for range 3 {
		if err := s.Flush(ctx); err != nil {
			t.Errorf("flush: %v", err)
		}
	}
	add(w, 3)
	if n := s.Status().Bytes; n > budget/2 {
		t.Errorf("state.db has %d bytes, budget %d", n, budget)
	}
	if st := w.Status(); st.Bytes > budget || st.Committed != 2 {
		t.Errorf("status %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	sessions := 0
	r := store.Reader{Dir: dir}
	if err := r.Each(time.Time{}, time.Time{}, store.AllKinds, func(*store.Record) error { sessions++; return nil }); err != nil || sessions != 3 {
		t.Errorf("%d sessions, want 3: %v", sessions, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); left != nil {
		t.Errorf("files left: %v", left)
	}
}
