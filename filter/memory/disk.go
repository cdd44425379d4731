package memory

// How rows are kept in state.db. Numbers are big-endian; hashes are keyed, with
// the key in the bucket secret.
//
//	secret     "hash"                           16 bytes
//	bans       length of the prefix (1 byte),   since, until, last (4 each), tries (2), session (8),
//	           address (4 or 16)                times (1), flags (1), then the rule
//	peers      kind (1), source, network or     days of the last mail, login and offence, messages
//	           hash (8)                         (2 each)
//	counters   who (8), window in seconds (4),  number of the newest slot (4), six slots (2 each)
//	           key, blank, evidence
//	recipients hash (8)                         day (2), accepted (1), networks (4 times 2)
//	campaigns  hash (8)                         day, messages (2 each), networks (4 times 2)
//	logins     hash of source and user (8)      failures (2), hour (4)
//	sprays     kind (1), source or hash (8)     since (4), users or networks (8 times 2)
//	domains    the domain                       day (2)
//	days       day (2)                          figures: length of the name (1), name, number (varint)

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"scanwatch/rules"
	"scanwatch/store"
)

// A bucket says how one table is kept.
type bucket struct {
	name    string
	changes func(m *Memory, n int, put func(key, value []byte)) (left int)
	load    func(m *Memory, key, value []byte, now uint32) bool // false: it makes no sense
	rewrite func(m *Memory)
}

// buckets is every table. The secret comes first: with another one than ours
// the hashes gathered before it was read are worth nothing.
var buckets = []bucket{
	{"secret", changedSecret, loadSecret, func(m *Memory) { m.keyDirty = true }},
	keep("bans", func(m *Memory) *table[uint64, ban] { return &m.bans },
		func(k uint64, b *ban, m *Memory) ([]byte, []byte) { return banRow(prefixOf(k), b, m) }, nil),
	{"bans", changedWide, loadBan, func(m *Memory) {
		for p := range m.wide.rows {
			m.wide.note(p)
		}
	}},
	keep("peers", func(m *Memory) *table[peerKey, peer] { return &m.peers },
		func(k peerKey, p *peer, _ *Memory) ([]byte, []byte) {
			key := be.AppendUint64([]byte{byte(k.kind)}, k.who)
			if p == nil {
				return key, nil
			}
			return key, words(p.good, p.login, p.bad, p.mails)
		}, loadPeer),
	keep("counters", func(m *Memory) *table[counterKey, counter] { return &m.counters }, counterRow, loadCounter),
	keep("recipients", func(m *Memory) *table[uint64, probed] { return &m.probed },
		func(k uint64, p *probed, _ *Memory) ([]byte, []byte) {
			if p == nil {
				return number(k), nil
			}
			accepted := byte(0)
			if p.accepted {
				accepted = 1
			}
			return number(k), append(append(words(p.day), accepted), words(p.nets[:]...)...)
		}, loadProbed),
	keep("campaigns", func(m *Memory) *table[uint64, campaign] { return &m.campaigns },
		func(k uint64, c *campaign, _ *Memory) ([]byte, []byte) {
			if c == nil {
				return number(k), nil
			}
			return number(k), append(words(c.day, c.good), words(c.nets[:]...)...)
		}, loadCampaign),
	keep("logins", func(m *Memory) *table[uint64, pair] { return &m.pairs },
		func(k uint64, p *pair, _ *Memory) ([]byte, []byte) {
			if p == nil {
				return number(k), nil
			}
			return number(k), be.AppendUint32(words(p.failed), p.hour)
		}, loadPair),
	keep("sprays", func(m *Memory) *table[distinctKey, distinct] { return &m.distinct },
		func(k distinctKey, d *distinct, _ *Memory) ([]byte, []byte) {
			key := be.AppendUint64([]byte{byte(k.kind)}, k.who)
			if d == nil {
				return key, nil
			}
			return key, append(be.AppendUint32(nil, d.since), words(d.seen[:]...)...)
		}, loadDistinct),
	keep("domains", func(m *Memory) *table[string, uint16] { return &m.domains },
		func(k string, day *uint16, _ *Memory) ([]byte, []byte) {
			if day == nil {
				return []byte(k), nil
			}
			return []byte(k), words(*day)
		}, loadDomain),
	keep("days", func(m *Memory) *table[uint16, *counted] { return &m.days }, dayRow, loadDay),
}

var be = binary.BigEndian

func number(n uint64) []byte { return be.AppendUint64(nil, n) }

func words(list ...uint16) (b []byte) {
	for _, w := range list {
		b = be.AppendUint16(b, w)
	}
	return b
}

// read takes as many numbers of two bytes as there are places.
func read(b []byte, to ...*uint16) {
	for i, p := range to {
		*p = be.Uint16(b[2*i:])
	}
}

// keep makes the bucket of a table. Row returns a nil value for a row that is
// gone.
func keep[K comparable, V any](name string, t func(*Memory) *table[K, V], row func(K, *V, *Memory) (key, value []byte),
	load func(m *Memory, key, value []byte, now uint32) bool) bucket {
	return bucket{
		name: name,
		changes: func(m *Memory, n int, put func(key, value []byte)) int {
			return t(m).changes(n, func(k K, v *V) {
				key, value := row(k, v, m)
				put(key, value)
			})
		},
		load:    load,
		rewrite: func(m *Memory) { t(m).rewrite() },
	}
}

// Buckets names the buckets in the order in which they have to be loaded.
func Buckets() (names []string) {
	for _, b := range buckets {
		if len(names) == 0 || names[len(names)-1] != b.name {
			names = append(names, b.name)
		}
	}
	return names
}

// Changes returns at most n rows that have changed since it was last asked.
func (m *Memory) Changes(n int) (list []store.Entry) {
	for i := range buckets {
		b := &buckets[i]
		for left := n - len(list); left > 0; {
			some := min(left, chunk)
			rest := m.changed(b, some, &list)
			left -= some - rest
			if rest > 0 {
				break
			}
		}
	}
	return list
}

// changed appends n rows of b that have changed, and returns how many fewer
// there were. Lock and unlock stand together, so that a panic leaves no lock
// behind that answers would wait for.
func (m *Memory) changed(b *bucket, n int, list *[]store.Entry) (left int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return b.changes(m, n, func(key, value []byte) { *list = append(*list, store.Entry{Bucket: b.name, Key: key, Value: value}) })
}

// Rewrite makes Changes return everything again, because the disk has lost it.
func (m *Memory) Rewrite() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range buckets {
		buckets[i].rewrite(m)
	}
}

// Load takes what the disk has kept; now is the time by the clock of events, in
// microseconds. What was gathered since the start stays, and counts
// together with it. Rows that are dead are deleted, and those
// that make no sense are left out.
func (m *Memory) Load(entries iter.Seq[store.Entry], now int64) {
	load := loaders()
	// An entry comes from the disk: nobody may wait for that with the lock.
	some := make([]store.Entry, 0, chunk)
	take := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i := range some {
			e := &some[i]
			if f := load[e.Bucket]; f != nil {
				_ = f(m, e.Key, e.Value, seconds(now))
			}
		}
		some = some[:0]
	}
	for e := range entries {
		some = append(some, store.Entry{Bucket: e.Bucket, Key: bytes.Clone(e.Key), Value: bytes.Clone(e.Value)})
		if len(some) == chunk {
			take()
		}
	}
	take()
}

// adopt puts a row that the disk has kept into t, if it is alive.
func adopt[K comparable, V any](t *table[K, V], k K, v V, now uint32, merge func(ours *V, old V)) {
	if t.worth(k, v, now) < 0 {
		t.dirty[k] = true
		return
	}
	if ours, ok := t.rows[k]; ok {
		merge(&ours, v)
		t.rows[k] = ours
		t.dirty[k] = true
		return
	}
	if len(t.rows) < t.most {
		t.rows[k] = v
		return
	}
	t.put(k, v, now)   // the table was larger when it was written,
	delete(t.dirty, k) // and the disk has this row: it must hear when it goes
}

// loaders are the functions that take rows, by bucket.
func loaders() map[string]func(*Memory, []byte, []byte, uint32) bool {
	load := make(map[string]func(*Memory, []byte, []byte, uint32) bool)
	for _, b := range buckets {
		if b.load != nil {
			load[b.name] = b.load
		}
	}
	return load
}

// Checker returns a function that tells whether a row of state.db makes sense.
func Checker() func(store.Entry) error {
	m := New()
	load := loaders()
	return func(e store.Entry) error {
		switch f := load[e.Bucket]; {
		case f == nil:
			return fmt.Errorf("there is no table %q", e.Bucket)
		case !f(m, e.Key, e.Value, 0):
			return fmt.Errorf("table %s: a row with a key of %d and a value of %d bytes makes no sense", e.Bucket, len(e.Key), len(e.Value))
		}
		return nil
	}
}

func changedSecret(m *Memory, n int, put func(key, value []byte)) int {
	if m.keyDirty {
		m.keyDirty = false
		put([]byte("hash"), append([]byte(nil), m.key[:]...))
		n--
	}
	return n
}

func loadSecret(m *Memory, _, value []byte, _ uint32) bool {
	if len(value) != len(m.key) {
		return false
	}
	copy(m.key[:], value)
	clear(m.known[:]) // what they hold was made with the former key
	clear(m.hashes[:])
	m.keyDirty = false
	m.probed.clear()
	m.campaigns.clear()
	m.pairs.clear()
	m.distinct.clear()
	for k := range m.peers.rows {
		if k.kind == peerDomain {
			m.peers.del(k)
		}
	}
	for k := range m.counters.rows {
		if k.by == rules.ByHelo || k.by == rules.ByUser {
			m.counters.del(k)
		}
	}
	return true
}

func prefixKey(p netip.Prefix) []byte {
	return append([]byte{byte(p.Bits())}, p.Addr().AsSlice()...)
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

const banSize = 4 + 4 + 4 + 2 + 8 + 1 + 1

func banRow(p netip.Prefix, b *ban, m *Memory) (key, value []byte) {
	key = prefixKey(p)
	if b == nil {
		return key, nil
	}
	value = be.AppendUint32(value, b.since)
	value = be.AppendUint32(value, b.until)
	value = be.AppendUint32(value, b.last)
	value = be.AppendUint16(value, b.tries)
	value = be.AppendUint64(value, b.session)
	value = append(value, b.times, byte(b.flags))
	return key, append(value, m.names.list[b.rule]...)
}

func changedWide(m *Memory, n int, put func(key, value []byte)) int {
	for p := range m.wide.dirty {
		if n <= 0 {
			break
		}
		n--
		delete(m.wide.dirty, p)
		if b, ok := m.wide.rows[p]; ok {
			put(banRow(p, &b, m))
		} else {
			put(prefixKey(p), nil)
		}
	}
	return n
}

// ReadBan reads a row of the bucket bans, for those who read the file without
// the filter.
func ReadBan(key, value []byte) (Ban, bool) {
	var m Memory
	p, b, ok := readBan(&m, key, value)
	if !ok {
		return Ban{}, false
	}
	return m.export(p, b), true
}

func readBan(m *Memory, key, v []byte) (p netip.Prefix, b ban, ok bool) {
	p, ok = readPrefix(key)
	if !ok || len(v) < banSize {
		return p, b, false
	}
	b = ban{
		since: be.Uint32(v), until: be.Uint32(v[4:]), last: be.Uint32(v[8:]), tries: be.Uint16(v[12:]),
		session: be.Uint64(v[14:]), times: v[22], flags: banFlags(v[23]), rule: m.names.number(string(v[banSize:])),
	}
	return p, b, true
}

func loadBan(m *Memory, key, value []byte, now uint32) bool {
	p, b, ok := readBan(m, key, value)
	if !ok {
		return false
	}
	if isSource(p) {
		adopt(&m.bans, Number(p.Addr()), b, now, func(ours *ban, old ban) {
			times := max(ours.times, old.times)
			if observed := ours.flags & banObserved; observed == old.flags&banObserved {
				if old.until > ours.until {
					*ours = old
				}
				ours.times = times
			} else if observed != 0 {
				*ours = old // one that holds
			}
		})
		return true
	}
	if banWorth(0, b, now) >= 0 && !m.wide.has(p) && len(m.wide.rows) < maxWide {
		m.wide.put(p, b)
		delete(m.wide.dirty, p)
	}
	return true
}

func readPeer(key, v []byte) (k peerKey, p peer, ok bool) {
	if len(key) != 9 || len(v) != 8 {
		return k, p, false
	}
	read(v, &p.good, &p.login, &p.bad, &p.mails)
	return peerKey{be.Uint64(key[1:]), peerKind(key[0])}, p, true
}

func loadPeer(m *Memory, key, v []byte, now uint32) bool {
	k, p, ok := readPeer(key, v)
	if !ok {
		return false
	}
	adopt(&m.peers, k, p, now, func(ours *peer, old peer) {
		ours.good, ours.login, ours.bad = max(ours.good, old.good), max(ours.login, old.login), max(ours.bad, old.bad)
		ours.mails = uint16(min(int(ours.mails)+int(old.mails), 1<<16-1))
	})
	return true
}

func counterRow(k counterKey, c *counter, _ *Memory) (key, value []byte) {
	key = be.AppendUint32(number(k.who), k.window)
	key = append(append(append(key, k.by.String()...), ' '), rules.Evidence(1<<k.what).String()...)
	if c == nil {
		return key, nil
	}
	return key, append(be.AppendUint32(nil, c.head), words(c.slots[:]...)...)
}

func loadCounter(m *Memory, key, v []byte, now uint32) bool {
	if len(key) < 12 || len(v) != 4+2*slotsPerWindow {
		return false
	}
	by, evidence, _ := strings.Cut(string(key[12:]), " ")
	token := rules.TokenByName(evidence)
	which, ok := rules.ParseKey(by)
	if token == nil || !ok {
		return false
	}
	k := counterKey{be.Uint64(key), be.Uint32(key[8:]), uint8(token.Evidence.Index()), which}
	c := counter{head: be.Uint32(v)}
	for i := range c.slots {
		c.slots[i] = be.Uint16(v[4+2*i:])
	}
	adopt(&m.counters, k, c, now, (*counter).merge)
	return true
}

func loadProbed(m *Memory, key, v []byte, now uint32) bool {
	p := probed{}
	if len(key) != 8 || len(v) != 3+2*len(p.nets) {
		return false
	}
	p.day, p.accepted = be.Uint16(v), v[2] != 0
	readNetworks(v[3:], &p.nets)
	adopt(&m.probed, be.Uint64(key), p, now, func(*probed, probed) {})
	return true
}

func loadCampaign(m *Memory, key, v []byte, now uint32) bool {
	c := campaign{}
	if len(key) != 8 || len(v) != 4+2*len(c.nets) {
		return false
	}
	read(v, &c.day, &c.good)
	readNetworks(v[4:], &c.nets)
	adopt(&m.campaigns, be.Uint64(key), c, now, func(*campaign, campaign) {})
	return true
}

func readNetworks(v []byte, n *networks) {
	for i := range n {
		n[i] = be.Uint16(v[2*i:])
	}
}

func loadPair(m *Memory, key, v []byte, now uint32) bool {
	if len(key) != 8 || len(v) != 6 {
		return false
	}
	adopt(&m.pairs, be.Uint64(key), pair{be.Uint16(v), be.Uint32(v[2:])}, now, func(*pair, pair) {})
	return true
}

func loadDistinct(m *Memory, key, v []byte, now uint32) bool {
	var d distinct
	if len(key) != 9 || len(v) != 4+2*len(d.seen) || int(key[0]) >= len(sprayTime) {
		return false
	}
	d.since = be.Uint32(v)
	for i := range d.seen {
		d.seen[i] = be.Uint16(v[4+2*i:])
	}
	adopt(&m.distinct, distinctKey{be.Uint64(key[1:]), distinctKind(key[0])}, d, now, func(*distinct, distinct) {})
	return true
}

func loadDomain(m *Memory, key, v []byte, now uint32) bool {
	if len(key) == 0 || len(v) != 2 {
		return false
	}
	adopt(&m.domains, string(key), be.Uint16(v), now, func(ours *uint16, old uint16) { *ours = max(*ours, old) })
	return true
}
