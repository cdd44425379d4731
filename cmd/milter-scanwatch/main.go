// Milter-scanwatch is a milter that records the SMTP sessions of Postfix or Sendmail. See
// milter-scanwatch(8).
package main

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/engine"
	"scanwatch/filter"
	"scanwatch/filter/milter"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// version is the program version. The Makefile sets it.
var version = "development"

var defaultSocket = "unix:" + filepath.Join(control.DefaultRunDir(), "milter.sock")

var usage = `usage: milter-scanwatch [-nSvV] [-f file] [-g group] [-l socket] [-s statedir]

Record SMTP sessions of Postfix or Sendmail and detect scanners.

  -f file      configuration file (default ` + config.DefaultFile() + `, if it exists)
  -g group     let this group use the Unix socket; otherwise only this user and root can
  -l socket    unix:PATH or inet:ADDRESS:PORT (default ` + defaultSocket + `)
  -n           check the configuration and exit
  -s statedir  state directory (default ` + store.DefaultDir() + `)
  -S           disable the sandbox
  -v           also log each finding and decision, start, stop and reloads
  -V           print the version and exit

See milter-scanwatch(8); "scanwatch report" prints a report.
`

func main() {
	var f front
	program := engine.Program{
		Name: "milter-scanwatch", FrontEnd: "milter", Version: version, Usage: usage, Server: "milter-scanwatch", AnyPhase: true,
		Flags: f.flags, Prepare: f.prepare, Serve: f.serve,
	}
	os.Exit(program.Main(os.Args[1:], os.Stdout, os.Stderr))
}

// A front is the front end for mail servers that speak the milter protocol.
type front struct {
	socket, group string
	listener      net.Listener
	server        atomic.Pointer[milter.Server] // nil until the milter serves clients
	log           control.Log                   // log of the mail server
}

func (f *front) flags(flags *flag.FlagSet) {
	flags.StringVar(&f.socket, "l", defaultSocket, "")
	flags.StringVar(&f.group, "g", "", "")
}

// prepare opens the socket.
func (f *front) prepare(e *engine.Engine) (err error) {
	if err := e.Alone(); err != nil {
		return err
	}
	if f.listener, err = listen(f.socket, f.group); err != nil {
		e.Log.Error("mail servers cannot connect", "err", err)
	}
	// Without Postfix, the mail server is Sendmail, which connects as root.
	if postfix, _ := user.Lookup("postfix"); err == nil && excludes(f.socket, f.group, postfix) {
		e.Log.Warn("socket closed to Postfix", "hint", "start with -g postfix")
	}
	e.Source, e.Commands = f.log.Status, f.log.Commands(f.alive, f.session)
	return err
}

// alive records that scanwatch follow is reading the mail server's log. It returns false if the
// milter is not serving clients.
func (f *front) alive() bool {
	s := f.server.Load()
	return s != nil && s.Alive()
}

// session adds the facts of a session in the log. It returns false if the milter is not serving
// clients.
func (f *front) session(facts string) (bool, error) {
	s := f.server.Load()
	l, err := milter.Decode(facts)
	if s == nil || err != nil {
		return false, err
	}
	return s.Join(l), nil
}

// serve serves mail servers until SIGTERM.
func (f *front) serve(e *engine.Engine) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	parted := func(id uint64, at int64, how smtp.Ending) { filter.Part(e.Pipeline, id, at, how) }
	server := &milter.Server{Sink: e.Pipeline, Log: e.Log, Held: &e.Delayed, Parted: parted}
	f.server.Store(server)
	err := server.Serve(ctx, f.listener)
	if err != nil {
		e.Log.Error("mail servers cannot connect", "err", err)
	}
	return err
}
