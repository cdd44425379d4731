package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestMain runs the Writer for TestKill if the environment requests it.
func TestMain(m *testing.M) {
	for name, run := range map[string]func(string){"WRITER": endlessWriter, "SEALER": sealingWriter, "REPAIR": repairer, "REWRITE": rewriter} {
		if dir := os.Getenv("SCANWATCH_TEST_" + name); dir != "" {
			run(dir)
		}
	}
	os.Exit(m.Run())
}

// endlessWriter adds records, flushes, and prints the number of the last flushed record,
// until the process is killed.
func endlessWriter(dir string) {
	first, _ := strconv.Atoi(os.Getenv("SCANWATCH_TEST_FIRST"))
	w := Open(dir, Options{Budget: 128 << 20, Now: func() time.Time { return noon }})
	fmt.Println(first)
	for i := first; ; {
		for range 1 + i%97 {
			add(w, noon.Add(time.Duration(i)*100*time.Millisecond), uint64(i+1))
			i++
		}
		if err := w.Flush(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// TestKill kills a Writer at many different times. All records that were
// reported as flushed must exist, and no file may be corrupt.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	flushed := 0
	kills := killRounds
	if testing.Short() {
		kills = 5
	}
	for range kills {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "SCANWATCH_TEST_WRITER="+dir, "SCANWATCH_TEST_FIRST="+strconv.Itoa(flushed))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		// Kill the process at a random time after some flushes, so that the test does
		// not depend on the machine's speed.
		least := rand.N(50)
		for round := 0; lines.Scan(); round++ {
			if round == least {
				time.AfterFunc(rand.N(5*time.Millisecond), func() { cmd.Process.Kill() })
			}
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				flushed = n
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the writer ended unexpectedly: %v", err)
		}
	}
	got, problems := ids(t, &Reader{Dir: dir}, time.Time{}, time.Time{})
	if problems != nil {
		t.Errorf("problems: %q", problems)
	}
	if flushed < kills {
		t.Errorf("only %d records were flushed in %d runs", flushed, kills)
	}
	if len(got) < flushed || !slices.Equal(got[:flushed], seq(flushed)) {
		t.Errorf("of %d flushed records, %d are there", flushed, len(got))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, sessionsDir, "*.damaged-*")); left != nil {
		t.Errorf("quarantined: %v", left)
	}
}
