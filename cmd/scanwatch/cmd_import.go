package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/mailimport"
	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/lookup/feed"
	"scanwatch/filter/serverlog"
	"scanwatch/filter/stream"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
)

type importFlags struct {
	check, format string
	formats       bool
}

func newImport(e *env) *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import --check FILE [--format FORMAT] | --formats",
		Short: "Import records or a mail log, or check a downloaded list.",
		Long: "With --check, report the usable entries of a list. The subcommands import\n" +
			"sessions and mail from the time before the filter.",
		Example: "  scanwatch import smtpd-log /var/log/maillog*\n  scanwatch import --check drop.json --format spamhaus-drop",
		RunE: func(*cobra.Command, []string) error {
			switch {
			case f.formats:
				listFormats(e.out)
				return nil
			case f.check == "":
				return usage("import: no file given; see scanwatch import --help")
			}
			return checkList(e, f.check, f.format)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.check, "check", "", "check the list in `FILE`")
	fs.StringVar(&f.format, "format", "", "read the list as `FORMAT`, with an option as in \"aws service EC2\"")
	fs.BoolVar(&f.formats, "formats", false, "list the formats")
	_ = cmd.RegisterFlagCompletionFunc("format", func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		for _, f := range feed.Formats() {
			names = append(names, f.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	cmd.AddCommand(newImportSmtpd(e), newImportLog(e))
	for _, kind := range serverlog.Kinds {
		cmd.AddCommand(newImportKind(e, kind))
	}
	return cmd
}

// completeFiles completes file names.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

func newImportSmtpd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "smtpd FILE|-",
		Short: "Record the sessions of a filter stream.",
		Long: "Record the sessions of a stream: the lines that smtpd sends to a filter, saved\n" +
			"with tee(1) or made by a converter in contrib. - is standard input. The\n" +
			"filter must be stopped. A second import of a stream adds nothing.",
		Example: "  scanwatch import smtpd sessions.in\n" +
			"  scanwatch import smtpd - < sessions.in",
		Args:              argsBetween(1, 1),
		ValidArgsFunction: completeFiles,
		RunE:              func(_ *cobra.Command, args []string) error { return importSmtpd(e, args[0]) },
	}
}

func newImportLog(e *env) *cobra.Command {
	var dryRun, again, asJSON bool
	cmd := &cobra.Command{
		Use:   "smtpd-log [--dry-run] [--again] [--json] FILE ...|-",
		Short: "Learn the correspondents in smtpd's mail log.",
		Long: "Read the mail log that smtpd writes to syslog, and record in the state which\n" +
			"hosts delivered mail and which domains users wrote to. The filter may be\n" +
			"running. Files may be in any order, overlap, and be compressed with gzip, bzip2\n" +
			"or zstd; - is standard input. A second import of the same lines adds nothing.",
		Example: "  scanwatch import smtpd-log --dry-run /var/log/maillog*\n" +
			"  scanwatch import smtpd-log - < maillog",
		Args:              argsBetween(1, 10_000),
		ValidArgsFunction: completeFiles,
		RunE: func(_ *cobra.Command, args []string) error {
			return importLog(e, mailimport.Options{Files: args, DryRun: dryRun, Again: again}, asJSON)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&dryRun, "dry-run", false, "print the summary and import nothing")
	fs.BoolVar(&again, "again", false, "also import mail that was already imported or recorded")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// importLog imports mail logs and prints a summary.
func importLog(e *env, o mailimport.Options, asJSON bool) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	progress := e.progress()
	o.Dir, o.Program, o.Zone, o.Warn, o.Progress = dir, version, e.zone, e.warn, progress.Bytes
	o.Stdin, o.Own = os.Stdin, prefix.Local()
	r, err := mailimport.Import(o)
	progress.Clear()
	if missing := (*fs.PathError)(nil); errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) && slices.Contains(o.Files, missing.Path) {
		// Debian has had no mail log file by default since version 12.
		return fmt.Errorf("import mail log: %w; if smtpd logs to the journal: journalctl -u opensmtpd -o export | scanwatch import smtpd-log -", err)
	}
	if err != nil {
		return fmt.Errorf("import mail log: %w", err)
	}
	if asJSON {
		return json.NewEncoder(e.out).Encode(&r)
	}
	r.Text(e.out, e.zone)
	for _, line := range r.Samples {
		fmt.Fprintf(e.err, "scanwatch: not understood: %s\n", line)
	}
	return nil
}

// importSmtpd records the sessions in a recorded stream. The name "-" means standard
// input.
func importSmtpd(e *env, name string) error {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("import: %w", err)
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || info.IsDir() {
			return errors.Join(err, fmt.Errorf("import %s: is a directory", name))
		}
		in = f
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	if err := existing(dir.Path); err != nil {
		return err
	}
	set, progress := dir.Limits(), e.progress()
	var r stream.Result
	err = owner.Do(dir.Path, func() (err error) {
		if err := dir.Begin(version); err != nil {
			return err
		}
		r, err = stream.Import(in, stream.Options{
			Dir: dir.Path, Budget: set.Budget, Privacy: set.Privacy, Program: version, Now: e.now,
			Done: func(end time.Time) { progress.Add(1, end) },
		})
		return err
	})
	progress.Clear()
	switch {
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("import into %s: a filter is running; stop it first, or import into a new directory (-s)", dir.Path)
	case err != nil:
		return fmt.Errorf("import %s into %s: %w", name, dir.Path, err)
	}
	fmt.Fprintf(e.out, "lines     %d, %d skipped\n", r.Lines, r.Skipped)
	printSessions(e, r.Sessions, r.Known)
	printPeriod(e, r.Oldest, r.Newest, set.Keep)
	if r.Skipped > 0 {
		fmt.Fprintf(e.err, "scanwatch: skipped %d lines, the first is %v\n", r.Skipped, r.First)
	}
	return nil
}

// listFormats prints the formats for lists.
func listFormats(w *bufio.Writer) {
	for _, f := range feed.Formats() {
		fmt.Fprintln(w, text.Wrap(fmt.Sprintf("%-18s%s", f.Name, f.Help), 80, 18))
		if f.Option != "" {
			fmt.Fprintf(w, "%-18soption %s, default %s\n", "", f.Option, f.Default)
		}
	}
}

// checkList prints the usable entries in a list file.
func checkList(e *env, file, format string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := feed.Parse(f, format)
	if r != nil {
		fmt.Fprintf(e.out, "format    %s\n", r.Format)
		fmt.Fprintf(e.out, "entries   %d prefixes, %d AS numbers, %d names\n", len(r.Prefixes), len(r.ASNs), len(r.Names))
		if !r.Date.IsZero() {
			fmt.Fprintf(e.out, "date      %s\n", r.Date.UTC().Format(time.RFC3339))
		}
		if r.Notice != "" {
			fmt.Fprintf(e.out, "notice    %s\n", r.Notice)
		}
		if r.LeftOut > 0 {
			fmt.Fprintf(e.out, "omitted   %d entries that the option excludes\n", r.LeftOut)
		}
		printProblems(e, "rejected", r.Refused)
		printProblems(e, "warnings", r.Warnings)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be used: %w", file, err)
	}
	fmt.Fprintf(e.out, "%s can be used.\n", filepath.Base(file))
	return nil
}

func printProblems(e *env, heading string, p feed.Problems) {
	if p.Total == 0 {
		return
	}
	fmt.Fprintf(e.out, "%-9s %d\n", heading, p.Total)
	for _, problem := range p.First {
		fmt.Fprintf(e.out, "          %v\n", problem)
	}
	if n := p.Total - len(p.First); n > 0 {
		fmt.Fprintf(e.out, "          and %d more\n", n)
	}
}
