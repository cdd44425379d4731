package replay_test

import (
	"testing"

	"scanwatch/filter"
	"scanwatch/filter/replay"
	"scanwatch/rules"
	"scanwatch/store"
)

// BenchmarkDay replays the records of a busy day with a policy. A session has about 18 commands.
func BenchmarkDay(b *testing.B) {
	lists := builtin(b)
	p := policy(b, "tight", "table <local-domains> { \"example.org\" }\n", rules.Enforce)
	records := live(b, lists, p.InMode(rules.Observe), day(20000))
	var unused []*store.Record
	o := options(b, lists, &unused)
	o.Record = nil
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		player := replay.New(replay.Options{Settings: &filter.Settings{Policy: p}, Filter: o, Done: func(*replay.Outcome) { n++ }})
		for _, r := range records {
			player.Add(*r)
		}
		player.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/session")
	if n%len(records) != 0 {
		b.Errorf("%d sessions ended, of %d", n, len(records))
	}
}
