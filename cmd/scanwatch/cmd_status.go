package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/live"
)

func newStatus(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status [--json]",
		Short:   "Show the status of the running filter.",
		Long:    "Show problems, the policy, open sessions, and the use of memory and disk.",
		Example: "  scanwatch status\n  scanwatch status --json",
		RunE: func(*cobra.Command, []string) error {
			return e.ask(func(c *control.Client) error {
				s, err := c.Status()
				s.Config.Notes = append(s.Config.Notes, stale(e)...)
				switch {
				case err != nil:
					return err
				case asJSON:
					return json.NewEncoder(e.out).Encode(s)
				}
				live.PrintStatus(e.out, &s, e.zone)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// ask calls f with a connection to the running filter.
func (e *env) ask(f func(*control.Client) error) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	client, err := control.Dial(dir.Path)
	if err != nil {
		return err
	}
	defer client.Close()
	return f(client)
}
