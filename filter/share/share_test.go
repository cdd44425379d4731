package share

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
)

// A fleet is a set of hosts that receive each other's rows.
type fleet struct {
	t     *testing.T
	now   time.Time
	hosts []*host
}

type host struct {
	name    string
	memory  *memory.Memory
	replica *Replica
	skew    time.Duration // its clock minus the right time
	known   bool          // skew is known, so that times are converted
	inbox   []batch
}

type batch struct {
	origin string
	rows   []Row
}

func newFleet(t *testing.T, names ...string) *fleet {
	f := &fleet{t: t, now: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)}
	for _, name := range names {
		h := &host{name: name, memory: memory.New(), replica: New(name, DefaultLimits())}
		h.memory.Announce()
		f.hosts = append(f.hosts, h)
	}
	return f
}

func (h *host) clock(now time.Time) time.Time { return now.Add(h.skew) }

// stored returns the rows that a filter has saved, in the order in which it reads them.
func stored(m *memory.Memory) []kv.Entry {
	disk := m.Changes(1 << 20)
	slices.SortStableFunc(disk, func(a, b kv.Entry) int {
		return slices.Index(memory.Buckets(), a.Bucket) - slices.Index(memory.Buckets(), b.Bucket)
	})
	return disk
}

// restore restarts h's filter with the given saved rows.
func (f *fleet) restore(h *host, disk []kv.Entry) {
	h.memory = memory.New()
	h.memory.UseName(h.name)
	h.memory.Load(slices.Values(disk), h.clock(f.now).UnixMicro())
	h.memory.Announce()
}

// service returns the time that the replica uses, and its difference from the host's clock in seconds.
func (h *host) service(now time.Time) (at time.Time, skew int64) {
	if h.known {
		return now, -int64(h.skew / time.Second)
	}
	return h.clock(now), 0
}

// restartCompanion replaces h's replica by one that has read h's registers from the service.
func (f *fleet) restartCompanion(h *host) {
	rows := h.replica.Rows(h.name)
	h.replica = New(h.name, DefaultLimits())
	if err := h.replica.Apply(h.name, rows, f.now); err != nil {
		f.t.Fatal(err)
	}
}

// receive passes the other hosts' rows to h's memory.
func (f *fleet) receive(h *host) {
	at, skew := h.service(f.now)
	for _, b := range h.inbox {
		if err := h.replica.Apply(b.origin, b.rows, at); err != nil {
			f.t.Fatal(err)
		}
	}
	h.inbox = nil
	if _, err := h.memory.Incoming(h.replica.Changed(1<<20, at), skew, h.clock(f.now).UnixMicro()); err != nil {
		f.t.Fatal(err)
	}
}

// send returns h's changed rows.
func (f *fleet) send(h *host) []Row {
	at, skew := h.service(f.now)
	return h.replica.Own(h.memory.Outgoing(1<<20, skew), at)
}

// exchange delivers all rows to all hosts.
func (f *fleet) exchange() {
	for _, h := range f.hosts {
		f.receive(h)
		if rows := f.send(h); len(rows) > 0 {
			for _, other := range f.hosts {
				if other != h {
					other.inbox = append(other.inbox, batch{h.name, rows})
				}
			}
		}
	}
	for _, h := range f.hosts {
		f.receive(h)
	}
}

func (f *fleet) ban(h *host, addr string) {
	at := h.clock(f.now).UnixMicro()
	h.memory.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(addr)}, memory.BanRequest{Ladder: []time.Duration{time.Hour, 24 * time.Hour}, Rule: "harvest", Session: uint64(f.now.UnixNano())}, at)
}

func (f *fleet) unban(h *host, addr string) {
	p := netip.PrefixFrom(netip.MustParseAddr(addr), netip.MustParseAddr(addr).BitLen())
	h.memory.Bans.Revoke(p, false, h.clock(f.now).UnixMicro())
}

func (h *host) banned(now time.Time, addr string) (memory.Ban, bool) {
	a := netip.MustParseAddr(addr)
	return h.memory.Bans.Enforced(netip.PrefixFrom(a, a.BitLen()), h.clock(now).UnixMicro())
}

func TestBanAndUnban(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	f.hosts[1].skew, f.hosts[2].skew = 5*time.Minute, -7*time.Minute
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	for _, h := range f.hosts {
		b, ok := h.banned(f.now, "192.0.2.1")
		if !ok || b.Rule != "harvest" || (h.name != "mx1") != (b.Origin == "mx1") {
			t.Fatalf("%s: %+v %v", h.name, b, ok)
		}
	}
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[2], "192.0.2.1")
	f.exchange()
	f.exchange()
	for _, h := range f.hosts {
		if b, ok := h.banned(f.now, "192.0.2.1"); ok {
			t.Fatalf("%s: %+v", h.name, b)
		}
	}
	f.now = f.now.Add(time.Minute)
	f.ban(f.hosts[1], "192.0.2.1") // a later offence
	f.exchange()
	for _, h := range f.hosts {
		if _, ok := h.banned(f.now, "192.0.2.1"); !ok {
			t.Fatal(h.name, "lost the later ban")
		}
	}
}

// TestWideUnban checks that an unban ends another host's ban even if the banned network
// is larger than other hosts may ban, and that an unban of a range ends the bans in it.
func TestWideUnban(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	for _, h := range f.hosts {
		h.memory.UseKey([16]byte{1})
	}
	wide := netip.MustParsePrefix("198.51.0.0/16")
	mx1, mx2 := f.hosts[0], f.hosts[1]
	mx1.memory.Bans.AddPrefix(wide, time.Hour, "x", f.now.UnixMicro())
	mx1.memory.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "x", f.now.UnixMicro())
	f.ban(mx1, "192.0.2.1")
	f.now = f.now.Add(time.Minute)
	mx2.memory.Bans.Disclaim(wide, false, nil, f.now.UnixMicro())
	mx2.memory.Bans.Disclaim(netip.MustParsePrefix("192.0.0.0/16"), true, nil, f.now.UnixMicro())
	f.now = f.now.Add(time.Second)
	for range 3 {
		f.exchange()
	}
	for _, h := range f.hosts {
		h.memory.Bans.Each(func(b memory.Ban) {
			if !b.Expired(f.now) {
				t.Errorf("%s: %+v", h.name, b)
			}
		})
		for _, o := range h.replica.Hosts() {
			if o.Problem != "" && o.Name != "mx1" { // which has banned a /16
				t.Errorf("%s: %+v", h.name, o)
			}
		}
	}
	f.ban(mx1, "192.0.2.1") // a later offence
	f.exchange()
	for _, h := range f.hosts {
		if _, ok := h.banned(f.now, "192.0.2.1"); !ok {
			t.Error(h.name, "lost the later ban")
		}
	}
}

// TestServerLosesUnban checks that hosts that know of an unban keep it in effect even
// if the server and the replicas have lost it and the host that issued it is not
// running.
func TestServerLosesUnban(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	old := f.hosts[0].replica.Rows("mx1") // a backup of the server
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[1], "192.0.2.1")
	f.exchange()
	f.exchange()
	f.now = f.now.Add(time.Minute)
	for _, h := range []*host{f.hosts[0], f.hosts[2]} {
		h.replica = New(h.name, DefaultLimits())
		h.inbox = []batch{{"mx1", old}}
		f.receive(h)
		h.memory.Announce()
		f.send(h)
		if b, ok := h.banned(f.now, "192.0.2.1"); ok {
			t.Errorf("%s: %+v", h.name, b)
		}
	}
}

// TestUnbanUnknownToHost checks that if a host has missed an unban and lost its
// registers, its ban does not take effect again on a host that knows of the unban.
func TestUnbanUnknownToHost(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx1, mx3 := f.hosts[0], f.hosts[2]
	f.ban(mx1, "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[1], "192.0.2.1")
	mx3.inbox = []batch{{"mx2", f.send(f.hosts[1])}}
	f.receive(mx3)
	mx1.replica, mx3.replica = New("mx1", DefaultLimits()), New("mx3", DefaultLimits())
	mx1.memory.Announce()
	mx3.inbox = []batch{{"mx1", mx1.replica.Own(mx1.memory.Outgoing(1000, 0), f.now)}}
	f.receive(mx3)
	if b, ok := mx3.banned(f.now, "192.0.2.1"); ok {
		t.Errorf("%+v", b)
	}
}

// TestOwnRows checks that a host sends its bans even if its table is full.
func TestOwnRows(t *testing.T) {
	l := DefaultLimits()
	l.Rows = 10
	r := New("mx1", l)
	m := memory.New()
	m.Announce()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for i := range 50 {
		m.Recipients.Accepted(fmt.Appendf(nil, "u%d@example.org", i), now.UnixMicro())
	}
	if n := len(r.Own(m.Outgoing(1000, 0), now)); n != l.Rows {
		t.Errorf("%d rows of a table with 50 are sent", n)
	}
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "harvest"}, now.UnixMicro())
	if n := len(r.Own(m.Outgoing(1000, 0), now)); n != 1 {
		t.Errorf("%d bans are sent", n)
	}
}

// TestForged checks that rows that another host forges in this host's name have no more
// effect than that host's own rows.
func TestForged(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	forger := memory.New()
	forger.Announce()
	forger.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.1/32"), 400*24*time.Hour, "forged", now.UnixMicro())
	forger.Bans.AddPrefix(netip.MustParsePrefix("192.0.0.0/8"), time.Hour, "forged", now.UnixMicro())
	forged := New("mx1", DefaultLimits()).Own(forger.Outgoing(100, 0), now)
	r := New("mx1", DefaultLimits())
	if err := r.Apply("mx1", forged, now); err != nil {
		t.Fatal(err)
	}
	rows := r.Changed(100, now)
	if len(rows) != 1 || rows[0].Origin != "mx1" {
		t.Fatalf("%+v", rows)
	}
	if b, ok := memory.ReadBan(rows[0].Key, rows[0].Value); !ok || b.Until > now.Add(DefaultLimits().Duration).Unix() {
		t.Errorf("%+v", b)
	}

	m := memory.New()
	m.Announce()
	m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.1/32"), time.Hour, "ours", now.UnixMicro())
	r = New("mx1", DefaultLimits())
	r.Own(m.Outgoing(100, 0), now)
	for i := range forged {
		forged[i].Stamp = At(now.Add(time.Minute))
	}
	if err := r.Apply("mx1", forged, now); err != nil {
		t.Fatal(err)
	}
	if rows := r.Changed(100, now); len(rows) != 0 {
		t.Errorf("the forged row replaces that of this host: %+v", rows)
	}
	again := r.Own(nil, now)
	if len(again) != 1 || again[0].Stamp <= forged[0].Stamp {
		t.Fatalf("%+v", again)
	}
	if b, _ := memory.ReadBan([]byte(again[0].Key), []byte(again[0].Value)); b.Rule != "ours" {
		t.Errorf("%+v", b)
	}
}

// TestLostRegisters restarts the service and a companion, both of which lose all
// registers.
func TestLostRegisters(t *testing.T) {
	f := newFleet(t, "mx1", "mx2")
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[1], "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	a, b := f.hosts[0], f.hosts[1]
	a.replica = New("mx1", DefaultLimits())
	a.memory.Announce()
	b.inbox = append(b.inbox, batch{"mx1", a.replica.Own(a.memory.Outgoing(1000, 0), f.now)})
	a.inbox = append(a.inbox, batch{"mx2", b.replica.Rows("mx2")}) // mx2 sends all its rows again
	f.exchange()
	for _, h := range f.hosts {
		if _, ok := h.banned(f.now, "192.0.2.1"); !ok {
			t.Errorf("%s has lost the ban", h.name)
		}
	}
}

// TestReturning bans a client on one host again after another host has unbanned it,
// while the client keeps connecting to the other host.
func TestReturning(t *testing.T) {
	f := newFleet(t, "mx1", "mx2")
	client := &memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	f.unban(f.hosts[1], "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.ban(f.hosts[0], "192.0.2.1")
	for range 3 {
		f.hosts[1].memory.Bans.Banned(client, f.now.UnixMicro())
		f.receive(f.hosts[1])
		f.send(f.hosts[1])
		rows := f.send(f.hosts[0])
		f.hosts[1].inbox = append(f.hosts[1].inbox, batch{"mx1", rows})
		f.hosts[1].memory.Bans.Banned(client, f.now.UnixMicro()) // between the transmissions
		f.receive(f.hosts[1])
	}
	if _, ok := f.hosts[1].banned(f.now, "192.0.2.1"); !ok {
		t.Error("the client escapes the ban")
	}
}

// first returns the first ban, if any.
func first(list []memory.Ban) (b memory.Ban, ok bool) {
	if len(list) == 0 {
		return b, false
	}
	return list[0], true
}

// TestNameOfLimitedBan checks that a merged ban names the host whose ban ends last after the limit on
// the duration of bans.
func TestNameOfLimitedBan(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	f := newFleet(t, "mx1", "mx2", "mx3")
	f.hosts[0].memory.Bans.AddPrefix(p, 365*24*time.Hour, "year", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(31 * 24 * time.Hour)
	f.hosts[1].memory.Bans.AddPrefix(p, 24*time.Hour, "day", f.now.UnixMicro())
	f.exchange()
	if b, ok := f.hosts[2].memory.Bans.Enforced(p, f.now.UnixMicro()); !ok || b.Origin != "mx2" || b.Rule != "day" {
		t.Errorf("%+v %v", b, ok)
	}
}
