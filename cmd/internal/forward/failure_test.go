package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
)

// forURL returns a companion that forwards to a receiver.
func forURL(t *testing.T, r *receiver) *rules.Companion {
	return &rules.Companion{Role: rules.RoleForward, User: strconv.Itoa(os.Getuid()), Target: rules.ForwardURL, Argument: r.URL + "/hook",
		Forward: rules.Forward{Queue: t.TempDir()}}
}

// forAbuse returns a companion that reports hosts.
func forAbuse(t *testing.T) *rules.Companion {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &rules.Companion{Role: rules.RoleForward, User: strconv.Itoa(os.Getuid()), Target: rules.ForwardAbuse,
		Forward: rules.Forward{Queue: t.TempDir(), Key: key}}
}

// idle returns a Forwarder that is not running.
func idle(t *testing.T, c *rules.Companion, o Options) *Forwarder {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	f, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFullQueueLosesNothing checks that a full queue drops a batch only for another batch that
// contains events. The next batch must include the number of dropped events.
func TestFullQueueLosesNothing(t *testing.T) {
	f := idle(t, forURL(t, newReceiver(t)), Options{Now: time.Now})
	for i := range maxQueued + 1 {
		f.window.add(finding(i%200, "scanner"))
		f.flush(t.Context())
	}
	f.window.lose(losses{gaps: 1})
	for range 20 {
		f.flush(t.Context())
	}
	var waiting uint64
	for _, e := range f.queue.entries {
		waiting += e.weight
	}
	if waiting != maxQueued {
		t.Errorf("%d events wait, want %d", waiting, maxQueued)
	}
	e, _, _, _ := f.queue.first()
	f.queue.remove(e, false)
	f.flush(t.Context())
	last, err := os.ReadFile(filepath.Join(f.queue.dir, f.queue.entries[f.queue.length()-1].name))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := decodeBatch(last); err != nil || len(b.Events) != 0 || b.Dropped != 1 || b.Gaps != 1 {
		t.Errorf("%s, %v", last, err)
	}
}

// TestRejectedLosses checks the number of lost events while a destination rejects batches. The
// number must be sent with the next events, and not in a batch for every window. The log must count
// each event once.
func TestRejectedLosses(t *testing.T) {
	f := idle(t, forURL(t, newReceiver(t)), Options{Now: time.Now})
	f.window.add(finding(1, "scanner"))
	f.flush(t.Context())
	e, data, _, _ := f.queue.first()
	if n := news(e, data); n != 1 {
		t.Errorf("%d events rejected, want 1", n)
	}
	f.queue.remove(e, true)
	f.fail(errRejected)
	f.flush(t.Context())
	if n := f.queue.length(); n != 0 {
		t.Errorf("%d batches without events after a rejection", n)
	}
	f.window.add(finding(2, "scanner"))
	f.flush(t.Context())
	e, data, _, _ = f.queue.first()
	if b, err := decodeBatch(data); err != nil || b.Dropped != 1 || e.weight != 2 || news(e, data) != 1 {
		t.Errorf("%s, weight %d, %v", data, e.weight, err)
	}
	f.fail(nil)
	f.queue.lose(losses{events: 1})
	f.flush(t.Context())
	if n := f.queue.length(); n != 2 {
		t.Errorf("%d batches after a delivery, want 2", n)
	}
	f.queue.remove(e, true)
	if n := f.queue.lostEvents(); n != 3 {
		t.Errorf("%d events lost, want the two rejected ones and one", n)
	}
}

// TestLostInStatus checks that the status keeps the number of lost events after a delivery.
func TestLostInStatus(t *testing.T) {
	r := newReceiver(t)
	c := forURL(t, r)
	r.answers = []http.HandlerFunc{status(400)}
	h := newHub(t, c)
	start(t, c, h, r)
	h.watched(t)
	h.fan.Send(finding(1, "scanner"))
	until(t, func() bool { return h.known.Status()[0].Lost == 1 })
	h.fan.Send(finding(2, "scanner"))
	until(t, func() bool { s := h.known.Status()[0]; return !s.Done.IsZero() && s.Error == "" })
	if s := h.known.Status()[0]; s.Lost != 1 {
		t.Errorf("%+v", s)
	}
}

// TestFirstStart checks that the start of a service counts as a gap only if a queue already exists.
// Before the first start, no events had to be delivered.
func TestFirstStart(t *testing.T) {
	r := newReceiver(t)
	c := forURL(t, r)
	h := newHub(t, c)
	for gaps := range uint64(2) {
		stop := start(t, c, h, r)
		h.watched(t)
		h.fan.Send(finding(1, "scanner"))
		until(t, func() bool { counted, _, n := total(t, r.accepted()); return counted == gaps+1 && n >= gaps })
		stop()
		h.unwatched(t)
		if _, _, n := total(t, r.accepted()); n != gaps {
			t.Errorf("start %d: %d gaps", gaps, n)
		}
	}
}

// TestDroppedGaps checks that the gaps of a dropped batch are included in the next batch.
func TestDroppedGaps(t *testing.T) {
	f := idle(t, forURL(t, newReceiver(t)), Options{Now: time.Now})
	f.window.lose(losses{gaps: 1})
	f.flush(t.Context())
	e, _, _, _ := f.queue.first()
	f.queue.remove(e, true)
	f.flush(t.Context())
	_, data, _, _ := f.queue.first()
	if b, err := decodeBatch(data); err != nil || b.Gaps != 1 {
		t.Errorf("%s, %v", data, err)
	}
}

// TestReportWaits checks that at most one report on a host is waiting. The report must not be
// delivered if the host has become exempt. The pause between reports must start at the delivery.
func TestReportWaits(t *testing.T) {
	c, r := forAbuse(t), newReceiver(t)
	h := newHub(t, c)
	const first, second, third = "198.51.100.1", "198.51.100.2", "198.51.100.3"
	var exempt atomic.Bool // the second host is exempt
	h.spared = func(a netip.Addr) bool { return exempt.Load() && a == netip.MustParseAddr(second) }
	now := time.Now()
	o := Options{RunDir: h.dir, Roots: r.roots, Now: func() time.Time { return now }, Abuse: r.URL + "/report"}
	f := idle(t, c, o)
	seen := func(src, evidence string) {
		e := about(src, "finding", evidence, "high")
		e.Time = now
		f.reporter.add(e)
		f.report(t.Context())
	}
	until(t, func() bool { return f.ask(func(c *control.Client) error { return c.Note(f.name, 0, 0, nil) }) == nil }) // until the socket exists
	for range 2 {
		for _, src := range []string{first, second, third} {
			seen(src, "scanner")
		}
	}
	seen(first, "scanner")
	if n := f.queue.length(); n != 3 {
		t.Fatalf("%d reports wait, want 3", n)
	}
	now = now.Add(time.Hour)
	exempt.Store(true)
	seen(third, "backscatter")
	for range 3 {
		e, data, _, _ := f.queue.first()
		err := f.deliver(t.Context(), e, data)
		if host := netip.MustParseAddr(e.key); err != nil != (host != netip.MustParseAddr(first)) {
			t.Errorf("%s: %v", e.key, err)
		}
		f.queue.remove(e, false)
	}
	if n := len(r.accepted()); n != 1 {
		t.Errorf("%d reports", n)
	}
	now = now.Add(14 * time.Minute)
	seen(first, "scanner")
	seen(second, "scanner")
	if n := f.queue.length(); n != 0 {
		t.Errorf("%d reports within 15 minutes of the delivery", n)
	}
	now = now.Add(2 * time.Minute)
	seen(first, "scanner")
	if n := f.queue.length(); n != 1 {
		t.Errorf("%d reports after 15 minutes", n)
	}
	// The filter stops.
	h.stop()
	f.disconnect()
	e, data, _, _ := f.queue.first()
	if err := f.deliver(t.Context(), e, data); err == nil || len(r.accepted()) != 1 {
		t.Errorf("a report without an answer of the filter: %v", err)
	}
}

// TestExemptByName checks that a host is not reported if one of its proven names is exempt when
// the report is due, or becomes exempt while the report is waiting.
func TestExemptByName(t *testing.T) {
	r := newReceiver(t)
	for name, c := range map[string]struct {
		proven, before, after string
		want                  int
	}{
		"not exempt":   {"pass", "", "", 1},
		"when due":     {"pass", "mx1.example.org", "", 0},
		"waiting":      {"pass", "", "mx1.example.org", 0},
		"not proven":   {"fail", "", "mx1.example.org", 1},
		"another name": {"pass", "", "mx9.example.org", 1},
	} {
		companion := forAbuse(t)
		h := newHub(t, companion)
		h.exempt = c.before
		f := idle(t, companion, Options{RunDir: h.dir, Roots: r.roots, Now: func() time.Time { return noon }, Abuse: r.URL + "/report"})
		until(t, func() bool { return f.ask(func(c *control.Client) error { return c.Note(f.name, 0, 0, nil) }) == nil }) // until the socket exists
		for _, rdns := range []string{"mx1.example.org", "mx2.example.org"} {                                             // names of two hosts in a /64
			f.reporter.add(with(about("2001:db8::1", "finding", "scanner", "high"), func(e *events.Event) { e.RDNS, e.FCrDNS = []byte(rdns), c.proven }))
		}
		f.report(t.Context())
		h.stop()
		h.exempt = c.after
		h.start()
		before := len(r.accepted())
		if e, data, ok, _ := f.queue.first(); ok {
			until(t, func() bool {
				err := f.deliver(t.Context(), e, data)
				return err == nil || errors.Is(err, errSpared)
			})
		}
		if n := len(r.accepted()) - before; n != c.want {
			t.Errorf("%s: %d reports", name, n)
		}
		f.disconnect()
		if err := f.queue.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestExemptAfterRestart checks that exemptions survive a restart. If the stored exemptions are
// unreadable, no host must be reported for a day.
func TestExemptAfterRestart(t *testing.T) {
	dir := t.TempDir()
	due := func(r *reporter, at time.Time) int {
		e := about("198.51.100.1", "finding", "scanner", "high")
		e.Time = at
		r.add(e)
		return len(r.due(at, nil))
	}
	restart := func() *reporter {
		r := newReporter(&queue{dir: dir})
		_ = r.load(noon) // the test corrupts the file
		return r
	}
	r := restart()
	r.add(about("198.51.100.1", "finding", "backscatter", "low"))
	if err := r.saveExempt(); err != nil {
		t.Fatal(err)
	}
	if due(restart(), noon.Add(time.Hour)) != 0 {
		t.Error("a server that returned mail is reported")
	}
	if due(restart(), noon.Add(25*time.Hour)) != 1 {
		t.Error("the exemption does not end")
	}
	if err := os.WriteFile(r.file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = restart()
	if due(r, noon.Add(23*time.Hour)) != 0 || due(r, noon.Add(25*time.Hour)) != 1 {
		t.Error("the reports with an unreadable file")
	}
}

// TestFutureReport checks that reports are still sent after a wrong clock has stored a time in the
// future.
func TestFutureReport(t *testing.T) {
	r := newReporter(&queue{dir: t.TempDir()})
	host := netip.MustParseAddr("198.51.100.1")
	r.setReported(host, noon.AddDate(10, 0, 0))
	r.add(about(host.String(), "finding", "scanner", "high"))
	for after, want := range []int{0: 0, 14: 0, 16: 1} {
		if due := r.due(noon.Add(time.Duration(after)*time.Minute), nil); len(due) != want {
			t.Errorf("after %d minutes: %d reports", after, len(due))
		}
	}
}

// TestNoDelivery checks that the status shows no success before a delivery.
func TestNoDelivery(t *testing.T) {
	r := newReceiver(t)
	c := forURL(t, r)
	r.answers = slices.Repeat([]http.HandlerFunc{status(403)}, 1_000_000)
	h := newHub(t, c)
	start(t, c, h, r)
	h.watched(t)
	h.fan.Send(finding(1, "scanner"))
	until(t, func() bool { return strings.Contains(h.known.Status()[0].Error, "403") })
	if s := h.known.Status()[0]; !s.Done.IsZero() {
		t.Errorf("%+v", s)
	}
	r.mu.Lock()
	r.answers = nil
	r.mu.Unlock()
	until(t, func() bool { s := h.known.Status()[0]; return s.Error == "" && !s.Done.IsZero() })
}

// TestRetryAfterRestart checks that a restart does not shorten a requested pause.
func TestRetryAfterRestart(t *testing.T) {
	r := newReceiver(t)
	c := forURL(t, r)
	r.answers = []http.HandlerFunc{status(429, "Retry-After", "3600")}
	h := newHub(t, c)
	next := func() time.Duration {
		names, _ := filepath.Glob(filepath.Join(c.Forward.Queue, "*"))
		if len(names) != 1 {
			return 0
		}
		return (&queue{dir: names[0]}).untilNext(time.Now())
	}
	stop := start(t, c, h, r)
	h.watched(t)
	h.fan.Send(finding(1, "scanner"))
	until(t, func() bool { return next() > 50*time.Minute })
	stop()
	h.unwatched(t)
	start(t, c, h, r)
	h.watched(t)
	for n := range uint64(5) {
		h.fan.Send(finding(1, "scanner"))
		until(t, func() bool { return queued(t, c) == n+2 || len(r.accepted()) > 0 })
	}
	if n := len(r.accepted()); n != 0 {
		t.Errorf("%d requests in the pause", n)
	}
	q := &queue{dir: t.TempDir()}
	for stored, want := range map[time.Duration]time.Duration{-time.Hour: 0, time.Hour: time.Hour, 25 * time.Hour: 24 * time.Hour} {
		if err := q.setNext(noon, stored); err != nil {
			t.Fatal(err)
		}
		if got := q.untilNext(noon); got != want {
			t.Errorf("%v: %v, want %v", stored, got, want)
		}
	}
	// The clock was wrong when the pause started.
	if err := q.setNext(noon.Add(20*time.Hour), time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := q.untilNext(noon); got != time.Minute {
		t.Errorf("%v after a clock that was wrong, want a minute", got)
	}
}

// TestBlockedReader checks that a service ends even if no process reads its standard output.
func TestBlockedReader(t *testing.T) {
	blocked, w := io.Pipe()
	defer blocked.Close()
	writing := make(chan struct{}, 1)
	f := idle(t, &rules.Companion{Role: rules.RoleForward, Target: rules.ForwardStdout}, Options{RunDir: t.TempDir(), Now: time.Now, Stdout: writerFunc(func(b []byte) (int, error) {
		writing <- struct{}{}
		return w.Write(b)
	})})
	f.every = time.Millisecond
	f.to.(*writer).grace = 0
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-writing; cancel() }()
	f.window.add(&events.Event{Event: "ban", Time: noon})
	if err := f.Run(ctx); err != nil {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestClosedReader checks that a service ends with an error when the process that reads its
// standard output ends.
func TestClosedReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	f := idle(t, &rules.Companion{Role: rules.RoleForward, Target: rules.ForwardStdout}, Options{RunDir: t.TempDir(), Now: time.Now, Stdout: w})
	f.every = time.Millisecond
	if err := f.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "closed standard output") {
		t.Error(err)
	}
}

// TestReflectedRequest checks that no error contains the URL's path or a header's secret, even if a
// server repeats them.
func TestReflectedRequest(t *testing.T) {
	r := newReceiver(t)
	header := filepath.Join(t.TempDir(), "header")
	os.WriteFile(header, []byte("Authorization: Bearer s3cr3t-0123456789\n"), 0o600)
	w := &webhook{client: newClient(r.roots, "scanwatch/test", time.Now), url: r.URL + "/services/T0123456789", header: header}
	r.answers = []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(c, "%s?%s\x1b\r\n\r\n", r.URL.Path, strings.ReplaceAll(r.Header.Get("Authorization"), " ", "+"))
		c.Close()
	}}
	err := w.deliver(t.Context(), encode(&Batch{ID: "1", Events: []*Item{}}))
	if err == nil || !strings.Contains(err.Error(), "malformed HTTP response") || strings.Contains(err.Error(), "0123456789") || strings.Contains(err.Error(), "\x1b") {
		t.Error(err)
	}
}

// TestReportOnce checks that a report without a response is not sent again. The time of the report
// must be on disk before AbuseIPDB responds. After a temporary rejection, the report must remain in
// the queue.
func TestReportOnce(t *testing.T) {
	r, companion := newReceiver(t), forAbuse(t)
	h := newHub(t, companion)
	f := idle(t, companion, Options{RunDir: h.dir, Roots: r.roots, Now: func() time.Time { return noon }, Abuse: r.URL + "/report"})
	until(t, func() bool { return f.ask(func(c *control.Client) error { return c.Note(f.name, 0, 0, nil) }) == nil })
	host := netip.MustParseAddr("198.51.100.1")
	saved := func() bool {
		other := newReporter(f.queue)
		if err := other.load(noon); err != nil {
			t.Error(err)
		}
		return !other.reported[host].IsZero()
	}
	f.reporter.add(about(host.String(), "finding", "scanner", "high"))
	f.report(t.Context())
	e, data, ok, err := f.queue.first()
	if !ok || err != nil {
		t.Fatal(err)
	}
	r.answers = []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }}
	if err := f.deliver(t.Context(), e, data); err == nil || errors.Is(err, errRejected) || saved() {
		t.Errorf("an error of the server: %v, saved %v", err, saved())
	}
	r.answers = []http.HandlerFunc{func(http.ResponseWriter, *http.Request) {
		if !saved() {
			t.Error("the time is not on the disk before the answer")
		}
		panic(http.ErrAbortHandler)
	}}
	if err := f.deliver(t.Context(), e, data); !errors.Is(err, errRejected) || !strings.Contains(err.Error(), "will not be sent again") || !saved() {
		t.Errorf("no answer: %v", err)
	}
	f.queue.remove(e, true)
	f.reporter.add(about(host.String(), "finding", "scanner", "high"))
	if due := f.reporter.due(noon.Add(14*time.Minute), nil); len(due) != 0 {
		t.Errorf("again after 14 minutes: %+v", due)
	}
}
