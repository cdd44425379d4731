// Package share merges the rows of package memory that several hosts have sent each other.
//
// For each row, a host only ever changes its own copy, which is called a register. A
// register is replaced by one of the same host with a later stamp. So registers can arrive
// late, repeatedly and in any order. What the registers of all hosts mean together is
// computed from all of them; see memory.Merger.
//
// Bans need more, because a ban by one host and an unban by another are about the same
// thing. Each ban therefore carries the stamp of the latest unban of the same prefix that
// its host knew at that time. A ban only counts if there is no later unban: an unban ends
// all bans that were imposed without knowledge of it, however wrong the clocks are.
package share

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
)

// A Stamp is the time of a hybrid logical clock: milliseconds since 1970 in the upper 48
// bits, and a counter in the lower 16. A stamp is later than all stamps that its host had
// seen before.
type Stamp uint64

// At returns the earliest stamp at a time.
func At(t time.Time) Stamp { return Stamp(max(t.UnixMilli(), 0)) << 16 }

// Time returns the time of the stamp, which is that of the host's clock or later.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// A Row is a register of a host.
type Row struct {
	Bucket, Key string
	Stamp       Stamp  // time of the latest change
	Seen        Stamp  // for a ban, the latest unban of the same prefix that the host knew
	Value       string // empty if the host has deleted the row
}

// DropBucket is the bucket of the marks that Drop sets. The key of a row is the name of a
// host.
const DropBucket = "drop"

// Limits bound what a host believes others.
type Limits struct {
	Rows  int // of one host
	Total int // of all hosts
	// Bans is the maximum number of bans that a host imposes within a minute. None of
	// the bans from a minute with more bans count.
	Bans     int
	Duration time.Duration // of a ban; a longer ban ends earlier
	Bits4    int           // minimum length of a banned IPv4 prefix
	Bits6    int           // minimum length of a banned IPv6 prefix
	Observe  bool          // bans of other hosts are not enforced
}

// DefaultLimits returns the limits without configuration.
func DefaultLimits() Limits {
	return Limits{Rows: 50_000, Total: 1_000_000, Bans: 120, Duration: 30 * 24 * time.Hour, Bits4: 24, Bits6: 48}
}

const (
	// maxAhead is how far the clock of another host may be ahead.
	maxAhead = 15 * time.Minute
	// keepDeleted is the time for which deleted rows are kept, so that an earlier
	// register that arrives late does not restore them.
	keepDeleted = 48 * time.Hour
	maxValue    = 512
	maxKey      = 256
	maxName     = 64
)

type rowKey struct{ bucket, key string }

// A register is a row of one host.
type register struct {
	origin      *origin
	stamp, seen Stamp
	value       string
	ban         memory.BanRow // of a row in memory.BansBucket
}

// A row is the registers of all hosts with the same key.
type row struct {
	registers []register // sorted by name of the host
	sent      uint64     // hash of what Changed has returned
}

// origin is a host.
type origin struct {
	HostStatus
	minutes map[int64]map[rowKey]struct{} // keys of bans by the minute of their stamps
	mark    Stamp                         // earlier registers do not count
}

// HostStatus describes another host.
type HostStatus struct {
	Name string    `json:"name"`
	Rows int       `json:"rows"`
	Last time.Time `json:"last,omitzero"` // latest stamp
	// Omitted counts rows that exceed the limits or are invalid, and Problem is the
	// reason for the latest of them.
	Omitted int    `json:"omitted,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// A Replica holds the registers of all hosts. It is not safe for concurrent use.
type Replica struct {
	self    string
	limits  Limits
	merger  memory.Merger
	rows    map[rowKey]*row
	total   int
	hosts   map[string]*origin
	changed map[rowKey]struct{} // keys of which Changed must compute the row
	last    Stamp
	seed    maphash.Seed
}

// New returns a Replica of the host with the given name.
func New(self string, l Limits) *Replica {
	r := &Replica{
		self: self, limits: l, merger: memory.NewMerger(), rows: make(map[rowKey]*row),
		hosts: make(map[string]*origin), changed: make(map[rowKey]struct{}), seed: maphash.MakeSeed(),
	}
	r.host(self)
	return r
}

// ValidName reports whether a host may have this name.
func ValidName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

func (r *Replica) host(name string) *origin {
	o := r.hosts[name]
	if o == nil {
		o = &origin{HostStatus: HostStatus{Name: name}, minutes: make(map[int64]map[rowKey]struct{})}
		r.hosts[name] = o
	}
	return o
}

// Hosts returns the status of all other hosts, sorted by name.
func (r *Replica) Hosts() (list []HostStatus) {
	for name, o := range r.hosts {
		if name != r.self {
			list = append(list, o.HostStatus)
		}
	}
	slices.SortFunc(list, func(a, b HostStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// stamp returns a stamp that is later than all stamps seen.
func (r *Replica) stamp(now time.Time) Stamp {
	r.last = max(r.last+1, At(now))
	return r.last
}

// Own records rows of this host that have changed, and returns those that other hosts must
// receive. Before the call, the host must have processed all rows from Changed.
func (r *Replica) Own(entries []kv.Entry, now time.Time) (out []Row) {
	self := r.hosts[r.self]
	for i := range entries {
		e := &entries[i]
		key := rowKey{e.Bucket, string(e.Key)}
		old, ok := r.own(key)
		if ok && old.value == string(e.Value) || !ok && len(e.Value) == 0 {
			continue
		}
		one := Row{Bucket: e.Bucket, Key: key.key, Value: string(e.Value), Stamp: r.stamp(now)}
		if key.bucket == memory.BansBucket {
			one.Seen = r.unbanned(key)
		}
		if r.put(self, &one) {
			out = append(out, one)
		}
	}
	return out
}

// own returns the register of this host.
func (r *Replica) own(key rowKey) (register, bool) {
	if row := r.rows[key]; row != nil {
		for _, g := range row.registers {
			if g.origin.Name == r.self {
				return g, true
			}
		}
	}
	return register{}, false
}

// Apply records registers of a host. A register of this host restores one that this host
// has sent earlier. Registers that exceed the limits are omitted and counted. Apply returns
// an error if the host cannot be believed at all.
func (r *Replica) Apply(name string, rows []Row, now time.Time) error {
	if !ValidName(name) {
		return fmt.Errorf("%.80q is not the name of a host", name)
	}
	if r.hosts[name] == nil && len(r.hosts) >= maxHosts {
		return fmt.Errorf("more than %d hosts", maxHosts)
	}
	o := r.host(name)
	for i := range rows {
		one := &rows[i]
		if problem := r.implausible(o, one, now); problem != "" {
			o.Omitted++
			o.Problem = problem
			continue
		}
		r.last = max(r.last, one.Stamp)
		r.put(o, one)
	}
	return nil
}

const maxHosts = 1000

// implausible returns why a register does not count, or "".
func (r *Replica) implausible(o *origin, one *Row, now time.Time) string {
	latest := At(now.Add(maxAhead))
	switch {
	case one.Bucket == DropBucket && o.Name == r.self && ValidName(one.Key) && one.Stamp <= latest:
		return ""
	case len(one.Key) > maxKey || len(one.Value) > maxValue || !r.merger.Shared(one.Bucket):
		return "invalid rows"
	case one.Stamp > latest || one.Seen > latest:
		return fmt.Sprintf("times more than %v in the future", maxAhead)
	case one.Value != "" && !r.merger.Valid(one.Bucket, []byte(one.Key), []byte(one.Value)):
		return "invalid rows"
	case o.Name == r.self:
		return ""
	}
	_, known := r.register(rowKey{one.Bucket, one.Key}, o)
	if !known && (o.Rows >= r.limits.Rows || r.total >= r.limits.Total) {
		return fmt.Sprintf("more than %d rows", min(r.limits.Rows, r.limits.Total))
	}
	if one.Bucket != memory.BansBucket || one.Value == "" {
		return ""
	}
	ban, _ := memory.ReadBan([]byte(one.Key), []byte(one.Value))
	switch {
	case ban.Since > now.Add(maxAhead).Unix():
		return fmt.Sprintf("times more than %v in the future", maxAhead)
	case ban.Prefix.Bits() < r.narrowest(ban.Prefix):
		return fmt.Sprintf("bans of networks larger than /%d", r.narrowest(ban.Prefix))
	}
	return ""
}

func (r *Replica) narrowest(p netip.Prefix) int {
	if p.Addr().Is4() {
		return r.limits.Bits4
	}
	return r.limits.Bits6
}

func (r *Replica) register(key rowKey, o *origin) (register, bool) {
	if row := r.rows[key]; row != nil {
		for _, g := range row.registers {
			if g.origin == o {
				return g, true
			}
		}
	}
	return register{}, false
}

// put sets a register, unless there is a later one. It reports whether it did.
func (r *Replica) put(o *origin, one *Row) bool {
	o.Last = latest(o.Last, one.Stamp.Time())
	if one.Bucket == DropBucket {
		return r.mark(one.Key, one.Stamp)
	}
	key := rowKey{one.Bucket, one.Key}
	g := register{origin: o, stamp: one.Stamp, seen: one.Seen, value: one.Value}
	if one.Bucket == memory.BansBucket && one.Value != "" {
		g.ban, _ = memory.ReadBan([]byte(one.Key), []byte(one.Value))
	}
	w := r.rows[key]
	if w == nil {
		w = new(row)
		r.rows[key] = w
	}
	i, found := slices.BinarySearchFunc(w.registers, o.Name, func(g register, name string) int { return cmp.Compare(g.origin.Name, name) })
	switch {
	case !found:
		w.registers = slices.Insert(w.registers, i, g)
		o.Rows++
		r.total++
	case w.registers[i].stamp >= one.Stamp:
		return false
	default:
		r.count(key, &w.registers[i], -1)
		w.registers[i] = g
	}
	r.count(key, &g, 1)
	r.changed[key] = struct{}{}
	return true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func minute(s Stamp) int64 { return int64(s>>16) / 60_000 }

// count adds a ban to its minute or, if n is negative, removes it. If the number of bans
// crosses the limit, all bans of this minute must be computed again.
func (r *Replica) count(key rowKey, g *register, n int) {
	o := g.origin
	if !g.isBan() || o.Name == r.self {
		return
	}
	m := minute(g.stamp)
	bans := o.minutes[m]
	if bans == nil {
		bans = make(map[rowKey]struct{})
		o.minutes[m] = bans
	}
	before := len(bans) > r.limits.Bans
	if n > 0 {
		bans[key] = struct{}{}
	} else if delete(bans, key); len(bans) == 0 {
		delete(o.minutes, m)
	}
	after := len(bans) > r.limits.Bans
	if after && !before {
		o.Omitted, o.Problem = o.Omitted+len(bans), fmt.Sprintf("more than %d bans within a minute", r.limits.Bans)
	}
	if after != before {
		for key := range bans {
			r.changed[key] = struct{}{}
		}
	}
}

// isBan reports whether the register holds a ban or an offence, as opposed to an unban or
// another row.
func (g *register) isBan() bool { return g.ban.Prefix.IsValid() && !g.ban.Revoked }

// unban returns the stamp of the latest unban that the register's host knew or made.
func (g *register) unban() Stamp {
	if g.ban.Revoked {
		return g.stamp
	}
	return g.seen
}

// unbanned returns the stamp of the latest unban of a prefix.
func (r *Replica) unbanned(key rowKey) (s Stamp) {
	if w := r.rows[key]; w != nil {
		for i := range w.registers {
			if g := &w.registers[i]; r.counts(g) {
				s = max(s, g.unban())
			}
		}
	}
	return s
}

// counts reports whether a register has not been dropped.
func (r *Replica) counts(g *register) bool { return g.stamp > g.origin.mark }

// Changed returns up to n rows of the other hosts taken together that have changed. now is
// the current time.
func (r *Replica) Changed(n int, now time.Time) (out []memory.Foreign) {
	for key := range r.changed {
		if len(out) == n {
			return out
		}
		delete(r.changed, key)
		w := r.rows[key]
		value, origin := r.together(key, w, now)
		hash := uint64(0)
		if value != nil {
			hash = max(maphash.String(r.seed, origin+"\x00"+string(value)), 1)
		}
		var sent uint64
		if w != nil {
			sent = w.sent
			w.sent = hash
		}
		if hash != sent {
			out = append(out, memory.Foreign{Entry: kv.Entry{Bucket: key.bucket, Key: []byte(key.key), Value: value}, Origin: origin})
		}
	}
	return out
}

// Resend causes Changed to return all rows again, because the host has lost them.
func (r *Replica) Resend() {
	for key, w := range r.rows {
		w.sent = 0
		r.changed[key] = struct{}{}
	}
}

// together returns the rows of the other hosts taken together, and the name of the host with
// the latest of them.
func (r *Replica) together(key rowKey, w *row, now time.Time) (value []byte, name string) {
	if w == nil {
		return nil, ""
	}
	if key.bucket == memory.BansBucket {
		return r.togetherBan(key, w, now)
	}
	var values [][]byte
	var last Stamp
	for i := range w.registers {
		g := &w.registers[i]
		if g.origin.Name == r.self || g.value == "" || !r.counts(g) {
			continue
		}
		if values = append(values, []byte(g.value)); g.stamp > last {
			last, name = g.stamp, g.origin.Name
		}
	}
	return r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()), name
}

// togetherBan is together for bans. The name is empty if the ban is one of this host.
func (r *Replica) togetherBan(key rowKey, w *row, now time.Time) (value []byte, name string) {
	unban := r.unbanned(key)
	var own, revoked *register
	var values [][]byte
	var until int64
	for i := range w.registers {
		g := &w.registers[i]
		switch {
		case !r.counts(g) || g.value == "":
		case g.ban.Revoked:
			if g.stamp == unban {
				revoked = g
			}
		case g.seen < unban:
		case g.origin.Name == r.self:
			own = g
		case len(g.origin.minutes[minute(g.stamp)]) > r.limits.Bans:
		default:
			v := memory.LimitBan([]byte(g.value), r.limits.Duration, r.limits.Observe)
			if values = append(values, v); g.ban.Until > until {
				until, name = g.ban.Until, g.origin.Name
			}
		}
	}
	switch {
	case len(values) > 0:
		return r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()), name
	case own != nil:
		if w.sent == 0 {
			return nil, "" // the host has its own row
		}
		return []byte(own.value), ""
	case revoked != nil && revoked.origin.Name != r.self:
		return []byte(revoked.value), revoked.origin.Name
	}
	return nil, ""
}

// Drop removes everything that another host has said until now. It returns the number of
// rows and the mark that this host must keep.
func (r *Replica) Drop(name string, now time.Time) (rows int, mark Row) {
	o := r.host(name)
	rows = o.Rows
	mark = Row{Bucket: DropBucket, Key: name, Stamp: r.stamp(now)}
	r.put(r.hosts[r.self], &mark)
	return rows, mark
}

func (r *Replica) mark(name string, s Stamp) bool {
	o := r.host(name)
	if s <= o.mark {
		return false
	}
	o.mark, o.Omitted, o.Problem = s, 0, ""
	for key, w := range r.rows {
		if slices.ContainsFunc(w.registers, func(g register) bool { return g.origin == o }) {
			r.changed[key] = struct{}{}
		}
	}
	return true
}

// Rows returns the registers and marks of a host in no particular order.
func (r *Replica) Rows(name string) (out []Row) {
	for key, w := range r.rows {
		for i := range w.registers {
			if g := &w.registers[i]; g.origin.Name == name {
				out = append(out, Row{Bucket: key.bucket, Key: key.key, Stamp: g.stamp, Seen: g.seen, Value: g.value})
			}
		}
	}
	for _, o := range r.hosts {
		if name == r.self && o.mark > 0 {
			out = append(out, Row{Bucket: DropBucket, Key: o.Name, Stamp: o.mark})
		}
	}
	return out
}

// Expire deletes expired registers. It returns those of this host.
func (r *Replica) Expire(now time.Time) (own []Row) {
	deleted := At(now.Add(-keepDeleted))
	for key, w := range r.rows {
		w.registers = slices.DeleteFunc(w.registers, func(g register) bool {
			expired := g.value == "" && g.stamp < deleted || !r.counts(&g) ||
				g.value != "" && r.merger.Combine(key.bucket, []byte(key.key), [][]byte{[]byte(g.value)}, now.Unix()) == nil
			if !expired {
				return false
			}
			g.origin.Rows--
			r.total--
			r.count(key, &g, -1)
			if g.origin.Name == r.self {
				own = append(own, Row{Bucket: key.bucket, Key: key.key, Stamp: g.stamp})
			}
			r.changed[key] = struct{}{}
			return true
		})
		if len(w.registers) == 0 && w.sent == 0 {
			delete(r.rows, key)
			delete(r.changed, key)
		}
	}
	for name, o := range r.hosts {
		if o.Rows == 0 && o.mark == 0 && name != r.self && now.Sub(o.Last) > keepDeleted {
			delete(r.hosts, name)
		}
	}
	return own
}

// Len returns the number of registers of all hosts.
func (r *Replica) Len() int { return r.total }
