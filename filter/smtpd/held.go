package smtpd

import (
	"container/heap"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// These are limits on delayed responses. While a response is delayed, the client occupies a
// connection. smtpd does not notice if the client disconnects.
const (
	MaxHeld = 500              // number of delayed responses; further responses are sent immediately
	MaxHold = 60 * time.Second // maximum delay, unless half of smtpd's session timeout is shorter
)

// A held writes responses to smtpd, either immediately or after a delay. All delayed responses
// share a single timer.
type held struct {
	mu      sync.Mutex
	out     io.Writer
	answers answers
	count   *atomic.Int64 // updated with the number of delayed responses; may be nil
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

// add delays a line. add returns false if MaxHeld responses are already delayed.
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

// tell updates count. The caller must hold h.mu.
func (h *held) tell() {
	if h.count != nil {
		h.count.Store(int64(len(h.answers)))
	}
}

// arm sets the timer to the time of the first delayed response. The caller must hold h.mu.
func (h *held) arm() {
	if len(h.answers) == 0 || h.stopped {
		return
	}
	wait := time.Until(h.answers[0].due)
	if h.timer == nil {
		h.timer = time.AfterFunc(wait, h.send) // safe: send only writes complete lines and calls no other code
	} else {
		h.timer.Reset(wait)
	}
}

// send writes the responses whose delay has passed. If the write fails, the next write in Serve's
// goroutine returns the same error.
func (h *held) send() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for now := time.Now(); len(h.answers) > 0 && !h.answers[0].due.After(now); {
		_, _ = h.out.Write(heap.Pop(&h.answers).(answer).line)
	}
	h.tell()
	h.arm()
}

// stop sends all delayed responses, because smtpd may still wait for them.
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

// answers is a heap of answers. The answers are ordered by the time at which they must be sent.
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
