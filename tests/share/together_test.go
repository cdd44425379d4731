//go:build linux

package share

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"scanwatch/filter/memory"
	"scanwatch/tests/internal/filterproc"
)

// standard returns the preset standard in enforce mode.
func standard(h *host) string {
	h.t.Helper()
	return strings.Replace(h.scanwatch("policy", "--print", "standard"), "mode observe", "", 1)
}

// accepts plays a session, and reports whether all its requests were answered with proceed.
func (h *host) accepts(g filterproc.Guest) bool {
	h.t.Helper()
	return !slices.ContainsFunc(h.play(g), func(answer string) bool { return answer != "proceed" })
}

// barrier waits until each host has received all rows from the other hosts.
func barrier(t *testing.T, n int, hosts []*host) {
	t.Helper()
	for i, h := range hosts {
		mark := fmt.Sprintf("203.0.113.%d", 3*n+i)
		h.ban(mark)
		for _, other := range hosts {
			filterproc.Eventually(t, other.name+" rejects the mark", other.turnsAway(mark))
		}
	}
}

// TestTogether plays the same clients twice: in turn against three hosts that share their state,
// and against a single host. The results must be the same, except that a client's first
// memory.Alone recipients on a host count only on that host.
func TestTogether(t *testing.T) {
	t.Parallel()
	f := newFleet(t, newServer(t, "valkey"))
	single := f.alone("single")
	policy := standard(single)
	single.configure("mode enforce\n" + policy)
	single.filter.End(0)
	single.startFilter()
	var hosts []*host
	for i := range 3 {
		hosts = append(hosts, f.host(fmt.Sprintf("mx%d", i+1), policy))
	}
	const rounds, sources = 12, 8
	first := func(play func(round int, g filterproc.Guest) bool, after func(round int)) (rejected [sources]int, mistakes int) {
		for round := 1; round <= rounds; round++ {
			for i := range sources {
				g := filterproc.Guest{Src: fmt.Sprintf("45.118.%d.9", i), Port: 25, Helo: "h.example.com", Recipients: 1 + i%2}
				if !play(round, g) && rejected[i] == 0 {
					rejected[i] = round
				}
			}
			for i := range sources { // each sender makes one mistake
				g := filterproc.Guest{Src: fmt.Sprintf("198.18.%d.9", i), Port: 25, Helo: fmt.Sprintf("mx%d.example.net", i), Mail: true}
				if round == i+1 {
					g.Recipients = 1
				}
				if !play(round, g) {
					mistakes++
				}
			}
			after(round)
		}
		return rejected, mistakes
	}
	alone, mistakes := first(func(_ int, g filterproc.Guest) bool { return single.accepts(g) }, func(int) {})
	if mistakes > 0 {
		t.Fatalf("one host alone rejects %d sessions of legitimate senders", mistakes)
	}
	shared, mistakes := first(func(round int, g filterproc.Guest) bool { return hosts[round%3].accepts(g) }, func(round int) { barrier(t, round, hosts) })
	t.Logf("first rejected session: alone %v, shared %v", alone, shared)
	if mistakes > 0 {
		t.Errorf("three hosts reject %d sessions of legitimate senders", mistakes)
	}
	for i := range sources {
		if alone[i] == 0 || shared[i] == 0 || shared[i] > alone[i]+2*memory.Alone {
			t.Errorf("client %d is rejected in session %d alone and %d on three hosts", i, alone[i], shared[i])
		}
	}
}
