package config

import (
	"net/netip"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
)

// These are the reasons why a host is exempt, as shown to operators.
const (
	ReasonFriend = "exempt by a pass statement"
	ReasonOwn    = "addresses of this host"
)

// Exempt contains the hosts that firewalls and other servers must not block, regardless
// of bans and findings. Exports of records and companions use Exempt. The callers add the
// hosts with accepted mail and logins.
type Exempt struct {
	policy *rules.Policy // nil without a configuration
	all    lookup.Prefixes[string]
}

// NewExempt returns the exempt hosts of a policy. The policy may be nil. The addresses of
// the local host are also exempt.
func NewExempt(policy *rules.Policy, own []netip.Addr) *Exempt {
	e := &Exempt{policy: policy}
	for _, a := range own {
		e.Add(netip.PrefixFrom(a, a.BitLen()), ReasonOwn)
	}
	if policy != nil {
		for _, p := range policy.OwnAddresses {
			e.Add(p, ReasonOwn)
		}
	}
	return e
}

// Add exempts a network.
func (e *Exempt) Add(p netip.Prefix, reason string) { e.all.Add(p, reason) }

// Reason returns the reason why p must not be blocked, or "". The reason may concern a
// single host in p. private allows private, loopback and link-local addresses.
func (e *Exempt) Reason(p netip.Prefix, private bool) string {
	if reason, ok := e.all.Overlapping(p); ok {
		return reason
	}
	if e.policy != nil && e.policy.Friends(p) != rules.No {
		return ReasonFriend
	}
	if private && p.Bits() > 0 {
		return ""
	}
	return feed.Forbidden(p)
}
