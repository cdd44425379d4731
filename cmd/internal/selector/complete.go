package selector

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/rules"
)

// Complete registers completions for flag values, and must be called after Register.
// ruleNames returns the names of rules.
func Complete(cmd *cobra.Command, ruleNames func() []string) {
	tokens := func() []string { return append(Tokens(), AnyEvidence) }
	points := []string{"today", "yesterday", "24h", "7d", "30d"}
	for name, f := range map[string]cobra.CompletionFunc{
		"since":    cobra.FixedCompletions(points, cobra.ShellCompDirectiveNoFileComp),
		"until":    cobra.FixedCompletions(points, cobra.ShellCompDirectiveNoFileComp),
		"evidence": CompleteList(tokens),
		"rule":     CompleteList(ruleNames),
		"listener": CompleteList(func() []string { return []string{":25", ":465", ":587"} }),
		"src":      cobra.NoFileCompletions,
		"user":     cobra.NoFileCompletions,
		"helo":     cobra.NoFileCompletions,
		"limit":    cobra.NoFileCompletions,
	} {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, f) // fails only if a completion is already registered
		}
	}
}

// Tokens returns the tokens for all kinds of evidence.
func Tokens() []string {
	names := make([]string, len(rules.Tokens))
	for i := range rules.Tokens {
		names[i] = rules.Tokens[i].Name
	}
	return names
}

// CompleteList completes the last element of a comma-separated list. Words that are
// already in the list are not offered.
func CompleteList(words func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, text string) ([]string, cobra.ShellCompDirective) {
		before := text[:strings.LastIndexByte(text, ',')+1]
		given := strings.Split(before, ",")
		var offers []string
		for _, w := range words() {
			if strings.HasPrefix(w, text[len(before):]) && !slices.Contains(given, w) {
				offers = append(offers, before+w)
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp
	}
}
