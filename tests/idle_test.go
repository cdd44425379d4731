//go:build linux

package tests

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"scanwatch/tests/smtpd"
)

// TestIdleClients: clients that say nothing more, at each step, until smtpd has had
// enough of them, which is after 300 seconds and cannot be set: smtpd runs with a clock
// for its timers that goes 100 times faster. Each is recorded as what it was, none is
// left, and all is well.
func TestIdleClients(t *testing.T) {
	clock := filepath.Join(t.TempDir(), "clock.so")
	if out, err := exec.Command("cc", "-Wall", "-O2", "-fPIC", "-shared", "-o", clock, "fast/clock.c").CombinedOutput(); err != nil {
		skip(t, "smtpd's timeout of 300 s: make a faster clock: %v %s", err, out)
	}
	steps := []struct {
		name  string
		lines []string
		more  string // that the server has not answered
	}{
		{name: "greeting", lines: []string{}},
		{name: "half a line", lines: []string{}, more: "EHLO mail.exa"},
		{name: "EHLO", lines: hello},
		{name: "MAIL", lines: offered[:2]},
		{name: "RCPT", lines: offered},
		{name: "DATA", lines: begun},
		{name: "message", lines: begun, more: "Subject: x\r\n\r\nhel"},
	}
	oldest, newest := smtpd.Versions[0], smtpd.Versions[len(smtpd.Versions)-1]
	for _, v := range []smtpd.Version{oldest, newest} { // the others behave like one of them
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			f, dir := configured(t, ready(t, "tight", "enforce"), nil)
			s := start(t, smtpd.Options{
				Version: v, Dir: dir, Preload: clock,
				Filters: []smtpd.Filter{smtpd.Through(smtpd.Bin("shim"), f, smtpd.StateDir, allPhases...)},
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
						t.Errorf("%s: it did not come so far", step.name)
					}
					if said, err := c.Drain(); err != nil {
						t.Errorf("%s: smtpd does not hang up: %v, %q", step.name, err, said)
					}
				}()
			}
			all.Wait()
			if err := unhurt(s, 0); err != nil {
				t.Errorf("%v\n%s", err, s.Log())
			}
			stop(t, s)
			records := dump(t, s.State())
			for i, step := range steps {
				found := fromAddr(records, addr(i))
				if len(found) != 1 || found[0].Ending != "timeout" {
					t.Errorf("%s: recorded as %+v", step.name, found)
				}
			}
			answeredOnce(t, s, func(session string) string {
				for i, step := range steps {
					for _, r := range fromAddr(records, addr(i)) {
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
