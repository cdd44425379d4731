package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/internal/why"
	"scanwatch/store/report"
)

func newShow(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show [--json] SESSION-ID",
		Short:   "Show a session as a transcript.",
		Long:    "Show commands, replies, findings and decisions of a session. SESSION-ID is the\nnumber of 16 hexadecimal digits that smtpd logs, or a line with it.",
		Example: "  scanwatch show 5a1f9c2e00c0ffee\n  scanwatch show --json 5a1f9c2e00c0ffee",
		Args:    argsBetween(1, 100),
		RunE:    func(_ *cobra.Command, args []string) error { return runShow(e, strings.Join(args, " "), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runShow(e *env, text string, asJSON bool) error {
	id, ok := why.ParseSession(text)
	if !ok {
		return usage("show %q: not a session id of 16 hexadecimal digits; scanwatch why accepts the first digits of an id", text)
	}
	dir, r, err := e.records()
	if err != nil {
		return err
	}
	defer r.Close()
	r.Warn(e.warn)
	found, err := r.Find(id)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(found) == 0 {
		if err := r.Incomplete(); err != nil {
			return err
		}
		return fmt.Errorf("session %016x is not recorded in %s; it may still be active, or may have expired by age or budget", id, dir.Path)
	}
	write := report.Lines(e.out)
	for i := range found {
		v := report.NewView(&found[i])
		if asJSON {
			err = write(v)
		} else {
			if i > 0 {
				fmt.Fprintln(e.out)
			}
			err = report.Show(e.out, v, e.zone)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
