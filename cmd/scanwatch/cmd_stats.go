package main

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/dirstats"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/reports"
	"scanwatch/store/report"
)

// metricsMode is the mode of new metrics files. The Prometheus exporter, which runs as
// another user, must be able to read them.
const metricsMode = 0o644

func newStats(e *env) *cobra.Command {
	var asJSON, prometheus bool
	var file string
	cmd := &cobra.Command{
		Use:   "stats [--json | --prometheus [-o FILE]]",
		Short: "Show sizes, retention and losses of the records.",
		Long: "Show the files of the state directory, daily counters, dropped sessions, and the\n" +
			"number of days that fit in the budget. The filter need not be running.",
		Example: "  scanwatch stats\n  scanwatch stats --prometheus -o scanwatch.prom",
		RunE: func(*cobra.Command, []string) error {
			switch {
			case prometheus:
				return printMetrics(e, file)
			case file != "":
				return usage("-o requires --prometheus")
			}
			return runStats(e, asJSON)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	fs.BoolVar(&prometheus, "prometheus", false, "print metrics for Prometheus")
	fs.StringVarP(&file, "output", "o", "", "replace `FILE` in one step; - is standard output")
	cmd.MarkFlagsMutuallyExclusive("json", "prometheus")
	return cmd
}

func runStats(e *env, asJSON bool) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	s, err := dirstats.Collect(dir, e.warn)
	switch {
	case err != nil:
		return err
	case asJSON:
		return json.NewEncoder(e.out).Encode(s)
	}
	s.Text(e.out, e.zone)
	return nil
}

func printMetrics(e *env, file string) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	all, incomplete, err := reports.Metrics(dir, e.zone, stale(e))
	if err != nil {
		return err
	}
	err = output.To(e.out, file, metricsMode, func(w io.Writer) error { return report.Metrics(w, all) })
	return errors.Join(err, incomplete)
}
