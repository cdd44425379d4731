package memory

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/rules"
)

// sharing returns tables with a fixed key, whose changes are sent to other hosts.
func sharing() *Memory {
	m := New()
	m.Load(slices.Values([]kv.Entry{{Bucket: "secret", Key: []byte("hash"), Value: make([]byte, 16)}}), at(0))
	m.Counters.Watch([]rules.Window{{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}, {Evidence: rules.AuthFailure, Window: day, By: rules.BySite}})
	m.Announce()
	return m
}

// pass sends the changed rows of one host to another.
func pass(t *testing.T, from, to *Memory, skewFrom, skewTo int64, now time.Duration) {
	t.Helper()
	var list []Foreign
	for _, e := range from.Outgoing(1<<20, skewFrom) {
		list = append(list, Foreign{Entry: e, Origin: "mx1"})
	}
	if _, err := to.Incoming(list, skewTo, at(now)); err != nil {
		t.Fatal(err)
	}
}

// describe returns the table of each outgoing row, and whether the row has a value.
func describe(list []kv.Entry) (out []string) {
	for _, e := range list {
		out = append(out, fmt.Sprint(e.Bucket, " ", e.Value != nil))
	}
	slices.Sort(out)
	return out
}

// TestOutgoing checks which changes are sent, and that each is sent only once.
func TestOutgoing(t *testing.T) {
	c := who("192.0.2.1")
	c.User = []byte("alice")
	m := New()
	m.Bans.Add(c, BanRequest{Ladder: hours, Rule: "harvest"}, at(0))
	if list := m.Outgoing(100, 0); len(list) != 0 {
		t.Errorf("before Announce: %v", list)
	}
	m.Announce()
	if got := describe(m.Outgoing(100, 0)); !slices.Equal(got, []string{"bans true"}) {
		t.Errorf("after Announce: %v", got)
	}
	m = sharing()
	for _, tt := range []struct {
		name string
		do   func()
		want []string
	}{
		{"nothing", func() {}, nil},
		{"a ban", func() { m.Bans.Add(c, BanRequest{Ladder: hours, Rule: "harvest"}, at(0)) }, []string{"bans true"}},
		{"an observed ban", func() { m.Bans.Add(who("192.0.2.9"), BanRequest{Ladder: hours, Rule: "x", Observe: true}, at(0)) }, []string{"bans false"}},
		{"a ban of a network", func() { m.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/24"), time.Hour, "x", at(0)) }, []string{"bans true"}},
		{"an unban of a network", func() { m.Bans.Revoke(netip.MustParsePrefix("198.51.100.0/24"), false, at(0)) }, []string{"bans true"}},
		{"mail", func() { m.Peers.Delivered(c, Delivery{Messages: 1}, at(0)) }, []string{"peers true"}},
		{"a login", func() { m.Logins.Succeeded(c, at(0)) }, []string{"peers true"}},
		{"a rejected recipient", func() { m.Recipients.Refused(c, []byte("x@example.org"), at(0)) }, []string{"recipients true"}},
		{"a failed login", func() { m.Logins.Failed(who("192.0.2.1"), at(0)) }, []string{"counters true", "counters true", "sprays true", "sprays true", "sprays true"}},
		{"an unban", func() {
			m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), false, at(0))
			m.Forget(netip.MustParsePrefix("192.0.2.1/32"))
		}, []string{"bans true", "counters false", "sprays false", "sprays false"}},
		{"an erasure", func() {
			m.Erase(Erasure{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Mailbox: []byte("x@example.org")}, at(0), false)
		}, []string{"bans false", "peers false", "peers false", "recipients false"}},
	} {
		tt.do()
		if got := describe(m.Outgoing(100, 0)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if again := m.Outgoing(100, 0); len(again) != 0 {
			t.Errorf("%s: sent again: %v", tt.name, again)
		}
	}
	for i := range 9 {
		m.Peers.Delivered(who(fmt.Sprintf("192.0.2.%d", i)), Delivery{Messages: 1}, at(0))
	}
	if a, b := m.Outgoing(5, 0), m.Outgoing(5, 0); len(a) != 5 || len(b) != 4 {
		t.Errorf("%d and %d rows of nine", len(a), len(b))
	}
}

// TestEvictedIsNotSent checks that an evicted row is not deleted on other hosts.
func TestEvictedIsNotSent(t *testing.T) {
	m := sharing()
	m.Limit(1)
	for i := range 150 {
		m.Peers.Delivered(who(fmt.Sprintf("192.0.2.%d", i)), Delivery{Messages: 1}, at(0))
	}
	list := m.Outgoing(1000, 0)
	if len(list) != 100 || slices.ContainsFunc(list, func(e kv.Entry) bool { return e.Value == nil }) {
		t.Errorf("%d rows: %v", len(list), describe(list))
	}
}

// TestLoadedIsSent checks that rows from disk are sent even if sharing started before
// they were loaded.
func TestLoadedIsSent(t *testing.T) {
	old := New()
	old.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: hours, Rule: "harvest"}, at(0))
	old.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/24"), time.Hour, "x", at(0))
	old.Peers.Delivered(who("192.0.2.1"), Delivery{Messages: 1}, at(0))
	m := New()
	m.Announce()
	m.Load(slices.Values(old.Changes(100)), at(0))
	if got := describe(m.Outgoing(100, 0)); !slices.Equal(got, []string{"bans true", "bans true", "peers true"}) {
		t.Errorf("%v", got)
	}
}

// TestKeyIsLoaded checks that rows hashed with a former key are deleted on other hosts.
func TestKeyIsLoaded(t *testing.T) {
	m := New()
	m.Announce()
	m.Recipients.Accepted([]byte("x@example.org"), at(0))
	m.Peers.WroteTo("example.net", at(0))
	m.Peers.Delivered(who("192.0.2.1"), Delivery{Messages: 1, Senders: []string{"example.net"}}, at(0))
	m.Outgoing(100, 0)
	m.Load(slices.Values([]kv.Entry{{Bucket: "secret", Key: []byte("hash"), Value: make([]byte, 16)}}), at(0))
	if got := describe(m.Outgoing(100, 0)); !slices.Equal(got, []string{"peers false", "peers true", "recipients false"}) {
		t.Errorf("%v", got)
	}
}

// TestForeignRows checks that the number of other hosts' rows is limited, and that only bans
// and standing are written to disk.
func TestForeignRows(t *testing.T) {
	from, to := sharing(), sharing()
	to.Limit(1)
	for i := range 90 {
		from.Peers.Delivered(who(fmt.Sprintf("192.0.2.%d", i)), Delivery{Messages: 1}, at(0))
	}
	from.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: hours, Rule: "harvest"}, at(0))
	to.Changes(100)
	pass(t, from, to, 0, 0, 0)
	if n := foreignRows(to); n != 50 {
		t.Errorf("%d rows, limit 50", n)
	}
	disk := to.Changes(1000)
	standing := 0
	for _, e := range disk {
		if e.Bucket == ElsewhereBucket {
			standing++
		}
	}
	if standing != 50 || len(disk) != standing+1 || !slices.ContainsFunc(disk, func(e kv.Entry) bool { return e.Bucket == OthersBucket }) {
		t.Errorf("on disk: %v", describe(disk))
	}
	again := New()
	again.Load(slices.Values(disk), at(time.Minute))
	if b, ok := first(again.Bans.Banned(who("192.0.2.1"), at(time.Minute))); !ok || b.Origin != "mx1" || b.Rule != "harvest" {
		t.Errorf("after a restart: %+v", b)
	}
	again.Announce()
	if list := again.Outgoing(100, 0); len(list) != 0 {
		t.Errorf("another host's ban is sent: %v", describe(list))
	}
	// There is always room for the operator's bans. Unbans of other hosts are stored with them.
	from.Outgoing(1000, 0)
	from.Bans.AddPrefix(netip.MustParsePrefix("10.0.0.0/24"), time.Hour, "x", at(0))
	from.Bans.Revoke(netip.MustParsePrefix("10.0.0.0/24"), false, at(0))
	f := Foreign{Entry: from.Outgoing(1, 0)[0], Origin: "evil"}
	var list []Foreign
	for i := range maxNetworkBans {
		f.Key = prefixKey(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		list = append(list, f)
	}
	if _, err := to.Incoming(list, 0, at(0)); err != nil {
		t.Fatal(err)
	}
	if n := len(to.Bans.own.networks.rows); n != maxNetworkBans/maxForeign {
		t.Errorf("%d networks", n)
	}
}

// TestEraseForeign checks that an erasure includes other hosts' rows.
func TestEraseForeign(t *testing.T) {
	from, to := sharing(), sharing()
	c := who("192.0.2.1")
	c.User = []byte("alice")
	from.Peers.Delivered(c, Delivery{Messages: 1}, at(0))
	from.Recipients.Accepted([]byte("alice@example.org"), at(0))
	from.Logins.Failed(c, at(0))
	from.Peers.Delivered(who("203.0.113.9"), Delivery{Messages: 1}, at(0))
	pass(t, from, to, 0, 0, 0)
	before := foreignRows(to)
	e := Erasure{Prefix: netip.MustParsePrefix("192.0.2.1/32"), User: []byte("alice"), Mailbox: []byte("alice@example.org")}
	want := map[string]int{"known clients": 1, "recipients": 1, "counters": 1, "login sprays": 2}
	for _, dry := range []bool{true, false} {
		if got := to.Erase(e, at(0), dry); fmt.Sprint(got.Rows) != fmt.Sprint(want) {
			t.Errorf("dry %v: %v, want %v", dry, got.Rows, want)
		}
	}
	if n := before - foreignRows(to); n != 5 {
		t.Errorf("%d rows erased of %d", n, before)
	}
}

// TestTimes checks that times are converted if hosts' clocks differ, or if a host's
// clock is known to be wrong.
func TestTimes(t *testing.T) {
	from, to := sharing(), sharing()
	from.clock.offset.Store(-(48 * time.Hour).Microseconds()) // rows are two days later than events
	ahead := time.Hour                                        // of the clock of from
	from.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: hours, Rule: "harvest"}, at(ahead))
	from.Logins.Failed(who("192.0.2.1"), at(ahead))
	pass(t, from, to, -3600, 0, 0)
	if b, ok := to.Bans.Enforced(netip.MustParsePrefix("192.0.2.1/32"), at(0)); !ok || b.Since.UnixMicro() != at(0) || b.Until.UnixMicro() != at(time.Hour) {
		t.Errorf("%v %+v", ok, b)
	}
	back := sharing()
	back.clock.offset.Store((24 * time.Hour).Microseconds())
	from.Announce()
	pass(t, from, back, -3600, 600, 10*time.Minute) // the clock of back is ten minutes slow
	if b, ok := back.Bans.Enforced(netip.MustParsePrefix("192.0.2.1/32"), at(0)); !ok || b.Since.UnixMicro() != at(-10*time.Minute) {
		t.Errorf("%v %+v", ok, b)
	}
}

// TestInvalidForeign checks that rows are set even if another row is invalid.
func TestInvalidForeign(t *testing.T) {
	from, to := sharing(), sharing()
	from.Peers.Delivered(who("192.0.2.1"), Delivery{Messages: 1}, at(0))
	valid := Foreign{Entry: from.Outgoing(1, 0)[0], Origin: "mx1"}
	bad := Foreign{Entry: kv.Entry{Bucket: peersBucket, Key: []byte("x"), Value: []byte("y")}, Origin: "mx1"}
	other := Foreign{Entry: kv.Entry{Bucket: "secret", Key: []byte("hash"), Value: make([]byte, 16)}, Origin: "mx1"}
	if _, err := to.Incoming([]Foreign{bad, other, valid}, 0, at(0)); err == nil || foreignRows(to) != 1 {
		t.Errorf("%v, %d rows", err, foreignRows(to))
	}
}

// TestForeignBans checks how another host's row changes a ban that this host imposed. Only an
// unban does.
func TestForeignBans(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	ban := func(m *Memory, d time.Duration) { m.Bans.AddPrefix(p, d, "x", at(0)) }
	unban := func(m *Memory) { m.Bans.Revoke(p, false, at(time.Minute)) }
	sent := func(m *Memory) { m.Outgoing(100, 0) }
	for _, tt := range []struct {
		name   string
		here   func(m *Memory)
		there  func(m *Memory)
		change func(f *Foreign)
		until  time.Duration // end of the ban; 0 if there is none
		origin string
	}{
		{"no ban here", func(*Memory) {}, func(m *Memory) { ban(m, time.Hour) }, nil, time.Hour, "mx1"},
		{"a shorter ban here", func(m *Memory) { ban(m, time.Hour) }, func(m *Memory) { ban(m, 2*time.Hour) }, nil, time.Hour, ""},
		{"a longer ban here", func(m *Memory) { ban(m, 2*time.Hour) }, func(m *Memory) { ban(m, time.Hour) }, nil, 2 * time.Hour, ""},
		{"an unban there", func(m *Memory) { ban(m, time.Hour) }, func(m *Memory) { ban(m, time.Hour); unban(m) }, nil, 0, ""},
		{"an unban here that is not sent", func(m *Memory) { ban(m, time.Hour); sent(m); unban(m) }, func(m *Memory) { ban(m, 2*time.Hour) }, nil, 0, ""},
		{"an unban here before the ban", func(m *Memory) { ban(m, time.Hour); unban(m); sent(m) }, func(m *Memory) { m.Bans.AddPrefix(p, 2*time.Hour, "x", at(61*time.Second)) }, nil, 2*time.Hour + 61*time.Second, "mx1"},
		{"a row sent back", func(*Memory) {}, func(m *Memory) { ban(m, time.Hour) }, func(f *Foreign) { f.Origin = "" }, time.Hour, ""},
		{"a row sent back after an unban", func(m *Memory) { ban(m, time.Hour); unban(m); sent(m) }, func(m *Memory) { ban(m, time.Hour) }, func(f *Foreign) { f.Origin = "" }, 0, ""},
		{"a row sent back after it was erased", func(m *Memory) {
			ban(m, time.Hour)
			sent(m)
			m.Erase(Erasure{Prefix: p, Bans: true}, at(0), false)
		}, func(m *Memory) { ban(m, time.Hour) }, func(f *Foreign) { f.Origin = "" }, 0, ""},
		{"a deletion of another row", func(m *Memory) { ban(m, time.Hour) }, func(m *Memory) { ban(m, time.Hour) }, func(f *Foreign) { f.Value = nil }, time.Hour, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
				p = netip.MustParsePrefix(prefix)
				here, there := sharing(), sharing()
				tt.here(here)
				tt.there(there)
				f := Foreign{Entry: there.Outgoing(1, 0)[0], Origin: "mx1"}
				if tt.change != nil {
					tt.change(&f)
				}
				for range 2 { // repetition has no influence
					if _, err := here.Incoming([]Foreign{f}, 0, at(2*time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				b, ok := here.Bans.Enforced(p, at(3*time.Minute))
				if ok != (tt.until > 0) || ok && (b.Until.UnixMicro() != at(tt.until) || b.Origin != tt.origin) {
					t.Errorf("%v: %v %+v", p, ok, b)
				}
			}
		})
	}
}

// TestUnbanAhead checks that an unban ends a ban immediately, even if the sending
// host's clock is ahead, and clears the counts only once.
func TestUnbanAhead(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	here, there := sharing(), sharing()
	there.Bans.AddPrefix(p, 2*time.Hour, "x", at(20*time.Minute))
	there.Bans.Revoke(p, false, at(20*time.Minute))
	c := who("192.0.2.1")
	here.Bans.Add(c, BanRequest{Ladder: hours, Rule: "guess"}, at(0))
	count := func() int {
		n, _ := here.Counters.Count(c, rules.Window{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}, at(time.Minute))
		return n
	}
	f := Foreign{Entry: there.Outgoing(1, 0)[0], Origin: "mx1"}
	for i, want := range []int{0, 1} {
		here.Counters.Add(c, rules.AuthFailure, at(0))
		if _, err := here.Incoming([]Foreign{f}, 0, at(0)); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != want {
			t.Errorf("the unban arrived %d times: %d, want %d", i+1, n, want)
		}
	}
	if b, ok := first(here.Bans.Banned(c, at(time.Second))); ok {
		t.Errorf("%+v", b)
	}
}

// TestTogether checks how much other hosts' counts add to this host's count.
func TestTogether(t *testing.T) {
	for _, c := range [][3]int{{0, 99, 0}, {1, 99, 1}, {2, 99, 6}, {3, 99, 9}, {5, 4, 9}, {9, 0, 9}} {
		if n := together(c[0], c[1]); n != c[2] {
			t.Errorf("%d here and %d elsewhere count as %d, want %d", c[0], c[1], n, c[2])
		}
	}
}

// TestCombineCounters checks that one host's old counts neither add to nor replace
// another host's new counts.
func TestCombineCounters(t *testing.T) {
	count := func(slot uint32, n int) counter {
		c := counter{head: slot}
		c.add(n)
		return c
	}
	for _, tt := range []struct {
		a, b counter
		want int
	}{
		{count(100, 1), count(100, 2), 3},
		{count(100, 1), count(105, 2), 3},
		{count(100, 1), count(106, 2), 2},
		{count(100, 1), count(500, 2), 2},
		{count(100, 1<<16-1), count(100, 2), 1<<16 - 1},
	} {
		for range 2 {
			sum := tt.a
			if combineCounters(counterKey{}, &sum, tt.b); sum.sum() != tt.want {
				t.Errorf("%v and %v: %v", tt.a, tt.b, sum)
			}
			tt.a, tt.b = tt.b, tt.a
		}
	}
}

// TestForeignUnban checks that this host's unban of another host's ban persists, is
// sent to other hosts, and counts as this host's own, even if the ban was only
// observed.
func TestForeignUnban(t *testing.T) {
	p := netip.MustParsePrefix("192.0.2.1/32")
	for _, observe := range []bool{false, true} {
		from, to := sharing(), sharing()
		from.Bans.Add(who("192.0.2.1"), BanRequest{Ladder: hours, Rule: "harvest"}, at(0))
		row := Foreign{Entry: from.Outgoing(1, 0)[0], Origin: "mx1"}
		row.Value = LimitBan(row.Value, day, observe)
		if _, err := to.Incoming([]Foreign{row}, 0, at(0)); err != nil {
			t.Fatal(err)
		}
		if n := to.Origins()["mx1"]; n != 1 {
			t.Errorf("%d rows of mx1", n)
		}
		if ended := to.Bans.Revoke(p, false, at(time.Minute)); len(ended) != 1 || ended[0].Origin != "" || ended[0].Revocation() != "revoked" {
			t.Errorf("observe %v: %+v", observe, ended)
		}
		if got := describe(to.Outgoing(10, 0)); !slices.Equal(got, []string{"bans true"}) {
			t.Errorf("observe %v: sent %v", observe, got)
		}
	}
}

// TestRoomForOwnBans checks that bans by other hosts do not evict this host's bans.
func TestRoomForOwnBans(t *testing.T) {
	here := New()
	here.Limit(AllBytes / 1000)
	limit := here.Bans.own.hosts.limit
	for i := range 20 {
		here.Bans.Add(who(fmt.Sprintf("192.0.2.%d", i)), BanRequest{Ladder: hours, Rule: "guess"}, at(0))
	}
	there := New()
	there.Announce()
	for i := range 2 * limit {
		there.Bans.Add(who(fmt.Sprintf("198.18.%d.%d", i/256, i%256)), BanRequest{Ladder: []time.Duration{48 * time.Hour}, Rule: "guess"}, at(0))
	}
	var all []Foreign
	for _, e := range there.Outgoing(3*limit, 0) {
		all = append(all, Foreign{Entry: e, Origin: "mx2"})
	}
	if _, err := here.Incoming(all, 0, at(0)); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, ok := first(here.Bans.Banned(who(fmt.Sprintf("192.0.2.%d", i)), at(time.Second))); !ok {
			t.Fatalf("ban %d was evicted", i)
		}
	}
	if n := len(here.Bans.others.hosts.rows); n != limit/maxForeign {
		t.Errorf("%d of %d rows", n, limit)
	}
}

// foreignRows returns the number of other hosts' rows, except bans.
func foreignRows(m *Memory) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range sharedTables(m) {
		n += t.foreignRows()
	}
	return n
}

// TestPartial checks that a partial row neither replaces nor deletes another host's
// row, that repeated rows count once, and that Disown deletes only one host's rows.
func TestPartial(t *testing.T) {
	c := who("192.0.2.1")
	window := rules.Window{Evidence: rules.AuthFailure, Window: day, By: rules.BySrc}
	here := sharing()
	for range 9 {
		here.Counters.Add(c, rules.AuthFailure, at(0))
	}
	rowsOf := func(origin string, failures int, ban time.Duration) (list []Foreign) {
		m := sharing()
		for range failures {
			m.Counters.Add(c, rules.AuthFailure, at(0))
		}
		m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.7/32"), ban, "x", at(0))
		m.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/24"), ban, "x", at(0))
		for _, e := range m.Outgoing(100, 0) {
			list = append(list, Foreign{Entry: e, Origin: origin, Partial: true})
		}
		return list
	}
	two, three := rowsOf("mx2", 7, 3*time.Hour), rowsOf("mx3", 4, time.Hour)
	for _, list := range [][]Foreign{two, three, two, three, three} {
		if _, err := here.Incoming(list, 0, at(0)); err != nil {
			t.Fatal(err)
		}
		if n, _ := here.Counters.Count(c, window, at(0)); n != 9+7 {
			t.Errorf("%d failures, want 9 here and 7 on mx2", n)
		}
		for _, p := range []string{"192.0.2.7/32", "198.51.100.0/24"} {
			if b, ok := here.Bans.Enforced(netip.MustParsePrefix(p), at(2*time.Hour)); !ok || b.Origin != "mx2" {
				t.Errorf("%s: %v %+v", p, ok, b)
			}
		}
	}
	for i := range three {
		three[i].Value = nil
	}
	if _, err := here.Incoming(three, 0, at(0)); err != nil {
		t.Fatal(err)
	}
	if n, _ := here.Counters.Count(c, window, at(0)); n != 9+7 {
		t.Errorf("%d failures after mx3 has deleted its rows", n)
	}
	if _, ok := here.Bans.Enforced(netip.MustParsePrefix("192.0.2.7/32"), at(0)); !ok {
		t.Error("mx3 has deleted the ban of mx2")
	}
	here.Disown("mx2")
	if n, _ := here.Counters.Count(c, window, at(0)); n != 9+4 {
		t.Errorf("%d failures without mx2, want 9 here and 4 on mx3", n)
	}
}

// TestCountWithoutUnbans checks that a ban whose unban is in the future does not count
// as active.
func TestCountWithoutUnbans(t *testing.T) {
	m := sharing()
	p := netip.MustParsePrefix("192.0.2.1/32")
	m.Bans.AddPrefix(p, time.Hour, "x", at(0))
	m.Bans.Revoke(p, false, at(2*time.Second))
	if n := m.Bans.Count(at(time.Second)); n.Active != 0 {
		t.Errorf("%d active bans", n.Active)
	}
	if _, ok := m.Bans.Enforced(p, at(time.Second)); ok {
		t.Error("the ban is enforced")
	}
}

// TestDisclaimExpires checks that an unban of a prefix that no host has banned is not
// kept forever.
func TestDisclaimExpires(t *testing.T) {
	m := sharing()
	m.UseKey([16]byte{1})
	m.Outgoing(100, 0)
	for _, s := range []string{"192.0.2.1/32", "198.51.100.0/24"} {
		p := netip.MustParsePrefix(s)
		if !m.Bans.Disclaim(p, false, nil, at(0)) {
			t.Fatal("other hosts do not receive the unban of", s)
		}
		e := m.Outgoing(10, 0)[0]
		merger := NewMerger()
		combined := func(now time.Duration) []byte {
			return merger.Combine(e.Bucket, e.Key, [][]byte{e.Value}, at(now)/1e6)
		}
		if combined(0) == nil || combined(91*day) != nil {
			t.Errorf("%s: now %v, after 91 days %v", s, combined(0), combined(91*day))
		}
	}
}
