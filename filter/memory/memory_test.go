package memory

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/rules"
	"scanwatch/store"
)

const start = int64(1_795_000_000) * 1e6

func at(d time.Duration) int64 { return start + d.Microseconds() }

func who(addr string) *Who { return &Who{Addr: netip.MustParseAddr(addr)} }

func TestCount(t *testing.T) {
	hour := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}
	net := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByPrefix}
	asn := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByASN}
	helo := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByHelo}
	user := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.ByUser}
	m := New()
	m.Watch([]rules.Window{hour, net, asn, helo, user, hour}, nil)
	for i := range 6 {
		w := who(fmt.Sprintf("192.0.2.%d", i%3))
		w.ASN, w.Placed, w.Helo, w.User = 64496, true, []byte("Host.example"), []byte("bob")
		m.Note(w, rules.AuthFailure, at(time.Duration(i)*time.Minute))
		m.Note(w, rules.Harvest, at(0))
	}
	one, other := who("192.0.2.1"), who("192.0.2.99")
	other.ASN, other.Placed, other.Helo, other.User = 64496, true, []byte("hOST.EXAMPLE"), []byte("Bob")
	for _, tt := range []struct {
		name string
		w    *Who
		win  rules.Window
		at   time.Duration
		want int
		ok   bool
	}{
		{"of one address", one, hour, 6 * time.Minute, 2, true},
		{"of another address", other, hour, 6 * time.Minute, 0, true},
		{"of its network", other, net, 6 * time.Minute, 6, true},
		{"of its provider", other, asn, 6 * time.Minute, 6, true},
		{"of its greeting", other, helo, 6 * time.Minute, 6, true},
		{"of the user", other, user, 6 * time.Minute, 6, true},
		{"of a provider that is not known", one, asn, 6 * time.Minute, 0, false},
		{"before the greeting", one, helo, 6 * time.Minute, 0, false},
		{"of nobody", one, user, 6 * time.Minute, 0, false},
		{"what nobody watches", one, rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}, 0, 0, false},
		{"an hour after the last", one, hour, 65 * time.Minute, 0, true},
		{"clock set back", one, hour, -20 * time.Minute, 2, true},
		{"clock set far back", one, hour, -20 * time.Hour, 0, true},
	} {
		if n, ok := m.Count(tt.w, tt.win, at(tt.at)); n != tt.want || ok != tt.ok {
			t.Errorf("%s: got %d %v, want %d %v", tt.name, n, ok, tt.want, tt.ok)
		}
	}
}

// TestWindow: a counter never counts what is older than its window, and forgets
// nothing that is younger than five sixths of it.
func TestWindow(t *testing.T) {
	win := rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}
	m := New()
	m.Watch([]rules.Window{win}, nil)
	w := who("2001:db8::1")
	var times []time.Duration
	now := time.Duration(0)
	for i := range 5000 {
		now += time.Duration(i*7919%400) * time.Second
		times = append(times, now)
		m.Note(w, rules.Harvest, at(now))
		got, _ := m.Count(w, win, at(now))
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
			t.Errorf("%s and %s are one", a, b)
		}
		if prefixOf(Number(a)) != Source(a) || prefixOf(Number(b)) != Source(b) {
			t.Errorf("%v, %v: %v, %v", Source(a), Source(b), prefixOf(Number(a)), prefixOf(Number(b)))
		}
	}
	if Number(netip.MustParseAddr("2001:db8::1")) != Number(netip.MustParseAddr("2001:db8::ffff:1")) {
		t.Error("two addresses of a /64 are two sources")
	}
	if network(netip.MustParseAddr("2001:db8:1::1")) != network(netip.MustParseAddr("2001:db8:1:ff::1")) {
		t.Error("two addresses of a /48 are of two networks")
	}
}

func TestBan(t *testing.T) {
	const day = 24 * time.Hour
	a := netip.MustParseAddr("192.0.2.1")
	sentence := Sentence{For: day, Rule: "harvest", Session: 7}
	observed := sentence
	observed.Observe = true
	holds := func(m *Memory, d time.Duration) bool {
		b, ok := m.Banned(a, at(d))
		return ok && !b.Observe
	}
	t.Run("ends and escalates", func(t *testing.T) {
		m := New()
		now := time.Duration(0)
		for i, want := range []time.Duration{day, 7 * day, 30 * day, 30 * day} {
			b := m.Ban(a, sentence, at(now))
			if got := b.Until.Sub(b.Since); got != want || b.Times != i+1 || b.Rule != "harvest" || b.Session != 7 || b.Prefix.String() != "192.0.2.1/32" {
				t.Errorf("ban %d: %v, %+v", i+1, got, b)
			}
			if !holds(m, now+want-time.Second) || holds(m, now+want) {
				t.Errorf("ban %d does not end after %v", i+1, want)
			}
			now += want + day
		}
		if b := m.Ban(a, sentence, at(now+200*day)); b.Times != 1 || b.Until.Sub(b.Since) != day {
			t.Errorf("after more than ninety days: %+v", b)
		}
	})
	t.Run("configured otherwise", func(t *testing.T) {
		m := New()
		m.Watch(nil, []int{2})
		m.Ban(a, sentence, at(0))
		if b := m.Ban(a, sentence, at(2*day)); b.Until.Sub(b.Since) != 2*day {
			t.Errorf("%+v", b)
		}
	})
	t.Run("again while it holds", func(t *testing.T) {
		m := New()
		m.Ban(a, sentence, at(0))
		if b := m.Ban(a, sentence, at(time.Hour)); b.Times != 1 || !b.Until.Equal(fromSeconds(seconds(at(day+time.Hour)))) {
			t.Errorf("%+v", b)
		}
		short := sentence
		short.For = time.Minute
		if b := m.Ban(a, short, at(time.Hour)); b.Until.Sub(b.Since) != day+time.Hour {
			t.Errorf("a shorter ban ended it earlier: %+v", b)
		}
	})
	t.Run("only observed", func(t *testing.T) {
		m := New()
		m.Ban(a, observed, at(0))
		if b, ok := m.Banned(a, at(1)); !ok || !b.Observe {
			t.Errorf("%+v %v", b, ok)
		}
		if b := m.Ban(a, sentence, at(time.Minute)); b.Observe || b.Times != 1 || !holds(m, time.Hour) {
			t.Errorf("the first ban that counts: %+v", b)
		}
		if b := m.Ban(a, observed, at(time.Hour)); b.Observe {
			t.Errorf("an observed ban replaced one that holds: %+v", b)
		}
	})
	t.Run("the operator's", func(t *testing.T) {
		m := New()
		p := netip.MustParsePrefix("192.0.2.0/24")
		if b, ok := m.BanPrefix(p, time.Hour, "enough", at(0)); !ok || !b.Manual {
			t.Errorf("%+v", b)
		}
		if b, ok := m.Banned(a, at(time.Minute)); !ok || b.Prefix != p || b.Rule != "enough" || b.Tries != 1 {
			t.Errorf("%+v", b)
		}
		if _, ok := m.Banned(netip.MustParseAddr("192.0.3.1"), at(time.Minute)); ok {
			t.Error("banned a neighbour")
		}
		m.Ban(a, sentence, at(time.Minute))
		if around := m.Around(a, at(time.Minute)); len(around) != 1 {
			t.Errorf("around: %+v", around)
		}
		if ended := m.Unban(netip.MustParsePrefix("192.0.0.0/16"), at(time.Hour-time.Second)); len(ended) != 2 {
			t.Errorf("ended: %+v", ended)
		}
		if holds(m, time.Hour-time.Second) {
			t.Error("still banned")
		}
		if b := m.Ban(a, sentence, at(2*day)); b.Times != 1 {
			t.Errorf("what was taken back counts: %+v", b)
		}
	})
	t.Run("unban of one", func(t *testing.T) {
		m := New()
		m.Ban(a, sentence, at(0))
		if ended := m.Unban(netip.MustParsePrefix("192.0.2.1/32"), at(1)); len(ended) != 1 || !ended[0].Lifted || holds(m, time.Minute) {
			t.Errorf("%+v", ended)
		}
		if ended := m.Unban(netip.MustParsePrefix("192.0.2.1/32"), at(2)); len(ended) != 0 {
			t.Errorf("a second time: %+v", ended)
		}
	})
}

func TestGood(t *testing.T) {
	const day = 24 * time.Hour
	m := New()
	mx := who("192.0.2.1")
	mx.RDNS = []byte("mx1.Mail.example.org.")
	if m.Good(mx, at(0)) != "" || m.Spared(mx, at(0)) != "" {
		t.Error("a stranger is good")
	}
	m.Delivered(mx, 1, at(0))
	sister := who("198.51.100.1")
	sister.RDNS = []byte("mx2.example.org")
	cloudA, cloudB := who("203.0.113.1"), who("203.0.113.2")
	cloudA.RDNS = []byte("ec2-203-0-113-1.compute-1.amazonaws.com")
	cloudB.RDNS = []byte("ec2-203-0-113-2.compute-1.amazonaws.com")
	m.Delivered(cloudA, 2, at(0))
	for _, tt := range []struct {
		name         string
		w            *Who
		after        time.Duration
		good, spared string
	}{
		{"itself", mx, day, "address", "mail"},
		{"another of its domain", sister, day, "domain", "mail-domain"},
		{"without its name", who("198.51.100.1"), day, "", ""},
		{"a neighbour of one message", who("192.0.2.9"), day, "", ""},
		{"another customer of the cloud", cloudB, day, "", ""},
		{"after four months", mx, 120 * day, "address", ""},
		{"a year later", mx, 366 * day, "address", ""},
		{"much later", mx, 402 * day, "", ""},
	} {
		if good, spared := m.Good(tt.w, at(tt.after)), m.Spared(tt.w, at(tt.after)); good != tt.good || spared != tt.spared {
			t.Errorf("%s: %q %q, want %q %q", tt.name, good, spared, tt.good, tt.spared)
		}
	}
	m.Delivered(mx, 2, at(day))
	if got := m.Good(who("192.0.2.9"), at(day)); got != "network" {
		t.Errorf("a neighbour of three messages: %q", got)
	}
	m.Misbehaved(mx, at(2*day))
	if got := m.Good(mx, at(3*day)); got != "" {
		t.Errorf("after it went wrong: %q", got)
	}
	if got := m.Good(sister, at(3*day)); got != "domain" {
		t.Errorf("its sister after it went wrong: %q", got)
	}
	m.Delivered(mx, 1, at(40*day))
	if got := m.Good(mx, at(41*day)); got != "address" {
		t.Errorf("after it mended its ways: %q", got)
	}
}

func TestLogin(t *testing.T) {
	src := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}
	count := func(m *Memory, w *Who, d time.Duration) int {
		n, _ := m.Count(w, src, at(d))
		return n
	}
	fresh := func() *Memory {
		m := New()
		m.Watch([]rules.Window{src}, nil)
		return m
	}
	as := func(addr, user string) *Who { w := who(addr); w.User = []byte(user); return w }

	t.Run("mistyped twice, then right", func(t *testing.T) {
		m := fresh()
		w := as("192.0.2.1", "alice")
		for range 2 {
			if spray, _ := m.LoginFailed(w, at(0)); spray != "" {
				t.Errorf("sprays %s", spray)
			}
		}
		if n := count(m, w, time.Second); n != 2 {
			t.Errorf("%d failures", n)
		}
		m.LoggedIn(w, at(time.Second))
		if n := count(m, w, 2*time.Second); n != 0 {
			t.Errorf("%d failures are not forgiven", n)
		}
		if got := m.Spared(w, at(time.Hour)); got != "login" {
			t.Errorf("spared because of %q", got)
		}
		if got := m.Spared(w, at(40*24*time.Hour)); got != "" {
			t.Errorf("spared after forty days because of %q", got)
		}
	})
	t.Run("an office with an old telephone", func(t *testing.T) {
		m := fresh()
		m.LoggedIn(as("192.0.2.1", "alice"), at(0))
		for i := range 12 * 6 { // every five minutes for six hours
			if spray, _ := m.LoginFailed(as("192.0.2.1", "bob"), at(time.Duration(i)*5*time.Minute)); spray != "" {
				t.Errorf("sprays %s", spray)
			}
		}
		if n := count(m, as("192.0.2.1", ""), 6*time.Hour); n > 2 {
			t.Errorf("%d failures in an hour", n)
		}
		for i := range 5 {
			if spray, _ := m.LoginFailed(as("192.0.2.1", fmt.Sprint("user", i)), at(7*time.Hour)); spray != "" {
				t.Errorf("five who mistype are called spraying %s", spray)
			}
		}
	})
	t.Run("a guesser of one user", func(t *testing.T) {
		m := fresh()
		w := as("192.0.2.1", "admin")
		for i := range 100 {
			m.LoginFailed(w, at(time.Duration(i)*time.Second))
		}
		if n := count(m, w, 100*time.Second); n != 100 {
			t.Errorf("%d failures", n)
		}
	})
	t.Run("a guesser of many users", func(t *testing.T) {
		m := fresh()
		var said []string
		for i := range 6 {
			spray, _ := m.LoginFailed(as("192.0.2.1", fmt.Sprint("user", i)), at(0))
			said = append(said, spray)
		}
		if want := []string{"", "", "", "", "users", "users"}; !slices.Equal(said, want) {
			t.Errorf("%q", said)
		}
		if !m.Sprays(who("192.0.2.1"), at(time.Minute)) || m.Sprays(who("192.0.2.1"), at(2*time.Hour)) || m.Sprays(who("192.0.2.2"), at(time.Minute)) {
			t.Error("it is not known as what it is, or too long, or its neighbour is")
		}
	})
	t.Run("one user from many networks", func(t *testing.T) {
		m := fresh()
		m.LoggedIn(as("203.0.113.1", "root"), at(0))
		var said []string
		for i := range 6 {
			spray, _ := m.LoginFailed(as(fmt.Sprintf("198.18.%d.1", i), "root"), at(0))
			said = append(said, spray)
		}
		if want := []string{"", "", "", "", "networks", "networks"}; !slices.Equal(said, want) {
			t.Errorf("%q", said)
		}
		if spray, _ := m.LoginFailed(as("203.0.113.1", "root"), at(0)); spray != "" {
			t.Errorf("the user himself sprays %s", spray)
		}
	})
}

func TestProbed(t *testing.T) {
	m := New()
	rcpt := []byte("Sales@example.org")
	for i := range 3 {
		if m.Probed(who("203.0.113.1"), rcpt, at(0)) {
			t.Errorf("probed after %d networks", i)
		}
		m.Refused(who(fmt.Sprintf("198.18.%d.1", i)), rcpt, at(0))
		m.Refused(who(fmt.Sprintf("198.18.%d.2", i)), []byte("sales@EXAMPLE.org"), at(0))
	}
	if !m.Probed(who("203.0.113.1"), rcpt, at(0)) {
		t.Error("not probed after three networks")
	}
	if m.Probed(who("198.18.2.77"), rcpt, at(0)) {
		t.Error("probed by two networks besides its own")
	}
	if m.Probed(who("203.0.113.1"), rcpt, at(32*24*time.Hour)) {
		t.Error("probed a month ago")
	}
	m.Accepted(rcpt, at(0))
	m.Refused(who("198.18.9.1"), rcpt, at(time.Hour))
	if m.Probed(who("203.0.113.1"), rcpt, at(time.Hour)) {
		t.Error("somebody who exists is probed")
	}
}

func TestCampaign(t *testing.T) {
	m := New()
	shape := m.Shape([]byte("e0m0r0"))
	for i := range 3 {
		if m.Campaign(who("203.0.113.1"), shape, at(0)) {
			t.Errorf("a campaign after %d networks", i)
		}
		m.Behaved(who(fmt.Sprintf("198.18.%d.1", i)), shape, false, at(0))
	}
	if !m.Campaign(who("203.0.113.1"), shape, at(0)) {
		t.Error("no campaign after three networks")
	}
	if m.Campaign(who("203.0.113.1"), m.Shape([]byte("e0m0r1")), at(0)) {
		t.Error("another shape is one")
	}
	m.Behaved(who("192.0.2.1"), shape, true, at(0))
	if m.Campaign(who("203.0.113.1"), shape, at(0)) {
		t.Error("a shape that delivers mail is one")
	}
}

func TestDomains(t *testing.T) {
	m := New()
	if m.KnowsDomains() || m.Local([]byte("example.org")) {
		t.Error("knows before it learned")
	}
	m.Learn([]byte("Example.ORG"), at(0))
	m.Learn(nil, at(0))
	if !m.KnowsDomains() || !m.Local([]byte("eXample.org")) || m.Local([]byte("example.com")) || !slices.Equal(m.Domains(), []string{"example.org"}) {
		t.Errorf("%q", m.Domains())
	}
}

// fill puts something into every table, and returns a text of all that can be
// asked.
func fill(m *Memory) {
	m.Watch(watched, nil)
	for i := range 5 {
		w := who(fmt.Sprintf("198.18.%d.1", i))
		w.User, w.Helo, w.RDNS = []byte(fmt.Sprint("user", i)), []byte("helo"), []byte("mx.example.net")
		m.Note(w, rules.Harvest, at(0))
		m.Refused(w, []byte("a@example.org"), at(0))
		m.Behaved(w, m.Shape([]byte("x")), false, at(0))
		m.LoginFailed(&Who{Addr: netip.MustParseAddr("192.0.2.9"), User: w.User}, at(0))
		m.LoginFailed(&Who{Addr: w.Addr, User: []byte("root")}, at(0))
		m.Ban(w.Addr, Sentence{For: time.Hour, Rule: fmt.Sprint("rule", i), Session: 1<<63 | uint64(i)}, at(0))
	}
	m.Ended(&Ended{Found: true, Refused: true, Summed: true, Evidence: rules.Harvest | rules.Campaign, Counts: &store.Counts{Mails: 1, RcptOK: 70_000}}, at(0))
	m.BanPrefix(netip.MustParsePrefix("2001:db8::/32"), time.Hour, "my reason", at(0))
	m.Accepted([]byte("b@example.org"), at(0))
	m.Learn([]byte("example.org"), at(0))
	m.Delivered(&Who{Addr: netip.MustParseAddr("203.0.113.1"), RDNS: []byte("a.example.com")}, 3, at(0))
	m.LoggedIn(&Who{Addr: netip.MustParseAddr("203.0.113.2"), User: []byte("u")}, at(0))
}

var watched = []rules.Window{{Evidence: rules.Harvest, Window: time.Hour, By: rules.ByHelo}, {Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc},
	{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}}

// answers asks everything that fill has told.
func answers(m *Memory) (list []string) {
	say := func(v ...any) { list = append(list, fmt.Sprint(v...)) }
	w := who("198.18.0.1")
	w.Helo = []byte("helo")
	for _, win := range watched {
		say(m.Count(w, win, at(time.Minute)))
	}
	say(m.Probed(who("192.0.2.1"), []byte("a@example.org"), at(time.Minute)))
	m.Refused(who("192.0.2.1"), []byte("b@example.org"), at(time.Minute))
	say(m.probed.rows[m.hash('r', []byte("b@example.org"))])
	say(m.Campaign(who("192.0.2.1"), m.Shape([]byte("x")), at(time.Minute)))
	say(m.Sprays(who("192.0.2.9"), at(time.Minute)))
	spray, _ := m.LoginFailed(&Who{Addr: netip.MustParseAddr("192.0.2.99"), User: []byte("root")}, at(time.Minute))
	say(spray)
	var bans []string
	m.Bans(func(b Ban) { bans = append(bans, fmt.Sprintf("%+v", b)) })
	slices.Sort(bans)
	say(bans)
	say(m.Local([]byte("example.org")))
	say(m.Good(&Who{Addr: netip.MustParseAddr("203.0.113.1")}, at(0)), m.Good(&Who{Addr: netip.MustParseAddr("192.0.2.77"), RDNS: []byte("b.example.com")}, at(0)))
	say(m.Spared(&Who{Addr: netip.MustParseAddr("203.0.113.2")}, at(0)))
	return list
}

// disk is what Changes has told, like state.db.
type disk map[string]store.Entry

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
	m.Load(func(yield func(store.Entry) bool) {
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
			t.Errorf("nothing in the bucket %s", b)
		}
	}
	m2 := New()
	m2.Watch(watched, nil)
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
		anew := disk{}
		anew.take(m)
		m3 := New()
		m3.Watch(watched, nil)
		anew.load(m3, at(time.Minute))
		if got, want := answers(m3), answers(m); !slices.Equal(got, want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
	})
	t.Run("gathered before it was read", func(t *testing.T) {
		m3 := New()
		fill(m3)
		d.load(m3, at(time.Minute))
		w := who("198.18.0.1")
		w.Helo = []byte("helo")
		if n, _ := m3.Count(w, watched[1], at(time.Minute)); n != 2 {
			t.Errorf("by source: %d", n)
		}
		if n, _ := m3.Count(w, watched[0], at(time.Minute)); n != 5 {
			t.Errorf("by greeting, which was hashed with another key: %d", n)
		}
		d2 := disk{}
		d2.take(m3) // deletes rows with hashes of the other key, which are not there
	})
	t.Run("long after", func(t *testing.T) {
		m3 := New()
		d.load(m3, at(500*24*time.Hour))
		for _, s := range m3.Status() {
			if s.Rows > 0 {
				t.Errorf("%d rows of %s are left", s.Rows, s.Table)
			}
		}
		gone := disk{}
		for k, e := range d {
			gone[k] = e
		}
		gone.take(m3)
		if len(gone) > 2 { // the secret, and the ban of a network
			t.Errorf("%d entries are left on disk", len(gone))
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		m3 := New()
		m3.Load(func(yield func(store.Entry) bool) {
			for _, b := range Buckets() {
				for _, n := range []int{0, 1, 5, 8, 9, 12, 17, 40} {
					if !yield(store.Entry{Bucket: b, Key: make([]byte, n), Value: make([]byte, n)}) {
						return
					}
				}
			}
		}, at(0))
	})
}

// TestLimits: no table grows beyond its limit, and what is worth most stays.
func TestLimits(t *testing.T) {
	win := rules.Window{Evidence: rules.Harvest, Window: time.Hour, By: rules.BySrc}
	m := New()
	m.Watch([]rules.Window{win}, nil)
	m.counters.most, m.bans.most, m.peers.most, m.probed.most, m.domains.most = 1000, 1000, 1000, 1000, 1000
	busy := who("192.0.2.1")
	for range 1000 {
		m.Note(busy, rules.Harvest, at(0))
	}
	m.Accepted([]byte("postmaster@example.org"), at(0))
	for i := range 50_000 {
		w := &Who{Addr: netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})}
		now := at(time.Duration(i) * time.Millisecond)
		m.Note(w, rules.Harvest, now)
		m.Ban(w.Addr, Sentence{For: time.Hour, Rule: "r"}, now)
		m.Delivered(w, 1, now)
		m.Refused(w, fmt.Appendf(nil, "user%d@example.org", i), now)
		m.Learn(fmt.Appendf(nil, "d%d.example.org", i), now)
	}
	for _, s := range m.Status() {
		if s.Rows > 0 && s.Rows > max(1000, 0) {
			t.Errorf("%s has %d rows", s.Table, s.Rows)
		}
	}
	if n, _ := m.Count(busy, win, at(time.Minute)); n != 1000 {
		t.Errorf("who did most was forgotten: %d", n)
	}
	if m.Refused(busy, []byte("postmaster@example.org"), at(time.Minute)); !m.probed.rows[m.hash('r', []byte("postmaster@example.org"))].accepted {
		t.Error("a recipient who exists was forgotten")
	}
}

func BenchmarkNote(b *testing.B) {
	m := New()
	m.Watch(watched, nil)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w := Who{Addr: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)})}
		m.Note(&w, rules.AuthFailure, at(time.Duration(i)*time.Millisecond))
	}
}

func BenchmarkBanned(b *testing.B) {
	for _, n := range []int{0, 500_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := New()
			for i := range n {
				m.Ban(netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 1}), Sentence{For: time.Hour, Rule: "r"}, at(0))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.Banned(netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), at(time.Minute))
			}
		})
	}
}

// BenchmarkLoad reads 500,000 bans, as after a restart.
func BenchmarkLoad(b *testing.B) {
	const n = 500_000
	entries := make([]store.Entry, n)
	for i := range entries {
		key, value := banRow(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 1}), 32), &ban{since: seconds(at(0)), until: seconds(at(time.Hour)), times: 1}, &Memory{names: names{list: []string{"r"}}})
		entries[i] = store.Entry{Bucket: "bans", Key: key, Value: value}
	}
	b.ReportAllocs()
	for b.Loop() {
		m := New()
		m.Load(slices.Values(entries), at(time.Minute))
		if len(m.bans.rows) != n {
			b.Fatal(len(m.bans.rows))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/ban")
}
