package memory

import (
	"net/netip"
	"strings"
	"sync"
)

// Another host's ban is stored as an ordinary row, so that all readers of bans see it.
// The names of that host and its rule are stored together. If both hosts have banned a
// client, the row holds the ban that ends later.
//
// An unban on another host also ends the ban here, even if the ban was imposed here.
// The row then keeps the time of the unban. If the same unban arrives again, it has no
// effect. The same is true of an earlier ban that arrives in an old file, from a backup
// of the server, or from a host that does not know of the unban. An unban of a range
// also ends the bans in it.

// originMark separates another host's name from the name of its rule.
const originMark = "\x00"

func splitOrigin(rule string) (origin, name string) {
	if origin, name, ok := strings.Cut(rule, originMark); ok {
		return origin, name
	}
	return "", rule
}

// maxForeignNames is the total number of rule names above which the names in other
// hosts' rows are omitted.
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

// sending removes the fields of a row that other hosts must not receive.
func (n *ruleNames) sending(b *ban) {
	b.last, b.attempts = 0, 0
	origin, name := splitOrigin(n.list[b.rule])
	if origin != "" || len(name) > maxSentName { // the origin is set after an unban of another host's ban
		b.rule = n.number(name[:min(len(name), maxSentName)])
	}
}

// maxSentName is the maximum length of the rule name or reason that other hosts receive.
const maxSentName = 64

// readForeign decodes a row from another host. A row without an origin is this host's
// own, sent back by the server.
func (b *Bans) readForeign(key, value []byte, origin string, by int64) (p netip.Prefix, row ban, ok bool) {
	var names ruleNames
	if p, row, ok = names.read(key, value); !ok {
		return p, row, false
	}
	rule := names.list[row.rule]
	row.flags &^= banForeign | banRejected
	row.shift(by)
	row.last, row.attempts = 0, 0
	if origin == "" {
		row.rule = b.rules.number(rule)
		return p, row, true
	}
	row.flags |= banForeign
	row.times, row.repeats = 0, 0 // only this host's offences count here
	row.rule = b.rules.foreign(origin, strings.ReplaceAll(rule, originMark, ""))
	return p, row, true
}

// An arrival is a row received from another host, or one of this host's own rows that
// was sent back.
type arrival struct {
	prefix  netip.Prefix
	row     ban
	at      uint32 // the current time
	changed bool   // this host's row has changed since it was sent
	unsent  bool   // other hosts may not know this host's row
	partial bool   // see Foreign.Partial
	// seen is the time of the latest unban known to the host that imposed the ban, or
	// 0.
	seen int64
}

// seenSlack is the number of seconds that Foreign.Seen may precede the time of the
// unban, in case a clock was wrong and has since been corrected.
const seenSlack = 6 * 3600

// unbanAhead is the maximum number of seconds that another host's unban may be in the
// future.
const unbanAhead = 30 * 60

// arrival decodes a received row with a value. It returns false if the row is invalid.
func (b *Bans) arrival(f *Foreign, by int64, now uint32) (n arrival, ok bool) {
	n = arrival{at: now, partial: f.Partial}
	if f.Seen != 0 {
		n.seen = f.Seen + by
	}
	n.prefix, n.row, ok = b.readForeign(f.Key, f.Value, f.Origin, by)
	return n, ok
}

// stale reports whether a ban must not replace an unban, because the ban is earlier.
func (n *arrival) stale(unban *ban) bool {
	switch {
	case unban.flags&banRevoked == 0 || n.row.flags&banRevoked != 0 || n.row.since > unban.until:
		return false
	case n.partial: // rows from files reflect only the unbans in other files
		return true
	}
	return n.seen == 0 || n.seen+seenSlack < int64(unban.until)
}

// accept returns the row that results from old and the arrival. replaced is set if the
// result differs from old, and freed if the arrival is a new unban.
func (old ban) accept(known bool, n *arrival) (result ban, replaced, freed bool) {
	row := n.row
	sentBack := row.flags&banForeign == 0
	ownUnban := known && old.flags&(banRevoked|banForeign) == banRevoked
	unban := row.flags&banRevoked != 0
	switch {
	case sentBack && (n.changed && !old.vacated() || ownUnban), n.unsent && ownUnban:
		// The row's host did not know of the latest change. If that change was
		// an unban, it also ends bans by other hosts that do not know of it.
		return old, false, false
	case sentBack && known && !unban && old.flags&banForeign == 0:
		return old, false, false // this host knows its own ban best
	case unban && old.flags&banRevoked != 0:
		return old.again(n)
	case unban && (n.partial || sentBack) && known && old.after(&row):
		return old, false, false
	case unban:
		row.until = min(row.until, n.at+unbanAhead)
		row.since = min(row.since, row.until)
		row.last = old.last
		return row, true, true
	case !known, sentBack && old.flags&banForeign != 0:
		return row, true, false
	case old.flags&banForeign != 0: // replaces the earlier row of other hosts
		row.times, row.repeats = old.times, old.repeats
		if old.rule == row.rule && (old.since == row.since || old.session != 0 && old.session == row.session) {
			row.flags |= old.flags & banRejected // the same ban
		}
		if old.until == row.until && old.since == row.since && old.rule == row.rule && old.flags == row.flags {
			return old, false, false
		}
		row.last, row.attempts = old.last, old.attempts
		return row, true, false
	}
	row.inherit(&old)
	result = old
	mergeBans(&result, row)
	if result.rule == row.rule && result.until == row.until {
		result.last, result.attempts, result.times = old.last, old.attempts, row.times
	}
	return result, result != old, false
}

// again is accept for an unban that follows another unban. A later unban also clears
// the counts, but this host does not send it to other hosts.
func (old ban) again(n *arrival) (result ban, replaced, freed bool) {
	until, within := min(n.row.until, n.at+unbanAhead), n.row.flags&banWithin
	freed = until > old.until+sameUnban || n.partial && until > old.until
	if !freed && within <= old.flags&banWithin || within < old.flags&banWithin {
		return old, false, false // the same unban, or an unban of a single ban in the range
	}
	if freed {
		old.rule = n.row.rule
		old.flags |= banForeign
	}
	old.flags |= within
	old.until = max(old.until, until)
	return old, true, freed
}

// sameUnban is the number of seconds by which the same unban may appear to be later,
// because times are converted between hosts' clocks. Times in files are not converted.
const sameUnban = 2

// after reports whether a ban is later than an unban. In the same second, only the ban
// that the unban ended is earlier; the unban's row keeps that ban's session and start.
func (b *ban) after(unban *ban) bool {
	same := b.session != 0 && b.session == unban.session || b.since == unban.since
	return b.since > unban.until || b.since == unban.until && !same
}

// echo reports whether a row is one of this host's own that was sent back and must be
// ignored. Either this host still has its own row, or its state is intact and it has
// therefore deleted the row. Other hosts must then receive the row or the deletion
// again.
func echo(b *Bans, f *Foreign, old *ban, known bool) bool {
	switch {
	case len(f.Value) == 0 || b.name == "":
		return false
	case f.Origin == b.name:
		return b.kept || known && old.flags&banForeign == 0
	}
	return f.Origin == "" && !f.Partial && b.kept && !known
}

// vacate removes another host's ban from a row, and reports whether there were offences
// on this host. The offences remain. If the other host's ban had replaced a ban by this
// host, that ban is restored when it arrives; see ownCopy.
func (b *ban) vacate() bool {
	b.until, b.session, b.rule, b.attempts, b.flags = b.since, 0, 0, 0, banForeign
	return b.times > 0
}

// vacated reports whether vacate has been called.
func (b *ban) vacated() bool {
	return b.flags == banForeign && b.until == b.since && b.rule == 0 && b.since != 0
}

// ownCopy returns f as one of this host's own rows that was sent back, if f is a ban
// for which the row old is vacated, or an unban that this host lacks because its state
// is from a backup. After the companion has restarted, f carries this host's name.
func ownCopy(b *Bans, f *Foreign, old *ban, known bool) *Foreign {
	if b.name == "" || f.Origin != b.name || !known || !old.vacated() && !f.unban() {
		return f
	}
	own := *f
	own.Origin = ""
	return &own
}

// unbannedRange reports whether an unban of a range also ends the ban of p in n. A ban in the
// same second remains: it may be later, and the operator would not notice its loss.
func unbannedRange(b *Bans, n *arrival) bool {
	p := n.prefix
	ends := func(row ban) bool {
		return row.flags&banWithin != 0 && row.flags&banRevoked != 0 && n.row.since < row.until
	}
	if n.row.flags&(banRevoked|banForeign) != banForeign {
		return false
	}
	if isSource(p) && hostIn(p) != hostIn(p).wide() {
		wide := hostIn(p).wide()
		if row, ok := b.hosts.get(wide); ok && ends(row) {
			return sendAgain(b, wide.Prefix(), row, n)
		}
	}
	for bits := p.Bits() - 1; bits >= 0; bits-- {
		if b.networks.bits[family(p.Addr())][bits] == 0 {
			continue
		}
		q, err := p.Addr().Prefix(bits)
		if row, ok := b.networks.rows[q]; err == nil && ok && ends(row) {
			return sendAgain(b, q, row, n)
		}
	}
	return false
}

// A rangeUnban is another host's unban of all hosts and networks in a prefix.
type rangeUnban struct {
	prefix netip.Prefix
	origin string
	until  uint32
}

// arrived logs a row that was set, and records the bans that it ends.
func arrived(b *Bans, p netip.Prefix, row *ban, f *Foreign, freed bool) {
	b.log.add(p)
	if freed {
		b.freed = append(b.freed, Freed{p, f.Origin})
	}
	if row.flags&banWithin != 0 && row.flags&banRevoked != 0 {
		b.ranges = append(b.ranges, rangeUnban{p, f.Origin, row.until})
	}
}

// endWithin ends the bans within ranges that other hosts have unbanned, except bans
// that started after the unban.
func endWithin(b *Bans, ranges []rangeUnban, now int64) (freed []Freed) {
	if len(ranges) == 0 {
		return nil
	}
	at := b.clock.row(now)
	end := func(p netip.Prefix, row *ban) (f Freed, ok bool) {
		for i := range ranges {
			r := &ranges[i]
			if p == r.prefix || p.Bits() < r.prefix.Bits() || !r.prefix.Contains(p.Addr()) || row.since >= r.until || !row.active(at) {
				continue
			}
			foreign := row.flags & banForeign
			row.revoke(at)
			row.flags |= foreign
			b.log.add(p)
			return Freed{p, r.origin}, true
		}
		return f, false
	}
	locked := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for p, row := range b.networks.rows {
			if f, ok := end(p, &row); ok {
				b.networks.put(p, row)
				freed = append(freed, f)
			}
		}
	}
	locked()
	each(&b.mu, &b.hosts, func(k Host, row ban) (f Freed, ok bool) {
		if f, ok = end(k.Prefix(), &row); ok {
			b.hosts.put(k, row, at)
		}
		return f, ok
	}, func(f Freed) { freed = append(freed, f) })
	return freed
}

// unban reports whether f, which must be the row of a ban, is an unban.
func (f *Foreign) unban() bool {
	return len(f.Value) >= banSize && banFlags(f.Value[banSize-1])&banRevoked != 0
}

// end ends a ban that this host imposed, because another host has unbanned the prefix. If f
// is itself the unban, end leaves the ban alone, because accept replaces it. end reports
// whether it ended the ban.
func (b *ban) end(f *Foreign, at uint32) bool {
	if b.flags&(banForeign|banRevoked) != 0 || f.unban() {
		return false
	}
	b.revoke(at)
	b.flags |= banForeign
	return true
}

// Disclaim causes other hosts to end the ban of p, even if it is not banned here. If
// within is set, they end all bans in p. For an IPv6 address, they end all bans in its
// /64. Disclaim returns false if this host does not belong to a fleet.
func (b *Bans) Disclaim(p netip.Prefix, within bool, now int64) bool {
	p = widen(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fixed {
		return false
	}
	at := b.clock.row(now)
	var extent banFlags
	if within && !p.IsSingleIP() || isSource(p) && p.Addr().Is6() {
		extent = banWithin
	}
	if !isSource(p) {
		row := b.networks.rows[p]
		if !b.networks.makeRoom(p, at) {
			return false
		}
		row.revoke(at)
		row.flags |= extent
		b.networks.put(p, row)
		return true
	}
	k := hostIn(p)
	row, _ := b.hosts.get(k)
	row.revoke(at)
	row.flags |= extent
	b.hosts.put(k, row, at)
	return true
}

// revoke ends a ban. The unban must not be earlier than the ban, which may start in the
// future if its host's clock is ahead.
func (b *ban) revoke(at uint32) {
	if b.since == 0 {
		b.since = at
	}
	b.until = max(at, b.since)
	if b.flags&banForeign != 0 {
		b.flags &^= banForeign | banObserved // other hosts must receive the unban
	}
	b.flags &^= banWithin | banRejected
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
	f = ownCopy(s.Bans, f, &old, known)
	if echo(s.Bans, f, &old, known) {
		if s.hosts.outgoing != nil {
			s.hosts.outgoing[k] = true
		}
		return true
	}
	old = s.rules.seenBy(f, old)
	before := old
	if f.Ended && known && old.end(f, now) {
		s.hosts.put(k, old, now)
		s.log.add(p)
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	if len(f.Value) == 0 {
		if known && s.rules.deletes(f, &old, by) {
			if row, ok := old.unbanned(f, by); ok {
				s.hosts.touch(k, row)
			} else {
				s.hosts.del(k)
			}
			s.log.add(p)
		}
		return true
	}
	n, ok := s.arrival(f, by, now)
	if !ok {
		return false
	}
	if known && s.rules.keeps(f, &old, &n.row, now) || known && n.stale(&before) && sendAgain(s.Bans, p, before, &n) || unbannedRange(s.Bans, &n) {
		return true
	}
	if !known && len(s.hosts.rows) >= s.hosts.limit/maxForeign {
		return true // bans by other hosts must not evict this host's bans
	}
	n.changed, n.unsent = s.hosts.outgoing[k]
	if result, replaced, freed := old.accept(known, &n); replaced {
		s.hosts.put(k, result, now)
		arrived(s.Bans, p, &result, f, freed)
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

func (sharedHostBans) room() int { return 0 }

func (sharedHostBans) foreignRows() int { return 0 }

func (sharedHostBans) displaced() map[uint16]int { return nil }

// imposed returns the other host that imposed a ban, or "".
func (n *ruleNames) imposed(b *ban) string {
	if b.flags&(banForeign|banRevoked) != banForeign {
		return ""
	}
	origin, _ := splitOrigin(n.list[b.rule])
	return origin
}

// deletes reports whether a row without a value deletes a ban.
func (n *ruleNames) deletes(f *Foreign, b *ban, by int64) bool {
	origin := n.imposed(b)
	if strings.HasPrefix(f.Origin, FriendPrefix) && f.Seen != 0 && int64(b.since) > f.Seen+by { // the friend has unbanned an earlier ban
		return false
	}
	return origin != "" && (f.Origin == "" && !f.Partial || f.Origin == origin)
}

// FriendPrefix begins the names of hosts outside the fleet.
const FriendPrefix = "friend."

// friendUnban returns the friend that has unbanned its own ban b, or "". The unban ends
// only bans by the same friend, such as those in its older files.
func (n *ruleNames) friendUnban(b *ban) string {
	origin, _ := splitOrigin(n.list[b.rule])
	if b.flags&(banRevoked|banForeign) != banRevoked|banForeign || !strings.HasPrefix(origin, FriendPrefix) {
		return ""
	}
	return origin
}

// unbanned returns b after a friend has unbanned it, or false if f is not the row of a
// friend's unban.
func (b ban) unbanned(f *Foreign, by int64) (ban, bool) {
	if !strings.HasPrefix(f.Origin, FriendPrefix) || f.Seen == 0 {
		return b, false
	}
	b.until = uint32(max(f.Seen+by, int64(b.since)))
	b.flags = b.flags&^banWithin | banRevoked
	return b, true
}

// seenBy returns the row b as the host of f sees it: an unban by another host's friend
// counts as an ended ban.
func (n *ruleNames) seenBy(f *Foreign, b ban) ban {
	if friend := n.friendUnban(&b); friend != "" && friend != f.Origin {
		b.flags &^= banRevoked
		b.until = b.since
	}
	return b
}

// keeps reports whether the ban b takes precedence over a row from a host other than
// the one that imposed b. A friend's unban must not end b. A partial row does not
// include b, so its ban must not shorten b.
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
			if row.vacate() {
				s.hosts.touch(k, row)
			} else {
				s.hosts.del(k)
			}
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
	t := &s.networks
	old, known := t.rows[p]
	f = ownCopy(s.Bans, f, &old, known)
	if echo(s.Bans, f, &old, known) {
		if t.outgoing != nil {
			t.outgoing[p] = true
		}
		return true
	}
	old = s.rules.seenBy(f, old)
	before := old
	if f.Ended && known && old.end(f, now) {
		t.put(p, old)
		s.log.add(p)
		s.freed = append(s.freed, Freed{p, f.Origin})
	}
	if len(f.Value) == 0 {
		if known && s.rules.deletes(f, &old, by) {
			if row, ok := old.unbanned(f, by); ok {
				t.touch(p, row)
			} else {
				t.del(p)
			}
			s.log.add(p)
		}
		return true
	}
	n, ok := s.arrival(f, by, now)
	if !ok {
		return false
	}
	if known && s.rules.keeps(f, &old, &n.row, now) || known && n.stale(&before) && sendAgain(s.Bans, p, before, &n) || unbannedRange(s.Bans, &n) {
		return true
	}
	if !known && f.Origin != "" && len(t.rows) >= maxNetworkBans/maxForeign {
		return true // leaves room for bans of this host's operator
	}
	n.changed, n.unsent = t.outgoing[p]
	if result, replaced, freed := old.accept(known, &n); replaced && t.makeRoom(p, now) {
		t.put(p, result)
		arrived(s.Bans, p, &result, f, freed)
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

func (sharedNetworkBans) room() int { return 0 }

func (sharedNetworkBans) foreignRows() int { return 0 }

func (sharedNetworkBans) displaced() map[uint16]int { return nil }

func (s sharedNetworkBans) count(mu *sync.Mutex, add func(host string)) {
	countBans(&s.rules, mu, func() map[netip.Prefix]ban { return s.networks.rows }, add)
}

func (s sharedNetworkBans) disown(origin string) (n int) {
	for p, row := range s.networks.rows {
		if s.rules.imposed(&row) == origin {
			if row.vacate() {
				s.networks.touch(p, row)
			} else {
				s.networks.del(p)
			}
			s.log.add(p)
			n++
		}
	}
	return n
}
