package decide

import (
	"cmp"

	"scanwatch/filter/memory"
)

// Reasons why a ban by another host does not affect a client that is not exempt.
const (
	waitingForStanding = "waiting"
	ownAddress         = "own-address"
)

// spared returns why a ban does not affect s, or "".
func (d *Decider) spared(s Subject, b *memory.Ban, at int64) string {
	switch {
	case d.applies(s, b, at):
		return ""
	case b.Origin == "":
		return d.exempt(s, d.rule(b.Rule), at)
	case d.Memory.Bans.Waiting():
		return waitingForStanding
	}
	return cmp.Or(d.exempt(s, nil, at), ownAddress)
}
