package smtpd

import (
	"bytes"
	"time"

	"scanwatch/internal/safego"
)

// MaxWait is the maximum time for which a request waits for a fact.
const MaxWait = 500 * time.Millisecond

// A waiter is a request that waits for a fact. The Handler is asked about it again after each value
// from Options.Wake. The Handler is asked for the last time when the maximum wait has passed.
type waiter struct {
	ev  Event // copy of the request
	at  time.Time
	due time.Time
}

// park delays the current request. park returns false if the request must be answered
// immediately.
func (s *server) park(wait time.Duration) bool {
	if s.options.Wake == nil || len(s.waiters) >= MaxHeld {
		return false
	}
	w := waiter{ev: s.ev, at: time.Now()}
	w.due = w.at.Add(min(wait, MaxWait))
	w.ev.name = bytes.Clone(w.ev.name)
	for i := range w.ev.n {
		w.ev.fields[i] = bytes.Clone(w.ev.fields[i])
	}
	s.waiters = append(s.waiters, w)
	select {
	case s.parked <- struct{}{}:
	default:
	}
	return true
}

// startWaiting starts the goroutine that asks the Handler again. The function stop ends the
// goroutine and then answers all waiting requests.
func (s *server) startWaiting() (stop func()) {
	if s.options.Wake == nil {
		return func() {}
	}
	ending, ended := make(chan struct{}), make(chan struct{})
	safego.Loop(nil, "requests that wait", func() { s.wait(ending) }, func() { close(ended) })
	return func() {
		close(ending)
		<-ended
		_ = s.askAgain(true) // the error is ignored, because smtpd has probably exited
	}
}

func (s *server) wait(ending <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if first, ok := s.firstDue(); ok {
			timer.Reset(time.Until(first))
			due = timer.C
		}
		select {
		case <-ending:
			return
		case <-s.parked:
			continue
		case <-s.options.Wake:
		case <-due:
		}
		if s.askAgain(false) != nil {
			return // the next write in Serve's goroutine returns the same error
		}
	}
}

func (s *server) firstDue() (first time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.waiters {
		if due := s.waiters[i].due; !ok || due.Before(first) {
			first, ok = due, true
		}
	}
	return first, ok
}

// askAgain asks the Handler about all waiting requests. A request without an answer continues to
// wait, unless it has waited long enough or final is set.
func (s *server) askAgain(final bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	kept := s.waiters[:0]
	for _, w := range s.waiters {
		if !s.again(&w, now, final || !now.Before(w.due)) {
			kept = append(kept, w)
		}
	}
	clear(s.waiters[len(kept):])
	s.waiters = kept
	return s.flush()
}

// again asks the Handler about a waiting request, and reports whether the request was answered. If
// late is set, the request is always answered.
func (s *server) again(w *waiter, now time.Time, late bool) (done bool) {
	s.ev = w.ev
	s.ev.Time += now.Sub(w.at).Microseconds()
	s.ev.Waited = late
	s.asked, done = true, true
	defer s.recovered(nil)
	r := s.handler.Decide(&s.ev)
	if r.Wait > 0 && !late {
		s.asked = false
		return false
	}
	s.answer(r)
	return true
}
