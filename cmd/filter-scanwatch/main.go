// Filter-scanwatch is an OpenSMTPD filter that records the sessions of clients. See
// filter-scanwatch(8).
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
	"scanwatch/store"
)

// version is the program version. The Makefile sets it.
var version = "development"

func usage(w io.Writer) {
	fmt.Fprint(w, `usage: filter-scanwatch [-nSvV] [-f file] [-s statedir]

Record SMTP sessions and detect scanners. smtpd starts the filter:

    filter scanwatch proc-exec "filter-scanwatch"
    listen on egress filter scanwatch

  -f file      configuration file (default `+config.DefaultFile()+`, if it exists)
  -n           check the configuration and exit
  -s statedir  state directory (default `+store.DefaultDir()+`)
  -S           disable the sandbox
  -v           also log each finding and decision, start, stop and reloads
  -V           print the version and exit

See filter-scanwatch(8); "scanwatch report" prints a report.
`)
}

func main() {
	// Deny other users access to all files and sockets that this process creates.
	syscall.Umask(0o027)
	os.Exit(command(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// command runs the program and returns its exit status.
func command(args []string, stdin, stdout, stderr *os.File) int {
	var s settings
	flags := flag.NewFlagSet("filter-scanwatch", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { usage(stderr) }
	flags.StringVar(&s.file, "f", "", "")
	flags.StringVar(&s.dir, "s", "", "")
	flags.BoolVar(&s.open, "S", false, "")
	flags.BoolVar(&s.verbose, "v", false, "")
	check := flags.Bool("n", false, "")
	show := flags.Bool("V", false, "")
	switch err := flags.Parse(args); {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "filter-scanwatch: unexpected argument %q\n", flags.Arg(0))
		usage(stderr)
		return 2
	case *show:
		fmt.Fprintln(stdout, "filter-scanwatch", version)
		return 0
	}
	if *check {
		return checkConfig(s.file, stderr)
	}
	// By default, a Go program dies if a write to stdout or stderr returns EPIPE. The
	// filter would then lose its last records.
	signal.Ignore(syscall.SIGPIPE)
	return run(s, stdin, stdout, stderr)
}

// checkConfig prints all configuration errors and returns the exit status.
func checkConfig(file string, stderr io.Writer) int {
	if file = config.Find(file); file == "" {
		fmt.Fprintln(stderr, "no configuration file: the filter observes only")
		return 0
	}
	lists, err := lookup.Builtin()
	if err != nil {
		fmt.Fprintln(stderr, "filter-scanwatch: bug: the shipped lists cannot be read:", err)
		return 1
	}
	c, err := config.Load(file, lists, nil, true)
	if err != nil {
		fmt.Fprint(stderr, config.Detail(err))
		return 1
	}
	fmt.Fprint(stderr, c.Warnings.Detail())
	for _, n := range c.Notes {
		fmt.Fprintln(stderr, "warning:", n)
	}
	fmt.Fprintln(stderr, "configuration OK")
	return 0
}
