// Package share merges the rows of package memory that the hosts of a fleet send each
// other.
//
// Each host has its own copy of a row, called a register, and changes only this copy. A
// register with a later stamp replaces the same host's earlier one, so registers may
// arrive late, repeatedly and in any order. The merged row is computed from the
// registers of all hosts; see memory.Merger.
//
// Bans need an additional rule, because one host may unban a prefix that another host
// has banned. The register of a ban or an unban contains the time of the host's latest
// unban of the prefix. The latest of these times, over all hosts, ends all bans that
// started no later. A host lets its bans start after the unbans that it knows, and its
// unbans are not earlier than the bans that it knows. The times of the hosts'
// clocks are converted to the clock of the service. After a correction of a host's clock, a
// ban that was imposed soon after an unban of the same prefix may therefore be lost. An unban
// still ends the ban that its host knew, because both have the same session.
//
// A host sends a ban that another host has ended as a ban of no length, so that the ban
// cannot return when the unban is lost.
//
// A host that sends false rows cannot affect other hosts' friends, users and clients
// with standing; see package decide. Its bans have no effect until this standing is
// known, and firewalls include them only after a rejection here; see
// memory.Bans.Rejected. Until the operator drops the host, it can still do the
// following:
//
//   - It can ban as many unknown clients as Limits.Rows allows, for Limits.Duration,
//     because it chooses the times of its bans.
//   - It can revoke the bans of all hosts, even whole ranges. Later offences lead to a
//     new ban. An unban that ends no ban on a host deletes the counts of a small network
//     there, once an hour.
//   - It can let clients be known, but not trusted. Bans of other hosts then do not apply to
//     an attacker.
//   - It can let mailboxes exist on another host, so that no mailbox counts as probed and one
//     rejected recipient of a client a day does not count.
//   - It can triple the counts of clients with more than memory.Alone events, and let
//     mailboxes be probed that a single other network has requested.
//   - It can displace rows of hosts that have more rows than it has, but none of this host
//     except short bans.
//
// If a host's clock is ahead by more than maxAhead, its rows, except rows of clients, are
// omitted until their time has come. If a host loses its registers while the service that carries them
// loses its copy, deletions that some hosts have not received are lost.
package share

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
)

// A Stamp is the time of a hybrid logical clock: milliseconds since 1970 in the upper
// 48 bits, and a counter in the lower 16. A stamp is later than the host's earlier
// stamps of the same key, even if its clock has been set back.
type Stamp uint64

// At returns the earliest stamp with the given time.
func At(t time.Time) Stamp { return Stamp(max(t.UnixMilli(), 0)) << 16 }

// Time returns the stamp's time, which is not earlier than the time on the host's
// clock.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// A Row is a host's register as sent to other hosts.
type Row struct {
	Bucket, Key string
	Stamp       Stamp  // time of the latest change
	Value       string // empty if the host has deleted the row
}

// DropBucket is the bucket of the marks that Drop sets. A mark's key is the dropped
// host's name.
const DropBucket = "drop"

// Limits restrict the effect of other hosts' registers.
type Limits struct {
	Rows    int // of one host in one table; a host does not send more
	Clients int // like Rows, but for clients with a standing
	Total   int // of all hosts
	// Bans is the maximum number of a host's bans that are imposed within the same
	// minute. If a minute has more, none of its bans count.
	Bans     int
	Duration time.Duration // of a ban; a longer ban ends earlier
	Bits4    int           // minimum length of a banned IPv4 prefix
	Bits6    int           // minimum length of a banned IPv6 prefix
	Observe  bool          // other hosts' bans are not enforced
}

// DefaultLimits returns the limits used if nothing else is configured.
func DefaultLimits() Limits {
	return Limits{Rows: 50_000, Clients: 100_000, Total: 1_000_000, Bans: 120, Duration: 30 * 24 * time.Hour, Bits4: 24, Bits6: 48}
}

// rows returns the maximum number of a host's rows in a bucket.
func (l *Limits) rows(bucket string) int {
	if bucket == memory.PeersBucket {
		return l.Clients
	}
	return l.Rows
}

const (
	// maxAhead is the maximum amount of time that another host's clock may be ahead
	// of this host's. Two clocks that are wrong by ten minutes can be twenty
	// minutes apart.
	maxAhead = 30 * time.Minute
	// maxOwnAhead is the maximum time by which this host's stamps, and the stamps of
	// other hosts' clients, may be ahead of its clock. If the clock is set back by more, the rows get new stamps. If it is set
	// back by less, other hosts omit the rows until the time of their stamps; see
	// Missed.
	maxOwnAhead = 24 * time.Hour
	// keepDeleted is the retention period of deleted rows. They are kept so that an
	// earlier register that arrives late does not restore them.
	keepDeleted = 48 * time.Hour
	// keepProblem is the time during which the omission of a host's rows is
	// reported.
	keepProblem = time.Hour
	// minRefused is the number of missing mailboxes after which a host's accepted mailboxes
	// count. A host that accepts all recipients, such as a backup server, has none.
	minRefused = 20
	maxValue   = 128
	maxKey     = 256
	maxName    = 64
)

type rowKey struct{ bucket, key string }

// A register is one host's copy of a row.
type register struct {
	origin *origin
	stamp  Stamp
	value  string
	ban    *memory.BanRow // decoded value of a row in memory.BansBucket, or noBan
	// mine is set if this host's memory has passed the row to this Replica. Other rows
	// in this host's name may be forged, and count like another host's rows. sent is
	// mine, unless the memory may have lost the row since then; see Resend.
	mine, sent bool
}

// noBan is the ban of a register without a ban or unban, so that most registers need less memory.
var noBan memory.BanRow

// A row holds all hosts' registers with the same key.
type row struct {
	registers []register // sorted by name of the host
	sent      uint64     // hash of what Changed has returned, or unsent
	held      bool       // the memory may have a merged row of the other hosts
}

// unsent is the value of row.sent if it is unknown which version of the row the memory
// has.
const unsent = 1

// origin is a host whose registers the Replica holds.
type origin struct {
	HostStatus
	tables  map[string]int                // rows by bucket
	minutes map[int64]map[rowKey]struct{} // keys of bans by the minute of their start
	last    Stamp                         // latest stamp
	claimed Stamp                         // latest stamp, also of omitted rows
	mark    Stamp                         // earlier registers do not count; see Drop
	ahead   Stamp                         // earliest stamp that was omitted because it was in the future
	heard   time.Time                     // time of the latest call of Apply
	wrong   time.Time                     // time of the latest omission
	victims map[string]*victims           // by bucket; see evict
	short   bool                          // rows are missing because all hosts together have too many
	refused int                           // rows of mailboxes that have never accepted mail
	selects bool                          // mailboxes that the host accepts count; see selective
}

// Values of HostStatus.By.
const (
	ByServer = "server"
	ByFile   = "file"
)

// HostStatus describes another host.
type HostStatus struct {
	Name string `json:"name"`
	Rows int    `json:"rows"`
	// Unbans is the number of these rows that are unbans. A large number may be the
	// work of an attacker who wants to end bans.
	Unbans int       `json:"unbans,omitempty"`
	Last   time.Time `json:"last,omitzero"` // latest stamp
	// Heard is the time at which the host was last known to be running, or the time
	// of its file. By is how its rows arrived: ByServer, ByFile or, if it is
	// unknown, "".
	Heard time.Time `json:"heard,omitzero"`
	By    string    `json:"by,omitempty"`
	// Omitted is the number of rows that exceeded the limits or were invalid. Problem
	// is the reason for the latest omission. Both are cleared after an hour without
	// further omissions.
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
	others  map[string]int // rows with registers of other hosts, by bucket
	room    map[string]int // maximum of others; see Room
	hosts   map[string]*origin
	changed changes             // rows that Changed must compute
	again   map[rowKey]struct{} // keys of rows of this host that must be sent again
	seed    maphash.Seed
	evicted map[rowKey]struct{} // rows of this host that the service no longer needs; see Expire
	crowded crowded             // see Crowded
}

// changes contains keys of rows in the order in which Changed returns them: unbans of ranges and
// standing must be known when bans arrive.
type changes struct{ ranges, rows, bans map[rowKey]struct{} }

func (c *changes) of(key rowKey) map[rowKey]struct{} {
	switch {
	case key.bucket != memory.BansBucket:
		return c.rows
	case memory.IsRange([]byte(key.key)):
		return c.ranges
	}
	return c.bans
}

// New returns a Replica of the host with the given name.
func New(self string, l Limits) *Replica {
	r := &Replica{
		self: self, limits: l, merger: memory.NewMerger(), rows: make(map[rowKey]*row), others: make(map[string]int),
		hosts: make(map[string]*origin), changed: changes{make(map[rowKey]struct{}), make(map[rowKey]struct{}), make(map[rowKey]struct{})}, again: make(map[rowKey]struct{}), evicted: make(map[rowKey]struct{}), seed: maphash.MakeSeed(),
	}
	r.host(self)
	return r
}

// ValidName reports whether name is a valid name for a host.
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
		o = &origin{HostStatus: HostStatus{Name: name}, tables: make(map[string]int), minutes: make(map[int64]map[rowKey]struct{})}
		r.hosts[name] = o
	}
	return o
}

// Hosts returns the status of every other host, sorted by name.
func (r *Replica) Hosts() (list []HostStatus) {
	for name, o := range r.hosts {
		if name != r.self {
			if o.Last = o.last.Time(); o.last == 0 {
				o.Last = time.Time{}
			}
			list = append(list, o.HostStatus)
		}
	}
	slices.SortFunc(list, func(a, b HostStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// stamp returns a stamp that is later than this host's plausible stamp of the same key.
func (r *Replica) stamp(key rowKey, now time.Time) Stamp {
	s := At(now)
	if g, _ := r.register(key, r.hosts[r.self]); g.stamp <= At(now.Add(maxOwnAhead)) {
		s = max(s, g.stamp+1)
	}
	return s
}

// correct removes registers whose stamps are too far in the future, because this host's
// clock was wrong. This host's registers get new stamps and are returned, because other
// hosts have omitted them. Other hosts' registers are removed because they would take
// precedence over the same hosts' later registers.
func correct(r *Replica, now time.Time) (out []Row) {
	latest := At(now.Add(maxOwnAhead))
	for _, o := range r.hosts {
		if o.last <= latest {
			continue
		}
		o.last = latest
		for key, w := range r.rows {
			g, _ := r.register(key, o)
			if g.stamp <= latest {
				continue
			}
			r.remove(key, w, func(g *register) bool { return g.origin == o })
			if o.Name == r.self {
				one := Row{Bucket: key.bucket, Key: key.key, Value: g.value, Stamp: r.stamp(key, now)}
				r.put(o, &one, g.sent)
				out = append(out, one)
			}
		}
	}
	return out
}

// remove deletes the registers of a row for which del returns true.
func (r *Replica) remove(key rowKey, w *row, del func(*register) bool) {
	if w.shared(r.self) {
		defer func() {
			if !w.shared(r.self) {
				r.others[key.bucket]--
			}
		}()
	}
	w.registers = slices.DeleteFunc(w.registers, func(g register) bool {
		if !del(&g) {
			return false
		}
		g.origin.Rows--
		g.origin.tables[key.bucket]--
		r.total--
		r.count(key, &g, -1)
		r.changed.of(key)[key] = struct{}{}
		return true
	})
}

// Own records this host's changed rows, and returns the registers that other hosts must
// receive.
func (r *Replica) Own(entries []kv.Entry, now time.Time) []Row {
	self := r.hosts[r.self]
	out := append(correct(r, now), repeat(r, now)...)
	for i := range entries {
		e := &entries[i]
		key := rowKey{e.Bucket, string(e.Key)}
		old, ok := r.register(key, self)
		switch {
		case ok && old.value == string(e.Value):
			confirm(r, key)
		case !ok && len(e.Value) == 0:
			r.crowded.remove(key)
		case !ok && !makeOwnRoom(r, self, e, now): // other hosts would omit it
		default:
			one := Row{Bucket: e.Bucket, Key: key.key, Value: string(e.Value), Stamp: r.stamp(key, now)}
			if r.put(self, &one, true) {
				out = append(out, one)
			}
		}
	}
	return out
}

// confirm marks this host's register as sent by its memory.
func confirm(r *Replica, key rowKey) {
	for i := range r.rows[key].registers {
		if g := &r.rows[key].registers[i]; g.origin.Name == r.self && !g.sent {
			g.mine, g.sent = true, true
			r.changed.of(key)[key] = struct{}{}
		}
	}
}

// repeat returns this host's rows for which a different register in its name
// was received; see disputed.
func repeat(r *Replica, now time.Time) (out []Row) {
	self := r.hosts[r.self]
	for key := range r.again {
		delete(r.again, key)
		g, _ := r.register(key, self)
		one := Row{Bucket: key.bucket, Key: key.key, Value: g.value, Stamp: r.stamp(key, now)}
		if r.put(self, &one, true) {
			out = append(out, one)
		}
	}
	return out
}

// Apply records registers received from a host. Registers in this host's name restore
// lost ones. Registers that exceed the limits are omitted and counted. Apply returns an
// error if the host's name is invalid or there are too many hosts.
func (r *Replica) Apply(name string, rows []Row, now time.Time) error {
	if !ValidName(name) {
		return fmt.Errorf("%.80q is not the name of a host", name)
	}
	if r.hosts[name] == nil && len(r.hosts) >= maxHosts {
		return fmt.Errorf("more than %d hosts", maxHosts)
	}
	o := r.host(name)
	o.heard = now
	for i := range rows {
		one := &rows[i]
		isMark := one.Bucket == DropBucket
		if isMark && name != r.self { // concerns only that host
			continue
		}
		if !isMark {
			o.claimed = max(o.claimed, one.Stamp)
		}
		if !isMark && one.Stamp <= o.mark {
			if o.mark > At(now.Add(maxAhead)) { // the host's rows will be omitted for a long time
				o.omit("dropped; rows are omitted until "+o.mark.Time().Format(time.DateTime)+" UTC", now)
			}
			continue
		}
		problem := r.implausible(o, one, now)
		if problem == "" {
			problem = makeRoom(r, o, one, now)
		}
		if problem != "" {
			o.omit(problem, now)
			continue
		}
		if o.Name == r.self && disputed(r, one) {
			continue
		}
		r.put(o, one, false)
	}
	return nil
}

// disputed reports whether this host's own memory has sent the row, so that the
// received register must be ignored. If the two differ, the row is sent again with a
// later stamp; see Own.
func disputed(r *Replica, one *Row) bool {
	key := rowKey{one.Bucket, one.Key}
	w := r.rows[key]
	if w == nil {
		return false
	}
	for i := range w.registers {
		if g := &w.registers[i]; mine(r, g) {
			if one.Stamp >= g.stamp && one.Value != g.value {
				g.stamp = one.Stamp
				r.again[key] = struct{}{}
			}
			return true
		}
	}
	return false
}

func (o *origin) omit(problem string, now time.Time) {
	o.Omitted++
	o.Problem, o.wrong = problem, now
}

func (o *origin) missed(s Stamp) {
	if o.ahead == 0 || s < o.ahead {
		o.ahead = s
	}
}

// Missed returns the hosts whose registers were omitted, but can be accepted now,
// because their time has come or because there is room. All registers of these hosts
// must be applied again.
func (r *Replica) Missed(now time.Time) (names []string) {
	for name, o := range r.hosts {
		if o.ahead != 0 && o.ahead <= At(now.Add(maxAhead)) || o.short && roomy(r) {
			if o.ahead <= At(now.Add(maxAhead)) {
				o.ahead = 0
			}
			o.short = false
			names = append(names, name)
		}
	}
	return names
}

const maxHosts = 1000

// implausible returns why a register must be omitted, or "".
func (r *Replica) implausible(o *origin, one *Row, now time.Time) string {
	ahead := maxAhead
	if o.Name == r.self || one.Bucket == memory.PeersBucket {
		ahead = maxOwnAhead // a client with a standing must not be rejected because a clock was wrong
	}
	latest := At(now.Add(ahead))
	switch {
	case one.Bucket == DropBucket && o.Name == r.self && ValidName(one.Key):
		return "" // may be far ahead; see Drop
	case len(one.Key) > maxKey || len(one.Value) > maxValue || !r.merger.ValidKey(one.Bucket, []byte(one.Key)):
		return "invalid rows"
	case one.Stamp > latest:
		o.missed(one.Stamp)
		return fmt.Sprintf("times more than %v in the future", ahead)
	case one.Value != "" && !r.merger.Valid(one.Bucket, []byte(one.Key), []byte(one.Value), math.MaxUint32):
		return "invalid rows"
	case one.Value != "" && !r.merger.Valid(one.Bucket, []byte(one.Key), []byte(one.Value), now.Add(ahead).Unix()):
		o.missed(At(now.Add(ahead + time.Hour))) // the time for which the row must wait is unknown
		return fmt.Sprintf("times more than %v in the future", ahead)
	}
	if one.Bucket != memory.BansBucket || one.Value == "" {
		return ""
	}
	ban, _ := memory.ReadBan([]byte(one.Key), []byte(one.Value))
	if !ban.Revoked && ban.Prefix.Bits() < r.limits.narrowest(ban.Prefix) {
		return fmt.Sprintf("bans of networks larger than /%d", r.limits.narrowest(ban.Prefix))
	}
	return ""
}

// narrowest returns the minimum length of a banned prefix.
func (l *Limits) narrowest(p netip.Prefix) int {
	if p.Addr().Is4() {
		return l.Bits4
	}
	return l.Bits6
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

// put sets a register unless there is a later one, and reports whether it did. If a
// host wrongly sends two registers with the same stamp, all hosts choose the same one.
func (r *Replica) put(o *origin, one *Row, sent bool) bool {
	if one.Bucket == DropBucket {
		return r.mark(one.Key, one.Stamp)
	}
	o.last = max(o.last, one.Stamp)
	key := rowKey{one.Bucket, one.Key}
	g := register{origin: o, stamp: one.Stamp, value: one.Value, ban: &noBan, mine: sent, sent: sent}
	if one.Bucket == memory.BansBucket && one.Value != "" {
		b, _ := memory.ReadBan([]byte(one.Key), []byte(one.Value))
		g.ban = &b
	}
	w := r.rows[key]
	if w == nil {
		w = &row{sent: unsent}
		r.rows[key] = w
	}
	w.held = w.held || w.sent == unsent && !sent
	i, found := slices.BinarySearchFunc(w.registers, o.Name, func(g register, name string) int { return cmp.Compare(g.origin.Name, name) })
	switch {
	case !found:
		if o.Name != r.self && !w.shared(r.self) {
			r.others[key.bucket]++
		}
		w.registers = slices.Insert(w.registers, i, g)
		o.Rows++
		o.tables[key.bucket]++
		r.total++
	case !w.registers[i].before(&g):
		return false
	default:
		r.count(key, &w.registers[i], -1)
		w.registers[i] = g
	}
	r.count(key, &g, 1)
	r.changed.of(key)[key] = struct{}{}
	return true
}

// before reports whether other replaces the register.
func (g *register) before(other *register) bool {
	return cmp.Or(cmp.Compare(g.stamp, other.stamp), cmp.Compare(g.value, other.value)) < 0
}

// minute returns the minute in which the register's ban was imposed. This is not the
// minute of the stamp, because a host that has lost its registers sends all its bans with
// new stamps. If the ban starts later, because it follows an unban whose host's clock is
// ahead, the stamp gives the minute.
func (g *register) minute() int64 { return min(g.ban.Since, g.stamp.Time().Unix()) / 60 }

// count adds a ban to the set of bans that start in the same minute. If n is negative,
// count removes it. If the number crosses the limit, the rows of all bans from this
// minute are merged again.
func (r *Replica) count(key rowKey, g *register, n int) {
	o := g.origin
	if accepted, ok := memory.AcceptsMailbox(key.bucket, g.value); ok && !accepted {
		o.refused += n
	}
	if g.ban.Unbanned != 0 {
		o.Unbans += n
	}
	if !g.isBan() || g.ban.Until <= g.ban.Since || o.Name == r.self {
		return // a ban of no length has no effect
	}
	m := g.minute()
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
	if after && n > 0 {
		if o.Omitted++; !before {
			o.Omitted += r.limits.Bans
		}
		o.Problem, o.wrong = fmt.Sprintf("more than %d bans within a minute", r.limits.Bans), o.heard
	}
	if after != before {
		for key := range bans {
			r.changed.of(key)[key] = struct{}{}
		}
	}
}

// selective finds out which hosts have shown that they refuse unknown recipients. If
// that has changed for a host, its mailbox rows must be computed again.
func selective(r *Replica) {
	other := make(map[*origin]bool)
	for _, o := range r.hosts {
		if selects := o.refused >= minRefused; selects != o.selects {
			o.selects, other[o] = selects, true
		}
	}
	if len(other) == 0 {
		return
	}
	for key, w := range r.rows {
		for i := range w.registers {
			if g := &w.registers[i]; other[g.origin] && g.accepted(key) {
				r.changed.of(key)[key] = struct{}{}
			}
		}
	}
}

// accepted reports whether the register is about a mailbox that its host accepts.
func (g *register) accepted(key rowKey) bool {
	accepted, _ := memory.AcceptsMailbox(key.bucket, g.value)
	return accepted
}

// isBan reports whether the register holds a ban or an offence, rather than an unban or
// some other kind of row.
func (g *register) isBan() bool { return g.ban != nil && g.ban.Prefix.IsValid() && !g.ban.Revoked }

// Changed returns merged rows of the other hosts that have changed, for n keys, or fewer if no
// more have changed. Bans come last, so that the standing of their clients is known when they take
// effect. For a ban, up to three rows are returned: the latest unban, the merged ban, and the row of
// this host if its memory has not sent it. now is the current time.
func (r *Replica) Changed(n int, now time.Time) (out []memory.Foreign) {
	selective(r)
	for _, keys := range []map[rowKey]struct{}{r.changed.ranges, r.changed.rows, r.changed.bans} {
		for key := range keys {
			if n == 0 {
				return out
			}
			delete(keys, key)
			if rows := changed(r, key, now); len(rows) > 0 {
				out = append(out, rows...)
				n--
			}
		}
	}
	return out
}

// changed returns the merged rows of a key, or nil if the memory has them.
func changed(r *Replica, key rowKey, now time.Time) []memory.Foreign {
	w := r.rows[key]
	rows := r.together(key, w, now)
	sent, held := w.sent, w.held
	w.held = slices.ContainsFunc(rows, func(m merged) bool { return m.replaces })
	if w.sent = hash(r, rows); w.sent == sent {
		return nil
	}
	list := make([]memory.Foreign, 0, len(rows)+1)
	add := func(m merged) {
		e := kv.Entry{Bucket: key.bucket, Key: []byte(key.key), Value: m.value}
		list = append(list, memory.Foreign{Entry: e, Origin: m.origin})
	}
	for _, m := range rows {
		add(m)
	}
	if held && !w.held {
		add(merged{})
	}
	return list
}

// merged is a row for the memory.
type merged struct {
	value    []byte
	origin   string // empty for this host's own row
	replaces bool   // the row is the merged row of the other hosts
	// again is the stamp of this host's ban if the row is an unban that ends it. The memory may have
	// received the unban before the times of the ban changed with a correction of the clock.
	again Stamp
}

// hash returns the hash of rows, which never equals unsent. The hash of no rows is 0.
func hash(r *Replica, rows []merged) uint64 {
	if len(rows) == 0 {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(r.seed)
	for _, m := range rows {
		_, _ = h.WriteString(m.origin)
		_, _ = h.Write(m.value)
		end := [...]uint64{uint64(len(m.origin)), uint64(len(m.value)), uint64(m.again), 0}
		if m.replaces {
			end[3] = 1
		}
		for _, n := range end {
			_, _ = h.Write(binary.NativeEndian.AppendUint64(nil, n))
		}
	}
	return max(h.Sum64(), unsent+1)
}

// shared reports whether the row has other hosts' registers.
func (w *row) shared(self string) bool {
	return w != nil && slices.ContainsFunc(w.registers, func(g register) bool { return g.origin.Name != self })
}

// Resend causes Changed to return all rows again. Resend is called if the memory may have
// lost rows. It must then send its own rows again.
func (r *Replica) Resend() {
	for key, w := range r.rows {
		w.sent, w.held = unsent, false
		for i := range w.registers {
			g := &w.registers[i]
			g.sent = false
			w.held = w.held || !mine(r, g)
		}
		r.changed.of(key)[key] = struct{}{}
	}
}

// together returns the merged rows of a key for the memory.
func (r *Replica) together(key rowKey, w *row, now time.Time) (rows []merged) {
	if key.bucket == memory.BansBucket {
		return r.togetherBan(key, w, now)
	}
	var values [][]byte
	var name string
	var last Stamp
	for i := range w.registers {
		g := &w.registers[i]
		if g.origin.Name == r.self || g.value == "" || g.accepted(key) && !g.origin.selects {
			continue
		}
		if values = append(values, []byte(g.value)); g.stamp > last {
			last, name = g.stamp, g.origin.Name
		}
	}
	if value := r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()); value != nil {
		rows = append(rows, merged{value: value, origin: name, replaces: true})
	}
	return rows
}

// togetherBan is together for bans.
func (r *Replica) togetherBan(key rowKey, w *row, now time.Time) (rows []merged) {
	latest := w.unban()
	own, _ := r.register(key, r.hosts[r.self])
	if latest != nil && latest.origin.Name != r.self { // this host's own register follows if the memory has not sent it
		// An earlier unban may end this host's ban by its session, if the latest does not.
		chosen := latest
		for i := range w.registers {
			if g := &w.registers[i]; own.isBan() && !own.ban.EndedBy(latest.ban) && g.origin.Name != r.self && own.ban.EndedBy(g.ban) {
				chosen = g
			}
		}
		unban := merged{value: memory.Unban([]byte(key.key), []byte(chosen.value)), origin: chosen.origin.Name}
		if own.isBan() && own.ban.EndedBy(chosen.ban) {
			unban.again = own.stamp
		}
		rows = append(rows, unban)
	}
	var values [][]byte
	var name string
	var until int64
	for i := range w.registers {
		g := &w.registers[i]
		switch {
		case !g.isBan() || g.origin.Name == r.self && g.mine || slices.ContainsFunc(w.registers, func(u register) bool { return g.ban.EndedBy(u.ban) }):
		case g.ban.Until > g.ban.Since && len(g.origin.minutes[g.minute()]) > r.limits.Bans:
		default:
			v := memory.LimitBan([]byte(g.value), r.limits.Duration, r.limits.Observe)
			b, _ := memory.ReadBan([]byte(key.key), v)
			if values = append(values, v); b.Until > until {
				until, name = b.Until, g.origin.Name
			}
		}
	}
	if value := r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()); value != nil {
		rows = append(rows, merged{value: value, origin: name, replaces: true})
	}
	if own.value != "" && !own.sent && (own.mine || !own.isBan()) {
		rows = append(rows, merged{value: []byte(own.value)})
	}
	return rows
}

// unban returns the register with the latest unban, or nil if there is none.
func (w *row) unban() (latest *register) {
	for i := range w.registers {
		if g := &w.registers[i]; g.ban.Unbanned != 0 && (latest == nil || g.ban.Unbanned > latest.ban.Unbanned) {
			latest = g
		}
	}
	return latest
}

// mine reports whether a register is from this host's memory.
func mine(r *Replica, g *register) bool { return g.origin.Name == r.self && g.mine }

// Drop removes all rows received from another host. Drop returns the number of rows and
// the mark that this host must keep. The mark also covers omitted rows with a stamp in
// the future, which would otherwise count later. Until that time, new rows from the
// host do not count either, because they cannot be distinguished from the dropped ones.
func (r *Replica) Drop(name string, now time.Time) (rows int, mark Row) {
	if name == r.self {
		return 0, Row{}
	}
	o := r.host(name)
	rows = o.Rows
	mark = Row{Bucket: DropBucket, Key: name, Stamp: max(At(now), o.last, o.claimed)}
	r.mark(name, mark.Stamp)
	return rows, mark
}

func (r *Replica) mark(name string, s Stamp) bool {
	o := r.host(name)
	if s <= o.mark {
		return false
	}
	o.mark, o.Omitted, o.Problem, o.ahead = s, 0, "", 0
	for key, w := range r.rows {
		before := len(w.registers)
		r.remove(key, w, func(g *register) bool { return g.origin == o && g.stamp <= s })
		if len(w.registers) < before || key.bucket == memory.BansBucket { // a ban of o, even of a network, may have displaced others
			w.sent, w.held = unsent, true
			r.changed.of(key)[key] = struct{}{}
		}
	}
	return true
}

// Rows returns a host's registers in no particular order. For this host, it also
// returns the marks that Drop has set.
func (r *Replica) Rows(name string) (out []Row) {
	for key, w := range r.rows {
		for i := range w.registers {
			if g := &w.registers[i]; g.origin.Name == name {
				out = append(out, Row{Bucket: key.bucket, Key: key.key, Stamp: g.stamp, Value: g.value})
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

// Expire deletes expired registers, and returns this host's registers among them.
func (r *Replica) Expire(now time.Time) (own []Row) {
	deleted := At(now.Add(-keepDeleted))
	for key, w := range r.rows {
		r.remove(key, w, func(g *register) bool {
			expired := g.value == "" && g.stamp < deleted ||
				g.value != "" && r.merger.Combine(key.bucket, []byte(key.key), [][]byte{[]byte(g.value)}, now.Unix()) == nil
			if !expired {
				return false
			}
			if g.origin.Name == r.self {
				own = append(own, Row{Bucket: key.bucket, Key: key.key, Stamp: g.stamp})
			}
			return true
		})
		if len(w.registers) == 0 && w.sent == 0 {
			delete(r.rows, key)
			delete(r.changed.of(key), key)
		}
	}
	for key := range r.evicted {
		if _, again := r.register(key, r.hosts[r.self]); !again {
			own = append(own, Row{Bucket: key.bucket, Key: key.key})
		}
	}
	clear(r.evicted)
	for name, o := range r.hosts {
		if now.Sub(o.wrong) > keepProblem {
			o.Omitted, o.Problem = 0, ""
		}
		if o.Rows == 0 && o.mark == 0 && name != r.self && now.Sub(o.heard) > keepDeleted {
			delete(r.hosts, name)
		}
	}
	return own
}

// needs reports whether an active ban would return without the unban in a register.
func (w *row) needs(unban *register, now time.Time) bool {
	return slices.ContainsFunc(w.registers, func(g register) bool {
		return g.isBan() && g.ban.Active(now.Unix()) && g.ban.EndedBy(unban.ban)
	})
}

// Len returns the number of registers of all hosts.
func (r *Replica) Len() int { return r.total }
