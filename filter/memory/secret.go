package memory

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"scanwatch/rules"
)

// shared is the state shared by all tables.
type shared struct {
	mu       sync.Mutex
	key      [16]byte // key of the hashes
	keyDirty bool
	fixed    bool // the key is that of UseKey
	rekeyed  bool // the stored rows have hashes with a different key
	unread   bool // the stored rows have not been read yet
	clock    clock
	hosts    hostNames
	// complete is set once the standing on other hosts has arrived; see Memory.Complete.
	complete, completeDirty bool
	hostName
}

// hostName is the name by which other hosts know this host.
type hostName struct {
	name      string // empty outside a fleet
	nameDirty bool
	// kept is set unless this host has lost the rows that other hosts know under
	// this name.
	kept    bool
	renamed bool // other hosts know the stored rows under a different name
	// saved and started are the times at which the stored rows were last written and
	// at which they were loaded, or 0 if unknown; see lost.
	saved, started uint32
}

// The keys of rows.
const (
	secretKey = "hash"
	nameKey   = "name"
)

func newShared() *shared {
	s := &shared{keyDirty: true, clock: clock{monotonic: time.Now}}
	_, _ = rand.Read(s.key[:]) // never fails
	return s
}

// hash returns a keyed hash of text, ignoring case. The same text has a different hash
// for each purpose. Only the first 256 bytes are hashed, because mail addresses are no
// longer than that.
func (s *shared) hash(purpose byte, text []byte) uint64 {
	var b [16 + 1 + 256]byte
	n := copy(b[:], s.key[:])
	b[n] = purpose
	sum := sha256.Sum256(appendLower(b[:n+1], text[:min(len(text), 256)]))
	return binary.BigEndian.Uint64(sum[:])
}

func appendLower(dst, b []byte) []byte {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// secret implements the bucket that stores the hash key.
type secret struct{ *Memory }

func (secret) bucketName() string { return "secret" }

func (secret) status() Status { return Status{} }

func (secret) shift(int64) {}

func (s secret) rewrite() { s.keyDirty, s.nameDirty = true, s.name != "" }

func (s secret) changes(n int, put func(key, value []byte)) (left int) {
	if n > 0 && s.keyDirty {
		s.keyDirty = false
		put([]byte(secretKey), append([]byte(nil), s.key[:]...))
		n--
	}
	if n > 0 && s.nameDirty {
		s.nameDirty = false
		put([]byte(nameKey), []byte(s.name))
		n--
	}
	return n
}

// Key returns the hash key.
func (m *Memory) Key() [16]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.key
}

// UseKey sets the hash key, which then replaces the key in the stored rows. Rows whose
// hashes depend on a different key are dropped. UseKey must be called before Load.
func (m *Memory) UseKey(key [16]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fixed = true
	if m.key != key {
		m.key, m.keyDirty = key, true
		dropHashes(m)
	}
}

// UseName sets the name by which other hosts know this host. If the host was renamed,
// or its state is a copy of another host's, other hosts know the stored rows under a
// different name. In that case, the stored counts are dropped. Otherwise, other hosts
// would count them twice, and this host would receive them back as another host's.
// UseName must be called before Load.
func (s *shared) UseName(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name, s.nameDirty = name, true
}

// restoreName compares the stored name with the current one.
func (n *hostName) restoreName(stored string) {
	if n.kept = stored == n.name; n.kept {
		n.nameDirty = false
	}
	n.renamed = n.name != "" && !n.kept
}

// lost reports whether a row that was added at the given time may be missing because this
// host's state was lost, or was restored from a backup. Otherwise, this host has deleted
// the row. This run of the filter has not lost any row of this host.
func (n *hostName) lost(since uint32) bool {
	if n.kept && (n.saved == 0 || since <= n.saved) {
		return false
	}
	return n.started == 0 || since <= n.started
}

// restore sets the key, and drops all rows whose hashes depend on the previous key.
func (s secret) restore(key, value []byte, _ uint32) bool {
	if string(key) == nameKey {
		s.restoreName(string(value))
		return true
	}
	switch {
	case len(value) != len(s.key):
		return false
	case string(value) == string(s.key[:]):
		s.keyDirty = false
	case s.fixed:
		s.rekeyed = true // the rows follow
	default:
		copy(s.key[:], value)
		s.keyDirty = false
		dropHashes(s.Memory)
	}
	return true
}

// dropHashes drops all rows whose hashes depend on the key.
func dropHashes(m *Memory) {
	all := func(uint64) bool { return true }
	m.Recipients.rows.deleteFunc(all)
	m.Recipients.asks.deleteFunc(all)
	m.Recipients.balances.deleteFunc(all)
	m.Logins.pairs.deleteFunc(all)
	m.Logins.sprays.deleteFunc(func(sprayKey) bool { return true })
	m.Logins.accounts.deleteFunc(all)
	m.Peers.rows.deleteFunc(func(k peerKey) bool { return k.kind == peerDomain })
	m.Peers.rows.foreign.deleteFunc(func(k foreignKey[peerKey], _ *foreignRow[peer]) bool { return k.key.kind == peerDomain })
	m.complete, m.completeDirty = false, m.complete || m.completeDirty
	for k, p := range m.Peers.rows.rows {
		p.senders, p.helos = [manySenders]uint16{}, [manyGreetings]uint16{}
		m.Peers.rows.put(k, p, 0)
	}
	m.Counters.rows.deleteFunc(func(k counterKey) bool { return k.by == rules.ByHelo || k.by == rules.ByUser || k.by == rules.ByDomain })
}
