package memory

import (
	"bytes"
	"slices"
)

// ValidKey reports whether a row of a shared bucket can have the key. A deletion has no
// value, so only its key can be checked. A row has a single valid key; otherwise,
// several rows could have the same meaning, and hosts would choose different ones.
func (m Merger) ValidKey(bucket string, key []byte) bool {
	return slices.ContainsFunc(m.tables, func(t sharedTable) bool {
		return t.bucketName() == bucket && t.validKey(key)
	})
}

func (sharedBans) validKey(key []byte) bool {
	p, ok := readPrefix(key)
	if !ok || p.Addr().Is4In6() {
		return false
	}
	if isSource(p) {
		p = hostIn(p).Prefix()
	}
	return bytes.Equal(prefixKey(p), key)
}

func (t sharedRows[K, V]) validKey(key []byte) bool {
	k, _, ok := t.decode(key, t.value(*new(V)))
	return ok && bytes.Equal(t.key(k), key)
}

// SameBan reports whether two rows of the bucket BansBucket with the same key are about
// the same ban. An unban keeps the ban's session and, unless the unban is in the
// future, its start. The result does not depend on the hosts' clocks.
func SameBan(key, one, other []byte) bool {
	var names ruleNames
	_, a, ok := names.read(key, one)
	_, b, valid := names.read(key, other)
	return ok && valid && (a.session != 0 && a.session == b.session || a.since == b.since)
}
