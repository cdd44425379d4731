package memory

import (
	"net/netip"
	"time"
)

// maxBanLog is the maximum number of changes in the log. At 500 bans a second, the log
// covers 16 seconds. A reader that misses more changes receives all bans again.
const maxBanLog = 8192

// banLog holds the latest changes to bans, so that a reader need not copy the whole
// table. The log is empty when the filter starts.
type banLog struct {
	first, next uint64 // numbers of the oldest logged change and of the next change
	ring        []netip.Prefix
}

func newBanLog() banLog {
	n := uint64(time.Now().UnixMicro())
	return banLog{first: n, next: n}
}

func (l *banLog) add(p netip.Prefix) {
	if len(l.ring) < maxBanLog {
		l.ring = append(l.ring, p)
	} else {
		l.ring[(l.next-l.first)%maxBanLog] = p
	}
	l.next++
}

// restart causes all readers to read all bans again.
func (l *banLog) restart() {
	l.next++
	l.first, l.ring = l.next, l.ring[:0]
}

// Restart causes all readers of Changed to read all bans again. Restart is called when
// the filter's mode changes, for example.
func (b *Bans) Restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log.restart()
}

// Loaded reports whether the stored bans of an earlier run, if any, have been loaded;
// see Memory.Expect.
func (b *Bans) Loaded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.unread
}

// Changed returns the prefixes whose bans were added or revoked since the given
// generation, and the current generation. Bans that expire or are dropped from a full
// table do not count as changes. If the log does not reach back far enough, ok is
// false, and the caller must read all bans.
func (b *Bans) Changed(since uint64) (changed []netip.Prefix, generation uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.log
	oldest := l.next - uint64(len(l.ring))
	if since < oldest || since > l.next {
		return nil, l.next, false
	}
	seen := make(map[netip.Prefix]bool)
	for n := since; n < l.next; n++ {
		if p := l.ring[(n-l.first)%maxBanLog]; !seen[p] {
			seen[p] = true
			changed = append(changed, p)
		}
	}
	return changed, l.next, true
}

// Enforced returns the active, enforced ban of exactly p. If this host and another one have
// banned p, Enforced returns the ban that remains in firewalls for longer.
func (b *Bans) Enforced(p netip.Prefix, now int64) (e Ban, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.clock.row(now)
	for _, k := range []*book{&b.own, &b.others} {
		row, known := k.get(p)
		row.settle(at)
		if !known || !row.active(at) || row.flags&banObserved != 0 {
			continue
		}
		if one := b.export(p, row); !ok || one.Firewall.After(e.Firewall) {
			e, ok = one, true
		}
	}
	return e, ok
}
