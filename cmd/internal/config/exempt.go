package config

import (
	"net/netip"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
)

// The reasons why a host is exempt, as shown to users.
const (
	ReasonFriend = "exempt by a pass statement"
	ReasonOwn    = "addresses of this host"
)

// Exempt contains the hosts that firewalls and other servers must not block, whatever
// bans and findings say. All exports of bans use it, live or from records. The callers
// add the hosts with accepted mail and logins.
type Exempt struct {
	policy *rules.Policy // nil without a configuration
	all    lookup.Prefixes[string]
}

// NewExempt returns the exempt hosts of a policy, which may be nil, on a host with the
// given addresses.
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

// Reason returns the reason why p must not be blocked because of a host in it, or "".
// private allows private, loopback and link-local addresses.
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
