package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestForwardKills kills the process at random points. Each batch on disk must survive, and the
// next process must start.
func TestForwardKills(t *testing.T) { forwardKills(t, 5) }

// A killedBatch is the content of a batch from a killed process.
type killedBatch struct {
	ID      string
	Events  []struct{ Count int }
	Dropped int
	Gaps    int
}

// arrivals contains the batches that the server has accepted.
type arrivals struct {
	mu       sync.Mutex
	requests int
	batches  map[string]string // by ID
	changed  []string          // batches that arrived twice with different content
	accepts  func() bool
}

func (a *arrivals) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	if !a.accepts() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	id := r.Header.Get("X-Scanwatch-Batch")
	if was, again := a.batches[id]; again && was != string(body) {
		a.changed = append(a.changed, id)
	}
	a.batches[id] = string(body)
}

func (a *arrivals) accept(when func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.accepts = when
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

// lacks returns the given batches that have not arrived.
func (a *arrivals) lacks(ids map[string]bool) (missing []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range ids {
		if a.batches[id] == "" {
			missing = append(missing, id)
		}
	}
	return missing
}

func forwardKills(t *testing.T, rounds int) {
	in := newInternet(t)
	got := &arrivals{batches: map[string]string{}}
	in.set("hooks.example.org/x", got.ServeHTTP)
	dir, conf := forwardDir(t, `companion forward user _swforward to url "https://hooks.example.org/x" rate 1000`, nil)
	f := newForwardFilter(t, dir, conf)
	files := func(pattern string) []string {
		names, err := filepath.Glob(filepath.Join(dir, "queue", "*", pattern))
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(names, func(name string) bool { return filepath.Base(name) == ".lock" })
	}
	stored := map[string]bool{} // batches seen on disk
	old := map[string]bool{}    // the files of these batches
	added := func() bool {
		return slices.ContainsFunc(files("*.json"), func(name string) bool { return !old[name] })
	}
	points := []func(before int) bool{
		func(int) bool { return true },
		func(int) bool { return f.fan.Watching() > 0 },
		func(int) bool { return added() },
		func(int) bool { return len(files(".[0-9]*")) > 0 || added() },
		func(before int) bool { return got.count() > before },
	}
	sent, start := 0, func() (*bytes.Buffer, func(os.Signal) error) {
		var log bytes.Buffer
		cmd := in.command(t, "-f", conf, "forward", "url")
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return &log, func(s os.Signal) error { return errors.Join(cmd.Process.Signal(s), cmd.Wait()) }
	}
	for i := range rounds {
		before := got.count()
		got.accept(func() bool { return i%len(points) == 4 && rand.N(3) > 0 }) // all other points need a queued file
		_, end := start()
		if point := points[i%len(points)]; i%len(points) > 0 {
			f.watched()
			for n := range 1 + rand.N(20) {
				f.sendEvents(fmt.Sprintf("198.51.100.%d", n+10))
				sent += 3
			}
			for !point(before) { // the time limit of go test ends the loop
				runtime.Gosched()
			}
		}
		for range rand.N(2000) {
			runtime.Gosched()
		}
		_ = end(syscall.SIGKILL) // end without any cleanup
		for f.fan.Watching() > 0 {
			runtime.Gosched()
		}
		for _, name := range files("*.json") {
			var b killedBatch
			content, err := os.ReadFile(name)
			if err != nil || json.Unmarshal(content, &b) != nil || b.ID == "" {
				t.Fatalf("round %d: %s: %v: %s", i, name, err, content)
			}
			stored[b.ID], old[name] = true, true
		}
	}
	got.accept(func() bool { return true })
	log, end := start()
	f.watched()
	for len(got.lacks(stored)) > 0 || len(files("*.json")) > 0 || got.count() == 0 {
		runtime.Gosched()
	}
	if err := end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	counted, gaps := 0, 0
	for _, content := range got.batches {
		var b killedBatch
		if err := json.Unmarshal([]byte(content), &b); err != nil || b.Dropped != 0 {
			t.Errorf("%v: %s", err, content)
		}
		for _, e := range b.Events {
			counted += e.Count
		}
		gaps += b.Gaps
	}
	if counted > sent || gaps == 0 || len(got.changed) > 0 || len(files(".*")) > 0 {
		t.Errorf("%d of %d events, %d gaps, changed batches %v, temporary files %v", counted, sent, gaps, got.changed, files(".*"))
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("%s", log)
	}
	t.Logf("%d kills, %d batches, %d on the disk at a kill, %d of %d events", rounds, len(got.batches), len(stored), counted, sent)
}
