package main

// The verb completion: what a shell offers after scanwatch. All of it is taken
// from the table of verbs, their flags and their usage lines, so that a new
// verb needs nothing here.

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
)

const completionHelp = `The packages install these scripts. By hand:
  bash  scanwatch completion bash >
            ~/.local/share/bash-completion/completions/scanwatch
  zsh   scanwatch completion zsh > _scanwatch, in a folder of $fpath
  fish  scanwatch completion fish > ~/.config/fish/completions/scanwatch.fish`

// shells are those that have a script, with what writes it.
func shells() []struct {
	name  string
	write func(io.Writer, []completed)
} {
	return []struct {
		name  string
		write func(io.Writer, []completed)
	}{{"bash", bashScript}, {"zsh", zshScript}, {"fish", fishScript}}
}

func completion(e *env, args []string) error {
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range shells() {
		if s.name == args[0] {
			s.write(e.out, allCompleted())
			return nil
		}
		names = append(names, s.name)
	}
	return usage("completion %q: there is a script for %s", args[0], strings.Join(names, ", "))
}

// offer is what can stand in one place of the command line.
type offer struct {
	what  string // as the usage line has it; empty for nothing
	words []string
	files bool
	dirs  bool
}

type completedFlag struct {
	name  string // with its dashes
	value offer  // what is empty for a flag without a value
}

// completed is a verb as a shell has to know it.
type completed struct {
	name, short string
	flags       []completedFlag
	args        offer // all arguments together, in any place
}

// flagName is a flag as manuals and people write it.
func flagName(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// flagsOf returns the flags that v has, and its help.
func flagsOf(v *verb) (flags []*flag.Flag, help string) {
	var text strings.Builder
	e := &env{err: io.Discard, find: func(string) string { return "" }, out: bufio.NewWriter(&text),
		verb: v, flags: flag.NewFlagSet(v.name, flag.ContinueOnError)}
	e.flags.SetOutput(io.Discard)
	_ = v.run(e, []string{"-h"}) // flag.ErrHelp
	e.out.Flush()
	e.flags.VisitAll(func(f *flag.Flag) { flags = append(flags, f) })
	return flags, text.String()
}

// words are what a placeholder of a usage line stands for.
func words(verb, placeholder string) offer {
	o := offer{what: placeholder}
	switch placeholder {
	case "FILE":
		o.files = true
	case "DIR", "STATEDIR":
		o.dirs = true
	case "POLICY":
		o.words = rules.PolicyNames()
	case "TOKEN":
		for _, t := range rules.Tokens {
			o.words = append(o.words, t.Name)
		}
	case "KIND":
		for _, k := range whyKinds {
			o.words = append(o.words, k.name)
		}
	case "FORMAT":
		if verb == "import" {
			for _, f := range feed.Formats() {
				o.words = append(o.words, f.Name)
			}
		}
	default:
		if placeholder == strings.ToLower(placeholder) {
			o.words = strings.Split(placeholder, "|") // the words themselves
		}
	}
	return o
}

var (
	flagUsage = regexp.MustCompile(`(--?[a-z][a-z-]*)(?:[ =]([A-Z]+|[a-z]+(?:\|[a-z]+)+)(?:\W|$))?`)
	argUsage  = regexp.MustCompile(`[A-Za-z][A-Za-z-]*`)
)

func allCompleted() (all []completed) {
	for _, v := range verbs() {
		c := completed{name: v.name, short: v.short}
		flags, help := flagsOf(&v)
		placeholders := make(map[string]string)
		for _, m := range flagUsage.FindAllStringSubmatch(v.args+"\n"+help, -1) {
			if placeholders[m[1]] == "" {
				placeholders[m[1]] = m[2]
			}
		}
		for _, f := range flags {
			cf := completedFlag{name: flagName(f.Name)}
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); !ok || !b.IsBoolFlag() {
				cf.value = words(v.name, placeholders[cf.name])
				if cf.value.what == "" {
					cf.value = offer{what: "VALUE"}
				}
			}
			c.flags = append(c.flags, cf)
		}
		for _, placeholder := range argUsage.FindAllString(flagUsage.ReplaceAllString(v.args, " "), -1) {
			o := words(v.name, placeholder)
			c.args.what = strings.TrimPrefix(c.args.what+"|"+placeholder, "|")
			c.args.words = append(c.args.words, o.words...)
			c.args.files = c.args.files || o.files
			c.args.dirs = c.args.dirs || o.dirs
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b completed) int { return strings.Compare(a.name, b.name) })
	return all
}

// quote makes text one word of any of the shells.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// bashScript needs nothing but bash, not its package of completions.
func bashScript(w io.Writer, all []completed) {
	var names []string
	for _, c := range all {
		names = append(names, c.name)
	}
	fmt.Fprintf(w, `# bash completion for scanwatch(8), made by: scanwatch completion bash
_scanwatch() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
	local i verb= words= files=
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		-f|-s) ((i++)) ;;
		-*) ;;
		*) verb=${COMP_WORDS[i]}; break ;;
		esac
	done
	case $verb:$prev in
	:-f) files=-f ;;
	:-s) files=-d ;;
	:*) words='%s -V -f -h -s' ;;
`, strings.Join(names, " "))
	action := func(pattern string, o offer, flags ...string) {
		flags = append(slices.Clone(o.words), flags...)
		fmt.Fprintf(w, "\t%s) words=%s", pattern, quote(strings.Join(flags, " ")))
		switch {
		case o.files:
			fmt.Fprint(w, " files=-f")
		case o.dirs:
			fmt.Fprint(w, " files=-d")
		}
		fmt.Fprint(w, " ;;\n")
	}
	for _, c := range all {
		flags := []string{"-h"}
		for _, f := range c.flags {
			flags = append(flags, f.name)
			if f.value.what != "" {
				action(c.name+":"+f.name, f.value)
			}
		}
		action(c.name+":*", c.args, flags...)
	}
	fmt.Fprint(w, `	esac
	COMPREPLY=()
	# Flags are offered to those who have begun one, or where nothing else fits.
	local word fit=()
	for word in $words; do
		[[ $word == "$cur"* ]] || continue
		if [[ $word != -* || $cur == -* ]]; then COMPREPLY+=("$word"); else fit+=("$word"); fi
	done
	if [[ $files && $cur != -* ]]; then
		compopt -o filenames 2>/dev/null
		while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen $files -- "$cur")
	elif ((${#COMPREPLY[@]} == 0)); then
		COMPREPLY=("${fit[@]}")
	fi
}
complete -F _scanwatch scanwatch
`)
}

// zshScript is for a folder in $fpath; it can also be sourced after compinit.
func zshScript(w io.Writer, all []completed) {
	// In a specification a colon ends a field, brackets a description.
	field := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `[`, `\[`, `]`, `\]`)
	action := func(o offer) string {
		var alternatives []string
		if len(o.words) > 0 {
			alternatives = append(alternatives, "words:word:("+strings.Join(o.words, " ")+")")
		}
		switch {
		case o.files:
			alternatives = append(alternatives, "files:file:_files")
		case o.dirs:
			alternatives = append(alternatives, "directories:directory:_files -/")
		}
		switch len(alternatives) {
		case 0:
			return " "
		case 1:
			return strings.SplitN(alternatives[0], ":", 3)[2]
		}
		return `_alternative "` + strings.Join(alternatives, `" "`) + `"`
	}
	fmt.Fprint(w, `#compdef scanwatch
# zsh completion for scanwatch(8), made by: scanwatch completion zsh
_scanwatch() {
	local curcontext=$curcontext state line
	local -a verbs
	local -A opt_args
	_arguments -C \
		'-f[configuration of the filter]:file:_files' \
		'-s[state directory]:directory:_files -/' \
		'(- *)-V[print the version]' \
		'(- *)-h[print help]' \
		'1:verb:->verb' \
		'*::argument:->argument' && return
	case $state in
	verb)
		verbs=(
`)
	for _, c := range all {
		fmt.Fprintf(w, "\t\t\t%s\n", quote(c.name+":"+field.Replace(c.short)))
	}
	fmt.Fprint(w, "\t\t)\n\t\t_describe verb verbs ;;\n\targument)\n\t\tcase $words[1] in\n")
	for _, c := range all {
		fmt.Fprintf(w, "\t\t%s)\n\t\t\t_arguments '-h[print help]'", c.name)
		for _, f := range c.flags {
			spec := f.name
			if f.value.what != "" {
				spec += ":" + field.Replace(f.value.what) + ":" + action(f.value)
			}
			fmt.Fprintf(w, " \\\n\t\t\t\t%s", quote("*"+spec))
		}
		if c.args.what != "" {
			fmt.Fprintf(w, " \\\n\t\t\t\t%s", quote("*:"+field.Replace(c.args.what)+":"+action(c.args)))
		}
		fmt.Fprint(w, " ;;\n")
	}
	fmt.Fprint(w, "\t\tesac ;;\n\tesac\n}\nif [ \"$funcstack[1]\" = _scanwatch ]; then\n\t_scanwatch \"$@\"\nelse\n\tcompdef _scanwatch scanwatch\nfi\n")
}

func fishScript(w io.Writer, all []completed) {
	fmt.Fprint(w, `# fish completion for scanwatch(8), made by: scanwatch completion fish
# The verb is the first word that is neither a flag nor the value of one.
function __scanwatch_verb
	set -l skip no
	for word in (commandline -opc)[2..-1]
		if test $skip = yes
			set skip no
		else if contains -- $word -f -s
			set skip yes
		else if not string match -q -- '-*' $word
			echo $word
			return 0
		end
	end
	return 1
end
function __scanwatch_is
	test "$(__scanwatch_verb)" = "$argv"
end
complete -c scanwatch -f
complete -c scanwatch -n 'not __scanwatch_verb' -s f -r -F -d 'configuration of the filter'
complete -c scanwatch -n 'not __scanwatch_verb' -s s -x -a '(__fish_complete_directories)' -d 'state directory'
complete -c scanwatch -n 'not __scanwatch_verb' -s V -d 'print the version'
complete -c scanwatch -s h -d 'print help'
`)
	// The words that stand for o, with what else fish has to be told of them.
	action := func(o offer, must string) (s string) {
		words := strings.Join(o.words, " ")
		switch {
		case o.files:
			s = strings.Replace(must, "-x", "-r", 1) + " -F"
		case o.dirs:
			s, words = must, words+" (__fish_complete_directories)"
		default:
			s = must
		}
		if words = strings.TrimSpace(words); words != "" {
			s += " -a " + quote(words)
		}
		return s
	}
	for _, c := range all {
		fmt.Fprintf(w, "complete -c scanwatch -n 'not __scanwatch_verb' -a %s -d %s\n", c.name, quote(c.short))
		is := "complete -c scanwatch -n '__scanwatch_is " + c.name + "'"
		for _, f := range c.flags {
			kind, name := "-l", strings.TrimLeft(f.name, "-")
			if len(name) == 1 {
				kind = "-s"
			}
			fmt.Fprintf(w, "%s %s %s", is, kind, name)
			if f.value.what != "" {
				fmt.Fprintf(w, "%s", action(f.value, " -x"))
			}
			fmt.Fprintln(w)
		}
		if s := action(c.args, ""); s != "" {
			fmt.Fprintf(w, "%s%s\n", is, s)
		}
	}
}
