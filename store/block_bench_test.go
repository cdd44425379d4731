package store_test

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// recorded plays sessions through the filter with the policy standard, and returns
// the records in the order of their keys.
func recorded(sessions iter.Seq[simulate.Session]) (all []store.Record) {
	text, err := simulate.PresetText("standard")
	if err != nil {
		panic(err)
	}
	policy, err := simulate.Compile(text)
	if err != nil {
		panic(err)
	}
	policy = policy.InMode(rules.Enforce)
	h := simulate.NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				panic(err)
			}
			all = append(all, r)
		},
		Log: func([]byte) {}, Lists: simulate.Lists, Memory: memory.New(), OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	h.Use(&filter.Settings{Policy: policy})
	if _, err := simulate.Play(h, smtpd.Requests(filter.Phases(policy)), sessions); err != nil {
		panic(err)
	}
	slices.SortFunc(all, func(a, b store.Record) int { return cmp.Or(a.End.Compare(b.End), cmp.Compare(a.ID, b.ID)) })
	return all
}

// attacked returns a day of a legitimate server with a harvest and a brute-force
// attack: 15 steps per session.
var attacked = sync.OnceValue(func() []store.Record {
	attack := simulate.Attack{Seed: 1, Start: simulate.Midnight, Every: 24 * time.Hour / 20_000, Sessions: 20_000, Each: 10}
	harvest := simulate.Harvest(attack)
	attack.Seed, attack.Each = 2, 5
	return recorded(simulate.Merge(simulate.Day(1, 20_000), simulate.Merge(harvest, simulate.Guess(attack))))
})

// mixed returns sessions in the proportions of tests/bench: of 100 sessions, 70
// deliveries, 29 without mail, and one harvest of 10 recipients.
var mixed = sync.OnceValue(func() []store.Record {
	all := recorded(func(yield func(simulate.Session) bool) {
		for n := range 100_000 {
			name, gap := fmt.Sprintf("mail%d.example.net", n%5000), 20*time.Millisecond
			s := simulate.Session{Start: simulate.Midnight.Add(time.Duration(n) * 7 * time.Millisecond), RDNS: name, FCrDNS: "pass",
				Src:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n % 5000 / 250), byte(1 + n%250)}), uint16(20_000+n%40_000)),
				Dst:   netip.MustParseAddrPort("192.0.2.25:25"),
				Steps: []simulate.Step{{Kind: simulate.Ehlo, Gap: gap, Text: name}}}
			add := func(kind simulate.Kind, text string, fate simulate.Fate) {
				s.Steps = append(s.Steps, simulate.Step{Kind: kind, Gap: gap, Text: text, Fate: fate, Size: 4850})
			}
			switch pick := random(uint64(n)) % 100; {
			case pick < 70:
				add(simulate.Mail, fmt.Sprintf("bounces-%d@example.net", n%1000), simulate.OK)
				add(simulate.Rcpt, fmt.Sprintf("user%d@example.org", n%100), simulate.OK)
				add(simulate.Data, "", simulate.OK)
			case pick < 71:
				add(simulate.Mail, fmt.Sprintf("bounces-%d@example.net", n%1000), simulate.OK)
				for i := range 10 {
					add(simulate.Rcpt, fmt.Sprintf("guess%d-%d@example.org", i, n%100), simulate.Unknown)
				}
			}
			add(simulate.Quit, "", simulate.OK)
			if !yield(s) {
				return
			}
		}
	})
	for i := range all {
		all[i].ID = random(all[i].ID)
	}
	return all
})

// random returns a hash of n (the finaliser of splitmix64).
func random(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// loads contains the sessions of the benchmarks.
var loads = []struct {
	name string
	all  func() []store.Record
}{{"attacks", attacked}, {"mix", mixed}}

// BenchmarkSeal encodes sessions as blocks.
func BenchmarkSeal(b *testing.B) {
	for _, l := range loads {
		b.Run(l.name, func(b *testing.B) {
			all := l.all()
			size := 0
			b.ReportAllocs()
			for b.Loop() {
				size = 0
				for _, v := range store.Seal(all) {
					size += len(v)
				}
			}
			b.ReportMetric(float64(size)/float64(len(all)), "bytes/session")
			b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}

// BenchmarkReadBlocks reads the sessions of blocks and all steps of some kinds.
func BenchmarkReadBlocks(b *testing.B) {
	for _, l := range loads {
		for _, of := range []struct {
			name  string
			kinds store.Kinds
		}{{"header", 0}, {"evidence", store.KindsOf(store.KindFinding, store.KindVerdict)}, {"all", store.AllKinds}} {
			b.Run(l.name+"/"+of.name, func(b *testing.B) {
				all := l.all()
				blocks := store.Seal(all)
				steps := 0
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					if err := store.ReadBlocks(blocks, of.kinds, func(r *store.Record) error {
						n++
						return r.Steps(func(*store.Step) bool { steps++; return true })
					}); err != nil || n != len(all) {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(steps)/float64(b.N*len(all)), "steps/session")
				b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "sessions/s")
			})
		}
	}
}
