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
	p, wide, ok := readRange(key)
	switch {
	case !ok || p.Addr().Is4In6():
		return false
	case wide:
		return bytes.Equal(rangeKey(p), key)
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
