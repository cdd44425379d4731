package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
)

// full returns a Forwarder whose queue is full of batches that contain one event each.
func full(t *testing.T, c *rules.Companion, o Options) *Forwarder {
	t.Helper()
	f := idle(t, c, o)
	for i := range maxQueued {
		if err := os.WriteFile(filepath.Join(f.queue.dir, fmt.Sprintf("%d-1.json", i)), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.queue.close()
	return idle(t, c, o)
}

// TestLossesAfterEnd checks that the number of lost events survives a restart of the service if the
// queue is full.
func TestLossesAfterEnd(t *testing.T) {
	for name, kill := range map[string]bool{"end": false, "kill": true} {
		t.Run(name, func(t *testing.T) {
			c := forURL(t, newReceiver(t))
			o := Options{RunDir: t.TempDir(), Now: time.Now}
			f := full(t, c, o)
			f.window.add(finding(1, "scanner")) // replaces the first batch
			if err := f.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.window.lose(losses{7, 2})
			if kill {
				if err := f.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.queue.unlock()
			} else {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if err := f.Run(ctx); err != nil {
					t.Fatal(err)
				}
			}
			f = idle(t, c, o)
			for range 3 {
				if err := f.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				e, _, _, _ := f.queue.first()
				f.queue.remove(e, false)
			}
			last, err := os.ReadFile(f.queue.path(f.queue.entries[f.queue.length()-1]))
			if err != nil {
				t.Fatal(err)
			}
			gaps := uint64(2)
			if !kill {
				gaps++ // the start of the service
			}
			if b, err := decodeBatch(last); err != nil || b.Dropped != 1+7 || b.Gaps != gaps {
				t.Errorf("%s, %v", last, err)
			}
			if l := f.queue.unsettled(); l != (losses{}) {
				t.Errorf("%+v would be counted again", l)
			}
		})
	}
}

// TestLostOnce checks events that could not be stored. The events must be logged once. As soon as
// the queue is writable again, a batch must include their number.
func TestLostOnce(t *testing.T) {
	f := idle(t, forURL(t, newReceiver(t)), Options{RunDir: t.TempDir(), Now: time.Now})
	var log bytes.Buffer
	f.o.Log = slog.New(slog.NewTextHandler(&log, nil))
	away := f.queue.dir + ".away"
	if err := os.Rename(f.queue.dir, away); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f.window.add(finding(1, "scanner"))
	}
	for range 5 {
		_ = f.flush(t.Context()) // the error is logged
	}
	if n := strings.Count(log.String(), "events lost"); n != 1 || !strings.Contains(log.String(), "events=3 err=\"write "+f.queue.dir+"/") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
	if err := errors.Join(os.Rename(away, f.queue.dir), f.flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, data, _, _ := f.queue.first(); !bytes.Contains(data, []byte(`"dropped":3,`)) {
		t.Errorf("%s", data)
	}
}

// TestCorruptFiles checks that a service starts even if its queue contains corrupt files and FIFOs,
// and that corrupt batches are counted and named.
func TestCorruptFiles(t *testing.T) {
	r := newReceiver(t)
	c := forURL(t, r)
	o := Options{RunDir: t.TempDir(), Now: time.Now, Roots: r.roots}
	f := idle(t, c, o)
	for i := range 5 {
		f.window.add(finding(i, "scanner"))
		f.flush(t.Context())
	}
	name := func(i int) string { return f.queue.path(f.queue.entries[i]) }
	whole, err := os.ReadFile(name(1))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	f.o.Log = slog.New(slog.NewTextHandler(&log, nil))
	f.interval, f.first = 0, time.Millisecond
	errs := []error{os.WriteFile(name(0), nil, 0o600), os.WriteFile(name(1), whole[:len(whole)/2], 0o600), os.WriteFile(name(2), []byte("{}"), 0o600),
		os.Remove(name(3)), syscall.Mkfifo(name(3), 0o600)}
	for _, name := range []string{nextName, "reported"} {
		errs = append(errs, syscall.Mkfifo(filepath.Join(f.queue.dir, name), 0o600))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	corrupt := []string{name(0), name(1), name(2), name(3)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.send(ctx) }()
	until(t, func() bool { return len(r.accepted()) == 1 && f.queue.length() == 0 })
	cancel()
	<-done
	if l := f.queue.unsettled(); l.events != 4 {
		t.Errorf("%+v lost, want 4 events", l)
	}
	for _, name := range corrupt {
		if !strings.Contains(log.String(), name) {
			t.Errorf("the log does not name %s:\n%s", name, log.String())
		}
	}
	// Start the next process.
	f.queue.close()
	counts := filepath.Join(f.queue.dir, countsName)
	for content, want := range map[string]losses{"": {}, "x": {}, strings.Repeat("9", 50): {}, "-1 -1\n": {},
		"00000000000000000017 00000000000000000003\n": {17, 3}, "99999999999999999999 00000000000000000003\n": {}} {
		if err := os.WriteFile(counts, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		q, err := openQueue(f.queue.dir)
		if err != nil {
			t.Fatal(err)
		}
		if l := q.unsettled(); l != want {
			t.Errorf("%q: %+v, want %+v", content, l, want)
		}
		q.close()
	}
	if err := errors.Join(os.Remove(counts), syscall.Mkfifo(counts, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := openQueue(f.queue.dir); err == nil || !strings.Contains(err.Error(), counts+": is not a regular file") {
		t.Errorf("a FIFO as counts: %v", err)
	}
}

// TestNoDescriptors checks that a batch is kept while the process cannot open files.
func TestNoDescriptors(t *testing.T) {
	f := idle(t, forURL(t, newReceiver(t)), Options{RunDir: t.TempDir(), Now: time.Now})
	f.window.add(finding(1, "scanner"))
	f.flush(t.Context())
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, _, ok, err := f.queue.first()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !ok || err == nil || errors.Is(err, errRejected) || f.queue.length() != 1 {
		t.Errorf("%v, %v, %d batches", ok, err, f.queue.length())
	}
}

// TestNoDirectory checks that the error for a missing directory names the directory and the remedy.
func TestNoDirectory(t *testing.T) {
	c := forURL(t, newReceiver(t))
	c.Forward.Queue = filepath.Join(c.Forward.Queue, "missing")
	if _, err := New(c, Options{Now: time.Now}); err == nil || !strings.Contains(err.Error(), "directory "+c.Forward.Queue+" does not exist; as root: install -d -o ") {
		t.Error(err)
	}
}

// TestSlowServer checks that a request without a response ends with a clear error.
func TestSlowServer(t *testing.T) {
	r := newReceiver(t)
	w := &webhook{client: newClient(r.roots, "scanwatch/test", time.Now), url: r.URL}
	w.http.Timeout = time.Second
	r.answers = []http.HandlerFunc{func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}
	if err := w.deliver(t.Context(), encode(&Batch{ID: "1", Events: []*Item{}})); err == nil || err.Error() != "no answer in 1s" {
		t.Error(err)
	}
}

// TestForeignLock checks that the service works even if another user has locked the directory. Any
// user who can read a directory can lock it.
func TestForeignLock(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err == nil {
		defer d.Close()
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	q, err := openQueue(dir)
	if err != nil {
		t.Fatal(err)
	}
	q.close()
}

// TestNamedFiles checks that errors name the file that contains the URL or header, and that a
// header is rejected if the protocol would replace it.
func TestNamedFiles(t *testing.T) {
	r := newReceiver(t)
	dir := t.TempDir()
	address, header := filepath.Join(dir, "url"), filepath.Join(dir, "header")
	w := &webhook{client: newClient(r.roots, "scanwatch/test", time.Now), url: address, header: header}
	for _, c := range []struct{ url, header, want string }{
		{"http://example.org/secret\n", "X: y\n", address + ": the URL does not begin with https://"},
		{"https://example.org:secret\n", "X: y\n", address + ": is not a URL"},
		{"secret\n", "X: y\n", address + ": is not a URL"},
		{r.URL, "Host: secret\n", header + ", line 1: the header Host belongs to the protocol"},
		{r.URL, "Content-Length: 3\n", header + ", line 1: the header Content-Length belongs"},
		{r.URL, "User-Agent: other\n", ""},
	} {
		if err := errors.Join(os.WriteFile(address, []byte(c.url), 0o600), os.WriteFile(header, []byte(c.header), 0o600)); err != nil {
			t.Fatal(err)
		}
		err := w.deliver(t.Context(), encode(&Batch{ID: "1", Events: []*Item{}}))
		switch {
		case c.want == "" && err != nil:
			t.Error(err)
		case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if got := r.accepted(); len(got) != 1 || got[0].header.Get("User-Agent") != "other" {
		t.Errorf("%+v", got)
	}
	if err := errors.Join(os.Remove(header), syscall.Mkfifo(header, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := w.deliver(t.Context(), encode(&Batch{ID: "1", Events: []*Item{}})); err == nil || !strings.Contains(err.Error(), header+": is not a regular file") {
		t.Errorf("a FIFO as header: %v", err)
	}
}

// TestExcusesInGaps checks that a gap in the events drops and counts earlier evidence and reports,
// because the missing events may have exempted any host.
func TestExcusesInGaps(t *testing.T) {
	c := forAbuse(t)
	h := newHub(t, c)
	o := Options{RunDir: h.dir, Now: func() time.Time { return noon }}
	f := idle(t, c, o)
	until(t, func() bool { return f.ask(func(c *control.Client) error { return c.Note(f.name, 0, 0, nil) }) == nil }) // until the socket exists
	offend := func(src string) { f.reporter.add(about(src, "finding", "scanner", "high")) }
	for name, gap := range map[string]func(){
		"restart": func() {
			f.disconnect()
			f.queue.close()
			f = idle(t, c, o)
			f.countDropped()
		},
		"kill": func() {
			f.disconnect()
			f.queue.unlock()
			f = idle(t, c, o)
			f.countDropped()
		},
		"dropped events": func() { f.reporter.lose(losses{events: 1}); f.countDropped() },
	} {
		offend("198.51.100.1")
		f.report(t.Context())
		if n := f.queue.length(); n != 1 {
			t.Fatalf("%s: %d reports wait, want 1", name, n)
		}
		f.dropped = 0
		gap()
		if n := f.queue.length(); n != 0 || len(f.reporter.due(noon, nil)) != 0 || f.dropped != 1 {
			t.Errorf("%s: %d reports wait, %d dropped", name, n, f.dropped)
		}
	}
	offend("198.51.100.2")
	f.reporter.lose(losses{gaps: 1})
	offend("198.51.100.3")
	f.report(t.Context())
	if e, _, _, _ := f.queue.first(); f.queue.length() != 1 || e.key != "198.51.100.3" {
		t.Errorf("%d reports, of %s", f.queue.length(), e.key)
	}
	if err := f.failed; err == nil || !strings.HasPrefix(err.Error(), "2 reports dropped") {
		t.Errorf("status %v", err)
	}
}

// TestUnban checks that an unban and the change to observe mode drop evidence and waiting reports.
func TestUnban(t *testing.T) {
	c, r := forAbuse(t), newReceiver(t)
	h := newHub(t, c)
	f := idle(t, c, Options{RunDir: h.dir, Roots: r.roots, Now: func() time.Time { return noon }, Abuse: r.URL + "/report"})
	until(t, func() bool { return f.ask(func(c *control.Client) error { return c.Note(f.name, 0, 0, nil) }) == nil }) // until the socket exists
	offend := func(hosts ...string) {
		for _, src := range hosts {
			f.reporter.add(about(src, "finding", "scanner", "high"))
		}
	}
	offend("198.51.100.1", "198.51.101.1", "2001:db8::1")
	f.report(t.Context())
	offend("198.51.100.2", "198.51.101.2")
	for _, p := range []string{"198.51.100.0/24", "2001:db8::/64"} {
		f.reporter.add(&events.Event{Event: "unban", Time: noon, Prefix: p, By: "operator"})
	}
	f.report(t.Context())
	keys := f.queue.keys()
	if len(keys) != 2 || !keys["198.51.101.1"] || !keys["198.51.101.2"] || f.dropped != 3 {
		t.Errorf("reports of %v, %d dropped", keys, f.dropped)
	}
	offend("198.51.100.3")
	due := f.reporter.due(noon, f.queue.keys())
	f.reporter.add(&events.Event{Event: "unban", Time: noon, Prefix: "198.51.100.3/32"}) // this event arrives while the report is being stored
	if err := f.queue.add(encode(due[0]), 1, due[0].IP.String(), noon); err != nil {
		t.Fatal(err)
	}
	f.reporter.stored(due[0].IP)
	if n := f.queue.length(); n != 2 {
		t.Errorf("%d reports wait, want 2", n)
	}
	e, data, _, _ := f.queue.first()
	h.observe.Store(true)
	offend("198.51.102.1")
	if err := f.deliver(t.Context(), e, data); !errors.Is(err, errObserve) || f.queue.length() != 0 {
		t.Errorf("%v, %d reports in mode observe", err, f.queue.length())
	}
	offend("198.51.102.2")
	f.report(t.Context())
	h.observe.Store(false)
	f.report(t.Context())
	if n := f.queue.length(); n != 0 || len(r.accepted()) != 0 || f.dropped != 8 {
		t.Errorf("%d reports wait, %d sent, %d dropped", n, len(r.accepted()), f.dropped)
	}
	// The filter must be asked about queued reports even if there is no new evidence.
	offend("198.51.102.3")
	f.report(t.Context())
	h.observe.Store(true)
	f.report(t.Context())
	if n := f.queue.length(); n != 0 {
		t.Errorf("%d reports wait in mode observe", n)
	}
}

// TestManyHosts checks that hosts without reportable evidence, and hosts that share a /64, do not
// use up the space for reports on other hosts.
func TestManyHosts(t *testing.T) {
	r := newReporter(&queue{dir: t.TempDir()})
	a := netip.MustParseAddr("2001:db8::1")
	for range maxSuspects + 3 {
		r.add(about(a.String(), "finding", "harvest", "medium"))
		r.add(about(a.String(), "finding", "no-mail", "high"))
		a = nextNetwork(a)
	}
	a = netip.MustParseAddr("2001:db8:ffff::1")
	for range maxSuspects + 3 {
		r.add(about(a.String(), "finding", "scanner", "high"))
		a = a.Next()
	}
	r.add(about("198.51.100.1", "finding", "scanner", "high"))
	var got []string
	for _, d := range r.due(noon, nil) {
		got = append(got, d.IP.String())
	}
	if want := []string{"198.51.100.1", a.Prev().String()}; !slices.Equal(got, want) {
		t.Errorf("reports of %s, want %s", got, want)
	}
	if len(r.innocent) > maxSuspects {
		t.Errorf("%d hosts without reportable evidence", len(r.innocent))
	}
	a = netip.MustParseAddr("2001:db8::1")
	for range maxSuspects + 3 {
		r.add(about(a.String(), "finding", "scanner", "high"))
		a = nextNetwork(a)
	}
	if n := r.lost(); n != 5 {
		t.Errorf("%d reports dropped above the limit, want 5", n)
	}
	r.due(noon.Add(2*time.Hour), nil)
	if n := r.lost(); n != maxSuspects {
		t.Errorf("%d reports expired, want %d", n, maxSuspects)
	}
}

// TestFutureEvidence checks that reports are still sent if a wrong clock has stored times in the
// future.
func TestFutureEvidence(t *testing.T) {
	r := newReporter(&queue{dir: t.TempDir()})
	future := noon.AddDate(10, 0, 0)
	late := about("198.51.100.1", "finding", "harvest", "medium")
	late.Time = future
	r.add(late)
	r.exemptAt(netip.MustParseAddr("198.51.100.2"), future)
	r.overflow = future
	r.due(noon, nil)
	if r.due(noon.Add(25*time.Hour), nil); len(r.suspects) != 0 || len(r.exempt) != 0 {
		t.Errorf("%v, %v remain", r.suspects, r.exempt)
	}
	e := about("198.51.100.3", "finding", "scanner", "high")
	e.Time = noon.Add(26 * time.Hour)
	r.add(e)
	if due := r.due(e.Time, nil); len(due) != 1 {
		t.Errorf("%d reports", len(due))
	}
}

// TestDuplicateReport checks that a response about one report's address does not delay reports on
// other addresses.
func TestDuplicateReport(t *testing.T) {
	r, c := newReceiver(t), forAbuse(t)
	a := &abuseIPDB{client: newClient(r.roots, "", time.Now), url: r.URL, key: c.Forward.Key}
	for _, c := range []struct {
		reply    string
		rejected bool
	}{
		{`{"errors":[{"detail":"You can only report the same IP address once in 15 minutes.","status":429,"source":{"parameter":"ip"}}]}`, true},
		{`{"errors":[{"detail":"Daily rate limit exceeded.","status":429}]}`, false},
		{`{"errors":[]}`, false},
		{"<html>", false},
	} {
		r.answers = []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTooManyRequests)
			w.Write([]byte(c.reply))
		}}
		err := a.deliver(t.Context(), encode(report{IP: netip.MustParseAddr("198.51.100.1")}))
		if err == nil || errors.Is(err, errRejected) != c.rejected {
			t.Errorf("%s: %v", c.reply, err)
		}
	}
}
