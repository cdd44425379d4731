// Package replay replays recorded sessions through a policy.
//
// The package turns each record back into events and requests, and passes them to a
// filter.Pipeline in chronological order. It acts on the answers as a mail server
// would, so counters, bans and standing develop as in live operation.
//
// A record holds less information than the original events. The following facts are
// therefore assumed or approximate:
//
//   - The server's name, which is taken from sessions that greeted with it.
//   - The time and text of commands without a step (RSET, NOOP, STARTTLS, and
//     failed commands after the 20th). The player adds the counted number of commands
//     at the end of the session or after the 20th failed command.
//   - The time between a command and its reply. The player plays a command at the
//     time of its first known effect.
//   - Requests without an effect, because the client had disconnected.
//   - The lines of an AUTH exchange, and its mechanism.
//   - Steps that were omitted from a record because of its size.
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

// Options holds the policy and the outputs of a Player.
type Options struct {
	// Settings holds the policy. In observe mode, the policy rejects nothing.
	Settings *filter.Settings
	// Filter configures the pipeline. The Player sets Log, Watch and Recorded.
	Filter filter.Options
	// Done is called for each ended session. The Outcome is valid only during the call.
	Done func(*Outcome)
	// Answered, if set, is called for each answer from the policy.
	Answered func(session uint64, phase smtp.Phase, a smtp.Answer)
	// Skipped, if set, is called for each recorded step that can no longer happen under
	// the policy.
	Skipped func(*store.Step)
	// AskRefused means that the policy is also asked about commands that a filter
	// rejected. By default, the policy is not asked about these commands, because
	// another filter may have rejected them first.
	AskRefused bool
}

// An Outcome is the result of replaying a session.
type Outcome struct {
	Seq    uint64 // number of the record, counted from 0 in the order of Add
	Record *store.Record
	// Refusal is the first rejection of the session, a transaction or a recipient.
	Refusal Refusal
	Lost    []Message // messages accepted when recorded but rejected now
	Junked  int       // messages that are only now marked as junk
	Login   bool      // the session is now rejected, although its record has a login
	// Ended is set if a rule rejected the client when the session was recorded. Resumed
	// is set if the policy now accepts the client. The rest of a resumed session is
	// unknown.
	Ended, Resumed bool
}

// A Refusal is a rejection by the policy. The zero Refusal means that nothing was
// rejected.
type Refusal struct {
	Rule     string
	Phase    string
	Decision smtp.Decision
	Ban      bool // the rejection was caused by a ban of the host
}

// A Message is a message that was accepted when its session was recorded.
type Message struct {
	Sender  []byte // empty for the null sender
	Rcpts   int    // recipients that no longer receive the message
	Some    bool   // other recipients receive the message
	Unknown bool   // the sender is not in the record
	Refusal
}

const (
	// window is how long after a session's start the latest record added must end
	// before the session is replayed.
	window = 10 * time.Minute
	// maxWaiting limits the total size of waiting records in bytes.
	maxWaiting = 64 << 20
)

// A Player replays records. A Player must not be used concurrently.
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

// watch stores a decision's rule. watch is called only once for consecutive decisions
// by the same rule.
func (p *Player) watch(e *events.Event) {
	if e.Event == "verdict" && e.Decision != "" && p.cur != nil {
		p.cur.rule, p.cur.banned = e.Rule, !e.Until.IsZero()
	}
}

// Add adds the next record. Records must be added in the order in which their sessions
// ended. The texts and steps of r must not change after the call; see Clone.
//
// A session is replayed once the latest record added ends at least ten minutes after
// the session's start. Sessions therefore start in chronological order.
//
// A session is late if it is replayed after a session that started later. This happens
// if a session lasts longer than ten minutes, or if more than 64 MiB of records are
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

// Late returns the number of late sessions; see Add.
func (p *Player) Late() int { return p.late }

// begin starts the oldest waiting session after replaying all earlier events.
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

// playUntil replays the open sessions' events up to the given time.
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
