package main

// The verbs about a configuration.

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/filter/memory"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
)

const checkHelp = `Without FILE the configuration that the filter would use. Exits with status 1 if
something is wrong with it. A table whose file is missing is wrong here; the
filter would go on without it.`

// chosen is the configuration file that a verb is about.
func (e *env) chosen(args []string) (string, error) {
	name := e.find(e.file)
	if len(args) > 0 {
		name = args[0]
	}
	if name == "" {
		return "", fmt.Errorf("there is no configuration file: name one, or begin one with scanwatch policy --print standard > %s", config.DefaultFile())
	}
	return name, nil
}

func check(e *env, args []string) error {
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	name, err := e.chosen(args)
	if err != nil {
		return err
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	c, err := config.Load(name, lists, nil, true)
	if err != nil {
		return err
	}
	fmt.Fprint(e.err, c.Warnings.Detail())
	for _, n := range c.Notes {
		fmt.Fprintln(e.err, "warning:", n)
	}
	e.reach(c)
	p := c.Policy
	var asked []string
	for _, id := range session.Phases(p) {
		asked = append(asked, id.String())
	}
	if len(asked) == 0 {
		asked = []string{"none"}
	}
	fmt.Fprintf(e.out, "%s is right.\n", name)
	fmt.Fprintf(e.out, "mode %v, %d rules\nsmtpd will ask in: %s\n", p.Mode, len(p.Rules()), strings.Join(asked, " "))
	for _, name := range slices.Sorted(maps.Keys(c.Tables())) {
		fmt.Fprintf(e.out, "table <%s>: %d entries\n", name, c.Tables()[name])
	}
	for _, o := range []*lookup.Origins{c.ASN, c.Country} {
		if o != nil {
			s := o.State()
			fmt.Fprintf(e.out, "database %s: %s, built %s\n", s.Path, s.Type, s.Built.UTC().Format(time.DateOnly))
		}
	}
	return nil
}

// reach warns of rules that turn away hosts that did good lately. Without a state
// directory nobody knows of any.
func (e *env) reach(c *config.Config) {
	var failed error
	peers := func(yield func(memory.Peer) bool) {
		failed = e.state([]string{"peers"}, func(en store.Entry) error {
			if p, ok := memory.ReadPeer(en.Key, en.Value, e.now().UnixMicro()); ok {
				_ = yield(p)
			}
			return nil
		})
	}
	for _, r := range c.Reach(peers, nil) {
		fmt.Fprintf(e.err, "warning: %v\n", &r)
	}
	if failed != nil && !errors.Is(failed, os.ErrNotExist) {
		fmt.Fprintf(e.err, "warning: what it means for hosts that did good lately is not known: %v\n", failed)
	}
}

const policyHelp = `POLICY is one that comes with the program: open, standard or tight. With --print
the policy's own text is written, to begin a configuration with.`

func policy(e *env, args []string) error {
	asText := e.flags.Bool("print", false, "")
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	if len(args) == 1 && slices.Contains(rules.PolicyNames(), args[0]) {
		text, err := rules.ReadyPolicy(args[0])
		if err != nil {
			return err
		}
		if *asText {
			_, err = e.out.Write(text)
			return err
		}
		tree, err := rules.Parse(args[0]+".conf", func(string) ([]byte, error) { return text, nil })
		if err != nil {
			return err
		}
		return describe(e, tree)
	}
	name, err := e.chosen(args)
	if err != nil {
		return err
	}
	if _, err := os.Stat(name); len(args) == 1 && errors.Is(err, os.ErrNotExist) {
		return usage("policy %q: there is no such file; the policies that come with the program are %s", name, strings.Join(rules.PolicyNames(), ", "))
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return err
	}
	if *asText {
		_, err := e.out.WriteString(tree.String())
		return err
	}
	return describe(e, tree)
}

func describe(e *env, tree *rules.Config) error {
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		return err
	}
	return p.Describe(e.out)
}

const importHelp = `mylog DIR takes over the sessions of the Perl filter that writes files h.SESSION
and r.SESSION. smtpd must be stopped meanwhile. Doing it twice does no harm.

  --check FILE    what of a list the filter could use; nothing is downloaded or
                  kept, the filter reads the files of its tables itself
  --format FORMAT what FILE is, if that is not plain from it; may be followed by
                  an option, as in "aws service EC2"
  --formats       which formats there are`

func importVerb(e *env, args []string) error {
	file := e.flags.String("check", "", "")
	format := e.flags.String("format", "", "")
	formats := e.flags.Bool("formats", false, "")
	args, err := e.parse(args, 0, 2)
	switch {
	case err != nil:
		return err
	case len(args) == 2 && args[0] == "mylog":
		return e.importMylog(args[1])
	case len(args) > 0:
		return usage("import %s: this is `import mylog DIR`, or `import --check FILE`", strings.Join(args, " "))
	}
	if *formats {
		for _, f := range feed.Formats() {
			put(e.out, fmt.Sprintf("%-18s%s", f.Name, f.Help), 18)
			if f.Option != "" {
				fmt.Fprintf(e.out, "%-18soption %s, default %s\n", "", f.Option, f.Default)
			}
		}
		return nil
	}
	if *file == "" {
		return usage("import: no file is named\nusage: scanwatch %s %s", e.verb.name, e.verb.args)
	}
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := feed.Parse(f, *format)
	if r != nil {
		fmt.Fprintf(e.out, "format    %s\n", r.Format)
		fmt.Fprintf(e.out, "entries   %d prefixes, %d AS numbers, %d names\n", len(r.Prefixes), len(r.ASNs), len(r.Names))
		if !r.Date.IsZero() {
			fmt.Fprintf(e.out, "made      %s\n", r.Date.UTC().Format(time.RFC3339))
		}
		if r.Notice != "" {
			fmt.Fprintf(e.out, "notice    %s\n", r.Notice)
		}
		if r.LeftOut > 0 {
			fmt.Fprintf(e.out, "left out  %d entries that the option does not ask for\n", r.LeftOut)
		}
		problems(e, "refused", r.Refused)
		problems(e, "warnings", r.Warnings)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be used: %w", *file, err)
	}
	fmt.Fprintf(e.out, "%s can be used.\n", filepath.Base(*file))
	return nil
}

func problems(e *env, what string, p feed.Problems) {
	if p.Total == 0 {
		return
	}
	fmt.Fprintf(e.out, "%-9s %d\n", what, p.Total)
	for _, problem := range p.First {
		fmt.Fprintf(e.out, "          %v\n", problem)
	}
	if n := p.Total - len(p.First); n > 0 {
		fmt.Fprintf(e.out, "          and %d more\n", n)
	}
}
