package memory

import "bytes"

// Domains is the table of local domains. A domain is local if the server has accepted
// mail for it from an unknown client.
type Domains struct {
	*shared
	rows table[string, uint16]
	name []byte // scratch
}

// A domain remains local for domainDays days after it last received mail.
const domainDays = 400

func newDomains(s *shared) *Domains {
	return &Domains{shared: s, rows: newTable(s, schema[string, uint16]{
		name: "domains", bucket: "domains", limit: maxDomains,
		evictionScore: func(_ string, day uint16, now uint32) int64 { return ageScore(day, now, domainDays) },
		key:           func(k string) []byte { return []byte(k) },
		value:         func(day uint16) []byte { return words(day) },
		decode: func(key, v []byte) (string, uint16, bool) {
			if len(key) == 0 || len(v) != 2 {
				return "", 0, false
			}
			return string(key), be.Uint16(v), true
		},
		shift: func(_ string, day *uint16, by int64) { shiftDay(day, by) },
		merge: func(live *uint16, stored uint16) { *live = max(*live, stored) },
	})}
}

// Local reports whether a domain is local. The domain may end with a dot.
func (t *Domains) Local(domain []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.name = appendLower(t.name[:0], bytes.TrimSuffix(domain, []byte{'.'}))
	_, local := t.rows.rows[string(t.name)]
	return local
}

// Known reports whether any local domain is known.
func (t *Domains) Known() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.rows.rows) > 0
}

// Learn records that the server accepted mail for a domain from an unknown client.
func (t *Domains) Learn(domain []byte, now int64) {
	if len(domain) == 0 || len(domain) > 255 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	t.name = appendLower(t.name[:0], domain)
	if day, ok := t.rows.rows[string(t.name)]; !ok || day != dayOf(at) {
		t.rows.put(string(t.name), dayOf(at), at)
	}
}

// List returns the local domains in no particular order.
func (t *Domains) List() (list []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for d := range t.rows.rows {
		list = append(list, d)
	}
	return list
}
