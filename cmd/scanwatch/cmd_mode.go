package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
)

func newMode(e *env) *cobra.Command {
	var length string
	cmd := &cobra.Command{
		Use:   "mode [observe [--for DURATION] | policy]",
		Short: "Stop or resume all enforcement.",
		Long: "Print the mode of the running filter, or change it without editing a file. In\n" +
			"mode observe nothing is rejected, delayed or disconnected; sessions are still\n" +
			"recorded. This survives restarts. Mode policy is the mode of the configuration.",
		Example:   "  scanwatch mode observe --for 2h\n  scanwatch mode policy",
		Args:      argsBetween(0, 1),
		ValidArgs: []string{"observe", control.PolicyMode},
		RunE:      func(_ *cobra.Command, args []string) error { return runMode(e, length, args) },
	}
	cmd.Flags().StringVar(&length, "for", "", "observe for `DURATION` only: 30m, 12h, 7d")
	return cmd
}

func runMode(e *env, length string, args []string) error {
	var d time.Duration
	ask := func(c *control.Client) (control.Config, error) { s, err := c.Status(); return s.Config, err }
	switch {
	case len(args) == 0:
	case args[0] == "observe":
		ask = func(c *control.Client) (control.Config, error) { return c.Observe(d) }
	case args[0] == control.PolicyMode:
		ask = (*control.Client).Enforce
	default:
		return usage("mode %q: must be observe or policy; set mode enforce in the configuration, and run %s mode policy to end mode observe", args[0], self(e))
	}
	if length != "" {
		if len(args) == 0 || args[0] != "observe" {
			return usage("--for is only possible with mode observe")
		}
		var err error
		if d, err = duration("for", length); err != nil {
			return err
		}
	}
	return e.ask(func(c *control.Client) error {
		now, err := ask(c)
		if err != nil {
			return err
		}
		text := "mode " + now.Mode
		if h := now.Halted; h != nil {
			text += ", by the operator"
			if !h.Until.IsZero() {
				text += " until " + h.Until.In(e.zone).Format("2006-01-02 15:04:05 -0700")
			}
			text += fmt.Sprintf("; %s mode policy returns to mode %s", self(e), h.Mode)
		}
		_, err = fmt.Fprintln(e.out, text)
		return err
	})
}
