// Package share merges the rows of package memory that the hosts of a fleet send each
// other.
//
// Each host has its own copy of a row, called a register, and changes only this copy. A
// register with a later stamp replaces the same host's earlier one, so registers may
// arrive late, repeatedly and in any order. The merged row is computed from the
// registers of all hosts; see memory.Merger.
//
// Bans need an additional rule, because one host may unban a prefix that another host
// has banned. Each ban carries the stamp of the prefix's latest unban that the ban's
// host knew of at that time. The ban counts only if there is no later unban. An unban
// therefore ends all bans that were imposed without knowledge of any unban, even if a
// clock was wrong by a few hours. It ends no ban that started long after it; see
// memory.MayEnd. A host that knows of an unban is assumed to know of all unbans with
// earlier stamps. An unban's stamp is its own time, however late it is sent.
//
// A host whose ban another host has ended deletes its register, so that the ban cannot
// return when the unban is lost.
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
//     new ban, but other hosts may receive that ban only after maxAhead. An unban that ends no
//     ban on a host deletes the counts of a small network there, once an hour.
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
// 48 bits, and a counter in the lower 16. A stamp is later than all stamps of the same
// key that its host has received. Stamps of other keys have no influence, so a host
// whose clock is ahead does not advance the stamps of all rows.
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
	Seen        Stamp  // for a ban, the latest unban of the same prefix that the host knew
	Value       string // empty if the host has deleted the row
}

// DropBucket is the bucket of the marks that Drop sets. A mark's key is the dropped
// host's name.
const DropBucket = "drop"

// Limits restrict the effect of other hosts' registers.
type Limits struct {
	Rows  int // of one host in one table; a host does not send more
	Total int // of all hosts
	// Bans is the maximum number of a host's bans and offences that start within the
	// same minute. If a minute has more, none of its bans count.
	Bans     int
	Duration time.Duration // of a ban; a longer ban ends earlier
	Bits4    int           // minimum length of a banned IPv4 prefix
	Bits6    int           // minimum length of a banned IPv6 prefix
	Observe  bool          // other hosts' bans are not enforced
}

// DefaultLimits returns the limits used if nothing else is configured.
func DefaultLimits() Limits {
	return Limits{Rows: 50_000, Total: 1_000_000, Bans: 120, Duration: 30 * 24 * time.Hour, Bits4: 24, Bits6: 48}
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
	origin      *origin
	stamp, seen Stamp
	value       string
	ban         memory.BanRow // decoded value of a row in memory.BansBucket
	// sent is set if this host's memory has passed the row to this Replica. Other rows
	// in this host's name may be forged, and count like another host's rows.
	sent bool
}

// A row holds all hosts' registers with the same key.
type row struct {
	registers []register // sorted by name of the host
	sent      uint64     // hash of what Changed has returned, or unsent
	passed    Stamp      // latest unban that the host's memory knows
	own       bool       // the host's memory knows its own ban
}

// unsent is the value of row.sent if it is unknown which version of the row the memory
// has. dropped is the value if a host with the row was dropped, so that the memory may have
// deleted the row although another host has it.
const (
	unsent  = 1
	dropped = 2
)

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
	// holding is set from Resend until Complete.
	holding bool
	evicted map[rowKey]struct{} // rows of this host that the service no longer needs; see Expire
	crowded struct {
		problem string
		since   time.Time // time of the latest row that was not sent
	}
}

// changes contains keys of rows: bans, and all other rows.
type changes [2]map[rowKey]struct{}

func (c *changes) of(key rowKey) map[rowKey]struct{} {
	if key.bucket == memory.BansBucket {
		return c[0]
	}
	return c[1]
}

// New returns a Replica of the host with the given name.
func New(self string, l Limits) *Replica {
	r := &Replica{
		self: self, limits: l, merger: memory.NewMerger(), rows: make(map[rowKey]*row), others: make(map[string]int),
		hosts: make(map[string]*origin), changed: changes{make(map[rowKey]struct{}), make(map[rowKey]struct{})}, again: make(map[rowKey]struct{}), evicted: make(map[rowKey]struct{}), seed: maphash.MakeSeed(),
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

// Hosts returns the status of each other host, sorted by name.
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

// stamp returns a stamp that is later than all plausible stamps of the same key.
func (r *Replica) stamp(key rowKey, now time.Time) Stamp {
	s, latest := At(now), At(now.Add(maxOwnAhead))
	if w := r.rows[key]; w != nil {
		for i := range w.registers {
			if g := &w.registers[i]; g.stamp <= latest {
				s = max(s, g.stamp+1, g.seen+1)
			}
		}
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
				one := Row{Bucket: key.bucket, Key: key.key, Value: g.value, Stamp: r.stamp(key, now), Seen: min(g.seen, latest)}
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
// receive. Before the call, the memory must have processed all rows from Changed.
func (r *Replica) Own(entries []kv.Entry, now time.Time) []Row { return own(r, entries, now, false) }

// OwnAgain is like Own, but for a Replica that has lost its registers. The stamps of the
// unbans that this host knew of when it imposed a ban are unknown, so the ban is compared
// with unbans by its start time.
func (r *Replica) OwnAgain(entries []kv.Entry, now time.Time) []Row {
	return own(r, entries, now, true)
}

func own(r *Replica, entries []kv.Entry, now time.Time, fresh bool) (out []Row) {
	self := r.hosts[r.self]
	out = append(correct(r, now), repeat(r, now)...)
	for i := range entries {
		e := &entries[i]
		key := rowKey{e.Bucket, string(e.Key)}
		old, ok := r.register(key, self)
		ban := e.Bucket == memory.BansBucket
		switch {
		case ok && (old.value == string(e.Value) && (!fresh && !old.sent || !old.ended(r, key, now)) || old.sameUnban(e)):
			confirm(r, key)
		case !ok && len(e.Value) == 0:
		case !ok && !makeOwnRoom(r, self, e, now): // other hosts would omit it
		default:
			one := Row{Bucket: e.Bucket, Key: key.key, Value: string(e.Value), Stamp: r.stamp(key, now)}
			if ban {
				setSeen(r, key, &one, &old, fresh && !ok)
			}
			if r.put(self, &one, true) {
				out = append(out, one)
			}
		}
		if w := r.rows[key]; w != nil && ban {
			w.own = true
			returnBan(r, key, w, now)
		}
	}
	return out
}

// setSeen sets the latest unban that this host knew of when it imposed the ban in one. If the ban
// follows an unban of this host that was never sent, Seen becomes the stamp of that unban. If the
// registers were lost, Seen is at least the start of the ban. An unban gets a stamp from its time,
// because it may be sent much later, and must not end the bans that were imposed since then. A
// deletion keeps the unban that this host's previous register knew. old is that register.
func setSeen(r *Replica, key rowKey, one *Row, old *register, lost bool) {
	b, ok := memory.ReadBan([]byte(key.key), []byte(one.Value))
	switch {
	case !ok:
		one.Seen = old.known()
		return
	case b.Revoked:
		one.Seen = r.unbanned(key)
		one.Stamp = max(stampAt(r, key, b.Until), old.stamp+1)
		return
	}
	one.Seen = r.unbanned(key)
	if b.Unbanned != 0 && !old.sentUnban(&b) {
		one.Seen = max(one.Seen, stampAt(r, key, b.Unbanned))
	}
	if lost {
		one.Seen = max(one.Seen, At(time.Unix(b.Since, 0)))
	}
	one.Stamp = max(one.Stamp, one.Seen)
}

// ended reports whether an unban that the register does not include has ended its ban. If the memory
// has kept the ban, it knew the unban, and the other hosts must receive the ban again.
func (g *register) ended(r *Replica, key rowKey, now time.Time) bool {
	return g.isBan() && g.ban.Active(now.Unix()) && r.rows[key].ends(g)
}

// sameUnban reports whether the register of this host and a row hold the same unban. After a
// correction of the clock, its times have changed by the same amount. If it were sent again, it
// would end the bans that were imposed in between.
func (g *register) sameUnban(e *kv.Entry) bool {
	b, ok := memory.ReadBan(e.Key, e.Value)
	return ok && g.ban.Revoked && b.Revoked && g.ban.Session == b.Session && g.ban.Until-g.ban.Since == b.Until-b.Since
}

// sentUnban reports whether the register of this host contains the unban before the ban b. After
// a correction of the clock, the times of both have changed by the same amount.
func (g *register) sentUnban(b *memory.BanRow) bool {
	near := func(x, y int64) bool { return max(x-y, y-x) <= 2 } // times are converted between clocks
	if g.ban.Revoked {
		return near(g.ban.Until, b.Unbanned)
	}
	return g.ban.Unbanned != 0 && (near(g.ban.Unbanned, b.Unbanned) || near(g.ban.Since-g.ban.Unbanned, b.Since-b.Unbanned))
}

// stampAt returns a stamp for an unban at the given time, in seconds since 1970. It is later
// than the unbans that were known to the hosts of all earlier bans, even if their clocks are ahead.
func stampAt(r *Replica, key rowKey, at int64) Stamp {
	s := At(time.Unix(at, 0))
	if w := r.rows[key]; w != nil {
		for i := range w.registers {
			if g := &w.registers[i]; g.isBan() && g.ban.Since <= at {
				s = max(s, g.known()+1)
			}
		}
	}
	return s
}

// returnBan is called after the memory has sent a ban or an unban. Changed then returns the merged
// row again, because the memory may have deleted it after an unban, or ignored it until the unban
// was sent.
func returnBan(r *Replica, key rowKey, w *row, now time.Time) {
	if value, origin, _ := r.together(key, w, now); value != nil && origin == "" {
		w.sent = hash(r, value, origin)
		return
	}
	w.sent = unsent
	r.changed.of(key)[key] = struct{}{}
}

// confirm marks this host's register as sent by its memory.
func confirm(r *Replica, key rowKey) {
	for i := range r.rows[key].registers {
		if g := &r.rows[key].registers[i]; g.origin.Name == r.self && !g.sent {
			g.sent = true
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
		one := Row{Bucket: key.bucket, Key: key.key, Value: g.value, Stamp: r.stamp(key, now), Seen: g.seen}
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
	case one.Stamp > latest || one.Seen > latest:
		o.missed(max(one.Stamp, one.Seen))
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
	g := register{origin: o, stamp: one.Stamp, seen: one.Seen, value: one.Value, sent: sent}
	if one.Bucket == memory.BansBucket && one.Value != "" {
		g.ban, _ = memory.ReadBan([]byte(one.Key), []byte(one.Value))
	}
	w := r.rows[key]
	if w == nil {
		w = &row{sent: unsent}
		r.rows[key] = w
	}
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
	return cmp.Or(cmp.Compare(g.stamp, other.stamp), cmp.Compare(g.seen, other.seen), cmp.Compare(g.value, other.value)) < 0
}

// minute returns the minute in which the register's ban starts. The minute is not
// derived from the stamp, because a host that has lost its registers sends all its bans
// with new stamps.
func (g *register) minute() int64 { return g.ban.Since / 60 }

// count adds a ban to the set of bans that start in the same minute. If n is negative,
// count removes it. If the number crosses the limit, the rows of all bans from this
// minute are merged again.
func (r *Replica) count(key rowKey, g *register, n int) {
	o := g.origin
	if accepted, ok := memory.AcceptsMailbox(key.bucket, g.value); ok && !accepted {
		o.refused += n
	}
	if g.ban.Revoked {
		o.Unbans += n
	}
	if !g.isBan() || o.Name == r.self {
		return
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
func (g *register) isBan() bool { return g.ban.Prefix.IsValid() && !g.ban.Revoked }

// known returns the stamp of the latest unban that the register's host knew of or issued.
func (g *register) known() Stamp {
	if g.ban.Revoked {
		return g.stamp
	}
	return g.seen
}

// unban is like known, but returns no stamp that OwnAgain has derived from a ban's start
// time. There was no unban at that time, so earlier bans of other hosts remain.
func (g *register) unban() Stamp {
	if g.isBan() && g.seen == At(time.Unix(g.ban.Since, 0)) {
		return At(time.Unix(g.ban.Unbanned, 0))
	}
	return g.known()
}

// ends reports whether an unban in the row has ended a ban.
func (w *row) ends(ban *register) bool {
	return slices.ContainsFunc(w.registers, func(g register) bool {
		unban := g.unban()
		at := unban.Time().Unix()
		if g.ban.Revoked {
			at = g.ban.Until // the stamp is later if the unban was sent again
		}
		return unban > ban.seen && memory.MayEnd(ban.ban.Since, at)
	})
}

// unbanned returns the stamp of a prefix's latest unban. If the host that unbanned the
// prefix has deleted the row, the deletion's register still has the stamp.
func (r *Replica) unbanned(key rowKey) (s Stamp) {
	if w := r.rows[key]; w != nil {
		for i := range w.registers {
			s = max(s, w.registers[i].unban())
		}
	}
	return s
}

// Changed returns up to n merged rows of the other hosts that have changed, or n+1. Bans come
// last, so that the standing of their clients is known when they take effect. now is the current
// time. A ban that this host imposed, but has lost, is returned without an Origin. Between Resend
// and Complete, Changed does not return bans that this host imposed.
func (r *Replica) Changed(n int, now time.Time) (out []memory.Foreign) {
	selective(r)
	out = changed(r, r.changed[1], n, now)
	return append(out, changed(r, r.changed[0], n-len(out), now)...)
}

func changed(r *Replica, keys map[rowKey]struct{}, n int, now time.Time) (out []memory.Foreign) {
	for key := range keys {
		if len(out) >= n {
			return out
		}
		w := r.rows[key]
		value, origin, own := r.together(key, w, now)
		if r.holding && echo(r, key, value, origin) {
			if pass(r, key, w) { // the memory may be from a backup, and send a ban that was ended
				e := kv.Entry{Bucket: key.bucket, Key: []byte(key.key)}
				out = append(out, memory.Foreign{Entry: e, Origin: r.self, Ended: true, Seen: r.unbanned(key).Time().Unix()})
			}
			continue
		}
		if own == nil || w.own || !r.holding {
			delete(keys, key)
		}
		sent, ended := w.sent, pass(r, key, w)
		w.sent = hash(r, value, origin)
		add := func(value []byte, origin string, ended bool) {
			e := kv.Entry{Bucket: key.bucket, Key: []byte(key.key), Value: value}
			seen := w.seen()
			if ended && value == nil {
				seen = r.unbanned(key)
			}
			out = append(out, memory.Foreign{Entry: e, Origin: origin, Ended: ended, Seen: seen.Time().Unix()})
		}
		switch {
		case value == nil && sent == unsent && !ended && !w.shared(r.self):
		case w.sent != sent || ended:
			add(value, origin, ended)
		}
		if own != nil && !w.own && !r.holding {
			w.own = true
			add(own, "", false)
		}
	}
	return out
}

// pass reports whether there is an unban later than any that the memory knows of, and
// records that the memory now knows of it.
func pass(r *Replica, key rowKey, w *row) (ended bool) {
	own, _ := r.register(key, r.hosts[r.self])
	if !w.own { // the memory may be from a backup that precedes the unban
		own = register{}
	}
	unban := r.unbanned(key)
	ended = unban > max(w.passed, own.known())
	w.passed = unban
	return ended
}

// seen returns the stamp of the latest unban that was known to a host when it imposed a
// ban, or 0.
func (w *row) seen() (s Stamp) {
	for i := range w.registers {
		if g := &w.registers[i]; g.isBan() {
			s = max(s, g.unban())
		}
	}
	return s
}

// hash returns a row's hash, which never equals unsent or dropped. The hash of a row without a
// value is 0.
func hash(r *Replica, value []byte, origin string) uint64 {
	if value == nil {
		return 0
	}
	return max(maphash.String(r.seed, origin+"\x00"+string(value)), dropped+1)
}

// shared reports whether the row has other hosts' registers.
func (w *row) shared(self string) bool {
	return w != nil && slices.ContainsFunc(w.registers, func(g register) bool { return g.origin.Name != self })
}

// echo reports whether a row is a ban in the name of this host. Its memory may have imposed the
// ban, so the memory must send its rows first.
func echo(r *Replica, key rowKey, value []byte, origin string) bool {
	if key.bucket != memory.BansBucket || value == nil || origin != r.self {
		return false
	}
	b, _ := memory.ReadBan([]byte(key.key), value)
	return !b.Revoked
}

// Complete is called after Resend as soon as the host's memory has sent all its rows.
// If the memory has lost some of this host's bans, Changed then returns them.
func (r *Replica) Complete() { r.holding = false }

// Resend causes Changed to return all rows again. Resend is called if the memory has
// lost its rows.
func (r *Replica) Resend() {
	r.holding = true
	for key, w := range r.rows {
		w.sent, w.passed, w.own = unsent, 0, false
		r.changed.of(key)[key] = struct{}{}
	}
}

// together returns the merged row of the other hosts, the name of the host with the latest
// register, and the ban that this host imposed, if any.
func (r *Replica) together(key rowKey, w *row, now time.Time) (value []byte, name string, own []byte) {
	if key.bucket == memory.BansBucket {
		return r.togetherBan(key, w, now)
	}
	var values [][]byte
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
	return r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()), name, nil
}

// togetherBan is together for bans. The merged row is an unban if no ban remains in effect after
// the merge. name is empty if this host made the unban.
func (r *Replica) togetherBan(key rowKey, w *row, now time.Time) (value []byte, name string, own []byte) {
	unban := r.unbanned(key)
	var revoked *register
	var values [][]byte
	var until int64
	for i := range w.registers {
		g := &w.registers[i]
		if unban != 0 && g.unban() == unban && (revoked == nil || g.ban.Revoked) {
			revoked = g
		}
		switch {
		case !g.isBan():
		case w.ends(g):
		case mine(r, g):
			own = []byte(g.value)
		case len(g.origin.minutes[g.minute()]) > r.limits.Bans:
		default:
			v := memory.LimitBan([]byte(g.value), r.limits.Duration, r.limits.Observe)
			b, _ := memory.ReadBan([]byte(key.key), v)
			if values = append(values, v); b.Until > until {
				until, name = b.Until, g.origin.Name
			}
		}
	}
	if value = r.merger.Combine(key.bucket, []byte(key.key), values, now.Unix()); value != nil {
		return value, name, own
	}
	switch {
	case own != nil || revoked == nil || !revoked.ban.Revoked:
		return nil, "", own
	case mine(r, revoked):
		return []byte(revoked.value), "", nil
	}
	return []byte(revoked.value), revoked.origin.Name, nil
}

// mine reports whether a register is from this host's memory.
func mine(r *Replica, g *register) bool { return g.origin.Name == r.self && g.sent }

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
		displaced := key.bucket == memory.BansBucket && w.sent > dropped // possibly, by the bans of o
		if len(w.registers) < before || displaced {
			w.sent = dropped
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

// Expire deletes expired registers, and returns this host's registers among them.
func (r *Replica) Expire(now time.Time) (own []Row) {
	deleted := At(now.Add(-keepDeleted))
	for key, w := range r.rows {
		needed := w.neededUnban(now)
		r.remove(key, w, func(g *register) bool {
			expired := g.value == "" && g.stamp < deleted ||
				g.value != "" && r.merger.Combine(key.bucket, []byte(key.key), [][]byte{[]byte(g.value)}, now.Unix()) == nil
			if !expired || g.unban() > needed {
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

// neededUnban returns the earliest Seen stamp of the row's active bans. Unbans with
// later stamps must be kept, because the bans would otherwise take effect again.
func (w *row) neededUnban(now time.Time) Stamp {
	seen := Stamp(math.MaxUint64)
	for i := range w.registers {
		if g := &w.registers[i]; g.isBan() && g.ban.Active(now.Unix()) {
			seen = min(seen, g.seen)
		}
	}
	return seen
}

// Len returns the number of registers of all hosts.
func (r *Replica) Len() int { return r.total }
