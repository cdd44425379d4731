package forward

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
)

var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// finding returns a finding about a host.
func finding(n int, evidence string) *events.Event {
	return &events.Event{Event: "finding", Time: noon, Session: uint64(n) + 1, Src: netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), Evidence: evidence, Confidence: "high",
		Helo: []byte("<script>\x1b[31m@everyone"), RDNS: []byte("<!channel>.example.net")}
}

// TestWindow checks that identical events from a source are counted together, and that omitted
// events are counted.
func TestWindow(t *testing.T) {
	w := &window{host: "mx", from: noon}
	if b := w.take(noon, w.lost()); b != nil {
		t.Errorf("an empty window has a batch: %+v", b)
	}
	for i := range 10 {
		e := finding(1, "scanner")
		e.Session, e.Time = uint64(i/2+1), noon.Add(time.Duration(i)*time.Second)
		w.add(e)
	}
	w.add(finding(1, "cloud"))
	w.add(&events.Event{Event: "unban", By: "operator", Time: noon, Prefix: "192.0.2.0/24"})
	w.lose(losses{7, 1})
	b := w.take(noon.Add(time.Minute), w.lost())
	first := b.Events[0]
	if len(b.Events) != 3 || first.Count != 10 || first.First != noon || first.Last != noon.Add(9*time.Second) || b.Dropped != 7 || b.Gaps != 1 || b.From != noon || b.Until != noon.Add(time.Minute) {
		t.Errorf("%s", encode(b))
	}
	if want := []string{"0000000000000001", "0000000000000002", "0000000000000003"}; !slices.Equal(first.Sessions, want) {
		t.Errorf("sessions %v", first.Sessions)
	}
	if b.count() != 19 {
		t.Errorf("%d events", b.count())
	}
	for i := range maxItems + 5 {
		e := finding(1, "scanner")
		e.Rule = strconv.Itoa(i)
		w.add(e)
		w.add(e)
	}
	if b := w.take(noon, w.lost()); len(b.Events) != maxItems || b.Dropped != 10 || b.Gaps != 0 || b.count() != 2*maxItems+10 {
		t.Errorf("%d items, %d dropped", len(b.Events), b.Dropped)
	}
}

// TestQueue checks a queue's order, limits and persistence.
func TestQueue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "q")
	q, err := openQueue(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxQueued + 3 {
		if err := q.add([]byte(strconv.Itoa(i)), uint64(i+1), "", noon); err != nil {
			t.Fatal(err)
		}
	}
	lost := func() losses {
		l := q.unsettled()
		q.settle(l)
		return l
	}
	if l := lost(); l != (losses{events: 1 + 2 + 3}) {
		t.Errorf("%+v lost, want 6 events", l)
	}
	os.WriteFile(filepath.Join(dir, ".half"), []byte("x"), 0o600)
	os.WriteFile(filepath.Join(dir, "reported"), []byte("{}"), 0o600)
	if _, err := openQueue(dir); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("a second process: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".half")); err != nil {
		t.Errorf("a second process removes a temporary file: %v", err)
	}
	q.close()
	q, err = openQueue(dir)
	if err != nil || q.length() != maxQueued {
		t.Fatal(err, q.length())
	}
	if _, err := os.Stat(filepath.Join(dir, ".half")); err == nil {
		t.Error("the rest of a killed process remains")
	}
	for i := 3; ; i++ {
		e, data, ok, err := q.first()
		if errors.Is(err, errRejected) && i == 21 {
			q.remove(e, true) // the file is missing
			continue
		}
		if !ok {
			if i != maxQueued+3 {
				t.Errorf("ended at %d", i)
			}
			break
		}
		if string(data) != strconv.Itoa(i) {
			t.Fatalf("entry %s, want %d", data, i)
		}
		q.remove(e, i == 10)
		if i == 20 {
			next := q.entries[0]
			os.Remove(filepath.Join(dir, next.name))
		}
	}
	if l := lost(); l.events != 11+22 {
		t.Errorf("%+v lost, want 33 events", l)
	}
	if left, _ := os.ReadDir(dir); len(left) != 3 { // the lock, the losses, "reported"
		t.Errorf("%d files", len(left))
	}
	big := bytes.Repeat([]byte("x"), 10<<20)
	for range 10 {
		if err := q.add(big, 1, "", noon); err != nil {
			t.Fatal(err)
		}
	}
	if l := lost(); q.length() != 6 || l.events != 4 {
		t.Errorf("%d large entries", q.length())
	}
}

// A receiver is a server that records requests.
type receiver struct {
	*httptest.Server
	roots *x509.CertPool

	mu      sync.Mutex
	answers []http.HandlerFunc // responses to the next requests; later requests receive status 200
	got     []received
}

type received struct {
	path   string
	header http.Header
	body   []byte
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{roots: x509.NewCertPool()}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the service has ended during its request
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		r.mu.Lock()
		var answer http.HandlerFunc
		if len(r.answers) > 0 {
			answer, r.answers = r.answers[0], r.answers[1:]
		} else {
			r.got = append(r.got, received{req.URL.Path, req.Header, body})
		}
		r.mu.Unlock()
		w.Header()["Date"] = nil // the server's clock differs from the tests' clock
		if answer != nil {
			answer(w, req)
		}
	}))
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.StartTLS()
	t.Cleanup(r.Close)
	r.roots.AddCert(r.Certificate())
	return r
}

// acceptAndCut accepts a request, but closes the connection instead of responding.
func (r *receiver) acceptAndCut(_ http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.got = append(r.got, received{req.URL.Path, req.Header, body})
	r.mu.Unlock()
	panic(http.ErrAbortHandler)
}

func (r *receiver) accepted() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func abort(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func halfAnAnswer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100")
	w.WriteHeader(500)
	io.WriteString(w, "half")
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// TestAnswers checks which responses reject a batch, and which delay it.
func TestAnswers(t *testing.T) {
	r := newReceiver(t)
	now := func() time.Time { return noon }
	w := &webhook{client: newClient(r.roots, "scanwatch/test", now), url: r.URL + "/secret"}
	batch := encode(&Batch{Version: Version, ID: "1", Events: []*Item{}})
	for _, c := range []struct {
		answer   http.HandlerFunc
		rejected bool
		after    time.Duration
		want     string // part of the error; "" means no error
	}{
		{status(200), false, 0, ""},
		{status(204), false, 0, ""},
		{status(400), true, 0, "400 Bad Request"},
		{status(413), true, 0, "413"},
		{status(422), true, 0, "422"},
		{status(401), false, 0, "401 Unauthorized"},
		{status(404), false, 0, "404"},
		{status(500), false, 0, "500"},
		{status(429, "Retry-After", "90"), false, 90 * time.Second, "429"},
		{status(503, "Retry-After", "Mon, 02 Nov 2026 12:10:00 GMT"), false, 10 * time.Minute, "503"},
		{status(503, "Retry-After", "Mon, 02 Nov 2020 12:10:00 GMT"), false, 0, "503"},
		{status(503, "Retry-After", "2147483647"), false, 24 * time.Hour, "503"},
		{status(302, "Location", "https://127.0.0.1:1/x"), false, 0, "redirects are not followed"},
		{status(307, "Location", "/again"), false, 0, "redirects are not followed"},
		{abort, false, 0, "EOF"},
		{halfAnAnswer, false, 0, "500"},
	} {
		r.answers = []http.HandlerFunc{c.answer}
		err := w.deliver(t.Context(), batch)
		var later laterError
		errors.As(err, &later)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v, want %q", err, c.want)
		case errors.Is(err, errRejected) != c.rejected || later.after != c.after:
			t.Errorf("%v: rejected %v, after %v", err, errors.Is(err, errRejected), later.after)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("the error has the path of the URL: %v", err)
		}
	}
	if len(r.got) != 0 {
		t.Errorf("%d requests followed a redirect", len(r.got))
	}
	r.Close()
	if err := w.deliver(t.Context(), batch); err == nil || strings.Contains(err.Error(), "secret") || errors.Is(err, errRejected) {
		t.Errorf("without a server: %v", err)
	}
	w.url = "http" + strings.TrimPrefix(r.URL, "https")
	if err := w.deliver(t.Context(), batch); err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("without TLS: %v", err)
	}
}

// TestSignature checks a request's headers.
func TestSignature(t *testing.T) {
	r := newReceiver(t)
	dir := t.TempDir()
	w := &webhook{client: newClient(r.roots, "scanwatch/test", func() time.Time { return noon }), url: filepath.Join(dir, "url"),
		key: filepath.Join(dir, "key"), header: filepath.Join(dir, "header")}
	batch := encode(&Batch{Version: Version, ID: "17", Host: "mx", Events: []*Item{}})
	for name, content := range map[string]string{"url": r.URL + "/hook\n", "key": "secret\n", "header": "Authorization: Bearer abc\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.deliver(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	got := r.got[0]
	want := "sha256=" + sign("secret", "1793620800", got.body)
	if got.path != "/hook" || got.header.Get(signatureHeader) != want || got.header.Get(timestampHeader) != "1793620800" || got.header.Get(batchHeader) != "17" ||
		got.header.Get("Authorization") != "Bearer abc" || got.header.Get("User-Agent") != "scanwatch/test" || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", got.header)
	}
	// The expected value is the output of printf '1.{}' | openssl dgst -sha256 -hmac key.
	if s := sign("key", "1", []byte("{}")); s != "1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224" {
		t.Errorf("signature %s", s)
	}
	for _, name := range []string{"url", "key", "header"} {
		os.Chmod(filepath.Join(dir, name), 0o644)
		if err := w.deliver(t.Context(), batch); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("%s that others can read: %v", name, err)
		}
		os.Chmod(filepath.Join(dir, name), 0o600)
	}
	os.WriteFile(filepath.Join(dir, "header"), []byte("abc/x=:y\n"), 0o600)
	if err := w.deliver(t.Context(), batch); err == nil || !strings.Contains(err.Error(), "must contain one line with a header name") || strings.Contains(err.Error(), "abc") {
		t.Errorf("a key as a header: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "header"), []byte("X-Key: abc\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "url"), []byte(strings.Replace(r.URL, "https://", "https://user:secret@", 1)), 0o600)
	if err := w.deliver(t.Context(), batch); err == nil || !strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a URL with a password: %v", err)
	}
	if len(r.got) != 1 {
		t.Errorf("%d requests", len(r.got))
	}
}

// TestBodies checks the request formats, and that human-readable formats contain no text from
// clients.
func TestBodies(t *testing.T) {
	w := &window{host: "mx<b>", from: noon}
	weak := finding(0, "no-mail")
	weak.Confidence = "low"
	w.add(weak)
	w.add(&events.Event{Event: "ban", Time: noon, By: "operator", Prefix: "203.0.113.9/32", Until: noon.Add(time.Hour), Reason: "sends <virus>"})
	for i := range maxLines {
		w.add(finding(i, "scanner"))
	}
	w.lose(losses{events: 3})
	b := w.take(noon, w.lost())
	data := encode(b)
	for _, format := range []string{"chat", "text"} {
		body, _ := bodyOf(format, b, data)
		for _, hostile := range []string{"script", "channel", "everyone", "\x1b", "no-mail"} {
			if bytes.Contains(body, []byte(hostile)) {
				t.Errorf("%s has %q:\n%s", format, hostile, body)
			}
		}
		for _, want := range []string{"finding 198.51.100.0 evidence scanner confidence high", "and 1 more", "3 events are missing", "scanwatch on mx", "ban 203.0.113.9/32 by the operator reason sends "} {
			if !bytes.Contains(body, []byte(want)) {
				t.Errorf("%s does not have %q:\n%s", format, want, body)
			}
		}
	}
	if body, _ := bodyOf("chat", b, data); bytes.ContainsAny(body, "<>") {
		t.Errorf("chat has markup:\n%s", body)
	}
	if lines := (&Batch{Events: []*Item{{Event: "finding", Confidence: "low"}}}).lines(9); lines != nil {
		t.Errorf("a finding of low confidence: %q", lines)
	}
	if got, want := (&Batch{Gaps: 1}).lines(9), "1 start of the service or reconnection to the filter: events may be missing"; len(got) != 1 || got[0] != want {
		t.Errorf("%q", got)
	}
	body, kind := bodyOf("kafka", b, data)
	var records struct {
		Records []struct {
			Key   string
			Value map[string]any
		}
	}
	if err := json.Unmarshal(body, &records); err != nil || len(records.Records) != maxLines+3 || records.Records[3].Key != "198.51.100.1" ||
		records.Records[3].Value["evidence"] != "scanner" || kind != "application/vnd.kafka.json.v2+json" {
		t.Errorf("%v: %s", err, body)
	}
	body, _ = bodyOf("json", b, data)
	var back Batch
	if err := json.Unmarshal(body, &back); err != nil || len(back.Events) != maxLines+2 || back.Events[0].Helo != string(finding(0, "").Helo) {
		t.Errorf("%v: %s", err, body)
	}
}

// A hub is a filter's socket for companions.
type hub struct {
	fan     events.Fan
	dir     string
	spared  func(netip.Addr) bool
	exempt  string // proven name of an exempt host
	observe atomic.Bool
	stop    func()
	known   *control.Companions
}

func newHub(t *testing.T, c *rules.Companion) *hub {
	t.Helper()
	dir, err := os.MkdirTemp("", "hub") // a short path for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &hub{dir: dir, spared: func(netip.Addr) bool { return false }, known: control.NewCompanions([]*rules.Companion{c})}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *hub) start() {
	server := &control.Server{Companions: h.known, Commands: []control.Command{
		control.WatchCommand(&h.fan), h.known.NoteCommand(),
		control.SparedCommand(func(n control.Names) bool { return h.spared(n.Addr) || n.RDNS != "" && n.RDNS == h.exempt }, func() bool { return !h.observe.Load() }),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); server.Run(ctx, h.dir, time.Millisecond) }()
	h.stop = func() { cancel(); <-done }
}

// watched waits until the service is watching for events.
func (h *hub) watched(t *testing.T) { until(t, func() bool { return h.fan.Watching() == 1 }) }

func (h *hub) unwatched(t *testing.T) { until(t, func() bool { return h.fan.Watching() == 0 }) }

// start runs a Forwarder, and returns a function that ends it.
func start(t *testing.T, c *rules.Companion, h *hub, r *receiver) (stop func()) {
	t.Helper()
	f, err := New(c, Options{RunDir: h.dir, Log: slog.New(slog.DiscardHandler), Roots: r.roots, Now: time.Now, Abuse: r.URL + "/report"})
	if err != nil {
		t.Fatal(err)
	}
	f.every, f.interval, f.first, f.again = 5*time.Millisecond, 0, time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	return stop
}

// until waits for a condition; the time limit of go test ends the loop.
func until(t *testing.T, condition func() bool) {
	t.Helper()
	for !condition() {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		runtime.Gosched()
	}
}

// total returns the numbers of events and gaps in the accepted batches. A batch that arrived twice
// counts once.
func total(t *testing.T, got []received) (counted, dropped uint64, gaps uint64) {
	t.Helper()
	seen := map[string]bool{}
	for _, g := range got {
		var b Batch
		if err := json.Unmarshal(g.body, &b); err != nil {
			t.Fatal(err)
		}
		if seen[b.ID] {
			continue
		}
		seen[b.ID] = true
		counted += b.count() - b.Dropped
		dropped += b.Dropped
		gaps += b.Gaps
	}
	return counted, dropped, gaps
}

// TestForward checks that each event arrives or is counted as dropped. The server fails in every
// possible way, and the service and the filter restart.
func TestForward(t *testing.T) {
	c := &rules.Companion{Role: rules.RoleForward, User: strconv.Itoa(os.Getuid()), Target: rules.ForwardURL,
		Forward: rules.Forward{Queue: t.TempDir()}}
	r := newReceiver(t)
	c.Argument = r.URL + "/hook"
	h := newHub(t, c)
	var sent uint64
	send := func(n int) {
		for i := range n {
			h.fan.Send(finding(i%200, "scanner"))
			sent++
		}
	}
	all := func() bool {
		counted, dropped, _ := total(t, r.accepted())
		return counted+dropped == sent
	}
	r.answers = []http.HandlerFunc{status(500), abort, status(429, "Retry-After", "0"), halfAnAnswer, status(302, "Location", "/other"),
		status(400), r.acceptAndCut, status(404)}
	stop := start(t, c, h, r)
	h.watched(t)
	send(500)
	until(t, all)
	send(20) // the server may still have responses to send
	until(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.answers) > 0 {
			send(1)
		}
		return len(r.answers) == 0
	})
	until(t, all)
	if _, dropped, gaps := total(t, r.accepted()); dropped == 0 || gaps != 0 {
		t.Errorf("%d events of the batch that the server rejected, %d gaps before the first restart", dropped, gaps)
	}

	// The service ends while the server is unavailable.
	r.mu.Lock()
	r.answers = slices.Repeat([]http.HandlerFunc{status(503)}, 1_000_000)
	r.mu.Unlock()
	send(50)
	until(t, func() bool {
		counted, dropped, _ := total(t, r.accepted())
		return counted+dropped+queued(t, c) == sent
	})
	stop()
	h.unwatched(t)
	r.mu.Lock()
	r.answers = nil
	r.mu.Unlock()
	start(t, c, h, r)
	until(t, all)

	// Restart the filter after an event has reached the service. Otherwise, the restart would not
	// be a gap.
	h.watched(t)
	send(1)
	until(t, all)
	h.stop()
	h.unwatched(t)
	h.start()
	h.watched(t)
	send(1)
	until(t, all)
	// The second start of the service counts as a gap. The restart of the filter may be in the next
	// batch.
	until(t, func() bool { _, _, gaps := total(t, r.accepted()); return gaps >= 2 })
	until(t, func() bool {
		s := h.known.Status()[0]
		return s.Error == "" && !s.Done.IsZero()
	})
}

// queued returns the number of events in the queue's files.
func queued(t *testing.T, c *rules.Companion) (n uint64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Forward.Queue, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if e, ok := parseEntry(filepath.Base(name)); ok {
			n += e.weight
		}
	}
	return n
}
