package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/cmd/internal/sharing"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

func newShare(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "share",
		Short: "Share bans, counts and standing with other mail servers.",
		Long: "Exchange bans, counts and standing with the other hosts of the fleet over a\n" +
			"Valkey server, until terminated. This is a service; its user, the server and the\n" +
			"fleet are in scanwatch.conf(5).",
		Example: "  scanwatch share\n  scanwatch share -f test.conf",
		Args:    argsBetween(0, 0),
		RunE:    func(*cobra.Command, []string) error { return runShare(e) },
	}
	drop := &cobra.Command{
		Use:   "drop HOST",
		Short: "Drop all rows that another host has sent so far.",
		Long: "Drop the bans, counts and standing that another host of the fleet has sent so\n" +
			"far. Rows that the host sends later count again, unless the statement fleet in\n" +
			"scanwatch.conf(5) ignores the host.",
		Example: "  scanwatch share drop mx3\n  scanwatch share drop mx3 -f test.conf",
		Args:    argsBetween(1, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return runShareDrop(e, args[0]) },
	}
	c.AddCommand(drop)
	return c
}

func runShare(e *env) error {
	s, err := newService(e, rules.RoleShare, nil)
	if err != nil {
		return err
	}
	share, err := sharing.New(s.Companion, s.set.Fleet, s.runDir, s.log)
	if err != nil {
		return err
	}
	if err := become(s.User); err != nil {
		return err
	}
	sockets := []string{control.SocketPath(s.runDir)}
	for _, server := range s.Share.Servers {
		if filepath.IsAbs(server) {
			sockets = append(sockets, server)
		}
	}
	enter(s.log, sandbox.Client(nil, sockets))
	ctx, stop := untilTerminated()
	defer stop()
	share.Run(ctx)
	return nil
}

func runShareDrop(e *env, host string) error {
	return e.ask(func(c *control.Client) error {
		d, err := control.Drop(c, host)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.out, "%s of %s dropped\n", text.Plural(d.Rows, "row"), d.Host)
		return err
	})
}
