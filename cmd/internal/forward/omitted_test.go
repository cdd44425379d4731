package forward

import (
	"bytes"
	"errors"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/exportlist"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/export"
	"scanwatch/tests/simulate"
)

// TestOmittedByExport compares reports and exports for the same sessions. A host that an export
// omits must not be reported. An export omits hosts that a pass statement exempts by address,
// proven name or listener, and hosts whose proven name is in a domain with recent mail.
func TestOmittedByExport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	preset, err := os.ReadFile("../../../rules/policies/standard.conf")
	if err == nil {
		preset = append(bytes.Replace(preset, []byte("mode observe"), []byte("mode enforce"), 1),
			"listener inside port 2525\npass on inside match src 203.0.113.0/24\npass from 198.51.100.7\n"...)
		err = os.WriteFile(conf, preset, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	policy, err := exportlist.LoadPolicy(conf)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	m := memory.New()
	r := newReporter(&queue{dir: t.TempDir()})
	now := noon
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	table := simulate.NewFilter(filter.Options{Lists: func() *lookup.Lists { return lists }, Log: func([]byte) {}, Memory: m, Watch: r.add,
		Record: func(end time.Time, id uint64, value []byte) { w.Add(end, id, slices.Clone(value)) }})
	table.Use(&filter.Settings{Policy: policy.Policy, ASN: policy.ASN, Country: policy.Country})
	server := simulate.NewLive(table, smtpd.Requests(filter.Phases(policy.Policy)), noon.AddDate(0, 0, -4))
	server.Exists = func(local string) bool { return local == "alice" }
	for i := range 3 { // the domain becomes known
		server.WaitUntil(noon.AddDate(0, 0, -3+i))
		c := server.Connect(simulate.Host{Src: netip.MustParseAddr("198.51.100.40"), RDNS: "mx1.friendly.example", Helo: "mx1.friendly.example"})
		c.Ehlo()
		c.Mail("bob@friendly.example")
		c.Rcpt("alice@example.org")
		c.Data()
		c.Quit()
	}
	server.WaitUntil(noon)
	for _, h := range []simulate.Host{
		{Src: netip.MustParseAddr("198.51.100.1"), RDNS: "host.attack.example"},
		{Src: netip.MustParseAddr("198.51.100.2"), RDNS: "mail-ot1-f41.google.com"},
		{Src: netip.MustParseAddr("198.51.100.3"), RDNS: "mail-ot1-f41.google.com", FCrDNS: "fail"},
		{Src: netip.MustParseAddr("198.51.100.4"), RDNS: "mx2.friendly.example"},
		{Src: netip.MustParseAddr("203.0.113.5"), Port: 2525},
		{Src: netip.MustParseAddr("198.51.100.7")},
		{Src: netip.MustParseAddr("2001:db8::5"), RDNS: "mail-ot1-f42.google.com"},
		{Src: netip.MustParseAddr("2001:db8::6")}, // in the /64 of an exempt host
		{Src: netip.MustParseAddr("2001:db8:1::6")},
	} {
		c := server.Connect(h)
		c.Command("GET / HTTP/1.1", "500 5.5.1 Invalid command: Command unrecognized")
		c.Leave()
	}
	now = server.Now().Add(time.Minute)
	closed := server.Close()
	table.Stop()
	s := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	if err := errors.Join(closed, s.Flush(t.Context()), w.Flush(t.Context()), w.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	list, omitted, err := exportlist.Build(exportlist.Options{Dir: &statedir.Dir{Path: dir, Settings: rules.Settings{}, Now: func() time.Time { return now }}, Policy: policy,
		Selector: &selector.Selector{Since: noon.Add(-time.Hour), Any: true}, Found: true, Bans: true, Confidence: export.Confidence("high"), TTL: time.Hour, Progress: new(output.Progress), Warn: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	var exported, reported []string
	for _, e := range list.Entries {
		exported = append(exported, e.Host.String())
	}
	exempt := config.NewExempt(policy.Policy, nil) // the filter also exempts these addresses
	for _, d := range r.due(now, nil) {
		if reason := exempt.Reason(memory.Source(d.IP), false); reason != "" {
			continue
		}
		reported = append(reported, d.IP.String())
	}
	slices.Sort(exported)
	slices.Sort(reported)
	if want := []string{"198.51.100.1", "198.51.100.3", "2001:db8:1::6"}; !slices.Equal(reported, want) || !slices.Equal(exported, want) {
		t.Errorf("reported %s, exported %s, want %s; omitted %v", reported, exported, want, omitted)
	}
}
