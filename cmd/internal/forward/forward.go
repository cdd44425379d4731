package forward

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// Options holds the inputs to New.
type Options struct {
	RunDir string // directory of the filter's socket
	Stdout io.Writer
	Log    *slog.Logger
	Roots  *x509.CertPool // certificate authorities; nil for the system's
	Agent  string         // name and version of the program
	Now    func() time.Time
	Abuse  string // URL for reports; empty for AbuseIPDB
}

// Defaults of rules.Forward.
const (
	DefaultEvery = time.Minute
	DefaultRate  = 30
)

// Pauses between attempts.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	dialPause  = 5 * time.Second
	notePause  = 10 * time.Second // shorter than the time after which the filter reports that a companion is not running
)

// processID distinguishes batches from different processes.
var processID = os.Getpid()

// DefaultQueue is the queues' directory, which the packages create.
func DefaultQueue() string {
	if runtime.GOOS == "linux" {
		return "/var/lib/scanwatch-forward"
	}
	return "/var/db/scanwatch-forward"
}

// A collector receives events.
type collector interface {
	add(*events.Event)
	lose(losses)
}

// A Forwarder passes the filter's events to one destination.
type Forwarder struct {
	o        Options
	name     string // of the companion
	every    time.Duration
	interval time.Duration // between deliveries
	first    time.Duration // pause after the first failure
	again    time.Duration // pause before the next connection to the filter
	collect  collector
	window   *window   // nil for reports
	reporter *reporter // nil for batches
	queue    *queue    // nil for standard output
	to       destination

	mu        sync.Mutex
	failed    error           // of the latest delivery
	delivered bool            // an entry was delivered since the latest note
	dropped   uint64          // reports dropped since the latest delivery
	lost      uint64          // lost events reported in the output; only for standard output
	refused   int             // batches rejected since the latest delivery
	skipped   int             // windows without events since the latest batch
	client    *control.Client // for the status and questions; nil if not connected
}

// New returns a companion's Forwarder, and opens its queue.
func New(c *rules.Companion, o Options) (*Forwarder, error) {
	f := &Forwarder{o: o, name: c.Name(), every: cmp.Or(c.Forward.Every, DefaultEvery), first: firstPause, again: dialPause,
		interval: time.Minute / time.Duration(cmp.Or(c.Forward.Rate, DefaultRate))}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	f.window = &window{host: host, from: o.Now()}
	f.collect = f.window
	if c.Target == rules.ForwardStdout {
		f.to = &writer{w: o.Stdout, grace: writeGrace}
		return f, nil
	}
	sum := sha256.Sum256([]byte(c.Target + " " + c.Argument))
	dir := filepath.Join(cmp.Or(c.Forward.Queue, DefaultQueue()), c.Target+"-"+hex.EncodeToString(sum[:4]))
	if f.queue, err = openQueue(dir); err != nil {
		return nil, err
	}
	web := newClient(o.Roots, o.Agent, o.Now)
	switch c.Target {
	case rules.ForwardURL:
		f.to = &webhook{client: web, url: c.Argument, body: c.Forward.Body, key: c.Forward.Key, header: c.Forward.Header}
	case rules.ForwardSyslog:
		f.to = &syslog{address: c.Argument, roots: o.Roots, pid: processID}
	case rules.ForwardAbuse:
		f.reporter = newReporter(f.queue)
		f.collect, f.window = f.reporter, nil
		f.to = &abuseIPDB{client: web, url: cmp.Or(o.Abuse, AbuseIPDB), key: c.Forward.Key}
		if err := f.reporter.load(o.Now()); err != nil {
			o.Log.Error("times of reports unreadable, no reports for a day", "err", err)
		}
		f.reporter.dropAll() // the evidence is old if the previous process ended long ago
	default:
		return nil, fmt.Errorf("unknown destination %q", c.Target)
	}
	return f, nil
}

// Files returns the directories in which the Forwarder changes files, and the sockets that it uses.
func (f *Forwarder) Files() (dirs, sockets []string) {
	sockets = []string{control.SocketPath(f.o.RunDir)}
	if f.queue != nil {
		dirs = []string{f.queue.dir}
	}
	if s, ok := f.to.(*syslog); ok && filepath.IsAbs(s.address) {
		sockets = append(sockets, s.address)
	}
	return dirs, sockets
}

// Run passes events until ctx is done or standard output is closed.
func (f *Forwarder) Run(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	var all sync.WaitGroup
	var err error
	all.Go(func() { f.watch(ctx) })
	all.Go(func() { f.note(ctx) })
	if f.queue != nil {
		all.Go(func() { f.send(ctx) })
	}
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if err = f.flush(ctx); errors.Is(err, syscall.EPIPE) {
			end()
		}
	}
	all.Wait()
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, errStuck) {
		err = f.flush(ctx) // events that arrived since the previous call
	}
	f.closeQueue()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disconnect()
	if errors.Is(err, syscall.EPIPE) {
		return errors.New("write events: the reader has closed standard output") // with EPIPE, the program would exit with status 0
	}
	return nil
}

// watch passes the filter's events to the collector.
func (f *Forwarder) watch(ctx context.Context) {
	var logged string
	if f.queue == nil || !f.queue.fresh {
		f.collect.lose(losses{gaps: 1}) // events since the previous process ended are missing
	}
	reached := false
	for ctx.Err() == nil {
		err := f.watchOnce(ctx, func() { reached, logged = true, "" })
		if ctx.Err() != nil {
			return
		}
		if reached {
			f.collect.lose(losses{gaps: 1})
		}
		reached = false
		if err.Error() != logged {
			logged = err.Error()
			f.o.Log.Warn("events not followed", "companion", f.name, "err", err)
		}
		pause(ctx, f.again)
	}
}

func (f *Forwarder) watchOnce(ctx context.Context, started func()) error {
	c, err := control.DialCompanion(f.o.RunDir)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return c.Watch(events.Choice{}, started, func(line []byte) error {
		e, missed, err := events.Decode(line)
		switch {
		case err != nil:
			return err
		case missed > 0:
			f.collect.lose(losses{events: missed})
		default:
			f.collect.add(&e)
		}
		return nil
	})
}

// flush moves a window's events to the queue or, if there is no queue, sends them to the
// destination. It logs and returns the error.
func (f *Forwarder) flush(ctx context.Context) error {
	if f.reporter != nil {
		f.report(ctx)
		return nil
	}
	lost := f.window.lost()
	if f.queue != nil {
		f.queue.lose(lost) // kept on disk until a batch contains the losses
		lost = f.queue.unsettled()
		if f.window.empty() && (f.rests() || !f.queue.room()) {
			return nil // a batch without events could be rejected like the others, or displace a batch with events
		}
	}
	b := f.window.take(f.o.Now(), lost)
	if b == nil {
		return nil
	}
	err := f.store(ctx, b)
	if err == nil {
		return nil
	}
	more := losses{events: b.count() - lost.events}
	if f.queue != nil {
		f.queue.lose(more)
	} else {
		f.window.lose(lost.plus(more))
	}
	f.fail(err)
	if more.events > 0 { // events in lost were counted before
		f.o.Log.Error("events lost", "companion", f.name, "events", more.events, "err", err)
	}
	return err
}

func (f *Forwarder) store(ctx context.Context, b *Batch) error {
	if f.queue == nil {
		err := f.to.deliver(ctx, encode(b))
		if err == nil {
			f.fail(nil)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.lost += b.Dropped
		}
		return err
	}
	l := losses{b.Dropped, b.Gaps}
	err := f.queue.add(encode(b), b.count(), l.key(), f.o.Now())
	if err == nil {
		f.queue.settle(l)
	}
	return err
}

// closeQueue saves the state for the next process.
func (f *Forwarder) closeQueue() {
	if f.reporter != nil {
		if err := f.reporter.save(); err != nil {
			f.o.Log.Error("times of reports not saved", "companion", f.name, "err", err)
		}
	}
	if f.queue == nil {
		return
	}
	lost := f.queue.unsettled()
	if err := f.queue.close(); err != nil && lost.events > 0 {
		f.o.Log.Error("events lost", "companion", f.name, "events", lost.events, "err", err)
	}
}

// report moves due reports to the queue, unless the host is exempt. If the filter is not answering,
// the reporter keeps the reports.
func (f *Forwarder) report(ctx context.Context) {
	f.countDropped()
	if err := f.reporter.saveExempt(); err != nil {
		f.fail(err)
		f.o.Log.Error("times of reports not saved", "companion", f.name, "err", err)
		return // no report is sent before the exemptions are on disk
	}
	queued := f.queue.keys()
	for key := range queued {
		// In observe mode, all reports are dropped. One question to the filter is enough to detect
		// this mode.
		if a, err := netip.ParseAddr(key); err == nil {
			_, _ = f.spared(a, control.Names{Addr: a})
			break
		}
	}
	for _, r := range f.reporter.due(f.o.Now(), queued) {
		spared, err := f.spared(r.IP, r.hosts()...)
		if err != nil || ctx.Err() != nil {
			return // watch logs the error; in observe mode, all reports were dropped
		}
		if spared {
			continue
		}
		if err := f.queue.add(encode(r), 1, hostOf(r.IP).String(), f.o.Now()); err != nil {
			f.fail(err)
			f.o.Log.Error("report not stored, trying again", "companion", f.name, "err", err)
			return
		}
		f.reporter.stored(r.IP)
	}
}

// countDropped logs how many reports were dropped since the previous call. The status shows the
// number since the latest delivery.
func (f *Forwarder) countDropped() {
	f.queue.lose(losses{events: f.reporter.lost()})
	lost := f.queue.unsettled()
	if lost.events == 0 {
		return
	}
	f.o.Log.Warn("reports dropped", "companion", f.name, "reports", lost.events)
	f.queue.settle(lost)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped += lost.events
	f.failed = fmt.Errorf("%s dropped; see Report to AbuseIPDB in scanwatch(8)", text.Plural(f.dropped, "report"))
}

// spared reports whether a host must not be reported because one of the given names is exempt. In
// observe mode, spared drops all evidence and reports, and returns errObserve.
func (f *Forwarder) spared(a netip.Addr, names ...control.Names) (spared bool, err error) {
	if f.reporter.spared(a) {
		return true, nil
	}
	observe := false
	err = f.ask(func(c *control.Client) (err error) {
		for _, n := range names {
			if spared, observe, err = c.Spared(n); err != nil || spared || observe {
				return err
			}
		}
		return nil
	})
	if observe {
		f.reporter.dropAll()
		return false, errObserve
	}
	if spared && err == nil {
		f.reporter.spare(a, f.o.Now())
	}
	return spared, err
}

// errSpared means that a host became exempt while its report was waiting.
var errSpared = errors.New("the host is exempt")

// errObserve means that the filter is in observe mode, in which nothing is reported.
var errObserve = errors.New("the filter is in mode observe")

// deliver delivers an entry from the queue.
func (f *Forwarder) deliver(ctx context.Context, e entry, data []byte) error {
	var r report
	if f.reporter == nil {
		if b, err := decodeBatch(data); err != nil || b.count() != e.weight {
			return fmt.Errorf("%w: %s is corrupt", errRejected, f.queue.path(e))
		}
	} else {
		if err := json.Unmarshal(data, &r); err != nil || hostOf(r.IP).String() != e.key {
			return fmt.Errorf("%w: %s is corrupt", errRejected, f.queue.path(e))
		}
		spared, err := f.spared(r.IP, r.hosts()...)
		if err != nil {
			return err
		}
		if spared {
			return errSpared
		}
	}
	_ = f.queue.setNext(f.o.Now(), f.interval) // on failure, requests after a restart may exceed the rate
	if f.reporter != nil {
		return f.deliverReport(ctx, r.IP, data)
	}
	return f.to.deliver(ctx, data)
}

// deliverReport delivers a host's report. If AbuseIPDB does not respond, it may still have accepted
// the report. The report is not sent again, because AbuseIPDB rejects a second report within 15
// minutes.
func (f *Forwarder) deliverReport(ctx context.Context, a netip.Addr, data []byte) error {
	if err := f.reporter.attempt(a, f.o.Now()); err != nil {
		return fmt.Errorf("save the time of the report: %w", err)
	}
	err := f.to.deliver(ctx, data)
	switch {
	case errors.As(err, new(unansweredError)):
		return fmt.Errorf("%w: %w; AbuseIPDB may have accepted the report, which will not be sent again", errRejected, err)
	case err != nil && !errors.Is(err, errRejected):
		f.reporter.setReported(a, time.Time{})
	}
	if err := f.reporter.save(); err != nil {
		f.o.Log.Error("times of reports not saved", "companion", f.name, "err", err)
	}
	return err
}

// send delivers the queue's entries in order.
func (f *Forwarder) send(ctx context.Context) {
	wait := f.first
	var logged string
	pause(ctx, f.queue.untilNext(f.o.Now()))
	for ctx.Err() == nil {
		e, data, ok, err := f.queue.first()
		if !ok {
			select {
			case <-ctx.Done():
			case <-f.queue.wake:
			}
			continue
		}
		if err == nil {
			err = f.deliver(ctx, e, data)
		}
		switch {
		case errors.Is(err, errSpared), errors.Is(err, errObserve):
			f.queue.remove(e, false) // in observe mode, the entry was already dropped
			continue
		case ctx.Err() != nil && err != nil:
			return
		case err == nil, errors.Is(err, errRejected):
			f.queue.remove(e, err != nil)
			wait = f.first
		}
		f.fail(err)
		if err == nil {
			logged = ""
			pause(ctx, f.interval)
			continue
		}
		if errors.Is(err, errRejected) {
			f.o.Log.Error("events rejected", "companion", f.name, "events", news(e, data), "err", err)
			pause(ctx, f.interval)
			continue
		}
		if err.Error() != logged {
			logged = err.Error()
			f.o.Log.Warn("events not delivered, trying again", "companion", f.name, "waiting", f.queue.length(), "err", err)
		}
		after := max(wait, f.interval)
		if later := new(laterError); errors.As(err, later) {
			after = max(after, later.after)
		}
		_ = f.queue.setNext(f.o.Now(), after) // on failure, a restart shortens the pause
		pause(ctx, after)
		wait = min(2*wait, lastPause)
	}
}

// rests reports whether a batch without events must wait for a later window. With each rejection,
// twice as many windows are skipped.
func (f *Forwarder) rests() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.skipped++; f.skipped < 1<<min(f.refused, maxSkipped) {
		return true
	}
	f.skipped = 0
	return false
}

// Between two batches without events, at most 1<<maxSkipped windows are skipped.
const maxSkipped = 6

// news returns the number of events in an entry, without the events that an earlier log line has
// already reported.
func news(e entry, data []byte) uint64 {
	if b, err := decodeBatch(data); err == nil {
		return e.weight - min(b.Dropped, e.weight)
	}
	return e.weight
}

// fail sets the error shown in the status. After a delivery, err is nil.
func (f *Forwarder) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
	if errors.Is(err, errRejected) {
		f.refused++
	} else if err == nil {
		f.refused, f.dropped = 0, 0
	}
	f.delivered = f.delivered || err == nil
}

// note reports the status to the filter.
func (f *Forwarder) note(ctx context.Context) {
	for ctx.Err() == nil {
		f.mu.Lock()
		failed, delivered, waiting, lost := f.failed, f.delivered, 0, f.lost
		f.delivered = false
		f.mu.Unlock()
		if failed == nil && !delivered {
			failed = control.ErrNoResult
		}
		if f.queue != nil {
			waiting, lost = f.queue.length(), f.queue.lostEvents()
		}
		if err := f.ask(func(c *control.Client) error { return c.Note(f.name, waiting, lost, failed) }); err != nil && delivered { // watch logs the error
			f.mu.Lock()
			f.delivered = true
			f.mu.Unlock()
		}
		pause(ctx, min(notePause, f.every))
	}
}

// ask calls use with a connection to the filter.
func (f *Forwarder) ask(use func(*control.Client) error) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.client == nil {
		if f.client, err = control.DialCompanion(f.o.RunDir); err != nil {
			f.client = nil
			return err
		}
	}
	if err = use(f.client); err != nil {
		f.disconnect()
	}
	return err
}

// disconnect closes the connection. The caller holds mu.
func (f *Forwarder) disconnect() {
	if f.client != nil {
		f.client.Close()
		f.client = nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
