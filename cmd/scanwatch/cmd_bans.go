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

	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/reports"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/internal/why"
	"scanwatch/rules"
	"scanwatch/store/history"
)

func newBans(e *env) *cobra.Command {
	var s selector.Selector
	var all bool
	cmd := &cobra.Command{
		Use:   "bans [--all] [--rule NAME,...] [--limit N] [--json] [PREFIX]",
		Short: "List active bans.",
		Long: "List active bans, newest first: the time left, the number of consecutive\n" +
			"offences, the length of the next ban, connections since the ban, and the rule.\n" +
			"With PREFIX, list bans of networks that overlap it. Expired bans are kept for\n" +
			"90 days.",
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
	if err := dir.CheckState(); err != nil {
		return err
	}
	hosts, err := e.banHosts(list)
	if err != nil {
		return err
	}
	mode := dir.Mode()
	if s.JSON {
		return bansJSON(e, list, hosts, mode.Word)
	}
	printBans(e, list, hosts, mode, within)
	return nil
}

// A bannedHost is a line in the output of "bans --json".
type bannedHost struct {
	Schema int `json:"schema"`
	why.Ban
	Name string `json:"name,omitempty"`
	Org  string `json:"organisation,omitempty"`
	Mode string `json:"mode,omitempty"` // the filter's mode; in mode observe, no ban is enforced
	// Exempt reports whether a pass statement in the configuration exempts the host.
	Exempt bool `json:"exempt,omitempty"`
}

func bansJSON(e *env, list []memory.Ban, hosts map[netip.Prefix]*reports.BanHost, mode string) error {
	policy, out := e.inForce(), json.NewEncoder(e.out)
	for i := range list {
		h := hosts[list[i].Prefix]
		if err := out.Encode(bannedHost{text.Schema, why.NewBan(&list[i], e.now()), h.Name, h.Org, mode, exempt(policy, list[i].Prefix)}); err != nil {
			return err
		}
	}
	return nil
}

// printBans prints the mode, a table of bans, and the number of bans by rule.
func printBans(e *env, list []memory.Ban, hosts map[netip.Prefix]*reports.BanHost, mode statedir.Mode, within netip.Prefix) {
	style := output.StyleOf(e.stdout)
	para := func(s string, indent int) { fmt.Fprintln(e.out, text.Fold(s, style.Columns, indent)) }
	if s := mode.String(e.zone); mode.Observes() {
		para("Mode "+s+". No ban is enforced.", 0)
	} else if s != "" {
		para("Mode "+s+".", 0)
	}
	if len(list) == 0 {
		where := ""
		if within.IsValid() {
			where = " in " + prefix.String(within)
		}
		fmt.Fprintf(e.out, "no bans%s\n", where)
		return
	}
	policy := e.inForce()
	next := ladders(policy)
	rows := [][]string{{"HOST", "LEFT", "OFFENCE", "NEXT", "VISITS", "RULE", "NAME"}}
	byRule := map[string]int{}
	for i := range list {
		b := &list[i]
		rule, name := text.Escape(b.Rule), hosts[b.Prefix].String()
		if b.Manual {
			rule, name = "operator", strings.TrimPrefix(name+"; "+rule, "; ")
		}
		rule += text.Escape(b.On())
		byRule[rule]++
		switch {
		case exempt(policy, b.Prefix):
			rule += " (exempt)"
		case b.Observe:
			rule += " (observed)"
		}
		rows = append(rows, []string{prefix.String(b.Prefix), left(b, e.now()), offence(b), next(b),
			strconv.Itoa(b.Attempts), rule, cmp.Or(name, "-")})
	}
	style.Table(e.out, rows)
	if len(list) < 2 {
		return
	}
	rules := slices.SortedFunc(maps.Keys(byRule), func(a, b string) int { return cmp.Or(byRule[b]-byRule[a], cmp.Compare(a, b)) })
	for i, r := range rules {
		rules[i] = fmt.Sprintf("%s %d", r, byRule[r])
	}
	fmt.Fprintln(e.out)
	para(text.Plural(len(list), "ban")+": "+strings.Join(rules, ", "), 2)
}

// offence returns the ordinal number of the offence on this host. It returns "-" for another host's
// ban if the client committed no offence here.
func offence(b *memory.Ban) string {
	if b.Times == 0 {
		return "-"
	}
	return text.Ordinal(b.Times)
}

// left returns the time until a ban ends, or the reason why it has ended.
func left(b *memory.Ban, now time.Time) string {
	switch {
	case b.Revoked:
		return text.Escape(b.Revocation())
	case b.Expired(now):
		return "expired"
	}
	return text.ShortDuration(b.Until.Sub(now))
}

// banHosts returns the name and organisation of each banned host, taken from the host's
// sessions and the AS number database.
func (e *env) banHosts(list []memory.Ban) (map[netip.Prefix]*reports.BanHost, error) {
	org, err := organisations(e)
	if err != nil {
		return nil, err
	}
	hosts, visitor := reports.BanHosts(list, org)
	since := e.now()
	for i := range list {
		if list[i].Since.Before(since) {
			since = list[i].Since
		}
	}
	if len(list) == 0 {
		return hosts, nil
	}
	_, r, err := e.records()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = history.Walk(r, since.Add(-time.Hour), time.Time{}, visitor)
	return hosts, err
}

// inForce returns the policy in the configuration file, or nil if there is none.
func (e *env) inForce() *rules.Policy {
	lists, err := lookup.Builtin()
	if c, wrong := e.configuration("", lists); err == nil && wrong == nil {
		return c.Policy
	}
	return nil
}

// exempt reports whether a pass statement names a banned host or, in a /64, one of its hosts. It returns
// false for other networks, because most of their hosts may not be exempt.
func exempt(policy *rules.Policy, p netip.Prefix) bool {
	return policy != nil && memory.Source(p.Addr()) == p && policy.Friends(p) == rules.Yes
}

// ladders returns a function that returns the duration of a banned host's next ban.
func ladders(policy *rules.Policy) func(*memory.Ban) string {
	rungs := make(map[string][]time.Duration)
	if policy != nil {
		for _, r := range policy.Rules() {
			rungs[r.Name] = r.Ladder()
		}
	}
	return func(b *memory.Ban) string {
		if l := rungs[b.Rule]; len(l) > 0 && !b.Manual && b.Origin == "" {
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
	_, _ = dir.Bans(func(b *memory.Ban) bool { // on error, no bans are offered
		if p := prefix.String(b.Prefix); !b.Expired(e.now()) && strings.HasPrefix(p, begun) {
			offers = append(offers, p+"\t"+text.Escape(b.Rule+b.On()))
		}
		return false
	})
	return offers, cobra.ShellCompDirectiveNoFileComp
}

// clientPrefix parses an address or prefix, extending an IPv6 address to its /64.
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
