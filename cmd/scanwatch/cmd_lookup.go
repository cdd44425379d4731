package main

import (
	"github.com/spf13/cobra"

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
	s, err := newService(e, rules.RoleLookup, nil)
	if err != nil {
		return err
	}
	lookup, err := dnslookup.New(s.Companion, s.set.Lookups, s.runDir, s.log)
	if err != nil {
		return err
	}
	socket, err := s.socket()
	if err != nil {
		return err
	}
	if err := become(s.User); err != nil {
		return err
	}
	confine(s.log, sandbox.Paths{AskPort: int(lookup.Port()), Connect: []string{socket}})
	ctx, stop := untilTerminated()
	defer stop()
	lookup.Run(ctx)
	return nil
}
