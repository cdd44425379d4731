package main

import (
	"errors"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/selector"
	"scanwatch/store"
	"scanwatch/store/history"
	"scanwatch/store/report"
)

func newDump(e *env) *cobra.Command {
	var s selector.Selector
	var asCSV bool
	cmd := &cobra.Command{
		Use:   "dump [--since WHEN] [--src PREFIX,...] [--csv] [SELECTOR ...]",
		Short: "Print all selected sessions.",
		Long: "Print one JSON object for each selected session, the oldest first. scanwatch(8)\n" +
			"describes the format.",
		Example: "  scanwatch dump --src 192.0.2.0/24 --csv > network.csv\n  scanwatch dump --since today --evidence scanner,harvest",
		RunE:    func(*cobra.Command, []string) error { return runDump(e, &s, asCSV) },
	}
	s.Register(cmd.Flags(), selector.Sessions|selector.Limit|selector.JSON, e.clock())
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print comma-separated values with a header")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

func runDump(e *env, s *selector.Selector, asCSV bool) error {
	if err := checkSelector(e, s); err != nil {
		return err
	}
	_, r, err := e.records()
	if err != nil {
		return err
	}
	defer r.Close()
	r.Warn(e.warn)
	write, end := report.Lines(e.out), func() error { return nil }
	if asCSV {
		write, end = report.CSV(e.out)
	}
	n := 0
	visit := func(rec *store.Record) error {
		if !s.Match(rec) {
			return nil
		}
		if n++; s.Limit > 0 && n > s.Limit {
			return history.ErrStop
		}
		return write(report.NewView(rec))
	}
	if err := history.Walk(r, s.Since, s.Until, history.Visitor{Kinds: store.AllKinds, Session: visit, Sum: visit}); err != nil {
		return err
	}
	return errors.Join(end(), r.Incomplete())
}
