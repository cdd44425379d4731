// Package replay plays recorded sessions to a policy: it turns each record back
// into the events and requests that smtpd would have sent, puts them to a
// session.Table in the order of their times, and obeys the answers as smtpd does.
// Counts, bans and good peers come about on the way, as they would have.
//
// A record is less than what happened, so that some things cannot come back:
//
//   - What the server says of itself when it greets. Its name is taken from
//     sessions that were found to greet with it.
//   - When commands were sent that left no step (RSET, NOOP, STARTTLS), and
//     failed ones from the 21st on. They come as often as they were counted, but
//     without their text, and at the end, or behind the 20th failed one.
//   - The time between a command and its reply. A command is played at the first
//     thing that is known to have happened because of it.
//   - Requests that nothing came of, because the client left meanwhile.
//   - The lines of an AUTH exchange, and its mechanism.
//   - Steps that were omitted from a record for its size.
//   - How the client would have gone on after a refusal that it did not get, and
//     after one that it got and would not have got.
package replay

import (
	"container/heap"
	"net/netip"
	"strings"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/session"
	"scanwatch/store"
)

// Options say what sessions are played to.
type Options struct {
	// Settings is the policy; in mode observe nobody is refused.
	Settings *session.Settings
	// Table is for the table of sessions. Log and Event are taken over.
	Table session.Options
	// Done is told what became of each session, when it has ended. What it is
	// given is valid until it returns.
	Done func(*Outcome)
}

// An Outcome is what became of a session.
type Outcome struct {
	Seq    uint64 // the number of the record, in the order of Add, from 0
	Record *store.Record
	// Refusal is the first one, if there was any that ended the session, a
	// transaction or a recipient.
	Refusal Refusal
	Lost    []Message // accepted when the session was recorded, and refused now
	Junked  int       // messages marked as junk that were not
	Login   bool      // it was refused, and somebody logged in in it when it was recorded
	// Ended tells that a rule refused the client when the session was
	// recorded. Spared, that the policy would not have done so: nobody knows
	// how it would have gone on.
	Ended, Spared bool
}

// A Refusal is what a policy did to a session.
type Refusal struct {
	Rule     string // empty: none
	Phase    string
	Decision filter.Decision
	Ban      bool // the host was banned
	Known    bool // mail was accepted from it before
}

// A Message is one that was accepted.
type Message struct {
	Sender  []byte // empty for the null sender
	Rcpts   int    // recipients that lost it
	Some    bool   // it was not lost, but for these recipients
	Unknown bool   // the record does not tell whose it was
	Refusal
}

// The limits of what waits for sessions that began earlier.
const (
	// window is how far the ends of the records that are read are ahead of the
	// beginnings of those that are played.
	window     = 10 * time.Minute
	maxWaiting = 64 << 20 // bytes
)

// A Player plays records.
type Player struct {
	o       Options
	table   *session.Table
	asked   [64]bool // phases
	waiting byStart
	bytes   int
	open    byTime
	free    []*visit
	seq     uint64
	late    int
	now     int64
	name    []byte // what the server calls itself
	ev      filter.Event
	line    []byte // scratch
	cur     *visit // whose request is being answered
	dst     netip.AddrPort
	dstText []byte
	srcText []byte
}

// verdict is what the table decided last about a session; it tells of a rule
// once in a row.
type verdict struct {
	rule string
	ban  bool
}

// New returns a Player.
func New(o Options) *Player {
	p := &Player{o: o}
	o.Table.Log = func([]byte) {}
	o.Table.Event = p.event
	o.Table.Recorded = true
	if o.Table.Record == nil {
		o.Table.Record = func(time.Time, uint64, []byte) {}
	}
	p.table = session.NewTable(o.Table)
	p.table.Use(o.Settings)
	for _, id := range session.Phases(o.Settings.Policy) {
		p.asked[id] = true
	}
	return p
}

// event takes note of what rules decide.
func (p *Player) event(e *events.Event) {
	if e.Event == "verdict" && e.Decision != "" && p.cur != nil {
		p.cur.ruling = verdict{rule: e.Rule, ban: !e.Until.IsZero()}
	}
}

// Add takes the next record; they come in the order in which sessions ended. A
// session is played when the records are ten minutes ahead of its beginning, so
// that of two sessions the one that began first comes first. One that lasted
// longer comes in late: other sessions have begun before it that began after it.
// So do some when more than 64 MiB of records wait.
func (p *Player) Add(r *store.Record) {
	w := &waiting{seq: p.seq}
	w.Record, w.bytes = r.Clone(), r.Size()
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

// Close plays what is left.
func (p *Player) Close() {
	for len(p.waiting) > 0 {
		p.begin()
	}
	p.playUntil(1<<63 - 1)
}

// Late is how many sessions came in late.
func (p *Player) Late() int { return p.late }

// begin begins the oldest session that waits, after what happened before.
func (p *Player) begin() {
	w := heap.Pop(&p.waiting).(*waiting)
	p.bytes -= w.bytes
	p.playUntil(w.Start.UnixMicro())
	v := p.visit()
	v.rec, v.out.Seq = w.Record, w.seq
	if p.connect(v); v.gone {
		p.end(v)
		return
	}
	heap.Push(&p.open, v)
}

// playUntil lets open sessions go on up to a time.
func (p *Player) playUntil(at int64) {
	for len(p.open) > 0 && p.open[0].at <= at {
		v := p.open[0]
		p.do(v)
		if v.gone || v.over {
			heap.Pop(&p.open)
			p.end(v)
			continue
		}
		v.advance()
		heap.Fix(&p.open, 0)
	}
}

func (p *Player) visit() *visit {
	if n := len(p.free); n > 0 {
		v := p.free[n-1]
		p.free = p.free[:n-1]
		return v
	}
	return new(visit)
}

// end tells of v and forgets it.
func (p *Player) end(v *visit) {
	if v.gone {
		if v.tx.open {
			p.report(v, filter.TxRollback, v.msgid())
		}
		p.report(v, filter.LinkDisconnect)
		v.lose()
	}
	v.out.Record = &v.rec
	v.out.Login = v.out.Refusal.Rule != "" && v.rec.Counts.AuthPass > 0
	p.o.Done(&v.out)
	lost := v.out.Lost[:0]
	if cap(lost) > 100 {
		lost = nil
	}
	*v = visit{}
	v.out.Lost = lost
	if len(p.free) < 1000 {
		p.free = append(p.free, v)
	}
}

// waiting is a record whose session has not begun.
type waiting struct {
	store.Record
	seq   uint64
	bytes int
}

// byStart is a heap; of sessions that began together, the one added first is
// first.
type byStart []*waiting

func (h byStart) Len() int { return len(h) }
func (h byStart) Less(i, j int) bool {
	if c := h[i].Start.Compare(h[j].Start); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}
func (h byStart) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byStart) Push(x any)   { *h = append(*h, x.(*waiting)) }
func (h *byStart) Pop() any     { return pop((*[]*waiting)(h)) }

// byTime is a heap of the sessions that are open, by the time of what comes next.
type byTime []*visit

func (h byTime) Len() int { return len(h) }
func (h byTime) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].out.Seq < h[j].out.Seq
}
func (h byTime) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byTime) Push(x any)   { *h = append(*h, x.(*visit)) }
func (h *byTime) Pop() any     { return pop((*[]*visit)(h)) }

func pop[T any](h *[]*T) *T {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}

// isPhase tells whether a filter-response is about a phase of a policy.
func isPhase(word []byte, phase string) bool {
	return phaseWord(string(word)) == phase
}

// phaseWord is what a policy calls a phase of filter-response.
func phaseWord(word string) string {
	switch word {
	case "connected":
		return "connect"
	case "ehlo":
		return "helo"
	}
	return word
}

// hangsUp tells whether smtpd closes the connection after an answer: also after
// a reject whose code says so.
func hangsUp(d filter.Decision, text string) bool {
	return d == filter.Disconnect || d == filter.Reject && strings.HasPrefix(text, "421")
}
