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

// The limits of a Fan: they bound what it costs who sends.
const (
	MaxWatchers = 4
	watchQueue  = 64 << 10 // bytes of lines that wait for one watcher
	watchSeen   = 64       // sessions that a watcher of evidence follows
)

// ErrWatchers tells that MaxWatchers watch already.
var ErrWatchers = errors.New("four watchers are served already; end one of them")

// A Fan passes events on to those who watch just now. Who sends never waits: a
// watcher that is too slow misses events, and is told how many. The zero value
// is ready.
type Fan struct {
	watching atomic.Int32 // so that nothing is done if nobody watches

	mu       sync.Mutex // held for microseconds
	watchers []*Watcher
	line     []byte // scratch
}

// A Choice is what a watcher wants to see; the zero value is everything.
type Choice struct {
	// Evidence chooses findings of that token, and what else is said of the
	// sessions, the latest 64, in which they were.
	Evidence string
	// Src chooses what is about a client in it, or about a network that
	// overlaps it.
	Src netip.Prefix
}

// A Watcher gets the events that were sent since it began.
type Watcher struct {
	fan    *Fan
	choice Choice
	wake   chan struct{}

	// The fan's mutex is held for these.
	queue  []byte
	missed uint64
	seen   [watchSeen]uint64 // sessions with the evidence; a ring
	next   int
}

// Send passes e on.
func (f *Fan) Send(e *Event) {
	if f.watching.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.line = f.line[:0]
	for _, w := range f.watchers {
		if !w.wants(e) {
			continue
		}
		if len(f.line) == 0 {
			stamped := *e
			if stamped.Time.IsZero() {
				stamped.Time = time.Now()
			}
			f.line = appendEvent(f.line, &stamped)
		}
		// After a gap nothing comes before the line that tells of it.
		if w.missed > 0 || len(w.queue)+len(f.line) > watchQueue {
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

// Watch begins to watch. The caller must Close.
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

// Close ends the watching.
func (w *Watcher) Close() {
	w.fan.mu.Lock()
	defer w.fan.mu.Unlock()
	if i := slices.Index(w.fan.watchers, w); i >= 0 {
		w.fan.watchers = slices.Delete(w.fan.watchers, i, i+1)
		w.fan.watching.Add(-1)
	}
}

// Next waits for events and returns their lines, whole, in place of those of the
// call before. What the watcher missed is told by a line left-out, as in a
// Stream. The error is that of ctx.
func (w *Watcher) Next(ctx context.Context, lines []byte) ([]byte, error) {
	lines = lines[:0]
	for {
		w.fan.mu.Lock()
		lines, w.queue = w.queue, lines
		missed := w.missed
		w.missed = 0
		w.fan.mu.Unlock()
		if missed > 0 {
			lines = appendLeftOut(lines, time.Now(), LeftOut{Full: missed})
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

// wants tells whether e is of the watcher's choice.
func (w *Watcher) wants(e *Event) bool {
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
		if e.Session != 0 && !slices.Contains(w.seen[:], e.Session) {
			w.seen[w.next] = e.Session
			w.next = (w.next + 1) % watchSeen
		}
		return true
	}
	return e.Evidence == "" && e.Session != 0 && slices.Contains(w.seen[:], e.Session)
}
