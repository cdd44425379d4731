package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

func newFsck(e *env) *cobra.Command {
	var repair, asJSON bool
	cmd := &cobra.Command{
		Use:   "fsck [--repair] [--json]",
		Short: "Check data files for corruption and repair them.",
		Long: "Check every file, record and row. Files that the filter is writing are checked\n" +
			"in a copy. --repair quarantines corrupt files, salvages their records, removes\n" +
			"invalid rows of state.db after a copy, and removes temporary files. It requires\n" +
			"a stopped filter.",
		Example: "  scanwatch fsck\n  scanwatch fsck --repair",
		RunE:    func(*cobra.Command, []string) error { return runFsck(e, repair, asJSON) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "repair corrupt files")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object for each file")
	return cmd
}

func runFsck(e *env, repair, asJSON bool) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	i, err := dir.Inspector()
	if err != nil {
		return err
	}
	i.Decode, i.Row, i.Budget = true, memory.Checker(), dir.Limits().Budget
	all, bad, records, size := 0, 0, 0, int64(0)
	visit := func(f *store.File) error {
		if f.Health.Bad() {
			bad++
		}
		all++
		records += f.Records
		size += f.Size
		if asJSON {
			if err := json.NewEncoder(e.out).Encode(f); err != nil {
				return err
			}
			return e.out.Flush()
		}
		if all == 1 {
			fmt.Fprintf(e.out, "%-30s %10s %6s  %s\n", "FILE", "RECORDS", "SIZE", "STATE")
		}
		fmt.Fprintf(e.out, "%-30s %10d %6s  %s\n", text.Escape(f.Name), f.Records, text.ShortSize(f.Size), fileState(f))
		return e.out.Flush() // print each result immediately, because checking a file may take long
	}
	if repair {
		err = i.Repair(version, e.now(), visit)
		if errors.Is(err, store.ErrInUse) {
			return fmt.Errorf("nothing was repaired: %w; stop the filter first, or repair a copy of the directory with -s", err)
		}
	} else {
		err = i.Each(visit)
	}
	if err != nil {
		return err
	}
	missing := dir.CheckState()
	if missing != nil {
		if err := visit(&store.File{Name: store.StateFile, Health: store.HealthMissing}); err != nil {
			return err
		}
		all, bad = all-1, bad-1
		if repair { // a missing file cannot be repaired
			e.warn(missing.Error())
			missing = nil
		}
	} else if loss := dir.Loss(); loss != "" {
		e.warn(loss)
	}
	if !asJSON {
		fmt.Fprintf(e.out, "%s, %s, %s, %d with errors\n", text.Plural(all, "file"), text.Plural(records, "record"), text.ShortSize(size), bad)
	}
	switch {
	case bad > 0 && repair:
		err = fmt.Errorf("%d of %d files have errors", bad, all)
	case bad > 0:
		err = fmt.Errorf("%d of %d files have errors; --repair repairs corrupt files", bad, all)
	}
	if err != nil && missing != nil {
		return fmt.Errorf("%w; %w", err, missing)
	}
	return cmp.Or(err, missing)
}

// fileState describes a file's condition.
func fileState(f *store.File) string {
	state := string(f.Health)
	if f.Live {
		state += " (a copy; in use by the filter)"
	}
	if f.Problem != "" {
		state += ": " + f.Problem
	}
	if f.Bad > 1 {
		state += fmt.Sprintf("; %d records affected", f.Bad)
	}
	if f.Loss {
		state += "; records of this day may have been lost to a corrupt file"
	}
	if f.Done != "" {
		state += "; " + f.Done
	}
	return text.Escape(state)
}
