package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/engine"
	"scanwatch/cmd/internal/followlog"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/maillog"
	"scanwatch/filter/serverlog"
)

func newFollow(e *env) *cobra.Command {
	var verbose, open, milter bool
	cmd := &cobra.Command{
		Use:   "follow KIND FILE|-|http:ADDRESS:PORT",
		Short: "Follow the log of another mail server.",
		Long: "Record the sessions in the log of another mail server as they end, and apply the\n" +
			"rules for the end of a session, until terminated. The kinds are:\n" + kindList() + "\n" +
			"This is a service with its own state directory. It first starts at the end of\n" +
			"the file, and later continues where it stopped; - is standard input. KumoMTA can\n" +
			"send its records by HTTP. With --milter, milter-scanwatch receives the failed\n" +
			"logins, pipelining and endings that Postfix logs.",
		Example:           "  scanwatch follow postfix /var/log/mail.log\n  scanwatch follow kumomta http:127.0.0.1:8025",
		Args:              argsBetween(2, 2),
		ValidArgsFunction: completeKind,
		RunE: func(_ *cobra.Command, args []string) error {
			kind := serverlog.ByName(args[0])
			if kind == nil {
				return usage("follow %q: unknown kind; see scanwatch follow --help", args[0])
			}
			front := &followlog.Front{Kind: kind, File: args[1], Stdin: os.Stdin, Zone: e.zone}
			switch {
			case milter && kind.Name != "postfix":
				return usage("follow --milter %s: only the log of postfix has the facts", kind.Name)
			case compressed(args[1]):
				return fmt.Errorf("follow %s: is compressed; follow the current log, and import old ones: %s import %s %[1]s", shellWord(args[1]), self(e), kind.Name)
			case milter:
				return followForMilter(e, front, open)
			}
			// The engine reads the configuration again, and also starts if it has errors.
			if dir, err := e.stateDir(); err == nil {
				if err := existing(dir.Path); err != nil {
					return err
				}
			}
			return runFollow(e, front, verbose, open)
		},
	}
	cmd.Flags().BoolVar(&verbose, "verbose", false, "also log each finding and decision, start and stop")
	cmd.Flags().BoolVar(&milter, "milter", false, "send facts to milter-scanwatch, which uses the state directory")
	cmd.Flags().BoolVar(&open, "no-sandbox", false, "disable the sandbox")
	return cmd
}

// compressed reports whether a file is compressed. Other files, and errors, are left to the front end.
func compressed(name string) bool {
	if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 6)
	n, _ := f.Read(head)
	return maillog.Compressed(head[:n])
}

// existing returns an error if the state directory does not exist. A missing directory may be mistyped,
// so it is not created.
func existing(dir string) error {
	_, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read state directory: %w; create it with install -d -m 750 %s, or specify another directory with -s", err, shellWord(dir))
	}
	return statedir.Explain(err)
}

// errFollow is returned after an error that the engine has already logged.
var errFollow = errors.New("follow: ended by an error")

func kindNames() (names []string) {
	for _, k := range serverlog.Kinds {
		names = append(names, k.Name)
	}
	return names
}

func kindList() string { return strings.Join(kindNames(), ", ") + "." }

// completeKind completes the kind of log first, and then the file.
func completeKind(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return kindNames(), cobra.ShellCompDirectiveNoFileComp
	}
	return completeFiles(cmd, args, word)
}

// followForMilter sends the facts in a log to the milter that uses the state directory. The milter
// may be started later. Only the milter's user may change the directory.
func followForMilter(e *env, front *followlog.Front, open bool) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	log := serviceLog(e.err)
	if front.Open(dir.Path, log) != nil {
		front.ReportFailure()
		return statusError{exitFailure, errFollow}
	}
	u, err := owner.Of(dir.Path)
	if err == nil && u != nil {
		err = u.Become()
	}
	if err != nil {
		return err
	}
	if !open {
		confine(log, sandbox.Paths{Change: []string{dir.Path}, Connect: []string{control.SocketPath(dir.Path)}, Read: front.Files()})
	}
	front.ServeMilter()
	return nil
}

func runFollow(e *env, front *followlog.Front, verbose, open bool) error {
	program := engine.Program{
		Name: "scanwatch-follow", FrontEnd: front.Kind.Name, Version: version, Server: "scanwatch follow", AnyPhase: true,
		Prepare: front.Prepare, Serve: front.Serve,
	}
	var args []string
	for flag, value := range map[string]string{"-f": e.file, "-s": e.dir} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	for flag, set := range map[string]bool{"-v": verbose, "-S": open} {
		if set {
			args = append(args, flag)
		}
	}
	if status := program.Main(args, os.Stdout, os.Stderr); status != exitOK {
		return statusError{status, errFollow}
	}
	return nil
}
