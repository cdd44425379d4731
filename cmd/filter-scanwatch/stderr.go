package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"scanwatch/internal/contain"
)

// A queue is a writer of log lines that never waits: smtpd, or whoever reads
// the lines, may be slow or gone, and an answer must not hang on that. Lines
// that find no room are counted, and the count is logged when there is room.
type queue struct {
	mu      sync.Mutex
	lines   []byte
	dropped int
	closed  bool
	wake    chan struct{}
	done    chan struct{}
}

const (
	maxQueue   = 256 << 10
	maxLogLine = 4 << 10 // smtpd is safe with lines below 8 KiB
)

func newQueue(to io.Writer) *queue {
	q := &queue{wake: make(chan struct{}, 1), done: make(chan struct{})}
	contain.Loop(nil, "", func() { q.run(to) }, func() { close(q.done) }) // it is the log
	return q
}

// Write queues p, which must be a single line with or without LF.
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

// Line queues a line that is complete.
func (q *queue) Line(line []byte) { _, _ = q.Write(line) }

func (q *queue) run(to io.Writer) {
	var lines []byte
	for range q.wake {
		q.mu.Lock()
		lines, q.lines = q.lines, lines[:0]
		dropped, closed := q.dropped, q.closed
		q.dropped = 0
		q.mu.Unlock()
		if dropped > 0 {
			lines = fmt.Appendf(lines, "warning: %d log lines were lost, nobody read them\n", dropped)
		}
		_, _ = to.Write(lines) // a closed stderr is no reason to stop
		if closed {
			return
		}
	}
}

// Close writes what is queued, and returns when that is done or when stop
// is closed.
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
