package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/internal/safego"
	"scanwatch/rules"
)

// smtpd accepts no connections until its filters have completed the handshake, so each disk access
// before the handshake has a timeout. After a timeout, the filter starts without the data.
const (
	configTimeout = 5 * time.Second // for the configuration and all files that it includes
	diskTimeout   = time.Second     // for all other data on disk
)

// withTimeout returns the result of f. ok is false if f does not return before the
// timeout.
func withTimeout[T any](log *slog.Logger, what string, timeout time.Duration, f func() T) (v T, ok bool) {
	done := make(chan T, 1)
	safego.Go(log, what, func() { done <- f() })
	select {
	case v = <-done:
		return v, true
	case <-time.After(timeout):
		return v, false
	}
}

// enterSandbox restricts the process to the operations that the settings and the configuration
// require, and logs the restrictions. read lists additional files that the front end reads. No
// other goroutine may access the disk during the call.
func (p *policies) enterSandbox(set rules.Settings, runDir string, read []string) {
	// If the disk is not responding, run without a sandbox, because waiting would block the mail
	// server. The sandbox cannot be entered later, because the whole process would block until the
	// disk answers; see Enter.
	without := func() {
		p.log.Warn("no sandbox: disk timeout; restart smtpd when the disk answers")
	}
	if p.unread {
		without()
		return
	}
	paths := sandbox.Paths{State: set.Store, Run: runDir, Look: config.DefaultFiles()}
	if p.config != nil {
		paths.Read = p.config.Files()
	}
	paths.Read = append(paths.Read, read...)
	if set.Log.Syslog {
		paths.Log = logSocket
	}
	plan, ok := withTimeout(p.log, "preparing the sandbox", diskTimeout, func() *sandbox.Plan {
		_, _ = time.Now().Zone() // load the time zone now; the sandbox hides its file
		return sandbox.Prepare(paths)
	})
	if !ok {
		without()
		return
	}
	p.closed = plan.Enter()
	for _, err := range p.closed.Problems {
		p.log.Warn("sandbox incomplete", "err", err)
	}
	level := slog.LevelInfo
	if !p.closed.Files || !p.closed.Exec || !p.closed.TCP { // current systems support these restrictions
		level = slog.LevelWarn
	}
	p.log.Log(context.Background(), level, "sandbox", p.closed.Attrs()...)
}

// giveUpRoot changes the user of a filter that is running as root to the state directory's owner.
// Otherwise, the owner could replace files in the directory with links, and root would write to the
// files that the links name.
func giveUpRoot(dir string, log *slog.Logger) {
	if os.Geteuid() != 0 {
		return
	}
	type result struct {
		*owner.User
		err error
	}
	r, ok := withTimeout(log, "looking for the owner of the state directory", diskTimeout, func() result {
		u, err := owner.Of(dir)
		return result{u, err}
	})
	if ok && r.err == nil && r.User != nil {
		log.Warn("running as the owner of the state directory, not as root", "uid", r.ID, "hint", "name this user in smtpd.conf(5)")
		r.err = r.Become()
	}
	if !ok {
		r.err = errDiskTimeout
	}
	if r.err != nil {
		log.Error("running as root in the directory of another user", "err", r.err)
	}
}

var errDiskTimeout = errors.New("disk timeout")

// checkState logs a warning if the owner or mode of the state directory allows other
// users to manipulate the filter or scanwatch(8). The filter still starts, because the
// operator may have chosen this owner and mode.
func checkState(dir string, log *slog.Logger) {
	var wrong []string
	for _, path := range []string{dir, filepath.Join(dir, "sessions"), filepath.Join(dir, "state.db")} {
		info, err := os.Stat(path)
		if err != nil {
			continue // the directory is created later, or the store logs the error
		}
		if info.Mode()&0o002 != 0 {
			wrong = append(wrong, fmt.Sprintf("%s is world-writable; run chmod o-w", path))
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if me := os.Geteuid(); ok && owner.Uid != 0 && int(owner.Uid) != me {
			wrong = append(wrong, fmt.Sprintf("%s belongs to uid %d, neither to root nor to the filter's uid %d: chown", path, owner.Uid, me))
		}
	}
	if len(wrong) > 0 {
		log.Warn("state directory unsafe", "because", strings.Join(wrong, "; "))
	}
}

// sandbox describes the active restrictions.
func (p *policies) sandbox(open bool) string {
	if open {
		return "none, because of -S"
	}
	if p.closed == nil {
		return "none: disk timeout at startup"
	}
	var words []string
	for _, a := range p.closed.Attrs() {
		words = append(words, fmt.Sprint(a))
	}
	return strings.Join(words, " ")
}
