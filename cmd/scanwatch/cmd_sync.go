package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/firewall"
	"scanwatch/cmd/internal/follow"
	"scanwatch/rules"
)

func newSync(e *env) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "sync [--dry-run] [TARGET]",
		Short: "Keep a firewall or file in step with the bans.",
		Long: "Follow the bans of the running filter, and add and remove them in the firewall\n" +
			"or file of a companion in scanwatch.conf. This is a service and runs until a\n" +
			"signal ends it. TARGET is nftables, ipset, pf or file, or the argument of a\n" +
			"target, such as \"inet filter scanwatch\". Hosts that an export would omit are\n" +
			"never blocked.",
		Example: "  scanwatch sync nftables\n  scanwatch sync --dry-run",
		Args:    argsBetween(0, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return runSync(e, dry, args) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (offers []string, _ cobra.ShellCompDirective) {
			for _, t := range rules.Targets {
				offers = append(offers, t.Word)
			}
			if len(args) > 0 {
				offers = nil
			}
			return offers, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print the changes that the target needs and exit")
	return cmd
}

func runSync(e *env, dry bool, args []string) error {
	s, err := newService(e, rules.RoleSync, args)
	if err != nil {
		return err
	}
	k, err := firewall.New(s.Companion, s.log)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Pos, err)
	}
	ctx, stop := untilTerminated()
	defer stop()
	if dry {
		client, err := control.DialCompanion(s.runDir)
		if err != nil {
			return err
		}
		defer client.Close()
		list, entries, err := client.Bans(0, 0)
		if err != nil {
			return err
		}
		if !list.Enforced {
			e.warn("mode observe: no ban is in force")
		}
		return k.Preview(ctx, e.out, list, entries)
	}
	if err := firewall.Confine(s.Companion); err != nil {
		return err
	}
	k.Run(ctx, &follow.Follower{RunDir: s.runDir, Name: s.Name(), Log: s.log, Wait: statusEvery})
	return nil
}

// statusEvery is the maximum delay until the filter's status shows an error of the companion.
const statusEvery = 5 * time.Second
