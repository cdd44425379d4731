package decide

import (
	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// Reasons why a ban by another host does not affect a client that is not exempt.
const (
	waitingForStanding = "waiting"
	ownAddress         = "own-address"
)

// unaffected returns why a ban does not affect s, or "".
//
// The rules and the operator of another host do not override exemptions here. Their bans have
// no effect before the clients with standing are known, here and on other hosts, nor if they
// include an address of this host.
func (d *Decider) unaffected(s Subject, b *memory.Ban, at int64) string {
	switch {
	case b.Origin == "" && b.Manual:
		return ""
	case b.Origin == "":
		rule := ruleNamed(d.Policy, b.Rule)
		why := d.exempt(s, rule, false, at)
		if why == "login" && !s.Authed && rule != nil && rule.Has(rules.AuthSpray) {
			return "" // the ban ended the spray, but the login did not prevent it
		}
		return why
	case d.Memory.Bans.Waiting():
		return waitingForStanding
	case d.Own != nil && d.Own(b.Prefix) || s.Dst.IsValid() && b.Prefix.Contains(s.Dst.Addr()):
		return ownAddress
	}
	return d.exempt(s, nil, true, at)
}
