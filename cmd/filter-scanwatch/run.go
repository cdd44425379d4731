package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/filter/session"
	"scanwatch/internal/contain"
	"scanwatch/rules"
	"scanwatch/store"
)

// settings are what flags and the configuration file say.
type settings struct {
	file    string // empty: there is none
	dir     string
	open    bool // without a sandbox
	verbose bool
}

// stopTime bounds how long the last records and log lines may take when smtpd
// has stopped: nobody waits for this process then, but a new one may want the
// state directory.
const stopTime = 10 * time.Second

// tellTime is how long the last log lines may take after that: what was lost must be told.
const tellTime = time.Second

// socketCheck is how often the control socket is looked after: made if it
// could not be made, and made again if somebody removed it.
const socketCheck = 5 * time.Second

// gcPercent makes less of memory than Go does by itself, for a little more CPU:
// most of what lives are tables without pointers, which cost the collector
// nothing. It begins when the lists are read: until then nearly all is garbage,
// and smtpd waits.
const gcPercent = 50

// run filters until stdin ends. Nothing before filter.Serve waits for more
// than files on the local disk: smtpd serves nobody until its filters have
// registered. The state directory is opened in the background.
func run(s settings, stdin, stdout, stderr *os.File) int {
	logs := newQueue(stderr)
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	if s.verbose {
		level.Set(slog.LevelInfo)
	}
	log := newLogger(logs, level)
	lists := sync.OnceValue(func() *lookup.Lists {
		var l *lookup.Lists
		err := contain.Run(func() (err error) { l, err = lookup.Builtin(); return err })
		if err != nil {
			log.Error("bug: the shipped lists cannot be read, nothing is matched against them", "error", err, contain.Stack(err))
			return new(lookup.Lists)
		}
		return l
	})
	contain.Go(log, "reading the shipped lists", func() { lists() })

	// The store's clock is the one of the events, so that a recorded stream
	// is kept as it would have been when it was recorded.
	var clock atomic.Int64
	var writer *store.Writer
	now := func() time.Time {
		if t := clock.Load(); t != 0 {
			return time.UnixMicro(t)
		}
		return time.Now()
	}
	remembered := memory.New()
	var stream *events.Stream // set before the first event
	var watched events.Fan
	send := func(e *events.Event) {
		if stream != nil {
			stream.Send(e)
		}
		watched.Send(e)
	}
	var hasher atomic.Pointer[privacy.Hasher] // set before the first event
	table := session.NewTable(session.Options{
		Hasher: hasher.Load,
		Record: func(end time.Time, id uint64, value []byte) {
			clock.Store(end.UnixMicro())
			writer.Add(end, id, value)
		},
		Memory:   remembered,
		Event:    send,
		Log:      logs.Line,
		Lists:    lists,
		OwnAddrs: ownAddrs(),
	})
	use := func(s *session.Settings) {
		if writer != nil {
			writer.Rules(session.RuleTexts(s.Policy)) // before any verdict of theirs
		}
		table.Use(s)
	}
	policies := policies{file: config.Find(s.file), dir: s.dir, lists: lists, use: use, log: log, find: config.Find,
		peers: func(yield func(memory.Peer) bool) {
			remembered.Peers(now().UnixMicro(), func(p memory.Peer) { _ = yield(p) })
		}}
	set := policies.start()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if s.dir != "" {
		set.Store = s.dir
	}
	policies.dir = set.Store
	if !s.open {
		policies.enterSandbox(set)
	}
	if set.Events != "" {
		stream = events.Open(set.Events, events.Options{Log: log})
	}
	set.Budget = max(set.Budget, store.MinBudget)
	stateMax := min(set.Budget/2, memory.AllBytes) // it counts for the budget
	remembered.Limit(stateMax)
	table.Sample(set.Budget)
	reports := session.Reports
	if set.Detail == rules.DetailLean {
		table.Lean()
		reports = session.LeanReports
	}
	writer = store.Open(set.Store, store.Options{Budget: set.Budget, Keep: set.Keep, Program: version, Log: log, Now: now})
	if c := policies.config; c != nil && c.Policy != nil {
		writer.Rules(session.RuleTexts(c.Policy))
	}
	state := store.OpenState(set.Store, store.StateOptions{
		Buckets: memory.Buckets(),
		MaxSize: stateMax,
		Room:    writer.Reserve,
		Program: version,
		Log:     log,
		Load: func(all iter.Seq[store.Entry]) {
			remembered.Load(all, store.Lately(set.Store, now()).UnixMicro())
			contain.Go(log, "looking whom the lists reach", func() { policies.reached() })
		},
		Changes: remembered.Changes,
		Rewrite: remembered.Rewrite,
	})

	var held atomic.Int64
	live, stopLive := context.WithCancel(context.Background())
	saveKey := useKey(set.Store, func(key []byte) { hasher.Store(privacy.New(key)) }, log)
	contain.Loop(log, "saving the key", func() { saveKey(live) }, nil)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // not to reload is no reason to end
	contain.Loop(log, "watching the configuration", func() { policies.watch(live, hangup) }, nil)
	socket := make(chan struct{})
	started := time.Now().UTC()
	contain.Loop(log, "the control socket", func() {
		_ = os.Mkdir(set.Store, 0o750) // or the store makes it, a moment too late for the socket
		checkState(set.Store, log)
		verbs := append(control.StoreVerbs(writer, state.Flush), policies.verb(), control.StatusVerb(func() control.Status {
			return control.Status{
				Program: version, PID: os.Getpid(), Started: started, Log: control.LevelWord(level.Level()),
				Live: control.Live{Sessions: table.Open(), Held: held.Load()}, Config: policies.status(),
				Store: writer.Status(), State: state.Status(), Memory: remembered.Status(), Events: eventsStatus(stream),
				Sandbox: policies.sandbox(s.open),
			}
		}))
		verbs = append(verbs, control.MemoryVerbs(remembered, state, func() int64 { return now().UnixMicro() }, policies.enforced,
			func(word string, b memory.Ban) {
				log.Warn(word, "prefix", b.Prefix.String(), "until", b.Until.Format(time.RFC3339), "rule", b.Rule)
				send(&events.Event{Event: strings.TrimSuffix(word, "ned"), By: "operator", Time: now(), Prefix: b.Prefix.String(), Until: b.Until, Reason: b.Rule})
			})...)
		verbs = append(verbs, control.WatchVerb(&watched), control.LogVerb(level, log))
		server := control.Server{Verbs: verbs, Log: log}
		server.Run(live, set.Store, socketCheck)
	}, func() { close(socket) })

	save := func() error {
		return contain.Run(func() error { return errors.Join(state.Close(), writer.Close()) })
	}
	stopOnSignal(log, stdin, save)
	log.Info("started", "version", version, "statedir", set.Store)
	err := filter.Serve(stdin, stdout, table, filter.Options{
		Reports: reports,
		Phases:  policies.asked,
		Held:    &held,
		Log:     func(line string) { log.Warn(line) },
	})
	if err := contain.Run(func() error { table.Stop(); return nil }); err != nil {
		log.Error("what went on was not recorded", "error", err, contain.Stack(err))
	}
	stopLive()
	late := make(chan struct{})
	time.AfterFunc(stopTime, func() { close(late) }) // contained: nothing can panic
	select {
	case <-socket:
	case <-late: // a command waits for a disk
	}
	stored := make(chan error, 1)
	contain.Go(log, "recording what came last", func() { stored <- save() })
	status := 0
	select {
	case err := <-stored:
		if err != nil {
			log.Error("what came last was not recorded", "error", err)
		}
	case <-late:
		log.Error("what came last was not recorded: the disk did not answer in time", "waited", stopTime)
	}
	if err != nil {
		log.Error("smtpd is gone", "error", err)
		status = 1
	}
	if stream != nil {
		stream.Close(late)
	}
	log.Info("stopped")
	told, cancel := context.WithTimeout(context.Background(), tellTime)
	defer cancel()
	logs.Close(told.Done())
	return status
}

func eventsStatus(s *events.Stream) *events.Status {
	if s == nil {
		return nil
	}
	status := s.Status()
	return &status
}

// newLogger logs without time: smtpd and syslog stamp each line.
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

// ownAddrs returns the addresses of this host, as far as it tells them.
func ownAddrs() []netip.Addr {
	var own []netip.Addr
	addrs, _ := net.InterfaceAddrs() // none is what we know then
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr())
		}
	}
	return own
}

// stopOnSignal ends the input on SIGTERM and SIGINT, so that everything is
// recorded as it is when smtpd stops.
func stopOnSignal(log *slog.Logger, stdin *os.File, save func() error) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	contain.Go(log, "stopping", func() {
		<-c
		if syscall.Shutdown(int(stdin.Fd()), syscall.SHUT_RD) != nil {
			// Not smtpd's socket, and a read that waits cannot be interrupted. Nor
			// can a disk that does not answer be waited for.
			saved := make(chan error, 1)
			contain.Go(log, "recording what came last", func() { saved <- save() })
			select {
			case <-saved:
			case <-time.After(stopTime):
			}
			os.Exit(1)
		}
	})
}
