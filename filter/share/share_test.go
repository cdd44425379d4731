package share

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/memory"
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

// receive hands the rows of other hosts to the memory of h.
func (f *fleet) receive(h *host) {
	for _, b := range h.inbox {
		if err := h.replica.Apply(b.origin, b.rows, h.clock(f.now)); err != nil {
			f.t.Fatal(err)
		}
	}
	h.inbox = nil
	if err := h.memory.Incoming(h.replica.Changed(1<<20, h.clock(f.now)), 0, h.clock(f.now).UnixMicro()); err != nil {
		f.t.Fatal(err)
	}
}

// send returns the changed rows of h.
func (f *fleet) send(h *host) []Row {
	return h.replica.Own(h.memory.Outgoing(1<<20, 0), h.clock(f.now))
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
	h.memory.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(addr)}, memory.BanRequest{Ladder: []time.Duration{time.Hour, 24 * time.Hour}, Rule: "harvest", Session: 7}, at)
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

// TestOwnRows checks that a full table does not keep a host from sending its bans.
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
