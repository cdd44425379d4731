package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/internal/text"
)

func newUnban(e *env) *cobra.Command {
	return &cobra.Command{
		Use:               "unban PREFIX",
		Short:             "Revoke bans.",
		Long:              "Revoke every ban of a host or a network in PREFIX immediately. An IPv6 address\nstands for its /64.",
		Example:           "  scanwatch unban 192.0.2.1\n  scanwatch unban 2001:db8::/32",
		Args:              argsBetween(1, 1),
		ValidArgsFunction: e.completeBanned,
		RunE:              func(_ *cobra.Command, args []string) error { return runUnban(e, args[0]) },
	}
}

func runUnban(e *env, arg string) error {
	p, err := clientPrefix(arg)
	if err != nil {
		return err
	}
	return e.ask(func(c *control.Client) error {
		b, err := c.Unban(p)
		if err != nil {
			return err
		}
		for _, one := range b.Bans {
			fmt.Fprintf(e.out, "the ban of %s is revoked (%s)\n", one.Prefix, text.Escape(one.Rule))
		}
		e.note(b.Note)
		if len(b.Bans) == 0 {
			return fmt.Errorf("no bans in %s", p)
		}
		return nil
	})
}
