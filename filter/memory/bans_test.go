package memory

import (
	"net/netip"
	"testing"
	"time"

	"scanwatch/rules"
)

// holds reports whether an enforced ban applies to c.
func holds(m *Memory, c *Client, d time.Duration) bool {
	b, ok := first(m.Bans.Banned(c, at(d)))
	return ok && !b.Observe
}

// TestLadder checks the length of each ban, and that an offence is consecutive within a
// day, or within four times the previous ban's length.
func TestLadder(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ladder []time.Duration
		gaps   []time.Duration // from the end of a ban to the next offence
		want   []time.Duration // lengths of the bans; 0 for no ban
		times  []int
	}{
		{"steps, and the last one repeats", []time.Duration{10 * time.Minute, time.Hour, day}, []time.Duration{time.Hour, time.Hour, time.Hour},
			[]time.Duration{10 * time.Minute, time.Hour, day, day}, []int{1, 2, 3, 4}},
		{"a short ban counts for a day", []time.Duration{10 * time.Minute, time.Hour}, []time.Duration{day, day + time.Second},
			[]time.Duration{10 * time.Minute, time.Hour, 10 * time.Minute}, []int{1, 2, 1}},
		{"a long ban counts for four times its length", []time.Duration{7 * day, 30 * day}, []time.Duration{28 * day, 90 * day, 90*day + time.Second},
			[]time.Duration{7 * day, 30 * day, 30 * day, 7 * day}, []int{1, 2, 3, 1}},
		{"the first offence only counts", []time.Duration{0, time.Hour, day}, []time.Duration{time.Minute, time.Hour},
			[]time.Duration{0, time.Hour, day}, []int{1, 2, 3}},
		{"and no longer counts after a day", []time.Duration{0, time.Hour}, []time.Duration{day + time.Second, day},
			[]time.Duration{0, 0, time.Hour}, []int{1, 1, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, c := New(), who("192.0.2.1")
			now := time.Duration(0)
			for i, want := range tt.want {
				b := m.Bans.Add(c, BanRequest{Ladder: tt.ladder, Rule: "harvest", Session: 7}, at(now))
				if got := b.Until.Sub(b.Since); got != want || b.Times != tt.times[i] || b.Rule != "harvest" || b.Session != 7 || b.Prefix.String() != "192.0.2.1/32" {
					t.Errorf("offence %d: banned for %v, want %v, times %d: %+v", i+1, got, want, tt.times[i], b)
				}
				if want > 0 && !holds(m, c, now+want-time.Second) || holds(m, c, now+want) {
					t.Errorf("ban %d does not end after %v", i+1, want)
				}
				if now += want; i < len(tt.gaps) {
					now += tt.gaps[i]
				}
			}
		})
	}
}

// TestOffenceWithoutBan checks that an offence that is only counted is not listed as a
// ban.
func TestOffenceWithoutBan(t *testing.T) {
	m := New()
	m.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: []time.Duration{0, time.Hour}, Rule: "unknown"}, at(0))
	m.Bans.Each(func(b Ban) { t.Errorf("listed: %+v", b) })
	d := disk{}
	d.take(m)
	for _, e := range d {
		if b, ok := NewReader(time.UnixMicro(at(0))).Ban(e.Key, e.Value); e.Bucket == "bans" && ok {
			t.Errorf("a reader of the file lists %+v", b)
		}
	}
	m = New()
	d.load(m, at(time.Minute))
	if b := m.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: []time.Duration{0, time.Hour}, Rule: "unknown"}, at(time.Minute)); b.Times != 2 || b.Until.Sub(b.Since) != time.Hour {
		t.Errorf("the second offence, after a restart: %+v", b)
	}
}

func TestBan(t *testing.T) {
	a := who("192.0.2.1")
	request := BanRequest{Ladder: []time.Duration{day, 7 * day}, Rule: "harvest", Session: 7}
	observed := request
	observed.Observe = true
	t.Run("another offence during the ban", func(t *testing.T) {
		m := New()
		m.Bans.Add(a, request, at(0))
		if b := m.Bans.Add(a, request, at(time.Hour)); b.Times != 1 || !b.Until.Equal(time.UnixMicro(at(day+time.Hour)).Truncate(time.Second)) {
			t.Errorf("%+v", b)
		}
		short := request
		short.Ladder = []time.Duration{time.Minute}
		if b := m.Bans.Add(a, short, at(time.Hour)); b.Until.Sub(b.Since) != day+time.Hour {
			t.Errorf("a shorter ban made it end earlier: %+v", b)
		}
	})
	t.Run("observed", func(t *testing.T) {
		m := New()
		m.Bans.Add(a, observed, at(0))
		if b, ok := first(m.Bans.Banned(a, at(1))); !ok || !b.Observe {
			t.Errorf("%+v %v", b, ok)
		}
		if b := m.Bans.Add(a, request, at(time.Minute)); b.Observe || b.Times != 1 || !holds(m, a, time.Hour) {
			t.Errorf("the first enforced ban: %+v", b)
		}
		if b := m.Bans.Add(a, observed, at(time.Hour)); b.Observe {
			t.Errorf("an observed ban replaced an enforced one: %+v", b)
		}
	})
	t.Run("manual", func(t *testing.T) {
		m := New()
		p := netip.MustParsePrefix("192.0.2.0/24")
		if b, ok := m.Bans.AddPrefix(p, time.Hour, "enough", at(0)); !ok || !b.Manual {
			t.Errorf("%+v", b)
		}
		if b, ok := first(m.Bans.Banned(a, at(time.Minute))); !ok || b.Prefix != p || b.Rule != "enough" || b.Attempts != 1 {
			t.Errorf("%+v", b)
		}
		if _, ok := first(m.Bans.Banned(who("192.0.3.1"), at(time.Minute))); ok {
			t.Error("banned a neighbour")
		}
		m.Bans.Add(a, request, at(time.Minute))
		if around := m.Bans.Covering(a.Addr, at(time.Minute)); len(around) != 1 {
			t.Errorf("around: %+v", around)
		}
		if ended := m.Bans.Revoke(netip.MustParsePrefix("192.0.0.0/16"), true, at(time.Hour-time.Second)); len(ended) != 2 {
			t.Errorf("ended: %+v", ended)
		}
		if holds(m, a, time.Hour-time.Second) {
			t.Error("still banned")
		}
		if b := m.Bans.Add(a, request, at(2*time.Hour)); b.Times != 1 {
			t.Errorf("a revoked ban counts: %+v", b)
		}
	})
	t.Run("unban of a network only", func(t *testing.T) {
		m := New()
		p := netip.MustParsePrefix("192.0.2.0/24")
		m.Bans.Add(a, request, at(0))
		m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.0/28"), time.Hour, "part", at(0))
		if ended := m.Bans.Revoke(p, false, at(1)); len(ended) != 0 {
			t.Errorf("without a separate ban: %+v", ended)
		}
		m.Bans.AddPrefix(p, time.Hour, "all", at(1))
		if ended := m.Bans.Revoke(p, false, at(2)); len(ended) != 1 || ended[0].Prefix != p || !holds(m, a, time.Minute) {
			t.Errorf("ended: %+v", ended)
		}
		if around := m.Bans.Covering(a.Addr, at(3)); len(around) != 1 {
			t.Errorf("the part: %+v", around)
		}
	})
	t.Run("unban of one", func(t *testing.T) {
		m := New()
		m.Bans.Add(a, request, at(0))
		if ended := m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), true, at(1)); len(ended) != 1 || !ended[0].Revoked || holds(m, a, time.Minute) {
			t.Errorf("%+v", ended)
		}
		if ended := m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), true, at(2)); len(ended) != 0 {
			t.Errorf("a second time: %+v", ended)
		}
	})
}

// TestIdentity checks that an IPv6 host with a proven name is identified by its
// full address. The host shares neither bans nor standing with its /64.
func TestIdentity(t *testing.T) {
	own, neighbour, nameless, sister := named("2001:db8::25", "mail.example.org"), named("2001:db8::66", "host.example.net"), who("2001:db8::77"), named("2001:db8:0:1::25", "mx2.example.org")
	request := BanRequest{Ladder: []time.Duration{day}, Rule: "harvest"}
	for _, tt := range []struct {
		name   string
		c      *Client
		prefix string
	}{{"with a name", own, "2001:db8::25/128"}, {"without", nameless, "2001:db8::/64"}, {"IPv4 with a name", named("192.0.2.1", "mail.example.org"), "192.0.2.1/32"}} {
		m := New()
		if b := m.Bans.Add(tt.c, request, at(0)); b.Prefix.String() != tt.prefix || !holds(m, tt.c, time.Hour) {
			t.Errorf("%s: %+v", tt.name, b)
		}
	}
	m := New()
	m.Bans.Add(nameless, request, at(0))
	m.Bans.Add(neighbour, request, at(0))
	if holds(m, own, time.Hour) || !holds(m, who("2001:db8::1:1"), time.Hour) || !holds(m, neighbour, time.Hour) {
		t.Error("the ban of a neighbour applies to a host with a proven name, or the ban of a /64 not to a host without")
	}
	m.Peers.Delivered(own, Delivery{1, []string{"example.org"}}, at(0))
	for _, tt := range []struct {
		c    *Client
		want rules.Standing
	}{{own, rules.StandingKnown}, {sister, rules.StandingKnown}, {neighbour, rules.StandingNone}, {nameless, rules.StandingNone}} {
		if s := m.Peers.Standing(tt.c, at(day)); s.Level != tt.want {
			t.Errorf("%s: %+v, want %v", tt.c.Addr, s, tt.want)
		}
	}
}

// first returns the first ban, if any.
func first(list []Ban) (b Ban, ok bool) {
	if len(list) == 0 {
		return b, false
	}
	return list[0], true
}
