//go:build linux && long

package count

import (
	"fmt"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
)

// TestCountLong is TestCount with 200,000 sessions.
func TestCountLong(t *testing.T) { count(t, 200_000) }

// TestCountCommonLong is TestCountCommon with more aggregates of many sources.
func TestCountCommonLong(t *testing.T) { countCommon(t, 200_000, 24*time.Hour) }

// TestCountSources checks that the number of sources is exact up to 500,000. Above that, the number
// must be printed with its error.
func TestCountSources(t *testing.T) {
	const exact = 500_000
	w := newWorld(size{sessions: 1000, until: begin.Add(time.Hour), kinds: []string{"scan"}})
	r := newRun(t, w, 4096)
	for n := range exact + 20_000 { // one session per source, half of them over IPv6
		s := &script{id: uint64(0x100000 + n), at: begin.UnixMicro() + int64(n)*100_000, asked: w.asked, token: &w.token}
		src := fmt.Sprintf("100.%d.%d.%d:25", 64+n>>16, n>>8&255, n&255)
		if n%2 == 1 {
			src = fmt.Sprintf("[2001:db8:%x:%x::1]:25", n>>16, n&0xffff)
		}
		s.connect("<unknown>", "fail", src, "192.0.2.25:25")
		s.ask("connect", "<unknown>|x", false)
		s.disconnect()
		for i := range s.lines {
			r.write(&s.lines[i])
		}
		r.tracker.now = s.at
		switch n + 1 {
		case exact, exact + 20_000:
			r.sync()
			var got printed
			r.sources(&got)
			if n+1 == exact && (got.Addresses != exact || got.AddressesError != 0) {
				t.Errorf("%d sources within %d %%, want %d", got.Addresses, got.AddressesError, exact)
			}
			if off := max(got.Addresses-n-1, n+1-got.Addresses); n+1 > exact && (got.AddressesError != 1 || off*100 > n) {
				t.Errorf("%d sources within %d %%, want %d within 1 %%", got.Addresses, got.AddressesError, n+1)
			}
			t.Logf("%d sources, counted as %d within %d %%", n+1, got.Addresses, got.AddressesError)
		default:
			if n%flushEvery == 0 {
				r.flush()
			}
		}
	}
	r.stop()
}

// sources reads the number of sources.
func (r *run) sources(p *printed) {
	r.t.Helper()
	cli.Decode(r.t, cli.Run(r.t, r.dir, "report", "--json", "--since", begin.Format("2006-01-02")), p)
}
