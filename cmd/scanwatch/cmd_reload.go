package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/internal/text"
)

func newReload(e *env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "reload [--force]",
		Short: "Reload the configuration and its tables.",
		Long: "Reload the configuration of the running filter. A table keeps its content if its\n" +
			"file is empty now, unreadable or a web page. The filter also checks its files\n" +
			"every ten seconds.",
		Example: "  scanwatch check && scanwatch reload\n  scanwatch reload --force",
		RunE: func(*cobra.Command, []string) error {
			return e.ask(func(c *control.Client) error {
				now, err := c.Reload(force)
				if err != nil {
					return err
				}
				for _, n := range now.Notes {
					fmt.Fprintln(e.err, "warning:", n)
				}
				fmt.Fprintf(e.out, "loaded %s: mode %s, %s\n", now.File, now.Mode, text.Plural(now.Rules, "rule"))
				if now.Problem != "" {
					return fmt.Errorf("not fully in use: %s", now.Problem)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "empty the tables whose files are empty")
	return cmd
}
