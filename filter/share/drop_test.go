package share

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// TestDropKeepsOwn checks that another host's longer ban affects no ban of this host, and that
// nothing is sent when that host is dropped: the earlier bans remain on all hosts.
func TestDropKeepsOwn(t *testing.T) {
	client := &memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprint(prefix, " restarted ", restarted), func(t *testing.T) {
				p := netip.MustParsePrefix(prefix)
				f := newFleet(t, "mx1", "mx2", "mx3")
				one, two, three := f.hosts[0], f.hosts[1], f.hosts[2]
				for _, h := range f.hosts {
					h.memory.UseName(h.name)
				}
				if p.IsSingleIP() {
					f.ban(one, "192.0.2.1")
				} else {
					one.memory.Bans.AddPrefix(p, time.Hour, "harvest", f.now.UnixMicro())
				}
				f.exchange()
				f.now = f.now.Add(time.Minute)
				two.memory.Bans.AddPrefix(p, 3*time.Hour, "longer", f.now.UnixMicro())
				f.exchange()
				bans := func(h *host, want ...string) {
					t.Helper()
					var got []string
					for _, b := range h.memory.Bans.Banned(client, f.now.UnixMicro()) {
						got = append(got, b.Rule+b.On())
					}
					if !slices.Equal(got, want) {
						t.Errorf("%s: %q, want %q", h.name, got, want)
					}
				}
				bans(one, "harvest", "longer on mx2")
				bans(three, "longer on mx2")
				if restarted { // the companion reads its rows from the server
					fresh := New("mx1", DefaultLimits())
					for _, name := range []string{"mx1", "mx2", "mx3"} {
						if err := fresh.Apply(name, one.replica.Rows(name), f.now); err != nil {
							t.Fatal(err)
						}
					}
					one.replica = fresh
					one.replica.Resend()
					f.receive(one)
					one.memory.Announce()
					one.replica.Own(one.memory.Outgoing(1000, 0), f.now)
					f.receive(one)
					bans(one, "harvest", "longer on mx2")
				}
				for _, h := range []*host{three, one} {
					h.memory.Disown("mx2")
					bans(one, map[bool][]string{true: {"harvest"}, false: {"harvest", "longer on mx2"}}[h == one]...)
					h.replica.Drop("mx2", f.now)
					f.exchange()
				}
				bans(one, "harvest")
				bans(three, "harvest on mx1")
				if rows := f.send(one); len(rows) > 0 {
					t.Errorf("sent: %+v", rows)
				}
				f.now = f.now.Add(90 * time.Minute)
				f.ban(one, "192.0.2.1")
				if b, _ := first(one.memory.Bans.Banned(client, f.now.UnixMicro())); p.IsSingleIP() && b.Times != 2 {
					t.Errorf("the second offence: %+v", b)
				}
			})
		}
	}
}

// TestWithdrawnListing checks that if a listing is withdrawn on one host, that host's
// ban based on the listing ends on all hosts, and no other host's ban ends.
func TestWithdrawnListing(t *testing.T) {
	client := &memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}
	for _, length := range []time.Duration{time.Hour, 7 * 24 * time.Hour} {
		for _, other := range []bool{false, true} {
			t.Run(fmt.Sprint(length, " other ban ", other), func(t *testing.T) {
				f := newFleet(t, "mx1", "mx2", "mx3")
				if other {
					f.ban(f.hosts[1], "192.0.2.1")
					f.exchange()
				}
				at := f.now.UnixMicro()
				f.hosts[0].memory.Bans.Add(client, memory.BanRequest{Ladder: []time.Duration{length}, Rule: "listed", Session: 8, Listed: true}, at)
				f.exchange()
				f.exchange()
				f.now = f.now.Add(time.Minute)
				f.hosts[0].memory.Bans.RevokeListed(client.Addr, func(memory.Ban) bool { return true }, f.now.UnixMicro())
				f.exchange()
				f.exchange()
				for _, h := range f.hosts {
					if b, ok := h.banned(f.now, "192.0.2.1"); ok != other || ok && b.Rule != "harvest" {
						t.Errorf("%s: %v %+v", h.name, ok, b)
					}
				}
			})
		}
	}
}

// TestDropEndsUnbans checks that the bans which a dropped host had ended return, and that no host
// sends that host's unbans in its own name.
func TestDropEndsUnbans(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64"} {
		for _, how := range []string{"unban", "unban and new ban"} {
			t.Run(prefix+" "+how, func(t *testing.T) {
				p := netip.MustParsePrefix(prefix)
				f := newFleet(t, "mx1", "mx2", "mx9")
				one, two, evil := f.hosts[0], f.hosts[1], f.hosts[2]
				for _, h := range f.hosts {
					h.memory.UseName(h.name)
					h.memory.UseKey([16]byte{1})
				}
				two.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
				if how == "unban and new ban" {
					one.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
				}
				f.exchange()
				f.exchange()
				f.now = f.now.Add(time.Minute)
				evil.memory.Bans.Revoke(p, false, f.now.UnixMicro())
				evil.memory.Bans.Disclaim(p, false, nil, f.now.UnixMicro())
				if how == "unban and new ban" {
					evil.memory.Bans.AddPrefix(p, time.Minute, "x", f.now.Add(time.Second).UnixMicro())
				}
				rows := f.send(evil) // mx2 ignores them
				one.inbox = append(one.inbox, batch{evil.name, rows})
				f.receive(one)
				f.now = f.now.Add(2 * time.Minute)
				enforced := func(h *host, want bool, when string) {
					t.Helper()
					if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); ok != want {
						t.Errorf("%s %s: banned %v", h.name, when, ok)
					}
				}
				enforced(one, false, "after the unban")
				one.replica.Drop(evil.name, f.now)
				one.memory.Disown(evil.name)
				f.hosts = f.hosts[:2]
				for range 3 {
					f.now = f.now.Add(time.Second)
					f.exchange()
				}
				enforced(one, true, "after the drop")
				enforced(two, true, "after the drop")
			})
		}
	}
}

// TestDropReturnsDisplaced checks that the bans which a dropped host had displaced from a full table
// return.
func TestDropReturnsDisplaced(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx9")
	one, two, evil := f.hosts[0], f.hosts[1], f.hosts[2]
	one.memory.Limit(1) // 100 bans
	prefix := func(net, i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(net), byte(i)}), 32)
	}
	for i := range 50 {
		two.memory.Bans.AddPrefix(prefix(2, i), time.Hour, "x", f.now.UnixMicro())
	}
	f.exchange()
	for i := range 200 {
		evil.memory.Bans.AddPrefix(prefix(3, i), 24*time.Hour, "x", f.now.Add(-time.Duration(i/100)*time.Minute).UnixMicro())
	}
	f.exchange()
	count := func() (n int) {
		for i := range 50 {
			if _, ok := one.memory.Bans.Enforced(prefix(2, i), f.now.UnixMicro()); ok {
				n++
			}
		}
		return n
	}
	if n := count(); n == 50 {
		t.Fatal("no ban was displaced")
	}
	one.replica.Drop("mx9", f.now)
	one.memory.Disown("mx9")
	f.exchange()
	if n := count(); n != 50 {
		t.Errorf("%d of 50 bans after the drop", n)
	}
}
