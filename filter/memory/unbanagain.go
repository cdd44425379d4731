package memory

import "net/netip"

// sendAgain causes other hosts to receive the unban of another host from here, and returns
// true. A ban that the unban has ended arrives from a server only if the server and the host of
// the ban have both lost the unban, for example because they were restored from a backup.
// In files, this host's rows do not include unbans of other hosts.
func sendAgain(b *Bans, p netip.Prefix, unban ban, n *arrival) bool {
	if !n.partial && unban.flags&banForeign != 0 {
		unban.flags &^= banForeign
		b.own.put(p, unban, n.at)
	}
	return true
}
