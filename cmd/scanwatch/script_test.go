package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scanwatch/internal/smtp"

	"github.com/rogpeppe/go-internal/testscript"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/exportlist"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is the current time in scripts.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// program returns an env whose clock shows now. The default configuration file is $CONF.
func program(stderr io.Writer) *env {
	return &env{err: stderr, now: func() time.Time { return now }, zone: time.UTC,
		find: func(file string) string { return cmp.Or(file, os.Getenv("CONF")) }}
}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"scanwatch": func() {
			signal.Ignore(syscall.SIGPIPE)
			os.Exit(program(os.Stderr).main(os.Args[1:], os.Stdout))
		},
		"mkstore":   func() { os.Exit(mkstore(os.Args[1])) },
		"mkscans":   func() { os.Exit(mkScans(os.Args[1])) },
		"mkhistory": func() { os.Exit(mkHistory(os.Args[1], len(os.Args) > 2)) },
		"filter":    func() { os.Exit(runFilter(os.Args[1])) },
	})
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			// The socket needs a short path.
			short, err := os.MkdirTemp("", "sw")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(short) })
			e.Setenv("ESC", "\x1b")
			e.Setenv("STATE", filepath.Join(short, "state"))
			streams, err := filepath.Abs("../../tests/streams")
			if err != nil {
				return err
			}
			e.Setenv("STREAMS", streams)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"wait-for-filter": func(ts *testscript.TestScript, _ bool, args []string) {
				// Repeat until the filter answers. The time limit of go test ends the
				// loop.
				for {
					c, err := control.Dial(args[0])
					if err == nil {
						c.Close()
						return
					}
				}
			},
			// wait-for-text waits until a background program has written a given text to a file.
			"wait-for-text": func(ts *testscript.TestScript, _ bool, args []string) {
				for {
					if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(b), args[1]) {
						return
					}
					runtime.Gosched()
				}
			},
			"break-meta": func(ts *testscript.TestScript, _ bool, args []string) {
				data, err := os.ReadFile(args[0])
				ts.Check(err)
				size := binary.NativeEndian.Uint32(data[24:]) // page size
				data[40] ^= 1
				data[size+40] ^= 1
				ts.Check(os.WriteFile(args[0], data, 0o640))
			},
			// mkconf writes test.conf. The file consists of a fleet statement with the given
			// options, and another statement.
			"mkconf": func(ts *testscript.TestScript, _ bool, args []string) {
				text := fmt.Sprintf("rundir %q\nfleet \"mx1\" key %q %s\n", ts.MkAbs("."), ts.MkAbs("fleet.key"), strings.Join(args, "\n"))
				ts.Check(os.WriteFile(ts.MkAbs("test.conf"), []byte(text), 0o644))
			},
			"mkstate": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(mkstate(args[0])) },
			"head":    pipeToNobody,
			"status":  exitStatus,
			// unreadable locks a file, so that reading it fails even for root.
			"unreadable": func(ts *testscript.TestScript, _ bool, args []string) {
				f, err := os.Open(args[0])
				ts.Check(err)
				ts.Defer(func() { f.Close() })
				ts.Check(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
			},
		},
	})
}

// pipeToNobody runs the program with its standard output connected to a closed pipe.
func pipeToNobody(ts *testscript.TestScript, neg bool, args []string) {
	r, w, err := os.Pipe()
	ts.Check(err)
	r.Close()
	defer w.Close()
	e, err := os.Create(ts.MkAbs("stderr.txt"))
	ts.Check(err)
	defer e.Close()
	signal.Ignore(syscall.SIGPIPE)
	if status := program(e).main(args, w); (status != exitOK) != neg {
		ts.Fatalf("exit status %d", status)
	}
}

// mkstore fills a state directory, like a filter that has stopped.
func mkstore(dir string) int {
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	fill(w, now.Add(-26*time.Hour), 0x10)
	fill(w, now.Add(-time.Hour), 0x20)
	err := w.Close()
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "front-end"), []byte("smtpd 1\n"), 0o640)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// mkScans fills a state directory with one session from each of two organisations.
func mkScans(dir string) int {
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	end := now.Add(-time.Hour)
	for i, v := range []struct{ src, org string }{{"192.0.2.1:4711", "Censys"}, {"[2001:db8::53]:4711", "Shodan"}} {
		b := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Org: []byte(v.org), By: []byte("cidr"), Confidence: []byte("high")}, 0)
		r := &store.Record{Start: end.Add(-time.Second), End: end, Src: netip.MustParseAddrPort(v.src), Ending: smtp.EndingDropped}
		w.Add(end, uint64(0x40+i), store.AppendRecord(nil, r, b))
	}
	if err := w.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fill records a few sessions whose ids start at first.
func fill(w *store.Writer, at time.Time, first uint64) {
	add := func(id uint64, src, rdns string, c store.Counts, steps ...store.Step) {
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 10*time.Millisecond)
		}
		end := at.Add(time.Duration(id) * time.Second)
		r := &store.Record{Start: end.Add(-time.Second), End: end, Src: netip.MustParseAddrPort(src),
			Dst: netip.MustParseAddrPort("198.51.100.25:25"), RDNS: []byte(rdns), Ending: smtp.EndingQuit, Counts: c}
		w.Add(end, first+id, store.AppendRecord(nil, r, b))
	}
	add(0, "203.0.113.5:2525", "mail.example.com", store.Counts{Commands: 4, Mails: 1, RcptOK: 1},
		store.Step{Kind: store.KindHelo, Arg: []byte("EHLO"), Text: []byte("mail.example.com"), Result: smtp.ResultOK},
		store.Step{Kind: store.KindMail, Text: []byte("alice@example.com"), Result: smtp.ResultOK, MsgID: 1},
		store.Step{Kind: store.KindRcpt, Text: []byte("bob@example.org"), Result: smtp.ResultOK},
		store.Step{Kind: store.KindCommit, Size: 1234})
	add(1, "[2001:db8::7]:4711", "scan.example.net", store.Counts{Commands: 1},
		store.Step{Kind: store.KindHelo, Arg: []byte("EHLO"), Text: []byte("ylmf-pc\x1b[31m"), Result: smtp.ResultOK},
		store.Step{Kind: store.KindFinding, Text: []byte("botnet-helo"), Arg: []byte("ylmf-pc"), By: []byte("helo"), Match: []byte("ylmf-pc"), Confidence: []byte("high")})
}

// runFilter runs a filter without smtpd. It records a few sessions and serves the
// control socket until it is stopped.
func runFilter(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	digest := ""
	if c, err := exportlist.LoadPolicy(os.Getenv("FILTERCONF")); err == nil {
		digest = c.Digest()
	}
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	fill(w, now.Add(-time.Hour), 0x30)
	m := memory.New()
	var watched events.Fan
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("2001:db8::7")}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "botnet", Session: 0x31}, now.Add(-time.Hour).UnixMicro())
	verbs := append(control.StoreCommands(w, state.Flush), control.Command{Name: "reload", Args: 1, Run: reloadOnce()}, control.StatusCommand(func() control.Status {
		return control.Status{Program: "test", PID: os.Getpid(), Started: text.At(now), Log: control.LevelWord(level.Level()), Store: w.Status(), State: state.Status(), Memory: m.Status(),
			Config: control.Config{File: cmp.Or(os.Getenv("FILTERCONF"), "/etc/scanwatch.conf"), Mode: "observe", Rules: 3, Digest: digest}}
	}))
	verbs = append(verbs, control.MemoryCommands(m, state, now.UnixMicro, func() bool { return true }, func(b memory.Ban) {
		event := "ban"
		if b.Revoked {
			event = "unban"
			hostile(&watched)
		}
		watched.Send(&events.Event{Event: event, By: "operator", Time: now, Prefix: b.Prefix.String(), Until: b.Until, Reason: b.Rule})
	})...)
	verbs = append(verbs, control.EraseCommands(control.Eraser{Dir: dir, Memory: m, State: state, Store: w, Now: now.UnixMicro})...)
	verbs = append(verbs, control.WatchCommand(&watched), control.LogCommand(level, slog.New(slog.DiscardHandler)))
	s := &control.Server{Commands: verbs}
	// The filter creates the directory and state.db in the background.
	if err := errors.Join(w.Flush(ctx), state.Flush(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Run(ctx, dir, time.Second)
	if err := errors.Join(w.Close(), state.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// hostile sends the events of a session with hostile text.
func hostile(to *events.Fan) {
	of := events.Event{Time: now, Session: 0x77, Src: netip.MustParseAddr("203.0.113.77"), RDNS: []byte("x\x1b[31m.example.net")}
	finding, verdict, other := of, of, of
	finding.Event, finding.Evidence, finding.Confidence, finding.Org, finding.Proof = "finding", "scanner", "high", "Example", "x\x1b[31m\r\n\u202e.example.net"
	verdict.Event, verdict.Rule, verdict.Phase, verdict.Would = "verdict", "scanner", "connect", "disconnect"
	other.Event, other.Evidence, other.Src, other.Session = "finding", "helo-missing", netip.MustParseAddr("2001:db8::7"), 0x78
	for _, e := range []events.Event{finding, verdict, other} {
		to.Send(&e)
	}
}

// reloadOnce returns a reload function that succeeds only once.
func reloadOnce() func(context.Context, *control.Answer, []string) error {
	var done atomic.Bool
	return func(_ context.Context, a *control.Answer, _ []string) error {
		if done.Swap(true) {
			return errors.New("scanwatch.conf rejected; see the mail log")
		}
		return a.JSON(struct{}{})
	}
}

// mkstate creates an empty state.db, as a new filter does.
func mkstate(dir string) error {
	m := memory.New()
	f := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite})
	return errors.Join(f.Flush(context.Background()), f.Close())
}
