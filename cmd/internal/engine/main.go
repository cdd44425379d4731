package engine

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
)

// Main runs a program with its arguments and returns the exit status.
func (program *Program) Main(args []string, stdout, stderr *os.File) int {
	// Deny other users access to all files and sockets that this process creates.
	syscall.Umask(0o027)
	var s Settings
	flags := flag.NewFlagSet(program.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, program.Usage) }
	flags.StringVar(&s.file, "f", "", "")
	flags.StringVar(&s.dir, "s", "", "")
	flags.BoolVar(&s.open, "S", false, "")
	flags.BoolVar(&s.verbose, "v", false, "")
	check := flags.Bool("n", false, "")
	show := flags.Bool("V", false, "")
	if program.Flags != nil {
		program.Flags(flags)
	}
	switch err := flags.Parse(args); {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "%s: unexpected argument %q\n", program.Name, flags.Arg(0))
		flags.Usage()
		return 2
	case *show:
		fmt.Fprintln(stdout, program.Name, program.Version)
		return 0
	}
	if *check {
		return program.checkConfig(s.file, stderr)
	}
	// By default, a Go program dies if a write to stdout or stderr returns EPIPE. The
	// filter would then lose its last records.
	signal.Ignore(syscall.SIGPIPE)
	return program.run(s, stderr)
}

// checkConfig prints all configuration errors and returns the exit status.
func (program *Program) checkConfig(file string, stderr io.Writer) int {
	if file = config.Find(file); file == "" {
		fmt.Fprintln(stderr, "no configuration file: the filter observes only")
		return 0
	}
	lists, err := lookup.Builtin()
	if err != nil {
		fmt.Fprintf(stderr, "%s: bug: the shipped lists cannot be read: %v\n", program.Name, err)
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
