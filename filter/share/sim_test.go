package share

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
	"scanwatch/rules"
)

// A sim simulates hosts, each with a real memory and a real replica, and the service
// through which they exchange rows. The seed determines all random choices.
type sim struct {
	t     *testing.T
	seed  uint64
	rand  *rand.Rand
	now   time.Time
	nodes []*node
	skews bool // the hosts convert the times in rows
	jumps bool // clocks are wrong for some time
	pace  int  // maximum time between two events, in seconds
	whole bool // batches are no longer lost

	// The service holds a snapshot of each host's registers, and a stream of batches.
	epoch    int // changes if the service lost everything
	snapshot map[string]map[rowKey]Row
	stream   []batch
	trimmed  int // batches that the stream no longer holds

	events []event
	count  simCount
}

type simCount struct{ bans, unbans, restarts, banned, free int }

func (c *simCount) add(o simCount) {
	c.bans, c.unbans, c.restarts = c.bans+o.bans, c.unbans+o.unbans, c.restarts+o.restarts
	c.banned, c.free = c.banned+o.banned, c.free+o.free
}

type registerID struct {
	origin string
	key    rowKey
	stamp  Stamp
}

// An event is a ban or an unban, with the times that other hosts receive.
type event struct {
	prefix       netip.Prefix
	host         string
	unban        bool
	within       bool  // the unban is also of all hosts and networks in the prefix
	since, until int64 // since is the time of an unban
	unsaved      bool  // the ban is not on disk yet
	lost         bool  // the host may have lost the ban
}

type node struct {
	host
	jump    time.Duration // of a clock that is wrong for some time
	disk    map[string]kv.Entry
	pending []Row // not published yet
	epoch   int
	next    int // position in the stream
	away    int // steps for which the service cannot be reached
	dropped map[string]bool
	fresh   bool // the companion has just started
}

func (n *node) clock(now time.Time) time.Time { return now.Add(n.skew + n.jump) }

// skewed returns the difference between the node's clock and the true time, for the
// conversion of times.
func (s *sim) skewed(n *node) int64 {
	if !s.skews {
		return 0
	}
	return -int64((n.skew + n.jump) / time.Second)
}

// serviceTime is the time that the replica of n uses.
func (s *sim) serviceTime(n *node) time.Time {
	return n.clock(s.now).Add(time.Duration(s.skewed(n)) * time.Second)
}

const simKey = "0123456789abcdef"

func newSim(t *testing.T, seed uint64, hosts int) *sim {
	s := &sim{
		t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC),
		snapshot: map[string]map[rowKey]Row{},
	}
	s.skews, s.pace, s.jumps = s.rand.IntN(4) > 0, []int{3, 60, 1800}[s.rand.IntN(3)], s.rand.IntN(4) == 0
	for i := range hosts {
		n := &node{disk: map[string]kv.Entry{}, dropped: map[string]bool{}}
		n.name = fmt.Sprintf("mx%d", i)
		n.skew = time.Duration(s.rand.IntN(1201)-600) * time.Second
		n.disk["secret"] = kv.Entry{Bucket: "secret", Key: []byte("hash"), Value: []byte(simKey)}
		s.startFilter(n)
		s.startCompanion(n)
		s.nodes = append(s.nodes, n)
	}
	return s
}

// resync exchanges all rows after a correction of the clock, as package sharing does.
func (s *sim) resync(n *node) {
	n.memory.Announce()
	n.replica.Resend()
}

// startFilter starts a filter that has only the state on disk.
func (s *sim) startFilter(n *node) {
	for i := range s.events {
		if e := &s.events[i]; e.host == n.name && e.unsaved {
			e.unsaved, e.lost = false, true
		}
	}
	n.memory = memory.New()
	n.memory.UseKey([16]byte([]byte(simKey)))
	n.memory.UseName(n.name)
	n.memory.Counters.Watch([]rules.Window{simWindow, simSite})
	n.memory.Load(func(yield func(kv.Entry) bool) {
		if !yield(n.disk["secret"]) {
			return
		}
		if name, ok := n.disk["secret\x00name"]; ok && !yield(name) {
			return
		}
		for _, k := range slices.Sorted(maps.Keys(n.disk)) {
			if !strings.HasPrefix(k, "secret") && !yield(n.disk[k]) {
				return
			}
		}
	}, n.clock(s.now).UnixMicro())
	n.memory.Announce()
	if n.replica != nil {
		n.replica.Resend()
	}
}

// save writes the memory to disk.
func (s *sim) save(n *node) {
	for i := range s.events {
		if e := &s.events[i]; e.host == n.name {
			e.unsaved = false
		}
	}
	for _, e := range n.memory.Changes(1 << 20) {
		if k := e.Bucket + "\x00" + string(e.Key); e.Value == nil {
			delete(n.disk, k)
		} else if e.Bucket != "clock" {
			n.disk[k] = e
		}
	}
}

func (s *sim) startCompanion(n *node) {
	n.replica, n.pending, n.fresh, n.epoch = New(n.name, DefaultLimits()), nil, true, -1
	n.replica.Resend()
}

// apply passes registers to the replica.
func (s *sim) apply(n *node, origin string, rows []Row) {
	if err := n.replica.Apply(origin, rows, s.serviceTime(n)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sim) applySnapshot(n *node, origin string) {
	keys := slices.SortedFunc(maps.Keys(s.snapshot[origin]), compareKeys)
	rows := make([]Row, 0, len(keys))
	for _, k := range keys {
		rows = append(rows, s.snapshot[origin][k])
	}
	s.apply(n, origin, rows)
}

func compareKeys(a, b rowKey) int {
	if a.bucket != b.bucket {
		return map[bool]int{true: -1, false: 1}[a.bucket < b.bucket]
	}
	return map[bool]int{true: -1, false: 1}[a.key < b.key]
}

func (s *sim) publish(n *node, rows []Row) {
	own := s.snapshot[n.name]
	if own == nil {
		own = map[rowKey]Row{}
		s.snapshot[n.name] = own
	}
	for _, r := range rows {
		own[rowKey{r.Bucket, r.Key}] = r
	}
	if len(rows) > 0 {
		s.stream = append(s.stream, batch{n.name, rows})
	}
}

// loop runs one pass of n's companion process.
func (s *sim) loop(n *node) {
	now := s.serviceTime(n)
	reached := n.away == 0
	if !reached && n.fresh {
		return // cannot start without the snapshot
	}
	if reached {
		s.read(n)
	}
	if _, err := n.memory.Incoming(n.replica.Changed(1<<20, now), s.skewed(n), n.clock(s.now).UnixMicro()); err != nil {
		s.t.Fatal(err)
	}
	n.pending = append(n.pending, n.replica.Own(n.memory.Outgoing(1<<20, s.skewed(n)), now)...)
	if !reached {
		return
	}
	s.publish(n, n.pending)
	n.pending = nil
	if s.rand.IntN(20) == 0 {
		for _, r := range n.replica.Expire(now) {
			delete(s.snapshot[n.name], rowKey{r.Bucket, r.Key})
		}
	}
}

// read applies the batches that n has missed. Batches are lost, repeated and reordered.
func (s *sim) read(n *node) {
	if n.epoch != s.epoch || n.next < s.trimmed {
		if n.fresh {
			s.applySnapshot(n, n.name)
			n.memory.Announce()
			n.fresh = false
		} else if n.epoch != s.epoch {
			rows := n.replica.Rows(n.name)
			slices.SortFunc(rows, func(a, b Row) int { return compareKeys(rowKey{a.Bucket, a.Key}, rowKey{b.Bucket, b.Key}) })
			s.publish(n, rows)
		}
		n.epoch, n.next = s.epoch, s.trimmed+len(s.stream)
		s.readSnapshots(n)
		return
	}
	batches := slices.Clone(s.stream[n.next-s.trimmed:])
	n.next = s.trimmed + len(s.stream)
	if s.rand.IntN(4) == 0 {
		s.rand.Shuffle(len(batches), func(i, j int) { batches[i], batches[j] = batches[j], batches[i] })
	}
	for i, b := range batches {
		if b.origin == n.name || !s.whole && s.rand.IntN(50) == 0 {
			continue // lost
		}
		s.apply(n, b.origin, b.rows)
		if s.rand.IntN(20) == 0 {
			old := batches[s.rand.IntN(i+1)]
			s.apply(n, old.origin, old.rows)
		}
	}
	for _, name := range n.replica.Missed(s.serviceTime(n)) {
		s.applySnapshot(n, name)
	}
	if s.rand.IntN(100) == 0 {
		s.readSnapshots(n)
	}
}

func (s *sim) readSnapshots(n *node) {
	for _, o := range s.nodes {
		if o != n {
			s.applySnapshot(n, o.name)
		}
	}
}

var (
	simWindow = rules.Window{Evidence: rules.UnknownRecipient, Window: 24 * time.Hour, By: rules.BySrc}
	simSite   = rules.Window{Evidence: rules.UnknownRecipient, Window: time.Hour, By: rules.BySite}
)

var simClients = func() (list []*memory.Client) {
	for i := range 9 {
		list = append(list, &memory.Client{Addr: netip.AddrFrom4([4]byte{192, 0, byte(i % 3), byte(i)}), Helo: []byte("mail.example.net"), User: []byte{'a' + byte(i)}})
	}
	for i := range 3 {
		c := &memory.Client{Addr: netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::7", i%2+1)), Helo: []byte("mail.example.com"), User: []byte("carol")}
		if i > 0 {
			c.Domain = "example.com"
		}
		list = append(list, c)
	}
	return list
}()

var simNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.1.0/28"), netip.MustParsePrefix("2001:db8::/48")}

func banKey(p netip.Prefix) rowKey {
	return rowKey{memory.BansBucket, string(append([]byte{byte(p.Bits())}, p.Addr().AsSlice()...))}
}

func (s *sim) ban(n *node, c *memory.Client, at int64) {
	ladder := []time.Duration{0, 4 * time.Hour, 12 * time.Hour, 48 * time.Hour}
	s.banned(n, n.memory.Bans.Add(c, memory.BanRequest{Ladder: ladder[s.rand.IntN(2):], Rule: "harvest", Session: s.rand.Uint64()}, at))
}

func (s *sim) manual(n *node, p netip.Prefix, at int64) {
	if b, ok := n.memory.Bans.AddPrefix(p, time.Duration(1+s.rand.IntN(400))*6*time.Hour, "enough", at); ok {
		s.banned(n, b)
	}
}

// banned records a ban by n.
func (s *sim) banned(n *node, b memory.Ban) {
	skew := s.skewed(n)
	e := event{prefix: b.Prefix, host: n.name, since: b.Since.Unix() + skew, until: b.Until.Unix() + skew, unsaved: true}
	s.events = append(s.events, e)
	s.count.bans++
}

func (s *sim) unban(n *node, p netip.Prefix, at int64) {
	if p.Addr().Is6() && p.Bits() > 64 {
		p = netip.PrefixFrom(p.Addr(), 64).Masked()
	}
	within := p.Bits() < 32 && s.rand.IntN(2) == 0
	e := event{prefix: p, host: n.name, unban: true, within: within || p.Addr().Is6() && p.Bits() == 64, since: at/1e6 + s.skewed(n)}
	ended := n.memory.Bans.Revoke(p, within, at)
	for _, b := range ended {
		e.since = max(e.since, b.Until.Unix()+s.skewed(n))
		if b.Prefix != p {
			s.events = append(s.events, event{prefix: b.Prefix, host: n.name, unban: true, since: b.Until.Unix() + s.skewed(n)})
		}
	}
	n.memory.Bans.Disclaim(p, within, ended, at)
	n.memory.Forget(p)
	s.events = append(s.events, e)
	s.count.unbans++
	s.save(n) // the operator has seen the result
}

// act causes a random event on a random host.
func (s *sim) act() {
	n := s.nodes[s.rand.IntN(len(s.nodes))]
	at := n.clock(s.now).UnixMicro()
	c := simClients[s.rand.IntN(len(simClients))]
	network := simNetworks[s.rand.IntN(len(simNetworks))]
	rcpt := []byte{'r', '0' + byte(s.rand.IntN(8)), '@', 'x'}
	switch s.rand.IntN(13) {
	case 0, 1, 2:
		s.ban(n, c, at)
	case 3:
		s.manual(n, c.Host().Prefix(), at)
	case 4:
		s.manual(n, network, at)
	case 5, 6:
		s.unban(n, c.Host().Prefix(), at)
	case 7:
		s.unban(n, network, at)
	case 8:
		n.memory.Peers.Delivered(c, memory.Delivery{Messages: 1, Senders: []string{"example.com"}}, at)
	case 9:
		n.memory.Recipients.Refused(c, rcpt, at)
		n.memory.Counters.Add(c, rules.UnknownRecipient, at)
	case 10:
		n.memory.Recipients.Accepted(rcpt, at)
	case 11:
		n.memory.Logins.Failed(c, at)
	case 12:
		n.memory.Peers.WroteTo("example.com", at)
	}
}

// fail causes a random failure.
func (s *sim) fail() {
	n := s.nodes[s.rand.IntN(len(s.nodes))]
	switch s.rand.IntN(12) {
	case 0, 1:
		n.away = 1 + s.rand.IntN(20)
	case 2: // a partition hits half of the hosts
		for _, n := range s.nodes[:len(s.nodes)/2] {
			n.away = max(n.away, 5)
		}
	case 3, 4:
		// A deletion is lost if the service loses it before all hosts have read it, and
		// the companion loses it before sending it again.
		if n.epoch == s.epoch {
			s.startCompanion(n)
			s.count.restarts++
		}
	case 5, 6:
		if s.rand.IntN(2) == 0 {
			s.save(n)
		}
		s.startFilter(n)
		s.count.restarts++
	case 7:
		s.save(n)
	case 8:
		if s.rand.IntN(4) == 0 && !slices.ContainsFunc(s.nodes, func(n *node) bool { return n.fresh }) {
			s.epoch++
			clear(s.snapshot)
			s.trimmed += len(s.stream)
			s.stream = nil
		}
	case 9:
		s.trimmed += len(s.stream)
		s.stream = nil
	case 10, 11:
		if s.jumps {
			n.jump = time.Duration(s.rand.IntN(6*3600)-3*3600) * time.Second * time.Duration(s.rand.IntN(2))
			s.resync(n)
		}
	}
	if s.rand.IntN(60) == 0 {
		n.away = 1000 // until the end: more than a day
	}
	if other := s.nodes[s.rand.IntN(len(s.nodes))]; s.rand.IntN(40) == 0 && other != n && !n.fresh {
		_, mark := n.replica.Drop(other.name, s.serviceTime(n))
		n.pending = append(n.pending, mark)
		n.dropped[other.name] = true
	}
}

// run plays a number of steps, repairs all failures, and exchanges all rows.
func (s *sim) run(steps int) {
	for range steps {
		s.now = s.now.Add(time.Duration(s.rand.IntN(s.pace)) * time.Second)
		s.act()
		if s.rand.IntN(6) == 0 {
			s.fail()
		}
		for _, n := range s.nodes {
			if n.away = max(n.away-1, 0); s.rand.IntN(max(len(s.nodes)/8, 3)) == 0 {
				s.loop(n)
			}
		}
	}
	for _, n := range s.nodes {
		n.away, n.jump = 0, 0
		s.resync(n)
	}
	for range 3 {
		s.whole = true
		s.loopAll()
		s.now = s.now.Add(3 * time.Hour) // for rows from clocks that were ahead
	}
	for _, n := range s.nodes {
		s.readSnapshots(n)
		s.loop(n)
	}
	for range 5 { // a host may send an unban again when it receives an earlier ban
		s.loopAll()
	}
}

func (s *sim) loopAll() {
	for _, n := range s.nodes {
		s.loop(n)
	}
}

// check compares all hosts.
func (s *sim) check() {
	s.t.Helper()
	s.checkRegisters()
	prefixes := map[netip.Prefix]bool{}
	for _, e := range s.events {
		prefixes[e.prefix] = true
	}
	for _, p := range slices.SortedFunc(maps.Keys(prefixes), netip.Prefix.Compare) {
		s.checkBans(p)
	}
}

func (s *sim) errorf(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("seed %d, %d hosts: %s", s.seed, len(s.nodes), fmt.Sprintf(format, args...))
}

// checkRegisters checks that all replicas have the same registers, except expired
// registers.
func (s *sim) checkRegisters() {
	all := map[registerID]Row{}
	for _, n := range s.nodes {
		for key, w := range n.replica.rows {
			for _, g := range w.registers {
				if !n.dropped[g.origin.Name] {
					all[registerID{g.origin.Name, key, g.stamp}] = Row{key.bucket, key.key, g.stamp, g.value}
				}
			}
		}
	}
	later := s.now.Add(3 * time.Hour)
	for _, n := range s.nodes {
		for id, r := range all {
			g, ok := n.replica.register(id.key, n.replica.host(id.origin))
			expires := func(stamp Stamp, value string) bool {
				return value == "" && stamp < At(later.Add(-keepDeleted)) ||
					value != "" && n.replica.merger.Combine(r.Bucket, []byte(r.Key), [][]byte{[]byte(value)}, later.Unix()) == nil
			}
			switch {
			case n.dropped[id.origin] || expires(r.Stamp, r.Value):
			case (!ok || expires(g.stamp, g.value)) && r.Value == "": // a later row has expired
			case g.stamp != r.Stamp || g.value != r.Value:
				s.errorf("%s has %v %q of %s, another host %v %q, key %q %x", n.name, g.stamp.Time(), g.value, id.origin, r.Stamp.Time(), r.Value, r.Bucket, r.Key)
				return
			}
		}
	}
}

// checkBans checks that all hosts agree on a prefix. Unless clocks were wrong for some time, it also
// checks that exactly those bans are active that no unban has ended.
func (s *sim) checkBans(p netip.Prefix) {
	s.t.Helper()
	now := s.now.Unix()
	var unban int64
	for _, e := range s.events {
		if e.unban && (e.prefix == p || e.within && e.prefix.Bits() < p.Bits() && e.prefix.Contains(p.Addr())) {
			unban = max(unban, e.since)
		}
	}
	latest := map[string]event{}
	may, soon := false, false // a ban may be active; a ban ends about now
	for _, e := range s.events {
		if e.prefix != p || e.unban || e.since <= unban {
			continue
		}
		latest[e.host] = e
		may = may || e.until > now
		soon = soon || max(e.until-now, now-e.until) < 6*3600
	}
	must := false
	for _, e := range latest {
		must = must || !e.lost && e.until > now
	}
	states := map[bool]string{}
	for _, n := range s.nodes {
		if len(n.dropped) > 0 {
			continue
		}
		b, banned := n.memory.Bans.Enforced(p, n.clock(s.now).UnixMicro())
		states[banned] = fmt.Sprintf("%s %+v", n.name, b)
		if !s.jumps && !soon && (banned && !may || !banned && must) {
			s.errorf("%s: %v is banned: %t, may %t, must %t: %+v\n%s", n.name, p, banned, may, must, b, s.history(p))
			return
		}
		if banned {
			s.count.banned++
		} else {
			s.count.free++
		}
	}
	if len(states) == 2 && !soon {
		s.errorf("hosts do not agree on %v:\n%s\n%s\n%s", p, states[true], states[false], s.history(p))
	}
}

// history describes a prefix's events, and all hosts' registers.
func (s *sim) history(p netip.Prefix) string {
	var b strings.Builder
	for _, e := range s.events {
		if e.prefix.Overlaps(p) {
			fmt.Fprintf(&b, "%+v\n", e)
		}
	}
	key := banKey(p)
	for _, n := range s.nodes {
		for _, o := range s.nodes {
			if g, ok := n.replica.register(key, n.replica.host(o.name)); ok {
				fmt.Fprintf(&b, "%s has of %s: stamp %v %+v sent %t\n", n.name, o.name, g.stamp.Time(), g.ban, g.sent)
			}
		}
	}
	return b.String()
}

var simSeeds = flag.Int("sim.seeds", 60, "number of simulations")

// TestHosts checks that all hosts agree after any sequence of events and failures.
func TestHosts(t *testing.T) {
	var total simCount
	for seed := range uint64(*simSeeds) {
		s := newSim(t, seed, 5+int(seed%16))
		s.run(150)
		if s.check(); t.Failed() {
			t.FailNow()
		}
		total.add(s.count)
	}
	t.Logf("%+v", total)
}
