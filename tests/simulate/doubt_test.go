package simulate_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/simulate"
)

// TestDoubts checks the report of possible false positives after a day in observe mode. The report
// must contain every rejected legitimate host, and no attackers.
func TestDoubts(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		policy := enforced(t, name)
		c := report.NewCollector(memory.Number)
		h := simulate.NewFilter(filter.Options{
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
			Memory:   learned(t, name, simulate.Day(1, 3000)),
			OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
		})
		h.Use(&filter.Settings{Policy: policy})
		out, err := simulate.Play(h, smtpd.Requests(filter.Phases(policy)), simulate.Merge(simulate.Day(1, 3000), simulate.Merge(
			simulate.Harvest(simulate.Attack{Seed: 1, Start: simulate.Midnight.Add(3 * time.Hour), Every: 4 * time.Minute, Sessions: 120, Each: 9}),
			simulate.Guess(simulate.Attack{Seed: 2, Start: simulate.Midnight.Add(9 * time.Hour), Every: 20 * time.Second, Sessions: 600, Each: 12}))))
		if err != nil {
			t.Fatal(err)
		}
		h.Stop()
		honest, attackers := make(map[string]string), 0
		for _, o := range out {
			switch {
			case len(o.Refused) == 0:
			case slices.Contains(simulate.Labels(), o.Label):
				honest[o.Src.Addr().String()] = o.Label
			default:
				attackers++
			}
		}
		named := make(map[string]bool)
		for _, d := range c.Summary(simulate.Midnight, simulate.Midnight.AddDate(0, 0, 1), 1000, nil).Suspects {
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
			t.Errorf("%s: only %d sessions of attackers and %d legitimate hosts were rejected", name, attackers, len(honest))
		}
	}
}
