package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/cmd/internal/control"
)

// TestPromtool checks that promtool accepts the metrics and their names, whether or not a
// filter is running.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: the numbers are not checked: %v; install prometheus", err)
	}
	short, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	dir := filepath.Join(short, "state")
	check := func(line string) {
		t.Helper()
		var out, complaints bytes.Buffer
		if status := program(&complaints).main([]string{"-s", dir, "stats", "--prometheus"}, &out); status != exitOK {
			t.Fatalf("exit status %d: %s", status, &complaints)
		}
		if !strings.Contains(out.String(), line) {
			t.Errorf("without %q:\n%s", line, &out)
		}
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = &out
		if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
			t.Errorf("promtool: %v\n%s", err, said)
		}
	}
	if status := mkstore(dir); status != 0 {
		t.Fatal("no store")
	}
	check("scanwatch_up 0\n")

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	filter := exec.Command(self)
	filter.Args = []string{"filter", dir}
	filter.Stderr = os.Stderr
	if err := filter.Start(); err != nil {
		t.Fatal(err)
	}
	for { // the time limit of go test ends the loop
		if c, err := control.Dial(dir); err == nil {
			c.Close()
			break
		}
	}
	check("scanwatch_up 1\n")
	if err := filter.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := filter.Wait(); err != nil {
		t.Fatal(err)
	}
}
