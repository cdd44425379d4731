package main

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

func newPolicy(e *env) *cobra.Command {
	var text, privacy bool
	cmd := &cobra.Command{
		Use:   "policy [--print|--privacy] [FILE|PRESET]",
		Short: "Describe a policy in plain English.",
		Long: "Describe, for users, which clients a configuration rejects and exempts. PRESET\n" +
			"is open, standard or tight. The default is the configuration of the filter.",
		Example:           "  scanwatch policy --privacy\n  scanwatch policy --print standard > /etc/scanwatch/scanwatch.conf",
		Args:              argsBetween(0, 1),
		ValidArgsFunction: completePolicies,
		RunE:              func(_ *cobra.Command, args []string) error { return runPolicy(e, args, text, privacy) },
	}
	cmd.Flags().BoolVar(&text, "print", false, "print the configuration itself")
	cmd.Flags().BoolVar(&privacy, "privacy", false, "describe what is stored about users and senders")
	cmd.MarkFlagsMutuallyExclusive("print", "privacy")
	return cmd
}

func runPolicy(e *env, args []string, asText, privacy bool) error {
	if len(args) == 1 && slices.Contains(rules.PolicyNames(), args[0]) {
		text, err := rules.ReadyPolicy(args[0])
		if err != nil {
			return err
		}
		if asText {
			_, err = e.out.Write(text)
			return err
		}
		tree, err := rules.Parse(args[0]+".conf", func(string) ([]byte, error) { return text, nil })
		if err != nil {
			return err
		}
		return describePolicy(e, tree, privacy)
	}
	name, err := e.chosen(args)
	if err != nil {
		return err
	}
	if _, err := os.Stat(name); len(args) == 1 && errors.Is(err, os.ErrNotExist) {
		return usage("policy %q: no such file; the presets are %s", name, strings.Join(rules.PolicyNames(), ", "))
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err != nil {
		return err
	}
	if asText {
		_, err := e.out.WriteString(tree.String())
		return err
	}
	return describePolicy(e, tree, privacy)
}

// notPreset returns an error with a remedy if name, the file of a configuration, is the name of a
// preset and of no file.
func notPreset(name, remedy string) error {
	if _, err := os.Stat(name); slices.Contains(rules.PolicyNames(), name) && errors.Is(err, os.ErrNotExist) {
		return usage("%q: no such file; %s", name, remedy)
	}
	return nil
}

// describePolicy prints a description of a policy. If privacy is set, it instead prints
// what data the filter stores under that policy.
func describePolicy(e *env, tree *rules.Config, privacy bool) error {
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		return err
	}
	if privacy {
		return p.DescribePrivacy(e.out, memory.Retention())
	}
	return p.Describe(e.out)
}
