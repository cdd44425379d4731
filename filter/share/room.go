package share

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
)

// The values of registers. If there is not enough room, registers with a lower value
// are evicted first.
const (
	worthEnded = iota // deleted rows, rows without effect, and bans that have ended
	worthRow
	worthBan
	worthStanding // without it, bans of other hosts apply to a legitimate client
	worthUnban
	worthAll // more than any register
)

// A worth is the value of a register.
type worth struct {
	class int
	// score orders the registers of a class: the time at which a ban ends, or
	// memory.StandingScore.
	score int64
}

// less reports whether a register with the value w is evicted for one with the value other.
// A ban is not evicted for a longer one.
func (w worth) less(other worth) bool {
	return w.class < other.class || w.class == worthStanding && other.class == worthStanding && w.score < other.score
}

// evictEvery is the minimum time between two searches for registers to evict.
const evictEvery = 5 * time.Minute

// victims lists a host's registers in the order in which they are evicted.
type victims struct {
	list    []victim
	at      time.Time // time of the search
	found   int       // length of list at that time
	evicted int       // number of registers deleted since then
}

type victim struct {
	key   rowKey
	worth worth // at the time of the search
}

// stale reports whether a new search, which scans all rows, is worth its cost.
func (v *victims) stale(now time.Time) bool {
	used := len(v.list) == 0 && v.evicted > 0 && v.evicted >= v.found/2
	return used || now.Sub(v.at).Abs() >= evictEvery
}

// worthOf returns a row's value.
func worthOf(bucket, key, value string, now time.Time) worth {
	switch {
	case value == "": // after all bans that have ended, because not all hosts may know the deletion
		return worth{worthEnded, math.MaxInt64}
	case bucket == memory.PeersBucket:
		if score := memory.StandingScore([]byte(key), []byte(value)); score > 0 {
			return worth{worthStanding, score}
		}
		return worth{worthEnded, 0}
	case bucket != memory.BansBucket:
		return worth{worthRow, 0}
	}
	b, _ := memory.ReadBan([]byte(key), []byte(value))
	switch {
	case b.Revoked:
		return worth{worthUnban, b.Until}
	case b.Active(now.Unix()):
		return worth{worthBan, b.Until}
	}
	return worth{worthEnded, b.Until}
}

// makeRoom frees space for a register. If it cannot, it returns the reason.
//
// A host with too many rows in a table loses the rows with the lowest value. If all
// hosts together have too many rows, in all tables or in one of them, the host with the
// most rows loses some, so that a few hosts cannot displace the other hosts' rows.
func makeRoom(r *Replica, o *origin, one *Row, now time.Time) string {
	if _, known := r.register(rowKey{one.Bucket, one.Key}, o); known || one.Bucket == DropBucket {
		return ""
	}
	w := worthOf(one.Bucket, one.Key, one.Value, now)
	if limit := r.limits.rows(one.Bucket); o.tables[one.Bucket] >= limit {
		problem := fmt.Sprintf("more than %d rows of table %s", limit, one.Bucket) + refusals(one.Bucket)
		if !evict(r, o, one.Bucket, w, now) {
			return problem
		}
		if w.class == worthStanding {
			o.omit(problem, now)
		}
	}
	if limit := r.room[one.Bucket]; limit > 0 && o.Name != r.self && !r.rows[rowKey{one.Bucket, one.Key}].shared(r.self) {
		full := func() bool { return r.others[one.Bucket] >= limit }
		if problem := displace(r, o, one.Bucket, w, full, fmt.Sprintf("%d rows of table %s", limit, one.Bucket), now); problem != "" {
			return problem
		}
	}
	full := func() bool { return r.total >= r.limits.Total }
	return displace(r, o, "", w, full, fmt.Sprintf("%d rows", r.limits.Total), now)
}

// refusals returns the effect of missing rows of a bucket, as the end of a problem.
func refusals(bucket string) string {
	if bucket != memory.PeersBucket {
		return ""
	}
	return "; this host may refuse clients that are known there, exempt important ones with pass"
}

// displace ensures that there is room for a register of o with the value w, or for none if o is nil, while full
// returns true. The other host with the most rows in the bucket loses registers; if it is o, only registers with a
// lower value than w. An empty bucket means all buckets.
func displace(r *Replica, o *origin, bucket string, w worth, full func() bool, limit string, now time.Time) string {
	rows := func(h *origin) int {
		if bucket == "" {
			return h.Rows
		}
		return h.tables[bucket]
	}
	for full() {
		most := o
		for _, h := range r.hosts {
			if h.Name != r.self && (most == nil || rows(h) > rows(most)) {
				most = h
			}
		}
		if most == nil {
			return ""
		}
		most.short = true
		problem, below := "all hosts together have more than "+limit, worth{class: worthAll}
		if most == o {
			below = w
		}
		switch evicted := evict(r, most, bucket, below, now); {
		case evicted || most == o:
			problem += ", and this host has the most" + refusals(bucket)
			if !evicted {
				return problem
			}
			most.omit(problem, now)
		default:
			if o != nil {
				o.short = true
			}
			return problem + refusals(bucket)
		}
	}
	return ""
}

// Room sets the maximum number of rows with registers of other hosts, by bucket. The memory of
// this host has no room for more.
func Room(r *Replica, room map[string]int, now time.Time) {
	r.room = room
	for bucket, limit := range room {
		full := func() bool { return r.others[bucket] > limit }
		displace(r, nil, bucket, worth{}, full, fmt.Sprintf("%d rows of table %s", limit, bucket), now)
	}
}

// roomy reports whether omitted rows may now fit.
func roomy(r *Replica) bool {
	for bucket, limit := range r.room {
		if r.others[bucket] >= limit-limit/10 {
			return false
		}
	}
	return r.total < r.limits.Total-r.limits.Total/10
}

// makeOwnRoom frees space for a row of this host, and reports whether it succeeded. Crowded
// reports the row that does not fit.
func makeOwnRoom(r *Replica, self *origin, e *kv.Entry, now time.Time) bool {
	key := rowKey{e.Bucket, string(e.Key)}
	w := worthOf(e.Bucket, key.key, string(e.Value), now)
	if self.tables[e.Bucket] < r.limits.rows(e.Bucket) || evict(r, self, e.Bucket, w, now) {
		r.crowded.remove(key)
		return true
	}
	r.crowded.add(key, w, now)
	return false
}

// crowded lists the rows of this host that do not fit.
type crowded struct {
	rows  map[string]map[string]int // rounds in which the rows were omitted, by bucket and key
	round int                       // number of calls of Retry that found rows
	since time.Time                 // time of the latest of these calls, or of the first row
}

func (c *crowded) add(key rowKey, w worth, now time.Time) {
	if w.class == worthEnded {
		c.remove(key)
		return
	}
	if len(c.rows) == 0 {
		c.rows, c.since = make(map[string]map[string]int), now
	}
	if c.rows[key.bucket] == nil {
		c.rows[key.bucket] = make(map[string]int)
	}
	c.rows[key.bucket][key.key] = c.round
}

func (c *crowded) remove(key rowKey) {
	if delete(c.rows[key.bucket], key.key); len(c.rows[key.bucket]) == 0 {
		delete(c.rows, key.bucket)
	}
}

// kinds describes the shared rows and the effect if other hosts do not receive them.
var kinds = []struct{ bucket, name, effect string }{
	{memory.PeersBucket, "known clients", "other hosts may refuse these because of bans by other hosts: exempt important ones with pass on all hosts, or set observe in fleet"},
	{memory.BansBucket, "bans and unbans", "these have no effect on other hosts: ban networks instead of addresses, or for a shorter time"},
	{"recipients", "recipients", "other hosts do not know that this host accepts or rejects these"},
	{"counters", "counts", "other hosts may ban these clients later"},
	{"sprays", "lists of failed logins", "other hosts may ban these clients later"},
}

// Crowded returns a description of the problem if this host has more rows than it sends.
// Otherwise, it returns "". The number of omitted rows is rounded down, so that the text
// rarely changes.
func (r *Replica) Crowded() string {
	for _, k := range kinds {
		n := len(r.crowded.rows[k.bucket])
		if n == 0 {
			continue
		}
		unit := 1
		for n/unit >= 10 {
			unit *= 10
		}
		n -= n % unit
		return fmt.Sprintf("at least %d %s, %d of them not shared; %s", r.limits.rows(k.bucket)+n, k.name, n, k.effect)
	}
	return ""
}

// Retry reports whether rows that Crowded reports may fit now. If Retry returns true, the
// memory must send all its rows again. Rows that it no longer has are no longer reported
// after the next call.
func (r *Replica) Retry(now time.Time) bool {
	c := &r.crowded
	if len(c.rows) == 0 || now.Sub(c.since).Abs() < evictEvery {
		return false
	}
	maps.DeleteFunc(c.rows, func(_ string, keys map[string]int) bool {
		maps.DeleteFunc(keys, func(_ string, round int) bool { return round < c.round })
		return len(keys) == 0
	})
	c.round++
	c.since = now
	return len(c.rows) > 0
}

// evict deletes one of a host's registers whose value is less than below, and reports
// whether it found one. An empty bucket means any bucket.
func evict(r *Replica, o *origin, bucket string, below worth, now time.Time) bool {
	if o.victims == nil {
		o.victims = make(map[string]*victims)
	}
	v := o.victims[bucket]
	if v == nil {
		v = search(r, o, bucket, now)
		o.victims[bucket] = v
	}
	if evictFrom(r, v, o, below, now) {
		return true
	}
	if !v.stale(now) {
		return false
	}
	v = search(r, o, bucket, now)
	o.victims[bucket] = v
	return evictFrom(r, v, o, below, now)
}

func evictFrom(r *Replica, v *victims, o *origin, below worth, now time.Time) bool {
	for len(v.list) > 0 {
		key, before := v.list[0].key, v.list[0].worth
		g, ok := r.register(key, o)
		w := worthOf(key.bucket, key.key, g.value, now)
		risen := before.less(w) // others may now have a lower value
		if ok && !risen && !w.less(below) {
			return false
		}
		v.list = v.list[1:]
		if !ok || risen || r.rows[key].needs(&g, now) {
			continue
		}
		r.remove(key, r.rows[key], func(g *register) bool { return g.origin == o })
		v.evicted++
		if o.Name != r.self {
			return true
		}
		r.crowded.add(key, w, now)
		if len(r.evicted) < r.limits.Rows {
			r.evicted[key] = struct{}{}
		}
		return true
	}
	return false
}

// search returns a host's registers in the order in which they are evicted.
func search(r *Replica, o *origin, bucket string, now time.Time) *victims {
	v := &victims{at: now}
	for key, w := range r.rows {
		if bucket != "" && key.bucket != bucket {
			continue
		}
		for i := range w.registers {
			if g := &w.registers[i]; g.origin == o {
				v.list = append(v.list, victim{key, worthOf(key.bucket, key.key, g.value, now)})
			}
		}
	}
	slices.SortFunc(v.list, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.worth.class, b.worth.class), cmp.Compare(a.worth.score, b.worth.score))
	})
	v.found = len(v.list)
	return v
}
