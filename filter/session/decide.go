package session

import (
	"maps"
	"slices"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/rules"
	"scanwatch/store"
)

// phases pairs what smtpd asks with what a policy calls it.
var phases = map[filter.ID]rules.Phase{
	filter.PhaseConnect:  rules.Connect,
	filter.PhaseHelo:     rules.Helo,
	filter.PhaseEhlo:     rules.Helo,
	filter.PhaseMailFrom: rules.MailFrom,
	filter.PhaseRcptTo:   rules.RcptTo,
	filter.PhaseData:     rules.Data,
	filter.PhaseCommit:   rules.Commit,
}

// decisions pairs the policy's words with smtpd's.
var decisions = [...]filter.Decision{
	rules.Proceed:    filter.Proceed,
	rules.Junk:       filter.Junk,
	rules.Reject:     filter.Reject,
	rules.Disconnect: filter.Disconnect,
}

// Phases returns what must be registered so that smtpd asks whatever p wants
// to decide.
func Phases(p *rules.Policy) (ids []filter.ID) {
	asked := p.Phases()
	if len(p.Rules()) > 0 || p.Mode == rules.Enforce {
		// Bans, the operator's too, are carried out there.
		asked |= 1 << rules.Connect
	}
	for id := filter.PhaseConnect; id <= filter.PhaseCommit; id++ {
		if phase, ok := phases[id]; ok && asked.Has(phase) {
			ids = append(ids, id)
		}
	}
	return ids
}

// AllPhases returns all phases that a policy may decide in.
func AllPhases() []filter.ID { return slices.Sorted(maps.Keys(phases)) }

// Decide implements filter.Handler.
func (t *Table) Decide(ev *filter.Event) filter.Reply {
	t.begin(ev)
	phase, ok := phases[ev.ID]
	s := t.session(ev.Session)
	if !ok || s == nil || t.settings == nil {
		return filter.Reply{}
	}
	arg := ev.Field(0)
	switch phase {
	case rules.Helo:
		// link-identify comes only if nobody refuses.
		t.greet(s, arg, ev.Time)
		t.judgeHelo(s, ev.Time)
	case rules.MailFrom:
		s.tx.sender = set(s.tx.sender, arg, maxPath)
	case rules.Data, rules.Commit:
		if s.tx.passed {
			// Mail to postmaster, say. Those to whom it may not go were
			// refused as recipients.
			return filter.Reply{}
		}
	}
	policy := t.settings.Policy
	s.under(policy)
	if phase == rules.RcptTo {
		t.judgeShape(s, ev.Time)
		t.judgeProbed(s, arg, ev.Time)
	}
	f := t.fill(s, phase, ev.Time)
	if phase == rules.RcptTo {
		f.RcptTo = arg
	}
	v := t.eval(s, policy, f)
	s.cmd.passed = v.Pass != nil && phase == rules.RcptTo
	t.tag(s, ev.Time, phase, policy, v.Tags)
	if s.ban != nil && phase == rules.Connect && v.Pass == nil && !t.exempt(s) {
		if enforced := t.turnAway(s, ev.Time); enforced {
			s.barred, s.turnedAway, s.refused = true, true, true
			r := filter.Reply{Decision: filter.Disconnect, Text: banText(s.ban, s.ID)}
			t.answered(s, ev, r)
			return r
		}
	}
	act := t.stick(s, &v)
	if phase == rules.Commit && act.Decision == rules.Junk {
		act = rules.Outcome{} // it was said before; smtpd ends itself if it is told now
	}
	if v.Would.Rule != nil {
		t.verdict(s, ev.Time, phase, &v.Would, false, &v)
	}
	r := filter.Reply{Hold: v.Act.Delay}
	if act.Rule != nil {
		t.verdict(s, ev.Time, phase, &act, true, &v)
		r.Decision, r.Text = decisions[act.Decision], s.reply(act.Text)
		s.junked = s.junked || act.Decision == rules.Junk
		s.refused = s.refused || act.Decision >= rules.Reject
		s.turnedAway = s.turnedAway || s.refused
	}
	t.sentence(s, ev.Time, &v)
	t.answered(s, ev, r)
	s.pace.held = s.pace.held || phase == rules.Connect && r.Hold > 0
	t.trace(s, policy, f, r)
	return r
}

// replied is the text of a rule, and the reply that was made of it.
type replied struct{ to, with string }

// reply is the text of an answer. Who is refused again is told the same again.
func (s *Session) reply(text string) string {
	if s.replied == nil || text != s.replied.to {
		s.replied = &replied{text, rules.Reply(text, s.ID)}
	}
	return s.replied.with
}

// answered takes note of our own answer where smtpd does not tell it.
func (t *Table) answered(s *Session, ev *filter.Event, r filter.Reply) {
	if !t.lean {
		return
	}
	s.cmd.filtered = false
	if d := r.Decision.In(ev.ID); d != filter.Proceed {
		t.decided(s, ev.Time, []byte(phaseWord(ev.ID)), []byte(d.String()), []byte(r.Text))
	}
}

// phaseWord is what filter-response calls a phase (smtpd-filters(7)).
func phaseWord(id filter.ID) string {
	if id == filter.PhaseConnect {
		return "connected"
	}
	return id.String()
}

// under makes a policy the one of s: what another one decided, or noted, ends
// with it.
func (s *Session) under(policy *rules.Policy) {
	if s.policy != policy {
		s.policy, s.memo, s.sticky, s.told, s.tags, s.banned, s.wouldBan = policy, rules.Memo{}, rules.Outcome{}, nil, 0, nil, nil
	}
}

// trace tells who wants to know how the policy came to its answer.
func (t *Table) trace(s *Session, policy *rules.Policy, f *rules.Facts, r filter.Reply) {
	if t.options.Trace == nil {
		return
	}
	t.asked = s
	t.options.Trace(policy, f, r)
	t.asked = nil
}

// eval asks the policy about s.
func (t *Table) eval(s *Session, policy *rules.Policy, f *rules.Facts) rules.Verdict {
	t.asked = s
	v := policy.Eval(f)
	t.asked = nil
	s.Score += v.Score
	return v
}

// Count implements rules.Counter.
func (t *Table) Count(f *rules.Facts, e rules.Evidence, window time.Duration, by rules.Key) (int, bool) {
	if t.asked == nil {
		return 0, false
	}
	return t.memory.Count(t.whois(t.asked), rules.Window{Evidence: e, Window: window, By: by}, f.Now.UnixMicro())
}

// passive is the evidence of what a host is, and not of what it did in this
// session.
const passive = rules.RDNSMissing | rules.FCrDNSFail | rules.Cloud | rules.Flood

// atEnd asks the policy about a session that is over: nobody waits for an
// answer, but the host can be banned.
func (t *Table) atEnd(s *Session, at int64) {
	// A ban must end: who comes to be turned away, or did nothing new, is not
	// judged again for what was counted before.
	if !t.needs.end || s.barred || (s.Evidence|s.Weak)&^passive == 0 {
		return
	}
	policy := t.settings.Policy
	s.under(policy)
	f := t.fill(s, rules.End, at)
	v := t.eval(s, policy, f)
	t.tag(s, at, rules.End, policy, v.Tags)
	t.sentence(s, at, &v)
	t.trace(s, policy, f, filter.Reply{})
}

// stick returns what is to be done: what the policy decided now, or what it
// has decided for the rest of the session, whichever is more severe. Who
// passes, or has logged in, is free of the past.
func (t *Table) stick(s *Session, v *rules.Verdict) rules.Outcome {
	act := v.Act
	switch {
	case v.Pass != nil || t.exempt(s):
		return act
	case act.Rule == nil || act.Decision < s.sticky.Decision:
		if s.sticky.Rule != nil {
			return s.sticky
		}
	case act.Sticky && act.Decision > rules.Proceed:
		s.sticky = act
	}
	return act
}

// fill puts what is known of s into the facts that all evaluations share.
func (t *Table) fill(s *Session, phase rules.Phase, at int64) *rules.Facts {
	f := &t.facts
	*f = rules.Facts{}
	f.Phase, f.Now, f.Session = phase, time.UnixMicro(at), s.ID
	f.Local, f.Auth = s.Local, s.Authed
	f.Src, f.Dst, f.RDNS, f.FCrDNS, f.RDNSCut = s.Src.Addr(), s.Dst, s.RDNS, rules.FCrDNS(s.FCrDNS), len(s.RDNS) >= cutRDNS
	f.Helo, f.MailFrom, f.TLS = s.Helo, s.tx.sender, s.TLS
	f.ASN, f.ASNKnown, f.Country = s.asn, s.placed, s.country
	f.Evidence, f.Weak, f.Score = s.Evidence, s.Weak, s.Score
	f.Window, f.Recorded, f.Memo = t, t.options.Recorded, &s.memo
	if t.needs.seenGood && s.Src.IsValid() {
		f.SeenGood = rules.No
		if t.seenGood(s, at) {
			f.SeenGood = rules.Yes
		}
	}
	if s.Authed {
		f.User = s.login
	}
	for e := s.Evidence | s.Weak; e != 0; e &= e - 1 {
		f.Counts[e.Index()] = 1
	}
	count := func(e rules.Evidence, n uint32) {
		if n > 0 {
			f.Counts[e.Index()] = max(f.Counts[e.Index()], n)
		}
	}
	count(rules.UnknownRecipient, s.unknown)
	count(rules.RelayProbe, s.probes)
	count(rules.UnknownCommand, s.Counts.Unknown)
	count(rules.AuthFailure, s.Counts.AuthFail)
	count(rules.AuthUnsupported, s.unsupported)
	count(rules.Flood, t.together(s))
	return f
}

// eventOf begins an event about s. It is valid until the next one.
func (t *Table) eventOf(s *Session, word string, at int64) *events.Event {
	t.event = events.Event{Event: word, Time: time.UnixMicro(at), Session: s.ID, Src: s.Src.Addr(), RDNS: s.RDNS, FCrDNS: s.FCrDNS.String(), Helo: s.Helo}
	return &t.event
}

func (t *Table) sendVerdict(s *Session, at int64, phase rules.Phase, rule string, d rules.Decision, done bool, until time.Time) {
	if t.options.Event == nil {
		return
	}
	e := t.eventOf(s, "verdict", at)
	e.Rule, e.Phase, e.Until = rule, phase.String(), until
	if done {
		e.Decision = d.String()
	} else {
		e.Would = d.String()
	}
	t.options.Event(e)
}

// tag records and logs the tags of rules, each once in a session.
func (t *Table) tag(s *Session, at int64, phase rules.Phase, p *rules.Policy, tags rules.TagSet) {
	tags &^= s.tags
	if tags == 0 {
		return
	}
	s.tags |= tags
	for _, name := range p.TagNames(tags) {
		t.step(s, at, &store.Step{Kind: store.KindTag, Text: []byte(name), Arg: []byte(phase.String())})
		if t.options.Event != nil {
			e := t.eventOf(s, "tag", at)
			e.Phase, e.Tag = phase.String(), name
			t.options.Event(e)
		}
		if t.tell(s, logTag, name, at) {
			t.logTag(s, phase, name)
		}
	}
}

// verdict records a decision and logs it, once for each rule in a row.
func (t *Table) verdict(s *Session, at int64, phase rules.Phase, o *rules.Outcome, done bool, v *rules.Verdict) {
	step := store.Step{Kind: store.KindVerdict, Text: []byte(o.Rule.Name), Arg: []byte(phase.String()), Reply: []byte(o.Decision.String()), Rule: t.refs[o.Rule]}
	if done {
		step.Result = store.ResultOK
	}
	t.step(s, at, &step)
	if s.told == o.Rule {
		return
	}
	s.told = o.Rule
	t.sendVerdict(s, at, phase, o.Rule.Name, o.Decision, done, time.Time{})
	if t.tell(s, logVerdict, o.Rule.Name, at) {
		t.logVerdict(s, phase, o, done, v)
	}
}
