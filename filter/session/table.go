package session

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/rules"
	"scanwatch/store"
)

// Options are what a Table needs from the outside. No function may wait.
type Options struct {
	// Record takes the encoded record of a session that has ended. It must
	// copy value.
	Record func(end time.Time, id uint64, value []byte)
	// Log takes one line, without LF, for the operator. It must copy it.
	Log func(line []byte)
	// Event, if not nil, is told of each finding, verdict, tag and ban, for
	// programs outside. It must copy what it is given.
	Event func(*events.Event)
	// Lists returns the shipped lists; it may wait the first time.
	Lists func() *lookup.Lists
	// OwnAddrs are this host's addresses.
	OwnAddrs []netip.Addr
	// Memory is what is remembered across sessions; nil for a new one.
	Memory *memory.Memory
	// Hasher returns what makes hashes of the names of people, as Settings say;
	// nil, or a nil function: all are kept in clear.
	Hasher func() *privacy.Hasher
	// Recorded says that events come from records, in which there may be hashes.
	Recorded bool
	// Trace, if not nil, is told of each request that was put to a policy,
	// for explaining it; the facts are valid only during the call.
	Trace func(*rules.Policy, *rules.Facts, filter.Reply)
}

// A Table holds the live sessions. It is the filter.Handler of the program,
// and like it used from one goroutine only.
type Table struct {
	options   Options
	next      atomic.Pointer[Settings]
	lean      bool      // smtpd tells LeanReports only
	settings  *Settings // of the event that is being handled; nil: only observe
	lists     *lookup.Lists
	own       map[netip.Addr]bool
	name      []byte // what smtpd greets with
	admd      []byte // the site's name in smtpd.conf
	facts     rules.Facts
	memory    *memory.Memory
	who       memory.Who             // scratch
	asked     *Session               // the one whose counts a policy asks for
	needs     needs                  // of settings
	refs      map[*rules.Rule]uint32 // of the texts of its rules
	sources   map[uint64]*source     // those of live sessions
	live      map[uint64]*Session
	last      *Session     // the one of the event before; nil if it is over
	count     atomic.Int64 // of live
	free      []*Session
	bytes     int     // capacity of all step buffers
	clock     int64   // newest timestamp seen, microseconds
	limit     limiter // of findings and tags
	limitActs limiter // of verdicts and bans
	quiet     aggregator
	sampler   sampler
	missed    uint64       // sessions that were not followed because the table was full
	record    []byte       // scratch
	event     events.Event // scratch
	line      []byte       // scratch
	hide      hide
	dst       addrCache
}

// Limits on what strangers can make grow. smtpd itself stops taking
// connections when its descriptors run out, far below maxSessions.
const (
	maxSessions  = 50_000
	maxSteps     = 64 << 10 // bytes of steps in one session ...
	minSteps     = 2 << 10  // ... or only so many, when all sessions hold
	maxAllSteps  = 64 << 20 // more than this together
	maxFree      = 1000
	maxLogBurst  = 200 // lines logged at once, then maxLogPerSec
	maxLogPerSec = 20
)

// Reports are the events that a Table folds. Each one costs smtpd a line.
var Reports = []filter.ID{
	filter.LinkConnect, filter.LinkIdentify, filter.LinkTLS, filter.LinkAuth, filter.LinkDisconnect,
	filter.TxMail, filter.TxRcpt, filter.TxData, filter.TxCommit, filter.TxRollback,
	filter.ProtocolClient, filter.ProtocolServer, filter.FilterResponse, filter.Timeout,
}

// LeanReports are those of Reports that tell what came of commands, and not the
// commands and replies themselves, which are most of all lines; see Lean.
var LeanReports = []filter.ID{
	filter.LinkConnect, filter.LinkIdentify, filter.LinkTLS, filter.LinkAuth, filter.LinkDisconnect,
	filter.TxMail, filter.TxRcpt, filter.TxCommit, filter.TxRollback, filter.Timeout,
}

// NewTable returns an empty Table.
func NewTable(o Options) *Table {
	t := &Table{options: o, memory: o.Memory, live: make(map[uint64]*Session), own: make(map[netip.Addr]bool), sources: make(map[uint64]*source)}
	if t.memory == nil {
		t.memory = memory.New()
	}
	for _, a := range o.OwnAddrs {
		t.own[a.Unmap()] = true
	}
	return t
}

// Settings are what the operator can change while the program runs.
type Settings struct {
	Policy  *rules.Policy
	ASN     *lookup.Origins // nil: AS numbers are not known
	Country *lookup.Origins // nil: countries are not known, unless ASN knows
}

// RuleTexts are the texts of the rules of p that verdicts and bans refer to.
func RuleTexts(p *rules.Policy) (texts []string) {
	for _, r := range p.Rules() {
		texts = append(texts, r.String())
	}
	return texts
}

// Sample makes t record less of floods, as it follows from how many bytes of
// records are kept; 0: all of them. It is called before the first event.
func (t *Table) Sample(budget int64) { t.sampler.budget = budget }

// Lean tells t that smtpd is asked for LeanReports only. It is called before the
// first event.
func (t *Table) Lean() { t.lean = true }

// Use makes t follow settings from the next event on; any goroutine may call it.
func (t *Table) Use(settings *Settings) { t.next.Store(settings) }

// Ready implements filter.Handler.
func (t *Table) Ready(c filter.Config) { t.admd = []byte(c.ADMD) }

// Report implements filter.Handler.
func (t *Table) Report(ev *filter.Event) {
	if ev.Out {
		return // mail on its way out
	}
	t.begin(ev)
	if ev.ID == filter.LinkConnect {
		t.connect(ev)
		return
	}
	s := t.session(ev.Session)
	if s == nil {
		return // began before we did, or the table was full
	}
	if ev.ID == filter.LinkDisconnect {
		t.flushCommand(s)
		t.end(s, t.ending(s), ev.Time)
		return
	}
	t.fold(s, ev)
}

// session returns a live session, or nil. What smtpd tells comes in runs of lines
// of the same one.
func (t *Table) session(id uint64) *Session {
	if t.last == nil || t.last.ID != id {
		t.last = t.live[id]
	}
	return t.last
}

// begin brings the clock and the settings up to date.
func (t *Table) begin(ev *filter.Event) {
	t.clock = ev.Time
	t.tellAgain(t.clock, false)
	t.sumUp(t.clock, false)
	settings := t.next.Load()
	if settings != t.settings {
		t.settings = settings
		t.needs = needs{}
		if settings != nil {
			n := settings.Policy.Needs()
			t.needs = needs{seenGood: n.SeenGood, end: settings.Policy.Phases().Has(rules.End)}
			t.refs = make(map[*rules.Rule]uint32)
			for _, r := range settings.Policy.Rules() {
				t.refs[r] = store.RuleRef(r.String())
			}
			t.memory.Watch(n.Windows, settings.Policy.Escalate)
		}
	}
}

// needs is what the policy in use looks at, to be spared what it does not.
type needs struct {
	seenGood bool
	end      bool // has rules for the end of a session
}

// Stop records the sessions that are still open. smtpd reports no
// link-disconnect for them when it stops.
func (t *Table) Stop() {
	for _, s := range t.live {
		t.flushCommand(s)
		t.end(s, store.EndingStopped, t.clock)
	}
	t.tellAgain(t.clock, true)
	t.sumUp(t.clock, true)
	t.logUnlogged()
	if t.missed > 0 {
		t.options.Log(fmt.Appendf(nil, "warning: %d sessions were not followed, more than %d were open at once", t.missed, maxSessions))
	}
}

// Leave records the sessions that are still open without judging how they
// ended, for streams that do not tell.
func (t *Table) Leave() {
	for _, s := range t.live {
		t.flushCommand(s)
		t.end(s, store.EndingUnknown, max(s.last, s.start))
	}
	t.sumUp(t.clock, true)
}

// Cut records a session, as it stands, that ended in a way which says nothing
// of the client: how it did is not judged.
func (t *Table) Cut(id uint64, how store.Ending, at int64) {
	if s := t.live[id]; s != nil {
		t.flushCommand(s)
		t.end(s, how, at)
	}
}

// Known tells whether mail was accepted before from the host of a live session,
// as of now: rules go by what was known when they asked first.
func (t *Table) Known(id uint64, at int64) bool {
	s := t.live[id]
	return s != nil && s.Src.IsValid() && t.memory.Good(t.whois(s), at) != ""
}

// Open returns the number of live sessions; any goroutine may call it.
func (t *Table) Open() int64 { return t.count.Load() }

func (t *Table) connect(ev *filter.Event) {
	if len(t.live) >= maxSessions {
		t.missed++
		return
	}
	s := t.newSession()
	s.ID, s.start, s.last = ev.Session, ev.Time, ev.Time
	if old := t.live[s.ID]; old != nil {
		t.end(old, store.EndingUnknown, ev.Time)
	}
	t.live[s.ID] = s
	t.count.Store(int64(len(t.live)))
	src := ev.Field(2)
	s.Local = hasPrefixFold(src, "UNIX:")
	if rdns := ev.Field(0); string(rdns) != "<unknown>" {
		s.RDNS = set(s.RDNS, rdns, maxName)
	}
	s.FCrDNS = store.ParseFCrDNS(ev.Field(1))
	if !s.Local {
		s.Src = parseAddrPort(src)
		s.Dst = t.dst.parse(ev.Field(3))
		if s.Src.IsValid() {
			s.from = t.comes(memory.Number(s.Src.Addr()))
		}
	}
	t.judgeConnect(s)
}

// A source is where live sessions come from.
type source struct {
	live uint32
}

// comes counts one more live session of a source.
func (t *Table) comes(k uint64) *source {
	from := t.sources[k]
	if from == nil {
		from = new(source)
		t.sources[k] = from
	}
	from.live++
	return from
}

func (t *Table) newSession() *Session {
	n := len(t.free)
	if n == 0 {
		return new(Session)
	}
	s := t.free[n-1]
	t.free = t.free[:n-1]
	t.bytes += cap(s.steps)
	return s
}

// end records s and forgets it.
func (t *Table) end(s *Session, how store.Ending, at int64) {
	if s.from != nil {
		if s.from.live--; s.from.live == 0 {
			delete(t.sources, memory.Number(s.Src.Addr()))
		}
	}
	if how != store.EndingStopped && how != store.EndingUnknown {
		t.judgeEnd(s, how, at)
	}
	r := store.Record{
		ID: s.ID, Start: time.UnixMicro(s.start), End: time.UnixMicro(max(at, s.start)),
		Src: s.Src, Dst: s.Dst, RDNS: s.RDNS, FCrDNS: s.FCrDNS, Ending: how, Local: s.Local,
		Counts: s.Counts, Omitted: s.omitted,
	}
	t.record = store.AppendRecord(t.record[:0], &r, s.steps)
	whole, summed := t.take(s, &r)
	if whole {
		t.options.Record(r.End, r.ID, t.record)
	}
	t.memory.Ended(&memory.Ended{
		Local: s.Local, Authenticated: s.Counts.AuthPass > 0, Refused: s.refused, Whole: whole, Summed: summed,
		Found: s.found(), Evidence: s.Evidence | s.Weak, Counts: &r.Counts,
	}, r.End.UnixMicro())
	delete(t.live, s.ID)
	t.last = nil
	t.count.Store(int64(len(t.live)))
	t.bytes -= cap(s.steps)
	if len(t.free) < maxFree {
		s.reset()
		t.free = append(t.free, s)
	}
}

func (t *Table) ending(s *Session) store.Ending {
	switch {
	case s.quit:
		return store.EndingQuit
	case s.timedOut:
		return store.EndingTimeout
	case s.hungUp:
		return store.EndingRejected
	case t.lean:
		return store.EndingClosed
	}
	return store.EndingDropped
}

// step records one step, or counts it if the session has had its share.
func (t *Table) step(s *Session, at int64, step *store.Step) {
	if len(s.steps) > minSteps && (len(s.steps) > maxSteps || t.bytes > maxAllSteps) {
		s.omitted++
		return
	}
	t.bytes -= cap(s.steps)
	s.steps = store.AppendStep(s.steps, step, time.Duration(at-s.last)*time.Microsecond)
	t.bytes += cap(s.steps)
	s.last = max(s.last, at)
}

// addrCache remembers the listener's address, which is nearly always the same.
type addrCache struct {
	text string
	addr netip.AddrPort
}

func (c *addrCache) parse(b []byte) netip.AddrPort {
	if c.text != string(b) {
		c.text, c.addr = string(b), parseAddrPort(b)
	}
	return c.addr
}

// parseAddrPort reads `a.b.c.d:port` or `[v6]:port`; anything else is invalid.
func parseAddrPort(b []byte) netip.AddrPort {
	a, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// limiter lets through a burst, then a steady rate, by the events' clock.
type limiter struct {
	tokens  float64
	last    int64
	dropped uint64
}

func (l *limiter) allow(now int64) bool {
	if l.last == 0 {
		l.tokens = maxLogBurst
	} else if now > l.last {
		l.tokens = min(maxLogBurst, l.tokens+float64(now-l.last)/1e6*maxLogPerSec)
	}
	l.last = now // also if the clock was set back
	if l.tokens < 1 {
		l.dropped++
		return false
	}
	l.tokens--
	return true
}
