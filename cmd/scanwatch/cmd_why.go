package main

import (
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/exportlist"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/lookup"
	"scanwatch/internal/why"
	"scanwatch/rules"
	"scanwatch/store"
)

type whyFlags struct {
	selector.Selector
	kind        string
	all, letter bool
}

func newWhy(e *env) *cobra.Command {
	var f whyFlags
	cmd := &cobra.Command{
		Use:   "why [--as KIND] [--all] [--json | --letter] [SELECTOR ...] ARG",
		Short: "Explain decisions about a client and how to undo them.",
		Long: "Explain decisions, their evidence and the exemptions of a client. ARG is\n" +
			"a session id or its beginning, a line from a bounce with the id, an address or\n" +
			"prefix, the mailbox of a sender or recipient, a user, a host name or a greeting.\n" +
			"@DOMAIN is any mailbox in the domain. 20 sessions are printed, rejected\n" +
			"ones first.",
		Example: "  scanwatch why 5a1f9c2e00c0ffee\n  scanwatch why --as user --since 7d erin",
		Args:    argsBetween(1, 100),
		RunE:    func(_ *cobra.Command, args []string) error { return runWhy(e, &f, strings.Join(args, " ")) },
	}
	f.Register(cmd.Flags(), selector.Sessions|selector.Limit|selector.JSON, e.clock())
	cmd.Flags().StringVar(&f.kind, "as", "", "search ARG as `KIND`: "+strings.Join(why.Kinds(), ", "))
	cmd.Flags().BoolVar(&f.all, "all", false, "print all sessions")
	cmd.Flags().BoolVar(&f.letter, "letter", false, "print an answer to a complaint about the newest rejection")
	cmd.MarkFlagsMutuallyExclusive("all", "limit")
	cmd.MarkFlagsMutuallyExclusive("json", "letter")
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions(why.Kinds(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runWhy(e *env, f *whyFlags, arg string) error {
	if err := checkSelector(e, &f.Selector); err != nil {
		return err
	}
	q, err := why.Parse(arg, f.kind)
	if err != nil {
		return usageError{err}
	}
	dir, r, err := e.records()
	if err != nil {
		return err
	}
	defer r.Close()
	o, err := whyOptions(e, f, dir, r)
	if err != nil {
		return err
	}
	a, err := why.Find(q, o)
	if err != nil {
		return err
	}
	switch {
	case f.JSON:
		err = a.JSON(e.out)
	case a.Empty():
	case f.letter:
		err = a.Letter(e.out, e.zone)
	default:
		a.Text(e.out, e.zone)
	}
	if err == nil {
		err = r.Incomplete()
	}
	if err == nil && a.Empty() {
		err = a.NotFound(&o)
	}
	return err
}

// whyOptions returns options based on the active configuration.
func whyOptions(e *env, f *whyFlags, dir *statedir.Dir, r *statedir.Records) (why.Options, error) {
	o := why.Options{Command: self(e), Dir: dir.Path, Reader: &r.Reader, Rows: dir.State, Days: dir.Days, Now: e.now(), Zone: e.zone, File: config.DefaultFile(),
		Since: f.Since, Until: f.Until, All: f.all, Limit: f.Limit, Notes: r.Problems()}
	if f.Narrow() {
		o.Match = f.Match
	}
	mode := dir.Mode()
	o.Mode, o.ModeText, o.Waiting = mode.Word, mode.String(e.zone), mode.Waiting
	var err error
	if o.Lists, err = lookup.Builtin(); err != nil {
		return o, err
	}
	name := e.find(e.file)
	if name == "" {
		return o, nil
	}
	c, err := config.Load(name, o.Lists, nil, false)
	if err != nil {
		o.Notes = append(o.Notes, name+" has errors, so exemptions may be missing; run "+self(e)+" check")
		return o, nil
	}
	o.Policy, o.File = c.Policy, c.File
	o.Facts = func(r *store.Record) *rules.Facts { return exportlist.Facts(c, r) }
	return o, nil
}
