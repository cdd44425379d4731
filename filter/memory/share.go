package memory

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"scanwatch/internal/kv"
)

// The hosts of a fleet share their rows. Each host sends only rows about its own
// sessions, so that no session is counted twice. Package share merges the other hosts'
// rows into one row for each key. Other hosts' bans are in a separate book; see Bans. All
// their other rows are kept in separate maps, of which only that of clients is written to
// disk, and have less weight than this host's rows:
//
//   - Other hosts' counts can triple this host's count, but cannot replace it; see
//     together. Otherwise, a single host with wrong counts could make all hosts reject
//     a legitimate client.
//   - A login on another host does not exempt a client, but failed logins on other
//     hosts then count only towards the threshold for addresses with logins.
//   - Bans and offences on other hosts do not affect this host's bans.
//   - Mail to other hosts can make a client known, but never trusted.

// maxForeign limits the rows of other hosts to a table's maximum number of rows divided
// by maxForeign.
const maxForeign = 2

// Multiple limits the weight of other hosts' counts: they add at most Multiple times
// this host's own count, and nothing if that count is at most Alone. If a client's
// events are spread evenly over three hosts, each of the hosts therefore reaches the
// full count.
const Multiple = 2

// Alone is the highest count to which nothing is added, so that a single mistake never
// counts more than once. Otherwise, another host's wrong counts could cause this host
// to reject a client after its first unknown recipient.
const Alone = 1

// together adds the other hosts' count, within the limit, to this host's own.
func together(own, others int) int {
	if own <= Alone {
		return own
	}
	return own + min(others, Multiple*own)
}

// hostNames numbers other hosts' names.
type hostNames struct {
	list []string
}

// maxHosts is the maximum number of other hosts whose names are kept.
const maxHosts = 1000

func (n *hostNames) number(name string) uint16 {
	if i := slices.Index(n.list, name); i >= 0 {
		return uint16(i)
	}
	if len(n.list) == maxHosts {
		return maxHosts - 1
	}
	n.list = append(n.list, name)
	return uint16(len(n.list) - 1)
}

// A Foreign is a row received from other hosts. A Foreign without a value means that
// other hosts have no row with this key. If Origin is set, only a ban imposed by Origin
// is deleted. A row with a value but without an Origin is this host's own, sent back.
type Foreign struct {
	kv.Entry
	Origin string // name of the host with the latest information
	// Partial is set if the row comes from a file of Origin. Rows with the same key from
	// other hosts then remain.
	Partial bool
}

// A Freed is a prefix whose ban another host has ended.
type Freed struct {
	Prefix netip.Prefix
	Origin string // name of the host; empty if it is unknown
}

// A sharedTable is a table whose rows are shared among hosts. All methods but count
// require the lock.
type sharedTable interface {
	bucketName() string
	// announce marks all of this host's rows as changed. Later changes are marked
	// as well.
	announce()
	// send calls put for up to n of this host's changed rows, and returns n minus
	// the number of calls. The value of a deleted row is nil. by is added to the
	// times.
	send(n int, by int64, put func(key, value []byte)) (left int)
	// receive sets the other hosts' row, or deletes it if f has no value. by is
	// added to the times. receive reports whether the row is valid.
	receive(f *Foreign, by int64, now uint32) bool
	// combine merges rows with the same key. It returns nil if no row is valid, or if
	// all rows have expired.
	combine(key []byte, values [][]byte, now uint32) []byte
	// valid reports whether a row can be decoded and has no time later than latest.
	valid(key, value []byte, latest uint32) bool
	// validKey reports whether the key is valid for this table.
	validKey(key []byte) bool
	// room returns the maximum number of other hosts' rows, or 0 if they are in the table of
	// this host.
	room() int
	// foreignRows returns the number of rows of other hosts.
	foreignRows() int
	// displaced returns the number of rows of every other host that were deleted because the
	// table was full.
	displaced() map[uint16]int
	// count calls add with the host of each row of other hosts. It must be called
	// without the lock, and takes the lock only briefly.
	count(mu *sync.Mutex, add func(host string))
	// disown deletes another host's rows and returns their number.
	disown(origin string) int
}

func sharedTables(m *Memory) []sharedTable {
	return []sharedTable{
		sharedBans{m.Bans},
		sharedRows[peerKey, peer]{&m.Peers.rows, &m.hosts},
		sharedRows[counterKey, counter]{&m.Counters.rows, &m.hosts},
		sharedRows[uint64, recipient]{&m.Recipients.rows, &m.hosts},
		sharedRows[sprayKey, spray]{&m.Logins.sprays, &m.hosts},
	}
}

// Announce causes Outgoing to return all of this host's rows, followed by all rows that
// change later. After the filter starts, Announce must be called before Incoming.
// Otherwise, other hosts would not receive the changes that result from their rows.
func (m *Memory) Announce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range sharedTables(m) {
		t.announce()
	}
}

// Outgoing returns up to n of this host's rows that have changed since Outgoing last
// returned them. The value of a deleted row is nil. The times in rows are event times
// plus skew, in seconds.
func (m *Memory) Outgoing(n int, skew int64) (list []kv.Entry) {
	for _, t := range sharedTables(m) {
		for left := n - len(list); left > 0; {
			some := min(left, chunk)
			rest := outgoing(m, t, some, skew, &list)
			left -= some - rest
			if rest > 0 {
				break
			}
		}
	}
	return list
}

func outgoing(m *Memory, t sharedTable, n int, skew int64, list *[]kv.Entry) (left int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return t.send(n, m.clock.offset.Load()/1e6+skew, func(key, value []byte) {
		*list = append(*list, kv.Entry{Bucket: t.bucketName(), Key: key, Value: value})
	})
}

// Incoming sets other hosts' rows, and returns the prefixes whose bans these hosts have
// ended. Each row replaces the earlier one with the same key, unless it is partial or an unban.
// Invalid rows are skipped and cause an error. Skew is subtracted from the times in rows; see Outgoing.
// Until the rows on disk are loaded, Incoming sets no rows, because the stored rows may
// include unbans.
func (m *Memory) Incoming(list []Foreign, skew, now int64) (freed []Freed, last error) {
	if !m.Bans.Loaded() {
		return nil, ErrNotLoaded
	}
	var sum unbans
	for some := range slices.Chunk(list, chunk) {
		u, err := receive(m, some, skew, now)
		sum = unbans{append(sum.freed, u.freed...), append(sum.cleared, u.cleared...), append(sum.ranges, u.ranges...)}
		last = cmp.Or(err, last)
	}
	for _, f := range endWithin(m.Bans, sum.ranges, now) {
		sum.freed, sum.cleared = append(sum.freed, f), append(sum.cleared, f.Prefix)
	}
	m.Forget(sum.cleared...)
	return sum.freed, last
}

// ErrNotLoaded is returned by Incoming while the state on disk has not been loaded.
var ErrNotLoaded = errors.New("the state on disk is not loaded yet")

// receive implements Incoming for some of the rows.
func receive(m *Memory, list []Foreign, skew, now int64) (u unbans, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	tables := sharedTables(m)
	by := -(m.clock.offset.Load()/1e6 + skew)
	m.Bans.unbans = unbans{}
	for i := range list {
		f := &list[i]
		valid := slices.ContainsFunc(tables, func(t sharedTable) bool {
			return t.bucketName() == f.Bucket && t.receive(f, by, m.clock.row(now))
		})
		if !valid {
			err = fmt.Errorf("invalid row of table %q from %q", f.Bucket, f.Origin)
		}
	}
	return m.Bans.unbans, err
}

// Origins returns the number of rows received from every other host.
func (m *Memory) Origins() map[string]int {
	byHost := make(map[string]int)
	for _, t := range sharedTables(m) {
		t.count(&m.mu, func(host string) { byHost[host]++ })
	}
	return byHost
}

// Disown deletes the rows of another host, including its unbans, and returns their number. If its
// unbans remained, they would still end bans.
func (m *Memory) Disown(origin string) (n int) {
	locked := func(t sharedTable) int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return t.disown(origin)
	}
	for _, t := range sharedTables(m) {
		n += locked(t)
	}
	return n
}

// A sharedRows shares the rows of a table other than the tables of bans.
type sharedRows[K comparable, V any] struct {
	*table[K, V]
	hosts *hostNames
}

func (t sharedRows[K, V]) announce() {
	if t.outgoing == nil {
		t.outgoing = make(map[K]bool)
	}
	announce(t.outgoing, t.rows)
}

func announce[K comparable, V any](outgoing map[K]bool, rows map[K]V) {
	for k := range rows {
		if _, ok := outgoing[k]; !ok {
			outgoing[k] = false
		}
	}
}

func (t sharedRows[K, V]) send(n int, by int64, put func(key, value []byte)) (left int) {
	return send(t.table, n, by, put, func(k K, v *V) sending {
		reduced := *v
		switch {
		case !t.shares(k):
			return sendNothing
		case !t.effective(k, &reduced): // would take the place of another row
			return sendDeletion
		}
		return sendRow
	})
}

// sending is what other hosts receive of a row.
type sending uint8

const (
	sendNothing  sending = iota
	sendRow              // the row
	sendDeletion         // that this host has no such row
)

// send sends the changed rows of a table. prepare decides what other hosts receive of a row, and
// may change the copy that they receive.
func send[K comparable, V any](t *table[K, V], n int, by int64, put func(key, value []byte), prepare func(K, *V) sending) (left int) {
	before := len(t.outgoing)
	for k := range t.outgoing {
		if n <= 0 {
			return n
		}
		delete(t.outgoing, k)
		v, ok := t.rows[k]
		what := sendDeletion
		if ok {
			what = prepare(k, &v)
		}
		switch what {
		case sendNothing:
			continue
		case sendDeletion:
			put(t.key(k), nil)
		case sendRow:
			t.schema.shift(k, &v, by)
			put(t.key(k), t.value(v))
		}
		n--
	}
	if before > 0 && t.outgoing != nil {
		t.outgoing = make(map[K]bool) // clear would keep the map's memory
	}
	return n
}

func (t sharedRows[K, V]) receive(f *Foreign, by int64, now uint32) bool {
	value := f.Value
	if len(value) == 0 {
		value = t.value(*new(V))
	}
	k, v, ok := t.decode(f.Key, value)
	at := foreignKey[K]{key: k}
	switch {
	case len(f.Value) == 0 && f.Partial:
		return true
	case f.Partial:
		at.file = t.hosts.number(f.Origin) + 1
	}
	switch {
	case len(f.Value) == 0:
		t.foreign.del(at)
		return true
	case !ok:
		return false
	case !t.effective(k, &v):
		t.foreign.del(at)
		return true
	}
	t.schema.shift(k, &v, by)
	row := foreignRow[V]{v, t.hosts.number(f.Origin)}
	if _, had := t.foreign.rows[at]; !had {
		t.makeForeignRoom(row.origin, now)
	}
	t.foreign.set(at, row)
	return true
}

func (t sharedRows[K, V]) combine(key []byte, values [][]byte, now uint32) []byte {
	return combine(t.table, key, values, now)
}

func combine[K comparable, V any](t *table[K, V], key []byte, values [][]byte, now uint32) []byte {
	var sum V
	var k K
	found := false
	for _, value := range values {
		key, v, ok := t.decode(key, value)
		if !ok || t.evictionScore(key, v, now) < 0 || !t.effective(key, &v) {
			continue
		}
		if k = key; found {
			t.schema.combine(k, &sum, v)
		} else {
			sum, found = v, true
		}
	}
	if !found {
		return nil
	}
	return t.value(sum)
}

func (t sharedRows[K, V]) valid(key, value []byte, latest uint32) bool {
	k, v, ok := t.decode(key, value)
	return ok && t.newest(k, v) <= int64(latest)
}

func (t sharedRows[K, V]) room() int { return t.table.room() }

func (t sharedRows[K, V]) foreignRows() int { return len(t.foreign.rows) }

func (t sharedRows[K, V]) displaced() map[uint16]int { return t.foreign.displaced }

func (t sharedRows[K, V]) count(mu *sync.Mutex, add func(host string)) {
	eachIn(mu, func() map[foreignKey[K]]foreignRow[V] { return t.foreign.rows },
		func(_ foreignKey[K], f foreignRow[V]) (string, bool) { return t.hosts.list[f.origin], true }, add)
}

func (t sharedRows[K, V]) disown(origin string) (n int) {
	return t.foreign.deleteFunc(func(_ foreignKey[K], f *foreignRow[V]) bool { return t.hosts.list[f.origin] == origin })
}

// A Merger merges rows of several hosts. It is not safe for concurrent use.
type Merger struct {
	bans   *Bans
	tables []sharedTable
}

// NewMerger returns a Merger.
func NewMerger() Merger {
	m := New()
	return Merger{m.Bans, sharedTables(m)}
}

// Combine merges the valid rows of several hosts with the same key. The result does not
// depend on the order of the rows. Combine returns nil if no row is valid, or if all
// rows have expired by now, in seconds since 1970.
func (m Merger) Combine(bucket string, key []byte, values [][]byte, now int64) []byte {
	m.bans.rules.reset()
	values = slices.SortedFunc(slices.Values(values), bytes.Compare)
	for _, t := range m.tables {
		if t.bucketName() == bucket {
			if v := t.combine(key, values, uint32(now)); v != nil {
				return v
			}
		}
	}
	return nil
}

// Shared reports whether hosts share the rows of a bucket.
func (m Merger) Shared(bucket string) bool {
	return slices.ContainsFunc(m.tables, func(t sharedTable) bool { return t.bucketName() == bucket })
}

// Valid reports whether a shared row can be decoded, and has no time later than latest, in
// seconds since 1970.
func (m Merger) Valid(bucket string, key, value []byte, latest int64) bool {
	m.bans.rules.reset()
	return slices.ContainsFunc(m.tables, func(t sharedTable) bool {
		return t.bucketName() == bucket && t.valid(key, value, uint32(latest))
	})
}

// LimitBan returns a copy of a ban's row, in which the ban lasts at most d. If observe
// is set, the ban is not enforced. The row must be valid.
func LimitBan(value []byte, d time.Duration, observe bool) []byte {
	value = slices.Clone(value)
	since, until := be.Uint32(value), be.Uint32(value[4:])
	be.PutUint32(value[4:], uint32(min(int64(until), int64(since)+int64(d/time.Second))))
	if observe {
		value[banSize-1] |= byte(banObserved)
	}
	return value
}

// A BanRow describes a shared row of the bans bucket.
type BanRow struct {
	Prefix       netip.Prefix
	Since, Until int64 // seconds since 1970
	Unbanned     int64 // time of the unban, or of the latest unban before the ban by the same host; 0 if there was none
	Range        bool  // the unban is of all hosts and networks in the prefix
	Session      uint64
	Rule         string
	Revoked      bool
	Manual       bool
}

// EndedBy reports whether an unban of the same prefix ends the ban.
func (b *BanRow) EndedBy(unban *BanRow) bool {
	same := unban.Revoked && b.Session != 0 && b.Session == unban.Session // see ban.ends
	return unban.Unbanned != 0 && (b.Since <= unban.Unbanned || same)
}

// Active reports whether a ban is active.
func (b *BanRow) Active(now int64) bool { return !b.Revoked && b.Until > now }

// PeersBucket is the bucket of clients with a standing.
const PeersBucket = peersBucket

// StandingScore returns the usefulness of a row in PeersBucket for other hosts, or 0 if the
// row is no reason for a standing there. A higher score is more useful. The score is the day
// of the latest mail or login, plus a month for each day with mail, up to the number of days
// of a trusted client. Many clients that have sent a single message therefore cannot
// displace regular senders. Domains that local users have written to count like trusted ones.
func StandingScore(key, value []byte) int64 {
	const month = 30
	k, p, ok := readPeer(key, value)
	latest := max(p.good, p.wrote, p.login)
	if !ok || latest == 0 || k.kind == peerDomain && p.provider() {
		return 0
	}
	days := min(p.days, trustedDays)
	switch {
	case p.wrote != 0:
		days = trustedDays
	case p.good == 0: // a login, even if an offence has changed the numbers
		days = 0
	}
	return int64(latest) + month*int64(days)
}

// ReadBan decodes a row of the bucket BansBucket.
func ReadBan(key, value []byte) (BanRow, bool) {
	var names ruleNames
	p, b, ok := names.read(key, value)
	if !ok {
		return BanRow{}, false
	}
	_, wide, _ := readRange(key)
	b.sent()
	return BanRow{
		Prefix: p, Since: int64(b.since), Until: int64(b.until), Unbanned: int64(b.unbanned()), Range: wide,
		Session: b.session, Rule: names.list[b.rule], Revoked: b.flags&banRevoked != 0, Manual: b.flags&banManual != 0,
	}, true
}

// Unban returns the row of the unban in a row of the bucket BansBucket, which is an unban or a ban
// after an unban by the same host. It returns nil if there is none.
func Unban(key, value []byte) []byte {
	var names ruleNames
	_, b, ok := names.read(key, value)
	b.sent()
	unban, found := b.ownUnbanRow()
	if !ok || !found {
		return nil
	}
	return names.value(unban)
}

// higherCounters keeps the higher count of each slot. The same rows may arrive
// repeatedly and in any order, so counts are not added.
func higherCounters(_ counterKey, c *counter, other counter) {
	head := max(c.head, other.head)
	c.advance(head)
	other.advance(head)
	for i, v := range other.slots {
		c.slots[i] = max(c.slots[i], v)
	}
}

// higherPeers is like combinePeers, but keeps the higher number of messages instead of
// the sum.
func higherPeers(k peerKey, p *peer, other peer) {
	messages := max(p.messages, other.messages)
	combinePeers(k, p, other)
	p.messages = messages
}

// combineCounters adds the slots of two hosts. A counter from a host whose clock is
// ahead keeps its events; compare counter.advance.
func combineCounters(_ counterKey, sum *counter, other counter) {
	head := max(sum.head, other.head)
	sum.advance(head)
	other.advance(head)
	for i, v := range other.slots {
		sum.slots[i] = sum16(sum.slots[i], int(v))
	}
}

func combineRecipients(_ uint64, r *recipient, other recipient) {
	if r.accepted != other.accepted {
		if other.accepted {
			*r = other
		}
		return
	}
	r.day = max(r.day, other.day)
	for _, n := range other.networks {
		if n != 0 {
			addShort(r.networks[:], n)
		}
	}
}

func combineSprays(_ sprayKey, r *spray, other spray) {
	r.since = min(r.since, other.since) // so that no value counts for longer than the window
	for _, s := range other.seen {
		if s != 0 {
			addShort(r.seen[:], s)
		}
	}
}

// effective reduces another host's row to its effect here, and reports whether it has
// any effect; see schema.reduce.
func (t *table[K, V]) effective(k K, v *V) bool {
	return t.shares(k) && (t.reduce == nil || t.reduce(k, v))
}

// manyElsewhere is the value of peer.senders in a reduced row if many hosts share the
// address.
var manyElsewhere = [manySenders]uint16{1, 1, 1, 1, 1}

// reducePeer reduces a row to the standing that its host grants, so that no host can
// take away standing granted by another.
func reducePeer(k peerKey, p *peer) bool {
	switch {
	case p.senders == manyElsewhere: // already reduced
		return true
	case k.kind == peerDomain && p.provider(), p.good == 0 && p.wrote == 0 && p.login == 0: // the latter has only offences
		return false
	case k.kind == peerHost && p.many():
		p.senders, p.messages, p.days = manyElsewhere, 0, 0
	default:
		p.senders = [manySenders]uint16{}
	}
	p.helos = [manyGreetings]uint16{}
	return true
}

// combinePeers combines the reduced rows of two hosts. Several hosts may have received
// mail on the same day, so days are not added.
func combinePeers(_ peerKey, p *peer, other peer) {
	days := max(p.days, other.days)
	senders := p.senders
	if other.senders == manyElsewhere {
		senders = manyElsewhere
	}
	mergePeers(p, other)
	p.days, p.senders = days, senders
}
