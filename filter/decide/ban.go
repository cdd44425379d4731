package decide

import (
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// bans carries out the bans of rules and reports observed bans. Bans by rules that
// count recipients take effect at the end of the session. The conduct of a trusted
// client is also an offence, although the shield withholds the ban.
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
// recipient is not banned, because old mailing lists also have recipients that do not
// exist. It commits no offence if most of its recipients exist.
func (d *Decider) late(s Subject, at int64) {
	last := &s.State.last
	if s.Case.Mixed() || s.Case.Unknown.N+s.Case.Bounced.N+s.Case.Held.N == 0 {
		return // or a mail server retries deferred mail: it requested no new recipient
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

// ban bans the host of s, once for each rule in a row. The outcome also names exempt
// clients, so that the operator can check a rule that matches them.
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
			// A ban halves the count of failures. Otherwise the first retry of a phone
			// with an old password after each ban would ban its office again.
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

// exempt returns the reason for which rule must not ban s, or "". rule is nil for an
// earlier ban.
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
		return "" // many users failed to log in, in addition to the user with a login
	case excuse != "login" && excuse != "many" && (rule.EvenTrusted || rule.Has(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported)):
		return "" // accepted mail does not excuse brute force
	}
	return excuse
}

// returned reports the connection of a banned client, and whether the client must be
// disconnected: not in mode observe, not if the ban was only observed, and not if s has
// become exempt.
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

// shortBan is the longest ban that is answered with a temporary code. A legitimate
// server retries until the ban ends, because RFC 5321 section 4.5.4.1 requires retries
// for four to five days. For a longer ban the sender should receive a bounce
// immediately.
const shortBan = 48 * time.Hour

// banReply returns the reply for a banned client. Its reference is the session that
// caused the ban.
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
