package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReserveOfAnother checks that a State waits and loses no changes while the
// previous filter still holds the lock on the sessions. The previous filter
// does not know about the reservation.
func TestReserveOfAnother(t *testing.T) {
	dir := t.TempDir()
	first, _ := openTest(t, dir, Options{})
	if err := first.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, _ := openTest(t, dir, Options{})
	if err := second.Reserve(1 << 20); !errors.Is(err, ErrInUse) {
		t.Errorf("second reserve: %v, want %v", err, ErrInUse)
	}
	o := newOwner()
	s, log := openTestState(t, dir, o, func(so *StateOptions) { so.Room = second.Reserve })
	o.set("peers/a", "1")
	if err := s.Flush(t.Context()); !errors.Is(err, ErrInUse) {
		t.Errorf("flush: %v, want %v", err, ErrInUse)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if strings.Contains(log.String(), "rewriting") || strings.Contains(log.String(), "quarantined") {
		t.Errorf("logged %s", log)
	}
}

// TestReserveWithoutDirectory checks that an unusable directory of sessions does not
// block a reservation.
func TestReserveWithoutDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, sessionsDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, _ := openTest(t, dir, Options{})
	o := newOwner()
	s, _ := openTestState(t, dir, o, func(so *StateOptions) { so.Room = w.Reserve })
	o.set("peers/a", "1")
	flushState(t, s)
	wantState(t, readState(t, dir, liveState(s)), o.all())
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestReserveWhenClosed checks that a Writer and a State can stop in any order without
// waiting for each other.
func TestReserveWhenClosed(t *testing.T) {
	for _, writerFirst := range []bool{true, false} {
		dir := t.TempDir()
		w, _ := openTest(t, dir, Options{})
		o := newOwner()
		s, _ := openTestState(t, dir, o, func(so *StateOptions) { so.Room = w.Reserve })
		flushState(t, s)
		for i := range 100 {
			o.set("peers/"+time.Duration(i).String(), "1")
		}
		if writerFirst {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		wantState(t, readState(t, dir, nil), o.all())
	}
}
