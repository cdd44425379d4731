package main

// The verb test: what a configuration would do with a session.

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
)

const testHelp = `The configuration is the one of -f, or --policy open|standard|tight.
Of the session one tells what matters; it goes as far as the flags go, in their
order, and ends with a message if a recipient was accepted:
  --src ADDRESS        where it comes from
  --dst ADDRESS:PORT   the listener (192.0.2.25:25)
  --rdns NAME          reverse DNS name, none if left out
  --fcrdns pass|fail|error   whether the name leads back (pass, if there is one)
  --helo NAME          EHLO identity
  --line TEXT          a command that smtpd does not know; may be repeated
  --auth USER          a login that succeeds, --guess USER one that fails
  --mail-from ADDRESS  the sender
  --rcpt ADDRESS       a recipient that smtpd accepts; may be repeated
  --refuse ADDRESS     one that it refuses; may be repeated
Or --stream FILE plays a recorded stream, of which --session ID chooses one.
With --enforce the policy acts as in mode enforce. -v shows every rule, --json
prints one JSON object a session.`

// stepFlag is a flag that may be repeated. Several of them share one list, so
// that their order is kept.
type stepFlag struct {
	kind string
	list *[]step
}

func (f stepFlag) String() string { return "" }
func (f stepFlag) Set(text string) error {
	*f.list = append(*f.list, step{f.kind, text})
	return nil
}

// sessionID is how smtpd writes the id of a session.
var sessionID = regexp.MustCompile(`^[0-9a-f]{16}$`)

func try(e *env, args []string) error {
	policy := e.flags.String("policy", "", "")
	enforce := e.flags.Bool("enforce", false, "")
	verbose := e.flags.Bool("v", false, "")
	asJSON := e.flags.Bool("json", false, "")
	src := e.flags.String("src", "", "")
	dst := e.flags.String("dst", "192.0.2.25:25", "")
	rdns := e.flags.String("rdns", "", "")
	fcrdns := e.flags.String("fcrdns", "", "")
	stream := e.flags.String("stream", "", "")
	only := e.flags.String("session", "", "")
	var steps []step
	for _, kind := range []string{"helo", "line", "auth", "guess", "mail-from", "rcpt", "refuse"} {
		e.flags.Var(stepFlag{kind, &steps}, kind, "")
	}
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	id := strings.ToLower(*only)
	switch {
	case *src == "" && *stream == "":
		return usage("test: --src or --stream is needed\nusage: scanwatch %s %s", e.verb.name, e.verb.args)
	case *stream != "" && (*src != "" || *rdns != "" || *fcrdns != "" || len(steps) > 0):
		return usage("test: --stream has its own sessions: it goes with --session only, and not with flags that tell of one")
	case *only != "" && *stream == "":
		return usage("test: --session chooses from --stream, which is missing")
	case *only != "" && !sessionID.MatchString(id):
		return usage("test: --session %q: a session id is 16 hexadecimal digits", *only)
	}
	var invented *invention
	if *stream == "" {
		var err error
		if invented, err = newInvention(*src, *dst, *rdns, *fcrdns, steps); err != nil {
			return usage("test: %w", err)
		}
	}

	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	c, err := e.configuration(*policy, lists)
	if err != nil {
		return err
	}
	for _, n := range c.Notes {
		fmt.Fprintln(e.err, "warning:", n)
	}
	t := &trial{policy: c.Policy, config: c, lists: lists, verbose: *verbose}
	if *enforce {
		t.policy = t.policy.InMode(rules.Enforce)
	}
	told := 0
	t.done = func(s *tried) error {
		if id != "" && s.Session != id {
			return nil
		}
		if told++; invented != nil {
			for _, left := range invented.missed {
				s.NotReached = append(s.NotReached, "--"+left.kind+" "+printable([]byte(left.text)))
			}
		}
		if *asJSON {
			j := json.NewEncoder(e.out)
			j.SetEscapeHTML(false)
			return j.Encode(s)
		}
		if told > 1 {
			fmt.Fprintln(e.out)
		}
		s.print(e.out)
		return nil
	}
	if invented != nil {
		invented.asked = session.Phases(t.policy)
		invented.answer = func() (string, string) { return t.last[0], t.last[1] }
		return t.play(invented.lines())
	}
	f, err := os.Open(*stream)
	if err != nil {
		return err
	}
	defer f.Close()
	var failed error
	if err := t.play(recorded(f, &failed)); err != nil {
		return err
	}
	switch {
	case failed != nil:
		return failed
	case told == 0 && id != "":
		return fmt.Errorf("%s has no session %s", *stream, id)
	case told == 0:
		return fmt.Errorf("%s has no session; is it a stream of smtpd-filters(7)?", *stream)
	case t.seen == 0 && len(t.asked) > 0:
		fmt.Fprintln(e.err, "warning: the stream has no request in a phase of the policy: who recorded it did not ask for them")
	}
	return nil
}

// configuration loads what is to be tried: the ready policy of that name, or
// the file.
func (e *env) configuration(policy string, lists *lookup.Lists) (*config.Config, error) {
	if policy != "" {
		return config.Ready(policy, lists)
	}
	name, err := e.chosen(nil)
	if err != nil {
		return nil, err
	}
	return config.Load(name, lists, nil, false)
}
