package memory

import (
	"net/netip"
	"strings"
	"sync"
)

// Bans and unbans of several hosts are compared by their times. An unban ends the bans of its
// prefix, on all hosts, that started no later than the unban. Each host ensures that this is also
// true of the bans and unbans that it knows, even if clocks differ: an unban is never earlier than
// a ban that it ends, and a ban starts after the unbans that its host knows. Rows may therefore
// arrive late, repeatedly and in any order.
//
// The merged row of the bans by other hosts is kept in Bans.others. It replaces the previous one.
// The names of the other host and its rule are stored together.
//
// Bans.own also holds the unbans of other hosts. If such an unban ends a ban of this host, ban.end
// keeps what is needed to undo it; see disown. Other hosts then receive that the ban has ended, so
// that it cannot take effect again if the unban is lost.

// originMark separates another host's name from the name of its rule.
const originMark = "\x00"

func splitOrigin(rule string) (origin, name string) {
	if origin, name, ok := strings.Cut(rule, originMark); ok {
		return origin, name
	}
	return "", rule
}

func (n *ruleNames) foreign(origin, rule string) uint16 {
	return n.number(origin + originMark + rule)
}

// reset deletes all names except number 0.
func (n *ruleNames) reset() {
	if len(n.list) > 1 {
		*n = newRuleNames()
	}
}

// maxSentName is the maximum length of the rule name or reason that other hosts receive.
const maxSentName = 64

// sending changes a row to what other hosts receive of it: a ban with this host's unban before it,
// or an unban. They do not receive an observed ban. A ban that another host has ended is sent as a
// ban of no length.
func (n *ruleNames) sending(b *ban) sending {
	switch {
	case b.flags&banObserved == 0 && b.flags&(banForeign|banAdopted) == banForeign && b.end != 0:
		b.flags &^= banForeign | banRevoked
		b.until = b.since
	case b.flags&banObserved != 0, b.flags&(banForeign|banAdopted) == banForeign:
		unban, ok := b.ownUnbanRow()
		if !ok {
			return sendDeletion
		}
		*b = unban
	}
	b.last, b.attempts, b.end = 0, 0, 0
	if b.flags &^= banForeign | banAdopted; b.flags&banRevoked != 0 {
		b.extra = 0
	}
	origin, name := splitOrigin(n.list[b.rule])
	if origin != "" || len(name) > maxSentName { // the origin is set after an unban of another host's ban
		b.rule = n.number(name[:min(len(name), maxSentName)])
	}
	return sendRow
}

// ownUnban returns the time of this host's latest unban of the prefix, or 0.
func (b *ban) ownUnban() uint32 {
	switch b.flags & (banRevoked | banForeign) {
	case banRevoked:
		return b.until
	case banForeign:
		return 0
	}
	return b.extra
}

// ownUnbanRow returns the row of this host's latest unban, or false if there was none.
func (b *ban) ownUnbanRow() (unban ban, ok bool) {
	if b.flags&(banRevoked|banForeign) == banRevoked {
		return *b, true
	}
	at := b.ownUnban()
	unban = ban{since: at, until: at, rule: b.rule, flags: banRevoked}
	if b.flags&banRevoked != 0 { // another host has repeated the unban
		unban.session = b.session
	}
	return unban, at != 0
}

// unbannedElsewhere returns the time of another host's latest unban in the row, or 0.
func (b *ban) unbannedElsewhere() uint32 {
	switch b.flags & (banRevoked | banForeign) {
	case banRevoked | banForeign:
		return b.until
	case 0:
		return b.end
	}
	return 0
}

// unbanned returns the time of the latest unban in the row, except that of another host before a ban
// of this host, or 0.
func (b *ban) unbanned() uint32 {
	switch {
	case b.flags&banRevoked != 0:
		return b.until
	case b.flags&banForeign != 0:
		return 0
	}
	return b.extra
}

// unbanAhead is the maximum number of seconds that another host's unban may be in the
// future.
const unbanAhead = 30 * 60

// start returns the start of a ban of p. It is later than the unbans that this host knows. An
// earlier ban of this host has also started after them. The lock must be held.
func (b *Bans) start(p netip.Prefix, at uint32) uint32 {
	row, _ := b.own.get(p)
	wide := b.unbannedRange(p)
	return max(at, row.since, row.unbanned()+1, wide.until+1)
}

// unbannedRange returns the latest unban of a range that contains p. The row is zero if there is
// none.
func (b *Bans) unbannedRange(p netip.Prefix) (latest ban) {
	ranges := &b.own.ranges
	if len(ranges.rows) == 0 {
		return latest
	}
	for bits := p.Bits(); bits >= 0; bits-- {
		if ranges.bits[family(p.Addr())][bits] == 0 {
			continue
		}
		wide, err := p.Addr().Prefix(bits)
		if row := ranges.rows[wide]; err == nil && row.until > latest.until {
			latest = row
		}
	}
	return latest
}

// ends reports whether an unban ends a ban of the same prefix. If both have the same session, the
// unban is of this very ban, and a clock has been corrected in between.
func (b *ban) ends(other *ban) bool {
	return b.flags&banRevoked != 0 && (other.since <= b.until || b.session != 0 && b.session == other.session)
}

// revoke ends a ban. The unban must not be earlier than the ban, which may start in the
// future if its host's clock is ahead. If the ban starts so far in the future that other hosts would
// omit the unban, a clock has been corrected; see ends.
func (b *ban) revoke(at uint32) {
	if b.since == 0 || b.since > at+unbanAhead {
		b.since = at
	}
	b.until = max(at, b.since)
	if b.flags&banObserved != 0 {
		b.times = 0 // observed offences do not count towards enforced bans
	}
	b.flags &^= banForeign | banObserved | banAdopted // other hosts must receive the unban
	b.extra, b.end = 0, 0
	b.flags |= banRevoked
}

// Disclaim causes other hosts to end the ban of p, even if it is not banned here. If
// within is set, they end all bans in p. For an IPv6 address, they end all bans in its
// /64. ended lists the bans that Revoke has ended here. Disclaim returns false if this host does not
// belong to a fleet.
func (b *Bans) Disclaim(p netip.Prefix, within bool, ended []Ban, now int64) bool {
	p = widen(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fixed {
		return false
	}
	at := b.clock.row(now)
	for i := range ended { // their hosts' clocks may be ahead
		at = max(at, b.clock.row(ended[i].Until.UnixMicro()))
	}
	row, _ := b.own.get(p)
	row.revoke(at)
	if !b.own.put(p, row, at) {
		return false
	}
	if within && !p.IsSingleIP() || isSource(p) && p.Addr().Is6() {
		wide := b.own.ranges.rows[p]
		wide.revoke(at)
		if !b.own.ranges.makeRoom(p, at) {
			return false
		}
		b.own.ranges.put(p, wide)
	}
	if _, ok := b.others.get(p); ok {
		b.others.del(p)
		b.log.add(p)
	}
	return true
}

// sharedBans shares this host's bans and unbans, and receives other hosts' bans and unbans.
type sharedBans struct{ *Bans }

func (sharedBans) bucketName() string { return BansBucket }

func (s sharedBans) announce() {
	if h := &s.own.hosts; h.outgoing == nil {
		h.outgoing = make(map[Host]bool)
	}
	announce(s.own.hosts.outgoing, s.own.hosts.rows)
	for _, t := range []*networkBans{&s.own.networks, &s.own.ranges} {
		if t.outgoing == nil {
			t.outgoing = make(map[netip.Prefix]bool)
		}
		announce(t.outgoing, t.rows)
	}
}

func (s sharedBans) send(n int, by int64, put func(key, value []byte)) (left int) {
	n = send(&s.own.hosts, n, by, put, func(k Host, b *ban) sending {
		if replaced(s.Bans, k.Prefix(), b) {
			return sendNothing
		}
		return s.rules.sending(b)
	})
	for _, t := range []*networkBans{&s.own.networks, &s.own.ranges} {
		for p := range t.outgoing {
			if n <= 0 {
				return n
			}
			delete(t.outgoing, p)
			row, ok := t.rows[p]
			if ok && !t.ranges && replaced(s.Bans, p, &row) {
				continue
			}
			if ok && s.rules.sending(&row) == sendRow {
				row.shift(by)
				put(t.key(p), s.rules.value(row))
			} else {
				put(t.key(p), nil)
			}
			n--
		}
	}
	return n
}

// replaced reports whether the server has sent a later ban in the name of this host, whose state is
// from an earlier backup; see receiveOwn. Other hosts must not receive the earlier row b instead.
func replaced(s *Bans, p netip.Prefix, b *ban) bool {
	other, _ := s.others.get(p)
	return s.name != "" && s.rules.imposed(&other) == s.name && other.since > max(b.since, b.unbanned())
}

func (s sharedBans) receive(f *Foreign, by int64, now uint32) bool {
	p, wide, ok := readRange(f.Key)
	if !ok {
		return false
	}
	if len(f.Value) == 0 {
		if !wide {
			deleteForeign(s.Bans, p, f)
		}
		return true
	}
	row, ok := readForeign(s.Bans, f, by)
	if !ok {
		return false
	}
	row.settle(now)
	unban := row.flags&banRevoked != 0
	switch {
	case wide:
		receiveRange(s.Bans, p, f, row, now)
	case row.flags&banForeign == 0:
		receiveOwn(s.Bans, p, f, row, now)
	case unban && friendly(f.Origin):
		receiveFriendUnban(s.Bans, p, row)
	case unban:
		receiveUnban(s.Bans, p, f.Origin, row, now)
	default:
		receiveBan(s.Bans, p, f, row, now)
	}
	return true
}

// readForeign decodes a row from another host. A row without an origin, or with the name of this
// host, is this host's own, sent back by the server.
func readForeign(b *Bans, f *Foreign, by int64) (row ban, ok bool) {
	var names ruleNames
	if _, row, ok = names.read(f.Key, f.Value); !ok {
		return row, false
	}
	rule := names.list[row.rule]
	row.sent()
	row.shift(by)
	row.last, row.attempts = 0, 0
	if f.Origin == "" || f.Origin == b.name {
		row.rule = b.rules.number(rule)
		return row, true
	}
	row.flags |= banForeign
	row.extra = 0
	row.times = 0 // only this host's offences count here
	row.rule = b.rules.foreign(f.Origin, strings.ReplaceAll(rule, originMark, ""))
	return row, true
}

// sent removes the fields that hosts do not send. A false row may contain them.
func (b *ban) sent() {
	b.flags &^= banForeign | banAdopted
	if b.end = 0; b.flags&banRevoked != 0 {
		b.extra = 0
	}
}

// receiveOwn handles a row of this host that was sent back. This host may have lost the row, or its
// state is from an earlier backup. Otherwise, this host knows best, and has sent or will send its
// own row or the deletion of the row. A ban with the name of this host in f counts as a ban by
// another host, because the name may be false. This also applies if this host has imposed an
// earlier ban.
func receiveOwn(b *Bans, p netip.Prefix, f *Foreign, row ban, now uint32) {
	old, known := b.own.live(p, now)
	other, _ := b.others.get(p)
	lost := b.lost(max(row.since, row.unbanned())) || b.name != "" && b.rules.imposed(&other) == b.name
	wide := b.unbannedRange(p)
	switch {
	case !known && (b.own.changed(p) || !lost):
		b.own.resend(p)
	case row.flags&banRevoked != 0:
		receiveUnban(b, p, "", row, now)
	case known && (!lost || row.since <= old.since || old.ends(&row)), wide.until != 0 && row.since <= wide.until:
		b.own.resend(p)
	case f.Origin != "":
		if unban, ok := row.ownUnbanRow(); ok { // setForeign does not keep it
			receiveUnban(b, p, "", unban, now)
		}
		row.flags |= banForeign
		row.extra, row.times = 0, 0
		row.rule = b.rules.foreign(f.Origin, b.rules.list[row.rule])
		setForeign(b, p, f, row, now)
	default:
		if row.last = old.last; b.own.put(p, row, now) {
			b.log.add(p)
		}
	}
}

// receiveBan handles a ban by another host.
func receiveBan(b *Bans, p netip.Prefix, f *Foreign, row ban, now uint32) {
	own, known := b.own.live(p, now)
	wide := b.unbannedRange(p)
	switch {
	case known && (own.ends(&row) || row.since <= max(own.unbanned(), own.unbannedElsewhere())):
		if row.active(now) && !friendly(f.Origin) {
			adopt(b, p, own, row.since, now)
		}
	case wide.until != 0 && row.since <= wide.until:
	default:
		setForeign(b, p, f, row, now)
		return
	}
	if other, ok := b.others.get(p); ok && !f.Partial && !friendly(b.rules.imposed(&other)) {
		b.others.del(p) // the row replaces it
		b.log.add(p)
	}
}

// adopt causes other hosts to receive the unban of another host from here. A ban that the unban has
// ended arrives only if the other hosts have lost the unban, for example because the server and the
// host of the unban were restored from backups. An unban of a range is not adopted, because a ban
// that it has ended arrives even if other hosts have it.
func adopt(b *Bans, p netip.Prefix, own ban, since, now uint32) {
	before := own
	switch {
	case own.flags&(banForeign|banRevoked) == banForeign|banRevoked:
		own.flags |= banAdopted
	case own.flags&banRevoked == 0 && since > own.extra: // the unban of another host precedes this host's ban
		own.extra = own.end
	}
	if own != before {
		b.own.put(p, own, now)
	}
}

// setForeign replaces the row of the bans by other hosts.
func setForeign(b *Bans, p netip.Prefix, f *Foreign, row ban, now uint32) {
	old, known := b.others.live(p, now)
	if known && (b.rules.keeps(f, &old, &row, now) || b.rules.friendUnban(&old) == f.Origin && old.ends(&row)) {
		return
	}
	if known && old.rule == row.rule && (old.since == row.since || old.session != 0 && old.session == row.session) { // the same ban
		row.extra = old.extra
	}
	row.last, row.attempts = old.last, old.attempts
	if known && old == row {
		return
	}
	if !isSource(p) {
		deleted, ok := b.others.networks.makeFairRoom(p, &row, now)
		if deleted.IsValid() {
			b.log.add(deleted)
		}
		if !ok {
			return
		}
	}
	if b.others.put(p, row, now) {
		b.log.add(p)
	}
}

// unbans lists the effects of other hosts' unbans.
type unbans struct {
	freed   []Freed
	cleared []netip.Prefix // their counts must be deleted
	ranges  []rangeUnban
}

// A rangeUnban is an unban of all hosts and networks in a prefix.
type rangeUnban struct {
	prefix netip.Prefix
	origin string // empty for an unban of this host
	unban  ban
}

// receiveRange handles an unban of all hosts and networks in a prefix.
func receiveRange(b *Bans, p netip.Prefix, f *Foreign, unban ban, now uint32) {
	own := unban.flags&banForeign == 0
	origin := b.rules.unbannedOn(&unban)
	t := &b.own.ranges
	before, known := t.rows[p]
	old := before
	switch {
	case unban.flags&banRevoked == 0, friendly(f.Origin):
		return
	case own && !known && (t.outgoing[p] || !b.lost(unban.until)):
		t.resend(p)
		return
	}
	unban.until = min(unban.until, now+unbanAhead)
	unban.since = min(unban.since, unban.until)
	result := unban
	if known {
		if b.rules.unbannedOn(&old) == f.Origin && !own && !f.Partial {
			// The time of the latest unban of this host may be earlier than before, because a clock has
			// been corrected. Unlike an unban of a single prefix, the later time would not reach the other
			// hosts; see adopt.
			old.until = min(old.until, unban.until)
			old.since = min(old.since, old.until)
		}
		result, _ = b.rules.again(old, &unban)
	}
	if (known && result != before || !known && (own || t.room())) && t.makeRoom(p, now) {
		t.put(p, result)
	}
	b.ranges = append(b.ranges, rangeUnban{p, origin, unban})
}

// receiveUnban handles the unban of another host, or an unban of this host that was sent back if
// origin is empty.
func receiveUnban(b *Bans, p netip.Prefix, origin string, unban ban, now uint32) {
	unban.until = min(unban.until, now+unbanAhead)
	unban.since = min(unban.since, unban.until)
	ended := false
	if other, ok := b.others.get(p); ok && unban.ends(&other) {
		ended = other.active(now)
		b.others.del(p)
		b.log.add(p)
	}
	old, known := b.own.live(p, now)
	result, fresh := unban, true
	switch {
	case !known && origin != "" && !b.own.room(p):
		return
	case known && old.flags&banRevoked != 0:
		result, fresh = b.rules.again(old, &unban)
	case known && unban.ends(&old):
		ended = ended || old.active(now)
		result = b.rules.ended(old, origin, &unban)
	case known:
		return
	}
	if known && result == old || !b.own.put(p, result, now) {
		return
	}
	b.log.add(p)
	if fresh {
		b.freed = append(b.freed, Freed{p, origin})
	}
	if fresh && (ended || result.clears(p, &old)) {
		b.cleared = append(b.cleared, p)
	}
}

// ended returns a ban of this host after an unban, which is another host's if origin is not empty.
func (n *ruleNames) ended(old ban, origin string, unban *ban) ban {
	row := old
	row.since, row.until = min(old.since, unban.until), unban.until
	row.flags |= banRevoked
	if origin == "" {
		row.extra, row.end = 0, 0
		return row
	}
	row.flags |= banForeign
	row.rule = n.foreign(origin, n.list[old.rule])
	if row.end = 0; old.until > row.until {
		row.end = old.until
	}
	return row
}

// sameUnban is the number of seconds by which the same unban may appear to be later,
// because times are converted between hosts' clocks.
const sameUnban = 2

// again returns the row of an unban after another unban. fresh is set if the other one is later.
func (n *ruleNames) again(b ban, unban *ban) (row ban, fresh bool) {
	if unban.until <= b.until {
		return b, false
	}
	row = b
	row.until = unban.until
	row.flags &^= banAdopted
	if origin := n.unbannedOn(unban); origin == "" {
		row.flags &^= banForeign
		row.extra, row.end = 0, 0
	} else {
		_, name := splitOrigin(n.list[b.rule])
		row.rule = n.foreign(origin, name)
		row.flags |= banForeign
		row.extra = b.ownUnban()
	}
	if row.end <= row.until { // the ban would have ended automatically
		row.end = 0
	}
	return row, unban.until > b.until+sameUnban
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

// endWithin ends the bans within ranges that have been unbanned, except bans that started after
// the unban.
func endWithin(b *Bans, ranges []rangeUnban, now int64) (freed []Freed) {
	if len(ranges) == 0 {
		return nil
	}
	at := b.clock.row(now)
	var latest prefixMap[*rangeUnban]
	for i := range ranges {
		r := &ranges[i]
		if old := latest.rows[r.prefix]; old == nil || old.unban.until < r.unban.until {
			latest.set(r.prefix, r)
		}
	}
	within := func(p netip.Prefix, row *ban) *rangeUnban {
		if !row.active(at) {
			return nil
		}
		r, _ := latest.find(p, func(_ netip.Prefix, r *rangeUnban) bool { return row.since <= r.unban.until })
		return r
	}
	add := func(f Freed) { freed = append(freed, f) }
	visitBook(b.shared, &b.own, func(p netip.Prefix, row ban) (f Freed, ok bool) {
		r := within(p, &row)
		if r == nil {
			return f, false
		}
		b.own.put(p, b.rules.ended(row, r.origin, &r.unban), at)
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

// deleteForeign handles a row without a value, which deletes another host's ban. The server does not
// have the bans of friends.
func deleteForeign(b *Bans, p netip.Prefix, f *Foreign) {
	row, known := b.others.get(p)
	if origin := b.rules.imposed(&row); known && origin != "" && (f.Origin == "" && !f.Partial && !friendly(origin) || f.Origin == origin) {
		b.others.del(p)
		b.log.add(p)
	}
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
	_, wide, _ := readRange(key)
	b.sent()
	newest := max(b.since, b.extra)
	if b.flags&banRevoked != 0 {
		newest = b.until
	}
	return ok && b.since <= b.until && newest <= latest && (!wide || b.flags&banRevoked != 0)
}

func (sharedBans) room() int { return 0 }

func (sharedBans) foreignRows() int { return 0 }

// displaced counts only bans of networks.
func (s sharedBans) displaced() map[uint16]int {
	byHost := make(map[uint16]int)
	for origin, n := range s.others.networks.displaced {
		byHost[s.hosts.number(origin)] += n
	}
	return byHost
}

// count calls add with the host of each ban and unban of another host.
func (s sharedBans) count(_ *sync.Mutex, add func(host string)) {
	host := func(_ netip.Prefix, row ban) (string, bool) {
		origin := s.rules.imposed(&row) + s.rules.unbannedOn(&row) // one of them is empty
		return origin, origin != ""
	}
	for _, k := range []*book{&s.others, &s.own} {
		visitBook(s.shared, k, host, add)
	}
	for _, origin := range rangeOrigins(s.Bans) {
		add(origin)
	}
}

// rangeOrigins returns the other host of each unban of a range.
func rangeOrigins(b *Bans) (list []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, row := range b.own.ranges.rows {
		if origin := b.rules.unbannedOn(&row); origin != "" {
			list = append(list, origin)
		}
	}
	return list
}

// disown also undoes the unbans of another host: a ban of this host that such an unban has ended
// takes effect again.
func (s sharedBans) disown(origin string) (n int) {
	del := func(p netip.Prefix, row ban) {
		if s.rules.imposed(&row) == origin {
			s.others.del(p)
			s.log.add(p)
			n++
			if origin == s.name { // the server still has the row
				s.own.resend(p)
			}
		}
	}
	for k, row := range s.others.hosts.rows {
		del(k.Prefix(), row)
	}
	for p, row := range s.others.networks.rows {
		del(p, row)
	}
	for p, row := range s.own.ranges.rows {
		if s.rules.unbannedOn(&row) != origin {
			continue
		}
		if before, ok := row.ownUnbanRow(); ok {
			s.own.ranges.put(p, before)
		} else {
			s.own.ranges.del(p)
		}
		n++
	}
	undo := func(p netip.Prefix, row ban) {
		if s.rules.unbannedOn(&row) != origin {
			return
		}
		if before, ok := s.undone(p, row); ok {
			s.own.put(p, before, before.since)
		} else {
			s.own.del(p)
		}
		s.log.add(p)
		n++
	}
	for k, row := range s.own.hosts.rows {
		undo(k.Prefix(), row)
	}
	for p, row := range s.own.networks.rows {
		undo(p, row)
	}
	return n
}

// undone returns the row of this host before another host's unban, or false if there was none. An
// unban of a range may also have ended the ban.
func (s sharedBans) undone(p netip.Prefix, row ban) (before ban, ok bool) {
	if row.end == 0 {
		return row.ownUnbanRow()
	}
	_, name := splitOrigin(s.rules.list[row.rule])
	row.rule = s.rules.number(name)
	row.until, row.end = row.end, 0
	row.flags &^= banRevoked | banForeign | banAdopted
	if wide := s.unbannedRange(p); wide.until != 0 && row.since <= wide.until {
		row = s.rules.ended(row, s.rules.unbannedOn(&wide), &wide)
	}
	return row, true
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

// FriendPrefix begins the names of hosts outside the fleet.
const FriendPrefix = "friend."

func friendly(origin string) bool { return strings.HasPrefix(origin, FriendPrefix) }

// receiveFriendUnban handles a friend's unban. It ends only a ban by the same friend, and remains in
// Bans.others so that older files of the friend do not restore the ban.
func receiveFriendUnban(b *Bans, p netip.Prefix, unban ban) {
	origin := b.rules.unbannedOn(&unban)
	row, ok := b.others.get(p)
	switch {
	case !ok:
	case b.rules.imposed(&row) == origin && unban.ends(&row):
		row.until = max(unban.until, row.since)
		row.flags |= banRevoked
		b.others.touch(p, row)
		b.log.add(p)
	case b.rules.friendUnban(&row) == origin && unban.until > row.until:
		row.until = unban.until
		b.others.touch(p, row)
	}
}

// friendUnban returns the friend that has unbanned its own ban b, or "".
func (n *ruleNames) friendUnban(b *ban) string {
	if origin := n.unbannedOn(b); friendly(origin) {
		return origin
	}
	return ""
}

// keeps reports whether another host's ban b has precedence over the ban in row, which a different
// host has imposed. A friend's ban does not replace b. A partial row does not include b, so that
// its ban must not shorten b.
func (n *ruleNames) keeps(f *Foreign, b, row *ban, now uint32) bool {
	if !b.active(now) || n.imposed(b) == f.Origin {
		return false
	}
	return friendly(f.Origin) || friendly(n.imposed(b)) && !row.active(now) || f.Partial && row.until <= b.until
}
