package why

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// fleetStore returns a state directory with bans and standing from other
// hosts.
func fleetStore(t *testing.T) (dir string) {
	dir = t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	returned := func(session uint64) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: raw("botnet"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Banned: true, Session: session, Enforced: true}
	}
	whyAdd(w, time.Hour, 0xe2, "203.0.113.66", store.Record{Ending: smtp.EndingRejected}, returned(0xee))
	whyAdd(w, time.Hour, 0xe3, "203.0.113.67", store.Record{Ending: smtp.EndingRejected}, returned(0))
	known := returned(0)
	known.Enforced, known.Exempt = false, "known"
	whyAdd(w, time.Hour, 0xe4, "203.0.113.71", store.Record{Ending: smtp.EndingQuit}, known)
	err := w.Close()

	at := now.Add(-2 * time.Hour).UnixMicro()
	other := memory.New()
	other.Announce()
	other.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("203.0.113.66")}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "botnet", Session: 0xee}, at)
	other.Bans.AddPrefix(netip.MustParsePrefix("203.0.113.67/32"), 24*time.Hour, "botnet", at)
	other.Bans.AddPrefix(netip.MustParsePrefix("203.0.113.68/32"), 24*time.Hour, "error", at)
	other.Bans.AddPrefix(netip.MustParsePrefix("203.0.113.70/32"), 24*time.Hour, "own partner", at)
	client := memory.Client{Addr: netip.MustParseAddr("203.0.113.71")}
	other.Bans.AddPrefix(netip.MustParsePrefix("203.0.113.71/32"), 24*time.Hour, "botnet", at)
	other.Bans.Revoke(netip.MustParsePrefix("203.0.113.68/32"), false, at)
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	var rows []memory.Foreign
	for _, e := range other.Outgoing(100, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx1"})
	}
	third := memory.New()
	third.Announce()
	for day := range 3 {
		third.Peers.Delivered(&client, memory.Delivery{Messages: 1}, now.AddDate(0, 0, day-5).UnixMicro())
	}
	for _, e := range third.Outgoing(100, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx2"})
	}
	_, incoming := m.Incoming(rows, 0, at)
	err = errors.Join(err, incoming, state.Flush(context.Background()), state.Close())
	if err != nil || len(rows) != 6 {
		t.Fatal(len(rows), err)
	}
	return dir
}

// TestFleet checks that an answer names other hosts: the host that imposed or revoked a ban, the
// host with the session that led to the ban, and the host on which the client is known.
func TestFleet(t *testing.T) {
	dir := fleetStore(t)
	for _, c := range []struct{ name, arg, conf string }{
		{"fleet-session", "00000000000000e2", ""},
		{"fleet-reference", "00000000000000ee", ""},
		{"fleet-manual", "203.0.113.67", ""},
		{"fleet-pass", "203.0.113.70", "pass match src 203.0.113.70\n"},
		{"fleet-revoked", "203.0.113.68", ""},
		{"fleet-known", "203.0.113.71", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, out := ask(t, c.arg, "", options(t, dir, whyConf+c.conf))
			path := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(path); err != nil || out != string(want) {
				t.Errorf("differs from %s, %v:\n%s", path, err, out)
			}
		})
	}
	a, _ := ask(t, "00000000000000e2", "", options(t, dir, whyConf))
	var b strings.Builder
	if err := a.Letter(&b, time.UTC); err != nil || !strings.Contains(b.String(), "Another mail server of this site has banned the address.") || strings.Contains(b.String(), "mx1") {
		t.Errorf("letter: %v\n%s", err, &b)
	}
}
