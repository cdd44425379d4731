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

// hostile contains texts that have an effect unless they are escaped.
var hostile = []string{
	`</title><script>parent.harmed=1</script>`,
	`"><img src=/fetched onerror=parent.harmed=2>`,
	`</style><style>@import url(/fetched);`,
	`<svg onload=parent.harmed=3><iframe src=/fetched>`,
	`javascript:parent.harmed=4`,
	strings.Repeat("a-name-without-a-blank-", 11),
	"\x1b[31m\u202eright to left",
}

// page returns a report on clients that send such texts.
func page(t *testing.T) []byte {
	t.Helper()
	noon := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c, r := report.NewCollector(memory.Number), report.NewReturns(memory.Number)
	for i := range 200 {
		text := []byte(hostile[i%len(hostile)])
		var b []byte
		for _, s := range []store.Step{
			{Kind: store.KindHelo, Text: text},
			{Kind: store.KindFinding, Text: []byte("scanner"), Org: text, Confidence: []byte("medium"), By: []byte("rdns")},
			{Kind: store.KindFinding, Text: text, Confidence: []byte("medium")},
			{Kind: store.KindMail, Text: text, Result: smtp.ResultOK},
			{Kind: store.KindRcpt, Text: append([]byte("a@"), text...), Result: smtp.ResultPermfail},
			{Kind: store.KindVerdict, Text: text, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: true},
			{Kind: store.KindBan, Text: text, Enforced: true},
		} {
			b = store.AppendStep(b, &s, time.Millisecond)
		}
		src := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		if i%3 == 0 {
			src = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i), 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb})
		}
		end := noon.Add(-time.Duration(i) * 7 * time.Minute)
		rec := &store.Record{ID: uint64(i), Start: end.Add(-time.Second), End: end, Src: netip.AddrPortFrom(src, 25), RDNS: text, FCrDNS: smtp.FCrDNSPass,
			Counts: store.Counts{RcptPermfail: 1, AuthFail: uint32(i % 2)}}
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
	var b bytes.Buffer
	s := c.Summary(noon.Add(-24*time.Hour), noon, 10, []string{`<b>` + strings.Repeat("long", 50)})
	if err := s.HTML(&b, r.Summary(time.Time{}, noon.Add(2*24*time.Hour), nil), time.UTC); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frame shows the page in a frame of the given width, opens all details, and
// writes the result into its title. The script belongs to the test: the page
// has none.
const frame = `<!DOCTYPE html><link rel="icon" href="data:,"><style>iframe{border:0;width:%dpx;height:4000px}</style><iframe src="/page"></iframe>
<script>onload = () => {
	const d = frames[0].document, w = frames[0];
	for (const x of d.querySelectorAll('details')) x.open = true;
	const right = x => x.getBoundingClientRect().right;
	const wide = [...d.querySelectorAll('body *')].filter(x => !x.closest('svg') &&
		right(x) > (x.parentElement.closest('section') ? right(x.closest('section')) - 8 : w.innerWidth) + 0.5);
	document.title = JSON.stringify({
		width: w.innerWidth, scroll: d.documentElement.scrollWidth, harmed: window.harmed || 0,
		resources: w.performance.getEntriesByType('resource').length,
		wide: wide.slice(0, 5).map(x => x.tagName + ': ' + x.textContent.slice(0, 60)),
		charts: [...d.querySelectorAll('figure svg')].filter(x => x.getBoundingClientRect().height > 30 && x.getBoundingClientRect().width > 100).length,
		paper: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
	});
}</script>`

type seen struct {
	Width, Scroll, Harmed, Resources, Charts int
	Wide                                     []string
	Paper, Ink                               string
}

// TestBrowser checks in Chromium that the page loads and runs nothing, fits the
// width of the window, and follows the colour scheme of the reader.
func TestBrowser(t *testing.T) {
	require.Full(t)
	chromium := require.Program(t, "chromium")
	text := page(t)
	for _, c := range []struct {
		width int
		dark  bool
	}{{360, false}, {1280, true}} {
		t.Run(fmt.Sprint(c.width), func(t *testing.T) {
			var mu sync.Mutex
			var asked []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				asked = append(asked, r.URL.Path)
				mu.Unlock()
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				switch r.URL.Path {
				case "/frame":
					fmt.Fprintf(w, frame, c.width)
				case "/page":
					w.Write(text)
				default:
					http.NotFound(w, r)
				}
			}))
			defer server.Close()
			scheme := map[bool]string{true: "0", false: "1"}[c.dark]
			cmd := exec.CommandContext(t.Context(), chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
				"--disable-background-networking", "--blink-settings=preferredColorScheme="+scheme, "--user-data-dir="+t.TempDir(), "--window-size=1400,1000",
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
			var got seen
			if err := json.Unmarshal([]byte(html.UnescapeString(string(m[1]))), &got); err != nil {
				t.Fatalf("%v: %s", err, m[1])
			}
			if got.Width != c.width || got.Scroll > got.Width || len(got.Wide) > 0 {
				t.Errorf("%d pixels are needed of %d; too wide: %q", got.Scroll, got.Width, got.Wide)
			}
			if got.Harmed != 0 || got.Resources != 0 {
				t.Errorf("script %d ran, %d resources loaded", got.Harmed, got.Resources)
			}
			if got.Charts < 5 {
				t.Errorf("%d charts are visible", got.Charts)
			}
			if paperIsDark, inkIsDark := dark(t, got.Paper), dark(t, got.Ink); paperIsDark != c.dark || inkIsDark == c.dark {
				t.Errorf("dark %v: %s on %s", c.dark, got.Ink, got.Paper)
			}
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(asked)
			if !slices.Equal(asked, []string{"/frame", "/page"}) {
				t.Errorf("the browser asked for %q", asked)
			}
		})
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
