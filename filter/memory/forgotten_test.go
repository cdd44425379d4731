package memory

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"scanwatch/internal/kv"
)

// manyHosts returns a different host for each i.
func manyHosts(i int) *Client {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 11<<24|uint32(i))
	return &Client{Addr: netip.AddrFrom4(b)}
}

// TestForgotten checks that the table of peers keeps the latest day of the hosts it has
// dropped, even across a restart. A file without its last row must count as a loss.
func TestForgotten(t *testing.T) {
	forgets := func(m *Memory, want int, wantLost bool) {
		t.Helper()
		day, lost := m.Peers.Forgotten()
		if got := int(day.Unix() / daySeconds); day.IsZero() != (want == 0) || want != 0 && got != want || lost.IsZero() == wantLost || wantLost && lost != day {
			t.Errorf("forgotten %v, lost %v; want day %d, lost %v", day, lost, want, wantLost)
		}
	}
	today := int(dayOf(seconds(at(0))))
	m := New()
	m.Limit(AllBytes / 1000) // 199 peers
	for i := range 199 {
		m.Peers.Delivered(manyHosts(i), Delivery{Messages: 1}, at(-100*day))
	}
	forgets(m, 0, false)
	for i := range 20 { // each new host evicts one from that day
		m.Peers.Delivered(manyHosts(1000+i), Delivery{Messages: 1}, at(-30*day))
	}
	forgets(m, today-100, false)
	for i := range 2000 {
		m.Peers.Delivered(manyHosts(2000+i), Delivery{Messages: 1}, at(-20*day))
	}
	forgets(m, today-20, false)
	_, rows := all(m)

	again := New()
	again.Limit(AllBytes / 1000)
	again.Expect()
	again.Load(seq(rows), at(0))
	forgets(again, today-20, false)
	smaller := New()
	smaller.Limit(AllBytes / 10000) // 100 peers
	smaller.Expect()
	smaller.Load(seq(rows), at(0))
	forgets(smaller, today-20, false)

	var cut, bad []kv.Entry
	for _, e := range rows {
		if e.Bucket == peersBucket && string(e.Key) == forgottenKey {
			continue
		}
		cut = append(cut, e)
	}
	for _, e := range rows {
		if e.Bucket == peersBucket && string(e.Key) != forgottenKey {
			e.Value = e.Value[:5]
		}
		bad = append(bad, e)
	}
	badBan := append([]kv.Entry{{Bucket: BansBucket, Key: []byte("x")}}, rows...)
	for name, rows := range map[string][]kv.Entry{"cut": cut, "bad": bad, "bad ban": badBan, "empty": nil} {
		m := New()
		m.Expect()
		m.Load(seq(rows), at(0))
		forgets(m, today, true)
		_, rows = all(m)
		next := New()
		next.Expect()
		next.Load(seq(rows), at(5*day))
		forgets(next, today, true)
		if t.Failed() {
			t.Fatalf("after a %s file", name)
		}
	}
	fresh := New()
	fresh.Load(seq(nil), at(0))
	forgets(fresh, 0, false)

	// Rows expire while the clock is briefly years ahead.
	_, rows = all(m)
	ahead := New()
	ahead.Expect()
	ahead.Load(seq(rows), at(800*day))
	forgets(ahead, today-20, false)
}

// TestForgottenLogin checks that a dropped host's logins count towards the latest day,
// and that its offences do not.
func TestForgottenLogin(t *testing.T) {
	m := New()
	m.Limit(AllBytes / 10000) // 100 peers
	for i := range 300 {
		m.Peers.Misbehaved(manyHosts(i), at(0))
	}
	if day, _ := m.Peers.Forgotten(); !day.IsZero() {
		t.Errorf("offences count as dropped mail: %v", day)
	}
	for i := range 300 {
		w := manyHosts(i)
		w.User = []byte("alice")
		m.Logins.Succeeded(w, at(0))
	}
	if day, _ := m.Peers.Forgotten(); day.IsZero() {
		t.Error("dropped logins are not reported")
	}
}

// TestCheckerIncomplete checks that Checker rejects the last row of the peers bucket if
// an invalid ban or peer precedes it. Readers take a valid last row as proof that the
// file is complete.
func TestCheckerIncomplete(t *testing.T) {
	m := New()
	m.Peers.Delivered(manyHosts(1), Delivery{Messages: 1}, at(0))
	_, rows := all(m)
	var end kv.Entry
	for _, e := range rows {
		if string(e.Key) == forgottenKey {
			end = e
		}
	}
	for _, bucket := range []string{"", BansBucket, peersBucket} {
		check := Checker()
		broken := bucket != ""
		if broken {
			_ = check(kv.Entry{Bucket: bucket, Key: []byte("x")})
		}
		if err := check(end); (err != nil) != broken {
			t.Errorf("after an invalid row %v: %v", broken, err)
		}
	}
}
