package filter_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/kv"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// A fleet is a set of hosts that exchange their rows.
type fleet struct {
	t        *testing.T
	sites    []*site
	replicas []*share.Replica
}

func newFleet(t *testing.T, hosts int) *fleet {
	f := &fleet{t: t}
	key := kv.Entry{Bucket: "secret", Key: []byte("hash"), Value: []byte("0123456789abcdef")}
	for i := range hosts {
		s := readySite(t, "standard")
		s.memory.Load(slices.Values([]kv.Entry{key}), monday.Add(-400*day).UnixMicro())
		s.learn()
		s.memory.Announce()
		f.sites = append(f.sites, s)
		f.replicas = append(f.replicas, share.New(fmt.Sprintf("mx%d", i), share.DefaultLimits()))
	}
	f.exchange(monday.Add(-time.Minute))
	return f
}

// take passes the rows of the other hosts to host i.
func (f *fleet) take(i int, at time.Time) {
	f.t.Helper()
	if _, err := f.sites[i].memory.Incoming(f.replicas[i].Changed(1<<20, at), 0, at.UnixMicro()); err != nil {
		f.t.Fatal(err)
	}
	f.sites[i].memory.Bans.HaveStanding()
}

// send passes the rows of host i to all other hosts.
func (f *fleet) send(i int, rows []share.Row, at time.Time) {
	f.t.Helper()
	for j, r := range f.replicas {
		if j == i {
			continue
		}
		if err := r.Apply(fmt.Sprintf("mx%d", i), rows, at); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fleet) exchange(at time.Time) {
	f.t.Helper()
	for i, s := range f.sites {
		f.take(i, at)
		f.send(i, f.replicas[i].Own(s.memory.Outgoing(1<<20, 0), at), at)
	}
	for i := range f.sites {
		f.take(i, at)
	}
}

// play plays the sessions on the hosts in turn, one session on each. Whenever the time every has
// passed, the hosts exchange their rows.
func (f *fleet) play(list []simulate.Session, every time.Duration) (out []simulate.Outcome) {
	f.t.Helper()
	last := list[0].Start
	for i, s := range list {
		if s.Start.Sub(last) >= every {
			f.exchange(s.Start)
			last = s.Start
		}
		out = append(out, f.sites[i%len(f.sites)].play(sessions(s))...)
	}
	return out
}

// one plays a session on host i.
func (f *fleet) one(i int, s simulate.Session) simulate.Outcome {
	f.t.Helper()
	out := f.sites[i].play(sessions(s))[0]
	f.exchange(s.Start.Add(time.Minute))
	return out
}

func (f *fleet) standing(i int, c *memory.Client, at time.Time) memory.Standing {
	return f.sites[i].memory.Peers.Standing(c, at.UnixMicro())
}

// spread returns n sessions at regular intervals.
func spread(n int, every time.Duration, session func(i int, at time.Time) simulate.Session) (list []simulate.Session) {
	for i := range n {
		list = append(list, session(i, monday.Add(time.Duration(i)*every)))
	}
	return list
}

func guesses(at time.Time, addr string, users ...string) simulate.Session {
	steps := []simulate.Step{say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, "")}
	for _, u := range users {
		steps = append(steps, wrong(simulate.Auth, u))
	}
	return visitor(at, addr, "", steps...)
}

// TestThreeHosts checks that three hosts together react to an attack in the same way as a single
// host. The table contains the first session that each host rejects or disconnects. A host uses the
// counts of other hosts only from the client's second event on this host onwards; see memory.Alone.
func TestThreeHosts(t *testing.T) {
	harvest := func(n int) func(i int, at time.Time) simulate.Session {
		return func(i int, at time.Time) simulate.Session { return asks(at, "198.51.100.7", "", n, i) }
	}
	siege := func(i int, at time.Time) simulate.Session {
		return asks(at, fmt.Sprintf("203.0.%d.9", i), "", 4, i)
	}
	relay := func(i int, at time.Time) simulate.Session {
		steps := []simulate.Step{say(simulate.Ehlo, "host.example.com"), say(simulate.Mail, "joe@example.net"), wrong(simulate.Rcpt, fmt.Sprintf("u%d@example.com", i)), wrong(simulate.Rcpt, fmt.Sprintf("v%d@example.com", i))}
		return visitor(at, "198.51.100.7", "", steps...)
	}
	guess := func(_ int, at time.Time) simulate.Session { return guesses(at, "198.51.100.7", "admin") }
	spray := func(i int, at time.Time) simulate.Session {
		return guesses(at, "198.51.100.7", fmt.Sprintf("user%d", i))
	}
	for _, tt := range []struct {
		name     string
		sessions []simulate.Session
		one      int // first session in which a single host rejects something
		three    int // the same for three hosts that exchange rows after each session
		second   int // the same for three hosts that exchange rows once a second
		reason   string
	}{
		{"a harvest in one session", spread(6, time.Minute, harvest(6)), 0, 0, 0, "the evidence is in one session"},
		{"a harvest, two recipients a session", spread(20, time.Minute, harvest(2)), 2, 3, 3, "the fourth session is the second on the first host"},
		{"a harvest, two recipients every 300 ms", spread(20, 300*time.Millisecond, harvest(2)), 2, 3, 4, "Alone; the hosts do not know the latest second"},
		{"a harvest, one recipient a session", spread(30, time.Minute, harvest(1)), 5, 6, 6, "a host counts what others have seen only after its own second event"},
		{"relay probes", spread(30, time.Minute, relay), 5, 5, 5, "at the end of the fifth session, one host bans the client on all hosts"},
		{"a distributed harvest", spread(30, time.Minute, siege), 5, 5, 5, ""},
		{"a distributed harvest, every 300 ms", spread(30, 300*time.Millisecond, siege), 5, 5, 7, "the hosts do not know the latest second"},
		{"brute force", spread(60, time.Minute, guess), 20, 20, 20, ""},
		{"a password spray", spread(30, time.Minute, spray), 5, 5, 5, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused := func(out []simulate.Outcome) int {
				return slices.IndexFunc(out, func(o simulate.Outcome) bool { return o.Disconnected || o.RcptRefused > 0 })
			}
			one := refused(newFleet(t, 1).play(tt.sessions, 0))
			three := refused(newFleet(t, 3).play(tt.sessions, 0))
			second := refused(newFleet(t, 3).play(tt.sessions, time.Second))
			if one != tt.one || three != tt.three || second != tt.second {
				t.Errorf("refused from session %d, %d, %d; want %d, %d, %d (%s)", one, three, second, tt.one, tt.three, tt.second, tt.reason)
			}
		})
	}
}

// TestFleetShares checks the effects of other hosts' rows.
func TestFleetShares(t *testing.T) {
	t.Run("a ban and an unban", func(t *testing.T) {
		f := newFleet(t, 3)
		if o := f.one(0, asks(monday, "198.51.100.7", "", 9, 0)); !o.Disconnected {
			t.Fatalf("harvest: %+v", o)
		}
		for i := range 3 {
			if o := f.one(i, delivery(monday.Add(time.Duration(i+1)*time.Hour), "198.51.100.7", "")); !o.Disconnected {
				t.Errorf("host %d: %+v", i, o)
			}
		}
		p := netip.MustParsePrefix("198.51.100.7/32")
		at := monday.Add(5 * time.Hour)
		f.sites[2].memory.Bans.Revoke(p, true, at.UnixMicro())
		f.sites[2].memory.Forget(p)
		f.exchange(at)
		for i := range 3 {
			if o := f.one(i, delivery(monday.Add(time.Duration(i+6)*time.Hour), "198.51.100.7", "mail.sender.example")); o.Mails != 1 {
				t.Errorf("host %d after the unban: %+v", i, o)
			}
		}
	})
	t.Run("a known client and a correspondent", func(t *testing.T) {
		f := newFleet(t, 2)
		f.one(0, delivery(monday, "198.51.100.7", "mail.sender.example"))
		sender := &memory.Client{Addr: netip.MustParseAddr("198.51.100.7"), Domain: "sender.example"}
		if s := f.standing(1, sender, monday.Add(day)); s.Level != rules.StandingKnown || s.Origin != "mx0" {
			t.Errorf("client known on another host: %+v", s)
		}
		user := visitor(monday.Add(2*time.Hour), "198.51.100.50", "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), say(simulate.Auth, "alice"),
			say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "bob@partner.example"), say(simulate.Data, ""), say(simulate.Quit, ""))
		f.one(0, user)
		partner := &memory.Client{Addr: netip.MustParseAddr("203.0.113.5"), Domain: "partner.example"}
		if s := f.standing(1, partner, monday.Add(day)); s.Level != rules.StandingKnown || s.By != "correspondent" || s.Origin != "mx0" {
			t.Errorf("correspondent of another host: %+v", s)
		}
	})
	t.Run("pretended standing", func(t *testing.T) {
		f := newFleet(t, 2)
		for i := range 40 {
			f.sites[1].memory.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr("203.0.113.5")}, memory.Delivery{Messages: 9}, monday.Add(time.Duration(i-50)*day).UnixMicro())
		}
		f.exchange(monday)
		for i, want := range []rules.Standing{rules.StandingKnown, rules.StandingTrusted} {
			if s := f.standing(i, &memory.Client{Addr: netip.MustParseAddr("203.0.113.5")}, monday); s.Level != want {
				t.Errorf("host %d: %+v", i, s)
			}
		}
	})
	t.Run("a probed mailbox", func(t *testing.T) {
		f := newFleet(t, 3)
		ask := func(i, n int) {
			f.one(i, asks(monday.Add(time.Duration(n)*time.Hour), fmt.Sprintf("203.0.%d.9", n), "", 1, 0))
		}
		for n := range 6 { // the other hosts add at most twice the count of this host, which is two networks
			ask(n%3, n+1)
		}
		c := &memory.Client{Addr: netip.MustParseAddr("192.0.2.9")}
		for i, s := range f.sites {
			if !s.memory.Recipients.Probed(c, []byte("word0-0@example.org"), monday.Add(day).UnixMicro()) {
				t.Errorf("host %d does not know that the mailbox was probed", i)
			}
		}
	})
}

// TestHostileHost checks that false rows from a hostile host do not harm legitimate clients of
// another host. The clients are one with standing, a friend, a user, and an unknown client with two
// mistyped recipients.
func TestHostileHost(t *testing.T) {
	now := monday.Add(-30 * time.Minute)
	friends := "table <friends> { }"
	f := newFleet(t, 2)
	f.sites[0].policy = policy(t, strings.Replace(string(must(rules.ReadyPolicy("standard"))), friends, "table <friends> { 203.0.113.77 }", 1)).InMode(rules.Enforce)
	own := f.sites[0]
	own.play(sessions(
		delivery(monday.Add(-5*day), "203.0.113.5", "mail.sender.example"),
		visitor(monday.Add(-5*day), "203.0.113.6", "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), say(simulate.Auth, "alice"),
			say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "bob@partner.example"), say(simulate.Data, ""), say(simulate.Quit, "")),
	))
	clients := []string{"203.0.113.5", "203.0.113.6", "203.0.113.77", "203.0.113.8", "203.0.113.9"}

	// The hostile host has a separate memory. The hostile host plays the attacks of which it
	// accuses others, so that its rows are plausible.
	evil := f.sites[1].memory
	evil.Counters.Watch(own.policy.Needs().Windows)
	at := now.UnixMicro()
	for _, addr := range append(clients, "203.0.113.10") {
		c := &memory.Client{Addr: netip.MustParseAddr(addr), Helo: []byte("mail.sender.example"), User: []byte("alice")}
		switch addr {
		case "203.0.113.9": // this client has counts but no ban
		case "203.0.113.6", "203.0.113.77":
			evil.Bans.AddPrefix(netip.PrefixFrom(c.Addr, 32), 24*time.Hour, "enough", at)
		default:
			evil.Bans.Add(c, memory.BanRequest{Ladder: []time.Duration{48 * time.Hour}, Rule: "guess"}, at)
		}
		for i := range 500 {
			evil.Counters.Add(c, rules.UnknownRecipient, at)
			evil.Counters.Add(c, rules.AuthFailure, at)
			evil.Counters.Add(c, rules.RelayProbe, at)
			evil.Peers.Misbehaved(c, at)
			evil.Recipients.Refused(&memory.Client{Addr: netip.AddrFrom4([4]byte{10, byte(i), 0, 1})}, []byte(simulate.Mailbox(3)), at)
			c.User = fmt.Appendf(nil, "user%d", i%40)
			evil.Logins.Failed(c, at)
			evil.Logins.Failed(&memory.Client{Addr: netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), User: []byte("alice")}, at)
		}
	}
	evil.Bans.AddPrefix(netip.MustParsePrefix("203.0.112.0/23"), time.Hour, "everything", at)
	evil.Bans.AddPrefix(netip.MustParsePrefix("0.0.0.0/0"), time.Hour, "everything", at)
	f.exchange(now)

	typo := func(addr string, at time.Time) simulate.Session {
		return visitor(at, addr, "", say(simulate.Ehlo, "mail.other.example"), say(simulate.Mail, "joe@other.example"), wrong(simulate.Rcpt, "typo1@example.org"),
			say(simulate.Rcpt, simulate.Mailbox(3)), say(simulate.Rcpt, "new@example.org"), say(simulate.Data, ""), say(simulate.Quit, ""))
	}
	login := func(addr string, at time.Time) simulate.Session {
		return visitor(at, addr, "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), wrong(simulate.Auth, "alice"), wrong(simulate.Auth, "alise"), say(simulate.Auth, "alice"),
			say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "bob@partner.example"), say(simulate.Data, ""), say(simulate.Quit, ""))
	}
	for i, s := range []simulate.Session{
		delivery(monday, "203.0.113.5", "mail.sender.example"),
		login("203.0.113.6", monday),
		delivery(monday, "203.0.113.77", "friend.example.net"),
		typo("203.0.113.9", monday),
		login("203.0.113.9", monday.Add(time.Hour)),
		login("203.0.113.9", monday.Add(2*time.Hour)),
	} {
		if o := own.play(sessions(s))[0]; o.Disconnected || o.RcptRefused > 0 || o.Mails != 1 {
			t.Errorf("session %d of a legitimate client: %+v", i, o)
		}
	}
	if o := own.play(sessions(delivery(monday, "203.0.113.8", "mail.unknown.example")))[0]; !o.Disconnected {
		t.Errorf("an unknown client that another host has banned: %+v", o)
	}
	if list := f.replicas[0].Hosts(); len(list) != 1 || list[0].Omitted != 2 || list[0].Problem != "bans of networks larger than /24" {
		t.Errorf("%+v", list)
	}
}

func must(text []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return text
}
