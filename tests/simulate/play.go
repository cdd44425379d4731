package simulate

// This file generates the stream. The next session to run is always the one whose clock is furthest
// behind. Each request is answered before any session continues.

import (
	"bytes"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"scanwatch/internal/smtp"

	"scanwatch/filter/smtpd"
)

// handshake starts the stream.
const handshake = "config|smtpd-version|7.9.0-portable\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\n" +
	"config|subsystem|smtp-in\nconfig|admd|" + ServerName + "\nconfig|ready\n"

// Play plays sessions against h and returns their outcomes in the same order. The sessions must be
// ordered by Start, and may overlap. h receives all smtp-in events, and the requests in the given
// phases.
//
// Play runs on the caller's goroutine. Delayed answers take no real time: the client waits on the
// clock of the sessions, while other clients continue. The limits smtpd.MaxHold and smtpd.MaxHeld
// apply.
//
// An error means that h or smtpd.Serve panicked, or violated the protocol in a way that
// would end a real smtpd. The outcomes are then incomplete.
func Play(h smtpd.Handler, phases []smtpd.ID, sessions iter.Seq[Session]) ([]Outcome, error) {
	next, stop := iter.Pull(sessions)
	defer stop()
	p := &player{next: next}
	for _, id := range phases {
		p.phases[id] = true
	}
	defer p.stop()
	p.out = append(p.out, handshake...)
	var wrong string
	o := smtpd.Options{Phases: phases, Log: func(s string) {
		if wrong == "" {
			wrong = s
		}
	}}
	err := smtpd.Serve(p, p, hurried{h, &p.hold}, o)
	if err == nil && wrong != "" {
		err = errors.New(wrong)
	}
	outcomes := make([]Outcome, len(p.outcomes))
	for i, o := range p.outcomes {
		outcomes[i] = *o
	}
	return outcomes, err
}

// A hurried is a Handler that answers immediately, and reports the delay that it has skipped.
type hurried struct {
	smtpd.Handler
	hold *time.Duration
}

func (h hurried) Decide(ev *smtpd.Event) smtp.Answer {
	*h.hold = 0
	r := h.Handler.Decide(ev)
	*h.hold = min(r.Hold, smtpd.MaxHold)
	r.Hold = 0
	return r
}

// A player plays both ends of smtpd's socket.
type player struct {
	phases   [256]bool // phases in which h receives requests
	next     func() (Session, bool)
	ahead    *Session // next session to start
	started  uint64
	open     visits
	outcomes []*Outcome

	out     []byte // lines that have not been read
	read    int    // number of bytes of out that have been read
	asked   *visit // visit whose request is the last line of out
	answer  []byte // h's answer
	ready   bool   // register|ready has been received
	hold    time.Duration
	held    int // sessions waiting for a delayed answer
	written error
}

// batch is the maximum size in bytes of a batch of lines without a request.
const batch = 32 << 10

// Read implements io.Reader. Each call returns the lines up to the next request, including the
// request.
func (p *player) Read(b []byte) (int, error) {
	if p.read == len(p.out) {
		p.out, p.read = p.out[:0], 0
		if err := p.run(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.out[p.read:])
	p.read += n
	return n, nil
}

// run appends lines to out. After the last session, run returns io.EOF.
func (p *player) run() error {
	if p.written != nil {
		return p.written
	}
	if v := p.asked; v != nil {
		if len(p.answer) == 0 {
			return errors.New("a request was not answered")
		}
		p.asked = nil
		if err := v.hear(p.answer); err != nil {
			return err
		}
		p.answer = p.answer[:0]
		p.resume(v)
	}
	for p.asked == nil && len(p.out) < batch {
		v := p.first()
		if v == nil {
			break
		}
		p.resume(v)
	}
	if len(p.out) == 0 {
		return io.EOF
	}
	return nil
}

// Write implements io.Writer.
func (p *player) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		switch {
		case !p.ready && bytes.HasPrefix(line, []byte("register|")):
			p.ready = string(line) == "register|ready\n"
		case p.asked != nil && len(p.answer) == 0 && bytes.HasSuffix(line, []byte{'\n'}):
			p.answer = append(p.answer, line[:len(line)-1]...)
		default:
			p.written = fmt.Errorf("unexpected line: %.200q", line)
			return 0, p.written
		}
	}
	return len(b), nil
}

// first removes and returns the session with the earliest clock.
func (p *player) first() *visit {
	if p.ahead == nil && p.next != nil {
		if s, ok := p.next(); ok {
			p.ahead = &s
		} else {
			p.next = nil
		}
	}
	if s := p.ahead; s != nil && (len(p.open) == 0 || s.Start.UnixMicro() <= p.open[0].now) {
		p.ahead = nil
		p.started++
		v := newVisit(p, s, p.started)
		p.outcomes = append(p.outcomes, v.outcome)
		return v
	}
	if len(p.open) == 0 {
		return nil
	}
	return heap.Pop(&p.open).(*visit)
}

// resume continues v until v waits for a time or an answer.
func (p *player) resume(v *visit) {
	switch w, ok := v.resume(); {
	case !ok:
	case w == forAnswer:
		p.asked = v
	default:
		heap.Push(&p.open, v)
	}
}

// stop ends all remaining sessions after an error.
func (p *player) stop() {
	if p.asked != nil {
		p.asked.stop()
	}
	for _, v := range p.open {
		v.stop()
	}
}

// visits is a heap with the earliest session on top.
type visits []*visit

func (h visits) Len() int { return len(h) }
func (h visits) Less(i, j int) bool {
	return h[i].now < h[j].now || h[i].now == h[j].now && h[i].id < h[j].id
}
func (h visits) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *visits) Push(x any)   { *h = append(*h, x.(*visit)) }
func (h *visits) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
