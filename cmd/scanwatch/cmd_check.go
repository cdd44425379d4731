package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/dnsbl"
	"scanwatch/cmd/internal/dnslookup"
	"scanwatch/cmd/internal/fetch"
	"scanwatch/cmd/internal/firewall"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

func newCheck(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration for errors.",
		Long: "Print all errors of a configuration, or a summary of it. The default is the\n" +
			"configuration of the filter. A missing table file is an error here; the filter\n" +
			"starts without it.",
		Example:           "  scanwatch check\n  scanwatch check new.conf",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: completeFile,
		RunE:              func(_ *cobra.Command, args []string) error { return runCheck(e, args) },
	}
}

func runCheck(e *env, args []string) error {
	name, err := e.chosen(args)
	if err != nil {
		return err
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	c, err := config.Load(name, lists, nil, true)
	if err != nil {
		return err
	}
	fmt.Fprint(e.err, c.Warnings.Detail())
	for _, n := range c.Notes {
		fmt.Fprintln(e.err, "warning:", n)
	}
	p := c.Policy
	for _, companion := range p.Companions {
		if companion.Role != rules.RoleSync {
			continue
		}
		if err := firewall.Check(companion); err != nil {
			return fmt.Errorf("%s: %w", companion.Pos, err)
		}
	}
	if err := dnsbl.Check(p.Zones); err != nil {
		return err
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return err
	}
	feeds, err := fetch.Feeds(tree)
	if err != nil {
		return err
	}
	for _, f := range feeds {
		if problem := f.Stale(e.now()); problem != "" {
			fmt.Fprintln(e.err, "warning:", problem)
		}
		if f.KeyFile != "" {
			if err := fetch.CheckKey(f.KeyFile, -1); err != nil {
				fmt.Fprintln(e.err, "warning:", fmt.Sprintf("key of %s: %v", f.Name, err))
			}
		}
	}
	checkServices(e, p)
	var phases []string
	for _, id := range smtpd.Requests(filter.Phases(p)) {
		phases = append(phases, id.String())
	}
	if len(phases) == 0 {
		phases = []string{"none"}
	}
	fmt.Fprintf(e.out, "%s: no errors\n", name)
	fmt.Fprintf(e.out, "mode %v, %s\nphases: %s\n", p.Mode, text.Plural(len(p.Rules()), "rule"), strings.Join(phases, " "))
	for _, name := range slices.Sorted(maps.Keys(c.Tables())) {
		fmt.Fprintf(e.out, "table <%s>: %s\n", name, text.Plural(c.Tables()[name], "entry", "entries"))
	}
	for _, o := range []*lookup.Origins{c.ASN, c.Country} {
		if o != nil {
			s := o.State()
			fmt.Fprintf(e.out, "database %s: %s, built %s\n", s.Path, s.Type, s.Built.UTC().Format(time.DateOnly))
		}
	}
	printDownloads(e, feeds)
	for _, c := range p.Companions {
		fmt.Fprintln(e.out, c)
	}
	for _, z := range p.Zones {
		fmt.Fprintln(e.out, z)
	}
	for _, l := range p.Lookups {
		fmt.Fprintln(e.out, l)
	}
	e.proposeGateways(p)
	return nil
}

// checkServices prints warnings about the companions and the fleet. The filter starts despite these
// problems.
func checkServices(e *env, p *rules.Policy) {
	filter, state, server := -1, "", ""
	warn := func(pos rules.Pos, format string, args ...any) {
		fmt.Fprintf(e.err, "%s: warning: %s\n", pos, control.Restart(fmt.Sprintf(format, args...), server))
	}
	if dir, err := e.stateDir(); err == nil {
		state = dir.Path
		server = control.LatestFrontEnd(state).Server()
		if info, err := os.Stat(state); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				filter = int(s.Uid) // the filter runs as the state directory's owner
			}
		}
	}
	checkFleet(e, p, filter, warn)
	if len(p.Companions) > 0 {
		checkCompanions(p, state, filter, warn)
	}
}

// checkCompanions warns about companions whose user, directory or address does not exist
// on this host.
func checkCompanions(p *rules.Policy, state string, filter int, warn func(rules.Pos, string, ...any)) {
	runDir := cmp.Or(p.RunDir, control.DefaultRunDir())
	if problem := control.RunDirProblem(runDir, state, filter); problem != "" {
		warn(p.Companions[0].Pos, "directory of the companions' socket: %s", problem)
	}
	local := append(prefix.Local(), netip.IPv6Loopback())
	for _, c := range p.Companions {
		uid, err := control.CompanionUser(c.User, filter)
		if err != nil {
			warn(c.Pos, "%v", err)
		}
		for _, file := range []struct{ what, name string }{{"key", c.Forward.Key}, {"header", c.Forward.Header}, {"URL", c.Argument}} {
			if err != nil || c.Role != rules.RoleForward || c.Target == rules.ForwardSyslog || !filepath.IsAbs(file.name) {
				continue
			}
			if err := fetch.CheckKey(file.name, int(uid)); err != nil {
				warn(c.Pos, "file of the %s: %v", file.what, err)
			}
		}
		for _, l := range p.Lookups {
			if c.Role != rules.RoleLookup || err != nil {
				continue
			}
			if err := dnslookup.CheckKey(l, uid); err != nil {
				warn(l.Pos, "key of lookup %s: %v", l.Name, err)
			}
		}
		for _, a := range c.Listen {
			if !a.IsLoopback() && !slices.Contains(local, a) {
				warn(c.Pos, "this host does not have the address %s", a)
			}
		}
		if c.Role == rules.RoleForward && c.Target == rules.ForwardSyslog && filepath.IsAbs(c.Argument) {
			if info, err := os.Stat(c.Argument); err != nil {
				warn(c.Pos, "socket of syslog: %v", err)
			} else if info.Mode().Type() != os.ModeSocket {
				warn(c.Pos, "socket of syslog: %s is not a socket", c.Argument)
			}
		}
		for _, problem := range firewall.Problems(c) {
			warn(c.Pos, "%s", problem)
		}
	}
	for _, z := range p.Zones {
		if z.Builtin == lookup.Clouds {
			warn(z.Pos, "the networks in the list clouds also send legitimate mail: use the zone for scoring, not to reject mail")
		}
	}
}

// printDownloads prints when each download last succeeded.
func printDownloads(e *env, feeds []*fetch.Feed) {
	for _, f := range feeds {
		last := "never"
		if at := f.Checked(e.now()); !at.IsZero() {
			last = at.In(e.zone).Format("2006-01-02 15:04")
		}
		fmt.Fprintf(e.out, "download %s %s: last success %s\n", f.Name, filepath.Base(f.File), last)
	}
}

// proposeGateways prints the addresses that many hosts share according to the state.
func (e *env) proposeGateways(policy *rules.Policy) {
	dir, err := e.stateDir()
	if err != nil {
		return
	}
	rows := memory.NewReader(e.now())
	_ = dir.State([]string{"clock", "peers"}, func(en store.Entry) error { // the state may not exist yet
		if rows.Clock(en) {
			return nil
		}
		p, ok := rows.Peer(en.Key, en.Value)
		if ok && p.Many && !slices.ContainsFunc(policy.Gateways, func(g netip.Prefix) bool { return g.Overlaps(p.Prefix) }) {
			fmt.Fprintf(e.out, "many hosts share %s: list it as gateway\n", prefix.String(p.Prefix))
		}
		return nil
	})
}
