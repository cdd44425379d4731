package main

// This file implements the test command. Go would treat a file named cmd_test.go as a test.

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/internal/trial"
	"scanwatch/rules"
)

type testFlags struct {
	policy                 string
	enforce, verbose, json bool
	src, dst, rdns, fcrdns string
	standing               string
	steps                  []trial.Step
	stream, session        string
}

// A stepFlag is a repeatable flag. All step flags append to the same list, so that the order on the
// command line is preserved.
type stepFlag struct {
	kind string
	list *[]trial.Step
}

func (f stepFlag) String() string { return "" }
func (f stepFlag) Type() string   { return "" }
func (f stepFlag) Set(text string) error {
	*f.list = append(*f.list, trial.Step{Kind: f.kind, Text: text})
	return nil
}

var stepUsage = map[string]string{
	"helo":      "greet as `NAME`",
	"line":      "send the unknown command `TEXT`",
	"auth":      "log in as `USER`",
	"guess":     "fail to log in as `USER`",
	"mail-from": "send from `ADDRESS`",
	"rcpt":      "name the recipient `ADDRESS`, which smtpd accepts",
	"refuse":    "name the recipient `ADDRESS`, which smtpd rejects",
	"listed":    "have the answer `LIST=CODE,...` of a DNS list; LIST=none if not listed",
}

// sessionID matches smtpd's session ids.
var sessionID = regexp.MustCompile(`^[0-9a-f]{16}$`)

func newTest(e *env) *cobra.Command {
	var f testFlags
	cmd := &cobra.Command{
		Use:   "test [--enforce] {--src ADDRESS ... | --stream FILE}",
		Short: "Test a policy with one session.",
		Long: "Apply a policy to a session and print findings, rules and replies. The session\n" +
			"has the commands given by the options, in that order, and ends with a message if\n" +
			"a recipient is accepted. The default policy is that of the configuration.",
		Example: "  scanwatch test --policy standard --enforce --src 192.0.2.1 --helo ylmf-pc\n" +
			"  scanwatch test --stream session.in --session 5a1f9c2e00c0ffee",
		RunE: func(*cobra.Command, []string) error { return runTest(e, &f) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.policy, "policy", "", "test the preset `NAME`: open, standard or tight")
	fs.BoolVar(&f.enforce, "enforce", false, "act as in enforce mode")
	fs.StringVar(&f.src, "src", "", "connect from `ADDRESS`")
	fs.StringVar(&f.dst, "dst", "192.0.2.25:25", "connect to `ADDRESS:PORT`")
	fs.StringVar(&f.rdns, "rdns", "", "have the reverse name `NAME`")
	fs.StringVar(&f.fcrdns, "fcrdns", "", "have the FCrDNS result `WORD`: pass (default with a name), fail or error")
	fs.StringVar(&f.standing, "standing", "", "have the standing `WORD`: known or trusted")
	for _, kind := range trial.StepKinds() {
		fs.Var(stepFlag{kind, &f.steps}, kind, stepUsage[kind])
		_ = cmd.RegisterFlagCompletionFunc(kind, cobra.NoFileCompletions)
	}
	fs.StringVar(&f.stream, "stream", "", "play the recorded stream `FILE`")
	fs.StringVar(&f.session, "session", "", "play only the session `ID` of the stream")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "also print rules that do not match")
	fs.BoolVar(&f.json, "json", false, "print one JSON object for each session")
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(rules.PolicyNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("standing", cobra.FixedCompletions(standings, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("fcrdns", cobra.FixedCompletions([]string{"pass", "fail", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// standings lists the values of --standing.
var standings = []string{rules.StandingKnown.String(), rules.StandingTrusted.String()}

// check returns an error if the given flags cannot be combined.
func (f *testFlags) check() error {
	f.session = strings.ToLower(f.session)
	switch {
	case f.src == "" && f.stream == "":
		return usage("test: --src or --stream is required; see scanwatch test --help")
	case f.stream != "" && (f.src != "" || f.rdns != "" || f.fcrdns != "" || f.standing != "" || len(f.steps) > 0):
		return usage("test: --stream excludes options that describe a session, except --session")
	case f.standing != "" && !slices.Contains(standings, f.standing):
		return usage("test: --standing %q: must be known or trusted", f.standing)
	case f.session != "" && f.stream == "":
		return usage("test: --session requires --stream")
	case f.session != "" && !sessionID.MatchString(f.session):
		return usage("test: --session %q: not a session id of 16 hexadecimal digits", f.session)
	}
	return nil
}

func runTest(e *env, f *testFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	var script *trial.Script
	if f.stream == "" {
		var err error
		if script, err = trial.NewScript(f.src, f.dst, f.rdns, f.fcrdns, f.steps); err != nil {
			return usage("test: %w", err)
		}
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	c, err := e.configuration(f.policy, lists)
	if err != nil {
		return err
	}
	for _, n := range c.Notes {
		fmt.Fprintln(e.err, "warning:", n)
	}
	settings := &filter.Settings{Policy: c.Policy, ASN: c.ASN, Country: c.Country}
	if f.enforce {
		settings.Policy = c.Policy.InMode(rules.Enforce)
	}
	if script != nil {
		if err := script.SetLists(c.Policy.Lookups); err != nil {
			return usage("test: %w", err)
		}
	}
	played := 0
	o := trial.Options{Settings: settings, Lists: lists, Verbose: f.verbose, Done: func(s *trial.Session) error {
		if f.session != "" && s.Session != f.session {
			return nil
		}
		played++
		if f.json {
			return s.JSON(e.out)
		}
		if played > 1 {
			fmt.Fprintln(e.out)
		}
		s.Text(e.out)
		return nil
	}}
	if f.standing != "" {
		o.Standing = rules.StandingKnown + rules.Standing(slices.Index(standings, f.standing))
	}
	if script != nil {
		return trial.Play(script, o)
	}
	file, err := os.Open(f.stream)
	if err != nil {
		return err
	}
	defer file.Close()
	err = trial.PlayStream(file, o)
	switch {
	case err != nil:
		return err
	case played == 0 && f.session != "":
		return fmt.Errorf("%s has no session %s", f.stream, f.session)
	case played == 0:
		return fmt.Errorf("%s contains no sessions; expected a stream in the format of smtpd-filters(7)", f.stream)
	}
	return nil
}

// configuration loads the preset named policy, or the configuration if policy is empty.
func (e *env) configuration(policy string, lists *lookup.Lists) (*config.Config, error) {
	if policy != "" {
		return config.Ready(policy, lists)
	}
	name, err := e.chosen(nil)
	if err != nil {
		return nil, fmt.Errorf("%w; to test a preset, add --policy standard", err)
	}
	return config.Load(name, lists, nil, false)
}
