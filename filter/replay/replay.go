// Package replay replays recorded sessions through a policy.
//
// The package turns each record into events and requests again. The package passes the events and
// requests to a filter.Pipeline in chronological order, and acts on the answers as a mail server
// would. Counters, bans and standing therefore change as in live operation.
//
// A record contains less information than the original events. The package therefore estimates the
// following values:
//
//   - The name of the server. The name is taken from sessions whose clients greeted with it.
//   - The time and text of commands without a step, which are RSET, NOOP, STARTTLS, and
//     failed commands after the 20th. The player adds the counted number of these
//     commands at the end of the session or after the 20th failed command.
//   - The time between a command and its reply. The player replays a command at the
//     time of its first known effect.
//   - Requests that had no effect, because the client had already disconnected.
//   - The lines and the mechanism of an AUTH exchange.
//   - Steps that the record omits because of its maximum size.
//   - How a session continues if the policy rejects what was accepted.
//   - How a session continues if the policy accepts what was rejected.
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
	// Filter configures the pipeline. The Player itself sets Log, Watch and Recorded.
	Filter filter.Options
	// Done is called when a session has ended. The Outcome is valid only during the call.
	Done func(*Outcome)
	// Answered, if set, is called for each answer of the policy.
	Answered func(session uint64, phase smtp.Phase, a smtp.Answer)
	// Skipped, if set, is called for each recorded step that cannot happen under the policy.
	Skipped func(*store.Step)
	// AskRefused means that the policy is also asked about commands that a filter rejected when the
	// session was recorded. By default, the policy is not asked about these commands, because
	// another filter may have rejected them before this filter was asked.
	AskRefused bool
}

// An Outcome is the result of replaying a session.
type Outcome struct {
	Seq    uint64 // number of the record, starting at 0, in the order of calls to Add
	Record *store.Record
	// Refusal is the first rejection of the client, a transaction or a recipient.
	Refusal Refusal
	Lost    []Message // messages that were accepted when recorded, but are rejected now
	Junked  int       // number of messages that are marked as junk now, but were not when recorded
	Login   bool      // the session is rejected now, although it has a successful login in its record
	// Ended reports whether a rule rejected the client when the session was recorded. Resumed
	// reports whether the policy accepts this client now. The rest of a resumed session is unknown.
	Ended, Resumed bool
}

// A Refusal is a rejection by the policy. The zero Refusal means that there was no rejection.
type Refusal struct {
	Rule     string
	Phase    string
	Decision smtp.Decision
	Ban      bool // the host was rejected because of a ban
}

// A Message is a message that was accepted when the session was recorded.
type Message struct {
	Sender  []byte // empty for the null sender
	Rcpts   int    // number of recipients that no longer receive the message
	Some    bool   // other recipients still receive the message
	Unknown bool   // the record does not contain the sender
	Refusal
}

const (
	// window is a time. A session is replayed when a session that ended at least this long after
	// its start has been added.
	window = 10 * time.Minute
	// maxWaiting is the maximum total size of waiting records in bytes.
	maxWaiting = 64 << 20
)

// A Player replays records. A Player must not be used concurrently.
type Player struct {
	o       Options
	filter  *filter.Pipeline
	asked   smtp.PhaseSet
	waiting byStart
	bytes   int // total size of the records in waiting, in bytes
	open    byTime
	free    []*playback // unused playbacks, for reuse
	seq     uint64
	late    int
	now     int64      // microseconds since 1970
	name    []byte     // name of the server
	cur     *playback  // session whose answer the player is waiting for
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

// watch stores the rule of a decision. If the same rule makes several decisions in a row, watch is
// called only for the first.
func (p *Player) watch(e *events.Event) {
	if e.Event == "verdict" && e.Decision != "" && p.cur != nil {
		p.cur.rule, p.cur.banned = e.Rule, !e.Until.IsZero()
	}
}

// Add adds the next record. Records must be added in the order in which their sessions ended. The
// texts and steps of r must not change after the call; see Clone.
//
// A session is replayed when a session that ended at least ten minutes after its start has been
// added. Sessions are therefore replayed in the order of their starts.
//
// A session is late if a session with a later start was replayed before it. A session is late if it
// lasted longer than ten minutes, or if more than 64 MiB of records were waiting.
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

// begin starts to replay the oldest waiting session. begin first replays all earlier events.
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

// end reports the outcome of the session v.
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
