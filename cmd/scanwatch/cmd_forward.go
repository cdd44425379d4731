package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/forward"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/rules"
)

func newForward(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "forward [DESTINATION]",
		Short: "Send events to a URL, to syslog or to AbuseIPDB.",
		Long: "Follow the events of the running filter, and pass them to the destination of a\n" +
			"companion in scanwatch.conf(5). This is a service and runs until a signal ends\n" +
			"it. DESTINATION is url, syslog, stdout or abuseipdb, or the argument after this\n" +
			"word in the configuration.",
		Example:   "  scanwatch forward url\n  scanwatch forward stdout -f test.conf",
		Args:      argsBetween(0, 1),
		ValidArgs: rules.ForwardTargets(),
		RunE:      func(_ *cobra.Command, args []string) error { return runForward(e, args) },
	}
}

func runForward(e *env, args []string) error {
	c, runDir, err := forwardCompanion(e, args)
	if err != nil {
		return err
	}
	if err := become(c.User); err != nil {
		return err
	}
	log := serviceLog(e.err)
	f, err := forward.New(c, forward.Options{RunDir: runDir, Stdout: e.stdout, Log: log, Agent: "scanwatch/" + version, Now: e.now})
	if err != nil {
		return fmt.Errorf("%s: %w", c.Pos, err)
	}
	enter(log, sandbox.Client(f.Files()))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return f.Run(ctx)
}

// forwardCompanion returns the companion that the arguments select, and the socket's directory.
func forwardCompanion(e *env, args []string) (*rules.Companion, string, error) {
	name, err := e.chosen(nil)
	if err != nil {
		return nil, "", err
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return nil, "", err
	}
	s := tree.Settings()
	var found []*rules.Companion
	var all []string
	for _, c := range s.Companions {
		if c.Role != rules.RoleForward {
			continue
		}
		name := strings.TrimPrefix(c.Name(), "forward ")
		all = append(all, name)
		if len(args) == 0 || slices.Contains([]string{c.Target, c.Argument, name, strings.TrimPrefix(name, c.Target+" ")}, args[0]) {
			found = append(found, c)
		}
	}
	switch {
	case len(all) == 0:
		return nil, "", fmt.Errorf("%s has no statement companion forward; see scanwatch.conf(5)", name)
	case len(found) == 0:
		return nil, "", usage("forward %q: no such destination in %s; it has: %s", args[0], name, strings.Join(all, ", "))
	case len(found) > 1:
		return nil, "", usage("forward: several destinations in %s, select one: %s", name, strings.Join(all, ", "))
	}
	return found[0], cmp.Or(s.RunDir, control.DefaultRunDir()), nil
}
