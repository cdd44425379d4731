//go:build linux

package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// holds reports whether p has locked the directory of sessions.
func holds(p *filterproc.Program, dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "sessions"))
	if err != nil {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		p.T.Fatal(err)
	}
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
		if len(f) == 8 && f[1] == "FLOCK" && f[4] == strconv.Itoa(p.Cmd.Process.Pid) &&
			strings.HasSuffix(f[5], fmt.Sprintf(":%d", info.Sys().(*syscall.Stat_t).Ino)) {
			return true
		}
	}
	return false
}

// TestHandover checks that no session is lost in 20 restarts of smtpd. Each new filter starts while
// the previous filter is still writing.
func TestHandover(t *testing.T) {
	dir := t.TempDir()
	var v filterproc.Visits
	old := filterproc.Start(t, "-s", dir)
	old.Visit(&v, 50)
	for i := range 20 {
		filterproc.Eventually(t, "the filter has locked the directory", func() bool { return holds(old, dir) })
		next := filterproc.Start(t, "-s", dir)
		next.Visit(&v, 30)
		old.Visit(&v, 30)
		if i%4 == 0 {
			if err := next.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		for line := range strings.Lines(old.End(0)) {
			if strings.Contains(line, "lost") || strings.Contains(line, "corrupt") {
				t.Errorf("filter %d logged %s", i, line)
			}
		}
		old = next
	}
	old.End(0)
	if n := len(cli.Dump(t, dir)); n != v.N {
		t.Errorf("%d records of %d sessions", n, v.N)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*damaged*")); left != nil {
		t.Errorf("damaged: %q", left)
	}
}
