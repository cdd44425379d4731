package memory

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/kv"
	"scanwatch/rules"
	"scanwatch/store"
)

var (
	fitsBytes  = flag.Int64("fits", 8<<20, "bytes of the file in TestFits")
	fitsRounds = flag.Int("fits.rounds", 3, "rounds of TestFits, each of which replaces all rows")
)

// TestFits checks that the tables fit into the largest possible file, even after all
// rows have been replaced several times.
func TestFits(t *testing.T) {
	m := New()
	m.Limit(*fitsBytes)
	m.Counters.Watch([]rules.Window{{Evidence: rules.Harvest, Window: 24 * time.Hour, By: rules.BySrc}, {Evidence: rules.UnknownRecipient, Window: time.Hour, By: rules.ByPrefix}})
	dir := t.TempDir()
	s := store.OpenState(dir, store.StateOptions{Buckets: Buckets(), MaxSize: *fitsBytes, Every: time.Hour, Changes: m.Changes, Rewrite: m.Rewrite})
	rule, name := strings.Repeat("r", 60), strings.Repeat("n", 64)
	rng := rand.New(rand.NewPCG(1, 2))
	rows := m.Bans.own.hosts.limit
	for round := range *fitsRounds {
		for range rows {
			n := rng.Uint64()
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], 0x20010db8<<32|n>>32)
			w := Client{Addr: netip.AddrFrom16(b), User: fmt.Appendf(nil, "u%d", n), Helo: fmt.Appendf(nil, "h%d", n)}
			now := at(time.Duration(round) * time.Hour)
			m.Peers.Delivered(&w, Delivery{Messages: 1}, now)
			m.Counters.Add(&w, rules.Harvest, now)
			m.Counters.Add(&w, rules.UnknownRecipient, now)
			m.Recipients.Refused(&w, fmt.Appendf(nil, "u%d@example.org", n), now)
			m.Recipients.Asked(&w, fmt.Appendf(nil, "u%d@example.org", n), now)
			m.Recipients.Missed(&w, now)
			m.Logins.Failed(&w, now)
			m.Logins.Wrote(&w, now)
			m.Domains.Learn(fmt.Appendf(nil, "d%d.example.org", n), now)
			m.Bans.Add(&w, BanRequest{Ladder: []time.Duration{day}, Rule: rule}, now)
			elsewhere := peer{first: dayOf(m.clock.row(now)) - 1, good: dayOf(m.clock.row(now)), messages: 1, days: 1}
			key := m.Peers.rows.key(hostKey(&w))
			if _, err := m.Incoming([]Foreign{{Entry: kv.Entry{Bucket: peersBucket, Key: key, Value: m.Peers.rows.value(elsewhere)}, Origin: name}}, 0, now); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock() // the store reads the tables at the same time
			if row, ok := m.Bans.own.hosts.get(w.Host()); ok {
				row.flags |= banForeign
				m.Bans.others.hosts.put(w.Host(), row, row.since)
			}
			m.mu.Unlock()
		}
		if err := s.Flush(context.Background()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	for _, st := range m.Status() {
		if st.Rows < st.Limit/2 && !strings.HasPrefix(st.Table, "network bans") && st.Table != "unbans of ranges" && st.Table != "days" {
			t.Errorf("%s: only %d rows of %d", st.Table, st.Rows, st.Limit)
		}
	}
	t.Logf("%d bytes of %d", s.Status().Bytes, *fitsBytes)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
