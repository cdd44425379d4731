package main

import (
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/dnsbl"
	"scanwatch/cmd/internal/follow"
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
	s, err := newService(e, rules.RoleServe, nil)
	if err != nil {
		return err
	}
	server, err := dnsbl.New(s.Companion, s.set.Zones, s.log)
	if err != nil {
		return err
	}
	socket, err := s.socket()
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return err
	}
	if err := become(s.User); err != nil {
		return err
	}
	confine(s.log, sandbox.Paths{Serve: true, Connect: []string{socket}, Read: server.Files()})

	ctx, stop := untilTerminated()
	defer stop()
	follower := follow.Follower{RunDir: s.runDir, Name: s.Name(), Log: s.log}
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
