package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	store_report "scanwatch/store/report"
)

// TestPromtool: Prometheus's own tool takes the numbers, with and without a
// running filter, and has nothing to say about their names.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: the numbers are not checked: %v; install prometheus", err)
	}
	short, err := os.MkdirTemp("", "sw") // for the socket
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
	for { // go test's own limit ends this
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

// TestTodayMetrics: the counters are those of this day, and of no other.
func TestTodayMetrics(t *testing.T) {
	day := func(at time.Time, sessions uint64) memory.Day {
		return memory.Day{Day: at.Truncate(24 * time.Hour), Figures: map[string]uint64{
			memory.DaySessions.String(): sessions, memory.DayLocal.String(): 1, memory.DayAuthenticated.String(): 2, memory.DayWhole.String(): sessions - 3,
			memory.DayMails.String(): 4, memory.DayRcptPermfail.String(): 5, memory.DayEvidence(rules.Harvest).String(): 6}}
	}
	var out bytes.Buffer
	all := program(io.Discard).todayMetrics([]memory.Day{day(now.AddDate(0, 0, -1), 99), day(now, 10)})
	if err := store_report.Metrics(&out, all); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`scanwatch_sessions_total{class="remote"} 7`, `scanwatch_sessions_total{class="authenticated"} 2`, `scanwatch_messages_total 4`,
		`scanwatch_recipients_total{result="refused"} 5`, `scanwatch_recipients_total{result="accepted"} 0`,
		`scanwatch_evidence_sessions_total{evidence="harvest"} 6`, `scanwatch_evidence_sessions_total{evidence="flood"} 0`, `scanwatch_unrecorded_sessions_total 3`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, &out)
		}
	}
}
