package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"scanwatch/store"
)

// exampleScripts maps examples in the manual that need more than recorded sessions to scripts. The
// scripts also check the output.
var exampleScripts = map[string]string{
	"scanwatch backtest ": "backtest.txtar",
	"scanwatch watch ":    "watch.txtar",
}

// TestManualExamples runs each command under EXAMPLES in the manual verbatim. The records include
// the session and the sender that the examples mention.
func TestManualExamples(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Sh EXAMPLES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	section = strings.ReplaceAll(unroff(section), "\\\n", " ")
	var script strings.Builder
	commands := 0
	for _, m := range regexp.MustCompile(`(?m)^(?:\.Dl )?[$#] (.*)$`).FindAllStringSubmatch(section, -1) {
		command := strings.NewReplacer("/etc/scanwatch", "etc", "/tmp/", "", "-C /tmp ", "").Replace(m[1])
		if regexp.MustCompile(`(^|[ >"])/`).MatchString(command) {
			t.Errorf("not run, because it may write outside the test's directory: %s", command)
			continue
		}
		commands++
		if strings.Contains(command, "jq ") {
			if _, err := exec.LookPath("jq"); err != nil {
				if os.Getenv("SCANWATCH_NO_SKIP") != "" {
					t.Fatal(err)
				}
				t.Log("SKIP: jq is not installed: " + command)
				continue
			}
		}
		elsewhere := ""
		for begin, name := range exampleScripts {
			if strings.HasPrefix(command, begin) {
				elsewhere = name
			}
		}
		if elsewhere != "" {
			text, err := os.ReadFile(filepath.Join("testdata/script", elsewhere))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), strings.TrimPrefix(command, "scanwatch ")) {
				t.Errorf("neither here nor in %s: %s", elsewhere, command)
			}
			continue
		}
		fmt.Fprintf(&script, "exec sh -ec '%s'\n! stderr .\n", strings.ReplaceAll(command, "'", "''"))
	}
	if commands < 10 {
		t.Fatalf("only %d commands in the examples", commands)
	}
	// This test only checks that the commands succeed. Scripts also check the output.
	file := filepath.Join(t.TempDir(), "examples.txtar")
	if err := os.WriteFile(file, []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Files: []string{file}, Setup: func(e *testscript.Env) error {
		state, conf := filepath.Join(e.WorkDir, "state"), filepath.Join(e.WorkDir, "etc", "scanwatch.conf")
		e.Setenv("CONF", conf)
		if err := os.Mkdir(filepath.Dir(conf), 0o755); err != nil {
			return err
		}
		w := store.Open(state, store.Options{Now: func() time.Time { return now }, Program: "test"})
		fill(w, now.Add(-time.Hour), 0x5a1f9c2e00c0ffee)
		if err := w.Close(); err != nil {
			return err
		}
		return os.WriteFile(conf, fmt.Appendf(nil, "store %q\n", state), 0o644)
	}})
}

// unroff converts an example from a manual to plain text.
func unroff(text string) string {
	return strings.NewReplacer(`\e`, `\`, `\&`, "", `\-`, "-", `\(dq`, `"`).Replace(text)
}
