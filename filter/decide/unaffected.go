package decide

import (
	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// Reasons why a ban by another host has no effect on a client that is not exempt.
const (
	waitingForStanding = "waiting"
	ownAddress         = "own-address"
)

// unaffected returns why a ban does not affect s, or "".
//
// A ban from another host does not override this host's exemptions. A ban from another host has no
// effect until the standing of clients has been exchanged with the other hosts. A ban from another
// host never has an effect if its prefix includes an address of this host.
func (d *Decider) unaffected(s Subject, b *memory.Ban, at int64) string {
	switch {
	case b.Origin == "" && b.Manual:
		return ""
	case b.Origin == "":
		rule := ruleNamed(d.Policy, b.Rule)
		why := d.exempt(s, rule, false, at)
		if why == "login" && !s.Authed && rule != nil && rule.Has(rules.AuthSpray) {
			return "" // the login exempts the client only because the ban has ended the spray
		}
		return why
	case d.Memory.Bans.Waiting():
		return waitingForStanding
	case d.Own != nil && d.Own(b.Prefix) || s.Dst.IsValid() && b.Prefix.Contains(s.Dst.Addr()):
		return ownAddress
	}
	return d.exempt(s, nil, true, at)
}
