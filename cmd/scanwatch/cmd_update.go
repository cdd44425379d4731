package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/fetch"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

// exitKept is the exit status if an update kept an old file because the new file was doubtful.
const exitKept = 4

type updateFlags struct{ list, now, any, dry, quiet, json bool }

func newUpdate(e *env) *cobra.Command {
	var f updateFlags
	cmd := &cobra.Command{
		Use:   "update [--now] [--any-size] [--dry-run] [-q] [--json] [NAME ...]",
		Short: "Download the configured lists and databases.",
		Long: "Download the files in scanwatch.conf(5) that have url or feed, if their\n" +
			"intervals have elapsed. NAME is a table, asn or country. A file is replaced only\n" +
			"if the new one is complete and plausible; the filter loads it within ten\n" +
			"seconds. Run this from cron(8), as a user without other tasks.",
		Example: "  scanwatch update --dry-run\n  scanwatch update --list",
		Args:    argsBetween(0, 1000),
		RunE: func(_ *cobra.Command, args []string) error {
			if f.list {
				return listFeeds(e, f.json)
			}
			return runUpdate(e, &f, args)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
			feeds, _, _ := feedsOf(e) // without a valid configuration, no names are offered
			for _, f := range feeds {
				names = append(names, f.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.list, "list", false, "print the catalogue of feeds and their terms")
	fs.BoolVar(&f.now, "now", false, "do not wait for the configured interval or after an error")
	fs.BoolVar(&f.any, "any-size", false, "accept a list of any size, and an older database")
	fs.BoolVar(&f.dry, "dry-run", false, "download and check, but do not replace the file")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print errors only")
	fs.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

// feedsOf returns the configured files to download, and this site's networks, which downloaded
// lists must not contain.
func feedsOf(e *env) ([]*fetch.Feed, fetch.Options, error) {
	tree, name, err := e.tree()
	switch {
	case err != nil:
		return nil, fetch.Options{}, err
	case tree == nil:
		return nil, fetch.Options{}, errors.New("no configuration file; see scanwatch.conf(5)")
	}
	feeds, err := fetch.Feeds(tree)
	if err == nil && len(feeds) == 0 {
		err = fmt.Errorf("%s has no table, asn or country with url or feed; see FEEDS in scanwatch(8)", name)
	}
	set := tree.Settings()
	return feeds, fetch.Options{Now: e.now, Own: fetch.Own(set, prefix.Local()), Names: fetch.OwnNames(set.OwnNames...), Agent: "scanwatch/" + version}, err
}

func runUpdate(e *env, f *updateFlags, names []string) error {
	feeds, o, err := feedsOf(e)
	if err != nil {
		return err
	}
	if feeds, err = chosenFeeds(feeds, names); err != nil {
		return err
	}
	o.Early, o.Any, o.DryRun = f.now, f.any, f.dry
	if os.Geteuid() != 0 { // if root runs the command, it changes its rights for each file
		var dirs []string
		for _, f := range feeds {
			dirs = append(dirs, filepath.Dir(f.File), filepath.Dir(linkTarget(f.File)))
		}
		for _, err := range sandbox.Client(dirs, nil).Problems {
			e.warn("sandbox incomplete: " + err.Error())
		}
	}
	ctx, stop := untilTerminated()
	defer stop()
	results := []fetch.Result{} // so that JSON contains [] instead of null
	kept, failed, waiting := 0, 0, 0
	for _, feed := range feeds {
		if ctx.Err() != nil {
			break
		}
		var r fetch.Result
		// The files belong to the user that runs the timer. If root runs the command, it must act
		// as that user.
		if err := owner.DoFile(feed.File, func() error { r = feed.Run(ctx, o); return nil }); err != nil {
			r = fetch.Result{Name: feed.Name, File: feed.File, URL: feed.URL, Outcome: fetch.Failed, Why: err.Error()}
		}
		results = append(results, r)
		switch r.Outcome {
		case fetch.Kept:
			kept++
			e.warn(label(&r) + ": new file not used: " + r.Why + anySize(e, &r))
		case fetch.Failed:
			failed++
			e.warn(label(&r) + ": not downloaded: " + r.Why)
		case fetch.Waiting:
			if r.Why != "" && f.quiet {
				break // an earlier run has printed the error
			}
			if r.Why != "" {
				waiting++
				e.warn(label(&r) + ": " + outcome(&r, e.zone))
				break
			}
			fallthrough
		default:
			if !f.json && !f.quiet {
				fmt.Fprintf(e.out, "%s: %s\n", label(&r), outcome(&r, e.zone))
			}
		}
	}
	if f.json {
		if err := text.JSON(e.out, results, "  "); err != nil {
			return err
		}
	}
	switch {
	case kept > 0:
		return statusError{exitKept, fmt.Errorf("%s kept, because the new file is implausible", text.Plural(kept, "file"))}
	case failed > 0:
		return fmt.Errorf("%s not downloaded", text.Plural(failed, "file"))
	case waiting > 0:
		return fmt.Errorf("no new version of %s since an error", text.Plural(waiting, "file"))
	}
	return ctx.Err()
}

// stale describes the configured feeds whose last success is too old.
func stale(e *env) (problems []string) {
	feeds, _, _ := feedsOf(e) // without a valid configuration, no feeds are checked
	for _, f := range feeds {
		if problem := f.Stale(e.now()); problem != "" {
			problems = append(problems, problem)
		}
	}
	return problems
}

// linkTarget returns the target of a link, or file if it is not a link.
func linkTarget(file string) string {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		return target
	}
	return file
}

// label returns the name of a file for use in messages.
func label(r *fetch.Result) string { return r.Name + " " + filepath.Base(r.File) }

// anySize returns the command that accepts a file of a doubtful size, or "".
func anySize(e *env, r *fetch.Result) string {
	if r.AnySize.IsZero() {
		return ""
	}
	from := r.AnySize.Add(time.Minute - 1).Truncate(time.Minute) // rounded up, because the printed time has no seconds
	return fmt.Sprintf("; if it is correct, from %s: %s update --any-size --now %s", from.In(e.zone).Format("2006-01-02 15:04"), self(e), r.Name)
}

// outcome describes a result without an error.
func outcome(r *fetch.Result, zone *time.Location) string {
	switch r.Outcome {
	case fetch.Waiting:
		s := "next request " + r.Next.In(zone).Format("2006-01-02 15:04")
		if r.Why != "" {
			s += ", because: " + r.Why
		}
		return s
	case fetch.Unchanged:
		return "unchanged"
	}
	var parts []string
	if r.Entries > 0 {
		parts = append(parts, text.Plural(r.Entries, "entry", "entries"), fmt.Sprintf("%d added, %d removed", r.Added, r.Removed))
	} else {
		parts = append(parts, text.Size(int64(r.Bytes)))
	}
	if r.Rejected > 0 {
		parts = append(parts, fmt.Sprintf("%d rejected", r.Rejected))
	}
	if !r.Date.IsZero() {
		parts = append(parts, "of "+r.Date.UTC().Format(time.DateOnly))
	}
	return string(r.Outcome) + ", " + strings.Join(parts, ", ")
}

// chosenFeeds returns the feeds with the given names, or all feeds if no names are given.
func chosenFeeds(feeds []*fetch.Feed, names []string) ([]*fetch.Feed, error) {
	if len(names) == 0 {
		return feeds, nil
	}
	var all []string
	for _, f := range feeds {
		all = append(all, f.Name)
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, usage("update %q: the configuration has no such download; it has: %s", name, strings.Join(slices.Compact(all), ", "))
		}
	}
	return slices.DeleteFunc(feeds, func(f *fetch.Feed) bool { return !slices.Contains(names, f.Name) }), nil
}

// listFeeds prints the catalogue.
func listFeeds(e *env, asJSON bool) error {
	type row struct {
		Name   string `json:"name"`
		URL    string `json:"url"`
		Format string `json:"format"`
		Least  string `json:"least"`
		Key    bool   `json:"key"`
		Terms  string `json:"terms"`
		Credit string `json:"credit"`
	}
	var rows []row
	for _, p := range feed.Catalogue() {
		rows = append(rows, row{p.Name, p.URL, p.Format, text.Duration(p.Least), p.Header != "", p.Terms, p.Credit})
	}
	if asJSON {
		return text.JSON(e.out, rows, "  ")
	}
	for _, r := range rows {
		key := ""
		if r.Key {
			key = ", needs a key"
		}
		fmt.Fprintf(e.out, "%-18s%s\n%-18sformat %s, at most every %s%s\n", r.Name, r.URL, "", r.Format, r.Least, key)
		fmt.Fprintln(e.out, text.Wrap(fmt.Sprintf("%-18sterms: %s", "", r.Terms), 80, 18))
		fmt.Fprintln(e.out, text.Wrap(fmt.Sprintf("%-18scredit: %s", "", r.Credit), 80, 18))
	}
	return nil
}
