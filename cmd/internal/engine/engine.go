// Package engine runs the pipeline with its policy, store and sockets, for a program that has a
// front end.
package engine

import (
	"cmp"
	"context"
	"errors"
	"flag"
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
	"scanwatch/internal/prefix"
	"scanwatch/internal/safego"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Program is a program with a front end, the part that receives events from a mail server.
type Program struct {
	Name string
	// FrontEnd is the name of the front end in records, or "" for smtpd.
	FrontEnd string
	Version  string
	Usage    string
	// Flags, if set, adds flags to the common ones.
	Flags func(*flag.FlagSet)
	// Server is the program that the operator must restart for all settings to take
	// effect.
	Server string
	// AnyPhase is set if the front end sends requests in all phases. Otherwise, the front end
	// registers the policy's phases at startup.
	AnyPhase bool
	// Prepare, if set, opens the front end's sockets before the sandbox restricts the process. If
	// Prepare fails, it logs the error itself, and the program exits.
	Prepare func(e *Engine) error
	// Serve passes events to the pipeline until the mail server stops. If Serve fails, it
	// logs the error itself, and the exit status is 1.
	Serve func(e *Engine) error
}

// Settings holds the flags' values.
type Settings struct {
	file    string // configuration file; empty for the default
	dir     string
	open    bool // run without a sandbox
	verbose bool
}

// StopTime limits how long the filter may spend saving its last records after the mail server has
// stopped. If the mail server is restarted, a new filter may already be waiting for the state
// directory.
const StopTime = 10 * time.Second

// logTime limits the time for writing the last log messages, after the records are saved.
const logTime = time.Second

// socketCheck is the interval at which the server checks that the control socket still
// exists.
const socketCheck = 5 * time.Second

// gcPercent is below Go's default to save memory. Frequent collections are cheap, because
// most of the heap consists of tables without pointers. The value is set only after the
// lists are loaded, so that collections do not delay startup, during which smtpd waits.
const gcPercent = 50

// An Engine is a running filter.
type Engine struct {
	Settings
	Log *slog.Logger
	// Pipeline receives the events. Pipeline.Stop is called after Serve has returned.
	Pipeline *filter.Pipeline
	// Delayed is the number of delayed replies. The front end updates it.
	Delayed atomic.Int64
	// Wake receives a value after a DNS list has answered.
	Wake chan struct{}

	// Source, if set, describes the log that the front end follows. Read lists the files that the
	// front end reads inside the sandbox. Prepare sets Source and Read.
	Source func() *control.SourceStatus
	Read   []string
	// Commands are additional commands of the control socket. Prepare sets them.
	Commands []control.Command

	program *Program
	level   *slog.LevelVar
	logs    *queue
	started time.Time

	lists    func() *lookup.Lists
	memory   *memory.Memory
	hasher   atomic.Pointer[privacy.Hasher] // set before the first event
	watchers events.Fan
	clock    atomic.Int64 // end time of the newest session, in microseconds since 1970

	policies policies
	set      rules.Settings
	ownAddrs []netip.Addr // addresses of this host

	companions *control.Companions // nil without companions
	runDir     string              // directory of the companions' socket
	lookups    *dnslist.Table      // answers from the companion lookup
	sharing    *control.Sharing    // rows exchanged with other hosts
	writer     *store.Writer
	state      *store.State

	policyVerbose bool // log verbose is set in the configuration

	frontEnd *os.File      // keeps other front ends out of the state directory
	stopLive func()        // stops background work
	socket   chan struct{} // closed when the control socket is closed
}

// run runs a program until its mail server stops, and returns the exit status.
func (program *Program) run(s Settings, stderr io.Writer) int {
	p, err := build(program, s, stderr)
	if err != nil {
		return 1
	}
	p.start()
	return p.stop(program.Serve(p))
}

// Phases returns the phases that the policy needed at startup.
func (p *Engine) Phases() smtp.PhaseSet { return p.policies.asked }

// Dir returns the state directory.
func (p *Engine) Dir() string { return p.set.Store }

// name returns the name of the front end.
func (program *Program) name() string { return cmp.Or(program.FrontEnd, "smtpd") }

// Alone returns an error if another front end is using the state directory, because each front end
// would lack the bans and the standing that the other one stores. Alone logs the error, and writes
// nothing to the directory.
func (p *Engine) Alone() (err error) {
	_ = os.Mkdir(p.Dir(), 0o750)
	if c, err := control.Dial(p.Dir()); err == nil { // a filter run by root cannot lock the file in its sandbox
		c.Close()
		inUse(p.Dir(), p.Log)
		return control.ErrHeld
	}
	switch p.frontEnd, err = control.Claim(p.Dir(), p.program.name()); {
	case errors.Is(err, control.ErrHeld):
		inUse(p.Dir(), p.Log)
	case err != nil:
		p.Log.Error("state directory unusable", "err", err)
	}
	return err
}

// setLevel sets the log level from the flags and the configuration.
func (p *Engine) setLevel() {
	p.level.Set(slog.LevelWarn)
	if p.verbose || p.policyVerbose {
		p.level.Set(slog.LevelInfo)
	}
}

// build creates the engine. It waits only for files on the local disk, because smtpd accepts no
// connections until its filters are registered. The state directory is opened in the background.
func build(program *Program, s Settings, stderr io.Writer) (*Engine, error) {
	p := &Engine{program: program, Settings: s, logs: newQueue(stderr), level: new(slog.LevelVar), memory: memory.New(), started: time.Now().UTC(), lookups: dnslist.New(), Wake: make(chan struct{}, 1)}
	p.lookups.Withdraw = p.withdraw
	p.lookups.Wake = func() {
		select {
		case p.Wake <- struct{}{}:
		default:
		}
	}
	p.setLevel()
	p.Log = newLogger(p.logs, p.level, program.Server)
	p.ownAddrs = prefix.Local() // not possible inside the sandbox
	p.lists = shippedLists(p.Log)
	safego.Go(p.Log, "reading the shipped lists", func() { p.lists() })
	p.policies = policies{
		file: config.Find(s.file), dir: s.dir, lists: p.lists, use: p.use, log: p.Log, find: config.Find, server: program.Server, all: program.AnyPhase,
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
	if program.Prepare != nil {
		if err := program.Prepare(p); err != nil {
			p.closeLog()
			return nil, err
		}
	}
	giveUpRoot(p.set.Store, p.Log)
	p.prepareCompanions()
	p.joinFleet()
	if !s.open {
		p.policies.enterSandbox(p.set, p.runDir, p.Read)
	}
	p.openStore()
	p.Pipeline = filter.New(filter.Options{
		Record: p.writer.Add, FrontEnd: program.FrontEnd, Clock: &p.clock,
		Log: p.logs.Line, Verbose: p.verboseLog, Watch: p.watchers.Send, Lists: p.lists, Memory: p.memory, Hasher: p.hasher.Load, Hashed: p.policies.file != "", Lookups: p.lookups, OwnAddrs: p.ownAddrs, Budget: p.set.Budget,
	})
	p.policies.startHalt()
	return p, nil
}

// toSyslog directs the log to syslog(3) if so configured.
func (p *Engine) toSyslog() {
	if !p.set.Log.Syslog {
		return
	}
	w, err := openSyslog(logSocket, p.program.Name)
	if err != nil {
		p.Log.Warn("no connection to syslog, logging to standard error; restart smtpd when syslogd is running", "err", err)
		return
	}
	p.logs.use(w)
}

// verboseLog reports whether every finding and decision is logged.
func (p *Engine) verboseLog() bool { return p.level.Level() <= slog.LevelInfo }

// openStore opens the state directory in the background.
func (p *Engine) openStore() {
	stateMax := min(p.set.Budget/2, memory.AllBytes) // the state is part of the budget
	p.memory.Limit(stateMax)
	p.memory.Follow()
	used, ok := withTimeout(p.Log, "looking for the state", diskTimeout, func() bool { return store.Used(p.set.Store) })
	if used || !ok {
		p.memory.Expect() // the store will load the rows or report their loss
	}
	p.writer = store.Open(p.set.Store, store.Options{Budget: p.set.Budget, Keep: p.set.Keep, Program: p.program.Version, Log: p.Log, Now: p.now, Seal: true})
	p.state = store.OpenState(p.set.Store, store.StateOptions{
		Buckets: memory.Buckets(),
		MaxSize: stateMax,
		Room:    p.writer.Reserve,
		Program: p.program.Version,
		Log:     p.Log,
		Load: func(all iter.Seq[store.Entry]) {
			p.memory.Load(all, store.ReferenceTime(p.set.Store, p.now()).UnixMicro())
		},
		Changes: p.memory.Changes,
		Rewrite: p.memory.Rewrite,
	})
}

// now returns the end of the newest session, so that sessions of a replayed stream are stored under
// their original days. Before the first session, now returns the current time.
func (p *Engine) now() time.Time {
	if t := p.clock.Load(); t != 0 {
		return time.UnixMicro(t)
	}
	return time.Now()
}

// eventTime returns the current time according to the events.
func (p *Engine) eventTime() int64 { return p.memory.Now(p.now().UnixMicro()) }

// use passes a policy and the configured databases to the pipeline, if there is one.
func (p *Engine) use(policy *rules.Policy, c *config.Config) {
	if policy.Log.Verbose != p.policyVerbose { // unless the setting has changed, a reload must not undo the command scanwatch log
		p.policyVerbose = policy.Log.Verbose
		p.setLevel()
	}
	if p.Pipeline == nil {
		return
	}
	p.writer.Rules(filter.RuleTexts(policy)) // records refer to these texts
	p.Pipeline.Use(&filter.Settings{Policy: policy, ASN: c.ASN, Country: c.Country})
	p.lookups.Use(policy.Lookups) // pending requests continue immediately, so the pipeline must already have the policy
	p.memory.Bans.Restart()       // the mode and the exempt hosts may have changed
}

// start starts background work.
func (p *Engine) start() {
	var live context.Context
	live, p.stopLive = context.WithCancel(context.Background())
	saveKey := useKey(p.set.Store, func(key []byte) { p.hasher.Store(privacy.New(key)) }, p.Log)
	safego.Loop(p.Log, "saving the key", func() { saveKey(live) }, nil)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // a reload must not end the process, even if it fails
	safego.Loop(p.Log, "watching the configuration", func() { p.policies.watch(live, hangup) }, nil)
	p.socket = make(chan struct{})
	safego.Loop(p.Log, "the control socket", func() { p.serveControl(live) }, func() { close(p.socket) })
	safego.Loop(p.Log, "the socket of the companions", func() { p.serveCompanions(live) }, nil)
	safego.Loop(p.Log, "withholding bans of exempt hosts", func() { withholdExempt(live, p) }, nil)
	p.Log.Info("started", "version", p.program.Version, "statedir", p.set.Store)
}

// serveControl serves the control socket.
func (p *Engine) serveControl(live context.Context) {
	_ = os.Mkdir(p.set.Store, 0o750) // the store also creates the directory, but later
	if p.frontEnd == nil {
		p.frontEnd = claim(live, p.Dir(), p.program.name(), p.Log)
	}
	checkState(p.set.Store, p.Log)
	commands := slices.Concat(
		control.StoreCommands(p.writer, flushSums(p), p.state.Flush),
		[]control.Command{p.policies.verb(), p.policies.modeCommand(), control.StatusCommand(p.status), control.WatchCommand(&p.watchers), control.LogCommand(p.level, p.Log)},
		control.MemoryCommands(p.memory, p.state, p.eventTime, p.policies.enforced, p.banned),
		p.sharing.OperatorCommands(),
		control.EraseCommands(control.Eraser{Dir: p.set.Store, Memory: p.memory, State: p.state, Store: p.writer, Sums: p.Pipeline.Sums.FlushAll, Now: p.eventTime}),
		p.Commands,
	)
	server := control.Server{Commands: commands, Log: p.Log, Program: p.program.Server}
	server.Run(live, p.set.Store, socketCheck)
}

// flushSums returns a function that passes the aggregated sessions to the writer.
func flushSums(p *Engine) func(context.Context) error {
	return func(context.Context) error {
		return safego.Run(func() error { p.Pipeline.Sums.Flush(); return nil })
	}
}

// Flush writes the records of the sessions that have ended to disk.
func (p *Engine) Flush(ctx context.Context) error { return p.writer.Flush(ctx) }

// status describes the running filter.
func (p *Engine) status() control.Status {
	_, lost := p.memory.Peers.Forgotten()
	var companions []control.CompanionStatus
	if p.companions != nil {
		companions = p.companions.Status()
		for i := range companions {
			companions[i].Problem = control.Restart(companions[i].Problem, p.program.Server)
		}
	}
	var fleet *control.FleetStatus
	if f := p.set.Fleet; f != nil {
		fleet = &control.FleetStatus{Name: f.Name, Key: p.sharing.Fingerprint, Problem: p.sharing.Problem, Observe: f.Observe, Ignore: f.Ignore}
	}
	var source *control.SourceStatus
	if p.Source != nil {
		source = p.Source()
	}
	return control.Status{
		Source: source, Fleet: fleet, Companions: companions, Lookups: p.lookups.Status(), Hosts: p.sharing.Hosts(),
		Lost:    text.At(lost),
		Program: p.program.Version, PID: os.Getpid(), Started: text.At(p.started), Log: control.LevelWord(p.level.Level()),
		Live: control.Live{Sessions: p.Pipeline.Open(), Delayed: p.Delayed.Load(), Summed: p.Pipeline.Sums.Unwritten()}, Config: p.policies.status(),
		Store: p.writer.Status(), State: p.state.Status(), Memory: p.memory.Status(), Standing: p.memory.Peers.Summary(p.eventTime()), Bans: p.memory.Bans.Count(p.eventTime()),
		Sandbox: p.policies.sandbox(p.open),
	}
}

// banned logs a manual ban or its revocation and notifies the watchers.
func (p *Engine) banned(b memory.Ban) {
	event, attrs := "ban", []any{"prefix", b.Prefix.String(), "until", b.Until.Format(time.RFC3339), "rule", b.Rule}
	if b.Revoked {
		event = "unban"
		p.Log.Warn("unbanned", attrs...)
	} else {
		p.Log.Warn("banned", attrs...)
	}
	p.watchers.Send(&events.Event{Event: event, By: "operator", Time: time.UnixMicro(p.eventTime()), Prefix: b.Prefix.String(), Until: b.Until, Reason: b.Rule})
}

// Save writes all data in memory to disk.
func (p *Engine) Save() error {
	return safego.Run(func() error { return errors.Join(p.state.Close(), p.writer.Close()) })
}

// stop records the open sessions, saves all data and returns the exit status. cause is the front
// end's error.
func (p *Engine) stop(cause error) int {
	if err := safego.Run(func() error { p.Pipeline.Stop(); return nil }); err != nil {
		p.Log.Error("open sessions not recorded", "err", err, safego.Stack(err))
	}
	p.stopLive()
	late := make(chan struct{})
	time.AfterFunc(StopTime, func() { close(late) }) // safe: cannot panic
	select {
	case <-p.socket:
	case <-late: // a control command is still waiting for the disk
	}
	stored := make(chan error, 1)
	safego.Go(p.Log, "saving the last records", func() { stored <- p.Save() })
	select {
	case err := <-stored:
		if err != nil {
			p.Log.Error("last records not saved", "err", err)
		}
	case <-late:
		p.Log.Error("last records not saved: disk timeout", "waited", StopTime)
	}
	status := 0
	if cause != nil {
		status = 1
	}
	p.Log.Info("stopped")
	p.closeLog()
	return status
}

// closeLog writes the last log messages.
func (p *Engine) closeLog() {
	logged, cancel := context.WithTimeout(context.Background(), logTime)
	defer cancel()
	p.logs.Close(logged.Done())
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

// newLogger returns a logger without timestamps, because smtpd and syslog add them. Messages name
// the given server.
func newLogger(w io.Writer, level slog.Leveler, server string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			if a.Value.Kind() == slog.KindString {
				a.Value = slog.StringValue(control.Restart(a.Value.String(), server))
			}
			return a
		},
	}))
}
