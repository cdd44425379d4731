//go:build linux

package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// TestSums checks that readers receive the aggregates of the current hour. During a flood, the
// reference in each rejection must lead to a record or an aggregate. After SIGKILL, only sessions
// that ended after the last flush may be missing.
func TestSums(t *testing.T) {
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode enforce\nrule flood phase connect match src 203.0.113.7 disconnect \"550 5.7.1 No\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	n := 0
	come := func(sessions int) {
		t.Helper()
		for range sessions {
			if answer := p.Come(&n, "203.0.113.7", false); !strings.HasPrefix(answer, "disconnect|550 5.7.1 No") {
				t.Fatalf("answer %q", answer)
			}
		}
	}
	summed := func() int {
		var s struct{ Live struct{ Summed int } }
		cli.Decode(t, cli.Run(t, dir, "status", "--json"), &s)
		return s.Live.Summed
	}
	count := func() (whole int, sums []int) {
		for _, r := range cli.Dump(t, dir) {
			if r.Sum > 0 {
				sums = append(sums, r.Sum)
			} else {
				whole++
			}
		}
		return whole, sums
	}
	come(32)
	filterproc.Eventually(t, "the end of the last session", func() bool { return summed() == 12 })
	whole, sums := count()
	if got := summed(); got > 0 || whole != 20 || len(sums) != 1 || sums[0] != 12 {
		t.Errorf("%d whole sessions, aggregates of %v, %d sessions not written", whole, sums, got)
	}
	for _, id := range []int{5, 21, 25, 32} {
		if out := cli.Run(t, dir, "-f", conf, "why", fmt.Sprintf("%016x", id)); !strings.Contains(out, "flood") || !strings.Contains(out, "203.0.113.7") {
			t.Errorf("why %016x:\n%s", id, out)
		}
	}
	come(10)
	if err := p.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Cmd.Wait()
	if again, kept := count(); again != whole || len(kept) != 1 || kept[0] != 12 {
		t.Errorf("after SIGKILL %d whole sessions and aggregates of %v", again, kept)
	}
}
