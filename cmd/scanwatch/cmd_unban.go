package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

func newUnban(e *env) *cobra.Command {
	var within bool
	cmd := &cobra.Command{
		Use:   "unban [--within] PREFIX",
		Short: "Revoke a ban.",
		Long: "Revoke the ban of a host or a network immediately, and clear its counters. With\n" +
			"--within, revoke all bans of hosts and networks in PREFIX. An IPv6 address is\n" +
			"treated as its /64.",
		Example:           "  scanwatch unban 192.0.2.1\n  scanwatch unban --within 2001:db8::/32",
		Args:              argsBetween(1, 1),
		ValidArgsFunction: e.completeBanned,
		RunE:              func(_ *cobra.Command, args []string) error { return runUnban(e, args[0], within) },
	}
	cmd.Flags().BoolVar(&within, "within", false, "revoke all bans in PREFIX")
	return cmd
}

func runUnban(e *env, arg string, within bool) error {
	p, err := clientPrefix(arg)
	if err != nil {
		return err
	}
	return e.ask(func(c *control.Client) error {
		b, err := c.Unban(p, within)
		if err != nil {
			return err
		}
		for _, one := range b.Bans {
			fmt.Fprintf(e.out, "the ban of %s is revoked (%s)\n", prefix.String(one.Prefix), text.Escape(one.Rule))
		}
		e.note(b.Note)
		if b.Elsewhere {
			format := "%s is not banned on this host; other hosts end their bans of it\n"
			if within {
				format = "no bans in %s on this host; other hosts end theirs\n"
			}
			_, err := fmt.Fprintf(e.out, format, prefix.String(p))
			return err
		}
		if len(b.Bans) == 0 {
			return e.notBanned(p, within)
		}
		return nil
	})
}

// notBanned returns the error for a host or network that is not banned itself.
func (e *env) notBanned(p netip.Prefix, within bool) error {
	if within {
		return fmt.Errorf("no bans in %s", prefix.String(p))
	}
	inside := 0
	if dir, err := e.stateDir(); err == nil {
		_, _ = dir.Bans(func(b *memory.Ban) bool { // if the state is unreadable, no bans are listed
			if !b.Expired(e.now()) && p.Contains(b.Prefix.Addr()) && b.Prefix.Bits() > p.Bits() {
				inside++
			}
			return false
		})
	}
	if inside > 0 {
		return fmt.Errorf("%s is not banned, but %s in it; use --within to revoke them", prefix.String(p), text.Plural(inside, "ban"))
	}
	return fmt.Errorf("%s is not banned", prefix.String(p))
}
