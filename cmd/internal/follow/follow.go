// Package follow keeps a companion in step with the bans of the running filter.
package follow

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"scanwatch/cmd/internal/control"
)

// A Follower receives the bans over the socket of the companions.
type Follower struct {
	RunDir string // directory of the socket
	Name   string // of the companion, from rules.Companion.Name
	Log    *slog.Logger
	// Every is the interval at which the Follower reads all bans again. A companion can
	// differ from the filter although the bans have not changed. Examples are hosts that
	// must no longer be blocked, and entries that another program has removed. 0 means
	// DefaultEvery.
	Every time.Duration
	// Wait is the maximum time between calls of apply. The status of the filter contains
	// the error of the last call. 0 means control.MaxWait.
	Wait time.Duration
}

// DefaultEvery is the default of Follower.Every.
const DefaultEvery = 10 * time.Minute

// These are the pauses between attempts to reach the filter.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Apply applies bans and returns the number of entries in effect. If list.Full is set,
// the entries are all bans, and all other bans have ended. The Follower reports an error
// to the filter, which includes the error in its status. After an error, the next call
// has only later changes. Apply must therefore log the error, store the changes that
// failed, and retry them.
type Apply func(ctx context.Context, list control.BanList, entries []control.BanEntry) (inEffect int, err error)

// Run calls apply with all bans, and then with changes of the bans, until ctx ends. While
// the filter cannot be reached, the bans remain unchanged. Each error is logged once.
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

// follow uses one connection. It calls worked after each list of bans.
func (f *Follower) follow(ctx context.Context, apply Apply, worked func()) error {
	c, err := control.DialCompanion(f.RunDir)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Note(f.Name, 0, control.ErrStarting); err != nil {
		return err
	}
	every := cmp.Or(f.Every, DefaultEvery)
	var generation uint64
	var full time.Time // the time of the latest full list
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
			generation = 0 // the bans in force are others
			continue
		}
		enforced = list.Enforced
		generation = list.Generation
		n, failed := apply(ctx, list, entries)
		if err := c.Note(f.Name, n, failed); err != nil {
			return err
		}
	}
}
