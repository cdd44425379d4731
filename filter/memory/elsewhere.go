package memory

import (
	"net/netip"

	"scanwatch/rules"
)

// Other hosts' bans are written to disk, but the clients' standing on these hosts is
// not. After the filter starts, the bans therefore have no effect until the standing
// has arrived. Otherwise, they would affect clients that are exempt.
//
// Firewalls, DNS zones and exports cannot exempt a client by its name or login. They
// therefore include another host's ban only after this filter has rejected a client
// because of it, and only until the address becomes exempt. Other hosts' bans of
// networks are never included.

// NotEnforced describes the bans for which Bans.Waiting is true.
const NotEnforced = "not enforced: waiting for the standing of other hosts"

// HaveStanding records that clients' standing on other hosts has arrived since the
// filter started.
func (b *Bans) HaveStanding() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.standing {
		b.standing = true
		b.log.restart()
	}
}

// Waiting reports whether bans by other hosts have no effect yet, because the bans on
// disk have not been loaded or because the standing on other hosts has not arrived.
func (b *Bans) Waiting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unread || !b.standing
}

// waiting reports whether the row holds another host's ban that has no effect yet.
func (b *Bans) waiting(row *ban) bool {
	return row.flags&banForeign != 0 && (b.unread || !b.standing)
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
	eachIn(&t.mu, func() map[peerKey]foreignRow[peer] { return t.rows.foreign },
		func(k peerKey, f foreignRow[peer]) (netip.Prefix, bool) {
			standing := f.row.many() || f.row.standing(&t.clock, at).Level >= rules.StandingKnown
			return k.host.Prefix(), k.kind == peerHost && standing
		}, visit)
}
