package memory

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Bans holds the banned hosts and networks. The bans and unbans of this host are kept apart
// from the bans of other hosts, so that neither replaces the other. An expired ban is kept
// for keepBan, so that the host's next ban can be longer.
type Bans struct {
	*shared
	own      book // also holds the unbans of other hosts
	others   book // bans of other hosts; see sharebans.go
	rules    ruleNames
	log      banLog
	unbans        // of the rows that are being received
	standing bool // see HaveStanding
}

// A ban is a row in Bans. Times are in seconds since 1970.
type ban struct {
	since, until uint32 // start and end of the latest ban; until is the time of an unban
	last         uint32 // latest connection, possibly after the ban; 0 if none
	attempts     uint16 // connections during the latest ban
	rule         uint16 // index into ruleNames
	session      uint64 // session that led to the ban, or a random number for a manual ban; see ends
	// extra is, for another host's ban, the time until which firewalls contain it; see Rejected.
	// Otherwise, it is the time of this host's latest unban before the ban, or before the unban by
	// another host.
	extra uint32
	// end is the end that a ban of this host had before another host ended it; see disown. For a ban
	// of this host, it is the time of another host's latest unban before the ban.
	end   uint32
	times uint8 // consecutive offences on this host, including this one
	flags banFlags
}

type banFlags uint8

const (
	banObserved banFlags = 1 << iota // not enforced: observe mode, or the rule is marked observe
	banManual                        // created by the operator
	banRevoked                       // ended by the operator
	banForeign                       // imposed or ended on another host
	banListed                        // rests on a listing in a DNS list
	banAdopted                       // other hosts receive this unban of another host from here; see adopt
	banExtra                         // only in values, which then include extra
	banEnd                           // only in values, which then include end
)

// keepBan is the retention period of a ban after it ends, in seconds.
const keepBan = 90 * daySeconds

// An offence counts as consecutive for inRow seconds after a ban. After a long ban, the
// limit is four times the ban's length instead. A consecutive offence leads to a longer
// ban.
const inRow = daySeconds

// BansBucket is the bucket with the bans of this host, and OthersBucket that with the bans of
// other hosts.
const (
	BansBucket   = "bans"
	OthersBucket = "otherbans"
)

func banScore[K any](_ K, b ban, now uint32) int64 { return int64(b.until) + keepBan - int64(now) }

func newBans(s *shared) *Bans {
	b := &Bans{shared: s, log: newBanLog(), rules: newRuleNames()}
	// Earlier versions kept the bans of other hosts in the same bucket.
	own := func(row *ban) bool { return row.flags&(banForeign|banRevoked) != banForeign }
	b.own = newBook(s, &b.rules, "bans", BansBucket, maxBans, maxNetworkBans, own)
	foreign := func(row *ban) bool { return row.flags&banForeign != 0 }
	b.others = newBook(s, &b.rules, "bans by other hosts", OthersBucket, maxBans/maxForeign, maxNetworkBans/maxForeign, foreign)
	return b
}

// A Ban is an active or expired ban of a host or network.
type Ban struct {
	Prefix   netip.Prefix `json:"prefix"`
	Since    time.Time    `json:"since"`
	Until    time.Time    `json:"until"`
	Rule     string       `json:"rule"`              // name of the rule, or the operator's reason
	Session  uint64       `json:"-"`                 // session that led to the ban; 0 for a manual ban
	Times    int          `json:"times"`             // consecutive offences on this host, including this one
	Attempts int          `json:"attempts"`          // connections during this ban
	Last     time.Time    `json:"last,omitzero"`     // latest connection
	Observe  bool         `json:"observe,omitempty"` // not enforced
	Manual   bool         `json:"manual,omitempty"`  // created by the operator
	Revoked  bool         `json:"revoked,omitempty"` // ended by the operator
	Listed   bool         `json:"listed,omitempty"`  // rests on a listing in a DNS list
	Origin   string       `json:"origin,omitempty"`  // other host that imposed or ended the ban
	// Firewall is the time until which firewalls and exports may contain the ban. It is zero if
	// they must not contain it; see Bans.Rejected.
	Firewall time.Time `json:"-"`
}

// On names the other host that imposed the ban, as in " on mx1". On returns "" for a
// ban that this host imposed, and for a revoked ban, whose row names only the host that
// revoked it.
func (b *Ban) On() string {
	if b.Origin == "" || b.Revoked {
		return ""
	}
	return " on " + b.Origin
}

// Revocation returns "revoked" for a revoked ban, followed by the name of the other
// host that revoked it, if any.
func (b *Ban) Revocation() string {
	switch {
	case !b.Revoked:
		return ""
	case b.Origin != "":
		return "revoked on " + b.Origin
	}
	return "revoked"
}

// Expired reports whether the ban has ended. A revoked ban has ended even if the time
// of the unban is in the future.
func (b *Ban) Expired(now time.Time) bool { return b.Revoked || !now.Before(b.Until) }

// Affects reports whether the ban can apply to a host. A rule's ban of a /64 does not
// apply to hosts with proven names in that /64.
func (b *Ban) Affects(host netip.Prefix) bool {
	switch {
	case !b.Prefix.Overlaps(host):
		return false
	case host.Addr().Is4(), b.Manual:
		return true
	}
	return b.Prefix.Bits() < 64 || b.Prefix == host
}

// A BanRequest is a request for a ban.
type BanRequest struct {
	// Ladder lists the ban durations for consecutive offences. The last duration
	// also applies to all later offences. If the duration is 0, the offence is
	// counted but does not lead to a ban.
	Ladder  []time.Duration
	Rule    string
	Session uint64
	Observe bool
	Listed  bool // the rule matched because of a listing in a DNS list
}

func (b *Bans) export(p netip.Prefix, row ban) Ban {
	e := b.rules.export(&b.clock, p, row)
	if b.waiting(&row) {
		e.Firewall = time.Time{}
	}
	return e
}

// Add bans the host of c and returns the resulting ban. Each consecutive offence moves
// the host to the ladder's next duration. An offence is consecutive if it occurs within
// a day after the end of the previous ban. After a ban of more than six hours, the
// limit is four times that ban's length.
//
// If a ban is already active, the ban that ends later applies. An observed ban never
// replaces an enforced one.
func (b *Bans) Add(c *Client, r BanRequest, now int64) Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, at := c.Host(), b.clock.row(now)
	old, known := b.own.hosts.live(k, at)
	old.settle(at)
	row := ban{since: b.start(k.Prefix(), at), last: old.last, rule: b.rules.number(r.Rule), session: r.Session, times: 1}
	row.extra, row.end = old.ownUnban(), old.unbannedElsewhere()
	if r.Observe {
		row.flags |= banObserved
	}
	if r.Listed {
		row.flags |= banListed
	}
	sameMode := old.flags&banObserved == row.flags&banObserved
	active := known && old.active(at)
	switch {
	case active && sameMode: // another offence while a ban is active
		row.since, row.times, row.attempts = old.since, max(old.times, 1), old.attempts
	case active && r.Observe:
		return b.export(k.Prefix(), old)
	case known && sameMode && old.flags&banRevoked == 0 && int64(at) <= old.repeatsUntil():
		row.times = min(old.times, 254) + 1
	}
	row.until = max(at, row.since) + uint32(r.Ladder[min(int(row.times), len(r.Ladder))-1]/time.Second)
	if active && sameMode && old.until >= row.until {
		return b.export(k.Prefix(), old)
	}
	b.own.hosts.put(k, row, at)
	b.log.add(k.Prefix())
	return b.export(k.Prefix(), row)
}

// Banned returns the active bans of c, enforced or observed, and records a connection. This
// host's bans come first, followed by other hosts' bans. Each group starts with the enforced
// bans, and is sorted by end, latest first. A rule's ban of a /64 does not apply to
// hosts with proven names in that /64. A manual ban of a /64 applies to all its hosts.
func (b *Bans) Banned(c *Client, now int64) (list []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.clock.row(now)
	for _, k := range []*book{&b.own, &b.others} {
		n := len(list)
		list = appendCovering(list, b, k, c, at)
		if len(list) > n+1 {
			slices.SortStableFunc(list[n:], before)
		}
	}
	return list
}

// appendCovering appends the active bans in a book that affect c, and records a connection.
func appendCovering(list []Ban, b *Bans, k *book, c *Client, at uint32) []Ban {
	h := c.Host()
	if row, ok := k.connect(h, false, at); ok {
		list = append(list, b.export(h.Prefix(), row))
	}
	if wide := h.wide(); wide != h {
		if row, ok := k.connect(wide, true, at); ok {
			list = append(list, b.export(wide.Prefix(), row))
		}
	}
	if p, row, ok := k.networks.lookup(c.Addr, at); ok {
		row.connected(at, true)
		k.networks.touch(p, row)
		list = append(list, b.export(p, row))
	}
	return list
}

// before compares two bans of a client in the order of Banned.
func before(a, b Ban) int {
	switch {
	case a.Observe == b.Observe:
		return b.Until.Compare(a.Until)
	case a.Observe:
		return 1
	}
	return -1
}

// active reports whether a row holds a ban that has not ended. A revoked ban is
// inactive even if the time of the unban is in the future.
func (b *ban) active(at uint32) bool { return b.until > at && b.flags&banRevoked == 0 }

// repeatsUntil returns the time until which another offence is consecutive.
func (b *ban) repeatsUntil() int64 {
	length := int64(b.until) - int64(b.since)
	return int64(b.until) + max(inRow, 4*length)
}

// banned reports whether the row holds a ban, rather than only an offence or the unban of a prefix
// that was not banned.
func (b *ban) banned() bool {
	if b.flags&banRevoked == 0 {
		return b.until > b.since
	}
	return b.times > 0 || b.session != 0 || b.flags&banManual != 0
}

func (b *ban) connected(at uint32, active bool) {
	b.last = at
	if active {
		b.attempts = uint16(min(int(b.attempts)+1, 1<<16-1))
	}
}

// AddPrefix manually bans a host or network. An IPv6 address is widened to its /64.
// AddPrefix returns false if there are too many network bans.
func (b *Bans) AddPrefix(p netip.Prefix, d time.Duration, reason string, now int64) (Ban, bool) {
	p = widen(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.clock.row(now)
	row := ban{since: b.start(p, at), rule: b.rules.number(reason), session: rand.Uint64() | 1, times: 1}
	row.until = row.since + uint32(d/time.Second)
	old, ok := b.own.get(p)
	if ok && old.active(at) && row.since == old.since && old.flags&banManual != 0 { // an unban by another host may precede the change
		row.session = old.session
	}
	row.extra, row.end = old.ownUnban(), old.unbannedElsewhere()
	if row.flags |= banManual; ok && isSource(p) {
		row.last = old.last
		if old.flags&banObserved == 0 && !old.active(at) {
			row.times = min(old.times, 254) + 1
		} else if old.flags&banObserved == 0 {
			row.times = max(old.times, 1) // the operator changes the active ban
		}
	}
	if !b.own.put(p, row, at) {
		return Ban{}, false
	}
	b.log.add(p)
	return b.export(p, row), true
}

// Revoke ends the active bans of a host or network, including other hosts' bans, and
// returns them. If within is set, Revoke ends all active bans in p. For an IPv6 address,
// Revoke ends all active bans in its /64. Bans of larger networks that contain p remain in
// effect.
func (b *Bans) Revoke(p netip.Prefix, within bool, now int64) (ended []Ban) {
	p = widen(p)
	at := b.clock.row(now)
	inside := func(q netip.Prefix) bool {
		return q == p || (within || isSource(p)) && q.Bits() >= p.Bits() && p.Contains(q.Addr())
	}
	revoked := func(k *book) (list []Ban) {
		revoke := func(q netip.Prefix, row ban) (e Ban, ok bool) {
			if !inside(q) || !row.active(at) {
				return e, false
			}
			return b.revoke(k, q, row, at), true
		}
		add := func(e Ban) { list = append(list, e) }
		if p.Addr().Is4() && isSource(p) || !within && !isSource(p) {
			revokeOne(b, k, p, revoke, add)
		} else {
			visitBook(b.shared, k, revoke, add)
		}
		return list
	}
	others := revoked(&b.others)
	return append(revoked(&b.own), others...)
}

// revokeOne revokes the ban of exactly p.
func revokeOne(b *Bans, k *book, p netip.Prefix, revoke func(netip.Prefix, ban) (Ban, bool), add func(Ban)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if row, ok := k.get(p); ok {
		if e, ok := revoke(p, row); ok {
			add(e)
		}
	}
}

// revoke ends an active ban in a book and returns it. The book of this host then holds the
// unban, which other hosts must receive. If this host also has an active ban of p, that ban must
// be revoked next.
func (b *Bans) revoke(k *book, p netip.Prefix, row ban, at uint32) Ban {
	row.revoke(at)
	own, known := b.own.get(p)
	if k == &b.others {
		k.del(p)
	}
	switch {
	case k == &b.own || !known || !own.active(at):
		b.own.put(p, row, at)
	case row.until > at: // a ban that starts in the future; the unban must not be earlier than either ban
		own.since = max(own.since, row.until)
		b.own.put(p, own, at)
	}
	b.log.add(p)
	return b.export(p, row)
}

// RevokeListed ends those bans of the client at a that rest on a DNS list and for which
// refuted returns true. These bans do not count as offences. They count as expired
// rather than revoked, because an unban would also end bans by other hosts.
func (b *Bans) RevokeListed(a netip.Addr, refuted func(Ban) bool, now int64) (ended []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, host := b.clock.row(now), HostOf(a, true)
	hosts := []Host{host, host.wide()}
	if host == host.wide() {
		hosts = hosts[:1]
	}
	for _, k := range hosts {
		row, _ := b.own.hosts.get(k)
		if row.flags&banListed == 0 || !row.active(at) || !refuted(b.export(k.Prefix(), row)) {
			continue
		}
		row.until, row.times = max(at, row.since), 0
		b.own.hosts.put(k, row, at)
		b.log.add(k.Prefix())
		ended = append(ended, b.export(k.Prefix(), row))
	}
	return ended
}

// addresses adds to set the numbers of the banned hosts that are identified by a single IPv6
// address and for which within returns true.
func (b *Bans) addresses(set map[uint64]bool, within func(netip.Prefix) bool) {
	number := func(k Host, _ ban) (uint64, bool) { return k.number(), k != k.wide() && within(k.Prefix()) }
	for _, k := range []*book{&b.own, &b.others} {
		each(&b.mu, &k.hosts, number, func(n uint64) { set[n] = true })
	}
}

// Covering returns the active bans of the networks that contain a.
func (b *Bans) Covering(a netip.Addr, now int64) (list []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range []*book{&b.own, &b.others} {
		for p, row := range k.networks.rows {
			if p.Contains(a) && row.active(b.clock.row(now)) {
				list = append(list, b.export(p, row))
			}
		}
	}
	return list
}

// Each calls visit for every ban, even if expired, in no particular order. Offences
// without a ban are omitted.
func (b *Bans) Each(visit func(Ban)) {
	export := func(p netip.Prefix, row ban) (Ban, bool) { return b.export(p, row), row.banned() }
	visitBook(b.shared, &b.own, export, visit)
	visitBook(b.shared, &b.others, export, visit)
}

// BanCount counts active bans.
type BanCount struct {
	Active   int `json:"active"`   // bans not in Observed
	Observed int `json:"observed"` // bans that are not enforced
	// Waiting is the number of active bans that were imposed by other hosts and are
	// not enforced until the standing on other hosts has arrived.
	Waiting int `json:"waiting,omitempty"`
}

// Count returns the number of active bans. Expired bans and offences without a ban are
// not counted.
func (b *Bans) Count(now int64) (n BanCount) {
	at, waiting := b.clock.row(now), b.Waiting()
	add := func(row ban) {
		switch row.settle(at); {
		case !row.active(at):
		case row.flags&banObserved != 0:
			n.Observed++
		default:
			n.Active++
			if waiting && row.flags&banForeign != 0 {
				n.Waiting++
			}
		}
	}
	same := func(_ netip.Prefix, row ban) (ban, bool) { return row, true }
	visitBook(b.shared, &b.own, same, add)
	visitBook(b.shared, &b.others, same, add)
	return n
}

// settle corrects bans that start in the future.
func (b *Bans) settle(at uint32) {
	b.Restart()
	for _, k := range []*book{&b.own, &b.others} {
		visitBook(b.shared, k, func(p netip.Prefix, row ban) (none struct{}, _ bool) {
			if row.settle(at) {
				k.put(p, row, at)
			}
			return none, false
		}, func(struct{}) {})
	}
}

func (b *ban) shift(by int64) {
	shiftTime(&b.since, by)
	shiftTime(&b.until, by)
	shiftTime(&b.last, by)
	shiftTime(&b.extra, by)
	shiftTime(&b.end, by)
}

// mergeBans merges a stored ban into a ban imposed since startup. The ban that ends
// later is kept, but an enforced ban takes precedence over an observed one.
func mergeBans(live *ban, stored ban) {
	times := max(live.times, stored.times)
	unban, elsewhere := max(live.ownUnban(), stored.ownUnban()), max(live.unbannedElsewhere(), stored.unbannedElsewhere())
	if observed := live.flags & banObserved; observed == stored.flags&banObserved {
		if stored.until > live.until {
			*live = stored
		}
		live.times = times
	} else if observed != 0 {
		*live = stored
	}
	if live.flags&(banRevoked|banForeign) == 0 {
		live.extra, live.end = min(unban, live.since-1), min(elsewhere, live.since-1)
	}
}

// ruleNames numbers the names of rules, so that a name takes up only two bytes in a
// row.
type ruleNames struct {
	list  []string
	index map[string]uint16
}

// newRuleNames returns a list that contains only number 0, which replaces names that no
// longer fit.
func newRuleNames() (n ruleNames) {
	n.number("a former rule")
	return n
}

// The list has room for maxNames names. Above maxOwnNames, reasons given by the operator are omitted,
// and above maxForeignNames, the names of other hosts' rules are omitted. The other host's name is
// never omitted: without it, the ban would count as this host's.
const (
	maxNames        = 1 << 16
	maxOwnNames     = maxNames - 1<<12
	maxForeignNames = 1 << 14
)

func (n *ruleNames) number(s string) uint16 {
	if i, ok := n.index[s]; ok {
		return i
	}
	switch origin, rule := splitOrigin(s); {
	case origin == "" && len(n.list) >= maxOwnNames, len(n.list) == maxNames:
		return 0
	case origin != "" && rule != "" && len(n.list) >= maxForeignNames:
		return n.foreign(origin, "")
	}
	if n.index == nil {
		n.index = make(map[string]uint16)
	}
	n.index[s] = uint16(len(n.list))
	n.list = append(n.list, s)
	return n.index[s]
}

func (n *ruleNames) export(c *clock, p netip.Prefix, b ban) Ban {
	out := Ban{
		Prefix: p, Since: c.event(b.since), Until: c.event(b.until),
		Session: b.session, Times: int(b.times), Attempts: int(b.attempts),
		Observe: b.flags&banObserved != 0, Manual: b.flags&banManual != 0, Revoked: b.flags&banRevoked != 0,
		Listed: b.flags&banListed != 0,
	}
	if out.Manual {
		out.Session = 0
	}
	switch {
	case out.Revoked:
	case b.flags&banForeign == 0:
		out.Firewall = out.Until
	case b.extra != 0 && p.IsSingleIP():
		out.Firewall = c.event(min(b.until, b.extra))
	}
	if out.Origin, out.Rule = splitOrigin(n.list[b.rule]); out.Revoked && b.flags&banForeign == 0 {
		out.Origin = "" // this host has revoked another host's ban
	}
	if b.last != 0 {
		out.Last = c.event(b.last)
	}
	return out
}

const banSize = 4 + 4 + 4 + 2 + 8 + 1 + 1

func (n *ruleNames) value(b ban) (value []byte) {
	value = be.AppendUint32(make([]byte, 0, banSize+len(n.list[b.rule])), b.since)
	value = be.AppendUint32(value, b.until)
	value = be.AppendUint32(value, b.last)
	value = be.AppendUint16(value, b.attempts)
	value = be.AppendUint64(value, b.session)
	flags := b.flags
	if b.extra != 0 {
		flags |= banExtra
	}
	if b.end != 0 {
		flags |= banEnd
	}
	value = append(value, b.times, byte(flags))
	if flags&banExtra != 0 {
		value = be.AppendUint32(value, b.extra)
	}
	if flags&banEnd != 0 {
		value = be.AppendUint32(value, b.end)
	}
	return append(value, n.list[b.rule]...)
}

func (n *ruleNames) read(key, v []byte) (p netip.Prefix, b ban, ok bool) {
	p, _, ok = readRange(key)
	if !ok || len(v) < banSize {
		return p, b, false
	}
	b = ban{
		since: be.Uint32(v), until: be.Uint32(v[4:]), last: be.Uint32(v[8:]), attempts: be.Uint16(v[12:]),
		session: be.Uint64(v[14:]), times: v[22], flags: banFlags(v[23]),
	}
	rule := v[banSize:]
	for _, optional := range [...]struct {
		flag  banFlags
		field *uint32
	}{{banExtra, &b.extra}, {banEnd, &b.end}} {
		if b.flags&optional.flag == 0 {
			continue
		}
		if len(rule) < 4 {
			return p, ban{}, false
		}
		*optional.field, rule = be.Uint32(rule), rule[4:]
		b.flags &^= optional.flag
	}
	b.rule = n.number(string(rule))
	return p, b, true
}

func prefixKey(p netip.Prefix) []byte {
	return append([]byte{byte(p.Bits())}, p.Addr().AsSlice()...)
}

// rangeBits is added to the length of the prefix in the key of a range.
const rangeBits = 129

func rangeKey(p netip.Prefix) []byte {
	key := prefixKey(p)
	key[0] += rangeBits
	return key
}

// IsRange reports whether a key of the bucket BansBucket is that of a range.
func IsRange(key []byte) bool {
	_, wide, _ := readRange(key)
	return wide
}

// readRange decodes a key that is either that of a prefix or that of a range.
func readRange(key []byte) (p netip.Prefix, wide, ok bool) {
	if wide = len(key) > 0 && key[0] >= rangeBits; wide {
		key = slices.Clone(key)
		key[0] -= rangeBits
	}
	p, ok = readPrefix(key)
	return p, wide, ok
}

func readPrefix(b []byte) (netip.Prefix, bool) {
	if len(b) == 0 {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(b[1:])
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := a.Prefix(int(b[0]))
	return p, err == nil
}
