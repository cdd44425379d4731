package filter_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// TestMailboxesElsewhere checks that a harvest on this host is detected even if another host
// accepts the mailboxes, or claims to. A recipient that this host does not know yet may be
// requested once.
func TestMailboxesElsewhere(t *testing.T) {
	// cut returns the number of recipients that a client can probe if it requests one per session.
	cut := func(f *fleet, addr string) (n int) {
		for n < 40 {
			if o := f.one(0, visitor(monday.Add(time.Duration(n)*time.Minute), addr, "", say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "spam@example.net"),
				wrong(simulate.Rcpt, fmt.Sprintf("name%d@example.org", n)), say(simulate.Quit, ""))); o.Disconnected || o.RcptRefused > 0 {
				return n
			}
			n++
		}
		return n
	}
	alone := cut(newFleet(t, 1), "198.51.100.7")
	if alone == 40 {
		t.Fatal("the harvest is not cut")
	}
	for _, refusals := range []int{0, 19, 20} {
		t.Run(fmt.Sprint(refusals, " refusals"), func(t *testing.T) {
			f := newFleet(t, 2)
			other, at := f.sites[1].memory.Recipients, monday.Add(-time.Hour)
			for i := range 40 {
				other.Accepted(fmt.Appendf(nil, "name%d@example.org", i), at.UnixMicro())
			}
			f.exchange(at)
			for i := range refusals {
				other.Refused(&memory.Client{Addr: netip.MustParseAddr("203.0.113.9")}, fmt.Appendf(nil, "missing%d@example.org", i), at.UnixMicro())
			}
			f.exchange(at)
			want := alone
			if refusals >= 20 {
				want++ // the first mailbox is exempt
			}
			if n := cut(f, "198.51.100.7"); n != want {
				t.Errorf("cut after %d recipients, want %d", n, want)
			}
		})
	}
	t.Run("a new user", func(t *testing.T) {
		f := newFleet(t, 2)
		other, at := f.sites[1].memory.Recipients, monday.Add(-time.Hour)
		other.Accepted([]byte("new@example.org"), at.UnixMicro())
		for i := range 20 {
			other.Refused(&memory.Client{Addr: netip.MustParseAddr("203.0.113.9")}, fmt.Appendf(nil, "missing%d@example.org", i), at.UnixMicro())
		}
		f.exchange(at)
		for i := range 12 { // senders in several networks, which also retry
			o := f.one(0, visitor(monday.Add(time.Duration(i)*time.Minute), fmt.Sprintf("198.51.%d.7", i%6), "", say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "joe@example.net"),
				wrong(simulate.Rcpt, "new@example.org"), say(simulate.Quit, "")))
			if o.Disconnected || o.RcptRefused > 0 {
				t.Errorf("session %d: %+v", i, o)
			}
		}
	})
}

// loggedIn returns a session with a login.
func loggedIn(at time.Time, addr string) simulate.Session {
	return visitor(at, addr, "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), say(simulate.Auth, "alice"), say(simulate.Quit, ""))
}

// TestOfficeElsewhere checks that an office is not banned earlier in two cases: its users log in to
// several hosts, or another host claims that logins have failed.
func TestOfficeElsewhere(t *testing.T) {
	const office = "198.51.100.10"
	user := func(i int) string { return fmt.Sprintf("user%d", i) }
	// banned returns the number of users of the office whose logins fail before the office is
	// banned.
	banned := func(f *fleet) int {
		for i := range 12 {
			at := monday.Add(time.Duration(i+1) * time.Minute)
			f.one(i%len(f.sites), guesses(at, office, user(i)))
			for _, s := range f.sites {
				if b, ok := s.memory.Bans.Enforced(netip.MustParsePrefix(office+"/32"), at.UnixMicro()); ok && b.Origin == "" {
					return i + 1
				}
			}
		}
		return 0
	}
	alone := newFleet(t, 1)
	alone.one(0, loggedIn(monday, office))
	want := banned(alone)
	if want == 0 {
		t.Fatal("the office is never banned")
	}
	split := newFleet(t, 2)
	split.one(1, loggedIn(monday, office))
	// The host at which a login fails counts only its own sessions. The other host therefore bans
	// the office one user later than a single host would.
	if n := banned(split); n != want+1 {
		t.Errorf("banned after %d users on two hosts, want %d", n, want+1)
	}

	claims := newFleet(t, 2)
	claims.sites[1].memory.Counters.Watch(claims.sites[0].policy.Needs().Windows)
	for i := range 40 {
		c := &memory.Client{Addr: netip.MustParseAddr(office), User: fmt.Appendf(nil, "other%d", i)}
		claims.sites[1].memory.Logins.Failed(c, monday.UnixMicro())
		claims.sites[1].memory.Counters.Add(c, rules.AuthFailure, monday.UnixMicro())
	}
	claims.one(0, loggedIn(monday, office))
	for i := range want - 1 {
		claims.one(0, guesses(monday.Add(time.Duration(i+1)*time.Minute), office, user(i)))
	}
	at := monday.Add(time.Hour)
	if o := claims.one(0, loggedIn(at, office)); o.Disconnected {
		t.Errorf("another host's claims have banned an office: %+v", o)
	}
}

// TestExcusesElsewhere checks a client with standing on another host. The client must be exempt
// from bans imposed by other hosts, but not from bans imposed by this host.
func TestExcusesElsewhere(t *testing.T) {
	const addr = "198.51.100.40"
	// cut returns the number of sessions with a failed login before the client is banned.
	cut := func(f *fleet) (n int) {
		for n < 40 {
			n++
			if o := f.one(0, guesses(monday.Add(time.Duration(n)*time.Minute), addr, fmt.Sprintf("user%d", n))); o.Disconnected {
				return n
			}
		}
		return n
	}
	want := cut(newFleet(t, 1))
	if want == 40 {
		t.Fatal("the client is never banned")
	}
	for _, tt := range []struct {
		name    string
		senders int
	}{{"known", 1}, {"many", 5}} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, 3)
			c := &memory.Client{Addr: netip.MustParseAddr(addr)}
			for i := range 5 {
				c.Helo = fmt.Appendf(nil, "mail%d.example", i)
				f.sites[1].memory.Peers.Delivered(c, memory.Delivery{Messages: 1, Senders: []string{fmt.Sprintf("sender%d.example", i%tt.senders)}}, monday.Add(time.Duration(i-9)*day).UnixMicro())
			}
			f.sites[2].memory.Bans.Add(c, memory.BanRequest{Ladder: []time.Duration{time.Minute}, Rule: "elsewhere"}, monday.UnixMicro())
			f.exchange(monday)
			if o := f.one(0, visitor(monday.Add(time.Second), addr, "", say(simulate.Ehlo, "mail.example"), say(simulate.Quit, ""))); o.Disconnected {
				t.Errorf("the ban of another host applies: %+v", o)
			}
			if excuse, elsewhere := f.sites[0].memory.Peers.ExcuseFrom(c, monday.UnixMicro()); excuse != tt.name || !elsewhere {
				t.Errorf("excuse %q, elsewhere %v", excuse, elsewhere)
			}
			if n := cut(f); n != want {
				t.Errorf("cut after %d sessions, want %d", n, want)
			}
		})
	}
}
