package facts

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/memory"
	"scanwatch/filter/share"
)

// TestUnbanBeforeBan checks that the file of a host that has banned a prefix again after an unban
// ends the earlier bans by other hosts, in any order of the files, but not if the host is a friend.
func TestUnbanBeforeBan(t *testing.T) {
	key := fleetkey.New()
	file := func(m *memory.Memory, host string, friend bool) *File {
		t.Helper()
		f, err := Read(bytes.NewReader(export(t, m, Exporter{Host: host, Key: key})), key, "")
		if err == nil && friend {
			err = f.Befriend()
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	read := func(m *memory.Memory, self string, now time.Time, files ...*File) {
		t.Helper()
		m.Announce()
		rows, _, err := Merge(self, share.DefaultLimits(), files, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Incoming(rows, 0, now.UnixMicro()); err != nil {
			t.Fatal(err)
		}
	}
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		for _, friend := range []bool{false, true} {
			p := netip.MustParsePrefix(prefix)
			mx1, mx2, mx3, mx4 := memory.New(), memory.New(), memory.New(), memory.New()
			mx2.Bans.AddPrefix(p, 24*time.Hour, "x", noon.UnixMicro())
			two := file(mx2, "mx2", false)
			read(mx1, "mx1", noon, two)
			read(mx3, "mx3", noon, two)
			mx1.Bans.Revoke(p, false, noon.Add(time.Minute).UnixMicro())
			mx1.Bans.AddPrefix(p, time.Hour, "own", noon.Add(2*time.Minute).UnixMicro())
			one := file(mx1, "mx1", friend)
			now := noon.Add(10 * time.Minute)
			for range 2 {
				read(mx1, "mx1", now, two)
				read(mx2, "mx2", now, one)
				read(mx3, "mx3", now, one)
				read(mx3, "mx3", now, two, one)
				read(mx4, "mx4", now, one, two)
			}
			for name, m := range map[string]*memory.Memory{"mx1": mx1, "mx2": mx2, "mx3": mx3, "mx4": mx4} {
				if _, ok := m.Bans.Enforced(p, now.UnixMicro()); !ok {
					t.Errorf("%s, friend %v: %s does not know the later ban", prefix, friend, name)
				}
				if b, ok := m.Bans.Enforced(p, noon.Add(3*time.Hour).UnixMicro()); ok != (friend && name != "mx1") {
					t.Errorf("%s, friend %v: %s: banned %v after the later ban, %+v", prefix, friend, name, ok, b)
				}
			}
		}
	}
}
