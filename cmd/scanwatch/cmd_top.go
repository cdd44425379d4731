package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/live"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/lookup"
	"scanwatch/internal/text"
)

func newTop(e *env) *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "top [--once]",
		Short: "Show the activity of the last hour and of the running filter.",
		Long: "Show sources, rejections, events, bans and networks of the last hour, and then\n" +
			"as they happen. Keys: ? help, Enter why, b ban, u unban, / filter, q quit.\n" +
			"Without a terminal, print the sources once.",
		Example: "  scanwatch top\n  scanwatch top --once",
		RunE:    func(*cobra.Command, []string) error { return runTop(e, once) },
	}
	cmd.Flags().BoolVar(&once, "once", false, "print the sources as text, and exit")
	return cmd
}

func runTop(e *env, once bool) error {
	dir, err := e.stateDir()
	if err != nil {
		return err
	}
	if _, err := os.ReadDir(dir.Path); err != nil {
		return statedir.Explain(err)
	}
	org, err := organisations(e)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	feed := &live.Feed{Dir: dir, View: live.NewView(e.zone, e.now, org)}
	if once || !live.FullScreen(e.stdout) {
		return feed.Print(ctx, e.out, output.StyleOf(e.stdout).Columns)
	}
	go feed.Run(ctx)
	return live.NewConsole(feed.View, e.output).Run(ctx)
}

// organisations returns a function that looks up an address's organisation in the shipped
// lists or the AS number database.
func organisations(e *env) (func(netip.Addr) string, error) {
	lists, err := lookup.Builtin()
	if err != nil {
		return nil, err
	}
	c, err := e.configuration("", lists)
	if err != nil {
		c = &config.Config{} // the filter's status shows the same problem
	}
	return func(a netip.Addr) string {
		if row := lists.Addr(a); row != nil {
			return row.Org
		}
		var origin lookup.Origin
		if c.ASN != nil {
			origin, _ = c.ASN.Lookup(a)
		}
		if origin.ASN == 0 {
			origin.ASN, _ = lookup.ShippedASN(a)
		}
		scanner, cloud := lists.ASN(origin.ASN)
		return cmp.Or(origin.Org, orgOf(scanner), orgOf(cloud))
	}, nil
}

func orgOf(row *lookup.Row) string {
	if row == nil {
		return ""
	}
	return row.Org
}

// output runs a command as if it were entered on the command line, and returns the
// command's output, warnings and error.
func (e *env) output(args ...string) string {
	var out bytes.Buffer
	safe := text.NewWriter(&out)
	sub := *e
	sub.out = bufio.NewWriter(safe)
	sub.stdout, sub.terminal, sub.err = &out, &out, safe
	err := e.command(&sub, args)
	_ = sub.out.Flush() // writing to a buffer cannot fail
	if err != nil {
		fmt.Fprintln(safe, err)
	}
	_ = safe.Close()
	return out.String()
}
