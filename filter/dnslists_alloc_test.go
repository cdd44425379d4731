//go:build !race

package filter_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/dnslist"
	"scanwatch/internal/smtp"
)

// TestListsAllocateNothing checks that questions about an unknown client do not allocate memory.
// Requests that wait for the answers must not allocate memory either.
func TestListsAllocateNothing(t *testing.T) {
	const friends = "table <friends> { 198.51.100.3, 198.51.100.7 }\npass from { 203.0.113.9, <friends> }\npass match src 203.0.113.77 helo \"mx.example.net\"\n"
	measure := func(policy string) float64 {
		b := newListBench(t, policy)
		now := dnslist.MaxTTL
		b.lists.Now = func() time.Duration { return now }
		b.lists.Questions(context.Background(), 0) // the companion is running
		n := 0
		session := func() {
			n++
			id := b.connect(hostNumber(n).String())
			b.p.Ask(&smtp.Event{Kind: smtp.EventRequest, Time: b.now, Session: id, Phase: smtp.PhaseHelo, Name: []byte("mail.example.net"), Waited: true})
			b.end(id)
		}
		for range 100 {
			session()
		}
		return testing.AllocsPerRun(500, session)
	}
	const rule = "rule zen phase helo match listed zen reject\n"
	with := measure("mode enforce\ncompanion lookup user _swlookup\nlookup zen dnsbl \"zen.example.org\" codes 127.0.0.2 hold 300ms\n" + friends + rule)
	without := measure("mode enforce\n" + friends + "rule other phase helo match helo \"x\" reject\n")
	if with > without+1 { // the queue of questions grows
		t.Errorf("%.1f allocations with a list, %.1f without", with, without)
	}
}

func hostNumber(i int) netip.Addr { return netip.AddrFrom4([4]byte{45, 118, byte(i >> 8), byte(i)}) }
