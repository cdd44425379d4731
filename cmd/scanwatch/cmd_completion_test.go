package main

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// completions lists command lines with their expected completions.
var completions = []struct{ line, want string }{
	{"rep", "report"},
	{"sta", "stats status"},
	{"-s mydir why --a", "--all --as"},
	{"report r", "returns"},
	{"report -s mydir s", "scanners"},
	{"dump --ev", "--evidence"},
	{"dump --evidence helo-own", "helo-own-address helo-own-name"},
	{"dump --evidence scanner,har", "scanner,harvest"},
	{"watch --json --src 192.0.2.0/24 --evidence har", "harvest"},
	{"report scanners --evidence=harv", "harvest"},
	{"export --evidence any,sca", "any,scanner"},
	{"export p", "pf pf-anchor plain postfix"},
	{"export plain ", ""},
	{"export plain --min-confidence m", "medium"},
	{"why --as se", "sender session"},
	{"policy t", "tight"},
	{"lists sc", "scanners"},
	{"lists scanners --format post", "postfix-cidr"},
	{"lists --kind c", "cidr"},
	{"policy --print sta", "standard"},
	{"import sm", "smtpd smtpd-log"},
	{"import --format spamhaus-d", "spamhaus-drop"},
	{"test --policy ti", "tight"},
	{"test --fcrdns pa", "pass"},
	{"log v", "verbose"},
	{"completion z", "zsh"},
	{"help report sc", "scanners"},
	{"help exp", "export"},
	{"ban --for tu", ""},
	{"stats tu", ""},
	{"dump --since y", "yesterday"},
	{"-f my.conf dump --rule b", "botnet bots"},
	{"-f my.conf report --rule bots,b", "bots,botnet"},
	{"-f my.conf backtest --rule g", "guess"},
	{"-f nosuch.conf dump --rule b", ""},
	{"-f my.conf unban 192", "192.0.2.66"},
	{"unban -f my.conf 2001", "2001:db8::/64"},
	{"-f my.conf bans ", "192.0.2.66 2001:db8::/64"},
	{"-s nosuch unban ", ""},
}

// completionDir returns a directory with the files and the state that completions refers to.
func completionDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	state := mkState(t, func(m *memory.Memory) {
		for _, a := range []string{"192.0.2.66", "2001:db8::1"} {
			m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(a)}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "guess"}, now.UnixMicro())
		}
		m.Bans.Add(&memory.Client{Addr: netip.MustParseAddr("192.0.2.67")}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "guess"}, now.Add(-2*time.Hour).UnixMicro())
	})
	conf := "store \"" + state + "\"\nrule bots phase helo match evidence botnet-helo disconnect\n" +
		"rule botnet phase helo match helo \"x\" disconnect\nrule guess phase connect match src 192.0.2.1 disconnect\n"
	for name, text := range map[string]string{"my.conf": conf, "mydir/x": ""} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestCompletion checks the completions of command lines, in the form that the scripts of
// all shells request.
func TestCompletion(t *testing.T) {
	t.Chdir(completionDir(t))
	for _, c := range completions {
		words := strings.Split(c.line, " ")
		var out, stderr bytes.Buffer
		program(&stderr).main(append([]string{"__complete"}, words...), &out)
		var got []string
		for line := range strings.Lines(out.String()) {
			offer, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			_, begun, _ := strings.Cut(words[len(words)-1], "=")
			if begun == "" {
				begun = words[len(words)-1]
			}
			// Shells discard suggestions that do not start with the text already typed.
			if offer != "" && offer[0] != ':' && strings.HasPrefix(offer, begun) {
				got = append(got, offer)
			}
		}
		slices.Sort(got)
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%q: offered %q, want %q", c.line, got, c.want)
		}
	}
}

// TestCompletionScripts checks that each shell accepts its script. In bash, the script
// must produce the same completions as the program.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range shells {
		var out, stderr bytes.Buffer
		if status := program(&stderr).main([]string{"completion", shell}, &out); status != exitOK || out.Len() < 1000 {
			t.Fatalf("completion %s: %d bytes, %s", shell, out.Len(), stderr.String())
		}
		interpreter, err := exec.LookPath(shell)
		if err != nil {
			if os.Getenv("SCANWATCH_NO_SKIP") != "" {
				t.Fatal(err)
			}
			t.Logf("SKIP: %s is not installed, its completion script is not checked", shell)
			continue
		}
		cmd := exec.Command(interpreter, "-n")
		cmd.Stdin = &out
		if shell == "fish" {
			cmd.Args = append(cmd.Args, "/dev/stdin")
		}
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", shell, err, text)
		}
	}
}

// askBash completes a command line in bash. It defines the function from
// bash-completion that the completion script calls.
const askBash = `
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword-1]}; }
__ltrim_colon_completions() { :; }
compopt() { :; }
source ./script
COMP_WORDS=(scanwatch dump --evidence scanner,har)
COMP_CWORD=3 COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
__start_scanwatch
echo "${COMPREPLY[*]}"
`

// TestCompletionInBash checks one completion in a real bash.
func TestCompletionInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIP: bash is not installed")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var script, stderr bytes.Buffer
	if status := program(&stderr).main([]string{"completion", "bash"}, &script); status != exitOK {
		t.Fatal(stderr.String())
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), script.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	// TestMain selects the program by file name.
	if err := os.Symlink(self, filepath.Join(dir, "scanwatch")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bash, "-c", askBash)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
	out, err := cmd.CombinedOutput()
	// Remove the backslashes that the script adds to suggestions.
	if err != nil || strings.TrimSpace(strings.ReplaceAll(string(out), `\`, "")) != "scanner,harvest" {
		t.Errorf("%v: %s", err, out)
	}
}
