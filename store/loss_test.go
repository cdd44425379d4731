package store

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// lossy removes the quarantined files and returns the days that a Reader
// reports as lossy.
func lossy(t *testing.T, dir string) []string {
	t.Helper()
	for _, name := range segmentNames(t, dir) {
		if strings.Contains(name, damagedMark) {
			if err := os.Remove(filepath.Join(dir, sessionsDir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := &Reader{Dir: dir, Problem: func(name string, err error) { t.Errorf("%s: %v", name, err) }}
	if err := r.Each(time.Time{}, time.Time{}, AllKinds, func(*Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var days []string
	for _, d := range r.Lossy {
		days = append(days, d.Format(time.DateOnly))
	}
	slices.Sort(days)
	return slices.Compact(days)
}

// TestLossRemains checks that a loss of records is still reported while the day
// has files, even after the quarantined file has been removed.
func TestLossRemains(t *testing.T) {
	step := func(b []byte) {
		i := bytes.LastIndex(b, []byte("user1@example.org"))
		b[i-1] = 0x7f // invalid length of a text
	}
	for _, c := range []struct {
		name   string
		sealed bool
		damage func([]byte)
	}{
		{"a block", true, middle},
		{"a sealed file", true, func(b []byte) { clear(b) }},
		{"pages of rows", false, middle},
		{"all rows", false, func(b []byte) { clear(b) }},
		{"a step", false, step},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := recorded(t, noon, 9000)
			path := filepath.Join(dir, sessionsDir, "2026-11-01.db")
			if c.sealed {
				sealDays(t, dir)
				path = filepath.Join(dir, sessionsDir, "2026-11-01.sealed.db")
			}
			if days := lossy(t, dir); days != nil {
				t.Errorf("before: %q", days)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c.damage(b)
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
			found(t, dir, true)
			want := []string{"2026-11-01"}
			if days := lossy(t, dir); !slices.Equal(days, want) {
				t.Errorf("after the repair: %q of %q", days, segmentNames(t, dir))
			}
			for name, f := range found(t, dir, false) {
				if f.Health != HealthOK || !f.Loss {
					t.Errorf("%s: %+v", name, f)
				}
			}
			if _, err := SealDays(dir, "test", noon.AddDate(0, 0, 2)); err != nil {
				t.Fatal(err)
			}
			if days := lossy(t, dir); !slices.Equal(days, want) {
				t.Errorf("after sealing: %q", days)
			}
			name := segmentNames(t, dir)[0]
			s, _ := parseSegment(name)
			d, err := openSessions(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.root.Close()
			if _, err := rewriteFile(d, s, sealing{limit: 16 << 20, program: "test", now: noon}, erasing(func(*Record) bool { return true })); err != nil {
				t.Fatal(err)
			}
			if days := lossy(t, dir); !slices.Equal(days, want) {
				t.Errorf("after all records were rewritten: %q", days)
			}
		})
	}
}

// TestLossOfWriter checks that a loss of records is still reported after a
// Writer has quarantined the file.
func TestLossOfWriter(t *testing.T) {
	t.Run("the open day", func(t *testing.T) {
		dir := recorded(t, noon, 100)
		if err := os.WriteFile(filepath.Join(dir, sessionsDir, "2026-11-01.db"), []byte("corrupt"), 0o640); err != nil {
			t.Fatal(err)
		}
		w, _ := openTest(t, dir, Options{})
		add(w, noon.Add(time.Hour), 1)
		flush(t, w)
		w.Close()
		if days := lossy(t, dir); !slices.Equal(days, []string{"2026-11-01"}) {
			t.Errorf("%q", days)
		}
	})
	for name, damage := range map[string]func(t *testing.T, path string){
		"a file that cannot be sealed": func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := 2 * 4096; at < len(b); at += 4096 {
				b[at] ^= 0x40
			}
			if err := os.WriteFile(path, b, 0o640); err != nil {
				t.Fatal(err)
			}
		},
		"a file that loses records when it is sealed": func(t *testing.T, path string) {
			change(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(bucketSessions).Put(AppendKey(nil, noon, 7), []byte{0xff})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := recorded(t, noon, 100)
			damage(t, filepath.Join(dir, sessionsDir, "2026-11-01.db"))
			w, _ := openTest(t, dir, Options{Seal: true, Now: func() time.Time { return noon.AddDate(0, 0, 1) }})
			add(w, noon.AddDate(0, 0, 1), 1)
			settle(t, w)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if days := lossy(t, dir); !slices.Equal(days, []string{"2026-11-01"}) {
				t.Errorf("%q of %q", days, segmentNames(t, dir))
			}
		})
	}
}
