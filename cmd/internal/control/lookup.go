package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/dnslist"
)

type questionsAnswer struct {
	Questions []dnslist.Question `json:"questions"`
	Lists     []string           `json:"lists"`
}

// Facts is the answer to "facts".
type Facts struct {
	Accepted int `json:"accepted"`
	// Refused is the number of answers to questions that the filter never asked.
	Refused int `json:"refused"`
}

// LookupCommands returns the commands for the lookup companion. The companion receives questions
// about clients, and sends the answers. An answer has no effect if the filter has not asked the
// question.
func LookupCommands(t *dnslist.Table) []Command {
	return []Command{
		{"questions", 1, func(ctx context.Context, a *Answer, args []string) error {
			seconds, err := strconv.ParseUint(args[0], 10, 31)
			wait := time.Duration(seconds) * time.Second
			if err != nil || wait > MaxWait {
				return fmt.Errorf("parse seconds %q: not a number up to %d", args[0], int(MaxWait/time.Second))
			}
			all := t.Questions(ctx, wait)
			return a.JSON(questionsAnswer{all, t.IDs()})
		}},
		{"facts", 1, func(_ context.Context, a *Answer, args []string) error {
			var f Facts
			for s := range strings.SplitSeq(args[0], ",") {
				answer, err := parseAnswer(s)
				if err != nil {
					return err
				}
				switch err := t.Answer(answer); {
				case err == nil:
					f.Accepted++
				case errors.Is(err, dnslist.ErrNotAsked):
					f.Refused++
				default:
					return err
				}
			}
			return a.JSON(f)
		}},
	}
}

// allAddrs replaces the address in an answer that makes all listings of a list unknown.
const allAddrs = "*"

// parseAnswer parses ADDRESS;LIST;CODES;SECONDS.
func parseAnswer(s string) (a dnslist.Answer, err error) {
	part := strings.Split(s, ";")
	if len(part) != 4 {
		return a, fmt.Errorf("parse fact %.80q: must be ADDRESS;LIST;CODES;SECONDS", s)
	}
	if part[0] != allAddrs {
		if a.Addr, err = netip.ParseAddr(part[0]); err != nil {
			return a, fmt.Errorf("parse fact %.80q: %q is not an address", s, part[0])
		}
	}
	a.List = part[1]
	if cause, unknown := strings.CutPrefix(part[2], "?"); unknown {
		a.Cause = cause
		if cause == "" {
			return a, fmt.Errorf("parse fact %.80q: no cause", s)
		}
	} else if part[2] != "-" {
		for code := range strings.SplitSeq(part[2], "/") {
			c, err := netip.ParseAddr(code)
			if err != nil {
				return a, fmt.Errorf("parse fact %.80q: %q is not a code", s, code)
			}
			a.Codes = append(a.Codes, c)
		}
	}
	seconds, err := strconv.ParseUint(part[3], 10, 31)
	if err != nil {
		return a, fmt.Errorf("parse fact %.80q: %q is not a number of seconds", s, part[3])
	}
	a.TTL = time.Duration(seconds) * time.Second
	return a, nil
}

// formatAnswer is the reverse of parseAnswer.
func formatAnswer(a *dnslist.Answer) string {
	codes := "-"
	if a.Cause != "" {
		codes = "?" + a.Cause
	} else if len(a.Codes) > 0 {
		words := make([]string, len(a.Codes))
		for i, c := range a.Codes {
			words[i] = c.String()
		}
		codes = strings.Join(words, "/")
	}
	addr := allAddrs
	if a.Addr.IsValid() {
		addr = a.Addr.String()
	}
	return addr + ";" + a.List + ";" + codes + ";" + strconv.FormatInt(int64(a.TTL/time.Second), 10)
}

// Questions returns the next questions about clients, and the IDs of all lists of the filter.
// It waits for the first question or a change to the lists.
func Questions(c *Client, wait time.Duration) (all []dnslist.Question, lists []string, err error) {
	var a questionsAnswer
	err = c.ask(&a, "questions", strconv.Itoa(int(wait/time.Second)))
	return a.Questions, a.Lists, err
}

// SendFacts sends answers to questions.
func SendFacts(c *Client, all []dnslist.Answer) (sum Facts, err error) {
	var line string
	send := func() error {
		if line == "" {
			return nil
		}
		var f Facts
		err := c.ask(&f, "facts", line)
		line = ""
		sum.Accepted, sum.Refused = sum.Accepted+f.Accepted, sum.Refused+f.Refused
		return err
	}
	for i := range all {
		fact := formatAnswer(&all[i])
		if len("facts ")+len(line)+len(",")+len(fact) >= maxLine {
			if err := send(); err != nil {
				return sum, err
			}
		}
		if line != "" {
			line += ","
		}
		line += fact
	}
	return sum, send()
}
