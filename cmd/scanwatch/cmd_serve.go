package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/dnsbl"
	"scanwatch/cmd/internal/follow"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/rules"
)

func newServe(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "serve dns",
		Short: "Publish bans and lists to mail servers by DNS.",
		Long: "Answer DNS queries about the zones in scanwatch.conf(5) until terminated: active\n" +
			"bans, included lists and files with addresses, as block lists (DNSBL). This is\n" +
			"a service; its user and addresses are in the configuration.",
		Example:   "  scanwatch serve dns\n  scanwatch serve dns -f test.conf",
		Args:      argsBetween(1, 1),
		ValidArgs: []string{"dns"},
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] != "dns" {
				return usage("serve %q: must be dns", args[0])
			}
			return runServe(e)
		},
	}
}

func runServe(e *env) error {
	reload := hangups() // before this call, SIGHUP would end the process
	name, err := e.chosen(nil)
	if err != nil {
		return err
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return err
	}
	set := tree.Settings()
	i := slices.IndexFunc(set.Companions, func(c *rules.Companion) bool { return c.Role == rules.RoleServe })
	if i < 0 || len(set.Zones) == 0 {
		return fmt.Errorf("%s has no companion serve or no zone; see scanwatch.conf(5)", name)
	}
	companion, log := set.Companions[i], serviceLog(e.err)
	server, err := dnsbl.New(companion, set.Zones, log)
	if err != nil {
		return err
	}
	runDir := cmp.Or(set.RunDir, control.DefaultRunDir())
	if _, err := os.Stat(runDir); err != nil { // the sandbox cannot grant access later
		return fmt.Errorf("directory of the filter's socket: %w", err)
	}
	if err := server.Listen(); err != nil {
		return err
	}
	if err := become(companion.User); err != nil {
		return err
	}
	confine(log, sandbox.Paths{Serve: true, Connect: []string{control.SocketPath(runDir)}, Read: server.Files()})

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	follower := follow.Follower{RunDir: runDir, Name: companion.Name(), Log: log}
	if !server.HasBans() {
		follower.Every = 365 * 24 * time.Hour // all bans need not be reread, because this follower only reports the status
	}
	// Responses allocate no memory, so frequent garbage collections cost little.
	debug.SetGCPercent(30)
	var all sync.WaitGroup
	all.Go(func() { follower.Run(ctx, server.Apply) })
	server.Run(ctx, reload)
	all.Wait()
	return nil
}

// serviceLog returns a logger for a service. The logger writes no timestamps, because the service
// manager adds them.
func serviceLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}}))
}

// become changes the user of a service that root has started.
func become(name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if _, number := strconv.Atoi(name); err != nil && number == nil {
		u, err = &user.User{Uid: name, Gid: name}, nil
	}
	if err != nil {
		return fmt.Errorf("user of the companion: %w", err)
	}
	id, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	group, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return (&owner.User{ID: id, Group: group}).Become()
}

// confine enters the sandbox for a service and logs the restrictions.
func confine(log *slog.Logger, paths sandbox.Paths) {
	enter(log, sandbox.Prepare(paths).Enter())
}

// enter logs the restrictions of a sandbox.
func enter(log *slog.Logger, report *sandbox.Report) {
	for _, err := range report.Problems {
		log.Warn("sandbox incomplete", "err", err)
	}
	log.Info("sandbox", report.Attrs()...)
}

// hangups returns a channel that receives a value after each SIGHUP.
func hangups() <-chan struct{} {
	signals, hangups := make(chan os.Signal, 1), make(chan struct{}, 1)
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for range signals {
			select {
			case hangups <- struct{}{}:
			default:
			}
		}
	}()
	return hangups
}
