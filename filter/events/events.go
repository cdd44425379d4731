// Package events tells programs outside what has just been found and decided: a
// line of JSON for each event, to a FIFO, a Unix socket or a file. What becomes
// of a line (a webhook, a queue, a SIEM) is not its business, nor what an event
// means.
//
// A line is printable ASCII whatever a stranger has sent, and whole: a reader
// that comes back begins with the start of one, unless the reader before it had
// taken half of a line out of the same FIFO. Who sends never waits. Events that
// come too fast, find no room or have no reader are counted, and the stream says
// so as soon as it can:
//
//	{"event":"left-out","time":"2026-01-02T03:04:05.000006Z","count":7,"reasons":{"rate":2,"gone":5}}
//
// The reasons are those of LeftOut.
package events

import (
	"log/slog"
	"sync"
	"time"

	"scanwatch/internal/contain"
)

// The defaults of Options.
const (
	DefaultRate    = 100
	DefaultBurst   = 1000
	DefaultQueue   = 1 << 20
	DefaultMaxFile = 64 << 20
)

// Options are the limits of a Stream. Zero values mean the defaults.
type Options struct {
	Rate    int          // events per second in the long run
	Burst   int          // events at once
	Queue   int          // bytes of lines that wait in memory
	MaxFile int64        // bytes; a file that would get larger becomes path.1, in place of the former one
	Log     *slog.Logger // nil: be silent
	Now     func() time.Time
}

// A Stream takes events and writes them in the background.
type Stream struct {
	path string
	o    Options
	t    timing

	wake    chan struct{} // there is something to write; never blocks who sends
	closing chan struct{} // closed by Close: write what waits, then end
	abort   chan struct{} // closed when Close waits no longer
	done    chan struct{} // closed when the background is gone
	once    sync.Once

	mu      sync.Mutex // held for microseconds, never across a system call
	queue   []byte     // lines that wait
	flight  int        // bytes of lines that have left the queue and are not written
	tokens  float64    // events that may come now
	refill  time.Time  // when tokens was right
	gone    bool       // nothing is kept: nobody has been there for a while
	closed  bool
	kind    string
	sent    uint64
	leftOut LeftOut
	told    LeftOut // the part of leftOut that is in the stream
	trouble string  // the latest error; empty when all is well
	since   time.Time
}

// LeftOut counts events that were not written, by reason.
type LeftOut struct {
	Rate uint64 `json:"rate"` // more came than Options.Rate and Options.Burst allow
	Full uint64 `json:"full"` // the reader was too slow, and the queue full
	Gone uint64 `json:"gone"` // there was no reader, the disk was full, or the stream closed
}

func (l LeftOut) total() uint64 { return l.Rate + l.Full + l.Gone }

func (l LeftOut) plus(m LeftOut) LeftOut {
	return LeftOut{Rate: l.Rate + m.Rate, Full: l.Full + m.Full, Gone: l.Gone + m.Gone}
}

func (l LeftOut) minus(m LeftOut) LeftOut {
	return LeftOut{Rate: l.Rate - m.Rate, Full: l.Full - m.Full, Gone: l.Gone - m.Gone}
}

// Status tells how a Stream is doing.
type Status struct {
	Path    string    `json:"path"`
	Kind    string    `json:"kind,omitempty"` // fifo, stream, datagram, file: what was opened last
	Sent    uint64    `json:"sent"`           // events that the system has taken; a reader that left may have missed the last
	LeftOut LeftOut   `json:"left_out"`
	Error   string    `json:"error,omitempty"` // why events cannot be written; empty if they can
	Since   time.Time `json:"since,omitzero"`  // of the trouble
}

// Open starts a Stream to path: a FIFO, a Unix stream or datagram socket that
// another program listens on, or a regular file, which is made if it is missing.
// It returns at once and cannot fail; what goes wrong is logged, and tried again.
func Open(path string, o Options) *Stream { return open(path, o, normalTiming) }

func open(path string, o Options, t timing) *Stream {
	s := newStream(path, o, t)
	s.begin()
	return s
}

func (s *Stream) begin() {
	contain.Loop(s.o.Log, "writing events", (&writer{Stream: s}).run, func() { close(s.done) })
}

// newStream makes a Stream without its background.
func newStream(path string, o Options, t timing) *Stream {
	if o.Rate <= 0 {
		o.Rate = DefaultRate
	}
	if o.Burst <= 0 {
		o.Burst = DefaultBurst
	}
	if o.Queue <= 0 {
		o.Queue = DefaultQueue
	}
	if o.MaxFile <= 0 {
		o.MaxFile = DefaultMaxFile
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Stream{
		path:    path,
		o:       o,
		t:       t,
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		abort:   make(chan struct{}),
		done:    make(chan struct{}),
		tokens:  float64(o.Burst),
		refill:  o.Now(),
	}
}

// Send takes a copy of e. It never waits: an event that comes too fast or finds
// no room is counted and left out.
func (s *Stream) Send(e *Event) {
	s.take(e, s.o.Now())
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take puts a line in the queue, or counts the event.
func (s *Stream) take(e *Event, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.closed {
		s.leftOut.Gone++
		return
	}
	// A clock that is set back gives nothing and takes nothing.
	if d := now.Sub(s.refill); d > 0 {
		s.tokens = min(s.tokens+d.Seconds()*float64(s.o.Rate), float64(s.o.Burst))
	}
	s.refill = now
	if s.tokens < 1 {
		s.leftOut.Rate++
		return
	}
	length := len(s.queue)
	stamped := *e
	if stamped.Time.IsZero() {
		stamped.Time = now
	}
	s.queue = appendEvent(s.queue, &stamped)
	if len(s.queue)+s.flight > s.o.Queue {
		s.queue = s.queue[:length]
		s.leftOut.Full++
		return
	}
	s.tokens--
}

// Status may be called at any time.
func (s *Stream) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{
		Path:    s.path,
		Kind:    s.kind,
		Sent:    s.sent,
		LeftOut: s.leftOut,
		Error:   s.trouble,
		Since:   s.since,
	}
}

// Close returns when all that waits has been written or cannot be, but no later
// than stop is closed. A nil stop means to wait however slow the reader is. What
// is sent from then on is left out.
func (s *Stream) Close(stop <-chan struct{}) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.once.Do(func() { close(s.closing) })
	select {
	case <-s.done:
	case <-stop:
		// A write in progress ends soon, but on a hanging disk only with the process.
		s.mu.Lock()
		defer s.mu.Unlock()
		select {
		case <-s.abort:
		default:
			close(s.abort)
		}
	}
}
