package forward

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
)

// Options are the options of a Forwarder.
type Options struct {
	RunDir string // directory of the socket of the filter
	Stdout io.Writer
	Log    *slog.Logger
	Roots  *x509.CertPool // certificates of authorities; nil for those of the system
	Agent  string         // name and version of the program
	Now    func() time.Time
	Abuse  string // URL of the reports; empty for AbuseIPDB
}

// The defaults of rules.Forward.
const (
	DefaultEvery = time.Minute
	DefaultRate  = 30
)

// The pauses between attempts.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	dialPause  = 5 * time.Second
	notePause  = 10 * time.Second // shorter than the time after which the filter reports that a companion does not run
)

// processID distinguishes the batches of processes.
var processID = os.Getpid()

// DefaultQueue is the directory of the queues, which the packages create.
func DefaultQueue() string {
	if runtime.GOOS == "linux" {
		return "/var/lib/scanwatch-forward"
	}
	return "/var/db/scanwatch-forward"
}

// A collector receives events.
type collector interface {
	add(*events.Event)
	miss(n uint64)
	gap()
}

// A Forwarder passes the events of the filter to one destination.
type Forwarder struct {
	o        Options
	name     string // of the companion
	every    time.Duration
	interval time.Duration // between requests
	first    time.Duration // pause after the first failure
	again    time.Duration // pause before the next connection to the filter
	collect  collector
	window   *window   // nil for reports
	reporter *reporter // nil for batches
	queue    *queue    // nil for standard output
	to       destination

	mu     sync.Mutex
	failed error           // of the latest delivery
	client *control.Client // for notes and questions; nil if not connected
}

// New returns a Forwarder for a companion, and opens its queue.
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
		f.to = &writer{o.Stdout}
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
		f.reporter = newReporter(dir)
		f.collect, f.window = f.reporter, nil
		f.to = &abuseIPDB{client: web, url: cmp.Or(o.Abuse, AbuseIPDB), key: c.Forward.Key}
		if err := f.reporter.load(); err != nil {
			o.Log.Warn("times of reports unreadable", "err", err)
		}
	default:
		return nil, fmt.Errorf("unknown destination %q", c.Target)
	}
	return f, nil
}

// Files returns the directories in which the Forwarder changes files, and the sockets to
// which it connects.
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

// Run passes events until ctx ends.
func (f *Forwarder) Run(ctx context.Context) {
	var all sync.WaitGroup
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
		f.flush(ctx)
	}
	all.Wait()
	f.flush(ctx) // events that arrived since the previous call
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disconnect()
}

// watch passes the events of the filter to the collector.
func (f *Forwarder) watch(ctx context.Context) {
	var logged string
	reached := true
	for ctx.Err() == nil {
		err := f.watchOnce(ctx, func() { reached, logged = true, "" })
		if ctx.Err() != nil {
			return
		}
		if reached {
			f.collect.gap()
		}
		reached = false
		if err.Error() != logged {
			logged = err.Error()
			f.o.Log.Warn("events not followed", "companion", f.name, "err", err)
		}
		pause(ctx, f.again)
	}
}

func (f *Forwarder) watchOnce(ctx context.Context, begun func()) error {
	c, err := control.DialCompanion(f.o.RunDir)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return c.Watch(events.Choice{}, begun, func(line []byte) error {
		e, missed, err := events.Decode(line)
		switch {
		case err != nil:
			return err
		case missed > 0:
			f.collect.miss(missed)
		default:
			f.collect.add(&e)
		}
		return nil
	})
}

// flush moves the events of a window to the queue, or to the destination without a queue.
func (f *Forwarder) flush(ctx context.Context) {
	if f.reporter != nil {
		f.report(ctx)
		return
	}
	if f.queue != nil {
		f.window.miss(f.queue.lost())
	}
	b := f.window.take(f.o.Now())
	if b == nil {
		return
	}
	err := f.store(b)
	if err == nil {
		return
	}
	f.window.miss(b.count())
	for range b.Gaps {
		f.window.gap()
	}
	f.fail(err)
	f.o.Log.Error("events lost", "companion", f.name, "events", b.count(), "err", err)
}

func (f *Forwarder) store(b *Batch) error {
	if f.queue == nil {
		return f.to.deliver(context.Background(), encode(b))
	}
	return f.queue.add(encode(b), b.count(), f.o.Now())
}

// report moves the reports that are due to the queue, except those of hosts that the filter
// spares. Without an answer of the filter they remain.
func (f *Forwarder) report(ctx context.Context) {
	if n := f.queue.lost(); n > 0 {
		f.o.Log.Warn("reports dropped", "companion", f.name, "reports", n)
	}
	reports := f.reporter.due(f.o.Now())
	for _, r := range reports {
		var spared bool
		err := f.ask(func(c *control.Client) (err error) {
			spared, err = c.Spared(r.IP)
			return err
		})
		if err != nil || ctx.Err() != nil {
			return // watch logs it
		}
		f.reporter.done(r.IP, f.o.Now(), spared)
		if spared {
			continue
		}
		// The time is on the disk before the report: a second report would be rejected.
		if err = f.reporter.save(); err == nil {
			err = f.queue.add(encode(r), 1, f.o.Now())
		}
		if err != nil {
			f.fail(err)
			f.o.Log.Error("report lost", "companion", f.name, "err", err)
		}
	}
}

// send delivers the entries of the queue in order.
func (f *Forwarder) send(ctx context.Context) {
	wait := f.first
	var logged string
	for ctx.Err() == nil {
		e, data, ok := f.queue.first()
		if !ok {
			select {
			case <-ctx.Done():
			case <-f.queue.wake:
			}
			continue
		}
		err := f.to.deliver(ctx, data)
		switch {
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
			f.o.Log.Error("events rejected", "companion", f.name, "events", e.weight, "err", err)
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
		pause(ctx, after)
		wait = min(2*wait, lastPause)
	}
}

// fail sets the error for the status; nil after a success.
func (f *Forwarder) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
}

// note reports the status to the filter.
func (f *Forwarder) note(ctx context.Context) {
	for ctx.Err() == nil {
		f.mu.Lock()
		failed, waiting := f.failed, 0
		f.mu.Unlock()
		if f.queue != nil {
			waiting = f.queue.length()
		}
		_ = f.ask(func(c *control.Client) error { return c.Note(f.name, waiting, failed) }) // watch logs it
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
