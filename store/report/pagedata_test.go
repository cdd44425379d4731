package report

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// session returns a session from the address src with the given steps.
func session(t testing.TB, id uint64, src string, end time.Time, steps ...store.Step) *store.Record {
	t.Helper()
	return record(t, store.Record{ID: id, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 25), End: end}, steps...)
}

func found(token, confidence, org string) store.Step {
	return store.Step{Kind: store.KindFinding, Text: []byte(token), Confidence: []byte(confidence), Org: []byte(org)}
}

// collect returns a Collector that has counted the given records.
func collect(t testing.TB, all ...*store.Record) *Collector {
	t.Helper()
	c := NewCollector(memory.Number)
	for _, r := range all {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestHours compares the counts by weekday and hour with an independent count that uses
// only package time. The zones and weeks include clock changes.
func TestHours(t *testing.T) {
	for _, c := range []struct {
		zone  string
		since time.Time
		days  int
	}{
		{"Europe/Berlin", time.Date(2026, 10, 20, 0, 0, 0, 0, time.UTC), 14},
		{"Europe/Berlin", time.Date(2026, 3, 26, 22, 0, 0, 0, time.UTC), 5},
		{"America/Santiago", time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC), 10},
		{"Australia/Lord_Howe", time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), 20}, // half an hour
		{"Asia/Kathmandu", time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), 3},       // +05:45
	} {
		t.Run(c.zone, func(t *testing.T) {
			zone, err := time.LoadLocation(c.zone)
			if err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(1, uint64(c.days)))
			until := c.since.AddDate(0, 0, c.days)
			want := map[string][2]int{}
			all := NewCollector(memory.Number)
			for i := range 2000 {
				end := c.since.Add(time.Duration(random.Int64N(int64(until.Sub(c.since)))))
				name := end.In(zone).Format("Mon 15")
				n := want[name]
				n[0]++
				var steps []store.Step
				if i%3 == 0 {
					n[1]++
					steps = append(steps, found("no-mail", "high", ""))
				}
				want[name] = n
				if err := all.Add(session(t, uint64(i+1), fmt.Sprintf("192.0.2.%d", i%250), end, steps...)); err != nil {
					t.Fatal(err)
				}
			}
			s := all.Summary(c.since.In(zone), until, 10, nil)
			covered := map[string]bool{}
			for at := c.since; at.Before(until); at = at.Add(time.Minute) {
				covered[at.In(zone).Format("Mon 15")] = true
			}
			for d, day := range s.Hours {
				for h, n := range day {
					name := fmt.Sprintf("%s %02d", weekDays[d], h)
					if got := [2]int{n.Sessions, n.Found}; got != want[name] || n.Covered != covered[name] {
						t.Errorf("%s: %v, covered %v, want %v, %v", name, got, n.Covered, want[name], covered[name])
					}
				}
			}
			// The titles of the page's cells must show the same numbers.
			page := pageOf(t, &Page{Summary: s})
			cells := regexp.MustCompile(`<title>(\w{3}) from (\d\d):00: ([\d,]+) sessions?, ([\d,]+) with findings</title>`).FindAllStringSubmatch(string(page), -1)
			if len(cells) != len(covered) {
				t.Errorf("%d cells, want %d", len(cells), len(covered))
			}
			for _, m := range cells {
				if n := want[m[1]+" "+m[2]]; m[3] != fmt.Sprint(n[0]) || m[4] != fmt.Sprint(n[1]) {
					t.Errorf("%s, want %v", m[0], n)
				}
			}
		})
	}
}

// TestScanning checks that each host with findings or mail is in either Scanning or
// GoodMail, with its worst evidence and its organisation.
func TestScanning(t *testing.T) {
	mailed := store.Step{Kind: store.KindCommit, Size: 9}
	later := noon.Add(-time.Minute)
	s := collect(t,
		session(t, 1, "192.0.2.1", later.Add(-time.Hour), found("cloud", "high", "Cloud Ltd"), found("no-mail", "high", "")),
		session(t, 2, "192.0.2.1", later, found("harvest", "high", ""), found("cloud", "low", "Cloud Ltd")),
		session(t, 3, "192.0.2.2", later, found("scanner", "medium", "Scans Inc"), found("cloud", "high", "Cloud Ltd")),
		session(t, 4, "192.0.2.3", later, found("helo-word", "low", ""), mailed), // a legitimate server
		session(t, 5, "192.0.2.4", later, found("talks-http", "high", ""), mailed),
		session(t, 6, "192.0.2.5", later, mailed, mailed),
		session(t, 7, "192.0.2.6", later),
		session(t, 8, "192.0.2.1", later, store.Step{Kind: store.KindAuth, Text: []byte("bob"), Result: smtp.ResultPass}),
	).Summary(noon.Add(-24*time.Hour), noon, 10, nil)
	line := func(all []Source) (lines []string) {
		for _, x := range all {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %d/%d %d %d %s %s", x.Address, x.Found, x.Sessions, x.Mails, x.Logins, x.Evidence, x.Organisation)))
			if !x.Last.Equal(later) {
				t.Errorf("%s: last at %v", x.Address, x.Last)
			}
		}
		return lines
	}
	if got, want := strings.Join(line(s.Scanning), "; "), "192.0.2.1 2/2 0 1 harvest Cloud Ltd; 192.0.2.4 1/1 1 0 talks-http; 192.0.2.2 1/1 0 0 cloud Cloud Ltd"; got != want {
		t.Errorf("scanning: %s, want %s", got, want)
	}
	if got, want := strings.Join(line(s.GoodMail), "; "), "192.0.2.5 0/1 2 0; 192.0.2.3 1/1 1 0 helo-word"; got != want {
		t.Errorf("legitimate mail: %s, want %s", got, want)
	}
	// A ban on the second host would reject mail, and a ban on the first host
	// would reject a user.
	out := strings.Join(strings.Fields(inText(t, s)), " ")
	for _, want := range []string{"192.0.2.1 harvest (Cloud Ltd), 1 login of users ", "192.0.2.4 talks-http 1 message accepted "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestRejections checks that the latest rejections are listed once per session, with
// the sender and the rejected recipient, and that withheld rejections and other
// decisions are not listed.
func TestRejections(t *testing.T) {
	filtered := store.Step{Kind: store.KindFilter, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject}
	exempt := rejected("lists", false)
	exempt.Exempt = "known"
	delay := rejected("slow", true)
	delay.Decision = smtp.Junk
	sum := record(t, store.Record{ID: 9, Sessions: 40, Rejected: 30, Src: netip.MustParseAddrPort("192.0.2.9:0")},
		tally(rejected("flood", true), 30, 0, 0), store.Step{Kind: store.KindReference, Session: 0xabc})
	banned := rejected("tight", true)
	banned.Banned, banned.Session, banned.Phase = true, 0xdef, smtp.PhaseConnect
	s := collect(t,
		session(t, 1, "192.0.2.1", noon, mail("a@example.net"), rcpt("b@example.org", smtp.ResultOK, 250, ""), rejected("tight", false),
			rejected("tight", true), filtered, rcpt("c@example.org", smtp.ResultPermfail, 550, ""), rejected("late", false), rcpt("d@example.org", smtp.ResultOK, 250, "")),
		session(t, 2, "192.0.2.2", noon, exempt, delay),
		session(t, 3, "192.0.2.3", noon, mail("x@example.net"), rejected("tight", false), rcpt("y@example.org", smtp.ResultOK, 250, "")),
		sum,
		session(t, 4, "192.0.2.4", noon, banned),
	).Summary(noon.Add(-24*time.Hour), noon, 10, nil)
	var got []string
	for _, r := range s.Rejections {
		got = append(got, fmt.Sprintf("%s %s %s <%s> <%s> %s %s %v %d", r.Session[12:], r.Reference, r.Address, r.Sender, r.Recipient, r.Rule, r.Phase, r.Enforced, r.Sessions))
	}
	want := []string{
		"0004 0000000000000def 192.0.2.4 <> <> tight connect true 1",
		"0abc 0000000000000abc 192.0.2.9 <> <> flood rcpt-to true 30",
		"0003 0000000000000003 192.0.2.3 <x@example.net> <y@example.org> tight rcpt-to false 1",
		"0001 0000000000000001 192.0.2.1 <a@example.net> <c@example.org> tight rcpt-to true 1",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Remote.Refused != 32 || s.Remote.Observed != 1 {
		t.Errorf("%d rejected, %d observed, want 32 and 1", s.Remote.Refused, s.Remote.Observed)
	}
}

// TestRejectionsOfBan checks that all sessions that a ban rejected form a
// single entry, even if they exceed the list's limit.
func TestRejectionsOfBan(t *testing.T) {
	banned := rejected("tight", true)
	banned.Banned, banned.Session, banned.Phase = true, 0xdef, smtp.PhaseConnect
	c := collect(t, session(t, 0xdef, "192.0.2.4", noon, rejected("tight", true)))
	for i := range 7 {
		if err := c.Add(session(t, uint64(i+1), "192.0.2.4", noon, banned)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Add(session(t, 9, "192.0.2.9", noon, banned)); err != nil {
		t.Fatal(err)
	}
	for top, want := range []string{"more 3", "192.0.2.9 1, more 2", "192.0.2.9 1, 192.0.2.4 7, more 1", "192.0.2.9 1, 192.0.2.4 7, 192.0.2.4 1, more 0"} {
		got := ""
		s := c.Summary(noon, noon, top, nil)
		for _, r := range s.Rejections {
			got += fmt.Sprintf("%s %d, ", r.Address, r.Sessions)
		}
		if got += fmt.Sprintf("more %d", s.More["rejections"]); got != want {
			t.Errorf("top %d: got %s, want %s", top, got, want)
		}
	}
}

// TestErased checks that the report counts the sessions of erased addresses separately. Such
// sessions must not count as items beyond a memory limit.
func TestErased(t *testing.T) {
	erased := session(t, 1, "192.0.2.1", noon, mail("(erased)"), rcpt("(erased)", smtp.ResultPermfail, 0, ""), rejected("harvest", true))
	erased.Src, erased.Erased = netip.AddrPort{}, true
	several := record(t, store.Record{ID: 2, Sessions: 40, Rejected: 30}, tally(rejected("flood", true), 30, 0, 0))
	s := collect(t, erased, several).Summary(noon.Add(-24*time.Hour), noon, 10, nil)
	out := inText(t, s)
	for _, want := range []string{"1 session is from erased addresses", "0000000000000001  harvest  rcpt-to  an erased address\n", "several hosts (30 sessions)"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if len(s.NotListed) > 0 || s.Erased != 1 {
		t.Errorf("%d erased, not listed: %v", s.Erased, s.NotListed)
	}
	if page := string(pageOf(t, &Page{Summary: s})); !strings.Contains(page, ">an erased address") {
		t.Errorf("no erased address in\n%s", page)
	}
}

// TestRejectionsLimit checks that only the latest rejections are kept.
func TestRejectionsLimit(t *testing.T) {
	c := NewCollector(memory.Number)
	for i := range 2*maxLatest + 7 {
		if err := c.Add(session(t, uint64(i+1), "192.0.2.1", noon, mail(fmt.Sprintf("sender-%d@example.net", i+1)), rejected("tight", true))); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Summary(noon, noon, 3, nil)
	var got []string
	for _, r := range s.Rejections {
		got = append(got, r.Session[12:]+" "+r.Sender)
	}
	if want := "07d7 sender-2007@example.net, 07d6 sender-2006@example.net, 07d5 sender-2005@example.net"; strings.Join(got, ", ") != want || s.More["rejections"] != maxLatest-3 {
		t.Errorf("got %s and %d more", strings.Join(got, ", "), s.More["rejections"])
	}
}

// TestRegions checks the totals by AS number and country, including unknown places.
// Without a database, the report must not have lists of places.
func TestRegions(t *testing.T) {
	c := collect(t,
		session(t, 1, "192.0.2.1", noon, found("no-mail", "high", "")), session(t, 2, "192.0.2.1", noon),
		session(t, 3, "192.0.2.200", noon), session(t, 4, "198.51.100.1", noon), session(t, 5, "203.0.113.1", noon, store.Step{Kind: store.KindCommit}),
	)
	if s := c.Summary(noon, noon, 10, nil); s.ASNumbers != nil || s.Countries != nil {
		t.Errorf("lists without a database: %v, %v", s.ASNumbers, s.Countries)
	}
	c.Locate(func(a netip.Addr) (p Place) {
		switch a.As4()[0] {
		case 192:
			return Place{"AS64500", "Example " + hostile, "NL"}
		case 198:
			return Place{AS: "AS64501", Country: "NL"}
		}
		return p
	})
	s := c.Summary(noon, noon, 2, nil)
	line := func(all []Region) (text string) {
		for _, r := range all {
			text += fmt.Sprintf("%q %d/%d %d %d; ", r.Name, r.Found, r.Sessions, r.Addresses, r.Mails)
		}
		return text
	}
	if got, want := line(s.ASNumbers), `"AS64500" 1/3 2 0; "" 0/1 1 1; `; got != want || s.More["as_numbers"] != 1 {
		t.Errorf("AS numbers: %s and %d more, want %s", got, s.More["as_numbers"], want)
	}
	if got, want := line(s.Countries), `"NL" 1/4 3 0; "" 0/1 1 1; `; got != want {
		t.Errorf("countries: %s, want %s", got, want)
	}
	checkNoRaw(t, pageOf(t, &Page{Summary: s}))
}

func TestChange(t *testing.T) {
	for _, c := range []struct {
		now, before int
		want        string
	}{
		{0, 0, "±0"}, {5, 5, "±0"}, {12, 10, "+2 (+20 %)"}, {9, 12, "−3 (−25 %)"}, {0, 4, "−4 (−100 %)"}, {7, 0, "+7"},
		{1001, 1000, "+1 (<1 %)"}, {999, 1000, "−1 (<1 %)"}, {25_000, 1, "+24,999 (+2,499,900 %)"},
	} {
		if got := change(c.now, c.before); got != c.want {
			t.Errorf("%d after %d: %s, want %s", c.now, c.before, got, c.want)
		}
	}
}

// texts returns the text of each element of a page with the given name and class.
func texts(t *testing.T, page []byte, name string) (all []string) {
	t.Helper()
	root, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode || n.Data != name {
			continue
		}
		var b strings.Builder
		for d := range n.Descendants() {
			if d.Type == html.TextNode {
				b.WriteString(d.Data + " ")
			}
		}
		all = append(all, strings.Join(strings.Fields(b.String()), " "))
	}
	return all
}

// TestPageObserve checks that the page for observe mode does not report any session as
// rejected or banned, and that the lists of decisions show the mode.
func TestPageObserve(t *testing.T) {
	s := collect(t,
		session(t, 1, "192.0.2.1", noon, found("harvest", "high", ""), rejected("tight", false)),
		session(t, 2, "192.0.2.2", noon, store.Step{Kind: store.KindCommit}),
		record(t, store.Record{ID: 3, Src: netip.MustParseAddrPort("192.0.2.2:25"), FCrDNS: smtp.FCrDNSPass}, rejected("tight", false)),
	).Summary(noon.Add(-time.Hour), noon, 10, nil)
	page := pageOf(t, &Page{Summary: s, Site: Site{Mode: "observe", Made: noon}, Bans: Bans{List: []ActiveBan{{Prefix: "192.0.2.1", Rule: "tight", Until: noon.Add(time.Hour), Observed: true}}}})
	var all []string
	for _, name := range []string{"h2", "li", "th", "td"} {
		all = append(all, texts(t, page, name)...)
	}
	would, columns := 0, 0
	for _, line := range all {
		rest := strings.NewReplacer("would be rejected", "", "would have rejected", "", "would be banned", "", "Observed bans", "", "recipients rejected", "", "banned until", "").Replace(line)
		would += strings.Count(line, "would")
		switch {
		case rest == "bans":
		case rest == "rejected": // the column of the timeline, whose numbers are 0
			columns++
		case strings.Contains(rest, "reject"), strings.Contains(rest, "ban"):
			t.Errorf("the page says %q", line)
		}
	}
	if columns != 1 {
		t.Errorf("%d columns of rejected sessions", columns)
	}
	if would < 6 {
		t.Errorf("%d times would", would)
	}
	if n := strings.Count(string(page), `<span class="mode observe">mode observe</span>`); n < 7 {
		t.Errorf("the mode is there %d times", n)
	}
}

// TestPageSize checks that the size of a page with very long lists is limited, and that
// the page shows the number of omitted rows.
func TestPageSize(t *testing.T) {
	const n = 3000
	s := collect(t).Summary(noon, noon, 1, nil)
	for i := range n {
		x := Source{Address: fmt.Sprint("host ", i), Evidence: "no-mail", Last: Time{Time: noon}}
		s.Scanning, s.GoodMail, s.Auth = append(s.Scanning, x), append(s.GoodMail, x), append(s.Auth, x)
		s.Rejections = append(s.Rejections, Rejection{Reference: fmt.Sprint(i), Rule: "tight", End: Time{Time: noon}})
		s.Suspects = append(s.Suspects, SuspectRefusal{Address: x.Address, Refused: 1, Last: Time{Time: noon}})
		s.Evidence, s.Helo, s.Organisations = append(s.Evidence, Name{Name: "x"}), append(s.Helo, Name{Name: "x"}), append(s.Organisations, Name{Name: "x"})
	}
	s.More["scanning"] = 5
	page := pageOf(t, &Page{Summary: s})
	if got, most := len(page), 8<<20; got > most {
		t.Errorf("%d bytes, want at most %d", got, most)
	}
	if got := strings.Count(string(page), "<tr"); got > 9*(maxRows+1)+100 {
		t.Errorf("%d rows", got)
	}
	if want := fmt.Sprintf("and %d more;", n-maxRows+5); !strings.Contains(string(page), want) {
		t.Errorf("the page does not say %q", want)
	}
}

// TestFilters checks that each filter's count equals the number of rows with the
// filter's mark.
func TestFilters(t *testing.T) {
	tab := &table{}
	for i := range 40 {
		tab.add(fmt.Sprint("kind ", i%13), fmt.Sprint(i))
		if i%2 == 0 {
			tab.mark("even")
		}
	}
	tab.filter(firstRows)
	if len(tab.Filters) != maxFilters || tab.Filters[0] != (filter{"first", firstRows}) || tab.Filters[1] != (filter{"all", 40}) || tab.Filters[2] != (filter{"even", 20}) {
		t.Errorf("filters: %v", tab.Filters)
	}
	rows := make([]int, len(tab.Filters))
	for _, r := range tab.Rows {
		for _, m := range r.Marks {
			rows[m]++
		}
	}
	for i, f := range tab.Filters {
		if f.Rows != rows[i] {
			t.Errorf("filter %s: %d rows, want %d", f.Text, rows[i], f.Rows)
		}
	}
}
