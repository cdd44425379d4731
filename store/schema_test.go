package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSchemas opens a state directory with each schema that this program can
// read, and continues to write to it. Each directory was written by a program
// version with that schema. For a new schema, add a directory to testdata. Do
// not change existing directories.
func TestSchemas(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED, NOT TESTED: bbolt's files are in the byte order of the machine, and these are in another")
	}
	for _, c := range []struct {
		name             string
		sessions, steps  int
		findings, states int
	}{
		{"schema-2", 121, 701, 55, 104},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			unpackAll(t, c.name, dir)
			sessions, steps, findings := 0, 0, 0
			count := func() {
				sessions, steps, findings = 0, 0, 0
				err := (&Reader{Dir: dir, Problem: func(s string, err error) { t.Errorf("%s: %v", s, err) }}).Each(time.Time{}, time.Time{}, AllKinds, func(r *Record) error {
					sessions++
					return r.Steps(func(s *Step) bool {
						steps++
						if s.Kind == KindFinding {
							findings++
						}
						return true
					})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			count()
			if sessions != c.sessions || steps != c.steps || findings != c.findings {
				t.Errorf("%d sessions, %d steps, %d findings; want %d, %d, %d", sessions, steps, findings, c.sessions, c.steps, c.findings)
			}

			// Add records and rows of state to the same files.
			day := time.Date(2026, 11, 21, 23, 0, 0, 0, time.UTC)
			now := func() time.Time { return day }
			w := Open(dir, Options{Now: now})
			add(w, day, 1)
			states := 0
			loaded := make(chan struct{})
			s := OpenState(dir, StateOptions{Load: func(all iter.Seq[Entry]) {
				for range all {
					states++
				}
				close(loaded)
			}, Buckets: []string{"secret", "bans", "peers", "counters", "recipients", "asks", "logins", "sprays", "domains"}})
			if err := w.Flush(context.Background()); err != nil {
				t.Error(err)
			}
			if err := s.Flush(context.Background()); err != nil {
				t.Error(err)
			}
			<-loaded
			if states != c.states {
				t.Errorf("%d rows of state.db, want %d", states, c.states)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			count()
			if sessions != c.sessions+1 {
				t.Errorf("%d sessions afterwards, want %d", sessions, c.sessions+1)
			}
			if all, err := Segments(dir); err != nil || len(all) != 1 {
				t.Errorf("segments %v, %v", all, err)
			}
		})
	}
}

// TestOlderState checks that a state.db of schema 1 is neither used nor repaired. The
// filter and fsck must report the remedy.
func TestOlderState(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED, NOT TESTED: bbolt's files are in the byte order of the machine, and these are in another")
	}
	dir := t.TempDir()
	unpackAll(t, "schema-1", dir)
	before, err := os.ReadFile(filepath.Join(dir, StateFile))
	if err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	o := StateOptions{Log: slog.New(slog.NewTextHandler(log, nil)), Buckets: []string{"peers"}, Changes: func(int) []Entry {
		return []Entry{{Bucket: "peers", Key: []byte("a"), Value: []byte("b")}}
	}}
	s := OpenState(dir, o)
	for range 2 {
		if err := s.Flush(t.Context()); !errors.Is(err, ErrOlder) {
			t.Errorf("flush: %v", err)
		}
	}
	if st := s.Status(); !strings.Contains(st.Error, "schema 1, this program reads 2") {
		t.Errorf("%+v", st)
	}
	_ = s.Close()
	if log.count("level=ERROR msg=\"state.db unavailable, keeping state in memory\"") != 1 || log.count("move the state directory away") != 1 {
		t.Errorf("log: %s", log)
	}
	i := Inspector{Dir: dir, Decode: true, Tables: []string{"peers"}, Row: func(Entry) error { return errors.New("is wrong") }}
	check := func(f *File) error {
		if f.Health != HealthOlder || f.Done != "" || !strings.Contains(f.Problem, "move the state directory away") {
			t.Errorf("%+v", f)
		}
		return nil
	}
	if err := errors.Join(i.Each(check), i.Repair("test", noon, check)); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, StateFile)); err != nil || !bytes.Equal(before, after) || len(segmentNames(t, dir)) != 1 {
		t.Errorf("the file has changed: %v", err)
	}
}

// TestOlderSchema checks that records of schema 1 are neither read nor changed.
// Every reader must report the remedy, and new records must be written to a
// different segment.
func TestOlderSchema(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED, NOT TESTED: bbolt's files are in the byte order of the machine, and these are in another")
	}
	dir := t.TempDir()
	unpackAll(t, "schema-1", dir)
	old := filepath.Join(dir, sessionsDir, "2026-11-21.db")
	before, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	read := func(want int) {
		t.Helper()
		n, problems := 0, ""
		r := &Reader{Dir: dir, Problem: func(s string, err error) { problems += s + ": " + err.Error() + "\n" }}
		if err := r.Each(time.Time{}, time.Time{}, AllKinds, func(*Record) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		if n != want || r.Unread != 1 || !strings.Contains(problems, "2026-11-21.db: schema 1") || !strings.Contains(problems, "export its records with that version, then move the state directory away") {
			t.Errorf("%d records, %d unread files, problems %q", n, r.Unread, problems)
		}
	}
	read(0)
	log := &lines{}
	day := time.Date(2026, 11, 21, 23, 0, 0, 0, time.UTC)
	w := Open(dir, Options{Log: slog.New(slog.NewTextHandler(log, nil)), Now: func() time.Time { return day }})
	add(w, day, 1)
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Error(err)
	}
	if n := log.count("segment of another version"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, log)
	}
	read(1)
	files := found(t, dir, true)
	if files["2026-11-21.db"].Health != HealthOlder {
		t.Errorf("fsck: %+v", files)
	}
	if after, err := os.ReadFile(old); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed: %v", err)
	}
}

// unpackAll unpacks a directory in testdata.
func unpackAll(t *testing.T, name, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", name, "*.gz"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		to := filepath.Join(dir, sessionsDir)
		if strings.HasPrefix(filepath.Base(f), StateFile) {
			to = dir
		}
		unpack(t, f, to)
	}
}

func unpack(t *testing.T, from, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, strings.TrimSuffix(filepath.Base(from), ".gz"))
	if err := os.WriteFile(name, data, 0o640); err != nil {
		t.Fatal(err)
	}
}
