package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/exportlist"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/selector"
	"scanwatch/rules"
	"scanwatch/store/export"
)

// exportDays is the default for --since and --ttl in days.
const exportDays = 7

// exportMode is the mode of new export files. Daemons that run as other users must be able to read
// the files.
const exportMode = 0o644

type exportFlags struct {
	selector.Selector
	confidence, ttl, loss    string
	bans, aggregate, private bool
	diff, output             string
	verbose                  bool
}

func newExport(e *env) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export [--bans] [--diff FILE] [-o FILE] [SELECTOR ...] FORMAT",
		Short: "Export bans and findings for firewalls and services.",
		Long: "Export active bans, or with --evidence or --min-confidence hosts with such\n" +
			"evidence. Exempt hosts, addresses of this host, and hosts with recent mail or\n" +
			"logins are never exported. Formats:\n" + formatList(),
		Example:           "  scanwatch export nft -o bans.nft && nft -f bans.nft\n  scanwatch export pf --evidence scanner,harvest --diff pf.state",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: completeFormat,
		RunE:              func(cmd *cobra.Command, args []string) error { return runExport(e, cmd, &f, args) },
	}
	flags := cmd.Flags()
	f.Register(flags, selector.Sessions, e.clock())
	flags.StringVar(&f.confidence, "min-confidence", "", "export evidence of at least `WORD`: high, medium (default) or low")
	flags.StringVar(&f.ttl, "ttl", "7d", "list a host for `DURATION` after its last session")
	flags.StringVar(&f.loss, "accept-loss", "", "accept the loss of records until `DATE`, and of bans from before it")
	flags.BoolVar(&f.bans, "bans", false, "export bans in addition to findings")
	flags.BoolVar(&f.aggregate, "aggregate", false, "merge adjacent networks; adds no addresses")
	flags.BoolVar(&f.private, "private", false, "include private, loopback and link-local addresses")
	flags.StringVar(&f.diff, "diff", "", "print changes since the state in `FILE`; write the new state to FILE.new, to be renamed when the changes are loaded")
	flags.StringVarP(&f.output, "output", "o", "", "replace `FILE` in one step; - is standard output")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print the number of omitted entries by reason")
	_ = cmd.RegisterFlagCompletionFunc("min-confidence", cobra.FixedCompletions([]string{"high", "medium", "low"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"ttl", "accept-loss"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// formatList lists the export formats for the help text.
func formatList() string {
	width := 0
	for _, name := range formatNames() {
		width = max(width, len(name))
	}
	var b strings.Builder
	for _, f := range export.Formats() {
		fmt.Fprintf(&b, "  %-*s %s\n", width, f.Name, f.Short)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func formatNames() (names []string) {
	for _, f := range export.Formats() {
		names = append(names, f.Name)
	}
	return names
}

func completeFormat(_ *cobra.Command, args []string, _ string) (offers []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		for _, f := range export.Formats() {
			offers = append(offers, f.Name+"\t"+f.Short)
		}
	}
	return offers, cobra.ShellCompDirectiveNoFileComp
}

// exportOptions checks the flags, and returns the format and options they select.
func exportOptions(e *env, cmd *cobra.Command, f *exportFlags, args []string) (*export.Format, exportlist.Options, error) {
	o := exportlist.Options{Selector: &f.Selector, Private: f.private, Progress: e.progress(), Warn: e.warn}
	if len(args) == 0 {
		return nil, o, usage("export: format missing; one of %s", strings.Join(formatNames(), ", "))
	}
	format := export.FormatByName(args[0])
	if format == nil {
		hint := "see scanwatch export --help"
		name := rules.Nearest(args[0], formatNames())
		if first, _, _ := strings.Cut(args[0], "-"); export.FormatByName(first) != nil {
			name = first // for postfix-cidr
		}
		if name != "" {
			hint = "did you mean " + name + "?"
		}
		return nil, o, usage("export %q: no such format; %s", args[0], hint)
	}
	if f.diff != "" && !format.Changes() {
		return nil, o, usage("export %s: --diff is not possible: entries end %s", format.Name, format.Ends)
	}
	o.Found = f.Any || len(f.Evidence) > 0 || f.confidence != ""
	o.Bans = f.bans || !o.Found
	if f.confidence == "" {
		f.confidence = "medium"
	}
	if o.Confidence = export.Confidence(f.confidence); o.Confidence == 0 {
		return nil, o, usage("--min-confidence %q: must be high, medium or low", f.confidence)
	}
	if !cmd.Flags().Changed("since") {
		f.Since = e.now().AddDate(0, 0, -exportDays)
	}
	err := checkSelector(e, &f.Selector)
	if err != nil {
		return nil, o, err
	}
	if o.TTL, err = duration("ttl", f.ttl); err != nil {
		return nil, o, err
	}
	if f.loss != "" {
		if o.AcceptLoss, err = time.Parse(time.DateOnly, f.loss); err != nil {
			return nil, o, usage("--accept-loss %q: must be a date such as 2026-11-30", f.loss)
		}
		if o.AcceptLoss.After(e.now()) {
			return nil, o, usage("--accept-loss %q: is in the future", f.loss)
		}
	}
	switch {
	case f.diff == output.Stdout:
		return nil, o, usage("export: --diff requires a file")
	case f.diff != "" && f.output == f.diff+".new":
		return nil, o, usage("export: -o %s is the new state file of --diff", f.output)
	}
	o.Dir, err = e.stateDir()
	return format, o, err
}

func runExport(e *env, cmd *cobra.Command, f *exportFlags, args []string) error {
	format, o, err := exportOptions(e, cmd, f, args)
	if err != nil {
		return err
	}
	before, err := readExportState(f.diff, format)
	if err != nil {
		return err
	}
	// Write the new state to FILE.new. The program that loads the changes then renames FILE.new to
	// FILE. If the export fails, no FILE.new of an earlier export may remain.
	if f.diff != "" {
		if err := remove(f.diff + ".new"); err != nil {
			return err
		}
	}
	list, omitted, err := exportEntries(e, &o)
	if err != nil {
		return err
	}
	if f.aggregate {
		list.Aggregate()
	}
	dropped, err := writeExport(e, f, format, list, before)
	if err != nil {
		return err
	}
	if dropped > 0 {
		omitted["not supported by "+format.Name] += dropped
	}
	if f.verbose || output.IsTerminal(e.terminal) {
		fmt.Fprintf(e.err, "scanwatch: %d exported\n", len(list.Entries)-dropped)
		for _, reason := range slices.Sorted(maps.Keys(omitted)) {
			fmt.Fprintf(e.err, "scanwatch: omitted %d: %s\n", omitted[reason], reason)
		}
	}
	return nil
}

// exportEntries returns the list, and the number of omitted entries by reason. If the operator has
// stopped enforcement, the list is empty, so that firewalls that load the list also stop blocking.
func exportEntries(e *env, o *exportlist.Options) (list *export.List, omitted map[string]int, err error) {
	switch halted, err := exportlist.Halted(o.Dir.Path); {
	case err != nil:
		return nil, nil, fmt.Errorf("nothing was exported: %w", err)
	case halted:
		e.warn("enforcement is stopped by scanwatch mode observe: the list is empty")
		return &export.List{Made: e.now()}, map[string]int{}, nil
	}
	if name := e.find(e.file); name != "" {
		if o.Policy, err = exportlist.LoadPolicy(name); err != nil {
			return nil, nil, noExempt(e, name, err)
		}
	}
	if list, omitted, err = exportlist.Build(*o); err != nil {
		return nil, nil, fmt.Errorf("nothing was exported: %w", err)
	}
	return list, omitted, nil
}

// remove removes a file if it exists.
func remove(name string) error {
	p, err := owner.Resolve(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Remove(p.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// noExempt returns the error for an export that failed because the exempt hosts are unknown.
func noExempt(e *env, name string, err error) error {
	if errors.As(err, new(rules.Errors)) {
		fmt.Fprint(e.err, config.Detail(err))
		return fmt.Errorf("nothing was exported: the exempt hosts are unknown without %s", name)
	}
	return fmt.Errorf("nothing was exported: %w", err)
}

// writeExport writes the list, or the changes to it, and returns the number of entries
// that the format cannot express.
func writeExport(e *env, f *exportFlags, format *export.Format, list *export.List, before *export.State) (dropped int, err error) {
	var after *export.State
	write := func(w io.Writer) (err error) {
		if f.diff != "" {
			after, dropped, err = format.WriteChanges(w, list, before)
		} else {
			dropped, err = format.Write(w, list)
		}
		return err
	}
	err = output.To(e.out, f.output, exportMode, write)
	// Do not write the new state if the list was not written completely, because the reader cannot
	// have loaded it.
	if failed := e.out.Flush(); failed != nil {
		err = fmt.Errorf("write the list: %v", failed)
	}
	if err != nil || after == nil {
		return dropped, err
	}
	err = output.Replace(f.diff+".new", exportMode, func(w io.Writer) error { return export.WriteState(w, after) })
	if err != nil {
		return dropped, fmt.Errorf("write new state of --diff: %w; the next export repeats these changes", err)
	}
	return dropped, nil
}

// readExportState reads a state file. If the file does not exist, the result is nil.
func readExportState(name string, f *export.Format) (*export.State, error) {
	if name == "" {
		return nil, nil
	}
	file, err := owner.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	s, err := export.ReadState(file)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read state file %s: %w; remove it to export the whole list again", name, err)
	case s.Format != f.Name:
		return nil, fmt.Errorf("%s is the state of %q, not of %s; use one file for each consumer", name, s.Format, f.Name)
	}
	return s, nil
}
