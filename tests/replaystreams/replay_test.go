//go:build linux

package replaystreams

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

var request = regexp.MustCompile(`(?m)^filter\|[^|]*\|[^|]*\|smtp-in\|([^|]*)\|([0-9a-f]{16})\|([0-9a-f]{16})\|(.*)$`)

// TestReplay runs the filter with every recorded stream. The filter must answer each
// request once, log only findings, write one record for each session, and exit with
// status 0.
func TestReplay(t *testing.T) {
	names, err := filepath.Glob("../streams/*/*.in")
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimPrefix(name, "../streams/"), func(t *testing.T) {
			in, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir)
			cmd.Stdin = bytes.NewReader(in)
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			_, answers, _ := strings.Cut(out.String(), "register|ready\n")
			var want strings.Builder
			for _, m := range request.FindAllSubmatch(in, -1) {
				if string(m[1]) == "data-line" {
					fmt.Fprintf(&want, "filter-dataline|%s|%s|%s\n", m[2], m[3], m[4])
				} else {
					fmt.Fprintf(&want, "filter-result|%s|%s|proceed\n", m[2], m[3])
				}
			}
			if answers != want.String() {
				t.Errorf("answers differ, got %d bytes and want %d", len(answers), want.Len())
			}
			for line := range strings.Lines(stderr.String()) {
				if strings.HasPrefix(line, "level=WARN msg=sandbox ") && !filterproc.HasLandlock(t) {
					continue
				}
				if !strings.HasPrefix(line, "session decision=proceed src=") && !strings.HasPrefix(line, "sessions evidence=") {
					t.Errorf("logged %q", line)
				}
			}
			sessions := len(regexp.MustCompile(`(?m)\|smtp-in\|link-connect\|`).FindAll(in, -1))
			if n := cli.Sessions(cli.Dump(t, dir)); n != sessions {
				t.Errorf("records of %d of %d sessions", n, sessions)
			}
		})
	}
}
