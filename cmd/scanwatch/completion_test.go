package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// completions are what is offered at the end of a line, in a folder with the
// file tune.conf and the folder mydir.
var completions = []struct{ line, want string }{
	{"scanwatch rep", "report"},
	{"scanwatch sta", "stats status"},
	{"scanwatch -s mydir why --a", "--all --as"},
	{"scanwatch -f tu", "tune.conf"},
	{"scanwatch -s my", "mydir"},
	{"scanwatch report r", "returns"},
	{"scanwatch dump --ev", "--evidence"},
	{"scanwatch dump --evidence helo-own", "helo-own-address helo-own-name"},
	{"scanwatch watch --json --src 192.0.2.0/24 --evidence har", "harvest"},
	{"scanwatch why --as se", "sender session"},
	{"scanwatch policy t", "tight tune.conf"},
	{"scanwatch policy --print sta", "standard"},
	{"scanwatch check tu", "tune.conf"},
	{"scanwatch import my", "mydir mylog"},
	{"scanwatch import --format spamhaus-d", "spamhaus-drop"},
	{"scanwatch test --policy ti", "tight"},
	{"scanwatch test --fcrdns pa", "pass"},
	{"scanwatch log v", "verbose"},
	{"scanwatch completion z", "zsh"},
	{"scanwatch ban --for tu", ""},
	{"scanwatch stats tu", ""},
}

// The shells are asked for all lines at once: each answer is a line of its
// own, its words divided by blanks.
var askShell = map[string]string{
	"bash": `
source ./script
while IFS= read -r line; do
	[[ $line == *' ' ]] && line+="''"
	eval "COMP_WORDS=($line)"
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	_scanwatch
	echo "${COMPREPLY[*]}"
done < lines`,
	"fish": `
source ./script
while read -l line
	echo (complete -C "$line" | string replace -r '\t.*' '')
end < lines`,
	// Only a line editor has completions in zsh: one on a terminal of its own,
	// whose builtin that takes the matches is made to note them.
	"zsh": `
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'PS1=; unsetopt zle_bracketed_paste 2>/dev/null; unset zle_bracketed_paste'
zpty -w z 'autoload -Uz compinit; compinit -u -D; source ./script'
zpty -w z 'compadd() { local -a got; if [[ " $* " != *" -"(O|A|D)" "* ]]; then builtin compadd -O got "$@"; print -rl -- $got >> answers; fi; builtin compadd "$@" }'
zpty -w z 'answered() { : > done; BUFFER= }; zle -N answered; bindkey "^G" answered; bindkey "^I" complete-word; LISTMAX=1000; setopt no_beep'
while IFS= read -r line; do
	rm -f done answers
	: > answers
	zpty -w -n z "$line"$'\t\x07'
	until [[ -e done ]]; do zpty -r -t z scrap; done
	words=(${(fu)"$(< answers)"})
	print -r -- $words
done < lines
zpty -d z`,
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			program, err := exec.LookPath(shell)
			if err != nil {
				if os.Getenv("SCANWATCH_NO_SKIP") != "" {
					t.Fatal(err)
				}
				t.Skipf("SKIP: %s is not installed, its completion is not tested", shell)
			}
			dir := t.TempDir()
			var lines strings.Builder
			for _, c := range completions {
				lines.WriteString(c.line + "\n")
			}
			for name, text := range map[string]string{"script": completionScript(t, shell), "lines": lines.String(), "tune.conf": "", "mydir/x": ""} {
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(program, "-c", askShell[shell])
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "HOME="+dir, "TERM=dumb", "LC_ALL=C")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil || stderr.Len() > 0 {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if len(answers) != len(completions) {
				t.Fatalf("%d answers to %d lines:\n%s", len(answers), len(completions), out)
			}
			for i, c := range completions {
				got := strings.Fields(strings.ReplaceAll(answers[i], "/", ""))
				slices.Sort(got)
				if got := strings.Join(got, " "); got != c.want {
					t.Errorf("%q: offered %q, want %q", c.line, got, c.want)
				}
			}
		})
	}
}

func completionScript(t *testing.T, shell string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	if status := program(&stderr).main([]string{"completion", shell}, &out); status != exitOK {
		t.Fatalf("completion %s: %s", shell, stderr.String())
	}
	return out.String()
}

// TestCompletionIsComplete: a flag that takes a value says in the usage line or
// the help what value that is, so that the scripts can offer it.
func TestCompletionIsComplete(t *testing.T) {
	for _, c := range allCompleted() {
		for _, f := range c.flags {
			if f.value.what == "VALUE" {
				t.Errorf("%s: neither the usage line nor the help tells what %s takes", c.name, f.name)
			}
		}
	}
}
