// Package memory holds the state that outlasts sessions: bans, counters, clients with
// accepted mail, recipients, logins, local domains and daily counters. The caller
// writes the rows to disk; see Memory.Changes.
//
// Unknown clients can add rows, so every table has a maximum number of rows. When a
// table is full, the least useful of a few random rows is evicted, and the eviction is
// counted. Names and mail addresses are stored only as keyed hashes.
//
// All tables share a lock, which is held for a few microseconds. All methods are safe
// for concurrent use.
//
// Times are in microseconds since 1970 on the clock that smtpd uses for its events.
// That clock may be wrong, so rows use a different one; see clock.
package memory

// The rows by bucket. Numbers are big-endian. Hashes depend on the key stored in the
// secret bucket.
//
//	clock      "time"                           the numbers of stored (8 each)
//	secret     "hash"                           16 bytes
//	           "name"                           the name of this host in its fleet
//	bans       length of the prefix (1 byte;    since, until, last (4 each), attempts (2), session (8),
//	           plus 129 for a range), address   times (1), flags (1), ban.extra and ban.end (4 each)
//	           (4 or 16)                        if not 0, then the rule, after the other host and 0
//	                                            if another host has ended the ban
//	otherbans  as in bans                       as in bans, but always with the other host and 0
//	                                            before the rule
//	peers      kind (1), host (16) or hash      days of the first and last mail, last login, offence
//	           (8 zeros, 8)                     and mail of our users, messages, days, senders (5
//	                                            times 2), greetings (3 times 2; 2 each)
//	           0xff                             latest day of a dropped row, day of the latest loss
//	                                            of bans or peers (2 each)
//	elsewhere  key in peers, then the name      the first 30 bytes as in peers, then the name of the
//	           of the host if the row is from   host with the latest information
//	           its file
//	           0xff                             1, once the rows of all hosts have arrived
//	counters   subject (8), window in seconds   number of the newest slot (4), six slots (2 each)
//	           (4), rules.Key, space, evidence
//	recipients hash (8)                         day (2), accepted (1), networks (4 times 2)
//	asks       hash (8)                         since (4), number (2)
//	balances   number of the host (8)           since (4), missing (2), existing (8)
//	accounts   hash (8)                         since (4), number (2)
//	logins     hash of host and user (8)        failures (2), hour (4), sessions, session (2 each)
//	sprays     kind (1), source or hash (8)     since (4), users or networks (8 times 2)
//	domains    the domain                       day (2)
//	days       day (2)                          counters: length of the name (1), name, number (varint)

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"scanwatch/internal/kv"
)

// Default maximum number of rows in each table; Limit can reduce it. A row uses 25 to
// 75 bytes of memory. A Go map doubles in size when it is seven eighths full, so
// 500,000 bans would use twice the memory of 400,000.
const (
	maxBans        = 400_000
	maxNetworkBans = 10_000
	maxCounters    = 200_000
	maxPeers       = 200_000
	maxRecipients  = 100_000
	maxAsks        = 100_000
	maxBalances    = 25_000
	maxLogins      = 100_000 // pairs of source and user
	maxSprays      = 50_000
	maxDomains     = 10_000
	maxDays        = dayKeep + 20 // a few more, for days added by a wrong clock
)

// AllBytes is an upper bound on the size on disk when all tables are full.
const AllBytes = 256 << 20

// A Memory is the set of all tables.
type Memory struct {
	Bans       *Bans
	Counters   *Counters
	Peers      *Peers
	Recipients *Recipients
	Logins     *Logins
	Domains    *Domains
	Days       *Days

	*shared
	buckets []bucket // in the order in which rows are restored
}

// A bucket encodes and decodes a table's rows. All methods require the lock.
type bucket interface {
	// bucketName returns the name on disk, which two tables may share.
	bucketName() string
	// changes calls put for up to n changed rows. It returns n minus the number of
	// calls. The value of a deleted row is nil.
	changes(n int, put func(key, value []byte)) (left int)
	// restore adds a stored row unless it has expired. It reports whether the row is
	// valid for this table.
	restore(key, value []byte, now uint32) bool
	// shift adds a number of seconds to the times in all rows.
	shift(by int64)
	// rewrite marks all rows as changed.
	rewrite()
	status() Status
}

// New returns empty tables with a new key.
func New() *Memory {
	s := newShared()
	peers := newPeers(s)
	counters, recipients := newCounters(s, peers), newRecipients(s)
	m := &Memory{
		Bans: newBans(s), Counters: counters, Peers: peers, Recipients: recipients,
		Logins: newLogins(s, peers, counters, recipients), Domains: newDomains(s), Days: newDays(s), shared: s,
	}
	// The clock comes first, because other rows depend on it. The secret is the key of
	// the hashes in other rows. The row about dropped peers must be on disk before the
	// rows of these peers are deleted.
	m.buckets = []bucket{clockRows{m}, secret{m}, &m.Bans.own.hosts, &m.Bans.own.networks, &m.Bans.own.ranges, &m.Bans.others.hosts, &m.Bans.others.networks, forgottenRow{m.Peers}, &m.Peers.rows, elsewhereRows{&m.Peers.rows, s}, &m.Counters.rows, &m.Recipients.rows, &m.Recipients.asks, &m.Recipients.balances,
		&m.Logins.pairs, &m.Logins.sprays, &m.Logins.accounts, &m.Domains.rows, &m.Days.rows}
	return m
}

// Limit reduces the maximum number of rows of all tables proportionally, so that the
// tables use at most the given number of bytes on disk instead of AllBytes. Limit must
// be called while the tables are empty.
func (m *Memory) Limit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, limit := range []*int{&m.Bans.own.hosts.limit, &m.Bans.others.hosts.limit, &m.Peers.rows.limit, &m.Counters.rows.limit, &m.Recipients.rows.limit,
		&m.Recipients.asks.limit, &m.Recipients.balances.limit, &m.Logins.pairs.limit, &m.Logins.sprays.limit, &m.Domains.rows.limit} {
		*limit = int(min(int64(*limit), max(int64(*limit)*bytes/AllBytes, 100)))
	}
}

// Status describes how full a table is.
type Status struct {
	Table   string `json:"table"`
	Rows    int    `json:"rows"`
	Limit   int    `json:"limit"`
	Evicted uint64 `json:"evicted"` // rows dropped because the table was full
}

// Status returns each table's status.
func (m *Memory) Status() (list []Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.buckets {
		if s := b.status(); s.Table != "" {
			list = append(list, s)
		}
	}
	return list
}

// Buckets returns the names of the buckets in the order in which their rows must be
// restored.
func Buckets() (names []string) {
	for _, b := range New().buckets {
		if len(names) == 0 || names[len(names)-1] != b.bucketName() {
			names = append(names, b.bucketName())
		}
	}
	return names
}

// chunk is the number of rows processed before the lock is released.
const chunk = 500

// Changes returns up to n rows that have changed since Changes last returned them.
func (m *Memory) Changes(n int) (list []kv.Entry) {
	settleBans(m)
	for _, b := range m.buckets {
		for left := n - len(list); left > 0; {
			some := min(left, chunk)
			rest := changed(m, b, some, &list)
			left -= some - rest
			if rest > 0 {
				break
			}
		}
	}
	return list
}

// changed appends up to n changed rows of b to list, and returns n minus the number of
// rows appended. The unlock is deferred, so that a panic also releases the lock.
func changed(m *Memory, b bucket, n int, list *[]kv.Entry) (left int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return b.changes(n, func(key, value []byte) {
		*list = append(*list, kv.Entry{Bucket: b.bucketName(), Key: key, Value: value})
	})
}

// Rewrite causes Changes to return all rows again. Rewrite is called after the file has
// been lost.
func (m *Memory) Rewrite() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.buckets {
		b.rewrite()
	}
}

// Load merges stored rows into the rows added since startup. Expired rows are marked
// for deletion, and invalid rows are ignored. The clock's row must come first. If
// Follow has been called and the clock has no row, now must be the latest time that has
// certainly passed.
func (m *Memory) Load(entries iter.Seq[kv.Entry], now int64) {
	some := make([]kv.Entry, 0, chunk)
	take := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i := range some {
			m.load(&some[i], now)
		}
		some = some[:0]
	}
	for e := range entries { // not locked, because the iterator reads from disk
		some = append(some, kv.Entry{Bucket: e.Bucket, Key: bytes.Clone(e.Key), Value: bytes.Clone(e.Value)})
		if len(some) == chunk {
			take()
		}
	}
	take()
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := &m.Peers.forgotten; m.unread && !f.read {
		f.missing(dayOf(m.clock.row(now)))
	}
	if m.rekeyed {
		m.rekeyed = false
		dropHashes(m)
	}
	if m.renamed {
		m.renamed = false
		m.Counters.rows.deleteFunc(func(counterKey) bool { return true })
	}
	m.saved, m.started = m.clock.saved, m.clock.row(now)
	m.unread = false
	m.Bans.log.restart()
}

// provesAbsence reports whether exports take a missing row in the bucket as proof that
// a host has no ban or no standing.
func provesAbsence(bucket string) bool {
	return bucket == peersBucket || bucket == BansBucket || bucket == OthersBucket
}

// load merges a stored row, and requires the lock.
func (m *Memory) load(e *kv.Entry, now int64) {
	c := &m.clock
	switch {
	case e.Bucket == clockBucket:
		if m.restore(e, 0); c.adopted && !c.follows {
			c.advance(now)
		}
		return
	case c.follows && !c.adopted:
		m.adopt(stored{own: now})
	}
	if c.follows {
		now = c.last
	}
	at := c.past(c.row(now))
	if _, valid := m.restore(e, at); !valid && provesAbsence(e.Bucket) {
		m.Peers.forgotten.missing(dayOf(at))
	}
}

// Expect announces that Load will be called with the rows from an earlier run of the
// filter. Until then, the tables are incomplete. If Load does not receive the last row
// of the peers bucket, rows were lost; see Peers.Forgotten.
func (m *Memory) Expect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unread = true
}

// Forget deletes the counts and sprays of the hosts in the given prefixes, after their bans have
// been revoked. An IPv6 address is widened to its /64.
func (m *Memory) Forget(list ...netip.Prefix) {
	if len(list) == 0 {
		return
	}
	var within prefixMap[struct{}]
	hosts, networks := make(map[uint64]bool), make(map[uint64]bool)
	for _, p := range list {
		hosts[HostOf(p.Addr(), true).number()] = true
		networks[network(p.Addr())] = true
		within.set(widen(p).Masked(), struct{}{})
	}
	if slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		m.Bans.addresses(hosts, within.contains)
	}
	freed := func(n uint64) bool { return hosts[n] || within.contains(hostOfNumber(n)) }
	m.Counters.forget(freed, networks)
	deleteAll(&m.mu, &m.Recipients.balances, func(host uint64) bool { return freed(host) })
	m.Logins.forget(freed, networks)
}

// restore adds a row to its table, and reports whether the bucket is known and the row
// valid.
func (m *Memory) restore(e *kv.Entry, now uint32) (known, valid bool) {
	for _, b := range m.buckets {
		if b.bucketName() == e.Bucket {
			known = true
			if b.restore(e.Key, e.Value, now) {
				return true, true
			}
		}
	}
	return known, false
}

// Checker returns a function that returns an error if a row is invalid. The rows must
// be passed in file order.
func Checker() func(kv.Entry) error {
	m := New()
	lost := false
	return func(e kv.Entry) error {
		switch known, valid := m.restore(&e, 0); {
		case !known:
			return fmt.Errorf("table %q does not exist", e.Bucket)
		case !valid:
			lost = lost || provesAbsence(e.Bucket)
			return fmt.Errorf("table %s: invalid row with a key of %d and a value of %d bytes", e.Bucket, len(e.Key), len(e.Value))
		case lost && e.Bucket == peersBucket && string(e.Key) == forgottenKey:
			return fmt.Errorf("table %s: incomplete, because rows are invalid", e.Bucket)
		}
		return nil
	}
}
