//go:build linux

// Package cli runs scanwatch(8) in tests and reads its output.
package cli

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

// Run runs scanwatch(8) on a state directory.
func Run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scanwatch %v: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

func Decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
}
