package fetch

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scanwatch/filter/lookup/feed"
)

var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// TestMain runs TestKill's child process if the environment requests it.
func TestMain(m *testing.M) {
	if at := os.Getenv("SCANWATCH_TEST_KILL"); at != "" {
		child(at)
	}
	os.Exit(m.Run())
}

// list returns a list of n networks, starting at the given number.
func list(first, n int) string {
	var b strings.Builder
	for i := first; i < first+n; i++ {
		fmt.Fprintf(&b, "198.%d.%d.0/24\n", 51+i/200, i%200)
	}
	return b.String()
}

// A site is a server with one file, and its client.
type site struct {
	*httptest.Server
	feed    Feed
	options Options
	now     time.Time
	answer  http.HandlerFunc
	mu      sync.Mutex // needed because a request of a killed process may still be running
	asked   []*http.Request
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{now: noon}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r)
		s.mu.Unlock()
		w.Header()["Date"] = nil // the server's clock differs from the tests' clock
		s.answer(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients may reject the server's certificate
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	s.options = Options{Now: func() time.Time { return s.now }, Roots: roots, Agent: "scanwatch/test",
		Own: []netip.Prefix{netip.MustParsePrefix("203.0.113.25/32")}}
	s.feed = Feed{Name: "drop", File: filepath.Join(t.TempDir(), "drop.txt"), URL: s.URL + "/drop.txt", Format: "addresses"}
	return s
}

// run updates the file at the earliest possible time.
func (s *site) run(t *testing.T) Result {
	t.Helper()
	r := s.feed.Run(t.Context(), s.options)
	s.now = s.now.Add(7 * 24 * time.Hour)
	return r
}

func says(content string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, content) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func (s *site) content(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(s.feed.File)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDoubts checks that every kind of invalid response leaves the previous file in place, and that
// the reason names the problem.
func TestDoubts(t *testing.T) {
	other := httptest.NewTLSServer(says(list(0, 100)))
	defer other.Close()
	page := "<!DOCTYPE html>\n<html><body>Umm... You can only fetch the data every 30 minutes.</body></html>\n"
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   Outcome
		why    string
	}{
		{"500", status(500), Failed, "the server answers 500 Internal Server Error"},
		{"404", status(404), Failed, "the server answers 404 Not Found"},
		{"429", status(429), Failed, "the server answers 429 Too Many Requests"},
		{"304 without a condition", status(304), Failed, "the server answers 304"},
		{"partial", status(206), Failed, "the server answers 206"},
		{"redirect to another host", http.RedirectHandler(other.URL, http.StatusFound).ServeHTTP, Failed, "redirected to another host, https://127.0.0.1:"},
		{"redirect without TLS", http.RedirectHandler("http://example.org/x", http.StatusFound).ServeHTTP, Failed, "redirected to another host, http://example.org"},
		{"redirects for ever", http.RedirectHandler("/drop.txt", http.StatusFound).ServeHTTP, Failed, "more than 5 redirects"},
		{"huge, announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(feed.MaxBytes+1))
		}, Failed, "larger than 64 MiB"},
		{"huge", func(w http.ResponseWriter, _ *http.Request) {
			line := bytes.Repeat([]byte("192.0.2.1\n"), 1<<16)
			for range feed.MaxBytes/len(line) + 1 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, Failed, "larger than 64 MiB"},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2000")
			io.WriteString(w, list(0, 80))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, Failed, "incomplete: the connection ended after"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, Failed, "closed the connection without answering"},
		{"cut in chunks", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, list(0, 80))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, Failed, "incomplete: the connection ended after"},
		{"no end", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+list(0, 80))
			conn.Close()
		}, Failed, "does not mark the end of the file"},
		{"HTML", says(page), Kept, "web page"},
		{"text of an error", says("Too many requests.\nTry again later.\n"), Kept, "none of 2 entries is valid"},
		{"empty", says(""), Kept, "no entries"},
		{"halved", says(list(0, 49)), Kept, "has 49 entries, fewer than half of the previous 100"},
		{"tripled", says(list(0, 301)), Kept, "has 301 entries, more than three times the previous 100"},
		{"repeated entries", says(strings.Repeat(list(0, 40), 3)), Kept, "has 40 entries, fewer than half"},
		{"wide prefix", says(list(0, 100) + "8.0.0.0/7\n"), Kept, "a prefix wider than /8"},
		{"default route", says(list(0, 100) + "0.0.0.0/0\n"), Kept, "a prefix wider than /8"},
		{"wide IPv6 prefix", says(list(0, 100) + "2000::/3\n"), Kept, "a prefix wider than /8"},
		{"own address", says(list(0, 100) + "203.0.113.0/24\n"), Kept, "contains 203.0.113.0/24, which overlaps this host's address or gateway 203.0.113.25"},
		{"another format", says(list(0, 100) + strings.Repeat("x y z\n", 12)), Kept, "12 of 112 entries are invalid"},
		{"broken gzip", says("\x1f\x8b" + list(0, 100)), Kept, "gzip: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.answer = says(list(0, 100))
			if r := s.run(t); r.Outcome != Updated || r.Entries != 100 || r.Added != 100 {
				t.Fatalf("%+v", r)
			}
			s.answer = c.answer
			if r := s.run(t); r.Outcome != c.want || !strings.Contains(r.Why, c.why) {
				t.Errorf("%s: %s; want %s: %s", r.Outcome, r.Why, c.want, c.why)
			}
			if s.content(t) != list(0, 100) {
				t.Error("the previous file was changed")
			}
			s.answer = says(list(10, 100))
			if r := s.run(t); r.Outcome != Updated || r.Added != 10 || r.Removed != 10 {
				t.Errorf("afterwards: %+v", r)
			}
			if s.content(t) != list(10, 100) {
				t.Error("the new file is not in use")
			}
			if names := files(t, s.feed.File); !slices.Equal(names, []string{"drop.txt", "drop.txt.meta"}) {
				t.Errorf("files %v", names)
			}
		})
	}
}

// TestSpace checks that a list is doubted if it covers too much address space, although each of its
// prefixes is plausible. There may or may not be a previous list.
func TestSpace(t *testing.T) {
	series := func(format string, from, to int) string {
		var b strings.Builder
		for i := from; i < to; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	hosts := series("198.51.100.%d\n", 0, 100)
	for _, c := range []struct{ name, before, now, why string }{
		{"all of IPv4", "", series("%d.0.0.0/8\n", 1, 10) + series("%d.0.0.0/8\n", 11, 127) + series("%d.0.0.0/8\n", 128, 169), "covers 2768240640 IPv4 addresses, more than 268435456"},
		{"a sixteenth", series("%d.0.0.0/8\n", 20, 30), series("%d.0.0.0/8\n", 20, 36), ""},
		{"a sixteenth without a previous list", "", series("%d.0.0.0/8\n", 20, 36), "covers 268435456 IPv4 addresses, more than 3145728, and there is no previous list"},
		{"three /12 without a previous list", "", "20.0.0.0/12\n20.16.0.0/12\n20.32.0.0/12\n", ""},
		{"a sixteenth after names", series("host%d.example.net\n", 0, 20), series("%d.0.0.0/8\n", 20, 36), "there is no previous list"},
		{"a sixteenth after a comment", "# nothing\n", series("%d.0.0.0/8\n", 20, 36), "there is no previous list"},
		{"a sixteenth after a damaged list", "xx yy zz\n<html>\n", series("%d.0.0.0/8\n", 20, 36), "there is no previous list"},
		{"an IPv6 /16 without a previous list", "", series("2a%02x::/19\n", 0, 8), "covers 65536 IPv6 networks /32, more than 768, and there is no previous list"},
		{"a sixteenth and a host", "", series("%d.0.0.0/8\n", 20, 36) + "8.8.8.8\n", "covers 268435457 IPv4 addresses"},
		{"nested networks", series("%d.0.0.0/8\n", 20, 30) + series("20.%d.0.0/16\n", 0, 256), series("%d.0.0.0/8\n", 20, 36) + series("20.%d.0.0/16\n", 0, 256) + "20.0.0.0/8\n", ""},
		{"an IPv6 /16", series("2a%02x::/19\n", 0, 4), series("2a%02x::/19\n", 0, 8), ""},
		{"more than an IPv6 /16", "", series("2a%02x::/19\n", 0, 9), "covers 73728 IPv6 networks /32, more than 65536"},
		{"hosts and a /8", hosts, hosts + "20.0.0.0/8\n", "covers 16777316 IPv4 addresses, more than three times the previous 100"},
		{"hosts and a /12", hosts, hosts + "20.0.0.0/12\n", ""},
		{"hosts and an IPv6 /20", hosts, hosts + "2a00::/20\n", "covers 4096 IPv6 networks /32, more than 768, and there is no previous list"},
		{"hosts and IPv6 hosts", hosts, hosts + series("2a00:%x::1\n", 1, 99), ""},
		{"three times", series("20.%d.0.0/16\n", 0, 100), series("20.%d.0.0/16\n", 0, 99) + "21.0.0.0/8\n", "more than three times the previous 6553600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			if c.before != "" {
				os.WriteFile(s.feed.File, []byte(c.before), 0o644)
			}
			s.answer = says(c.now)
			r := s.run(t)
			if c.why == "" && r.Outcome != Updated || c.why != "" && (r.Outcome != Kept || !strings.Contains(r.Why, c.why)) {
				t.Errorf("%+v, want %q", r, c.why)
			}
			s.options.Any = true
			if r := s.run(t); r.Outcome != Updated && r.Outcome != Unchanged || s.content(t) != c.now {
				t.Errorf("any size: %+v", r)
			}
		})
	}
}

// TestIncomplete checks that an incomplete DROP list and a list of too many AS numbers are doubted,
// even if there is no previous list.
func TestIncomplete(t *testing.T) {
	const entry, end = "{\"cidr\":\"198.51.100.0/24\"}\n", "{\"type\":\"metadata\",\"records\":%d}\n"
	numbers := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "AS%d\n", 100+i)
		}
		return b.String()
	}
	for _, c := range []struct{ name, format, content, why string }{
		{"complete", "spamhaus-drop", entry + fmt.Sprintf(end, 1), ""},
		{"without its end", "spamhaus-drop", entry, "no metadata line at the end"},
		{"without an entry", "spamhaus-drop", entry + fmt.Sprintf(end, 2), "the metadata gives 2 entries, but the list has 1"},
		{"many AS numbers", "asn-list", numbers(maxASNs), ""},
		{"too many AS numbers", "asn-list", numbers(maxASNs + 1), "has 8193 AS numbers, more than 8192"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.feed.Format, s.answer = c.format, says(c.content)
			r := s.run(t)
			if c.why == "" && r.Outcome != Updated || c.why != "" && (r.Outcome != Kept || !strings.Contains(r.Why, c.why)) {
				t.Errorf("%+v, want %q", r, c.why)
			}
			s.options.Any = true
			if r := s.run(t); r.Outcome != Updated && r.Outcome != Unchanged {
				t.Errorf("any size: %+v", r)
			}
		})
	}
}

// TestNames checks that a list that covers public suffixes or this host is doubted.
func TestNames(t *testing.T) {
	for _, c := range []struct{ entry, why, any string }{
		{"com", "contains the public suffix com", "public suffix"},
		{".org", "contains the public suffix .org", "public suffix"},
		{"*.co.uk", "contains the public suffix *.co.uk", "public suffix"},
		{"ylmf-pc", "contains ylmf-pc, a name without a dot", ""},
		{"MX.example.com", "contains mx.example.com, which covers this host's name mx.example.com", "host's name"},
		{".example.com", "contains .example.com, which covers this host's name", "host's name"},
		{"dyn.example.com", "", ""},
		{"mple.com", "", ""},
		{"*.github.io", "", ""},
	} {
		s := newSite(t)
		s.feed.Format, s.options.Names = "plain", []string{"mx.example.com"}
		s.answer = says("scan.example.net\n" + c.entry + "\n")
		r := s.run(t)
		if c.why == "" && r.Outcome != Updated || !strings.Contains(r.Why, c.why) {
			t.Errorf("%s: %+v, want %q", c.entry, r, c.why)
		}
		if own := c.any == "host's name"; own {
			s.feed.Exempts = true
			if r := s.run(t); r.Outcome != Updated {
				t.Errorf("%s exempted: %+v", c.entry, r)
			}
			s.feed.Exempts = false
		}
		s.options.Any = true
		if r := s.run(t); (r.Outcome == Kept) != (c.any != "") || !strings.Contains(r.Why, c.any) {
			t.Errorf("%s, any size: %+v", c.entry, r)
		}
	}
	if names := OwnNames("MX.Example.org."); names[0] != "mx.example.org" {
		t.Errorf("own names %q", names)
	}
}

// TestAnySize checks that the result gives the time from which --any-size can be used.
func TestAnySize(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	s.run(t)
	s.answer = says(list(0, 10))
	asked := s.now
	r := s.run(t)
	if want := asked.Add(DefaultLeast); r.Outcome != Kept || r.AnySize != want {
		t.Errorf("%+v, want %v", r, want)
	}
	s.now, s.options.Any, s.options.Early = r.AnySize, true, true
	if r := s.run(t); r.Outcome != Updated || !r.AnySize.IsZero() {
		t.Errorf("%+v", r)
	}
	s.answer = says("<html>")
	if r := s.run(t); r.Outcome != Kept || !r.AnySize.IsZero() {
		t.Errorf("a web page: %+v", r)
	}
}

// files returns the names of the files in a file's directory, except the lock.
func files(t *testing.T, name string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Dir(name))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Name() != lockName {
			names = append(names, f.Name())
		}
	}
	return names
}

// TestSlow checks that a response that never ends is an error.
func TestSlow(t *testing.T) {
	for name, sent := range map[string]string{"no answer": "", "half an answer": list(0, 50)} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.options.Timeout = 100 * time.Millisecond
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				if sent != "" {
					io.WriteString(w, sent)
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done()
			}
			if r := s.run(t); r.Outcome != Failed || r.Why != errTimeout.Error() {
				t.Errorf("%+v", r)
			}
			if _, err := os.Stat(s.feed.File); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		})
	}
}

// TestCertificate checks that a server without a valid certificate causes an error.
func TestCertificate(t *testing.T) {
	s := newSite(t)
	s.answer, s.options.Roots = says(list(0, 100)), x509.NewCertPool()
	if r := s.run(t); r.Outcome != Failed || !strings.Contains(r.Why, "certificate") || len(s.asked) != 0 {
		t.Errorf("%+v", r)
	}
}

// TestConditions checks that requests include the file's validators, unless the file was changed or
// removed.
func TestConditions(t *testing.T) {
	s := newSite(t)
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
		if r.Header.Get("If-None-Match") == `"1"` && r.Header.Get("If-Modified-Since") == "Sun, 01 Nov 2026 00:00:00 GMT" {
			w.WriteHeader(304)
			return
		}
		io.WriteString(w, list(0, 100))
	}
	for i, c := range []struct {
		change func()
		want   Outcome
	}{
		{func() {}, Updated},
		{func() {}, Unchanged},
		{func() { os.WriteFile(s.feed.File, []byte(list(5, 100)), 0o644) }, Updated},
		{func() { os.Remove(s.feed.File) }, Updated},
		{func() { os.WriteFile(s.feed.File+metaSuffix, []byte("{"), 0o644) }, Unchanged},
		{func() { s.feed.URL += "?" }, Unchanged},
	} {
		c.change()
		if r := s.run(t); r.Outcome != c.want {
			t.Errorf("%d: %+v, want %s", i, r, c.want)
		}
		if s.content(t) != list(0, 100) {
			t.Errorf("%d: wrong content", i)
		}
	}
	if n := len(s.asked); n != 6 || s.asked[0].Header.Get("User-Agent") != "scanwatch/test" {
		t.Errorf("%d requests", n)
	}
}

// TestIntervals checks when the next request is due after each kind of response.
func TestIntervals(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		before int // earlier failures
		wait   time.Duration
		early  time.Duration // with Early
	}{
		{"updated", says(list(0, 100)), 0, 21*time.Hour + 36*time.Minute, time.Hour},
		{"doubtful", says("<html>"), 0, 21*time.Hour + 36*time.Minute, time.Hour},
		{"failed", status(500), 0, time.Hour, time.Hour},
		{"failed twice", status(500), 1, 2 * time.Hour, time.Hour},
		{"failed often", status(500), 15, 24 * time.Hour, time.Hour},
		{"429 with seconds", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "9000")
			w.WriteHeader(429)
		}, 0, 9000 * time.Second, 9000 * time.Second},
		{"503 with a date", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "Tue, 03 Nov 2026 12:00:00 GMT")
			w.WriteHeader(503)
		}, 0, 24 * time.Hour, 24 * time.Hour},
		{"429 for a century", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "4000000000")
			w.WriteHeader(429)
		}, 0, 24 * time.Hour, 24 * time.Hour},
		{"503 with a date of another clock", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", "Tue, 03 Nov 2020 12:00:00 GMT")
			w.Header().Set("Retry-After", "Tue, 03 Nov 2020 14:00:00 GMT")
			w.WriteHeader(503)
		}, 0, 2 * time.Hour, 2 * time.Hour},
		{"429 with bogus", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "-1")
			w.WriteHeader(429)
		}, 0, time.Hour, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.feed.Least = time.Hour
			os.WriteFile(s.feed.File+metaSuffix, fmt.Appendf(nil, `{"url": %q, "failures": %d}`, s.feed.URL, c.before), 0o644)
			s.answer = c.answer
			r := s.feed.Run(t.Context(), s.options)
			if r.Next != noon.Add(c.wait) {
				t.Errorf("next request after %v, want %v", r.Next.Sub(noon), c.wait)
			}
			for _, early := range []bool{false, true} {
				wait := c.wait
				if s.options.Early = early; early {
					wait = c.early
				}
				asked := len(s.asked)
				s.now = noon.Add(wait - time.Second)
				if r := s.feed.Run(t.Context(), s.options); r.Outcome != Waiting || r.Next != noon.Add(wait) || len(s.asked) != asked {
					t.Errorf("early %v: a second before: %+v", early, r)
				}
			}
			s.now = noon.Add(c.early)
			if r := s.feed.Run(t.Context(), s.options); r.Outcome == Waiting {
				t.Errorf("then: %+v", r)
			}
		})
	}
}

// TestWrongClock checks that updates continue after the clock has been wrong.
func TestWrongClock(t *testing.T) {
	for _, state := range []string{
		`{"url": %q, "attempt": "2040-01-01T00:00:00Z"}`,
		`{"url": %q, "not_before": "2040-01-01T00:00:00Z"}`,
		`{"url": %q, "attempt": "2026-11-02T13:00:00Z", "not_before": "2026-11-03T11:00:00Z"}`,
		`{"url": %q, "attempt": "2040-01-01T00:00:00Z", "checked": "2040-01-01T00:00:00Z", "not_before": "2040-01-01T00:00:00Z", "failures": 16}`,
	} {
		s := newSite(t)
		s.answer = status(500)
		os.WriteFile(s.feed.File+metaSuffix, fmt.Appendf(nil, state, s.feed.URL), 0o644)
		if r := s.feed.Run(t.Context(), s.options); r.Outcome != Failed {
			t.Errorf("%s: %+v", state, r)
		}
		if r := s.feed.Run(t.Context(), s.options); r.Outcome != Waiting {
			t.Errorf("%s, again: %+v", state, r)
		}
		if b, _ := os.ReadFile(s.feed.File + metaSuffix); strings.Contains(string(b), "2040") {
			t.Errorf("%s: saved %s", state, b)
		}
	}
}

// TestStale checks the descriptions of feeds that have not been updated for too long.
func TestStale(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		every time.Duration
		after time.Duration
		code  int // status code of the following responses; 0 if no request is expected
		want  string
	}{
		{0, 3 * day, 500, ""},
		{0, 3*day + 1, 500, "drop drop.txt: no successful download since 2026-11-02: the server answers 500 Internal Server Error"},
		{0, 3*day + 1, 0, "drop drop.txt: no successful download since 2026-11-02; check the timer of scanwatch update"},
		{time.Hour, 3*day - 1, 500, ""},
		{time.Hour, 3*day + 1, 500, "drop drop.txt: no successful download since 2026-11-02: the server answers 500 Internal Server Error"},
		{7 * day, 21 * day, 500, ""},
		{7 * day, 21*day + 1, 0, "drop drop.txt: no successful download since 2026-11-02; check the timer of scanwatch update"},
	} {
		s := newSite(t)
		s.feed.Every = c.every
		if got := s.feed.Stale(s.now); got != "" {
			t.Errorf("without a state: %s", got)
		}
		s.answer = says(list(0, 100))
		s.feed.Run(t.Context(), s.options)
		s.now = noon.Add(c.after)
		if s.answer = status(c.code); c.code != 0 {
			s.feed.Run(t.Context(), s.options)
		}
		if got := s.feed.Stale(s.now); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	s := newSite(t)
	s.answer = says("<html>")
	s.feed.URL += "?%m"
	s.run(t)
	s.now = s.now.AddDate(0, 1, 0)
	if got := s.feed.Stale(s.now); !strings.HasPrefix(got, "drop drop.txt: never downloaded: the file is a web page") {
		t.Errorf("%q", got)
	}
	s.answer = says(list(0, 100))
	s.run(t)
	s.now = s.now.AddDate(0, 1, 0) // the URL changes
	s.answer = status(404)
	s.run(t)
	if got, want := s.feed.Stale(s.now), "drop drop.txt: no successful download since 2026-12-09: the server answers 404 Not Found"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	os.Remove(s.feed.File + metaSuffix)
	syscall.Mkfifo(s.feed.File+metaSuffix, 0o644)
	if got := s.feed.Stale(s.now); got != "" {
		t.Errorf("%q", got)
	}
	os.Remove(s.feed.File + metaSuffix)
	os.WriteFile(s.feed.File+metaSuffix, fmt.Appendf(nil, `{"url": %q, "error": "\u001b[31m"}`, s.feed.url(s.now)), 0o644)
	if got, want := s.feed.Stale(s.now), `drop drop.txt: never downloaded: \x1b[31m`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestDryRun checks that dry runs respect the provider's intervals. The file of a dry run must not
// count as the current version in the next request.
func TestDryRun(t *testing.T) {
	s := newSite(t)
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(304)
			return
		}
		io.WriteString(w, list(0, 100))
	}
	s.options.DryRun = true
	for _, want := range []Outcome{Updated, Waiting} {
		if r := s.feed.Run(t.Context(), s.options); r.Outcome != want || r.Next != noon.Add(DefaultLeast) {
			t.Errorf("%+v, want %s", r, want)
		}
	}
	s.options.DryRun = false
	if r := s.feed.Run(t.Context(), s.options); r.Outcome != Waiting || len(s.asked) != 1 {
		t.Errorf("%+v, %d requests", r, len(s.asked))
	}
	s.now = noon.Add(DefaultLeast)
	if r := s.feed.Run(t.Context(), s.options); r.Outcome != Updated || s.content(t) != list(0, 100) {
		t.Errorf("after the dry run: %+v", r)
	}
	s.now = noon.Add(7 * 24 * time.Hour)
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(429)
	}
	s.options.DryRun = true
	for _, want := range []Outcome{Failed, Waiting} {
		if r := s.feed.Run(t.Context(), s.options); r.Outcome != want || r.Next != s.now.Add(time.Hour) {
			t.Errorf("Retry-After: %+v, want %s", r, want)
		}
	}
}

// TestNextMonth checks that a new month shortens neither the pause that the server requested nor
// the pause after failures. The next request must fetch the whole file.
func TestNextMonth(t *testing.T) {
	s := newSite(t)
	s.feed.URL = s.URL + "/list-%Y-%m.txt"
	s.now = time.Date(2026, 11, 30, 22, 0, 0, 0, time.UTC)
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"1"`)
		io.WriteString(w, list(0, 100))
	}
	s.feed.Run(t.Context(), s.options)
	s.now = s.now.Add(90 * time.Minute)
	s.options.Early = true
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "86400")
		w.WriteHeader(429)
	}
	if r := s.feed.Run(t.Context(), s.options); r.Outcome != Failed {
		t.Fatalf("%+v", r)
	}
	until := s.now.Add(24 * time.Hour)
	s.now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	if r := s.feed.Run(t.Context(), s.options); r.Outcome != Waiting || r.Next != until {
		t.Errorf("%+v, want a pause until %v", r, until)
	}
	s.now, s.answer = until, status(500)
	s.feed.Run(t.Context(), s.options)
	if r := s.feed.Run(t.Context(), s.options); r.Outcome != Waiting {
		t.Errorf("after a failure: %+v", r)
	}
	for _, r := range s.asked[2:] {
		if r.URL.Path != "/list-2026-12.txt" || r.Header.Get("If-None-Match") != "" {
			t.Errorf("%s with %v", r.URL, r.Header)
		}
	}
}

// TestReflectedSecrets checks that no error contains the key or the path, even if a server repeats
// them.
func TestReflectedSecrets(t *testing.T) {
	const key = "s3cr3t-k3y-0123456789"
	s := newSite(t)
	s.feed.URL = s.URL + "/account-9876543210/drop.txt?license=abcdefghij"
	s.feed.KeyFile, s.feed.Header = filepath.Join(t.TempDir(), "key"), "Key"
	os.WriteFile(s.feed.KeyFile, []byte(key+"\n"), 0o600)
	for name, answer := range map[string]http.HandlerFunc{
		"no HTTP": func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprintf(c, "%s %s %s\x1b\r\n\r\n", r.URL.Path, r.URL.RawQuery, r.Header.Get("Key"))
			c.Close()
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "https://"+r.Header.Get("Key")+".example/"+r.URL.RequestURI())
			w.WriteHeader(302)
		},
		"content": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s\n%s\n", r.Header.Get("Key"), r.URL.RequestURI())
		},
		"part": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Key")[3:15]+"\n") },
	} {
		s.answer = answer
		r := s.run(t)
		meta, err := os.ReadFile(s.feed.File + metaSuffix)
		if err != nil || r.Outcome != Failed && r.Outcome != Kept || r.Why == "" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		_, stored, _ := strings.Cut(string(meta), `"error"`)
		for _, part := range []string{key[:8], key[5:13], key[len(key)-8:], "9876543210", "abcdefghij", "\x1b"} {
			if strings.Contains(r.Why+stored, part) {
				t.Errorf("%s: %q is in %q, %s", name, part, r.Why, stored)
			}
		}
	}
}

// TestOptions checks the options of Run and of a feed.
func TestOptions(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	s.options.DryRun = true
	if r := s.run(t); r.Outcome != Updated || r.Added != 100 || !slices.Equal(files(t, s.feed.File), []string{"drop.txt.meta"}) {
		t.Errorf("dry run: %+v, %v", r, files(t, s.feed.File))
	}
	s.options.DryRun = false
	s.run(t)
	s.answer = says(list(0, 10))
	s.options.Any = true
	if r := s.run(t); r.Outcome != Updated || r.Removed != 90 {
		t.Errorf("any size: %+v", r)
	}
	s.answer = says(list(0, 10) + "203.0.113.25\n192.168.0.0/16\n")
	s.feed.Exempts = true
	if r := s.run(t); r.Outcome != Updated || r.Entries != 12 {
		t.Errorf("a list that exempts: %+v", r)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, list(3, 12))
	z.Close()
	s.answer = says(zipped.String())
	if r := s.run(t); r.Outcome != Updated || s.content(t) != list(3, 12) {
		t.Errorf("compressed: %+v", r)
	}
	if r := s.run(t); r.Outcome != Unchanged {
		t.Errorf("compressed, again: %+v", r)
	}
	s.feed.URL = s.URL + "/list-%Y-%m.txt"
	s.run(t)
	if got := s.asked[len(s.asked)-1].URL.Path; got != "/list-2026-12.txt" {
		t.Errorf("path %s", got)
	}
}

// TestKey checks that the key is sent only from a file that no other user can read.
func TestKey(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	file := filepath.Join(t.TempDir(), "key")
	s.feed.KeyFile = file
	for _, c := range []struct {
		content, header string // of the feed
		mode            fs.FileMode
		name, want, why string
	}{
		{"Authorization: Bearer abc\n", "", 0o600, "Authorization", "Bearer abc", ""},
		{"abc\n", "Key", 0o400, "Key", "abc", ""},
		{"Key: abc\n", "Key", 0o600, "Key", "abc", ""},
		{"abc\n", "Key", 0o640, "", "", "chmod 600"},
		{"abc\n", "", 0o600, "", "", "must contain one line with a header name"},
		{"abc/x=:y\n", "Key", 0o600, "", "", "must contain one line with a header name"},
		{"abc@example.org:y\n", "", 0o600, "", "", "must contain one line with a header name"},
		{"Bearer abc: y\n", "", 0o600, "", "", "must contain one line with a header name"},
		{"Key:\n", "", 0o600, "", "", "must contain one line with a header name"},
		{"X-Key_1.a~: abc\n", "", 0o600, "X-Key_1.a~", "abc", ""},
		{"User-Agent: abc\n", "", 0o600, "User-Agent", "abc", ""},
		{"Host: abc\n", "", 0o600, "", "", file + ", line 1: the header Host belongs to the protocol"},
		{"content-length: 4\n", "Key", 0o600, "", "", "line 1: the header content-length belongs"},
		{"Transfer-Encoding: abc\n", "", 0o600, "", "", "line 1: the header Transfer-Encoding belongs"},
		{"If-None-Match: abc\n", "", 0o600, "", "", "line 1: the header If-None-Match belongs"},
		{"\nKey: abc\n", "", 0o600, "", "", "must contain one line"},
		{"a\nb\n", "Key", 0o600, "", "", "must contain one line"},
		{"", "Key", 0o600, "", "", "must contain one line"},
		{strings.Repeat("x", 2000), "Key", 0o600, "", "", "must contain one line"},
	} {
		os.Remove(file)
		os.WriteFile(file, []byte(c.content), c.mode)
		s.feed.Header, s.asked = c.header, nil
		r := s.run(t)
		if c.why != "" {
			if r.Outcome != Failed || !strings.Contains(r.Why, c.why) || len(s.asked) > 0 || strings.Contains(r.Why, "abc") {
				t.Errorf("%+v: %+v", c, r)
			}
			continue
		}
		if r.Outcome == Failed || s.asked[0].Header.Get(c.name) != c.want {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	s.feed.KeyFile, s.feed.Header = "", "Key"
	if r := s.run(t); r.Outcome != Failed || !strings.Contains(r.Why, "needs a key") {
		t.Errorf("no key: %+v", r)
	}
}

// TestPlaces checks that files that cannot be written cause errors before any request is
// sent.
func TestPlaces(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(f *Feed)
		why     string
	}{
		"no directory":        {func(f *Feed) { f.File = filepath.Join(f.File, "missing", "drop.txt") }, "does not exist; as root: install -d -o "},
		"not a file":          {func(f *Feed) { os.Mkdir(f.File, 0o755) }, "not a regular file"},
		"another update":      {func(f *Feed) { hold(f) }, "another update may be running"},
		"a public lock":       {func(f *Feed) { os.WriteFile(lockOf(f), nil, 0o644) }, "other users can lock it; remove it"},
		"a directory as lock": {func(f *Feed) { os.Mkdir(lockOf(f), 0o755) }, "/.update.lock: is a directory; if it exists"},
		"a lock of a user": {func(f *Feed) {
			os.WriteFile(lockOf(f), nil, 0o600)
			if os.Chown(lockOf(f), 54321, 54321) != nil {
				os.Chmod(lockOf(f), 0o640) // without root's rights, make the mode wrong
			}
		}, "other users can lock it; remove it"},
		"a FIFO":          {func(f *Feed) { syscall.Mkfifo(f.File, 0o644) }, "drop.txt: exists and is not a regular file"},
		"a FIFO as lock":  {func(f *Feed) { syscall.Mkfifo(lockOf(f), 0o600) }, "other users can lock it; remove it"},
		"a FIFO as state": {func(f *Feed) { syscall.Mkfifo(f.File+metaSuffix, 0o644) }, "not a regular file"},
		"a FIFO as key": {func(f *Feed) {
			f.KeyFile = filepath.Join(filepath.Dir(f.File), "key")
			syscall.Mkfifo(f.KeyFile, 0o600)
		}, "key: is not a regular file"},
		"a broken meta": {func(f *Feed) { os.Mkdir(f.File+metaSuffix, 0o755) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.answer = says(list(0, 100))
			c.prepare(&s.feed)
			if r := s.run(t); r.Outcome != Failed || !strings.Contains(r.Why, c.why) || !strings.Contains(r.Why, filepath.Dir(s.feed.File)) || len(s.asked) > 0 {
				t.Errorf("%+v, %d requests", r, len(s.asked))
			}
		})
	}
}

// TestFullDisk checks that a write error names the file, and that the previous file remains. The
// next request must be sent before the whole interval has passed.
func TestFullDisk(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	s.run(t)
	os.Mkdir(s.feed.File+".new", 0o755)
	os.WriteFile(filepath.Join(s.feed.File+".new", "x"), nil, 0o644)
	s.answer = says(list(3, 100))
	now := s.now
	if r := s.run(t); r.Outcome != Failed || !strings.Contains(r.Why, "write "+s.feed.File+": ") || s.content(t) != list(0, 100) || r.Next != now.Add(DefaultLeast) {
		t.Errorf("%+v", r)
	}
}

// TestForeignLock checks that an update works even if another user has locked the directory. Any
// user who can read a directory can lock it.
func TestForeignLock(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	holdFile(filepath.Dir(s.feed.File), os.O_RDONLY)
	if r := s.run(t); r.Outcome != Updated {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(lockOf(&s.feed)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if r := s.run(t); r.Outcome != Unchanged {
		t.Errorf("again: %+v", r)
	}
}

// lockOf returns the path of a feed's lock.
func lockOf(f *Feed) string { return filepath.Join(filepath.Dir(f.File), lockName) }

// hold locks a feed as another update would.
func hold(f *Feed) { holdFile(lockOf(f), os.O_RDWR|os.O_CREATE) }

func holdFile(name string, flags int) {
	file, err := os.OpenFile(name, flags, 0o600)
	if err == nil {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		panic(err)
	}
	held = append(held, file)
}

// held keeps descriptors open.
var held []*os.File

// TestLinks checks that writing FILE.new never follows a link, and that a link to FILE is kept.
func TestLinks(t *testing.T) {
	s := newSite(t)
	s.answer = says(list(0, 100))
	victim := filepath.Join(t.TempDir(), "victim")
	os.WriteFile(victim, []byte("x"), 0o600)
	os.Symlink(victim, s.feed.File+".new")
	if r := s.run(t); r.Outcome != Updated {
		t.Errorf("%+v", r)
	}
	if b, _ := os.ReadFile(victim); string(b) != "x" {
		t.Error("the target of a link was written")
	}
	target := s.feed.File + ".real"
	os.Rename(s.feed.File, target)
	os.Symlink("drop.txt.real", s.feed.File)
	s.answer = says(list(1, 100))
	if r := s.run(t); r.Outcome != Updated || s.content(t) != list(1, 100) {
		t.Errorf("%+v", r)
	}
	s.now = s.now.Add(-7 * 24 * time.Hour)
	if r := s.run(t); r.Outcome != Waiting {
		t.Errorf("the state of the target is not used: %+v", r)
	}
	if link, err := os.Readlink(s.feed.File); link != "drop.txt.real" {
		t.Error(link, err)
	}
}

// TestKill kills an update before each change to a file. The file must then be complete, with
// either the old or the new content, and the next update must succeed.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	var content atomic.Value
	content.Store(list(0, 100))
	s.answer = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, content.Load().(string)) }
	s.run(t)
	cert := filepath.Join(t.TempDir(), "cert.pem")
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644)
	seen := map[bool]bool{}
	for at := 1; ; at++ {
		before, after := list(at-1, 100), list(at, 100)
		content.Store(after)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "SCANWATCH_TEST_KILL="+strconv.Itoa(at), "FILE="+s.feed.File, "URL="+s.feed.URL, "CERT="+cert,
			"NOW="+s.now.Format(time.RFC3339))
		out, err := cmd.CombinedOutput()
		got := s.content(t)
		if err == nil {
			if at < 6 || got != after {
				t.Errorf("ended after %d steps, new file %v: %s", at, got == after, out)
			}
			break
		}
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%v: %s", err, out)
		}
		if got != before && got != after {
			t.Fatalf("step %d, %s: neither the old nor the new file", at, out)
		}
		seen[got == after] = true
		s.now = s.now.Add(7 * 24 * time.Hour)
		if r := s.run(t); r.Outcome != Updated && r.Outcome != Unchanged || s.content(t) != after {
			t.Fatalf("step %d, %s: %+v", at, out, r)
		}
	}
	if len(seen) < 2 {
		t.Error("all kills left the same file")
	}
}

// child updates a file and kills itself at the given step.
func child(at string) {
	n, _ := strconv.Atoi(at)
	step = func(name string) {
		if n--; n == 0 {
			fmt.Println(name)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	now, _ := time.Parse(time.RFC3339, os.Getenv("NOW"))
	roots := x509.NewCertPool()
	cert, _ := os.ReadFile(os.Getenv("CERT"))
	roots.AppendCertsFromPEM(cert)
	f := Feed{Name: "drop", File: os.Getenv("FILE"), URL: os.Getenv("URL"), Format: "addresses"}
	r := f.Run(context.Background(), Options{Now: func() time.Time { return now }, Roots: roots})
	fmt.Printf("%+v\n", r)
	if r.Outcome != Updated {
		os.Exit(1)
	}
	os.Exit(0)
}

// TestOwnNetworks checks that private addresses are omitted, and that an IPv6 address is treated as
// its /64.
func TestOwnNetworks(t *testing.T) {
	var local []netip.Addr
	for _, a := range []string{"127.0.0.1", "10.0.0.1", "198.51.100.7", "fe80::1", "2001:db8:1::25", "::1"} {
		local = append(local, netip.MustParseAddr(a))
	}
	got := fmt.Sprint(OwnNetworks(local, netip.MustParsePrefix("192.0.2.1/32")))
	if want := "[198.51.100.7/32 2001:db8:1::/64 192.0.2.1/32]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestUnsent checks that no request is counted if an error on this host prevents it. The next run
// must send the request immediately, and the error must contain the remedy.
func TestUnsent(t *testing.T) {
	for _, early := range []bool{false, true} {
		s := newSite(t)
		s.answer = says(list(0, 100))
		roots := s.options.Roots
		s.options.Roots, s.options.Early = x509.NewCertPool(), early
		r := s.feed.Run(t.Context(), s.options)
		if r.Outcome != Failed || !strings.Contains(r.Why, "SSL_CERT_FILE") || len(s.asked) != 0 {
			t.Errorf("early %v: %+v", early, r)
		}
		if got := s.feed.Stale(s.now); !strings.HasPrefix(got, "drop drop.txt: never downloaded: ") {
			t.Errorf("early %v: %q", early, got)
		}
		s.options.Roots = roots
		if r := s.feed.Run(t.Context(), s.options); r.Outcome != Updated || !r.Checked.Equal(s.now) {
			t.Errorf("early %v, after the repair: %+v", early, r)
		}
	}
}

// TestCheckKey checks which files are usable as keys.
func TestCheckKey(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := os.Geteuid()
	for _, c := range []struct {
		name string
		mode fs.FileMode
		uid  int
		want string
	}{
		{name, 0o600, own, ""}, {name, 0o600, -1, ""}, {name, 0o600, own + 1, "run chown"}, {name, 0o640, own, "run chmod 600"},
		{name + "2", 0o600, own, "no such file"}, {filepath.Dir(name), 0o600, own, "not a regular file"},
	} {
		if err := os.Chmod(name, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := CheckKey(c.name, c.uid); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
