package memory

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// rowsFor returns m's rows as other hosts receive them.
func rowsFor(m *Memory, origin string) (rows []Foreign) {
	for _, e := range m.Outgoing(100, 0) {
		rows = append(rows, Foreign{Entry: e, Origin: origin})
	}
	return rows
}

// TestRejectedBan checks how long firewalls may contain another host's ban after this
// filter has rejected the client because of it, and that no other host can claim that
// rejection.
func TestRejectedBan(t *testing.T) {
	p := netip.MustParsePrefix("198.51.100.7/32")
	now := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC).UnixMicro()
	from := func(origin string, length time.Duration, at int64) []Foreign {
		other := New()
		other.Announce()
		other.Bans.AddPrefix(p, length, "r", at)
		return rowsFor(other, origin)
	}
	receive := func(m *Memory, rows []Foreign) {
		t.Helper()
		if _, err := m.Incoming(rows, 0, now); err != nil {
			t.Fatal(err)
		}
	}
	first := from("mx2", time.Hour, now)
	m := New()
	if receive(m, first); m.Bans.Count(now) != (BanCount{Active: 1, Waiting: 1}) {
		t.Errorf("before the standing has arrived: %+v", m.Bans.Count(now))
	}
	if m.Bans.HaveStanding(); m.Bans.Count(now) != (BanCount{Active: 1}) {
		t.Errorf("after the standing has arrived: %+v", m.Bans.Count(now))
	}
	withheld := func(m *Memory) bool {
		t.Helper()
		ban, ok := m.Bans.Enforced(p, now)
		if !ok {
			t.Fatal("the ban has ended")
		}
		return ban.Firewall.IsZero()
	}
	steps := []struct {
		name     string
		change   func()
		withheld bool
	}{
		{"not rejected yet", func() {}, true},
		{"rejected", func() { ban, _ := m.Bans.Enforced(p, now); m.Bans.Rejected(&ban, now) }, false},
		{"the same row again", func() { receive(m, first) }, false},
		{"rejected because of an earlier ban", func() {
			ban, _ := m.Bans.Enforced(p, now)
			receive(m, from("mx3", 2*time.Hour, now+1e6))
			m.Bans.Rejected(&ban, now)
		}, true},
		{"rejected again", func() { ban, _ := m.Bans.Enforced(p, now); m.Bans.Rejected(&ban, now) }, false},
		{"stored and loaded", func() {
			stored := m.Changes(1000)
			m = New()
			m.Load(slices.Values(stored), now)
			if m.Bans.Count(now).Waiting != 1 || !withheld(m) {
				t.Errorf("after a restart: %+v", m.Bans.Count(now))
			}
			m.Bans.HaveStanding()
		}, false},
		{"exempt", func() { m.Bans.Withhold(p) }, true},
		{"a forged row", func() {
			row := from("mx2", 3*time.Hour, now+2e6)[0]
			row.Value[banSize-1] |= byte(banForeign)
			row.Value = slices.Insert(row.Value, banSize, 0xff, 0xff, 0xff, 0xff) // ban.extra
			receive(m, []Foreign{row})
		}, true},
		{"this host's own ban", func() { m.Bans.AddPrefix(p, 4*time.Hour, "r", now) }, false},
	}
	for _, s := range steps {
		if s.change(); withheld(m) != s.withheld {
			t.Errorf("%s: withheld %t, want %t", s.name, !s.withheld, s.withheld)
		}
	}
}
