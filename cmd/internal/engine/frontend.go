package engine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"scanwatch/cmd/internal/control"
)

// claimEvery is the interval at which a filter tries to become the front end of its state
// directory.
const claimEvery = 250 * time.Millisecond

// inUse logs which front end is using the state directory.
func inUse(dir string, log *slog.Logger) {
	other := control.Holder(dir)
	log.Error("another front end uses the state directory", "statedir", dir, "program", other.Program(), "pid", other.PID, "hint", "give each its own with -s, or stop the other one")
}

// claim waits until no other front end is using the state directory, and returns the lock. After a
// restart of smtpd, the previous filter may still be saving its records. If the disk fails, claim
// returns nil, and the engine runs without a lock.
func claim(live context.Context, dir, name string, log *slog.Logger) *os.File {
	since, logged := time.Now(), false
	for live.Err() == nil {
		lock, err := control.Claim(dir, name)
		if !errors.Is(err, control.ErrHeld) {
			return lock
		}
		if !logged && time.Since(since) > StopTime {
			inUse(dir, log)
			logged = true
		}
		select {
		case <-live.Done():
		case <-time.After(claimEvery):
		}
	}
	return nil
}
