package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/dnslookup"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/rules"
)

func newLookup(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "lookup",
		Short: "Ask DNS lists about unknown clients.",
		Long: "Ask the DNS lists in scanwatch.conf(5) about clients that the running filter\n" +
			"does not know, until terminated, and return the answers to the filter. This is\n" +
			"a service; its user and the lists are in the configuration.",
		Example: "  scanwatch lookup\n  scanwatch lookup -f test.conf",
		Args:    argsBetween(0, 0),
		RunE:    func(*cobra.Command, []string) error { return runLookup(e) },
	}
}

func runLookup(e *env) error {
	name, err := e.chosen(nil)
	if err != nil {
		return err
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return err
	}
	set := tree.Settings()
	i := slices.IndexFunc(set.Companions, func(c *rules.Companion) bool { return c.Role == rules.RoleLookup })
	if i < 0 || len(set.Lookups) == 0 {
		return fmt.Errorf("%s has no companion lookup or no lookup; see scanwatch.conf(5)", name)
	}
	companion, log := set.Companions[i], serviceLog(e.err)
	runDir := cmp.Or(set.RunDir, control.DefaultRunDir())
	service, err := dnslookup.New(companion, set.Lookups, runDir, log)
	if err != nil {
		return err
	}
	if _, err := os.Stat(runDir); err != nil { // the sandbox cannot grant access later
		return fmt.Errorf("directory of the filter's socket: %w", err)
	}
	if err := become(companion.User); err != nil {
		return err
	}
	confine(log, sandbox.Paths{AskPort: int(service.Port()), Connect: []string{control.SocketPath(runDir)}})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	service.Run(ctx)
	return nil
}
