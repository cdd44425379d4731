package memory

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/rules"
)

const day = 24 * time.Hour

// abusers of a day push out yearly senders.
func TestAbusersPushOutNobody(t *testing.T) {
	m := New()
	yearly := who("192.0.2.1")
	m.Delivered(yearly, 12, at(0))
	n := 0
	for d := range 150 { // 3000 different hosts a day talk HTTP to port 25
		for range 3000 {
			n++
			m.Misbehaved(&Who{Addr: netip.AddrFrom4([4]byte{100, byte(n >> 16), byte(n >> 8), byte(n)})}, at(time.Duration(d)*day))
		}
	}
	if m.Good(yearly, at(151*day)) == "" {
		t.Errorf("forgotten 151 days after its mail; %+v", m.peers.status("peers"))
	}
}

// an observed ban from the disk replaces one that holds, and the times are lost.
func TestBansMergeWithDisk(t *testing.T) {
	a := netip.MustParseAddr("203.0.113.5")
	old := New()
	old.Ban(a, Sentence{For: 30 * day, Rule: "x", Observe: true}, at(0))
	d := disk{}
	d.take(old)
	m := New()
	m.Ban(a, Sentence{For: day, Rule: "y"}, at(time.Hour))
	d.load(m, at(2*time.Hour))
	if b, ok := m.Banned(a, at(2*time.Hour)); !ok || b.Observe {
		t.Errorf("a ban that only observes replaced one that holds: %+v %v", b, ok)
	}

	old = New()
	for i := range 3 {
		old.Ban(a, Sentence{For: time.Hour, Rule: "x"}, at(time.Duration(i)*300*day/10))
	}
	d = disk{}
	d.take(old)
	m = New()
	m.Ban(a, Sentence{For: time.Hour, Rule: "x"}, at(62*day))
	d.load(m, at(62*day))
	if b, ok := m.Banned(a, at(62*day)); !ok || b.Times < 3 {
		t.Errorf("times forgotten: %+v %v", b, ok)
	}
}

// an automatic ban hides the operator's ban of the network around it.
func TestNetworkBanHolds(t *testing.T) {
	a := netip.MustParseAddr("203.0.113.5")
	m := New()
	m.BanPrefix(netip.MustParsePrefix("203.0.113.0/24"), 30*day, "by the postmaster", at(0))
	m.Ban(a, Sentence{For: time.Hour, Rule: "x"}, at(0))
	if b, ok := m.Banned(a, at(time.Minute)); !ok || !b.Manual {
		t.Errorf("session sees %+v: it is not manual, so that who is spared gets in, and it is told a short ban", b)
	}
}

// the operator's ban counts observed ones as times.
func TestTimesOfOperator(t *testing.T) {
	a := netip.MustParseAddr("203.0.113.5")
	m := New()
	m.Ban(a, Sentence{For: time.Hour, Rule: "x", Observe: true}, at(0))
	m.BanPrefix(netip.PrefixFrom(a, 32), time.Hour, "r", at(day))
	b, _ := m.BanPrefix(netip.PrefixFrom(a, 32), 2*time.Hour, "r", at(day)) // corrects himself
	next := m.Ban(a, Sentence{For: day, Rule: "x"}, at(3*day))
	if b.Times != 1 {
		t.Errorf("times %d after one ban that was only observed and one of the operator's, corrected once; the next of one day lasts %v", b.Times, next.Until.Sub(next.Since))
	}
}

// clock goes ahead and back: counts never slide again.
func TestCountAfterWrongClock(t *testing.T) {
	win := rules.Window{Evidence: rules.UnknownRecipient, Window: day, By: rules.ByPrefix}
	m := New()
	m.Watch([]rules.Window{win}, nil)
	w := who("203.0.113.5")
	m.Note(w, rules.UnknownRecipient, at(365*day)) // a wrong clock, for one moment
	for i := range 60 {
		m.Note(w, rules.UnknownRecipient, at(time.Duration(i)*4*day)) // one typo in four days
	}
	if n, _ := m.Count(w, win, at(240*day)); n > 1 {
		t.Errorf("%d in 1d, each four days after the other", n)
	}
}

func TestSprayAfterWrongClock(t *testing.T) {
	m := New()
	m.LoginFailed(&Who{Addr: netip.MustParseAddr("203.0.113.5"), User: []byte("u")}, at(365*day))
	got := ""
	for i := range 6 {
		got, _ = m.LoginFailed(&Who{Addr: netip.MustParseAddr("203.0.113.5"), User: []byte(fmt.Sprint(i))}, at(time.Duration(i)*10*day))
	}
	if got != "" {
		t.Errorf("%q: six users in sixty days", got)
	}
}

func TestGoodAfterWrongClock(t *testing.T) {
	m := New()
	w := who("203.0.113.5")
	m.Delivered(w, 1, at(0))
	m.Delivered(w, 1, int64(86400*1e6)) // booted without a clock
	if m.Good(w, at(day)) == "" {
		t.Error("a good peer is forgotten because mail came while the clock stood at 1970")
	}
}
