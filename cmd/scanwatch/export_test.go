package main

import (
	"bytes"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// mkState creates a state directory whose state is set up by fill.
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

// exports runs an export and returns its output.
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

// TestExportSpares checks that hosts with legitimate mail or a login are never exported, even if
// their network is banned manually. Bans that have expired or are only observed must not be
// exported either.
func TestExportSpares(t *testing.T) {
	at := func(d time.Duration) int64 { return now.Add(d).UnixMicro() }
	who := func(a string) *memory.Client {
		return &memory.Client{Addr: netip.MustParseAddr(a), User: []byte("alice")}
	}
	ban := func(m *memory.Memory, a string, lasts time.Duration, observe bool) {
		m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.BanRequest{Ladder: []time.Duration{lasts}, Rule: "guess", Observe: observe}, at(-time.Hour))
	}
	dir := mkState(t, func(m *memory.Memory) {
		ban(m, "192.0.2.66", 24*time.Hour, false)
		ban(m, "192.0.2.67", 30*time.Minute, false) // expired
		ban(m, "192.0.2.68", 24*time.Hour, true)
		for _, a := range []string{"203.0.113.50", "203.0.113.51", "2001:db8:5::1", "198.51.100.7"} {
			ban(m, a, 24*time.Hour, false)
		}
		m.Peers.Delivered(who("203.0.113.50"), memory.Delivery{Messages: 1}, at(-80*24*time.Hour))
		m.Peers.Misbehaved(who("203.0.113.50"), at(-2*time.Hour)) // despite an offence, the host is still exempt
		m.Peers.Delivered(who("203.0.113.51"), memory.Delivery{Messages: 1}, at(-200*24*time.Hour))
		m.Logins.Succeeded(who("2001:db8:5::2"), at(-20*24*time.Hour)) // a host in the same /64
		m.Logins.Succeeded(who("198.51.100.7"), at(-60*24*time.Hour))
		m.Bans.AddPrefix(netip.MustParsePrefix("203.0.112.0/22"), 24*time.Hour, "by the postmaster", at(0))
		m.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/24"), 24*time.Hour, "by the postmaster", at(0))
	})
	out, stderr := exports(t, dir, "plain", "-v")
	if want := "192.0.2.66\n198.51.100.0/24\n198.51.100.7\n203.0.113.51\n"; out != want {
		t.Errorf("exported\n%swant\n%s", out, want)
	}
	for _, want := range []string{"4 exported", "omitted 1: bans in observe mode", "omitted 2: hosts whose mail was accepted recently", "omitted 1: hosts with a recent login"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	if out, _ := exports(t, dir, "plain", "--aggregate"); out != "192.0.2.66\n198.51.100.0/24\n203.0.113.51\n" {
		t.Errorf("aggregated:\n%s", out)
	}
}

// BenchmarkExport measures an export from 100,000 sessions of 20,000 hosts that all have
// findings.
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

// A visitOf describes a session to record. The session has a finding unless evidence is empty.
type visitOf struct {
	src, rdns, evidence string
	ago                 time.Duration
	mails               uint32
}

// addVisits records sessions of unknown clients with proven names.
func addVisits(t *testing.T, dir string, visits ...visitOf) {
	t.Helper()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i, v := range visits {
		var steps []byte
		if v.evidence != "" {
			steps = store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte(v.evidence), By: []byte("rcpt"), Confidence: []byte("high")}, 0)
		}
		r := &store.Record{Start: now.Add(-v.ago), End: now.Add(-v.ago), Src: netip.MustParseAddrPort(v.src + ":25"), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
			RDNS: []byte(v.rdns), FCrDNS: smtp.FCrDNSPass, Counts: store.Counts{Mails: v.mails}}
		w.Add(r.End, uint64(i+1), store.AppendRecord(nil, r, steps))
	}
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestExportYoungMemory checks exports while the state is younger than the oldest mail that counts,
// for example because state.db was lost. The records must then show which hosts sent legitimate
// mail.
func TestExportYoungMemory(t *testing.T) {
	ended := func(ago time.Duration) func(*memory.Memory) {
		return func(m *memory.Memory) {
			m.Days.Add(&memory.Ended{}, now.Add(-ago).UnixMicro())
			m.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr("203.0.113.200")}, memory.Delivery{Messages: 1}, now.Add(-time.Hour).UnixMicro())
		}
	}
	const day = 24 * time.Hour
	for _, c := range []struct {
		age  time.Duration
		want string
	}{{2 * day, ""}, {120 * day, "203.0.113.9\n"}} { // after 120 days, the state reaches back far enough
		dir := mkState(t, ended(c.age))
		addVisits(t, dir, visitOf{src: "198.51.100.77", ago: c.age}, visitOf{src: "203.0.113.9", ago: 40 * day, mails: 3}, visitOf{src: "203.0.113.9", ago: day, evidence: "harvest"})
		if out, _ := exports(t, dir, "plain", "--evidence", "any"); out != c.want {
			t.Errorf("memory of %v: exported %q, want %q", c.age, out, c.want)
		}
	}
	// A host that greets incorrectly and writes to former members of a mailing list is legitimate.
	// A host with a harvest and no mail in the session is not legitimate, even if its mail was accepted
	// in another session with an offence. Mail in the same session may be for a mailing list or for a
	// domain that has moved.
	dir := mkState(t, func(*memory.Memory) {})
	addVisits(t, dir, visitOf{src: "203.0.113.9", ago: day, evidence: "helo-localhost", mails: 1}, visitOf{src: "203.0.113.9", ago: day, evidence: "unknown-recipient"},
		visitOf{src: "203.0.113.10", ago: day, evidence: "harvest", mails: 1}, visitOf{src: "203.0.113.10", ago: day, evidence: "harvest"},
		visitOf{src: "203.0.113.11", ago: day, evidence: "harvest", mails: 1}, visitOf{src: "203.0.113.12", ago: day, evidence: "relay-probe", mails: 1},
		visitOf{src: "203.0.113.13", ago: day, evidence: "scanner", mails: 1})
	if out, _ := exports(t, dir, "plain", "--evidence", "any"); out != "203.0.113.10\n203.0.113.13\n" {
		t.Errorf("without memory: exported %q", out)
	}
}

// TestExportSparesLater checks which bans from before --since are omitted. A banned host may have
// become exempt without having had another session. A banned network may contain an exempt host.
func TestExportSparesLater(t *testing.T) {
	const day = 24 * time.Hour
	dir := mkState(t, func(m *memory.Memory) {
		for _, a := range []string{"203.0.113.9", "203.0.113.10", "192.0.2.99"} {
			m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.BanRequest{Ladder: []time.Duration{60 * day}, Rule: "guess"}, now.Add(-20*day).UnixMicro())
		}
		m.Bans.AddPrefix(netip.MustParsePrefix("198.51.100.0/24"), 30*day, "by the postmaster", now.Add(-10*day).UnixMicro())
		m.Bans.AddPrefix(netip.MustParsePrefix("198.51.101.0/24"), 30*day, "by the postmaster", now.Add(-10*day).UnixMicro())
		m.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr("203.0.113.210"), Domain: "example.com", Helo: []byte("mx.partner.example.com")}, memory.Delivery{Messages: 1}, now.Add(-2*day).UnixMicro())
	})
	addVisits(t, dir,
		visitOf{src: "203.0.113.9", rdns: "mail.example.org", ago: 20 * day, evidence: "harvest"},         // session that caused the ban
		visitOf{src: "203.0.113.10", rdns: "out.partner.example.com", ago: 20 * day, evidence: "harvest"}, // its domain has accepted mail
		visitOf{src: "192.0.2.99", rdns: "bad.example.net", ago: 20 * day, evidence: "harvest"},           // no accepted mail
		visitOf{src: "198.51.100.7", rdns: "smtp.example.org", ago: 9 * day},                              // in the banned network
		visitOf{src: "198.51.101.7", rdns: "host.example.net", ago: 9 * day})
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("pass match rdns .example.org fcrdns\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONF", conf)
	if out, _ := exports(t, dir, "plain"); out != "192.0.2.99\n198.51.101.0/24\n" {
		t.Errorf("exported\n%s", out)
	}
}

// TestExportAsksTheFilter checks that an export fails if a running filter does not answer. Only the
// filter knows whether the operator has stopped enforcement.
func TestExportAsksTheFilter(t *testing.T) {
	full := mkState(t, func(m *memory.Memory) {
		m.Bans.AddPrefix(netip.MustParsePrefix("11.0.0.0/24"), 24*time.Hour, "by the postmaster", now.UnixMicro())
	})
	dir, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(full)); err != nil {
		t.Fatal(err)
	}
	if status, out, stderr := exportOf(t, dir, "plain"); status != 0 || out == "" {
		t.Fatalf("without a filter: status %d, %q, %s", status, out, stderr)
	}
	l, err := net.Listen("unix", control.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool)
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close() // as a filter with too many clients does
		}
	}()
	defer func() { l.Close(); <-ended }()
	status, out, stderr := exportOf(t, dir, "plain")
	if status != 1 || out != "" || !strings.Contains(stderr, "nothing was exported: connect to the filter") {
		t.Errorf("status %d, %q, %s", status, out, stderr)
	}
}
