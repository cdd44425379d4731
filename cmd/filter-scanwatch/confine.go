package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/internal/contain"
	"scanwatch/rules"
)

// What happens before smtpd has its handshake touches the disk, and smtpd serves
// nobody meanwhile: so each of it has its bound, after which it is done without.
const (
	configPatience = 5 * time.Second // the configuration and all files that it names
	diskPatience   = time.Second     // the directories that the sandbox is to leave open, the key, and what was refused
)

// inTime returns what f does, or false when that takes longer than patience.
func inTime[T any](log *slog.Logger, what string, patience time.Duration, f func() T) (v T, ok bool) {
	done := make(chan T, 1)
	contain.Go(log, what, func() { done <- f() })
	select {
	case v = <-done:
		return v, true
	case <-time.After(patience):
		return v, false
	}
}

// enterSandbox takes from the process what it does not need with these settings
// and this configuration, and tells what it is. Nothing else may use the disk yet.
func (p *policies) enterSandbox(set rules.Settings) {
	// To wait would hang the mail server, and to do it later the process, as
	// long as one thread waits for the disk: see Enter.
	without := func() {
		p.log.Warn("no sandbox: the disk of the state directory or of the configuration does not answer; restart smtpd when it does")
	}
	if p.unread {
		without()
		return
	}
	paths := sandbox.Paths{State: set.Store, Events: set.Events, Look: config.DefaultFiles()}
	if p.config != nil {
		paths.Read = p.config.Files()
	}
	plan, ok := inTime(p.log, "preparing the sandbox", diskPatience, func() *sandbox.Plan {
		_, _ = time.Now().Zone() // reads the file of the time zone, now or never
		return sandbox.Prepare(paths)
	})
	if !ok {
		without()
		return
	}
	p.closed = plan.Enter()
	for _, err := range p.closed.Problems {
		p.log.Warn("the sandbox is not whole", "error", err)
	}
	tell := p.log.Info
	if !p.closed.Files || !p.closed.Exec || !p.closed.TCP { // less than any system of these years can
		tell = p.log.Warn
	}
	tell("sandbox", p.closed.Attrs()...)
}

// checkState tells, in one line, what of the state directory others could use
// to lead the filter, or scanwatch(8), astray. It is only told: the filter has
// always worked there, and an operator may know why it is so.
func checkState(dir string, log *slog.Logger) {
	var wrong []string
	for _, path := range []string{dir, filepath.Join(dir, "sessions"), filepath.Join(dir, "state.db")} {
		info, err := os.Stat(path)
		if err != nil {
			continue // it is made, or the store tells
		}
		if info.Mode()&0o002 != 0 {
			wrong = append(wrong, fmt.Sprintf("%s can be written by everybody: chmod o-w", path))
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if me := os.Geteuid(); ok && owner.Uid != 0 && int(owner.Uid) != me {
			wrong = append(wrong, fmt.Sprintf("%s belongs to uid %d, neither to root nor to the filter's uid %d: chown", path, owner.Uid, me))
		}
	}
	if len(wrong) > 0 {
		log.Warn("the state directory is not safe from others", "because", strings.Join(wrong, "; "))
	}
}

// sandbox tells status what is in force.
func (p *policies) sandbox(open bool) string {
	if open {
		return "none, because of -S"
	}
	if p.closed == nil {
		return "none: the disk did not answer at the start"
	}
	var words []string
	for _, a := range p.closed.Attrs() {
		words = append(words, fmt.Sprint(a))
	}
	return strings.Join(words, " ")
}
