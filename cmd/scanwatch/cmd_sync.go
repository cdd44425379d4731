package main

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"
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
	c, runDir, err := syncCompanion(e, args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	k, err := firewall.New(c, log)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Pos, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if dry {
		client, err := control.DialCompanion(runDir)
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
	if err := firewall.Confine(c); err != nil {
		return err
	}
	k.Run(ctx, &follow.Follower{RunDir: runDir, Name: c.Name(), Log: log, Wait: statusEvery})
	return nil
}

// statusEvery is the maximum delay until the filter's status shows an error of the companion.
const statusEvery = 5 * time.Second

// withoutTime removes the time from a log line. The program that receives the log adds
// the time.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// syncCompanion returns the companion selected by the arguments and the directory of its
// socket.
func syncCompanion(e *env, args []string) (*rules.Companion, string, error) {
	tree, name, err := e.tree()
	if err != nil {
		return nil, "", err
	}
	if tree == nil {
		return nil, "", fmt.Errorf("no configuration file; create one with: companion sync user name to nftables \"inet filter scanwatch\"")
	}
	s := tree.Settings()
	var found []*rules.Companion
	var targets []string
	for _, c := range s.Companions {
		if c.Role != rules.RoleSync {
			continue
		}
		targets = append(targets, c.Target+" "+c.Argument)
		if len(args) == 0 || c.Target == args[0] || c.Argument == args[0] {
			found = append(found, c)
		}
	}
	switch {
	case len(targets) == 0:
		return nil, "", fmt.Errorf("%s has no statement companion sync; see scanwatch.conf(5)", name)
	case len(found) == 0:
		return nil, "", usage("sync %q: no such target in %s; it has: %s", args[0], name, strings.Join(targets, ", "))
	case len(found) > 1:
		return nil, "", usage("sync: several targets in %s, select one: %s", name, strings.Join(targets, ", "))
	}
	runDir := s.RunDir
	if runDir == "" {
		runDir = control.DefaultRunDir()
	}
	return found[0], runDir, nil
}
