package rules

import (
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
)

// An Outcome is the decision and the other effects of the rules in a phase.
type Outcome struct {
	Rule     *Rule // rule that made the decision, or nil
	Decision smtp.Decision
	Text     string // text of the reply of Reject and Disconnect, without the session id; see Reply
	// Sticky reports whether the decision applies to the rest of the session. The caller must
	// repeat a sticky decision in all later phases in which the decision is possible, unless a pass
	// statement matches or the client has logged in. If Eval returns a more severe decision, this
	// replaces the sticky one.
	Sticky bool
	Delay  time.Duration // time for which the answer is delayed
	// Ban lists the durations of bans for consecutive offences of the source.
	Ban     []time.Duration
	BanRule *Rule // rule that requires the ban
}

// Empty reports whether o contains no decision, no delay and no ban.
func (o *Outcome) Empty() bool { return o.Rule == nil && o.Delay == 0 && o.BanRule == nil }

// A Verdict is the result of evaluating a policy in a phase.
type Verdict struct {
	Phase smtp.Phase
	// Pass is the pass statement that matched, or nil. If Pass is set, no rule applies.
	Pass *Pass
	// Act is the outcome that must be enforced. Act is empty in observe mode.
	Act Outcome
	// Would is the outcome that is only observed. In observe mode, Would is the outcome of all
	// rules. In enforce mode, Would is the outcome of the rules marked observe.
	Would Outcome
	// Withheld is the outcome of the first rule that the client's standing has prevented from
	// making a decision.
	Withheld Outcome
	// Unsure reports whether a pass statement may match, because a table that it uses is not
	// loaded. While Unsure is set, decisions are temporary, and no client is banned.
	Unsure bool
	// Waiting reports whether a pass statement may match, because a DNS list has not answered.
	// While Waiting is set, decisions because of other DNS lists are temporary.
	Waiting bool
	// Score is the number of points that rules have added in this phase. The caller must add it to
	// Facts.Score. Total is the sum of Score, Facts.Score and the points for evidence.
	Score, Total int
	Tags         TagSet
}

// A TagSet is a set of tags; see Policy.TagNames.
type TagSet uint64

// maxTags is the maximum number of different tags in a policy.
const maxTags = 64

// TagNames returns the names of the tags in a set.
func (p *Policy) TagNames(s TagSet) (names []string) {
	for ; s != 0; s &= s - 1 {
		if i := bits.TrailingZeros64(uint64(s)); i < len(p.tags) {
			names = append(names, p.tags[i])
		}
	}
	return names
}

// Eval evaluates the policy on f in the phase f.Phase. If a pass statement matches, no rule
// applies. If no pass statement matches, the rules are evaluated in order until one of them makes a
// decision. The other effects of earlier rules that matched also apply.
//
// Rules marked observe make no decision, and their scores and tags are not used. Therefore, observe
// mode reports exactly the decisions that enforce mode makes.
//
// If a pass statement may match because a table is not loaded, all decisions are temporary. If a
// pass statement may match because a DNS list has not answered, decisions because of other DNS
// lists are temporary. For trusted clients, see shield.
func (p *Policy) Eval(f *Facts) (v Verdict) {
	v.Phase = f.Phase
	prepare(p, f)
	v.Total = f.total
	if f.Phase >= smtp.NumPhases {
		return v
	}
	if p.pass(f, &v); v.Pass != nil {
		return v
	}
	exempt := f.Auth || f.Local
	var marked Outcome // outcome of the rules marked observe
	for _, i := range p.phases[f.Phase] {
		r := &p.rules[i]
		out := &v.Act
		if r.tree.Observe {
			out = &marked
		}
		if out.Rule != nil || exempt && !r.auth || !on(r.listeners, f) || !all(r.conds, f) {
			continue
		}
		if v.Waiting && r.listed && f.Standing < StandingTrusted {
			var temporary Outcome
			temporary.apply(r, true)
			*out = out.or(temporary) // the ban of an earlier rule remains
		} else if f.Standing < StandingTrusted || r.shield != shieldFull {
			out.apply(r, f.Standing == StandingTrusted && r.shield == shieldTemporary)
		} else if v.Withheld.Rule == nil && v.Withheld.BanRule == nil {
			v.Withheld.apply(r, false)
		}
		if r.tree.Observe {
			continue
		}
		v.Score += r.tree.Score
		f.total += r.tree.Score
		v.Tags |= r.tags
		if v.Act.Rule != nil {
			break
		}
	}
	v.Total = f.total
	v.Would = marked
	if v.Unsure {
		v.Act.Temper()
	}
	if p.Mode == Observe {
		v.Would = v.Act.or(marked)
		v.Act = Outcome{}
	}
	return v
}

// or combines the effects of two outcomes. If o has no decision, the result has the decision of
// other.
func (o Outcome) or(other Outcome) Outcome {
	if o.Rule == nil {
		o.Rule, o.Decision, o.Text, o.Sticky = other.Rule, other.Decision, other.Text, other.Sticky
	}
	if longer(other.Ban, o.Ban) {
		o.Ban, o.BanRule = other.Ban, other.BanRule
	}
	o.Delay = max(o.Delay, other.Delay)
	return o
}

// longer reports whether the first duration in a is longer than the first duration in b.
func longer(a, b []time.Duration) bool {
	return len(a) > 0 && (len(b) == 0 || a[0] > b[0])
}

// apply adds the effects of r to o.
func (o *Outcome) apply(r *rule, temporary bool) {
	o.Delay = max(o.Delay, r.tree.Delay)
	if longer(r.ladder, o.Ban) {
		o.Ban, o.BanRule = r.ladder, r.tree
	}
	if r.tree.Decides {
		o.Rule, o.Decision, o.Text, o.Sticky = r.tree, r.tree.Decision, r.text, r.sticky
	}
	if temporary {
		o.Temper()
	}
}

// Temper reduces o: there is no ban, and a rejection becomes temporary. A junk decision
// becomes proceed.
func (o *Outcome) Temper() {
	o.Ban, o.BanRule = nil, nil
	switch {
	case o.Decision == smtp.Junk:
		o.Rule, o.Decision = nil, smtp.Proceed
	case o.Decision >= smtp.Reject:
		o.Text = Temporary(o.Text, o.Decision)
	}
}

// A shield describes to what extent a rule does not apply to trusted clients. Lists, names, AS
// numbers, countries and scores may match legitimate senders, so a trusted client should not be
// rejected because of them. A rule with `even trusted` applies fully.
type shield uint8

const (
	shieldNone      shield = iota // the rule applies fully, for example if it is about the envelope
	shieldTemporary               // the decision is temporary and there is no ban, if the rule is about behaviour
	shieldFull                    // there is no decision, if the rule is about the client's identity
)

// Shielded reports whether r does not apply, or does not apply fully, to trusted clients.
func (r *Rule) Shielded() bool { return r.shield() != shieldNone }

// Counts reports whether a condition of r counts missing recipients.
func (r *Rule) Counts() bool {
	return slices.ContainsFunc(r.Conds, func(c *Cond) bool {
		return c.Word == "count" && TokenByName(c.Values[0].Text).Evidence&(UnknownRecipient|Backscatter) != 0
	})
}

// OfRecipients reports whether a condition of r is about the number of recipients that a client has
// requested.
func (r *Rule) OfRecipients() bool {
	return r.Has(UnknownRecipient | Backscatter | RelayProbe | Harvest | RecipientFlood)
}

// Has reports whether a condition of r requires or counts any of the evidence in e.
func (r *Rule) Has(e Evidence) bool {
	for _, c := range r.Conds {
		if c.Not || c.Word != "count" && c.Word != "evidence" {
			continue
		}
		for i := range c.Values { // a call with a function literal would allocate memory for each recipient
			if TokenByName(c.Values[i].Text).Evidence&e != 0 {
				return true
			}
		}
	}
	return false
}

// countsRecipients reports whether c counts recipients. The result of a condition that counts
// recipients depends on the current recipient, because the condition never matches a recipient that
// is known to exist.
func (c *Cond) countsRecipients() bool {
	return c.Word == "count" && TokenByName(c.Values[0].Text).Evidence&ofRecipients != 0
}

// shield returns to what extent r does not apply to trusted clients.
func (r *Rule) shield() shield {
	if r.EvenTrusted || r.Has(AuthFailure|AuthSpray|AuthUnsupported) {
		return shieldNone // accepted mail does not exempt a client from rules about password guessing
	}
	s := shieldNone
	for _, c := range r.Conds {
		switch c.Word {
		case "evidence", "count":
			if !c.Not && slices.ContainsFunc(c.Values, func(v Value) bool { return TokenByName(v.Text).Evidence&conduct != 0 }) {
				return shieldTemporary
			}
			s = shieldFull
		case "src", "rdns", "fcrdns", "asn", "country", "helo", "score", "known", "trusted", "listed":
			s = shieldFull
		}
	}
	return s
}

// prepare computes the listeners and the score of the session. All rules use them.
func prepare(p *Policy, f *Facts) {
	f.listeners = 0
	for i, l := range p.listeners {
		if !f.Local && l.match(f.Dst) {
			f.listeners |= 1 << i
		}
	}
	f.total = f.Score
	for _, w := range p.weights {
		switch {
		case f.Evidence&w.evidence != 0:
			f.total += w.score
		case f.Weak&w.evidence != 0:
			f.total += w.score / 2
		}
	}
}

func (l *Listener) match(dst netip.AddrPort) bool {
	return slices.Contains(l.Ports, dst.Port()) &&
		(len(l.Addresses) == 0 || slices.Contains(l.Addresses, dst.Addr().Unmap()))
}

func on(set uint64, f *Facts) bool { return set == 0 || set&f.listeners != 0 }

func all(conds []cond, f *Facts) bool {
	for i := range conds {
		if conds[i].eval(f) != Yes {
			return false
		}
	}
	return true
}

// Passes reports whether a pass statement matches.
func (p *Policy) Passes(f *Facts) bool {
	var v Verdict
	prepare(p, f)
	p.pass(f, &v)
	return v.Pass != nil
}

// pass stores the pass statement that matches in v. If none matches, but one may match later, pass
// stores the reason in v.
func (p *Policy) pass(f *Facts, v *Verdict) {
	for i := range p.passes {
		s := &p.passes[i]
		if !on(s.listeners, f) {
			continue
		}
		switch passes, missing, waiting := passing(s.conds, f); {
		case passes:
			v.Pass = s.tree
			return
		case missing:
			v.Unsure = true
		case waiting && f.isListed():
			v.Waiting = true
		}
	}
}

// passing reports whether a pass statement matches. missing reports whether the result depends on a
// table that is not loaded. waiting reports whether the result depends on a DNS list that has not
// answered.
func passing(conds []cond, f *Facts) (yes, missing, waiting bool) {
	for i := range conds {
		switch c := &conds[i]; c.eval(f) {
		case Yes:
		case Unknown:
			switch {
			case f.Phase < c.first || f.Phase > c.last:
				return false, false, false
			case c.tree.Word == "listed":
				waiting = true
			case slices.Contains(c.tables, nil):
				missing = true
			default:
				return false, false, false
			}
		default:
			return false, false, false
		}
	}
	return !missing && !waiting, missing, waiting
}

// A Trace shows how a pass statement or rule was evaluated.
type Trace struct {
	Statement Statement // *Pass or *Rule
	Skipped   string    // why the statement was not evaluated; empty if it was evaluated
	Conds     []CondTrace
	Matched   bool // all conditions match
	Withheld  bool // the statement matched, but the client's standing prevented the decision
	Decided   bool // the statement made the decision, or would have made it in enforce mode
}

// A CondTrace shows how a condition was evaluated.
type CondTrace struct {
	Cond *Cond
	Fact string // the condition's fact in quoted form
	// Answer is the result of the condition after negation.
	Answer Truth
	// Hashed reports whether Answer is unknown because the record contains a hash.
	Hashed bool
}

// Explain is like Eval, but also returns a Trace for each pass statement and rule in the phase.
func (p *Policy) Explain(f *Facts) (Verdict, []Trace) { return p.explain(f, true) }

// Answers returns the same traces as Explain without the texts of the facts.
func (p *Policy) Answers(f *Facts) []Trace {
	_, traces := p.explain(f, false)
	return traces
}

func (p *Policy) explain(f *Facts, facts bool) (Verdict, []Trace) {
	v := p.Eval(f)
	if f.Phase >= smtp.NumPhases {
		return v, nil
	}
	prepare(p, f)
	traces := make([]Trace, 0, len(p.passes)+len(p.phases[f.Phase]))
	for i := range p.passes {
		s := &p.passes[i]
		t := trace(s.tree, s.conds, s.listeners, f, facts)
		t.Decided = s.tree == v.Pass
		traces = append(traces, t)
	}
	decided := v.Pass != nil
	for _, i := range p.phases[f.Phase] {
		r := &p.rules[i]
		t := trace(r.tree, r.conds, r.listeners, f, facts)
		switch {
		case v.Pass != nil:
			t.Skipped = "the session passes"
		case (f.Auth || f.Local) && !r.auth:
			t.Skipped = "local and authenticated sessions are exempt"
		case decided && !r.tree.Observe:
			t.Skipped = "an earlier rule decided"
		}
		if t.Skipped != "" {
			t.Matched = false
		}
		t.Withheld = t.Matched && f.Standing == StandingTrusted && r.shield == shieldFull
		t.Decided = r.tree == v.Act.Rule || r.tree == v.Would.Rule
		decided = decided || t.Decided && !r.tree.Observe
		if t.Matched && !r.tree.Observe {
			f.total += r.tree.Score
		}
		traces = append(traces, t)
	}
	return v, traces
}

func trace(s Statement, conds []cond, listeners uint64, f *Facts, facts bool) Trace {
	t := Trace{Statement: s, Matched: true, Conds: make([]CondTrace, 0, len(conds))}
	if !on(listeners, f) {
		t.Skipped, t.Matched = "another listener", false
	}
	for i := range conds {
		c := &conds[i]
		f.hashed = false
		answer := c.eval(f)
		t.Matched = t.Matched && answer == Yes
		fact := ""
		if facts {
			fact = conditionByWord(c.tree.Word).fact(c.tree, f)
		}
		t.Conds = append(t.Conds, CondTrace{c.tree, fact, answer, f.hashed})
	}
	return t
}

// Reason returns the conditions of r and their facts. f must be the argument of the latest call to
// Eval. Text from the network is quoted and truncated.
func (r *Rule) Reason(f *Facts) string {
	var b strings.Builder
	for i, c := range r.Conds {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.String() + " (" + conditionByWord(c.Word).fact(c, f) + ")")
	}
	if len(r.Conds) == 0 {
		return "any"
	}
	return b.String()
}
