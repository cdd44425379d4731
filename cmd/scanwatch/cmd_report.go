package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/reports"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/lookup"
	"scanwatch/store/report"
)

// pageMode is the mode of new HTML pages. Other users must not be able to read the pages,
// because they show users' mail addresses.
const pageMode = 0o640

// pageLines is the default maximum length of a list on the page. Initially, the page
// shows only the first few rows of a list.
const pageLines = 50

type reportFlags struct {
	selector.Selector
	mail, quiet bool
	only        []string
	html        string
}

func newReport(e *env) *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "report [--since WHEN] [--json|--mail] [--html FILE] [SELECTOR ...]",
		Short: "Report recent activity, problems first.",
		Long: "Report sessions, messages, rejections that may be false positives, and lists of\n" +
			"rules, findings, sources and attempts. The default period is the last 24 hours.",
		Example: "  scanwatch report --since yesterday\n  scanwatch report --mail --quiet",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runReport(e, cmd.Flags(), &f) },
	}
	fs := cmd.Flags()
	f.Register(fs, selector.Sessions|selector.Limit|selector.JSON, e.clock())
	fs.BoolVar(&f.mail, "mail", false, "print a mail of 72 columns, for cron(8)")
	fs.BoolVar(&f.quiet, "quiet", false, "print nothing if there are no problems and no findings")
	fs.StringVar(&f.html, "html", "", "write a page with charts to `FILE`; - is standard output")
	fs.StringSliceVar(&f.only, "only", nil, "print only these `SECTION,...`: "+strings.Join(report.TextSections(), ", "))
	cmd.MarkFlagsMutuallyExclusive("json", "mail", "only")
	_ = cmd.RegisterFlagCompletionFunc("only", selector.CompleteList(report.TextSections))
	cmd.AddCommand(newReportReturns(e), newReportScanners(e), newReportUsers(e))
	return cmd
}

// source returns the input of a report. By default, the period is the 24 hours before
// --until.
func (e *env) source(fs *pflag.FlagSet, s *selector.Selector) (*reports.Source, error) {
	if !fs.Changed("since") {
		s.Since = s.Until
		if s.Since.IsZero() {
			s.Since = e.now()
		}
		s.Since = s.Since.Add(-24 * time.Hour)
	}
	if err := checkSelector(e, s); err != nil {
		return nil, err
	}
	if s.Since.After(e.now()) {
		return nil, usage("--since is in the future")
	}
	dir, err := e.stateDir()
	if err != nil {
		return nil, err
	}
	src := &reports.Source{Dir: dir, Selector: s, Zone: e.zone, Stale: stale(e)}
	src.Host, _ = os.Hostname() // on error, only the name in the title is missing
	return src, nil
}

func runReport(e *env, fs *pflag.FlagSet, f *reportFlags) error {
	if f.html == output.Stdout && (f.JSON || f.mail) {
		return usage("--html -: the page and the report cannot both go to standard output; name a file")
	}
	for _, name := range f.only {
		if !slices.Contains(report.TextSections(), name) {
			return usage("--only %q: must be one of %s", name, strings.Join(report.TextSections(), ", "))
		}
	}
	s, err := e.source(fs, &f.Selector)
	if err != nil {
		return err
	}
	r, err := s.Read(f.quiet)
	if err != nil {
		return err
	}
	if f.html != "" {
		if err := writePage(e, f, r); err != nil {
			return err
		}
	}
	summary := r.Summary(lines(f.Limit))
	summary.Command = self(e)
	switch {
	case f.quiet && summary.Empty():
	case f.JSON:
		err = summary.JSON(e.out)
	case f.mail:
		err = summary.Mail(e.out, e.zone)
	case f.html == "":
		style := output.StyleOf(e.stdout)
		e.safe.Styled = style.Colour
		err = summary.Text(e.out, report.TextOptions{Zone: e.zone, Style: style, Only: f.only})
	}
	return errors.Join(err, r.Incomplete)
}

// writePage writes a report as an HTML page. The sections on returning hosts and bans
// cover all records before the end of the period.
func writePage(e *env, f *reportFlags, r *reports.Report) error {
	p, err := r.Page(cmp.Or(f.Limit, pageLines))
	if err != nil {
		return err
	}
	return output.To(e.out, f.html, pageMode, func(w io.Writer) error { return p.HTML(w, e.zone) })
}

func newReportReturns(e *env) *cobra.Command {
	var s selector.Selector
	cmd := &cobra.Command{
		Use:   "returns [--since WHEN] [--json] [SELECTOR ...]",
		Short: "Report hosts that reconnected after a ban or a finding.",
		Long: "For each kind of evidence, report how many hosts reconnected within an hour, a\n" +
			"day, a week and 30 days, and suggest a duration for bans. The default period is\n" +
			"the whole history.",
		Example: "  scanwatch report returns\n  scanwatch report returns --since 90d --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			since := s.Since
			src, err := e.source(cmd.Flags(), &s)
			if err != nil {
				return err
			}
			s.Since = since // the zero value selects all sessions
			summary, incomplete, err := src.Returns()
			if err != nil {
				return err
			}
			return errors.Join(e.print(summary, s.JSON), incomplete)
		},
	}
	s.Register(cmd.Flags(), selector.Sessions|selector.JSON, e.clock())
	return cmd
}

func newReportScanners(e *env) *cobra.Command {
	var s selector.Selector
	var optOut bool
	cmd := &cobra.Command{
		Use:   "scanners [--optout] [--since WHEN] [--json] [SELECTOR ...]",
		Short: "Report known scanning organisations.",
		Long: "Report the known scanning organisations of the period, and with --optout how to\n" +
			"ask them to stop. The default period is the last 24 hours.",
		Example: "  scanwatch report scanners --since 30d\n  scanwatch report scanners --optout",
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := e.source(cmd.Flags(), &s)
			if err != nil {
				return err
			}
			var contacts map[string]report.OptOut
			if optOut {
				if contacts, err = optOuts(); err != nil {
					return err
				}
			}
			summary, incomplete, err := src.Scanners(contacts)
			if err != nil {
				return err
			}
			return errors.Join(e.print(summary, s.JSON), incomplete)
		},
	}
	s.Register(cmd.Flags(), selector.Sessions|selector.JSON, e.clock())
	cmd.Flags().BoolVar(&optOut, "optout", false, "print how to ask each organisation to stop")
	return cmd
}

// lines returns the maximum length of a list, as set by --limit.
func lines(limit int) int {
	if limit > 0 {
		return limit
	}
	return 10
}

func newReportUsers(e *env) *cobra.Command {
	var s selector.Selector
	cmd := &cobra.Command{
		Use:   "users [--since WHEN] [--limit N] [--json] [SELECTOR ...]",
		Short: "Report accounts under attack, and users who logged in.",
		Long: "Report the users with failed logins, the number of networks that these came\n" +
			"from, and the users' own logins. Then report the users who logged in, with their\n" +
			"networks, messages and recipients. The default period is the last 24 hours.",
		Example: "  scanwatch report users --since 7d\n  scanwatch report users --user erin --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := e.source(cmd.Flags(), &s)
			if err != nil {
				return err
			}
			summary, incomplete, err := src.Users(lines(s.Limit))
			if err != nil {
				return err
			}
			return errors.Join(e.print(summary, s.JSON), incomplete)
		},
	}
	s.Register(cmd.Flags(), selector.Sessions|selector.Limit|selector.JSON, e.clock())
	return cmd
}

// optOuts returns the contacts for opting out of scans, by organisation.
func optOuts() (map[string]report.OptOut, error) {
	all, err := lookup.OptOuts()
	if err != nil {
		return nil, fmt.Errorf("read contacts: %w", err)
	}
	contacts := make(map[string]report.OptOut)
	for org, o := range all {
		contacts[org] = report.OptOut(o)
	}
	return contacts, nil
}

// print writes a report as text or JSON.
func (e *env) print(r interface {
	JSON(io.Writer) error
	Text(io.Writer, *time.Location) error
}, asJSON bool) error {
	if asJSON {
		return r.JSON(e.out)
	}
	return r.Text(e.out, e.zone)
}
