package memory

import "slices"

// ValidKey reports whether a row of a shared bucket can have the key. The deletion of a row
// has no value, so that only its key can be checked.
func (m Merger) ValidKey(bucket string, key []byte) bool {
	return slices.ContainsFunc(m.tables, func(t sharedTable) bool {
		return t.bucketName() == bucket && t.validKey(key)
	})
}

func (sharedHostBans) validKey(key []byte) bool {
	p, ok := readPrefix(key)
	return ok && isSource(p)
}

func (sharedNetworkBans) validKey(key []byte) bool {
	p, ok := readPrefix(key)
	return ok && !isSource(p)
}

func (t sharedRows[K, V]) validKey(key []byte) bool {
	_, _, ok := t.decode(key, t.value(*new(V)))
	return ok
}
