package memory

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/kv"
)

// TestFullTables measures the memory used by full tables and compares it with the
// manual's figure.
func TestFullTables(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: filling all tables is omitted with -short")
	}
	heap := func() int64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	m := New()
	m.Counters.Watch(watched)
	before := heap()
	addr := func(i int) netip.Addr {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], 0x20010db8<<32|uint64(i))
		return netip.AddrFrom16(b)
	}
	for i := range maxCounters {
		w := Client{Addr: addr(i), User: fmt.Appendf(nil, "u%d", i), Helo: fmt.Appendf(nil, "h%d", i)}
		m.Peers.Delivered(&w, Delivery{Messages: 1}, at(0))
		m.Recipients.Refused(&w, fmt.Appendf(nil, "u%d@example.org", i), at(0))
		m.Recipients.Asked(&w, fmt.Appendf(nil, "u%d@example.org", i), at(0))
		m.Recipients.Missed(&w, at(0))
		m.Logins.Failed(&w, at(0))
		m.Logins.Wrote(&w, at(0))
		m.Domains.Learn(fmt.Appendf(nil, "d%d.example.org", i), at(0))
		elsewhere := peer{first: dayOf(m.clock.row(at(0))) - 1, good: dayOf(m.clock.row(at(0))), messages: 1, days: 1}
		f := Foreign{Entry: kv.Entry{Bucket: peersBucket, Key: m.Peers.rows.key(hostKey(&w)), Value: m.Peers.rows.value(elsewhere)}, Origin: "mx2"}
		if _, err := m.Incoming([]Foreign{f}, 0, at(0)); err != nil {
			t.Fatal(err)
		}
		if i < maxDays {
			m.Days.Add(&Ended{Whole: true, Evidence: 1}, at(-time.Duration(i)*24*time.Hour))
		}
	}
	for len(m.Changes(100_000)) > 0 {
	}
	without := heap()
	for i := range maxBans {
		m.Bans.Add(&Client{Addr: addr(i)}, BanRequest{Ladder: []time.Duration{day}, Rule: "r"}, at(0))
		if i < maxBans/maxForeign {
			m.Bans.others.put(HostOf(addr(i), false).Prefix(), ban{since: uint32(at(0) / 1e6), until: uint32(at(day) / 1e6), flags: banForeign}, uint32(at(0)/1e6))
		}
	}
	for len(m.Changes(100_000)) > 0 {
	}
	with := heap()
	t.Logf("all tables without bans: %d KiB; %d bans: %d KiB", (without-before)>>10, maxBans, (with-without)>>10)
	for _, s := range m.Status() {
		if s.Rows > s.Limit || s.Rows < s.Limit*9/10 && !strings.HasPrefix(s.Table, "network bans") && s.Table != "unbans of ranges" {
			t.Errorf("%s: %d rows of %d", s.Table, s.Rows, s.Limit)
		}
	}
	if with > before+136<<20 { // a quarter of it for other hosts
		t.Errorf("full tables take %d KiB", (with-before)>>10)
	}
	runtime.KeepAlive(m)
}
