package config

import (
	"net/netip"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
)

// Reasons for exempting a host, as shown to operators.
const (
	ReasonFriend  = "exempt by a pass statement"
	ReasonOwn     = "addresses of this host"
	ReasonGateway = "gateways"
)

// Exempt is the set of hosts that firewalls and other servers must not block, regardless of bans
// and findings. Exports and companions use the set. Callers must add hosts with accepted mail or
// logins themselves.
type Exempt struct {
	policy *rules.Policy // nil without a configuration
	all    lookup.Prefixes[string]
}

// NewExempt returns the hosts that a policy exempts, its gateways, and the addresses of the
// local host.
// The policy may be nil.
func NewExempt(policy *rules.Policy, own []netip.Addr) *Exempt {
	e := &Exempt{policy: policy}
	for _, a := range own {
		e.Add(netip.PrefixFrom(a, a.BitLen()), ReasonOwn)
	}
	if policy != nil {
		for _, p := range policy.OwnAddresses {
			e.Add(p, ReasonOwn)
		}
		for _, p := range policy.Gateways {
			e.Add(p, ReasonGateway)
		}
	}
	return e
}

// Add exempts a network.
func (e *Exempt) Add(p netip.Prefix, reason string) { e.all.Add(p, reason) }

// Reason returns the reason for not blocking p, or "" if p may be blocked. The reason may
// apply to only one host in p. If private is set, private, loopback and link-local
// addresses may be blocked.
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
