package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/exportlist"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/lookup"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
)

type banFlags struct {
	length, reason string
	force          bool
}

func newBan(e *env) *cobra.Command {
	var f banFlags
	cmd := &cobra.Command{
		Use:   "ban [--for DURATION] [--reason TEXT] [--force] PREFIX",
		Short: "Ban a host or a network.",
		Long: "Ban a host or a network immediately; for an IPv6 address, its /64. Without\n" +
			"--force, these are not banned: hosts with accepted mail or logins in the last 90\n" +
			"days, here or on another host of the fleet, hosts exempt by a pass statement,\n" +
			"private addresses, addresses of this machine, and networks larger than a /8\n" +
			"(IPv6: a /16).",
		Example: "  scanwatch ban 192.0.2.1\n  scanwatch ban --for 7d --reason \"brute force\" 2001:db8::/48",
		Args:    argsBetween(1, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return runBan(e, &f, args[0]) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.length, "for", "1d", "ban for `DURATION`: 30m, 12h, 7d, 2w, 1y")
	fs.StringVar(&f.reason, "reason", "by the postmaster", "show `TEXT` to the client and in lists")
	fs.BoolVar(&f.force, "force", false, "also ban legitimate hosts and large networks")
	return cmd
}

func runBan(e *env, f *banFlags, arg string) error {
	p, err := clientPrefix(arg)
	if err != nil {
		return err
	}
	d, err := duration("for", f.length)
	if err != nil {
		return err
	}
	if strings.TrimSpace(f.reason) == "" {
		return usage("--reason %q: must not be empty", f.reason)
	}
	if !f.force && large(p) {
		return fmt.Errorf("%s was not banned: it is larger than a /%d; use --force to ban it", p, largest(p))
	}
	return e.ask(func(c *control.Client) error {
		if !f.force {
			if err := refuseKnownGood(e, p); err != nil {
				return err
			}
		}
		b, err := c.Ban(p, d, f.reason)
		if err != nil {
			return err
		}
		for _, one := range b.Bans {
			fmt.Fprintf(e.out, "%s is banned until %s\n", prefix.String(one.Prefix), one.Until.In(e.zone).Format("2006-01-02 15:04 -0700"))
		}
		e.note(b.Note)
		return nil
	})
}

// largest returns the shortest prefix length that may be banned without --force.
func largest(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 16
	}
	return 8
}

func large(p netip.Prefix) bool { return p.Bits() < largest(p) }

// refuseKnownGood returns an error if p contains legitimate clients.
func refuseKnownGood(e *env, p netip.Prefix) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	exempt, err := e.exempt()
	if err != nil {
		return fmt.Errorf("%s was not banned: the exempt hosts are unknown, because the configuration has errors; see %s check, or use --force to ban it", prefix.String(p), self(e))
	}
	switch why, err := dir.Legitimate(p, exempt, e.warn); {
	case err != nil:
		return fmt.Errorf("check %s for accepted mail: %w; use --force to skip this", prefix.String(p), err)
	case why != "":
		return fmt.Errorf("%s was not banned: %s; use --force to ban it", prefix.String(p), why)
	}
	return nil
}

// exempt returns a function that describes the pass statement matching a record's client,
// or returns "" if there is none. It fails if there is a configuration that cannot be loaded. The
// running filter may still use an earlier version of it.
func (e *env) exempt() (func(*store.Record) string, error) {
	lists, err := lookup.Builtin()
	if err != nil {
		return nil, err
	}
	var c *config.Config
	if name := e.find(e.file); name != "" {
		if c, err = config.Load(name, lists, nil, false); err != nil {
			return nil, err
		}
	}
	return func(r *store.Record) string {
		if pass := exportlist.Passes(c, r); pass != nil {
			return fmt.Sprintf("%s is exempt: %s", r.Src.Addr(), text.Escape(pass.String()))
		}
		return ""
	}, nil
}

// note prints a note from the filter. It first flushes the output, so that the note comes last.
func (e *env) note(s string) {
	if s != "" {
		_ = e.out.Flush()
		e.warn(s)
	}
}

// duration parses a flag that must be between one minute and 366 days.
func duration(flag, text string) (time.Duration, error) {
	d, err := selector.ParseSpan(text)
	if err != nil {
		return 0, usage("--%s %q: %w", flag, text, err)
	}
	if d < time.Minute || d > 366*24*time.Hour {
		return 0, usage("--%s %q: must be from 1m to 366d", flag, text)
	}
	return d, nil
}
