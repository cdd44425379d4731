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

// Limits that bound the cost of Send.
const (
	MaxWatchers     = 8
	maxQueue        = 64 << 10 // size of a watcher's queue in bytes
	trackedSessions = 64       // sessions that an evidence watcher follows
)

// ErrWatchers is returned by Watch if there are already MaxWatchers watchers.
var ErrWatchers = errors.New("too many watchers; end one of them")

// A Fan passes events to watchers. Send never blocks: a slow watcher misses events and
// receives their number instead. The zero Fan is ready to use. A Fan is safe for
// concurrent use.
type Fan struct {
	watching atomic.Int32 // number of watchers; if 0, Send does nothing

	mu       sync.Mutex // held only for microseconds
	watchers []*Watcher
	line     []byte // scratch
}

// A Choice selects events. The zero Choice selects all events.
type Choice struct {
	// Evidence selects findings with this token. It also selects later events in
	// the 64 most recent sessions in which the token was found.
	Evidence string
	// Src selects events that concern a client within this prefix, or a network that
	// overlaps it.
	Src netip.Prefix
}

// A Watcher receives the events sent after Watch was called. A Watcher must not be used
// concurrently.
type Watcher struct {
	fan    *Fan
	choice Choice
	wake   chan struct{}

	// The following fields are guarded by Fan.mu.
	queue    []byte
	missed   uint64
	sessions [trackedSessions]uint64 // ring buffer of the latest sessions with the evidence
	next     int
}

// Send copies e to all watchers that select it.
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
		// The line that reports missed events must precede all later events.
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

// Watch adds a watcher, or returns ErrWatchers. The caller must call Close.
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

// Next waits for events and returns complete lines, reusing the memory of the lines
// argument. If the watcher missed events, the last line reports how many. Next returns
// an error only if ctx is done.
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
