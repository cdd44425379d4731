//go:build linux

package hostile

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// TestIdleClients checks clients that become silent, each at a different step, until smtpd's
// timeout. smtpd has a fixed timeout of 300 seconds, so the test uses a clock that runs 100 times
// faster. Each session must be recorded with its end, and no session may remain open.
func TestIdleClients(t *testing.T) {
	clock := filepath.Join(t.TempDir(), "clock.so")
	if out, err := exec.Command("cc", "-Wall", "-O2", "-fPIC", "-shared", "-o", clock, "../fastclock/clock.c").CombinedOutput(); err != nil {
		require.Missing(t, "smtpd's timeout of 300 s: make a faster clock: %v %s", err, out)
	}
	steps := []struct {
		name  string
		lines []string
		more  string // sent without waiting for a reply
	}{
		{name: "greeting", lines: []string{}},
		{name: "half a line", lines: []string{}, more: "EHLO mail.exa"},
		{name: "EHLO", lines: hello},
		{name: "MAIL", lines: offered[:2]},
		{name: "RCPT", lines: offered},
		{name: "DATA", lines: begun},
		{name: "message", lines: begun, more: "Subject: x\r\n\r\nhel"},
	}
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			f, dir := live.Configured(t, live.Preset(t, "tight", "enforce"), nil)
			s := live.Start(t, smtpd.Options{
				Version: v, Dir: dir, Preload: clock,
				Filters: []smtpd.Filter{smtpd.Through(smtpd.Bin("teefilter"), f, smtpd.StateDir, live.AllPhases...)},
				Hosts:   []smtpd.Host{{Addr: friend, Name: friendName, Confirmed: true}},
			})
			addr := func(i int) string { return fmt.Sprintf("198.18.%d.1", i) }
			var all sync.WaitGroup
			for i, step := range steps {
				c, err := s.Dial(addr(i), smtpd.PortMX)
				if err != nil {
					t.Fatal(err)
				}
				all.Add(1)
				go func() {
					defer all.Done()
					defer c.Close()
					if !greeted(c, step.lines...) || c.Send(step.more) != nil {
						t.Errorf("%s: the client did not reach the step", step.name)
					}
					if said, err := c.Drain(); err != nil {
						t.Errorf("%s: smtpd does not close the connection: %v, %q", step.name, err, said)
					}
				}()
			}
			all.Wait()
			if err := unhurt(s, 0); err != nil {
				t.Errorf("%v\n%s", err, s.Log())
			}
			live.Stop(t, s)
			records := cli.Dump(t, s.State())
			for i, step := range steps {
				found := cli.FromAddr(records, addr(i))
				if len(found) != 1 || found[0].Ending != "timeout" {
					t.Errorf("%s: recorded as %+v", step.name, found)
				}
			}
			answeredOnce(t, s, func(session string) string {
				for i, step := range steps {
					for _, r := range cli.FromAddr(records, addr(i)) {
						if r.Session == session {
							return step.name
						}
					}
				}
				return "not idle"
			})
		})
	}
}
