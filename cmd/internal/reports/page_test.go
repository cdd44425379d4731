package reports

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/report"
)

// fillDays writes sessions from different hosts for the days up to now. days contains the number of
// sessions per day, starting with the latest day. Every tenth session delivers a message.
func fillDays(t *testing.T, dir string, days ...int) {
	t.Helper()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	id := uint64(0)
	for day := len(days) - 1; day >= 0; day-- {
		for i := range days[day] {
			id++
			end := now.Add(-time.Duration(day)*24*time.Hour - time.Duration(days[day]-i)*time.Second)
			r := store.Record{ID: id, Start: end, End: end, Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 25), RDNS: fmt.Appendf(nil, "host-%d.example.net", i)}
			b := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("no-mail"), Confidence: []byte("high")}, 0)
			switch {
			case i%10 == 0:
				r.Counts.Mails, b = 1, nil
			case i%10 == 1:
				b = store.AppendStep(b, &store.Step{Kind: store.KindVerdict, Text: []byte("tight"), Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Enforced: true}, 0)
			}
			w.Add(end, id, store.AppendRecord(nil, &r, b))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// corrupt overwrites a file.
func corrupt(name string) error { return os.WriteFile(name, []byte("This is not a database."), 0o644) }

// ban bans a host in dir's state.
func ban(t *testing.T, dir string, hosts map[string]bool) {
	t.Helper()
	m := memory.New()
	for host, observe := range hosts {
		m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(host)}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "tight", Observe: observe}, now.Add(-time.Hour).UnixMicro())
	}
	f := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite})
	if err := f.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func pageOf(t *testing.T, dir string, limit int, selected selector.Selector, settings rules.Settings) *report.Page {
	t.Helper()
	s := Source{Dir: &statedir.Dir{Path: dir, Now: func() time.Time { return now }, Settings: settings, Config: "/etc/scanwatch.conf"}, Selector: &selected, Zone: time.UTC, Host: "mx.example.org"}
	r, err := s.Read(true)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Page(limit)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBefore checks the figures for the preceding period. If the records do not reach far enough
// back, the figures must be omitted.
func TestBefore(t *testing.T) {
	day := 24 * time.Hour
	full := t.TempDir()
	fillDays(t, full, 30, 20, 1)
	short := t.TempDir()
	fillDays(t, short, 30, 20)
	for _, c := range []struct {
		name    string
		dir     string
		s       selector.Selector
		missing string
		want    report.Figures
	}{
		{"a day", full, selector.Selector{Since: now.Add(-day)}, "", report.Figures{Sessions: 20, Addresses: 20, Found: 18, Refused: 2, Mails: 2}},
		{"with a selection", full, selector.Selector{Since: now.Add(-day), Src: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/30")}}, "",
			report.Figures{Sessions: 4, Addresses: 4, Found: 3, Refused: 1, Mails: 1}},
		{"a past day", full, selector.Selector{Since: now.Add(-2 * day), Until: now.Add(-day)}, "the records do not reach back to 2026-10-30 12:00", report.Figures{}},
		{"the filter is new", short, selector.Selector{Since: now.Add(-day)}, "the records do not reach back to 2026-10-31 12:00", report.Figures{}},
	} {
		p := pageOf(t, c.dir, 10, c.s, rules.Settings{})
		if p.Before.Missing != c.missing || p.Before.Figures != c.want || !p.Before.Until.Equal(c.s.Since) {
			t.Errorf("%s: %+v, want %+v %q", c.name, p.Before, c.want, c.missing)
		}
	}
	// A period without a start has no preceding period.
	if p := pageOf(t, full, 10, selector.Selector{}, rules.Settings{}); p.Before != (report.Before{}) {
		t.Errorf("all sessions: %+v", p.Before)
	}
	// Corrupt a day in the preceding period.
	if err := corrupt(filepath.Join(full, "sessions", "2026-11-01.db")); err != nil {
		t.Fatal(err)
	}
	if p := pageOf(t, full, 10, selector.Selector{Since: now.Add(-day)}, rules.Settings{}); p.Before.Missing != "some records of that period are missing" {
		t.Errorf("a corrupt file: %+v", p.Before)
	}
}

// TestPage checks the parts of the page that are not in the summary.
func TestPage(t *testing.T) {
	dir := t.TempDir()
	fillDays(t, dir, 30)
	ban(t, dir, map[string]bool{"192.0.2.1": false, "192.0.2.2": true, "198.51.100.1": false})
	p := pageOf(t, dir, 100, selector.Selector{Since: now.Add(-24 * time.Hour)}, rules.Settings{Mode: rules.Enforce, Country: "missing.mmdb"})
	if got, want := p.Site, (report.Site{Made: now, Server: "mx.example.org", Mode: "enforce", Policy: "/etc/scanwatch.conf"}); got != want {
		t.Errorf("site %+v, want %+v", got, want)
	}
	if all := strings.Join(p.Problems, "\n"); !strings.Contains(all, "database /etc/missing.mmdb does not exist") {
		t.Errorf("problems: %s", all)
	}
	for _, b := range p.Bans.List {
		if name := map[string]string{"192.0.2.1": "host-1.example.net", "192.0.2.2": "host-2.example.net"}[b.Prefix]; b.Name != name || b.Observed != (b.Prefix == "192.0.2.2") || !b.Until.Equal(now.Add(23*time.Hour)) {
			t.Errorf("ban %+v", b)
		}
	}
	if len(p.Bans.List) != 3 || p.Bans.More != 0 || p.Bans.Problem != "" {
		t.Errorf("%d bans, %d more, %s", len(p.Bans.List), p.Bans.More, p.Bans.Problem)
	}
	banned := 0
	for _, x := range p.Scanning {
		if x.Banned != (report.Time{}) {
			if banned++; x.Address != "192.0.2.1" || !x.Banned.Equal(now.Add(23*time.Hour)) {
				t.Errorf("%s is banned until %v", x.Address, x.Banned)
			}
		}
	}
	if banned != 1 || len(p.Scanning) != 27 || len(p.GoodMail) != 3 || len(p.Rejections) != 3 {
		t.Errorf("%d banned of %d, %d with mail, %d rejections", banned, len(p.Scanning), len(p.GoodMail), len(p.Rejections))
	}
	if err := p.HTML(new(bytes.Buffer), time.UTC); err != nil {
		t.Error(err)
	}
	if p := pageOf(t, dir, 2, selector.Selector{Since: now.Add(-24 * time.Hour)}, rules.Settings{}); len(p.Bans.List) != 2 || p.Bans.More != 1 || len(p.Scanning) != 2 {
		t.Errorf("limit 2: %d bans, %d more, %d hosts", len(p.Bans.List), p.Bans.More, len(p.Scanning))
	}
}

// TestBansUnknown checks that the page reports the bans as unknown if the state is corrupt.
func TestBansUnknown(t *testing.T) {
	dir := t.TempDir()
	fillDays(t, dir, 3)
	ban(t, dir, nil)
	if err := corrupt(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	p := pageOf(t, dir, 10, selector.Selector{Since: now.Add(-24 * time.Hour)}, rules.Settings{})
	if p.Bans.Problem == "" || p.Bans.Problem != text.Escape(p.Bans.Problem) {
		t.Errorf("bans: %+v", p.Bans)
	}
}

// TestBanHosts checks the name that is shown for a banned /64. The name must not be the proven name
// of a single host. If the hosts have different names, no name must be shown.
func TestBanHosts(t *testing.T) {
	record := func(src, rdns string, f smtp.FCrDNS, org string) *store.Record {
		var b []byte
		if org != "" {
			b = store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("botnet-helo"), Org: []byte(org)}, 0)
		}
		r := &store.Record{Start: now, End: now, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 25), RDNS: []byte(rdns), FCrDNS: f}
		d, err := store.Decode(store.AppendKey(nil, now, 1), store.AppendRecord(nil, r, b))
		if err != nil {
			t.Fatal(err)
		}
		return &d
	}
	var bans []memory.Ban
	for _, p := range []string{"2001:db8:1::/64", "2001:db8:2::/64", "2001:db8:3::25/128", "192.0.2.7/32", "198.51.100.0/24"} {
		bans = append(bans, memory.Ban{Prefix: netip.MustParsePrefix(p)})
	}
	hosts, v := BanHosts(bans, func(a netip.Addr) string {
		if a.Is4() {
			return "Example\x1b AS"
		}
		return ""
	})
	for _, r := range []*store.Record{
		record("2001:db8:1::25", "mail.example.org", smtp.FCrDNSPass, ""),
		record("2001:db8:1::66", "", smtp.FCrDNSFail, "Bot"),
		record("2001:db8:2::1", "one.example.net", smtp.FCrDNSFail, ""),
		record("2001:db8:2::2", "two.example.net", smtp.FCrDNSFail, ""),
		record("2001:db8:2::2", "two.example.net", smtp.FCrDNSFail, ""),
		record("2001:db8:3::25", "mail.example.com", smtp.FCrDNSPass, ""),
		record("192.0.2.7", "old.example.net", smtp.FCrDNSFail, ""),
		record("192.0.2.7", "\x1bnew.example.net", smtp.FCrDNSFail, ""),
	} {
		if err := v.Session(r); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]string{
		"2001:db8:1::/64": "(Bot)", "2001:db8:2::/64": "", "2001:db8:3::25/128": "mail.example.com",
		"192.0.2.7/32": `\x1bnew.example.net (Example\x1b AS)`, "198.51.100.0/24": `(Example\x1b AS)`,
	} {
		if got := hosts[netip.MustParsePrefix(p)].String(); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}
