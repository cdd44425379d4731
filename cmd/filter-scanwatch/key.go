package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"scanwatch/filter/privacy"
)

// keyRetry is how often it is tried to save a key that could not be saved.
const keyRetry = 30 * time.Second

// useKey gives the key of the state directory to use. If there is none that can be
// read, or the disk does not answer in time, use gets a new one, because smtpd waits;
// the function that is returned saves it then. A state directory that comes back later
// with another key has that one used from then on.
func useKey(dir string, use func(key []byte), log *slog.Logger) func(context.Context) {
	key, ok := inTime(log, "reading the key", diskPatience, func() []byte {
		key, _ := privacy.ReadKey(dir) // what went wrong, saving will tell
		return key
	})
	switch {
	case key != nil:
		use(key)
		return func(context.Context) {}
	case !ok:
		log.Warn("the disk of the state directory does not answer: until it does, addresses are hashed with a key of the moment")
	}
	fresh := privacy.NewKey()
	use(fresh)
	return func(ctx context.Context) {
		_ = os.Mkdir(dir, 0o750) // or the store makes it, a moment too late for the key
		for told := false; ; {
			key, err := privacy.SaveKey(dir, fresh)
			if err == nil {
				if string(key) != string(fresh) {
					use(key)
				}
				return
			}
			if !told {
				log.Error("addresses are hashed with a key that is not saved: what is recorded now cannot be found by them later", "error", err)
				told = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(keyRetry):
			}
		}
	}
}
