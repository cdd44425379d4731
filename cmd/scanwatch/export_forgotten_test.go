package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

const aDay = 24 * time.Hour

// exportOf runs an export and returns its status and output.
func exportOf(t *testing.T, dir string, args ...string) (status int, out, stderr string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var e bytes.Buffer
	p := program(&e)
	p.zone = now.Location()
	status = p.main(append([]string{"-s", dir, "export"}, args...), f)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text), e.String()
}

// exportIn runs an export in a time zone.
func exportIn(t *testing.T, zone *time.Location, dir string, args ...string) (status int, out, stderr string) {
	t.Helper()
	defer func(local *time.Location, at time.Time) { time.Local, now = local, at }(time.Local, now)
	time.Local, now = zone, now.In(zone)
	return exportOf(t, dir, args...)
}

// hostNumber returns a different host for each i.
func hostNumber(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 11<<24|uint32(i))
	return netip.AddrFrom4(b)
}

// A site is the state directory of a busy server with a small budget.
type site struct {
	t      *testing.T
	dir    string
	memory *memory.Memory
	id     uint64
}

const smallBudget = 64 << 20

func newSite(t *testing.T) *site {
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "state"), memory: memory.New()}
	s.memory.Limit(smallBudget / 2) // enough for 25,000 peers
	s.memory.Days.Add(&memory.Ended{}, now.Add(-120*aDay).UnixMicro())
	return s
}

// mails adds an accepted message from each of n hosts, both to the state and to the records.
func (s *site) mails(n int, ago time.Duration) {
	for i := range n {
		c := &memory.Client{Addr: hostNumber(i), Domain: fmt.Sprintf("d%d.example", i), Helo: fmt.Appendf(nil, "mx.d%d.example", i)}
		s.memory.Peers.Delivered(c, memory.Delivery{Messages: 1, Senders: []string{c.Domain}}, now.Add(-ago).UnixMicro())
	}
	s.records(n, ago, "", 1)
}

// records stores a session for each of n hosts.
func (s *site) records(n int, ago time.Duration, evidence string, mails uint32) {
	s.t.Helper()
	w := store.Open(s.dir, store.Options{Budget: smallBudget, Now: func() time.Time { return now }, Program: "test"})
	for i := range n {
		var steps []byte
		if evidence != "" {
			steps = store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte(evidence), By: []byte("rcpt"), Confidence: []byte("high")}, 0)
		}
		s.id++
		r := &store.Record{Start: now.Add(-ago), End: now.Add(-ago), Src: netip.AddrPortFrom(hostNumber(i), 25), Counts: store.Counts{Mails: mails}}
		w.Add(r.End, s.id, store.AppendRecord(nil, r, steps))
		if i%2000 == 1999 {
			if err := w.Flush(s.t.Context()); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Flush(s.t.Context()), w.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// save writes state.db.
func (s *site) save() {
	s.t.Helper()
	f := store.OpenState(s.dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: s.memory.Changes, Rewrite: s.memory.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { s.memory.Load(all, now.UnixMicro()) }})
	if err := errors.Join(f.Flush(s.t.Context()), f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// prune removes the records of days before the given time, as happens when the budget is
// used up.
func (s *site) prune(before time.Time) {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.dir, "sessions", "*"))
	if err != nil || len(all) == 0 {
		s.t.Fatal(all, err)
	}
	for _, name := range all {
		if filepath.Base(name) < before.Format(time.DateOnly) {
			if err := os.Remove(name); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// TestExportForgotten checks that a host with accepted mail is not exported even if the table of
// known hosts is full. A month ago, 20,000 hosts sent a message each, and yesterday each of them
// caused a finding. If the records of that month are also missing, findings prove nothing, and the
// export must fail. An export of the filter's bans must still succeed.
func TestExportForgotten(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: 40,000 sessions are omitted with -short")
	}
	const hosts = 20_000
	s := newSite(t)
	s.mails(hosts, 30*aDay)
	s.memory.Bans.Add(&memory.Client{Addr: hostNumber(1 << 20)}, memory.BanRequest{Ladder: []time.Duration{7 * aDay}, Rule: "guess"}, now.Add(-time.Hour).UnixMicro())
	s.save()
	s.records(1, 90*aDay, "", 0)
	s.records(hosts+1, aDay, "harvest", 0) // one of the hosts never sent mail
	forgotten := 0
	for _, table := range s.memory.Status() {
		if table.Table == "known clients" {
			forgotten = int(table.Evicted)
		}
	}
	if forgotten < 1000 {
		t.Fatalf("only %d known hosts are forgotten", forgotten)
	}
	never := hostNumber(hosts).String() + "\n"
	banned := hostNumber(1<<20).String() + "\n"
	if status, out, stderr := exportOf(t, s.dir, "plain", "--evidence", "any"); status != exitOK || out != never {
		t.Errorf("status %d, %d of %d good hosts exported\n%s", status, strings.Count(out, "\n"), hosts, stderr)
	}
	if status, out, stderr := exportOf(t, s.dir, "plain"); status != exitOK || out != banned {
		t.Errorf("bans: status %d, %q\n%s", status, out, stderr)
	}

	s.prune(now.Add(-10 * aDay))
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"plain", "--evidence", "any"}, {"plain", "--evidence", "any", "-o", file}, {"nft", "--bans", "--min-confidence", "high"}} {
		status, out, stderr := exportOf(t, s.dir, args...)
		if status != exitFailure || out != "" || !strings.Contains(stderr, "nothing was exported: the hosts with mail since 2026-08-04 are not all known: their table was full") {
			t.Errorf("%v after pruning: status %d, %d hosts\n%s", args, status, strings.Count(out, "\n"), stderr)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "old\n" {
		t.Errorf("the list has become %q, %v", text, err)
	}
	if status, out, stderr := exportOf(t, s.dir, "plain"); status != exitOK || out != banned {
		t.Errorf("bans after pruning: status %d, %q\n%s", status, out, stderr)
	}
}

// TestExportKnown checks which combinations of the table of known hosts and the records are enough
// to export findings.
func TestExportKnown(t *testing.T) {
	evict := func(s *site) { // evict hosts that sent mail on the previous day
		for i := range 30_000 {
			s.memory.Peers.Delivered(&memory.Client{Addr: hostNumber(1<<21 | i)}, memory.Delivery{Messages: 1}, now.Add(-aDay).UnixMicro())
		}
	}
	spare := func(s *site) string { // record the mail of an evicted host
		s.records(1, 30*aDay, "", 1)
		s.records(2, time.Hour, "harvest", 0)
		return hostNumber(1).String() + "\n"
	}
	const unknown = "are not all known"
	for _, c := range []struct {
		name  string
		state func(*site) (want string)
	}{
		{"nothing was dropped, and records are gone", func(s *site) string {
			s.memory.Peers.Delivered(&memory.Client{Addr: hostNumber(0)}, memory.Delivery{Messages: 1}, now.Add(-30*aDay).UnixMicro())
			defer s.prune(now.Add(-10 * aDay))
			return spare(s)
		}},
		{"mail was dropped, and the records know it", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			return spare(s)
		}},
		{"mail was dropped, and the filter is younger than 90 days", func(s *site) string {
			*s = *newSite(s.t)
			s.memory = memory.New()
			s.memory.Limit(smallBudget / 2)
			s.memory.Days.Add(&memory.Ended{}, now.Add(-40*aDay).UnixMicro())
			evict(s)
			s.records(1, 40*aDay, "", 0)
			return spare(s)
		}},
		{"mail of an imported log is forgotten", func(s *site) string {
			*s = *newSite(s.t)
			s.memory = memory.New()
			s.memory.Limit(smallBudget / 2)
			for i := range 30_000 {
				s.memory.Peers.Delivered(&memory.Client{Addr: hostNumber(1<<21 | i)}, memory.Delivery{Messages: 1}, now.Add(-30*aDay).UnixMicro())
			}
			s.memory.Days.Add(&memory.Ended{}, now.Add(-10*aDay).UnixMicro())
			s.records(1, 10*aDay, "", 0)
			s.records(2, time.Hour, "harvest", 0)
			return unknown
		}},
		{"mail was dropped, and the records begin later", func(s *site) string {
			evict(s)
			spare(s)
			return unknown
		}},
		{"mail was dropped, and a part of the first day is gone", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			spare(s)
			dir := filepath.Join(s.dir, "sessions")
			if err := os.Rename(filepath.Join(dir, "2026-08-04.db"), filepath.Join(dir, "2026-08-04.2.db")); err != nil {
				s.t.Fatal(err)
			}
			return unknown
		}},
		{"mail was dropped, and a day is quarantined", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			s.records(1, 50*aDay, "", 0)
			spare(s)
			name := filepath.Join(s.dir, "sessions", now.Add(-50*aDay).Format(time.DateOnly)+".db")
			if err := os.Rename(name, name+".damaged-20261101T000000000Z.salvaged"); err != nil {
				s.t.Fatal(err)
			}
			return unknown
		}},
		{"mail was dropped, and an aggregate has mail of unknown hosts", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			s.nameless(20*aDay, 3)
			spare(s)
			return unknown
		}},
		{"state.db is lost, and records are gone", func(s *site) string {
			s.memory = memory.New()
			s.memory.Expect()
			spare(s)
			return unknown
		}},
		{"state.db is lost, and the records have 90 days", func(s *site) string {
			s.memory = memory.New()
			s.memory.Expect()
			s.everyDay(90, 0)
			return spare(s)
		}},
		{"state.db is lost, and a day of the records is gone", func(s *site) string {
			s.memory = memory.New()
			s.memory.Expect()
			s.everyDay(90, 50)
			spare(s)
			return "are not all known: state.db was lost or is incomplete, and 2026-09-13 has no file, and state.db, which counted its sessions, was lost; " +
				"see scanwatch fsck, or accept the loss with --accept-loss 2026-09-13"
		}},
		{"no state.db, and the records begin later", func(s *site) string {
			s.memory = nil
			spare(s)
			return unknown
		}},
		{"no state.db, and the records have 90 days", func(s *site) string {
			s.memory = nil
			s.everyDay(90, 0)
			return spare(s)
		}},
		{"a peer removed by a repair, and the records begin later", func(s *site) string {
			s.memory.Peers.Delivered(&memory.Client{Addr: hostNumber(0)}, memory.Delivery{Messages: 1}, now.Add(-40*aDay).UnixMicro())
			s.save()
			s.damage()
			spare(s)
			s.repair()
			s.memory = nil
			return unknown
		}},
		{"a corrupt day of the period", func(s *site) string {
			spare(s)
			if err := os.WriteFile(filepath.Join(s.dir, "sessions", now.Add(-2*aDay).Format(time.DateOnly)+".db"), []byte("corrupt"), 0o600); err != nil {
				s.t.Fatal(err)
			}
			return "the records are incomplete; see scanwatch fsck"
		}},
		{"the sessions of the period are gone", func(s *site) string {
			spare(s)
			s.memory.Days.Add(&memory.Ended{Whole: true}, now.Add(-2*aDay).UnixMicro())
			if err := os.RemoveAll(filepath.Join(s.dir, "sessions")); err != nil {
				s.t.Fatal(err)
			}
			return "1 sessions of this period were recorded and are missing"
		}},
		{"a day of the period is gone", func(s *site) string {
			spare(s)
			s.counted(4, 3*aDay)
			return "sessions of 2026-10-30 were recorded and are missing; see scanwatch fsck, export later ones with --since 2026-10-31T00:00:00Z, or accept the loss with --accept-loss 2026-10-30"
		}},
		{"two days of the period are gone", func(s *site) string {
			spare(s)
			s.counted(4, 3*aDay)
			s.counted(4, 5*aDay)
			return "sessions of 2026-10-28 were recorded and are missing; others are 2026-10-30; see scanwatch fsck, " +
				"export later ones with --since 2026-10-31T00:00:00Z, or accept the loss with --accept-loss 2026-10-30"
		}},
		{"the file of today is gone", func(s *site) string {
			s.records(1, 30*aDay, "", 1)
			s.counted(4, 30*time.Minute)
			s.counted(2, aDay)
			s.records(2, aDay, "harvest", 0)
			return "sessions of 2026-11-02 were recorded and are missing; see scanwatch fsck, or accept the loss with --accept-loss 2026-11-02"
		}},
		{"a part of a day is gone", func(s *site) string {
			s.records(3, 3*aDay, "", 0)
			s.counted(4, 3*aDay)
			spare(s)
			name := filepath.Join(s.dir, "sessions", now.Add(-3*aDay).Format(time.DateOnly))
			if err := os.Rename(name+".db", name+".2.db"); err != nil {
				s.t.Fatal(err)
			}
			return "sessions of 2026-10-30 were recorded and are missing"
		}},
		{"a repair has lost findings, and the quarantined file is removed", func(s *site) string {
			s.records(4, 3*aDay, "harvest", 0)
			s.counted(4, 3*aDay)
			spare(s)
			s.cutDay(3 * aDay)
			return "a corrupt file may have lost sessions or findings of 2026-10-30"
		}},
		{"a repair of a day with mail, the quarantined file is removed, and mail is forgotten", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			s.records(4, 50*aDay, "", 1)
			s.counted(4, 50*aDay)
			spare(s)
			s.emptyDay(50 * aDay)
			return "are not all known: their table was full, and sessions of 2026-09-13 were recorded and are missing"
		}},
		{"a lost day that was not counted, and the quarantined file is removed", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			s.records(4, 50*aDay, "", 1)
			spare(s)
			s.emptyDay(50 * aDay)
			return "are not all known: their table was full, and a corrupt file may have lost sessions or findings of 2026-09-13"
		}},
		{"the first day of the period is gone", func(s *site) string {
			spare(s)
			s.counted(4, 7*aDay)
			return "sessions of 2026-10-26 were recorded and are missing"
		}},
		{"a day has expired", func(s *site) string {
			s.records(2, time.Hour, "harvest", 0)
			s.records(3, 2*aDay, "", 0)
			s.counted(4, 3*aDay)
			return hostNumber(0).String() + "\n" + hostNumber(1).String() + "\n"
		}},
		{"a crash has lost sessions", func(s *site) string {
			s.records(3, 3*aDay, "", 0)
			s.records(1, time.Hour, "harvest", 0)
			s.counted(4, 3*aDay)
			return hostNumber(0).String() + "\n"
		}},
		{"a repair has lost sessions", func(s *site) string {
			s.records(3, 3*aDay, "", 0)
			s.counted(4, 3*aDay)
			spare(s)
			s.salvaged(3 * aDay)
			return "sessions of 2026-10-30 were recorded and are missing"
		}},
		{"a repair has lost no session", func(s *site) string {
			s.records(4, 3*aDay, "", 0)
			s.records(1, time.Hour, "harvest", 0)
			s.counted(4, 3*aDay)
			s.salvaged(3 * aDay)
			return hostNumber(0).String() + "\n"
		}},
		{"a repair after the loss of state.db", func(s *site) string {
			s.memory = nil
			s.everyDay(90, 0)
			spare(s)
			s.salvaged(3 * aDay)
			return "a corrupt file may have lost sessions or findings of 2026-10-30"
		}},
		{"mail was dropped, and a day is gone", func(s *site) string {
			evict(s)
			s.records(1, 90*aDay, "", 0)
			spare(s)
			s.counted(4, 50*aDay)
			return unknown
		}},
		{"a quiet period", func(s *site) string {
			s.records(1, 90*aDay, "", 0)
			return ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			want := c.state(s)
			if s.memory != nil {
				s.save()
			}
			status, out, stderr := exportOf(t, s.dir, "plain", "--evidence", "any")
			switch fails := strings.Contains(want, " "); {
			case fails && (status != exitFailure || out != "" || !strings.Contains(stderr, want)):
				t.Errorf("status %d, %q, want %q\n%s", status, out, want, stderr)
			case !fails && (status != exitOK || out != want):
				t.Errorf("status %d, %q, want %q\n%s", status, out, want, stderr)
			}
		})
	}
}

// TestExportSum checks that accepted mail in an aggregate exempts the host. The mail may belong to
// a session without an offence, even if every session has a finding.
func TestExportSum(t *testing.T) {
	s := newSite(t)
	s.save()
	w := store.Open(s.dir, store.Options{Budget: smallBudget, Now: func() time.Time { return now }, Program: "test"})
	steps := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("scanner"), By: []byte("cidr"), Confidence: []byte("high"), Times: 1}, 0)
	for i, c := range []struct{ sessions, mails uint32 }{{2, 1}, {1, 1}, {2, 0}, {0, 1}} {
		s.id++
		r := &store.Record{Start: now.Add(-time.Hour), End: now.Add(-time.Hour), Src: netip.AddrPortFrom(hostNumber(i), 0),
			Sessions: c.sessions, Found: c.sessions, Counts: store.Counts{Mails: c.mails}}
		w.Add(r.End, s.id, store.AppendRecord(nil, r, steps))
	}
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	if status, out, stderr := exportOf(t, s.dir, "plain", "--evidence", "any"); status != exitOK || out != "11.0.0.1\n11.0.0.2\n11.0.0.3\n" {
		t.Errorf("status %d, %q\n%s", status, out, stderr)
	}
	d := statedir.Dir{Path: s.dir, Now: func() time.Time { return now }}
	why, err := d.Legitimate(netip.PrefixFrom(hostNumber(0), 32), func(*store.Record) string { return "" }, func(p string) { t.Error(p) })
	if err != nil || why != "it delivered 1 message in 90 days" {
		t.Errorf("%q, %v", why, err)
	}
}

// TestExportRules checks exports without a configuration or a running filter. An export must fail
// if rules have made decisions in the recorded sessions. Manual bans do not count.
func TestExportRules(t *testing.T) {
	for _, c := range []struct {
		step   store.Step
		status int
	}{
		{store.Step{Kind: store.KindVerdict, Text: []byte("bot")}, exitFailure},
		{store.Step{Kind: store.KindVerdict, Text: []byte("bot"), Banned: true, Session: 1}, exitFailure},
		{store.Step{Kind: store.KindVerdict, Text: []byte("noisy"), Banned: true}, exitOK},
	} {
		s := newSite(t)
		s.save()
		s.records(1, time.Hour, "harvest", 0)
		w := store.Open(s.dir, store.Options{Budget: smallBudget, Now: func() time.Time { return now }, Program: "test"})
		r := &store.Record{Start: now.Add(-aDay), End: now.Add(-aDay), Src: netip.AddrPortFrom(hostNumber(7), 25)}
		w.Add(r.End, 99, store.AppendRecord(nil, r, store.AppendStep(nil, &c.step, 0)))
		if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"plain"}, {"plain", "--evidence", "any"}} {
			status, _, stderr := exportOf(t, s.dir, args...)
			if want := map[int]string{exitOK: "no configuration: ", exitFailure: "the records contain rule decisions"}[c.status]; status != c.status || !strings.Contains(stderr, want) {
				t.Errorf("%+v, %v: status %d, %s", c.step, args, status, stderr)
			}
		}
	}
}

// counted adds n sessions to a day's counters.
func (s *site) counted(n int, ago time.Duration) {
	for range n {
		s.memory.Days.Add(&memory.Ended{Whole: true}, now.Add(-ago).UnixMicro())
	}
}

// salvaged creates a quarantined file for a day, as a repair does.
func (s *site) salvaged(ago time.Duration) {
	s.t.Helper()
	name := filepath.Join(s.dir, "sessions", now.Add(-ago).Format(time.DateOnly)+".db.damaged-20261101T000000000Z.salvaged")
	if err := os.WriteFile(name, []byte("corrupt"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// damage corrupts a row in the table of peers.
func (s *site) damage() {
	s.t.Helper()
	db, err := bbolt.Open(filepath.Join(s.dir, "state.db"), 0, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("peers"))
		key, _ := b.Cursor().First()
		return b.Put(key, []byte("short"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// repair repairs all files.
func (s *site) repair() {
	s.t.Helper()
	var e bytes.Buffer
	if status := program(&e).main([]string{"-s", s.dir, "fsck", "--repair"}, os.Stderr); status == exitUsage || e.Len() > 0 && !strings.Contains(e.String(), "state.db is missing") {
		s.t.Fatal(status, e.String())
	}
}

// nameless records an aggregate of many hosts' sessions.
func (s *site) nameless(ago time.Duration, mails uint32) {
	s.t.Helper()
	w := store.Open(s.dir, store.Options{Budget: smallBudget, Now: func() time.Time { return now }, Program: "test"})
	s.id++
	r := &store.Record{Start: now.Add(-ago), End: now.Add(-ago), Sessions: 9, Counts: store.Counts{Mails: mails}}
	w.Add(r.End, s.id, store.AppendRecord(nil, r, nil))
	if err := errors.Join(w.Flush(s.t.Context()), w.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// everyDay records a session on each of the last n days, omitting the day except.
func (s *site) everyDay(n, except int) {
	s.t.Helper()
	w := store.Open(s.dir, store.Options{Budget: smallBudget, Now: func() time.Time { return now }, Program: "test"})
	for i := n; i > 0; i-- {
		if i == except {
			continue
		}
		s.id++
		at := now.Add(-time.Duration(i) * aDay)
		w.Add(at, s.id, store.AppendRecord(nil, &store.Record{Start: at, End: at, Src: netip.AddrPortFrom(hostNumber(1<<22), 25)}, nil))
	}
	if err := errors.Join(w.Flush(s.t.Context()), w.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// file returns the path and contents of a day's only file.
func (s *site) file(ago time.Duration) (name string, content []byte) {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.dir, "sessions", now.Add(-ago).Format(time.DateOnly)+"*"))
	if err != nil || len(all) != 1 {
		s.t.Fatal(all, err)
	}
	if content, err = os.ReadFile(all[0]); err != nil {
		s.t.Fatal(err)
	}
	return all[0], content
}

// emptyDay corrupts all records of a day, repairs the day, and removes the quarantined file.
func (s *site) emptyDay(ago time.Duration) {
	s.t.Helper()
	name, content := s.file(ago)
	s.repairDay(name, make([]byte, len(content)))
}

// cutDay corrupts the finding in one record of a day, repairs the day, and removes the quarantined
// file.
func (s *site) cutDay(ago time.Duration) {
	s.t.Helper()
	name, content := s.file(ago)
	i := bytes.LastIndex(content, []byte("\aharvest"))
	if i < 0 {
		s.t.Fatal("no finding")
	}
	content[i] = 0x7f // corrupts the length of the text
	s.repairDay(name, content)
}

func (s *site) repairDay(name string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.repair()
	aside, err := filepath.Glob(filepath.Join(s.dir, "sessions", "*.salvaged"))
	if err != nil || len(aside) != 1 {
		s.t.Fatal(aside, err)
	}
	if err := os.Remove(aside[0]); err != nil {
		s.t.Fatal(err)
	}
}

// TestExportGapZones checks that an export detects lost days in every time zone. The remedy in the
// error must work.
func TestExportGapZones(t *testing.T) {
	for _, name := range []string{"UTC", "Asia/Tokyo", "America/Los_Angeles"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for what, lose := range map[string]func(*site){
			"a day": func(s *site) {
				file, _ := s.file(3 * aDay)
				if err := os.Remove(file); err != nil {
					s.t.Fatal(err)
				}
			},
			"findings": func(s *site) { s.cutDay(3 * aDay) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				s := newSite(t)
				for i := 6; i >= 0; i-- {
					ago := time.Duration(i)*aDay + time.Hour
					s.records(2, ago, "harvest", 0)
					s.counted(2, ago)
				}
				s.save()
				both := hostNumber(0).String() + "\n" + hostNumber(1).String() + "\n"
				if status, out, stderr := exportIn(t, zone, s.dir, "plain", "--evidence", "any"); status != exitOK || out != both {
					t.Fatalf("before: status %d, %q, %s", status, out, stderr)
				}
				lose(s)
				status, out, stderr := exportIn(t, zone, s.dir, "plain", "--evidence", "any")
				const advice = " of 2026-10-30"
				if status != exitFailure || out != "" || !strings.Contains(stderr, advice) {
					t.Fatalf("status %d, %q, %s", status, out, stderr)
				}
				for _, flag := range []string{"--since ", "--accept-loss "} {
					_, value, _ := strings.Cut(stderr, flag)
					value, _, _ = strings.Cut(strings.TrimSpace(value), ",")
					if status, out, stderr := exportIn(t, zone, s.dir, "plain", "--evidence", "any", strings.TrimSpace(flag), value); status != exitOK || out != both {
						t.Errorf("%s%s: status %d, %q, %s", flag, value, status, out, stderr)
					}
				}
				if status, _, _ := exportIn(t, zone, s.dir, "plain", "--evidence", "any", "--accept-loss", "2026-10-29"); status != exitFailure {
					t.Errorf("another day is accepted: status %d", status)
				}
			})
		}
	}
}

// TestExportWithOffences checks that an export accepts rows with an offence but without a ban. If a
// rule bans after the second offence, the first offence creates such a row.
func TestExportWithOffences(t *testing.T) {
	s := newSite(t)
	at := now.Add(-time.Hour).UnixMicro()
	for i, ladder := range [][]time.Duration{{0, aDay}, {aDay}} {
		s.memory.Bans.Add(&memory.Client{Addr: hostNumber(i)}, memory.BanRequest{Ladder: ladder, Rule: "bot"}, at)
	}
	s.records(1, time.Hour, "", 0)
	s.save()
	status, out, stderr := exportOf(t, s.dir, "plain")
	if status != 0 || !strings.HasSuffix(strings.TrimSpace(out), hostNumber(1).String()) || strings.Contains(out, hostNumber(0).String()) {
		t.Errorf("status %d, %s\n%s", status, stderr, out)
	}
}

// TestExportFuture checks that a finding in the future is omitted, because its entry
// would never expire.
func TestExportFuture(t *testing.T) {
	s := newSite(t)
	s.records(2, time.Hour, "harvest", 0)
	s.records(1, -3650*aDay, "harvest", 0) // from the first host
	s.save()
	later := now
	defer func(at time.Time) { now = at }(now)
	now = now.Add(20 * aDay) // today's findings have expired
	if status, out, stderr := exportOf(t, s.dir, "--evidence", "any", "--ttl", "7d", "--since", later.Add(-aDay).Format(time.RFC3339), "-v", "plain"); status != 0 ||
		strings.Contains(out, hostNumber(0).String()) || !strings.Contains(stderr, "in the future") {
		t.Errorf("status %d, %s\n%s", status, stderr, out)
	}
}
