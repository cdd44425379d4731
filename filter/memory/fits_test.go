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

	"scanwatch/rules"
	"scanwatch/store"
)

var (
	fitsBytes  = flag.Int64("fits", 8<<20, "bytes of the file in TestFits")
	fitsRounds = flag.Int("fits.rounds", 3, "how often TestFits fills all tables anew")
)

// TestFits: what is remembered fits into the file that it is limited to, though
// rows come and go in all tables for long.
func TestFits(t *testing.T) {
	m := New()
	m.Limit(*fitsBytes)
	m.Watch([]rules.Window{{Evidence: rules.Harvest, Window: 24 * time.Hour, By: rules.BySrc}, {Evidence: rules.UnknownRecipient, Window: time.Hour, By: rules.ByPrefix}}, nil)
	dir := t.TempDir()
	s := store.OpenState(dir, store.StateOptions{Buckets: Buckets(), MaxSize: *fitsBytes, Every: time.Hour, Changes: m.Changes, Rewrite: m.Rewrite})
	rule := strings.Repeat("r", 60)
	rng := rand.New(rand.NewPCG(1, 2))
	rows := m.bans.most
	for round := range *fitsRounds {
		for range rows {
			n := rng.Uint64()
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], 0x20010db8<<32|n>>32)
			w := Who{Addr: netip.AddrFrom16(b), User: fmt.Appendf(nil, "u%d", n), Helo: fmt.Appendf(nil, "h%d", n)}
			now := at(time.Duration(round) * time.Hour)
			m.Delivered(&w, 1, now)
			m.Note(&w, rules.Harvest, now)
			m.Note(&w, rules.UnknownRecipient, now)
			m.Refused(&w, fmt.Appendf(nil, "u%d@example.org", n), now)
			m.Behaved(&w, m.Shape(w.Helo), false, now)
			m.LoginFailed(&w, now)
			m.Learn(fmt.Appendf(nil, "d%d.example.org", n), now)
			m.Ban(w.Addr, Sentence{For: 24 * time.Hour, Rule: rule}, now)
		}
		if err := s.Flush(context.Background()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	for _, st := range m.Status() {
		if st.Rows < st.Most/2 && st.Table != "network bans" && st.Table != "days" {
			t.Errorf("%s: only %d rows of %d", st.Table, st.Rows, st.Most)
		}
	}
	t.Logf("%d bytes of %d", s.Status().Bytes, *fitsBytes)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
