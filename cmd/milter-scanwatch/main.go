// Milter-scanwatch is a milter that records the SMTP sessions of Postfix or Sendmail. See
// milter-scanwatch(8).
package main

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/engine"
	"scanwatch/filter/milter"
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
	return err
}

// serve answers mail servers until SIGTERM.
func (f *front) serve(e *engine.Engine) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := milter.Server{Sink: e.Pipeline, Log: e.Log, Held: &e.Delayed}
	err := server.Serve(ctx, f.listener)
	if err != nil {
		e.Log.Error("mail servers cannot connect", "err", err)
	}
	return err
}
