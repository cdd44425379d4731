package report

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// Limits on a Collector's memory. Items beyond a limit are counted in the totals and in
// Summary.NotListed. If all lists are full, they use about 50 MB, and Summary uses
// another 10 MB.
const (
	maxSources  = 130_000 // listed sources; further sources are only counted
	maxNames    = 100_000 // HELO names
	maxDomains  = 50_000  // domains of recipients
	maxOrgs     = 5_000
	maxTried    = 100_000 // pairs of a source and a domain
	maxTokens   = 1_000
	maxRules    = 4_000
	maxSuspects = 50_000  // pairs of a host and a rule
	maxRDNS     = 6 << 20 // bytes of reverse DNS names
	maxDays     = 4_000
	maxLogins   = 20_000 // addresses with a login
	maxQuarters = 60_000 // 625 days
)

// A Collector counts sessions in bounded memory.
type Collector struct {
	record     uint32 // number of the current record, from 1
	now        current
	steps      steps
	visit      func(*store.Step) bool // counts a step
	aggregated int                    // sessions in aggregates
	erased     int                    // sessions whose address the operator has removed
	days       spans[DayCount]        // counters of days, by the day's start
	daysUntil  time.Time              // when the day counters were read; zero: there are none
	clock      func() time.Time       // system clock, compared with daysUntil
	quarters   spans[Span]            // quarters of an hour
	dropped    map[string]int         // sessions that exceeded a limit, by name of the limit

	remote, authenticated, local Totals

	evidence, orgs names
	lists          *lists // nil if only totals are counted
	locate         func(netip.Addr) Place
}

// lists holds the fields of a Collector whose size grows with the number of clients.
type lists struct {
	sources  sources
	helo     names
	attempts attempts
	rules    ruleList
	suspects entries[suspectKey, suspect]
	latest   latest
	logins   map[address]uint32 // by address: number of sessions with a login
	users    *Users
}

// current is the record that the Collector is counting.
type current struct {
	*store.Record
	sum       bool
	source    *source // nil if the record has no source, or if there are too many sources
	number    uint32  // number of the source
	found     bool
	worst     worst
	certain   bool // evidence of high confidence about behaviour
	abuse     bool // evidence of behaviour that no mail server shows
	byFilter  bool // a filter has rejected the next recipient
	refusals  [maxRefusals]refusal
	rules     int      // number of elements in refusals
	rejection decision // the last enforced rejection, or otherwise the last observed one
	reference uint64   // the last reference to a rejected session of an aggregate
	sender    []byte
	recipient []byte // the last recipient rejected by a filter, or otherwise the last recipient
	rejected  bool   // a filter has rejected recipient
	domain    recipientDomain
}

// steps maps each kind of step to the function that counts it.
type steps [32]func(*Collector, *store.Step)

// kinds returns the kinds of steps that have a function.
func (s *steps) kinds() (kinds store.Kinds) {
	for k, f := range s {
		if f != nil {
			kinds |= store.KindsOf(store.Kind(k))
		}
	}
	return kinds
}

var totalSteps = steps{
	store.KindFinding: (*Collector).finding,
	store.KindVerdict: (*Collector).refusal,
}

var allSteps = steps{
	store.KindFinding:   (*Collector).finding,
	store.KindVerdict:   (*Collector).verdict,
	store.KindReference: (*Collector).reference,
	store.KindBan:       (*Collector).ban,
	store.KindHelo:      (*Collector).greeting,
	store.KindMail:      (*Collector).mail,
	store.KindFilter:    (*Collector).filter,
	store.KindRcpt:      (*Collector).rcpt,
}

// NewTotals returns a Collector that counts only the totals, the timeline, evidence and
// organisations.
func NewTotals() *Collector {
	c := &Collector{steps: totalSteps, dropped: map[string]int{}, evidence: newNames(maxTokens), orgs: newNames(maxOrgs)}
	c.days = newSpans[DayCount](24*time.Hour, maxDays)
	c.quarters = newSpans[Span](quarter, maxQuarters)
	c.visit = c.step
	return c
}

// NewCollector returns an empty Collector. number maps an address to its
// source's number, as in the sketches of aggregates.
func NewCollector(number func(netip.Addr) uint64) *Collector {
	c := NewTotals()
	c.steps = allSteps
	c.lists = &lists{
		sources:  sources{number: number, all: entries[address, source]{limit: maxSources, hash: address.hash}, rdns: arena{limit: maxRDNS}},
		helo:     newNames(maxNames),
		attempts: attempts{domains: newNames(maxDomains), tried: entries[uint64, tried]{limit: maxTried, hash: func(k uint64) uint64 { return mix(k, 0) }}},
		rules:    ruleList{numbers: map[string]uint32{}},
		suspects: entries[suspectKey, suspect]{limit: maxSuspects, hash: suspectKey.hash},
		users:    NewUsers(),
		logins:   map[address]uint32{},
	}
	return c
}

// Visitor returns a visitor that adds all records to c. The visitor returns an error for a record
// with corrupt steps.
func (c *Collector) Visitor() history.Visitor {
	kinds := c.steps.kinds()
	if c.lists != nil {
		kinds |= store.KindsOf(store.KindAuth)
	}
	return history.Visitor{Kinds: kinds, Session: c.Add, Sum: c.Add}
}

// CountDays sets the time at which the counters for Compare were read. The counters do
// not include sessions that end later. A session that ends in the future was recorded
// while the clock was wrong.
func (c *Collector) CountDays(at time.Time, clock func() time.Time) { c.daysUntil, c.clock = at, clock }

// Add counts a record. r is not retained.
func (c *Collector) Add(r *store.Record) error {
	c.record++
	c.now = current{Record: r, sum: r.Sessions > 0}
	if c.now.sum {
		c.aggregated += r.Many()
	}
	if r.Erased {
		c.erased += r.Many()
	}
	// Always count aggregates, because most of an aggregate's sessions end before the aggregate
	// does.
	uncounted := !c.now.sum && !c.daysUntil.IsZero() && r.End.After(c.daysUntil) && !r.End.After(c.clock())
	if day := c.days.at(r.End); day != nil && !uncounted {
		day.Sessions += r.Many()
		day.Mails += int(r.Counts.Mails)
	}
	if c.lists != nil {
		if err := c.lists.users.Add(r); err != nil {
			return err
		}
	}
	switch {
	case r.Local:
		c.local.add(r)
		return nil
	case r.Counts.AuthPass > 0:
		c.authenticated.add(r)
		return c.addAuthenticated()
	}
	c.remote.add(r)
	return c.addRemote()
}

// addAuthenticated counts the rejections in a session with a login. Such a session is not counted
// in any other list.
func (c *Collector) addAuthenticated() error {
	if c.lists == nil {
		return nil
	}
	c.countLogin()
	err := c.now.Steps(func(s *store.Step) bool {
		switch s.Kind {
		case store.KindVerdict:
			c.refusal(s)
		case store.KindMail:
			c.mail(s)
		case store.KindRcpt:
			c.now.recipient = s.Text
		}
		return true
	})
	c.addSuspects()
	c.lists.latest.add(&c.now)
	return err
}

// countLogin counts the sessions with a login for the current record's address.
func (c *Collector) countLogin() {
	if !c.now.Src.IsValid() {
		return
	}
	logins, key := c.lists.logins, addressOf(c.now.Src.Addr())
	if n, known := logins[key]; known || len(logins) < maxLogins {
		logins[key] = n + uint32(c.now.Many())
	}
}

// addRemote counts a record of unauthenticated clients.
func (c *Collector) addRemote() error {
	n := &c.now
	if c.lists != nil && !c.lists.sources.add(n) {
		c.dropped["addresses"] += n.Many()
	}
	err := n.Steps(c.visit)
	span := Span{Sessions: n.Many(), Refused: n.refused()}
	observed := n.observed()
	switch {
	case n.sum:
		span.Found = int(n.Found)
	case n.found:
		span.Found = 1
	}
	c.remote.Found += span.Found
	c.remote.Refused += span.Refused
	c.remote.Observed += observed
	if q := c.quarters.at(n.End); q != nil {
		q.Sessions, q.Found, q.Refused = q.Sessions+span.Sessions, q.Found+span.Found, q.Refused+span.Refused
	} else {
		c.dropped["times"]++
	}
	if c.lists == nil {
		return err
	}
	if n.source != nil {
		n.source.found += uint32(span.Found)
		n.source.refused += uint32(span.Refused)
		n.source.observed += uint32(observed)
		n.source.last = max(n.source.last, uint32(n.End.Unix()))
		n.source.worst.merge(n.worst)
		n.source.certain = n.source.certain || n.certain
		n.source.abuse = n.source.abuse || n.abuse
	}
	c.addSuspects()
	c.lists.latest.add(n)
	return err
}

// step adds a step of the current record to the counts.
func (c *Collector) step(s *store.Step) bool {
	if int(s.Kind) < len(c.steps) {
		if count := c.steps[s.Kind]; count != nil {
			count(c, s)
		}
	}
	return true
}

// times returns the number of sessions with a step.
func times(s *store.Step) int { return max(int(s.Times), 1) }

// count adds the number of sessions with a step to a counter. last is the number of the record that
// last increased the counter, so that count counts a session only once. The tallies of an aggregate
// belong to different sessions, so all of them are counted.
func (c *Collector) count(counter *uint32, last *uint32, s *store.Step) {
	if *last != c.record || c.now.sum {
		*last = c.record
		*counter += uint32(times(s))
	}
}

// countName counts a name and returns its index, or -1 if there are too many names.
func (c *Collector) countName(n *names, what string, text []byte, s *store.Step) int {
	i := n.find(text)
	if i < 0 {
		c.dropped[what] += times(s)
		return i
	}
	e := &n.list[i]
	c.count(&e.sessions, &e.last, s)
	return i
}

// Flags for evidence that is treated specially in the search for possible
// false positives.
const (
	// evidenceWeak marks evidence that legitimate clients also cause. For example, a rejected
	// client delivers no mail, and many legitimate servers send bad greetings.
	evidenceWeak = 1 << iota
	// evidenceRecipients marks evidence that is also normal for mailing lists, because
	// some members no longer have a mailbox.
	evidenceRecipients
	evidenceScanner
	// evidenceNamed marks evidence that names an organisation.
	evidenceNamed
)

func evidenceFlags(token string) uint32 {
	switch token {
	case "no-mail", "abandoned":
		return evidenceWeak
	case "unknown-recipient", "harvest", "probed-recipient", "recipient-flood", "backscatter":
		return evidenceRecipients
	case "scanner":
		return evidenceScanner | evidenceNamed
	case "cloud", "botnet-helo":
		return evidenceNamed
	}
	if len(token) > 5 && token[:5] == "helo-" {
		return evidenceWeak
	}
	return 0
}

func (c *Collector) finding(s *store.Step) {
	n := &c.now
	n.found = true
	i := c.countName(&c.evidence, "kinds of evidence", s.Text, s)
	if i < 0 {
		return
	}
	e := &c.evidence.list[i]
	if e.extra == 0 {
		e.extra = evidenceFlags(string(s.Text)) | severity(string(s.Text))<<severityShift | 1<<31
	}
	high := string(s.Confidence) == "high" || e.extra&evidenceScanner != 0 && string(s.Confidence) == "medium"
	n.certain = n.certain || high && e.extra&evidenceWeak == 0
	n.abuse = n.abuse || high && e.extra&(evidenceWeak|evidenceRecipients) == 0
	found := worst{rank: rank(s.Confidence, e.extra>>severityShift&severityMask), evidence: 1 + uint16(i)}
	if len(s.Org) == 0 {
		if n.sum && e.extra&evidenceNamed != 0 { // a full aggregate omits the organisation
			c.dropped["organisations"] += times(s)
		}
	} else if o := c.countName(&c.orgs, "organisations", s.Org, s); o >= 0 {
		found.org, found.orgRank = 1+uint16(o), found.rank
		if c.orgs.list[o].extra == 0 {
			c.orgs.list[o].extra = 1 + uint32(i)
		}
	}
	n.worst.merge(found)
}

// Locate sets the function that looks up an address's place. Without this
// function, the report has no lists of AS numbers and countries.
func (c *Collector) Locate(place func(netip.Addr) Place) { c.locate = place }

// Each source is listed with its evidence of the highest confidence. If the confidence is equal,
// the more severe evidence is listed.
const (
	severityShift = 8
	severityMask  = 3
)

// severity returns 0 for evidence that many legitimate servers have, 2 for evidence of an
// attack, and 1 for all other evidence.
func severity(token string) uint32 {
	switch token {
	case "scanner", "botnet-helo", "harvest", "relay-probe", "auth-spray", "account-abuse", "recipient-flood":
		return 2
	case "cloud", "rdns-missing", "fcrdns-fail":
		return 0
	}
	if evidenceFlags(token)&evidenceWeak != 0 {
		return 0
	}
	return 1
}

// worst holds a source's worst evidence and its organisation.
type worst struct {
	rank          uint8  // 0: no evidence
	orgRank       uint8  // rank of the evidence that named the organisation
	evidence, org uint16 // 1 + index in the evidence and organisations of a Collector
}

// rank returns the rank of evidence, which depends on confidence first and severity
// second.
func rank(confidence []byte, severity uint32) uint8 {
	switch string(confidence) {
	case "high":
		severity += 2 << 2
	case "medium":
		severity += 1 << 2
	}
	return 1 + uint8(severity)
}

// merge replaces w's evidence and organisation with o's if o's evidence has a
// higher rank.
func (w *worst) merge(o worst) {
	if o.orgRank > w.orgRank {
		w.org, w.orgRank = o.org, o.orgRank
	}
	if o.rank > w.rank {
		w.rank, w.evidence = o.rank, o.evidence
	}
}

func (c *Collector) reference(s *store.Step) { c.now.reference = s.Session }

func (c *Collector) verdict(s *store.Step) {
	effect := ruleObserved
	switch {
	case s.Enforced:
		effect = ruleEnforced
	case s.Exempt != "":
		effect = ruleExempt
	}
	c.countRule(s, effect)
	c.refusal(s)
}

func (c *Collector) ban(s *store.Step) {
	switch {
	case s.Enforced:
		c.countRule(s, ruleBans)
	case s.Exempt != "":
		c.countRule(s, ruleExempt)
	default:
		c.countRule(s, ruleObserved)
	}
}

func (c *Collector) greeting(s *store.Step) {
	if len(s.Text) == 0 {
		if c.now.sum { // names that a full aggregate does not list
			c.dropped["HELO names"] += times(s)
		}
		return
	}
	c.countName(&c.lists.helo, "HELO names", s.Text, s)
}

func (c *Collector) mail(s *store.Step) { c.now.sender = s.Text }

func (c *Collector) filter(s *store.Step) {
	c.now.byFilter = s.Phase == smtp.PhaseRcptTo && s.Decision >= smtp.Reject
}

// names holds the number of sessions for each name. The entries contain no pointers, which the
// garbage collector would have to follow.
type names struct {
	limit int
	slots []slot
	list  []name
	texts arena
}

type name struct {
	text     uint32 // number of the name in texts
	sessions uint32
	last     uint32 // the record that was last counted
	// extra depends on the type of name. For evidence, extra is a set of flags. For an
	// organisation, extra is 1 + the index of its first evidence. For a domain, extra is
	// the number of recipients accepted from unauthenticated clients.
	extra uint32
}

// newNames returns an empty set of names. limit is the maximum number of names.
func newNames(limit int) names {
	return names{limit: limit, texts: arena{limit: limit*258 + 2*chunkBytes}}
}

// text returns the text of name i.
func (n *names) text(i int) []byte { return n.texts.get(n.list[i].text) }

// maxName is the maximum length of a name in bytes. Longer names are truncated, as in
// aggregates.
const maxName = 128

// printed returns the printable text of the name with the number index-1, or "" if index is 0.
func (n *names) printed(index uint16) string {
	if index == 0 {
		return ""
	}
	return text.Escape(n.text(int(index - 1)))
}

// find returns the index of a name, or -1 if there are too many names. A name may contain any
// bytes.
func (n *names) find(text []byte) int {
	text = text[:min(len(text), maxName)]
	if len(n.list)*8 >= len(n.slots)*7 {
		n.slots = make([]slot, max(2*len(n.slots), 64))
		for i := range n.list {
			hash := maphash.Bytes(textSeed, n.text(i))
			n.slots[n.slot(n.text(i), hash)] = newSlot(uint32(i), hash)
		}
	}
	hash := maphash.Bytes(textSeed, text)
	at := n.slot(text, hash)
	if s := n.slots[at]; s > 0 {
		return int(s.number())
	}
	i := len(n.list)
	if i >= n.limit {
		return -1
	}
	n.list = append(n.list, name{text: n.texts.add(text)})
	n.slots[at] = newSlot(uint32(i), hash)
	return i
}

// slot returns the position of a name's slot. For a new name, it returns the position
// of a free slot.
func (n *names) slot(text []byte, hash uint64) uint64 {
	last := uint64(len(n.slots) - 1)
	i := hash & last
	for ; n.slots[i] > 0; i = (i + 1) & last {
		if s := n.slots[i]; s.like(hash) && bytes.Equal(n.text(int(s.number())), text) {
			break
		}
	}
	return i
}

// textSeed prevents clients from choosing names with equal hashes.
var textSeed = maphash.MakeSeed()

// spans holds counters for time spans of equal length. The most recently used span is
// found without a search.
type spans[T any] struct {
	length, limit int64
	all           map[int64]*T // keyed by the number of the span since 1970
	last          *T
	number        int64
}

func newSpans[T any](length time.Duration, limit int64) spans[T] {
	return spans[T]{length: int64(length / time.Second), limit: limit, all: map[int64]*T{}}
}

// get returns the counters of the span that contains t.
func (s *spans[T]) get(t time.Time) (v T) {
	if found := s.all[t.Unix()/s.length]; found != nil {
		v = *found
	}
	return v
}

// at returns the counters of the span that contains t, or nil if there are too many
// spans.
func (s *spans[T]) at(t time.Time) *T {
	number := t.Unix() / s.length
	if s.last != nil && number == s.number {
		return s.last
	}
	v := s.all[number]
	if v == nil {
		if int64(len(s.all)) >= s.limit {
			return nil
		}
		v = new(T)
		s.all[number] = v
	}
	s.last, s.number = v, number
	return v
}

// An arena stores texts of at most 255 bytes. The number 0 means no text.
type arena struct {
	limit  int
	chunks [][]byte
}

const chunkBytes = 1 << 16

// add returns the number of a text, or 0 if the arena is full.
func (a *arena) add(text []byte) uint32 {
	text = text[:min(len(text), 255)]
	last := len(a.chunks) - 1
	if last < 0 || len(a.chunks[last])+1+len(text) > chunkBytes {
		if (last+2)*chunkBytes > a.limit {
			return 0
		}
		a.chunks = append(a.chunks, append(make([]byte, 0, chunkBytes), 0)) // 0 is not the number of a text
		last++
	}
	at := len(a.chunks[last])
	a.chunks[last] = append(append(a.chunks[last], byte(len(text))), text...)
	return uint32(last*chunkBytes + at)
}

func (a *arena) get(number uint32) []byte {
	if number == 0 {
		return nil
	}
	b := a.chunks[number/chunkBytes][number%chunkBytes:]
	return b[1 : 1+int(b[0])]
}

// recipientDomain caches the domain of the previous recipient, because the next
// recipient often has the same domain.
type recipientDomain struct {
	text   []byte // domain as the client wrote it
	number uint32
	valid  bool
	tried  *tried // counts for the source and this domain; nil if unknown
}

func (d *recipientDomain) is(text []byte) bool { return d.valid && bytes.Equal(d.text, text) }
