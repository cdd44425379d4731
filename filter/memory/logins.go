package memory

import (
	"bytes"
	"slices"

	"scanwatch/internal/mailbox"
	"scanwatch/rules"
)

// Logins holds the tables of logins: failures by source and user, and the numbers of
// distinct users or networks. High numbers reveal a password spray.
type Logins struct {
	*shared
	pairs      table[uint64, pair]
	sprays     table[sprayKey, spray]
	accounts   table[uint64, ask] // recipients within an hour, and abused accounts
	peers      *Peers
	counters   *Counters
	recipients *Recipients
}

// A pair is a row about the failed logins to one mailbox from one host.
type pair struct {
	failed   uint16 // counted failures since the latest success
	hour     uint32 // hour of the latest counted failure
	sessions uint16 // sessions with failures since the latest success
	session  uint16 // hash of the id of the latest session with a failure
	tries    uint16 // all failures since the latest success
	rate     uint16 // failures within hour
}

const pairHours = 24

// A spray is the set of distinct values seen within a window, such as the users tried by one host
// or network, or the networks or sender addresses used by one user.
type spray struct {
	since uint32 // first value; for loginsOfSource, the latest login
	seen  [maxSeen]uint16
}

// maxSeen limits the number of distinct values in a spray.
const maxSeen = 32

type sprayKey struct {
	subject uint64
	kind    sprayKind
}

type sprayKind uint8

const (
	usersOfSource sprayKind = iota + 1
	usersOfNet
	netsOfUser       // networks in which logins as the user failed
	netsOfAccount    // networks from which the user has logged in
	sendersOfAccount // sender addresses used by the user
	guessedOfSource  // users for whom guessedAt logins from the source failed
	loginsOfSource   // users who have logged in from the source, latest first
	rateOfSource     // multiples of rateAt failures for a user within an hour
)

// ofHost reports whether the subject of k is a host.
func (k sprayKind) ofHost() bool {
	return k == usersOfSource || k == guessedOfSource || k == loginsOfSource || k == rateOfSource
}

// Numbers of distinct users or networks that make failed logins a password spray. For a
// source with successful logins, such as an office, the threshold is sprayMax, or twice
// the number of its users.
const (
	sprayAt  = 5
	sprayMax = 8
)

// A source with successful logins is also an attacker if it has tried at least
// guessedUsers users, and as many as have logged in from it, guessedAt times each. A
// device with an old password tries only one user.
const (
	guessedUsers = 3
	guessedAt    = 20
)

// A source with successful logins is also an attacker if rateMarks times within an hour, a user's
// failures in the hour reach another multiple of rateAt. A device that tries an old password in two
// ways once a minute fails 120 times an hour, so that it never reaches two multiples.
const (
	rateAt    = 140
	rateMarks = 2
)

// sprayWindow lists the window of each kind, in seconds.
var sprayWindow = [...]uint32{
	usersOfSource: daySeconds, usersOfNet: 3600, netsOfUser: daySeconds, netsOfAccount: 3600, sendersOfAccount: 3600,
	guessedOfSource: daySeconds, loginsOfSource: (loginDays + 1) * daySeconds, rateOfSource: 3600,
}

func newLogins(s *shared, peers *Peers, counters *Counters, recipients *Recipients) *Logins {
	return &Logins{
		shared: s, peers: peers, counters: counters, recipients: recipients,
		pairs: newTable(s, schema[uint64, pair]{
			name: "logins", bucket: "logins", limit: maxLogins,
			evictionScore: func(_ uint64, p pair, now uint32) int64 { return rest(p.hour*3600, (pairHours+1)*3600-1, now) },
			key:           number,
			value: func(p pair) []byte {
				return append(be.AppendUint32(words(p.failed), p.hour), words(p.sessions, p.session, p.tries, p.rate)...)
			},
			decode: readPair,
			shift:  func(_ uint64, p *pair, by int64) { p.hour = uint32(max(int64(p.hour)+by/3600, 0)) },
		}),
		accounts: newTable(s, schema[uint64, ask]{
			name: "accounts", bucket: "accounts", limit: maxDomains,
			evictionScore: func(_ uint64, a ask, now uint32) int64 { return rest(a.since, daySeconds, now) },
			key:           number,
			value:         func(a ask) []byte { return be.AppendUint16(be.AppendUint32(nil, a.since), a.n) },
			decode:        readAsk,
			shift:         shiftAsk,
		}),
		sprays: newTable(s, schema[sprayKey, spray]{
			name: "login sprays", bucket: "sprays", limit: maxSprays,
			evictionScore: sprayScore,
			key:           func(k sprayKey) []byte { return be.AppendUint64([]byte{byte(k.kind)}, k.subject) },
			value: func(r spray) []byte {
				return append(be.AppendUint32(nil, r.since), words(r.seen[:max(r.count(), minSeen)]...)...)
			},
			decode:  readSpray,
			shift:   func(_ sprayKey, r *spray, by int64) { shiftTime(&r.since, by) },
			combine: combineSprays, higher: combineSprays,
			private: func(k sprayKey) bool { return k.kind >= guessedOfSource }, // other hosts' logins exempt no client
			newest:  func(_ sprayKey, r spray) int64 { return int64(r.since) },
		}),
	}
}

func readPair(key, v []byte) (k uint64, p pair, ok bool) {
	k, ok = readNumber(key)
	if !ok || len(v) != 10 && len(v) != 12 && len(v) != 14 {
		return 0, p, false
	}
	p = pair{failed: be.Uint16(v), hour: be.Uint32(v[2:]), sessions: be.Uint16(v[6:]), session: be.Uint16(v[8:])}
	if len(v) >= 12 { // not in a row of an older version
		p.tries = be.Uint16(v[10:])
	}
	if len(v) >= 14 {
		p.rate = be.Uint16(v[12:])
	}
	return k, p, true
}

// minSeen is the minimum number of values in a stored row.
const minSeen = 8

// sprayScore returns the eviction score. Rows about a month's logins must not displace
// those about a day's failures.
func sprayScore(k sprayKey, r spray, now uint32) int64 {
	n := rest(r.since, sprayWindow[k.kind], now)
	if k.kind == loginsOfSource && n > 0 {
		n /= loginDays + 1
	}
	return n
}

func readSpray(key, v []byte) (k sprayKey, r spray, ok bool) {
	n := (len(v) - 4) / 2
	if len(key) != 9 || len(v) != 4+2*n || n < minSeen || n > maxSeen || int(key[0]) >= len(sprayWindow) {
		return k, r, false
	}
	r.since = be.Uint32(v)
	readWords(v[4:], r.seen[:n])
	return sprayKey{be.Uint64(key[1:]), sprayKind(key[0])}, r, true
}

func (r *spray) count() int { return countShort(r.seen[:]) }

// Failed records a failed login of c as c.User, and returns the kind of password spray:
// "users" for many users from one host or network, "networks" for one user from many
// networks, "rate" for a host with logins that fails faster than any device, or "".
//
// sure reports whether c itself is certainly an attacker, because it has tried many
// users, or has tried a user under attack in several sessions.
//
// After a recent login from the host, each user's failures count at most once an hour,
// so that a phone that retries an old password does not get its office banned. A user
// who has logged in from the host is not part of a spray.
func (t *Logins) Failed(c *Client, now int64) (kind string, sure bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	owner, name := t.names(c.User)
	known := t.peers.hasLogin(c, at)
	k := pairKey(c, owner)
	p, _ := t.pairs.live(k, at)
	if !known || p.hour != at/3600 {
		t.counters.add(c, rules.AuthFailure, 1, at)
		p.failed = sum16(p.failed, 1)
	}
	if p.sessions == 0 || p.session != short(c.Session) {
		p.sessions, p.session = sum16(p.sessions, 1), short(c.Session)
	}
	if p.hour != at/3600 {
		p.rate = 0
	}
	p.hour, p.tries, p.rate = at/3600, sum16(p.tries, 1), sum16(p.rate, 1)
	t.pairs.put(k, p, at)
	if t.logins(c, at).has(short(owner)) {
		return "", false
	}

	t.add(hostSpray(c, usersOfSource), name, at)
	if p.tries%guessedAt == 0 {
		t.add(hostSpray(c, guessedOfSource), short(owner), at)
	}
	if known && p.rate%rateAt == 0 {
		t.add(hostSpray(c, rateOfSource), short(mix(owner, uint64(p.rate))), at)
	}
	wide := t.everywhere(t.add(sprayKey{network(c.Addr), usersOfNet}, name, at), at)
	nets := t.everywhere(t.add(sprayKey{t.hash('u', c.User), netsOfUser}, short(network(c.Addr)), at), at)
	switch {
	case t.rapid(c, at):
		return "rate", true
	case t.spraying(c, at):
		return "users", true
	case !known && nets >= t.limit(c, at):
		return "networks", p.sessions > 1
	case !known && wide >= sprayMax:
		return "users", false
	}
	return "", false
}

// names returns the hash of the mailbox that a user name belongs to, and the hash of the
// name. The mailbox alice has the names alice, Alice+news and alice@example.org. The
// names of a mailbox differ only in the low byte.
func (t *Logins) names(user []byte) (owner uint64, name uint16) {
	var b [256]byte
	text := mailbox.AppendBase(b[:0], user[:min(len(user), len(b))], t.recipients.delimiter)
	full := t.hash('u', text)
	if i := bytes.LastIndexByte(text, '@'); i > 0 {
		text = text[:i]
	}
	owner = t.hash('u', text)
	return owner, max(short(owner)&0xff00|short(full)&0xff, 1)
}

// rapid reports whether logins from the host of c fail faster than any device's logins.
func (t *Logins) rapid(c *Client, at uint32) bool {
	r, _ := t.sprays.live(hostSpray(c, rateOfSource), at)
	return r.count() >= rateMarks
}

// spraying reports whether the failed logins from the host of c are a spray. After a
// login on this host, failures on other hosts do not count.
func (t *Logins) spraying(c *Client, at uint32) bool {
	k := hostSpray(c, usersOfSource)
	r, _ := t.sprays.live(k, at)
	if !t.peers.hasLogin(c, at) {
		return t.everywhere(sprayRow{k, r}, at) >= t.limit(c, at)
	}
	guessed, _ := t.sprays.live(hostSpray(c, guessedOfSource), at)
	return r.count() >= t.limit(c, at) || guessed.count() >= max(guessedUsers, t.logins(c, at).count()) || t.rapid(c, at)
}

// limit returns the number of users or networks that make a spray. A login on another
// host raises this number as well: failures on that host also count here, so an
// office's failures would otherwise weigh more if its users log in to several hosts.
func (t *Logins) limit(c *Client, at uint32) int {
	if t.peers.hasLogin(c, at) || t.peers.loginElsewhere(c, at) {
		return min(max(sprayMax, 2*t.logins(c, at).count()), maxSeen)
	}
	return sprayAt
}

// logins returns the users who have recently logged in from the host of c.
func (t *Logins) logins(c *Client, at uint32) *spray {
	r, _ := t.sprays.live(hostSpray(c, loginsOfSource), at)
	return &r
}

func (r *spray) has(hash uint16) bool { return slices.Contains(r.seen[:], hash) }

func hostSpray(c *Client, kind sprayKind) sprayKey { return sprayKey{c.Host().number(), kind} }

// LoggedIn records a login as c.User from the network of c. LoggedIn returns the number
// of networks from which the user has logged in within an hour, at most maxSeen.
func (t *Logins) LoggedIn(c *Client, now int64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	return t.everywhere(t.add(sprayKey{t.hash('u', c.User), netsOfAccount}, short(network(c.Addr)), at), at)
}

// Sent records a sender address used by c.User. It returns the number of distinct
// addresses within an hour, at most maxSeen.
func (t *Logins) Sent(c *Client, sender []byte, now int64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	return t.everywhere(t.add(sprayKey{t.hash('u', c.User), sendersOfAccount}, short(t.hash('s', sender)), at), at)
}

// Sprays reports whether the failed logins from the host of c are a password spray.
// Successful logins by other users do not exempt the host.
func (t *Logins) Sprays(c *Client, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.spraying(c, t.clock.row(now))
}

// Restart ends the spray from the host of c after a ban, if a user has logged in from the
// host. Otherwise, each later failure would be another offence, and a single phone with
// an old password would get its office banned again.
func (t *Logins) Restart(c *Client, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.peers.hasLogin(c, t.clock.row(now)) {
		return
	}
	for _, kind := range [...]sprayKind{usersOfSource, guessedOfSource, rateOfSource} {
		k := hostSpray(c, kind)
		if _, ok := t.sprays.get(k); ok {
			t.sprays.del(k)
		}
	}
}

// Wrote records a recipient of c.User's mail, and returns the number of recipients
// within an hour.
func (t *Logins) Wrote(c *Client, now int64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	k := mix(t.hash('u', c.User), 1)
	n, _ := t.accounts.get(k)
	if rest(n.since, 3600, at) < 0 {
		n = ask{since: at}
	}
	n.n = sum16(n.n, 1)
	t.accounts.put(k, n, at)
	return int(n.n)
}

// Abuse records that the account c.User was abused.
func (t *Logins) Abuse(c *Client, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := mix(t.hash('u', c.User), 2)
	if _, ok := t.accounts.live(k, t.clock.row(now)); !ok {
		t.accounts.put(k, ask{since: t.clock.row(now)}, t.clock.row(now))
	}
}

// Abused reports whether the account c.User has been recorded as abused within the last
// day.
func (t *Logins) Abused(c *Client, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.accounts.live(mix(t.hash('u', c.User), 2), t.clock.row(now))
	return ok
}

// forget deletes the sprays of networks and of each host for which freed returns true.
func (t *Logins) forget(freed func(host uint64) bool, networks map[uint64]bool) {
	deleteAll(&t.mu, &t.sprays, func(k sprayKey) bool {
		return k.kind != loginsOfSource && k.kind.ofHost() && freed(k.subject) || k.kind == usersOfNet && networks[k.subject]
	})
}

func pairKey(c *Client, owner uint64) uint64 { return mix(c.Host().number(), owner) }

// A sprayRow is a row with its key.
type sprayRow struct {
	key sprayKey
	spray
}

// add adds a user or network to a spray, and returns the row.
func (t *Logins) add(k sprayKey, hash uint16, at uint32) sprayRow {
	r, ok := t.sprays.live(k, at)
	if !ok || r.since > at+sprayWindow[k.kind] { // the clock was wrong
		r = spray{since: at}
	}
	for i, s := range r.seen {
		if s == hash {
			return sprayRow{k, r}
		}
		if s == 0 {
			r.seen[i] = hash
			break
		}
	}
	t.sprays.put(k, r, at)
	return sprayRow{k, r}
}

// everywhere returns the number of distinct values in a row and in the other hosts' row
// with the same key, at most maxSeen; see Multiple.
func (t *Logins) everywhere(r sprayRow, at uint32) int {
	own := r.count()
	if others, _, ok := t.sprays.other(r.key, at); ok {
		combineSprays(r.key, &r.spray, others)
	}
	return together(own, r.count()-own)
}

// remove removes the values for which gone returns true.
func (t *Logins) remove(k sprayKey, gone func(uint16) bool, at uint32) {
	r, ok := t.sprays.get(k)
	if !ok {
		return
	}
	n := 0
	left := spray{since: r.since}
	for _, s := range r.seen {
		if s != 0 && !gone(s) {
			left.seen[n] = s
			n++
		}
	}
	t.sprays.put(k, left, at)
}

// Succeeded records a successful login of c as c.User, and subtracts the earlier
// failures under any name of the user's mailbox from the host's counters.
func (t *Logins) Succeeded(c *Client, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	owner, name := t.names(c.User)
	t.peers.login(c, at)
	k := pairKey(c, owner)
	if p, ok := t.pairs.live(k, at); ok {
		before := *c
		before.Account = false // earlier failures were attributed to the address, not to the account
		t.counters.add(&before, rules.AuthFailure, -int(p.failed), at)
	}
	if _, ok := t.pairs.get(k); ok {
		t.pairs.del(k)
	}
	sameMailbox := func(s uint16) bool { return s&0xff00 == name&0xff00 }
	t.remove(hostSpray(c, usersOfSource), sameMailbox, at)
	t.remove(hostSpray(c, guessedOfSource), func(s uint16) bool { return s == short(owner) }, at)
	t.remove(sprayKey{network(c.Addr), usersOfNet}, sameMailbox, at)
	t.remove(sprayKey{t.hash('u', c.User), netsOfUser}, func(s uint16) bool { return s == short(network(c.Addr)) }, at)
	t.addLogin(hostSpray(c, loginsOfSource), short(owner), at)
}

// addLogin adds the user of the latest login to the front of a row.
func (t *Logins) addLogin(k sprayKey, user uint16, at uint32) {
	r, _ := t.sprays.live(k, at)
	row := spray{since: at}
	row.seen[0] = user
	for _, s := range r.seen {
		if s != 0 && s != user && row.count() < len(row.seen) {
			row.seen[row.count()] = s
		}
	}
	t.sprays.put(k, row, at)
}
