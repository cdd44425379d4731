// Package filter implements the pipeline that processes events of SMTP sessions.
//
// A front end, such as filter/smtpd, supplies the events. Package track updates the
// facts about the session, package detect gathers evidence, package decide applies the
// policy, and package journal records the event and its outcomes.
//
// Data flows in one direction, and no stage calls an earlier stage. Only this package
// imports all stages.
package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"scanwatch/filter/decide"
	"scanwatch/filter/detect"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/journal"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/filter/track"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// Options holds the inputs and outputs of a Pipeline. None of the functions may block
// or retain its arguments.
type Options struct {
	// Record receives the encoded record of an ended session, or of an aggregate. An aggregate
	// combines several sessions, which may have ended up to an hour ago. Record is also called by
	// Sums.Flush, in the goroutine of Flush's caller.
	Record func(end time.Time, id uint64, value []byte)
	// FrontEnd is the name of the front end in records, or "" for smtpd. Records of other front
	// ends also name the mail server.
	FrontEnd string
	// Clock, if set, is updated whenever a session ends. The value of Clock is the session's end in
	// microseconds since 1970.
	Clock *atomic.Int64
	// Log receives one log line without LF.
	Log func(line []byte)
	// Verbose reports whether each finding, verdict and tag is logged. Nil means false.
	Verbose func() bool
	// Watch, if set, is called for each finding, verdict, tag and ban.
	Watch func(*events.Event)
	// Lists returns the shipped lists. The first call of Lists may block.
	Lists func() *lookup.Lists
	// Memory is the state kept across sessions. If Memory is nil, the pipeline
	// starts without any state.
	Memory *memory.Memory
	// Hasher returns the hasher for mailboxes and possible passwords. If Hasher returns nil,
	// mailboxes and user names are recorded unhashed.
	Hasher func() *privacy.Hasher
	// Hashed selects the privacy level "hashed" until Use is called.
	Hashed bool
	// OwnAddrs lists this host's addresses.
	OwnAddrs []netip.Addr
	// Budget is the disk budget in bytes. During a flood, sessions are combined into aggregates to
	// stay within the budget. If Budget is 0, every session gets its own record.
	Budget int64
	// Recorded means that the events come from stored records, in which names may be hashed.
	Recorded bool
	// Lookups stores DNS lists' answers. Lookups may be nil.
	Lookups *dnslist.Table
	// Trace, if set, is called for each evaluation of the policy. The facts are valid
	// only during the call.
	Trace func(*rules.Policy, *rules.Facts, smtp.Answer)
}

// Settings are the options that can change at run time.
type Settings struct {
	Policy  *rules.Policy
	ASN     *lookup.Origins // nil: only AS numbers from the shipped lists are known
	Country *lookup.Origins // nil: only countries from ASN are known
}

// A Pipeline tracks the open sessions. Only Use and Open are safe for concurrent use.
type Pipeline struct {
	Sums *journal.Sums // safe for concurrent use

	o        Options
	next     atomic.Pointer[Settings]
	settings *Settings // settings for the current event; if nil, the pipeline only observes
	site     detect.Site
	memory   *memory.Memory
	decider  decide.Decider
	journal  *journal.Journal

	table table
	clock int64 // time of the newest event in microseconds

	found  detect.Case    // reused
	client memory.Client  // client of the current event
	out    smtp.Outcome   // reused
	facts  []dnslist.Fact // reused
	answer smtp.Event     // reused
}

// New returns a Pipeline that has no sessions. The new Pipeline only observes until Use is called.
func New(o Options) *Pipeline {
	p := &Pipeline{o: o, memory: o.Memory, table: newTable()}
	if p.memory == nil {
		p.memory = memory.New()
	}
	p.journal = journal.New(journal.Options{Record: o.Record, FrontEnd: o.FrontEnd, Log: o.Log, Verbose: o.Verbose, Watch: o.Watch})
	p.journal.Limit(o.Budget)
	p.Sums = p.journal.Sums()
	p.site = detect.Site{Addrs: make(map[netip.Addr]bool), Memory: p.memory}
	for _, a := range o.OwnAddrs {
		p.site.Addrs[a.Unmap()] = true
	}
	p.decider = decide.Decider{Memory: p.memory, Own: p.site.OwnIn, OwnDomain: p.site.OwnDomain, Local: p.site.LocalDomain, Recorded: o.Recorded, Trace: o.Trace}
	return p
}

// Use sets the settings, which take effect at the next event. Use is safe for
// concurrent use.
func (p *Pipeline) Use(settings *Settings) { p.next.Store(settings) }

// Open returns the number of open sessions. Open is safe for concurrent use.
func (p *Pipeline) Open() int64 { return p.table.count.Load() }

// Site sets the mail server's name. For smtpd, the name is the site name in smtpd.conf(5).
func (p *Pipeline) Site(name string) {
	p.site.Admin = []byte(name)
	p.journal.Site(p.site.Admin)
}

// Event processes any event except a request.
func (p *Pipeline) Event(ev *smtp.Event) {
	p.begin(ev.Time)
	var s *session
	if ev.Kind == smtp.EventConnect {
		if s = p.open(ev); s == nil {
			return
		}
	} else if s = p.table.session(ev.Session); s == nil {
		return // the session started before the filter did, or too many sessions were open
	}
	if ev.Kind == smtp.EventDisconnect {
		lastAnswers(p, s, ev.Time)
	}
	p.take(s, ev)
	if ev.Kind == smtp.EventDisconnect {
		p.close(s, ev.Ending, ev.Time)
	}
}

// Ask answers a request.
func (p *Pipeline) Ask(ev *smtp.Event) smtp.Answer {
	p.begin(ev.Time)
	s := p.table.session(ev.Session)
	if s == nil || p.settings == nil {
		return smtp.Answer{}
	}
	p.identify(s)
	if !s.waiting { // a request that has waited was already applied to the session
		s.track.Apply(ev)
		p.identify(s)
		p.detect(s, ev)
	}
	if s.waiting {
		s.waited += time.Duration(max(0, ev.Time-s.parked)) * time.Microsecond
	}
	s.waiting = false
	withdraw(p, s)
	if s.asking {
		if wait := listed(p, s, ev); wait > 0 && !ev.Waited {
			s.waiting, s.parked = true, ev.Time
			return smtp.Answer{Wait: wait}
		}
	}
	a, outcomes := p.decider.Ask(p.subject(s), ev)
	s.detect.Turned = a.Decision >= smtp.Reject
	if s.decide.Held && !ev.Refused {
		hold(p, s, ev)
	}
	p.write(s, outcomes)
	spare(p, s, ev.Time)
	return a
}

// hold records a recipient that a rule has rejected because too many recipients do not exist.
func hold(p *Pipeline, s *session, ev *smtp.Event) {
	again := p.memory.Recipients.Held(&p.client, ev.Addr, ev.Time)
	if !again {
		p.memory.Recipients.Missed(&p.client, ev.Time)
	}
	if s.detect.Hold(p.memory.Recipients.Mailbox(ev.Addr), again) {
		p.memory.Counters.Add(&p.client, rules.RecipientFlood, ev.Time)
	}
}

// spare sends watchers the event "exempt" if a pass statement has matched a request, and the
// session has findings or a ban. After an event "exempt", companion processes must not report the
// client.
func spare(p *Pipeline, s *session, at int64) {
	if p.o.Watch == nil || s.spared || !s.decide.Exempted || !s.detect.Has() && s.decide.Banned == nil {
		return
	}
	s.spared = true
	p.o.Watch(&events.Event{Event: "exempt", Time: time.UnixMicro(at), Session: s.track.ID, Src: s.track.Src.Addr(), Reason: "pass"})
}

// take passes an event through the stages.
func (p *Pipeline) take(s *session, ev *smtp.Event) {
	if ev.Kind == smtp.EventAuth {
		if ev.Result == smtp.ResultPass {
			s.track.Login = append(s.track.Login[:0], ev.Name...)
		}
		ev.Name = p.journal.User(ev.Name) // hash a possible password before it is used
	}
	s.track.Apply(ev)
	if ev.Kind == smtp.EventConnect {
		p.settings.locate(&s.track, &p.site)
		s.domain = memory.RegisteredDomain(s.track.ProvenName())
	}
	p.identify(s)
	if ev.Kind == smtp.EventGreeting && ev.Code == 220 {
		p.site.Name = append(p.site.Name[:0], ev.Name...)
	}
	p.journal.Event(&s.track, &s.journal, ev)
	p.decider.Track(p.subject(s), ev)
	if ev.Kind == smtp.EventDisconnect {
		p.ended(s, ev)
		return
	}
	p.detect(s, ev)
	p.learn(s, ev)
	if ev.Kind == smtp.EventConnect && p.o.Lookups != nil {
		consult(p, s, ev.Time)
	}
}

// locate adds the facts about a new session's address. The facts come from the site, and from the
// operator's tables and databases.
func (o *Settings) locate(s *track.Session, site *detect.Site) {
	if !s.Src.IsValid() {
		return
	}
	a := s.Src.Addr()
	s.Internal = site.Internal(a)
	s.Submission = site.Policy.Submission(s.Dst)
	if o == nil {
		o = new(Settings)
	}
	if o.Policy != nil {
		s.Gateway = slices.ContainsFunc(o.Policy.Gateways, func(g netip.Prefix) bool { return g.Contains(a) })
		if friends := o.Policy.Table("friends"); friends != nil {
			s.Friend = friends.MatchAddr(a)
		}
	}
	if o.ASN != nil {
		var origin lookup.Origin
		origin, s.ASNKnown = o.ASN.Lookup(a)
		s.ASN, s.Country = origin.ASN, origin.Country
	}
	if s.ASN == 0 { // the operator's database takes precedence
		if n, ok := lookup.ShippedASN(a); ok {
			s.ASN, s.ASNKnown = n, true
		}
	}
	if o.Country != nil {
		if origin, ok := o.Country.Lookup(a); ok {
			s.Country = origin.Country
		}
	}
}

// detect runs the detectors and records new findings.
func (p *Pipeline) detect(s *session, ev *smtp.Event) {
	if !detect.Wants(ev.Kind) {
		return
	}
	c := &p.found
	*c = detect.Case{
		Session: &s.track, State: &s.detect, Event: ev, Client: &p.client,
		Site: &p.site, Lists: p.o.Lists(), Memory: p.memory, Live: s.together(), Findings: c.Findings[:0],
		Standing: p.decider.Standing(p.subject(s), ev.Time),
	}
	if ev.Kind == smtp.EventAuth {
		c.Spray = p.login(s, ev)
	}
	detect.Run(c)
	for i := range c.Findings {
		p.admit(s, ev, &c.Findings[i])
	}
}

// admit adds a new finding to the session.
func (p *Pipeline) admit(s *session, ev *smtp.Event, f *detect.Finding) {
	if f.Implied {
		s.detect.Evidence |= f.Evidence
		return
	}
	added := s.detect.Add(f)
	switch {
	case !added && f.Evidence != rules.Listed:
		return
	case added && f.Confidence != detect.Low && f.Evidence&detect.CountedPerEvent == 0:
		p.memory.Counters.Add(&p.client, f.Evidence, ev.Time)
	}
	p.out = smtp.Outcome{
		Kind: smtp.OutcomeFinding, Time: ev.Time, Evidence: f.Token(), Confidence: f.Confidence,
		By: f.By, Proof: f.Proof, Mailbox: f.Mailbox, Org: f.Org, Match: f.Match,
		Repeat: !added, // several lists may report the same evidence, and the record contains a finding for each
	}
	if p.o.Watch != nil && added {
		p.out.Exempt = p.decider.ExemptReason(p.subject(s), ev.Time)
	}
	p.journal.Outcome(&s.track, &s.journal, &p.out)
}

// write records the policy's outcomes.
func (p *Pipeline) write(s *session, outcomes []smtp.Outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		if o.Kind == smtp.OutcomeVerdict && !o.Repeat {
			o.Tokens = (s.detect.Evidence | s.detect.Weak).String()
		}
		p.journal.Outcome(&s.track, &s.journal, o)
	}
}

// judged reports whether rules apply at the end of a session. No rule applies to a session whose
// ending is unknown, or that was still open when the mail server stopped.
func judged(s *session, how smtp.Ending) bool {
	return how != smtp.EndingStopped && how != smtp.EndingUnknown && !s.track.Exempt() && !s.track.Internal && !s.decide.Barred
}

// ended evaluates the rules for the end of a session.
func (p *Pipeline) ended(s *session, ev *smtp.Event) {
	if !judged(s, ev.Ending) {
		return
	}
	p.detect(s, ev)
	p.write(s, p.decider.End(p.subject(s), ev.Time))
	spare(p, s, ev.Time)
	p.judge(s, ev.Time)
}

// subject returns the session's facts and state for the decider.
func (p *Pipeline) subject(s *session) decide.Subject {
	return decide.Subject{Session: &s.track, Case: &s.detect, State: &s.decide, Client: &p.client, Live: s.together()}
}

// identify sets p.client, the client to which memory attributes the event.
func (p *Pipeline) identify(s *session) {
	t := &s.track
	p.client = memory.Client{
		Addr: t.Src.Addr(), Domain: s.domain, ASN: t.ASN, ASNKnown: t.ASNKnown, Helo: t.Helo, User: t.User,
		Session: t.ID, Cut: t.RDNSCut, Account: t.Authed, Shared: t.Internal || t.Gateway,
	}
}

// begin prepares the pipeline for an event. begin updates the clock and the settings, and writes
// the log lines and aggregates that are due.
func (p *Pipeline) begin(at int64) {
	if at/1e6 != p.clock/1e6 {
		p.memory.Tick(at)
	}
	p.clock = at
	p.journal.Tick(at)
	settings := p.next.Load()
	if settings == p.settings {
		return
	}
	p.settings = settings
	var policy *rules.Policy
	refs := make(map[*rules.Rule]uint32)
	if settings != nil {
		policy = settings.Policy
		for _, r := range policy.Rules() {
			refs[r] = store.RuleRef(r.String())
		}
	}
	p.site.Policy = policy
	if policy != nil {
		p.memory.Recipients.Delimiter(policy.Delimiter)
	}
	p.decider.Use(policy, refs)
	if p.o.Lookups != nil && policy != nil {
		p.o.Lookups.Use(policy.Lookups)
	}
	p.hide()
}

// hide sets the privacy level of the journal.
func (p *Pipeline) hide() {
	if p.o.Hasher == nil {
		return
	}
	hashed := p.o.Hashed
	if p.settings != nil {
		hashed = p.settings.Policy.Privacy != rules.PrivacyFull
	}
	p.journal.Hide(p.o.Hasher(), hashed)
}

// open opens a session. open returns nil if too many sessions are open.
func (p *Pipeline) open(ev *smtp.Event) *session {
	if old := p.table.session(ev.Session); old != nil {
		p.close(old, smtp.EndingUnknown, ev.Time)
	}
	ev.Src = netip.AddrPortFrom(prefix.Embedded(ev.Src.Addr()), ev.Src.Port())
	s := p.table.open(ev.Session, ev.Src)
	if s == nil {
		return nil
	}
	p.journal.Begin(&s.journal, ev.Time)
	p.hide() // the key for hashing may not have been available when the pipeline was created
	return s
}

// close records s and removes it from the table.
func (p *Pipeline) close(s *session, how smtp.Ending, at int64) {
	lastAnswers(p, s, at) // some sessions end without EventDisconnect
	t, now := &s.track, at
	at = max(at, t.Start)
	if p.o.Clock != nil {
		p.o.Clock.Store(at)
	}
	whole := p.journal.End(t, &s.journal, journal.Close{At: at, Ending: how, Found: s.detect.Has(), Refused: s.decide.Refused, Banned: s.decide.Banned != nil})
	n := &t.Counts
	p.memory.Days.Add(&memory.Ended{
		Local: t.Local, Authenticated: n.AuthPass > 0, Refused: s.decide.Refused, Whole: whole,
		Found: s.detect.Has(), Evidence: s.detect.Evidence | s.detect.Weak,
		Mails: n.Mails, RcptOK: n.RcptOK, RcptPermfail: n.RcptPermfail, RcptTempfail: n.RcptTempfail, AuthFail: n.AuthFail,
	}, now)
	p.journal.Release(&s.journal)
	p.table.close(s)
}

// Stop records the sessions that are still open when the mail server stops.
func (p *Pipeline) Stop() {
	for _, s := range p.table.live {
		p.close(s, smtp.EndingStopped, p.clock)
	}
	p.journal.Flush(p.clock, true)
	if p.table.missed > 0 {
		p.o.Log(fmt.Appendf(nil, "warning: %d sessions were not followed: more than %d were open", p.table.missed, maxSessions))
	}
}

// Leave records the sessions that are still open when a stream of events ends. The end of the
// stream cut off these sessions, so it is unknown how the sessions would have ended.
func (p *Pipeline) Leave() {
	for _, s := range p.table.live {
		p.close(s, smtp.EndingUnknown, s.journal.Last())
	}
	p.journal.Flush(p.clock, false)
}

// Cut records an open session. How the session ended is not used as evidence.
func (p *Pipeline) Cut(id uint64, how smtp.Ending, at int64) {
	if s := p.table.session(id); s != nil {
		p.close(s, how, at)
	}
}

// Known reports whether the client of an open session had standing at the given time.
func (p *Pipeline) Known(id uint64, at int64) bool {
	s := p.table.session(id)
	if s == nil || !s.track.Src.IsValid() {
		return false
	}
	p.identify(s)
	return p.memory.Peers.Standing(&p.client, at).Level >= rules.StandingKnown
}

// Phases returns the phases in which the policy needs requests from the mail server. The connect
// phase is always included if the policy has rules, or is in enforce mode, because bans take effect
// in this phase.
func Phases(policy *rules.Policy) smtp.PhaseSet {
	set := policy.Phases() & smtp.Answerable
	if len(policy.Rules()) > 0 || policy.Mode == rules.Enforce {
		set |= smtp.Phases(smtp.PhaseConnect)
	}
	return set
}

// RuleTexts returns the texts of all rules in policy. Verdicts and bans refer to these texts.
func RuleTexts(policy *rules.Policy) (texts []string) {
	for _, r := range policy.Rules() {
		texts = append(texts, r.String())
	}
	return texts
}
