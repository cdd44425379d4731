//go:build linux

package count

import "net/netip"

// A ban describes a source's ban. Times are in seconds since 1970.
type ban struct {
	rule         string
	since, until int64
	last         int64 // latest connection
	times        int
	attempts     int
	session      uint64
}

// ladders maps each configured rule to the lengths of its consecutive bans in seconds.
var ladders = map[string][]int64{
	"tool": {3600, 6 * 3600},
	"http": {1800},
}

// bans maps the prefix of a source to its ban.
type bans map[netip.Prefix]*ban

// connects adds a connection to the count, and returns the rule of the active ban, or "".
func (b bans) connects(src netip.Prefix, at int64) (rule string) {
	old := b[src]
	if old == nil {
		return ""
	}
	old.last = at / 1e6
	if old.until <= at/1e6 {
		return ""
	}
	old.attempts++
	return old.rule
}

// offends bans a source. If the offence is within a day after a ban, or within four times that
// ban's length, the ban has the ladder's next length. If a ban is already active, the later of the
// two ends applies.
func (b bans) offends(src netip.Prefix, rule string, session uint64, at int64) *ban {
	now, ladder := at/1e6, ladders[rule]
	one := ban{rule: rule, since: now, session: session, times: 1}
	old := b[src]
	if old == nil {
		old = new(ban)
		b[src] = old
	}
	active := old.until > now
	switch {
	case active:
		one.since, one.times, one.attempts = old.since, old.times, old.attempts
	case old.until > 0 && now-old.until <= max(24*3600, 4*(old.until-old.since)):
		one.times = old.times + 1
	}
	one.last = old.last
	one.until = now + ladder[min(one.times, len(ladder))-1]
	if !active || one.until > old.until {
		*old = one
	}
	return old
}
