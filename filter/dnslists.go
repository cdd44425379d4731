package filter

// Answers of DNS lists about unknown clients.

import (
	"net/netip"
	"time"

	"scanwatch/filter/dnslist"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// consult asks the lists about a client that has just connected.
func consult(p *Pipeline, s *session, at int64) {
	if p.settings == nil || p.settings.Policy == nil || len(p.settings.Policy.Lookups) == 0 || !unknownClient(p, s, at) {
		return
	}
	s.asking = true
	p.facts = p.o.Lookups.Ask(s.track.Src.Addr(), p.facts[:0])
}

// unknownClient reports whether the lists may be asked about a client: it has no standing, no
// ban and no exemption, and its address belongs to a host in the Internet.
func unknownClient(p *Pipeline, s *session, at int64) bool {
	t := &s.track
	if t.Exempt() || t.Internal || t.Gateway || s.decide.Ban != nil || !dnslist.Public(t.Src.Addr()) {
		return false
	}
	if p.decider.Standing(p.subject(s), at) != rules.StandingNone {
		return false
	}
	a := t.Src.Addr()
	return p.settings.Policy.Friends(netip.PrefixFrom(a, a.BitLen())) == rules.No
}

// listed adds the new answers of the lists to the facts about the session. It returns the
// time for which a request waits for the lists without an answer: none in observe mode,
// and none if the client is no longer unknown.
func listed(p *Pipeline, s *session, ev *smtp.Event) (wait time.Duration) {
	policy := p.settings.Policy
	// The client may have logged in since. Answers to earlier questions are still facts.
	if s.asking = unknownClient(p, s, ev.Time); s.asking {
		p.facts = p.o.Lookups.Ask(s.track.Src.Addr(), p.facts[:0])
	} else {
		p.facts = p.o.Lookups.Answers(s.track.Src.Addr(), p.facts[:0])
	}
	waits := s.asking && policy.Mode == rules.Enforce
	since := max(0, time.Duration(ev.Time-s.track.Start)*time.Microsecond) // the clock may be set back
	s.asking = false
	for i := range p.facts {
		f := &p.facts[i]
		switch {
		case f.State == dnslist.Pending:
			s.asking = true
			if waits && i < rules.MaxLookups {
				wait = max(wait, policy.Holds[ev.Phase][i]-since)
			}
		case f.State == dnslist.Unknown:
			s.asking = true // a later answer of another session may be known
		case !s.track.Asked(f.List.Name):
			p.take(s, f.Event(ev))
		}
	}
	return wait
}
