package share

import (
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// TestAbsentStanding checks that the standing on an absent host remains after the server has lost
// its rows and the filter and its companion were restarted, unless another host has a row about the
// same client.
func TestAbsentStanding(t *testing.T) {
	client := &memory.Client{Addr: addr(1).Addr()}
	for other, want := range map[string]rules.Standing{"": rules.StandingKnown, "own row": rules.StandingKnown, "a row of mx3": rules.StandingNone} {
		m := memory.New()
		m.UseName("mx1")
		r := replica(t, map[string][]Row{"mx2": peerRows("mx2", 1, 1, noon)})
		if _, err := m.Incoming(r.Changed(100, noon), 0, noon.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		disk := stored(m)
		m = memory.New()
		m.UseName("mx1")
		m.Load(slices.Values(disk), noon.UnixMicro())
		m.Announce()
		if other == "own row" {
			m.Peers.Delivered(client, memory.Delivery{Messages: 1}, noon.UnixMicro())
		}
		r = New("mx1", DefaultLimits())
		if other == "a row of mx3" {
			r = replica(t, map[string][]Row{"mx3": peerRows("mx3", 1, 1, noon.Add(24*time.Hour))})
		}
		r.Resend()
		for range 2 {
			if _, err := m.Incoming(r.Changed(100, noon), 0, noon.UnixMicro()); err != nil {
				t.Fatal(err)
			}
			r.Own(m.Outgoing(1000, 0), noon)
		}
		if s := m.Peers.Standing(client, noon.UnixMicro()); s.Level != want {
			t.Errorf("%q: %+v", other, s)
		}
	}
}
