// Package decide applies the policy to a session. The package answers requests, imposes bans, and
// reports each decision as an Outcome. The package does not depend on front ends, disks, logs or
// clocks.
package decide

import (
	"net/netip"
	"time"

	"scanwatch/filter/detect"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// State holds the decisions made about a session so far.
type State struct {
	Score    int            // sum of the points that rules have added
	Bans     []memory.Ban   // active bans of the client; see memory.Bans.Banned; almost always nil
	Barred   bool           // the client was disconnected because of a ban
	Refused  bool           // the client or one of its commands was rejected
	Junked   bool           // a message was marked as junk
	Banned   *rules.Rule    // rule of the latest ban in this session
	Offence  bool           // a rule matched that bans the client or counts an offence
	Held     bool           // a rule rejected the latest requested recipient because too many recipients do not exist
	Exempted bool           // a pass statement has matched a request
	standing rules.Standing // client's standing at the first request
	passing  passState      // state of pass statements
	last     decisions      // decisions under the current policy
	reply    *composition   // almost always nil
}

type passState struct {
	rcpt  bool // a pass statement matches the recipient of the current RCPT
	tx    bool // a pass statement matches an accepted recipient of the transaction
	other bool // an accepted recipient of the transaction matches no pass statement
}

// decisions holds the decisions that were made under one policy. When the policy is replaced, its
// decisions are discarded.
type decisions struct {
	policy   *rules.Policy
	sticky   rules.Outcome // decision that applies for the rest of the session
	since    smtp.Phase    // first phase in which the sticky decision applies
	told     *rules.Rule   // rule of the last verdict
	wouldBan *rules.Rule   // rule of the latest observed ban
	withheld *rules.Rule   // rule of the latest decision that was withheld because of the client's standing
	tags     rules.TagSet
	// late and wouldLate are rules about the number of recipients, for enforced and observed bans.
	// Bans by late and wouldLate are delayed until the session ends.
	late, wouldLate *rules.Rule
	shielded        bool // the client's standing prevented a ban
}

// A composition caches the reply composed from a rule's text.
type composition struct{ text, reply string }

// A Decider evaluates a policy. A Decider must not be used concurrently.
type Decider struct {
	Policy   *rules.Policy // nil: only observe, without rules
	Refs     map[*rules.Rule]uint32
	Memory   *memory.Memory
	Recorded bool // the events come from stored records, in which names may be hashed
	// Own, if set, reports whether a prefix includes one of this host's addresses.
	Own func(netip.Prefix) bool
	// OwnDomain, if set, reports whether a proven name lies in a domain of this site.
	OwnDomain func(name []byte) bool
	// Local, if set, reports whether a domain is local. If sure is false, a domain that is not
	// known to be local may be a new local domain.
	Local func(domain []byte) (local, sure bool)
	// Trace, if set, is called for each evaluation of the policy. The facts are valid
	// only during the call.
	Trace func(*rules.Policy, *rules.Facts, smtp.Answer)

	needs rules.Needs
	end   bool // Policy has rules for the end phase
	facts rules.Facts
	asked *memory.Client // client whose counts Count returns; nil if no evaluation is running
	out   []smtp.Outcome
}

// Use sets the policy. refs maps each rule to a number that refers to the rule's text in records.
func (d *Decider) Use(policy *rules.Policy, refs map[*rules.Rule]uint32) {
	d.Policy, d.Refs, d.needs, d.end = policy, refs, rules.Needs{}, false
	if policy != nil {
		d.needs, d.end = policy.Needs(), policy.Phases().Has(smtp.PhaseEnd)
		d.Memory.Counters.Watch(d.needs.Windows)
	}
}

// A Subject is the session that a decision is about.
type Subject struct {
	*track.Session
	Case   *detect.State
	State  *State
	Client *memory.Client
	Live   uint32 // number of open sessions from the same source
}

// Remember looks up the bans of a client that has just connected and stores them in the state.
func (d *Decider) Remember(s Subject) {
	if !s.Exempt() {
		s.State.Bans = d.Memory.Bans.Banned(s.Client, s.Start)
	}
}

// Track updates the state of s after an event other than a request.
func (d *Decider) Track(s Subject, ev *smtp.Event) {
	p := &s.State.passing
	switch ev.Kind {
	case smtp.EventLine:
		p.rcpt = false
	case smtp.EventRcpt:
		if ev.Result == smtp.ResultOK {
			p.tx, p.other = p.tx || p.rcpt, p.other || !p.rcpt
		}
	case smtp.EventMail:
		if ev.Result == smtp.ResultOK {
			p.tx, p.other = false, false
		}
	case smtp.EventCommit, smtp.EventRollback:
		p.tx, p.other = false, false
	}
}

// Passed reports whether a pass statement matches the current RCPT's recipient.
func (st *State) Passed() bool { return st.passing.rcpt }

// ExemptReason returns why the client is omitted from exports. The reason is "pass" if a pass
// statement exempted the client when it connected, or has matched one of its requests. Without a
// pass statement, the reason is the result of memory.Peers.Excuse, which may be "".
func (d *Decider) ExemptReason(s Subject, at int64) string {
	switch {
	case !s.Src.IsValid():
		return ""
	case s.State.Exempted, d.Policy != nil && d.Policy.Passes(d.fill(s, smtp.PhaseConnect, at)):
		return "pass"
	}
	return d.Memory.Peers.Excuse(s.Client, at)
}

// Ask answers a request. The outcomes are valid until the next call.
func (d *Decider) Ask(s Subject, ev *smtp.Event) (smtp.Answer, []smtp.Outcome) {
	d.out = d.out[:0]
	phase := ev.Phase
	st := s.State
	st.Held = false
	if d.exempts(st, phase) {
		return smtp.Answer{}, nil
	}
	st.under(d.Policy)
	f := d.request(s, ev)
	v := d.eval(s, f)
	st.passing.rcpt = v.Pass != nil && phase == smtp.PhaseRcptTo
	st.Exempted = st.Exempted || v.Pass != nil
	d.tag(st, ev.Time, phase, v.Tags)
	if len(st.Bans) > 0 && phase == smtp.PhaseConnect && !s.Exempt() {
		if b := d.returned(s, v.Pass != nil, ev.Time); b != nil {
			st.Barred, st.Refused, s.TurnedAway = true, true, true
			reply := banReply(b, s.ID)
			if v.Unsure {
				reply = rules.Temporary(reply, smtp.Disconnect)
			}
			return smtp.Answer{Decision: smtp.Disconnect, Text: reply}, d.out
		}
	}
	act := st.stick(s.Session, &v)
	d.withheld(s, ev.Time, phase, &v)
	if phase == smtp.PhaseCommit && act.Decision == smtp.Junk {
		act = rules.Outcome{} // the message is already marked as junk, and smtpd exits if a filter answers junk at commit
	}
	if v.Would.Rule != nil && !moot(ev, &v.Would) {
		d.verdict(s, ev.Time, phase, &v.Would, false, &v)
	}
	a := smtp.Answer{Hold: v.Act.Delay}
	st.Held = act.Rule != nil && phase == smtp.PhaseRcptTo && act.Decision >= smtp.Reject && act.Rule.Counts()
	if act.Rule != nil && !moot(ev, &act) {
		d.verdict(s, ev.Time, phase, &act, true, &v)
		a.Decision, a.Text = act.Decision, st.compose(act.Text, s.ID)
		st.Junked = st.Junked || act.Decision == smtp.Junk
		st.Refused = st.Refused || act.Decision >= smtp.Reject
		s.TurnedAway = s.TurnedAway || st.Refused
	}
	d.bans(s, ev.Time, &v)
	d.trace(s, f, a)
	return a, d.out
}

// moot reports whether a rejection has no effect, because the server itself has rejected the
// recipient. If a rule disconnects the client, the client is disconnected at its next command.
func moot(ev *smtp.Event, o *rules.Outcome) bool {
	return ev.Refused && o.Decision == smtp.Reject
}

// exempts reports whether no rule applies in a phase. No rule applies if there is no policy, or if
// pass statements match all recipients.
func (d *Decider) exempts(st *State, phase smtp.Phase) bool {
	return d.Policy == nil || (phase == smtp.PhaseData || phase == smtp.PhaseCommit) && st.passing.tx && !st.passing.other
}

// request returns the facts that rules use to evaluate a request.
func (d *Decider) request(s Subject, ev *smtp.Event) *rules.Facts {
	f := d.fill(s, ev.Phase, ev.Time)
	if ev.Phase == smtp.PhaseRcptTo {
		f.RcptTo, f.RcptLocal = ev.Addr, d.local(ev.Addr)
		f.RcptKnown = ev.Exists || d.Memory.Recipients.Known(ev.Addr, ev.Time)
	}
	return f
}

// local reports whether a recipient is in a local domain.
func (d *Decider) local(rcpt []byte) rules.Truth {
	if d.Local == nil {
		return rules.Unknown
	}
	domain, routed := detect.Domain(rcpt)
	switch local, sure := d.Local(domain); {
	case routed:
		return rules.No
	case local || len(domain) == 0:
		return rules.Yes
	case sure || d.Memory.Domains.Known():
		return rules.No
	}
	return rules.Unknown
}

// Awaits returns the DNS lists in missing whose answers could change the answer to a request; see
// rules.Awaits.
func (d *Decider) Awaits(s Subject, ev *smtp.Event, missing rules.ListSet) rules.ListSet {
	if d.exempts(s.State, ev.Phase) {
		return 0
	}
	s.State.under(d.Policy)
	last := &s.State.last
	f := d.request(s, ev)
	d.asked = s.Client
	defer func() { d.asked = nil }()
	return rules.Awaits(d.Policy, f, missing, last.sticky.Rule != nil && ev.Phase >= last.since)
}

// End evaluates the rules for the end of a session. The client can no longer be answered, but it
// can be banned. A count from earlier sessions is used only if this session adds to it; see Count.
// If every session were counted, sessions of other users of the address would renew a ban.
func (d *Decider) End(s Subject, at int64) []smtp.Outcome {
	d.out = d.out[:0]
	if s.State.Barred {
		return nil
	}
	s.State.under(d.Policy)
	if d.end {
		f := d.fill(s, smtp.PhaseEnd, at)
		v := d.eval(s, f)
		d.tag(s.State, at, smtp.PhaseEnd, v.Tags)
		d.withheld(s, at, smtp.PhaseEnd, &v)
		d.bans(s, at, &v)
		d.trace(s, f, smtp.Answer{})
	}
	d.late(s, at, false)
	return d.out
}

// Parted imposes the bans by rules about recipients when the client has disconnected, although the
// end of the session is reported later. Otherwise, the client could connect again before its ban.
func Parted(d *Decider, s Subject, at int64) []smtp.Outcome {
	d.out = d.out[:0]
	s.State.under(d.Policy)
	d.late(s, at, true)
	return d.out
}

// under sets the policy. If the policy has changed, earlier decisions are discarded.
func (st *State) under(policy *rules.Policy) {
	if st.last.policy != policy {
		st.last, st.Banned = decisions{policy: policy}, nil
	}
}

// stick returns the more severe of the current decision and the sticky one. A sticky decision
// applies only in the phase in which it was made, and in later phases. After a rejected RCPT, a
// client can therefore start another transaction. A sticky decision is ignored if a pass statement
// matches or the client has logged in.
func (st *State) stick(s *track.Session, v *rules.Verdict) rules.Outcome {
	act := v.Act
	switch sticky := &st.last.sticky; {
	case v.Pass != nil || s.Exempt() || v.Phase < st.last.since:
	case act.Rule == nil || act.Decision < sticky.Decision:
		if sticky.Rule != nil {
			return *sticky
		}
	case act.Sticky && act.Decision > smtp.Proceed:
		*sticky, st.last.since = act, v.Phase
	}
	return act
}

// compose returns the reply that contains a rule's text. compose caches the reply, because a client
// that is rejected repeatedly gets the same reply each time.
func (st *State) compose(text string, id uint64) string {
	if st.reply == nil || text != st.reply.text {
		st.reply = &composition{text, rules.Reply(text, id)}
	}
	return st.reply.reply
}

// Standing returns the client's standing. The standing does not change during a session.
func (d *Decider) Standing(s Subject, at int64) rules.Standing {
	st := s.State
	if st.standing == rules.StandingUnknown && s.Src.IsValid() {
		st.standing = d.Memory.Peers.Standing(s.Client, at).Level
	}
	return st.standing
}

func (d *Decider) eval(s Subject, f *rules.Facts) rules.Verdict {
	d.asked = s.Client
	v := d.Policy.Eval(f)
	d.asked = nil
	if r := v.Act.Rule; f.Standing == rules.StandingUnknown && s.Src.IsValid() && (r == nil || r.Shielded()) {
		v.Act.Temper() // until the state is loaded, it is unknown whether the client is exempt
	}
	s.State.Score += v.Score
	return v
}

func (d *Decider) trace(s Subject, f *rules.Facts, a smtp.Answer) {
	if d.Trace != nil {
		d.asked = s.Client
		d.Trace(d.Policy, f, a)
		d.asked = nil
	}
}

// Count implements rules.Counter. At the end of a session, Count returns 0 if the session does not
// add to the count.
func (d *Decider) Count(f *rules.Facts, e rules.Evidence, window time.Duration, by rules.Key) (int, bool) {
	if d.asked == nil {
		return 0, false
	}
	if f.Phase == smtp.PhaseEnd && f.Counts[e.Index()] == 0 {
		return 0, true // this session does not add to the count
	}
	return d.Memory.Counters.Count(d.asked, rules.Window{Evidence: e, Window: window, By: by}, f.Now.UnixMicro())
}

// repeatable is the evidence that a legitimate client's retry may cause again. Retries are not
// counted.
const repeatable = rules.UnknownRecipient | rules.Backscatter | rules.RelayProbe

// fill returns the facts for an evaluation. The facts are valid until the next call.
func (d *Decider) fill(s Subject, phase smtp.Phase, at int64) *rules.Facts {
	f := &d.facts
	*f = rules.Facts{}
	f.Phase, f.Now, f.Session = phase, time.UnixMicro(at), s.ID
	f.Local, f.Auth = s.Local, s.Authed
	f.Src, f.Dst, f.RDNS, f.FCrDNS, f.RDNSCut = s.Src.Addr(), s.Dst, s.RDNS, s.FCrDNS, s.RDNSCut
	f.Helo, f.MailFrom, f.TLS = s.Helo, s.Transaction.Sender, s.TLS
	f.Listings = s.Listings
	f.ASN, f.ASNKnown, f.Country = s.ASN, s.ASNKnown, s.Country
	f.Evidence, f.Weak = s.Case.Current()
	f.Score = s.State.Score
	f.Window, f.Recorded = d, d.Recorded
	f.Standing, f.Failed = d.Standing(s, at), s.Failed
	if s.Authed {
		f.User = s.Login
	}
	for e := (f.Evidence | f.Weak) &^ repeatable; e != 0; e &= e - 1 {
		f.Counts[e.Index()] = 1
	}
	for _, c := range [...]struct {
		evidence rules.Evidence
		n        uint32
	}{
		{rules.UnknownRecipient, s.Case.Unknown.N},
		{rules.Backscatter, s.Case.Bounced.N},
		{rules.RecipientFlood, s.Case.Held.N + s.Case.Denied},
		{rules.RelayProbe, s.Case.Relay},
		{rules.UnknownCommand, s.Counts.Unknown},
		{rules.AuthFailure, s.Counts.AuthFail},
		{rules.AuthUnsupported, s.Case.Unsupported},
		{rules.Flood, s.Live},
	} {
		if c.n > 0 {
			i := c.evidence.Index()
			f.Counts[i] = max(f.Counts[i], c.n)
		}
	}
	return f
}

// tag reports the tags that rules set. Each tag is reported once per session.
func (d *Decider) tag(st *State, at int64, phase smtp.Phase, tags rules.TagSet) {
	tags &^= st.last.tags
	if tags == 0 {
		return
	}
	st.last.tags |= tags
	for _, name := range d.Policy.TagNames(tags) {
		d.out = append(d.out, smtp.Outcome{Kind: smtp.OutcomeTag, Time: at, Tag: name, Phase: phase})
	}
}

// withheld reports a decision that was withheld because of the client's standing. If the same rule
// makes several decisions in a row, only the first is reported.
func (d *Decider) withheld(s Subject, at int64, phase smtp.Phase, v *rules.Verdict) {
	o := &v.Withheld
	rule := o.Rule
	if rule == nil {
		rule = o.BanRule
	}
	if rule == nil || s.State.last.withheld == rule {
		return
	}
	s.State.last.withheld = rule
	d.out = append(d.out, smtp.Outcome{
		Kind: smtp.OutcomeVerdict, Time: at, Rule: rule.Name, RuleRef: d.Refs[rule], Phase: phase, Decision: o.Decision,
		Score: v.Total, Exempt: rules.StandingTrusted.String(),
	})
}

// verdict reports a rule's decision.
func (d *Decider) verdict(s Subject, at int64, phase smtp.Phase, o *rules.Outcome, enforced bool, v *rules.Verdict) {
	d.out = append(d.out, smtp.Outcome{
		Kind: smtp.OutcomeVerdict, Time: at, Rule: o.Rule.Name, RuleRef: d.Refs[o.Rule], Phase: phase, Decision: o.Decision, Enforced: enforced,
		Score: v.Total, Repeat: s.State.last.told == o.Rule,
	})
	s.State.last.told = o.Rule
}
