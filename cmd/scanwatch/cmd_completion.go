package main

import (
	"strings"

	"github.com/spf13/cobra"

	"scanwatch/rules"
)

var shells = []string{"bash", "zsh", "fish"}

func newCompletion(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a completion script for a shell.",
		Long: "Print a script that completes commands, options and their values. Packages\n" +
			"install these scripts. The script for bash requires bash-completion.",
		Example: "  scanwatch completion bash > ~/.local/share/bash-completion/completions/scanwatch\n" +
			"  scanwatch completion fish > ~/.config/fish/completions/scanwatch.fish",
		Args:      argsBetween(1, 1),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(e.out, true)
			case "zsh":
				return root.GenZshCompletion(e.out)
			case "fish":
				return root.GenFishCompletion(e.out, true)
			}
			return usage("completion %q: must be %s", args[0], strings.Join(shells, ", "))
		},
	}
}

// completePolicies completes the names of presets and files.
func completePolicies(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return rules.PolicyNames(), cobra.ShellCompDirectiveDefault
}

// completeFile completes a single file name.
func completeFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}
