// Package replay replays recorded sessions through a policy.
//
// The package converts each record back to events and requests. A filter.Pipeline
// receives them in the order of their times. The package acts on the answers as a mail
// server does. Counters, bans and standing develop as in live operation.
//
// A record contains less information than the original events. The following
// information is therefore assumed or approximate:
//
//   - The server's name, which comes from sessions that greeted with it.
//   - The time and text of commands without a step (RSET, NOOP, STARTTLS, and
//     failed commands after the 20th). The player adds the counted number of commands
//     at the end of the session or after the 20th failed command.
//   - The time between a command and its reply. The player plays a command at the
//     time of its first known effect.
//   - Requests without an effect, because the client had disconnected.
//   - The lines of an AUTH exchange, and its mechanism.
//   - Steps that were omitted from a record for its size.
//   - The continuation of a session after a new rejection.
//   - The continuation of a session without a recorded rejection.
package replay

import (
	"container/heap"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// Options contains the policy and the outputs of a Player.
type Options struct {
	// Settings contains the policy. In mode observe, the policy rejects nothing.
	Settings *filter.Settings
	// Filter configures the pipeline. The Player sets Log, Watch and Recorded.
	Filter filter.Options
	// Done is called for each session that has ended. The Outcome is valid only during
	// the call.
	Done func(*Outcome)
	// Answered is called for each answer of the policy, and may be nil.
	Answered func(session uint64, phase smtp.Phase, a smtp.Answer)
	// Skipped is called for each recorded step that the policy prevents, and may be
	// nil.
	Skipped func(*store.Step)
	// AskRefused means that the policy also receives requests for commands that a
	// filter rejected. By default, a rejected command causes no request, because
	// another filter may have rejected the command earlier.
	AskRefused bool
}

// An Outcome is the result of one session.
type Outcome struct {
	Seq    uint64 // number of the record, counted from 0 in the order of Add
	Record *store.Record
	// Refusal is the first rejection of the session, of a transaction or of a
	// recipient.
	Refusal Refusal
	Lost    []Message // messages that were accepted when recorded, but are now rejected
	Junked  int       // messages that are only now marked as junk
	Login   bool      // the session is rejected, although its record contains a login
	// Ended is set if a rule rejected the client when the session was recorded. Resumed
	// is set if the policy now accepts the client. The continuation of a resumed
	// session is unknown.
	Ended, Resumed bool
}

// A Refusal is a rejection by the policy. The zero Refusal means no rejection.
type Refusal struct {
	Rule     string
	Phase    string
	Decision smtp.Decision
	Ban      bool // a ban of the host caused the rejection
}

// A Message is a message that was accepted when recorded.
type Message struct {
	Sender  []byte // empty for the null sender
	Rcpts   int    // recipients that do not receive the message now
	Some    bool   // other recipients receive the message
	Unknown bool   // the record does not contain the sender
	Refusal
}

const (
	// window is the minimum age of a session at its replay. The age is the time from
	// the start of the session to the end of the latest added record.
	window = 10 * time.Minute
	// maxWaiting is the maximum size of waiting records in bytes.
	maxWaiting = 64 << 20
)

// A Player replays records, and must not be used concurrently.
type Player struct {
	o       Options
	filter  *filter.Pipeline
	asked   smtp.PhaseSet
	waiting byStart
	bytes   int // size of the records in waiting
	open    byTime
	free    []*playback // unused playbacks, for reuse
	seq     uint64
	late    int
	now     int64      // microseconds since 1970
	name    []byte     // name of the server
	cur     *playback  // session that awaits an answer
	ev      smtp.Event // reused
	step    store.Step // reused
}

// New returns a Player.
func New(o Options) *Player {
	p := &Player{o: o, asked: filter.Phases(o.Settings.Policy)}
	o.Filter.Log = func([]byte) {}
	o.Filter.Watch = p.watch
	o.Filter.Recorded = true
	if o.Filter.Record == nil {
		o.Filter.Record = func(time.Time, uint64, []byte) {}
	}
	p.filter = filter.New(o.Filter)
	p.filter.Use(o.Settings)
	return p
}

// watch stores the rule of a decision. Further decisions of the same rule do not cause
// a call of watch.
func (p *Player) watch(e *events.Event) {
	if e.Event == "verdict" && e.Decision != "" && p.cur != nil {
		p.cur.rule, p.cur.banned = e.Rule, !e.Until.IsZero()
	}
}

// Add adds the next record. Records must be added in the order of the ends of their
// sessions. The texts and steps of r must not change after the call: see Clone.
//
// A session is replayed when the latest added record ends at least ten minutes after the
// start of the session. Sessions therefore start in the order of their times.
//
// A session of more than ten minutes may be replayed after a session with a later start,
// and then counts as late. A session may also be late if more than 64 MiB of records are
// waiting.
func (p *Player) Add(r store.Record) {
	w := &waiting{Record: r, seq: p.seq, bytes: r.Size()}
	p.seq++
	p.bytes += w.bytes
	if p.now > w.Start.UnixMicro() {
		p.late++
	}
	heap.Push(&p.waiting, w)
	for len(p.waiting) > 0 && (p.bytes > maxWaiting || p.waiting[0].Start.Add(window).Before(r.End)) {
		p.begin()
	}
}

// Close replays the remaining sessions.
func (p *Player) Close() {
	for len(p.waiting) > 0 {
		p.begin()
	}
	p.playUntil(1<<63 - 1)
}

// Late returns the number of sessions that were replayed after sessions with a later
// start.
func (p *Player) Late() int { return p.late }

// begin starts the oldest waiting session, after the replay of all earlier events.
func (p *Player) begin() {
	w := heap.Pop(&p.waiting).(*waiting)
	p.bytes -= w.bytes
	p.playUntil(w.Start.UnixMicro())
	var v *playback
	if n := len(p.free); n > 0 {
		v, p.free = p.free[n-1], p.free[:n-1]
	} else {
		v = new(playback)
	}
	v.rec, v.out.Seq = w.Record, w.seq
	if p.connect(v); v.gone {
		p.end(v)
		return
	}
	heap.Push(&p.open, v)
}

// playUntil replays the events of open sessions up to the given time.
func (p *Player) playUntil(at int64) {
	for len(p.open) > 0 && p.open[0].at <= at {
		v := p.open[0]
		play(p, v)
		if v.gone || v.over {
			heap.Pop(&p.open)
			p.end(v)
			continue
		}
		v.advance()
		heap.Fix(&p.open, 0)
	}
}

// end reports the outcome of v.
func (p *Player) end(v *playback) {
	if v.gone {
		if v.tx.open {
			p.rolledBack(v)
		}
		p.disconnect(v, smtp.EndingRejected)
		lose(p, v)
	}
	v.out.Record = &v.rec
	v.out.Login = v.out.Refusal.Rule != "" && v.rec.Counts.AuthPass > 0
	p.o.Done(&v.out)
	*v = playback{out: Outcome{Lost: v.out.Lost[:0]}}
	p.free = append(p.free, v)
}
