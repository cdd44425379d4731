package memory

import (
	"net/netip"
	"strings"
	"sync"
)

// The bans of other hosts are kept in Bans.others. The merged row of a prefix replaces the
// previous one. The names of the other host and its rule are stored together.
//
// An unban on another host also ends the ban here, even if this host imposed it. Bans.own
// then keeps the time of the unban. If the same unban arrives again, it has no effect. Nor
// does an earlier ban that arrives from an old file, from a backup of the server, or from a
// host that does not know the unban. An unban of a range also ends the bans in it.

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

// sending decides what other hosts receive of a row, and removes the fields that they must not
// receive. If another host has ended a ban, this host's copy must not remain: it would take effect
// again on a host that does not know the unban.
func (n *ruleNames) sending(b *ban) sending {
	switch {
	case b.flags&banForeign != 0:
		return sendDeletion
	case b.flags&banObserved != 0:
		return sendNothing
	}
	b.last, b.attempts = 0, 0
	if b.flags&banKnew != 0 {
		b.extra, b.flags = 0, b.flags&^banKnew
	}
	origin, name := splitOrigin(n.list[b.rule])
	if origin != "" || len(name) > maxSentName { // the origin is set after an unban of another host's ban
		b.rule = n.number(name[:min(len(name), maxSentName)])
	}
	return sendRow
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
	if row.flags&banForeign != 0 {
		row.extra = 0
	}
	row.flags &^= banForeign | banKnew
	row.shift(by)
	row.last, row.attempts = 0, 0
	if origin == "" {
		row.rule = b.rules.number(rule)
		return p, row, true
	}
	row.flags |= banForeign
	row.extra = 0
	row.times = 0 // only this host's offences count here
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

// MayEnd reports whether an unban can end a ban that started at since, regardless of what their
// hosts knew. Both times are in seconds since 1970. A ban that started long after the unban is a
// later one, even if the clock of one of the hosts was wrong.
func MayEnd(since, unban int64) bool { return since <= unban+seenSlack }

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

// accept returns the row of this host that results from old and an arrival, which is either an
// unban or a ban of this host that was sent back. replaced is set if the result differs from
// old, and freed if the arrival is a new unban.
func (old ban) accept(known bool, n *arrival) (result ban, replaced, freed bool) {
	row := n.row
	sentBack := row.flags&banForeign == 0
	unban := row.flags&banRevoked != 0
	switch {
	case sentBack && (n.changed || known && old.ownUnban()), n.unsent && known && old.ownUnban():
		// The row does not know the latest change. If that is an unban, it also ends the
		// bans by other hosts that do not know it.
		return old, false, false
	case sentBack && known && !unban && old.flags&banForeign == 0:
		return old, false, false // this host knows its own ban best
	case unban && old.flags&banRevoked != 0:
		return old.again(n)
	case unban && known && (old.knows(int64(row.until)) || !MayEnd(int64(old.since), int64(row.until))):
		return old, false, false
	case unban && (n.partial || sentBack) && known && old.after(&row):
		return old, false, false
	case unban:
		row.until = min(row.until, n.at+unbanAhead)
		row.since = min(row.since, row.until)
		row.last = old.last
		return row, true, true
	}
	return row, true, false
}

// ownUnban reports whether the row holds an unban of this host.
func (b *ban) ownUnban() bool { return b.flags&(banRevoked|banForeign) == banRevoked }

// lastUnban returns the time of the latest unban in the row of this host, or 0, and banKnew if other
// hosts know that unban.
func (b *ban) lastUnban() (uint32, banFlags) {
	switch b.flags & (banRevoked | banForeign) {
	case banRevoked:
		return b.until, 0
	case banRevoked | banForeign:
		return b.until, banKnew
	case banForeign:
		return 0, 0
	}
	return b.extra, b.flags & banKnew
}

// knows reports whether the row is a ban of this host, which knew of another host's unban at the
// given time when it imposed the ban. After a restart, all unbans arrive again. They must not end
// later bans.
func (b *ban) knows(unban int64) bool {
	return b.flags&(banRevoked|banForeign) == 0 && b.extra != 0 && unban <= int64(b.extra)+sameUnban
}

// again is accept for an unban that follows another one. A later one also clears the counts,
// and other hosts do not receive it from here.
func (old ban) again(n *arrival) (result ban, replaced, freed bool) {
	until, within := min(n.row.until, n.at+unbanAhead), n.row.flags&banWithin
	freed = until > old.until+sameUnban || n.partial && until > old.until
	if !freed && within <= old.flags&banWithin || within < old.flags&banWithin {
		return old, false, false // the same unban, or an unban of a single ban in the range
	}
	if freed {
		old.rule = n.row.rule
		old.flags |= banForeign
		old.extra = 0
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
// ignored. Either this host still has its own row, or it has not lost the row and has
// therefore deleted it. Other hosts must then receive the row or the deletion again.
func echo(b *Bans, f *Foreign, old *ban, known, changed bool, by int64) bool {
	if len(f.Value) < banSize || b.name == "" || f.Partial && f.Origin == "" {
		return false
	}
	var row ban
	row.since = be.Uint32(f.Value)
	row.shift(by)
	p, _ := readPrefix(f.Key)
	other, sentBack := b.others.get(p) // after a loss, this host's bans are in that book
	sentBack = sentBack && b.rules.imposed(&other) == b.name
	deleted := !known && !sentBack && (changed || !b.lost(row.since))
	switch f.Origin {
	case "":
		return deleted
	case b.name:
		return deleted || known && (b.kept || old.flags&banForeign == 0)
	}
	return false
}

// sentBackUnban returns f as a row of this host that has been sent back, if it is an unban that this
// host lacks because its state is from a backup. After a restart of the companion, such a row
// has the name of this host.
func sentBackUnban(b *Bans, f *Foreign, known bool) *Foreign {
	if b.name == "" || f.Origin != b.name || !known || !f.unban() {
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
	if isSource(p) && hostIn(p) != hostIn(p).wide() {
		wide := hostIn(p).wide()
		if row, ok := b.own.hosts.get(wide); ok && ends(row) {
			return sendAgain(b, wide.Prefix(), row, n)
		}
	}
	for bits := p.Bits() - 1; bits >= 0; bits-- {
		if b.own.networks.bits[family(p.Addr())][bits] == 0 {
			continue
		}
		q, err := p.Addr().Prefix(bits)
		if row, ok := b.own.networks.rows[q]; err == nil && ok && ends(row) {
			return sendAgain(b, q, row, n)
		}
	}
	return false
}

// unbans lists the effects of other hosts' unbans.
type unbans struct {
	freed   []Freed
	cleared []netip.Prefix // their counts must be deleted
	ranges  []rangeUnban
}

// A rangeUnban is another host's unban of all hosts and networks in a prefix.
type rangeUnban struct {
	prefix netip.Prefix
	origin string
	until  uint32
}

// clears reports whether another host's unban of p deletes the counts of p, although it has ended no
// ban here. old is the previous row. Without these limits, a host could prevent all bans on this
// host with repeated unbans.
func (b *ban) clears(p netip.Prefix, old *ban) bool {
	const again = 3600
	if p.Bits() < 24 || p.Addr().Is6() && p.Bits() < 48 {
		return false
	}
	return old.flags&banRevoked == 0 || int64(b.until) > int64(old.until)+again
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
	var latest prefixMap[*rangeUnban]
	for i := range ranges {
		r := &ranges[i]
		if old := latest.rows[r.prefix]; old == nil || old.until < r.until {
			latest.set(r.prefix, r)
		}
	}
	within := func(p netip.Prefix, row *ban) *rangeUnban {
		if !row.active(at) {
			return nil
		}
		r, _ := latest.find(p, func(q netip.Prefix, r *rangeUnban) bool { return q != p && row.since < r.until })
		return r
	}
	add := func(f Freed) { freed = append(freed, f) }
	visitBook(b.shared, &b.own, func(p netip.Prefix, row ban) (f Freed, ok bool) {
		r := within(p, &row)
		if r == nil {
			return f, false
		}
		row.revoke(at)
		b.own.put(p, row, at)
		b.log.add(p)
		return Freed{p, r.origin}, true
	}, add)
	visitBook(b.shared, &b.others, func(p netip.Prefix, row ban) (f Freed, ok bool) {
		r := within(p, &row)
		if r == nil {
			return f, false
		}
		b.others.del(p) // the unban of the range remains
		b.log.add(p)
		return Freed{p, r.origin}, true
	}, add)
	return freed
}

// unban reports whether f, which must be the row of a ban, is an unban.
func (f *Foreign) unban() bool {
	return len(f.Value) >= banSize && banFlags(f.Value[banSize-1])&banRevoked != 0
}

// ended returns the time of the unban because of which Ended is set. f must be the row of a ban.
func (f *Foreign) ended(by int64) int64 {
	if f.unban() {
		return int64(be.Uint32(f.Value[4:])) + by
	}
	return f.Seen + by - unbanDelay
}

// unbanDelay is the number of seconds that Foreign.Seen may follow the time of the unban, because
// the companion receives an unban some time later.
const unbanDelay = 5

// end ends a ban that this host imposed, because another host has unbanned the prefix. If f
// is itself the unban, end leaves the ban alone, because accept replaces it. end reports
// whether it ended the ban.
func (b *ban) end(f *Foreign, at uint32) bool {
	if b.flags&(banForeign|banRevoked) != 0 || f.unban() {
		return false
	}
	b.revoke(at)
	b.flags |= banForeign
	if len(f.Value) > 0 { // the ban in f is later than the unban, and must not count as earlier
		b.until = b.since
	}
	return true
}

// unbannedBefore records an unban that is older than the ban in f, so that this host's counts from
// before the unban do not add to later ones, and ends an older ban from a file.
func unbannedBefore(b *Bans, p netip.Prefix, f *Foreign, by int64, now uint32) {
	if len(f.Value) < banSize || f.unban() || f.Seen == 0 {
		return
	}
	var unban ban
	unban.since = be.Uint32(f.Value)
	unban.shift(by)
	unban.since = uint32(max(min(int64(unban.since), f.Seen+by, int64(now)), 1)) // not later than the ban
	unban.until = unban.since
	unban.flags, unban.rule = banRevoked|banForeign, b.rules.foreign(f.Origin, "")
	if other, ok := b.others.get(p); ok && f.Partial && b.rules.imposed(&other) != f.Origin && !other.after(&unban) {
		b.others.del(p)
		b.log.add(p)
	}
	old, known := b.own.live(p, now)
	_, unsent := b.own.outgoing(p)
	if known && (!old.revokedBefore(&unban) || unsent && old.ownUnban()) || !known && !b.own.room(p) {
		return
	}
	if unban.last = old.last; b.own.put(p, unban, now) {
		b.log.add(p)
		b.freed = append(b.freed, Freed{p, f.Origin})
		if unban.clears(p, &old) {
			b.cleared = append(b.cleared, p)
		}
	}
}

// revokedBefore reports whether the row holds an earlier unban of a single prefix.
func (b *ban) revokedBefore(unban *ban) bool {
	return b.flags&(banRevoked|banWithin) == banRevoked && b.until+sameUnban < unban.until
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
	row, _ := b.own.get(p)
	row.revoke(at)
	row.flags |= extent
	if !b.own.put(p, row, at) {
		return false
	}
	if _, ok := b.others.get(p); ok {
		b.others.del(p)
		b.log.add(p)
	}
	return true
}

// revoke ends a ban. The unban must not be earlier than the ban, which may start in the
// future if its host's clock is ahead.
func (b *ban) revoke(at uint32) {
	if b.since == 0 {
		b.since = at
	}
	b.until = max(at, b.since)
	if b.flags&banObserved != 0 {
		b.times = 0 // observed offences do not count towards enforced bans
	}
	b.flags &^= banForeign | banObserved | banWithin | banKnew // other hosts must receive the unban
	b.extra = 0
	b.flags |= banRevoked
}

// sharedBans shares this host's bans and unbans, and receives other hosts' bans and unbans.
type sharedBans struct{ *Bans }

func (sharedBans) bucketName() string { return BansBucket }

func (s sharedBans) announce() {
	h, n := &s.own.hosts, &s.own.networks
	if h.outgoing == nil {
		h.outgoing, n.outgoing = make(map[Host]bool), make(map[netip.Prefix]bool)
	}
	announce(h.outgoing, h.rows)
	announce(n.outgoing, n.rows)
}

func (s sharedBans) send(n int, by int64, put func(key, value []byte)) (left int) {
	n = send(&s.own.hosts, n, by, put, func(_ Host, b *ban) sending { return s.rules.sending(b) })
	t := &s.own.networks
	for p := range t.outgoing {
		if n <= 0 {
			return n
		}
		delete(t.outgoing, p)
		row, ok := t.rows[p]
		what := sendDeletion
		if ok {
			what = s.rules.sending(&row)
		}
		switch what {
		case sendNothing:
			continue
		case sendDeletion:
			put(prefixKey(p), nil)
		case sendRow:
			row.shift(by)
			put(prefixKey(p), s.rules.value(row))
		}
		n--
	}
	return n
}

func (s sharedBans) receive(f *Foreign, by int64, now uint32) bool {
	p, ok := readPrefix(f.Key)
	if !ok {
		return false
	}
	old, known := s.own.live(p, now)
	f = sentBackUnban(s.Bans, f, known)
	changed, unsent := s.own.outgoing(p)
	if echo(s.Bans, f, &old, known, changed, by) {
		s.own.resend(p)
		return true
	}
	before := old
	if f.Ended && known && (old.knows(f.ended(by)) || f.Seen != 0 && !f.unban() && !MayEnd(int64(old.since), f.Seen+by)) {
		s.own.resend(p) // with the stamp of the unban
	} else if f.Ended && known && old.end(f, now) {
		if f.Origin != "" && f.Origin != s.name {
			old.rule = s.rules.foreign(f.Origin, s.rules.list[old.rule])
		}
		s.own.put(p, old, now)
		s.log.add(p)
		s.freed, s.cleared = append(s.freed, Freed{p, f.Origin}), append(s.cleared, p)
	} else if f.Ended {
		unbannedBefore(s.Bans, p, f, by, now)
		old, known = s.own.live(p, now)
	}
	if len(f.Value) == 0 {
		deleteForeign(s.Bans, p, f, by)
		return true
	}
	n, ok := s.arrival(f, by, now)
	if !ok {
		return false
	}
	n.changed, n.unsent = s.own.outgoing(p)
	switch {
	case n.row.flags&(banForeign|banRevoked) != banForeign:
		receiveOwn(s.Bans, f, &n, old, known)
	case known && n.stale(&before) && sendAgain(s.Bans, p, before, &n), known && unsent && old.ownUnban(), unbannedRange(s.Bans, &n):
		// The ban was ended by an unban that this host knows.
	default:
		if known && old.ownUnban() && !n.partial {
			// The unban has been sent. If this host sent it again, for example after a
			// correction of the clock, it would count as later than the ban.
			old.flags |= banForeign
			old.extra = 0
			s.own.touch(p, old)
		}
		receiveForeign(s.Bans, f, &n)
	}
	return true
}

// receiveOwn handles an unban, or a row of this host that was sent back. An unban also ends the
// bans by other hosts, except that of a friend or in a file if it is later.
func receiveOwn(b *Bans, f *Foreign, n *arrival, old ban, known bool) {
	p, ended := n.prefix, known && old.active(n.at)
	if strings.HasPrefix(f.Origin, FriendPrefix) {
		return // a friend cannot end bans of other hosts
	}
	if other, ok := b.others.get(p); ok && n.row.flags&banRevoked != 0 {
		origin, _ := splitOrigin(b.rules.list[other.rule])
		if !n.partial && !strings.HasPrefix(origin, FriendPrefix) || other.active(n.at) && !other.after(&n.row) {
			ended = ended || other.active(n.at)
			b.others.del(p)
			b.log.add(p)
		}
	}
	if !known && f.Origin != "" && !b.own.room(p) {
		return
	}
	if result, replaced, freed := old.accept(known, n); replaced && b.own.put(p, result, n.at) {
		arrived(b, p, &result, f, freed)
		if freed && (ended || result.clears(p, &old)) {
			b.cleared = append(b.cleared, p)
		}
	}
}

// receiveForeign handles a ban by another host.
func receiveForeign(b *Bans, f *Foreign, n *arrival) {
	p, row := n.prefix, n.row
	old, known := b.others.live(p, n.at)
	if known && (b.rules.keeps(f, &old, &row, n.at) || b.rules.unbannedBy(f, &old) && n.stale(&old)) {
		return
	}
	if known && old.rule == row.rule && (old.since == row.since || old.session != 0 && old.session == row.session) { // the same ban
		row.extra = old.extra
	}
	row.last, row.attempts = old.last, old.attempts
	if known && old == row {
		return
	}
	if b.others.put(p, row, n.at) {
		b.log.add(p)
	}
}

// deleteForeign handles a row without a value, which deletes another host's ban.
func deleteForeign(b *Bans, p netip.Prefix, f *Foreign, by int64) {
	row, known := b.others.get(p)
	if !known || !b.rules.deletes(f, &row, by) {
		return
	}
	if unban, ok := row.unbanned(f, by); ok {
		b.others.touch(p, unban)
	} else {
		b.others.del(p)
	}
	b.log.add(p)
}

func (s sharedBans) combine(key []byte, values [][]byte, now uint32) (sum []byte) {
	var latest ban
	for _, value := range values {
		p, row, ok := s.rules.read(key, value)
		if !ok || banScore(p, row, now) < 0 {
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

func (s sharedBans) valid(key, value []byte, latest uint32) bool {
	_, b, ok := s.rules.read(key, value)
	before := b.since // of the unban before a ban
	if b.flags&banRevoked != 0 {
		before = b.until
	}
	return ok && b.since <= b.until && b.since <= latest && (b.flags&banForeign != 0 || b.extra <= before)
}

func (sharedBans) room() int { return 0 }

func (sharedBans) foreignRows() int { return 0 }

func (sharedBans) displaced() map[uint16]int { return nil }

// count calls add with the host of each ban that another host imposed.
func (s sharedBans) count(_ *sync.Mutex, add func(host string)) {
	visitBook(s.shared, &s.others, func(_ netip.Prefix, row ban) (string, bool) {
		origin := s.rules.imposed(&row)
		return origin, origin != ""
	}, add)
}

func (s sharedBans) disown(origin string) (n int) {
	del := func(p netip.Prefix, row ban) {
		if s.rules.imposed(&row) == origin {
			s.others.del(p)
			s.log.add(p)
			n++
		}
	}
	for k, row := range s.others.hosts.rows {
		del(k.Prefix(), row)
	}
	for p, row := range s.others.networks.rows {
		del(p, row)
	}
	delUnban := func(p netip.Prefix, row ban) {
		if s.rules.unbannedOn(&row) == origin {
			s.own.del(p)
			s.log.add(p)
			n++
		}
	}
	for k, row := range s.own.hosts.rows {
		delUnban(k.Prefix(), row)
	}
	for p, row := range s.own.networks.rows {
		delUnban(p, row)
	}
	return n
}

// unbannedOn returns the other host that made an unban, or "".
func (n *ruleNames) unbannedOn(b *ban) string {
	if b.flags&(banForeign|banRevoked) != banForeign|banRevoked {
		return ""
	}
	origin, _ := splitOrigin(n.list[b.rule])
	return origin
}

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
// only bans by the same friend, such as bans in its older files.
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

// unbannedBy reports whether b is the unban of the friend that has sent f. The unban of another
// friend does not affect its ban.
func (n *ruleNames) unbannedBy(f *Foreign, b *ban) bool {
	friend := n.friendUnban(b)
	return friend != "" && friend == f.Origin
}

// keeps reports whether another host's ban b has precedence over the ban in row, which a different
// host has imposed. A friend's ban does not replace b. A partial row does not include b, so that
// its ban must not shorten b.
func (n *ruleNames) keeps(f *Foreign, b, row *ban, now uint32) bool {
	if !b.active(now) || n.imposed(b) == f.Origin {
		return false
	}
	return strings.HasPrefix(f.Origin, FriendPrefix) || f.Partial && row.until <= b.until
}
