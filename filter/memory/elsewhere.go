package memory

import (
	"net/netip"

	"scanwatch/rules"
)

// Bans of other hosts and the standing that clients have on other hosts are written to disk.
// Until this standing has arrived for the first time, these bans have no effect. Otherwise,
// they would affect clients that are exempt.
//
// Firewalls, DNS zones and exports cannot exempt a client by its name or login. They
// therefore include another host's ban only after this filter has rejected a client
// because of it, and only until the address becomes exempt. Other hosts' bans of
// networks are never included.

// NotEnforced describes the bans for which Bans.Waiting is true.
const NotEnforced = "not enforced: waiting for the standing of other hosts"

// HaveStanding records that bans by other hosts take effect, because there is no server from
// which the standing on other hosts could arrive; see Memory.Complete for a server.
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

// Rejected records that the filter has rejected a client because of e, another host's
// ban. Rejected has no effect on network bans.
func (b *Bans) Rejected(e *Ban) { setRejected(b, e.Prefix, e.Origin, true) }

// Withhold removes another host's ban from firewalls and exports, until the filter rejects
// a client again.
func (b *Bans) Withhold(p netip.Prefix) { setRejected(b, p, "", false) }

// setRejected sets or clears the rejected flag of origin's ban of p, or of any other
// host's ban of p if origin is empty.
func setRejected(b *Bans, p netip.Prefix, origin string, rejected bool) {
	if !isSource(p) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	k := hostIn(p)
	row, _ := b.hosts.get(k)
	by := b.rules.imposed(&row)
	if by == "" || origin != "" && by != origin || row.flags&banRejected != 0 == rejected {
		return
	}
	row.flags ^= banRejected
	b.hosts.touch(k, row)
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
