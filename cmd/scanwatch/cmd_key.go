package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/fleetkey"
)

func newKey(e *env) *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use:   "key [--show] FILE",
		Short: "Create the key that a fleet's hosts share.",
		Long: "Write a new random key into FILE, which must not exist. Copy the file to all\n" +
			"hosts of the fleet. With --show, print the fingerprint of an existing key, to\n" +
			"compare it with that of other hosts.",
		Example: "  scanwatch key /etc/scanwatch/fleet.key\n  scanwatch key --show /etc/scanwatch/fleet.key",
		Args:    argsBetween(1, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return runKey(e, args[0], show) },
	}
	c.Flags().BoolVar(&show, "show", false, "print the fingerprint of an existing key")
	return c
}

func runKey(e *env, name string, show bool) error {
	use := fleetkey.Create
	if show {
		use = fleetkey.Read
	}
	key, err := use(name)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s  %s\n", key.Fingerprint(), name)
	return err
}
