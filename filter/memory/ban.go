package memory

import (
	"iter"
	"maps"
	"net/netip"
	"time"
)

// ban is a row of the table of bans. It stays for rememberBan after its end, so
// that who returns and does it again is known.
type ban struct {
	since, until uint32 // seconds since 1970; since is of the newest ban
	last         uint32 // when the host last came, banned or not; 0 if never
	tries        uint16 // how often it came while it was banned, this time
	rule         uint16 // index into names
	session      uint64
	times        uint8 // bans so far
	flags        banFlags
}

type banFlags uint8

const (
	banObserved banFlags = 1 << iota // made in observe mode, or by a rule marked with observe: only told
	banManual                        // by the operator
	banLifted                        // by the operator, before its time
)

// rememberBan is how long a ban is remembered after it has ended.
const rememberBan = 90 * daySeconds

// maxBan is the longest that escalation makes of a ban.
const maxBan = 366 * 24 * time.Hour

func banWorth(_ uint64, b ban, now uint32) int64 {
	return int64(b.until) + rememberBan - int64(now)
}

// A Ban is one host or network that is turned away, or was.
type Ban struct {
	Prefix  netip.Prefix `json:"prefix"`
	Since   time.Time    `json:"since"`
	Until   time.Time    `json:"until"`
	Rule    string       `json:"rule"`              // or the operator's reason
	Session uint64       `json:"-"`                 // in which it was decided; 0 for the operator's
	Times   int          `json:"times"`             // how often it has been banned, this time included
	Tries   int          `json:"tries"`             // how often it came during this ban
	Last    time.Time    `json:"last,omitzero"`     // when it came last
	Observe bool         `json:"observe,omitempty"` // nobody is turned away: it only says who would be
	Manual  bool         `json:"manual,omitempty"`  // by the operator
	Lifted  bool         `json:"lifted,omitempty"`  // ended by the operator
}

// Over tells whether the ban has ended at the given time.
func (b *Ban) Over(now time.Time) bool { return !now.Before(b.Until) }

// A Sentence asks for a ban.
type Sentence struct {
	For     time.Duration
	Rule    string
	Session uint64
	Observe bool
}

// names numbers the names of rules, so that a row needs two bytes for one.
type names struct {
	list  []string
	index map[string]uint16
}

func (n *names) number(s string) uint16 {
	if i, ok := n.index[s]; ok {
		return i
	}
	if len(n.list) == 1<<16 {
		return 0 // more than any policy has ever had rules
	}
	if n.index == nil {
		n.index = make(map[string]uint16)
	}
	n.index[s] = uint16(len(n.list))
	n.list = append(n.list, s)
	return n.index[s]
}

func (m *Memory) export(p netip.Prefix, b ban) Ban {
	out := Ban{
		Prefix: p, Since: fromSeconds(b.since), Until: fromSeconds(b.until), Rule: m.names.list[b.rule],
		Session: b.session, Times: int(b.times), Tries: int(b.tries),
		Observe: b.flags&banObserved != 0, Manual: b.flags&banManual != 0, Lifted: b.flags&banLifted != 0,
	}
	if b.last != 0 {
		out.Last = fromSeconds(b.last)
	}
	return out
}

func fromSeconds(s uint32) time.Time { return time.Unix(int64(s), 0).UTC() }

// Ban bans the source of a, and returns what came of it. For a host that
// was banned before and is still remembered it lasts longer, as escalation
// says. One that is banned already keeps the later end; a ban that is only
// observed never replaces one that holds.
func (m *Memory) Ban(a netip.Addr, s Sentence, now int64) Ban {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, at := Number(a), seconds(now)
	old, known := m.bans.get(k)
	if known && banWorth(k, old, at) < 0 {
		old, known = ban{}, false
	}
	b := ban{since: at, until: at + uint32(s.For/time.Second), last: old.last, rule: m.names.number(s.Rule), session: s.Session, times: 1}
	if s.Observe {
		b.flags = banObserved
	}
	observed := old.flags&banObserved != 0
	switch {
	case !known:
	case old.until > at && observed == s.Observe: // and did it again meanwhile
		if old.until >= b.until {
			return m.export(prefixOf(k), old)
		}
		b.since, b.times, b.tries = old.since, old.times, old.tries
	case old.until > at && s.Observe:
		return m.export(prefixOf(k), old)
	case observed != s.Observe || old.flags&banLifted != 0:
		// What was only told, or taken back, does not count.
	default:
		if n := min(int(old.times), len(m.escalate)); n > 0 {
			factor := time.Duration(m.escalate[n-1])
			b.until = at + uint32(min(s.For, maxBan/factor)*factor/time.Second)
		}
		b.times = min(old.times, 254) + 1
	}
	m.bans.put(k, b, at)
	return m.export(prefixOf(k), b)
}

// Banned returns the ban that holds for a, or that would if it were not only
// observed, and notes that the host came.
func (m *Memory) Banned(a netip.Addr, now int64) (Ban, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	k := Number(a)
	b, ok := m.bans.get(k)
	if ok {
		b.last = at
		if holds := b.until > at; holds {
			b.tries = uint16(min(int(b.tries)+1, 1<<16-1))
		} else {
			ok = false
		}
		m.bans.put(k, b, at)
	}
	// The operator's word about the network counts for more than a shorter ban.
	if p, w, found := m.wide.lookup(a, at); found && (!ok || b.flags&banObserved != 0 || b.until < w.until) {
		w.last, w.tries = at, uint16(min(int(w.tries)+1, 1<<16-1))
		m.wide.put(p, w)
		return m.export(p, w), true
	}
	if !ok {
		return Ban{}, false
	}
	return m.export(prefixOf(k), b), true
}

// BanPrefix bans a host or a network at the operator's word.
func (m *Memory) BanPrefix(p netip.Prefix, d time.Duration, reason string, now int64) (Ban, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	b := ban{since: at, until: at + uint32(d/time.Second), rule: m.names.number(reason), times: 1, flags: banManual}
	if isSource(p) {
		k := Number(p.Addr())
		if old, ok := m.bans.get(k); ok {
			b.last = old.last
			if old.flags&banObserved == 0 && old.until <= at {
				b.times = min(old.times, 254) + 1
			} else if old.flags&banObserved == 0 {
				b.times = old.times // it only corrects the one that holds
			}
		}
		m.bans.put(k, b, at)
		return m.export(prefixOf(k), b), true
	}
	if !m.wide.has(p) && len(m.wide.rows) >= maxWide {
		m.wide.sweep(at)
		if len(m.wide.rows) >= maxWide {
			return Ban{}, false
		}
	}
	m.wide.put(p, b)
	return m.export(p, b), true
}

// isSource tells whether p is what one host is known by, or a part of it.
func isSource(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() == 32 || p.Addr().Is6() && p.Bits() >= 64
}

// Unban ends every ban of a host or network within p at once, and returns them
// as they are then. What lies around p is not touched.
func (m *Memory) Unban(p netip.Prefix, now int64) (ended []Ban) {
	at := seconds(now)
	lift := func(p netip.Prefix, b *ban) bool {
		if b.until <= at {
			return false
		}
		b.until, b.flags = at, b.flags|banLifted
		ended = append(ended, m.export(p, *b))
		return true
	}
	networks := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for q, b := range m.wide.rows {
			if q.Bits() >= p.Bits() && p.Contains(q.Addr()) && lift(q, &b) {
				m.wide.put(q, b)
			}
		}
		if k := Number(p.Addr()); isSource(p) {
			if b, ok := m.bans.get(k); ok && lift(prefixOf(k), &b) {
				m.bans.put(k, b, at)
			}
		}
	}
	networks()
	if isSource(p) {
		return ended
	}
	m.eachBan(func(k uint64, b ban) {
		if q := prefixOf(k); p.Contains(q.Addr()) && lift(q, &b) {
			m.bans.put(k, b, at)
		}
	})
	return ended
}

// Around returns the bans of networks that a is in, whatever bans a itself.
func (m *Memory) Around(a netip.Addr, now int64) (list []Ban) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, b := range m.wide.rows {
		if p.Contains(a) && b.until > seconds(now) {
			list = append(list, m.export(p, b))
		}
	}
	return list
}

// chunk is how many rows are looked at while the lock is held.
const chunk = 500

// eachBan visits the bans of hosts, letting go of the lock now and then. Visit
// may change the table.
func (m *Memory) eachBan(visit func(uint64, ban)) {
	next, stop := iter.Pull2(maps.All(m.bans.rows)) // begins with the first call of next
	defer stop()
	some := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for range chunk {
			k, b, more := next()
			if !more {
				return false
			}
			visit(k, b)
		}
		return true
	}
	for some() {
	}
}

// Bans visits every ban that is remembered, in no order. Those that are over
// are among them.
func (m *Memory) Bans(visit func(Ban)) {
	for _, b := range m.wideOnes() {
		visit(b)
	}
	m.eachBan(func(k uint64, b ban) { visit(m.export(prefixOf(k), b)) })
}

func (m *Memory) wideOnes() (list []Ban) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, b := range m.wide.rows {
		list = append(list, m.export(p, b))
	}
	return list
}

// wideBans are the bans of networks. They are few: one lookup for each length
// of prefix in use finds the narrowest.
type wideBans struct {
	rows  map[netip.Prefix]ban
	bits  [2][129]int // rows of that family and length
	dirty map[netip.Prefix]struct{}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (w *wideBans) has(p netip.Prefix) bool { _, ok := w.rows[p]; return ok }

func (w *wideBans) put(p netip.Prefix, b ban) {
	if !w.has(p) {
		w.bits[family(p.Addr())][p.Bits()]++
	}
	w.rows[p] = b
	w.note(p)
}

func (w *wideBans) note(p netip.Prefix) {
	if w.dirty == nil {
		w.dirty = make(map[netip.Prefix]struct{})
	}
	w.dirty[p] = struct{}{}
}

func (w *wideBans) lookup(a netip.Addr, now uint32) (netip.Prefix, ban, bool) {
	if len(w.rows) == 0 {
		return netip.Prefix{}, ban{}, false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if w.bits[family(a)][bits] == 0 {
			continue
		}
		p, err := a.Prefix(bits)
		if err != nil {
			break
		}
		if b, ok := w.rows[p]; ok && b.until > now {
			return p, b, true
		}
	}
	return netip.Prefix{}, ban{}, false
}

// sweep drops what is no longer worth remembering.
func (w *wideBans) sweep(now uint32) {
	for p, b := range w.rows {
		if b.until+rememberBan < now || b.until <= now && len(w.rows) >= maxWide {
			delete(w.rows, p)
			w.bits[family(p.Addr())][p.Bits()]--
			w.note(p)
		}
	}
}
