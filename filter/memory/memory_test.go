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

const start = int64(1_795_000_000) * 1e6

func at(d time.Duration) int64 { return start + d.Microseconds() }

func who(addr string) *Client { return &Client{Addr: netip.MustParseAddr(addr)} }

// named returns a client with a proven name.
func named(addr, rdns string) *Client {
	c := who(addr)
	c.Domain = RegisteredDomain([]byte(rdns))
	return c
}

// hours is a ladder in which every ban lasts an hour.
var hours = []time.Duration{time.Hour}

func TestCount(t *testing.T) {
	hour := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}
	net := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByPrefix}
	asn := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByASN}
	helo := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByHelo}
	user := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByUser}
	m := New()
	m.Counters.Watch([]rules.Window{hour, net, asn, helo, user, hour})
	for i := range 6 {
		w := who(fmt.Sprintf("192.0.2.%d", i%3))
		w.ASN, w.ASNKnown, w.Helo, w.User = 64496, true, []byte("Host.example"), []byte("bob")
		m.Counters.Add(w, rules.AuthFailure, at(time.Duration(i)*time.Minute))
		m.Counters.Add(w, rules.Harvest, at(0))
	}
	one, other := who("192.0.2.1"), who("192.0.2.99")
	other.ASN, other.ASNKnown, other.Helo, other.User = 64496, true, []byte("hOST.EXAMPLE"), []byte("Bob")
	for _, tt := range []struct {
		name string
		w    *Client
		win  rules.Window
		at   time.Duration
		want int
		ok   bool
	}{
		{"of one address", one, hour, 6 * time.Minute, 2, true},
		{"of another address", other, hour, 6 * time.Minute, 0, true},
		{"of its network", other, net, 6 * time.Minute, 6, true},
		{"of its AS", other, asn, 6 * time.Minute, 6, true},
		{"of its greeting", other, helo, 6 * time.Minute, 6, true},
		{"of the user", other, user, 6 * time.Minute, 6, true},
		{"of an unknown AS", one, asn, 6 * time.Minute, 0, false},
		{"before the greeting", one, helo, 6 * time.Minute, 0, false},
		{"before the login", one, user, 6 * time.Minute, 0, false},
		{"of a window that is not watched", one, rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}, 0, 0, false},
		{"an hour after the last", one, hour, 65 * time.Minute, 0, true},
		{"clock set back", one, hour, -20 * time.Minute, 2, true},
		{"clock set far back", one, hour, -20 * time.Hour, 0, true},
	} {
		if n, ok := m.Counters.Count(tt.w, tt.win, at(tt.at)); n != tt.want || ok != tt.ok {
			t.Errorf("%s: got %d %v, want %d %v", tt.name, n, ok, tt.want, tt.ok)
		}
	}
}

// TestWindow checks that a counter never includes events older than its window, and
// always includes events younger than five sixths of it.
func TestWindow(t *testing.T) {
	win := rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}
	m := New()
	m.Counters.Watch([]rules.Window{win})
	w := who("2001:db8::1")
	var times []time.Duration
	now := time.Duration(0)
	for i := range 5000 {
		now += time.Duration(i*7919%400) * time.Second
		times = append(times, now)
		m.Counters.Add(w, rules.Harvest, at(now))
		got, _ := m.Counters.Count(w, win, at(now))
		least, most := 0, 0
		for _, then := range times {
			if now-then <= time.Hour {
				most++
			}
			if now-then < 50*time.Minute {
				least++
			}
		}
		if got < least || got > most {
			t.Fatalf("after %d: %d, want from %d to %d", i, got, least, most)
		}
	}
}

func TestSources(t *testing.T) {
	for _, tt := range []struct{ a, b string }{
		{"192.0.2.1", "192.0.2.2"},
		{"2001:db8::1", "2001:db8:0:1::1"},
		{"0.0.0.1", "2001:db8::1"},
	} {
		a, b := netip.MustParseAddr(tt.a), netip.MustParseAddr(tt.b)
		if Number(a) == Number(b) || Source(a) == Source(b) {
			t.Errorf("%s and %s have the same number", a, b)
		}
	}
	if Number(netip.MustParseAddr("2001:db8::1")) != Number(netip.MustParseAddr("2001:db8::ffff:1")) {
		t.Error("two addresses of a /64 have two numbers")
	}
	if network(netip.MustParseAddr("2001:db8:1::1")) != network(netip.MustParseAddr("2001:db8:1:ff::1")) {
		t.Error("two addresses of a /48 are in two networks")
	}
}

func TestDomains(t *testing.T) {
	m := New()
	if m.Domains.Known() || m.Domains.Local([]byte("example.org")) {
		t.Error("domains known before Learn")
	}
	m.Domains.Learn([]byte("Example.ORG"), at(0))
	m.Domains.Learn(nil, at(0))
	if !m.Domains.Known() || !m.Domains.Local([]byte("eXample.org")) || m.Domains.Local([]byte("example.com")) || !slices.Equal(m.Domains.List(), []string{"example.org"}) {
		t.Errorf("%q", m.Domains.List())
	}
}

// fill adds rows to every table.
func fill(m *Memory) {
	m.Counters.Watch(watched)
	for i := range 5 {
		w := who(fmt.Sprintf("198.18.%d.1", i))
		w.User, w.Helo, w.Domain = []byte(fmt.Sprint("user", i)), []byte("helo"), "example.net"
		m.Counters.Add(w, rules.Harvest, at(0))
		m.Recipients.Refused(w, []byte("a@example.org"), at(0))
		m.Recipients.Asked(w, []byte("a@example.org"), at(0))
		m.Recipients.Missed(w, at(0))
		m.Logins.Failed(&Client{Addr: netip.MustParseAddr("192.0.2.9"), User: w.User}, at(0))
		m.Logins.Failed(&Client{Addr: w.Addr, User: []byte("root")}, at(0))
		m.Logins.Abuse(w, at(0))
		m.Bans.Add(who(w.Addr.String()), BanRequest{Ladder: hours, Rule: fmt.Sprint("rule", i), Session: 1<<63 | uint64(i)}, at(0))
	}
	m.Days.Add(&Ended{Found: true, Refused: true, Evidence: rules.Harvest | rules.Flood, Mails: 1, RcptOK: 70_000}, at(0))
	m.Bans.AddPrefix(netip.MustParsePrefix("2001:db8::/32"), time.Hour, "my reason", at(0))
	for _, p := range []string{"192.0.2.200/32", "2001:db8:1::/48"} {
		if _, err := m.Incoming([]Foreign{banRow(netip.MustParsePrefix(p), 0, time.Hour)}, 0, at(0)); err != nil {
			panic(err)
		}
	}
	m.Recipients.Accepted([]byte("b@example.org"), at(0))
	m.Domains.Learn([]byte("example.org"), at(0))
	m.Peers.Delivered(named("203.0.113.1", "a.example.com"), Delivery{3, []string{"example.com"}}, at(0))
	m.Peers.WroteTo("example.net", at(0))
	m.Logins.Succeeded(&Client{Addr: netip.MustParseAddr("203.0.113.2"), User: []byte("u")}, at(0))
	m.Complete()
}

var watched = []rules.Window{{Evidence: rules.Harvest, Window: time.Hour, By: rules.ByHelo}, {Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc},
	{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}}

// answers returns the results of queries to all tables after fill.
func answers(m *Memory) (list []string) {
	say := func(v ...any) { list = append(list, fmt.Sprint(v...)) }
	w := who("198.18.0.1")
	w.Helo = []byte("helo")
	for _, win := range watched {
		say(m.Counters.Count(w, win, at(time.Minute)))
	}
	say(m.Recipients.Probed(who("192.0.2.1"), []byte("a@example.org"), at(time.Minute)))
	m.Recipients.Refused(who("192.0.2.1"), []byte("b@example.org"), at(time.Minute))
	say(m.Recipients.rows.rows[m.hash('r', []byte("b@example.org"))])
	say(m.Recipients.Asked(w, []byte("a@example.org"), at(time.Minute)), m.Recipients.Known([]byte("b@example.org"), at(time.Minute)))
	say(m.Logins.Failed(&Client{Addr: netip.MustParseAddr("192.0.2.99"), User: []byte("root")}, at(time.Minute)))
	var bans []string
	m.Bans.Each(func(b Ban) { bans = append(bans, fmt.Sprintf("%+v", b)) })
	slices.Sort(bans)
	say(bans)
	say(m.Domains.Local([]byte("example.org")))
	for _, c := range []*Client{who("203.0.113.1"), named("192.0.2.77", "b.example.com"), who("203.0.113.2"), named("192.0.2.78", "mx.example.net")} {
		say(m.Peers.Standing(c, at(2*day)))
	}
	return list
}

// disk holds the rows returned by Changes, like state.db.
type disk map[string]kv.Entry

func (d disk) take(m *Memory) (n int) {
	for {
		list := m.Changes(7)
		if len(list) == 0 {
			return n
		}
		n += len(list)
		for _, e := range list {
			k := e.Bucket + "\x00" + string(e.Key)
			if e.Value == nil {
				delete(d, k)
			} else {
				d[k] = e
			}
		}
	}
}

func (d disk) load(m *Memory, now int64) {
	m.Load(func(yield func(kv.Entry) bool) {
		for _, b := range Buckets() {
			for _, e := range d {
				if e.Bucket == b && !yield(e) {
					return
				}
			}
		}
	}, now)
}

func TestDisk(t *testing.T) {
	m := New()
	m.Follow()
	m.Tick(at(0))
	fill(m)
	d := disk{}
	n := d.take(m)
	if again := d.take(m); n < 30 || again != 0 {
		t.Errorf("%d changes, then %d", n, again)
	}
	for _, b := range Buckets() {
		found := false
		for _, e := range d {
			found = found || e.Bucket == b
		}
		if !found {
			t.Errorf("no row in the bucket %s", b)
		}
	}
	m2 := New()
	m2.Counters.Watch(watched)
	d.load(m2, at(time.Minute))
	if n := len(m2.Changes(1000)); n != 0 {
		t.Errorf("%d changes after loading", n)
	}
	want := answers(m)
	if got := answers(m2); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	t.Run("rewritten", func(t *testing.T) {
		m.Rewrite()
		d2 := disk{}
		d2.take(m)
		m3 := New()
		m3.Counters.Watch(watched)
		d2.load(m3, at(time.Minute))
		if got, want := answers(m3), answers(m); !slices.Equal(got, want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
	})
	t.Run("rows gathered before the load", func(t *testing.T) {
		m3 := New()
		fill(m3)
		d.load(m3, at(time.Minute))
		w := who("198.18.0.1")
		w.Helo = []byte("helo")
		if n, _ := m3.Counters.Count(w, watched[1], at(time.Minute)); n != 2 {
			t.Errorf("by source: %d", n)
		}
		if n, _ := m3.Counters.Count(w, watched[0], at(time.Minute)); n != 5 {
			t.Errorf("by greeting, hashed with another key: %d", n)
		}
		d2 := disk{}
		d2.take(m3) // deletions of rows with hashes under the other key, which disk does not hold
	})
	t.Run("long after", func(t *testing.T) {
		m3 := New()
		d := maps.Clone(d)
		maps.DeleteFunc(d, func(_ string, e kv.Entry) bool { return e.Bucket == clockBucket })
		d.load(m3, at(500*24*time.Hour))
		for _, s := range m3.Status() {
			if s.Rows > 0 && s.Table != "days" {
				t.Errorf("%d rows of %s are left", s.Rows, s.Table)
			}
		}
		gone := disk{}
		for k, e := range d {
			gone[k] = e
		}
		gone.take(m3)
		if len(gone) > 5 { // the secret, the ban of a network, the days, and the last rows of the peers and other hosts' clients
			t.Errorf("%d entries are left on disk", len(gone))
		}
	})
	t.Run("invalid rows", func(t *testing.T) {
		m3 := New()
		m3.Load(func(yield func(kv.Entry) bool) {
			for _, b := range Buckets() {
				for _, n := range []int{0, 1, 5, 8, 9, 12, 17, 40} {
					if !yield(kv.Entry{Bucket: b, Key: make([]byte, n), Value: make([]byte, n)}) {
						return
					}
				}
			}
		}, at(0))
	})
}

// TestLimits checks that no table exceeds its limit, and that the most useful rows are
// kept.
func TestLimits(t *testing.T) {
	win := rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}
	m := New()
	m.Counters.Watch([]rules.Window{win})
	m.Counters.rows.limit, m.Bans.own.hosts.limit, m.Peers.rows.limit, m.Recipients.rows.limit, m.Domains.rows.limit = 1000, 1000, 1000, 1000, 1000
	busy := who("192.0.2.1")
	for range 1000 {
		m.Counters.Add(busy, rules.Harvest, at(0))
	}
	m.Recipients.Accepted([]byte("postmaster@example.org"), at(0))
	for i := range 50_000 {
		w := &Client{Addr: netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})}
		now := at(time.Duration(i) * time.Millisecond)
		m.Counters.Add(w, rules.Harvest, now)
		m.Bans.Add(w, BanRequest{Ladder: hours, Rule: "r"}, now)
		m.Peers.Delivered(w, Delivery{Messages: 1}, now)
		m.Recipients.Refused(w, fmt.Appendf(nil, "user%d@example.org", i), now)
		m.Domains.Learn(fmt.Appendf(nil, "d%d.example.org", i), now)
	}
	for _, s := range m.Status() {
		if s.Rows > 0 && s.Rows > max(1000, 0) {
			t.Errorf("%s has %d rows", s.Table, s.Rows)
		}
	}
	if n, _ := m.Counters.Count(busy, win, at(time.Minute)); n != 1000 {
		t.Errorf("the highest counter was evicted: %d", n)
	}
	if m.Recipients.Refused(busy, []byte("postmaster@example.org"), at(time.Minute)); !m.Recipients.rows.rows[m.hash('r', []byte("postmaster@example.org"))].accepted {
		t.Error("an existing recipient was evicted")
	}
}

func BenchmarkNote(b *testing.B) {
	m := New()
	m.Counters.Watch(watched)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w := Client{Addr: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)})}
		m.Counters.Add(&w, rules.AuthFailure, at(time.Duration(i)*time.Millisecond))
	}
}

func BenchmarkBanned(b *testing.B) {
	for _, n := range []int{0, 500_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := New()
			for i := range n {
				m.Bans.Add(&Client{Addr: netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 1})}, BanRequest{Ladder: hours, Rule: "r"}, at(0))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.Bans.Banned(&Client{Addr: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)})}, at(time.Minute))
			}
		})
	}
}

// BenchmarkLoad measures loading 500,000 bans after a restart.
func BenchmarkLoad(b *testing.B) {
	const n = 500_000
	entries := make([]kv.Entry, n)
	hosts := New().Bans.own.hosts
	row := ban{since: seconds(at(0)), until: seconds(at(time.Hour)), times: 1}
	for i := range entries {
		a := netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 1})
		entries[i] = kv.Entry{Bucket: "bans", Key: hosts.key(HostOf(a, false)), Value: hosts.value(row)}
	}
	b.ReportAllocs()
	for b.Loop() {
		m := New()
		m.Load(slices.Values(entries), at(time.Minute))
		if len(m.Bans.own.hosts.rows) != n {
			b.Fatal(len(m.Bans.own.hosts.rows))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/ban")
}
