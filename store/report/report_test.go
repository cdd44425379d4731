package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

var zone = time.FixedZone("", 2*3600)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

// record encodes a record as the filter does and decodes it as a reader
// does.
func record(t testing.TB, r store.Record, steps ...store.Step) *store.Record {
	t.Helper()
	var b []byte
	for i := range steps {
		s := &steps[i]
		b = store.AppendStep(b, s, 12*time.Millisecond)
		c := &r.Counts
		switch s.Kind {
		case store.KindRcpt:
			c.Commands++
			switch s.Result {
			case smtp.ResultOK:
				c.RcptOK++
			case smtp.ResultPermfail:
				c.RcptPermfail++
				c.Failed++
			case smtp.ResultTempfail:
				c.RcptTempfail++
				c.Failed++
			}
		case store.KindCommit:
			c.Mails++
		case store.KindAuth:
			c.Commands++
			if s.Result == smtp.ResultPass {
				c.AuthPass++
			} else {
				c.AuthFail++
				c.Failed++
			}
		case store.KindCommand:
			c.Commands++
			c.Unknown++
			c.Failed++
		case store.KindHelo, store.KindMail, store.KindData, store.KindQuit:
			c.Commands++
		}
	}
	if r.End.IsZero() {
		r.End = noon
	}
	if r.Start.IsZero() {
		r.Start = r.End.Add(-time.Second)
	}
	if !r.Dst.IsValid() && !r.Local {
		r.Dst = netip.MustParseAddrPort("198.51.100.25:25")
	}
	d, err := store.Decode(store.AppendKey(nil, r.End, r.ID), store.AppendRecord(nil, &r, b))
	if err != nil {
		t.Fatal(err)
	}
	return &d
}

func helo(name string) store.Step {
	return store.Step{Kind: store.KindHelo, Arg: []byte("EHLO"), Text: []byte(name), Result: smtp.ResultOK, Code: 250}
}

func mail(from string) store.Step {
	return store.Step{Kind: store.KindMail, Text: []byte(from), Result: smtp.ResultOK, Code: 250, MsgID: 0x1a2b3c4d}
}

func rcpt(to string, result smtp.Result, code uint32, reply string) store.Step {
	return store.Step{Kind: store.KindRcpt, Text: []byte(to), Result: result, Code: code, Reply: []byte(reply)}
}

// hostile is text with bytes that hostile clients send.
const hostile = "evil\x1b]0;owned\x07\r\n\xff\u202egnp.exe\u200b\\|\u00a0☃" // escape sequence, line end, bad UTF-8, direction, invisible

// sample returns sessions of all kinds.
func sample(t testing.TB) map[string]*store.Record {
	scanner := netip.MustParseAddrPort("192.0.2.7:4711")
	many := []store.Step{helo("harvester.example.net"), mail("")}
	for i := range 50 {
		many = append(many, rcpt(fmt.Sprintf("user%02d@Example.ORG", i), smtp.ResultPermfail, 550, map[bool]string{true: "Invalid recipient"}[i == 0]))
	}
	many = append(many,
		store.Step{Kind: store.KindFinding, Text: []byte("harvest"), Arg: []byte("RCPT TO:<user05@Example.ORG>"), By: []byte("recipients")},
		store.Step{Kind: store.KindRollback, MsgID: 1})
	long := netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535")
	return map[string]*store.Record{
		"good": record(t, store.Record{ID: 0x1001, Src: netip.MustParseAddrPort("203.0.113.5:2525"), RDNS: []byte("mail.example.com"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingQuit},
			store.Step{Kind: store.KindGreeting, Text: []byte("mx.example.org")},
			helo("mail.example.com"),
			store.Step{Kind: store.KindTLS, Text: []byte("TLSv1.3:TLS_AES_256_GCM_SHA384:256")},
			mail("alice@example.com"), rcpt("bob@example.org", smtp.ResultOK, 250, "2.1.5 Destination address valid"),
			store.Step{Kind: store.KindData, Result: smtp.ResultOK, Code: 354},
			store.Step{Kind: store.KindCommit, Size: 1234}, store.Step{Kind: store.KindQuit, Code: 221, Reply: []byte("2.0.0 Bye")}),
		"scanner": record(t, store.Record{ID: 0x1002, Src: scanner, RDNS: []byte("scan-01.shadowserver.org"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingDropped},
			store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Arg: []byte("scan-01.shadowserver.org"), Org: []byte("Shadowserver"), By: []byte("rdns"), Match: []byte(".shadowserver.org"), Confidence: []byte("high")},
			helo("scan-01.shadowserver.org"), store.Step{Kind: store.KindFinding, Text: []byte("no-mail")}),
		"harvest": record(t, store.Record{ID: 0x1003, Src: netip.MustParseAddrPort("192.0.2.50:1"), Ending: smtp.EndingDropped, Omitted: 3}, many...),
		"relay": record(t, store.Record{ID: 0x1004, Src: long, Ending: smtp.EndingQuit}, helo("["+hostile+"]"), mail("probe@example.org"),
			rcpt("victim@elsewhere.example.net", smtp.ResultPermfail, 550, "Invalid recipient: <victim@elsewhere.example.net>"),
			store.Step{Kind: store.KindVerdict, Text: []byte("probes"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject}),
		"guess": record(t, store.Record{ID: 0x1005, Src: scanner, FCrDNS: smtp.FCrDNSFail, Ending: smtp.EndingTimeout, Counts: store.Counts{AuthRefused: 3}},
			helo("ylmf-pc"), store.Step{Kind: store.KindCommand, Text: []byte("AUTH LOGIN ********"), Code: 503, Reply: []byte("5.5.1 Invalid command: Command not supported")},
			store.Step{Kind: store.KindAuth, Text: []byte("admin"), Result: smtp.ResultFail},
			store.Step{Kind: store.KindFinding, Text: []byte("botnet-helo"), Arg: []byte("ylmf-pc"), By: []byte("helo"), Match: []byte("ylmf-pc"), Confidence: []byte("high")},
			store.Step{Kind: store.KindTimeout}),
		"hostile": record(t, store.Record{ID: 0x1006, Src: long, RDNS: []byte(hostile), Ending: smtp.EndingRejected},
			store.Step{Kind: store.KindCommand, Text: []byte(hostile), Code: 500, Reply: []byte(hostile)},
			store.Step{Kind: store.KindInput, Code: 500, Reply: []byte("5.0.0 Pipelining not supported")},
			store.Step{Kind: store.KindFilter, Decision: smtp.Disconnect, Phase: smtp.PhaseConnect, Reply: []byte(hostile)},
			store.Step{Kind: store.KindFinding, Text: []byte("talks-binary"), Arg: []byte(hostile), Org: []byte(hostile), By: []byte("command"), Match: []byte(strings.Repeat("long ", 40))}),
		"login": record(t, store.Record{ID: 0x1007, Src: netip.MustParseAddrPort("203.0.113.99:5000"), Ending: smtp.EndingQuit},
			helo("laptop"), store.Step{Kind: store.KindAuth, Text: []byte("bob"), Result: smtp.ResultPass},
			mail("bob@example.org"), rcpt("friend@elsewhere.example.net", smtp.ResultOK, 250, ""), store.Step{Kind: store.KindCommit, Size: 99}),
		"local": record(t, store.Record{ID: 0x1008, Local: true, Ending: smtp.EndingQuit},
			helo("localhost"), mail("root@example.org"), rcpt("x@elsewhere.example.net", smtp.ResultOK, 250, ""), store.Step{Kind: store.KindCommit, Size: 9}),
		"stray": record(t, store.Record{ID: 0x1009, Src: netip.MustParseAddrPort("203.0.113.5:2526"), RDNS: []byte("mail.example.com"), Ending: smtp.EndingStopped},
			store.Step{Kind: store.KindMail, Text: []byte("refused@example.com"), Result: smtp.ResultPermfail, Code: 553, Reply: []byte("no")},
			rcpt("postmaster", smtp.ResultPermfail, 503, ""), store.Step{Kind: 99, Text: []byte("of a newer version")}),
	}
}

var order = []string{"good", "scanner", "harvest", "relay", "guess", "hostile", "login", "local", "stray"}

func TestShow(t *testing.T) {
	all := sample(t)
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Show(&b, NewView(all[name]), zone); err != nil {
				t.Fatal(err)
			}
			golden(t, "show-"+name, b.Bytes())
			checkText(t, b.String())
		})
	}
}

// checkText fails the test if a line is too wide or contains characters that must not
// reach a terminal.
func checkText(t *testing.T, output string) {
	t.Helper()
	for _, l := range strings.Split(output, "\n") {
		if w := text.Width(l); w > 80 {
			t.Errorf("%d columns: %s", w, l)
		}
		if p := text.Escape(l); strings.ReplaceAll(p, `\\`, `\`) != l {
			t.Errorf("not printable: %q", l)
		}
	}
}

func TestShowListsEveryRecipient(t *testing.T) {
	var b bytes.Buffer
	if err := Show(&b, NewView(sample(t)["harvest"]), zone); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if want := fmt.Sprintf("RCPT TO:<user%02d@Example.ORG>", i); !strings.Contains(b.String(), want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestDumpJSON(t *testing.T) {
	all := sample(t)
	var b bytes.Buffer
	write := Lines(&b)
	for _, name := range order {
		if err := write(NewView(all[name])); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "dump-json", b.Bytes())
	checkNoRaw(t, b.Bytes())
	for _, l := range bytes.Split(bytes.TrimSpace(b.Bytes()), []byte("\n")) {
		var v map[string]any
		if err := json.Unmarshal(l, &v); err != nil {
			t.Errorf("%v: %s", err, l)
		}
	}
}

func TestDumpCSV(t *testing.T) {
	all := sample(t)
	all["formula"] = record(t, store.Record{ID: 1, Src: netip.MustParseAddrPort("192.0.2.1:1"), RDNS: []byte("=cmd|' /C calc'!A0")}, helo("@SUM(1)"), mail("+1"))
	var b bytes.Buffer
	write, end := CSV(&b)
	for _, name := range append(order, "formula") {
		if err := write(NewView(all[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	golden(t, "dump-csv", b.Bytes())
	checkNoRaw(t, b.Bytes())
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
				t.Errorf("a spreadsheet would run %q", cell)
			}
		}
	}
}

func checkNoRaw(t *testing.T, b []byte) {
	t.Helper()
	for _, raw := range []string{"\x1b", "\x07", "\xff", "\u202e", "\u200b", "\r\n\xff"} {
		if bytes.Contains(b, []byte(raw)) {
			t.Errorf("%q gets through", raw)
		}
	}
}

func summary(t *testing.T, top int, problems ...string) *Summary {
	t.Helper()
	all := sample(t)
	c := NewCollector(memory.Number)
	for _, name := range order {
		if err := c.Add(all[name]); err != nil {
			t.Fatal(err)
		}
	}
	return c.Summary(noon.Add(-24*time.Hour), noon, top, problems)
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *Summary
	}{
		{"report", summary(t, 10)},
		{"report-top-1", summary(t, 1, "filter-scanwatch is not running (no process is listening on /var/lib/scanwatch/control.sock)", "12 sessions were dropped and are not in this report (full=12)")},
		{"report-empty", NewCollector(memory.Number).Summary(noon.Add(-24*time.Hour), noon, 10, []string{"no sessions were recorded in this time"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.s.Text(&b, TextOptions{Zone: zone, Style: text.Style{Columns: 80}}); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, b.Bytes())
			checkText(t, b.String())
			b.Reset()
			if err := c.s.Text(&b, TextOptions{Zone: zone, Style: text.Style{Columns: 140, Colour: true}}); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+"-wide", b.Bytes())
			b.Reset()
			if err := c.s.JSON(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+"-json", b.Bytes())
			checkNoRaw(t, b.Bytes())
		})
	}
}

// TestScanningColumns checks that 80 columns suffice for the heading and the cell of each address, even
// if decisions were enforced and observed.
func TestScanningColumns(t *testing.T) {
	row := Source{Address: "192.0.2.100", Totals: Totals{Found: 3, Sessions: 5, Observed: 5}, Evidence: "auth-unsupported", RDNS: "host.example.net"}
	both := row
	both.Refused = 2
	for _, c := range []struct {
		s    Source
		want []string
	}{
		{row, []string{"observed  last  banned  address      evidence\n", "-       192.0.2.100  auth-unsupported\n             host.example.net\n"}},
		{both, []string{"rejected  observed  last  banned  address      evidence\n", "-       192.0.2.100\n             auth-unsupported  host.example.net\n"}},
	} {
		var b bytes.Buffer
		long := Source{Address: "2001:db8:1111:2222:3333:4444:5555:6666"} // must not widen the column
		if err := (&Summary{Scanning: []Source{c.s, long}}).Text(&b, TextOptions{Zone: time.UTC, Style: text.Style{Columns: 80}}); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("no %q in\n%s", want, &b)
			}
		}
	}
}

// TestReportDoesNotDependOnOrder checks that the order of sessions does not affect the
// report.
func TestReportDoesNotDependOnOrder(t *testing.T) {
	all := sample(t)
	want := inText(t, summary(t, 3))
	for start := range order {
		c := NewCollector(memory.Number)
		for i := range order {
			name := order[(start+i)%len(order)]
			if name == "guess" || name == "scanner" {
				continue // both sessions have the same address, one with a name and one without
			}
			if err := c.Add(all[name]); err != nil {
				t.Fatal(err)
			}
		}
		c.Add(all["scanner"])
		c.Add(all["guess"])
		if got := inText(t, c.Summary(noon.Add(-24*time.Hour), noon, 3, nil)); got != want {
			t.Fatalf("beginning with %s:\n%s\nwant\n%s", order[start], got, want)
		}
	}
}

func inText(t *testing.T, s *Summary) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Text(&b, TextOptions{Zone: zone, Style: text.Style{Columns: 80}}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCollectorIsBounded(t *testing.T) {
	c := NewCollector(memory.Number)
	for i := range maxSources + 10 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r := store.Record{Src: netip.AddrPortFrom(a, 1)}
		if err := c.Add(&r); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxNames + 10 {
		s := helo(fmt.Sprintf("name-%d", i))
		c.greeting(&s)
	}
	s := c.Summary(noon, noon, 10, nil)
	if s.Remote.Sessions != maxSources+10 || s.Addresses != maxSources+10 || s.AddressesError != 0 || s.NotListed["addresses"] != 10 || s.NotListed["HELO names"] != 10 {
		t.Errorf("%+v, %v", s.Remote, s.NotListed)
	}
	if !strings.Contains(inText(t, s), "10  addresses over the memory limit") {
		t.Error("the report does not list the limit")
	}
}

func BenchmarkCollector(b *testing.B) {
	var all []*store.Record
	for _, r := range sample(b) {
		if r.Counts.RcptPermfail < 50 {
			all = append(all, r)
		}
	}
	c := NewCollector(memory.Number)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r := all[i%len(all)]
		r.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8 & 15), byte(i)}), 25)
		if err := c.Add(r); err != nil {
			b.Fatal(err)
		}
		i++
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkDump(b *testing.B) {
	r := sample(b)["good"]
	write := Lines(&discard{})
	b.ReportAllocs()
	for b.Loop() {
		if err := write(NewView(r)); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (*discard) Write(p []byte) (int, error) { return len(p), nil }

// TestRules checks that each effect of a rule counts once per session, and that a
// recipient rejected by a filter does not count as a relay probe.
func TestRules(t *testing.T) {
	c := NewCollector(memory.Number)
	add := func(steps ...store.Step) {
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 0)
		}
		end := time.Unix(1_790_000_000, 0)
		key := store.AppendKey(nil, end, 1)
		r, err := store.Decode(key, store.AppendRecord(nil, &store.Record{Start: end, End: end, Src: netip.MustParseAddrPort("192.0.2.1:25")}, b))
		if err == nil {
			err = c.Add(&r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw := func(s string) []byte { return []byte(s) }
	verdict := func(rule string, enforced bool) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: raw(rule), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: enforced}
	}
	ban := func(rule string, enforced bool) store.Step {
		return store.Step{Kind: store.KindBan, Text: raw(rule), Prefix: netip.MustParsePrefix("192.0.2.1/32"), Enforced: enforced}
	}
	refused := store.Step{Kind: store.KindRcpt, Text: raw("a@example.org"), Result: smtp.ResultPermfail}
	filtered := store.Step{Kind: store.KindFilter, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Reply: raw("550 no")}
	add(verdict("a", true), filtered, refused, verdict("a", true), filtered, refused, ban("a", true))
	add(verdict("a", false), ban("a", false), verdict("b", false))
	withheld := ban("c", false)
	withheld.Exempt = "login"
	add(refused, ban("b", false), withheld) // banned at the end, in observe mode
	s := c.Summary(time.Time{}, time.Time{}, 10, nil)
	if want := []Rule{{"a", 1, 1, 1, 0}, {"b", 0, 2, 0, 0}, {"c", 0, 0, 0, 1}}; !slices.Equal(s.Rules, want) {
		t.Errorf("got %+v, want %+v", s.Rules, want)
	}
	if len(s.Relay) != 1 || s.Relay[0].Refused != 1 {
		t.Errorf("refused recipients: %+v, want one", s.Relay)
	}
}

// TestCompareLater checks that sessions recorded while the clock was ahead do not count
// as missing.
func TestCompareLater(t *testing.T) {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c := NewTotals()
	c.CountDays(at, func() time.Time { return at.Add(time.Minute) })
	for i := range 10 {
		end := at.Add(time.Duration(i-5) * time.Hour)
		if err := c.Add(&store.Record{ID: uint64(i + 1), Start: end, End: end}); err != nil {
			t.Fatal(err)
		}
	}
	days := []DayCount{{Day: at.Truncate(24 * time.Hour), Sessions: 10}}
	if n := c.Compare(days, time.Time{}, 0); n.Sessions != 0 {
		t.Errorf("%d sessions are missing", n.Sessions)
	}
	days[0].Sessions = 12
	if n := c.Compare(days, time.Time{}, 0); n.Sessions != 2 {
		t.Errorf("%d sessions are missing, want 2", n.Sessions)
	}
}

// TestLongName checks a name of the maximum length.
func TestLongName(t *testing.T) {
	a := arena{limit: 1 << 20}
	long := bytes.Repeat([]byte("x"), 255)
	if got := a.get(a.add(long)); !bytes.Equal(got, long) {
		t.Errorf("got %d bytes", len(got))
	}
}

// TestPeriodAcrossDST checks that the heading of a period shows two offsets if the clock
// changed within the period.
func TestPeriodAcrossDST(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for since, want := range map[string]string{
		"2026-10-25T00:00:00Z": "from 2026-10-25 02:00:00 (+0200) to 2026-10-25 13:00:00 (+0100)\n",
		"2026-10-25T02:00:00Z": "from 2026-10-25 03:00:00 to 2026-10-25 13:00:00 (+0100)\n",
	} {
		at, _ := time.Parse(time.RFC3339, since)
		s := NewTotals().Summary(at, time.Date(2026, 10, 25, 12, 0, 0, 0, time.UTC), 10, nil)
		var b bytes.Buffer
		if err := s.Text(&b, TextOptions{Zone: berlin, Style: text.Style{Columns: 80}}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q lacks %q", b.String(), want)
		}
	}
}
