package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/filter/lookup"
	"scanwatch/store/export"
)

type listFlags struct{ format, kind, confidence string }

func newLists(e *env) *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use:   "lists [--format NAME] [--kind KIND] [--min-confidence LEVEL] [LIST]",
		Short: "Print the included lists.",
		Long: "Print the number of rows, the dates and the sources of each included list. With\n" +
			"LIST, print its rows, for other programs: scanners, clouds, botnet-helo or\n" +
			"known-senders.",
		Example:           "  scanwatch lists\n  scanwatch lists scanners --format postfix-cidr > scanners.cidr",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: completeLists,
		RunE:              func(_ *cobra.Command, args []string) error { return runLists(e, &f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "", "print the rows as `NAME`: "+strings.Join(rowFormatNames(), ", ")+"; default tsv")
	flags.StringVar(&f.kind, "kind", "", "print only rows of this `KIND`: "+strings.Join(rowKinds, ", "))
	flags.StringVar(&f.confidence, "min-confidence", "low", "print rows with at least this `LEVEL`: low, medium or high")
	offer := func(words ...string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return words, cobra.ShellCompDirectiveNoFileComp
		}
	}
	_ = cmd.RegisterFlagCompletionFunc("format", offer(rowFormatNames()...)) // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("kind", offer(rowKinds...))
	_ = cmd.RegisterFlagCompletionFunc("min-confidence", offer("low", "medium", "high"))
	return cmd
}

// listNames lists the included lists in output order.
var listNames = []string{lookup.Scanners, lookup.Clouds, lookup.BotnetHelo, lookup.KnownSenders}

var rowKinds = []string{"cidr", "asn", "rdns", "helo", "useragent-or-command"}

func completeLists(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return listNames, cobra.ShellCompDirectiveNoFileComp
}

// A listRow is a row of an included list in the output of "--format json". Its
// confidence may depend on its age.
type listRow struct {
	List       string `json:"list"`
	Line       int    `json:"line"`
	Org        string `json:"organisation"`
	Category   string `json:"category"`
	Class      string `json:"class"`
	Kind       string `json:"kind"`
	Value      string `json:"value"`
	Evidence   string `json:"evidence,omitempty"`
	Confidence string `json:"confidence"`
	Date       string `json:"date"`
	Source     string `json:"source"`
	Note       string `json:"note,omitempty"`
}

// A rowFormat writes rows. head is the first line of output, or empty.
type rowFormat struct {
	name, head string
	write      func(*bufio.Writer, *listRow) error
}

var rowFormats = []rowFormat{
	{"tsv", "org\tcategory\tclass\tkind\tvalue\tevidence\tconfidence\tdate\tsource\tnote", func(out *bufio.Writer, r *listRow) error {
		_, err := fmt.Fprintln(out, strings.Join([]string{r.Org, r.Category, r.Class, r.Kind, r.Value, r.Evidence, r.Confidence, r.Date, r.Source, r.Note}, "\t"))
		return err
	}},
	{"json", "", func(out *bufio.Writer, r *listRow) error { return json.NewEncoder(out).Encode(r) }},
	{"plain", "", func(out *bufio.Writer, r *listRow) error {
		_, err := fmt.Fprintln(out, r.Value)
		return err
	}},
	{"postfix-cidr", "", func(out *bufio.Writer, r *listRow) error {
		if r.Kind != "cidr" {
			return nil
		}
		_, err := fmt.Fprintf(out, "%s\tREJECT %s\n", r.Value, r.Org)
		return err
	}},
}

func rowFormatNames() (names []string) {
	for i := range rowFormats {
		names = append(names, rowFormats[i].name)
	}
	return names
}

func runLists(e *env, f *listFlags, args []string) error {
	least := export.Confidence(f.confidence)
	if least == 0 {
		return usage("--min-confidence %q: must be low, medium or high", f.confidence)
	}
	if f.kind != "" && !slices.Contains(rowKinds, f.kind) {
		return usage("--kind %q: must be %s", f.kind, strings.Join(rowKinds, ", "))
	}
	format := slices.IndexFunc(rowFormats, func(r rowFormat) bool { return r.name == cmp.Or(f.format, "tsv") })
	if format < 0 {
		return usage("--format %q: must be %s", f.format, strings.Join(rowFormatNames(), ", "))
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		if f.format != "" || f.kind != "" {
			return usage("--format and --kind need a list: %s", strings.Join(listNames, ", "))
		}
		return printLists(e, lists)
	}
	if !slices.Contains(listNames, args[0]) {
		return usage("list %q: must be %s", args[0], strings.Join(listNames, ", "))
	}
	out := bufio.NewWriter(e.out)
	if head := rowFormats[format].head; head != "" {
		fmt.Fprintln(out, head)
	}
	for _, row := range lists.Rows() {
		confidence := row.ConfidenceAt(e.now())
		if row.List != args[0] || f.kind != "" && row.Kind != f.kind || export.Confidence(confidence) < least {
			continue
		}
		r := listRow{row.List, row.Line, row.Org, row.Category, row.Class, row.Kind, row.Value, row.Evidence, confidence, row.Date, row.Source, row.Note}
		if err := rowFormats[format].write(out, &r); err != nil {
			return err
		}
	}
	return out.Flush()
}

// printLists prints a line for each list, with the number of rows, their dates and the
// most frequent sources.
func printLists(e *env, lists *lookup.Lists) error {
	fmt.Fprintf(e.out, "%-14s %5s  %-10s  %-10s  %s\n", "LIST", "ROWS", "OLDEST", "NEWEST", "MOST ROWS FROM")
	for _, name := range listNames {
		rows, oldest, newest := 0, "", ""
		sources := make(map[string]int)
		for _, row := range lists.Rows() {
			if row.List != name {
				continue
			}
			rows++
			newest = max(newest, row.Date)
			if oldest == "" || row.Date < oldest {
				oldest = row.Date
			}
			first, _, _ := strings.Cut(row.Source, " + ")
			first, _, _ = strings.Cut(first, ":")
			sources[first]++
		}
		most := slices.SortedFunc(maps.Keys(sources), func(a, b string) int { return cmp.Or(sources[b]-sources[a], cmp.Compare(a, b)) })
		if _, err := fmt.Fprintf(e.out, "%-14s %5d  %-10s  %-10s  %s\n", name, rows, oldest, newest, most[0]); err != nil {
			return err
		}
	}
	return nil
}
