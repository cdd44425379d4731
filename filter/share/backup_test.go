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

// TestUnbanSurvivesLosses checks that an unban remains in effect on all hosts after its host was
// restored from a backup while the server lost its rows, and that later offences lead to bans.
func TestUnbanSurvivesLosses(t *testing.T) {
	for _, tt := range []struct {
		ban, unban string
		within     bool
	}{
		{"192.0.2.1/32", "192.0.2.1/32", false},
		{"192.0.2.0/24", "192.0.2.0/24", false},
		{"192.0.2.1/32", "192.0.2.0/24", true},
		{"2001:db8::/64", "2001:db8::7/128", false},
	} {
		for _, restarted := range []bool{false, true} { // the companions of the other hosts
			t.Run(fmt.Sprint(tt.unban, " restarted ", restarted), func(t *testing.T) {
				p := netip.MustParsePrefix(tt.ban)
				f := newFleet(t, "mx1", "mx2", "mx3")
				for _, h := range f.hosts {
					h.memory.UseKey([16]byte{1})
					h.memory.UseName(h.name)
				}
				mx1 := f.hosts[0]
				mx1.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
				f.exchange()
				backup := stored(mx1.memory)
				f.now = f.now.Add(time.Minute)
				if u := netip.MustParsePrefix(tt.unban); tt.within || u != p {
					mx1.memory.Bans.Revoke(u, tt.within, f.now.UnixMicro())
					mx1.memory.Bans.Disclaim(u, tt.within, nil, f.now.UnixMicro())
				} else {
					mx1.memory.Bans.Revoke(u, false, f.now.UnixMicro())
				}
				f.exchange()
				f.exchange()
				f.now = f.now.Add(time.Minute)
				for i, h := range f.hosts {
					if i > 0 && !restarted {
						continue
					}
					h.replica, h.inbox = New(h.name, DefaultLimits()), nil
				}
				mx1.memory = memory.New()
				mx1.memory.UseKey([16]byte{1})
				mx1.memory.UseName("mx1")
				mx1.memory.Load(slices.Values(backup), f.now.UnixMicro())
				if _, ok := mx1.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
					t.Fatal("the backup has no ban")
				}
				newcomer := newFleet(t, "mx4").hosts[0]
				f.hosts = append(f.hosts, newcomer)
				for i, h := range f.hosts {
					h.memory.Announce()
					rows := h.replica.Own(h.memory.Outgoing(1<<20, 0), f.now)
					if !restarted && i > 0 {
						rows = h.replica.Rows(h.name)
					}
					for _, other := range f.hosts {
						if other != h && len(rows) > 0 {
							other.inbox = append(other.inbox, batch{h.name, rows})
						}
					}
				}
				for range 4 {
					f.now = f.now.Add(time.Second)
					f.exchange()
				}
				check := func(want bool) {
					t.Helper()
					for _, h := range f.hosts {
						if b, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); ok != want {
							t.Errorf("%s: banned %t, %+v", h.name, ok, b)
						}
					}
				}
				check(false)
				f.now = f.now.Add(time.Minute)
				f.hosts[2].memory.Bans.AddPrefix(p, time.Hour, "new", f.now.UnixMicro())
				f.exchange()
				f.exchange()
				check(true)
			})
		}
	}
}

// TestBansSurviveLosses checks that a ban remains in effect on all hosts after its host has lost its
// state, or was restored from a backup, even if the backup contains an earlier ban of the client.
func TestBansSurviveLosses(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	for _, backup := range []string{"", "empty", "with an earlier ban"} {
		for _, restarted := range []bool{false, true} { // the companion
			t.Run(fmt.Sprint("backup ", backup, " restarted ", restarted), func(t *testing.T) {
				f := newFleet(t, "mx1", "mx2")
				mx1 := f.hosts[0]
				start := func(disk []kv.Entry) {
					mx1.memory = memory.New()
					mx1.memory.UseKey([16]byte{1})
					mx1.memory.UseName("mx1")
					mx1.memory.Follow()
					mx1.memory.Load(slices.Values(disk), f.now.UnixMicro())
					mx1.memory.Tick(f.now.UnixMicro())
					mx1.memory.Announce()
				}
				start(nil)
				var disk []kv.Entry
				if backup == "with an earlier ban" {
					mx1.memory.Bans.AddPrefix(p, time.Minute, "x", f.now.UnixMicro())
					f.exchange()
				}
				if backup != "" {
					disk = mx1.memory.Changes(1 << 20)
				}
				f.now = f.now.Add(time.Hour)
				mx1.memory.Tick(f.now.UnixMicro())
				mx1.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
				f.exchange()
				for range 2 { // the second time, the ban is that of another host with this host's name
					f.now = f.now.Add(time.Hour)
					start(disk)
					if restarted {
						f.restartCompanion(mx1)
					}
					mx1.replica.Resend()
					f.receive(mx1)
					if rows := mx1.replica.Own(mx1.memory.Outgoing(1<<20, 0), f.now); len(rows) > 0 {
						t.Errorf("sent: %+v", rows)
					}
					f.exchange()
					f.exchange()
					for _, h := range f.hosts {
						if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
							t.Errorf("%s has lost the ban", h.name)
						}
					}
					disk = mx1.memory.Changes(1 << 20)
				}
			})
		}
	}
}

// TestBackupBeforeUnban checks that a ban in a backup does not take effect again if it was unbanned
// after the backup, even if the client has been banned for a short time since then.
func TestBackupBeforeUnban(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	for _, restarted := range []bool{false, true} { // the companion
		t.Run(fmt.Sprint("restarted ", restarted), func(t *testing.T) {
			f := newFleet(t, "mx1", "mx2")
			mx1 := f.hosts[0]
			mx1.memory.Bans.AddPrefix(p, 300*time.Hour, "long", f.now.UnixMicro())
			f.exchange()
			disk := stored(mx1.memory)
			f.now = f.now.Add(time.Minute)
			f.unban(mx1, "192.0.2.1")
			f.exchange()
			f.now = f.now.Add(time.Minute)
			mx1.memory.Bans.AddPrefix(p, time.Minute, "short", f.now.UnixMicro())
			f.exchange()
			f.now = f.now.Add(time.Hour)
			mx1.memory = memory.New()
			mx1.memory.Load(slices.Values(disk), f.now.UnixMicro())
			mx1.memory.Announce()
			if restarted {
				f.restartCompanion(mx1)
			}
			mx1.replica.Resend()
			f.receive(mx1)
			rows := mx1.replica.Own(mx1.memory.Outgoing(1<<20, 0), f.now)
			f.hosts[1].inbox = append(f.hosts[1].inbox, batch{"mx1", rows})
			f.exchange()
			f.exchange()
			for _, h := range f.hosts {
				if b, ok := h.banned(f.now, "192.0.2.1"); ok {
					t.Errorf("%s: %+v", h.name, b)
				}
			}
		})
	}
}
