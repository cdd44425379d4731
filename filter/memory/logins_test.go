package memory

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"scanwatch/rules"
)

func as(addr, user string) *Client { w := who(addr); w.User = []byte(user); return w }

func TestLogin(t *testing.T) {
	src := rules.Window{Evidence: rules.AuthFailure, Window: time.Hour, By: rules.BySrc}
	count := func(m *Memory, w *Client, d time.Duration) int {
		n, _ := m.Counters.Count(w, src, at(d))
		return n
	}
	fresh := func() *Memory {
		m := New()
		m.Counters.Watch([]rules.Window{src})
		return m
	}
	t.Run("login after two failures", func(t *testing.T) {
		m := fresh()
		w := as("192.0.2.1", "alice")
		for range 2 {
			if spray, _ := m.Logins.Failed(w, at(0)); spray != "" {
				t.Errorf("sprays %s", spray)
			}
		}
		if n := count(m, w, time.Second); n != 2 {
			t.Errorf("%d failures", n)
		}
		m.Logins.Succeeded(w, at(time.Second))
		if n := count(m, w, 2*time.Second); n != 0 {
			t.Errorf("%d failures remain", n)
		}
	})
	t.Run("failures remain after the login", func(t *testing.T) {
		m := fresh()
		w := as("192.0.2.1", "alice")
		m.Logins.Failed(w, at(0))
		authed := as("192.0.2.1", "alice")
		authed.Account = true // as in a session that has logged in
		m.Logins.Succeeded(authed, at(time.Second))
		if n := count(m, w, 2*time.Second); n != 0 {
			t.Errorf("%d failures remain", n)
		}
	})
	t.Run("phone with an old password in an office", func(t *testing.T) {
		m := fresh()
		m.Logins.Succeeded(as("192.0.2.1", "alice"), at(0))
		for i := range 12 * 6 { // every five minutes for six hours
			if spray, _ := m.Logins.Failed(as("192.0.2.1", "bob"), at(time.Duration(i)*5*time.Minute)); spray != "" {
				t.Errorf("sprays %s", spray)
			}
		}
		if n := count(m, as("192.0.2.1", ""), 6*time.Hour); n > 2 {
			t.Errorf("%d failures in an hour", n)
		}
		for i := range 5 {
			if spray, _ := m.Logins.Failed(as("192.0.2.1", fmt.Sprint("user", i)), at(7*time.Hour)); spray != "" {
				t.Errorf("five users with failures are a spray of %s", spray)
			}
		}
	})
	t.Run("brute force of one user", func(t *testing.T) {
		m := fresh()
		w := as("192.0.2.1", "admin")
		for i := range 100 {
			m.Logins.Failed(w, at(time.Duration(i)*time.Second))
		}
		if n := count(m, w, 100*time.Second); n != 100 {
			t.Errorf("%d failures", n)
		}
	})
}

// TestSpray checks which kinds of password spray are reported, and when the client
// itself is certainly an attacker.
func TestSpray(t *testing.T) {
	type attempt struct {
		addr, user string
		session    uint64
		after      time.Duration
	}
	many := func(n int, of func(i int) attempt) (list []attempt) {
		for i := range n {
			list = append(list, of(i))
		}
		return list
	}
	nets := func(n int) []attempt {
		return many(n, func(i int) attempt { return attempt{fmt.Sprintf("198.18.%d.1", i), "root", uint64(i), 0} })
	}
	for _, tt := range []struct {
		name   string
		before []attempt
		last   attempt
		kind   string
		sure   bool
	}{
		{"four users of one host", many(3, func(i int) attempt { return attempt{"192.0.2.1", fmt.Sprint(i), 1, 0} }), attempt{"192.0.2.1", "x", 1, 0}, "", false},
		{"five users of one host", many(4, func(i int) attempt { return attempt{"192.0.2.1", fmt.Sprint(i), 1, 0} }), attempt{"192.0.2.1", "x", 1, time.Hour}, "users", true},
		{"five users in more than a day", many(4, func(i int) attempt { return attempt{"192.0.2.1", fmt.Sprint(i), 1, 0} }), attempt{"192.0.2.1", "x", 1, 25 * time.Hour}, "", false},
		{"seven users of a network", many(7, func(i int) attempt { return attempt{fmt.Sprintf("192.0.2.%d", i), fmt.Sprint(i), uint64(i), 0} }), attempt{"192.0.2.99", "0", 99, 0}, "", false},
		{"eight users of a network", many(7, func(i int) attempt { return attempt{fmt.Sprintf("192.0.2.%d", i), fmt.Sprint(i), uint64(i), 0} }), attempt{"192.0.2.99", "x", 99, 0}, "users", false},
		{"one user from four networks", nets(3), attempt{"203.0.113.1", "root", 99, 0}, "", false},
		{"one user from five networks", nets(4), attempt{"203.0.113.1", "root", 99, 0}, "networks", false},
		{"a host that returns in the same session", append(nets(4), attempt{"203.0.113.1", "root", 99, 0}), attempt{"203.0.113.1", "root", 99, time.Minute}, "networks", false},
		{"a host that returns", append(nets(4), attempt{"203.0.113.1", "root", 99, 0}), attempt{"203.0.113.1", "root", 100, time.Minute}, "networks", true},
		{"a host that returns for another user", append(nets(4), attempt{"203.0.113.1", "other", 99, 0}), attempt{"203.0.113.1", "root", 100, time.Minute}, "networks", false},
	} {
		m := keyed()
		fail := func(a attempt) (string, bool) {
			c := as(a.addr, a.user)
			c.Session = a.session
			return m.Logins.Failed(c, at(a.after))
		}
		for _, a := range tt.before {
			fail(a)
		}
		if kind, sure := fail(tt.last); kind != tt.kind || sure != tt.sure {
			t.Errorf("%s: %q %v, want %q %v", tt.name, kind, sure, tt.kind, tt.sure)
		}
	}
	m := keyed()
	m.Logins.Succeeded(as("203.0.113.1", "root"), at(0))
	for _, a := range nets(6) {
		m.Logins.Failed(as(a.addr, a.user), at(0))
	}
	if spray, _ := m.Logins.Failed(as("203.0.113.1", "root"), at(0)); spray != "" {
		t.Errorf("the failure of the user is a spray of %s", spray)
	}
}

// TestMembers checks which failed logins are a spray from a host from which users have
// logged in.
func TestMembers(t *testing.T) {
	m := keyed()
	const office = "192.0.2.1"
	fails := func(user string, d time.Duration) bool {
		kind, sure := m.Logins.Failed(as(office, user), at(d))
		if sprays := m.Logins.Sprays(as(office, user), at(d)); sure != (kind == "users") || sure != sprays {
			t.Errorf("%s: %q %v, Sprays %v", user, kind, sure, sprays)
		}
		return sure
	}
	login := func(n int) {
		for i := range n {
			m.Logins.Succeeded(as(office, fmt.Sprint("member", i)), at(0))
		}
	}
	until := func(prefix string, d time.Duration) int {
		for i := range 2 * maxSeen {
			if fails(fmt.Sprint(prefix, i), d) {
				return i + 1
			}
		}
		return 0
	}
	for _, tt := range []struct{ users, want int }{{0, sprayAt}, {1, sprayMax}, {5, 10}, {maxSeen + 8, maxSeen}} {
		m = keyed()
		login(tt.users)
		if n := until("x", time.Minute); n != tt.want {
			t.Errorf("%d users: a spray after %d others, want %d", tt.users, n, tt.want)
		}
		m.Logins.Restart(as(office, "x0"), at(time.Hour))
		want := tt.want
		if tt.users == 0 {
			want = 1 // without logins, a spray continues
		}
		if n := until("y", time.Hour); n != want {
			t.Errorf("%d users: after a ban, a spray after %d others, want %d", tt.users, n, want)
		}
	}
	m = keyed()
	login(5)
	for i := range 100 {
		if fails(fmt.Sprint("Member", i%5, "+x@example.org"), time.Minute) {
			t.Fatal("users of the host are a spray")
		}
	}
	for i := range 9 {
		fails(fmt.Sprint("x", i, "@example.org"), time.Minute)
	}
	m.Logins.Succeeded(as(office, "X0"), at(time.Minute))
	for i := 9; i < 12; i++ { // eight to eleven other users
		if fails(fmt.Sprint("x", i), time.Minute) {
			t.Error("another name of a user who logged in still counts")
		}
	}
	if !fails("x12", time.Minute) {
		t.Error("twelve users are not a spray from a host with six users")
	}
}

// TestGuessed checks that a host's own login does not allow it to guess other users.
func TestGuessed(t *testing.T) {
	m := keyed()
	c := func(user string) *Client { return as("192.0.2.1", user) }
	m.Logins.Succeeded(c("own"), at(0))
	tries := func() (n int) {
		for i := range 200 {
			n++
			if kind, _ := m.Logins.Failed(c(fmt.Sprint(i%3)), at(time.Minute)); kind != "" {
				break
			}
		}
		return n
	}
	if n := tries(); n != guessedUsers*guessedAt {
		t.Errorf("a spray after %d failures", n)
	}
	m.Logins.Restart(c("0"), at(time.Minute))
	if m.Logins.Sprays(c("0"), at(time.Minute)) {
		t.Error("the spray continues after a ban")
	}
	if n := tries(); n != guessedUsers*guessedAt {
		t.Errorf("after a ban, a spray after %d failures", n)
	}
	m.Logins.Restart(c("0"), at(time.Minute))
	for range rateAt - 1 {
		for _, user := range []string{"0", "1", "own"} {
			if kind, _ := m.Logins.Failed(c(user), at(time.Hour)); kind != "" {
				t.Fatal("two users and the owner are a spray")
			}
		}
	}
}

// TestRate checks that a host's own login does not allow it to guess at a rate that no device
// reaches, even for one or two users.
func TestRate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		users int
		every time.Duration
		own   bool
		want  int // failures until the spray; 0 for none
	}{
		{"one user, three a second", 1, time.Second / 3, false, 2 * rateAt},
		{"two users, ten a minute", 2, 6 * time.Second, false, 2 * rateAt},
		{"a device that tries two methods a minute", 1, 30 * time.Second, false, 0},
		{"two devices, each twice a minute", 2, 15 * time.Second, false, 0},
		{"one user, five in two minutes", 1, 24 * time.Second, false, 0},
		{"the user who has logged in", 1, time.Second, true, 0},
	} {
		m := keyed()
		c := func(user string) *Client { return as("192.0.2.1", user) }
		m.Logins.Succeeded(c("own"), at(0))
		tries := func(from time.Duration) int {
			for i := range 3000 {
				user := fmt.Sprint(i % tt.users)
				if tt.own {
					user = "own"
				}
				now := at(from + time.Duration(i)*tt.every)
				if kind, sure := m.Logins.Failed(c(user), now); kind != "" {
					if kind != "rate" || !sure || !m.Logins.Sprays(c(user), now) {
						t.Errorf("%s: %q %v", tt.name, kind, sure)
					}
					m.Logins.Restart(c(user), now)
					if m.Logins.Sprays(c(user), now) {
						t.Errorf("%s: the spray continues after a ban", tt.name)
					}
					return i + 1
				}
			}
			return 0
		}
		for _, from := range []time.Duration{20 * 24 * time.Hour, 21 * 24 * time.Hour} {
			if got := tries(from); got != tt.want {
				t.Errorf("%s: a spray after %d failures, want %d", tt.name, got, tt.want)
			}
		}
	}
}

// TestLoginRows checks that rows of older versions, and rows of all lengths, can be read.
func TestLoginRows(t *testing.T) {
	m := keyed()
	if _, p, ok := readPair(number(1), []byte{0, 1, 0, 0, 0, 2, 0, 3, 0, 4}); !ok || p != (pair{failed: 1, hour: 2, sessions: 3, session: 4}) {
		t.Errorf("pair %v %v", p, ok)
	}
	p := pair{failed: 1, hour: 2, sessions: 3, session: 4, tries: 5, rate: 6}
	if _, got, ok := readPair(number(1), m.Logins.pairs.value(p)); !ok || got != p {
		t.Errorf("pair %v %v", got, ok)
	}
	p.rate = 0
	if _, got, ok := readPair(number(1), m.Logins.pairs.value(p)[:12]); !ok || got != p {
		t.Errorf("pair of an older version %v %v", got, ok)
	}
	for n := range maxSeen + 2 {
		r := spray{since: 7}
		for i := range min(n, maxSeen) {
			r.seen[i] = uint16(i + 1)
		}
		v := m.Logins.sprays.value(r)
		if n == maxSeen+1 {
			v = append(v, 0, 1)
		}
		k, got, ok := readSpray(m.Logins.sprays.key(sprayKey{9, loginsOfSource}), v)
		if ok != (n <= maxSeen) || ok && (got != r || k != sprayKey{9, loginsOfSource}) {
			t.Errorf("%d values: %v %v %v", n, k, got, ok)
		}
	}
}

// TestAccounts checks how many distinct networks and sender addresses of an account are
// counted in an hour.
func TestAccounts(t *testing.T) {
	m := New()
	var nets, senders []int
	for i := range 4 {
		c := as(fmt.Sprintf("198.18.%d.1", i/2), "carol")
		nets = append(nets, m.Logins.LoggedIn(c, at(time.Duration(i)*time.Minute)))
		senders = append(senders, m.Logins.Sent(c, fmt.Appendf(nil, "Carol%d@example.org", i/2), at(time.Duration(i)*time.Minute)))
	}
	if want := []int{1, 1, 2, 2}; !slices.Equal(nets, want) || !slices.Equal(senders, want) {
		t.Errorf("networks %v, senders %v", nets, senders)
	}
	if n := m.Logins.LoggedIn(as("198.18.9.1", "dave"), at(0)); n != 1 {
		t.Errorf("%d networks of another user", n)
	}
	if n := m.Logins.LoggedIn(as("198.18.9.1", "carol"), at(2*time.Hour)); n != 1 {
		t.Errorf("%d networks two hours later", n)
	}
}

// TestSubjects checks which subjects events are attributed to. An account's events
// count only for its user. If a host has a proven name, its events count for the host
// and its domain instead of its network.
func TestSubjects(t *testing.T) {
	keys := []rules.Key{rules.BySrc, rules.ByPrefix, rules.ByDomain, rules.BySite, rules.ByUser}
	var windows []rules.Window
	for _, k := range keys {
		windows = append(windows, rules.Window{Evidence: rules.UnknownRecipient, Window: time.Hour, By: k})
	}
	account := as("192.0.2.1", "carol")
	account.Account = true
	for _, tt := range []struct {
		name  string
		adds  *Client
		asked *Client
		want  [5]int // counts by key; -1 if the subject is unknown
	}{
		{"a host without a name", who("192.0.2.1"), who("192.0.2.1"), [5]int{1, 1, 0, 1, -1}},
		{"its neighbour", who("192.0.2.1"), who("192.0.2.2"), [5]int{0, 1, 0, 1, -1}},
		{"its neighbour with a name", who("192.0.2.1"), named("192.0.2.2", "mx.example.org"), [5]int{0, 0, 0, 1, -1}},
		{"another network", who("192.0.2.1"), who("198.51.100.1"), [5]int{0, 0, 0, 1, -1}},
		{"a host with a name", named("192.0.2.1", "mx1.example.org"), named("192.0.2.1", "mx1.example.org"), [5]int{1, 0, 1, 1, -1}},
		{"another host of the domain", named("192.0.2.1", "mx1.example.org"), named("198.51.100.1", "mx2.example.org"), [5]int{0, 0, 1, 1, -1}},
		{"a neighbour of a host with a name", named("192.0.2.1", "mx1.example.org"), who("192.0.2.2"), [5]int{0, 0, 0, 1, -1}},
		{"an account", account, account, [5]int{0, 0, 0, 0, 1}},
		{"the host of an account", account, who("192.0.2.1"), [5]int{0, 0, 0, 0, -1}},
		{"a session that has not logged in as the user", account, as("192.0.2.1", "carol"), [5]int{0, 0, 0, 0, -1}},
	} {
		m := New()
		m.Counters.Watch(windows)
		m.Counters.Add(tt.adds, rules.UnknownRecipient, at(0))
		for i, w := range windows {
			n, ok := m.Counters.Count(tt.asked, w, at(time.Minute))
			if !ok {
				n = -1
			}
			if n != tt.want[i] {
				t.Errorf("%s, by %v: %d, want %d", tt.name, keys[i], n, tt.want[i])
			}
		}
	}
}

// keyed returns empty tables with a fixed hash key. With a random key, the 16-bit
// hashes of a few users might collide.
func keyed() *Memory {
	m := New()
	m.key = [16]byte{1}
	return m
}
