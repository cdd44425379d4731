//go:build linux && long

package share

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/filterproc"
)

// TestPace measures the time from a ban on one host until another host rejects the client.
func TestPace(t *testing.T) {
	f := newFleet(t, newServer(t, "valkey"))
	a, b, c := f.host("mx1", ""), f.host("mx2", ""), f.host("mx3", "")
	a.ban("198.51.100.250")
	for _, h := range []*host{b, c} {
		filterproc.Eventually(t, h.name+" rejects the client", h.turnsAway("198.51.100.250"))
	}
	var took []time.Duration
	for i := range 100 {
		addr := fmt.Sprintf("198.51.100.%d", i)
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond) // a random time between two transmissions
		a.ban(addr)
		start := time.Now()
		for _, h := range []*host{b, c} {
			for !h.turnsAway(addr)() {
				time.Sleep(5 * time.Millisecond)
			}
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("from a ban until two other hosts reject the client: median %v, p99 %v, longest %v", took[50], took[98], took[99])
}

// bans lists the active bans without their origins.
func (h *host) bans() string {
	var list []string
	for line := range strings.Lines(h.scanwatch("bans", "--json")) {
		var b struct{ Prefix string }
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			h.t.Fatal(err)
		}
		list = append(list, b.Prefix)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// TestKills kills a filter, a companion or the server in each round, while bans are added and
// revoked. At the end, all hosts must have the same bans.
func TestKills(t *testing.T) {
	s := newServer(t, "redis")
	f := newFleet(t, s)
	hosts := []*host{f.host("mx1", ""), f.host("mx2", ""), f.host("mx3", "")}
	want := map[string]bool{}
	for round := range 60 {
		h := hosts[round%3]
		addr := fmt.Sprintf("198.51.100.%d", round)
		h.ban(addr)
		want[addr] = true
		if round > 10 && round%4 == 0 {
			old := fmt.Sprintf("198.51.100.%d", round-10)
			hosts[rand.IntN(3)].scanwatch("unban", old)
			delete(want, old)
		}
		victim := hosts[rand.IntN(3)]
		switch rand.IntN(3) {
		case 0:
			victim.scanwatch("flush") // otherwise, a kill would lose the bans of the last second
			if err := victim.filter.Cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = victim.filter.Cmd.Wait()
			victim.startFilter()
		case 1:
			_ = victim.companion.Process.Kill()
			_ = victim.companion.Wait()
			victim.startCompanion()
		default:
			s.stop()
			s.start()
		}
	}
	var all []string
	for addr := range want {
		all = append(all, addr)
	}
	slices.Sort(all)
	for _, h := range hosts {
		filterproc.Eventually(t, h.name+" has all bans and no others", func() bool {
			return strings.ReplaceAll(h.bans(), "/32", "") == strings.Join(all, " ")
		})
	}
}

// TestKillsTogether kills a host's filter and companion in each round, while the host's latest bans
// and unbans are being written and sent. At the end, all hosts must have the same bans. Some of the
// latest bans may be lost.
func TestKillsTogether(t *testing.T) {
	s := newServer(t, "redis")
	f := newFleet(t, s)
	hosts := []*host{f.host("mx1", ""), f.host("mx2", ""), f.host("mx3", "")}
	for round := range 40 {
		h := hosts[round%3]
		h.ban(fmt.Sprintf("198.51.100.%d", round))
		if round > 10 && round%3 == 0 {
			_, _ = h.try("unban", fmt.Sprintf("198.51.100.%d", round-10)) // fails if the ban was lost
		}
		for _, kill := range []func() error{h.filter.Cmd.Process.Kill, h.companion.Process.Kill} {
			time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond) // at any time during the transmission
			if err := kill(); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = h.filter.Cmd.Wait(), h.companion.Wait()
		h.startFilter()
		h.startCompanion()
	}
	filterproc.Eventually(t, "all hosts have the same bans", func() bool {
		return hosts[0].bans() == hosts[1].bans() && hosts[1].bans() == hosts[2].bans()
	})
	t.Logf("%d bans remain", len(strings.Fields(hosts[0].bans())))
}

// TestSlowNetwork checks a new host that needs minutes to read another host's rows. It must not reject
// clients with a standing before it has read all of them.
func TestSlowNetwork(t *testing.T) {
	f := newFleet(t, newServer(t, "redis"))
	a, b := f.host("mx1", ""), f.host("mx2", "")
	var known []string
	for i := range 20_000 {
		known = append(known, fmt.Sprintf("198.18.%d.%d", i>>8, i&255))
	}
	a.knows(known...)
	filterproc.Eventually(t, "mx2 has the standing", func() bool { return strings.Contains(b.scanwatch("status"), "host      mx1: 20001 rows") })
	sample := []string{known[5], known[9000], known[19_990]}
	for _, addr := range append(sample, "203.0.113.77") {
		b.ban(addr)
	}
	p := newClockProxy(t, f.server)
	p.rate.Store(30_000)
	f.to = fmt.Sprintf("\"valkey://127.0.0.1:%d\"", p.port)
	c := f.host("mx3", "")
	start := time.Now()
	for rejects := c.turnsAway("203.0.113.77"); !rejects(); time.Sleep(time.Second) {
		if time.Since(start) > 8*time.Minute {
			t.Fatal("mx3 does not enforce the ban\n", c.scanwatch("status"))
		}
	}
	t.Logf("enforced after %v", time.Since(start))
	for _, addr := range sample {
		if !c.lets(addr)() {
			t.Errorf("mx3 rejects %s, which mx1 knows", addr)
		}
	}
}

// TestLossDuringRead checks a new host that has read only some rows when the server loses all of them. The
// other hosts send their rows again later, and until then the new host must not enforce bans.
func TestLossDuringRead(t *testing.T) {
	t.Run("restart", func(t *testing.T) {
		lossDuringRead(t, func(s *server, other *host) {
			other.killCompanion()
			s.stop()
			s.start()
			time.Sleep(10 * time.Second) // the other host starts later than the server
			other.startCompanion()
		})
	})
	t.Run("flushall", func(t *testing.T) { // connections remain
		lossDuringRead(t, func(s *server, _ *host) { s.cli("flushall") })
	})
}

func lossDuringRead(t *testing.T, lose func(*server, *host)) {
	s := newServer(t, "redis")
	f := newFleet(t, s)
	a, b := f.host("mx1", ""), f.host("mx2", "")
	var known []string
	for i := range 5000 {
		known = append(known, fmt.Sprintf("198.18.%d.%d", i>>8, i&255))
	}
	a.knows(known...)
	filterproc.Eventually(t, "mx2 has the standing", func() bool { return strings.Contains(b.scanwatch("status"), "host      mx1: 5001 rows") })
	sample := []string{known[5], known[2500], known[4990]}
	for _, addr := range append(sample, "203.0.113.77") {
		b.ban(addr)
	}
	p := newClockProxy(t, s)
	p.rate.Store(60_000)
	f.to = fmt.Sprintf("\"valkey://127.0.0.1:%d\"", p.port)
	c := f.host("mx3", "")
	filterproc.Eventually(t, "mx3 reads the rows", func() bool {
		status := c.scanwatch("status")
		return strings.Contains(status, "host      mx1: ") && !strings.Contains(status, "mx1: 0 rows")
	})
	lose(s, a)
	start := time.Now()
	for rejects := c.turnsAway("203.0.113.77"); !rejects(); time.Sleep(100 * time.Millisecond) {
		if time.Since(start) > 5*time.Minute {
			t.Fatal("mx3 does not enforce the ban\n", c.scanwatch("status"))
		}
	}
	t.Logf("enforced after %v", time.Since(start))
	for _, addr := range sample {
		if !c.lets(addr)() {
			t.Errorf("mx3 rejects %s, which mx1 knows", addr)
		}
	}
}
