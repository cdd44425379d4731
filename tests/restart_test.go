//go:build linux

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"scanwatch/tests/smtpd"
)

// holds tells whether p has locked the directory of sessions.
func holds(p *program, dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "sessions"))
	if err != nil {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
		if len(f) == 8 && f[1] == "FLOCK" && f[4] == strconv.Itoa(p.cmd.Process.Pid) &&
			strings.HasSuffix(f[5], fmt.Sprintf(":%d", info.Sys().(*syscall.Stat_t).Ino)) {
			return true
		}
	}
	return false
}

// TestHandover: when smtpd restarts, the new filter begins while the old one still
// writes. Twenty times in a row, with work for both, nothing is lost.
func TestHandover(t *testing.T) {
	dir := t.TempDir()
	var v visits
	old := begin(t, "-s", dir)
	old.visit(&v, 50)
	for i := range 20 {
		eventually(t, "it has the directory", func() bool { return holds(old, dir) })
		next := begin(t, "-s", dir)
		next.visit(&v, 30)
		old.visit(&v, 30)
		if i%4 == 0 {
			if err := next.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		for line := range strings.Lines(old.end(0)) {
			if strings.Contains(line, "lost") || strings.Contains(line, "damaged") {
				t.Errorf("filter %d logged %s", i, line)
			}
		}
		old = next
	}
	old.end(0)
	if n := len(dump(t, dir)); n != v.n {
		t.Errorf("%d records of %d sessions", n, v.n)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*damaged*")); left != nil {
		t.Errorf("damaged: %q", left)
	}
}

// TestRestarts: restarts of a real server, one after another, with clients that do
// not stop and a reload in the midst of them. SCANWATCH_RESTARTS sets how many.
func TestRestarts(t *testing.T) {
	v := smtpd.Versions[len(smtpd.Versions)-1]
	smtpd.Require(t, v)
	restarts := 6
	if n, err := strconv.Atoi(os.Getenv("SCANWATCH_RESTARTS")); err == nil {
		restarts = n
	}
	dir := stateDir(t)
	conf := "mode enforce\nstore \"" + smtpd.StateDir + "\"\nrule bad phase helo match helo \"ylmf-pc\" disconnect\n"
	var said atomic.Int64 // sessions to their QUIT
	for i := range restarts {
		s := start(t, smtpd.Options{Version: v, Dir: dir, Filters: []smtpd.Filter{scanwatchFilter("-f", smtpd.StateDir+"/scanwatch.conf")}})
		if i == 0 {
			// The first start found none: from the next one on there is a policy.
			if err := os.WriteFile(filepath.Join(s.State(), "scanwatch.conf"), []byte(conf), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var begun, all sync.WaitGroup
		for c := range 2 {
			begun.Add(1)
			all.Add(1)
			go func() {
				defer all.Done()
				for n := 0; ; n++ {
					if n == 3 {
						begun.Done()
					}
					client, err := s.Dial(fmt.Sprintf("198.18.%d.%d", 2*i+c, 1+n%200), smtpd.PortMX)
					if err != nil {
						if n < 3 {
							begun.Done()
						}
						return // the server has ended
					}
					_, err = client.ReadReply()
					for _, line := range []string{"EHLO host.example.net", "MAIL FROM:<a@example.net>", "RCPT TO:<nobody@example.org>", "QUIT"} {
						if err == nil {
							_, err = client.Cmd(line)
						}
					}
					client.Close()
					if err == nil {
						said.Add(1)
					}
				}
			}()
		}
		begun.Wait()
		pids, err := s.FilterPIDs()
		if err != nil || len(pids) != 1 {
			t.Fatalf("filters %v, %v", pids, err)
		}
		if err := syscall.Kill(pids[0], syscall.SIGHUP); err != nil {
			t.Error(err)
		}
		stop(t, s)
		all.Wait()
	}
	s := smtpd.Server{Dir: dir}
	if n, least := int64(len(dump(t, s.State()))), said.Load(); n < least || least < int64(restarts)*2*3 {
		t.Errorf("%d records, %d sessions were played to their end", n, least)
	}
	for line := range strings.Lines(s.Log()) {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, "scanwatch.conf") {
			t.Errorf("logged %s", line)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.State(), "*damaged*")); left != nil {
		t.Errorf("damaged: %q", left)
	}
}
