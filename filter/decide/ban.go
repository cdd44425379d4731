package decide

import (
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// bans carries out the bans of rules, and reports the bans that are only observed. A
// ban by a rule that counts recipients takes effect at the end of the session. If the
// policy withholds the ban of a trusted client, its behaviour is still an offence.
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

// decided returns the enforced decision of v, or else the observed decision.
func decided(v *rules.Verdict) *rules.Outcome {
	if v.Act.Rule != nil {
		return &v.Act
	}
	return &v.Would
}

// late carries out the bans of rules that count recipients, at the end of the session.
// A session with an accepted recipient causes no ban, because old mailing lists also
// contain recipients that do not exist. If most recipients exist, the session is not an
// offence.
func (d *Decider) late(s Subject, at int64) {
	last := &s.State.last
	if s.Case.Mixed() || s.Case.Unknown.N+s.Case.Bounced.N+s.Case.Held.N == 0 {
		return // a session without missing recipients is probably a retry of deferred mail
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

// ban bans the host of s and reports the ban, once for consecutive bans by the same
// rule. The parameter last is the previous rule that banned the host. The exemption of
// a client is also reported, so that the operator notices the rule.
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
			// A ban halves the count of failures. Without the reduction, the first
			// failure of a phone with an old password would ban its whole office again.
			d.Memory.Counters.Halve(s.Client, rules.AuthFailure, at)
		}
		if !b.Until.After(b.Since) {
			return // the offence counts, but causes no ban
		}
		out.Prefix, out.Until, out.Times = b.Prefix, b.Until, b.Times
	}
	out.Enforced = enforced
	d.out = append(d.out, out)
}

// exempt returns the reason why rule must not ban s, or "". For an existing ban, rule
// is nil if the policy no longer has the rule.
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
		return "" // the login of one user does not exempt a source at which the logins of many others failed
	case excuse != "login" && excuse != "many" && (rule.EvenTrusted || rule.Has(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported)):
		return "" // accepted mail does not exempt a source from bans for brute force
	}
	return excuse
}

// returned reports that a banned client has connected. The boolean result reports
// whether the client must be disconnected. An observed ban, mode observe and an
// exemption of s prevent the disconnection.
func (d *Decider) returned(s Subject, at int64) (enforced bool) {
	b := s.State.Ban
	enforced = d.Policy.Mode == rules.Enforce && !b.Observe && (b.Manual || d.exempt(s, d.rule(b.Rule), at) == "")
	d.out = append(d.out, smtp.Outcome{
		Kind: smtp.OutcomeReturn, Time: at, Rule: b.Rule, Phase: smtp.PhaseConnect, Decision: smtp.Disconnect,
		Enforced: enforced, Until: b.Until, BanSession: b.Session,
	})
	return enforced
}

// rule returns the rule with the name in a ban, or nil.
func (d *Decider) rule(name string) *rules.Rule {
	for _, r := range d.Policy.Rules() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// shortBan is the longest ban whose reply has a temporary code. After a temporary code,
// a legitimate server retries until a short ban ends. RFC 5321 section 4.5.4.1 requires
// retries for four to five days. After a permanent code for a longer ban, the sender
// receives a bounce immediately.
const shortBan = 48 * time.Hour

// banReply returns the reply for a banned client. The reference in the reply is the id
// of the session that caused the ban.
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

// printable replaces characters of an operator's reason that a reply must not contain.
func printable(s string) string {
	b := []byte(s[:min(len(s), 100)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
