package memory

// probed is a recipient that somebody wrote to: whether it ever existed, and
// which networks asked for it while it did not.
type probed struct {
	day      uint16 // it was last asked for, or last accepted
	accepted bool
	nets     networks
}

// From the probedAt-th network on a recipient counts as probed. They are
// forgotten probedDays after the last one asked; recipients that were accepted
// are kept longer, because they must never count as probed.
const (
	probedAt     = 3
	probedDays   = 30
	acceptedDays = 400
)

func probedWorth(_ uint64, p probed, now uint32) int64 {
	if p.accepted {
		return ageWorth(p.day, now, acceptedDays)
	}
	return ageWorth(p.day, now, probedDays)
}

// Accepted notes that mail for rcpt was accepted.
func (m *Memory) Accepted(rcpt []byte, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	k := m.hash('r', rcpt)
	p, _ := m.probed.get(k)
	if day := dayOf(at); !p.accepted || p.day != day {
		m.probed.put(k, probed{day: day, accepted: true}, at)
	}
}

// Refused notes that w asked for rcpt, which does not exist here.
func (m *Memory) Refused(w *Who, rcpt []byte, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	k := m.hash('r', rcpt)
	p, ok := m.probed.get(k)
	if p.accepted && probedWorth(k, p, at) >= 0 {
		return
	}
	if !ok || probedWorth(k, p, at) < 0 {
		p = probed{}
	}
	p.day = dayOf(at)
	p.nets.add(short(network(w.Addr)))
	m.probed.put(k, p, at)
}

// Probed tells whether at least probedAt networks other than w's asked for
// rcpt, which never existed here.
func (m *Memory) Probed(w *Who, rcpt []byte, now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.hash('r', rcpt)
	p, ok := m.probed.get(k)
	if !ok || p.accepted || probedWorth(k, p, seconds(now)) < 0 {
		return false
	}
	return p.nets.others(short(network(w.Addr))) >= probedAt
}

// Existence is what is remembered of a recipient.
type Existence uint8

// The answers of Exists.
const (
	ExistenceUnknown Existence = iota
	NeverExisted               // asked for, and never accepted
	Existed                    // accepted
)

// Exists tells what is remembered of rcpt.
func (m *Memory) Exists(rcpt []byte, now int64) Existence {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.hash('r', rcpt)
	switch p, ok := m.probed.get(k); {
	case !ok || probedWorth(k, p, seconds(now)) < 0:
		return ExistenceUnknown
	case p.accepted:
		return Existed
	}
	return NeverExisted
}

// networks tells a few networks apart: as many as matter, and the one that asks.
type networks [probedAt + 1]uint16

func (n *networks) add(what uint16) {
	for i, s := range n {
		if s == 0 {
			n[i] = what
		}
		if s == 0 || s == what {
			return
		}
	}
}

// others counts those that are not what.
func (n *networks) others(what uint16) (count int) {
	for _, s := range n {
		if s != 0 && s != what {
			count++
		}
	}
	return count
}

// campaign is a way to behave: which networks did wrong behaving so, and how
// much mail was accepted from hosts that behave so.
type campaign struct {
	day  uint16 // it was last seen
	good uint16
	nets networks
}

const campaignDays = 14

func campaignWorth(_ uint64, c campaign, now uint32) int64 {
	return ageWorth(c.day, now, campaignDays)
}

// Shape is the hash of a way to behave, told as text.
func (m *Memory) Shape(text []byte) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hash('c', text)
}

// Behaved notes how a session of the given shape came out. A shape of which mail
// was ever accepted is an honest one, and no sign of anything.
func (m *Memory) Behaved(w *Who, shape uint64, good bool, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := seconds(now)
	c, ok := m.campaigns.get(shape)
	if !ok || campaignWorth(shape, c, at) < 0 {
		c = campaign{}
	}
	if good {
		c.good = min(c.good, 1<<16-2) + 1
	} else {
		c.nets.add(short(network(w.Addr)))
	}
	c.day = dayOf(at)
	m.campaigns.put(shape, c, at)
}

// Campaign tells whether hosts of several networks other than w's behaved so and
// did wrong, and none that did well.
func (m *Memory) Campaign(w *Who, shape uint64, now int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.campaigns.get(shape)
	return ok && c.good == 0 && campaignWorth(shape, c, seconds(now)) >= 0 && c.nets.others(short(network(w.Addr))) >= probedAt
}
