package rules

import (
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
)

// An Outcome is the decision of rules at one phase, with their other effects.
type Outcome struct {
	Rule     *Rule // the rule that decided; nil if none did
	Decision smtp.Decision
	Text     string // reply for Reject and Disconnect, without the reference: see Reply
	// Sticky reports whether the decision is for the rest of the session. The caller
	// repeats it at every later phase that permits it. Exceptions are a matching pass
	// statement, a more severe decision of Eval, and a login. Decisions about one
	// sender or recipient are not sticky.
	Sticky bool
	Delay  time.Duration // before the answer
	// Ban contains the durations of bans for offences of the source in a row.
	Ban     []time.Duration
	BanRule *Rule // the rule with the ban
}

// Empty reports whether o has no effect.
func (o *Outcome) Empty() bool { return o.Rule == nil && o.Delay == 0 && o.BanRule == nil }

// A Verdict is the result of a policy at one phase.
type Verdict struct {
	Phase smtp.Phase
	// Pass is the pass statement that matched, or nil. If one matched, no rule
	// applies.
	Pass *Pass
	// Act is the outcome to enforce. It is empty in observe mode.
	Act Outcome
	// Would is the observed outcome: of all rules in mode observe, and of rules marked
	// observe in mode enforce.
	Would Outcome
	// Withheld is the first decision that the standing of the client withheld. It is
	// empty for most clients.
	Withheld Outcome
	// Unsure reports whether a pass statement may match but a table is not loaded.
	// Decisions are then temporary, and no client is banned.
	Unsure bool
	// Score is the sum of the rules' scores at this phase. The caller adds it to
	// Facts.Score. Total also includes Facts.Score and the weight of the evidence.
	Score, Total int
	Tags         TagSet
}

// TagSet is a set of tags; see Policy.TagNames.
type TagSet uint64

// maxTags is the largest number of different tags in a policy.
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

// Eval evaluates the policy on f at f.Phase. If a pass statement matches, no rule
// applies. Otherwise Eval tries the rules in order until one decides. The effects of
// earlier matching rules also count. Rules marked observe make no decision and hide no
// other rule, and their scores and tags do not count, so that mode observe reports
// exactly the decisions of mode enforce. While a pass statement may match and one of
// its tables is not loaded, decisions are temporary. The type shield describes the
// exemptions of trusted clients.
func (p *Policy) Eval(f *Facts) (v Verdict) {
	v.Phase = f.Phase
	p.prepare(f)
	v.Total = f.total
	if f.Phase >= smtp.NumPhases {
		return v
	}
	for i := range p.passes {
		s := &p.passes[i]
		if !on(s.listeners, f) {
			continue
		}
		switch passes, missing := passing(s.conds, f); {
		case passes:
			v.Pass = s.tree
			return v
		case missing:
			v.Unsure = true
		}
	}
	exempt := f.Auth || f.Local
	var marked Outcome // of the rules marked with observe
	for _, i := range p.phases[f.Phase] {
		r := &p.rules[i]
		out := &v.Act
		if r.tree.Observe {
			out = &marked
		}
		if out.Rule != nil || exempt && !r.auth || !on(r.listeners, f) || !all(r.conds, f) {
			continue
		}
		if f.Standing < StandingTrusted || r.shield != shieldFull {
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

// or returns o, with the decision of other if o has none, and the effects of
// both.
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

// longer reports whether the first ban of a is longer than the first ban of b.
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

// Temper makes o a temporary decision without a ban. It marks no message as junk.
func (o *Outcome) Temper() {
	o.Ban, o.BanRule = nil, nil
	switch {
	case o.Decision == smtp.Junk:
		o.Rule, o.Decision = nil, smtp.Proceed
	case o.Decision >= smtp.Reject:
		o.Text = Temporary(o.Text, o.Decision)
	}
}

// A shield is the exemption of a trusted client from a rule. Lists, names, places,
// scores and older counts may match legitimate senders, so trusted clients are exempt
// from rules about these, unless the rule is marked `even trusted`.
type shield uint8

const (
	shieldNone      shield = iota // about the envelope: no exemption
	shieldTemporary               // about conduct: temporary decision, no ban
	shieldFull                    // about the client: no decision
)

// Shielded reports whether trusted clients are wholly or partly exempt from r.
func (r *Rule) Shielded() bool { return r.shield() != shieldNone }

// Counts reports whether a condition of r counts missing recipients.
func (r *Rule) Counts() bool {
	return slices.ContainsFunc(r.Conds, func(c *Cond) bool {
		return c.Word == "count" && TokenByName(c.Values[0].Text).Evidence&(UnknownRecipient|Backscatter) != 0
	})
}

// Has reports whether a condition of r checks or counts any of e.
func (r *Rule) Has(e Evidence) bool {
	return slices.ContainsFunc(r.Conds, func(c *Cond) bool {
		return (c.Word == "count" || c.Word == "evidence") && !c.Not &&
			slices.ContainsFunc(c.Values, func(v Value) bool { return TokenByName(v.Text).Evidence&e != 0 })
	})
}

// countsRecipients reports whether the answer of c depends on the recipient, because no
// count applies to a recipient known to exist.
func (c *Cond) countsRecipients() bool {
	return c.Word == "count" && TokenByName(c.Values[0].Text).Evidence&ofRecipients != 0
}

// shield returns the shield of a trusted client from r.
func (r *Rule) shield() shield {
	if r.EvenTrusted || r.Has(AuthFailure|AuthSpray|AuthUnsupported) {
		return shieldNone // accepted mail does not excuse brute force
	}
	s := shieldNone
	for _, c := range r.Conds {
		switch c.Word {
		case "evidence", "count":
			if !c.Not && slices.ContainsFunc(c.Values, func(v Value) bool { return TokenByName(v.Text).Evidence&conduct != 0 }) {
				return shieldTemporary
			}
			s = shieldFull
		case "src", "rdns", "fcrdns", "asn", "country", "helo", "score", "known", "trusted":
			s = shieldFull
		}
	}
	return s
}

// prepare computes the common facts of all rules: the listeners of the session
// and its score.
func (p *Policy) prepare(f *Facts) {
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

// passing reports whether a pass statement matches. If missing is set, it may
// match, but a table is not loaded.
func passing(conds []cond, f *Facts) (yes, missing bool) {
	for i := range conds {
		switch c := &conds[i]; c.eval(f) {
		case Yes:
		case Unknown:
			if f.Phase < c.first || f.Phase > c.last || !slices.Contains(c.tables, nil) {
				return false, false
			}
			missing = true
		default:
			return false, false
		}
	}
	return !missing, missing
}

// A Trace is the evaluation of one pass statement or rule.
type Trace struct {
	Statement Statement // *Pass or *Rule
	Skipped   string    // the reason if it was not tried
	Conds     []CondTrace
	Matched   bool // all answers are yes
	Withheld  bool // it matched, and the standing of the client withheld its decision
	Decided   bool // the statement made the decision, or does without observe
}

// A CondTrace is the evaluation of one condition.
type CondTrace struct {
	Cond *Cond
	Fact string // the fact, quoted
	// Answer is the answer of the condition, including its negation.
	Answer Truth
	// Hashed reports whether the answer is unknown because the record contains a
	// hash instead of the name.
	Hashed bool
}

// Explain is Eval with a trace of every pass statement and rule of the phase.
func (p *Policy) Explain(f *Facts) (Verdict, []Trace) { return p.explain(f, true) }

// Answers is Explain without the facts.
func (p *Policy) Answers(f *Facts) []Trace {
	_, traces := p.explain(f, false)
	return traces
}

func (p *Policy) explain(f *Facts, facts bool) (Verdict, []Trace) {
	v := p.Eval(f)
	if f.Phase >= smtp.NumPhases {
		return v, nil
	}
	p.prepare(f)
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

// Reason returns each condition of r with its fact. f must be the Facts of the
// last Eval. Text from the network is quoted and cut.
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
