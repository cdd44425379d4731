//go:build linux

package count

import (
	"net/netip"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
)

// TestCountCommon checks that a report accounts for every session even if the budget has no space
// for an aggregate per source. Totals, evidence and rules must be exact in every hour. The lists
// must be complete, including the numbers of omitted items. The number of sources must be printed
// with its error.
func TestCountCommon(t *testing.T) { countCommon(t, 40_000, 150*time.Minute) }

func countCommon(t *testing.T, sessions int, length time.Duration) {
	w := newWorld(size{
		sessions: sessions, until: begin.Add(length), hosts: 1_200_000 / sessions, floods: 800,
		kinds: []string{"mail", "user", "local", "scan", "liar", "harvest", "relay", "guess", "noauth", "tool", "http", "listed", "silent"},
	})
	r := newRun(t, w, 16)
	r.play(begin.Add(length + time.Hour))
	r.stop() // aggregates have used so much of the budget that a flush omits this hour's
	common := 0
	for _, p := range []period{
		{"everything", begin, time.Time{}},
		{"the last hours", begin.Add(time.Hour), begin.Add(3 * time.Hour)},
		{"the last hour", begin.Add(2 * time.Hour), time.Time{}},
		{"until an hour", begin, begin.Add(2 * time.Hour)},
	} {
		common += r.checkCommon(p)
	}
	if common == 0 {
		t.Error("every source has an aggregate")
	}
}

// checkCommon compares the numbers that are the same for sources with and without separate records.
func (r *run) checkCommon(p period) (common int) {
	r.t.Helper()
	var records []*record
	for _, s := range r.all { // an aggregate ends with its hour
		if one := (&record{end: s.end, src: s.src, sessions: []*session{s}}); p.has(one) {
			records = append(records, one)
		}
	}
	got, want := report(r.t, r.dir, p.args()), expect(records)
	type exact struct {
		Remote, Authenticated, Local    totals
		Unwritten, NotKept              int
		TimelineSum, TimelineFind       int
		Evidence                        map[string]int
		Rules                           map[string]rule
		Named, Names, Sources, AuthFail int // including items that are not listed
	}
	of := func(s *summary) exact {
		e := exact{s.Remote, s.Authenticated, s.Local, s.Unwritten, s.NotKept, s.TimelineSum, s.TimelineFind, s.Evidence, s.Rules,
			s.NotListed["organisations"], s.NotListed["HELO names"], 0, 0}
		for _, n := range s.Organisations {
			e.Named += n
		}
		for _, n := range s.Helo {
			e.Names += n
		}
		for _, one := range s.Sources {
			e.Sources, e.AuthFail = e.Sources+one.Sessions, e.AuthFail+one.AuthFail
		}
		return e
	}
	g, n := of(got), of(want)
	summed := 0
	for _, one := range cli.Dump(r.t, r.dir, p.args()...) {
		summed += one.Sum
		if one.Sum > 0 && one.Src == "" {
			common += one.Sum
			g.Sources += one.Sum
			g.AuthFail += one.Counts["auth_fail"]
		}
	}
	compare(r.t, p.name, g, n)
	if got.Aggregated != summed {
		r.t.Errorf("%s: %d sessions in aggregates; the report says %d", p.name, summed, got.Aggregated)
	}
	percent := 0
	if common > 0 {
		percent = 4
	}
	if diff := max(got.Addresses-want.Addresses, want.Addresses-got.Addresses); got.AddressesError != percent || diff*100 > percent*want.Addresses {
		r.t.Errorf("%s: %d sources within %d %%, want %d within %d", p.name, got.Addresses, got.AddressesError, want.Addresses, percent)
	}
	r.t.Logf("%s: %d sessions, %d in aggregates, %d in common ones; %d sources, counted as %d", p.name, len(records), summed, common, want.Addresses, got.Addresses)
	var returns struct {
		NotFollowed int `json:"not_followed"`
	}
	cli.Decode(r.t, cli.Run(r.t, r.dir, append([]string{"report", "returns", "--json"}, p.args()...)...), &returns)
	if (returns.NotFollowed > 0) != (common > 0) {
		r.t.Errorf("%s: the findings of %d sessions in common aggregates cannot be followed; the report says %d", p.name, common, returns.NotFollowed)
	}
	atMost(r.t, p.name, got.Harvest, want.Harvest)
	atMost(r.t, p.name, got.Relay, want.Relay)
	return common
}

// atMost fails if a list contains a wrong source, or if the number of a source is too high. A
// number may be too low, because an aggregate of many sources does not contain the recipients of
// each source.
func atMost(t *testing.T, name string, got, want map[string]attempt) {
	t.Helper()
	of := map[netip.Prefix]int{}
	for _, one := range want {
		of[sourceOf(one.Address)] = one.Refused
	}
	for _, one := range got {
		if most := of[sourceOf(one.Address)]; one.Refused > most {
			t.Errorf("%s: %+v, want at most %d", name, one, most)
		}
	}
}

// sourceOf returns the source of an address or prefix.
func sourceOf(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p
	}
	return source(netip.MustParseAddr(text))
}
