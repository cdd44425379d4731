package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/live"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/events"
)

func newWatch(e *env) *cobra.Command {
	var s selector.Selector
	cmd := &cobra.Command{
		Use:   "watch [--evidence TOKEN,...] [--src PREFIX,...] [--json]",
		Short: "Follow findings, verdicts and bans.",
		Long: "Print the events of the running filter until interrupted. With --evidence, print\n" +
			"findings with these tokens and the decisions about their sessions.",
		Example: "  scanwatch watch --evidence scanner\n  scanwatch watch --src 192.0.2.0/24 --json",
		RunE: func(*cobra.Command, []string) error {
			return e.ask(func(c *control.Client) error { return runWatch(e, c, &s) })
		},
	}
	s.Register(cmd.Flags(), selector.Evidence|selector.Src|selector.JSON, e.clock())
	return cmd
}

func runWatch(e *env, client *control.Client, s *selector.Selector) error {
	interrupted, stop := untilTerminated()
	defer stop()
	defer context.AfterFunc(interrupted, func() { client.Close() })()
	begun := func() { fmt.Fprintln(e.err, "watching; interrupt to end") }
	choice := live.NewChoice(s)
	err := client.Watch(choice.Server, begun, func(line []byte) error {
		event, missing, err := events.Decode(line)
		switch {
		case err != nil:
			return err
		case missing == 0 && !choice.Wants(&event):
			return nil
		case s.JSON:
			_, err = e.out.Write(line)
		default:
			_, err = fmt.Fprintln(e.out, live.EventLine(&event, missing, e.zone))
		}
		return errors.Join(err, e.out.Flush())
	})
	if interrupted.Err() != nil {
		return nil
	}
	return err
}
