package simulate

// This file records simulated sessions.

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
)

// Record plays sessions through the filter with the preset standard in enforce mode,
// and returns the records in key order.
func Record(sessions iter.Seq[Session]) (all []store.Record, err error) {
	text, err := PresetText("standard")
	if err != nil {
		return nil, err
	}
	policy, err := Compile(text)
	if err != nil {
		return nil, err
	}
	policy = policy.InMode(rules.Enforce)
	var failed error
	h := NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			all, failed = append(all, r), cmp.Or(failed, err)
		},
		Log: func([]byte) {}, Lists: Lists, Memory: memory.New(), OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	h.Use(&filter.Settings{Policy: policy})
	if _, err := Play(h, smtpd.Requests(filter.Phases(policy)), sessions); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b store.Record) int { return cmp.Or(a.End.Compare(b.End), cmp.Compare(a.ID, b.ID)) })
	return all, failed
}

// Mixed returns n sessions from 5,000 hosts. apart is the time between sessions. In every 100
// sessions, 70 deliver mail, 29 send no mail, and one requests 10 unknown recipients.
func Mixed(n int, apart time.Duration) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		for n := range n {
			name, gap := fmt.Sprintf("mail%d.example.net", n%5000), 20*time.Millisecond
			s := Session{Start: Midnight.Add(time.Duration(n) * apart), RDNS: name, FCrDNS: "pass",
				Src:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n % 5000 / 250), byte(1 + n%250)}), uint16(20_000+n%40_000)),
				Dst:   netip.MustParseAddrPort("192.0.2.25:25"),
				Steps: []Step{{Kind: Ehlo, Gap: gap, Text: name}}}
			add := func(kind Kind, text string, fate Fate) {
				s.Steps = append(s.Steps, Step{Kind: kind, Gap: gap, Text: text, Fate: fate, Size: 4850})
			}
			switch pick := Random(uint64(n)) % 100; {
			case pick < 70:
				add(Mail, fmt.Sprintf("bounces-%d@example.net", n%1000), OK)
				add(Rcpt, fmt.Sprintf("user%d@example.org", n%100), OK)
				add(Data, "", OK)
			case pick < 71:
				add(Mail, fmt.Sprintf("bounces-%d@example.net", n%1000), OK)
				for i := range 10 {
					add(Rcpt, fmt.Sprintf("guess%d-%d@example.org", i, n%100), Unknown)
				}
			}
			add(Quit, "", OK)
			if !yield(s) {
				return
			}
		}
	}
}

// Random returns a hash of n (the finaliser of splitmix64).
func Random(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// Seal writes all records to a state directory as sealed days.
func Seal(dir string, all []store.Record) error {
	last := all[len(all)-1].End
	w := store.Open(dir, store.Options{Budget: 4 << 30, Buffer: 64 << 20, Now: func() time.Time { return last }})
	for i := range all {
		r := &all[i]
		w.Add(r.End, r.ID, store.AppendRecord(nil, r, AppendSteps(nil, r)))
		if i%5000 == 0 {
			if err := w.Flush(context.Background()); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		return fmt.Errorf("%d records were dropped", n)
	}
	_, err := store.SealDays(dir, "simulate", last.AddDate(0, 0, 2))
	return err
}

// AppendSteps appends a record's steps in encoded form.
func AppendSteps(dst []byte, r *store.Record) []byte {
	var last time.Duration
	_ = r.Steps(func(s *store.Step) bool { // a corrupt step can only be the last one
		dst = store.AppendStep(dst, s, s.At-last)
		last = s.At
		return true
	})
	return dst
}
