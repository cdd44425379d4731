package share

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// addr returns the nth of many single-address prefixes.
func addr(n int) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 100<<24|uint32(n))
	return netip.PrefixFrom(netip.AddrFrom4(a), 32)
}

// banRows returns a host's registers with bans.
func banRows(name string, from, n int, d time.Duration, now time.Time) []Row {
	m := memory.New()
	m.Announce()
	for i := range n {
		m.Bans.AddPrefix(addr(from+i), d, "x", now.UnixMicro())
	}
	l := DefaultLimits()
	l.Rows = math.MaxInt
	return New(name, l).Own(m.Outgoing(1<<20, 0), now)
}

// has reports whether rows include a row for p that is not a deletion.
func has(rows []Row, p netip.Prefix) bool {
	return slices.ContainsFunc(rows, func(r Row) bool { return r.Value != "" && rowKey{r.Bucket, r.Key} == banKey(p) })
}

// TestInvalidDeletion checks that a deletion with an invalid key does not reach the memory.
func TestInvalidDeletion(t *testing.T) {
	for _, name := range []string{"mx1", "mx2"} {
		r := New("mx1", DefaultLimits())
		var bad []Row
		for _, bucket := range []string{"bans", "counters", "peers", "recipients", "sprays", "no such"} {
			bad = append(bad, Row{Bucket: bucket, Key: "x", Stamp: At(noon)})
		}
		if err := r.Apply(name, bad, noon); err != nil {
			t.Fatal(err)
		}
		r.Resend()
		list := r.Changed(100, noon)
		if _, err := memory.New().Incoming(list, 0, noon.UnixMicro()); err != nil || len(list) > 0 {
			t.Errorf("%s: %v, %d rows", name, err, len(list))
		}
	}
}

// TestShortenedBan checks that the service's copy of a ban does not lengthen the ban on
// the host that imposed it, and that a ban that the host has lost is restored.
func TestShortenedBan(t *testing.T) {
	there := banRows("mx1", 1, 2, 24*time.Hour, noon)
	m := memory.New()
	m.Announce()
	m.Bans.AddPrefix(addr(1), time.Minute, "x", noon.UnixMicro())
	r := New("mx1", DefaultLimits())
	if err := r.Apply("mx1", there, noon); err != nil {
		t.Fatal(err)
	}
	handOver := func() {
		if _, err := m.Incoming(r.Changed(100, noon), 0, noon.UnixMicro()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		r.Resend()
		handOver()
		m.Announce()
		r.Own(m.Outgoing(100, 0), noon)
		handOver()
		if b, ok := m.Bans.Enforced(addr(1), noon.Add(time.Second).UnixMicro()); !ok || b.Origin != "" || b.Until.Sub(noon) > time.Minute {
			t.Errorf("the shorter ban became %+v %v", b, ok)
		}
		if _, ok := m.Bans.Enforced(addr(2), noon.UnixMicro()); !ok {
			t.Error("the lost ban is not restored")
		}
	}
}

// TestFullTable checks that unbans and active bans displace expired bans, on the
// sending and on the receiving host.
func TestFullTable(t *testing.T) {
	l := DefaultLimits()
	l.Rows, l.Bans = 20, 1000
	sender, receiver := New("mx1", l), New("mx2", l)
	m := memory.New()
	m.UseKey([16]byte{1})
	m.Announce()
	now := noon
	send := func() (rows []Row) {
		t.Helper()
		rows = sender.Own(m.Outgoing(1000, 0), now)
		if err := receiver.Apply("mx1", rows, now); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	for i := range 25 {
		m.Bans.AddPrefix(addr(i), time.Minute, "x", now.UnixMicro())
	}
	if n := len(send()); n != l.Rows || sender.Crowded() == "" {
		t.Fatalf("%d rows are sent, problem %q", n, sender.Crowded())
	}
	now = now.Add(10 * time.Minute)
	if !sender.Retry(now) {
		t.Error("no retry")
	}
	m.Announce()
	for i := range 20 {
		m.Bans.AddPrefix(addr(100+i), time.Hour, "x", now.UnixMicro())
	}
	if rows := send(); len(rows) != 20 || sender.Crowded() != "" {
		t.Errorf("%d of 20 active bans are sent, problem %q", len(rows), sender.Crowded())
	}
	if n := len(sender.Expire(now)); n != 20 {
		t.Errorf("%d of 20 rows are removed from the service", n)
	}
	m.Bans.AddPrefix(addr(200), time.Hour, "x", now.UnixMicro())
	if rows := send(); len(rows) != 0 || !strings.Contains(sender.Crowded(), "at least 21 bans and unbans, 1 of them not shared") {
		t.Errorf("%d rows, problem %q", len(rows), sender.Crowded())
	}
	if !m.Bans.Disclaim(addr(300), false, nil, now.UnixMicro()) {
		t.Fatal("no unban")
	}
	if rows := send(); !has(rows, addr(300)) {
		t.Error("an unban is not sent")
	}
	kept := receiver.Rows("mx1")
	if !has(kept, addr(300)) || len(kept) != l.Rows || has(kept, addr(1)) {
		t.Errorf("the receiver has %d rows; unban %v, ended ban %v", len(kept), has(kept, addr(300)), has(kept, addr(1)))
	}
}

// TestFullReplica checks that hosts with many rows do not displace other hosts' rows,
// and that omitted rows are read again as soon as there is room.
func TestFullReplica(t *testing.T) {
	l := DefaultLimits()
	l.Total, l.Bans = 100, 1000
	r := New("self", l)
	apply := func(name string, rows []Row) {
		t.Helper()
		if err := r.Apply(name, rows, noon); err != nil {
			t.Fatal(err)
		}
	}
	apply("zz1", banRows("zz1", 0, 60, time.Hour, noon))
	apply("zz2", banRows("zz2", 1000, 60, time.Hour, noon))
	apply("mx1", banRows("mx1", 2000, 20, time.Hour, noon))
	if n := len(r.Rows("mx1")); n != 20 || r.Len() > l.Total {
		t.Errorf("%d of 20 rows of a host with few, %d rows in total", n, r.Len())
	}
	for _, h := range r.Hosts() {
		if (h.Problem != "") != (h.Name != "mx1") {
			t.Errorf("%s: problem %q", h.Name, h.Problem)
		}
	}
	if names := r.Missed(noon); len(names) != 0 {
		t.Errorf("%v are read again without room", names)
	}
	r.Drop("zz1", noon)
	names := r.Missed(noon)
	if slices.Sort(names); !slices.Equal(names, []string{"zz1", "zz2"}) {
		t.Errorf("%v are read again", names)
	}
	if names := r.Missed(noon); len(names) != 0 {
		t.Errorf("%v are read again twice", names)
	}
}

// TestDropFuture checks that if a host is dropped, its rows with a stamp in the future
// never count, and that the status shows this.
func TestDropFuture(t *testing.T) {
	r := New("self", DefaultLimits())
	rows := banRows("mx1", 1, 1, 24*time.Hour, noon)
	rows[0].Stamp = At(noon.Add(40 * time.Minute))
	apply := func(now time.Time) {
		t.Helper()
		if err := r.Apply("mx1", rows, now); err != nil {
			t.Fatal(err)
		}
	}
	apply(noon)
	_, mark := r.Drop("mx1", noon)
	for range 2 {
		for _, d := range []time.Duration{time.Minute, 20 * time.Minute, time.Hour} {
			if apply(noon.Add(d)); len(r.Rows("mx1")) != 0 {
				t.Fatalf("a row from before the drop counts after %v", d)
			}
			if d == time.Minute && !strings.Contains(r.Hosts()[0].Problem, "until 2026-12-01 12:40:00") {
				t.Errorf("%+v", r.Hosts())
			}
		}
		r = New("self", DefaultLimits()) // another run, which reads the mark from the service
		if err := r.Apply("self", []Row{mark}, noon); err != nil {
			t.Fatal(err)
		}
	}
	rows[0].Stamp = At(noon.Add(41 * time.Minute))
	if apply(noon.Add(41 * time.Minute)); len(r.Rows("mx1")) != 1 {
		t.Error("a later row does not count")
	}
}

// BenchmarkCrowded measures the time that a host needs to select the clients that it shares.
// Twice as many are known.
func BenchmarkCrowded(b *testing.B) {
	l := DefaultLimits()
	m := standing(0, 2*l.Clients)
	entries := m.Outgoing(1<<20, 0)
	for b.Loop() {
		r := New("mx1", l)
		r.Own(entries, noon)
		r.Own(entries, noon) // all rows are sent again
	}
}
