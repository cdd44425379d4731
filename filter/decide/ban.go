package decide

import (
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// bans imposes the bans required by rules, and reports those that are only observed.
// Bans by rules about recipients are delayed until the session ends. If a trusted
// client's ban is withheld, the client's behaviour still counts as an offence.
func (d *Decider) bans(s Subject, at int64, v *rules.Verdict) {
	last := &s.State.last
	if o := decided(v); o.Rule != nil && len(o.Rule.Ban) > 0 && o.BanRule == nil && !v.Unsure && !v.Waiting {
		last.shielded = true
		s.State.Offence = s.State.Offence || !o.Rule.OfRecipients()
	}
	if r := v.Act.BanRule; r != nil && r.OfRecipients() {
		last.late = longer(last.late, r)
	} else {
		d.ban(s, at, &v.Act, &s.State.Banned, true)
	}
	if r := v.Would.BanRule; r != nil && r.OfRecipients() {
		last.wouldLate = longer(last.wouldLate, r)
	} else {
		d.ban(s, at, &v.Would, &last.wouldBan, false)
	}
}

// longer returns the rule with the longer first ban.
func longer(a, b *rules.Rule) *rules.Rule {
	if a != nil && a.Ladder()[0] >= b.Ladder()[0] {
		return a
	}
	return b
}

// decided returns v's enforced decision, or its observed decision if none is enforced.
func decided(v *rules.Verdict) *rules.Outcome {
	if v.Act.Rule != nil {
		return &v.Act
	}
	return &v.Would
}

// late is called at the end of a session and imposes the bans required by rules about
// recipients. If the server accepted any recipient, no ban is imposed, because
// old mailing lists contain dead addresses. If most recipients exist, the session is
// not even an offence.
func (d *Decider) late(s Subject, at int64) {
	last := &s.State.last
	if s.Case.Mixed() || s.Case.Unknown.N+s.Case.Bounced.N+s.Case.Held.N+s.Case.Relay == 0 {
		return // a session without new recipients of these kinds is probably a retry after a deferral
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

// ban bans the host of s. Consecutive bans by the same rule are reported once; last
// holds the rule of the previous ban. If the client is exempt, the exemption is
// reported, so that the operator learns that the rule matched.
func (d *Decider) ban(s Subject, at int64, o *rules.Outcome, last **rules.Rule, enforced bool) {
	if o.BanRule == nil || *last == o.BanRule || !s.Src.IsValid() {
		return
	}
	*last, s.State.Offence = o.BanRule, true
	out := smtp.Outcome{
		Kind: smtp.OutcomeBan, Time: at, Rule: o.BanRule.Name, RuleRef: d.Refs[o.BanRule],
		Prefix: s.Client.Host().Prefix(), Exempt: d.exempt(s, o.BanRule, false, at),
	}
	if out.Exempt == "" {
		b := d.Memory.Bans.Add(s.Client, memory.BanRequest{Ladder: o.Ban, Rule: o.BanRule.Name, Session: s.ID, Observe: !enforced, Listed: restsOnListing(d, s, o.BanRule)}, at)
		// A ban halves the counts of failed logins and ends a spray. Otherwise, the
		// next time a phone tried an old password, its whole office would be
		// banned again.
		if o.BanRule.Has(rules.AuthFailure) {
			d.Memory.Counters.Halve(s.Client, rules.AuthFailure, at)
		}
		if o.BanRule.Has(rules.AuthSpray) {
			d.Memory.Logins.Restart(s.Client, at)
		}
		if !b.Until.After(b.Since) {
			return // the offence counts but leads to no ban
		}
		out.Prefix, out.Until, out.Times, out.Listed = b.Prefix, b.Until, b.Times, b.Listed
	}
	out.Enforced = enforced
	d.out = append(d.out, out)
}

// restsOnListing reports whether a rule can match because the client is on a DNS list.
// The list may later withdraw the listing; see memory.Bans.RevokeListed.
func restsOnListing(d *Decider, s Subject, rule *rules.Rule) bool {
	return slices.ContainsFunc(s.Listings, func(l smtp.Listing) bool { return l.Listed && d.Policy.RestsOn(rule, l.Name) })
}

// exempt returns why rule must not ban s, or "". For an existing ban whose rule is no
// longer in the policy, rule is nil. For a ban by another host, foreign is set and rule nil.
func (d *Decider) exempt(s Subject, rule *rules.Rule, foreign bool, at int64) string {
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
	excuse, elsewhere := d.Memory.Peers.ExcuseFrom(s.Client, at)
	switch {
	case elsewhere && !foreign:
		return "" // other hosts cannot exempt clients from bans of this host
	case rule == nil || excuse == "":
	case excuse == "login" && rule.Has(rules.AuthFailure|rules.AuthSpray) && d.Memory.Logins.Sprays(s.Client, at):
		return "" // one user's login does not exempt a source at which many other logins failed
	case excuse != "login" && excuse != "many" && (rule.EvenTrusted || rule.Has(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported)):
		return "" // accepted mail does not exempt a source from brute-force bans
	}
	return excuse
}

// returned reports that a banned client has reconnected. It returns the ban because of which
// the client must be disconnected: the first that is enforced and applies. Bans of this host come
// first, and bans by other hosts do not affect them. returned returns nil if there is none:
// with an observed ban, in observe mode, or if s is exempt, the client stays connected. If a pass
// statement matches, nothing is reported.
func (d *Decider) returned(s Subject, pass bool, at int64) (enforced *memory.Ban) {
	if pass {
		for i := range s.State.Bans {
			d.Memory.Bans.Withhold(s.State.Bans[i].Prefix)
		}
		return nil
	}
	b := &s.State.Bans[0]
	for i := range s.State.Bans {
		if one := &s.State.Bans[i]; d.Policy.Mode == rules.Enforce && !one.Observe && d.applies(s, one, at) {
			b, enforced = one, one
			break
		}
	}
	d.out = append(d.out, smtp.Outcome{
		Kind: smtp.OutcomeReturn, Time: at, Rule: b.Rule, Phase: smtp.PhaseConnect, Decision: smtp.Disconnect,
		Enforced: enforced != nil, Until: b.Until, BanSession: b.Session, Origin: b.Origin, Exempt: d.unaffected(s, b, at),
	})
	return enforced
}

// applies reports whether a ban affects s; see unaffected. Firewalls then contain another host's
// ban that affects s, but not one from which s is exempt.
func (d *Decider) applies(s Subject, b *memory.Ban, at int64) bool {
	why := d.unaffected(s, b, at)
	switch {
	case b.Origin == "" || why == waitingForStanding || why == ownAddress:
	case why != "":
		d.Memory.Bans.Withhold(b.Prefix)
	case s.FCrDNS != smtp.FCrDNSError: // otherwise, the client may be exempt by its name
		d.Memory.Bans.Rejected(b, at)
	}
	return why == ""
}

// ruleNamed returns the rule that a ban names, or nil if there is none.
func ruleNamed(p *rules.Policy, name string) *rules.Rule {
	for _, r := range p.Rules() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// shortBan is the longest ban with a temporary reply code. A legitimate server keeps
// retrying until a short ban ends: RFC 5321 section 4.5.4.1 requires retries for four
// to five days. Longer bans get a permanent code, so that the sender receives a bounce
// immediately.
const shortBan = 48 * time.Hour

// banReply returns the reply to a banned client. The reply quotes the id of the session
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

// printable replaces the characters of an operator's reason that are not allowed in a
// reply.
func printable(s string) string {
	b := []byte(s[:min(len(s), 100)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
