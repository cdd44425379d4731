package memory

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/rules"
)

const day = 24 * time.Hour

// TestAbusersEvictNoSender checks that rows about abusive hosts do not evict a host
// that sends one message a year.
func TestAbusersEvictNoSender(t *testing.T) {
	m := New()
	yearly := who("192.0.2.1")
	m.Peers.Delivered(yearly, Delivery{Messages: 12}, at(0))
	n := 0
	for d := range 150 { // 3,000 new hosts a day send HTTP
		for range 3000 {
			n++
			m.Peers.Misbehaved(&Client{Addr: netip.AddrFrom4([4]byte{100, byte(n >> 16), byte(n >> 8), byte(n)})}, at(time.Duration(d)*day))
		}
	}
	if m.Peers.Standing(yearly, at(151*day)).Level != rules.StandingKnown {
		t.Errorf("evicted 151 days after its mail; %+v", m.Peers.rows.status())
	}
}

// TestBansMergeWithDisk checks that a stored observed ban does not replace an enforced
// one, and that the count of offences is kept.
func TestBansMergeWithDisk(t *testing.T) {
	a := who("203.0.113.5")
	old := New()
	old.Bans.Add(a, BanRequest{Ladder: []time.Duration{30 * day}, Rule: "x", Observe: true}, at(0))
	d := disk{}
	d.take(old)
	m := New()
	m.Bans.Add(a, BanRequest{Ladder: []time.Duration{day}, Rule: "y"}, at(time.Hour))
	d.load(m, at(2*time.Hour))
	if b, ok := first(m.Bans.Banned(a, at(2*time.Hour))); !ok || b.Observe {
		t.Errorf("an observed ban replaced an enforced one: %+v %v", b, ok)
	}

	old = New()
	for i := range 3 {
		old.Bans.Add(a, BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "x"}, at(time.Duration(i)*12*time.Hour))
	}
	d = disk{}
	d.take(old)
	m = New()
	m.Bans.Add(a, BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "x"}, at(36*time.Hour))
	d.load(m, at(36*time.Hour))
	if b, ok := first(m.Bans.Banned(a, at(36*time.Hour))); !ok || b.Times < 3 {
		t.Errorf("number of bans lost: %+v %v", b, ok)
	}
}

// TestNetworkBanHolds checks that a manual ban of a network applies to a host whose own
// ban is shorter.
func TestNetworkBanHolds(t *testing.T) {
	a := who("203.0.113.5")
	m := New()
	m.Bans.AddPrefix(netip.MustParsePrefix("203.0.113.0/24"), 30*day, "by the postmaster", at(0))
	m.Bans.Add(a, BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "x"}, at(0))
	if b, ok := first(m.Bans.Banned(a, at(time.Minute))); !ok || !b.Manual {
		t.Errorf("got %+v, want the manual ban", b)
	}
}

// TestTimesOfOperator checks that a manual ban does not count observed bans.
func TestTimesOfOperator(t *testing.T) {
	a := who("203.0.113.5")
	m := New()
	m.Bans.Add(a, BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "x", Observe: true}, at(0))
	m.Bans.AddPrefix(netip.PrefixFrom(a.Addr, 32), time.Hour, "r", at(day))
	b, _ := m.Bans.AddPrefix(netip.PrefixFrom(a.Addr, 32), 2*time.Hour, "r", at(day)) // the operator changes the ban
	next := m.Bans.Add(a, BanRequest{Ladder: []time.Duration{day}, Rule: "x"}, at(3*day))
	if b.Times != 1 {
		t.Errorf("times %d after an observed ban and a corrected manual ban; the next ban of a day lasts %v", b.Times, next.Until.Sub(next.Since))
	}
}

// TestCountAfterWrongClock checks that counters work again once a wrong clock has been
// corrected.
func TestCountAfterWrongClock(t *testing.T) {
	win := rules.Window{Evidence: rules.UnknownRecipient, Window: day, By: rules.ByPrefix}
	m := New()
	m.Counters.Watch([]rules.Window{win})
	w := who("203.0.113.5")
	m.Counters.Add(w, rules.UnknownRecipient, at(365*day)) // once, while the clock is wrong
	for i := range 60 {
		m.Counters.Add(w, rules.UnknownRecipient, at(time.Duration(i)*4*day)) // one typing error in four days
	}
	if n, _ := m.Counters.Count(w, win, at(240*day)); n > 1 {
		t.Errorf("%d in 1d of events every four days", n)
	}
}

func TestSprayAfterWrongClock(t *testing.T) {
	m := New()
	m.Logins.Failed(&Client{Addr: netip.MustParseAddr("203.0.113.5"), User: []byte("u")}, at(365*day))
	got := ""
	for i := range 6 {
		got, _ = m.Logins.Failed(&Client{Addr: netip.MustParseAddr("203.0.113.5"), User: []byte(fmt.Sprint(i))}, at(time.Duration(i)*10*day))
	}
	if got != "" {
		t.Errorf("%q: six users in sixty days", got)
	}
}

// TestKnownAfterWrongClock checks that mail does not lower a client's standing while
// the clock is set to 1970.
func TestKnownAfterWrongClock(t *testing.T) {
	m := New()
	w := who("203.0.113.5")
	m.Peers.Delivered(w, Delivery{Messages: 1}, at(0))
	m.Peers.Delivered(w, Delivery{Messages: 1}, int64(86400*1e6)) // the machine has just booted without a battery-backed clock
	if s := m.Peers.Standing(w, at(day)); s.Level != rules.StandingKnown {
		t.Errorf("after mail with the clock at 1970: %+v", s)
	}
}

// TestNetworkBansAreFair checks that a host with many bans of networks displaces no network ban of a
// host with fewer, regardless of which arrive first, also after a restart, and that it is named.
func TestNetworkBansAreFair(t *testing.T) {
	bans := func(origin string, net byte, n int) (list []Foreign) {
		for i := range n {
			f := banRow(netip.PrefixFrom(netip.AddrFrom4([4]byte{net, byte(i >> 8), byte(i), 0}), 24), 0, 24*time.Hour)
			f.Origin = origin
			list = append(list, f)
		}
		return list
	}
	few, many := bans("mx2", 10, 5), bans("mx9", 11, 40)
	for _, fewFirst := range []bool{false, true} {
		for _, again := range []bool{false, true} {
			m := sharing()
			m.Bans.others.networks.limit = 20
			first, second := many, few
			if fewFirst {
				first, second = few, many
			}
			incoming(t, m, time.Hour, first...)
			if again {
				m = restart(m, "", time.Hour)
				m.Bans.others.networks.limit = 20
			}
			incoming(t, m, time.Hour, second...)
			if got := m.Origins(); got["mx2"] != 5 || got["mx9"] != 15 {
				t.Errorf("few first %v, restarted %v: %v", fewFirst, again, got)
			}
			if got := m.Displaced(); got["mx2"] != 0 || got["mx9"] == 0 {
				t.Errorf("few first %v, restarted %v: displaced %v", fewFirst, again, got)
			}
		}
	}
}
