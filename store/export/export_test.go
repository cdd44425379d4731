package export

import (
	"bytes"
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/detect"
	"scanwatch/rules"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var made = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func entryOf(prefix string, lasts time.Duration, evidence ...string) Entry {
	p := netip.MustParsePrefix(prefix)
	return Entry{Prefix: p, Kind: Found, Host: p.Addr().Next(), First: made.Add(-30 * time.Hour), Last: made.Add(-time.Hour), Sessions: 2,
		Evidence: evidence, Confidence: "high", Expires: made.Add(lasts)}
}

// nasty is the text in all fields of the golden files.
const nasty = "=cmd()|\"'`$(id);#}{\\%s\r\n\x1b[31m\u202e <x>-- */ \x00 é"

func sample() *List {
	l := &List{Made: made, Entries: []Entry{
		entryOf("192.0.2.7/32", time.Hour, "auth-failure", "rdns-missing"),
		entryOf("2001:db8:0:7::/64", 24*time.Hour, "talks-http"),
		entryOf("198.51.100.0/22", 72*time.Hour),
		entryOf("198.51.101.9/32", 400*24*time.Hour, "harvest"),
		entryOf("203.0.113.1/32", 0, "ended"),
		entryOf("2001:db8:8000::/35", time.Hour),
	}}
	for i := range l.Entries {
		e := &l.Entries[i]
		e.Prefix = e.Prefix.Masked()
		e.Organisation, e.Reason = nasty, nasty
	}
	l.Entries[0].Kind, l.Entries[0].Organisation, l.Entries[0].Reason = Ban, "", "guess"
	l.Sort()
	return l
}

// TestFormats compares the output of each format for a list, and for changes, with golden
// files.
func TestFormats(t *testing.T) {
	all := Formats()
	for i := range all {
		f := &all[i]
		t.Run(f.Name, func(t *testing.T) {
			var b bytes.Buffer
			dropped, err := f.Write(&b, sample())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "-- dropped: %d\n", dropped)
			if f.Changes() != (f.Ends != nextFile) && f.Name != "plain" && f.Name != "json" {
				t.Errorf("changes %v, but entries end %s", f.Changes(), f.Ends)
			}
			if f.Changes() {
				next := sample()
				next.Entries[0].Expires = made.Add(2 * time.Hour)
				next.Entries[0].Last = made.Add(-time.Hour + 20*time.Minute)
				next.Entries = append(slices.Delete(next.Entries, 1, 2), entryOf("192.0.2.8/32", time.Hour, "scanner"))
				next.Sort()
				_, state := f.changes(first(f.fit(sample())), nil)
				for i := range state.Entries { // 20 minutes ago
					if told := &state.Entries[i].Reported; !told.IsZero() {
						*told = told.Add(-20 * time.Minute)
					}
				}
				b.WriteString("-- changes\n")
				after, _, err := f.WriteChanges(&b, next, state)
				if err != nil {
					t.Fatal(err)
				}
				// A second export has no changes.
				var again bytes.Buffer
				if _, _, err := f.WriteChanges(&again, next, after); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "-- then\n%s", again.Bytes())
			}
			if bytes.ContainsAny(b.Bytes(), "\x00\x1b\r") || bytes.Contains(b.Bytes(), []byte("\u202e")) {
				t.Error("control characters")
			}
			golden := filepath.Join("testdata", f.Name+".txt")
			if *update {
				if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", b.String(), want)
			}
		})
	}
}

func first[T, U any](t T, _ U) T { return t }

// TestAggregate checks Aggregate with random lists. The result must cover exactly the listed
// addresses. No address may be listed for a longer time than before, and a network's two halves
// must be merged.
func TestAggregate(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		l := &List{Made: made}
		listed := map[netip.Addr]time.Time{}
		for range 40 {
			a := netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(64))})
			p, _ := a.Prefix(27 + r.IntN(6))
			e := entryOf(p.String(), time.Duration(1+r.IntN(3))*time.Hour)
			l.Entries = append(l.Entries, e)
			for q := p.Addr(); p.Contains(q); q = q.Next() {
				if e.Expires.After(listed[q]) {
					listed[q] = e.Expires
				}
			}
		}
		l.Sort()
		l.Aggregate()
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			at := slices.IndexFunc(l.Entries, func(e Entry) bool { return e.Prefix.Contains(a) })
			switch until, ok := listed[a]; {
			case ok != (at >= 0):
				t.Fatalf("%s was listed: %v, is covered: %v", a, ok, at >= 0)
			case ok && l.Entries[at].Expires.After(until):
				t.Fatalf("%s is listed until %v, longer than %v", a, l.Entries[at].Expires, until)
			}
		}
		for i := 1; i < len(l.Entries); i++ {
			a, b := l.Entries[i-1].Prefix, l.Entries[i].Prefix
			if _, ok := halves(a, b); ok || a.Overlaps(b) || compare(a, b) >= 0 {
				t.Fatalf("%s and %s are left", a, b)
			}
		}
	}
}

func TestAggregateNever(t *testing.T) {
	for _, c := range [][2]string{{"0.0.0.0/1", "128.0.0.0/1"}, {"::/1", "8000::/1"}, {"192.0.2.1/32", "192.0.2.2/32"}, {"0.0.0.0/32", "::1/128"}} {
		l := &List{Made: made, Entries: []Entry{entryOf(c[0], time.Hour), entryOf(c[1], time.Hour)}}
		l.Sort()
		if l.Aggregate(); len(l.Entries) != 2 {
			t.Errorf("%v became %s", c, l.Entries[0].Prefix)
		}
	}
}

func TestExpand(t *testing.T) {
	for _, c := range []struct {
		prefix string
		unit   int
		want   string
	}{
		{"192.0.2.1/32", 8, "192.0.2.1/32"},
		{"192.0.254.0/23", 8, "192.0.254.0/24 192.0.255.0/24"},
		{"10.0.0.0/7", 8, "10.0.0.0/8 11.0.0.0/8"},
		{"2001:db8:0:fffe::/63", 16, "2001:db8:0:fffe::/64 2001:db8:0:ffff::/64"},
		{"2001:db8::/31", 4, "2001:db8::/32 2001:db9::/32"},
		{"2001:db8::/64", 4, "2001:db8::/64"},
	} {
		var got []string
		expand(netip.MustParsePrefix(c.prefix).Masked(), c.unit, func(p netip.Prefix) { got = append(got, p.String()) })
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s in units of %d: %v, want %s", c.prefix, c.unit, got, c.want)
		}
	}
}

func TestStateRoundTrip(t *testing.T) {
	f := FormatByName("nft")
	_, s := f.changes(first(f.fit(sample())), nil)
	var b bytes.Buffer
	if err := WriteState(&b, s); err != nil {
		t.Fatal(err)
	}
	got, err := ReadState(&b)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%v: got %+v, want %+v", err, got, s)
	}
	for _, text := range []string{"", "{}", "x", `{"is":"scanwatch export","version":2}`, `{"is":"scanwatch export","version":1}{"prefix":"192.0.2.1/24"}`, `{"is":"scanwatch export","version":1}{}`, `{"is":"scanwatch export","version":1}{"prefix":`} {
		if _, err := ReadState(strings.NewReader(text)); err == nil {
			t.Errorf("%q is taken for a state", text)
		}
	}
}

func FuzzReadState(f *testing.F) {
	f.Add(`{"is":"scanwatch export","version":1,"format":"nft"}` + "\n" + `{"prefix":"192.0.2.0/24","expires":"2026-11-02T12:00:00Z"}`)
	f.Add(`{"is":"scanwatch export","version":1,"format":"x"}{"prefix":"2001:db8::/64","expires":"2026-11-02T12:00:00Z","last":"2026-11-02T12:00:00Z"}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ReadState(strings.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteState(&b, s); err != nil {
			t.Skip(err) // JSON cannot express this year
		}
		again, err := ReadState(&b)
		if err != nil || len(again.Entries) != len(s.Entries) {
			t.Fatalf("%v: %+v became %+v", err, s, again)
		}
	})
}

// TestOffences checks that each offence has a token and a category, and that each kind
// of abuse is an offence.
func TestOffences(t *testing.T) {
	var reported rules.Evidence
	for _, o := range offences {
		token := rules.TokenByName(o.evidence)
		if token == nil {
			t.Errorf("%s is not a token of rules.Tokens", o.evidence)
			continue
		}
		if reported.Has(token.Evidence) {
			t.Errorf("%s has two rows", o.evidence)
		}
		reported |= token.Evidence
		if o.words == "" || len(o.categories) == 0 {
			t.Errorf("%s has no words or no category", o.evidence)
		}
	}
	for _, token := range rules.Tokens {
		if detect.Abuse.Has(token.Evidence) && !reported.Has(token.Evidence) {
			t.Errorf("%s is abuse, but has no category: add a row to offences", token.Name)
		}
	}
}

// TestAbuseIPDB checks that a report has one line per address, without text from the
// network, and that no second line about an address follows within 15 minutes.
func TestAbuseIPDB(t *testing.T) {
	f := FormatByName("abuseipdb")
	l := sample()
	old := entryOf("192.0.2.99/32", time.Hour, "scanner")
	old.Last = made.AddDate(0, 0, -61)
	l.Entries = append(l.Entries, entryOf("192.0.2.98/32", time.Hour, "rdns-missing"), old)
	l.Sort()
	var b bytes.Buffer
	state, dropped, err := f.WriteChanges(&b, l, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"IP", "Categories", "ReportDate", "Comment"},
		{"192.0.2.8", "18", "2026-11-02T11:00:00Z", "2 SMTP sessions: fails to log in"},
		{"198.51.101.10", "11,15", "2026-11-02T11:00:00Z", "2 SMTP sessions: guesses recipients"},
		{"2001:db8:0:7::1", "14", "2026-11-02T11:00:00Z", "2 SMTP sessions: speaks HTTP to a mail server"}}
	if !reflect.DeepEqual(rows, want) || dropped != 3 {
		t.Errorf("got %q, %d dropped; want %q", rows, dropped, want)
	}
	at := slices.IndexFunc(l.Entries, func(e Entry) bool { return e.Prefix.Addr() == netip.MustParseAddr("192.0.2.7") })
	for _, c := range []struct {
		later time.Duration
		rows  int
	}{{0, 1}, {14 * time.Minute, 1}, {10 * time.Minute, 2}, {time.Minute, 1}} {
		l.Entries[at].Last, l.Made = l.Entries[at].Last.Add(c.later), l.Made.Add(c.later)
		b.Reset()
		if state, _, err = f.WriteChanges(&b, l, state); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(b.String(), "\n"); n != c.rows {
			t.Errorf("seen %v later: %d lines, want %d", c.later, n, c.rows)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	l := &List{Made: made}
	for i := range 100_000 {
		e := entryOf("192.0.2.1/32", time.Hour, "auth-spray", "no-mail")
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		l.Entries = append(l.Entries, e)
	}
	all := Formats()
	for i := range all {
		b.Run(all[i].Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := all[i].Write(io.Discard, l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestLongTimeout checks entries that exceed a consumer's maximum timeout. Such an entry must be
// renewed before it expires at the consumer. Most exports must not renew it.
func TestLongTimeout(t *testing.T) {
	const day = 24 * time.Hour
	f := FormatByName("ipset")
	var state *State
	at, ends, told := made, time.Time{}, 0
	for ; at.Before(made.Add(70 * day)); at = at.Add(day) {
		l := &List{Made: at, Entries: []Entry{entryOf("192.0.2.7/32", 60*day)}}
		l.Sort()
		c, after := f.changes(l, state)
		state = after
		for _, e := range c.Add {
			told++
			ends = at.Add(time.Duration(min(e.left(at), maxIPSetTimeout)) * time.Second)
		}
		if over := at.Sub(made) >= 60*day; ends.After(at) == over {
			t.Errorf("day %d: ends %v", at.Sub(made)/day, ends)
		}
	}
	if told < 3 || told > 6 || !ends.Equal(made.Add(60*day)) {
		t.Errorf("exported %d times, the end is %v", told, ends)
	}
}

// TestReportAgain checks that a host is reported at most every 15 minutes. This time starts at the
// last report, not at the reported session. A host without an offence must not be reported.
func TestReportAgain(t *testing.T) {
	f := FormatByName("abuseipdb")
	var state *State
	tell := func(at, last time.Duration) int {
		e := entryOf("192.0.2.7/32", time.Hour, "harvest")
		e.Last = made.Add(last)
		c, after := f.changes(&List{Made: made.Add(at), Entries: []Entry{e}}, state)
		state = after
		return len(c.Add)
	}
	for i, c := range []struct {
		at, last time.Duration
		want     int
	}{{0, -14 * time.Minute, 1}, {5 * time.Minute, 4 * time.Minute, 0}, {15 * time.Minute, 4 * time.Minute, 1}, {40 * time.Minute, 4 * time.Minute, 0}} {
		if n := tell(c.at, c.last); n != c.want {
			t.Errorf("%d: %d reports, want %d", i, n, c.want)
		}
	}
	// A host with only failed logins is reported if it is banned.
	e := entryOf("192.0.2.9/32", time.Hour, "auth-failure", "helo-unqualified")
	if f.takes(&e) {
		t.Error("a failed login is reported")
	}
	if e.Kind = Ban; !f.takes(&e) {
		t.Error("a banned attacker is not reported")
	}
	for _, private := range []string{"10.1.2.3/32", "fd00::/64", "169.254.1.1/32"} {
		if e := entryOf(private, time.Hour, "harvest"); f.takes(&e) {
			t.Errorf("%s is reported", private)
		}
	}
}

// TestMostReports checks that hosts beyond the limit are in the next report. AbuseIPDB
// rejects the whole report if it has more than 10,000 lines.
func TestMostReports(t *testing.T) {
	const n = 25_000
	f := FormatByName("abuseipdb")
	l := &List{Made: made}
	for i := range n {
		e := entryOf(fmt.Sprintf("11.0.%d.%d/32", i>>8, i&255), time.Hour, "harvest")
		e.Last = e.Last.Add(-time.Duration(n-i) * time.Second)
		l.Entries = append(l.Entries, e)
	}
	var b bytes.Buffer
	var state *State
	var err error
	told := map[string]bool{}
	for i, want := range []int{10_000, 10_000, n - 2*9_999 + 1, 1} {
		b.Reset()
		if state, _, err = f.WriteChanges(&b, l, state); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != want || b.Len() > 2_000_000 {
			t.Errorf("report %d has %d lines and %d bytes, want %d lines", i, len(lines), b.Len(), want)
		}
		for _, line := range lines[1:] {
			told[line] = true
		}
	}
	if len(told) != n {
		t.Errorf("%d of %d are exported", len(told), n)
	}
	b.Reset()
	dropped, err := f.Write(&b, l)
	if lines := strings.Count(b.String(), "\n"); err != nil || lines != 10_000 || dropped != n-9_999 || !strings.Contains(b.String(), "\n11.0.97.168,") || strings.Contains(b.String(), "\n11.0.0.1,") {
		t.Errorf("%d lines, %d dropped, %v", lines, dropped, err)
	}
}
