package main

import (
	"fmt"

	"github.com/spf13/cobra"

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
	s, err := newService(e, rules.RoleForward, args)
	if err != nil {
		return err
	}
	if err := become(s.User); err != nil {
		return err
	}
	f, err := forward.New(s.Companion, forward.Options{RunDir: s.runDir, Stdout: e.stdout, Log: s.log, Agent: "scanwatch/" + version, Now: e.now})
	if err != nil {
		return fmt.Errorf("%s: %w", s.Pos, err)
	}
	enter(s.log, sandbox.Client(f.Files()))
	ctx, stop := untilTerminated()
	defer stop()
	return f.Run(ctx)
}
