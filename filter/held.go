package filter

import (
	"container/heap"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Limits on holding answers. smtpd does not notice that a held client has
// left, and each one keeps a connection of the server.
const (
	MaxHeld = 500              // one more is answered at once
	MaxHold = 60 * time.Second // and at most half of smtpd's session timeout
)

// held writes to smtpd: what is to be said now, and answers that are due
// later. One timer serves all of them.
type held struct {
	mu      sync.Mutex
	out     io.Writer
	answers answers
	count   *atomic.Int64 // of answers; may be nil
	timer   *time.Timer
	stopped bool
}

type answer struct {
	due  time.Time
	line []byte
}

func (h *held) write(b []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.out.Write(b)
	return err
}

// add keeps line for later. It returns false if there are too many already.
func (h *held) add(line []byte, hold time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.answers) >= MaxHeld {
		return false
	}
	heap.Push(&h.answers, answer{time.Now().Add(hold), line})
	h.tell()
	h.arm()
	return true
}

// tell brings the count up to date. h.mu is locked.
func (h *held) tell() {
	if h.count != nil {
		h.count.Store(int64(len(h.answers)))
	}
}

// arm sets the timer to the first answer. h.mu is locked.
func (h *held) arm() {
	if len(h.answers) == 0 || h.stopped {
		return
	}
	wait := time.Until(h.answers[0].due)
	if h.timer == nil {
		h.timer = time.AfterFunc(wait, h.send) // contained: writes lines that are made, and runs nothing else
	} else {
		h.timer.Reset(wait)
	}
}

// send writes what is due. An error is left to the next write of the reader.
func (h *held) send() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for now := time.Now(); len(h.answers) > 0 && !h.answers[0].due.After(now); {
		_, _ = h.out.Write(heap.Pop(&h.answers).(answer).line)
	}
	h.tell()
	h.arm()
}

// stop answers everybody who still waits: no question stays open, even if
// nobody may be there to read the answer.
func (h *held) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	if h.timer != nil {
		h.timer.Stop()
	}
	for len(h.answers) > 0 {
		_, _ = h.out.Write(heap.Pop(&h.answers).(answer).line)
	}
	h.tell()
}

// answers is a heap, the first one due on top.
type answers []answer

func (a answers) Len() int           { return len(a) }
func (a answers) Less(i, j int) bool { return a[i].due.Before(a[j].due) }
func (a answers) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *answers) Push(x any)        { *a = append(*a, x.(answer)) }
func (a *answers) Pop() any {
	old := *a
	last := old[len(old)-1]
	old[len(old)-1] = answer{}
	*a = old[:len(old)-1]
	return last
}
