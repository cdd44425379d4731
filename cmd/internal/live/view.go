package live

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// Limits on data that clients control.
const (
	maxSources = 4096 // above this, the sources that have been inactive longest are counted in d.others
	maxEntries = 1024 // events per list
	maxBans    = 4096
	maxPending = 8192 // events that arrive while the records are being read

	nearEntries = 8 // number of latest events that an identical event can be merged with
)

// window is the period that sparklines show. Its records are read at the start.
const window = time.Hour

// A source is a host, or an IPv6 /64.
type source struct {
	counts
	prefix netip.Prefix
	client memory.Client // client in the latest session
	name   string        // reverse DNS name, printable
	proven bool          // the name passes FCrDNS
}

// named stores the name from the latest session.
func (s *source) named(addr netip.Addr, rdns []byte, proven bool) {
	name := shown(string(rdns), 128)
	if name == "" || name == s.name && proven == s.proven && addr == s.client.Addr {
		return
	}
	s.name, s.proven, s.client = name, proven, memory.Client{Addr: addr}
	if proven {
		s.client.Domain = memory.RegisteredDomain(rdns)
	}
}

// An entry is an event in a list. All text is printable.
type entry struct {
	number uint64
	at     time.Time
	word   string
	prefix netip.Prefix // invalid if the source has no address
	place  string       // describes a source without an address
	text   string
	times  int
}

// A list holds the latest entries, oldest first. If a list becomes too long, old entries are
// dropped; at least half of maxEntries remain.
type list []entry

// add adds an entry. If one of the latest entries is identical, only its count is
// increased.
func (l *list) add(e entry) {
	n := len(*l)
	for i := n - 1; i >= max(n-nearEntries, 0); i-- {
		if old := &(*l)[i]; old.word == e.word && old.prefix == e.prefix && old.place == e.place && old.text == e.text {
			old.at = e.at
			old.times += e.times
			return
		}
	}
	if len(*l) == maxEntries {
		*l = append((*l)[:0], (*l)[maxEntries/2:]...)
	}
	*l = append(*l, e)
}

// sessions is a set of recent session ids.
type sessions struct {
	ids  map[uint64]bool
	ring [maxPending]uint64
	next int
}

func (s *sessions) has(id uint64) bool { return s.ids[id] }

func (s *sessions) add(id uint64) {
	if s.ids == nil {
		s.ids = map[uint64]bool{}
	}
	delete(s.ids, s.ring[s.next])
	s.ids[id], s.ring[s.next] = true, id
	s.next = (s.next + 1) % maxPending
}

// data holds all information about the sources. All text is printable.
type data struct {
	zone     *time.Location
	org      func(netip.Addr) string
	memory   *memory.Memory // for standing; nil if there is no state
	problems []string       // problems in reading the records

	sources  map[netip.Prefix]*source
	others   counts // totals of sources over the limit, and of aggregates with many sources
	evicted  int    // number of sources moved to others
	sessions activity
	findings activity
	rejected activity
	observed activity
	kinds    [64]int // findings by kind of evidence
	entries  uint64
	latest   list // all events
	refused  list // verdicts and bans
	bans     map[netip.Prefix]*memory.Ban
	moreBans int
	known    sessions // sessions counted from an event, or while the records were read
	since    time.Time
}

func newData(zone *time.Location, org func(netip.Addr) string, since time.Time) *data {
	return &data{zone: zone, org: org, since: since, sources: map[netip.Prefix]*source{}, bans: map[netip.Prefix]*memory.Ban{}}
}

// source returns the source for an address, adding it if it is new, and stores its
// reverse DNS name.
func (d *data) source(addr netip.Addr, rdns []byte, f smtp.FCrDNS) *source {
	p := memory.Identify(addr, rdns, f).Prefix()
	s := d.sources[p]
	if s == nil {
		if len(d.sources) == maxSources {
			d.evict()
		}
		s = &source{prefix: p, client: memory.Client{Addr: addr}}
		s.org = shown(d.org(addr), 64)
		d.sources[p] = s
	}
	return s
}

// evict removes the quarter of the sources that have been inactive longest, and adds their
// counts to d.others.
func (d *data) evict() {
	all := slices.SortedFunc(maps.Values(d.sources), func(a, b *source) int {
		return cmp.Or(a.last.Compare(b.last), a.prefix.Compare(b.prefix))
	})
	for _, s := range all[:maxSources/4] {
		s.org = ""
		d.others.add(&s.counts)
		d.evicted++
		delete(d.sources, s.prefix)
	}
}

// first adds a record that was read at the start. Events since begun may belong to the session of
// this record.
func (d *data) first(r *store.Record, begun time.Time) error {
	d.sessions.add(r.End, r.Many())
	if !r.End.Before(begun) {
		d.known.add(r.ID)
	}
	return d.record(r)
}

// record adds a recorded session or an aggregate.
func (d *data) record(r *store.Record) error {
	if r.Local {
		return nil
	}
	c := d.session(r)
	c.sessions += r.Many()
	c.rate.add(r.End, r.Many())
	place := "several"
	if r.Erased {
		place = "erased"
	}
	return r.Steps(func(s *store.Step) bool {
		e := events.Event{Time: r.Start.Add(s.At), Session: r.ID, Src: r.Src.Addr(), RDNS: r.RDNS, FCrDNS: r.FCrDNS.String()}
		if r.Sessions > 0 {
			e.Time = r.End
		}
		if fromStep(&e, s) {
			d.count(c, &e, max(1, int(s.Times)), place)
		}
		return true
	})
}

// session adds the messages of a record, and returns the counts for the record's source.
func (d *data) session(r *store.Record) *counts {
	c := &d.others
	if addr := r.Src.Addr().Unmap(); addr.IsValid() {
		s := d.source(addr, r.RDNS, r.FCrDNS)
		s.named(addr, r.RDNS, r.FCrDNS == smtp.FCrDNSPass)
		c = &s.counts
	}
	c.mails += int(r.Counts.Mails)
	c.seen(r.End)
	return c
}

// later adds a record. The events of this session, or of the sessions in an aggregate, may already
// have been counted.
func (d *data) later(r *store.Record) error {
	switch {
	case r.Sessions > 0:
		c := d.session(r)
		c.sessions += r.Many() - int(r.Found)
		c.rate.add(r.End, r.Many()-int(r.Found))
	case d.known.has(r.ID):
		d.session(r)
	default:
		return d.record(r)
	}
	return nil
}

// fromStep sets an event's fields from a step, or returns false if the step is not an
// event.
func fromStep(e *events.Event, s *store.Step) bool {
	decide := func(decision string) {
		e.Phase, e.Rule, e.Reason = s.PhaseName(), string(s.Text), s.Exempt
		if e.Decision = decision; !s.Enforced {
			e.Decision, e.Would = "", decision
		}
	}
	switch s.Kind {
	case store.KindFinding:
		e.Event, e.Evidence, e.Org, e.Confidence, e.Proof = "finding", string(s.Text), string(s.Org), string(s.Confidence), string(s.Arg)
	case store.KindVerdict:
		e.Event = "verdict"
		decide(s.DecisionName())
	case store.KindBan:
		e.Event, e.Prefix, e.Until = "ban", s.Prefix.String(), s.Until
		decide("")
	default:
		return false
	}
	return true
}

// proofOf returns an event's FCrDNS result. All results except pass are treated as unknown.
func proofOf(e *events.Event) smtp.FCrDNS {
	if e.FCrDNS == smtp.FCrDNSPass.String() {
		return smtp.FCrDNSPass
	}
	return smtp.FCrDNSFail
}

// event adds an event from the filter.
func (d *data) event(e *events.Event) {
	if p, err := netip.ParsePrefix(e.Prefix); err == nil {
		d.ban(p.Masked(), e)
	}
	c := &counts{} // events without a source, from the local socket or about networks
	if addr := e.Src.Unmap(); addr.IsValid() {
		f := proofOf(e)
		s := d.source(addr, e.RDNS, f)
		s.named(addr, e.RDNS, f == smtp.FCrDNSPass)
		if e.Session != 0 && !d.known.has(e.Session) {
			d.known.add(e.Session)
			s.sessions++
			s.rate.add(e.Time, 1)
		}
		c = &s.counts
	}
	d.count(c, e, 1, "local")
}

// ban adds or removes a ban.
func (d *data) ban(p netip.Prefix, e *events.Event) {
	switch {
	case e.Event == "unban":
		delete(d.bans, p)
	case e.Event == "ban":
		d.addBan(memory.Ban{Prefix: p, Since: e.Time, Until: e.Until, Rule: cmp.Or(e.Rule, e.Reason), Observe: e.Would != "", Manual: e.By == "operator"})
	}
}

// addBan adds a ban. If another host has banned the same prefix as this host, the ban of this
// host remains.
func (d *data) addBan(b memory.Ban) {
	if old := d.bans[b.Prefix]; old != nil && old.Origin == "" && b.Origin != "" {
		return
	}
	if d.bans[b.Prefix] == nil && len(d.bans) >= maxBans {
		maps.DeleteFunc(d.bans, func(_ netip.Prefix, old *memory.Ban) bool { return old.Expired(b.Since) })
	}
	if d.bans[b.Prefix] == nil && len(d.bans) >= maxBans {
		d.moreBans++
		return
	}
	d.bans[b.Prefix] = &b
}

// confidences maps words to indices into counts.evidence.
var confidences = map[string]int{"high": 0, "medium": 1}

// count adds n identical events to c, to the totals and to the lists. place describes a
// source without an address.
func (d *data) count(c *counts, e *events.Event, n int, place string) {
	c.seen(e.Time)
	switch e.Event {
	case "finding":
		d.findings.add(e.Time, n)
		c.findings += n
		if t := rules.TokenByName(e.Evidence); t != nil {
			// Only evidence of a scanner or cloud names an organisation; other evidence names a
			// tool. A scanner takes precedence over a cloud, because the scanner may rent its hosts
			// from the cloud.
			if e.Org != "" && (t.Evidence == rules.Scanner || t.Evidence == rules.Cloud && c.org == "") {
				c.org = shown(e.Org, 64)
			}
			i, known := confidences[e.Confidence]
			if !known {
				i = len(c.evidence) - 1
			}
			c.evidence[i] |= t.Evidence
			d.kinds[t.Evidence.Index()] += n
		}
	case "verdict":
		if e.Would != "" {
			d.observed.add(e.Time, n)
			c.observed += n
		} else {
			d.rejected.add(e.Time, n)
			c.rejected += n
		}
	}
	d.entries++
	row := entry{d.entries, e.Time, shown(e.Event, 16), netip.Prefix{}, place, eventText(e, d.zone), n}
	if p, err := netip.ParsePrefix(e.Prefix); err == nil {
		row.prefix = p.Masked()
	} else if addr := e.Src.Unmap(); addr.IsValid() {
		row.prefix = memory.Identify(addr, e.RDNS, proofOf(e)).Prefix()
	}
	d.latest.add(row)
	if e.Event != "finding" && e.Event != "tag" {
		d.refused.add(row)
	}
}

// standing returns a source's standing.
func (d *data) standing(s *source, now time.Time) string {
	if d.memory == nil {
		return "-"
	}
	if st := d.memory.Peers.Standing(&s.client, now.UnixMicro()); st.Level > rules.StandingNone {
		return st.Level.String()
	}
	return "-"
}

// A View holds the data shown by scanwatch top, and may be used concurrently.
type View struct {
	zone *time.Location
	now  func() time.Time
	org  func(netip.Addr) string

	mu      sync.Mutex
	data    *data
	status  *control.Status // nil while not connected
	down    string          // why there is no connection
	mode    string          // mode while not connected; empty if unknown
	reading bool
	pending []events.Event // events that arrived while the records were being read
	missed  uint64
}

// NewView returns an empty View. org returns an address's organisation, or "".
func NewView(zone *time.Location, now func() time.Time, org func(netip.Addr) string) *View {
	return &View{zone: zone, now: now, org: org, data: newData(zone, org, now())}
}

// unread reports whether the records are yet to be read.
func (v *View) unread() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.data.memory == nil
}

// begin queues events until finish is called, and returns the current time.
func (v *View) begin() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reading = true
	return v.now()
}

// finish replaces the data with d, which was read from the records. After an error, the
// old data is kept.
func (v *View) finish(d *data, err error) {
	v.failed(err)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.data = d
	}
	recorded := sessions{ids: maps.Clone(v.data.known.ids)}
	for i := range v.pending {
		if e := &v.pending[i]; !recorded.has(e.Session) {
			v.data.event(e)
		}
	}
	v.pending, v.reading = nil, false
}

// failed sets the read error to show. err may be nil.
func (v *View) failed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) {
		v.data.problems = []string{shown(err.Error(), 256)}
	}
}

// remember sets the state that determines standing.
func (v *View) remember(m *memory.Memory) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.data.memory = m
}

// record adds a record written after finish.
func (v *View) record(r *store.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.data.later(r)
}

// event adds an event, or the number of dropped events.
func (v *View) event(e *events.Event, missing uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case missing > 0:
		v.missed += missing
	case !v.reading:
		v.data.event(e)
	case len(v.pending) < maxPending:
		v.pending = append(v.pending, *e)
	default:
		v.missed++
	}
}

// connected sets the filter's status.
func (v *View) connected(s *control.Status) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.status != nil && s.Store.Added >= v.status.Store.Added && !v.reading {
		v.data.sessions.add(v.now(), int(s.Store.Added-v.status.Store.Added))
	}
	v.status, v.down = s, ""
}

// disconnected sets the reason why there is no connection, and the mode that a filter would have if
// it started now.
func (v *View) disconnected(err error, mode statedir.Mode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status, v.down, v.mode = nil, text.Escape(err.Error()), mode.Word
}
