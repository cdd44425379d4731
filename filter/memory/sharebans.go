package memory

import (
	"net/netip"
	"strings"
	"sync"
)

// A ban of another host is a row like any ban of this host, so that all readers of bans
// see it. The names of the host and its rule are stored together. If both hosts have
// banned a client, the row is that of the ban that ends later.
//
// An unban on another host also ends the ban here, even if the ban was imposed here. The
// row then keeps the time of the unban, and the same unban has no effect again.

// originMark separates the name of another host from the name of its rule.
const originMark = "\x00"

func splitOrigin(rule string) (origin, name string) {
	if origin, name, ok := strings.Cut(rule, originMark); ok {
		return origin, name
	}
	return "", rule
}

// maxForeignNames is the maximum number of rule names, of this and of other hosts, with
// which other hosts can still add names. Later names of other hosts are omitted.
const maxForeignNames = 1 << 14

func (n *ruleNames) foreign(origin, rule string) uint16 {
	if len(n.list) >= maxForeignNames {
		rule = ""
	}
	if len(n.list) >= 2*maxForeignNames {
		return 0
	}
	return n.number(origin + originMark + rule)
}

// reset deletes all names except number 0.
func (n *ruleNames) reset() {
	if len(n.list) > 1 {
		*n = newRuleNames()
	}
}

// ownBan reports whether other hosts must receive a row.
func ownBan(b *ban) bool { return b.flags&(banForeign|banObserved) == 0 }

// sending removes from a row what other hosts must not receive.
func (n *ruleNames) sending(b *ban) {
	b.last, b.attempts = 0, 0
	origin, name := splitOrigin(n.list[b.rule])
	if origin != "" || len(name) > maxSentName { // the origin is set after an unban of another host's ban
		b.rule = n.number(name[:min(len(name), maxSentName)])
	}
}

// maxSentName is the maximum length of the rule name or reason that other hosts receive.
const maxSentName = 64

// readForeign decodes a row of another host. Without an origin, the row is one of this
// host that has been sent back.
func (b *Bans) readForeign(key, value []byte, origin string, by int64) (p netip.Prefix, row ban, ok bool) {
	var names ruleNames
	if p, row, ok = names.read(key, value); !ok {
		return p, row, false
	}
	rule := names.list[row.rule]
	row.shift(by)
	row.last, row.attempts = 0, 0
	if row.flags &^= banForeign; origin == "" {
		row.rule = b.rules.number(rule)
		return p, row, true
	}
	row.flags |= banForeign
	row.rule = b.rules.foreign(origin, strings.ReplaceAll(rule, originMark, ""))
	return p, row, true
}

// accept returns the row that results from old and the row of another host, and whether
// it differs from old. freed is set if old has not been revoked before. unsent reports
// whether other hosts may not know old; changed, whether it has changed since this host
// sent its row.
func (old ban) accept(known, unsent, changed bool, row ban, at uint32) (result ban, replaced, freed bool) {
	sentBack := row.flags&banForeign == 0
	ownUnban := known && old.flags&(banRevoked|banForeign) == banRevoked
	switch {
	case sentBack && (changed || ownUnban), unsent && ownUnban:
		// The row does not know the latest change. If that is an unban, it also ends the
		// bans of other hosts that do not know it.
		return old, false, false
	case row.flags&banRevoked != 0 && old.flags&banRevoked != 0:
		return old, false, false
	case row.flags&banRevoked != 0:
		row.until = min(row.until, at) // the clock of the host that revoked the ban may be ahead
		row.since, row.times = min(row.since, row.until), max(row.times, old.times)
		row.last = old.last
		return row, true, true
	case !known, sentBack && old.flags&banForeign != 0:
		return row, true, false
	case !sentBack && old.flags&banForeign != 0: // replaces the earlier row of other hosts
		if old.until == row.until && old.since == row.since && old.rule == row.rule && old.flags == row.flags && old.times >= row.times {
			return old, false, false
		}
		row.last, row.attempts, row.times = old.last, old.attempts, max(old.times, row.times)
		return row, true, false
	}
	result = old
	mergeBans(&result, row)
	if result.rule == row.rule && result.until == row.until {
		result.last, result.attempts = old.last, old.attempts
	}
	return result, result != old, false
}

// end ends a ban of this host because of another host's unban. It reports whether it did.
func (b *ban) end(at uint32) bool {
	if b.flags&(banForeign|banRevoked) != 0 {
		return false
	}
	b.revoke(at)
	b.flags |= banForeign
	return true
}

// Disclaim causes other hosts to end the ban of p, which is not banned here. An IPv6 address
// is widened to its /64. Disclaim returns false unless this host is one of a fleet.
func (b *Bans) Disclaim(p netip.Prefix, now int64) bool {
	p = widen(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fixed {
		return false
	}
	at := b.clock.row(now)
	if !isSource(p) {
		row := b.networks.rows[p]
		if !b.networks.makeRoom(p, at) {
			return false
		}
		row.revoke(at)
		b.networks.put(p, row)
		return true
	}
	k := hostIn(p)
	row, _ := b.hosts.get(k)
	row.revoke(at)
	b.hosts.put(k, row, at)
	return true
}

// revoke ends a ban.
func (b *ban) revoke(at uint32) {
	b.since, b.until = min(b.since, at), at // the clock of another host may be ahead
	if b.since == 0 {
		b.since = at
	}
	if b.flags&banForeign != 0 {
		b.flags &^= banForeign | banObserved // other hosts must receive the unban
	}
	b.flags |= banRevoked
}

type sharedHostBans struct{ *Bans }

func (sharedHostBans) bucketName() string { return bansBucket }

func (s sharedHostBans) announce() { sharedRows[Host, ban]{table: &s.hosts}.announce() }

func (s sharedHostBans) send(n int, by int64, put func(key, value []byte)) (left int) {
	return send(&s.hosts, n, by, put, func(_ Host, b *ban) bool {
		s.rules.sending(b)
		return ownBan(b)
	})
}

func (s sharedHostBans) receive(f *Foreign, by int64, now uint32) bool {
	p, ok := readPrefix(f.Key)
	if !ok || !isSource(p) {
		return false
	}
	k := hostIn(p)
	old, known := s.hosts.live(k, now)
	if f.Ended && known && old.end(now) {
		s.hosts.put(k, old, now)
		s.log.add(p)
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	if len(f.Value) == 0 {
		if known && s.rules.deletes(f, &old) {
			s.hosts.del(k)
			s.log.add(p)
		}
		return true
	}
	_, row, ok := s.readForeign(f.Key, f.Value, f.Origin, by)
	if !ok {
		return false
	}
	if known && s.rules.keeps(f, &old, &row, now) {
		return true
	}
	if !known && len(s.hosts.rows) >= s.hosts.limit/maxForeign {
		return true // bans of other hosts must not evict this host's bans
	}
	changed, unsent := s.hosts.outgoing[k]
	result, replaced, freed := old.accept(known, unsent, changed, row, now)
	if replaced {
		s.hosts.put(k, result, now)
		s.log.add(p)
	}
	if freed {
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	return true
}

func (s sharedHostBans) combine(key []byte, values [][]byte, now uint32) []byte {
	return combine(&s.hosts, key, values, now)
}

func (s sharedHostBans) valid(key, value []byte, latest uint32) bool {
	_, b, ok := s.hosts.decode(key, value)
	return ok && b.since <= b.until && b.since <= latest
}

func (sharedHostBans) foreignRows() int { return 0 }

// imposed returns the other host that imposed a ban, or "".
func (n *ruleNames) imposed(b *ban) string {
	if b.flags&(banForeign|banRevoked) != banForeign {
		return ""
	}
	origin, _ := splitOrigin(n.list[b.rule])
	return origin
}

// deletes reports whether a row without a value deletes a ban.
func (n *ruleNames) deletes(f *Foreign, b *ban) bool {
	origin := n.imposed(b)
	return origin != "" && (f.Origin == "" && !f.Partial || f.Origin == origin)
}

// FriendPrefix begins the names of hosts that do not belong to the fleet.
const FriendPrefix = "friend."

// keeps reports whether the ban b has precedence over the row of another host than that
// which imposed b. The unban of a friend must not end b, and a partial row does not include
// b, so that its ban must not shorten b.
func (n *ruleNames) keeps(f *Foreign, b, row *ban, now uint32) bool {
	origin := n.imposed(b)
	if !b.active(now) || origin == f.Origin {
		return false
	}
	return strings.HasPrefix(f.Origin, FriendPrefix) || f.Partial && origin != "" && row.flags&banRevoked == 0 && row.until <= b.until
}

// countBans calls add with the host of each ban that another host imposed.
func countBans[K comparable](n *ruleNames, mu *sync.Mutex, rows func() map[K]ban, add func(host string)) {
	eachIn(mu, rows, func(_ K, row ban) (string, bool) {
		origin := n.imposed(&row)
		return origin, origin != ""
	}, add)
}

func (s sharedHostBans) count(mu *sync.Mutex, add func(host string)) {
	countBans(&s.rules, mu, func() map[Host]ban { return s.hosts.rows }, add)
}

func (s sharedHostBans) disown(origin string) (n int) {
	for k, row := range s.hosts.rows {
		if s.rules.imposed(&row) == origin {
			s.hosts.del(k)
			s.log.add(k.Prefix())
			n++
		}
	}
	return n
}

type sharedNetworkBans struct{ *Bans }

func (sharedNetworkBans) bucketName() string { return bansBucket }

func (s sharedNetworkBans) announce() {
	n := &s.networks
	if n.outgoing == nil {
		n.outgoing = make(map[netip.Prefix]bool)
	}
	announce(n.outgoing, n.rows)
}

func (s sharedNetworkBans) send(n int, by int64, put func(key, value []byte)) (left int) {
	for p := range s.networks.outgoing {
		if n <= 0 {
			return n
		}
		delete(s.networks.outgoing, p)
		row, ok := s.networks.rows[p]
		switch {
		case !ok:
			put(prefixKey(p), nil)
		case !ownBan(&row):
			continue
		default:
			s.rules.sending(&row)
			row.shift(by)
			put(prefixKey(p), s.rules.value(row))
		}
		n--
	}
	return n
}

func (s sharedNetworkBans) receive(f *Foreign, by int64, now uint32) bool {
	p, ok := readPrefix(f.Key)
	if !ok || isSource(p) {
		return false
	}
	n := &s.networks
	old, known := n.rows[p]
	if f.Ended && known && old.end(now) {
		n.put(p, old)
		s.log.add(p)
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	if len(f.Value) == 0 {
		if known && s.rules.deletes(f, &old) {
			n.del(p)
			s.log.add(p)
		}
		return true
	}
	_, row, ok := s.readForeign(f.Key, f.Value, f.Origin, by)
	if !ok {
		return false
	}
	if known && s.rules.keeps(f, &old, &row, now) {
		return true
	}
	changed, unsent := n.outgoing[p]
	result, replaced, freed := old.accept(known, unsent, changed, row, now)
	if !known && f.Origin != "" && len(n.rows) >= maxNetworkBans/maxForeign {
		return true // leaves room for bans of this host's operator
	}
	if replaced && n.makeRoom(p, now) {
		n.put(p, result)
		s.log.add(p)
	}
	if freed {
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	return true
}

func (s sharedNetworkBans) combine(key []byte, values [][]byte, now uint32) []byte {
	var sum []byte
	var latest ban
	for _, value := range values {
		p, row, ok := s.rules.read(key, value)
		if !ok || isSource(p) || banScore(p, row, now) < 0 {
			continue
		}
		if sum == nil {
			latest = row
		} else {
			mergeBans(&latest, row)
		}
		sum = s.rules.value(latest)
	}
	return sum
}

func (s sharedNetworkBans) valid(key, value []byte, latest uint32) bool {
	p, b, ok := s.rules.read(key, value)
	return ok && !isSource(p) && b.since <= b.until && b.since <= latest
}

func (sharedNetworkBans) foreignRows() int { return 0 }

func (s sharedNetworkBans) count(mu *sync.Mutex, add func(host string)) {
	countBans(&s.rules, mu, func() map[netip.Prefix]ban { return s.networks.rows }, add)
}

func (s sharedNetworkBans) disown(origin string) (n int) {
	for p, row := range s.networks.rows {
		if s.rules.imposed(&row) == origin {
			s.networks.del(p)
			s.log.add(p)
			n++
		}
	}
	return n
}
