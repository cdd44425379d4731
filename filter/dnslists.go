package filter

// This file adds answers from DNS lists to sessions of unknown clients.

import (
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter/dnslist"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// consult asks the DNS lists about a client that has just connected.
func consult(p *Pipeline, s *session, at int64) {
	if p.settings == nil || p.settings.Policy == nil || len(p.settings.Policy.Lookups) == 0 || !unknownClient(p, s, at) {
		return
	}
	s.asking, s.listings = true, p.o.Lookups.Withdrawals()
	p.facts = p.o.Lookups.Ask(s.track.Src.Addr(), false, p.facts[:0])
}

// unknownClient reports whether the DNS lists may be asked about a client. The client must have a
// public address. The client must not have standing, a ban or an exemption.
func unknownClient(p *Pipeline, s *session, at int64) bool {
	t := &s.track
	if t.Exempt() || t.Internal || t.Gateway || len(s.decide.Bans) > 0 || !dnslist.Public(t.Src.Addr()) {
		return false
	}
	if p.decider.Standing(p.subject(s), at) != rules.StandingNone {
		return false
	}
	a := t.Src.Addr()
	return p.settings.Policy.Friends(netip.PrefixFrom(a, a.BitLen())) == rules.No
}

// withdraw removes listings that a DNS list has withdrawn from the facts about the session.
// Decisions that were made earlier remain unchanged.
func withdraw(p *Pipeline, s *session) {
	if p.o.Lookups == nil || p.settings == nil || len(s.track.Listings) == 0 {
		return
	}
	now := p.o.Lookups.Withdrawals()
	if now == s.listings {
		return
	}
	s.track.Listings = slices.DeleteFunc(s.track.Listings, func(l smtp.Listing) bool {
		return l.Listed && p.o.Lookups.WithdrawnSince(l.Name, s.listings)
	})
	s.listings = now
	blocks := slices.ContainsFunc(s.track.Listings, func(l smtp.Listing) bool {
		return l.Listed && slices.ContainsFunc(p.settings.Policy.Lookups, func(r *rules.Lookup) bool { return r.Name == l.Name && !r.Allow })
	})
	if !blocks {
		s.detect.Evidence &^= rules.Listed
	}
}

// listed adds the DNS lists' new answers to the facts about the session. listed returns how long
// the request must wait for missing answers. The request waits only in enforce mode, only if the
// client is unknown, and only if a missing answer could change the policy's effect.
func listed(p *Pipeline, s *session, ev *smtp.Event) (wait time.Duration) {
	policy := p.settings.Policy
	// A client that has logged in since it connected is no longer asked about, but earlier answers
	// remain valid.
	asks := unknownClient(p, s, ev.Time)
	if asks {
		p.facts = p.o.Lookups.Ask(s.track.Src.Addr(), true, p.facts[:0])
	} else {
		p.facts = p.o.Lookups.Answers(s.track.Src.Addr(), p.facts[:0])
	}
	takeAnswers(p, s, ev)
	if !asks || policy.Mode != rules.Enforce {
		return 0
	}
	since := time.Duration(ev.Time-s.track.Start) * time.Microsecond
	if since < 0 { // a negative value means that the clock was set back
		return 0
	}
	since = max(since, s.waited) // limits the sum of all waits, even if the clock is set back later
	var missing rules.ListSet
	for i := range p.facts {
		// If the policy was replaced, p.facts and policy.Lookups may contain different lists until
		// the next event.
		if f := &p.facts[i]; f.State == dnslist.Pending && f.List.Hold > since && i < len(policy.Lookups) && policy.Lookups[i].Name == f.List.Name {
			missing |= 1 << i
		}
	}
	if missing == 0 {
		return 0
	}
	needed := p.decider.Awaits(p.subject(s), ev, missing)
	for i := range p.facts {
		if needed&(1<<i) != 0 {
			wait = max(wait, p.facts[i].List.Hold-since)
		}
	}
	return wait
}

// takeAnswers adds the new answers in p.facts to the facts about the session.
func takeAnswers(p *Pipeline, s *session, ev *smtp.Event) {
	s.asking = false
	for i := range p.facts {
		switch f := &p.facts[i]; {
		case f.State == dnslist.Pending, f.State == dnslist.Unknown: // a later question may have an answer
			s.asking = true
		case !s.track.Asked(f.List.Name):
			p.answer = f.Event(ev)
			p.take(s, &p.answer)
		}
	}
}

// lastAnswers adds the answers that have arrived since the last request. The answers are recorded,
// and the rules for the end of the session use them.
func lastAnswers(p *Pipeline, s *session, at int64) {
	withdraw(p, s)
	if !s.asking || p.settings == nil {
		return
	}
	p.facts = p.o.Lookups.Answers(s.track.Src.Addr(), p.facts[:0])
	takeAnswers(p, s, &smtp.Event{Time: at, Session: s.track.ID})
	s.asking = false
}
