package main

import "github.com/spf13/cobra"

func newHelp(*env) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Print help about a command.",
		Long:    "Print the list of commands, or the options and examples of a command.",
		Example: "  scanwatch help\n  scanwatch help report returns",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			about := cmd.Root()
			for _, word := range args {
				next := child(about, word)
				if next == nil {
					return unknownCommand(about, word)
				}
				about = next
			}
			return about.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			about := cmd.Root()
			for _, word := range args {
				if about = child(about, word); about == nil {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
			}
			var offers []string
			for _, c := range about.Commands() {
				if c.IsAvailableCommand() {
					offers = append(offers, c.Name()+"\t"+c.Short)
				}
			}
			return offers, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// child returns the named subcommand, or nil.
func child(cmd *cobra.Command, word string) *cobra.Command {
	found, rest, err := cmd.Find([]string{word})
	if err != nil || len(rest) > 0 {
		return nil
	}
	return found
}
