package followlog

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/serverlog"
)

// watched is a tail that keeps the lines it has read.
type watched struct {
	tail
	lines []string
}

// step reads until no lines are left, also in a new file.
func (w *watched) step(t *testing.T) {
	t.Helper()
	for range 2 * patience {
		more, err := w.read(func(line []byte) { w.lines = append(w.lines, string(line)) })
		if err != nil {
			t.Fatal(err)
		}
		if more {
			continue
		}
		if _, err := w.next(); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *watched) expect(t *testing.T, want ...string) {
	t.Helper()
	w.step(t)
	if !slices.Equal(w.lines, want) {
		t.Errorf("lines %q, want %q", w.lines, want)
	}
	w.lines = nil
}

func add(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, name string, saved *Position) *watched {
	t.Helper()
	w := &watched{tail: tail{name: name}}
	if err := w.open(saved); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.file != nil {
			w.file.Close()
		}
	})
	return w
}

// TestTail checks that each line is read once, even with incomplete lines, rotation and truncation.
func TestTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mail.log")
	add(t, name, "past\n")
	w := start(t, name, nil)
	w.expect(t)
	add(t, name, "one\ntw")
	w.expect(t, "one")
	add(t, name, "o\r\nthree\n")
	w.expect(t, "two", "three")

	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	w.expect(t)
	add(t, name+".1", "four\n") // the server still writes to the renamed file
	w.expect(t, "four")
	add(t, name, "five\n")
	w.expect(t, "five")
	if err := os.Rename(name, name+".2"); err != nil {
		t.Fatal(err)
	}
	add(t, name, "six\n")
	add(t, name+".2", "late\n") // written before the new file is read
	w.expect(t, "late", "six")

	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
	w.expect(t)
	add(t, name, "seven\n")
	w.expect(t, "seven")
	if err := os.Truncate(name, 0); err != nil { // the new content is longer before it is read
		t.Fatal(err)
	}
	add(t, name, "eight, which is longer than the line before\n")
	w.expect(t, "eight, which is longer than the line before")
	if w.changed != 4 {
		t.Errorf("%d changes", w.changed)
	}
}

// TestRewritten replaces the log by a copy, as an editor does, while the log is followed and between two
// runs. No line may be read twice.
func TestRewritten(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mail.log")
	add(t, name, strings.Repeat("past\n", 100))
	w := start(t, name, nil)
	add(t, name, "one\n")
	w.expect(t, "one")
	rewrite := func(added string) {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name+".new", append(text, added...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	rewrite("two\n")
	w.expect(t, "two")
	text := strings.Replace(readFile(t, name), "past\n", "", 3)
	if err := os.WriteFile(name+".new", []byte(text+"sed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "sed")
	saved := w.position()
	rewrite("three\n")
	if w = start(t, name, &saved); w.lost {
		t.Error("lines are reported as lost")
	}
	w.expect(t, "three")
	saved = w.position()
	if err := os.WriteFile(name+".1", []byte(readFile(t, name)+"four\n"), 0o600); err != nil { // copytruncate
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("five\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w = start(t, name, &saved); w.lost {
		t.Error("lines are reported as lost after copytruncate")
	}
	w.expect(t, "four", "five")
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRotatedTwice checks that no file is lost if the log is rotated again before the old file has
// been read to its end.
func TestRotatedTwice(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mail.log")
	add(t, name, "past\n")
	w := start(t, name, nil)
	add(t, name, "one\n")
	w.expect(t, "one")
	for _, step := range []struct{ old, line string }{{".1", "two\n"}, {".2", "three\n"}} {
		if err := os.Rename(name, name+step.old); err != nil {
			t.Fatal(err)
		}
		add(t, name, step.line)
		if more, err := w.next(); more || err != nil {
			t.Fatal(more, err)
		}
	}
	w.expect(t, "two", "three")
}

// TestDatedFiles checks a log that consists of a new file each day, with a symbolic link to the
// latest file.
func TestDatedFiles(t *testing.T) {
	dir := t.TempDir()
	link, today, tomorrow := filepath.Join(dir, "latest"), filepath.Join(dir, "s20261201.log"), filepath.Join(dir, "s20261202.log")
	add(t, today, "")
	point := func(file string) {
		t.Helper()
		if err := errors.Join(os.Symlink(file, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	point(today)
	w := start(t, link, nil)
	add(t, today, "one\n")
	w.expect(t, "one")
	add(t, tomorrow, "three\n")
	point(tomorrow)
	add(t, today, "two\n") // the end of a session of the previous day
	w.expect(t, "two", "three")
	add(t, tomorrow, "four\n")
	w.expect(t, "four")
}

// TestLongLine checks that a line that is too long is skipped, and that memory use is limited.
func TestLongLine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	add(t, name, "")
	w := start(t, name, nil)
	add(t, name, strings.Repeat("x", 5<<20)+"\nend\n")
	w.expect(t, "end")
	if w.tooLong != 1 || cap(w.buf) > 4*maxLine {
		t.Errorf("%d long lines, buffer of %d bytes", w.tooLong, cap(w.buf))
	}
}

// TestResume checks that a restart resumes at the saved position, even after a rotation.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	name, state := filepath.Join(dir, "mail.log"), t.TempDir()
	if _, err := ReadPosition(state); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	add(t, name, "past\n")
	w := start(t, name, nil)
	add(t, name, "one\nha")
	w.expect(t, "one")
	if err := w.pos.Save(state); err != nil {
		t.Fatal(err)
	}
	saved, err := ReadPosition(state)
	if err != nil || saved != w.pos {
		t.Fatalf("%v, want %v: %v", saved, w.pos, err)
	}
	add(t, name, "lf\n")
	start(t, name, &saved).expect(t, "half")

	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	start(t, name, &saved).expect(t, "half")
	add(t, name, "new\n")
	w = start(t, name, &saved)
	w.expect(t, "half", "new")
	if w.lost {
		t.Error("lines are reported as lost")
	}
	if err := os.Remove(name + ".1"); err != nil {
		t.Fatal(err)
	}
	w = start(t, name, &saved)
	w.expect(t, "new")
	if !w.lost {
		t.Error("the lost file is not reported")
	}
}

// TestResumeLater checks that a restart reads all files that had the log's name since the saved
// position, but no other logs.
func TestResumeLater(t *testing.T) {
	for _, c := range []struct {
		base   string
		names  []string // of the files after two rotations, oldest first
		others []string
	}{
		{base: "mail.log", names: []string{"mail.log.10", "mail.log.9"}, others: []string{"mail.err", "mail.log.old", "mail.log.1.gz", "mail.info.1"}},
		{base: "maillog", names: []string{"maillog.1", "maillog.0"}, others: []string{"maillog.err.1", "maillog2"}},
		{base: "mail.log", names: []string{"mail-20261129.log", "mail-20261130.log"}, others: []string{"mail-a.log", "mail.err-20261130"}},
		{base: "mail.log", names: []string{"mail.log-20261129", "mail.log-20261130"}},
	} {
		dir := t.TempDir()
		name := filepath.Join(dir, c.base)
		at := time.Now().Add(-time.Hour)
		write := func(base, text string) {
			t.Helper()
			add(t, filepath.Join(dir, base), text)
			at = at.Add(time.Minute)
			if err := os.Chtimes(filepath.Join(dir, base), at, at); err != nil {
				t.Fatal(err)
			}
		}
		write(c.base+".5", "older\n")
		write(c.base, "past\n")
		w := start(t, name, nil)
		w.expect(t)
		saved := w.pos
		if err := os.Rename(name, filepath.Join(dir, c.names[0])); err != nil {
			t.Fatal(err)
		}
		write(c.names[0], "one\n")
		write(c.names[1], "two\nthree\n")
		for _, other := range c.others {
			write(other, "other\n")
		}
		start(t, name, &saved).expect(t, "one", "two", "three")
		write(c.base, "four\n")
		w = start(t, name, &saved)
		w.step(t)
		w.expect(t, "one", "two", "three", "four")
		if w.lost {
			t.Errorf("%v: lines are reported as lost", c.names)
		}
	}
}

// TestResumeEqualTimes checks that a restart reads all rotated files in order even if their
// modification times are equal, for example after a backup was restored. A restart does not wait for
// lines in files that have been renamed.
func TestResumeEqualTimes(t *testing.T) {
	for _, names := range [][]string{{"mail.log.3", "mail.log.2", "mail.log.1"}, {"mail.log-20261129", "mail.log-20261130", "mail.log-20261201"}, {"mail-20261130_235900.log", "mail-20261201_000000.log", "mail-20261201_000100.log"}} {
		dir := t.TempDir()
		name := filepath.Join(dir, "mail.log")
		add(t, name, "past\n")
		w := start(t, name, nil)
		saved := w.pos
		at := time.Now().Add(-time.Hour)
		for i, line := range []string{"one\n", "two\n", "three\n"} {
			add(t, name, line)
			old := filepath.Join(dir, names[i])
			if err := errors.Join(os.Rename(name, old), os.Chtimes(old, at, at)); err != nil {
				t.Fatal(err)
			}
		}
		add(t, name, "four\n")
		w = start(t, name, &saved)
		for range 4 {
			if _, err := w.read(func(line []byte) { w.lines = append(w.lines, string(line)) }); err != nil {
				t.Fatal(err)
			}
			if _, err := w.next(); err != nil {
				t.Fatal(err)
			}
		}
		w.expect(t, "one", "two", "three", "four")
	}
}

// TestResumeInside checks that the rest of a line that is too long is skipped after a restart.
func TestResumeInside(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	add(t, name, "")
	w := start(t, name, nil)
	add(t, name, strings.Repeat("x", 2*maxLine))
	w.expect(t)
	saved := w.pos
	if saved.Offset == 0 {
		t.Fatal("the line is not too long")
	}
	add(t, name, "rest\nend\n")
	start(t, name, &saved).expect(t, "end")
}

// TestFirstPosition checks that the position is saved before the first line is read.
func TestFirstPosition(t *testing.T) {
	name, state := filepath.Join(t.TempDir(), "log"), t.TempDir()
	add(t, name, "past\n")
	f := &Front{Kind: serverlog.ByName("exim"), File: name, Zone: time.UTC}
	if err := f.Open(state, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.tail.file.Close() })
	f.begin(new(counter))
	ctx, stop := context.WithCancel(context.Background())
	stop()
	f.follow(ctx)
	add(t, name, "one\n")
	saved, err := ReadPosition(state)
	if err != nil {
		t.Fatal(err)
	}
	start(t, name, &saved).expect(t, "one")
}

// TestOpenErrors checks that only regular files are opened.
func TestOpenErrors(t *testing.T) {
	w := &tail{name: t.TempDir()}
	if err := w.open(nil); !errors.Is(err, errNotRegular) {
		t.Error(err)
	}
	w.name = filepath.Join(t.TempDir(), "missing")
	if err := w.open(nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, text := range []string{"", "x", "1 -2 3 4\n", "1 2 3000 x\n"} {
		if _, err := ParsePosition(text); err == nil {
			t.Errorf("%q is a position", text)
		}
	}
}

// TestSave checks that the position is saved only after the records of all lines before it.
func TestSave(t *testing.T) {
	f := &Front{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	flushed := false
	f.flush = func(context.Context) error {
		_, err := ReadPosition(f.dir)
		flushed = errors.Is(err, fs.ErrNotExist)
		return nil
	}
	f.tail.pos = Position{Inode: 1, Offset: 2, Length: 3, Head: "a"}
	f.save()
	if got, err := ReadPosition(f.dir); !flushed || err != nil || got != f.tail.pos {
		t.Errorf("flushed before %t, position %v, %v", flushed, got, err)
	}
}
