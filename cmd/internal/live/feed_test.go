package live

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/statedir"
	"scanwatch/store"
)

// TestFeed checks that each record is read exactly once, and that later records are
// added. The View must show read errors.
func TestFeed(t *testing.T) {
	dir := t.TempDir()
	write := func(id uint64, before time.Duration) {
		t.Helper()
		w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
		end := now.Add(-before)
		r := &store.Record{Start: end, End: end, Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(id)}), 25), Counts: store.Counts{Mails: 1}}
		w.Add(end, id, store.AppendRecord(nil, r, nil))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v := newView()
	f := &Feed{Dir: &statedir.Dir{Path: dir, Now: func() time.Time { return now }}, View: v}
	shows := func(want string) {
		t.Helper()
		var hosts []string
		for _, line := range printed(v, 0, 5, 132, "") {
			hosts = append(hosts, strings.Split(line, "|")[0]+" "+strings.Split(line, "|")[5])
		}
		if got := strings.Join(hosts, ", "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	write(1, 2*time.Hour)
	write(2, time.Hour)
	write(3, time.Second)
	write(4, 0) // read by the next call
	if !v.unread() {
		t.Error("read")
	}
	if end := f.reread(t.Context(), v.begin()); !end.Equal(now) || v.unread() {
		t.Errorf("read until %v", end)
	}
	shows("192.0.2.2 1, 192.0.2.3 1")
	write(5, -time.Second)
	if err := f.add(t.Context(), now, now.Add(time.Minute)); err != nil {
		t.Error(err)
	}
	shows("192.0.2.2 1, 192.0.2.3 1, 192.0.2.4 1, 192.0.2.5 1")
	f.Dir.Path += "/missing"
	f.reread(t.Context(), v.begin())
	v.failed(f.add(t.Context(), now, now))
	shows("192.0.2.2 1, 192.0.2.3 1, 192.0.2.4 1, 192.0.2.5 1")
	if got := heads(v, 80); !strings.Contains(got, "PROBLEM   read state directory") {
		t.Error(got)
	}
}
