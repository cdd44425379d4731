package main

import (
	"bytes"
	"errors"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// mkState makes a state directory in which memory has what fill puts there.
func mkState(t *testing.T, fill func(*memory.Memory)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	m := memory.New()
	fill(m)
	s := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	if err := errors.Join(s.Flush(t.Context()), w.Flush(t.Context()), w.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// exports runs the verb and returns what it wrote.
func exports(t *testing.T, dir string, args ...string) (out, stderr string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	var e bytes.Buffer
	status := program(&e).main(append([]string{"-s", dir, "export"}, args...), f)
	f.Close()
	text, err := os.ReadFile(name)
	if status != exitOK || err != nil {
		t.Fatalf("export %v: status %d, %v\n%s", args, status, err, e.String())
	}
	return string(text), e.String()
}

// TestExportSpares: who is remembered for good mail or a login is in no list,
// not even for a ban by hand of his network; bans that are over or only observed
// are none.
func TestExportSpares(t *testing.T) {
	at := func(d time.Duration) int64 { return now.Add(d).UnixMicro() }
	who := func(a string) *memory.Who { return &memory.Who{Addr: netip.MustParseAddr(a), User: []byte("alice")} }
	ban := func(m *memory.Memory, a string, lasts time.Duration, observe bool) {
		m.Ban(netip.MustParseAddr(a), memory.Sentence{For: lasts, Rule: "guess", Observe: observe}, at(-time.Hour))
	}
	dir := mkState(t, func(m *memory.Memory) {
		ban(m, "192.0.2.66", 24*time.Hour, false)
		ban(m, "192.0.2.67", 30*time.Minute, false) // over
		ban(m, "192.0.2.68", 24*time.Hour, true)
		for _, a := range []string{"203.0.113.50", "203.0.113.51", "2001:db8:5::1", "198.51.100.7"} {
			ban(m, a, 24*time.Hour, false)
		}
		m.Delivered(who("203.0.113.50"), 1, at(-80*24*time.Hour))
		m.Misbehaved(who("203.0.113.50"), at(-2*time.Hour)) // and yet
		m.Delivered(who("203.0.113.51"), 1, at(-200*24*time.Hour))
		m.LoggedIn(who("2001:db8:5::2"), at(-20*24*time.Hour)) // the same /64
		m.LoggedIn(who("198.51.100.7"), at(-60*24*time.Hour))
		m.BanPrefix(netip.MustParsePrefix("203.0.112.0/22"), 24*time.Hour, "by the postmaster", at(0))
		m.BanPrefix(netip.MustParsePrefix("198.51.100.0/24"), 24*time.Hour, "by the postmaster", at(0))
	})
	out, stderr := exports(t, dir, "plain", "-v")
	if want := "192.0.2.66\n198.51.100.0/24\n198.51.100.7\n203.0.113.51\n"; out != want {
		t.Errorf("exported\n%swant\n%s", out, want)
	}
	for _, want := range []string{"4 exported", "left out 1: bans that are only observed", "left out 2: hosts whose mail was accepted lately", "left out 1: hosts from which somebody logged in"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	if out, _ := exports(t, dir, "plain", "--aggregate"); out != "192.0.2.66\n198.51.100.0/24\n203.0.113.51\n" {
		t.Errorf("aggregated:\n%s", out)
	}
}

// BenchmarkExport: 100,000 sessions of 20,000 hosts with a finding.
func BenchmarkExport(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "state")
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i := range 100_000 {
		step := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("auth-failure"), By: []byte("auth"), Confidence: []byte("high")}, time.Millisecond)
		end := now.Add(-time.Hour).Add(time.Duration(i) * time.Millisecond)
		r := &store.Record{Start: end, End: end, Dst: netip.MustParseAddrPort("198.51.100.25:25"),
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, byte(i % 20_000 >> 8), byte(i % 20_000)}), 25)}
		w.Add(end, uint64(i), store.AppendRecord(nil, r, step))
		if i%1000 == 999 {
			if err := w.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	b.ReportAllocs()
	for b.Loop() {
		var e bytes.Buffer
		if program(&e).main([]string{"-s", dir, "export", "nft", "--evidence", "any"}, null) != exitOK {
			b.Fatal(e.String())
		}
	}
}
