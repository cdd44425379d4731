package memory

import (
	"time"

	"scanwatch/rules"
)

// A counter counts within a window that slides: in slots of a sixth of it, of
// which the newest six count. So nothing older than the window is ever counted,
// and what is within it is forgotten by a sixth of it too early at most.
type counter struct {
	head  uint32 // number of the newest slot since 1970
	slots [slotsPerWindow]uint16
}

const slotsPerWindow = 6

// counterKey tells counters apart: whose events, which, and over what time.
type counterKey struct {
	who    uint64 // 0: nobody is counted so
	window uint32 // seconds
	what   uint8  // Evidence.Index
	by     rules.Key
}

// slot is the number of the slot that now is in. No window is shorter than a
// minute.
func (k counterKey) slot(now uint32) uint32 { return now / max(k.window/slotsPerWindow, 1) }

// counterWorth prefers what has happened often, then what has happened lately.
func counterWorth(k counterKey, c counter, now uint32) int64 {
	slot := k.slot(now)
	if slot >= c.head+slotsPerWindow {
		return -1
	}
	return int64(c.sum())*slotsPerWindow + int64(c.head) - int64(slot)
}

// advance makes slot the newest.
func (c *counter) advance(slot uint32) {
	if slot <= c.head { // the clock was set back; if far, it was wrong before
		if c.head-slot > slotsPerWindow {
			*c = counter{head: slot}
		}
		return
	}
	if slot-c.head >= slotsPerWindow {
		c.slots = [slotsPerWindow]uint16{}
		c.head = slot
		return
	}
	for c.head < slot {
		c.head++
		c.slots[c.head%slotsPerWindow] = 0
	}
}

func (c *counter) add(n int) {
	s := &c.slots[c.head%slotsPerWindow]
	*s = uint16(min(int(*s)+n, 1<<16-1))
}

// take takes back n of the newest.
func (c *counter) take(n int) {
	for i := range uint32(slotsPerWindow) {
		s := &c.slots[(c.head-i)%slotsPerWindow]
		taken := min(n, int(*s))
		*s -= uint16(taken)
		n -= taken
	}
}

func (c *counter) sum() (n int) {
	for _, v := range c.slots {
		n += int(v)
	}
	return n
}

// merge adds an older counter of the same key.
func (c *counter) merge(old counter) {
	old.advance(c.head)
	c.advance(old.head)
	for i, n := range old.slots {
		c.slots[i] = uint16(min(int(c.slots[i])+int(n), 1<<16-1))
	}
}

// who returns the number that w goes by under a key, 0 if that is not known.
func (m *Memory) who(w *Who, by rules.Key) uint64 {
	switch by {
	case rules.BySrc:
		return Number(w.Addr)
	case rules.ByPrefix:
		return network(w.Addr)
	case rules.ByASN:
		if w.Placed {
			return uint64(w.ASN)
		}
	case rules.ByHelo:
		if len(w.Helo) > 0 {
			return m.hash('h', w.Helo)
		}
	case rules.ByUser:
		if len(w.User) > 0 {
			return m.hash('u', w.User)
		}
	}
	return 0
}

// Note counts one occurrence of e wherever the policy asks for it.
func (m *Memory) Note(w *Who, e rules.Evidence, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(w, e, 1, now)
}

func (m *Memory) note(w *Who, e rules.Evidence, n int, now int64) {
	at := seconds(now)
	for i := range m.watched {
		win := &m.watched[i]
		if win.Evidence != e {
			continue
		}
		k := m.counterKey(w, win)
		if k.who == 0 {
			continue
		}
		c, ok := m.counters.get(k)
		if !ok && n < 0 {
			continue
		}
		c.advance(k.slot(at))
		if n < 0 {
			c.take(-n)
		} else {
			c.add(n)
		}
		m.counters.put(k, c, at)
	}
}

func (m *Memory) counterKey(w *Who, win *rules.Window) counterKey {
	return counterKey{m.who(w, win.By), uint32(win.Window / time.Second), uint8(win.Evidence.Index()), win.By}
}

// Count returns how often e was noted within window. It cannot tell what it
// was not told to watch, and what is counted by something not known of w.
func (m *Memory) Count(w *Who, win rules.Window, now int64) (n int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.watched {
		if m.watched[i] == win {
			ok = true
		}
	}
	k := m.counterKey(w, &win)
	if !ok || k.who == 0 {
		return 0, false
	}
	c, _ := m.counters.get(k)
	c.advance(k.slot(seconds(now)))
	return c.sum(), true
}
