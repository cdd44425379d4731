package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

func newBans(e *env) *cobra.Command {
	var s selector.Selector
	var all bool
	cmd := &cobra.Command{
		Use:   "bans [--all] [--rule NAME,...] [--limit N] [--json] [PREFIX]",
		Short: "List active bans.",
		Long: "List active bans, those that end last first. With PREFIX, list bans of networks\n" +
			"that overlap it. Expired bans are kept for 90 days.",
		Example:           "  scanwatch bans\n  scanwatch bans --all --json 192.0.2.0/24",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: e.completeBanned,
		RunE:              func(_ *cobra.Command, args []string) error { return runBans(e, &s, all, args) },
	}
	s.Register(cmd.Flags(), selector.Rule|selector.Limit|selector.JSON, e.clock())
	cmd.Flags().BoolVar(&all, "all", false, "list expired and revoked bans, too")
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
	slices.SortFunc(list, func(a, b memory.Ban) int {
		return cmp.Or(b.Until.Compare(a.Until), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	if s.Limit > 0 {
		list = list[:min(len(list), s.Limit)]
	}
	if s.JSON {
		out := json.NewEncoder(e.out)
		for i := range list {
			if err := out.Encode(jsonBan{list[i], hexID(list[i].Session), list[i].Expired(e.now())}); err != nil {
				return err
			}
		}
		return nil
	}
	printBans(e, list, within)
	return nil
}

// A jsonBan is a ban in the output of bans --json.
type jsonBan struct {
	memory.Ban
	Session string `json:"session,omitempty"`
	Expired bool   `json:"expired"`
}

func printBans(e *env, list []memory.Ban, within netip.Prefix) {
	if len(list) == 0 {
		where := ""
		if within.IsValid() {
			where = " in " + within.String()
		}
		fmt.Fprintf(e.out, "no bans%s\n", where)
		return
	}
	next := e.ladders()
	fmt.Fprintf(e.out, "%-19s %-16s %5s %4s %5s %8s  %s\n", "PREFIX", "UNTIL", "LASTS", "NEXT", "COUNT", "ATTEMPTS", "RULE AND SESSION")
	for i := range list {
		b := &list[i]
		why := text.Escape(b.Rule)
		if b.Session != 0 {
			why += " " + hexID(b.Session)
		}
		switch {
		case b.Revoked:
			why += " (revoked)"
		case b.Expired(e.now()):
			why += " (expired)"
		case b.Observe:
			why += " (observed only)"
		case b.Manual:
			why += " (manual)"
		}
		fmt.Fprintf(e.out, "%-19s %-16s %5s %4s %5d %8d  %s\n", prefix.String(b.Prefix), b.Until.In(e.zone).Format("2006-01-02 15:04"),
			text.Duration(b.Until.Sub(b.Since).Round(time.Minute)), next(b), b.Times, b.Attempts, why)
	}
}

// ladders returns a function for the length of a host's next ban. It depends on the
// rules of the configuration.
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
	_, _ = dir.Bans(func(b *memory.Ban) bool { // a missing state directory has no bans
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
