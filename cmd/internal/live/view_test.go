package live

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
	"scanwatch/tests/hostiletext"
)

// now is the current time in tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// newView returns an empty View at the time now. One network belongs to an organisation.
func newView() *View {
	return NewView(time.UTC, func() time.Time { return now }, func(a netip.Addr) string {
		if netip.MustParsePrefix("192.0.2.0/24").Contains(a) {
			return "Example Net"
		}
		return ""
	})
}

// topStatus returns the filter's status in tests.
func topStatus() *control.Status {
	return &control.Status{Live: control.Live{Sessions: 12, Delayed: 3}, Config: control.Config{Mode: "enforce", Rules: 7},
		Store: store.Status{Added: 4711, Quarantined: 1}}
}

// recordedView returns a View of all events in a recorded stream.
func recordedView(t *testing.T) *View {
	t.Helper()
	stream, err := os.ReadFile("testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	v := newView()
	v.connected(topStatus())
	for line := range bytes.Lines(stream) {
		e, missing, err := events.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		v.event(&e, missing)
	}
	return v
}

// printed returns a section's rows as lines.
func printed(v *View, section, order, width int, filter string) (lines []string) {
	for _, r := range v.table(section, order, width, filter).rows {
		var words []string
		for _, c := range r.cells {
			words = append(words, c.text)
		}
		lines = append(lines, strings.Join(words, "|"))
	}
	return lines
}

// heads returns the lines above the table as text.
func heads(v *View, width int) string {
	var b strings.Builder
	for _, line := range v.head(width) {
		for _, part := range line {
			b.WriteString(part.text)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestActivity(t *testing.T) {
	var a, b activity
	at := func(minute int) time.Time { return now.Add(time.Duration(minute) * time.Minute) }
	for _, step := range []struct{ minute, add, hour int }{
		{0, 2, 2}, {0, 1, 3}, {30, 5, 8}, {-5, 4, 12}, {59, 0, 8}, {60, 0, 5}, {89, 1, 6}, {90, 0, 1}, {80, 1, 2}, {20, 7, 2}, {1000, 0, 0}, {1 << 20, 1, 1},
	} {
		a.add(at(step.minute), step.add)
		if got := a.hour(at(step.minute)); got != step.hour {
			t.Errorf("after %d minutes: %d, want %d", step.minute, got, step.hour)
		}
	}
	a = activity{}
	for minute, n := range []int{1, 2, 3, 4, 7, 8, 0, 1000} {
		a.add(at(minute), n)
	}
	if got, want := a.spark(at(7), 60), strings.Repeat(" ", 52)+"▁▂▂▃▃▄ █"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := a.spark(at(12), 6), "    ▃█"; got != want { // the first three minutes, and the others
		t.Errorf("%q, want %q", got, want)
	}
	b.add(at(-30), 3)
	b.merge(&a)
	if got := b.hour(at(7)); got != 1028 {
		t.Errorf("merged %d", got)
	}
	b = activity{}
	b.merge(&activity{})
	if got := b.hour(at(0)); got != 0 {
		t.Errorf("merged nothing: %d", got)
	}
}

// TestTables checks each section's table for the recorded stream.
func TestTables(t *testing.T) {
	v := recordedView(t)
	for _, c := range []struct {
		name                  string
		section, order, width int
		filter                string
		want                  []string
	}{
		{"a filter of addresses", 0, 0, 80, "198.51.100.0/24", []string{"198.51.100.9|-|banned|1|0|0|     ▁|-"}},
		{"a filter of text", 0, 0, 80, "SCANNER", []string{
			"2001:db8:5:1::…|(Other Survey)|-|3|3|(1)|     ▂|scanner, helo-missing",
			"192.0.2.7|host7.scan.example.org|-|1|1|1|     ▁|scanner"}},
		{"bans", 3, 0, 80, "", []string{
			"198.51.100.0/24|6h|11-02 11:59|-|operator: by the postmaster",
			`203.0.113.77|23h59m|11-02 11:59|?x\x1b[31m.example.net|botnet`}},
		{"networks", 4, 3, 120, "203.0", []string{"203.0.113.0/24|-|1|1|0|1|1|11:59:35|                   ▁|botnet-helo"}},
		{"rejections", 1, 0, 120, "verdict", []string{
			"11:59:39|verdict|2001:db8:5:1::/64|-|would disconnect at connect by scanners",
			`11:59:34|verdict|203.0.113.77|?x\x1b[31m.example.net|reject at helo by botnet`,
			"11:59:32|verdict|192.0.2.7|host7.scan.example.org|disconnect at connect by scanners"}},
		{"events", 2, 0, 80, "odd", []string{"11:59:40|tag|198.51.100.9|odd at rcpt-to"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := printed(v, c.section, c.order, c.width, c.filter)
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestRecords checks that sessions, aggregates and decisions are counted for their sources. A
// session that ends while the records are being read must be counted only once.
func TestRecords(t *testing.T) {
	v := newView()
	v.begin()
	finding := store.Step{Kind: store.KindFinding, Text: []byte("harvest"), Confidence: []byte("high")}
	verdict := store.Step{Kind: store.KindVerdict, Text: []byte("harvesters"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject}
	d := newData(v.zone, v.org, now.Add(-window))
	read := func(add func(*store.Record) error, r store.Record, steps ...store.Step) {
		t.Helper()
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 0)
		}
		r.Start, r.End = now.Add(-time.Minute), now
		if r.ID == 1 {
			r.End = now.Add(-time.Second)
		}
		value := store.AppendRecord(nil, &r, b)
		got, err := store.Decode(store.AppendKey(nil, r.End, r.ID), value)
		if err == nil {
			err = add(&got)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	host := netip.MustParseAddrPort("192.0.2.1:25")
	add := func(r store.Record, steps ...store.Step) {
		t.Helper()
		read(func(r *store.Record) error { return d.first(r, now) }, r, steps...)
	}
	add(store.Record{ID: 1, Src: host, RDNS: []byte("mx.example.net"), FCrDNS: smtp.FCrDNSPass, Counts: store.Counts{Mails: 2}}, finding, verdict)
	add(store.Record{ID: 2, Src: host, RDNS: []byte("mx.example.net"), FCrDNS: smtp.FCrDNSPass}, finding)
	tally := verdict
	tally.Times, tally.Enforced = 30, true
	add(store.Record{ID: 3, Src: netip.MustParseAddrPort("[2001:db8::1]:25"), Sessions: 40, RDNS: []byte("x.example"), FCrDNS: smtp.FCrDNSFail}, tally)
	add(store.Record{ID: 4, Sessions: 500})
	add(store.Record{ID: 5, Local: true})
	for _, session := range []uint64{2, 6, 6} {
		v.event(&events.Event{Event: "finding", Time: now, Session: session, Src: host.Addr(), Evidence: "scanner", Confidence: "low", Org: "Scan Inc"}, 0)
	}
	v.finish(d, nil)
	want := []string{
		"2001:db8::/64|?x.example|-|-|40|0|0|30|12:00:00|                   ▆|-",
		"192.0.2.1|mx.example.net|Scan Inc|-|3|2|4|(1)|12:00:00|                   ▂|harvest, scanner",
		"others|0 evicted|-|-|500|0|0|0|12:00:00|                   █|-",
	}
	if got := printed(v, 0, 3, 132, ""); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := heads(v, 80); !strings.Contains(got, "543/h") || !strings.Contains(got, " 31/h, 1 of them observed") {
		t.Error(got)
	}
	// The later records are a session with events, a session without events, and an
	// aggregate.
	read(v.record, store.Record{ID: 6, Src: host, Counts: store.Counts{Mails: 5}}, finding)
	read(v.record, store.Record{ID: 7, Src: host, Counts: store.Counts{Mails: 1}})
	read(v.record, store.Record{ID: 8, Src: host, Sessions: 20, Found: 19, Counts: store.Counts{Mails: 2}}, finding)
	if got := printed(v, 0, 3, 132, "192.0.2.1"); got[0] != "192.0.2.1|mx.example.net|Scan Inc|-|5|10|4|(1)|12:00:00|                   ▃|harvest, scanner" {
		t.Error(got)
	}
	v.begin()
	v.finish(nil, errors.New("disk on fire"))
	if got := heads(v, 80); !strings.Contains(got, "PROBLEM   disk on fire") || len(printed(v, 0, 0, 80, "")) != 3 {
		t.Error(got)
	}
}

// TestWithoutAddress checks how sources without an address are described. At the start, the row of
// such a source must not be selected.
func TestWithoutAddress(t *testing.T) {
	v := newView()
	for i, r := range []store.Record{{Erased: true}, {Sessions: 9}, {Src: netip.MustParseAddrPort("192.0.2.7:25")}} {
		r.ID, r.Start, r.End = uint64(i+1), now, now
		verdict := store.Step{Kind: store.KindVerdict, Text: []byte("tight"), Phase: smtp.PhaseHelo, Decision: smtp.Disconnect, Enforced: true}
		r, err := store.Decode(store.AppendKey(nil, r.End, r.ID), store.AppendRecord(nil, &r, store.AppendStep(nil, &verdict, 0)))
		if err == nil {
			err = v.data.record(&r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	v.event(&events.Event{Event: "verdict", Time: now, Session: 4, Rule: "tight", Phase: "helo", Decision: "disconnect"}, 0)
	for i, want := range []string{"local", "192.0.2.7", "several", "erased"} {
		if got := printed(v, 1, 0, 80, ""); len(got) != 4 || !strings.Contains(got[i], "|verdict|"+want+"|") {
			t.Errorf("%s is not in row %d of\n%s", want, i, strings.Join(got, "\n"))
		}
	}
	c := newTerminal(t, v, 100, 24, "Cause: none\n")
	c.shows("others")
	c.press("b")
	c.shows("Ban 192.0.2.7 for a day? y/n")
}

// TestStanding checks that a ban on a host or its network is shown instead of the
// standing.
func TestStanding(t *testing.T) {
	v := newView()
	v.data.memory = memory.New()
	day := now.AddDate(0, 0, -20)
	for i := range 15 {
		at := day.AddDate(0, 0, i).UnixMicro()
		for _, a := range []string{"192.0.2.1", "198.51.100.1", "203.0.113.1"} {
			v.data.memory.Peers.Delivered(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.Delivery{Messages: 1}, at)
		}
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "198.51.100.1", "203.0.113.1"} {
		v.event(&events.Event{Event: "finding", Time: now, Session: 1, Src: netip.MustParseAddr(a), Evidence: "harvest"}, 0)
	}
	ban := events.Event{Event: "ban", Time: now, Prefix: "198.51.100.0/24", Until: now.Add(time.Hour), By: "operator", Reason: "enough"}
	v.event(&ban, 0)
	ban.Prefix, ban.Would, ban.Rule = "203.0.113.1/32", "disconnect", "harvesters"
	v.event(&ban, 0)
	ban.Prefix, ban.Until = "203.0.113.2/32", now.Add(-time.Hour)
	v.event(&ban, 0)
	var states []string
	for _, line := range printed(v, 0, 5, 80, "") {
		states = append(states, strings.Split(line, "|")[2])
	}
	if got := strings.Join(states, " "); got != "trusted - banned trusted" {
		t.Error(got)
	}
	want := "198.51.100.0/24|1h|11-02 12:00|-|operator: enough\n203.0.113.1|1h|11-02 12:00|-|(observed) operator: harvesters"
	if got := strings.Join(printed(v, 3, 0, 80, ""), "\n"); got != want {
		t.Error(got)
	}
	v.event(&events.Event{Event: "unban", Time: now, Prefix: "198.51.100.0/24"}, 0)
	if got := printed(v, 3, 0, 80, ""); len(got) != 1 {
		t.Error(got)
	}
}

// TestOrders checks that the orders of sources differ from each other.
func TestOrders(t *testing.T) {
	v := newView()
	send := func(host byte, n int, e events.Event) {
		for i := range n {
			e.Time, e.Src, e.Session = now.Add(time.Duration(host)*time.Second), netip.AddrFrom4([4]byte{192, 0, 2, host}), uint64(host)<<8+uint64(i)
			v.event(&e, 0)
		}
	}
	send(1, 9, events.Event{Event: "tag"})
	send(2, 3, events.Event{Event: "finding", Evidence: "harvest", Confidence: "high"})
	send(3, 5, events.Event{Event: "finding", Evidence: "harvest", Confidence: "low"})
	send(4, 4, events.Event{Event: "verdict", Decision: "reject"})
	seen := map[string]bool{}
	for i, want := range []string{"4 3 2 1", "2 3 1 4", "3 2 1 4", "4 1 2 3", "1 3 4 2", "1 2 3 4"} {
		var got []string
		for _, line := range printed(v, 0, i, 80, "") {
			host, _, _ := strings.Cut(line, "|")
			got = append(got, strings.TrimPrefix(host, "192.0.2."))
		}
		if order := strings.Join(got, " "); order != want || seen[order] {
			t.Errorf("%s: %s, want %s", orders[i].name, order, want)
		}
		seen[want] = true
	}
}

// TestTopIsBounded checks that the size of a View is limited for any number of clients. Evicted
// sources must be counted.
func TestTopIsBounded(t *testing.T) {
	v := newView()
	send := func(i int) {
		src := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		at := now.Add(time.Duration(i) * time.Millisecond)
		v.event(&events.Event{Event: "finding", Time: at, Session: uint64(i + 1), Evidence: fmt.Sprintf("kind-%d", i%100), Src: src}, 0)
		v.event(&events.Event{Event: "ban", Time: at, Prefix: src.String() + "/32", Until: at.Add(time.Hour)}, 0)
	}
	const many = maxSources + 1000
	for i := range many {
		send(i)
	}
	d := v.data
	const evicted = maxSources / 4
	if len(d.sources) != many-evicted || d.evicted != evicted || d.others.findings != evicted || len(d.bans) != maxBans || d.moreBans != many-maxBans ||
		len(d.latest) > maxEntries || len(d.refused) > maxEntries || len(d.latest) < maxEntries/2 {
		t.Errorf("%d sources, %d evicted, %d bans, %d more, %d events", len(d.sources), d.evicted, len(d.bans), d.moreBans, len(d.latest))
	}
	rows := printed(v, 0, 0, 80, "")
	if last := rows[len(rows)-1]; last != "others|1024 evicted|-|1024|1024|0|     █|-" {
		t.Error(last)
	}
	v.begin()
	for i := range maxPending {
		send(i)
	}
	if len(v.pending) != maxPending || v.missed != maxPending {
		t.Errorf("%d events wait, %d missed", len(v.pending), v.missed)
	}
	status := topStatus()
	for range 20 {
		status.Config.Notes = append(status.Config.Notes, "note")
	}
	v.connected(status)
	if n := len(v.problems()); n != 4 {
		t.Errorf("%d problems are shown", n)
	}
}

// TestFit checks that text is fitted to the column width.
func TestFit(t *testing.T) {
	for _, c := range []struct {
		column column
		text   string
		width  int
		want   string
	}{
		{column{}, "abc", 5, "abc  "},
		{column{}, "abcdef", 5, "abcd…"},
		{column{right: true}, "12", 5, "   12"},
		{column{tail: true}, "mail.example.com", 8, "…ple.com"},
		{column{tail: true}, "漢字漢字", 6, "…漢字 "},
		{column{tail: true}, "?mail.example.com", 8, "?…le.com"},
		{column{tail: true}, "?abc", 1, "…"},
		{column{tail: true}, "abc", 0, ""},
	} {
		if got := c.column.fit(c.text, c.width); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// hostileView returns a View with hostile text in every field that a client or file
// controls.
func hostileView() *View {
	v := newView()
	for _, e := range hostiletext.Events(now) {
		v.event(&e, 0)
	}
	for _, text := range hostiletext.Texts() {
		s := topStatus()
		s.Config.Mode, s.Config.Problem, s.Store.Error = text.Text, text.Text, text.Text
		v.disconnected(errors.New(text.Text), statedir.Mode{})
		v.connected(s)
	}
	return v
}
