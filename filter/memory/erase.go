package memory

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"scanwatch/rules"
)

// An Erasure selects the rows about a person.
type Erasure struct {
	Prefix  netip.Prefix // addresses of hosts, possibly invalid; an IPv6 address is widened to its /64
	User    []byte       // empty for no user
	Mailbox []byte       // empty for no mailbox
	Bans    bool         // also delete active, enforced bans
}

// An Erased is the result of an erasure.
type Erased struct {
	// Rows counts the rows by table, as in Status.
	Rows map[string]int `json:"rows"`
	// Kept lists the active bans that remain. Bans of larger networks that contain
	// the prefix are not included.
	Kept []Ban `json:"kept_bans,omitempty"`
}

// Erase deletes a person's rows, or only counts them if dry is set. Unless e.Bans is
// set, active bans are kept until they end.
//
// Some rows cannot be found, because their keys are hashes that combine the person with
// another name. Examples are failed logins by host and user, and requests for mailboxes
// by client. These rows remain until they expire.
//
// Copies of other hosts' rows are also deleted here. The other hosts keep these rows,
// and send them again when they change.
//
// A deleted host does not count as dropped; see Peers.Forgotten.
func (m *Memory) Erase(e Erasure, now int64, dry bool) Erased {
	out := Erased{Rows: make(map[string]int)}
	at := m.clock.row(now)
	if e.Prefix.IsValid() {
		hosts := numbers(m, widen(e.Prefix))
		hosts[HostOf(e.Prefix.Addr(), true).number()] = true
		m.eraseHosts(widen(e.Prefix), hosts, e.Bans, at, dry, &out)
	}
	if len(e.User) > 0 {
		eraseUser(m, e.User, dry, &out)
	}
	if len(e.Mailbox) > 0 {
		k := m.Recipients.Mailbox(e.Mailbox)
		erase(&m.mu, &m.Recipients.rows, dry, &out, func(row uint64, _ recipient) bool { return row == k })
	}
	return out
}

// eraseHosts deletes the rows of the hosts in p. hosts contains the numbers of hosts
// that inPrefix does not recognise.
func (m *Memory) eraseHosts(p netip.Prefix, hosts map[uint64]bool, bans bool, at uint32, dry bool, out *Erased) {
	active := func(b *ban) bool { return b.until > at && b.flags&banObserved == 0 }
	kept := func(b *ban) bool { return !bans && active(b) }
	for _, k := range []*book{&m.Bans.own, &m.Bans.others} {
		var ended []netip.Prefix
		erase(&m.mu, &k.hosts, dry, out, func(h Host, b ban) bool {
			if !p.Contains(h.Prefix().Addr()) {
				return false
			}
			if kept(&b) {
				out.Kept = append(out.Kept, m.Bans.export(h.Prefix(), b))
				return false
			}
			if active(&b) {
				ended = append(ended, h.Prefix())
			}
			return true
		})
		if !dry {
			logEnded(m.Bans, ended)
		}
		eraseNetworks(m, &k.networks, p, kept, dry, out)
		eraseNetworks(m, &k.ranges, p, kept, dry, out)
	}
	erase(&m.mu, &m.Peers.rows, dry, out, func(k peerKey, _ peer) bool { return k.kind != peerDomain && p.Contains(k.host.Prefix().Addr()) })
	has := func(n uint64) bool { return hosts[n] || inPrefix(n, p) }
	// If a network also includes other hosts, its counts do not describe a single
	// person.
	whole := p.Bits() <= 24 || p.Addr().Is6() && p.Bits() <= 48
	erase(&m.mu, &m.Counters.rows, dry, out, func(k counterKey, _ counter) bool {
		return k.by == rules.BySrc && has(k.subject) || whole && k.by == rules.ByPrefix && inPrefix(k.subject, p)
	})
	erase(&m.mu, &m.Recipients.balances, dry, out, func(host uint64, _ balance) bool { return has(host) })
	erase(&m.mu, &m.Logins.sprays, dry, out, func(k sprayKey, _ spray) bool {
		return k.kind.ofHost() && has(k.subject) || whole && k.kind == usersOfNet && inPrefix(k.subject, p)
	})
}

// numbers returns the numbers of the hosts in p that are identified by a single IPv6
// address.
func numbers(m *Memory, p netip.Prefix) map[uint64]bool {
	hosts := make(map[uint64]bool)
	if p.Addr().Is6() {
		m.Bans.addresses(hosts, func(q netip.Prefix) bool { return p.Contains(q.Addr()) })
		each(&m.mu, &m.Peers.rows, func(k peerKey, _ peer) (uint64, bool) {
			return k.host.number(), k.kind != peerDomain && p.Contains(k.host.Prefix().Addr())
		}, func(n uint64) { hosts[n] = true })
	}
	return hosts
}

// eraseNetworks deletes the bans of the networks in p.
func eraseNetworks(m *Memory, n *networkBans, p netip.Prefix, kept func(*ban) bool, dry bool, out *Erased) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range slices.Collect(maps.Keys(n.rows)) {
		b := n.rows[q]
		switch {
		case q.Bits() < p.Bits() || !p.Contains(q.Addr()):
			continue
		case kept(&b):
			out.Kept = append(out.Kept, m.Bans.export(q, b))
			continue
		}
		out.Rows[n.status().Table]++
		if !dry {
			n.del(q)
			m.Bans.log.add(q)
		}
	}
}

// logEnded adds the prefixes of ended bans to the log that Changed reads.
func logEnded(b *Bans, ended []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range ended {
		b.log.add(p)
	}
}

// eraseUser deletes a user's rows.
func eraseUser(m *Memory, user []byte, dry bool, out *Erased) {
	u := userHash(m, user)
	erase(&m.mu, &m.Counters.rows, dry, out, func(k counterKey, _ counter) bool { return k.by == rules.ByUser && k.subject == u })
	erase(&m.mu, &m.Logins.sprays, dry, out, func(k sprayKey, _ spray) bool {
		return !k.kind.ofHost() && k.kind != usersOfNet && k.subject == u
	})
	erase(&m.mu, &m.Logins.accounts, dry, out, func(k uint64, _ ask) bool { return k == mix(u, 1) || k == mix(u, 2) })
}

func userHash(m *Memory, user []byte) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hash('u', user)
}

// erase counts and deletes the rows for which want returns true. If dry is set, the
// rows are only counted. The lock is released regularly.
func erase[K comparable, V any](mu *sync.Mutex, t *table[K, V], dry bool, out *Erased, want func(K, V) bool) {
	var keys []K
	each(mu, t, func(k K, v V) (K, bool) { return k, want(k, v) }, func(k K) { keys = append(keys, k) })
	if n := eraseForeign(mu, t, dry, want); n > 0 {
		out.Rows[t.name] += n
	}
	if len(keys) == 0 {
		return
	}
	out.Rows[t.name] += len(keys)
	for some := range slices.Chunk(keys, chunk) {
		if !dry {
			t.delAll(mu, some)
		}
	}
}

func (t *table[K, V]) delAll(mu *sync.Mutex, keys []K) {
	mu.Lock()
	defer mu.Unlock()
	for _, k := range keys {
		if _, ok := t.rows[k]; ok {
			t.del(k)
		}
	}
}
