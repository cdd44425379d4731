//go:build linux && long

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestEarlyTalker measures how often the filter recognises clients that speak before the greeting,
// and clients that wait for it. The test uses network paths with different delays, on an idle and
// on a busy machine. The rates depend on the machine. The test therefore only logs them, and fails
// only if the evidence is useless.
func TestEarlyTalker(t *testing.T) {
	const runs = 100
	kinds := []struct {
		name  string
		rtt   time.Duration
		early bool
		when  time.Duration // after connecting
		found bool
	}{
		{"polite, 0 ms", 0, false, 0, false},
		{"polite, 20 ms", 20 * time.Millisecond, false, 0, false},
		{"polite, 150 ms", 150 * time.Millisecond, false, 0, false},
		{"early, 20 ms", 20 * time.Millisecond, true, 0, true},
		{"early, 150 ms", 150 * time.Millisecond, true, 0, true},
		{"during the greeting, 20 ms", 20 * time.Millisecond, true, 500 * time.Millisecond, true},
		{"during the greeting, 150 ms", 150 * time.Millisecond, true, 500 * time.Millisecond, true},
	}
	for _, busy := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "busy"}[busy], func(t *testing.T) {
			version := smtpd.Newest()
			smtpd.Require(t, version)
			f, dir := live.Configured(t, "mode enforce\nrule greet phase connect match any delay 1s\n", nil)
			s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{f}, Dir: dir})
			if busy {
				stop := burn(2)
				defer stop()
			}
			var all sync.WaitGroup
			places := make(chan struct{}, map[bool]int{false: 20, true: 40}[busy])
			for k, kind := range kinds {
				for i := range runs {
					places <- struct{}{}
					all.Go(func() {
						defer func() { <-places }()
						if err := greet(s, fmt.Sprintf("198.18.%d.%d", k, i), kind.rtt, kind.early, kind.when); err != nil {
							t.Errorf("%s: %v", kind.name, err)
						}
					})
				}
			}
			all.Wait()
			live.Stop(t, s)
			records := cli.Dump(t, s.State())
			for k, kind := range kinds {
				right := 0
				for i := range runs {
					r := cli.FromAddr(records, fmt.Sprintf("198.18.%d.%d", k, i))
					if len(r) != 1 {
						t.Errorf("%s: %d records", kind.name, len(r))
						continue
					}
					found := slices.ContainsFunc(r[0].Findings, func(f cli.Finding) bool { return f.Evidence == "early-talker" && f.Confidence == "medium" }) // medium is the highest confidence
					if found == kind.found {
						right++
					} else {
						t.Logf("%s: %+v", kind.name, r[0].Findings)
					}
				}
				t.Logf("%-28s correct in %d of %d", kind.name, right, runs)
				// It is harmless to miss an early talker. The limits are far below all measured
				// rates: the filter must recognise half of the clients that wait, and one early
				// talker.
				least := runs / 2
				if kind.found {
					least = 1
				}
				if right < least {
					t.Errorf("%s: correct in %d of %d", kind.name, right, runs)
				}
			}
		})
	}
}

// burn keeps n processors busy until stop is called.
func burn(n int) (stop func()) {
	var done atomic.Bool
	for range n {
		go func() {
			for !done.Load() {
			}
		}()
	}
	return func() { done.Store(true) }
}

// greet plays a session up to the recipient. smtpd queues five connections, and resets further
// connections. After a reset, the client connects again, as mail servers do.
func greet(s *smtpd.Server, from string, rtt time.Duration, early bool, when time.Duration) error {
	for {
		err := greetOnce(s, from, rtt, early, when)
		if !errors.Is(err, syscall.ECONNRESET) {
			return err
		}
	}
}

func greetOnce(s *smtpd.Server, from string, rtt time.Duration, early bool, when time.Duration) error {
	c, err := s.Dial(from, smtpd.PortMX)
	if err != nil {
		return err
	}
	defer c.Close()
	c.Far(rtt)
	lines := []string{"EHLO mail.example.net", "MAIL FROM:<a@example.net>", "RCPT TO:<alice@example.org>", "NOOP", "RSET", "QUIT"}
	if early {
		time.Sleep(when) // the client's delay
		if err := c.Send(lines[0] + "\r\n"); err != nil {
			return err
		}
		lines = lines[1:]
		if r, err := c.ReadReply(); err != nil || r.Code != 220 {
			return fmt.Errorf("greeting: %v, %w", r, err)
		}
	}
	for _, line := range append([]string{""}, lines...) {
		r, err := smtpd.Reply{}, error(nil)
		if line == "" {
			r, err = c.ReadReply() // greeting, or reply to EHLO
		} else {
			r, err = c.Cmd(line)
		}
		if err != nil || r.Code >= 400 {
			return fmt.Errorf("%s: %v, %w", line, r, err)
		}
	}
	return nil
}
