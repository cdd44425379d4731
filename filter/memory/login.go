package memory

import "scanwatch/rules"

// pair is what a source did to log in as one user.
type pair struct {
	failed uint16 // failures that were counted, since the last success
	hour   uint32 // of the newest that was counted
}

const pairHours = 24

func pairWorth(_ uint64, p pair, now uint32) int64 {
	return int64(p.hour) + pairHours - int64(now/3600)
}

// distinct knows a few things apart: the users that a source tried, or the
// networks that tried a user. It forgets all when its time is over.
type distinct struct {
	since uint32
	seen  [sprayMost]uint16
}

type distinctKey struct {
	who  uint64
	kind distinctKind
}

type distinctKind uint8

const (
	usersOfSource distinctKind = iota + 1
	usersOfNet
	netsOfUser
)

// Different users that fail from one source, or networks that fail for one
// user, from which on it is spraying. Where somebody has logged in before, an
// office perhaps, it takes more.
const (
	sprayAt   = 5
	sprayMost = 8
)

// sprayTime is how long different ones are added up, in seconds.
var sprayTime = [...]uint32{usersOfSource: 3600, usersOfNet: 3600, netsOfUser: daySeconds}

func distinctWorth(k distinctKey, d distinct, now uint32) int64 {
	return int64(d.since) + int64(sprayTime[k.kind]) - int64(now)
}

func (d *distinct) count() (n int) {
	for _, s := range d.seen {
		if s != 0 {
			n++
		}
	}
	return n
}

// LoginFailed notes that w failed to log in as w.User. It returns how the
// failures show that passwords are sprayed: "users" (many users from one source
// or network) or "networks" (one user from many networks), "" if they do not;
// sure tells that it is this source that does it.
//
// Where somebody has logged in lately, the failures of one user count once an
// hour: a telephone that keeps trying an old password must not lock out the
// office it is in.
func (m *Memory) LoginFailed(w *Who, now int64) (spray string, sure bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	user := m.hash('u', w.User)
	known := m.loggedIn(w.Addr, at)
	pk := m.pairKey(w, user)
	p, _ := m.pairs.get(pk)
	if !known || p.hour != at/3600 {
		m.note(w, rules.AuthFailure, 1, now)
		p.failed = min(p.failed, 1<<16-2) + 1
	}
	p.hour = at / 3600
	m.pairs.put(pk, p, at)

	users := m.add(distinctKey{Number(w.Addr), usersOfSource}, short(user), at)
	wide := m.add(distinctKey{network(w.Addr), usersOfNet}, short(user), at)
	nets := m.add(distinctKey{user, netsOfUser}, short(network(w.Addr)), at)
	switch {
	case !known && users >= sprayAt, users >= sprayMost:
		return "users", true
	case !known && wide >= sprayMost:
		return "users", false
	case !known && nets >= sprayAt:
		return "networks", false
	}
	return "", false
}

func (m *Memory) pairKey(w *Who, user uint64) uint64 {
	return (Number(w.Addr)*0x9e3779b97f4a7c15 ^ user) * 0xd6e8feb86659fd93
}

func (m *Memory) add(k distinctKey, what uint16, at uint32) int {
	d, ok := m.distinct.get(k)
	if !ok || distinctWorth(k, d, at) < 0 || d.since > at+sprayTime[k.kind] { // the clock was wrong
		d = distinct{since: at}
	}
	for i, s := range d.seen {
		if s == what {
			return d.count()
		}
		if s == 0 {
			d.seen[i] = what
			break
		}
	}
	m.distinct.put(k, d, at)
	return d.count()
}

func (m *Memory) remove(k distinctKey, what uint16, at uint32) {
	d, ok := m.distinct.get(k)
	if !ok {
		return
	}
	n := 0
	var left distinct
	left.since = d.since
	for _, s := range d.seen {
		if s != 0 && s != what {
			left.seen[n] = s
			n++
		}
	}
	m.distinct.put(k, left, at)
}

// LoggedIn notes that w logged in as w.User: whoever mistyped is forgiven.
func (m *Memory) LoggedIn(w *Who, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	user := m.hash('u', w.User)
	k := peerKey{Number(w.Addr), peerSource}
	peer, _ := m.peers.get(k)
	peer.login = dayOf(at)
	m.peers.put(k, peer, at)

	pk := m.pairKey(w, user)
	if p, ok := m.pairs.get(pk); ok {
		if pairWorth(pk, p, at) >= 0 {
			m.note(w, rules.AuthFailure, -int(p.failed), now)
		}
		m.pairs.del(pk)
	}
	m.remove(distinctKey{Number(w.Addr), usersOfSource}, short(user), at)
	m.remove(distinctKey{network(w.Addr), usersOfNet}, short(user), at)
	m.remove(distinctKey{user, netsOfUser}, short(network(w.Addr)), at)
}

// Sprays tells whether the source of w is spraying passwords now.
func (m *Memory) Sprays(w *Who, now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	k := distinctKey{Number(w.Addr), usersOfSource}
	d, ok := m.distinct.get(k)
	if !ok || distinctWorth(k, d, at) < 0 {
		return false
	}
	n := d.count()
	return n >= sprayMost || n >= sprayAt && !m.loggedIn(w.Addr, at)
}
