package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/serverlog"
	"scanwatch/filter/stream"
	"scanwatch/store"
)

// newImportKind returns the command that imports one kind of log.
func newImportKind(e *env, kind *serverlog.Kind) *cobra.Command {
	return &cobra.Command{
		Use:   kind.Name + " FILE ...|-",
		Short: "Record the sessions in " + kind.Short + ".",
		Long: "Record the sessions in logs of another mail server. Files may be in any order\n" +
			"and compressed with gzip, bzip2 or zstd; - is standard input. Give all files of\n" +
			"a period in one command, because a session may continue in the next file. Within\n" +
			"a command, files must not contain the same lines. The filter must be stopped. A\n" +
			"second import of the same files adds nothing.",
		Example: "  scanwatch import " + kind.Name + " /var/log/mail.log*\n" +
			"  scanwatch import " + kind.Name + " - < mail.log",
		Args:              argsBetween(1, 10_000),
		ValidArgsFunction: completeFiles,
		RunE:              func(_ *cobra.Command, args []string) error { return importKind(e, kind, args) },
	}
}

// importKind records the sessions in logs and prints a summary.
func importKind(e *env, kind *serverlog.Kind, names []string) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	if err := existing(dir.Path); err != nil {
		return err
	}
	logs, err := stream.OpenLogs(names, kind, os.Stdin, e.now(), e.zone)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	set, progress := dir.Limits(), e.progress()
	var r stream.LogResult
	err = owner.Do(dir.Path, func() (err error) {
		if err := dir.Begin(version); err != nil {
			return err
		}
		r, err = stream.ImportLog(logs, stream.LogOptions{
			Options: stream.Options{Dir: dir.Path, Budget: set.Budget, Privacy: set.Privacy, Program: version, Now: e.now},
			Kind:    kind, Zone: e.zone, Progress: progress.Bytes,
		})
		return err
	})
	progress.Clear()
	switch {
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("import into %s: a filter is running; stop it first, or import into a new directory (-s)", dir.Path)
	case err != nil:
		return fmt.Errorf("import into %s: %w", dir.Path, err)
	}
	fmt.Fprintf(e.out, "lines     %d, of which %d from %s and %d not understood\n", r.Lines, r.Used+r.Unknown, kind.Name, r.Unknown)
	printSessions(e, r.Sessions, r.Known)
	printPeriod(e, r.Oldest, r.Newest, set.Keep)
	for _, line := range r.Samples {
		fmt.Fprintf(e.err, "scanwatch: not understood: %s\n", line)
	}
	if r.Undated {
		fmt.Fprintln(e.err, "scanwatch: neither the lines nor the file name contain a date; the sessions are dated by the file's modification time")
	}
	if r.TooLong > 0 {
		fmt.Fprintf(e.err, "scanwatch: skipped %d lines of more than 64 KiB\n", r.TooLong)
	}
	for _, name := range r.Cut {
		fmt.Fprintf(e.err, "scanwatch: %s: the end of the compressed file is missing; import it again when it is complete\n", name)
	}
	return nil
}

// printPeriod prints the period of the imported sessions, and the report that contains it. It warns if
// the filter would remove sessions, because it keeps them only for the given time.
func printPeriod(e *env, oldest, newest time.Time, keep time.Duration) {
	oldest = oldest.In(e.zone)
	fmt.Fprintf(e.out, "from      %s\nto        %s\n", oldest.Format(time.DateTime), newest.In(e.zone).Format(time.DateTime))
	fmt.Fprintf(e.out, "report    %s report --since %s\n", self(e), oldest.Format(time.DateOnly))
	if kept := e.now().Add(-keep); oldest.Before(kept) {
		fmt.Fprintf(e.err, "scanwatch: the filter removes sessions older than %s at its next start; to keep them, raise `store ... keep` first\n",
			kept.In(e.zone).Format(time.DateOnly))
	}
}

// printSessions prints the number of imported sessions. known is the number of sessions that were
// already recorded.
func printSessions(e *env, all, known int) {
	again := ""
	if known > 0 {
		again = fmt.Sprintf(", %d already recorded", known)
	}
	fmt.Fprintf(e.out, "sessions  %d%s\n", all, again)
}
