// Command scanwatch shows what filter-scanwatch has recorded. See scanwatch(8).
package main

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"scanwatch/cmd/internal/config"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

// version is set when the program is built.
var version = "devel"

// The exit statuses.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

const usageLine = "usage: scanwatch [-hV] [-f FILE] [-s STATEDIR] VERB ..."

// A verb is one thing the program does.
type verb struct {
	name  string
	args  string // as in the manual
	short string // one line
	help  string // the rest of the help, may be empty
	run   func(e *env, args []string) error
}

// verbs are the verbs, in the order of the help.
func verbs() []verb {
	return []verb{
		{"report", "[returns|scanners] [--since WHEN] [--top N] [--json] [FLAG ...]", "what came in, problems first; who came back; who scans", reportHelp, report},
		{"dump", "[--since WHEN] [--src PREFIX] [--evidence TOKEN] [--csv]", "every session, one JSON object a line, oldest first", dumpHelp, dump},
		{"show", "[--json] SESSION-ID", "one session as a story", "SESSION-ID is the number that smtpd logs: 16 hexadecimal digits.", show},
		{"why", "[--as KIND] [--since WHEN] [--all] [--json] ARG", "what was decided about a client, why, and how to undo it", whyHelp, why},
		{"status", "[--json]", "how the running filter is doing", "", status},
		{"bans", "[--all] [--json] [PREFIX]", "who is banned, until when and why", bansHelp, bans},
		{"ban", "[--for DURATION] [--reason TEXT] [--force] PREFIX", "turn a host or network away", banHelp, banVerb},
		{"unban", "PREFIX", "end bans at once", unbanHelp, unban},
		{"flush", "", "return when all that was recorded is on disk", "", flush},
		{"stats", "[--json | --prometheus [-o FILE]]", "what the state directory holds, and what was dropped", statsHelp, stats},
		{"fsck", "[--repair] [--json]", "whether the files are well, and mend them", fsckHelp, fsck},
		{"check", "[FILE]", "what is wrong with a configuration", checkHelp, check},
		{"policy", "[--print] [FILE|POLICY]", "what a configuration refuses, in plain English", policyHelp, policy},
		{"test", "[--enforce] --src ADDRESS [FLAG ...] | --stream FILE", "what a configuration would do with a session", testHelp, try},
		{"backtest", "[--policy POLICY] [--rule NAME] [--since WHEN] [--json] [FILE]", "what a configuration would have done with the past", backtestHelp, backtest},
		{"anonymize", "[--key FILE] OUTDIR", "a copy of the records without people, addresses and names", anonymizeHelp, anonymizeVerb},
		{"export", "FORMAT [--evidence TOKEN,...] [--min-confidence WORD] [--since WHEN] [--ttl DURATION] [--bans] [--aggregate] [--private] [--diff STATEFILE] [-o FILE] [-v]", "bans and findings for firewalls, mail servers and services", exportHelpText(), exportVerb},
		{"import", "mylog DIR | --check FILE [--format FORMAT] | --formats", "take over old records; what of a list can be used", importHelp, importVerb},
		{"watch", "[--evidence TOKEN] [--src PREFIX] [--json]", "follow findings, verdicts and bans live", watchHelp, watch},
		{"top", "[--evidence TOKEN] [--interval DURATION] [--once]", "what the filter does just now, on the whole terminal", topHelp, top},
		{"log", "brief|verbose", "change how much the running filter logs", logHelp, logVerb},
		{"reload", "[--force]", "make the filter load its configuration again", reloadHelp, reload},
		{"completion", "bash|zsh|fish", "print a script with which a shell completes all this", completionHelp, completion},
	}
}

// configures tells whether v is about a configuration, and complains about it
// itself, or needs none.
func (v *verb) configures() bool {
	return v.name == "check" || v.name == "policy" || v.name == "test" || v.name == "import" || v.name == "completion"
}

// synopsis is how v is called, after before, in lines of less than 80 columns
// that are not broken within brackets.
func (v *verb) synopsis(before string) string {
	line := before + "scanwatch " + v.name
	indent := strings.Repeat(" ", len(line)+1)
	var b strings.Builder
	for part := range strings.SplitSeq(strings.ReplaceAll(v.args, " [", "\n["), "\n") {
		if len(line)+1+len(part) >= 80 {
			b.WriteString(line + "\n")
			line = indent + part
		} else if part != "" {
			line += " " + part
		}
	}
	return b.String() + line
}

// env is what a verb works with.
type env struct {
	file     string // the configuration that -f names
	verb     *verb
	flags    *flag.FlagSet
	dir      string                   // the state directory
	find     func(file string) string // the configuration to use; see config.Find
	out      *bufio.Writer
	err      io.Writer
	stdout   io.Writer // as it is, for what needs a terminal
	terminal io.Writer // err as it is, for progress
	now      func() time.Time
	zone     *time.Location
}

// usageError is the user's mistake.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	signal.Ignore(syscall.SIGPIPE) // head(1) is no reason to die; see run
	e := &env{err: os.Stderr, find: config.Find, now: time.Now, zone: time.Local}
	os.Exit(e.main(os.Args[1:], os.Stdout))
}

// main does what args say and returns the exit status.
func (e *env) main(args []string, stdout io.Writer) int {
	safe := store_report.NewWriter(stdout)
	e.out = bufio.NewWriterSize(safe, 64<<10)
	e.stdout, e.terminal, e.err = stdout, e.err, store_report.NewWriter(e.err)
	err := e.run(args)
	// Also after an error: what came before it is worth seeing.
	if failed := errors.Join(e.out.Flush(), safe.Close()); err == nil || errors.Is(err, flag.ErrHelp) {
		err = failed
	}
	var wrong usageError
	var status statusError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE): // head(1) has seen enough
		return exitOK
	case errors.As(err, &wrong):
		e.complain(err)
		return exitUsage
	case errors.As(err, &status):
		e.complain(err)
		return status.status
	case errors.As(err, new(rules.Errors)):
		fmt.Fprint(e.err, config.Detail(err))
		return exitFailure
	default:
		e.complain(err)
		return exitFailure
	}
}

// complain prints an error: on one line for grep(1) and logs, in lines of less
// than 80 columns for who sits in front of it.
func (e *env) complain(err error) {
	text := fmt.Sprintf("scanwatch: %v", err)
	if newProgress(e).shown {
		text = fold(text, 79, 4)
	}
	fmt.Fprintln(e.err, text)
}

// fold breaks the lines of text that are longer than columns, at blanks. What has
// been broken off is indented.
func fold(text string, columns, indent int) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if utf8.RuneCountInString(line) <= columns {
			continue
		}
		var b strings.Builder
		n := 0
		for j, word := range strings.Split(line, " ") {
			width := utf8.RuneCountInString(word)
			switch {
			case j == 0:
			case n+1+width > columns:
				b.WriteString("\n" + strings.Repeat(" ", indent))
				n = indent
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += width
		}
		lines[i] = b.String()
	}
	return strings.Join(lines, "\n")
}

func (e *env) run(args []string) error {
	global := flag.NewFlagSet("scanwatch", flag.ContinueOnError)
	global.SetOutput(io.Discard)
	file := global.String("f", "", "")
	dir := global.String("s", "", "")
	showVersion := global.Bool("V", false, "")
	if err := global.Parse(args); errors.Is(err, flag.ErrHelp) {
		return e.help()
	} else if err != nil {
		return usage("%v\n%s", err, usageLine)
	}
	if *showVersion {
		_, err := fmt.Fprintf(e.out, "scanwatch %s\n", version)
		return err
	}
	e.file, e.dir = *file, *dir // what the flag says wins
	args = global.Args()
	if len(args) == 0 {
		return usage("what is to be done?\n%s", usageLine+"\n"+list(verbs()))
	}
	v, err := find(args[0])
	if err != nil {
		return err
	}
	if !v.configures() {
		named, err := e.stateDir()
		if err != nil {
			return err
		}
		e.dir = cmp.Or(e.dir, named)
	}
	e.dir = cmp.Or(e.dir, store.DefaultDir())
	e.verb = v
	e.flags = flag.NewFlagSet(v.name, flag.ContinueOnError)
	e.flags.SetOutput(io.Discard)
	return v.run(e, args[1:])
}

// parse reads the flags of a verb, which may come before and after its
// arguments, and returns these.
func (e *env) parse(args []string, least, most int) ([]string, error) {
	var rest []string
	for {
		if err := e.flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(e.out, "%s\n\n%s.\n", e.verb.synopsis(""), e.verb.short)
			if e.verb.help != "" {
				fmt.Fprintf(e.out, "%s\n", e.verb.help)
			}
			return nil, flag.ErrHelp
		} else if err != nil {
			hint := ""
			if text := err.Error(); strings.HasSuffix(text, ": -s") || strings.HasSuffix(text, ": -f") {
				hint = "; -f and -s stand before the verb"
			}
			return nil, usage("%s: %v%s\n%s", e.verb.name, err, hint, e.verb.synopsis("usage: "))
		}
		args = e.flags.Args()
		if len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	if len(rest) < least || len(rest) > most {
		return nil, usage("%s: wrong number of arguments\n%s", e.verb.name, e.verb.synopsis("usage: "))
	}
	return rest, nil
}

// find finds the verb that word begins, if it is the only one.
func find(word string) (*verb, error) {
	all := verbs()
	var fit []verb
	for i := range all {
		if all[i].name == word {
			return &all[i], nil
		}
		if strings.HasPrefix(all[i].name, word) {
			fit = append(fit, all[i])
		}
	}
	switch len(fit) {
	case 1:
		return &fit[0], nil
	case 0:
		return nil, usage("unknown verb %q\nvalid verbs are:\n%s", word, list(all))
	default:
		return nil, usage("ambiguous verb %q\nit may continue as:\n%s", word, list(fit))
	}
}

func list(all []verb) string {
	var b strings.Builder
	for _, v := range all {
		fmt.Fprintf(&b, "  %-10s %s\n", v.name, v.short)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (e *env) help() error {
	fmt.Fprintf(e.out, `%s

Shows what filter-scanwatch has recorded, and tries configurations.

  -f FILE      configuration of the filter
  -s STATEDIR  state directory; default %s
  -V           print the version
  -h           print this; after a verb, what it does and takes

Verbs, which may be shortened:
%s
`, usageLine, store.DefaultDir(), list(verbs()))
	return flag.ErrHelp
}

// stateDir returns the state directory that the configuration names, if any. A
// broken configuration does not keep records from being read, unless it was
// asked for by name.
func (e *env) stateDir() (string, error) {
	name := e.find(e.file)
	if name == "" {
		return "", nil
	}
	tree, err := rules.Parse(name, os.ReadFile)
	if err == nil {
		return config.Beside(name, tree.Settings().Store), nil
	}
	if e.file != "" {
		return "", err
	}
	if e.dir == "" {
		first, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(e.err, "warning: %s; using the default state directory, see scanwatch check\n", first)
	}
	return "", nil
}
