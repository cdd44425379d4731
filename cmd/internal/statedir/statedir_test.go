package statedir

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// now is the current time in tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

// record records a session from src. If sender is not empty, the session delivers a message. If
// user is not empty, it contains a login.
func record(w *store.Writer, ago time.Duration, src, sender, user string) {
	var steps []byte
	r := &store.Record{Start: now.Add(-ago), End: now.Add(-ago), Src: netip.MustParseAddrPort(src + ":25")}
	if sender != "" {
		steps = store.AppendStep(steps, &store.Step{Kind: store.KindMail, Text: []byte(sender), Result: smtp.ResultOK}, 0)
		r.Counts.Mails = 1
	}
	if user != "" {
		steps = store.AppendStep(steps, &store.Step{Kind: store.KindAuth, Text: []byte(user), Result: smtp.ResultPass}, 0)
		r.Counts.AuthPass = 1
	}
	w.Add(r.End, uint64(ago), store.AppendRecord(nil, r, steps))
}

// TestOpen checks that records can be read without a filter, and that problems are
// reported.
func TestOpen(t *testing.T) {
	d := &Dir{Path: t.TempDir(), Now: clock}
	w := store.Open(d.Path, store.Options{Now: clock, Program: "test"})
	record(w, time.Hour, "192.0.2.1", "", "")
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "sessions", "2026-11-01.db"), []byte("corrupt"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Client != nil || !errors.Is(r.Down, control.ErrNotRunning) || len(r.Problems()) != 0 {
		t.Errorf("client %v, down %v, problems %v", r.Client, r.Down, r.Problems())
	}
	n := 0
	if err := r.Each(time.Time{}, time.Time{}, store.AllKinds, func(*store.Record) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d records, %v", n, err)
	}
	var warned []string
	r.Warn(func(p string) { warned = append(warned, p) })
	if len(warned) != 1 || !strings.HasPrefix(warned[0], "2026-11-01.db: ") || r.Incomplete() != nil {
		t.Errorf("warnings %q, incomplete: %v", warned, r.Incomplete())
	}
}

// TestMissing checks that a missing directory causes an error with a remedy, and that an
// empty directory does not.
func TestMissing(t *testing.T) {
	d := &Dir{Path: filepath.Join(t.TempDir(), "missing"), Now: clock}
	_, err := d.Open()
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasSuffix(err.Error(), "; specify another directory with -s") {
		t.Errorf("%v", err)
	}
	if err := Explain(fs.ErrPermission); !strings.Contains(err.Error(), "become root") {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(d.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if bans, err := d.Bans(func(*memory.Ban) bool { return true }); err != nil || len(bans) != 0 {
		t.Errorf("bans %v, %v", bans, err)
	}
	if days, err := d.Days(); err != nil || len(days) != 0 {
		t.Errorf("days %v, %v", days, err)
	}
}

func TestLimits(t *testing.T) {
	if l := (&Dir{}).Limits(); l.Budget != rules.DefaultBudget || l.Keep != rules.DefaultKeep {
		t.Errorf("%v", l)
	}
	if l := (&Dir{Settings: rules.Settings{Budget: 1, Keep: 2}}).Limits(); l.Budget != 1 || l.Keep != 2 {
		t.Errorf("%v", l)
	}
}

// TestLegitimate checks the reasons for not banning a network: special addresses, exempt
// hosts, and mail or logins in the last 90 days.
func TestLegitimate(t *testing.T) {
	d := &Dir{Path: t.TempDir(), Now: clock, Own: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
	w := store.Open(d.Path, store.Options{Now: clock, Keep: 1000 * 24 * time.Hour, Program: "test"})
	record(w, 100*24*time.Hour, "192.0.2.1", "old@example.org", "")
	record(w, 3*time.Hour, "198.51.100.1", "", "")
	record(w, 2*time.Hour, "203.0.113.1", "a@example.org", "")
	record(w, time.Hour, "203.0.113.2", "b@EXAMPLE.org", "alice")
	record(w, 4*time.Hour, "198.51.100.130", "", "")
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	friends := netip.MustParsePrefix("198.51.100.128/25")
	exempt := func(r *store.Record) string {
		if friends.Contains(r.Src.Addr()) {
			return r.Src.Addr().String() + " is a friend"
		}
		return ""
	}
	for p, want := range map[string]string{
		"192.0.2.0/29":      "",
		"198.51.100.0/25":   "",
		"198.51.100.0/24":   "198.51.100.130 is a friend", // one of the hosts in the network
		"198.51.100.140/32": "198.51.100.140 is a friend", // without any session
		"192.0.2.9/32":      "192.0.2.9 is an address of this machine",
		"127.0.0.0/8":       "it is this machine",
		"10.1.0.0/16":       "its addresses are private",
		"fd00:1:2:3::/64":   "its addresses are private",
		"fe80::/64":         "its addresses are private",
		"224.0.0.0/4":       "its addresses are multicast",
		"203.0.113.1/32":    "it delivered 1 message from 1 domain in 90 days",
		"203.0.113.0/24":    "it delivered 2 messages from 1 domain in 90 days, and 1 user logged in from it",
	} {
		got, err := d.Legitimate(netip.MustParsePrefix(p), exempt, func(problem string) { t.Error(problem) })
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", p, got, err, want)
		}
	}
}

// TestLegitimateElsewhere checks that mail and logins on another host of the fleet are reasons not to
// ban a network, even on their first day.
func TestLegitimateElsewhere(t *testing.T) {
	d := &Dir{Path: t.TempDir(), Now: clock}
	mx1, mx2 := memory.New(), memory.New()
	for _, m := range []*memory.Memory{mx1, mx2} {
		m.UseKey([16]byte{1})
		m.Announce()
	}
	mx2.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}, memory.Delivery{Messages: 1, Senders: []string{"a@example.org"}}, now.UnixMicro())
	var rows []memory.Foreign
	for _, e := range mx2.Outgoing(100, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx2"})
	}
	if _, err := mx1.Incoming(rows, 0, now.UnixMicro()); err != nil || len(rows) == 0 {
		t.Fatal(len(rows), err)
	}
	state := store.OpenState(d.Path, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: mx1.Changes, Rewrite: mx1.Rewrite})
	if err := errors.Join(state.Flush(t.Context()), state.Close()); err != nil {
		t.Fatal(err)
	}
	exempt := func(*store.Record) string { return "" }
	for p, want := range map[string]string{
		"192.0.2.0/24": "192.0.2.1 delivered mail on mx2, last on " + now.UTC().Format(time.DateOnly),
		"192.0.2.2/32": "",
	} {
		got, err := d.Legitimate(netip.MustParsePrefix(p), exempt, func(problem string) { t.Error(problem) })
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", p, got, err, want)
		}
	}
}

// TestStartingFilter checks that a filter's bans are found even before the filter has created
// state.db.
func TestStartingFilter(t *testing.T) {
	d := &Dir{Path: t.TempDir(), Now: clock}
	l, err := control.Listen(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	flush := control.Command{Name: "flush", Run: func(ctx context.Context, a *control.Answer, _ []string) error {
		m := memory.New()
		m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "manual", now.UnixMicro())
		state := store.OpenState(d.Path, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
			Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
		return errors.Join(state.Flush(ctx), state.Close(), a.JSON(struct{}{}))
	}}
	s := &control.Server{Commands: []control.Command{flush}}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Serve(ctx, l) }()
	all, err := d.Bans(func(*memory.Ban) bool { return true })
	if err != nil || len(all) != 1 {
		t.Errorf("%d bans, %v", len(all), err)
	}
	stop()
	<-ended
}
