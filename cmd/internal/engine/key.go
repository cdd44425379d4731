package engine

import (
	"context"
	"log/slog"
	"os"
	"time"

	"scanwatch/filter/privacy"
)

// keyRetry is the interval between attempts to save a hash key.
const keyRetry = 30 * time.Second

// useKey calls use with the hash key in the state directory. If the key is missing or the
// disk times out, useKey calls use with a new key instead, because smtpd is waiting. The
// returned function saves the new key. If a different key has been saved by then, the
// function calls use with that key.
func useKey(dir string, use func(key []byte), log *slog.Logger) func(context.Context) {
	key, ok := withTimeout(log, "reading the key", diskTimeout, func() []byte {
		key, _ := privacy.ReadKey(dir) // SaveKey returns the error
		return key
	})
	switch {
	case key != nil:
		use(key)
		return func(context.Context) {}
	case !ok:
		log.Warn("state directory: disk timeout; hashing with a temporary key")
	}
	fresh := privacy.NewKey()
	use(fresh)
	return func(ctx context.Context) {
		_ = os.Mkdir(dir, 0o750) // the store also creates the directory, but later
		for logged := false; ; {
			key, err := privacy.SaveKey(dir, fresh)
			if err == nil {
				if string(key) != string(fresh) {
					use(key)
				}
				return
			}
			if !logged {
				log.Error("hash key not saved; hashed addresses cannot be found later", "err", err)
				logged = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(keyRetry):
			}
		}
	}
}
