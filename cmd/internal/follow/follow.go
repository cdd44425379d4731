// Package follow keeps a companion up to date with the running filter's bans.
package follow

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"scanwatch/cmd/internal/control"
)

// A Follower receives the bans over the companions' socket.
type Follower struct {
	RunDir string // directory of the socket
	Name   string // name of the companion; see rules.Companion.Name
	Log    *slog.Logger
	// Every is the interval at which the Follower reads all bans again. A companion's data can
	// become outdated even if the bans do not change, for example if a host becomes exempt or
	// another program removes entries. 0 means DefaultEvery.
	Every time.Duration
	// Wait is the maximum time between calls to apply. The filter's status shows the
	// error from the last call. 0 means control.MaxWait.
	Wait time.Duration
}

// DefaultEvery is the default for Follower.Every.
const DefaultEvery = 10 * time.Minute

// Pauses between attempts to reach the filter.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Apply applies bans and returns the number of entries in effect. If list.Full is set, the list
// contains all bans, and all other bans have ended. The Follower reports an error to the filter,
// which shows it in its status. After an error, the next call receives only later changes. Apply
// must therefore log the error and retry the failed changes itself.
type Apply func(ctx context.Context, list control.BanList, entries []control.BanEntry) (inEffect int, err error)

// Run calls apply with all bans, and then with changes to them, until ctx is done. While
// the filter is unreachable, the bans remain in effect. Each error is logged once.
func (f *Follower) Run(ctx context.Context, apply Apply) {
	pause := firstPause
	var logged string
	worked := func() {
		if logged != "" {
			f.Log.Info("bans followed again", "companion", f.Name)
		}
		pause, logged = firstPause, ""
	}
	for ctx.Err() == nil {
		err := f.follow(ctx, apply, worked)
		if err != nil && ctx.Err() == nil && err.Error() != logged {
			logged = err.Error()
			f.Log.Warn("bans not followed", "companion", f.Name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// follow uses a single connection, and calls worked after each list of bans.
func (f *Follower) follow(ctx context.Context, apply Apply, worked func()) error {
	c, err := control.DialCompanion(f.RunDir)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Note(f.Name, 0, 0, control.ErrStarting); err != nil {
		return err
	}
	every := cmp.Or(f.Every, DefaultEvery)
	var generation uint64
	var full time.Time // time of the latest full list
	enforced := false
	for {
		if time.Since(full) > every {
			generation = 0
		}
		wait := cmp.Or(f.Wait, control.MaxWait)
		if generation == 0 {
			wait = 0
		}
		list, entries, err := c.Bans(generation, wait)
		if err != nil {
			return err
		}
		worked()
		if list.Full {
			full = time.Now()
		} else if list.Enforced != enforced {
			generation = 0 // the mode has changed, so all bans are needed again
			continue
		}
		enforced = list.Enforced
		generation = list.Generation
		n, failed := apply(ctx, list, entries)
		if err := c.Note(f.Name, n, 0, failed); err != nil {
			return err
		}
	}
}
