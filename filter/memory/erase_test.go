package memory

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/rules"
)

// known returns tables with rows about a host, its user and the user's mailbox, and
// rows about other users.
func known(addr, name string) *Memory {
	m := New()
	m.Load(func(func(kv.Entry) bool) {}, at(0))
	m.Counters.Watch([]rules.Window{{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}, {Evidence: rules.AuthFailure, Window: day, By: rules.ByPrefix},
		{Evidence: rules.AuthFailure, Window: day, By: rules.ByUser}})
	for i, a := range []string{addr, "203.0.113.9", "2001:db8:1::9"} {
		c := who(a)
		if name != "" && i == 0 {
			c = named(a, name)
		}
		c.User = fmt.Appendf(nil, "user%d", i)
		m.Peers.Delivered(c, Delivery{Messages: 1, Senders: []string{"example.org"}}, at(0))
		m.Bans.Add(c, BanRequest{Ladder: []time.Duration{0}, Rule: "offence"}, at(0))
		m.Logins.Failed(c, at(0))
		m.Logins.Wrote(c, at(0))
		m.Recipients.Accepted(fmt.Appendf(nil, "user%d+list@example.org", i), at(0))
	}
	return m
}

// rowsOf returns the rows that Changes would write to a file, as text.
func rowsOf(m *Memory) (all []string) {
	m.Rewrite()
	for list := m.Changes(1000); len(list) > 0; list = m.Changes(1000) {
		for _, e := range list {
			if e.Bucket != "secret" && e.Value != nil {
				all = append(all, fmt.Sprintf("%s %x", e.Bucket, e.Key))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestErase checks that only the rows of a host, a user and a mailbox are deleted, and
// that a dry run deletes nothing.
func TestErase(t *testing.T) {
	addr := func(s string) Erasure { return Erasure{Prefix: netip.MustParsePrefix(s)} }
	for _, c := range []struct {
		name, host, rdns string
		e                Erasure
		want             map[string]int
	}{
		{"an address", "192.0.2.1", "", addr("192.0.2.1/32"), map[string]int{"bans": 1, "known clients": 1, "counters": 1, "login sprays": 1}},
		{"a network", "192.0.2.1", "", addr("192.0.2.0/24"), map[string]int{"bans": 1, "known clients": 1, "counters": 2, "login sprays": 2}},
		{"another address", "192.0.2.1", "", addr("192.0.2.2/32"), map[string]int{}},
		{"an IPv6 address", "2001:db8::7", "", addr("2001:db8::99/128"), map[string]int{"bans": 1, "known clients": 1, "counters": 1, "login sprays": 1}},
		{"an IPv6 host with a name", "2001:db8::7", "mail.example.net", addr("2001:db8::7/128"), map[string]int{"bans": 1, "known clients": 1, "counters": 1, "login sprays": 1}},
		{"its /48", "2001:db8::7", "", addr("2001:db8::/48"), map[string]int{"bans": 1, "known clients": 1, "counters": 2, "login sprays": 2}},
		{"a user", "192.0.2.1", "", Erasure{User: []byte("USER0")}, map[string]int{"counters": 1, "login sprays": 1, "accounts": 1}},
		{"a mailbox", "192.0.2.1", "", Erasure{Mailbox: []byte("User0@example.org")}, map[string]int{"recipients": 1}},
		{"nobody", "192.0.2.1", "", Erasure{User: []byte("x"), Mailbox: []byte("x@example.org"), Prefix: netip.MustParsePrefix("198.51.100.0/24")}, map[string]int{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := known(c.host, c.rdns)
			before := rowsOf(m)
			if got := m.Erase(c.e, at(time.Minute), true); !maps.Equal(got.Rows, c.want) || got.Kept != nil || !slices.Equal(rowsOf(m), before) {
				t.Errorf("dry: %v, want %v", got, c.want)
			}
			if got := m.Erase(c.e, at(time.Minute), false); !maps.Equal(got.Rows, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			n := 0
			for _, rows := range c.want {
				n += rows
			}
			left := rowsOf(m)
			if len(left) != len(before)-n {
				t.Errorf("%d of %d rows are left, want %d fewer: %q", len(left), len(before), n, left)
			}
			if got := m.Erase(c.e, at(time.Minute), false); len(got.Rows) != 0 {
				t.Errorf("again: %v", got)
			}
			if day, _ := m.Peers.Forgotten(); !day.IsZero() {
				t.Errorf("the host counts as forgotten: %v", day)
			}
		})
	}
}

// TestEraseBans checks that active bans are kept unless the erasure includes them, and
// that observed and expired bans are deleted.
func TestEraseBans(t *testing.T) {
	m := New()
	m.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: hours, Rule: "harvest"}, at(0))
	m.Bans.Add(who("192.0.2.2"), BanRequest{Ladder: hours, Rule: "harvest", Observe: true}, at(0))
	m.Bans.Add(who("192.0.2.3"), BanRequest{Ladder: hours, Rule: "harvest"}, at(-2*time.Hour))
	m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.64/26"), time.Hour, "manual", at(0))
	m.Bans.AddPrefix(netip.MustParsePrefix("192.0.0.0/16"), time.Hour, "around", at(0))
	e := Erasure{Prefix: netip.MustParsePrefix("192.0.2.0/24")}
	got := m.Erase(e, at(time.Minute), false)
	if !maps.Equal(got.Rows, map[string]int{"bans": 2}) || len(got.Kept) != 2 {
		t.Errorf("%+v", got)
	}
	if _, ok := first(m.Bans.Banned(who("192.0.2.1"), at(time.Minute))); !ok {
		t.Error("an active ban has ended")
	}
	e.Bans = true
	_, before, _ := m.Bans.Changed(0)
	if got := m.Erase(e, at(time.Minute), true); len(got.Rows) != 2 {
		t.Errorf("dry: %+v", got)
	}
	if changed, _, ok := m.Bans.Changed(before); !ok || len(changed) != 0 {
		t.Errorf("a dry run has ended %v", changed)
	}
	if got := m.Erase(e, at(time.Minute), false); !maps.Equal(got.Rows, map[string]int{"bans": 1, "network bans": 1}) || len(got.Kept) != 0 {
		t.Errorf("with bans: %+v", got)
	}
	if changed, _, ok := m.Bans.Changed(before); !ok || len(changed) != 2 {
		t.Errorf("Changed returns %v", changed)
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.65"} {
		if b, ok := first(m.Bans.Banned(who(a), at(time.Minute))); !ok || b.Prefix.Bits() != 16 {
			t.Errorf("%s: %+v", a, b)
		}
	}
}
