package share

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// correctedFleet returns a fleet whose clocks' errors are known, so that times are converted.
func correctedFleet(t *testing.T, names ...string) *fleet {
	f := newFleet(t, names...)
	for _, h := range f.hosts {
		h.known = true
		h.memory.UseKey([16]byte{1})
		h.memory.UseName(h.name)
	}
	return f
}

func (f *fleet) revoke(h *host, p netip.Prefix) {
	ended := h.memory.Bans.Revoke(p, false, h.clock(f.now).UnixMicro())
	h.memory.Bans.Disclaim(p, false, ended, h.clock(f.now).UnixMicro())
}

func (f *fleet) manual(h *host, p netip.Prefix, d time.Duration) {
	h.memory.Bans.AddPrefix(p, d, "x", h.clock(f.now).UnixMicro())
}

// missed passes rows with times in the future to the hosts again.
func (f *fleet) missed() {
	for _, h := range f.hosts {
		for _, name := range h.replica.Missed(f.now) {
			for _, other := range f.hosts {
				if other.name == name {
					h.inbox = append(h.inbox, batch{name, other.replica.Rows(name)})
				}
			}
		}
	}
}

// later runs the fleet for hours, and lists the hosts that enforce p.
func (f *fleet) later(p netip.Prefix, hours int) (out []string) {
	for i := range hours * 6 {
		for _, h := range f.hosts {
			if b, ok := h.memory.Bans.Enforced(p, h.clock(f.now).UnixMicro()); ok {
				out = append(out, fmt.Sprintf("+%dmin %s: since %s until %s origin %q", i*10, h.name, b.Since.Format(time.TimeOnly), b.Until.Format(time.DateTime), b.Origin))
			}
		}
		f.now = f.now.Add(10 * time.Minute)
		f.missed()
		f.exchange()
		f.exchange()
	}
	return out
}

func (h *host) resync() { h.memory.Announce(); h.replica.Resend() }

// TestUnbanAfterRestore checks that an unban still ends its ban after the filter's state was restored
// from an older backup, even if a shorter ban followed.
func TestUnbanAfterRestore(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		for _, companion := range []bool{false, true} {
			for _, again := range []bool{false, true} {
				t.Run(fmt.Sprint(prefix, " companion restarted ", companion, " banned again ", again), func(t *testing.T) {
					p := netip.MustParsePrefix(prefix)
					f := newFleet(t, "mx1", "mx2")
					mx1, mx2 := f.hosts[0], f.hosts[1]
					for _, h := range f.hosts {
						h.memory.UseKey([16]byte{1})
						h.memory.UseName(h.name)
					}
					mx1.memory.Follow()
					mx1.memory.Tick(f.now.UnixMicro())
					mx1.memory.Bans.AddPrefix(p, 10*time.Hour, "first", f.now.UnixMicro())
					f.exchange()
					disk := stored(mx1.memory)
					f.now = f.now.Add(time.Hour)
					mx1.memory.Tick(f.now.UnixMicro())
					ended := mx1.memory.Bans.Revoke(p, false, f.now.UnixMicro())
					mx1.memory.Bans.Disclaim(p, false, ended, f.now.UnixMicro())
					f.exchange()
					f.now = f.now.Add(time.Minute)
					if again {
						mx1.memory.Bans.AddPrefix(p, 3*time.Hour, "second", f.now.UnixMicro())
					}
					f.exchange()
					f.now = f.now.Add(time.Minute)
					f.restore(mx1, disk)
					if companion {
						f.restartCompanion(mx1)
						mx1.inbox = append(mx1.inbox, batch{"mx2", mx2.replica.Rows("mx2")})
					}
					mx1.replica.Resend()
					for range 4 {
						f.exchange()
					}
					f.now = f.now.Add(4 * time.Hour)
					f.exchange()
					for _, h := range f.hosts {
						if b, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); ok {
							t.Errorf("%s enforces the unbanned ban %q until %v", h.name, b.Rule, b.Until)
						}
					}
				})
			}
		}
	}
}

// TestUnbanRepeated checks that a repeated unban ends a ban by a host whose clock was corrected during
// its absence.
func TestUnbanRepeated(t *testing.T) {
	for _, gone := range []bool{false, true} {
		for _, how := range []string{"", "earlier unban", "earlier ban", "own active ban"} {
			p := netip.MustParsePrefix("192.0.2.1/32")
			f := correctedFleet(t, "mx1", "mx2", "mx3")
			all := f.hosts
			mx1, mx2, mx3 := all[0], all[1], all[2]
			if how == "earlier unban" || how == "earlier ban" {
				f.manual(mx3, p, time.Hour)
				f.exchange()
				f.now = f.now.Add(time.Minute)
				if how == "earlier unban" {
					f.revoke(mx3, p)
				}
				f.now = f.now.Add(time.Second)
				f.exchange()
				f.exchange()
				f.now = f.now.Add(24 * time.Hour)
			}
			mx1.skew = 50 * time.Minute
			f.manual(mx1, p, 24*time.Hour)
			f.exchange()
			if how == "own active ban" {
				f.manual(mx3, p, time.Hour)
				f.exchange()
			}
			f.now = f.now.Add(time.Minute)
			f.hosts = all[1:]
			mx1.skew = 0
			mx1.resync()
			f.now = f.now.Add(time.Minute)
			f.revoke(mx2, p)
			f.exchange()
			f.exchange()
			f.now = f.now.Add(time.Minute)
			f.revoke(mx3, p)
			f.exchange()
			f.exchange()
			f.hosts = all
			if gone {
				f.hosts = []*host{mx1, mx3}
			}
			for _, h := range f.hosts {
				for _, o := range all {
					if h != o && (h == mx1 || o == mx1) {
						h.inbox = append(h.inbox, batch{o.name, o.replica.Rows(o.name)})
					}
				}
			}
			f.exchange()
			if out := f.later(p, 12); len(out) > 0 {
				t.Errorf("gone %v, %s: %d, %s ... %s", gone, how, len(out), out[0], out[len(out)-1])
			}
		}
	}
}

// TestBanAfterUnban checks that a ban after an unban takes effect on all hosts, even if an earlier ban
// came from a host with a wrong clock.
func TestBanAfterUnban(t *testing.T) {
	for _, ahead := range []int{-50, -20, 0, 20, 31, 50} {
		for _, by := range []int{0, 1} {
			for _, again := range []int{0, 1, 2} {
				for _, wait := range []int{1, 25, 55} {
					p := netip.MustParsePrefix("192.0.2.1/32")
					f := correctedFleet(t, "mx1", "mx2", "mx3")
					mx1 := f.hosts[0]
					mx1.skew = time.Duration(ahead) * time.Minute
					f.manual(mx1, p, 2*time.Hour)
					f.exchange()
					f.now = f.now.Add(time.Minute)
					mx1.skew = 0
					mx1.resync()
					f.exchange()
					f.now = f.now.Add(time.Minute)
					f.revoke(f.hosts[by], p)
					f.exchange()
					f.exchange()
					f.now = f.now.Add(time.Duration(wait) * time.Minute)
					f.missed()
					f.exchange()
					f.manual(f.hosts[again], p, 5*time.Hour)
					f.exchange()
					f.exchange()
					end := f.now.Add(4 * time.Hour)
					bad := map[string]int{}
					for f.now.Before(end) {
						for _, h := range f.hosts {
							if _, ok := h.memory.Bans.Enforced(p, h.clock(f.now).UnixMicro()); !ok {
								bad[h.name]++
							}
						}
						f.now = f.now.Add(10 * time.Minute)
						f.missed()
						f.exchange()
						f.exchange()
					}
					if len(bad) > 0 {
						t.Errorf("ahead %d by %d again %d wait %d: lost for 10 min: %v", ahead, by, again, wait, bad)
					}
				}
			}
		}
	}
}

// TestBanExtendedAfterRestore checks that other hosts receive the extension of a ban whose host was
// restored from a backup from before its latest ban.
func TestBanExtendedAfterRestore(t *testing.T) {
	for _, manual := range []bool{false, true} {
		for _, long := range []bool{false, true} { // whether the extension ends later than the latest ban
			p := netip.MustParsePrefix("192.0.2.1/32")
			f := correctedFleet(t, "mx1", "mx2")
			mx1, mx2 := f.hosts[0], f.hosts[1]
			session := uint64(0)
			ban := func(d time.Duration) {
				if manual {
					f.manual(mx1, p, d)
					return
				}
				session++
				mx1.memory.Bans.Add(&memory.Client{Addr: p.Addr()}, memory.BanRequest{
					Ladder: []time.Duration{d}, Rule: "x", Session: session,
				}, mx1.clock(f.now).UnixMicro())
			}
			mx1.memory.Follow()
			mx1.memory.Tick(f.now.UnixMicro())
			ban(10 * time.Hour)
			f.exchange()
			disk := stored(mx1.memory)
			f.now = f.now.Add(time.Hour)
			mx1.memory.Tick(f.now.UnixMicro())
			f.revoke(mx1, p)
			f.now = f.now.Add(time.Minute)
			ban(3 * time.Hour)
			f.exchange()
			f.now = f.now.Add(time.Minute)
			f.restore(mx1, disk)
			f.restartCompanion(mx1)
			mx1.replica.Resend()
			mx1.inbox = append(mx1.inbox, batch{"mx2", mx2.replica.Rows("mx2")})
			f.exchange()
			f.exchange()
			f.now = f.now.Add(time.Minute)
			hours := 9
			if long {
				hours = 40
			}
			ban(time.Duration(hours) * time.Hour)
			f.exchange()
			f.exchange()
			f.now = f.now.Add(time.Duration(hours)*time.Hour - time.Minute)
			for _, h := range f.hosts {
				if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
					t.Errorf("manual %t, %d h: %s does not enforce the ban", manual, hours, h.name)
				}
			}
		}
	}
}
