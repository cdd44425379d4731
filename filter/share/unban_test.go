package share

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// TestUnbanBeforeBan checks that an unban ends the earlier bans on other hosts, and clears their
// counts, even if its host bans the prefix again before it has sent the unban.
func TestUnbanBeforeBan(t *testing.T) {
	client := &memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}
	window := rules.Window{Evidence: rules.AuthFailure, Window: 24 * time.Hour, By: rules.BySrc}
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		for _, how := range []string{"", "filter restarted", "registers lost"} {
			t.Run(fmt.Sprint(prefix, " ", how), func(t *testing.T) {
				p := netip.MustParsePrefix(prefix)
				f := newFleet(t, "mx1", "mx2", "mx3")
				mx1, mx2, mx3 := f.hosts[0], f.hosts[1], f.hosts[2]
				mx3.memory.Counters.Watch([]rules.Window{window})
				mx2.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
				f.exchange()
				mx3.memory.Counters.Add(client, rules.AuthFailure, f.now.UnixMicro())
				f.now = f.now.Add(time.Minute)
				mx1.memory.Bans.Revoke(p, false, f.now.UnixMicro())
				f.now = f.now.Add(time.Minute)
				mx1.memory.Bans.AddPrefix(p, time.Hour, "own", f.now.UnixMicro())
				if how != "" {
					disk := stored(mx1.memory)
					mx1.memory = memory.New()
					mx1.memory.Load(slices.Values(disk), f.now.UnixMicro())
					mx1.memory.Announce()
				}
				if how == "registers lost" {
					mx1.replica = New("mx1", DefaultLimits())
					rows := mx1.replica.Own(mx1.memory.Outgoing(1<<20, 0), f.now)
					for _, h := range []*host{mx2, mx3} {
						h.inbox = append(h.inbox, batch{"mx1", rows})
					}
				}
				f.exchange()
				f.exchange()
				for _, h := range f.hosts {
					if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
						t.Errorf("%s: the later ban has ended", h.name)
					}
				}
				if n, _ := mx3.memory.Counters.Count(client, window, f.now.UnixMicro()); n != 0 {
					t.Errorf("mx3 counts %d events from before the unban", n)
				}
				mx3.memory.Counters.Add(client, rules.AuthFailure, f.now.UnixMicro())
				mx3.replica.Resend()
				f.exchange()
				if n, _ := mx3.memory.Counters.Count(client, window, f.now.UnixMicro()); n != 1 {
					t.Errorf("mx3 counts %d events from after the unban, want 1", n)
				}
				f.now = f.now.Add(2 * time.Hour)
				for _, h := range f.hosts {
					if b, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); ok {
						t.Errorf("%s: the earlier ban is still active: %+v", h.name, b)
					}
				}
			})
		}
	}
}

// TestUnbanSentOnce checks that a longer ban after a sent unban does not end other hosts' bans from
// after that unban.
func TestUnbanSentOnce(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	f := newFleet(t, "mx1", "mx2")
	mx1, mx2 := f.hosts[0], f.hosts[1]
	mx1.memory.Bans.AddPrefix(p, time.Hour, "x", f.now.UnixMicro())
	mx1.memory.Bans.Revoke(p, false, f.now.UnixMicro())
	mx1.memory.Bans.AddPrefix(p, time.Hour, "x", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(time.Minute)
	mx2.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(time.Minute)
	mx1.memory.Bans.AddPrefix(p, 2*time.Hour, "x", f.now.UnixMicro())
	f.exchange()
	f.exchange()
	f.now = f.now.Add(3 * time.Hour)
	for _, h := range f.hosts {
		if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
			t.Errorf("%s: the ban of mx2 has ended", h.name)
		}
	}
}

// TestNoUnbanAtStart checks that a host that joins a fleet, or has lost its registers, ends no ban of
// another host with a later ban of the same prefix.
func TestNoUnbanAtStart(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx1, mx2 := f.hosts[0], f.hosts[1]
	mx2.memory.Bans.AddPrefix(p, 24*time.Hour, "x", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(time.Minute)
	mx1.memory.Bans.AddPrefix(p, time.Hour, "own", f.now.UnixMicro())
	rows := mx1.replica.Own(mx1.memory.Outgoing(1<<20, 0), f.now)
	for _, h := range f.hosts[1:] {
		h.inbox = append(h.inbox, batch{"mx1", rows})
	}
	f.exchange()
	f.exchange()
	f.now = f.now.Add(2 * time.Hour)
	for _, h := range f.hosts {
		if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
			t.Errorf("%s: the ban of mx2 has ended", h.name)
		}
	}
}

// TestUnbanSentAgain checks that an unban that is sent again, because its host and the server have
// lost it, ends no ban that was imposed after the unban.
func TestUnbanSentAgain(t *testing.T) {
	for _, tt := range []struct{ first, later string }{
		{"192.0.2.1/32", "192.0.2.1/32"},
		{"192.0.2.0/24", "192.0.2.0/24"},
		{"2001:db8::/64", "2001:db8::/64"},
		{"2001:db8::/64", "2001:db8::25/128"},
	} {
		t.Run(fmt.Sprint(tt.first, " ", tt.later), func(t *testing.T) {
			first, later := netip.MustParsePrefix(tt.first), netip.MustParsePrefix(tt.later)
			f := newFleet(t, "mx1", "mx2", "mx3", "mx4")
			for _, h := range f.hosts {
				h.memory.UseKey([16]byte{1})
			}
			mx1, mx2, mx3, mx4 := f.hosts[0], f.hosts[1], f.hosts[2], f.hosts[3]
			mx1.memory.Bans.AddPrefix(first, 24*time.Hour, "x", f.now.UnixMicro())
			f.exchange()
			old := mx1.replica.Rows("mx1")
			f.now = f.now.Add(time.Minute)
			mx3.memory.Bans.Revoke(first, false, f.now.UnixMicro())
			mx3.memory.Bans.Disclaim(first, false, nil, f.now.UnixMicro())
			f.exchange()
			f.exchange()
			f.now = f.now.Add(time.Minute)
			if first == later {
				mx4.memory.Bans.AddPrefix(later, time.Hour, "new", f.now.UnixMicro())
			} else {
				named := &memory.Client{Addr: later.Addr(), Domain: "example.com"}
				mx4.memory.Bans.Add(named, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "new", Session: 9}, f.now.UnixMicro())
			}
			rows := f.send(mx4)
			mx2.replica = New("mx2", DefaultLimits()) // the ban of mx4 has not arrived
			mx2.inbox = []batch{{"mx1", old}}
			f.receive(mx2)
			again := f.send(mx2)
			if len(again) != 1 {
				t.Fatalf("the unban is not sent again: %+v", again)
			}
			for _, h := range f.hosts {
				if h != mx4 {
					h.inbox = append(h.inbox, batch{"mx4", rows})
				}
				if h != mx2 {
					h.inbox = append(h.inbox, batch{"mx2", again})
				}
			}
			for range 3 {
				f.now = f.now.Add(time.Second)
				f.exchange()
			}
			for _, h := range f.hosts {
				if _, ok := h.memory.Bans.Enforced(later, f.now.UnixMicro()); !ok {
					t.Errorf("%s: the later ban has ended", h.name)
				}
			}
			f.now = f.now.Add(2 * time.Hour)
			for _, h := range f.hosts {
				if b, ok := h.memory.Bans.Enforced(first, f.now.UnixMicro()); ok {
					t.Errorf("%s: the unbanned ban is active: %+v", h.name, b)
				}
			}
		})
	}
}

// TestOldUnbanAgain checks that an unban on another host, which arrives again after a restart or a
// loss of registers, does not end a ban that this host imposed after it had received the unban.
func TestOldUnbanAgain(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64"} {
		for _, later := range []bool{false, true} { // the other host has also banned the prefix again
			for _, how := range []string{"service stopped", "filter restarted", "ban before the state was read", "registers lost"} {
				if how == "ban before the state was read" && prefix == "192.0.2.0/24" {
					continue // only operators ban networks, after the state has been read
				}
				t.Run(fmt.Sprint(prefix, " ", later, " ", how), func(t *testing.T) {
					p := netip.MustParsePrefix(prefix)
					f := newFleet(t, "mx1", "mx2", "mx3")
					mx1, mx2 := f.hosts[0], f.hosts[1]
					for _, h := range f.hosts {
						h.memory.UseKey([16]byte{1})
						h.memory.UseName(h.name)
					}
					mx1.memory.Bans.AddPrefix(p, time.Hour, "x", f.now.UnixMicro())
					f.exchange()
					f.now = f.now.Add(time.Minute)
					mx2.memory.Bans.Revoke(p, false, f.now.UnixMicro())
					mx2.memory.Bans.Disclaim(p, false, nil, f.now.UnixMicro())
					f.now = f.now.Add(time.Second)
					f.exchange()
					f.exchange()
					if _, ok := mx1.memory.Bans.Enforced(p, f.now.UnixMicro()); ok {
						t.Fatal("the unban has not arrived")
					}
					f.now = f.now.Add(time.Minute)
					if later {
						mx2.memory.Bans.AddPrefix(p, 10*time.Second, "x", f.now.UnixMicro())
						f.exchange()
						f.now = f.now.Add(time.Minute)
					}
					ban := func() { mx1.memory.Bans.AddPrefix(p, 24*time.Hour, "own", f.now.UnixMicro()) }
					if how == "filter restarted" || how == "ban before the state was read" {
						disk := stored(mx1.memory)
						mx1.memory = memory.New()
						mx1.memory.UseName(mx1.name)
						if how != "filter restarted" {
							ban()
						}
						mx1.memory.Load(slices.Values(disk), f.now.UnixMicro())
					}
					if how != "ban before the state was read" {
						ban()
					}
					if how == "registers lost" {
						f.exchange()
					}
					if how == "service stopped" || how == "registers lost" {
						fresh := New("mx1", DefaultLimits())
						for _, h := range f.hosts {
							if rows := mx1.replica.Rows(h.name); h != mx1 || how != "registers lost" {
								if err := fresh.Apply(h.name, rows, f.now); err != nil {
									t.Fatal(err)
								}
							}
						}
						mx1.replica = fresh
					}
					f.now = f.now.Add(time.Minute)
					mx1.replica.Resend()
					f.receive(mx1)
					mx1.memory.Announce()
					rows := mx1.replica.Own(mx1.memory.Outgoing(1<<20, 0), f.now)
					for _, h := range f.hosts[1:] {
						h.inbox = append(h.inbox, batch{"mx1", rows})
					}
					f.exchange()
					f.exchange()
					for _, h := range f.hosts {
						if _, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok {
							t.Errorf("%s: the later ban has ended", h.name)
						}
					}
				})
			}
		}
	}
}

// TestBanAfterTwoUnbans checks that a host enforces a ban by another host that knew the latest
// unban, even if its own unban is the earlier one and it could not send it.
func TestBanAfterTwoUnbans(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx1, mx2, mx3 := f.hosts[0], f.hosts[1], f.hosts[2]
	for _, h := range f.hosts {
		h.memory.UseKey([16]byte{1})
	}
	mx1.memory.Bans.AddPrefix(p, time.Hour, "x", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(time.Minute)
	unban := func(h *host) {
		h.memory.Bans.Revoke(p, false, f.now.UnixMicro())
		h.memory.Bans.Disclaim(p, false, nil, f.now.UnixMicro())
	}
	unban(mx1)
	waiting := f.send(mx1)
	f.now = f.now.Add(time.Minute)
	unban(mx2)
	f.hosts = []*host{mx2, mx3} // mx1 cannot reach the server
	f.exchange()
	f.now = f.now.Add(time.Minute)
	mx2.memory.Bans.AddPrefix(p, 6*time.Hour, "later", f.now.UnixMicro())
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.hosts = []*host{mx1, mx2, mx3}
	mx1.inbox = []batch{{"mx2", mx2.replica.Rows("mx2")}}
	mx2.inbox = []batch{{"mx1", waiting}}
	mx3.inbox = []batch{{"mx1", waiting}}
	f.exchange()
	f.exchange()
	for _, h := range f.hosts {
		if b, ok := h.memory.Bans.Enforced(p, f.now.UnixMicro()); !ok || b.Rule != "later" {
			t.Errorf("%s: the later ban is not enforced: %+v", h.name, b)
		}
	}
}

// TestEndedBanIsGone checks that a ban that another host has ended does not take effect on a host
// that has joined since then, although the unban has been lost.
func TestEndedBanIsGone(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx1, mx3 := f.hosts[0], f.hosts[2]
	f.hosts = f.hosts[:2]
	f.ban(mx1, "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[1], "192.0.2.1")
	f.exchange()
	f.exchange()
	mx3.inbox = []batch{{"mx1", mx1.replica.Rows("mx1")}}
	f.receive(mx3)
	if b, ok := mx3.banned(f.now, "192.0.2.1"); ok {
		t.Errorf("%+v", b)
	}
}

// TestUnbanOfNewMember checks that an unban does not end a ban that started long after it on a host
// that did not know the unban.
func TestUnbanOfNewMember(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx3 := f.hosts[2]
	f.hosts = f.hosts[:2]
	f.ban(mx3, "192.0.2.1")
	f.now = f.now.Add(time.Minute)
	f.unban(mx3, "192.0.2.1")
	f.send(mx3)
	f.now = f.now.Add(7 * time.Hour)
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	f.hosts = append(f.hosts, mx3)
	for _, h := range f.hosts[:2] {
		h.inbox = append(h.inbox, batch{"mx3", mx3.replica.Rows("mx3")})
		mx3.inbox = append(mx3.inbox, batch{h.name, h.replica.Rows(h.name)})
	}
	f.exchange()
	f.exchange()
	for _, h := range f.hosts {
		if _, ok := h.banned(f.now, "192.0.2.1"); !ok {
			t.Error(h.name, "lost the later ban")
		}
	}
}

// TestUnbanInPartition checks that an unban that is sent late does not end the bans that another
// host has imposed since then, knowing an unban in between.
func TestUnbanInPartition(t *testing.T) {
	f := newFleet(t, "mx1", "mx2", "mx3")
	mx3 := f.hosts[2]
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	f.hosts = f.hosts[:2]
	f.now = f.now.Add(time.Minute)
	f.unban(mx3, "192.0.2.1") // cannot be sent
	f.now = f.now.Add(time.Minute)
	f.unban(f.hosts[1], "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Minute)
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	f.now = f.now.Add(time.Hour / 4)
	rows := f.send(mx3)
	for _, h := range f.hosts {
		h.inbox = append(h.inbox, batch{"mx3", rows})
		mx3.inbox = append(mx3.inbox, batch{h.name, h.replica.Rows(h.name)})
	}
	f.hosts = append(f.hosts, mx3)
	f.exchange()
	f.exchange()
	for _, h := range f.hosts {
		if _, ok := h.banned(f.now, "192.0.2.1"); !ok {
			t.Error(h.name, "lost the later ban")
		}
	}
}

// TestUnbanAfterCorrection checks that an unban ends the bans that the host of the unban knows, even
// if the clock of the host of a ban is corrected backward after the ban, before or after the unban.
func TestUnbanAfterCorrection(t *testing.T) {
	for _, tt := range []struct {
		name     string
		prefix   string
		manual   bool
		by       int  // host of the unban
		late     bool // the clock is corrected before the unban arrives
		resynced bool // all rows are exchanged between the correction and the unban
	}{
		{"a ban by a rule, unbanned elsewhere", "192.0.2.1/32", false, 1, false, true},
		{"a manual ban, unbanned elsewhere", "192.0.2.1/32", true, 1, false, true},
		{"before the rows are exchanged", "192.0.2.1/32", true, 1, false, false},
		{"a network", "192.0.2.0/24", true, 1, false, true},
		{"a manual ban, unbanned elsewhere before the correction", "192.0.2.1/32", true, 1, true, true},
		{"a ban by a rule, unbanned there", "192.0.2.1/32", false, 0, false, true},
		{"a manual ban, unbanned there", "192.0.2.1/32", true, 0, false, true},
		{"a network, unbanned there", "192.0.2.0/24", true, 0, false, true},
		{"unbanned there, before the rows are exchanged", "192.0.2.1/32", true, 0, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, "mx1", "mx2", "mx3")
			p := netip.MustParsePrefix(tt.prefix)
			for _, h := range f.hosts {
				h.known = true
				h.memory.UseKey([16]byte{1})
			}
			mx1, by := f.hosts[0], f.hosts[tt.by]
			mx1.skew = 50 * time.Minute
			if tt.manual {
				mx1.memory.Bans.AddPrefix(p, 24*time.Hour, "x", mx1.clock(f.now).UnixMicro())
			} else {
				f.ban(mx1, "192.0.2.1")
			}
			f.exchange()
			f.now = f.now.Add(time.Minute)
			unban := func() {
				ended := by.memory.Bans.Revoke(p, false, by.clock(f.now).UnixMicro())
				by.memory.Bans.Disclaim(p, false, ended, by.clock(f.now).UnixMicro())
			}
			correct := func() {
				if mx1.skew = 0; tt.resynced {
					mx1.memory.Announce()
					mx1.replica.Resend()
					if !tt.late {
						f.exchange()
					}
				}
			}
			first, then := correct, unban
			if tt.late {
				first, then = unban, correct
			}
			first()
			f.now = f.now.Add(time.Minute)
			then()
			for range 3 {
				f.exchange()
				f.now = f.now.Add(time.Minute)
			}
			for range 3 {
				for _, h := range f.hosts {
					if b, ok := h.memory.Bans.Enforced(p, h.clock(f.now).UnixMicro()); ok {
						t.Errorf("%s: %+v", h.name, b)
					}
				}
				f.now = f.now.Add(30 * time.Minute)
				for _, h := range f.hosts { // rows with times in the future are read again
					for _, name := range h.replica.Missed(f.now) {
						for _, other := range f.hosts {
							if other.name == name {
								h.inbox = append(h.inbox, batch{name, other.replica.Rows(name)})
							}
						}
					}
				}
				f.exchange()
				f.exchange()
			}
		})
	}
}
