package decide

import (
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// bans carries out the bans that rules ask for, and states those that they
// would carry out. Those of rules that count recipients wait for the end of the session.
// The conduct of a trusted client is an offence too, although the shield withholds the
// ban.
func (d *Decider) bans(s Subject, at int64, v *rules.Verdict) {
	last := &s.State.last
	if o := decided(v); o.Rule != nil && len(o.Rule.Ban) > 0 && o.BanRule == nil && !v.Unsure {
		last.shielded = true
		s.State.Offence = s.State.Offence || !o.Rule.Counts()
	}
	if r := v.Act.BanRule; r != nil && r.Counts() {
		last.late = r
	} else {
		d.ban(s, at, &v.Act, &s.State.Banned, true)
	}
	if r := v.Would.BanRule; r != nil && r.Counts() {
		last.wouldLate = r
	} else {
		d.ban(s, at, &v.Would, &last.wouldBan, false)
	}
}

// decided returns the decision of v, or the one that it would have made.
func decided(v *rules.Verdict) *rules.Outcome {
	if v.Act.Rule != nil {
		return &v.Act
	}
	return &v.Would
}

// late carries out the bans of rules that count recipients. A session with an accepted
// recipient is not banned: a mailing list had the recipients rejected that are not known
// to exist. It commits no offence either if more of its recipients exist than are missing.
func (d *Decider) late(s Subject, at int64) {
	last := &s.State.last
	if s.Case.Mixed() || s.Case.Unknown.N+s.Case.Bounced.N+s.Case.Held.N == 0 {
		return // or a mail server retries what was deferred: it asked for nobody new
	}
	s.State.Offence = s.State.Offence || last.shielded || last.late != nil || last.wouldLate != nil
	if s.Case.Accepted.N > 0 {
		return
	}
	if r := last.late; r != nil {
		d.ban(s, at, &rules.Outcome{BanRule: r, Ban: r.Ladder()}, &s.State.Banned, true)
	}
	if r := last.wouldLate; r != nil {
		d.ban(s, at, &rules.Outcome{BanRule: r, Ban: r.Ladder()}, &last.wouldBan, false)
	}
}

// ban bans the host of s, once for each rule in a row. The outcome also
// states which client was exempt: a rule that would ban such hosts deserves a look.
func (d *Decider) ban(s Subject, at int64, o *rules.Outcome, last **rules.Rule, enforced bool) {
	if o.BanRule == nil || *last == o.BanRule || !s.Src.IsValid() {
		return
	}
	*last, s.State.Offence = o.BanRule, true
	out := smtp.Outcome{
		Kind: smtp.OutcomeBan, Time: at, Rule: o.BanRule.Name, RuleRef: d.Refs[o.BanRule],
		Prefix: s.Client.Host().Prefix(), Exempt: d.exempt(s, o.BanRule, at),
	}
	if out.Exempt == "" {
		b := d.Memory.Bans.Add(s.Client, memory.BanRequest{Ladder: o.Ban, Rule: o.BanRule.Name, Session: s.ID, Observe: !enforced}, at)
		if o.BanRule.Has(rules.AuthFailure) {
			// A ban pays for half of the failures so far. Otherwise a telephone with an
			// old password would shut its office out at the first try after each ban.
			d.Memory.Counters.Halve(s.Client, rules.AuthFailure, at)
		}
		if !b.Until.After(b.Since) {
			return // an offence that counts, without a ban
		}
		out.Prefix, out.Until, out.Times = b.Prefix, b.Until, b.Times
	}
	out.Enforced = enforced
	d.out = append(d.out, out)
}

// exempt returns why rule must not ban s, or "". rule is nil for an earlier ban.
func (d *Decider) exempt(s Subject, rule *rules.Rule, at int64) string {
	switch {
	case s.Authed:
		return "login"
	case s.Internal:
		return "local"
	case s.Gateway:
		return "gateway"
	case s.Friend:
		return "friend"
	}
	excuse := d.Memory.Peers.Excuse(s.Client, at)
	switch {
	case rule == nil || excuse == "":
	case excuse == "login" && rule.Has(rules.AuthSpray) && d.Memory.Logins.Sprays(s.Client, at):
		return "" // many users failed to log in beside the one who did
	case excuse != "login" && excuse != "many" && (rule.EvenTrusted || rule.Has(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported)):
		return "" // mail is no reason to guess passwords
	}
	return excuse
}

// returned states that a banned client connected, and reports whether it must
// be disconnected: not in observe mode, not if the ban was only observed, and not
// if s has become exempt.
func (d *Decider) returned(s Subject, at int64) (enforced bool) {
	b := s.State.Ban
	enforced = d.Policy.Mode == rules.Enforce && !b.Observe && (b.Manual || d.exempt(s, d.rule(b.Rule), at) == "")
	d.out = append(d.out, smtp.Outcome{
		Kind: smtp.OutcomeReturn, Time: at, Rule: b.Rule, Phase: smtp.PhaseConnect, Decision: smtp.Disconnect,
		Enforced: enforced, Until: b.Until, BanSession: b.Session,
	})
	return enforced
}

// rule returns the rule of a ban, or nil if the policy has none of that name.
func (d *Decider) rule(name string) *rules.Rule {
	for _, r := range d.Policy.Rules() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// shortBan is the longest ban that is answered with a temporary code: a
// legitimate server retries until its end, for RFC 5321 section 4.5.4.1 asks for
// four to five days. The sender had better learn of a longer one immediately.
const shortBan = 48 * time.Hour

// banReply returns the reply for a banned client. Its reference is the session
// that led to the ban.
func banReply(b *memory.Ban, id uint64) string {
	code := "554 5.7.1"
	if b.Until.Sub(b.Since) <= shortBan {
		code = "421 4.7.1"
	}
	if b.Session != 0 {
		id = b.Session
	}
	return rules.Reply(code+" Banned until "+b.Until.Format("2006-01-02 15:04")+" UTC ("+printable(b.Rule)+")", id)
}

// printable restricts an operator's reason to the characters of a reply.
func printable(s string) string {
	b := []byte(s[:min(len(s), 100)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
