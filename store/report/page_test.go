package report

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"

	"golang.org/x/net/html"

	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// returned returns the summary of returning hosts for the sample.
func returned(t *testing.T) *ReturnSummary {
	t.Helper()
	all := sample(t)
	c := NewReturns(memory.Number)
	for _, name := range order {
		if err := c.Add(all[name]); err != nil {
			t.Fatal(err)
		}
	}
	return c.Summary(time.Time{}, noon.Add(8*24*time.Hour), nil)
}

// paged returns a page with all sections, in enforce mode.
func paged(t *testing.T) *Page {
	t.Helper()
	p := &Page{Summary: refusing(t, 10, "12 sessions were dropped <b>and</b> are not in this report (full=12)"), Returns: returned(t)}
	p.Site = Site{Made: noon, Server: "mx.example.org", Mode: "enforce", Policy: "/etc/scanwatch/scanwatch.conf", Rules: 14, Running: true}
	p.Bans = Bans{More: 2, List: []ActiveBan{
		{Prefix: "192.0.2.7", Name: "scan-01.shadowserver.org (Shadowserver)", Rule: "scanner", Since: noon.Add(-time.Hour), Until: noon.Add(23 * time.Hour), Times: 2, Attempts: 31},
		{Prefix: "198.51.100.0/24", Rule: "a reason", Since: noon.Add(-2 * time.Hour), Until: noon.Add(100 * 24 * time.Hour), Times: 1, Manual: true},
		{Prefix: "2001:db8::/64", Rule: "tight", Since: noon.Add(-3 * time.Hour), Until: noon.Add(time.Minute), Times: 1, Observed: true},
	}}
	p.Scanning[0].Banned = text.At(noon.Add(23 * time.Hour))
	p.Before = Before{Since: noon.Add(-48 * time.Hour), Until: noon.Add(-24 * time.Hour),
		Figures: Figures{Sessions: 1000, Addresses: 7, Found: 5, Mails: 0, RcptPermfail: 60}}
	return p
}

// empty returns a page for a period without sessions and without information
// about the filter.
func empty() *Page {
	return &Page{Summary: NewCollector(memory.Number).Summary(noon.Add(-24*time.Hour), noon, 10, nil), Site: Site{Made: noon},
		Bans: Bans{Problem: "state.db is corrupt"}, Before: Before{Missing: "the records do not reach back to 2026-10-30 12:00"}}
}

func pageOf(t *testing.T, p *Page) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.HTML(&b, zone); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPage(t *testing.T) {
	for name, p := range map[string]*Page{"page": paged(t), "page-empty": empty()} {
		t.Run(name, func(t *testing.T) {
			page := pageOf(t, p)
			golden(t, name, page)
			checkPage(t, page)
			checkNoRaw(t, page)
		})
	}
}

// checkPage fails the test if the page could load a resource or run a script.
func checkPage(t *testing.T, page []byte) (elements []string, text string) {
	t.Helper()
	const policy = "default-src 'none'; style-src 'unsafe-inline'"
	allowed := strings.Fields(`html head meta title style body header nav a h1 h2 p main ul li b span section div code figure svg rect
		line text g desc details summary fieldset legend label input table caption thead tbody tr th td footer`)
	attributes := strings.Fields(`lang charset http-equiv content name class height width x y x1 x2 y1 y2 dy rx role id
		aria-label aria-labelledby aria-hidden scope href type checked data-head`)
	root, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var words strings.Builder
	csp, ids := 0, map[string]bool{}
	for n := range root.Descendants() {
		switch n.Type {
		case html.TextNode:
			words.WriteString(n.Data)
			if n.Parent.Data == "style" {
				for _, bad := range []string{"url", "import", "expression", "\\", "<"} {
					if strings.Contains(n.Data, bad) {
						t.Errorf("the style sheet has %q", bad)
					}
				}
			}
		case html.CommentNode:
			t.Errorf("a comment: %q", n.Data)
		case html.ElementNode:
			elements = append(elements, n.Data)
			if !slices.Contains(allowed, n.Data) {
				t.Errorf("element <%s>", n.Data)
			}
			for _, a := range n.Attr {
				if !slices.Contains(attributes, a.Key) || a.Namespace != "" {
					t.Errorf("attribute %s of <%s>", a.Key, n.Data)
				}
				switch {
				case a.Key == "http-equiv" && n.Attr[1].Val == policy:
					csp++
				case a.Key == "http-equiv":
					t.Errorf("meta %v", n.Attr)
				case a.Key == "id" && ids[a.Val]:
					t.Errorf("id %s is there twice", a.Val)
				case a.Key == "id":
					ids[a.Val] = true
				case a.Key == "href" && !strings.Contains(string(page), ` id="`+strings.TrimPrefix(a.Val, "#")+`"`):
					t.Errorf("a link to %s, which is not on the page", a.Val)
				case a.Key == "type" && a.Val != "radio":
					t.Errorf("an input of type %s", a.Val)
				case a.Key == "aria-labelledby":
					for id := range strings.FieldsSeq(a.Val) {
						if !strings.Contains(string(page), `id="`+id+`"`) {
							t.Errorf("%s is not there to label a chart", id)
						}
					}
				}
			}
			// Every chart must have a name, a description, and a table with its numbers.
			if n.Data == "svg" && !strings.Contains(attrs(n), "aria-hidden=true") {
				if n.FirstChild.NextSibling == nil || !strings.Contains(attrs(n), "role=img") {
					t.Errorf("a chart without a name: %s", attrs(n))
				}
				figure := n.Parent
				if figure.Data != "figure" || !slices.ContainsFunc(slices.Collect(figure.Descendants()), func(n *html.Node) bool { return n.Data == "table" }) {
					t.Errorf("a chart without a table: %s", attrs(n))
				}
			}
		}
	}
	if csp != 1 || !bytes.HasPrefix(page, []byte("<!DOCTYPE html>")) {
		t.Errorf("the page has %d policies, and begins with %.40q", csp, page)
	}
	return elements, words.String()
}

func attrs(n *html.Node) string {
	var b strings.Builder
	for _, a := range n.Attr {
		b.WriteString(a.Key + "=" + a.Val + " ")
	}
	return b.String()
}

// TestPageHostile checks that a page with hostile text has the same elements as a page
// with harmless text.
func TestPageHostile(t *testing.T) {
	harmless, _ := checkPage(t, pageOf(t, filled("x")))
	for _, text := range []string{
		`</title><script>alert(1)</script>`,
		`"><img src=x onerror=alert(1)>`,
		`' onmouseover='alert(1)`,
		`</style><style>body{background:red}`,
		`</desc></svg><a href="javascript:alert(1)">`,
		`<!-- `, `--> ]]>`, `<![CDATA[`, `{{.Problems}}`, `&lt;b&gt;`, `<meta http-equiv=refresh content=0>`, "`${1}`",
		strings.Repeat("long", 200),
	} {
		elements, words := checkPage(t, pageOf(t, filled(text)))
		if !slices.Equal(elements, harmless) {
			t.Errorf("%q makes other elements: %v", text, elements)
		}
		if n := strings.Count(words, text); n < 20 {
			t.Errorf("%q is there %d times", text, n)
		}
	}
}

// filled returns a page with text in every text field.
func filled(text string) *Page {
	p := &Page{}
	fill(reflect.ValueOf(p).Elem(), text)
	p.Before.Missing = "" // otherwise it replaces the comparison
	return p
}

func fill(v reflect.Value, text string) {
	switch {
	case v.Type() == reflect.TypeFor[Time]():
		v.Set(reflect.ValueOf(Time{Time: noon}))
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(noon))
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), text)
		}
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Int && v.CanSet():
		v.SetInt(3)
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), text)
		}
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(text), reflect.ValueOf(3))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), text)
			}
		}
	}
}

// refusing adds possible false positives to the sample and returns its summary. A rule
// rejects a host with accepted mail, an unknown host, and a user.
func refusing(t *testing.T, top int, problems ...string) *Summary {
	t.Helper()
	all := sample(t)
	c := NewCollector(memory.Number)
	for _, name := range order {
		if err := c.Add(all[name]); err != nil {
			t.Fatal(err)
		}
	}
	verdict := func(rule string, enforced bool, d smtp.Decision) store.Step {
		return store.Step{Kind: store.KindVerdict, Text: []byte(rule), Phase: smtp.PhaseRcptTo, Decision: d, Enforced: enforced}
	}
	good, scanner := all["good"].Src, all["scanner"].Src
	for _, r := range []*store.Record{
		record(t, store.Record{ID: 0x2001, Src: good, RDNS: []byte("mail.example.com"), FCrDNS: smtp.FCrDNSPass, End: noon.Add(-time.Hour)},
			mail("alice@example.com"), verdict("clouds", true, smtp.Reject)),
		record(t, store.Record{ID: 0x2002, Src: good, RDNS: []byte("mail.example.com"), FCrDNS: smtp.FCrDNSPass, End: noon.Add(-2 * time.Hour)},
			verdict("clouds", false, smtp.Disconnect), verdict("clouds", false, smtp.Disconnect)),
		record(t, store.Record{ID: 0x2003, Src: all["stray"].Src, FCrDNS: smtp.FCrDNSFail}, verdict("clouds", true, smtp.Junk)),
		record(t, store.Record{ID: 0x2004, Src: scanner, FCrDNS: smtp.FCrDNSPass},
			store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Confidence: []byte("high")}, verdict("scanner", true, smtp.Disconnect)),
		record(t, store.Record{ID: 0x2005, Src: all["login"].Src, End: noon.Add(-3 * time.Hour)},
			store.Step{Kind: store.KindAuth, Text: []byte("bob"), Result: smtp.ResultPass}, verdict("guess", true, smtp.Disconnect)),
		record(t, store.Record{ID: 0x2006, Src: all["relay"].Src, RDNS: []byte(hostile), FCrDNS: smtp.FCrDNSPass},
			mail(hostile+"@example.net"), verdict("tight", false, smtp.Reject)),
		record(t, store.Record{ID: 0x2007, Src: all["harvest"].Src, FCrDNS: smtp.FCrDNSPass},
			store.Step{Kind: store.KindFinding, Text: []byte("no-mail"), Confidence: []byte("high")}, verdict("tight", true, smtp.Reject)),
	} {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	return c.Summary(noon.Add(-24*time.Hour), noon, top, problems)
}

func TestMail(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *Summary
	}{
		{"mail", refusing(t, 10, "filter-scanwatch is not running (no process is listening on /var/lib/scanwatch/control.sock)")},
		{"mail-top-1", refusing(t, 1)},
		{"mail-empty", NewCollector(memory.Number).Summary(noon.Add(-24*time.Hour), noon, 10, nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.s.Mail(&b, zone); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, b.Bytes())
			checkText(t, b.String())
			for l := range strings.Lines(b.String()) {
				if text.Width(strings.TrimSuffix(l, "\n")) > mailColumns {
					t.Errorf("wide: %s", l)
				}
			}
		})
	}
}

// TestNothing checks that the mail summary is omitted only if it would be empty.
func TestNothing(t *testing.T) {
	if s := NewCollector(memory.Number).Summary(noon, noon, 1, nil); !s.Empty() {
		t.Error("there is something in an empty summary")
	}
	if s := NewCollector(memory.Number).Summary(noon, noon, 1, []string{"a problem"}); s.Empty() {
		t.Error("a problem is nothing")
	}
	c := NewCollector(memory.Number)
	all := sample(t)
	if err := c.Add(all["good"]); err != nil {
		t.Fatal(err)
	}
	if s := c.Summary(noon, noon, 1, nil); !s.Empty() {
		t.Error("legitimate mail has the wrong class")
	}
	if err := c.Add(all["scanner"]); err != nil {
		t.Fatal(err)
	}
	if s := c.Summary(noon, noon, 1, nil); s.Empty() {
		t.Error("a finding is nothing")
	}
}

func TestTimeline(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	santiago, err := time.LoadLocation("America/Santiago")
	if err != nil {
		t.Fatal(err)
	}
	kolkata := time.FixedZone("", 5*3600+1800)
	for _, c := range []struct {
		name         string
		since, until time.Time
		ends         []time.Time
		want         string // starts with sessions
	}{
		{"an hour", noon.Add(-time.Hour), noon, []time.Time{noon.Add(-time.Minute), noon},
			"11:00:0 11:15:0 11:30:0 11:45:1 12:00:1"},
		{"an odd begin", noon.Add(-23 * time.Minute), noon, []time.Time{noon.Add(-20 * time.Minute)}, "11:30:1 11:45:0"},
		{"a day has hours", noon.Add(-7 * time.Hour), noon, []time.Time{noon.Add(-90 * time.Minute)},
			"05:00:0 06:00:0 07:00:0 08:00:0 09:00:0 10:00:1 11:00:0"},
		{"days of a zone with half an hour", noon.Add(-5 * 24 * time.Hour).In(kolkata), noon, []time.Time{
			time.Date(2026, 10, 29, 18, 29, 0, 0, time.UTC), time.Date(2026, 10, 29, 18, 31, 0, 0, time.UTC)},
			"00:00:0 00:00:0 00:00:1 00:00:1 00:00:0 00:00:0"},
		{"a day of 25 hours", time.Date(2026, 10, 24, 0, 0, 0, 0, berlin), time.Date(2026, 10, 29, 23, 0, 0, 0, berlin), []time.Time{
			time.Date(2026, 10, 25, 22, 59, 0, 0, time.UTC), time.Date(2026, 10, 25, 23, 1, 0, 0, time.UTC)},
			"00:00:0 00:00:1 00:00:1 00:00:0 00:00:0 00:00:0"},
		{"a day without midnight", time.Date(2026, 9, 4, 9, 0, 0, 0, santiago), time.Date(2026, 9, 8, 12, 0, 0, 0, santiago), []time.Time{
			time.Date(2026, 9, 6, 3, 59, 0, 0, time.UTC), time.Date(2026, 9, 6, 4, 0, 0, 0, time.UTC), time.Date(2026, 9, 7, 2, 59, 0, 0, time.UTC), time.Date(2026, 9, 7, 3, 0, 0, 0, time.UTC)},
			"00:00:0 00:00:1 01:00:2 00:00:1 00:00:0"},
		{"hours of a zone with half an hour", noon.Add(-7 * time.Hour).In(kolkata), noon, []time.Time{noon.Add(-time.Hour)},
			"10:00:0 11:00:0 12:00:0 13:00:0 14:00:0 15:00:0 16:00:1 17:00:0"},
		{"years", time.Time{}, noon, []time.Time{noon.Add(-200 * 24 * time.Hour), noon}, ""},
		{"nobody", noon.Add(-time.Hour), noon, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			collector := NewCollector(memory.Number)
			for _, end := range c.ends {
				*collector.quarters.at(end) = Span{Sessions: 1, Found: 1}
			}
			var got []string
			sum := 0
			for _, s := range collector.timeline(c.since, c.until) {
				got = append(got, s.Start.Format("15:04:")+string(rune('0'+s.Sessions)))
				sum += s.Sessions
			}
			if text := strings.Join(got, " "); c.want != "" && text != c.want {
				t.Errorf("got %s, want %s", text, c.want)
			}
			if sum != len(c.ends) || len(got) > 110 {
				t.Errorf("%d of %d sessions in %d stretches", sum, len(c.ends), len(got))
			}
		})
	}
}

// TestTimeLabels checks the hour labels on days with a clock change.
func TestTimeLabels(t *testing.T) {
	for _, c := range []struct{ zone, since, want string }{
		{"America/Santiago", "2026-09-05T21:00:00Z", "18:00 20:00 22:00 6 Sep 02:00 04:00"}, // 5 September 17:00 to 6 September 5:00
		{"America/Havana", "2026-11-01T01:00:00Z", "22:00 1 Nov 02:00 04:00 06:00"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		start, err := time.Parse(time.RFC3339, c.since)
		if err != nil {
			t.Fatal(err)
		}
		var spans []Span
		for i := range 12 {
			spans = append(spans, Span{Start: Time{Time: start.Add(time.Duration(i) * time.Hour)}})
		}
		var got []string
		for _, l := range timeLabels(spans, time.Hour, zone) {
			got = append(got, l.Text)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %s", c.zone, got, c.want)
		}
	}
}

func TestCeiling(t *testing.T) {
	for n, want := range map[int]int{0: 2, 1: 2, 2: 2, 3: 4, 9: 10, 11: 20, 324: 400, 1000: 1000, 999_999: 1_000_000} {
		if got := ceiling(n); got != want {
			t.Errorf("ceiling of %d: got %d, want %d", n, got, want)
		}
	}
}

func BenchmarkPage(b *testing.B) {
	p := filled("name.example.net")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.HTML(&discard{}, time.UTC); err != nil {
			b.Fatal(err)
		}
	}
}
