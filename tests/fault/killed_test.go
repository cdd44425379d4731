//go:build linux

package fault

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestKilledFilter checks that no flushed record is lost if the filter is killed under load. The
// next filter must continue with the stored state.
func TestKilledFilter(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			o := smtpd.Options{Version: v, Filters: []smtpd.Filter{live.Filter()}, Dir: live.StateDir(t)}
			s := live.Start(t, o)
			hello := func(s *smtpd.Server, i int) error {
				c, err := s.Dial(fmt.Sprintf("198.18.1.%d", 1+i%250), smtpd.PortMX)
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.ReadReply(); err != nil {
					return err
				}
				if _, err := c.Cmd(fmt.Sprintf("EHLO host%d.example.net", i)); err != nil {
					return err
				}
				_, err = c.Cmd("QUIT")
				return err
			}
			const flushed = 50
			for i := range flushed {
				if err := hello(s, i); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Eventually("the sessions have ended", func() bool { return len(cli.Dump(t, s.State())) >= flushed }); err != nil {
				t.Fatal(err)
			}
			cli.Run(t, s.State(), "flush")
			loaded := make(chan int)
			begun := make(chan bool)
			go func() {
				n := 0
				for i := 0; ; i++ {
					if hello(s, i) != nil {
						break // smtpd exits when its filter exits
					}
					if n++; n == 20 {
						close(begun)
					}
				}
				loaded <- n
			}()
			<-begun
			if err := s.KillFilter(); err != nil {
				t.Fatal(err)
			}
			if n := <-loaded; n < 20 {
				t.Errorf("only %d sessions of load", n)
			}
			<-s.Ended()
			_ = s.Stop()
			after := cli.Dump(t, s.State())
			if len(after) < flushed {
				t.Errorf("%d records after the kill, %d were flushed", len(after), flushed)
			}
			s = live.Start(t, o)
			if err := hello(s, 0); err != nil {
				t.Error(err)
			}
			live.Stop(t, s)
			if again := cli.Dump(t, s.State()); len(again) <= len(after) {
				t.Errorf("%d records after the restart, %d before", len(again), len(after))
			}
			if damaged, _ := filepath.Glob(filepath.Join(s.State(), "sessions", "*damaged*")); len(damaged) > 0 {
				t.Errorf("damaged: %v", damaged)
			}
			for line := range strings.Lines(s.Log()) {
				if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") {
					t.Errorf("logged after the restart: %s", line)
				}
			}
		})
	}
}
