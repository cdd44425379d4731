package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
)

func newFlush(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "flush",
		Short:   "Write all buffered records to disk.",
		Long:    "Return when the running filter has written all its records to disk.",
		Example: "  scanwatch flush\n  scanwatch flush && cp -Rp /var/db/scanwatch /backup",
		RunE: func(*cobra.Command, []string) error {
			return e.ask(func(c *control.Client) error {
				err := c.Flush()
				if err == nil {
					_, err = fmt.Fprintln(e.out, "all records are on disk")
				}
				return err
			})
		},
	}
}
