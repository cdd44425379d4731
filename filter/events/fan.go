package events

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// These limits bound the time and memory that Send needs.
const (
	MaxWatchers     = 8
	maxQueue        = 64 << 10 // size of a watcher's queue in bytes
	trackedSessions = 64       // latest sessions that are followed for Choice.Evidence
)

// ErrWatchers is returned by Watch if there are already MaxWatchers watchers.
var ErrWatchers = errors.New("too many watchers; end one of them")

// A Fan passes events to watchers. Send never waits for a slow watcher. A slow watcher misses
// events and receives the number of missed events instead. The zero Fan is ready to use. A Fan is
// safe for concurrent use.
type Fan struct {
	watching atomic.Int32 // number of watchers; if 0, Send does nothing

	mu       sync.Mutex // only held for microseconds
	watchers []*Watcher
	line     []byte // scratch
}

// A Choice selects events. The zero Choice selects all events.
type Choice struct {
	// Evidence selects findings with this evidence token. Evidence also selects later events in the
	// 64 latest sessions with such a finding.
	Evidence string
	// Src selects events about a client in this prefix, or about a network that overlaps the
	// prefix.
	Src netip.Prefix
}

// A Watcher receives the events that are sent after Watch was called. A Watcher must not be used
// concurrently.
type Watcher struct {
	fan    *Fan
	choice Choice
	wake   chan struct{}

	// The following fields are guarded by Fan.mu.
	queue    []byte
	missed   uint64
	sessions [trackedSessions]uint64 // ring buffer of the latest sessions with the chosen evidence
	next     int
}

// Send copies e to all watchers whose choice includes it.
func (f *Fan) Send(e *Event) {
	if f.watching.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.line = f.line[:0]
	for _, w := range f.watchers {
		if !w.selects(e) {
			continue
		}
		if len(f.line) == 0 {
			stamped := *e
			if stamped.Time.IsZero() {
				stamped.Time = time.Now()
			}
			f.line = appendEvent(f.line, &stamped)
		}
		// After a missed event, no event is queued until Next has reported the number of missed
		// events.
		if w.missed > 0 || len(w.queue)+len(f.line) > maxQueue {
			w.missed++
			continue
		}
		w.queue = append(w.queue, f.line...)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Watch adds a watcher. Watch returns ErrWatchers if there are too many. The caller must call
// Close.
func (f *Fan) Watch(c Choice) (*Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) >= MaxWatchers {
		return nil, ErrWatchers
	}
	w := &Watcher{fan: f, choice: c, wake: make(chan struct{}, 1)}
	f.watchers = append(f.watchers, w)
	f.watching.Add(1)
	return w, nil
}

// Watching returns the number of watchers.
func (f *Fan) Watching() int { return int(f.watching.Load()) }

// Close removes the watcher.
func (w *Watcher) Close() {
	w.fan.mu.Lock()
	defer w.fan.mu.Unlock()
	if i := slices.Index(w.fan.watchers, w); i >= 0 {
		w.fan.watchers = slices.Delete(w.fan.watchers, i, i+1)
		w.fan.watching.Add(-1)
	}
}

// Next waits for events and returns complete lines. The result reuses the memory of lines. If the
// watcher missed events, the last line contains their number. Next returns an error only if ctx is
// done.
func (w *Watcher) Next(ctx context.Context, lines []byte) ([]byte, error) {
	lines = lines[:0]
	for {
		w.fan.mu.Lock()
		lines, w.queue = w.queue, lines
		missed := w.missed
		w.missed = 0
		w.fan.mu.Unlock()
		if missed > 0 {
			lines = appendDropped(lines, time.Now(), missed)
		}
		if len(lines) > 0 {
			return lines, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// selects reports whether the watcher's choice includes e.
func (w *Watcher) selects(e *Event) bool {
	if p := w.choice.Src; p.IsValid() && !p.Contains(e.Src.Unmap().WithZone("")) {
		about, err := netip.ParsePrefix(e.Prefix)
		if e.Prefix == "" || err != nil || !p.Overlaps(about) {
			return false
		}
	}
	switch {
	case w.choice.Evidence == "":
		return true
	case e.Evidence == w.choice.Evidence:
		if e.Session != 0 && !slices.Contains(w.sessions[:], e.Session) {
			w.sessions[w.next] = e.Session
			w.next = (w.next + 1) % trackedSessions
		}
		return true
	}
	return e.Evidence == "" && e.Session != 0 && slices.Contains(w.sessions[:], e.Session)
}
