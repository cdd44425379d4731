package memory

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/rules"
)

const years = 3652 * day

// A world is a filter on a machine whose clock may be wrong.
type world struct {
	t      *testing.T
	m      *Memory
	disk   disk
	now    time.Duration // true time since at(0)
	passed time.Duration // time on the monotonic clock
	wrong  time.Duration // error of the clock
	hosts  int
}

// A clockMove changes the clocks before an event.
type clockMove struct {
	wait    time.Duration // time passes
	asleep  time.Duration // time passes, but not on the monotonic clock
	wrong   time.Duration // new error of the clock
	restart bool
	ban     bool // the event bans second
	counts  bool // the step counts as time that has passed until the clock returns
}

var (
	trustedHost, banned, second = who("192.0.2.1"), who("192.0.2.2"), who("192.0.2.3")
	failures                    = rules.Window{Evidence: rules.AuthFailure, Window: 7 * day, By: rules.BySrc}
	week                        = BanRequest{Ladder: []time.Duration{7 * day}, Rule: "bot"}
	base                        = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (w *world) event() int64 { return at(w.now + w.wrong) }

func (w *world) start() {
	w.m = New()
	w.m.clock.monotonic = func() time.Time { return base.Add(w.passed) }
	w.m.Counters.Watch([]rules.Window{failures})
	w.m.Follow()
}

func (w *world) move(v clockMove) {
	w.now, w.passed, w.wrong = w.now+v.wait+v.asleep, w.passed+v.wait, v.wrong
	if v.restart {
		w.disk.take(w.m)
		w.start()
		w.m.Tick(w.event()) // a filter handles events even before it reads the file
		if v.ban {
			w.m.Bans.Add(second, week, w.event())
		}
		w.disk.load(w.m, w.event())
	}
	w.m.Tick(w.event())
	if v.ban && !v.restart {
		w.m.Bans.Add(second, week, w.event())
	}
}

// fill adds rows. Each added row causes a few expired rows to be deleted.
func (w *world) fill() {
	for range 100 {
		w.hosts++
		c := &Client{Addr: netip.AddrFrom4([4]byte{198, 18, byte(w.hosts >> 8), byte(w.hosts)})}
		w.m.Bans.Add(c, BanRequest{Ladder: []time.Duration{time.Second}, Rule: "bot"}, w.event())
		w.m.Peers.Misbehaved(c, w.event())
		w.m.Counters.Add(c, rules.AuthFailure, w.event())
	}
}

// left returns the remaining time of c's ban. The test fails if the filter and a reader
// of the file disagree.
func (w *world) left(c *Client) (left time.Duration) {
	w.t.Helper()
	event := time.UnixMicro(w.event())
	if b, ok := first(w.m.Bans.Banned(c, w.event())); ok {
		left = b.Until.Sub(event)
	}
	w.disk.take(w.m)
	r := NewReader(event)
	for _, bucket := range []string{clockBucket, "bans"} {
		for _, e := range w.disk {
			if e.Bucket != bucket || r.Clock(e) {
				continue
			}
			if b, ok := r.Ban(e.Key, e.Value); ok && b.Prefix.Addr() == c.Addr && !b.Expired(event) && (b.Until.Sub(event)-left).Abs() > time.Second {
				w.t.Errorf("the file states %v of the ban of %v, the filter %v", b.Until.Sub(event), c.Addr, left)
			}
		}
	}
	return left
}

// TestClock checks that bans keep their length and that standing is kept while the
// clock is wrong, even if the filter restarts.
func TestClock(t *testing.T) {
	const hour, few, ahead = time.Hour, 10 * time.Minute, 8 * day
	for _, c := range []struct {
		name  string
		moves []clockMove
		// paused is the permitted error in the remaining length of the ban.
		paused time.Duration
	}{
		{"nothing", []clockMove{{wait: hour, ban: true}}, 0},
		{"boot in 1970", []clockMove{{wait: hour, wrong: -56 * 365 * day, restart: true, ban: true}, {wait: hour}}, 0},
		{"boot in 1970, twice", []clockMove{{wait: hour, wrong: -56 * 365 * day, restart: true, ban: true}, {wait: hour, wrong: -56 * 365 * day, restart: true}, {wait: hour, restart: true}}, 0},
		{"1970 for three days", []clockMove{{wait: hour, wrong: -56 * 365 * day, restart: true, ban: true}, {wait: 3 * day, wrong: -56 * 365 * day}, {wait: hour}}, 0},
		{"an hour back", []clockMove{{wait: hour, wrong: -hour, ban: true}, {wait: hour, wrong: -hour}, {wait: hour}}, 0},
		{"an hour back and a restart", []clockMove{{wait: hour, wrong: -hour, restart: true, ban: true}, {wait: hour, restart: true}}, 0},
		{"five days back", []clockMove{{wait: hour, wrong: -5 * day, ban: true}, {wait: hour, wrong: -5 * day}, {wait: hour}}, 0},
		{"years ahead", []clockMove{{wait: hour, wrong: years, ban: true}, {wait: 12 * time.Second}}, 0},
		{"years ahead, and a restart", []clockMove{{wait: hour, wrong: years, ban: true}, {wait: hour, wrong: years, restart: true}, {wait: hour}}, 0},
		{"years ahead, and a restart with the right time", []clockMove{{wait: hour, wrong: years, ban: true}, {wait: hour, restart: true}}, 0},
		{"boot years ahead", []clockMove{{wait: hour, wrong: years, restart: true, ban: true}, {wait: hour}}, 0},
		{"years ahead for three days", []clockMove{{wait: hour, wrong: years, ban: true}, {wait: 3 * day, wrong: years}, {wait: hour}}, 0},
		{"years ahead, then 1970", []clockMove{{wait: hour, wrong: years, ban: true}, {wait: hour, wrong: -56 * 365 * day, restart: true}, {wait: hour}}, 0},
		{"a week ahead", []clockMove{{wait: hour, wrong: ahead, ban: true}, {wrong: ahead}, {wait: hour}}, 0},
		{"a week ahead, and a restart", []clockMove{{wait: hour, wrong: ahead, ban: true}, {wrong: ahead, restart: true}, {wait: hour}}, 0},
		{"a week ahead, and a restart with the right time", []clockMove{{wait: hour, wrong: ahead, ban: true}, {wait: hour, restart: true}}, 0},
		{"a week ahead, then years", []clockMove{{wait: hour, wrong: ahead, ban: true}, {wrong: years + ahead}, {wait: hour}}, 0},
		{"resume after sixty days, then five days back and a restart", []clockMove{{asleep: 60 * day, ban: true}, {wait: hour, wrong: -5 * day}, {wrong: -5 * day, restart: true}, {wait: hour}}, 60 * day},
		{"resume after five days, then a week ahead", []clockMove{{asleep: 5 * day}, {wait: hour, wrong: ahead}, {wrong: ahead, restart: true}, {wait: hour}}, 0},
		{"ten days ahead, then more", []clockMove{{wait: few, wrong: 10 * day, ban: true, counts: true}, {wait: few, wrong: 25 * day, counts: true}, {wait: few}}, 0},
		{"ten days ahead, then more a day later", []clockMove{{wait: few, wrong: 10 * day, counts: true}, {wait: 23 * hour, wrong: 25 * day, counts: true}, {wait: 23 * hour, ban: true}}, 0},
		{"ten days ahead, then more, with restarts", []clockMove{{wait: few, wrong: 10 * day, ban: true, counts: true}, {wait: few, wrong: 25 * day, restart: true, counts: true}, {wait: few, restart: true}}, 0},
		{"twice 25 days ahead", []clockMove{{wait: few, wrong: 25 * day, ban: true, counts: true}, {wait: few, wrong: 50 * day, counts: true}, {wait: few}}, 0},
		{"forty days ahead, then more", []clockMove{{wait: few, wrong: 40 * day, ban: true}, {wait: few, wrong: 60 * day, counts: true}, {wait: few}}, 0},
		{"years ahead, then more", []clockMove{{wait: few, wrong: 3650 * day, ban: true}, {wait: few, wrong: 3670 * day, counts: true}, {wait: few}}, 0},
		{"three days back, then ten ahead", []clockMove{{wait: few, wrong: -3 * day, ban: true}, {wait: few, wrong: 10 * day, counts: true}, {wait: few}}, 0},
		{"six steps", []clockMove{{wait: few, wrong: 10 * day, ban: true, counts: true}, {wait: few, wrong: 20 * day, counts: true}, {wait: few, wrong: 30 * day, counts: true}, {wait: few, wrong: 40 * day, counts: true}, {wait: few, wrong: 50 * day, counts: true}, {wait: few, wrong: 60 * day, counts: true}, {wait: few}}, 0},
		{"a step ahead, half of it back", []clockMove{{wait: few, wrong: 20 * day, ban: true, counts: true}, {wait: few, wrong: 10 * day, counts: true}, {wait: few}}, 0},
		{"five days back, twice", []clockMove{{wait: hour, wrong: -5 * day, ban: true}, {wait: hour, wrong: -10 * day}, {wait: hour}}, 0},
		{"five days back, and a restart", []clockMove{{wait: hour, wrong: -5 * day, ban: true}, {wait: hour, wrong: -5 * day, restart: true}, {wait: hour}}, 0},
		{"resume after sixty days, then five days back", []clockMove{{asleep: 60 * day, ban: true}, {wait: hour, wrong: -5 * day}, {wait: hour}}, 60 * day},
		{"resume after a day", []clockMove{{asleep: day, ban: true}, {wait: hour}}, 0},
		{"resume after five days", []clockMove{{asleep: 5 * day, ban: true}, {wait: hour}}, 0},
		{"resume after five days, two days later", []clockMove{{asleep: 5 * day, ban: true}, {wait: 47 * hour}}, 0},
		{"off for five days", []clockMove{{asleep: 5 * day, restart: true, ban: true}, {wait: hour}}, 0},
		{"resume after sixty days", []clockMove{{asleep: 60 * day, ban: true}, {wait: hour}}, 60 * day},
		{"quiet for five days", []clockMove{{wait: 5 * day, ban: true}, {wait: hour}}, 0},
		{"quiet for sixty days", []clockMove{{wait: 60 * day, ban: true}, {wait: hour}}, 0},
		{"quiet for sixty days, then years ahead", []clockMove{{wait: 60 * day, ban: true}, {wait: hour, wrong: years}, {wait: hour}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t: t, disk: disk{}}
			w.start()
			w.m.Load(func(func(kv.Entry) bool) {}, w.event())
			for range 15 {
				w.move(clockMove{wait: day})
				w.m.Peers.Delivered(trustedHost, Delivery{1, []string{"example.org"}}, w.event())
				w.m.Days.Add(&Ended{}, w.event())
			}
			w.m.Bans.Add(banned, week, w.event())
			w.m.Counters.Add(banned, rules.AuthFailure, w.event())
			made, again := w.now, time.Duration(-1)
			for i, v := range c.moves {
				w.move(v)
				w.fill()
				if v.ban {
					again = w.now
				}
				if v.counts {
					continue
				}
				end := made + 7*day + c.paused
				if v.wrong == ahead || v.wrong == years+ahead {
					end -= ahead // time that may really have passed
				}
				w.check(fmt.Sprint("move ", i+1), banned, end)
				w.check(fmt.Sprint("move ", i+1), second, again+7*day)
				if s := w.m.Peers.Standing(trustedHost, w.event()); s.Level != rules.StandingTrusted {
					t.Errorf("move %d: standing %+v", i+1, s)
				}
				if n := len(w.m.Days.List()); n < 15 {
					t.Errorf("move %d: %d days left", i+1, n)
				}
			}
			if n, _ := w.m.Counters.Count(banned, failures, w.event()); n != 1 && w.now-made < 5*day {
				t.Errorf("%d failed logins", n)
			}
			for range 8 {
				w.move(clockMove{wait: day, restart: true})
			}
			w.check("a week later", banned, made+7*day+c.paused)
			w.check("a week later", second, again+7*day)
		})
	}
}

// check checks that c's ban ends within a quarter of an hour of the given time. A
// restart may lose the time since the clock was last written.
func (w *world) check(when string, c *Client, end time.Duration) {
	w.t.Helper()
	if got, want := w.left(c), max(end-w.now, 0); (got - want).Abs() > time.Hour+15*time.Minute {
		w.t.Errorf("%s: the ban of %v lasts for another %v, want %v", when, c.Addr, got, want)
	}
}

// TestBanWhileAhead checks that a ban imposed while the clock was a week ahead keeps
// its length, even if the host does not return.
func TestBanWhileAhead(t *testing.T) {
	w := &world{t: t, disk: disk{}}
	w.start()
	network := netip.MustParsePrefix("203.0.113.0/24")
	w.move(clockMove{wait: day})
	w.move(clockMove{wait: day, wrong: 8 * day, ban: true})
	w.m.Bans.AddPrefix(network, 7*day, "", w.event())
	w.move(clockMove{wait: time.Hour})
	w.disk.take(w.m)
	for range 7 {
		w.move(clockMove{wait: day})
	}
	n := 0
	w.m.Bans.Each(func(b Ban) {
		if n++; !b.Expired(time.UnixMicro(w.event())) {
			t.Errorf("%+v is active", b)
		}
	})
	if n != 2 {
		t.Errorf("%d bans", n)
	}
}

// TestAbuseWhileAhead checks that users who reached their limits while the clock was a
// week ahead are not limited for weeks.
func TestAbuseWhileAhead(t *testing.T) {
	w := &world{t: t, disk: disk{}}
	w.start()
	user := &Client{Addr: banned.Addr, User: []byte("alice"), Account: true}
	w.move(clockMove{wait: day})
	w.move(clockMove{wait: day, wrong: 8 * day})
	w.m.Logins.Abuse(user, w.event())
	w.m.Logins.Wrote(user, w.event())
	w.m.Recipients.Asked(user, []byte("bob@example.org"), w.event())
	w.fill()
	if !w.m.Logins.Abused(user, w.event()) || w.m.Logins.Wrote(user, w.event()) != 2 || !w.m.Recipients.Asked(user, []byte("bob@example.org"), w.event()) {
		t.Error("nothing is known of the last minute")
	}
	w.move(clockMove{wait: time.Hour})
	if w.m.Logins.Abused(user, w.event()) || w.m.Logins.Wrote(user, w.event()) != 1 || w.m.Recipients.Asked(user, []byte("bob@example.org"), w.event()) {
		t.Error("the limits continue")
	}
}

// TestCommandBeforeTheFirstEvent checks that a manual ban keeps its length if it is
// imposed before the first event after a restart. The test covers an outage, a wrong
// clock and a replayed stream.
func TestCommandBeforeTheFirstEvent(t *testing.T) {
	for _, c := range []struct {
		name        string
		off         time.Duration // time without a filter
		wrong, then time.Duration // error of the clock at the command, and at the events
	}{
		{name: "restart", off: 5 * time.Minute},
		{name: "night", off: 9 * time.Hour},
		{name: "week", off: 7 * day},
		{name: "two months", off: 60 * day},
		{name: "wrong clock", wrong: -years},
		{name: "clock stays wrong", off: 9 * time.Hour, wrong: -years, then: -years},
		{name: "clock ahead", wrong: years},
		{name: "replayed stream", wrong: years, then: -time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t: t, disk: disk{}}
			w.start()
			w.m.Tick(w.event())
			w.disk.take(w.m)
			w.now, w.passed, w.wrong = c.off, c.off, c.wrong
			w.start()
			w.disk.load(w.m, w.event())
			now := w.m.Now(w.event())
			if now != w.event() {
				t.Errorf("the time of a command is %v, not %v", time.UnixMicro(now).UTC(), time.UnixMicro(w.event()).UTC())
			}
			w.m.Bans.Add(second, BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "operator"}, now)
			w.now, w.passed, w.wrong = w.now+time.Minute, w.passed+time.Minute, c.then
			w.m.Tick(w.event())
			if left := w.left(second); (left - 59*time.Minute).Abs() > 2*time.Second {
				t.Errorf("a ban of an hour lasts for another %v a minute later", left)
			}
		})
	}
}
