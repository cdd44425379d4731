package memory

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/rules"
)

// TestManualBanOfAddress checks that manually banning an IPv6 address bans its /64, and
// that a manual unban ends the bans of the /64 and of all hosts in it.
func TestManualBanOfAddress(t *testing.T) {
	one := netip.MustParsePrefix("2001:db8::25/128")
	own, nameless := named("2001:db8::25", "mail.example.org"), who("2001:db8::77")
	m := New()
	if b, ok := m.Bans.AddPrefix(one, time.Hour, "enough", at(0)); !ok || b.Prefix.String() != "2001:db8::/64" || !holds(m, own, time.Minute) || !holds(m, nameless, time.Minute) {
		t.Errorf("ban of an address: %+v", b)
	}
	if ended := m.Bans.Revoke(one, true, at(2*time.Minute)); len(ended) != 1 || holds(m, own, 3*time.Minute) || holds(m, nameless, 3*time.Minute) {
		t.Errorf("unban of an address: %+v", ended)
	}
	m.Bans.Add(own, BanRequest{Ladder: hours, Rule: "harvest"}, at(time.Hour))
	m.Bans.Add(nameless, BanRequest{Ladder: hours, Rule: "harvest"}, at(time.Hour))
	if ended := m.Bans.Revoke(netip.MustParsePrefix("2001:db8::99/128"), true, at(time.Hour+time.Minute)); len(ended) != 2 {
		t.Errorf("unban of another address in the /64: %+v", ended)
	}
}

// TestForget checks that an unban clears the counts that would lead to the next ban.
func TestForget(t *testing.T) {
	win := rules.Window{Evidence: rules.UnknownRecipient, Window: day, By: rules.BySrc}
	net := rules.Window{Evidence: rules.UnknownRecipient, Window: day, By: rules.ByPrefix}
	for _, tt := range []struct {
		name   string
		c      *Client
		freed  string
		counts int
	}{
		{"the host", who("192.0.2.1"), "192.0.2.1/32", 0},
		{"its network", who("192.0.2.1"), "192.0.2.0/24", 0},
		{"another host", who("192.0.2.1"), "192.0.2.2/32", 9},
		{"another network", who("192.0.2.1"), "198.51.100.0/24", 9},
		{"the /64 of an IPv6 host", who("2001:db8::7"), "2001:db8::/64", 0},
		{"an address of an IPv6 host", who("2001:db8::7"), "2001:db8::7/128", 0},
		{"an IPv6 host with a name", named("2001:db8::7", "mail.example.org"), "2001:db8::7/128", 0},
		{"the /64 of a banned host with a name", named("2001:db8::7", "mail.example.org"), "2001:db8::/64", 0},
		{"the /32 of a banned host with a name", named("2001:db8::7", "mail.example.org"), "2001:db8::/32", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := New()
			m.Counters.Watch([]rules.Window{win, net})
			tt.c.User = nil
			for range 9 {
				m.Counters.Add(tt.c, rules.UnknownRecipient, at(0))
			}
			m.Bans.Add(tt.c, BanRequest{Ladder: hours, Rule: "unknown"}, at(0))
			for i := range sprayMax - 1 {
				c := *tt.c
				c.User = []byte{'a' + byte(i)}
				m.Logins.Failed(&c, at(0))
			}
			p := netip.MustParsePrefix(tt.freed)
			m.Bans.Revoke(p, true, at(time.Minute))
			m.Forget(p)
			if n, _ := m.Counters.Count(tt.c, win, at(time.Minute)); n != tt.counts {
				t.Errorf("by source: %d, want %d", n, tt.counts)
			}
			c := *tt.c
			c.User = []byte("z")
			if kind, _ := m.Logins.Failed(&c, at(time.Minute)); (kind == "users") != (tt.counts > 0) {
				t.Errorf("the next failed login is a spray of %q", kind)
			}
		})
	}
	m := New()
	m.Counters.Watch([]rules.Window{net})
	m.Counters.Add(who("192.0.2.1"), rules.UnknownRecipient, at(0))
	m.Forget(netip.MustParsePrefix("192.0.2.9/32"))
	if n, _ := m.Counters.Count(who("192.0.2.1"), net, at(0)); n != 0 {
		t.Errorf("%d remain of the network of a freed host", n)
	}
}

// TestUnbanAfterObservedBan checks that other hosts receive an unban from a host that has only
// observed a ban of the prefix, even if that ban has ended.
func TestUnbanAfterObservedBan(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "2001:db8::/64"} {
		for _, later := range []time.Duration{time.Minute, 2 * time.Hour} {
			p := netip.MustParsePrefix(prefix)
			m, other := sharing(), sharing()
			m.UseKey([16]byte{1})
			m.Bans.Add(who(p.Addr().String()), BanRequest{Ladder: hours, Rule: "guess", Session: 1, Observe: true}, at(0))
			if rows := from(m, "mx1"); len(rows) != 1 || rows[0].Value != nil {
				t.Fatalf("%s: an observed ban is sent: %v", prefix, rows)
			}
			other.Bans.AddPrefix(p, day, "x", at(time.Second))
			m.Bans.Revoke(p, false, at(later))
			m.Bans.Disclaim(p, false, nil, at(later))
			incoming(t, other, later+time.Second, from(m, "mx1")...)
			if enforced(other, prefix, later+time.Minute) {
				t.Errorf("%s is still banned on another host after an unban %v later", prefix, later)
			}
			if b, _ := m.Bans.AddPrefix(p, time.Hour, "x", at(later+time.Hour)); b.Times != 1 {
				t.Errorf("%s: an observed ban counts as offence: %+v", prefix, b)
			}
		}
	}
}

// TestRepeatedUnbans checks that another host cannot delete this host's counts again and again: an
// unban that has ended no ban here deletes the counts of small networks only, and only once an hour.
func TestRepeatedUnbans(t *testing.T) {
	win := rules.Window{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}
	for _, tt := range []struct {
		prefix string
		within bool
		every  time.Duration
		want   int // events counted after five
	}{
		{"192.0.2.1/32", false, 10 * time.Second, 4},
		{"192.0.2.1/32", false, 2 * time.Hour, 0},
		{"192.0.2.0/24", true, 10 * time.Second, 4},
		{"192.0.0.0/16", true, 10 * time.Second, 5},
		{"0.0.0.0/0", true, 10 * time.Second, 5},
		{"0.0.0.0/0", true, 2 * time.Hour, 5},
	} {
		m, evil := sharing(), sharing()
		evil.UseKey([16]byte{1})
		p, now := netip.MustParsePrefix(tt.prefix), time.Duration(0)
		count := func() int {
			n, _ := m.Counters.Count(who("192.0.2.1"), win, at(now))
			return n
		}
		unban := func() {
			evil.Bans.Disclaim(p, tt.within, nil, at(now))
			incoming(t, m, now, from(evil, "mx9")...)
		}
		for range 5 {
			m.Counters.Add(who("192.0.2.1"), rules.AuthFailure, at(now))
			unban()
			now += tt.every
		}
		if n := count(); n != tt.want {
			t.Errorf("unbans of %s every %v: %d events counted, want %d", tt.prefix, tt.every, n, tt.want)
		}
		m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.1/32"), 24*time.Hour, "x", at(now))
		now += 10 * time.Second
		unban()
		if n := count(); n != 0 {
			t.Errorf("unban of %s, which has ended a ban: %d events counted", tt.prefix, n)
		}
	}
}

// TestUnbanIsNoBan checks that the list of bans does not include the unban of a prefix that was not
// banned, on any host.
func TestUnbanIsNoBan(t *testing.T) {
	m, other := sharing(), sharing()
	m.UseKey([16]byte{1})
	for i := range time.Duration(3) {
		m.Bans.Disclaim(netip.MustParsePrefix("192.0.2.0/24"), true, nil, at(time.Hour+i*time.Minute))
		incoming(t, other, 2*time.Hour, from(m, "mx1")...)
	}
	m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.1/32"), time.Hour, "x", at(2*time.Hour))
	m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), false, at(2*time.Hour+time.Minute))
	incoming(t, other, 3*time.Hour, from(m, "mx1")...)
	for _, m := range []*Memory{m, other} {
		var got []string
		m.Bans.Each(func(b Ban) { got = append(got, b.Prefix.String()+" "+b.Revocation()) })
		want := "192.0.2.1/32 revoked"
		if m == other {
			want += " on mx1"
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
