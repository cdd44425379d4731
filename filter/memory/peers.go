package memory

import (
	"net/netip"
	"slices"
	"time"

	"scanwatch/internal/hostname"
	"scanwatch/rules"
)

// Peers is the table of clients with accepted mail, logins or offences. Each row is
// about a host or about the registered domain of proven names.
type Peers struct {
	*shared
	rows      table[peerKey, peer]
	forgotten forgotten
}

// KnownClients is the name that Status uses for Peers.
const KnownClients = "known clients"

type peerKey struct {
	host Host // hash of a domain for peerDomain
	kind peerKind
}

type peerKind uint8

const (
	peerHost peerKind = iota + 1 // by full address, so that hosts in the same IPv6 /64 do not share a row
	peerDomain
	peerLogin // logins by Client.Host, because users change their address within a /64
)

// A peer is a row in Peers. Days are counted since 1970.
type peer struct {
	first, good uint16 // days of the first and the latest accepted mail
	login       uint16 // day of the latest login
	bad         uint16 // day of the latest offence
	wrote       uint16 // day of the latest mail from local users to the domain
	messages    uint16
	days        uint16                // days with accepted mail
	senders     [manySenders]uint16   // hashes of sender domains; in a domain's row, of other domains
	helos       [manyGreetings]uint16 // hashes of greetings
}

const (
	// A client remains known for peerDays days after its latest mail. One message a
	// year is enough to remain known.
	peerDays = 400
	// A login counts for loginDays days. Later, a mobile phone's address may belong to
	// another user.
	loginDays = 30
	// A client is not trusted for badDays days after an offence.
	badDays = 30
	// recentDays is the maximum age of a trusted client's latest mail, in days.
	recentDays = 90
)

// To be trusted, a client must send messages on several days, spread over a minimum
// period.
const (
	trustedMessages = 10
	trustedDays     = 7
	trustedSpread   = 10 // days from the first to the latest message
)

// Minimum numbers for an address to count as shared by many hosts, such as a gateway's,
// or for a domain to count as shared by many owners, such as a provider's.
const (
	manySenders   = 5 // sender domains
	manyGreetings = 3
	manyDays      = 3
	manyForeign   = 4 // sender domains other than the domain itself
)

const peersBucket = "peers"

// Sizes of a row in bytes.
const peerKeySize, peerSize = 17, 30

func newPeers(s *shared) *Peers {
	t := &Peers{shared: s, forgotten: forgotten{dirty: true}}
	t.rows = newTable(s, schema[peerKey, peer]{
		name: KnownClients, bucket: peersBucket, limit: maxPeers, evictionScore: peerScore,
		key: func(k peerKey) []byte { return k.host.append([]byte{byte(k.kind)}) },
		value: func(p peer) []byte {
			return append(append(words(p.first, p.good, p.login, p.bad, p.wrote, p.messages, p.days), words(p.senders[:]...)...), words(p.helos[:]...)...)
		},
		decode:  readPeer,
		merge:   mergePeers,
		combine: combinePeers, higher: higherPeers, reduce: reducePeer,
		newest: func(_ peerKey, p peer) int64 {
			return int64(max(p.first, p.good, p.login, p.bad, p.wrote)) * daySeconds
		},
		shift:   shiftPeer,
		dropped: t.forgotten.drop,
	})
	t.rows.foreign.dirty = make(map[foreignKey[peerKey]]bool)
	return t
}

func readPeer(key, v []byte) (k peerKey, p peer, ok bool) {
	const fixed = 7
	if len(key) != peerKeySize || len(v) != 2*(fixed+len(p.senders)+len(p.helos)) {
		return k, p, false
	}
	k.kind = peerKind(key[0])
	k.host, ok = readHost(key[1:])
	read(v, &p.first, &p.good, &p.login, &p.bad, &p.wrote, &p.messages, &p.days)
	readWords(v[2*fixed:], p.senders[:])
	readWords(v[2*(fixed+len(p.senders)):], p.helos[:])
	return k, p, ok
}

func shiftPeer(_ peerKey, p *peer, by int64) {
	for _, day := range [...]*uint16{&p.first, &p.good, &p.login, &p.bad, &p.wrote} {
		shiftDay(day, by)
	}
}

// mergePeers merges a stored row into the row added since startup.
func mergePeers(live *peer, stored peer) {
	if stored.first != 0 && (live.first == 0 || stored.first < live.first) {
		live.first = stored.first
	}
	if live.good == stored.good && live.good != 0 && stored.days > 0 {
		stored.days-- // both rows count this day
	}
	live.good, live.login = max(live.good, stored.good), max(live.login, stored.login)
	live.bad, live.wrote = max(live.bad, stored.bad), max(live.wrote, stored.wrote)
	live.messages, live.days = sum16(live.messages, int(stored.messages)), sum16(live.days, int(stored.days))
	for _, s := range stored.senders {
		addShort(live.senders[:], s)
	}
	for _, h := range stored.helos {
		addShort(live.helos[:], h)
	}
}

func sum16(a uint16, b int) uint16 { return uint16(min(int(a)+b, 1<<16-1)) }

func peerScore(_ peerKey, p peer, now uint32) int64 {
	if p.good == 0 && p.wrote == 0 { // evict a row with only an offence before that of a sender of one message a year
		return max(ageScore(p.login, now, loginDays), ageScore(p.bad, now, badDays))
	}
	return ageScore(max(p.good, p.login, p.bad, p.wrote), now, peerDays)
}

func within(day uint16, at uint32, days int) bool { return day != 0 && ageScore(day, at, days) >= 0 }

// many reports whether many hosts share the address.
func (p *peer) many() bool {
	return countShort(p.senders[:]) == manySenders && countShort(p.helos[:]) == manyGreetings && p.days >= manyDays
}

// A Delivery describes the ordinary mail in a session. Ordinary mail has a sender, goes
// to at least one recipient that is not a role account, and was not exempted by a pass
// statement.
type Delivery struct {
	Messages int
	Senders  []string // senders' registered domains
}

// Delivered records mail accepted from c in a session without offences.
func (t *Peers) Delivered(c *Client, d Delivery, now int64) {
	if c.Shared || d.Messages == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	t.deliver(hostKey(c), c, d, at)
	// The mail also counts for the domain of the client's name if the sender or the
	// greeting is in that domain.
	if c.Domain != "" && (slices.Contains(d.Senders, c.Domain) || RegisteredDomain(c.Helo) == c.Domain) {
		t.deliver(t.domainKey(c.Domain), c, d, at)
	}
}

func (t *Peers) deliver(k peerKey, c *Client, d Delivery, at uint32) {
	p, _ := t.rows.get(k)
	today := dayOf(at)
	if p.first == 0 || p.first > today { // the clock may have been wrong earlier
		p.first = today
	}
	if p.good < today {
		p.days = sum16(p.days, 1)
	}
	p.good = max(p.good, today)
	p.messages = sum16(p.messages, d.Messages)
	for _, s := range d.Senders {
		if k.kind == peerHost || s != c.Domain {
			addShort(p.senders[:], short(t.hash('d', []byte(s))))
		}
	}
	if len(c.Helo) > 0 {
		addShort(p.helos[:], short(t.hash('h', c.Helo)))
	}
	t.rows.put(k, p, at)
}

// WroteTo records that an authenticated user sent mail to a registered domain.
func (t *Peers) WroteTo(domain string, now int64) {
	if domain == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	k := t.domainKey(domain)
	if p, _ := t.rows.get(k); p.wrote < dayOf(at) {
		p.wrote = dayOf(at)
		t.rows.put(k, p, at)
	}
}

// Misbehaved records an offence of c. The offence halves the message and day counts of
// c and its domain, and keeps both from being trusted for badDays.
func (t *Peers) Misbehaved(c *Client, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	for _, k := range t.keys(c) {
		if k.kind == 0 {
			continue
		}
		p, _ := t.rows.get(k)
		if p.bad == dayOf(at) {
			continue // once a day, because each retry of a newsletter would be another offence
		}
		p.bad, p.messages, p.days = dayOf(at), (p.messages+1)/2, (p.days+1)/2
		t.rows.put(k, p, at)
	}
}

// login records a login from the host of c. It requires the lock.
func (t *Peers) login(c *Client, at uint32) {
	k := peerKey{c.Host(), peerLogin}
	p, _ := t.rows.get(k)
	p.login = dayOf(at)
	t.rows.put(k, p, at)
}

// hasLogin reports whether a user has logged in from the host of c in the last
// loginDays. It requires the lock.
func (t *Peers) hasLogin(c *Client, at uint32) bool {
	p, ok := t.rows.get(peerKey{c.Host(), peerLogin})
	return ok && within(p.login, at, loginDays)
}

// loginElsewhere is like hasLogin, but for logins on other hosts.
func (t *Peers) loginElsewhere(c *Client, at uint32) bool {
	p, _, ok := t.rows.other(peerKey{c.Host(), peerLogin}, at)
	return ok && within(p.login, at, loginDays)
}

// provider reports whether the row's hosts send mail for many other domains. The domain
// is then probably a provider's, and its hosts belong to unrelated customers.
func (p *peer) provider() bool { return countShort(p.senders[:]) >= manyForeign }

// isProvider reports whether a registered domain is a provider's. It requires the lock.
func (t *Peers) isProvider(domain string) bool {
	p, ok := t.rows.get(t.domainKey(domain))
	return ok && p.provider()
}

func (t *Peers) domainKey(domain string) peerKey {
	return peerKey{Host{lo: t.hash('d', []byte(domain))}, peerDomain}
}

// hostKey returns the key for the client's address.
func hostKey(c *Client) peerKey { return peerKey{HostOf(c.Addr, true), peerHost} }

// keys returns the keys of the rows about the client's host and domain. If the client
// cannot have one of the rows, that row's key is zero.
func (t *Peers) keys(c *Client) (keys [2]peerKey) {
	keys[0] = hostKey(c)
	if c.Domain != "" {
		keys[1] = t.domainKey(c.Domain)
	}
	return keys
}

// RegisteredDomain returns the registered domain of a host name, or "" if a provider
// has derived the name from the address, because the customer then does not own the
// domain. A call takes about a microsecond and allocates memory, so call
// RegisteredDomain only once per session.
func RegisteredDomain(name []byte) string {
	if hostname.Generic(name) {
		return ""
	}
	return hostname.Registered(name)
}

// A Standing is a client's standing and the reasons for it.
type Standing struct {
	Level    rules.Standing
	By       string // reason for the level: host, domain or correspondent; empty if the level is none
	Messages int
	Days     int       // days with messages
	First    time.Time // day of the first message, in UTC
	Last     time.Time // day of the latest message
	Offence  time.Time // day of the latest offence; zero if there was none in the last 30 days
	Login    time.Time // day of the latest login; zero if there was none in the last 30 days
	Many     bool      // many hosts share the address
	Origin   string    // other host on which the standing or Many was earned; empty if it was earned here
}

// Standing returns the client's standing. A client that is known on another host is also
// known here. The level is unknown until the stored rows have been read.
func (t *Peers) Standing(c *Client, now int64) (s Standing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	keys := t.keys(c)
	own, _ := t.rows.get(keys[0])
	s = own.standing(&t.clock, at)
	s.By = "host"
	if within(own.bad, at, badDays) {
		s.Offence = t.clock.day(own.bad)
	}
	if login, _ := t.rows.get(peerKey{c.Host(), peerLogin}); within(login.login, at, loginDays) {
		s.Login = t.clock.day(login.login)
	}
	if s.Many = c.Shared || own.many(); s.Many {
		s.Level = rules.StandingNone
	} else if p, ok := t.rows.get(keys[1]); ok && keys[1].kind != 0 && !p.provider() {
		if d := p.standing(&t.clock, at); d.Level > s.Level {
			s.Level, s.By, s.Messages, s.Days, s.First, s.Last = d.Level, "domain", d.Messages, d.Days, d.First, d.Last
		}
		if s.Level == rules.StandingNone && within(p.wrote, at, peerDays) {
			s.Level, s.By, s.Last = rules.StandingKnown, "correspondent", t.clock.day(p.wrote)
		}
	}
	if s.Level == rules.StandingTrusted && !s.Offence.IsZero() {
		s.Level = rules.StandingKnown
	}
	if s.Level == rules.StandingNone && !s.Many {
		t.elsewhere(keys, at, &s)
	}
	if s.Level == rules.StandingNone {
		s.By = ""
		if t.unread {
			s.Level = rules.StandingUnknown
		}
	}
	return s
}

// elsewhere sets the standing of a client that is known on another host.
func (t *Peers) elsewhere(keys [2]peerKey, at uint32, s *Standing) {
	for i, by := range [...]string{"host", "domain"} {
		p, origin, ok := t.rows.other(keys[i], at)
		if !ok || keys[i].kind == 0 {
			continue
		}
		if i == 0 && p.senders == manyElsewhere {
			s.Many, s.Origin = true, t.hosts.list[origin]
		}
		earned := p.standing(&t.clock, at)
		if earned.Level == rules.StandingNone && (i == 0 || !within(p.wrote, at, peerDays)) {
			continue
		}
		s.Level, s.By, s.Origin, s.Many = rules.StandingKnown, by, t.hosts.list[origin], false
		s.Messages, s.Days, s.First, s.Last = earned.Messages, earned.Days, earned.First, earned.Last
		if earned.Level == rules.StandingNone {
			s.By, s.Last = "correspondent", t.clock.day(p.wrote)
		}
		return
	}
}

// standing returns the standing earned by the mail in a single row.
func (p *peer) standing(c *clock, at uint32) (s Standing) {
	s = Standing{Level: rules.StandingNone, Messages: int(p.messages), Days: int(p.days)}
	if p.good == 0 {
		return s
	}
	s.First, s.Last = c.day(p.first), c.day(p.good)
	switch {
	case p.messages == 0 || !within(p.good, at, peerDays) || p.first >= dayOf(at):
	case p.messages >= trustedMessages && p.days >= trustedDays && p.good-p.first >= trustedSpread &&
		within(p.good, at, recentDays) && !within(p.bad, at, badDays):
		s.Level = rules.StandingTrusted
	default:
		s.Level = rules.StandingKnown
	}
	return s
}

// Excuse returns why rules must not ban c, or "". The reason is "many" if many hosts
// share the address, and "login" after a recent login from the address. For any other
// known client, the reason is the client's standing.
func (t *Peers) Excuse(c *Client, now int64) string {
	reason, _ := t.ExcuseFrom(c, now)
	return reason
}

// ExcuseFrom is like Excuse, but also reports whether the reason is known only from
// other hosts.
func (t *Peers) ExcuseFrom(c *Client, now int64) (reason string, elsewhere bool) {
	s := t.Standing(c, now)
	return s.excuse(), s.Origin != "" && s.Login.IsZero()
}

func (s *Standing) excuse() string {
	switch {
	case s.Many && (s.Origin == "" || s.Login.IsZero()):
		return "many"
	case !s.Login.IsZero():
		return "login"
	case s.Level >= rules.StandingKnown:
		return s.Level.String()
	}
	return ""
}

// A Summary counts hosts by standing.
type Summary struct {
	Known    int            `json:"known"`
	Trusted  int            `json:"trusted"`
	Gateways []netip.Prefix `json:"gateways"` // addresses shared by many hosts, at most maxGateways
}

// maxGateways limits the length of Summary.Gateways.
const maxGateways = 20

// Summary counts the hosts by standing.
func (t *Peers) Summary(now int64) (s Summary) {
	at := t.clock.row(now)
	each(&t.mu, &t.rows, func(k peerKey, p peer) (peer, bool) { return p, k.kind == peerHost }, func(p peer) {
		switch p.standing(&t.clock, at).Level {
		case rules.StandingKnown:
			s.Known++
		case rules.StandingTrusted:
			s.Trusted++
		}
	})
	t.Each(now, func(p Peer) {
		if p.Many && len(s.Gateways) < maxGateways {
			s.Gateways = append(s.Gateways, p.Prefix)
		}
	})
	return s
}

// A Peer is a host with recent mail or a recent login.
type Peer struct {
	Prefix    netip.Prefix // an IPv4 address, an IPv6 address or its /64
	Messages  int          // accepted messages
	LastMail  time.Time    // day in UTC; zero if there was none in the last recentDays
	LastLogin time.Time    // day in UTC; zero if there was none in the last loginDays
	Many      bool         // many hosts share the address; it should be listed as a gateway
	Origin    string       // host of the fleet that reported the latest information; empty for this host
}

// Recent reports whether Each would visit the single address a or its /64.
func (t *Peers) Recent(a netip.Addr, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	host := HostOf(a, true)
	for _, k := range [...]peerKey{{host, peerHost}, {host, peerLogin}, {host.wide(), peerLogin}} {
		if p, ok := t.rows.get(k); ok {
			if _, recent := p.export(&t.clock, k, at); recent {
				return true
			}
		}
	}
	return false
}

// Each calls visit for each host that sent mail in the last 90 days or had a login in
// the last 30 days.
func (t *Peers) Each(now int64, visit func(Peer)) {
	at := t.clock.row(now)
	each(&t.mu, &t.rows, func(k peerKey, p peer) (Peer, bool) { return p.export(&t.clock, k, at) }, visit)
}

func (p *peer) export(c *clock, k peerKey, at uint32) (e Peer, ok bool) {
	if k.kind == peerDomain {
		return e, false
	}
	e = Peer{Prefix: k.host.Prefix(), Messages: int(p.messages), Many: p.many()}
	if within(p.good, at, recentDays) {
		e.LastMail = c.day(p.good)
	}
	if within(p.login, at, loginDays) {
		e.LastLogin = c.day(p.login)
	}
	return e, !e.LastMail.IsZero() || !e.LastLogin.IsZero()
}
