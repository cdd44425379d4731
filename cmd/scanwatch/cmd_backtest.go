package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/internal/backtest"
	"scanwatch/internal/prefix"
	"scanwatch/rules"
	"scanwatch/store"
)

// exitLost is the exit status if the tested policy would lose accepted mail.
const exitLost = 3

type backtestFlags struct {
	selector.Selector
	preset, rule string
}

func newBacktest(e *env) *cobra.Command {
	var f backtestFlags
	cmd := &cobra.Command{
		Use:   "backtest [--rule NAME] [--json] [SELECTOR ...] [FILE]",
		Short: "Test a policy with the recorded sessions.",
		Long: "Apply a policy to the recorded sessions as in enforce mode: that of FILE, a\n" +
			"preset, or the configuration. Bans, counters and known clients start empty.\n" +
			"Report lost mail first, with exit status 3. All sessions are replayed; the\n" +
			"selectors limit the report.",
		Example:           "  scanwatch backtest --policy standard\n  scanwatch backtest --since 30d --rule greeting new.conf",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: completeFile,
		RunE:              func(_ *cobra.Command, args []string) error { return runBacktest(e, &f, args) },
	}
	f.Register(cmd.Flags(), selector.Sessions&^selector.Rule|selector.JSON, e.clock())
	cmd.Flags().StringVar(&f.preset, "policy", "", "test the preset `NAME`: open, standard or tight")
	cmd.Flags().StringVar(&f.rule, "rule", "", "test only the rule `NAME`")
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(rules.PolicyNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runBacktest(e *env, f *backtestFlags, args []string) error {
	if f.preset != "" && len(args) > 0 {
		return usage("backtest: FILE and --policy are mutually exclusive")
	}
	if err := checkSelector(e, &f.Selector); err != nil {
		return err
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	o := backtest.Options{Rule: f.rule, OwnAddrs: prefix.Local(), Since: f.Since}
	if f.Narrow() || !f.Until.IsZero() {
		o.Match = func(r *store.Record) bool { return (f.Until.IsZero() || r.End.Before(f.Until)) && f.Match(r) }
	}
	if err := backtestPolicies(e, &o, f, args); err != nil {
		return err
	}
	r, err := dir.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	r.Warn(e.warn)
	progress := e.progress()
	o.Reader, o.Progress = &r.Reader, func(n int, at time.Time) { progress.Add(n, at) }
	result, err := backtest.Run(o)
	progress.Clear()
	if err != nil {
		return err
	}
	if f.JSON {
		err = result.JSON(e.out)
	} else {
		result.Text(e.out, e.zone)
	}
	if err == nil {
		err = r.Incomplete()
	}
	if err == nil && result.Messages > 0 {
		err = statusError{exitLost, fmt.Errorf("%d accepted messages would be lost", result.Messages)}
	}
	return err
}

// backtestPolicies loads the policy to test, and the active policy if it is a different
// one.
func backtestPolicies(e *env, o *backtest.Options, f *backtestFlags, args []string) (err error) {
	if o.Lists, err = lookup.Builtin(); err != nil {
		return err
	}
	var c *config.Config
	if len(args) > 0 {
		if err := notPreset(args[0], "--policy "+args[0]+" tests the preset"); err != nil {
			return err
		}
		c, err = config.Load(args[0], o.Lists, nil, false)
	} else {
		c, err = e.configuration(f.preset, o.Lists)
	}
	if err != nil {
		return err
	}
	o.Name, o.Notes = c.File, c.Notes
	if f.preset != "" {
		o.Name = f.preset
	}
	policy := c.Policy.InMode(rules.Enforce)
	if o.Rule != "" {
		if policy = policy.Only(o.Rule); policy == nil {
			return usage("backtest: --rule %s: %s has no such rule", o.Rule, c.File)
		}
	}
	o.Test = &filter.Settings{Policy: policy, ASN: c.ASN, Country: c.Country}
	if name := e.find(e.file); name != "" && (name != c.File || o.Rule != "") {
		running, err := config.Load(name, o.Lists, nil, false)
		if err != nil {
			return fmt.Errorf("load the current policy for the comparison: %w", err)
		}
		o.Running, o.File = &filter.Settings{Policy: running.Policy, ASN: running.ASN, Country: running.Country}, name
	}
	return nil
}
