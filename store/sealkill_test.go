package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// sealingWriter adds a session per hour until the process is killed, and prints
// the number of flushed sessions after each flush. The Writer seals the days
// that have ended.
func sealingWriter(dir string) {
	first, _ := strconv.Atoi(os.Getenv("SCANWATCH_TEST_FIRST"))
	var now atomic.Int64
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Hour) }
	now.Store(at(first).UnixMicro())
	w := Open(dir, Options{Budget: 256 << 20, Keep: 100_000 * time.Hour, Seal: true, Now: func() time.Time { return time.UnixMicro(now.Load()) }})
	fmt.Println(first)
	for i := first; ; {
		for range 1 + i%17 {
			now.Store(at(i).UnixMicro())
			add(w, at(i), uint64(i+1))
			i++
		}
		if err := w.Flush(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
		for rand.N(3) > 0 && w.Status().Sealing != "" {
			_ = w.Flush(context.Background())
		}
	}
}

// killed starts the test program with the given environment. It kills the program at a random time
// within the given number of lines of output, and returns the last number that the program printed.
func killed(t *testing.T, lines, last int, env ...string) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	after := rand.N(lines)
	r := bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := r.ReadString('\n')
		if err != nil {
			break // half a line was not flushed
		}
		if n == after {
			time.AfterFunc(rand.N(5*time.Millisecond), func() { _ = cmd.Process.Kill() })
		}
		if v, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			last = v
		}
	}
	_ = cmd.Wait()
	return last
}

// TestSealKill checks that a Writer killed during sealing loses no flushed
// session. Readers get each session once. The next start removes temporary
// files.
func TestSealKill(t *testing.T) {
	dir := t.TempDir()
	rounds := sealKillRounds
	if testing.Short() {
		rounds = 4
	}
	flushed := 0
	for range rounds {
		flushed = killed(t, 30, flushed, "SCANWATCH_TEST_SEALER="+dir, "SCANWATCH_TEST_FIRST="+strconv.Itoa(flushed))
	}
	got, problems := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
	if problems != nil {
		t.Errorf("problems: %q", problems)
	}
	if flushed < rounds || len(got) < flushed || !slices.Equal(got[:flushed], seq(flushed)) {
		t.Errorf("of %d flushed records, %d are there", flushed, len(got))
	}
	for name, f := range found(t, dir, false) {
		if f.Health.Bad() || f.Health == HealthAside {
			t.Errorf("%s: %+v", name, f)
		}
	}
	// The next Writer seals the remaining segments and removes temporary files.
	now := noon.Add(time.Duration(flushed+2) * time.Hour)
	w, log := openTest(t, dir, Options{Budget: 256 << 20, Keep: 100_000 * time.Hour, Seal: true, Now: func() time.Time { return now }})
	settle(t, w)
	if again, problems := ids(t, liveReader(dir, w), time.Time{}, time.Time{}); !slices.Equal(again, got) || problems != nil {
		t.Errorf("%d records after the next start, want %d; %q", len(again), len(got), problems)
	}
	all, err := w.Segments()
	if err != nil {
		t.Fatal(err)
	}
	sealed := 0
	for _, s := range all {
		if s.Sealed {
			sealed++
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, sessionsDir, "*"+newSuffix))
	if list := finished(all, now); len(list) > 0 || left != nil || sealed < flushed/24-2 {
		t.Errorf("%d of %d days are sealed; not sealed: %v; left: %v; log: %s", sealed, flushed/24, list, left, log)
	}
}

// repairer repairs a directory and prints a line for each file.
func repairer(dir string) {
	i := Inspector{Dir: dir, Decode: true, Tables: []string{"bans"}, Row: badRow}
	fmt.Println("ready")
	if err := i.Repair("test", noon, func(f *File) error { fmt.Println(f.Name); return nil }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func badRow(e Entry) error {
	if string(e.Value) == "bad" {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// TestRepairKill checks that a killed repair loses no readable record, and that the next
// repair completes the work.
func TestRepairKill(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("SKIPPED, NOT TESTED: the damage is made for pages of 4096 bytes")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, sessionsDir), 0o750); err != nil {
		t.Fatal(err)
	}
	const n, days = 9000, 4
	for day := range days {
		from := recorded(t, noon.AddDate(0, 0, day), n)
		if day%2 == 0 {
			if _, err := SealDays(from, "test", noon.AddDate(0, 0, 10)); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range segmentNames(t, from) {
			b, err := os.ReadFile(filepath.Join(from, sessionsDir, name))
			if err != nil {
				t.Fatal(err)
			}
			clear(b[len(b)/2:][:64])       // corrupt a page or a block
			b[16+40], b[4096+16+40] = 9, 9 // corrupt both meta pages
			if err := os.WriteFile(filepath.Join(dir, sessionsDir, name), b, 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows := []Entry{{Bucket: "bans", Key: []byte("a"), Value: []byte("good")}, {Bucket: "bans", Key: []byte("b"), Value: []byte("bad")}}
	s := OpenState(dir, StateOptions{Buckets: []string{"bans"}, Changes: func(int) (list []Entry) {
		list, rows = rows, nil
		return list
	}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	repair := func(dir string) int {
		i := Inspector{Dir: dir, Decode: true, Tables: []string{"bans"}, Row: badRow}
		if err := i.Repair("test", noon, func(*File) error { return nil }); err != nil {
			t.Fatal(err)
		}
		got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
		return len(got)
	}
	want := repair(copied)
	before, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
	if want < n*days*3/4 || want <= len(before) || len(before) == 0 {
		t.Fatalf("a repair gives %d records of %d, %d could be read before", want, n*days, len(before))
	}
	t.Logf("%d of %d records could be read before a repair, %d after it", len(before), n*days, want)
	rounds := repairKillRounds
	if testing.Short() {
		rounds = 3
	}
	last := len(before)
	for range rounds {
		killed(t, 2*days, 0, "SCANWATCH_TEST_REPAIR="+dir)
		got, _ := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
		if len(got) < last {
			t.Fatalf("%d records after a kill, %d before", len(got), last)
		}
		last = len(got)
		states := 0
		if err := ReadState(dir, []string{"bans"}, nil, func(Entry) error { states++; return nil }); err != nil || states == 0 {
			t.Fatalf("%d rows of state.db, %v", states, err)
		}
	}
	if got := repair(dir); got != want {
		t.Errorf("%d records, an uninterrupted repair gives %d", got, want)
	}
	for name, f := range found(t, dir, false) {
		if f.Health.Bad() || f.Health == HealthLeft {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
