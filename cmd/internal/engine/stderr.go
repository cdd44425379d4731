package engine

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"scanwatch/internal/safego"
)

// A queue writes log lines without blocking, because a slow log reader must not delay responses to
// smtpd. When the queue is full, lines are dropped and counted; the count is logged later.
type queue struct {
	mu      sync.Mutex
	to      io.Writer
	lines   []byte
	dropped int
	closed  bool
	wake    chan struct{}
	done    chan struct{}
}

const (
	maxQueue   = 256 << 10
	maxLogLine = 4 << 10 // smtpd accepts lines of up to 8 KiB
)

func newQueue(to io.Writer) *queue {
	q := &queue{to: to, wake: make(chan struct{}, 1), done: make(chan struct{})}
	safego.Loop(nil, "", q.run, func() { close(q.done) }) // no logger: the log cannot log its own panic
	return q
}

// use sets the writer for subsequent lines.
func (q *queue) use(to io.Writer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.to = to
}

// Write queues p, a single line with or without a newline.
func (q *queue) Write(p []byte) (int, error) {
	line := bytes.TrimSuffix(p, []byte{'\n'})
	q.add(line[:min(len(line), maxLogLine)])
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (q *queue) add(line []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines)+len(line) >= maxQueue {
		q.dropped++
		return
	}
	q.lines = append(append(q.lines, line...), '\n')
}

func (q *queue) Line(line []byte) { _, _ = q.Write(line) }

func (q *queue) run() {
	var lines []byte
	for range q.wake {
		q.mu.Lock()
		lines, q.lines = q.lines, lines[:0]
		dropped, closed, to := q.dropped, q.closed, q.to
		q.dropped = 0
		q.mu.Unlock()
		if dropped > 0 {
			lines = fmt.Appendf(lines, "warning: %d log lines lost: not read in time\n", dropped)
		}
		_, _ = to.Write(lines) // a closed stderr must not end the process
		if closed {
			return
		}
	}
}

// Close writes the queued lines, and returns when all lines are written or stop is
// closed.
func (q *queue) Close(stop <-chan struct{}) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	select {
	case <-q.done:
	case <-stop:
	}
}
