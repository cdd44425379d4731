package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"scanwatch/cmd/internal/selector"
	"scanwatch/rules"
	"scanwatch/store"
)

// Groups of commands in the help.
const (
	groupLook     = "look"
	groupDecide   = "decide"
	groupPolicy   = "policy"
	groupMaintain = "maintain"
)

var groups = []*cobra.Group{
	{ID: groupLook, Title: "Read the records and the running filter:"},
	{ID: groupDecide, Title: "Ban and explain clients:"},
	{ID: groupPolicy, Title: "Write and test a policy:"},
	{ID: groupMaintain, Title: "Maintain the filter and its files:"},
}

// commands contains the commands in the order of the help. A new command needs a file cmd_NAME.go
// and an entry here.
var commands = []struct {
	group string
	make  func(*env) *cobra.Command
}{
	{groupLook, newReport},
	{groupLook, newWhy},
	{groupLook, newShow},
	{groupLook, newDump},
	{groupLook, newStatus},
	{groupLook, newWatch},
	{groupLook, newTop},
	{groupDecide, newBans},
	{groupDecide, newBan},
	{groupDecide, newUnban},
	{groupDecide, newExport},
	{groupDecide, newSync},
	{groupDecide, newServe},
	{groupDecide, newLookup},
	{groupDecide, newForward},
	{groupDecide, newShare},
	{groupDecide, newFacts},
	{groupMaintain, newKey},
	{groupPolicy, newCheck},
	{groupPolicy, newPolicy},
	{groupPolicy, newTest},
	{groupPolicy, newBacktest},
	{groupPolicy, newLists},
	{groupPolicy, newUpdate},
	{groupMaintain, newReload},
	{groupMaintain, newMode},
	{groupMaintain, newLog},
	{groupMaintain, newFlush},
	{groupMaintain, newStats},
	{groupMaintain, newFsck},
	{groupMaintain, newImport},
	{groupMaintain, newFollow},
	{groupMaintain, newForget},
	{groupMaintain, newAnonymize},
	{groupMaintain, newCompletion},
	{groupMaintain, newVersion},
	{groupMaintain, newHelp},
}

func init() {
	cobra.EnableCommandSorting = false
	cobra.EnablePrefixMatching = true
}

// root returns the root command.
func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:     "scanwatch",
		Short:   "Show the SMTP sessions of remote hosts.",
		Long:    "Read the records of filter-scanwatch, control the running filter, and test\npolicies. Commands may be shortened while they are unambiguous.",
		Example: "  scanwatch report --since yesterday\n  scanwatch why alice@example.com",
		RunE: func(*cobra.Command, []string) error {
			return usage("no command given; see scanwatch help")
		},
		// Cobra itself checks the groups later, but its error would not be a usageError.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateFlagGroups(); err != nil {
				return usage("%w; see %s --help", err, cmd.CommandPath())
			}
			return nil
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(e.out)
	root.SetErr(e.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpTemplate(helpTemplate)
	root.SetVersionTemplate("scanwatch {{.Version}}\n")
	global := root.PersistentFlags()
	global.StringVarP(&e.file, "config", "f", e.file, "read the configuration from `FILE`")
	global.StringVarP(&e.dir, "state", "s", e.dir, "use the state directory `DIR`; default "+store.DefaultDir())
	global.BoolP("version", "V", false, "print the version")
	global.BoolP("help", "h", false, "print help")
	_ = root.MarkPersistentFlagDirname("state") // fails only for an unknown flag
	root.AddGroup(groups...)
	for _, c := range commands {
		cmd := c.make(e)
		cmd.GroupID = c.group
		root.AddCommand(cmd)
		if cmd.Name() == "help" {
			root.SetHelpCommand(cmd)
		}
	}
	prepare(e, root)
	return root
}

// prepare applies the settings that all commands share.
func prepare(e *env, cmd *cobra.Command) {
	cmd.Version = version
	cmd.DisableFlagsInUseLine = true
	if cmd.Args == nil && cmd.HasParent() {
		cmd.Args = argsBetween(0, 0)
	}
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	selector.Complete(cmd, e.ruleNames)
	for _, sub := range cmd.Commands() {
		prepare(e, sub)
	}
}

// helpTemplate is the template for help text, which is at most 80 columns wide.
const helpTemplate = `{{.Short}}

Usage:{{if .HasParent}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND ...{{end}}
{{with .Long}}
{{.}}
{{end}}
Examples:
{{.Example}}
{{$all := .Commands}}{{range .Groups}}{{$id := .ID}}
{{.Title}}
{{range $all}}{{if eq .GroupID $id}}  {{rpad .Name 11}}{{.Short}}
{{end}}{{end}}{{end}}{{if and .HasAvailableSubCommands .HasParent}}
Commands:
{{range $all}}  {{rpad .Name 11}}{{.Short}}
{{end}}{{end}}{{if and .HasParent .LocalFlags.HasAvailableFlags}}
Options:
{{.LocalFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}
{{end}}
Global options:
{{if .HasParent}}{{.InheritedFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}{{else}}{{.PersistentFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}{{end}}
`

// run runs the command line.
func (e *env) run(args []string) error {
	root := e.root()
	root.SetArgs(args)
	_, err := root.ExecuteC()
	if err == nil {
		return nil
	}
	// Find fails only for an unknown command.
	if _, _, unknown := root.Find(args); unknown != nil {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		fs.ParseErrorsAllowlist.UnknownFlags = true
		fs.AddFlagSet(root.PersistentFlags())
		if fs.Parse(args) == nil && fs.NArg() > 0 {
			return unknownCommand(root, fs.Arg(0))
		}
	}
	return err
}

// unknownCommand returns the error for an unknown command.
func unknownCommand(parent *cobra.Command, word string) error {
	hint := fmt.Sprintf("see %s --help", parent.CommandPath())
	if names := suggestions(parent, word); len(names) > 0 {
		hint = "did you mean " + strings.Join(names, " or ") + "?"
	}
	return usage("unknown command %q; %s", word, hint)
}

// suggestions returns the names of similar commands, quoted.
func suggestions(parent *cobra.Command, word string) []string {
	parent.SuggestionsMinimumDistance = 2
	var names []string
	for _, name := range parent.SuggestionsFor(word) {
		names = append(names, strconv.Quote(name))
	}
	return names
}

// flagError returns the error for an invalid flag.
func flagError(cmd *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	hint := fmt.Sprintf("see %s --help", cmd.CommandPath())
	switch {
	case errors.As(err, &value):
		name := value.GetFlag().Name
		if len(name) > 1 {
			name = "-" + name
		}
		if quoted := strconv.Quote(value.GetValue()); strings.HasPrefix(value.Unwrap().Error(), quoted) {
			return usage("-%s: %w", name, value.Unwrap())
		}
		return usage("-%s %q: %w", name, value.GetValue(), value.Unwrap())
	case errors.As(err, &unknown):
		if name := rules.Nearest(unknown.GetSpecifiedName(), flagNames(cmd)); name != "" {
			hint = "did you mean --" + name + "?"
		}
	}
	return usage("%w; %s", err, hint)
}

// flagNames returns the long names of a command's flags.
func flagNames(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// argsBetween returns a function that checks the number of arguments.
func argsBetween(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage("%s: argument missing; usage: %s", cmd.Name(), cmd.UseLine())
		case len(args) > most && cmd.HasSubCommands():
			return unknownCommand(cmd, args[most])
		case len(args) > most:
			return usage("%s: unexpected argument %q; usage: %s", cmd.Name(), args[most], cmd.UseLine())
		}
		return nil
	}
}

// ruleNames returns the names of the configured rules, for completion.
func (e *env) ruleNames() (names []string) {
	tree, _, err := e.tree()
	if err != nil || tree == nil {
		return nil
	}
	for _, statement := range tree.All() {
		if r, ok := statement.(*rules.Rule); ok && !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}
