package memory

import (
	"net/netip"

	"scanwatch/rules"
)

// Bans of other hosts and the standing that clients have on other hosts are written to disk.
// Until this standing has arrived for the first time, these bans have no effect. Otherwise,
// they would affect clients that are exempt.
//
// A firewall, a DNS zone and an export cannot exempt a client by its name or its login. They
// therefore contain another host's ban of an address only for a day after this filter has
// rejected a client because of it, and no longer than until the address becomes exempt or an
// exempt client connects. Other hosts' bans of networks and of an IPv6 /64, which may include
// exempt clients, are not included.

// NotEnforced describes the bans for which Bans.Waiting is true.
const NotEnforced = "not enforced: waiting for the standing of other hosts"

// HaveStanding puts other hosts' bans into effect when there is no server to supply the standing
// of clients on these hosts. With a server, use Memory.Complete.
func (b *Bans) HaveStanding() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.standing {
		b.standing = true
		b.log.restart()
	}
}

// Waiting reports whether bans by other hosts have no effect, because the bans on disk have
// not been loaded, or because the standing on other hosts has never arrived.
func (b *Bans) Waiting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waits()
}

// waits is Waiting with the lock held.
func (b *Bans) waits() bool { return b.unread || !b.standing && !b.complete }

// waiting reports whether the row is that of another host's ban that has no effect yet.
func (b *Bans) waiting(row *ban) bool {
	return row.flags&banForeign != 0 && b.waits()
}

// inFirewalls is the time in seconds for which firewalls contain another host's ban after a
// rejection. The filter then checks again whether the client is exempt.
const inFirewalls = daySeconds

// Rejected records that the filter has rejected a client because of the ban e of another
// host. It has no effect on bans of networks and of an IPv6 /64.
func (b *Bans) Rejected(e *Ban, now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.clock.row(now)
	row, ok := b.others.get(e.Prefix)
	if !ok || !e.Prefix.IsSingleIP() || b.rules.imposed(&row) != e.Origin || row.extra > at {
		return
	}
	row.extra = at + inFirewalls
	b.others.touch(e.Prefix, row)
	b.log.add(e.Prefix)
}

// Withhold removes another host's ban of p from firewalls and exports, until the filter rejects
// a client again.
func (b *Bans) Withhold(p netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	row, ok := b.others.get(p)
	if !ok || row.extra == 0 {
		return
	}
	row.extra = 0
	b.others.touch(p, row)
	b.log.add(p)
}

// Elsewhere calls visit for each host whose address has standing on another host, or is
// shared by many hosts there.
func (t *Peers) Elsewhere(now int64, visit func(netip.Prefix)) {
	at := t.clock.row(now)
	eachIn(&t.mu, func() map[foreignKey[peerKey]]foreignRow[peer] { return t.rows.foreign.rows },
		func(k foreignKey[peerKey], f foreignRow[peer]) (netip.Prefix, bool) {
			standing := f.row.many() || f.row.standing(&t.clock, at).Level >= rules.StandingKnown
			return k.key.host.Prefix(), k.key.kind == peerHost && standing
		}, visit)
}
