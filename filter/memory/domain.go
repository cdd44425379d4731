package memory

// domainDays is how long a domain stays ours after mail for it was accepted.
const domainDays = 400

// Local tells whether mail for domain was accepted from strangers.
func (m *Memory) Local(domain []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dump = appendLower(m.dump[:0], domain)
	_, local := m.domains.rows[string(m.dump)]
	return local
}

// KnowsDomains tells whether there is a domain that is known to be ours.
func (m *Memory) KnowsDomains() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.domains.rows) > 0
}

// Learn notes that mail for domain was accepted from a stranger.
func (m *Memory) Learn(domain []byte, now int64) {
	if len(domain) == 0 || len(domain) > 255 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	m.dump = appendLower(m.dump[:0], domain)
	if day, ok := m.domains.rows[string(m.dump)]; !ok || day != dayOf(at) {
		m.domains.put(string(m.dump), dayOf(at), at)
	}
}

// Domains lists the domains that are known to be ours, in no order.
func (m *Memory) Domains() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := range m.domains.rows {
		list = append(list, d)
	}
	return list
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
