package memory

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/internal/kv"
)

// TestLostBanReturns checks that a ban that this host has lost, with its whole state or because
// the state is from a backup, returns after the host has sent its other rows, and that a ban
// that the host has deleted does not return.
func TestLostBanReturns(t *testing.T) {
	for _, tt := range []struct {
		name  string
		saved time.Duration // time of the backup; 0 if there is none
		began time.Duration
		do    func(*Memory, netip.Prefix)
		want  bool
	}{
		{"a lost state", 0, 0, nil, true},
		{"a backup from before the ban", time.Minute, time.Hour, nil, true},
		{"a backup of a state without the ban", 2 * time.Hour, time.Hour, nil, false},
		{"a ban since the filter has started", time.Minute, 5 * time.Hour, nil, false},
		{"a ban deleted since the filter has started", time.Minute, time.Hour, func(m *Memory, p netip.Prefix) {
			m.Bans.AddPrefix(p, time.Hour, "x", at(4*time.Hour))
			m.Erase(Erasure{Prefix: p, Bans: true}, at(4*time.Hour), false)
		}, false},
	} {
		for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
			for _, origin := range []string{"", "mx1"} {
				p := netip.MustParsePrefix(prefix)
				m := sharing()
				m.Bans.AddPrefix(p, 24*time.Hour, "x", at(tt.began))
				f := from(m, origin)[0]
				m = New()
				m.UseName("mx1")
				var disk []kv.Entry
				if tt.saved != 0 {
					s := stored{own: at(tt.saved)}
					disk = []kv.Entry{{Bucket: clockBucket, Key: []byte(clockKey), Value: s.value()}, {Bucket: "secret", Key: []byte(nameKey), Value: []byte("mx1")}}
				}
				m.Load(slices.Values(disk), at(4*time.Hour))
				m.Announce()
				m.Outgoing(100, 0)
				if tt.do != nil {
					tt.do(m, p)
				}
				incoming(t, m, 6*time.Hour, f)
				sent := describe(m.Outgoing(10, 0))
				if got := enforced(m, prefix, 6*time.Hour); got != tt.want || slices.Contains(sent, "bans false") == tt.want {
					t.Errorf("%s, %s, origin %q: banned %v, sent %q", tt.name, prefix, origin, got, sent)
				}
			}
		}
	}
}

// TestForgedOwnBan checks that a ban with the name of this host, which another host may have forged,
// counts as a ban by another host even if this host has banned the client before. The earlier ban
// does not replace it on other hosts. Dropping the name removes the ban. If the row has no origin,
// the ban is this host's own.
func TestForgedOwnBan(t *testing.T) {
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		for _, earlier := range []bool{false, true} {
			for _, origin := range []string{"mx1", ""} {
				p := netip.MustParsePrefix(prefix)
				m := sharing()
				m.UseName("mx1")
				if earlier {
					m.Bans.AddPrefix(p, time.Hour, "x", at(0))
				}
				f := banRow(p, 3*time.Hour, 24*time.Hour)
				f.Origin = origin
				m.saved, m.started = 1, m.clock.row(at(4*time.Hour)) // restored from a backup
				for range 2 {
					incoming(t, m, 4*time.Hour, f)
					m.Rewrite()
					m = restart(m, "mx1", 4*time.Hour)
				}
				b, ok := m.Bans.Enforced(p, at(4*time.Hour))
				if !ok || b.Origin != origin {
					t.Errorf("%s, earlier ban %v, origin %q: banned %v, %+v", prefix, earlier, origin, ok, b)
				}
				sent := func() []string { return describe(m.Outgoing(10, 0)) }
				if got := sent(); origin == "mx1" && len(got) > 0 {
					t.Errorf("%s, earlier ban %v: sent %q, which replaces the later ban", prefix, earlier, got)
				}
				m.Disown("mx1")
				if got := sent(); origin == "mx1" && !slices.Equal(got, []string{fmt.Sprint("bans ", earlier)}) {
					t.Errorf("%s, earlier ban %v: sent %q after the drop", prefix, earlier, got)
				}
				if got := enforced(m, prefix, 4*time.Hour); got != (origin == "") {
					t.Errorf("%s, earlier ban %v, origin %q: banned %v after the drop", prefix, earlier, origin, got)
				}
			}
		}
	}
}
