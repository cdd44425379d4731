package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newVersion(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version.",
		Long:    "Print the version of this program. status prints that of the running filter.",
		Example: "  scanwatch version\n  scanwatch --version",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(e.out, "scanwatch %s\n", version)
			return err
		},
	}
}
