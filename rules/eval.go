package rules

import (
	"math/bits"
	"slices"
	"strings"
	"time"
)

// An Outcome is what rules decided for one phase, and what else they ask for.
type Outcome struct {
	Rule     *Rule // the rule that decided; nil if none did
	Decision Decision
	Text     string // reply for Reject and Disconnect, without the reference: see Reply
	// Sticky says that the decision holds for the rest of the session: the
	// caller repeats it at every later phase that can be answered so, unless
	// a pass statement matches there, Eval decides something more severe, or
	// the client has logged in. What was decided about one sender or
	// recipient is not sticky.
	Sticky  bool
	Delay   time.Duration // hold the answer that long
	Ban     time.Duration // refuse the source from now on
	BanRule *Rule         // the rule that asks for the ban
}

// Empty tells whether nothing was decided or asked for.
func (o *Outcome) Empty() bool { return o.Rule == nil && o.Delay == 0 && o.BanRule == nil }

// A Verdict is the result of a policy at one phase.
type Verdict struct {
	Phase Phase
	// Pass is the statement that lets the session pass whatever the rules
	// say; nil if there is none.
	Pass *Pass
	// Act is what is to be done. It is empty in observe mode.
	Act Outcome
	// Would is what would have been done: by all rules in observe mode, by
	// those marked with observe in enforce mode.
	Would Outcome
	// Score is what rules added: to be added to Facts.Score. Total is the
	// score with it and with the weight of the evidence.
	Score, Total int
	Tags         TagSet
}

// TagSet is a set of tags; see Policy.TagNames.
type TagSet uint64

// maxTags is the number of different tags in a policy.
const maxTags = 64

// TagNames returns the tags in a set.
func (p *Policy) TagNames(s TagSet) (names []string) {
	for ; s != 0; s &= s - 1 {
		if i := bits.TrailingZeros64(uint64(s)); i < len(p.tags) {
			names = append(names, p.tags[i])
		}
	}
	return names
}

// Eval asks the policy about f at f.Phase. A pass statement that matches wins.
// Otherwise the rules are tried in order; the first that decides ends it, and
// the effects of those before it count. Rules marked with observe decide
// nothing and hide no other rule, and their scores and tags do not count: what
// observe mode says is what enforce mode does. While a pass statement that may
// match names a table that is not loaded, nothing is done, as in observe mode.
func (p *Policy) Eval(f *Facts) (v Verdict) {
	v.Phase = f.Phase
	p.prepare(f)
	v.Total = f.total
	if f.Phase >= numPhases {
		return v
	}
	unsure := false
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
			unsure = true
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
		out.apply(r)
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
	if p.Mode == Observe || unsure {
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
	if other.Ban > o.Ban {
		o.Ban, o.BanRule = other.Ban, other.BanRule
	}
	o.Delay = max(o.Delay, other.Delay)
	return o
}

// apply adds what r does to o.
func (o *Outcome) apply(r *rule) {
	o.Delay = max(o.Delay, r.tree.Delay)
	if r.tree.Ban > o.Ban {
		o.Ban, o.BanRule = r.tree.Ban, r.tree
	}
	if r.tree.Decides {
		o.Rule, o.Decision, o.Text, o.Sticky = r.tree, r.tree.Decision, r.text, r.sticky
	}
}

// prepare works out what all rules share: the listeners the session came in
// on, and its score.
func (p *Policy) prepare(f *Facts) {
	f.listeners = 0
	for i, l := range p.listeners {
		if !f.Local && l.match(f) {
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

func (l *Listener) match(f *Facts) bool {
	port := false
	for _, p := range l.Ports {
		port = port || p == f.Dst.Port()
	}
	if !port || len(l.Addresses) == 0 {
		return port
	}
	for _, a := range l.Addresses {
		if a == f.Dst.Addr().Unmap() {
			return true
		}
	}
	return false
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

// passing tells whether a pass statement matches; missing, that it may: it
// names a table that is not loaded. Who may be a friend is not refused.
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

// A Trace tells how one pass statement or rule came out.
type Trace struct {
	Statement Statement // *Pass or *Rule
	Skipped   string    // why it was not tried; empty if it was
	Conds     []CondTrace
	Matched   bool // all conditions said yes
	Decided   bool // it decided the phase, or would have
}

// A CondTrace tells how one condition came out.
type CondTrace struct {
	Cond *Cond
	Fact string // what it looked at, quoted
	// Answer is for the condition as it is written, with its `!`.
	Answer Truth
	// Hashed tells that it could not tell because a hash was recorded and not
	// the name itself.
	Hashed bool
}

// Explain evaluates like Eval and tells how every pass statement and every rule
// of the phase came out.
func (p *Policy) Explain(f *Facts) (Verdict, []Trace) {
	v := p.Eval(f)
	if f.Phase >= numPhases {
		return v, nil
	}
	p.prepare(f)
	var traces []Trace
	for i := range p.passes {
		s := &p.passes[i]
		t := trace(s.tree, s.conds, s.listeners, f)
		t.Decided = s.tree == v.Pass
		traces = append(traces, t)
	}
	decided := v.Pass != nil
	for _, i := range p.phases[f.Phase] {
		r := &p.rules[i]
		t := trace(r.tree, r.conds, r.listeners, f)
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
		t.Decided = r.tree == v.Act.Rule || r.tree == v.Would.Rule
		decided = decided || t.Decided && !r.tree.Observe
		if t.Matched && !r.tree.Observe {
			f.total += r.tree.Score
		}
		traces = append(traces, t)
	}
	return v, traces
}

func trace(s Statement, conds []cond, listeners uint64, f *Facts) Trace {
	t := Trace{Statement: s, Matched: true}
	if !on(listeners, f) {
		t.Skipped, t.Matched = "another listener", false
	}
	for i := range conds {
		c := &conds[i]
		f.hashed = false
		answer := c.eval(f)
		t.Matched = t.Matched && answer == Yes
		t.Conds = append(t.Conds, CondTrace{c.tree, conditionByWord(c.tree.Word).fact(c.tree, f), answer, f.hashed})
	}
	return t
}

// Reason says why r matches f, which Eval was last asked about: each condition
// with the fact it looked at. Text from the network is quoted and cut.
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
