// Package replay plays recorded sessions to a policy: it turns each record back into
// events and requests, feeds them to a filter.Pipeline in the order of their times, and
// obeys the answers as a mail server does. Counters, bans and standing develop as in
// live operation.
//
// A record contains less than the events it was made of. The player has to
// assume:
//
//   - The server's name, which comes from sessions that greeted with it.
//   - The time and text of commands without a step (RSET, NOOP, STARTTLS, and
//     failed commands after the 20th). The player adds as many as were counted, at
//     the end of the session or after the 20th failed command.
//   - The time between a command and its reply. The player plays a command at the
//     time of its first known effect.
//   - Requests without an effect, because the client had disconnected.
//   - The lines of an AUTH exchange, and its mechanism.
//   - Steps that were omitted from a record for its size.
//   - The continuation of a session after a rejection that the recorded client
//     did not receive, and without one that it received.
package replay

import (
	"container/heap"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// Options are the policy and the outputs of a Player.
type Options struct {
	// Settings is the policy. In mode observe it rejects nothing.
	Settings *filter.Settings
	// Filter configures the pipeline. The Player sets Log, Watch and Recorded.
	Filter filter.Options
	// Done is called for each session that has ended. The Outcome is valid only
	// during the call.
	Done func(*Outcome)
	// Answered, if not nil, is called for each answer of the policy.
	Answered func(session uint64, phase smtp.Phase, a smtp.Answer)
	// Skipped, if not nil, is called for each step that the policy prevents.
	Skipped func(*store.Step)
	// AskRefused also asks the policy about commands that a filter rejected when
	// they were recorded, although another filter may have rejected them first.
	AskRefused bool
}

// An Outcome is the result of one session.
type Outcome struct {
	Seq    uint64 // number of the record in the order of Add, from 0
	Record *store.Record
	// Refusal is the first rejection of the session, a transaction or a
	// recipient, if there was one.
	Refusal Refusal
	Lost    []Message // accepted when the session was recorded, rejected now
	Junked  int       // messages marked as junk only now
	Login   bool      // rejected, and a user had logged in when it was recorded
	// Ended reports that a rule rejected the client when the session was recorded,
	// and Resumed that the policy would not: the continuation is unknown.
	Ended, Resumed bool
}

// A Refusal is a rejection by the policy. The zero Refusal is none.
type Refusal struct {
	Rule     string
	Phase    string
	Decision smtp.Decision
	Ban      bool // the host was banned
}

// A Message is a message that was accepted when it was recorded.
type Message struct {
	Sender  []byte // empty for the null sender
	Rcpts   int    // recipients that do not receive it now
	Some    bool   // other recipients receive it
	Unknown bool   // the record does not contain its sender
	Refusal
}

const (
	// window is the time by which the ends of added records are ahead of the starts of
	// played records.
	window = 10 * time.Minute
	// maxWaiting is the number of bytes of records that wait to be played.
	maxWaiting = 64 << 20
)

// A Player plays records. It belongs to one goroutine.
type Player struct {
	o       Options
	filter  *filter.Pipeline
	asked   smtp.PhaseSet
	waiting byStart
	bytes   int // of waiting
	open    byTime
	free    []*playback // for further sessions
	seq     uint64
	late    int
	now     int64      // microseconds since 1970
	name    []byte     // of the server
	cur     *playback  // whose request is being answered
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

// watch notes the rule of a decision. A rule that decides again is not reported
// again.
func (p *Player) watch(e *events.Event) {
	if e.Event == "verdict" && e.Decision != "" && p.cur != nil {
		p.cur.rule, p.cur.banned = e.Rule, !e.Until.IsZero()
	}
}

// Add adds the next record, in the order in which sessions ended. A session is
// played when the added records are ten minutes ahead of its beginning, so that
// sessions begin in the order of their times. A session that lasted longer, or
// that follows 64 MiB of waiting records, is late: later sessions are played before it.
// The texts and steps of r must not change afterwards: see Clone.
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

// Close plays the remaining sessions.
func (p *Player) Close() {
	for len(p.waiting) > 0 {
		p.begin()
	}
	p.playUntil(1<<63 - 1)
}

// Late returns the number of late sessions.
func (p *Player) Late() int { return p.late }

// begin begins the oldest waiting session, after all earlier events.
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

// playUntil plays the open sessions until the given time.
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
