package sim_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/session"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/sim"
)

// TestDoubts: of the hosts that a policy turned away, the report names every
// honest one, and none that attacked.
func TestDoubts(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		policy := enforced(t, name)
		c := report.NewCollector()
		h := session.NewTable(session.Options{
			Record: func(end time.Time, id uint64, value []byte) {
				r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
				if err == nil {
					err = c.Add(&r)
				}
				if err != nil {
					t.Error(err)
				}
			},
			Log:      func([]byte) {},
			Lists:    lists,
			OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
		})
		h.Use(&session.Settings{Policy: policy})
		out, err := sim.Play(h, session.Phases(policy), sim.Merge(sim.Day(1, 3000), sim.Merge(
			sim.Harvest(sim.Attack{Seed: 1, Start: sim.Midnight.Add(3 * time.Hour), Every: 4 * time.Minute, Sessions: 120, Each: 9}),
			sim.Guess(sim.Attack{Seed: 2, Start: sim.Midnight.Add(9 * time.Hour), Every: 20 * time.Second, Sessions: 600, Each: 12}))))
		if err != nil {
			t.Fatal(err)
		}
		h.Stop()
		honest, attackers := make(map[string]string), 0
		for _, o := range out {
			switch {
			case len(o.Refused) == 0:
			case slices.Contains(sim.Labels(), o.Label):
				honest[o.Src.Addr().String()] = o.Label
			default:
				attackers++
			}
		}
		named := make(map[string]bool)
		for _, d := range c.Summary(sim.Midnight, sim.Midnight.AddDate(0, 0, 1), 1000, nil).Doubts {
			if d.Refused == 0 {
				continue
			}
			named[d.Address] = true
			if honest[d.Address] == "" {
				t.Errorf("%s: %s is named, and attacked: %+v", name, d.Address, d)
			}
		}
		for addr, label := range honest {
			if !named[addr] {
				t.Errorf("%s: %s, %s, is not named", name, addr, label)
			}
		}
		if attackers < 50 || name == "tight" && len(honest) < 30 {
			t.Errorf("%s: %d sessions of attackers and %d honest hosts were refused: too few to tell", name, attackers, len(honest))
		}
	}
}
