package memory

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"scanwatch/store"
)

// TestFullTables tells what all tables take when they are full, of hosts that
// come once each: the figures of the manual.
func TestFullTables(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: -short leaves out filling all tables")
	}
	heap := func() int64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	m := New()
	m.Watch(watched, nil)
	before := heap()
	addr := func(i int) netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], 0x20010db8<<32|uint64(i))
		return netip.AddrFrom16(b)
	}
	for i := range maxCounters {
		w := Who{Addr: addr(i), User: fmt.Appendf(nil, "u%d", i), Helo: fmt.Appendf(nil, "h%d", i)}
		m.Delivered(&w, 1, at(0))
		m.Refused(&w, fmt.Appendf(nil, "u%d@example.org", i), at(0))
		m.Behaved(&w, m.Shape(w.Helo), false, at(0))
		m.LoginFailed(&w, at(0))
		m.Learn(fmt.Appendf(nil, "d%d.example.org", i), at(0))
		if i < maxDays {
			m.Ended(&Ended{Whole: true, Evidence: 1, Counts: &store.Counts{}}, at(-time.Duration(i)*24*time.Hour))
		}
	}
	for len(m.Changes(100_000)) > 0 {
	}
	without := heap()
	for i := range maxBans {
		m.Ban(addr(i), Sentence{For: 24 * time.Hour, Rule: "r"}, at(0))
	}
	for len(m.Changes(100_000)) > 0 {
	}
	with := heap()
	t.Logf("all tables but that of bans: %d KiB; %d bans: %d KiB", (without-before)>>10, maxBans, (with-without)>>10)
	for _, s := range m.Status() {
		if s.Rows > s.Most || s.Rows < s.Most*9/10 && s.Table != "network bans" {
			t.Errorf("%s: %d rows of %d", s.Table, s.Rows, s.Most)
		}
	}
	if with > before+96<<20 {
		t.Errorf("full tables take %d KiB", (with-before)>>10)
	}
	runtime.KeepAlive(m)
}
