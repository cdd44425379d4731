// Filter-scanwatch is an OpenSMTPD filter that records SMTP sessions. See filter-scanwatch(8).
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/engine"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/safego"
	"scanwatch/store"
)

// version is the program version. The Makefile sets it.
var version = "development"

var usage = `usage: filter-scanwatch [-nSvV] [-f file] [-s statedir]

Record SMTP sessions and detect scanners. smtpd starts the filter:

    filter scanwatch proc-exec "filter-scanwatch"
    listen on 0.0.0.0 filter scanwatch

  -f file      configuration file (default ` + config.DefaultFile() + `, if it exists)
  -n           check the configuration and exit
  -s statedir  state directory (default ` + store.DefaultDir() + `)
  -S           disable the sandbox
  -v           also log each finding and decision, start, stop and reloads
  -V           print the version and exit

See filter-scanwatch(8); "scanwatch report" prints a report.
`

func main() {
	program := engine.Program{Name: "filter-scanwatch", Version: version, Usage: usage, Server: "smtpd", Serve: serve}
	os.Exit(program.Main(os.Args[1:], os.Stdout, os.Stderr))
}

// serve handles lines from smtpd until standard input ends.
func serve(e *engine.Engine) error {
	stopOnSignal(e)
	front := smtpd.NewFrontEnd(e.Pipeline)
	err := smtpd.Serve(os.Stdin, os.Stdout, front, smtpd.Options{
		Reports: smtpd.Reports,
		Phases:  smtpd.Requests(e.Phases()),
		Held:    &e.Delayed,
		Wake:    e.Wake,
		Log:     func(line string) { e.Log.Warn(line) },
	})
	if err := safego.Run(func() error { front.Stop(); return nil }); err != nil {
		e.Log.Error("open sessions not recorded", "err", err, safego.Stack(err))
	}
	if err != nil {
		e.Log.Error("connection to smtpd lost", "err", err)
	}
	return err
}

// stopOnSignal ends the input on SIGTERM and SIGINT. The filter then saves all data, as it does
// when smtpd stops.
func stopOnSignal(e *engine.Engine) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	safego.Go(e.Log, "stopping", func() {
		<-c
		if syscall.Shutdown(int(os.Stdin.Fd()), syscall.SHUT_RD) == nil {
			return
		}
		// A read from stdin cannot be interrupted unless stdin is a socket, so do not wait for the
		// read before saving the records. The timeout limits the delay if the disk is not
		// responding.
		saved := make(chan error, 1)
		safego.Go(e.Log, "saving the last records", func() { saved <- e.Save() })
		select {
		case <-saved:
		case <-time.After(engine.StopTime):
		}
		os.Exit(1)
	})
}
