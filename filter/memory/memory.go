// Package memory remembers hosts across sessions: what they did, who is banned,
// whose mail was accepted, who was asked for. It knows no protocol and no disk.
//
// Everything in it is a table with a fixed number of rows, because strangers
// fill them. When a table is full, the least useful of a few rows picked by
// chance is forgotten, and counted. Names and mail addresses are kept as keyed
// hashes only.
package memory

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"

	"scanwatch/rules"
)

// The number of rows of each table, unless Limit makes it less. A row costs 25 to 60 bytes of memory when
// its table is in use; see Status.
const (
	maxCounters  = 200_000
	maxBans      = 500_000
	maxWide      = 10_000 // bans of networks, which only the operator makes
	maxPeers     = 200_000
	maxProbed    = 100_000
	maxCampaigns = 20_000
	maxPairs     = 100_000 // of source and user
	maxDistinct  = 50_000
	maxDomains   = 10_000
)

// A Memory may be used by many goroutines; each call holds its lock for no
// longer than a few microseconds. Times are microseconds since 1970, by the
// clock of smtpd's events.
type Memory struct {
	mu        sync.Mutex
	key       [16]byte // of the hashes
	keyDirty  bool
	watched   []rules.Window
	escalate  []int
	counters  table[counterKey, counter]
	bans      table[uint64, ban]
	wide      wideBans
	peers     table[peerKey, peer]
	probed    table[uint64, probed]
	campaigns table[uint64, campaign]
	pairs     table[uint64, pair]
	distinct  table[distinctKey, distinct]
	domains   table[string, uint16]
	days      table[uint16, *counted]
	names     names  // of rules
	dump      []byte // scratch
	seed      maphash.Seed
	known     [64]knownDomain // wherever its hash by seed says
	hashes    [64]knownHash   // the same
}

// New returns an empty Memory with a key of its own.
func New() *Memory {
	m := &Memory{keyDirty: true, escalate: rules.DefaultEscalate(), seed: maphash.MakeSeed()}
	m.names.number("a rule of long ago") // for more names than there are numbers
	_, _ = rand.Read(m.key[:])           // never fails
	m.counters = newTable(maxCounters, counterWorth)
	m.bans = newTable(maxBans, banWorth)
	m.wide.rows = make(map[netip.Prefix]ban)
	m.peers = newTable(maxPeers, peerWorth)
	m.probed = newTable(maxProbed, probedWorth)
	m.campaigns = newTable(maxCampaigns, campaignWorth)
	m.pairs = newTable(maxPairs, pairWorth)
	m.distinct = newTable(maxDistinct, distinctWorth)
	m.days = newTable(maxDays, func(k uint16, _ *counted, now uint32) int64 { return ageWorth(k, now, dayKeep) })
	m.domains = newTable(maxDomains, func(_ string, day uint16, now uint32) int64 { return ageWorth(day, now, domainDays) })
	return m
}

// AllBytes is what all tables take of the disk when they are full, or more.
const AllBytes = 256 << 20

// Limit gives each table so much less rows than it could have as bytes is less
// than AllBytes: what is remembered has to fit there on the disk. It is called
// before anything is remembered.
func (m *Memory) Limit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, most := range []*int{&m.counters.most, &m.bans.most, &m.peers.most, &m.probed.most, &m.campaigns.most, &m.pairs.most, &m.distinct.most, &m.domains.most} {
		*most = int(min(int64(*most), max(int64(*most)*bytes/AllBytes, 100)))
	}
}

// Watch says which counts over several sessions a policy asks for, and how many
// times longer returning hosts are banned. What was not watched before counts from now on.
func (m *Memory) Watch(windows []rules.Window, escalate []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watched = m.watched[:0]
	for _, w := range windows {
		known := false
		for _, have := range m.watched {
			known = known || have == w
		}
		if !known {
			m.watched = append(m.watched, w)
		}
	}
	m.escalate = escalate
}

// Who is the client that something is noted or asked about.
type Who struct {
	Addr   netip.Addr
	RDNS   []byte // only if the name is proven
	ASN    uint32
	Placed bool   // ASN is known
	Helo   []byte // empty before the greeting
	User   []byte // whom it tried to log in as last; empty before
}

// Source returns what one host is known by: an IPv4 address, or the /64 of an
// IPv6 address, in which a single host may have any address.
func Source(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Prefix for no address
	return p
}

// Number is what Source is as a number: an IPv4 address, or the upper half of an
// IPv6 address. The two do not meet: no IPv6 host has an address in 0000::/32.
func Number(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}

// network is the number of the /24 of an IPv4 address, or of the /48 of an IPv6
// address.
func network(a netip.Addr) uint64 {
	if a.Is4() {
		return Number(a) &^ 0xff
	}
	return Number(a) &^ 0xffff
}

// prefixOf is the prefix that a Number stands for.
func prefixOf(n uint64) netip.Prefix {
	if n>>32 == 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n))
		return netip.PrefixFrom(netip.AddrFrom4(b), 32)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// hash returns a keyed hash of text, blind to ASCII case, that differs for each
// purpose. Long text is cut: what is longer than a mail address is no name.
func (m *Memory) hash(purpose byte, text []byte) uint64 {
	text = text[:min(len(text), 256)]
	known := &m.hashes[(maphash.Bytes(m.seed, text)+uint64(purpose))%uint64(len(m.hashes))]
	if known.purpose == purpose && bytes.Equal(known.text, text) {
		return known.sum
	}
	var b [16 + 1 + 256]byte
	n := copy(b[:], m.key[:])
	b[n] = purpose
	n++
	for _, c := range text {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[n] = c
		n++
	}
	sum := sha256.Sum256(b[:n])
	known.purpose, known.text, known.sum = purpose, append(known.text[:0], text...), binary.BigEndian.Uint64(sum[:])
	return known.sum
}

// A knownHash is one that was made lately. The same recipient is asked about
// several times.
type knownHash struct {
	purpose byte // 0: none
	text    []byte
	sum     uint64
}

// short makes 16 bits of a number, to tell a few of them apart.
func short(n uint64) uint16 {
	n *= 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio spreads well
	return max(uint16(n>>48), 1)
}

func seconds(micros int64) uint32 { return uint32(max(micros, 0) / 1e6) }

const daySeconds = 24 * 3600

// dayOf is the number of the day since 1970.
func dayOf(now uint32) uint16 { return uint16(now / daySeconds) }

// ageWorth is the worth of a row that was last useful on day: what is older than
// keep days is dead.
func ageWorth(day uint16, now uint32, keep int) int64 {
	return int64(day) + int64(keep) - int64(dayOf(now))
}

// Status tells how full each table is.
type Status struct {
	Table  string `json:"table"`
	Rows   int    `json:"rows"`
	Most   int    `json:"most"`   // rows it can have
	Forgot uint64 `json:"forgot"` // rows given up because it was full
}

// Status returns one line for each table.
func (m *Memory) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []Status{
		m.bans.status("bans"),
		{"network bans", len(m.wide.rows), maxWide, 0},
		m.peers.status("good peers"),
		m.counters.status("counters"),
		m.probed.status("recipients"),
		m.campaigns.status("campaigns"),
		m.pairs.status("logins"),
		m.distinct.status("login sprays"),
		m.domains.status("domains"),
		m.days.status("days"),
	}
}
