// Package pages checks the HTML report in a browser.
package pages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/internal/smtp"

	"scanwatch/filter/memory"
	"scanwatch/store"
	"scanwatch/store/report"
	"scanwatch/tests/internal/require"
)

// hostile lists strings that would have an effect if they were not escaped.
var hostile = []string{
	`</title><script>parent.harmed=1</script>`,
	`"><img src=/fetched onerror=parent.harmed=2>`,
	`</style><style>@import url(/fetched);`,
	`<svg onload=parent.harmed=3><iframe src=/fetched>`,
	`javascript:parent.harmed=4`,
	strings.Repeat("a-name-without-a-blank-", 11),
	"\x1b[31m\u202eright to left",
}

// tested is a page, with the numbers that its cells must contain for each weekday and hour: the
// number of sessions, and the number of sessions with findings.
type tested struct {
	html  []byte
	hours map[string][2]int
}

// zone returns a time zone whose clock changes during the week of the page.
func zone(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

// page returns a report on clients that send hostile text.
func page(t *testing.T) tested {
	t.Helper()
	noon := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c, r := report.NewCollector(memory.Number), report.NewReturns(memory.Number)
	c.Locate(func(a netip.Addr) report.Place {
		text := hostile[int(a.As16()[15])%len(hostile)]
		return report.Place{AS: "AS64500 " + text, Org: text, Country: text}
	})
	hours := map[string][2]int{}
	for i := range 900 {
		text := []byte(hostile[i%len(hostile)])
		steps := []store.Step{
			{Kind: store.KindHelo, Text: text},
			{Kind: store.KindFinding, Text: []byte("scanner"), Org: text, Confidence: []byte("medium"), By: []byte("rdns")},
			{Kind: store.KindFinding, Text: text, Confidence: []byte("medium")},
			{Kind: store.KindMail, Text: text, Result: smtp.ResultOK},
			{Kind: store.KindRcpt, Text: append([]byte("a@"), text...), Result: smtp.ResultPermfail},
			{Kind: store.KindAuth, Text: text, Result: smtp.ResultFail},
			{Kind: store.KindVerdict, Text: text, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: i%2 == 0},
			{Kind: store.KindBan, Text: text, Enforced: true},
		}
		end := noon.Add(-time.Duration(i) * 11 * time.Minute)
		hour := end.In(zone(t)).Format("Mon 15")
		n := hours[hour]
		if n[0]++; i%4 == 3 {
			steps = steps[:1]
		} else {
			n[1]++
		}
		hours[hour] = n
		var b []byte
		for _, s := range steps {
			b = store.AppendStep(b, &s, time.Millisecond)
		}
		src := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		if i%3 == 0 {
			src = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i), 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb})
		}
		rec := &store.Record{ID: uint64(i), Start: end.Add(-time.Second), End: end, Src: netip.AddrPortFrom(src, 25), RDNS: text, FCrDNS: smtp.FCrDNSPass,
			Counts: store.Counts{RcptPermfail: 1, AuthFail: uint32(i % 2), Mails: uint32(i % 4 / 3)}}
		d, err := store.Decode(store.AppendKey(nil, end, rec.ID), store.AppendRecord(nil, rec, b))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Add(&d); err != nil {
			t.Fatal(err)
		}
		if err := r.Add(&d); err != nil {
			t.Fatal(err)
		}
	}
	p := &report.Page{
		Summary: c.Summary(noon.AddDate(0, 0, -7).In(zone(t)), noon, 40, []string{`<b>` + strings.Repeat("long", 50)}),
		Returns: r.Summary(time.Time{}, noon.Add(2*24*time.Hour), nil),
		Site:    report.Site{Made: noon, Server: "mx.example.org", Mode: "observe", Policy: strings.Repeat("/long", 40)},
		Before:  report.Before{Since: noon.AddDate(0, 0, -14), Until: noon.AddDate(0, 0, -7), Figures: report.Figures{Sessions: 3, Mails: 1_000_000}},
	}
	for i := range 25 {
		p.Bans.List = append(p.Bans.List, report.ActiveBan{Prefix: fmt.Sprintf("2001:db8:1111:22%02d::/64", i), Name: hostile[i%5], Rule: hostile[i%5], Until: noon.Add(1000 * time.Hour)})
	}
	p.Scanning[0].Banned = report.Time{Time: noon.Add(time.Hour)}
	var b bytes.Buffer
	if err := p.HTML(&b, zone(t)); err != nil {
		t.Fatal(err)
	}
	return tested{b.Bytes(), hours}
}

// frame shows the page in a frame of the given width, opens all details, and writes the result into
// its own title. The script belongs to the test, because the page contains no script.
const frame = `<!DOCTYPE html><link rel="icon" href="data:,"><style>iframe{border:0;width:%dpx;height:4000px}</style><iframe src="/page"></iframe>
<script>onload = () => {
	const d = frames[0].document, w = frames[0], all = (of, what) => [...of.querySelectorAll(what)];
	for (const x of all(d, 'details')) x.open = true;
	const right = x => x.getBoundingClientRect().right, seen = x => x.getClientRects().length > 0;
	const wide = all(d, 'body *').filter(x => !x.closest('svg') && !x.closest('.scroll') &&
		right(x) > (x.parentElement.closest('section') ? right(x.closest('section')) - (x.closest('.numbers') ? 0 : 8) : w.innerWidth) + 0.5);

	// The following functions compute contrast as defined by WCAG 2.
	const rgba = text => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
	const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
	const ratio = (a, b) => { const [x, y] = [light(rgba(a)), light(rgba(b))].sort((x, y) => y - x); return (x + .05) / (y + .05); };
	const paper = x => { for (; x; x = x.parentElement) { const c = w.getComputedStyle(x).backgroundColor; if (rgba(c)[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
	const dim = [];
	const check = (x, ink, ground) => {
		const s = w.getComputedStyle(x), size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.66 && s.fontWeight >= 700;
		if (ratio(ink, ground) < (large ? 3 : 4.5)) dim.push(ratio(ink, ground).toFixed(2) + ' ' + x.tagName + '.' + x.getAttribute('class') + ': ' + x.textContent.slice(0, 30));
	};
	let checked = 0;
	for (const x of all(d, 'body *')) {
		if (!seen(x) || ![...x.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
		if (['title', 'desc', 'style'].includes(x.tagName)) continue;
		checked++;
		const cell = x.tagName == 'text' && x.parentElement.querySelector(':scope > rect');
		check(x, x.tagName == 'text' ? w.getComputedStyle(x).fill : w.getComputedStyle(x).color, cell ? w.getComputedStyle(cell).fill : paper(x));
	}
	// Check the bars and cells that carry information.
	const weak = [];
	for (const x of all(d, 'rect.calm, rect.hot')) {
		const r = ratio(w.getComputedStyle(x).fill, paper(x));
		if (r < 3) weak.push(r.toFixed(2) + ' ' + x.getAttribute('class'));
	}

	// Each filter must show as many rows as it announces.
	const filters = [];
	let choices = 0;
	for (const rows of all(d, '.rows')) for (const input of all(rows, 'input')) {
		input.click();
		choices++;
		const n = all(rows, 'tbody tr').filter(seen).length, want = Number(input.parentElement.textContent.match(/(\d+)$/)[1]);
		if (n != want) filters.push(input.parentElement.textContent + ': ' + n);
	}
	document.title = JSON.stringify({
		width: w.innerWidth, scroll: d.documentElement.scrollWidth, harmed: window.harmed || 0,
		resources: w.performance.getEntriesByType('resource').length,
		wide: wide.slice(0, 5).map(x => x.tagName + ': ' + x.textContent.slice(0, 60)),
		charts: all(d, 'figure svg').filter(x => x.getBoundingClientRect().height > 30 && x.getBoundingClientRect().width > 100).length,
		headings: all(d, 'h1, h2, h3, h4').map(x => x.tagName).join(' '),
		links: all(d, 'a').filter(x => !d.getElementById(x.getAttribute('href').slice(1))).length,
		checked, dim: dim.slice(0, 5), weak: weak.slice(0, 3), choices, filters,
		cells: all(d, '.week g title').map(x => x.textContent),
		paper: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
	});
}</script>`

type seen struct {
	Width, Scroll, Harmed, Resources, Charts, Links int
	Checked, Choices                                int // numbers of checked texts and filters
	Wide, Dim, Weak, Filters, Cells                 []string
	Headings, Paper, Ink                            string
}

// show returns the frame's result for a page of the given width.
func show(t *testing.T, chromium string, page []byte, width int, dark bool) (got seen) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		switch r.URL.Path {
		case "/frame":
			fmt.Fprintf(w, frame, width)
		case "/page":
			w.Write(page)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	scheme := map[bool]string{true: "0", false: "1"}[dark]
	cmd := exec.CommandContext(t.Context(), chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--blink-settings=preferredColorScheme="+scheme, "--user-data-dir="+t.TempDir(), "--window-size=1500,1000",
		"--virtual-time-budget=5000", "--dump-dom", server.URL+"/frame")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	dom, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, stderr.String())
	}
	m := regexp.MustCompile(`<title>(.*?)</title>`).FindSubmatch(dom)
	if m == nil {
		t.Fatalf("the frame has no result:\n%s\n%s", dom, stderr.String())
	}
	if err := json.Unmarshal([]byte(html.UnescapeString(string(m[1]))), &got); err != nil {
		t.Fatalf("%v: %s", err, m[1])
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(asked)
	if !slices.Equal(asked, []string{"/frame", "/page"}) {
		t.Errorf("the browser asked for %q", asked)
	}
	return got
}

// TestBrowser checks the page in Chromium. The page must not load resources or run scripts, and
// must fit the window's width. The page must also use the reader's colour scheme, with the contrast
// that WCAG 2 AA requires. The headings, links, filters and cells must be correct.
func TestBrowser(t *testing.T) {
	require.Full(t)
	chromium := require.Program(t, "chromium")
	page := page(t)
	for _, width := range []int{390, 800, 1400} {
		for _, isDark := range []bool{false, true} {
			t.Run(fmt.Sprint(width, map[bool]string{true: " dark", false: " light"}[isDark]), func(t *testing.T) {
				got := show(t, chromium, page.html, width, isDark)
				if got.Width != width || got.Scroll > got.Width || len(got.Wide) > 0 {
					t.Errorf("%d pixels are needed of %d; too wide: %q", got.Scroll, got.Width, got.Wide)
				}
				if got.Harmed != 0 || got.Resources != 0 {
					t.Errorf("script %d ran, %d resources loaded", got.Harmed, got.Resources)
				}
				if got.Charts != 2 {
					t.Errorf("%d charts are visible", got.Charts)
				}
				if len(got.Dim) > 0 || len(got.Weak) > 0 || got.Checked < 500 {
					t.Errorf("of %d texts, too little contrast: %q; of bars: %q", got.Checked, got.Dim, got.Weak)
				}
				if len(got.Filters) > 0 || got.Choices < 20 {
					t.Errorf("of %d filters, wrong rows: %q", got.Choices, got.Filters)
				}
				if !regexp.MustCompile(`^H1( H2)+$`).MatchString(got.Headings) || got.Links != 0 {
					t.Errorf("headings %s; %d broken links", got.Headings, got.Links)
				}
				if paperIsDark, inkIsDark := dark(t, got.Paper), dark(t, got.Ink); paperIsDark != isDark || inkIsDark == isDark {
					t.Errorf("dark %v: %s on %s", isDark, got.Ink, got.Paper)
				}
				checkCells(t, got.Cells, page.hours)
			})
		}
	}
}

// checkCells checks the cells' titles by weekday and hour.
func checkCells(t *testing.T, titles []string, hours map[string][2]int) {
	t.Helper()
	if len(titles) != 7*24 {
		t.Errorf("%d cells", len(titles))
	}
	for _, title := range titles {
		var day string
		var hour, sessions, found int
		if _, err := fmt.Sscanf(strings.Replace(title, "sessions", "session", 1), "%s from %d:00: %d session, %d with findings", &day, &hour, &sessions, &found); err != nil {
			t.Fatalf("%q: %v", title, err)
		}
		if want := hours[fmt.Sprintf("%s %02d", day, hour)]; want != [2]int{sessions, found} {
			t.Errorf("%s, want %v", title, want)
		}
	}
}

func dark(t *testing.T, color string) bool {
	t.Helper()
	var r, g, b int
	if _, err := fmt.Sscanf(color, "rgb(%d, %d, %d)", &r, &g, &b); err != nil {
		t.Fatalf("color %q: %v", color, err)
	}
	return r+g+b < 3*128
}
