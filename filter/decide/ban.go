package decide

import (
	"slices"
	"time"

	"scanwatch/filter/detect"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// bans imposes the bans that rules require, and reports bans that are only observed. Bans by rules
// about recipients are delayed until the session ends. A trusted client is not banned by some
// rules, but its behaviour still counts as an offence.
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

// longer returns the rule whose first ban is longer.
func longer(a, b *rules.Rule) *rules.Rule {
	if a != nil && a.Ladder()[0] >= b.Ladder()[0] {
		return a
	}
	return b
}

// decided returns the enforced decision of v, or the observed decision if none is enforced.
func decided(v *rules.Verdict) *rules.Outcome {
	if v.Act.Rule != nil {
		return &v.Act
	}
	return &v.Would
}

// late imposes the bans by rules about recipients when a session ends. If most recipients that the
// host has requested within a day exist, the session does not count as an offence. If at least a
// quarter of these recipients exist, the client is not banned, because old mailing lists contain
// addresses that no longer exist. If fewer recipients exist, the client is banned only after
// mixedFree such sessions. The retries of a mailing list contain no new missing recipients, but a
// harvest does.
//
// If parted is set, the session has not ended yet, and late imposes only bans that have a duration.
// An offence without a duration would be counted again if another rule matches at the end.
func (d *Decider) late(s Subject, at int64, parted bool) {
	last := &s.State.last
	if s.Case.New() == 0 {
		return // no new recipient was rejected, so the session is probably a retry after a deferral
	}
	existing, missing := d.Memory.Recipients.Balance(s.Client, at)
	existing, missing = max(existing, s.Case.Accepted.N), max(missing, s.Case.New())
	if existing > missing {
		return
	}
	s.State.Offence = s.State.Offence || last.shielded || last.late != nil || last.wouldLate != nil
	mixed := existing > 0
	if mixed && !detect.Mostly(missing, existing) {
		return
	}
	ladder := func(r *rules.Rule) []time.Duration {
		if mixed {
			return append(make([]time.Duration, mixedFree), r.Ladder()...)
		}
		return r.Ladder()
	}
	if r := last.late; r != nil && (!parted || ladder(r)[0] > 0) {
		d.ban(s, at, &rules.Outcome{BanRule: r, Ban: ladder(r)}, &s.State.Banned, true)
	}
	if r := last.wouldLate; r != nil && (!parted || ladder(r)[0] > 0) {
		d.ban(s, at, &rules.Outcome{BanRule: r, Ban: ladder(r)}, &last.wouldBan, false)
	}
}

// mixedFree is the number of sessions with accepted recipients that are only counted before a rule
// about recipients bans the client. A new mailing list server may send several old lists in a day.
const mixedFree = 2

// ban bans the host of s. last holds the rule of the previous ban, because consecutive bans by the
// same rule are reported once. If the client is exempt, the exemption is reported, so that the
// operator learns that the rule matched.
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
		// A ban halves the count of failed logins and ends a spray. Without the halved count, the
		// next login of a phone with an old password would get its whole office banned again.
		if o.BanRule.Has(rules.AuthFailure) {
			d.Memory.Counters.Halve(s.Client, rules.AuthFailure, at)
		}
		if o.BanRule.Has(rules.AuthSpray) {
			d.Memory.Logins.Restart(s.Client, at)
		}
		if !b.Until.After(b.Since) {
			return // the rule counts the offence, but its ban has no duration
		}
		out.Prefix, out.Until, out.Times, out.Listed = b.Prefix, b.Until, b.Times, b.Listed
	}
	out.Enforced = enforced
	d.out = append(d.out, out)
}

// restsOnListing reports whether a rule may have matched only because the client is on a DNS list.
// A ban because of a listing is revoked if the list withdraws the listing; see
// memory.Bans.RevokeListed.
func restsOnListing(d *Decider, s Subject, rule *rules.Rule) bool {
	return slices.ContainsFunc(s.Listings, func(l smtp.Listing) bool { return l.Listed && d.Policy.RestsOn(rule, l.Name) })
}

// exempt returns why s must not be banned by rule, or "" if it may be banned. rule is nil if the
// policy no longer contains the rule of an existing ban. For a ban from another host, foreign is
// set and rule is nil.
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
	case d.OwnDomain != nil && d.OwnDomain(s.ProvenName()):
		return "own-domain" // only the site can give a host such a name
	}
	excuse, elsewhere := d.Memory.Peers.ExcuseFrom(s.Client, at)
	switch {
	case elsewhere && !foreign:
		return "" // the client has standing only on other hosts, which does not exempt it from bans of this host
	case rule == nil || excuse == "":
	case excuse == "login" && rule.Has(rules.AuthFailure|rules.AuthSpray) && d.Memory.Logins.Sprays(s.Client, at):
		return "" // many other logins from this source failed, so one user's login does not exempt it
	case excuse != "login" && excuse != "many" && (rule.EvenTrusted || rule.Has(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported)):
		return "" // accepted mail does not exempt a source from bans for password guessing
	}
	return excuse
}

// returned reports that a banned client has reconnected. returned returns the first enforced ban
// that applies to the client, which must then be disconnected. Bans of this host come before bans
// of other hosts. In observe mode, or if no enforced ban applies, returned returns nil. If a pass
// statement matches, returned reports nothing.
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

// applies reports whether a ban affects s; see unaffected. applies also records the result for bans
// of other hosts. A firewall export includes another host's ban only after the ban has rejected a
// client here, and not while a client is exempt from the ban.
func (d *Decider) applies(s Subject, b *memory.Ban, at int64) bool {
	why := d.unaffected(s, b, at)
	switch {
	case b.Origin == "" || why == waitingForStanding || why == ownAddress:
	case why != "":
		d.Memory.Bans.Withhold(b.Prefix)
	case s.FCrDNS != smtp.FCrDNSError: // if DNS failed, the client may be exempt because of its name
		d.Memory.Bans.Rejected(b, at)
	}
	return why == ""
}

// ruleNamed returns the rule of the policy with the given name, or nil.
func ruleNamed(p *rules.Policy, name string) *rules.Rule {
	for _, r := range p.Rules() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// shortBan is the maximum length of bans with a temporary reply code. RFC 5321 section 4.5.4.1
// requires senders to retry for four to five days, so legitimate mail arrives after a short ban.
// Longer bans get a permanent code, so that the sender receives a bounce immediately.
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

// printable returns an operator's reason for a ban in at most 100 characters. Characters that a
// reply must not contain are replaced.
func printable(s string) string {
	b := []byte(s[:min(len(s), 100)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
