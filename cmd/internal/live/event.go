// Package live displays the running filter's activity: events as lines of text, problems,
// and the view of scanwatch top.
package live

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"scanwatch/filter/events"
	"scanwatch/internal/text"
)

// EventLine formats an event as printable text, 80 columns wide unless names are long. If
// missing is not 0, the event represents that many dropped events.
func EventLine(e *events.Event, missing uint64, zone *time.Location) string {
	at := e.Time.In(zone).Format(time.TimeOnly)
	if missing > 0 {
		return fmt.Sprintf("%s %-8s %d events: too many to show", at, "dropped", missing)
	}
	src := cmp.Or(e.Prefix, "local")
	if e.Src.IsValid() {
		src = e.Src.String()
	}
	line := fmt.Sprintf("%s %-8s %-15s %s", at, text.Escape(e.Event), text.Escape(src), eventText(e, zone))
	if e.Session != 0 {
		line += fmt.Sprintf(" %016x", e.Session)
	}
	return line
}

// eventText describes an event without the time, source and session.
func eventText(e *events.Event, zone *time.Location) string {
	var words []string
	add := func(format string, what string) {
		if what != "" {
			words = append(words, fmt.Sprintf(format, text.Escape(what)))
		}
	}
	if e.Event == "finding" {
		add("%s", e.Evidence)
		add("of %s", short(e.Org, 32))
		add("(%s)", e.Confidence)
		add("%s", short(e.Proof, 48))
	} else {
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
	return strings.Join(words, " ")
}

// short truncates text to at most the given number of bytes.
func short(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most-3] + "..."
}

// shown truncates and escapes text from the network.
func shown(s string, most int) string { return text.Escape(short(s, most)) }
