package main

import (
	"context"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/live"
	"scanwatch/cmd/internal/selector"
)

// minInterval is the minimum of --interval.
const minInterval = 100 * time.Millisecond

func newTop(e *env) *cobra.Command {
	var evidence string
	var interval time.Duration
	var once bool
	cmd := &cobra.Command{
		Use:   "top [--evidence TOKEN] [--interval DURATION] [--once]",
		Short: "Show the activity of the running filter on the terminal.",
		Long: "Show sources, findings, verdicts and bans as they happen. Keys: q quit, p pause,\n" +
			"s sort, e evidence, ? help. Without a terminal, print blocks of text.",
		Example: "  scanwatch top\n  scanwatch top --once --interval 10s",
		RunE:    func(*cobra.Command, []string) error { return runTop(e, evidence, interval, once) },
	}
	fs := cmd.Flags()
	fs.StringVar(&evidence, "evidence", "", "show the evidence `TOKEN` alone at the start")
	fs.DurationVar(&interval, "interval", 2*time.Second, "print a block of text each `DURATION`")
	fs.BoolVar(&once, "once", false, "print one block of text after an interval")
	return cmd
}

func runTop(e *env, evidence string, interval time.Duration, once bool) error {
	if evidence != "" && !slices.Contains(selector.Tokens(), evidence) {
		return usage("--evidence %q: no such evidence; see scanwatch.conf(5)", evidence)
	}
	if interval < minInterval {
		return usage("--interval %v: shorter than %v", interval, minInterval)
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	updates, done, err := live.Follow(ctx, dir.Path)
	if err != nil {
		return err
	}
	defer done()
	view := live.NewView(e.zone, evidence)
	if once || !live.FullScreen(e.stdout) {
		return live.RunText(ctx, e.out, view, updates, e.now, interval, once)
	}
	return live.RunScreen(ctx, view, updates, e.now)
}
