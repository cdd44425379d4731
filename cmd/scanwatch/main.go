// Scanwatch shows the records of filter-scanwatch. See scanwatch(8).
package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// version is the program version. The Makefile sets it.
var version = "devel"

// Exit statuses.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

// An env is the environment that a command runs in.
type env struct {
	file     string                   // configuration given with -f
	dir      string                   // state directory given with -s
	find     func(file string) string // returns the path of the configuration; see config.Find
	out      *bufio.Writer
	safe     *text.Writer // escapes the text of out
	err      io.Writer
	stdout   io.Writer // unfiltered output, possibly a terminal
	terminal io.Writer // unfiltered err, for progress
	now      func() time.Time
	zone     *time.Location
	command  func(*env, []string) error // runs a command line; for commands that run other commands
}

// A usageError is a mistake in the command line.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// A statusError makes the program exit with a specific status.
type statusError struct {
	status int
	error
}

func main() {
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is not an error; see exitStatus
	e := &env{err: os.Stderr, find: config.Find, now: time.Now, zone: time.Local}
	os.Exit(e.main(os.Args[1:], os.Stdout))
}

// main runs the command line and returns the exit status.
func (e *env) main(args []string, stdout io.Writer) int {
	e.safe = text.NewWriter(stdout)
	e.out = bufio.NewWriterSize(e.safe, 64<<10)
	e.command = (*env).run
	e.stdout, e.terminal, e.err = stdout, e.err, text.NewWriter(e.err)
	err := e.run(args)
	// Print the output that precedes an error.
	if failed := errors.Join(e.out.Flush(), e.safe.Close()); err == nil {
		err = failed
	}
	return e.exitStatus(err)
}

// exitStatus prints err and returns the corresponding exit status.
func (e *env) exitStatus(err error) int {
	var wrong usageError
	var status statusError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE): // the reader of the pipe has exited
		return exitOK
	case errors.As(err, &wrong):
		e.complain(err)
		return exitUsage
	case errors.As(err, &status):
		e.complain(err)
		return status.status
	case errors.As(err, new(rules.Errors)):
		fmt.Fprint(e.err, config.Detail(err))
		return exitFailure
	}
	e.complain(err)
	return exitFailure
}

// complain prints an error, wrapped on a terminal and on a single line otherwise.
func (e *env) complain(err error) {
	message := fmt.Sprintf("scanwatch: %v", err)
	if output.IsTerminal(e.terminal) {
		message = text.Wrap(message, 79, 4)
	}
	fmt.Fprintln(e.err, message)
}

// warn prints a problem that does not end the command.
func (e *env) warn(problem string) { fmt.Fprintf(e.err, "scanwatch: %s\n", problem) }

// self returns the start of commands that the operator can copy. It repeats the options -f and -s, so
// that the command affects the same front end.
func self(e *env) string {
	line := "scanwatch"
	for _, option := range []struct{ name, value string }{{"-f", e.file}, {"-s", e.dir}} {
		if option.value != "" {
			line += " " + option.name + " " + shellWord(option.value)
		}
	}
	return line
}

// shellWord returns s as one word of a shell command.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./@%+=:,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// clock returns the clock for selectors.
func (e *env) clock() selector.Clock { return selector.Clock{Now: e.now, Zone: e.zone} }

// progress returns the progress display for reading records.
func (e *env) progress() *output.Progress { return output.NewProgress(e.terminal, e.zone) }

// tree parses the configuration. Without a configuration, the result is nil.
func (e *env) tree() (*rules.Config, string, error) {
	name := e.find(e.file)
	if name == "" {
		return nil, "", nil
	}
	tree, err := rules.Parse(name, os.ReadFile)
	return tree, name, err
}

// stateDir returns the state directory: the directory given with -s, or the configured directory,
// or the default. Only the store statement of an invalid configuration is used, because the filter
// does the same. The operator may need unban most while the configuration is invalid. A file given
// with -f that cannot be read is an error, because its name may be mistyped.
func (e *env) stateDir() (*statedir.Dir, error) {
	var s rules.Settings
	configured := ""
	tree, name, err := e.tree()
	switch {
	case err == nil && tree != nil:
		s, configured = tree.Settings(), name
	case err != nil && e.file != "" && unreadable(name):
		return nil, err
	case err != nil && (e.dir == "" || e.file != ""):
		used := "the default state directory"
		if s = rules.ParseStore(name, os.ReadFile); e.dir != "" {
			used = "the state directory " + e.dir
		} else if s.Store != "" {
			used = "the state directory of its statement store"
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(e.err, "warning: %s; using %s, see %s check\n", first, used, self(e))
	}
	return &statedir.Dir{Path: cmp.Or(e.dir, config.ResolvePath(name, s.Store), store.DefaultDir()), Settings: s, Config: configured, Now: e.now, Own: prefix.Local()}, nil
}

func unreadable(file string) bool {
	_, err := os.ReadFile(file)
	return err != nil
}

// checkSelector checks the selector. It also makes the selector match hashes of the selected users.
func checkSelector(e *env, s *selector.Selector) error {
	if err := s.Check(); err != nil {
		return usageError{err}
	}
	if len(s.Users) == 0 {
		return nil
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	if key, err := control.HashKey(dir.Path); err == nil { // without the key, hashes cannot be compared
		s.HashUsers(key)
	}
	return nil
}

// records opens the records in the state directory.
func (e *env) records() (*statedir.Dir, *statedir.Records, error) {
	dir, err := e.stateDir()
	if err != nil {
		return nil, nil, err
	}
	r, err := dir.Open()
	return dir, r, err
}

// chosen returns the configuration file for a command: its argument, the file given with
// -f, or the default.
func (e *env) chosen(args []string) (string, error) {
	name := e.find(e.file)
	if len(args) > 0 {
		name = args[0]
		if err := notPreset(name, "scanwatch policy --print "+name+" prints the preset"); err != nil {
			return "", err
		}
	}
	if name == "" {
		return "", fmt.Errorf("no configuration file; name one or create one: scanwatch policy --print standard > %s", config.DefaultFile())
	}
	return name, nil
}
