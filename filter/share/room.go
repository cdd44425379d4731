package share

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
)

// The values of registers. If there is not enough room, registers with a lower value
// are evicted first.
const (
	worthEnded = iota // deleted bans, and bans that have ended
	worthRow
	worthBan
	worthUnban
)

// evictEvery is the minimum time between two searches for registers to evict.
const evictEvery = 5 * time.Minute

// victims lists a host's registers in the order in which they are evicted.
type victims struct {
	keys    []rowKey
	at      time.Time // time of the search
	found   int       // number of keys at that time
	evicted int       // number of registers deleted since then
}

// stale reports whether a new search, which scans all rows, is worth its cost.
func (v *victims) stale(now time.Time) bool {
	used := len(v.keys) == 0 && v.evicted > 0 && v.evicted >= v.found/2
	return used || now.Sub(v.at).Abs() >= evictEvery
}

// worth returns a row's value, and the time at which its ban ends.
func worth(bucket, key, value string, now time.Time) (n int, until int64) {
	if bucket != memory.BansBucket {
		return worthRow, 0
	}
	if value == "" { // after all bans that have ended, because not all hosts may know the deletion
		return worthEnded, math.MaxInt64
	}
	b, _ := memory.ReadBan([]byte(key), []byte(value))
	switch {
	case b.Revoked:
		return worthUnban, b.Until
	case b.Active(now.Unix()):
		return worthBan, b.Until
	}
	return worthEnded, b.Until
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
	if o.tables[one.Bucket] >= r.limits.Rows {
		if n, _ := worth(one.Bucket, one.Key, one.Value, now); !evict(r, o, one.Bucket, n-1, now) {
			return fmt.Sprintf("more than %d rows of table %s", r.limits.Rows, one.Bucket)
		}
	}
	if limit := r.room[one.Bucket]; limit > 0 && o.Name != r.self && !r.rows[rowKey{one.Bucket, one.Key}].shared(r.self) {
		full := func() bool { return r.others[one.Bucket] >= limit }
		if problem := displace(r, o, one.Bucket, full, fmt.Sprintf("%d rows of table %s", limit, one.Bucket), now); problem != "" {
			return problem
		}
	}
	full := func() bool { return r.total >= r.limits.Total }
	return displace(r, o, "", full, fmt.Sprintf("%d rows", r.limits.Total), now)
}

// displace ensures that there is room for a register of o, or for none if o is nil, while full returns true. The
// other host with the most rows in the bucket loses registers. An empty bucket means all buckets.
func displace(r *Replica, o *origin, bucket string, full func() bool, limit string, now time.Time) string {
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
		problem := "all hosts together have more than " + limit
		if most != o && !evict(r, most, bucket, worthUnban, now) {
			if o != nil {
				o.short = true
			}
			return problem
		}
		if problem += ", and this host has the most"; most == o {
			return problem
		}
		most.omit(problem, now)
	}
	return ""
}

// Room sets the maximum number of rows with registers of other hosts, by bucket. The memory of
// this host has no room for more.
func Room(r *Replica, room map[string]int, now time.Time) {
	r.room = room
	for bucket, limit := range room {
		full := func() bool { return r.others[bucket] > limit }
		displace(r, nil, bucket, full, fmt.Sprintf("%d rows of table %s", limit, bucket), now)
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

// makeOwnRoom frees space for a row of this host, and reports whether it succeeded. If a
// ban or unban does not fit, Crowded reports the problem.
func makeOwnRoom(r *Replica, self *origin, e *kv.Entry, now time.Time) bool {
	n, _ := worth(e.Bucket, string(e.Key), string(e.Value), now)
	if self.tables[e.Bucket] < r.limits.Rows || evict(r, self, e.Bucket, n-1, now) {
		return true
	}
	if n > worthRow {
		r.crowded.problem = fmt.Sprintf("this host has more than %d bans; other hosts do not receive all of them", r.limits.Rows)
		r.crowded.since = now
	}
	return false
}

// Crowded returns a description of the problem if this host has too many bans or unbans
// to send. Otherwise, it returns "".
func (r *Replica) Crowded() string { return r.crowded.problem }

// Retry reports whether there may be room now and, if so, clears the problem that
// Crowded reports. If Retry returns true, the memory must send all its rows again.
func (r *Replica) Retry(now time.Time) bool {
	if r.crowded.problem == "" || now.Sub(r.crowded.since).Abs() < evictEvery {
		return false
	}
	r.crowded.problem = ""
	return true
}

// evict deletes one of a host's registers whose value is at most atMost, and reports
// whether it found one. An empty bucket means any bucket.
func evict(r *Replica, o *origin, bucket string, atMost int, now time.Time) bool {
	if o.victims == nil {
		o.victims = make(map[string]*victims)
	}
	v := o.victims[bucket]
	if v == nil {
		v = search(r, o, bucket, now)
		o.victims[bucket] = v
	}
	if evictFrom(r, v, o, atMost, now) {
		return true
	}
	if !v.stale(now) {
		return false
	}
	v = search(r, o, bucket, now)
	o.victims[bucket] = v
	return evictFrom(r, v, o, atMost, now)
}

func evictFrom(r *Replica, v *victims, o *origin, atMost int, now time.Time) bool {
	for len(v.keys) > 0 {
		key := v.keys[0]
		g, ok := r.register(key, o)
		if n, _ := worth(key.bucket, key.key, g.value, now); ok && n > atMost {
			return false
		}
		v.keys = v.keys[1:]
		if !ok || r.rows[key].needs(&g, now) {
			continue
		}
		r.remove(key, r.rows[key], func(g *register) bool { return g.origin == o })
		if v.evicted++; o.Name == r.self && len(r.evicted) < r.limits.Rows {
			r.evicted[key] = struct{}{}
		}
		return true
	}
	return false
}

// search returns a host's registers in the order in which they are evicted.
func search(r *Replica, o *origin, bucket string, now time.Time) *victims {
	type candidate struct {
		key   rowKey
		worth int
		until int64
	}
	var all []candidate
	for key, w := range r.rows {
		if bucket != "" && key.bucket != bucket {
			continue
		}
		for i := range w.registers {
			if g := &w.registers[i]; g.origin == o {
				n, until := worth(key.bucket, key.key, g.value, now)
				all = append(all, candidate{key, n, until})
			}
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.worth, b.worth), cmp.Compare(a.until, b.until))
	})
	v := &victims{at: now, found: len(all)}
	for _, c := range all {
		v.keys = append(v.keys, c.key)
	}
	return v
}
