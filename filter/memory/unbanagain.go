package memory

import "net/netip"

// sendAgain causes other hosts to receive the unban of another host from here, and returns
// true. A ban that the unban has ended arrives from a server only if the server and the host of
// the ban have both lost the unban, for example because they were restored from a backup.
// In files, this host's rows do not include unbans of other hosts.
//
// An unban of all hosts in a network, or of a prefix with a later ban, is not sent again: it
// would count as later than the bans that it has not ended.
func sendAgain(b *Bans, p netip.Prefix, unban ban, n *arrival) bool {
	later, ok := b.others.get(p)
	if !n.partial && unban.flags&banForeign != 0 && (isSource(p) || unban.flags&banWithin == 0) && !(ok && later.active(n.at)) {
		unban.flags &^= banForeign
		unban.extra = unban.until // keeps its time; see BanRow
		b.own.put(p, unban, n.at)
	}
	return true
}
