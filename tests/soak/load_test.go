//go:build linux

package soak

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

var (
	loadRate    = flag.Int("load.rate", 100, "sessions a second of TestReadersUnderLoad")
	loadSeconds = flag.Int("load.seconds", 3, "how long each part of TestReadersUnderLoad is")
	loadRounds  = flag.Int("load.rounds", 1, "how often both parts are played")
)

// TestReadersUnderLoad checks that every session is answered and every command works under a steady
// load on a real server. The test logs the filter's response times with and without concurrent
// report, dump and backtest commands.
func TestReadersUnderLoad(t *testing.T) {
	version := smtpd.Newest()
	filter, dir := live.Configured(t, live.Preset(t, "tight", "observe"), nil)
	shim := smtpd.Through(smtpd.Bin("teefilter"), filter, "", "rcpt-to")
	shim.Args = append([]string{"-times", smtpd.StateDir + "/times"}, shim.Args...)
	s := live.Start(t, smtpd.Options{Version: version, Dir: dir, Filters: []smtpd.Filter{shim}})
	times := filepath.Join(s.State(), "times")
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte(live.Preset(t, "tight", "observe")), 0o644); err != nil {
		t.Fatal(err)
	}

	type part struct {
		name    string
		readers bool
		took    []int // microseconds
		runs    int
	}
	parts := []*part{{name: "alone"}, {name: "with readers", readers: true}}
	n := 0
	for range *loadRounds {
		for _, p := range parts {
			if err := os.Truncate(times, 0); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			var reading sync.WaitGroup
			if p.readers {
				reading.Go(func() {
					for ctx.Err() == nil {
						for _, args := range [][]string{{"report"}, {"dump"}, {"backtest", conf}} {
							cmd := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", s.State()}, args...)...)
							if out, err := cmd.CombinedOutput(); err != nil {
								var exit *exec.ExitError
								if args[0] != "backtest" || !errors.As(err, &exit) || exit.ExitCode() != 3 { // status 3 means that the policy rejects accepted mail
									t.Errorf("%v: %v\n%.500s", args, err, out)
								}
							}
							p.runs++
						}
					}
				})
			}
			if err := sessionsAt(s, *loadRate, *loadRate**loadSeconds, &n); err != nil {
				t.Error(err)
			}
			stop()
			reading.Wait()
			p.took = append(p.took, readTimes(t, times)...)
		}
	}
	t.Logf("%d sessions/s, %d s each, %d times", *loadRate, *loadSeconds, *loadRounds)
	for _, p := range parts {
		slices.Sort(p.took)
		at := func(share float64) int { return p.took[min(int(share*float64(len(p.took))), len(p.took)-1)] }
		if len(p.took) < *loadRate**loadSeconds**loadRounds {
			t.Errorf("%s: only %d answers", p.name, len(p.took))
			continue
		}
		t.Logf("%-12s %7d answers, p50 %4d us, p90 %4d us, p99 %5d us, p99.9 %5d us, max %6d us; %d runs of readers",
			p.name, len(p.took), at(.5), at(.9), at(.99), at(.999), at(1), p.runs)
	}
	live.Stop(t, s)
}

// sessionsAt plays n sessions from different addresses at a rate per second.
func sessionsAt(s *smtpd.Server, rate, n int, next *int) error {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	const most = 4 // smtpd's backlog is 5
	work := make(chan int, n)
	errs := make(chan error, most)
	for range most {
		go func() {
			var failed error
			for i := range work {
				from := fmt.Sprintf("198.18.%d.%d", 1+i/250%250, 1+i%250)
				if _, refused, err := live.Transaction(s, from, "a@example.net", []string{"nobody"}, false); (err != nil || refused != 1) && failed == nil {
					failed = fmt.Errorf("session %d: %d refused, %v", i, refused, err)
				}
			}
			errs <- failed
		}()
	}
	for range n {
		<-tick.C
		work <- *next
		*next++
	}
	close(work)
	var all error
	for range most {
		all = errors.Join(all, <-errs)
	}
	return all
}

func readTimes(t *testing.T, name string) (all []int) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		_, number, _ := strings.Cut(lines.Text(), " ")
		us, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, us)
	}
	return all
}
