package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// endlessState changes entries, flushes, and prints the number of rounds, until the
// process is killed. Each round adds some entries, changes one entry, and
// deletes an entry from the previous round.
func endlessState(dir string) {
	rounds := -1
	var batch []Entry
	s := OpenState(dir, StateOptions{
		Buckets: []string{"rounds"}, Every: time.Hour,
		Load: func(all iter.Seq[Entry]) {
			for e := range all {
				if string(e.Key) == "last" {
					rounds, _ = strconv.Atoi(string(e.Value))
				}
			}
		},
		Changes: func(n int) (list []Entry) {
			list, batch = batch, nil
			return list
		},
	})
	for first := true; ; first = false {
		if err := s.Flush(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if first {
			fmt.Println("ready")
		} else {
			fmt.Println(rounds)
		}
		rounds++
		text := func(format string) []byte { return fmt.Appendf(nil, format, rounds) }
		for i := range 1 + rounds%97 {
			batch = append(batch, Entry{Bucket: "rounds", Key: fmt.Appendf(nil, "%08x-%d", uint32(rounds)*2654435761, i), Value: text("%d")})
		}
		batch = append(batch,
			Entry{Bucket: "rounds", Key: []byte("last"), Value: text("%d")},
			Entry{Bucket: "rounds", Key: text("gone-%d"), Value: text("%d")},
			Entry{Bucket: "rounds", Key: fmt.Appendf(nil, "gone-%d", rounds-1), Value: nil})
	}
}

// TestStateKill kills a process with a State at many different times. All
// flushed entries must be on disk, and no file may be corrupt.
func TestStateKill(t *testing.T) {
	if dir := os.Getenv("SCANWATCH_TEST_STATE"); dir != "" {
		endlessState(dir)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	flushed := -1
	kills := 40
	if testing.Short() {
		kills = 5
	}
	for range kills {
		cmd := exec.Command(self, "-test.run=^TestStateKill$")
		cmd.Env = append(os.Environ(), "SCANWATCH_TEST_STATE="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if _, err := lines.ReadString('\n'); err != nil {
			t.Errorf("the filter did not begin: %v", err)
		}
		// Kill the process at a random time after some flushes, so that the test does
		// not depend on the machine's speed.
		least := rand.N(50)
		for round := 0; ; round++ {
			if round == least {
				time.AfterFunc(rand.N(5*time.Millisecond), func() { cmd.Process.Kill() })
			}
			line, err := lines.ReadString('\n')
			if err == io.EOF {
				break // half a line is a round that was not reported
			}
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(line[:len(line)-1])
			if err != nil || n <= flushed {
				t.Fatalf("round %q after round %d", line, flushed)
			}
			flushed = n
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the filter ended unexpectedly: %v", err)
		}
	}
	if flushed < kills/2 {
		t.Errorf("only %d rounds were flushed in %d runs", flushed, kills)
	}
	got := map[string]string{}
	err = ReadState(dir, []string{"rounds"}, nil, func(e Entry) error {
		got[string(e.Key)] = string(e.Value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	last, _ := strconv.Atoi(got["last"])
	if last < flushed || last > flushed+1 {
		t.Errorf("the last round is %d, of %d flushed ones", last, flushed)
	}
	entries := 2 // "last" and the last "gone"
	for round := range last + 1 {
		for i := range 1 + round%97 {
			entries++
			if v := got[fmt.Sprintf("%08x-%d", uint32(round)*2654435761, i)]; v != strconv.Itoa(round) {
				t.Fatalf("entry %d of round %d is %q", i, round, v)
			}
		}
	}
	if len(got) != entries || got[fmt.Sprintf("gone-%d", last)] == "" {
		t.Errorf("%d entries, want %d: deleted ones are back, or others lost", len(got), entries)
	}
	if left := quarantined(t, dir); left != nil {
		t.Errorf("quarantined: %q", left)
	}
}
