package session

import (
	"time"

	"scanwatch/filter"
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
	for id := filter.PhaseConnect; id <= filter.PhaseCommit; id++ {
		if phase, ok := phases[id]; ok && asked.Has(phase) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Decide implements filter.Handler.
func (t *Table) Decide(ev *filter.Event) filter.Reply {
	t.begin(ev)
	phase, ok := phases[ev.ID]
	s := t.live[ev.Session]
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
	f := t.fill(s, phase, ev.Time)
	if phase == rules.RcptTo {
		f.RcptTo = arg
	}
	v := policy.Eval(f)
	s.tx.passed = s.tx.passed || v.Pass != nil && phase == rules.RcptTo
	s.Score += v.Score
	t.tag(s, ev.Time, phase, policy, v.Tags)
	act := t.stick(s, &v)
	if v.Would.Rule != nil {
		t.verdict(s, ev.Time, phase, &v.Would, false, &v)
	}
	r := filter.Reply{Hold: v.Act.Delay}
	if act.Rule != nil {
		t.verdict(s, ev.Time, phase, &act, true, &v)
		r.Decision, r.Text = decisions[act.Decision], rules.Reply(act.Text, s.ID)
	}
	if t.options.Trace != nil {
		t.options.Trace(policy, f, r)
	}
	return r
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
	*f = rules.Facts{
		Phase: phase, Now: time.UnixMicro(at), Session: s.ID,
		Local: s.Local, Auth: s.Authed,
		Src: s.Src.Addr(), Dst: s.Dst, RDNS: s.RDNS, FCrDNS: rules.FCrDNS(s.FCrDNS), RDNSCut: len(s.RDNS) >= cutRDNS,
		Helo: s.Helo, MailFrom: s.tx.sender, TLS: s.TLS,
		ASN: s.origin.ASN, ASNKnown: s.placed, Country: s.origin.Country,
		Evidence: s.Evidence, Weak: s.Weak, Score: s.Score,
	}
	for e := s.Evidence | s.Weak; e != 0; e &= e - 1 {
		f.Counts[e.Index()] = 1
	}
	for _, c := range [...]struct {
		e rules.Evidence
		n uint32
	}{
		{rules.UnknownRecipient, s.unknown},
		{rules.RelayProbe, s.probes},
		{rules.UnknownCommand, s.Counts.Unknown},
		{rules.AuthFailure, s.Counts.AuthFail},
		{rules.AuthUnsupported, s.Counts.AuthRefused},
	} {
		f.Counts[c.e.Index()] = max(f.Counts[c.e.Index()], c.n)
	}
	return f
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
		if t.limit.allow(at) {
			t.logUnlogged()
			t.logTag(s, phase, name)
		}
	}
}

// verdict records a decision and logs it, once for each rule in a row.
func (t *Table) verdict(s *Session, at int64, phase rules.Phase, o *rules.Outcome, done bool, v *rules.Verdict) {
	step := store.Step{Kind: store.KindVerdict, Text: []byte(o.Rule.Name), Arg: []byte(phase.String()), Reply: []byte(o.Decision.String())}
	if done {
		step.Result = store.ResultOK
	}
	t.step(s, at, &step)
	if s.told == o.Rule {
		return
	}
	s.told = o.Rule
	if t.limit.allow(at) {
		t.logUnlogged()
		t.logVerdict(s, phase, o, done, v)
	}
}
