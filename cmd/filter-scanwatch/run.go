package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/filter"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/prefix"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// settings holds the values of the flags.
type settings struct {
	file    string // configuration file; empty for the default path
	dir     string
	open    bool // run without a sandbox
	verbose bool
}

// stopTime limits the time for saving the last records after smtpd has stopped. If smtpd
// is restarted, a new filter may already be waiting for the state directory.
const stopTime = 10 * time.Second

// logTime limits the time for writing the last log messages, after the records are saved.
const logTime = time.Second

// socketCheck is the interval at which the server checks that the control socket still
// exists.
const socketCheck = 5 * time.Second

// gcPercent is below Go's default to save memory. Frequent collections are cheap, because
// most of the heap consists of tables without pointers. The value is set only after the
// lists are loaded, so that collections do not delay the startup, for which smtpd waits.
const gcPercent = 50

// A program is a running filter.
type program struct {
	settings
	log     *slog.Logger
	level   *slog.LevelVar
	logs    *queue
	started time.Time

	lists    func() *lookup.Lists
	memory   *memory.Memory
	hasher   atomic.Pointer[privacy.Hasher] // set before the first event
	watchers events.Fan
	clock    atomic.Int64 // end time of the newest session, in microseconds since 1970
	delayed  atomic.Int64 // delayed replies

	policies policies
	set      rules.Settings
	ownAddrs []netip.Addr // addresses of this host

	companions *control.Companions // nil without companions
	runDir     string              // directory of the companions' socket
	lookups    *dnslist.Table      // answers of the companion lookup
	wake       chan struct{}       // has a value after an answer
	pipeline   *filter.Pipeline
	front      *smtpd.FrontEnd
	writer     *store.Writer
	state      *store.State

	policyVerbose bool // the configuration has log verbose

	stopLive func()        // stops background work
	socket   chan struct{} // closed when the control socket is closed
}

// run handles stdin until it ends, and returns the exit status.
func run(s settings, stdin, stdout, stderr *os.File) int {
	p := build(s, stderr)
	p.start(stdin)
	err := smtpd.Serve(stdin, stdout, p.front, smtpd.Options{
		Reports: smtpd.Reports,
		Phases:  p.policies.asked,
		Held:    &p.delayed,
		Wake:    p.wake,
		Log:     func(line string) { p.log.Warn(line) },
	})
	return p.stop(err)
}

// setLevel sets the log level from the flags and the configuration.
func (p *program) setLevel() {
	p.level.Set(slog.LevelWarn)
	if p.verbose || p.policyVerbose {
		p.level.Set(slog.LevelInfo)
	}
}

// build creates the program. Because smtpd accepts no connections until its filters are
// registered, build waits only for files on the local disk. The state directory is opened
// in the background.
func build(s settings, stderr *os.File) *program {
	p := &program{settings: s, logs: newQueue(stderr), level: new(slog.LevelVar), memory: memory.New(), started: time.Now().UTC(), lookups: dnslist.New(), wake: make(chan struct{}, 1)}
	p.lookups.Wake = func() {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	p.setLevel()
	p.log = newLogger(p.logs, p.level)
	p.ownAddrs = prefix.Local() // impossible inside the sandbox
	p.lists = shippedLists(p.log)
	safego.Go(p.log, "reading the shipped lists", func() { p.lists() })
	p.policies = policies{
		file: config.Find(s.file), dir: s.dir, lists: p.lists, use: p.use, log: p.log, find: config.Find,
	}
	p.set = p.policies.start()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if s.dir != "" {
		p.set.Store = s.dir
	}
	p.set.Budget = max(p.set.Budget, store.MinBudget)
	p.policies.dir = p.set.Store
	p.toSyslog()
	giveUpRoot(p.set.Store, p.log)
	p.prepareCompanions()
	if !s.open {
		p.policies.enterSandbox(p.set, p.runDir)
	}
	p.openStore()
	p.pipeline = filter.New(filter.Options{
		Record: p.writer.Add, Clock: &p.clock,
		Log: p.logs.Line, Verbose: p.verboseLog, Watch: p.watchers.Send, Lists: p.lists, Memory: p.memory, Hasher: p.hasher.Load, Hashed: p.policies.file != "", Lookups: p.lookups, OwnAddrs: p.ownAddrs, Budget: p.set.Budget,
	})
	p.front = smtpd.NewFrontEnd(p.pipeline)
	p.policies.startHalt()
	return p
}

// toSyslog sends the log to syslog(3) if so configured.
func (p *program) toSyslog() {
	if !p.set.Log.Syslog {
		return
	}
	w, err := openSyslog(logSocket)
	if err != nil {
		p.log.Warn("no connection to syslog, logging to standard error; restart smtpd when syslogd runs", "err", err)
		return
	}
	p.logs.use(w)
}

// verboseLog reports whether every finding and decision is logged.
func (p *program) verboseLog() bool { return p.level.Level() <= slog.LevelInfo }

// openStore opens the state directory in the background.
func (p *program) openStore() {
	stateMax := min(p.set.Budget/2, memory.AllBytes) // the state counts against the budget
	p.memory.Limit(stateMax)
	p.memory.Follow()
	used, ok := withTimeout(p.log, "looking for the state", diskTimeout, func() bool { return store.Used(p.set.Store) })
	if used || !ok {
		p.memory.Expect() // the store will load the rows or report their loss
	}
	p.writer = store.Open(p.set.Store, store.Options{Budget: p.set.Budget, Keep: p.set.Keep, Program: version, Log: p.log, Now: p.now, Seal: true})
	p.state = store.OpenState(p.set.Store, store.StateOptions{
		Buckets: memory.Buckets(),
		MaxSize: stateMax,
		Room:    p.writer.Reserve,
		Program: version,
		Log:     p.log,
		Load: func(all iter.Seq[store.Entry]) {
			p.memory.Load(all, store.ReferenceTime(p.set.Store, p.now()).UnixMicro())
		},
		Changes: p.memory.Changes,
		Rewrite: p.memory.Rewrite,
	})
}

// now returns the end of the newest session, so that the sessions of a replayed stream
// are stored under their original days. Before the first session, now returns the current
// time.
func (p *program) now() time.Time {
	if t := p.clock.Load(); t != 0 {
		return time.UnixMicro(t)
	}
	return time.Now()
}

// eventTime returns the current time as measured by smtpd's events.
func (p *program) eventTime() int64 { return p.memory.Now(p.now().UnixMicro()) }

// use passes a policy and the configured databases to the pipeline, if there is one.
func (p *program) use(policy *rules.Policy, c *config.Config) {
	if policy.Log.Verbose != p.policyVerbose { // a reload must not undo scanwatch log unless the setting changed
		p.policyVerbose = policy.Log.Verbose
		p.setLevel()
	}
	if p.pipeline == nil {
		return
	}
	p.writer.Rules(filter.RuleTexts(policy)) // records refer to these texts
	p.pipeline.Use(&filter.Settings{Policy: policy, ASN: c.ASN, Country: c.Country})
	p.lookups.Use(policy.Lookups) // wakes the requests that wait, after the pipeline has the policy
	p.memory.Bans.Restart()       // the mode and the exempt hosts may have changed
}

// start starts background work.
func (p *program) start(stdin *os.File) {
	var live context.Context
	live, p.stopLive = context.WithCancel(context.Background())
	saveKey := useKey(p.set.Store, func(key []byte) { p.hasher.Store(privacy.New(key)) }, p.log)
	safego.Loop(p.log, "saving the key", func() { saveKey(live) }, nil)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // a reload must not end the process, even if it fails
	safego.Loop(p.log, "watching the configuration", func() { p.policies.watch(live, hangup) }, nil)
	p.socket = make(chan struct{})
	safego.Loop(p.log, "the control socket", func() { p.serveControl(live) }, func() { close(p.socket) })
	safego.Loop(p.log, "the socket of the companions", func() { p.serveCompanions(live) }, nil)
	p.stopOnSignal(stdin)
	p.log.Info("started", "version", version, "statedir", p.set.Store)
}

// serveControl serves the control socket.
func (p *program) serveControl(live context.Context) {
	_ = os.Mkdir(p.set.Store, 0o750) // the store also creates the directory, but later
	checkState(p.set.Store, p.log)
	commands := slices.Concat(
		control.StoreCommands(p.writer, p.flushSums, p.state.Flush),
		[]control.Command{p.policies.verb(), p.policies.modeCommand(), control.StatusCommand(p.status), control.WatchCommand(&p.watchers), control.LogCommand(p.level, p.log)},
		control.MemoryCommands(p.memory, p.state, p.eventTime, p.policies.enforced, p.banned),
		control.EraseCommands(control.Eraser{Dir: p.set.Store, Memory: p.memory, State: p.state, Store: p.writer, Sums: p.pipeline.Sums.FlushAll, Now: p.eventTime}),
	)
	server := control.Server{Commands: commands, Log: p.log}
	server.Run(live, p.set.Store, socketCheck)
}

// flushSums hands the aggregated sessions to the writer.
func (p *program) flushSums(context.Context) error {
	return safego.Run(func() error { p.pipeline.Sums.Flush(); return nil })
}

func (p *program) status() control.Status {
	_, lost := p.memory.Peers.Forgotten()
	var companions []control.CompanionStatus
	if p.companions != nil {
		companions = p.companions.Status()
	}
	return control.Status{
		Companions: companions, Lookups: p.lookups.Status(),
		Lost:    text.At(lost),
		Program: version, PID: os.Getpid(), Started: text.At(p.started), Log: control.LevelWord(p.level.Level()),
		Live: control.Live{Sessions: p.pipeline.Open(), Delayed: p.delayed.Load(), Summed: p.pipeline.Sums.Unwritten()}, Config: p.policies.status(),
		Store: p.writer.Status(), State: p.state.Status(), Memory: p.memory.Status(), Standing: p.memory.Peers.Summary(p.eventTime()), Bans: p.memory.Bans.Count(p.eventTime()),
		Sandbox: p.policies.sandbox(p.open),
	}
}

// banned logs a manual ban or its revocation and notifies the watchers.
func (p *program) banned(b memory.Ban) {
	event, attrs := "ban", []any{"prefix", b.Prefix.String(), "until", b.Until.Format(time.RFC3339), "rule", b.Rule}
	if b.Revoked {
		event = "unban"
		p.log.Warn("unbanned", attrs...)
	} else {
		p.log.Warn("banned", attrs...)
	}
	p.watchers.Send(&events.Event{Event: event, By: "operator", Time: time.UnixMicro(p.eventTime()), Prefix: b.Prefix.String(), Until: b.Until, Reason: b.Rule})
}

// save writes all data in memory to disk.
func (p *program) save() error {
	return safego.Run(func() error { return errors.Join(p.state.Close(), p.writer.Close()) })
}

// stop records the open sessions, saves all data and returns the exit status. cause is
// the error that ended the input, or nil if smtpd has stopped.
func (p *program) stop(cause error) int {
	if err := safego.Run(func() error { p.front.Stop(); p.pipeline.Stop(); return nil }); err != nil {
		p.log.Error("open sessions not recorded", "err", err, safego.Stack(err))
	}
	p.stopLive()
	late := make(chan struct{})
	time.AfterFunc(stopTime, func() { close(late) }) // safe: cannot panic
	select {
	case <-p.socket:
	case <-late: // a control command is still waiting for the disk
	}
	stored := make(chan error, 1)
	safego.Go(p.log, "saving the last records", func() { stored <- p.save() })
	select {
	case err := <-stored:
		if err != nil {
			p.log.Error("last records not saved", "err", err)
		}
	case <-late:
		p.log.Error("last records not saved: disk timeout", "waited", stopTime)
	}
	status := 0
	if cause != nil {
		p.log.Error("connection to smtpd lost", "err", cause)
		status = 1
	}
	p.log.Info("stopped")
	logged, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	p.logs.Close(logged.Done())
	return status
}

// stopOnSignal ends the input on SIGTERM and SIGINT, so that all data is saved as when
// smtpd stops.
func (p *program) stopOnSignal(stdin *os.File) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	safego.Go(p.log, "stopping", func() {
		<-c
		if syscall.Shutdown(int(stdin.Fd()), syscall.SHUT_RD) == nil {
			return
		}
		// A read from stdin cannot be interrupted unless stdin is a socket. Save the
		// records without waiting for the read. The timeout bounds the delay if the disk
		// does not answer.
		saved := make(chan error, 1)
		safego.Go(p.log, "saving the last records", func() { saved <- p.save() })
		select {
		case <-saved:
		case <-time.After(stopTime):
		}
		os.Exit(1)
	})
}

// shippedLists returns a function that loads the shipped lists on first use.
func shippedLists(log *slog.Logger) func() *lookup.Lists {
	return sync.OnceValue(func() *lookup.Lists {
		var l *lookup.Lists
		err := safego.Run(func() (err error) { l, err = lookup.Builtin(); return err })
		if err != nil {
			log.Error("bug: shipped lists unreadable, matching nothing against them", "err", err, safego.Stack(err))
			return new(lookup.Lists)
		}
		return l
	})
}

// newLogger returns a logger without timestamps, which smtpd and syslog add.
func newLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		},
	}))
}
