package memory

import (
	"fmt"
	"testing"
	"time"

	"scanwatch/rules"
)

// mails describes a client's mail on certain days.
type mails struct {
	c       *Client
	days    []int
	each    int    // messages per day
	sender  string // registered domain of the sender
	offence int    // day of an offence after the mail; 0 if none
}

func (l mails) play(m *Memory) {
	for _, d := range l.days {
		m.Peers.Delivered(l.c, Delivery{l.each, []string{l.sender}}, at(time.Duration(d)*day))
	}
	if l.offence > 0 {
		m.Peers.Misbehaved(l.c, at(time.Duration(l.offence)*day))
	}
}

// every returns n days spread evenly from 0 to spread.
func every(n, spread int) (days []int) {
	for i := range n {
		days = append(days, i*spread/max(n-1, 1))
	}
	return days
}

// TestStanding checks how mail raises a client's standing and offences lower it.
func TestStanding(t *testing.T) {
	mx := named("192.0.2.1", "mx1.Mail.example.org.")
	const none, known, trusted = rules.StandingNone, rules.StandingKnown, rules.StandingTrusted
	for _, tt := range []struct {
		name string
		mail mails
		who  *Client
		day  int
		want rules.Standing
		by   string
	}{
		{"no mail", mails{c: mx}, mx, 1, none, ""},
		{"mail of the same day", mails{mx, []int{0}, 20, "example.org", 0}, mx, 0, none, ""},
		{"mail of an earlier day", mails{mx, []int{0}, 1, "example.org", 0}, mx, 1, known, "host"},
		{"a neighbour", mails{mx, []int{0}, 20, "example.org", 0}, who("192.0.2.9"), 1, none, ""},
		{"a year later", mails{mx, []int{0}, 1, "example.org", 0}, mx, 399, known, "host"},
		{"much later", mails{mx, []int{0}, 1, "example.org", 0}, mx, 401, none, ""},
		{"ten messages on seven days over ten", mails{mx, every(7, 10), 2, "example.org", 0}, mx, 11, trusted, "host"},
		{"ten messages on six days", mails{mx, every(6, 10), 2, "example.org", 0}, mx, 11, known, "host"},
		{"nine messages", mails{mx, every(9, 10), 1, "example.org", 0}, mx, 11, known, "host"},
		{"ten messages on ten days over nine", mails{mx, every(10, 9), 1, "example.org", 0}, mx, 11, known, "host"},
		{"without recent mail", mails{mx, every(7, 10), 2, "example.org", 0}, mx, 101, known, "host"},
		{"offence", mails{mx, every(20, 40), 2, "example.org", 41}, mx, 42, known, "host"},
		{"thirty days after an offence", mails{mx, every(20, 40), 2, "example.org", 41}, mx, 72, trusted, "host"},
		{"an offence halves the numbers of messages and days", mails{mx, every(12, 20), 1, "example.org", 21}, mx, 52, known, "host"},
		{"a single message outlives an offence", mails{mx, []int{0}, 1, "example.org", 1}, mx, 2, known, "host"},
		{"another host of the domain", mails{mx, every(7, 10), 2, "example.org", 0}, named("198.51.100.1", "mx2.example.org"), 11, trusted, "domain"},
		{"offence of the domain", mails{mx, every(20, 40), 2, "example.org", 41}, named("198.51.100.1", "mx2.example.org"), 42, known, "domain"},
		{"the same address without its name", mails{named("198.51.100.1", "mx2.example.org"), every(7, 10), 2, "example.org", 0}, who("198.51.100.1"), 11, trusted, "host"},
		{"mail of another sender does not count for the domain", mails{mx, every(7, 10), 2, "example.com", 0}, named("198.51.100.1", "mx2.example.org"), 11, none, ""},
		{"another customer of a cloud", mails{named("203.0.113.1", "ec2-203-0-113-1.compute-1.amazonaws.com"), every(7, 10), 2, "amazonaws.com", 0}, named("203.0.113.2", "ec2-203-0-113-2.compute-1.amazonaws.com"), 11, none, ""},
		{"internal address", mails{&Client{Addr: mx.Addr, Shared: true}, every(7, 10), 2, "example.org", 0}, mx, 11, none, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := New()
			tt.mail.play(m)
			if s := m.Peers.Standing(tt.who, at(time.Duration(tt.day)*day)); s.Level != tt.want || s.By != tt.by {
				t.Errorf("%v by %q, want %v by %q: %+v", s.Level, s.By, tt.want, tt.by, s)
			}
		})
	}
}

// TestGreetingOfDomain checks that mail counts for the proven name's domain if the
// greeting is in that domain, regardless of the senders.
func TestGreetingOfDomain(t *testing.T) {
	m := New()
	c := named("192.0.2.1", "out1.example.org")
	c.Helo = []byte("mail.example.org")
	m.Peers.Delivered(c, Delivery{1, []string{"example.com"}}, at(0))
	if s := m.Peers.Standing(named("198.51.100.1", "out2.example.org"), at(day)); s.Level != rules.StandingKnown || s.By != "domain" {
		t.Errorf("%+v", s)
	}
}

// TestProviderDomain checks that a provider's domain, whose hosts send for several
// other domains, has no standing.
func TestProviderDomain(t *testing.T) {
	for n := range 6 {
		m := New()
		for i := range n {
			c := named(fmt.Sprintf("192.0.2.%d", i), "mail.hoster.example")
			c.Helo = []byte("mail.hoster.example")
			m.Peers.Delivered(c, Delivery{1, []string{fmt.Sprintf("customer%d.example", i)}}, at(0))
		}
		want := rules.StandingKnown
		if n == 0 || n >= manyForeign {
			want = rules.StandingNone
		}
		if s := m.Peers.Standing(named("198.51.100.1", "mail9.hoster.example"), at(day)); s.Level != want {
			t.Errorf("mail of %d other domains: %+v, want %v", n, s, want)
		}
	}
}

// TestMany checks that an address has no standing if it sends mail from five sender
// domains, with three greetings, on three days.
func TestMany(t *testing.T) {
	for _, tt := range []struct {
		senders, helos, days int
		many                 bool
	}{{5, 3, 3, true}, {4, 3, 3, false}, {5, 2, 3, false}, {5, 3, 2, false}, {9, 9, 9, true}} {
		m := New()
		for i := range 9 {
			c := who("192.0.2.1")
			c.Helo = fmt.Appendf(nil, "host%d", i%tt.helos)
			m.Peers.Delivered(c, Delivery{1, []string{fmt.Sprintf("s%d.example", i%tt.senders)}}, at(time.Duration(i%tt.days)*day))
		}
		s := m.Peers.Standing(who("192.0.2.1"), at(10*day))
		if excuse := m.Peers.Excuse(who("192.0.2.1"), at(10*day)); s.Many != tt.many || (s.Level == rules.StandingNone) != tt.many || (excuse == "many") != tt.many {
			t.Errorf("%+v: %+v, excuse %q", tt, s, excuse)
		}
		listed := false
		m.Peers.Each(at(10*day), func(p Peer) { listed = listed || p.Many })
		if listed != tt.many {
			t.Errorf("%+v: Each reports Many %v", tt, listed)
		}
	}
	if s := New().Peers.Standing(&Client{Addr: who("192.0.2.1").Addr, Shared: true}, at(0)); !s.Many {
		t.Errorf("a gateway of the policy: %+v", s)
	}
}

// TestCorrespondent checks that hosts with a proven name are known if a local user has
// sent mail to their domain.
func TestCorrespondent(t *testing.T) {
	m := New()
	m.Peers.WroteTo("example.net", at(0))
	m.Peers.WroteTo("", at(0))
	for _, tt := range []struct {
		name string
		c    *Client
		day  int
		want rules.Standing
	}{
		{"its host", named("192.0.2.1", "mx.example.net"), 0, rules.StandingKnown},
		{"without a proven name", who("192.0.2.1"), 0, rules.StandingNone},
		{"another domain", named("192.0.2.1", "mx.example.com"), 0, rules.StandingNone},
		{"two years later", named("192.0.2.1", "mx.example.net"), 730, rules.StandingNone},
	} {
		if s := m.Peers.Standing(tt.c, at(time.Duration(tt.day)*day)); s.Level != tt.want || tt.want != rules.StandingNone && s.By != "correspondent" {
			t.Errorf("%s: %+v", tt.name, s)
		}
	}
}

// TestUnreadState checks that a client's standing is unknown until the stored rows have
// been read, unless the client has sent mail since startup.
func TestUnreadState(t *testing.T) {
	before := New()
	mails{who("192.0.2.1"), every(8, 10), 2, "example.org", 0}.play(before)
	d := disk{}
	d.take(before)
	m := New()
	m.Expect()
	m.Peers.Delivered(who("192.0.2.2"), Delivery{Messages: 1}, at(10*day))
	standing := func(addr string) rules.Standing { return m.Peers.Standing(who(addr), at(11*day)).Level }
	if a, b := standing("192.0.2.1"), standing("192.0.2.2"); a != rules.StandingUnknown || b != rules.StandingKnown {
		t.Errorf("before the state is read: %v, %v", a, b)
	}
	d.load(m, at(11*day))
	if a, b := standing("192.0.2.1"), standing("192.0.2.3"); a != rules.StandingTrusted || b != rules.StandingNone {
		t.Errorf("after: %v, %v", a, b)
	}
}

// TestStandingMergesWithDisk checks that mail from before and after a restart adds up,
// and that no day is counted twice.
func TestStandingMergesWithDisk(t *testing.T) {
	c := who("192.0.2.1")
	before := New()
	mails{c, every(6, 10), 2, "example.org", 0}.play(before)
	d := disk{}
	d.take(before)
	for _, tt := range []struct {
		name    string
		day     int // day of mail since startup
		offence bool
		want    rules.Standing
		days    int
	}{
		{"the same day", 10, false, rules.StandingKnown, 6},
		{"another day", 11, false, rules.StandingTrusted, 7},
		{"offence since the start", 11, true, rules.StandingKnown, 7},
	} {
		m := New()
		m.Expect()
		mails{c, []int{tt.day}, 1, "example.org", 0}.play(m)
		if tt.offence {
			m.Peers.Misbehaved(c, at(time.Duration(tt.day)*day))
		}
		d.load(m, at(12*day))
		if s := m.Peers.Standing(c, at(12*day)); s.Level != tt.want || s.Days != tt.days || !s.First.Equal(dayTime(dayOf(seconds(at(0))))) || s.Offence.IsZero() == tt.offence {
			t.Errorf("%s: %+v", tt.name, s)
		}
	}
}

// TestExcuse checks the reasons for not banning a client.
func TestExcuse(t *testing.T) {
	m := New()
	mails{who("192.0.2.1"), []int{0}, 1, "example.org", 0}.play(m)
	mails{who("192.0.2.2"), every(8, 10), 2, "example.org", 0}.play(m)
	m.Logins.Succeeded(&Client{Addr: who("192.0.2.3").Addr, User: []byte("alice")}, at(10*day))
	for _, tt := range []struct {
		addr string
		day  int
		want string
	}{
		{"192.0.2.1", 0, ""}, {"192.0.2.1", 1, "known"}, {"192.0.2.2", 11, "trusted"}, {"192.0.2.3", 11, "login"}, {"192.0.2.3", 41, ""}, {"192.0.2.4", 11, ""},
	} {
		if got := m.Peers.Excuse(who(tt.addr), at(time.Duration(tt.day)*day)); got != tt.want {
			t.Errorf("%s on day %d: %q, want %q", tt.addr, tt.day, got, tt.want)
		}
	}
}
