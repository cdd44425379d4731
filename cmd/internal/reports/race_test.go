package reports

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/store"
	"scanwatch/store/report"
)

// A busy is a filter in which sessions end between the commands that a report sends.
type busy struct {
	w  *store.Writer
	m  *memory.Memory
	mu sync.Mutex
	n  uint64

	summed atomic.Int64 // sessions in aggregates that have not been written
}

// now returns the end time of the last session.
func (b *busy) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Add(-time.Minute + time.Duration(b.n)*time.Millisecond)
}

// end ends 100 sessions.
func (b *busy) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range 100 {
		b.n++
		end := now.Add(-time.Minute + time.Duration(b.n)*time.Millisecond)
		r := store.Record{ID: b.n, Start: end, End: end, Src: netip.MustParseAddrPort("192.0.2.1:25")}
		b.w.Add(end, b.n, store.AppendRecord(nil, &r, nil))
		b.m.Days.Add(&memory.Ended{Whole: true}, end.UnixMicro())
	}
}

// serve serves b's commands in dir until the test ends.
func (b *busy) serve(t *testing.T, dir string) {
	b.w = store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	b.m = memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Changes: b.m.Changes, Rewrite: b.m.Rewrite})
	b.end()
	status := control.StatusCommand(func() control.Status {
		return control.Status{Store: b.w.Status(), Live: control.Live{Summed: b.summed.Load()}}
	})
	commands := append(control.StoreCommands(b.w), status)
	commands = append(commands, control.MemoryCommands(b.m, state, now.UnixMicro, func() bool { return false }, func(memory.Ban) {})...)
	for i := range commands {
		run := commands[i].Run
		commands[i].Run = func(ctx context.Context, a *control.Answer, args []string) error {
			b.end()
			return run(ctx, a, args)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	server, ended := &control.Server{Commands: commands}, make(chan bool)
	go func() { server.Run(ctx, dir, time.Second); close(ended) }()
	t.Cleanup(func() {
		stop()
		<-ended
		b.w.Close()
		state.Close()
	})
	for { // the time limit of go test ends the loop
		if client, err := control.Dial(dir); err == nil {
			client.Close()
			return
		}
	}
}

// notKept returns the sessions that a report on the current day counts as not kept.
func notKept(t *testing.T, b *busy, dir string) report.NotKept {
	t.Helper()
	s := Source{Dir: &statedir.Dir{Path: dir, Now: b.now}, Selector: &selector.Selector{Since: now.Add(-12 * time.Hour)}, Zone: time.UTC}
	summary, incomplete, err := s.Summary(10, true)
	if err != nil || incomplete != nil || summary.Local.Sessions+summary.Remote.Sessions == 0 {
		t.Fatalf("%+v, %v, %v", summary, incomplete, err)
	}
	return summary.NotKept
}

// shortDir returns a directory whose path is short enough for the socket.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "sw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestNotLost checks that sessions that end during a report are not counted as lost.
func TestNotLost(t *testing.T) {
	dir, b := shortDir(t), new(busy)
	b.serve(t, dir)
	if n := notKept(t, b, dir); n.Sessions != 0 {
		t.Errorf("lost: %+v", n)
	}
	// The aggregate ends after the counters have been read, but also includes earlier sessions.
	end := b.now().Add(500 * time.Millisecond)
	sum := store.Record{ID: 1, Start: now.Add(-time.Minute), End: end, Src: netip.MustParseAddrPort("192.0.2.1:0"), Sessions: 1000}
	b.w.Add(end, 1, store.AppendRecord(nil, &sum, nil))
	for range 1000 {
		b.m.Days.Add(&memory.Ended{}, b.now().UnixMicro())
	}
	if n := notKept(t, b, dir); n.Sessions != 0 {
		t.Errorf("lost: %+v", n)
	}
	b.summed.Store(20)
	for range 20 {
		b.m.Days.Add(&memory.Ended{}, b.now().UnixMicro())
	}
	if n := notKept(t, b, dir); n.Sessions != 0 {
		t.Errorf("lost: %+v", n)
	}
	for range 30 { // these sessions are not recorded
		b.m.Days.Add(&memory.Ended{Mails: 2}, b.now().UnixMicro())
	}
	if n := notKept(t, b, dir); n.Sessions != 30 || n.Mails != 60 || n.Days != 1 {
		t.Errorf("lost: %+v, want 30 sessions with 60 messages", n)
	}
}
