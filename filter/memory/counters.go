package memory

import (
	"net/netip"
	"strings"
	"time"

	"scanwatch/rules"
)

// Counters holds the sliding-window counters used by policy conditions.
type Counters struct {
	*shared
	peers   *Peers
	rows    table[counterKey, counter]
	watched []rules.Window
}

// A counter has six slots, each for a sixth of its window. Events older than the window
// never count, but an event may expire up to a sixth of the window too early.
type counter struct {
	head  uint32 // number of the newest slot, counted from 1970
	slots [slotsPerWindow]uint16
}

const slotsPerWindow = 6

type counterKey struct {
	subject  uint64 // 0 if unknown
	window   uint32 // seconds
	evidence uint8  // Evidence.Index
	by       rules.Key
}

func newCounters(s *shared, peers *Peers) *Counters {
	return &Counters{shared: s, peers: peers, rows: newTable(s, schema[counterKey, counter]{
		name: "counters", bucket: "counters", limit: maxCounters, evictionScore: counterScore,
		key: func(k counterKey) []byte {
			key := be.AppendUint32(number(k.subject), k.window)
			return append(append(append(key, k.by.String()...), ' '), rules.Evidence(1<<k.evidence).String()...)
		},
		value:   func(n counter) []byte { return append(be.AppendUint32(nil, n.head), words(n.slots[:]...)...) },
		decode:  readCounter,
		merge:   (*counter).merge,
		combine: combineCounters, higher: higherCounters,
		newest: func(k counterKey, n counter) int64 { return int64(n.head) * int64(max(k.window/slotsPerWindow, 1)) },
		shift:  shiftCounter,
	})}
}

func readCounter(key, v []byte) (k counterKey, n counter, ok bool) {
	if len(key) < 12 || len(v) != 4+2*slotsPerWindow {
		return k, n, false
	}
	by, evidence, _ := strings.Cut(string(key[12:]), " ")
	token := rules.TokenByName(evidence)
	which, ok := rules.ParseKey(by)
	if token == nil || !ok {
		return k, n, false
	}
	n.head = be.Uint32(v)
	readWords(v[4:], n.slots[:])
	return counterKey{be.Uint64(key), be.Uint32(key[8:]), uint8(token.Evidence.Index()), which}, n, true
}

// slot returns the number of the slot for a time. The divisor is not 0, because the
// shortest window is a minute.
func (k counterKey) slot(now uint32) uint32 { return now / max(k.window/slotsPerWindow, 1) }

func shiftCounter(k counterKey, n *counter, by int64) {
	old := *n
	n.head = uint32(max(int64(n.head)+by/int64(max(k.window/slotsPerWindow, 1)), slotsPerWindow))
	for i := range uint32(slotsPerWindow) {
		n.slots[(n.head-i)%slotsPerWindow] = old.slots[(old.head-i)%slotsPerWindow]
	}
}

// counterScore returns the eviction score. Counters with high counts are kept longest,
// followed by recent counters.
func counterScore(k counterKey, n counter, now uint32) int64 {
	slot := k.slot(now)
	if slot >= n.head+slotsPerWindow {
		return -1
	}
	return int64(n.sum())*slotsPerWindow + int64(n.head) - int64(slot)
}

// advance moves the head to the given slot.
func (n *counter) advance(slot uint32) {
	if slot <= n.head { // after the clock was set far back, start again
		if n.head-slot > slotsPerWindow {
			*n = counter{head: slot}
		}
		return
	}
	if slot-n.head >= slotsPerWindow {
		n.slots = [slotsPerWindow]uint16{}
		n.head = slot
		return
	}
	for n.head < slot {
		n.head++
		n.slots[n.head%slotsPerWindow] = 0
	}
}

func (n *counter) add(count int) {
	s := &n.slots[n.head%slotsPerWindow]
	*s = uint16(min(int(*s)+count, 1<<16-1))
}

// subtract removes the newest events.
func (n *counter) subtract(count int) {
	for i := range uint32(slotsPerWindow) {
		s := &n.slots[(n.head-i)%slotsPerWindow]
		part := min(count, int(*s))
		*s -= uint16(part)
		count -= part
	}
}

func (n *counter) sum() (sum int) {
	for _, v := range n.slots {
		sum += int(v)
	}
	return sum
}

// merge adds the counts of an older counter with the same key.
func (n *counter) merge(old counter) {
	old.advance(n.head)
	n.advance(old.head)
	for i, v := range old.slots {
		n.slots[i] = uint16(min(int(n.slots[i])+int(v), 1<<16-1))
	}
}

// Watch sets the windows in which events are counted. A new window starts with a count
// of 0.
func (t *Counters) Watch(windows []rules.Window) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched = t.watched[:0]
	for _, w := range windows {
		if !t.watches(&w) {
			t.watched = append(t.watched, w)
		}
	}
}

func (t *Counters) watches(w *rules.Window) bool {
	for i := range t.watched {
		if t.watched[i] == *w {
			return true
		}
	}
	return false
}

// Add counts an occurrence of e in all windows that watch e.
func (t *Counters) Add(c *Client, e rules.Evidence, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(c, e, 1, t.clock.row(now))
}

// add counts n occurrences of e, and requires the lock. If n is negative, the newest -n
// occurrences are removed.
func (t *Counters) add(c *Client, e rules.Evidence, n int, at uint32) {
	for i := range t.watched {
		w := &t.watched[i]
		if w.Evidence != e {
			continue
		}
		k := t.counterKey(c, w)
		if k.subject == 0 {
			continue
		}
		row, ok := t.rows.get(k)
		if !ok && n < 0 {
			continue
		}
		row.advance(k.slot(at))
		if n < 0 {
			row.subtract(-n)
		} else {
			row.add(n)
		}
		t.rows.put(k, row, at)
	}
}

// Count returns the number of occurrences within a window, including a limited number
// counted by other hosts; see Multiple. The count is 0 if the window counts by a kind
// of subject that the session's events are never attributed to; see subject. ok is
// false if the window is not watched, or if the subject is still unknown, such as the
// user before a login.
func (t *Counters) Count(c *Client, w rules.Window, now int64) (sum int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.watches(&w) {
		return 0, false
	}
	k := t.counterKey(c, &w)
	if k.subject == 0 {
		return 0, w.By == rules.ByPrefix || w.By == rules.ByDomain || c.Account || c.Shared
	}
	at := t.clock.row(now)
	n, _ := t.rows.get(k)
	n.advance(k.slot(at))
	others, _, ok := t.rows.other(k, at)
	if !ok || w.By == rules.BySrc && t.ownLogins(c, w.Evidence, at) {
		return n.sum(), true
	}
	others.advance(k.slot(at))
	return together(n.sum(), others.sum()), true
}

// ownLogins reports whether only failed logins on this host count, because a user has
// logged in from the address, here or on another host. Only a host with a login from
// the address counts each user's failures at most once an hour; see Logins.Failed.
func (t *Counters) ownLogins(c *Client, e rules.Evidence, at uint32) bool {
	return e&(rules.AuthFailure|rules.AuthSpray|rules.AuthUnsupported) != 0 && (t.peers.hasLogin(c, at) || t.peers.loginElsewhere(c, at))
}

// Halve halves the counts of e for the host of c.
func (t *Counters) Halve(c *Client, e rules.Evidence, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.watched {
		w := &t.watched[i]
		if w.Evidence != e || w.By != rules.BySrc {
			continue
		}
		k := t.counterKey(c, w)
		if row, ok := t.rows.get(k); ok && k.subject != 0 {
			row.advance(k.slot(t.clock.row(now)))
			row.subtract((row.sum() + 1) / 2)
			t.rows.put(k, row, t.clock.row(now))
		}
	}
}

// forget deletes the counts for networks and for each host for which freed returns true.
func (t *Counters) forget(freed func(host uint64) bool, networks map[uint64]bool) {
	deleteAll(&t.mu, &t.rows, func(k counterKey) bool {
		return k.by == rules.BySrc && freed(k.subject) || k.by == rules.ByPrefix && networks[k.subject]
	})
}

// hostOfNumber returns the IPv4 address or the /64 with the number n.
func hostOfNumber(n uint64) netip.Prefix {
	if n>>32 == 0 {
		return Host{lo: n}.Prefix()
	}
	return Host{hi: n}.Prefix()
}

// inPrefix reports whether n is the number of an IPv4 host or a /64 in p.
func inPrefix(n uint64, p netip.Prefix) bool { return p.Contains(hostOfNumber(n).Addr()) }

func (t *Counters) counterKey(c *Client, w *rules.Window) counterKey {
	return counterKey{t.subject(c, w.Evidence, w.By), uint32(w.Window / time.Second), uint8(w.Evidence.Index()), w.By}
}

// subject returns the number of the host, network, domain or user towards which an event
// counts, or 0. Events in an authenticated session are attributed only to its user.
// Other events are attributed to the host and its network, or to the host and its
// domain if it has its own proven name. A provider's domain is not counted.
func (t *Counters) subject(c *Client, e rules.Evidence, by rules.Key) uint64 {
	if by == rules.ByUser {
		if len(c.User) > 0 && (c.Account || e&(rules.AuthFailure|rules.AuthSpray) != 0) {
			return t.hash('u', c.User)
		}
		return 0
	}
	if c.Account {
		return 0
	}
	switch by {
	case rules.BySrc:
		if c.Shared {
			return 0 // many hosts share the address
		}
		return c.Host().number()
	case rules.ByPrefix:
		if c.Domain == "" {
			return network(c.Addr)
		}
	case rules.ByDomain:
		if c.Domain != "" && !t.peers.isProvider(c.Domain) {
			return t.hash('d', []byte(c.Domain))
		}
	case rules.BySite:
		return 1
	case rules.ByASN:
		if c.ASNKnown {
			return uint64(c.ASN)
		}
	case rules.ByHelo:
		if len(c.Helo) > 0 {
			return t.hash('h', c.Helo)
		}
	}
	return 0
}
