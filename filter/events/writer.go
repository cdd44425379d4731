package events

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"time"
)

// timing is how patient the background is.
type timing struct {
	write    time.Duration // one try to write to a full FIFO or socket
	stall    time.Duration // how long a reader may take nothing before that is trouble
	tell     time.Duration // at least, between two lines about what was left out
	retryMin time.Duration // pause after a failure; doubled each time
	retryMax time.Duration
}

var normalTiming = timing{
	write:    time.Second,
	stall:    10 * time.Second,
	tell:     time.Second,
	retryMin: time.Second,
	retryMax: 30 * time.Second,
}

// keepFor is how many failures in a row the lines that wait outlive: the reader
// may just be restarting. With the normal timing that is three seconds.
const keepFor = 3

// writer is the background of a Stream.
type writer struct {
	*Stream
	target   *target   // nil: not open
	failures int       // since something was written
	stalled  time.Time // since when the reader takes nothing; zero if it does
	toldAt   time.Time

	batch  []byte // lines taken from the queue that are not in chunk
	memory []byte // of the batch, becomes the queue's in the next exchange

	chunk    []byte // whole lines: what is being written
	written  int    // bytes of it
	isNotice bool   // chunk is the line about what was left out
	about    LeftOut
	notice   []byte // memory of that line
}

func (w *writer) run() {
	for w.step() {
	}
	w.closeTarget()
	w.leaveOut()
}

// step does the next thing to be done. It is false if the stream is to end.
func (w *writer) step() bool {
	switch {
	case isClosed(w.abort):
		return false
	case w.target == nil:
		return w.open()
	case len(w.chunk) == 0:
		return w.next()
	}
	return w.write()
}

func (w *writer) open() bool {
	target, err := openTarget(w.path, w.Status().Kind, w.o.MaxFile, w.t.write)
	if err != nil {
		return w.failed(err)
	}
	w.target = target
	w.mu.Lock()
	w.kind = target.kind
	w.gone = false
	w.mu.Unlock()
	return true
}

// next chooses what is written next, or waits for something.
func (w *writer) next() bool {
	closing := isClosed(w.closing) // asked before the queue, which then holds all that came before
	pause := w.choose(closing)
	switch {
	case len(w.chunk) > 0:
		return true
	case closing:
		return false
	case pause > 0:
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-w.wake:
		case <-w.closing:
		}
		return true
	}
	w.allWell()
	select {
	case <-w.wake:
	case <-w.closing:
	}
	return true
}

// choose makes a chunk of what is to be told or of what waits. If there is
// something to tell, but not yet, it returns how long to wait.
func (w *writer) choose(closing bool) (pause time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.about = w.leftOut.minus(w.told)
	tell := w.about.total() > 0
	if tell {
		pause = w.t.tell - time.Since(w.toldAt)
	}
	w.isNotice = tell && pause <= 0
	if !w.isNotice {
		if len(w.batch) == 0 {
			w.batch, w.queue = w.queue, w.memory[:0]
			w.memory = w.batch
			w.flight = len(w.batch)
		}
		n := wholeLines(w.batch, w.target.chunk)
		w.chunk, w.batch = w.batch[:n], w.batch[n:]
		w.isNotice = n == 0 && tell && closing
	}
	if w.isNotice {
		w.notice = appendLeftOut(w.notice[:0], w.o.Now(), w.about)
		w.chunk = w.notice
	}
	return pause
}

// wholeLines returns the length of as many lines as fit in limit, but of one at
// least if there is one.
func wholeLines(lines []byte, limit int) int {
	if len(lines) <= limit {
		return len(lines)
	}
	if n := bytes.LastIndexByte(lines[:limit], '\n') + 1; n > 0 {
		return n
	}
	return bytes.IndexByte(lines, '\n') + 1
}

// write tries to write the rest of the chunk.
func (w *writer) write() bool {
	n, err := w.target.Write(w.chunk[w.written:])
	w.account(n)
	if n > 0 {
		w.failures = 0
		w.stalled = time.Time{}
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.stall()
		return true
	case errors.Is(err, syscall.ENOBUFS):
		// So the BSDs say that a datagram socket is full; it cannot be waited for.
		w.stall()
		return w.pause(w.t.write, w.abort)
	case errors.Is(err, syscall.EMSGSIZE):
		w.skip()
		return true
	}
	w.closeTarget()
	w.startLine()
	if errors.Is(err, errReopen) {
		return true
	}
	return w.failed(err)
}

// account notes that n more bytes of the chunk are written.
func (w *writer) account(n int) {
	lines := bytes.Count(w.chunk[w.written:w.written+n], newline)
	w.written += n
	whole := w.written == len(w.chunk)

	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.isNotice:
		w.sent += uint64(lines)
		w.flight -= n
	case whole:
		w.told = w.told.plus(w.about)
		w.toldAt = time.Now()
	}
	if whole {
		w.chunk, w.written = nil, 0
	}
}

var newline = []byte{'\n'}

// startLine goes back to the start of the line that is being written, since the
// next reader has not seen that. A line about what was left out is made anew.
func (w *writer) startLine() {
	if w.isNotice {
		w.chunk, w.written = nil, 0
		return
	}
	start := bytes.LastIndexByte(w.chunk[:w.written], '\n') + 1
	w.mu.Lock()
	w.flight += w.written - start
	w.mu.Unlock()
	w.chunk, w.written = w.chunk[start:], 0
}

// skip leaves out a line that is too long for the socket.
func (w *writer) skip() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isNotice {
		w.told = w.told.plus(w.about) // it would be too long again
	} else {
		w.leftOut.Full++
		w.flight -= len(w.chunk)
	}
	w.chunk, w.written = nil, 0
}

// stall notes that the reader takes nothing.
func (w *writer) stall() {
	if w.stalled.IsZero() {
		w.stalled = time.Now()
	} else if time.Since(w.stalled) >= w.t.stall {
		w.inTrouble(errStalled)
	}
}

// failed notes an error and waits before the next try, but not after the first:
// a reader that was replaced is there already.
func (w *writer) failed(err error) bool {
	w.failures++
	if w.failures == 1 {
		return true
	}
	w.inTrouble(err)
	if w.failures > keepFor {
		w.leaveOut()
	}
	pause := w.t.retryMin
	for i := 2; i < w.failures && pause < w.t.retryMax; i++ {
		pause *= 2
	}
	return w.pause(min(pause, w.t.retryMax), w.closing)
}

// pause waits, and is false if stop was closed meanwhile.
func (w *writer) pause(d time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return false
	}
}

// leaveOut counts what waits as gone, and so what is sent until a target is open.
func (w *writer) leaveOut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := bytes.Count(w.batch, newline) + bytes.Count(w.queue, newline)
	if !w.isNotice {
		lines += bytes.Count(w.chunk[w.written:], newline)
	}
	w.leftOut.Gone += uint64(lines)
	w.batch, w.queue, w.flight = nil, w.queue[:0], 0
	w.chunk, w.written = nil, 0
	w.gone = true
}

func (w *writer) closeTarget() {
	if w.target != nil {
		// What counts is what Write has said.
		_ = w.target.Close()
		w.target = nil
		w.stalled = time.Time{}
	}
}

// inTrouble notes what is wrong, and logs it once until all is well again.
func (w *writer) inTrouble(err error) {
	text, now := err.Error(), w.o.Now()
	w.mu.Lock()
	begins := w.trouble == ""
	w.trouble = text
	if begins {
		w.since = now
	}
	w.mu.Unlock()
	if begins {
		w.o.Log.Warn("events cannot be written", "path", w.path, "err", err, "hint", hint(err))
	}
}

// allWell ends the trouble: nothing waits, and nothing is left to be told.
func (w *writer) allWell() {
	w.mu.Lock()
	ended := w.trouble != ""
	since, leftOut := w.since, w.leftOut
	w.trouble, w.since = "", time.Time{}
	w.mu.Unlock()
	w.failures = 0
	if ended {
		w.o.Log.Warn("events are written again", "path", w.path, "since", since.UTC().Format(time.RFC3339),
			"left_out", leftOut.total())
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
