//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestRestarts checks that no record is lost when a real server is restarted under load. The
// configuration is reloaded before each restart.
func TestRestarts(t *testing.T) {
	v := smtpd.Newest()
	smtpd.Require(t, v)
	restarts := 3
	if smtpd.Long {
		restarts = 30
	}
	dir := live.StateDir(t)
	conf := "mode enforce\nstore \"" + smtpd.StateDir + "\"\nrule bad phase helo match helo \"ylmf-pc\" disconnect\n"
	var said atomic.Int64 // sessions that have sent QUIT
	for i := range restarts {
		s := live.Start(t, smtpd.Options{Version: v, Dir: dir, Filters: []smtpd.Filter{live.Filter("-f", smtpd.StateDir+"/scanwatch.conf")}})
		if i == 0 {
			// The filter has no configuration at first. After the first restart, it has a policy.
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
		live.Stop(t, s)
		all.Wait()
	}
	s := smtpd.Server{Dir: dir}
	if n, least := int64(len(cli.Dump(t, s.State()))), said.Load(); n < least || least < int64(restarts)*2*3 {
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
