package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/reports"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/internal/why"
	"scanwatch/store/history"
)

func newBans(e *env) *cobra.Command {
	var s selector.Selector
	var all bool
	cmd := &cobra.Command{
		Use:   "bans [--all] [--rule NAME,...] [--limit N] [--json] [PREFIX]",
		Short: "List active bans.",
		Long: "List active bans, newest first: the time left, the number of offences in a row,\n" +
			"the length of the next ban, connections since the ban, and the rule. With\n" +
			"PREFIX, list bans of networks that overlap it. Expired bans are kept for 90\n" +
			"days.",
		Example:           "  scanwatch bans\n  scanwatch bans --all --json 192.0.2.0/24",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: e.completeBanned,
		RunE:              func(_ *cobra.Command, args []string) error { return runBans(e, &s, all, args) },
	}
	s.Register(cmd.Flags(), selector.Rule|selector.Limit|selector.JSON, e.clock())
	cmd.Flags().BoolVar(&all, "all", false, "also list expired and revoked bans")
	return cmd
}

func runBans(e *env, s *selector.Selector, all bool, args []string) error {
	var within netip.Prefix
	if len(args) == 1 {
		var err error
		if within, err = clientPrefix(args[0]); err != nil {
			return err
		}
	}
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	list, err := dir.Bans(func(b *memory.Ban) bool {
		return (all || !b.Expired(e.now())) && (!within.IsValid() || within.Overlaps(b.Prefix)) && s.HasRule([]byte(b.Rule))
	})
	if err != nil {
		return err
	}
	reports.SortBans(list)
	if s.Limit > 0 {
		list = list[:min(len(list), s.Limit)]
	}
	if s.JSON {
		out := json.NewEncoder(e.out)
		for i := range list {
			if err := out.Encode(why.NewBan(&list[i], e.now())); err != nil {
				return err
			}
		}
		return nil
	}
	names, err := e.names(list)
	if err != nil {
		return err
	}
	printBans(e, list, names, within)
	return nil
}

// maxName is the width of the column with names.
const maxName = 32

// printBans prints a table and the number of bans of each rule.
func printBans(e *env, list []memory.Ban, names map[netip.Prefix]string, within netip.Prefix) {
	if len(list) == 0 {
		where := ""
		if within.IsValid() {
			where = " in " + within.String()
		}
		fmt.Fprintf(e.out, "no bans%s\n", where)
		return
	}
	next := e.ladders()
	rows := [][]string{{"HOST", "LEFT", "OFFENCE", "NEXT", "VISITS", "NAME", "RULE"}}
	byRule := map[string]int{}
	for i := range list {
		b := &list[i]
		rule := text.Escape(b.Rule)
		byRule[rule]++
		if b.Manual {
			rule = "operator: " + rule
		}
		rows = append(rows, []string{prefix.String(b.Prefix), left(b, e.now()), text.Ordinal(b.Times), next(b),
			strconv.Itoa(b.Attempts), cmp.Or(text.Cut(names[b.Prefix], maxName), "-"), rule})
	}
	text.Table(e.out, rows)
	if len(list) < 2 {
		return
	}
	rules := slices.SortedFunc(maps.Keys(byRule), func(a, b string) int { return cmp.Or(byRule[b]-byRule[a], cmp.Compare(a, b)) })
	for i, r := range rules {
		rules[i] = fmt.Sprintf("%s %d", r, byRule[r])
	}
	fmt.Fprintln(e.out, "\n"+text.Wrap(text.Plural(len(list), "ban")+": "+strings.Join(rules, ", "), 79, 2))
}

// left returns the time until the end of a ban, or the reason for its end.
func left(b *memory.Ban, now time.Time) string {
	switch {
	case b.Revoked:
		return "revoked"
	case b.Expired(now):
		return "expired"
	case b.Observe:
		return text.ShortDuration(b.Until.Sub(now)) + " (observed)"
	}
	return text.ShortDuration(b.Until.Sub(now))
}

// names returns the latest reverse DNS name and organisation of each banned host, from
// its sessions.
func (e *env) names(list []memory.Ban) (map[netip.Prefix]string, error) {
	names, visitor := reports.BanNames(list)
	since := e.now()
	for i := range list {
		if list[i].Since.Before(since) {
			since = list[i].Since
		}
	}
	if len(list) == 0 {
		return names, nil
	}
	_, r, err := e.records()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = history.Walk(r, since.Add(-time.Hour), time.Time{}, visitor)
	return names, err
}

// ladders returns a function that returns the length of the next ban of a banned host,
// according to the configuration.
func (e *env) ladders() func(*memory.Ban) string {
	rungs := make(map[string][]time.Duration)
	lists, err := lookup.Builtin()
	if c, wrong := e.configuration("", lists); err == nil && wrong == nil {
		for _, r := range c.Policy.Rules() {
			rungs[r.Name] = r.Ladder()
		}
	}
	return func(b *memory.Ban) string {
		if l := rungs[b.Rule]; len(l) > 0 && !b.Manual {
			return text.Duration(l[min(b.Times, len(l)-1)])
		}
		return "-"
	}
}

// completeBanned completes the prefixes of active bans.
func (e *env) completeBanned(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	dir, err := e.stateDir()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var offers []string
	_, _ = dir.Bans(func(b *memory.Ban) bool { // without a state directory there are no bans
		if p := prefix.String(b.Prefix); !b.Expired(e.now()) && strings.HasPrefix(p, begun) {
			offers = append(offers, p+"\t"+text.Escape(b.Rule))
		}
		return false
	})
	return offers, cobra.ShellCompDirectiveNoFileComp
}

// clientPrefix parses an address, or the network of an address with a length. It
// extends an IPv6 address to its /64.
func clientPrefix(s string) (netip.Prefix, error) {
	p, _, err := prefix.Parse(s)
	switch {
	case err != nil:
		return p, usageError{err}
	case p.IsSingleIP():
		return memory.Source(p.Addr()), nil
	case p.Addr().Is6() && p.Bits() > 64:
		p, _ = p.Addr().Prefix(64)
	}
	return p, nil
}
