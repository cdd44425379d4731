package main

import (
	"fmt"
	"net/netip"
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
			"days, hosts exempt by a pass statement, private addresses, addresses of this\n" +
			"machine, and networks larger than a /8 (IPv6: a /16).",
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
	switch why, err := dir.Legitimate(p, e.exempt(), e.warn); {
	case err != nil:
		return fmt.Errorf("check %s for accepted mail: %w; use --force to skip this", prefix.String(p), err)
	case why != "":
		return fmt.Errorf("%s was not banned: %s; use --force to ban it", prefix.String(p), why)
	}
	return nil
}

// exempt returns a function that describes the pass statement matching a record's client,
// or returns "" if there is none.
func (e *env) exempt() func(*store.Record) string {
	var c *config.Config
	if lists, err := lookup.Builtin(); err == nil {
		if c, err = e.configuration("", lists); err != nil {
			c = nil // the filter cannot load the configuration either
		}
	}
	return func(r *store.Record) string {
		if pass := exportlist.Passes(c, r); pass != nil {
			return fmt.Sprintf("%s is exempt: %s", r.Src.Addr(), text.Escape(pass.String()))
		}
		return ""
	}
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
