package memory

import (
	"bytes"
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/net/publicsuffix"
)

// peerKey is an address (or /64), a network, or the domain of a proven name.
type peerKey struct {
	who  uint64
	kind peerKind
}

type peerKind uint8

const (
	peerSource peerKind = iota + 1
	peerNet             // of IPv4 only: an IPv6 /64 is one host's, and a /48 may be of thousands
	peerDomain
)

// peer is what good a host has done, and whether it went wrong. Days are
// numbers since 1970.
type peer struct {
	good  uint16 // day mail was last accepted
	login uint16 // day somebody last logged in
	bad   uint16 // day it last did what no mail server does
	mails uint16
}

// A good peer is remembered for peerDays after its last mail: somebody who
// writes once a year is still known. A login counts for loginDays: what the
// address of a telephone was used for last month says nothing.
const (
	peerDays  = 400
	loginDays = 30
	badDays   = 30
	// goodNet is how many messages make a whole /24 known.
	goodNet = 3
	// trustedMails is how many messages outweigh an offence, which halves
	// their number.
	trustedMails = 10
	// recentDays is how long ago accepted mail may be to keep a host from
	// being banned.
	recentDays = 90
)

func peerWorth(_ peerKey, p peer, now uint32) int64 {
	if p.good == 0 { // an offence must not push out who writes once a year
		return max(ageWorth(p.login, now, loginDays), ageWorth(p.bad, now, badDays))
	}
	return ageWorth(max(p.good, p.login, p.bad), now, peerDays)
}

// Delivered notes that mail was accepted from w in a session in which it did
// nothing wrong.
func (m *Memory) Delivered(w *Who, mails int, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	for _, k := range m.peerKeys(w) {
		if k.kind == 0 {
			continue
		}
		p, _ := m.peers.get(k)
		p.good = max(p.good, dayOf(at)) // the clock may have been wrong
		p.mails = uint16(min(int(p.mails)+mails, 1<<16-1))
		m.peers.put(k, p, at)
	}
}

// Misbehaved notes that w did what no mail server does. Its own record is spoilt
// for badDays, unless it has sent much more good mail: a shared server has bad
// customers, too. Its network and its domain have others in them.
func (m *Memory) Misbehaved(w *Who, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	k := peerKey{Number(w.Addr), peerSource}
	p, _ := m.peers.get(k)
	p.bad, p.mails = dayOf(at), p.mails/2
	m.peers.put(k, p, at)
}

// peerKeys are what w is known by as a peer; a kind of 0 stands for nothing.
func (m *Memory) peerKeys(w *Who) [3]peerKey {
	keys := [3]peerKey{{Number(w.Addr), peerSource}}
	if w.Addr.Is4() {
		keys[1] = peerKey{network(w.Addr), peerNet}
	}
	if len(w.RDNS) > 0 {
		keys[2] = m.domainKey(w.RDNS)
	}
	return keys
}

// A knownDomain is the key of a name that was asked for lately. Finding it out
// takes a microsecond, and a session asks for it several times.
type knownDomain struct {
	rdns []byte
	key  peerKey
}

func (m *Memory) domainKey(rdns []byte) peerKey {
	d := &m.known[maphash.Bytes(m.seed, rdns)%uint64(len(m.known))]
	if !bytes.Equal(d.rdns, rdns) {
		d.rdns, d.key = append(d.rdns[:0], rdns...), peerKey{}
		if name := domain(rdns); name != "" {
			d.key = peerKey{m.hash('d', []byte(name)), peerDomain}
		}
	}
	return d.key
}

// domain is the part of a host's name that somebody has registered, by the
// public suffix list: example.org of mx1.mail.example.org. Under the domain of
// a cloud provider each customer has his own.
func domain(rdns []byte) string {
	if len(rdns) == 0 || generic(rdns) {
		return ""
	}
	d, err := publicsuffix.EffectiveTLDPlusOne(lower(rdns))
	if err != nil {
		return ""
	}
	return d
}

// generic tells whether a provider has made a name of an address, such as
// static.1-2-3-4.clients.example.net: then the domain is not its customer's.
func generic(rdns []byte) bool {
	groups, digits := 0, 0
	for _, c := range rdns {
		switch {
		case '0' <= c && c <= '9':
			if digits++; digits == 1 {
				groups++
			}
		case (c == '-' || c == '.' || c == '_' || c == 'x') && digits > 0:
			digits = 0
			if groups >= 3 {
				return true
			}
		default:
			groups, digits = 0, 0
		}
	}
	return groups >= 3
}

func lower(b []byte) string {
	s := make([]byte, len(b))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		s[i] = c
	}
	for len(s) > 0 && s[len(s)-1] == '.' {
		s = s[:len(s)-1]
	}
	return string(s)
}

// Good tells by what w is known for mail that was accepted before: "address",
// "domain" or "network"; "" if by nothing, or if it went wrong since.
func (m *Memory) Good(w *Who, now int64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.good(w, now, peerDays, true)
}

func (m *Memory) good(w *Who, now int64, days int, nets bool) string {
	at := seconds(now)
	own, _ := m.peers.get(peerKey{Number(w.Addr), peerSource})
	if own.bad != 0 && ageWorth(own.bad, at, badDays) >= 0 && own.mails < trustedMails {
		return ""
	}
	since := func(p peer, least uint16) bool {
		return p.good != 0 && p.mails >= least && ageWorth(p.good, at, days) >= 0
	}
	if since(own, 1) {
		return "address" // nearly all who are good; the rest takes longer to find out
	}
	keys := m.peerKeys(w)
	if p, ok := m.peers.get(keys[2]); ok && since(p, 1) {
		return "domain"
	}
	if p, ok := m.peers.get(keys[1]); ok && nets && since(p, goodNet) {
		return "network"
	}
	return ""
}

// Trusted tells whether much mail from w's address, or from its proven domain,
// was accepted lately.
func (m *Memory) Trusted(w *Who, now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	for _, k := range m.peerKeys(w) {
		if p, ok := m.peers.get(k); ok && k.kind != peerNet && p.mails >= trustedMails && ageWorth(p.good, at, recentDays) >= 0 {
			return true
		}
	}
	return false
}

// Spared tells why w must not be banned: "" if nothing speaks for it. Lately
// accepted mail speaks for the address and for a proven domain, and a login for
// the address: there may be many people behind it.
func (m *Memory) Spared(w *Who, now int64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	if p, ok := m.peers.get(peerKey{Number(w.Addr), peerSource}); ok && p.login != 0 && ageWorth(p.login, at, loginDays) >= 0 {
		return "login"
	}
	switch m.good(w, now, recentDays, false) {
	case "address":
		return "mail"
	case "domain":
		return "mail-domain"
	}
	return ""
}

// loggedIn tells whether somebody has logged in lately from the source of a.
func (m *Memory) loggedIn(a netip.Addr, at uint32) bool {
	p, ok := m.peers.get(peerKey{Number(a), peerSource})
	return ok && p.login != 0 && ageWorth(p.login, at, loginDays) >= 0
}

// A Peer is a host that did good lately.
type Peer struct {
	Prefix    netip.Prefix // an IPv4 address, or the /64 of an IPv6 host
	Mails     int          // messages that are remembered
	LastMail  time.Time    // a day, in UTC; zero if not lately
	LastLogin time.Time    // the same
}

// Peers visits the hosts whose mail was accepted within the last 90 days, or
// from which somebody has logged in within the last 30. It lets go of the lock
// now and then.
func (m *Memory) Peers(now int64, visit func(Peer)) {
	at := seconds(now)
	next, stop := iter.Pull2(maps.All(m.peers.rows)) // begins with the first call of next
	defer stop()
	some := func(list []Peer) ([]Peer, bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for range chunk {
			k, p, more := next()
			if !more {
				return list, false
			}
			if e, ok := p.export(k, at); ok {
				list = append(list, e)
			}
		}
		return list, true
	}
	var list []Peer
	for more := true; more; {
		list, more = some(list[:0])
		for _, e := range list {
			visit(e)
		}
	}
}

// ReadPeer reads a row of the bucket peers, for those who read the file without
// the filter. It returns false for a row that tells of no host, or of nothing
// good lately.
func ReadPeer(key, value []byte, now int64) (Peer, bool) {
	k, p, ok := readPeer(key, value)
	if !ok {
		return Peer{}, false
	}
	return p.export(k, seconds(now))
}

func (p *peer) export(k peerKey, at uint32) (e Peer, ok bool) {
	if k.kind != peerSource {
		return e, false
	}
	e = Peer{Prefix: prefixOf(k.who), Mails: int(p.mails)}
	if p.good != 0 && ageWorth(p.good, at, recentDays) >= 0 {
		e.LastMail = dayTime(p.good)
	}
	if p.login != 0 && ageWorth(p.login, at, loginDays) >= 0 {
		e.LastLogin = dayTime(p.login)
	}
	return e, !e.LastMail.IsZero() || !e.LastLogin.IsZero()
}
