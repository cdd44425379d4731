package memory

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/rules"
)

// from returns the rows that m sends, each labelled with the name of the host it comes from.
func from(m *Memory, origin string) (list []Foreign) {
	for _, e := range m.Outgoing(1000, 0) {
		list = append(list, Foreign{Entry: e, Origin: origin})
	}
	return list
}

func incoming(t *testing.T, m *Memory, now time.Duration, list ...Foreign) {
	t.Helper()
	if _, err := m.Incoming(list, 0, at(now)); err != nil {
		t.Fatal(err)
	}
}

// banRow returns another host's row with a ban that starts at since.
func banRow(p netip.Prefix, since, length time.Duration) Foreign {
	m := sharing()
	m.Bans.AddPrefix(p, length, "x", at(since))
	return from(m, "mx1")[0]
}

// unbanRows returns another host's rows with an unban.
func unbanRows(p netip.Prefix, within bool, origin string, now time.Duration) []Foreign {
	m := sharing()
	m.UseKey([16]byte{1})
	m.Bans.Disclaim(p, within, nil, at(now))
	return from(m, origin)
}

func enforced(m *Memory, p string, now time.Duration) bool {
	_, ok := m.Bans.Enforced(netip.MustParsePrefix(p), at(now))
	return ok
}

// restart returns new tables with the rows that m has stored.
func restart(m *Memory, name string, now time.Duration) *Memory {
	disk := m.Changes(10_000)
	slices.SortStableFunc(disk, func(a, b kv.Entry) int {
		return slices.Index(Buckets(), a.Bucket) - slices.Index(Buckets(), b.Bucket)
	})
	again := New()
	if name != "" {
		again.UseName(name)
	}
	again.Counters.Watch([]rules.Window{{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}})
	again.Load(slices.Values(disk), at(now))
	again.Announce()
	return again
}

// TestUnbanLasts checks that an earlier ban never replaces an unban, regardless of
// which host issued the unban and where the ban comes from.
func TestUnbanLasts(t *testing.T) {
	partial := func(f *Foreign) { f.Partial = true }
	for _, tt := range []struct {
		name   string
		since  time.Duration // of the ban; the unban is an hour after the start of the test
		change func(*Foreign)
		want   bool
	}{
		{"an earlier ban", 0, nil, false},
		{"an earlier ban in a file", 0, partial, false},
		{"a ban of the same second", time.Hour, nil, false},
		{"a later ban", 61 * time.Minute, nil, true},
		{"a later ban in a file", 61 * time.Minute, partial, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64"} {
				p := netip.MustParsePrefix(prefix)
				for _, own := range []bool{true, false} {
					m := sharing()
					if own {
						m.Bans.AddPrefix(p, 2*time.Hour, "x", at(0))
						m.Bans.Revoke(p, false, at(time.Hour))
						m.Outgoing(100, 0)
					} else {
						incoming(t, m, time.Hour, append(unbanRows(p, false, "mx2", time.Hour), banRow(p, 0, 2*time.Hour))...)
					}
					for _, m := range []*Memory{m, restart(m, "", time.Hour)} {
						m.Outgoing(100, 0)
						f := banRow(p, tt.since, 30*time.Hour)
						if tt.change != nil {
							tt.change(&f)
						}
						for range 2 {
							incoming(t, m, 62*time.Minute, f)
						}
						if got := enforced(m, prefix, 62*time.Minute); got != tt.want {
							t.Errorf("%s, own unban %v: banned %v", prefix, own, got)
						}
					}
				}
			}
		})
	}
}

// TestUnbanInOldFile checks that the unban in an old file does not end a later ban.
func TestUnbanInOldFile(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	m := sharing()
	unban := unbanRows(p, false, "mx2", 0)[0]
	unban.Partial = true
	ban := banRow(p, time.Minute, time.Hour)
	ban.Partial = true
	for range 2 {
		incoming(t, m, 2*time.Minute, ban, unban)
	}
	if !enforced(m, "192.0.2.1/32", 3*time.Minute) {
		t.Error("the ban has ended")
	}
}

// TestUnbanOfAheadBan checks that an unban is not earlier than its ban if the ban
// starts in the future because its host's clock is ahead. Readers of files have no
// other way to order the two.
func TestUnbanOfAheadBan(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		ban := banRow(p, 5*time.Minute, time.Hour)
		ban.Partial = true
		m, third := sharing(), sharing()
		incoming(t, m, 0, ban)
		m.Bans.Revoke(p, false, at(time.Minute))
		unban := from(m, "mx2")[0]
		unban.Partial = true
		incoming(t, m, 2*time.Minute, ban)
		incoming(t, third, 2*time.Minute, ban, unban, ban)
		for name, m := range map[string]*Memory{"mx2": m, "mx3": third} {
			if enforced(m, prefix, 3*time.Minute) {
				t.Errorf("%s: %s is banned again", name, prefix)
			}
			m.Bans.Each(func(b Ban) {
				if !b.Expired(time.UnixMicro(at(3 * time.Minute))) {
					t.Errorf("%s: an unbanned prefix counts as banned: %+v", name, b)
				}
			})
		}
		if read, ok := ReadBan(unban.Key, unban.Value); !ok || read.Until < at(5*time.Minute)/1e6 {
			t.Errorf("the unban has the time %v", read.Until)
		}
	}
}

// TestUnbanWithin checks that another host's unban of a range ends the earlier bans in
// the range, but no other bans.
func TestUnbanWithin(t *testing.T) {
	for _, tt := range []struct {
		name   string
		unban  string
		within bool
		banned string
		by     *Client // nil for a manual ban
		since  time.Duration
		want   bool // still banned
	}{
		{"a host in the network", "192.0.2.0/24", true, "192.0.2.1/32", who("192.0.2.1"), 0, false},
		{"a network in the network", "192.0.0.0/16", true, "192.0.2.0/24", nil, 0, false},
		{"a host outside", "192.0.2.0/24", true, "192.0.3.1/32", who("192.0.3.1"), 0, true},
		{"a later ban", "192.0.2.0/24", true, "192.0.2.1/32", who("192.0.2.1"), 61 * time.Minute, true},
		{"an unban of only the network", "192.0.2.0/24", false, "192.0.2.1/32", who("192.0.2.1"), 0, true},
		{"an IPv6 address with a name", "2001:db8::9/128", false, "2001:db8::1/128", named("2001:db8::1", "mail.example.org"), 0, false},
		{"an IPv6 address in another /64", "2001:db8::9/128", false, "2001:db8:0:1::1/128", named("2001:db8:0:1::1", "mail.example.org"), 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ban := func(m *Memory) {
				if tt.by != nil {
					m.Bans.Add(tt.by, BanRequest{Ladder: []time.Duration{9 * time.Hour}, Rule: "harvest"}, at(tt.since))
				} else {
					m.Bans.AddPrefix(netip.MustParsePrefix(tt.banned), 9*time.Hour, "x", at(tt.since))
				}
			}
			now := 62 * time.Minute
			f := unbanRows(netip.MustParsePrefix(tt.unban), tt.within, "mx2", time.Hour)
			imposer, other := sharing(), sharing()
			ban(imposer)
			row := from(imposer, "mx1")[0]
			for range 2 {
				incoming(t, imposer, now, f...)
			}
			if got := enforced(imposer, tt.banned, now); got != tt.want {
				t.Errorf("on the host that imposed the ban: banned %v", got)
			}
			ended := false // the ban must not return if the unban is lost
			for _, f := range from(imposer, "mx1") {
				b, _ := ReadBan(f.Key, f.Value)
				if ended = ended || bytes.Equal(f.Key, row.Key) && !b.Active(at(now)/1e6); b.Unbanned != 0 {
					t.Errorf("an unban is sent as this host's own: %v", b)
				}
			}
			if ended == tt.want {
				t.Errorf("other hosts receive that the ban has ended: %v", ended)
			}
			// A third host may receive the two rows in either order.
			incoming(t, other, now, row)
			incoming(t, other, now, f...)
			if got := enforced(other, tt.banned, now); got != tt.want {
				t.Errorf("first the ban, then the unban: banned %v", got)
			}
			other = sharing()
			incoming(t, other, now, f...)
			incoming(t, other, now, row)
			if got := enforced(other, tt.banned, now); got != tt.want {
				t.Errorf("first the unban, then the ban: banned %v", got)
			}
		})
	}
}

// TestLaterUnbanWithin checks that a second unban of the same range has an effect.
func TestLaterUnbanWithin(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.0/24")
	m := sharing()
	incoming(t, m, time.Hour, unbanRows(p, true, "mx2", time.Hour)...)
	m.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: []time.Duration{9 * time.Hour}, Rule: "harvest"}, at(2*time.Hour))
	m.Bans.AddPrefix(p, 9*time.Hour, "x", at(2*time.Hour))
	incoming(t, m, 2*time.Hour, unbanRows(p, true, "mx2", time.Hour)...)
	if !enforced(m, "192.0.2.1/32", 2*time.Hour) {
		t.Error("the first unban ends a later ban")
	}
	incoming(t, m, 3*time.Hour, unbanRows(p, true, "mx2", 3*time.Hour)...)
	if enforced(m, "192.0.2.1/32", 3*time.Hour) || enforced(m, "192.0.2.0/24", 3*time.Hour) {
		t.Error("the second unban has no effect")
	}
}

// TestEcho checks that a host with intact state ignores the server's copies of its
// rows, and that rows that the host has deleted are also deleted on the server.
func TestEcho(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		for _, origin := range []string{"", "mx1"} {
			for _, tt := range []struct {
				name  string
				fresh bool // the state was lost
				do    func(*Memory)
				until time.Duration // 0 if there is no ban
				sent  []string
			}{
				{"the same ban", false, func(*Memory) {}, 24 * time.Hour, []string{"bans true"}},
				{"a shortened ban", false, func(m *Memory) { m.Bans.AddPrefix(p, 2*time.Hour, "x", at(0)) }, 2 * time.Hour, []string{"bans true"}},
				{"an erased ban", false, func(m *Memory) { m.Erase(Erasure{Prefix: p, Bans: true}, at(0), false) }, 0, []string{"bans false"}},
				{"a lost state", true, func(m *Memory) {}, 24 * time.Hour, nil},
				{"a lost state with a new ban", true, func(m *Memory) { m.Bans.AddPrefix(p, 2*time.Hour, "x", at(0)) }, 2 * time.Hour, []string{"bans true"}},
			} {
				m := sharing()
				m.UseName("mx1")
				m.Bans.AddPrefix(p, 24*time.Hour, "x", at(0))
				f := from(m, origin)[0]
				if tt.fresh {
					m = sharing()
					m.UseName("mx1")
				}
				if tt.do(m); !tt.fresh {
					m = restart(m, "mx1", time.Minute)
				}
				for range 2 {
					incoming(t, m, time.Hour, f)
				}
				b, ok := m.Bans.Enforced(p, at(time.Hour))
				if ok != (tt.until != 0) || ok && b.Until.UnixMicro() != at(tt.until) {
					t.Errorf("%s, origin %q, %s: %v %+v", prefix, origin, tt.name, ok, b)
				}
				if got := describe(m.Outgoing(10, 0)); tt.sent != nil && !slices.Equal(got, tt.sent) {
					t.Errorf("%s, origin %q, %s: sent %v", prefix, origin, tt.name, got)
				}
			}
		}
	}
}

// TestEchoAfterSkew checks that this host's ban does not become longer if it is sent
// back while the server's clock is wrong.
func TestEchoAfterSkew(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	m := sharing()
	m.Bans.AddPrefix(p, time.Hour, "x", at(0))
	f := from(m, "")[0]
	if _, err := m.Incoming([]Foreign{f}, -1200, at(0)); err != nil {
		t.Fatal(err)
	}
	if b, _ := m.Bans.Enforced(p, at(0)); b.Until.UnixMicro() != at(time.Hour) {
		t.Errorf("%+v", b)
	}
}

// TestRenamed checks that a renamed host drops the counts that other hosts know under
// its former name, and that a host that joins or leaves a fleet, or keeps its name,
// keeps its counts.
func TestRenamed(t *testing.T) {
	c := who("192.0.2.1")
	window := rules.Window{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}
	for _, tt := range []struct {
		before, after string
		want          int
	}{{"mx1", "mx1", 3}, {"mx1", "mx2", 0}, {"", "mx1", 3}, {"mx1", "", 3}} {
		m := sharing()
		if tt.before != "" {
			m.UseName(tt.before)
		}
		for range 3 {
			m.Counters.Add(c, rules.AuthFailure, at(0))
		}
		m.Bans.Add(c, BanRequest{Ladder: hours, Rule: "guess"}, at(0))
		again := restart(m, tt.after, time.Minute)
		if n, _ := again.Counters.Count(c, window, at(time.Minute)); n != tt.want {
			t.Errorf("%q renamed to %q: %d, want %d", tt.before, tt.after, n, tt.want)
		}
		if !enforced(again, "192.0.2.1/32", time.Minute) {
			t.Errorf("%q renamed to %q: the ban is lost", tt.before, tt.after)
		}
		again = restart(again, tt.after, time.Minute)
		again.Counters.Add(c, rules.AuthFailure, at(time.Minute))
		if n, _ := restart(again, tt.after, time.Minute).Counters.Count(c, window, at(time.Minute)); n == 0 {
			t.Errorf("%q renamed to %q: counts are dropped at each start", tt.before, tt.after)
		}
	}
}

// TestOffencesElsewhere checks that another host's claims do not lengthen a ban that
// this host imposes, and that another host's ban does not shorten it.
func TestOffencesElsewhere(t *testing.T) {
	c := who("192.0.2.1")
	ladder := []time.Duration{10 * time.Minute, time.Hour, 4 * time.Hour, 100 * time.Hour}
	offend := func(m *Memory, now time.Duration) time.Duration {
		b := m.Bans.Add(c, BanRequest{Ladder: ladder, Rule: "guess"}, at(now))
		return b.Until.Sub(b.Since)
	}
	for _, tt := range []struct {
		name    string
		earlier []time.Duration // offences on this host
		since   time.Duration   // ban of another host
		length  time.Duration
		now     time.Duration
		want    time.Duration
	}{
		{"no offence here", nil, 0, time.Minute, time.Hour, 10 * time.Minute},
		{"one offence here", []time.Duration{0}, 20 * time.Minute, time.Minute, time.Hour, time.Hour},
		{"two offences here", []time.Duration{0, time.Hour}, 3 * time.Hour, time.Minute, 4 * time.Hour, 4 * time.Hour},
		{"an offence long ago", []time.Duration{0}, 40 * time.Hour, time.Hour, 42 * time.Hour, 10 * time.Minute},
		{"a long ban elsewhere", []time.Duration{0}, time.Hour, 50 * time.Hour, 52 * time.Hour, 10 * time.Minute},
		{"an active ban elsewhere", []time.Duration{0}, time.Hour, 2 * time.Hour, 150 * time.Minute, time.Hour},
		{"an active, longer ban elsewhere", nil, 0, 50 * time.Hour, time.Hour, 10 * time.Minute},
		{"an active, longer ban elsewhere after an offence here", []time.Duration{0}, 0, 50 * time.Hour, time.Hour, time.Hour},
	} {
		m := sharing()
		for _, e := range tt.earlier {
			offend(m, e)
		}
		f := banRow(netip.MustParsePrefix("192.0.2.1/32"), tt.since, tt.length)
		f.Value[banSize-2] = 200 // offences
		for range 2 {
			incoming(t, m, tt.since, f)
		}
		m = restart(m, "", tt.since)
		if b, _ := m.Bans.others.get(netip.MustParsePrefix("192.0.2.1/32")); b.times > 0 {
			t.Errorf("%s: %+v", tt.name, b)
		}
		if d := offend(m, tt.now); d != tt.want {
			t.Errorf("%s: banned for %v, want %v", tt.name, d, tt.want)
		}
	}
}

// TestManyElsewhere checks that an address is exempt here if another host has found
// that many hosts share it.
func TestManyElsewhere(t *testing.T) {
	c := named("192.0.2.1", "mail.example.org")
	there, here := sharing(), sharing()
	for i := range 6 {
		one := *c
		one.Helo = []byte{'h', '0' + byte(i), '.', 'a', '.', 'd', 'e'}
		there.Peers.Delivered(&one, Delivery{Messages: 1, Senders: []string{string([]byte{'a' + byte(i)}) + ".example"}}, at(time.Duration(i-7)*day))
	}
	if s := there.Peers.Excuse(c, at(0)); s != "many" {
		t.Fatalf("there: %q", s)
	}
	incoming(t, here, 0, from(there, "mx2")...)
	if s := here.Peers.Standing(c, at(0)); here.Peers.Excuse(c, at(0)) != "many" || s.Level != rules.StandingNone || s.Origin != "mx2" {
		t.Errorf("here: %+v", s)
	}
	// This host's own record takes precedence.
	here.Peers.Delivered(c, Delivery{Messages: 1, Senders: []string{"example.org"}}, at(-2*day))
	if s := here.Peers.Standing(c, at(0)); s.Level != rules.StandingKnown {
		t.Errorf("a known client: %+v", s)
	}
}

// TestIncomingBeforeLoad checks that no rows from other hosts are set before the stored
// unbans have been loaded.
func TestIncomingBeforeLoad(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	old := sharing()
	old.Bans.AddPrefix(p, time.Hour, "x", at(0))
	old.Bans.Revoke(p, false, at(time.Minute))
	m := New()
	m.Expect()
	f := banRow(p, 0, time.Hour)
	if _, err := m.Incoming([]Foreign{f}, 0, at(2*time.Minute)); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("error %v", err)
	}
	m.Load(slices.Values(old.Changes(100)), at(2*time.Minute))
	incoming(t, m, 2*time.Minute, f)
	if enforced(m, "192.0.2.1/32", 2*time.Minute) {
		t.Error("banned again")
	}
}

// TestForeignBanOnDisk checks that another host's ban is stored with the name of that host,
// apart from the bans of this host, and that its times follow the clock.
func TestForeignBanOnDisk(t *testing.T) {
	var b ban
	b.flags, b.since, b.until, b.extra = banForeign, 1000, 2000, 3000
	if b.shift(50); b.extra != 3050 || b.until != 2050 {
		t.Errorf("%+v", b)
	}
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		m := sharing()
		p := netip.MustParsePrefix(prefix)
		m.Bans.AddPrefix(p, time.Hour, "x", at(0))
		incoming(t, m, 0, banRow(p, 0, time.Hour))
		rows := map[string][]byte{}
		for _, e := range m.Changes(100) {
			rows[e.Bucket] = e.Value
		}
		if own, other := rows[BansBucket], rows[OthersBucket]; len(own) == 0 || bytes.Contains(own, []byte("mx1")) || !bytes.Contains(other, []byte("mx1"+originMark)) {
			t.Errorf("%s: %q, %q", prefix, own, other)
		}
	}
}

// TestEarlierLayout checks that another host's ban in the bucket of this host's bans, where
// earlier versions stored it, is deleted, and that other rows remain.
func TestEarlierLayout(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		for _, tt := range []struct {
			flags banFlags
			keep  bool
		}{{banForeign, false}, {banForeign | banRevoked, true}, {banManual, true}, {banRevoked, true}} {
			m := New()
			names := newRuleNames()
			row := ban{since: uint32(at(0) / 1e6), until: uint32(at(time.Hour) / 1e6), rule: names.number("r"), flags: tt.flags, extra: 7}
			m.Load(slices.Values([]kv.Entry{{Bucket: BansBucket, Key: prefixKey(p), Value: names.value(row)}}), at(0))
			got, ok := m.Bans.own.get(p)
			if ok != tt.keep || ok && (got.flags != tt.flags || got.until != row.until) {
				t.Errorf("%s, flags %b: %+v, %v", prefix, tt.flags, got, ok)
			}
			deleted := slices.ContainsFunc(m.Changes(100), func(e kv.Entry) bool { return e.Bucket == BansBucket && e.Value == nil })
			if deleted == tt.keep {
				t.Errorf("%s, flags %b: deleted from the file: %v", prefix, tt.flags, deleted)
			}
		}
	}
}

// TestUnbanAfterBackup checks that a host whose state was restored from a backup receives its
// own unban from the server, and that a later ban remains.
func TestUnbanAfterBackup(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		for _, later := range []bool{false, true} {
			m := sharing()
			m.UseName("mx1")
			m.Bans.AddPrefix(p, 24*time.Hour, "x", at(0))
			backup := restart(m, "mx1", time.Minute)
			m.Bans.Revoke(p, false, at(time.Minute))
			f := from(m, "mx1")[0]
			if later {
				backup.Bans.AddPrefix(p, time.Hour, "y", at(time.Minute+time.Second))
			}
			incoming(t, backup, time.Hour/2, f)
			if ok := enforced(backup, prefix, time.Hour/2); ok != later {
				t.Errorf("%s, later ban %v: banned %v", prefix, later, ok)
			}
			if b, ok := backup.Bans.Enforced(p, at(time.Hour/2)); ok && b.Origin != "" {
				t.Errorf("%+v", b)
			}
		}
	}
}

// TestSecondUnban checks that a second unban of a prefix also clears the counts, and
// ends earlier bans from old files. A repeated unban has no effect.
func TestSecondUnban(t *testing.T) {
	const prefix = "192.0.2.1/32"
	p := netip.MustParsePrefix(prefix)
	window := rules.Window{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}
	for _, partial := range []bool{false, true} {
		m := sharing()
		count := func() int {
			n, _ := m.Counters.Count(who("192.0.2.1"), window, at(5*time.Hour))
			return n
		}
		unban := func(when time.Duration) {
			f := unbanRows(p, false, "mx2", when)
			f[0].Partial = partial
			incoming(t, m, when+time.Second, f...)
		}
		unban(time.Hour)
		m.Logins.Failed(who("192.0.2.1"), at(2*time.Hour))
		unban(time.Hour)
		if n := count(); n != 1 {
			t.Errorf("partial %v: the same unban: %d failures", partial, n)
		}
		unban(3 * time.Hour)
		if n := count(); n != 0 {
			t.Errorf("partial %v: the second unban: %d failures", partial, n)
		}
		f := banRow(p, 2*time.Hour, 24*time.Hour)
		f.Partial, f.Origin = true, "mx2"
		incoming(t, m, 4*time.Hour, f)
		if enforced(m, prefix, 4*time.Hour) {
			t.Errorf("partial %v: a ban from before the second unban", partial)
		}
	}
}

// TestUnbanWithinSameSecond checks that an unban of a range also ends a ban in the range that was
// imposed in the same second.
func TestUnbanWithinSameSecond(t *testing.T) {
	for _, tt := range []struct {
		since time.Duration
		want  bool
	}{{time.Hour - time.Second, false}, {time.Hour, false}, {time.Hour + time.Second, true}} {
		for _, unbanFirst := range []bool{false, true} {
			m := sharing()
			ban, unban := banRow(netip.MustParsePrefix("192.0.2.1/32"), tt.since, 24*time.Hour), unbanRows(netip.MustParsePrefix("192.0.2.0/24"), true, "mx3", time.Hour)
			ban.Origin = "mx2"
			if unbanFirst {
				incoming(t, m, time.Hour, append(unban, ban)...)
			} else {
				incoming(t, m, time.Hour, append([]Foreign{ban}, unban...)...)
			}
			if got := enforced(m, "192.0.2.1/32", time.Hour+time.Minute); got != tt.want {
				t.Errorf("ban %v before the unban, unban first %v: banned %v", time.Hour-tt.since, unbanFirst, got)
			}
		}
	}
}

// TestBooks checks that a ban of this host and another host's ban of the same prefix are listed,
// counted and stored separately, that neither shortens the other, that firewalls contain the longer
// one, and that an unban ends both.
func TestBooks(t *testing.T) {
	c := who("192.0.2.1")
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		for _, foreign := range []bool{false, true} { // the unban is another host's
			m := sharing()
			m.Bans.HaveStanding()
			incoming(t, m, 0, banRow(p, 0, 9*time.Hour))
			m.Bans.AddPrefix(p, time.Hour, "own", at(0))
			incoming(t, m, 0, banRow(p, 0, 8*time.Hour))
			list := func() (rules []string) {
				m.Bans.Each(func(b Ban) { rules = append(rules, b.Rule+b.On()+" "+b.Until.Sub(b.Since).String()) })
				return rules
			}
			want := []string{"own 1h0m0s", "x on mx1 8h0m0s"}
			if got := list(); !slices.Equal(got, want) || m.Bans.Count(at(time.Minute)) != (BanCount{Active: 2}) {
				t.Errorf("%s: %q, %+v", prefix, got, m.Bans.Count(at(time.Minute)))
			}
			bans := m.Bans.Banned(c, at(time.Minute))
			if len(bans) != 2 || bans[0].Origin != "" || bans[1].Origin != "mx1" {
				t.Errorf("%s: %+v", prefix, bans)
			}
			end := time.Hour
			m.Bans.Rejected(&bans[1], at(time.Minute))
			if p.IsSingleIP() {
				end = 8 * time.Hour
			}
			if b, _ := m.Bans.Enforced(p, at(time.Minute)); b.Firewall.UnixMicro() != at(end) {
				t.Errorf("%s: in firewalls until %v", prefix, b.Firewall)
			}
			m.Bans.Withhold(p)
			if b, _ := m.Bans.Enforced(p, at(time.Minute)); b.Firewall.UnixMicro() != at(time.Hour) {
				t.Errorf("%s: in firewalls until %v after an exempt client has connected", prefix, b.Firewall)
			}
			m = restart(m, "", time.Minute)
			if got := list(); !slices.Equal(got, want) {
				t.Errorf("%s: after a restart: %q", prefix, got)
			}
			if bans := m.Bans.Banned(c, at(2*time.Hour)); len(bans) != 1 || bans[0].Origin != "mx1" {
				t.Errorf("%s: after the end of this host's ban: %+v", prefix, bans)
			}
			if foreign {
				incoming(t, m, 10*time.Minute, unbanRows(p, false, "mx2", 10*time.Minute)...)
			} else if ended := m.Bans.Revoke(p, false, at(10*time.Minute)); len(ended) != 2 || ended[0].Rule != "own" || ended[1].Rule != "x" {
				t.Errorf("%s: revoked %+v", prefix, ended)
			}
			incoming(t, m, 11*time.Minute, banRow(p, 0, 9*time.Hour))
			if bans := m.Bans.Banned(c, at(12*time.Minute)); len(bans) > 0 {
				t.Errorf("%s, other host's unban %v: still banned: %+v", prefix, foreign, bans)
			}
		}
	}
}

// TestFriendBanAfterFleetUnban checks that a friend's ban remains after an earlier unban of the fleet,
// and after the fleet no longer has a ban of the prefix.
func TestFriendBanAfterFleetUnban(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64"} {
		p := netip.MustParsePrefix(prefix)
		m := sharing()
		fleet := banRow(p, 0, time.Hour)
		incoming(t, m, time.Minute, fleet)
		friend := banRow(p, 2*time.Hour, 24*time.Hour)
		friend.Origin, friend.Partial = FriendPrefix+"mx9", true
		incoming(t, m, 3*time.Hour, friend)
		fleet.Value, fleet.Origin = nil, ""
		incoming(t, m, 3*time.Hour, append(unbanRows(p, false, "mx2", time.Hour), fleet)...)
		if !enforced(m, prefix, 3*time.Hour) {
			t.Errorf("%s: the ban of the friend has ended", prefix)
		}
	}
}

// TestFriendBanAfterFleetBan checks that a friend's ban remains if an expired ban of the fleet arrives
// again after a restart.
func TestFriendBanAfterFleetBan(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64"} {
		p := netip.MustParsePrefix(prefix)
		m := sharing()
		m.UseName("mx5")
		fleet := banRow(p, 0, time.Hour)
		incoming(t, m, time.Minute, fleet)
		friend := banRow(p, 2*time.Hour, 24*time.Hour)
		friend.Origin, friend.Partial = FriendPrefix+"mx9", true
		incoming(t, m, 3*time.Hour, friend)
		m = restart(m, "mx5", 3*time.Hour)
		incoming(t, m, 3*time.Hour, fleet)
		if !enforced(m, prefix, 3*time.Hour) {
			t.Errorf("%s: the ban of the friend has ended", prefix)
		}
	}
}

// TestManyRuleNames checks that a ban keeps the name of the other host that imposed it, even if this
// host or other hosts have used up all names of rules.
func TestManyRuleNames(t *testing.T) {
	for name, fill := range map[string]func(*ruleNames, int){
		"own":   func(n *ruleNames, i int) { n.number(fmt.Sprint(i)) },
		"other": func(n *ruleNames, i int) { n.foreign("mx3", fmt.Sprint(i)) },
		"both":  func(n *ruleNames, i int) { n.foreign("mx3", fmt.Sprint(i)); n.number(fmt.Sprint(i)) },
	} {
		n := newRuleNames()
		for i := range 2 * maxNames {
			fill(&n, i)
		}
		if origin, _ := splitOrigin(n.list[n.foreign("mx4", "r")]); origin != "mx4" {
			t.Errorf("%s: origin %q", name, origin)
		}
		if origin, _ := splitOrigin(n.list[n.number("r")]); origin != "" || len(n.list) > maxNames {
			t.Errorf("%s: origin %q, %d names", name, origin, len(n.list))
		}
	}
}

// TestHostileRuleNames checks that no host can use up the names of rules. Its later ban would then
// count as this host's, and affect exempt clients.
func TestHostileRuleNames(t *testing.T) {
	m := New()
	m.UseKey([16]byte{1})
	m.UseName("mx1")
	m.Bans.HaveStanding()
	m.Announce()
	now := at(0)
	start := uint32(now / 1e6)
	send := func(p netip.Prefix, b ban, rule string) {
		t.Helper()
		names := newRuleNames()
		b.rule, b.session = names.number(rule), 5
		if _, err := m.Incoming([]Foreign{{Entry: kv.Entry{Bucket: BansBucket, Key: prefixKey(p), Value: names.value(b)}, Origin: "mx3"}}, 0, now); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxForeignNames + 100 { // each unban that this host sends again needs a separate name
		p := netip.PrefixFrom(manyHosts(i).Addr, 32)
		send(p, ban{since: start - 10000, until: start - 100, flags: banRevoked}, fmt.Sprint("r", i))
		send(p, ban{since: start - 10000, until: start + 10000}, "x")
	}
	m.Outgoing(1<<20, 0)
	victim := netip.MustParsePrefix("192.0.2.1/32")
	send(victim, ban{since: start - 5, until: start + daySeconds, flags: banManual}, "x")
	if got := m.Bans.Banned(&Client{Addr: victim.Addr()}, now); len(got) != 1 || got[0].Origin != "mx3" {
		t.Errorf("bans %+v", got)
	}
}
