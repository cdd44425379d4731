//go:build linux && long

package firewall

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// TestPace measures the time from a start until 100,000 bans are in effect. The test then adds and
// removes 500 bans per second. During this time, it measures the delay from a ban to the first
// dropped packet, and from the end of the ban to the first accepted packet.
func TestPace(t *testing.T) {
	const (
		many   = 100_000
		rate   = 500 // bans added and removed per second
		probes = 40
	)
	for _, f := range firewalls {
		t.Run(f.word, func(t *testing.T) {
			programs := []string{f.program, "ip"}
			if f.word == "ipset" {
				programs = append(programs, "iptables", "ip6tables")
			}
			inNamespace(t, programs...)
			n := newNetwork(t)
			if f.word == "ipset" {
				shell(t, f.create)
			}
			shell(t, blocking[f.word])
			random := rand.New(rand.NewPCG(1, 2))
			host := func() netip.Prefix {
				return netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(random.Uint32N(200)), byte(random.Uint32()), byte(random.Uint32())}), 32)
			}
			var start time.Time
			var cpu time.Duration
			b := live(t, f.word, f.argument, func(b *memory.Bans) {
				for range many {
					b.AddPrefix(host(), time.Hour+time.Duration(random.Uint32N(86400))*time.Second, "test", clock())
				}
				// The keeper adds hosts in order, so this host is among the last.
				addBan(b, "45.200.0.1", time.Hour)
				start, cpu = time.Now(), cpuTime()
			})
			eventually(t, "the last of the bans at the start", func() bool { return !n.accepts("45.200.0.1") })
			t.Logf("%s: %d bans in effect after %v, CPU time %v", f.word, many, time.Since(start).Round(time.Millisecond), (cpuTime() - cpu).Round(time.Millisecond))
			runtime.GC()

			stop, stopped := make(chan struct{}), make(chan int)
			go func() {
				random := rand.New(rand.NewPCG(3, 4))
				var active []netip.Prefix
				changes := 0
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						stopped <- changes
						return
					case <-tick.C:
					}
					for range rate / 50 {
						p := netip.PrefixFrom(netip.AddrFrom4([4]byte{45, 201, byte(random.Uint32()), byte(random.Uint32())}), 32)
						b.AddPrefix(p, time.Hour, "test", clock())
						if active = append(active, p); len(active) > 1000 {
							b.Revoke(active[0], false, clock())
							active = active[1:]
						}
						changes++
					}
				}
			}()
			var drops, accepts []time.Duration
			began, cpu := time.Now(), cpuTime()
			for i := range probes {
				host := fmt.Sprintf("45.202.0.%d", i+1)
				at := time.Now()
				addBan(b, host, time.Hour)
				eventually(t, "a ban", func() bool { return !n.accepts(host) })
				drops = append(drops, time.Since(at))
				at = time.Now()
				endBan(b, host)
				eventually(t, "the end of a ban", func() bool { return n.accepts(host) })
				accepts = append(accepts, time.Since(at))
			}
			close(stop)
			t.Logf("%s: %d bans in %v while it was measured, CPU time of all %v", f.word, <-stopped, time.Since(began).Round(time.Second), (cpuTime() - cpu).Round(time.Millisecond))
			for name, times := range map[string][]time.Duration{"ban to dropped packet": drops, "end to accepted packet": accepts} {
				slices.Sort(times)
				t.Logf("%s: %s: p50 %v, p99 %v, max %v", f.word, name, times[len(times)/2].Round(time.Millisecond), times[len(times)*99/100].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
			}
		})
	}
}
