package main

// The verbs that follow the running filter, and tell it how much to log.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
	store_report "scanwatch/store/report"
)

const watchHelp = `Follows findings, verdicts and bans until it is interrupted.

  --evidence TOKEN  findings of that token, and what becomes of their sessions
  --src PREFIX      what is about clients in a network, or one address
  --json            the events as the filter writes them, one JSON object a line`

func watch(e *env, args []string) error {
	evidence := e.flags.String("evidence", "", "")
	src := e.flags.String("src", "", "")
	asJSON := e.flags.Bool("json", false, "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	if *evidence != "" && rules.TokenByName(*evidence) == nil {
		return usage("--evidence %q: there is no such token; the manual scanwatch.conf(5) lists them", *evidence)
	}
	var prefix netip.Prefix
	if *src != "" {
		var err error
		if prefix, err = parsePrefix(*src); err != nil {
			return usage("--src %q: no address or prefix, such as 192.0.2.1 or 2001:db8::/32", *src)
		}
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	interrupted, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(interrupted, func() { client.Close() })()
	begun := func() { fmt.Fprintln(e.err, "watching; interrupt to end") }
	err = client.Watch(events.Choice{Evidence: *evidence, Src: prefix}, begun, func(line []byte) error {
		if *asJSON {
			_, err := e.out.Write(line)
			return errors.Join(err, e.out.Flush())
		}
		event, missing, err := events.Decode(line)
		if err != nil {
			return err
		}
		fmt.Fprintln(e.out, eventLine(&event, missing, e.zone))
		return e.out.Flush()
	})
	if interrupted.Err() != nil {
		return nil
	}
	return err
}

// eventLine is an event for people, in 80 columns if its names are short. All
// that is in e may have come from a stranger.
func eventLine(e *events.Event, missing uint64, zone *time.Location) string {
	var text []string
	add := func(format string, what string) {
		if what != "" {
			text = append(text, fmt.Sprintf(format, store_report.Printable([]byte(what))))
		}
	}
	src := cmp.Or(e.Prefix, "local")
	if e.Src.IsValid() {
		src = e.Src.String()
	}
	switch e.Event {
	case "finding":
		add("%s", e.Evidence)
		add("of %s", short(e.Org, 32))
		add("(%s)", e.Confidence)
		add("%s", short(e.Proof, 48))
	case "left-out":
		return fmt.Sprintf("%s %-8s %d events: they came too fast for this", e.Time.In(zone).Format(time.TimeOnly), e.Event, missing)
	default:
		add("%s", e.Decision)
		add("would %s", e.Would)
		add("%s", e.Tag)
		add("at %s", e.Phase)
		if !e.Until.IsZero() && e.Event == "ban" {
			add("until %s", e.Until.In(zone).Format("2006-01-02 15:04"))
		}
		add("by %s", cmp.Or(e.Rule, e.By))
		add("(%s)", e.Reason)
	}
	add("%s", hexID(e.Session))
	return fmt.Sprintf("%s %-8s %-15s %s", e.Time.In(zone).Format(time.TimeOnly), store_report.Printable([]byte(e.Event)),
		store_report.Printable([]byte(src)), strings.Join(text, " "))
}

// short cuts text for a line; scanwatch show has it whole.
func short(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most-3] + "..."
}

const logHelp = `Changes what the running filter logs, until it ends:

  brief    findings and problems only, as without -v
  verbose  also how it goes, as with -v`

func logVerb(e *env, args []string) error {
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	word, said := "", ""
	if len(args) == 1 {
		word, said = args[0], fmt.Sprintf(" %q", args[0])
	}
	var fit []control.Level
	var all strings.Builder
	for _, l := range control.Levels() {
		fmt.Fprintf(&all, "\n  log %-8s %s", l.Word, l.Means)
		if word != "" && strings.HasPrefix(l.Word, word) {
			fit = append(fit, l)
		}
	}
	if len(fit) != 1 {
		return usage("log%s: it continues as:%s", said, all.String())
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Log(fit[0].Word); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "the filter logs %s, until it ends or this is changed again\n", fit[0].Means)
	return nil
}
