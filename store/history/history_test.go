package history

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"scanwatch/store"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// write adds records that end a minute apart to a new directory. Each number is an
// aggregate's session count, or 0 for a single session.
func write(t *testing.T, sessions ...uint32) string {
	t.Helper()
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return noon }, Program: "test"})
	for i, n := range sessions {
		end := noon.Add(time.Duration(i) * time.Minute)
		r := store.Record{Start: end, End: end, Sessions: n}
		w.Add(end, uint64(i), store.AppendRecord(nil, &r, nil))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// visitor appends each record to seen.
func visitor(seen *[]string, name string) Visitor {
	note := func(kind string) func(*store.Record) error {
		return func(r *store.Record) error {
			*seen = append(*seen, fmt.Sprintf("%s %s %d", name, kind, r.ID))
			return nil
		}
	}
	return Visitor{Session: note("session"), Sum: note("sum")}
}

// TestWalk checks that all visitors receive all records in the period.
func TestWalk(t *testing.T) {
	r := &store.Reader{Dir: write(t, 0, 7, 0)}
	for _, c := range []struct {
		since, until time.Time
		want         []string
	}{
		{time.Time{}, time.Time{}, []string{"a session 0", "b session 0", "a sum 1", "b sum 1", "a session 2", "b session 2"}},
		{noon.Add(time.Second), noon.Add(2 * time.Minute), []string{"a sum 1", "b sum 1"}},
		{time.Unix(-1, 0), noon.Add(time.Second), []string{"a session 0", "b session 0"}}, // the clock shows 1970
		{time.Time{}, time.Unix(-1, 0), nil},
	} {
		var seen []string
		if err := Walk(r, c.since, c.until, visitor(&seen, "a"), visitor(&seen, "b")); err != nil || !slices.Equal(seen, c.want) {
			t.Errorf("since %v until %v: %q, %v, want %q", c.since, c.until, seen, err, c.want)
		}
	}
}

// TestErrors checks that Walk returns a visitor's first error, and nil for
// ErrStop.
func TestErrors(t *testing.T) {
	r := &store.Reader{Dir: write(t, 0, 0)}
	failure := fmt.Errorf("fails: %w", fs.ErrNotExist)
	for _, want := range []error{failure, ErrStop} {
		n := 0
		v := Visitor{Session: func(*store.Record) error { n++; return want }, Sum: func(*store.Record) error { return nil }}
		if err := Walk(r, time.Time{}, time.Time{}, v); n != 1 || err != nil && want == ErrStop || want == failure && !errors.Is(err, failure) {
			t.Errorf("%v: %v after %d sessions", want, err, n)
		}
	}
	if err := Walk(&store.Reader{Dir: t.TempDir()}, time.Time{}, time.Time{}); err != nil {
		t.Errorf("no records: %v", err)
	}
}

// TestBoth checks that Walk panics if a Visitor lacks Sum.
func TestBoth(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a visitor without Sum was accepted")
		}
	}()
	_ = Walk(&store.Reader{Dir: t.TempDir()}, time.Time{}, time.Time{}, Visitor{Session: func(*store.Record) error { return nil }})
}
