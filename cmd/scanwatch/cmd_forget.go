package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/forget"
	"scanwatch/filter/erase"
	"scanwatch/internal/text"
)

func newForget(e *env) *cobra.Command {
	var yes, bans, asJSON bool
	cmd := &cobra.Command{
		Use:   "forget [--yes] [--bans] [--json] ADDRESS|PREFIX|MAILBOX|USER",
		Short: "Remove a person from the records and the state.",
		Long: "Remove a person from records, sealed days and state. Without --yes, only print\n" +
			"what would be removed. Sessions from the address lose all names and text; in\n" +
			"other sessions the name is replaced. Totals remain. An IPv6 address stands for\n" +
			"its /64. The filter may be running.",
		Example: "  scanwatch forget 192.0.2.1\n  scanwatch forget --yes erin@example.org",
		Args:    argsBetween(1, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return runForget(e, args[0], yes, bans, asJSON) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove the person")
	cmd.Flags().BoolVar(&bans, "bans", false, "also remove active bans")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runForget(e *env, arg string, yes, bans, asJSON bool) error {
	who, err := erase.Parse(arg)
	if err != nil {
		return usageError{err}
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	progress := e.progress()
	o := forget.Options{Dir: dir, Who: who, Bans: bans, Program: version, Progress: func(n int, until time.Time) { progress.Add(n, until) }}
	act := forget.Survey
	if yes {
		act = forget.Remove
	}
	r, err := act(o)
	progress.Clear()
	if err != nil {
		return fmt.Errorf("forget %s: %w", who, err)
	}
	if asJSON {
		err = json.NewEncoder(e.out).Encode(&r)
	} else {
		r.Text(e.out, e.zone)
	}
	if err != nil {
		return err
	}
	if yes && len(r.Missed) > 0 {
		return fmt.Errorf("%s may still have the person", text.Plural(len(r.Missed), "file"))
	}
	return nil
}
