package report

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// tally returns a step in an aggregate.
func tally(s store.Step, times, count, most uint32) store.Step {
	s.Times, s.Count, s.Most = times, count, most
	return s
}

// sum returns an aggregate.
func sum(t *testing.T, src string, r store.Record, tallies ...store.Step) *store.Record {
	t.Helper()
	if src != "" {
		r.Src = netip.AddrPortFrom(netip.MustParseAddr(src), 0)
	}
	var steps []byte
	for i := range tallies {
		steps = store.AppendStep(steps, &tallies[i], 0)
	}
	r.End = noon
	r.Start = noon.Add(-time.Hour)
	d, err := store.Decode(store.AppendKey(nil, r.End, 1), store.AppendRecord(nil, &r, steps))
	if err != nil {
		t.Fatal(err)
	}
	return &d
}

func reference(id uint64) store.Step {
	return store.Step{Kind: store.KindReference, Session: id}
}

// TestSums checks that the report's lists include the sessions in aggregates.
func TestSums(t *testing.T) {
	banned := rejected("harvest", true)
	banned.Banned = true
	org := func(name string) store.Step {
		s := foundStep("scanner", "high")
		s.Org = []byte(name)
		return s
	}
	c := NewCollector(memory.Number)
	visitor := c.Visitor()
	for _, r := range []*store.Record{
		// The aggregate has 1,000 sessions from a harvester. A rule rejected
		// 300 of them, and a ban rejected 700.
		sum(t, "192.0.2.1", store.Record{Sessions: 1000, Found: 300, Rejected: 1000, Counts: store.Counts{RcptPermfail: 11_415, RcptOK: 3}},
			tally(helo("a.example.net"), 600, 0, 0), tally(helo("b.example.net"), 390, 0, 0), tally(helo(""), 10, 0, 0),
			tally(rcpt("@example.org", smtp.ResultPermfail, 0, ""), 300, 11_400, 50),
			tally(rcpt("@example.org", smtp.ResultOK, 0, ""), 3, 3, 1),
			tally(rcpt("@elsewhere.example", smtp.ResultPermfail, 0, ""), 10, 10, 1),
			tally(rcpt("*", smtp.ResultPermfail, 0, ""), 5, 5, 1),
			tally(foundStep("harvest", "high"), 300, 0, 0),
			tally(rejected("harvest", true), 300, 0, 0), tally(banned, 700, 0, 0)),
		// The same two rules rejected 40 of 50 sessions. Some references to rejected
		// sessions are missing.
		sum(t, "192.0.2.2", store.Record{Sessions: 50, Found: 45, Rejected: 40},
			append([]store.Step{tally(org("One"), 25, 0, 0), tally(org("Two"), 20, 0, 0), tally(rejected("harvest", true), 35, 0, 0), tally(rejected("probe", true), 20, 0, 0)},
				slices.Repeat([]store.Step{reference(7)}, 25)...)...),
		record(t, store.Record{Src: netip.MustParseAddrPort("192.0.2.3:1")}, helo("a.example.net"), rcpt("x@example.org", smtp.ResultPermfail, 550, "")),
	} {
		visit := visitor.Session
		if r.Sessions > 0 {
			visit = visitor.Sum
		}
		if err := visit(r); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Summary(noon.Add(-time.Hour), noon, 10, nil)
	if s.Remote.Sessions != 1051 || s.Remote.Found != 345 || s.Remote.Refused != 1040 || s.Aggregated != 1050 {
		t.Errorf("totals: %+v, %d aggregated", s.Remote, s.Aggregated)
	}
	if want := []Name{{"a.example.net", 601, ""}, {"b.example.net", 390, ""}}; !slices.Equal(s.Helo, want) || s.NotListed["HELO names"] != 10 {
		t.Errorf("HELO: %+v, %v", s.Helo, s.NotListed)
	}
	if len(s.Harvest) != 1 || s.Harvest[0].Refused != 11_400 || s.Harvest[0].Sessions != 300 || s.Harvest[0].Domains[0] != "example.org" {
		t.Errorf("harvest: %+v", s.Harvest)
	}
	if len(s.Relay) != 1 || s.Relay[0].Refused != 10 || s.Relay[0].Domains[0] != "elsewhere.example" || s.NotListed["domains of recipients"] != 5 {
		t.Errorf("relay: %+v, %v", s.Relay, s.NotListed)
	}
	if want := []Name{{"harvest", 300, ""}, {"scanner", 45, ""}}; !slices.Equal(s.Evidence, want) {
		t.Errorf("evidence: %+v", s.Evidence)
	}
	if want := []Name{{"One", 25, "scanner"}, {"Two", 20, "scanner"}}; !slices.Equal(s.Organisations, want) {
		t.Errorf("organisations: %+v", s.Organisations)
	}
	if want := []Rule{{"harvest", 1035, 0, 0, 0}, {"probe", 20, 0, 0, 0}}; !slices.Equal(s.Rules, want) {
		t.Errorf("rules: %+v", s.Rules)
	}
}

// TestCommonSum checks that an aggregate of many sources counts towards the totals and
// the number of sources.
func TestCommonSum(t *testing.T) {
	c := NewCollector(memory.Number)
	var many sketch.Sketch
	add := func(i int) netip.Addr {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		many.Add(memory.Number(a))
		return a
	}
	for i := range 10_000 {
		a := add(i)
		if i < 1000 {
			_ = c.Add(&store.Record{End: noon, Src: netip.AddrPortFrom(a, 1)})
		}
	}
	_ = c.Add(sum(t, "", store.Record{Sessions: 20_000, Found: 5, Sketch: many[:]}, tally(foundStep("cloud", "low"), 5, 0, 0),
		tally(rcpt("@example.org", smtp.ResultOK, 0, ""), 3, 3, 1), tally(rcpt("@example.org", smtp.ResultPermfail, 0, ""), 9, 9, 9)))
	s := c.Summary(noon, noon, 10, nil)
	if s.Remote.Sessions != 21_000 || s.Remote.Found != 5 || len(s.Evidence) != 1 || s.NotListed["attempts"] != 9 || len(s.Sources) != 10 || s.More["sources"] != 990 {
		t.Errorf("%+v, %+v, %v", s.Remote, s.Evidence, s.NotListed)
	}
	if s.AddressesError != 4 || s.Addresses < 9_600 || s.Addresses > 10_400 {
		t.Errorf("%d addresses, within %d %%", s.Addresses, s.AddressesError)
	}
	out := inText(t, s)
	if !strings.Contains(out, "Other hosts: about ") || !strings.Contains(out, " addresses (within 4 %); 5 sessions with findings, 0") {
		t.Error(out)
	}
}

// TestAddresses checks that the number of addresses is exact up to 500,000. For more
// addresses, the report must state the possible error.
func TestAddresses(t *testing.T) {
	if testing.Short() {
		t.Skip("counts two million sessions")
	}
	c := NewCollector(memory.Number)
	exact := 0
	for i := range 2_000_000 {
		var b [16]byte
		b[0], b[5], b[6], b[7] = 0x20, byte(i>>16), byte(i>>8), byte(i)
		for n := range 1 + i%2 {
			b[15] = byte(n) // the same source
			a := netip.AddrFrom16(b)
			if i%2 == 0 {
				a = netip.AddrFrom4([4]byte(b[4:]))
			}
			_ = c.Add(&store.Record{End: noon, Src: netip.AddrPortFrom(a, 1)})
		}
		if near := maxExact - i; i%100_000 != 0 && (near < -5 || near > 5) {
			continue
		}
		n, percent := c.clients().count()
		if percent == 0 {
			exact = n
		}
		if max(n-i-1, i+1-n)*100 > percent*(i+1) {
			t.Fatalf("%d addresses: %d, within %d %%", i+1, n, percent)
		}
	}
	if exact != maxExact {
		t.Errorf("exact up to %d", exact)
	}
}

// sampleSums returns an aggregate of one host and an aggregate of many hosts.
func sampleSums(t *testing.T) map[string]*store.Record {
	auth := func(user string) store.Step {
		return store.Step{Kind: store.KindAuth, Text: []byte(user), Result: smtp.ResultFail}
	}
	ban := store.Step{Kind: store.KindBan, Text: []byte("harvest"), Prefix: netip.MustParsePrefix("192.0.2.1/32"), Until: noon.Add(time.Hour), Enforced: true}
	tallies := []store.Step{
		tally(helo("a.example.net"), 600, 0, 0), tally(helo(hostile), 390, 0, 0), tally(helo(""), 10, 0, 0),
		tally(rcpt("@example.org", smtp.ResultPermfail, 0, ""), 300, 11_400, 50), tally(rcpt("@example.org", smtp.ResultOK, 0, ""), 3, 3, 1),
		tally(rcpt("", smtp.ResultPermfail, 0, ""), 10, 10, 1), tally(rcpt("*", smtp.ResultPermfail, 0, ""), 5, 5, 1),
		tally(auth("admin"), 10, 30, 3), tally(auth(""), 1, 1, 1),
		tally(foundStep("harvest", "high"), 300, 0, 0), tally(rejected("harvest", true), 300, 0, 0), tally(ban, 1, 0, 0),
	}
	for i := range 25 {
		tallies = append(tallies, reference(0xf00+uint64(i)))
	}
	var many sketch.Sketch
	for i := range 100 {
		many.Add(uint64(i))
	}
	return map[string]*store.Record{
		"sum": sum(t, "192.0.2.1", store.Record{Sessions: 1000, Found: 300, RDNS: []byte("a.example.net"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingRejected,
			Dst: netip.MustParseAddrPort("198.51.100.25:25"), Counts: store.Counts{Commands: 5000, RcptPermfail: 11_415, RcptOK: 3, AuthFail: 31, Mails: 3}}, tallies...),
		"sum-common": sum(t, "", store.Record{Sessions: 500, Found: 5, Sketch: many[:]}, tally(helo("a.example.net"), 600, 0, 0), reference(0xf00)),
	}
}

// TestSumViews checks the views of aggregates.
func TestSumViews(t *testing.T) {
	for name, r := range sampleSums(t) {
		v := NewView(r)
		var show, lines, table bytes.Buffer
		write, end := CSV(&table)
		if err := errors.Join(Show(&show, v, zone), Lines(&lines)(v), write(v), end()); err != nil {
			t.Fatal(err)
		}
		golden(t, "show-"+name, show.Bytes())
		checkText(t, show.String())
		golden(t, "dump-json-"+name, lines.Bytes())
		checkNoRaw(t, lines.Bytes())
		golden(t, "dump-csv-"+name, table.Bytes())
	}
}

// TestOrganisationsOfSums checks that the report counts organisations that a full
// aggregate omits.
func TestOrganisationsOfSums(t *testing.T) {
	named := foundStep("scanner", "high")
	named.Org = []byte("Example Scans")
	c := NewCollector(memory.Number)
	if err := c.Add(sum(t, "", store.Record{Sessions: 9}, tally(named, 2, 0, 0), tally(foundStep("scanner", "high"), 3, 0, 0), tally(foundStep("no-mail", "high"), 4, 0, 0))); err != nil {
		t.Fatal(err)
	}
	s := c.Summary(noon, noon, 10, nil)
	if len(s.Organisations) != 1 || s.Organisations[0].Sessions != 2 || s.NotListed["organisations"] != 3 {
		t.Errorf("organisations %v, not listed %v", s.Organisations, s.NotListed)
	}
}

// TestNamesOfSums checks that the report shows the same names for a session with a separate record and
// for a session in an aggregate, although aggregates truncate names. A greeting without a name must
// not be counted.
func TestNamesOfSums(t *testing.T) {
	long := strings.Repeat("a", 300)
	in := store.Record{Src: netip.MustParseAddrPort("192.0.2.1:1"), Counts: store.Counts{RcptPermfail: 1}}
	whole := record(t, in, helo(long), helo(""), rcpt("a@"+long, smtp.ResultPermfail, 550, ""))
	c := NewCollector(memory.Number)
	for _, r := range []*store.Record{whole, sum(t, "192.0.2.1", store.Record{Sessions: 2, Counts: in.Counts},
		tally(helo(long[:128]), 2, 0, 0), tally(rcpt("@"+long[:127], smtp.ResultPermfail, 0, ""), 2, 2, 1))} {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Summary(noon, noon, 10, nil)
	if len(s.Helo) != 1 || s.Helo[0].Sessions != 3 || len(s.NotListed) > 0 {
		t.Errorf("HELO names %v, not listed %v", s.Helo, s.NotListed)
	}
	if len(s.Relay) != 1 || s.Relay[0].Refused != 3 || len(s.Relay[0].Domains) != 1 {
		t.Errorf("relay %+v", s.Relay)
	}
}
