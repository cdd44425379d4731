package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
)

func newLog(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "log brief|verbose",
		Short: "Set the log level of the running filter.",
		Long: "Set the log level until the filter stops. The level brief includes suspicious\n" +
			"sessions, bans and problems. The level verbose also includes each finding and\n" +
			"decision, and progress; option -v of the filter and \"log verbose\" in\n" +
			"scanwatch.conf(5) set the same level. With \"log syslog\" there, the filter writes\n" +
			"to syslog with true priorities: journalctl -t filter-scanwatch -p notice.\n" +
			"Otherwise smtpd writes the lines: journalctl -t smtpd -g scanwatch:.",
		Example:   "  scanwatch log verbose\n  scanwatch log brief",
		Args:      argsBetween(1, 1),
		ValidArgs: []string{"brief", "verbose"},
		RunE:      func(_ *cobra.Command, args []string) error { return runLog(e, args[0]) },
	}
}

func runLog(e *env, word string) error {
	var fit []control.Level
	var words []string
	for _, l := range control.Levels() {
		words = append(words, l.Word)
		if word != "" && strings.HasPrefix(l.Word, word) {
			fit = append(fit, l)
		}
	}
	if len(fit) != 1 {
		return usage("log %q: must be %s", word, strings.Join(words, " or "))
	}
	return e.ask(func(c *control.Client) error {
		if err := c.Log(fit[0].Word); err != nil {
			return err
		}
		_, err := fmt.Fprintf(e.out, "until it stops, the filter logs %s\n", fit[0].Means)
		return err
	})
}
